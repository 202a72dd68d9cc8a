"""Where the mark of ties ends: thieves of labels, what they do against it, and what that costs them.

    python benchmarks/ties.py --data fashion_mnist --data-root DIR --seeds 3
    python benchmarks/protection.py --write          # docs/results.md from all of docs/results/*.json

Per seed: a teacher; a pool of images that it has not seen, which accounts ask about; thieves that learn the answers,
one row each; a trace of every thief by `sdb.tracing.ties`, with a further account that asked the same and that the
thief never saw as control. Then innocent models against thousands of secrets. Everything is kept in --work as it is
done, and a second call goes on; on another machine it goes on from the results file.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from few_images import RESULTS
from ties_page import markdown

import sdb
from sdb.answers.ties import Ties, fit_tau
from sdb.audit.archive import Folder
from sdb.audit.marks.mark_seed import (
    MarkSeed,
    Network,
    answered,
    fresh_network,
    labelled,
    logits_of,
    sure_of,
    training,
)
from sdb.audit.marks.measure import PLAIN, facts, thief_row
from sdb.audit.marks.thieves import CROPS, FLIPS, Thief
from sdb.audit.marks.thieves import THIEVES as LIBRARY
from sdb.data import Augment, ImageSet, Splits
from sdb.keys import Owner
from sdb.models import Classifier
from sdb.runs.tasks import Where, Work, run
from sdb.runtime import derive_seed, environment, has_amx, json_text, write_atomic
from sdb.tracing.ties import log10_tail
from sdb.training.progress import ShowTasks

ROOT = Path(__file__).resolve().parent.parent
SECRETS, INNOCENTS = 10_000, 20
QUERIES = 10_000  # of a thief that says nothing else


@dataclass(frozen=True)
class Case:
    """Sizes on one data set.

    Attributes:
        validation: share of the training images by which the margin of ties is chosen.
        pool: images that nobody but accounts has.
        teacher: architecture and arguments.
        epochs: of the teacher; thief_epochs: of thieves.
        augment: of the teacher.
        amx: whether the teacher is trained in bfloat16 where the processor multiplies it in hardware.
    """

    validation: float
    pool: int
    teacher: Network
    epochs: int
    thief_epochs: int
    augment: Augment | None
    amx: bool = False


CASES = {
    "fashion_mnist": Case(1 / 6, 20_000, ("net", {"num_channels": 24}), 10, 20, None),
    "cifar10": Case(0.1, 20_000, ("preresnet20", {}), 20, 30, CROPS, amx=True),
}
TINY = Case(0.231, 400, ("net", {"num_channels": 8}), 4, 4, None)

# Thieves who ask less, beside those of the library.
FEWER = {
    "5,000 queries": Thief(5000),
    "2,000 queries": Thief(2000),
    "1,000 queries": Thief(1000),
    "2,000 queries, flips": Thief(2000, augment=FLIPS),
}
THIEVES: dict[str, Thief] = {}
for _name, _thief in LIBRARY.items():
    THIEVES |= {_name: _thief} | (FEWER if _name == "mlp" else {})

# Of these the mark is said to name the account.
PROMISED = (
    "labels",
    "label smoothing",
    "flips",
    "small net",
    "2,000 queries",
    "2,000 queries, flips",
    "majority of 9 noisy copies",
    "two accounts, one at random",
)


def data_of(case: Case, name: str, root: Path | None, seed: int) -> tuple[Splits, ImageSet]:
    """The owner's data, and the pool."""
    data = sdb.load_data(name, root=root, seed=seed, validation_fraction=case.validation)
    order = np.random.default_rng(seed).permutation(len(data.train))
    own = replace(data, train=data.train.take(order[case.pool :]), augment=case.augment)
    return own, data.train.take(order[: case.pool])


def teacher_of(case: Case, own: Splits, seed: int, archive: Folder) -> Classifier:
    """The owner's model, trained; goes on where it was stopped."""
    place, (name, arguments) = f"seed-{seed}/teacher", case.teacher
    settings = training(seed, case.epochs, precision="bfloat16" if case.amx and has_amx() else "float32")
    fresh = derive_seed(seed, "teacher")
    archive.train(place, fresh_network(own, name, arguments, fresh), own, settings)
    return archive.trained(place, fresh_network(own, name, arguments, fresh)).cpu().eval()


def ground(case: Case, name: str, root: Path | None, seed: int, archive: Folder) -> MarkSeed:
    """What thieves of one seed stand on; the owner is fixed by the seed, so that a table can be made again."""
    own, pool = data_of(case, name, root, seed)
    teacher = teacher_of(case, own, seed, archive)
    place = f"seed-{seed}/results/facts"
    # The margin that was kept, so that all pieces have the same.
    kept = archive.result(place)["tau"] if archive.has(place) else None
    tau = fit_tau(*answered(teacher, own.validation)).tau if kept is None else kept
    owner = Owner(derive_seed(seed, "owner").to_bytes(32, "big"))
    ties = Ties.of(owner.secret, f"benchmark {seed}", tau)
    return MarkSeed(own, pool, teacher, ties, owner, archive, seed, QUERIES, case.thief_epochs)


