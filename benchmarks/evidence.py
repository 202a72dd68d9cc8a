"""The evidence table of one data set, piece by piece: a section of docs/results.md, see evidence_page.

    make evidence ARGS="--data digits"
    make evidence ARGS="--data cifar10 --data-root DIR"          # DIR/train/airplane/*.png, or DIR/cifar10/*.parquet
    make evidence ARGS="--data cifar10 --data-root DIR --plan"   # what is missing, and how long it will take

A piece is a teacher, a defence around it, what users of it get, what marks its labels, or one pair of students; each
is sized for half an hour at most, is kept when it is done, and is never done again, so a table grows over several
sittings. On another machine the rows of a seed that the results file has whole are taken over; of others the networks
are not there. Seed 0 of every row comes first, then further seeds of the unprotected teacher and our box, then those
of the other rows. Students come in pairs, see `sdb.audit.regime`; the best of several ways is chosen on the students'
own validation images. A further column is a further kind of piece: only its pieces are then run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from evidence_cases import CASES, ROWS, Case, checked
from evidence_ground import Ground, facts_of, mark_of, pair_of
from few_images import RESULTS

from sdb.audit.archive import Folder
from sdb.errors import ConfigError, SDBError
from sdb.runs.tasks import Where, Work, run
from sdb.runtime import choose_device, environment, json_text, write_atomic
from sdb.training.progress import ShowTasks

ROOT = Path(__file__).resolve().parent.parent
# How much longer a kind of piece takes than a pair, until one is done and measured.
COSTS = {"teacher": 8.0, "defence": 6.0, "facts": 2.0, "mark": 0.5, "pair": 1.0}
Kind = Literal["teacher", "defence", "facts", "mark", "pair"]
# The row whose labels are also marked by ties.
MARKED = "decoy"


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece of the table."""

    kind: Kind
    seed: int
    row: str = ""
    student: str = ""
    pair: int = 0

    @property
    def name(self) -> str:
        """As it is shown."""
        words = (self.row, self.kind, self.student, f"{self.pair + 1}" if self.kind == "pair" else "")
        return " ".join(["seed", str(self.seed), *filter(None, words)])

    @property
    def place(self) -> str:
        """Of its result in the archive."""
        return "/".join([f"seed-{self.seed}", "results", self.name.replace(" ", "-")])

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of pieces that must be done before."""
        if self.kind == "teacher":
            return ()
        if self.kind == "defence":
            return (Piece("teacher", self.seed).name,)
        return (Piece("defence", self.seed, self.row).name,)


def rows(text: str) -> tuple[str, ...]:
    """Rows of the table, by name and separated by commas."""
    names = tuple(text.split(","))
    if not set(names) <= set(ROWS):
        raise argparse.ArgumentTypeError(f"{text!r}: rows are {', '.join(ROWS)}")
    return names


def pieces_of(case: Case, seeds: int) -> list[Piece]:
    """All pieces, in the order in which they are done."""
    first = [(0, row) for row in ROWS]
    ours = [(seed, row) for seed in range(1, seeds) for row in ("none", "decoy")]
    others = [(seed, row) for seed in range(1, seeds) for row in ROWS if row not in ("none", "decoy")]
    found: list[Piece] = []
    for seed, row in first + ours + others:
        if row == "none":
            found.append(Piece("teacher", seed))
        found += [Piece("defence", seed, row), Piece("facts", seed, row)]
        if row == MARKED:
            found.append(Piece("mark", seed, row))
        for student in case.students:
            found += [Piece("pair", seed, row, student, pair) for pair in range(case.pairs)]
    return found


@cache
def _ground(case: str, root: Path | None, seed: int, folder: Path) -> Ground:
    return Ground(CASES[case], root, seed, Folder(folder))


def do(piece: Piece, case: str, root: Path | None, folder: Path) -> None:
    """Do a piece and keep its result."""
    started = time.perf_counter()
    ground = _ground(case, root, piece.seed, folder)
    made: dict[Kind, Callable[[], dict[str, Any] | None]] = {
        "teacher": ground.make_teacher,
        "defence": lambda: ground.make(piece.row),
        "facts": lambda: facts_of(ground, piece.row),
        "mark": lambda: mark_of(ground, piece.row),
        "pair": lambda: pair_of(ground, piece.row, piece.student, piece.pair),
    }
    result = made[piece.kind]() or {}
    machine = environment(choose_device("auto"))
    kept = {name: machine[name] for name in ("torch", "platform", "cores", "device", "commit")}
    kept |= {"precision": ground.case.precision(), "images": ground.data.note}
    ground.archive.keep(piece.place, result | {"seconds": time.perf_counter() - started, "machine": kept})


def take(case: Case, folder: Path) -> None:
    """Keep the sizes that the pieces of a folder are made with.

    Raises:
        ConfigError: its pieces were made with others; one table would mix both.
    """
    path, sizes = folder / "case.json", json_text(asdict(case), indent=1).encode() + b"\n"
    if path.exists() and path.read_bytes() != sizes:
        raise ConfigError(
            f"{folder}: its pieces were made with other sizes (case.json): give another --work, or remove it"
        )
    write_atomic(path, sizes)


def take_over(archive: Folder, pieces: list[Piece], case: Case, out: Path) -> None:
    """Keep what the results file has and the folder of pieces has not, as after a sitting on another machine.

    Networks are not in that file. So the pieces of a row of a seed are taken over together or not at all, and a
    teacher where it is needed for nothing more. Else it is trained again from its seed: rows of one seed may then be of
    two trainings of one teacher, which are the same only where processors compute alike.

    Raises:
        ConfigError: the file is something else.
    """
    try:
        content = json.loads(out.read_text()) if out.exists() else {"case": None, "pieces": []}
        if not isinstance(content["pieces"], list):
            raise ValueError
    except (ValueError, TypeError, KeyError):
        raise ConfigError(
            f"{out}: no results file of the evidence table: restore it, or give another --out"
        ) from None
    if content.get("case") != json.loads(json_text(asdict(case))):
        return
    known = {
        Piece(each["kind"], each["seed"], each["row"], each["student"], each["pair"]): each
        for each in content["pieces"]
    }
    fields = ("kind", "seed", "row", "student", "pair")
    rows: dict[tuple[int, str], list[Piece]] = {}
    for piece in pieces:
        rows.setdefault((piece.seed, piece.row), []).append(piece)
    whole = {
        place
        for place, parts in rows.items()
        if place[1] and all(each in known for each in parts) and not any(archive.has(each.place) for each in parts)
    }
    for seed, row in rows:
        if not row and all(place in whole for place in rows if place[0] == seed and place[1]):
            whole.add((seed, row))
    for piece in (each for place in whole for each in rows[place] if each in known):
        archive.keep(piece.place, {name: value for name, value in known[piece].items() if name not in fields})


def costs_of(missing: list[Piece], done: dict[str, dict[str, Any]], pieces: list[Piece]) -> dict[str, float]:
    """Seconds that each missing piece will take in one process, by those of its kind; with none done, in pairs."""
    known: dict[str, list[float]] = {}
    for piece in pieces:
        if piece.name in done:
            known.setdefault(piece.kind, []).append(done[piece.name]["seconds"])
    unit = fmean([fmean(seconds) / COSTS[kind] for kind, seconds in known.items()] or [1.0])
    return {
        each.name: fmean(known[each.kind]) if each.kind in known else unit * COSTS[each.kind] for each in missing
    }


def minutes(text: str) -> float:
    """A time to work."""
    value = float(text)
    if not 0 < value <= 1e6:
        raise ValueError
    return value


def main() -> int:
    """Do what is missing, then write the file; a second call does nothing and says so."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=sorted(CASES), required=True)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--plan", action="store_true", help="only say what is missing, and how long it will take")
    parser.add_argument("--rows", type=rows, help="only these, separated by commas: " + ", ".join(ROWS))
    parser.add_argument("--minutes", type=minutes, help="stop after so long; what is finished is kept")
    parser.add_argument("--work", type=Path, help="where pieces are kept (default: runs/evidence/DATA)")
    parser.add_argument("--out", type=Path, help="(default: docs/results/evidence-DATA.json)")
    options = parser.parse_args()
    case, folder = CASES[options.data], options.work or ROOT / "runs" / "evidence" / options.data
    out = options.out or RESULTS / f"evidence-{options.data}.json"
    root = None if options.data_root is None else options.data_root.absolute()
    archive, pieces = Folder(folder), pieces_of(case, options.seeds)
    try:
        take_over(archive, pieces, case, out)
    except SDBError as error:
        print(f"evidence: {error}", file=sys.stderr)
        return 2
    done = {piece.name: archive.result(piece.place) for piece in pieces if archive.has(piece.place)}
    missing = [piece for piece in pieces if piece.name not in done]
    costs = costs_of(missing, done, pieces)
    after = f", about {sum(costs.values()) / 60 / options.workers:.0f} minutes" if done else ""
    print(f"{options.data}: {len(done)} of {len(pieces)} pieces are done; {len(missing)} missing{after}")
    if options.plan:
        for piece in missing:
            print(f"  {piece.name}")
        return 0
    try:
        works_on = [piece for piece in missing if options.rows is None or piece.row in ("", *options.rows)]
        if works_on:
            checked(case, root, 0)  # refused now, not in another process
            take(case, folder)
            works = [
                Work(each.name, do, (each, options.data, root, folder.absolute()), each.needs) for each in works_on
            ]
            shown = ShowTasks(options.data, {each.name: costs[each.name] for each in works_on})
            with contextlib.closing(shown), at_most(options.minutes):
                run(works, Where(workers=options.workers), shown.on_progress, before=len(done))
    except TimeUp:
        print(f"evidence: {options.minutes:g} minutes are over; the same command goes on", file=sys.stderr)
    except SDBError as error:
        print(f"evidence: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("evidence: interrupted; what is finished is kept, the same command goes on", file=sys.stderr)
        return 130
    finally:
        done = {piece.name: archive.result(piece.place) for piece in pieces if archive.has(piece.place)}
        if done and (missing or not out.exists()):  # what is done may be of a call that was killed
            keep(out, options, pieces, done)
    return 0


class TimeUp(KeyboardInterrupt):
    """The time that was given is over: like Ctrl-C, what is finished is kept."""


@contextlib.contextmanager
def at_most(minutes: float | None) -> Iterator[None]:
    """Raise `TimeUp` in the main thread after so long."""

    def over(*_: object) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, 60 * (minutes or 0.0))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def keep(out: Path, options: argparse.Namespace, pieces: list[Piece], done: dict[str, dict[str, Any]]) -> None:
    """Write the results file."""
    command = f"python benchmarks/evidence.py --data {options.data}"
    command += f"{' --data-root DIR' if options.data_root else ''} --seeds {options.seeds}"
    rows = [
        {"kind": each.kind, "seed": each.seed, "row": each.row, "student": each.student, "pair": each.pair}
        | done[each.name]
        for each in pieces
        if each.name in done
    ]
    content = {
        "kind": "evidence",
        "data": options.data,
        "case": asdict(CASES[options.data]),
        "command": command,
        "environment": environment(choose_device("auto")),
        "pieces": rows,
        "missing": [each.name for each in pieces if each.name not in done],
    }
    write_atomic(out, json.dumps(content, indent=1).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
