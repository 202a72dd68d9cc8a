"""The README's Python and commands run as they stand; every command that a page names exists; links lead somewhere."""

import re
import shutil
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_blocks_run_as_written(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import runs_as_written

    found = runs_as_written.blocks(README)
    python = [block for block in found if block[0] == "python"]
    after = "print(box(images).shape, knowledge(images).shape)"
    images = "import torch\nimages = torch.from_numpy(data.test.images[:3]).float() / 255\n"
    printed = runs_as_written.run([*python, ("python", "", images + after)], tmp_path)
    assert "Promised" in printed
    assert "torch.Size([3, 10]) torch.Size([3, 10])" in printed
    # The demo's box, for which `make demo` would take a minute; the picture that the README names is the repository's.
    demo = tmp_path / "runs" / "demo" / "box"
    shutil.copytree(tmp_path / "model.box", demo / "box")
    (demo / "params.resolved.json").write_text('{"dataset": "digits", "validation_fraction": 0.1}')
    (tmp_path / "src").symlink_to(ROOT / "src")
    printed = runs_as_written.run([block for block in found if block[0] == "bash"], tmp_path)
    assert '"class_name"' in printed
    assert (tmp_path / "box.onnx").is_file()
    assert (tmp_path / "hospital.key.json").is_file()


def commands_of(page: Path) -> list[str]:
    """What stands in code on a page and begins with `sdb`, one command each, without comments."""
    text = page.read_text(encoding="utf-8")
    lines = re.findall(r"^(?: {4}|\$ )?((?:[A-Z_]+=\S+ )*sdb .*)$", text, re.MULTILINE) + re.findall(
        r"`(sdb [^`\n]*)`", text
    )
    return [
        part.strip()
        for line in lines
        for part in re.split(r";|&&|\s#|  +", line)
        if part.strip().startswith("sdb ")
    ]


def fault_of(line: str, app: object) -> str | None:
    """What a command line names that the program does not have."""
    command = app
    for word in line.split()[1:]:
        word = word.strip("[](),.:'\"")
        if word.startswith("--"):
            name = word.partition("=")[0]
            known = {
                option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
            }
            if name not in known | {"--help"}:
                return f"{line}: no option {name}"
        elif hasattr(command, "commands"):
            names = word.split("|")
            unknown = [name for name in names if name not in command.commands]
            if unknown:
                return None if word.isupper() or not word.isalpha() else f"{line}: no command {word}"
            command = command.commands[names[0]]
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_that_a_page_names_exist(page):
    from sdb.cli import app

    tree = typer.main.get_command(app)
    assert fault_of("sdb owner new FILE", tree)
    assert fault_of("sdb key new --colour red", tree)
    lines = commands_of(page)
    if page.name in ("README.md", "serving.md", "export.md"):
        assert lines
    assert not [fault for fault in (fault_of(line, tree) for line in lines) if fault]


def test_documents_that_are_named_exist():
    named = set(re.findall(r"\b((?:docs/)?[\w-]+\.(?:md|cff))\b", README)) | {"experiments/README.md"}
    missing = [name for name in named if not (ROOT / name).exists() and name != "results.md"]
    assert not missing


def test_the_page_of_speeds_is_what_its_measurements_say(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import speed_page

    assert speed_page.PAGE.read_text(encoding="utf-8") == speed_page.page()
    assert list(speed_page.SOURCE.glob("*.json"))
