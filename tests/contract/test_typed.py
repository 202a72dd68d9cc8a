"""Editors and type checkers see what `sdb` gives, although it is loaded when it is first used."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sdb

SOURCE = Path(sdb.__file__).parents[1]


@pytest.fixture(scope="module")
def revealed(tmp_path_factory):
    """By public name, what the type checker says that it is."""
    pytest.importorskip("ty")
    folder = tmp_path_factory.mktemp("typed")
    names = sorted(sdb.__all__)
    lines = ["import sdb", "from typing import reveal_type", *(f"reveal_type(sdb.{name})" for name in names)]
    (folder / "user.py").write_text("\n".join(lines) + "\n")
    where = ("--python", sys.prefix, "--extra-search-path", str(SOURCE))
    done = subprocess.run(
        [sys.executable, "-m", "ty", "check", "user.py", "--output-format", "concise", "--color", "never", *where],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    said = re.findall(r"user\.py:(\d+):\d+: .*Revealed type: `(.*)`", done.stdout)
    return {names[int(line) - 3]: what for line, what in said}


def test_every_public_name_has_a_type(revealed):
    assert revealed.keys() == set(sdb.__all__)
    unknown = [name for name, what in revealed.items() if re.search(r"\bUnknown\b|^Any$", what.split("(")[0])]
    assert not unknown


def test_functions_have_their_parameters(revealed):
    for name in ("wrap", "distill", "train", "load_data", "load_classifier", "from_module"):
        for parameter in inspect.signature(getattr(sdb, name)).parameters:
            assert f"{parameter}: " in revealed[name], (name, parameter)
    assert revealed["wrap"].endswith("-> Box")
    assert "box: Box | None" in revealed["audit"]
    assert {name: revealed[name] for name in ("Box", "Key")} == {n: f"<class '{n}'>" for n in ("Box", "Key")}
