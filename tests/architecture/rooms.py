"""The map of rooms in CONTRIBUTING.md, from the first line of each; `python tests/architecture/rooms.py` draws it."""

import ast
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
PAGE = HERE / "CONTRIBUTING.md"
BEGIN, END = "<!-- rooms: drawn by tests/architecture/rooms.py -->", "<!-- end of rooms -->"


def rooms(root: Path = HERE / "src/sdb") -> dict[str, str]:
    """Each room's name and the first line of its docstring."""
    files = [*root.glob("*/__init__.py"), *(p for p in root.glob("*.py") if not p.name.startswith("__"))]
    names = {(p.parent.name + "/" if p.name == "__init__.py" else p.name): p for p in files}
    docs = {name: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) for name, path in names.items()}
    return {name: (text or "").partition("\n")[0] for name, text in sorted(docs.items())}


def drawn(order: list[set[str]]) -> str:
    """The map, rooms in the order in which they may import each other."""
    found = rooms()
    rank = {name: number for number, names in enumerate(order) for name in names}
    names = sorted(found, key=lambda name: (rank.get(name.removesuffix(".py").rstrip("/"), -1), name))
    rows = [f"| `{name}` | {found[name]} |" for name in names]
    return "\n".join([BEGIN, "", "| `src/sdb/` | what lives there |", "|---|---|", *rows, "", END])


def page_with(text: str, drawing: str) -> str:
    """The page with the map between its marks."""
    before, _, rest = text.partition(BEGIN)
    return before + drawing + rest.partition(END)[2]


if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(Path(__file__).parent))
    from test_structure import ORDER

    PAGE.write_text(page_with(PAGE.read_text(encoding="utf-8"), drawn(ORDER)), encoding="utf-8")
