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
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from evidence_cases import CASES, ROWS, Case, checked
from evidence_page import markdown
from few_images import RESULTS, fresh_network, scores_of, student_settings
from torch import nn

from sdb.audit.archive import Folder
from sdb.audit.attacks import ATTACKS
from sdb.audit.attacks.attack import Attack
from sdb.audit.attacks.attacker import Attacker
from sdb.audit.defences import DEFENCES
from sdb.audit.defences.defence import Defended
from sdb.audit.marks.study import MarkSettings, MarkSubject, study
from sdb.audit.pairs import OnlyTop1
from sdb.audit.regime import Way, attacker_of, bar_ways, soft_ways, thief_ways, victim_of
from sdb.audit.remembering import Remembering
from sdb.config import DistillSettings, TrainSettings
from sdb.data import Splits
from sdb.distillation import distill
from sdb.errors import ConfigError, SDBError
from sdb.models import Classifier
from sdb.runs.tasks import Where, Work, run
from sdb.runtime import derive_seed, environment, json_text, write_atomic
from sdb.tracing.decoys import trace
from sdb.training.evaluation import evaluate, evaluation_batches
from sdb.training.progress import ShowTasks

ROOT = Path(__file__).resolve().parent.parent
# Attacks beside plain distillation and the ways that use a level.
ATTACKS_TRIED = ("tuned_distil", "skeptical", "margin_queries")
# How much longer a kind of piece takes than a pair, until one is done and measured.
COSTS = {"teacher": 60.0, "defence": 60.0, "facts": 20.0, "mark": 5.0, "pair": 1.0}
Kind = Literal["teacher", "defence", "facts", "mark", "pair"]
# The row whose labels are also marked by ties, and the thief of labels that is looked for.
MARKED, COPIER = "decoy", "labels"


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


class Ground:
    """What pieces of one seed stand on, made as it is asked for."""

    def __init__(self, case: Case, root: Path | None, seed: int, archive: Folder) -> None:
        self.case, self.root, self.seed, self.archive = case, root, seed, archive

    @cached_property
    def data(self) -> Splits:
        """The data set, checked."""
        return checked(self.case, self.root, self.seed)

    @property
    def fitted(self) -> dict[str, Any]:
        """How teacher and defences are trained."""
        case = self.case
        rate = {"optimizer": "adamw", "learning_rate": case.rate, "schedule": "one_cycle"}
        return {**rate, "batch_size": case.batch_size, "seed": self.seed, "precision": case.precision()}

    def network(self, name: str, arguments: dict[str, Any], purpose: object) -> Classifier:
        """A fresh network; the same weights for the same purpose."""
        return fresh_network(self.data, name, arguments, derive_seed(self.seed, purpose))

    def make_teacher(self) -> None:
        """Train it; goes on where it was stopped."""
        fresh = self.network(*self.case.teacher, "teacher")
        settings = TrainSettings(epochs=self.case.epochs, **self.fitted)
        self.archive.train(f"seed-{self.seed}/teacher", fresh, self.data, settings)

    @cached_property
    def teacher(self) -> Classifier:
        """The trained teacher."""
        like = self.network(*self.case.teacher, "teacher")
        return self.archive.trained(f"seed-{self.seed}/teacher", like).eval()

    def make(self, row: str) -> None:
        """Build a defence."""
        settings = TrainSettings(epochs=self.case.box_epochs, **self.fitted)
        self.archive.build(f"seed-{self.seed}/{row}", DEFENCES[row], self.teacher, self.data, settings)

    @cache  # noqa: B019 - a ground lives as long as its process
    def defended(self, row: str) -> Defended:
        """A built defence, whose answers to the same images are computed once."""
        built = self.archive.defended(f"seed-{self.seed}/{row}", DEFENCES[row], self.teacher)
        keyed = None if built.keyed is None else Remembering(built.keyed)
        return replace(built, keyless=Remembering(built.keyless), keyed=keyed)

    def attacker(self, student: str, pair: int) -> Attacker:
        """A thief of one pair."""
        case = self.case
        machine = {"batch_size": case.student_batch, "precision": case.precision()}
        settings = student_settings(case.student_epochs, case.student_rate, self.seed, **machine)
        name, arguments = case.students[student]

        def fresh(purpose: object) -> Classifier:
            return self.network(name, arguments, ("student", student, purpose))

        return attacker_of(self.data, case.regime, fresh, settings, pair)


def facts_of(ground: Ground, row: str) -> dict[str, Any]:
    """What users of a defence get on test images, and whether a thief of all training images carries decoys."""
    defended, data = ground.defended(row), ground.data
    models = {"keyless": defended.keyless} | ({} if defended.keyed is None else {"keyed": defended.keyed})
    scores = scores_of(models, data)
    found: dict[str, Any] = {"keyless": scores["keyless"], "keyed": scores.get("keyed", {}).get("accuracy")}
    box = defended.box
    found["bits"] = 0.0 if row == "labels_only" else None
    if box is not None and box.rows is not None:
        found["bits"] = box.info.measured["bits"]
        thief = ground.network(*next(iter(ground.case.students.values())), ("traced", row))
        settings = DistillSettings(
            epochs=ground.case.traced_epochs, optimizer="adam", learning_rate=0.003, seed=ground.seed
        )
        distill(box, thief, data, settings, progress=False)
        owner = defended.owner
        assert owner is not None  # boxes of a defence have one
        found["trace_log10_p"] = trace(thief, box, owner, data, reference=ground.teacher).log10_p
    return found


