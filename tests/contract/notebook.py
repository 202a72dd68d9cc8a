"""examples/protect_your_model.ipynb from the guide; `python tests/contract/notebook.py` writes it."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "protect-your-own-model.md"
NOTEBOOK = ROOT / "examples" / "protect_your_model.ipynb"
SERVE = "## 7."  # a server needs a terminal
FENCE = re.compile(r'^```python(?: title="[^"]+")?\n(.*?)^```\n', re.MULTILINE | re.DOTALL)


def cells() -> list[tuple[str, str]]:
    """Kind and text of each cell: the guide's words and its Python, up to the server."""
    text = GUIDE.read_text(encoding="utf-8").partition(SERVE)[0]
    parts = FENCE.split(text)
    found = []
    for number, part in enumerate(parts):
        kind = "code" if number % 2 else "markdown"
        # In a notebook the class is defined in a cell above, not in a file.
        body = part.replace("from my_net import MyNet\n\n", "").strip()
        body = re.sub(r"\]\(([\w-]+\.md)", r"](../docs/\1", body) if kind == "markdown" else body
        if body:
            found.append((kind, body))
    found.append(("markdown", "Serving needs a terminal: [the guide](../docs/protect-your-own-model.md), step 7."))
    return found


def notebook() -> str:
    """The notebook as JSON, without outputs."""
    made = []
    for number, (kind, text) in enumerate(cells()):
        cell = {
            "cell_type": kind,
            "id": f"cell-{number}",
            "metadata": {},
            "source": text.splitlines(keepends=True),
        }
        made.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    NOTEBOOK.write_text(notebook(), encoding="utf-8")