def take_over(archive: Folder, case: Case, out: Path) -> None:
    """Keep the rows that the results file has and the folder has not, as after a sitting on another machine.

    Networks are not in that file: a teacher is trained again where further rows of its seed are asked for.
    """
    content = json.loads(out.read_text()) if out.exists() else {}
    if content.get("case") != json.loads(json_text(asdict(case))):
        return
    for seed, rows in content["seeds"].items():
        for name, row in rows.items():
            place = f"seed-{seed}/results/{name}"
            if not archive.has(place):
                archive.keep(place, row)


def innocents(seed: MarkSeed) -> dict[str, Any]:
    """Rates of small p-values of models that are independent of a secret, over many secrets.

    The models: the owner's own, thieves of other accounts, a student of answers without ties, students of true labels.
    """
    own, ties, images = seed.own, seed.ties, seed.images(seed.queries)
    found = ties.find(logits_of(seed.model, images))
    _, first = np.unique(np.stack([found.cells, *found.pairs.T]), axis=1, return_index=True)
    asked, pairs = images[found.rows[first]], found.pairs[first]
    models = {"the owner's model": seed.model}
    like = seed.fresh("net", 0)
    for row in (PLAIN, *(name for name, each in THIEVES.items() if each.network == "net")):
        place = f"seed-{seed.seed}/{row}"
        # Of a row that was taken over the network is not there.
        if len(models) < INNOCENTS - 4 and (seed.archive.folder / place / "result.json").exists():
            models[row] = seed.archive.trained(place, like).eval()
    for number in range(INNOCENTS - len(models)):
        part = np.random.default_rng([seed.seed, number]).permutation(len(own.train))[:5000]
        true = labelled(np.asarray(own.train.images)[part], np.asarray(own.train.labels)[part], own)
        models[f"true labels {number}"] = seed.trained(f"own-{number}", "net", true, seed.settings(5))
    given = np.stack([sure_of(model, asked)[0] for model in models.values()])
    below, total, least, tail = dict.fromkeys((2, 3, 4), 0), 0, 0.0, cache(log10_tail)
    for secret in range(SECRETS):
        coins = ties.coins(f"innocent {secret}", replace(found, rows=first, pairs=pairs, cells=found.cells[first]))
        usable = (given[:, :, None] == pairs).any(axis=2)
        hits, votes = (given == coins).sum(axis=1), usable.sum(axis=1)
        for value in map(tail, hits.tolist(), votes.tolist()):
            total, least = total + 1, min(least, value)
            for power in below:
                below[power] += value < -power
    return {"models": list(models), "secrets": SECRETS, "tests": total, "below": below, "least": least}


def do(piece: str, case: Case, name: str, root: Path | None, seed: int, folder: Path) -> None:
    """Do a piece and keep its result."""
    archive, started = Folder(folder), time.perf_counter()
    stands, makers = ground(case, name, root, seed, archive), {"facts": facts, "innocents": innocents}
    result = makers[piece](stands) if piece in makers else thief_row(stands, piece, THIEVES[piece])
    archive.keep(f"seed-{seed}/results/{piece}", result | {"seconds": time.perf_counter() - started})


def main() -> int:
    """Do what is missing and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=sorted(CASES), required=True)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, help="where everything is kept (default: runs/ties/DATA)")
    parser.add_argument("--out", type=Path, help="(default: docs/results/ties-DATA.json)")
    parser.add_argument("--write", action="store_true", help="do nothing more: write what is done")
    options = parser.parse_args()
    folder = (options.work or ROOT / "runs" / "ties" / options.data).absolute()
    root = None if options.data_root is None else options.data_root.absolute()
    archive, case, works = Folder(folder), CASES[options.data], []
    out = options.out or RESULTS / f"ties-{options.data}.json"
    take_over(archive, case, out)
    # What is promised first, of every seed; then where it ends.
    others = tuple(name for name in THIEVES if name not in PROMISED)
    for pieces in (("facts", *PROMISED), (*others, "innocents")):
        for seed, piece in itertools.product(range(options.seeds), pieces):
            if not archive.has(f"seed-{seed}/results/{piece}"):
                needs = {"facts": (), "innocents": tuple(THIEVES)}.get(piece, ("facts",))
                missing = tuple(
                    f"{seed} {need}" for need in needs if not archive.has(f"seed-{seed}/results/{need}")
                )
                given = (piece, case, options.data, root, seed, folder)
                works.append(Work(f"{seed} {piece}", do, given, missing))
    print(f"{options.data}: {len(works)} pieces missing", flush=True)
    if works and not options.write:
        shown = ShowTasks(options.data, dict.fromkeys((work.name for work in works), 1.0))
        run(works, Where(workers=options.workers), shown.on_progress)
        shown.close()
    rows: dict[str, dict[str, Any]] = {}
    for seed in range(options.seeds):
        places = {name: f"seed-{seed}/results/{name}" for name in ("facts", *THIEVES, "innocents")}
        done = {name: archive.result(place) for name, place in places.items() if archive.has(place)}
        if "facts" in done:
            rows[str(seed)] = done
    root_given = " --data-root DIR" if options.data_root else ""
    content = {
        "kind": "ties",
        "data": options.data,
        "case": asdict(case),
        "command": f"python benchmarks/ties.py --data {options.data}{root_given} --seeds {options.seeds}",
        "environment": environment(),
        "seeds": rows,
    }
    content["markdown"] = markdown(content)
    write_atomic(out, json.dumps(content, indent=1).encode() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
