"""Guard a deployed classifier without its weights: magika, which names the type of any file; and a thief of it.

    pip install 'safe-distillation-box[onnx]' magika
    python examples/guard_magika.py                      # two or three minutes; files of this machine are the inputs
    python examples/guard_magika.py --files 4000 DIR...  # more files, of other folders

The thief sends the beginnings of files to an account of its own and trains a small network on what it is told. Labels
for the calibration come from the files' names, which the thief does not use.
"""

import argparse
import json
import os
import random
import sys
import sysconfig
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import nn

import sdb
from sdb.answers.entries import Terms
from sdb.answers.guard import logits_of
from sdb.answers.ledger import Ledger
from sdb.answers.teller import Teller
from sdb.keys.sealing import public_of
from sdb.tracing.ties import Commitment, trace_ties

BEGIN, BLOCK, PADDING = 1024, 4096, 256  # magika's settings: bytes from either end of a block, and what fills up
LONGEST = 1024  # of a beginning that is sent
HASHES = 4096  # of the thief's features


def features(data: bytes) -> np.ndarray:
    """What magika looks at, int32 (2048,)."""
    found = np.full(2 * BEGIN, PADDING, dtype=np.int32)
    first = np.frombuffer(data[:BLOCK].lstrip()[:BEGIN], np.uint8)
    last = np.frombuffer(data[-BLOCK:].rstrip()[-BEGIN:], np.uint8)
    found[: len(first)] = first
    found[2 * BEGIN - len(last) :] = last
    return found


def files_of(folders: Iterable[str], extensions: dict[str, str], count: int) -> list[tuple[bytes, str]]:
    """Beginnings of files, of random lengths, and their types by their names; types in equal shares where they can."""
    rng, found = random.Random(0), defaultdict(list)
    for folder in folders:
        for place, inner, names in os.walk(folder):
            inner.sort()
            for name in sorted(names):
                kind = extensions.get(name.rpartition(".")[2].lower())
                if kind is not None:
                    found[kind].append(Path(place) / name)
    kinds = {kind: rng.sample(paths, len(paths)) for kind, paths in sorted(found.items()) if len(paths) >= 20}
    most, files = max(20, 2 * count // max(1, len(kinds))), []
    for kind, paths in kinds.items():
        for path in paths[:most]:
            try:
                with path.open("rb") as file:
                    data = file.read(rng.randint(32, LONGEST))
            except OSError:
                continue
            if len(data) >= 32:
                files.append((data, kind))
    rng.shuffle(files)
    return files[:count]


def bag(inputs: np.ndarray) -> torch.Tensor:
    """How often hashes of one to three bytes in a row occur, float32 (N, HASHES): the thief's own features."""
    found = np.zeros((len(inputs), HASHES), dtype=np.float32)
    for row, each in enumerate(inputs.astype(np.int64)):
        pairs, triples = each[:-1] * 31 + each[1:] * 7919, each[:-2] * 131 + each[1:-1] * 7919 + each[2:] * 104_729
        found[row] = np.log1p(np.bincount(np.concatenate([each, pairs, triples]) % HASHES, minlength=HASHES))
    return torch.from_numpy((found - found.mean(axis=0)) / (found.std(axis=0) + 0.1))


def copy_of(asked: torch.Tensor, told: np.ndarray) -> nn.Module:
    """A student of soft answers (N, C)."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(HASHES, 256), nn.ReLU(), nn.Linear(256, told.shape[1]))
    optimizer, targets = torch.optim.AdamW(net.parameters(), 1e-3), torch.from_numpy(told).float()
    for _ in range(25):
        for at in torch.randperm(len(asked)).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(asked[at]), targets[at]).backward()
            optimizer.step()
    return net.eval()


def main() -> int:
    """The whole story."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", help="(default: Python's own and /usr/share)")
    parser.add_argument("--files", type=int, default=3000)
    options = parser.parse_args()
    package = find_spec("magika")
    if package is None or package.origin is None:
        print("magika is not installed: pip install magika")
        return 2
    place = Path(package.origin).parent
    classes = json.loads((place / "models/standard_v3_3/config.min.json").read_text())["target_labels_space"]
    kinds = json.loads((place / "config/content_types_kb.min.json").read_text())
    extensions = {end: kind for kind in classes for end in kinds.get(kind, {}).get("extensions", [])}
    folders = options.folders or [sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"), "/usr/share"]
    files = files_of(folders, extensions, options.files)
    inputs = np.stack([features(data) for data, _ in files])
    labels = np.array([classes.index(kind) for _, kind in files])
    third = len(files) // 3
    print(f"{len(files)} beginnings of files of {len(set(labels.tolist()))} types; asking magika")

    # The owner: a guard from labelled examples; an account of a customer, and a partner.
    owner = sdb.Owner.generate()
    model = place / "models/standard_v3_3/model.onnx"
    calibration = (inputs[:third], labels[:third])
    guard = sdb.guard(model, calibration, owner=owner, partners=("clinic",), class_names=classes)
    print(guard.summary())
    own = np.concatenate([guard.unlock(owner.partner("clinic"))(each) for each in np.array_split(inputs, 50)])

    with tempfile.TemporaryDirectory() as folder:
        ties = guard.ties(owner)
        terms = Terms(ties.box_id, ties.id, ties.tau, public_of(owner.queries_key).hex())
        Ledger.create(Path(folder) / "ledger.db", terms).close()
        ledger = Ledger(Path(folder) / "ledger.db", writing=True)
        teller, pool, rest = Teller(ties, ledger, guard.rows), slice(third, 2 * third), slice(2 * third, None)
        logits = logits_of(own[pool], "probabilities")
        told = {
            name: guard.told(teller.answers(name, inputs[pool], logits, keyless=True), own.dtype)
            for name in ("mallory", "alice")
        }
        ledger.close()

        # Both accounts asked the same; mallory is the thief. Who agrees with magika on files that nobody asked about?
        marks = bag(inputs)
        top1 = np.eye(len(classes), dtype=np.float32)[own[pool].argmax(axis=1)]
        students = {
            "magika's own answers (a partner)": own[pool],
            "its top-1 answers": top1,
            "the guard's answers (mallory)": told["mallory"],
        }
        print("\na student of ...                     agrees with magika on new files in")
        for name, answers in students.items():
            student = copy_of(marks[pool], answers)
            with torch.no_grad():
                agrees = student(marks[rest]).argmax(dim=1).numpy() == own[rest].argmax(axis=1)
            print(f"{name:36} {100 * agrees.mean():.1f} %")

        # The owner finds the last student, and asks it what accounts were told.
        def suspect(queries: np.ndarray) -> np.ndarray:
            where = {each.tobytes(): row for row, each in enumerate(inputs)}
            rows = [where[each.astype(np.int32).tobytes()] for each in queries]
            with torch.no_grad():
                return student(marks[rows]).argmax(dim=1).numpy()

        kept = Ledger(Path(folder) / "ledger.db")
        found = trace_ties(suspect, [kept], ties, owner.queries_key, commitments=[Commitment.of(kept)])
        names = {name: name for name in told}
        print("\n" + "\n".join([found.sentence(names), *found.lines(names)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
