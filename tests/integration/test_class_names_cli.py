"""Data of other class names than the model's, from the command line: refused in one line, unless told."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

NAMES = {"d0": ("cat", "dog", "emu"), "d1": ("ant", "bee", "cow"), "d2": ("ant", "cat", "dog")}


@pytest.fixture(scope="module")
def place(tmp_path_factory, quick_sdb, write_params):
    """Data d0, and a teacher and a decoy box of it; d1 with other names; d2, where two names have other numbers."""
    folder = tmp_path_factory.mktemp("names")
    random = np.random.default_rng(0)
    for data, names in NAMES.items():
        for label, name in enumerate(names):
            (folder / data / name).mkdir(parents=True)
            for number in range(100):
                image = np.full((8, 8), 80 * label, np.uint8) + random.integers(0, 40, (8, 8), np.uint8)
                Image.fromarray(image).save(folder / data / name / f"{number}.png")
    given = {"dataset": "folder", "data_root": "d0", "batch_size": 64, "epochs": 1}
    write_params(folder / "teacher", **given)
    write_params(folder / "box", **given, teacher="teacher", allowed_loss=1)
    for data in ("d1", "d2"):
        write_params(folder / f"box-{data}", **given | {"data_root": data}, teacher="teacher")
        write_params(folder / f"student-{data}", **given | {"data_root": data}, teacher="box")
    for command, name in (("train", "teacher"), ("wrap", "box")):
        done = quick_sdb(command, name, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("data", ["d1", "d2"])
@pytest.mark.parametrize(
    "command",
    [
        "evaluate teacher --dataset folder --data-root {data}",
        "evaluate box --dataset folder --data-root {data}",
        "wrap box-{data}",
        "distill student-{data}",
        "trace teacher --box box --owner box/owner.json --dataset folder --data-root {data}",
        "audit box --out audit-{data} --dataset folder --data-root {data} --attack labels --defence none --workers 1 "
        "--set epochs=1 --set maker_epochs=1 --set batch_size=64 --set pairs=3",
        "token profile box --out profile --dataset folder --data-root {data}",
    ],
)
def test_other_names_are_refused_unless_told(place, quick_sdb, command, data):
    words = command.format(data=data).split()
    done = quick_sdb(*words, cwd=place)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    says = {"d1": "other_class_names", "d2": "put the classes of the data into the model's order"}
    assert says[data] in done.stderr
    told = ["--set", "other_class_names=true"] if words[0] in ("wrap", "distill") else ["--other-class-names"]
    done = quick_sdb(*words, *told, cwd=place)
    if data == "d2":
        assert done.returncode == 2
    else:
        assert done.returncode in ((0, 1) if words[0] == "audit" else (0,)), done.stderr
