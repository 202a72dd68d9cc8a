"""The README's Python runs as it stands, and its links lead somewhere."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert blocks
    for block in blocks:
        names = {}
        exec(block, names)
    images = names["data"].test.images[:3]
    import torch

    pixels = torch.from_numpy(images).float() / 255
    assert names["knowledge"](pixels).shape == names["box"](pixels).shape == (3, 10)
    assert (tmp_path / "model.box" / "box.json").exists()


def test_documents_that_are_named_exist():
    named = set(re.findall(r"\b((?:docs/)?[\w-]+\.(?:md|cff))\b", README)) | {"experiments/README.md"}
    missing = [name for name in named if not (ROOT / name).exists() and name != "results.md"]
    assert not missing


def test_the_page_of_speeds_is_what_its_measurements_say(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import speed_page

    assert speed_page.PAGE.read_text(encoding="utf-8") == speed_page.page()
    assert list(speed_page.SOURCE.glob("*.json"))