def mark_of(ground: Ground, row: str) -> dict[str, Any]:
    """What ties of a served box cost, and whether a copy of 2,000 of its labels carries them."""
    defended = ground.defended(row)
    box, owner = defended.box, defended.owner
    assert box is not None  # the row is our box
    assert owner is not None
    subject = MarkSubject(box.classifier, ground.data, owner, box.info.id)
    found = study(subject, MarkSettings(thieves=(COPIER,), seed=ground.seed))
    kept = {"ties": found["ties"], "coins": found["coins"], "queries": found["queries"]}
    of_seed = found["seeds"].get(str(ground.seed))
    if of_seed is None:
        return kept
    thief = of_seed["thieves"][COPIER]
    (account,) = thief["accounts"]
    lost = {"accuracy": thief["accuracy"], "beside_no_ties": of_seed["facts"]["plain_thief"]}
    return kept | {"cost": of_seed["facts"]["cost"], "log10_p": account["corrected_log10_p"]} | lost


def ways_of(ground: Ground, row: str) -> dict[str, Way]:
    """What a piece's students learn from: `bar/`, `thief/`, `attack/`, `top1/` and `partner/`."""
    defended, regime = ground.defended(row), ground.case.regime
    bar = bar_ways(defended.keyless, regime)
    if row != "none":  # who asks nobody is the same in every row
        bar = {name: way for name, way in bar.items() if name.startswith("top-1")}
    ways = {f"bar/{name}": way for name, way in bar.items()}
    if defended.interface != "labels":
        ways |= {f"thief/{name}": way for name, way in thief_ways(defended.keyless, regime).items()}
        for name in ATTACKS_TRIED:
            ways[f"attack/{name}"] = _way(ATTACKS[name], defended.keyless)
    top1 = OnlyTop1(defended.keyless, ground.data.num_classes)
    ways["top1/margin_queries"] = _way(ATTACKS["margin_queries"], top1)
    if defended.keyed is not None:
        ways |= {f"partner/{name}": way for name, way in soft_ways(defended.keyed).items()}
    return ways


def _way(attack: Attack, module: nn.Module) -> Way:
    return lambda attacker: attack.run(victim_of(module, attacker), attacker).student


def pair_of(ground: Ground, piece: Piece) -> dict[str, Any]:
    """Test and validation accuracy of one pair's students, by way."""
    attacker = ground.attacker(piece.student, piece.pair)
    test = evaluation_batches(ground.data.test, attacker.device)
    found = {}
    for name, way in ways_of(ground, piece.row).items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(ground.seed, "pair", piece.pair, name))
            student = way(attacker).eval()
        found[name] = [evaluate(student, test)["accuracy"], attacker.score(student)]
    return {"ways": found}


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
        "pair": lambda: pair_of(ground, piece),
    }
    result = made[piece.kind]() or {}
    machine = environment()
    kept = {name: machine[name] for name in ("torch", "platform", "cores", "commit")}
    kept["precision"] = ground.case.precision()
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
    teacher where it is needed for nothing more.
    """
    content = json.loads(out.read_text()) if out.exists() else {}
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


def left(missing: list[Piece], done: dict[str, dict[str, Any]], pieces: list[Piece]) -> float:
    """How many seconds the missing pieces will take in one process, from those of their kind; NaN with none done."""
    known: dict[str, list[float]] = {}
    for piece in pieces:
        if piece.name in done:
            known.setdefault(piece.kind, []).append(done[piece.name]["seconds"])
    if not known:
        return float("nan")
    unit = fmean(fmean(seconds) / COSTS[kind] for kind, seconds in known.items())
    return sum(fmean(known[each.kind]) if each.kind in known else unit * COSTS[each.kind] for each in missing)


def main() -> int:
    """Do what is missing, then write the file; a second call does nothing and says so."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=sorted(CASES), required=True)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--plan", action="store_true", help="only say what is missing, and how long it will take")
    parser.add_argument("--minutes", type=float, help="stop after so long; what is finished is kept")
    parser.add_argument("--work", type=Path, help="where pieces are kept (default: runs/evidence/DATA)")
    parser.add_argument("--out", type=Path, help="(default: docs/results/evidence-DATA.json)")
    options = parser.parse_args()
    case, folder = CASES[options.data], options.work or ROOT / "runs" / "evidence" / options.data
    out = options.out or RESULTS / f"evidence-{options.data}.json"
    root = None if options.data_root is None else options.data_root.absolute()
    archive, pieces = Folder(folder), pieces_of(case, options.seeds)
    take_over(archive, pieces, case, out)
    done = {piece.name: archive.result(piece.place) for piece in pieces if archive.has(piece.place)}
    missing = [piece for piece in pieces if piece.name not in done]
    seconds = left(missing, done, pieces)
    after = "" if seconds != seconds else f", about {seconds / 60 / options.workers:.0f} minutes"
    print(f"{options.data}: {len(done)} of {len(pieces)} pieces are done; {len(missing)} missing{after}")
    if options.plan:
        for piece in missing:
            print(f"  {piece.name}")
        return 0
    try:
        if missing:
            checked(case, root, 0)  # refused now, not in another process
            take(case, folder)
            works = [
                Work(each.name, do, (each, options.data, root, folder.absolute()), each.needs) for each in missing
            ]
            shown = ShowTasks(options.data, {each.name: COSTS[each.kind] for each in missing})
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
    """Write the results file, with its section."""
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
        "environment": environment(),
        "pieces": rows,
        "missing": [each.name for each in pieces if each.name not in done],
    }
    content["markdown"] = markdown(content)
    write_atomic(out, json.dumps(content, indent=1).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
