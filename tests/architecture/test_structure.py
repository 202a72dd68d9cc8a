"""Is it still small, and does everything still flow one way? Read from the source, nothing is executed here."""

import ast
import graphlib
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import sdb

ROOT = Path(sdb.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MAX_LINES = 400
MAX_ROOMS, MAX_IMPORTS = 24, 140

# A module imports from earlier lines only; within a line, nobody imports from another.
ORDER = [
    {"errors"},
    {"runtime"},
    {"config"},
    {"data", "losses", "keys", "models"},
    {"answers"},
    {"box", "remote"},
    {"training"},
    {"distillation", "tracing"},
    {"wrapping"},
    {"report", "export", "service"},
    {"runs"},
    {"audit"},
    {"demo", "reproduction"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
# Rooms that may use less than what comes before them.
ONLY = {
    "report": {"errors", "runtime"},
    "service": {"errors", "runtime", "config", "data", "keys", "models", "answers", "box", "export"},
}
SPEAKS = {"shell.py", "progress.py"}
EXTRAS = {
    "pyarrow",
    "simplejpeg",
    "datasets",
    "transformers",
    "fastapi",
    "uvicorn",
    "aiohttp",
    "grpc",
    "google",
    "tritonclient",
    "httpx2",
    "tenacity",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "model_signing",
    "OpenSSL",
    "optuna",
    "ray",
    "art",
    "sklearn",
}


def tree_of(path):
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def room_of(path):
    """The module of sdb, or the package's folder, that a file belongs to."""
    first = path.relative_to(ROOT).parts[0]
    return first.removesuffix(".py")


def names_imported(node):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        if node.level:
            return ["." * node.level + (node.module or "")]
        # `from sdb import data` names a module, `from sdb.data import load` does too.
        return [f"sdb.{alias.name}" for alias in node.names] if node.module == "sdb" else [node.module or ""]
    return []


def imports_of_ours(path):
    """The rooms that a file imports from, anywhere in it."""
    names = [name for node in ast.walk(tree_of(path)) for name in names_imported(node)]
    return {name.split(".")[1] for name in names if name.startswith("sdb.")}


def test_there_is_source_to_look_at():
    assert {"errors", "config", "data", "box"} <= {room_of(path) for path in FILES}


def faults(check):
    """Every fault that a check finds, with its file."""
    return [f"{path.relative_to(ROOT)}: {fault}" for path in FILES for fault in check(path)]


def against_the_order(path):
    """Imports from rooms that come later or beside the file's own."""
    room = room_of(path)
    if path == ROOT / "__init__.py":
        return
    for other in {room, *imports_of_ours(path)}:
        if other not in RANK:
            yield f"say in ORDER where {other} belongs"
        elif other != room and room in RANK:
            if RANK[other] >= RANK[room]:
                yield f"{room} imports {other}, which comes later or beside it"
            if room in ONLY and other not in ONLY[room]:
                yield f"{room} may not use {other}"


def test_imports_go_one_way():
    assert not faults(against_the_order)


def module_of(path):
    """The dotted name of a file."""
    return ".".join(("sdb", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


def graph_of(files):
    """Who imports whom, file by file, wherever in a file the import stands."""
    modules = {module_of(path): path for path in files}
    graph = {}
    for name, path in modules.items():
        found = set()
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ImportFrom):
                both = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= both & modules.keys() or {node.module}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        graph[name] = (found & modules.keys()) - {name, "sdb"}
    return graph


def circle_in(graph):
    """Names that import each other in a circle, or None."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return None


def test_no_circle_between_files_also_inside_a_room():
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"a"}}) is not None
    assert circle_in(graph_of(FILES)) is None


def test_the_house_is_small():
    between = {
        (one.split(".")[1], other.split(".")[1])
        for one, others in graph_of(FILES).items()
        for other in others
        if one != "sdb" and one.split(".")[1] != other.split(".")[1]
    }
    assert len({room for pair in between for room in pair}) <= MAX_ROOMS
    assert len(between) <= MAX_IMPORTS


def test_the_map_in_contributing_is_that_of_the_rooms():
    rooms = runpy.run_path(str(Path(__file__).with_name("rooms.py")))
    page = rooms["PAGE"].read_text(encoding="utf-8")
    assert rooms["page_with"](page, rooms["drawn"](ORDER)) == page, "run python tests/architecture/rooms.py"
    assert all(line.count(".") >= 2 for line in rooms["rooms"]().values()), (
        "say what lives there and what does not"
    )


def relative_or_everything(path):
    """Relative imports and imports of everything."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and (node.level or any(alias.name == "*" for alias in node.names)):
            yield f"line {node.lineno}"


def test_nobody_imports_relatively_or_everything():
    assert not faults(relative_or_everything)


def test_no_file_is_long():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert not {str(path): length for path, length in lengths.items() if length > MAX_LINES}


def test_there_is_no_room_for_odds_and_ends():
    assert not {path.stem for path in FILES} & {"utils", "util", "helpers", "common", "misc"}


def asserted(path):
    """`python -O` removes assert statements; a check that matters raises."""
    return [f"line {node.lineno}" for node in ast.walk(tree_of(path)) if isinstance(node, ast.Assert)]


def test_nothing_is_asserted_in_the_source():
    assert not faults(asserted)


def calls_of(path):
    return [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]


def printed(path):
    """Calls of print outside the shell."""
    if path.name in SPEAKS:
        return []
    return [f"line {c.lineno}" for c in calls_of(path) if isinstance(c.func, ast.Name) and c.func.id == "print"]


def test_only_the_shell_prints():
    assert not faults(printed)


def unpickled(path):
    """Calls that could run what a file says."""
    for call in calls_of(path):
        name = ast.unparse(call.func)
        keywords = {k.arg: ast.unparse(k.value) for k in call.keywords}
        if (
            (name == "torch.load" and keywords.get("weights_only") != "True")
            or (name in ("np.load", "numpy.load") and keywords.get("allow_pickle", "False") != "False")
            or name in ("pickle.load", "pickle.loads", "eval", "exec", "yaml.load")
        ):
            yield f"line {call.lineno}: {name}"


def test_nothing_is_unpickled():
    assert not faults(unpickled)


def written_loosely(path):
    """JSON goes through one function, which never writes NaN or an infinity."""
    if path != ROOT / "runtime" / "reading.py":
        for call in calls_of(path):
            if ast.unparse(call.func) in ("json.dumps", "json.dump"):
                yield f"line {call.lineno}: use sdb.runtime.json_text"


def test_json_is_written_in_one_way():
    assert not faults(written_loosely)


def globally_random(path):
    """Keys come from the operating system, everything else from generators of its own or a forked state."""
    if path == ROOT / "audit" / "attacks" / "art.py":
        return  # somebody else's attacks draw from numpy's global stream: seeded there, and put back
    for call in calls_of(path):
        name = ast.unparse(call.func)
        mine = name.startswith(("np.random.default_rng", "np.random.SeedSequence"))
        if name.startswith(("np.random.", "numpy.random.", "random.")) and not mine:
            yield f"line {call.lineno}: {name}"


def test_no_global_random_numbers():
    assert not faults(globally_random)


def public(name):
    return not name.startswith("_")


def undocumented(body, is_protocol=False):
    """Public classes and functions without a docstring, and methods of public classes; overloads have one in common."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            bare = is_protocol or any(ast.unparse(each) == "overload" for each in node.decorator_list)
            if public(node.name) and not bare and not ast.get_docstring(node):
                yield f"{node.name}:{node.lineno}"
        elif isinstance(node, ast.ClassDef) and public(node.name):
            if not ast.get_docstring(node):
                yield f"{node.name}:{node.lineno}"
            yield from undocumented(node.body, any(ast.unparse(base) == "Protocol" for base in node.bases))


def without_docstring(path):
    """The file, or what is public in it, where it has no docstring."""
    tree = tree_of(path)
    if not ast.get_docstring(tree):
        yield "the file"
    yield from undocumented(tree.body)


def test_everything_public_has_a_docstring():
    assert not faults(without_docstring)


@pytest.mark.parametrize(
    ("source", "check"),
    [
        ("from . import x", relative_or_everything),
        ("from x import *", relative_or_everything),
        ("assert x", asserted),
        ("print(1)", printed),
        ("torch.load(x)", unpickled),
        ("np.load(x, allow_pickle=True)", unpickled),
        ("pickle.loads(x)", unpickled),
        ("json.dumps(x, indent=1)", written_loosely),
        ("np.random.rand(3)", globally_random),
        ("def f(): pass", without_docstring),
    ],
)
def test_the_checks_find_what_they_look_for(tmp_path, source, check):
    file = tmp_path / "x.py"
    file.write_text(source + "\n")
    assert list(check(file))


def modules_after(*arguments):
    """The top-level modules that a fresh Python has imported after running some arguments of its command line."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT.parent)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [
        line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")
    ]
    return {name.partition(".")[0] for name in lines}


@pytest.mark.parametrize(
    "arguments",
    [
        ("-c", "import sdb"),
        ("-c", "import sdb.errors, sdb.config, sdb.runtime, sdb.keys.keys"),
        ("-m", "sdb", "--help"),
    ],
    ids=["import sdb", "light modules", "sdb --help"],
)
def test_the_light_way_in_imports_neither_torch_nor_an_extra(arguments):
    imported = modules_after(*arguments)
    assert "sdb" in imported
    assert not imported & ({"torch", "matplotlib", "numpy"} | EXTRAS)


def test_the_check_for_imports_finds_them():
    assert "torch" in modules_after("-c", "import sdb.losses")
