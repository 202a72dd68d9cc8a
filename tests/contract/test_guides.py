"""The guides: what they tell a reader to do works as written; the site is built from them without a broken link."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sdb

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "protect-your-own-model.md"
NOTEBOOK = ROOT / "examples" / "protect_your_model.ipynb"


@pytest.fixture
def written(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import runs_as_written

    return runs_as_written


def test_the_guide_protects_a_model_as_written(written, tmp_path):
    found = written.blocks(GUIDE.read_text(encoding="utf-8"))
    assert [language for language, _, _ in found].count("bash") == 2
    printed = written.run(found, tmp_path)
    assert "Promised" in printed
    assert "thief" in printed
    assert "the hospital's student" in printed
    assert '"class_name"' in printed  # what the server answered
    assert (tmp_path / "hospital.key.json").stat().st_mode & 0o077 == 0


def test_the_notebook_is_the_guide(written):
    import notebook

    assert NOTEBOOK.read_text(encoding="utf-8") == notebook.notebook(), (
        "write it: python tests/contract/notebook.py"
    )


@pytest.mark.slow
def test_the_notebook_runs(written, tmp_path):
    # Its cells run as Python, one after the other: a Jupyter kernel would bring some thirty packages into the tests.
    text = NOTEBOOK.read_text(encoding="utf-8")
    code = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert not any(line.startswith(("%", "!")) for cell in code for line in cell.splitlines())
    printed = written.run([("python", "", cell) for cell in code], tmp_path)
    assert "the hospital's student" in printed


def test_a_block_that_fails_fails_the_guide(written, tmp_path):
    for block in ("```python\nassert 1 == 2\n```", "```bash\ntrue\nfalse\n```"):
        with pytest.raises(AssertionError):
            written.run(written.blocks(block), tmp_path)


@pytest.mark.slow
def test_the_guide_of_guards_audits_one_as_written(written, tmp_path):
    _, _, section = (
        (ROOT / "docs" / "guarding.md").read_text(encoding="utf-8").partition("## How much does a guard deny?")
    )
    found = written.blocks(section)
    assert len(found) == 1
    printed = written.run(found, tmp_path)
    assert "With 6 labelled examples per class, a thief gains" in printed


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(out)]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_the_api_page_has_every_public_name(site):
    text = (site / "api.html").read_text(encoding="utf-8")
    names = {"load_data": "load", "data": "from_loaders"}  # the module sdb.data, by one of its functions
    assert not [name for name in sdb.__all__ if f'.{names.get(name, name)}"' not in text]


def test_every_page_is_in_the_site_and_names_of_pages_are_links(site):
    for page in (ROOT / "docs").glob("*.md"):
        assert (site / f"{page.stem}.html").is_file(), f"{page.name}: add it to nav in mkdocs.yml"
        assert page.name in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert 'href="parameters.html"' in (site / "method.html").read_text(encoding="utf-8")
    outside = [
        name for name in ("fonts.googleapis", "unpkg.com", "cdn.") if name in (site / "index.html").read_text()
    ]
    assert not outside, "the site loads nothing from elsewhere"
