"""What the wheel holds beside Python: the data, templates and pages without which an installed package fails."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_wheel_has_every_file_of_the_package(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    # A copy, so that nothing is built into the checkout.
    subprocess.run(
        [
            "cp",
            "-r",
            *(str(ROOT / name) for name in ("src", "pyproject.toml", "README.md", "LICENSE")),
            str(source),
        ],
        check=True,
    )
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and "setuptools" in done.stderr and "No matching distribution" in done.stderr:
        pytest.skip("no package index to build with")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    packed = set(zipfile.ZipFile(wheel).namelist())
    files = {
        path for path in (ROOT / "src" / "sdb").rglob("*") if path.is_file() and "__pycache__" not in path.parts
    }
    wanted = {str(path.relative_to(ROOT / "src")) for path in files if path.suffix not in {".pyc", ".md"}}
    assert {"sdb/py.typed", "sdb/data/digits.npz", "sdb/service/static/index.html"} <= wanted
    assert not wanted - packed
