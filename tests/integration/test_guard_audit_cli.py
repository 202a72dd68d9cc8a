"""An audit of a guard from the command line: a student of the user's own, a file of what was found."""

import json

import numpy as np
import pytest

import sdb
from sdb.keys import Owner

CODE = """
import numpy as np

MATRIX = 1.2 * np.random.default_rng(0).normal(size=(16, 8))


def model(inputs):
    shares = np.exp(inputs @ MATRIX)
    return shares / shares.sum(axis=1, keepdims=True)


class Student:
    def __init__(self, seed):
        pass

    def fit(self, inputs, targets, weights):
        logs = np.log(targets.clip(1e-3))
        right = logs - logs.mean(axis=1, keepdims=True)
        self.matrix = np.linalg.solve(inputs.T @ inputs + 0.1 * np.eye(16), inputs.T @ right)

    def predict(self, inputs):
        return inputs @ self.matrix
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a guard, the code of model and student, and labelled examples with and without outputs."""
    place = tmp_path_factory.mktemp("audit")
    (place / "mine.py").write_text(CODE)
    names = {}
    exec(CODE, names)
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(1800, 16))
    outputs = names["model"](inputs)
    labels = (outputs.cumsum(axis=1) > rng.random((1800, 1))).argmax(axis=1)
    sdb.guard(None, (outputs[:900], labels[:900]), owner=Owner.generate()).save(place / "a.guard")
    given = {"inputs": inputs[900:], "labels": labels[900:]}
    np.savez(place / "inputs.npz", **given)
    np.savez(place / "both.npz", **given, outputs=outputs[900:])
    np.savez(place / "outputs.npz", outputs=outputs[900:], labels=labels[900:])
    return place


def test_a_guard_is_audited(place, quick_sdb):
    command = ("guard", "audit", "a.guard", "inputs.npz", "--model", "mine:model", "--student", "mine:Student")
    done = quick_sdb(*command, "--pairs", "8", "--few", "6", "--out", "found.json", cwd=place)
    assert done.returncode in (0, 1), done.stderr
    assert "With 6 labelled examples per class, a thief gains" in done.stderr
    assert "guard audit: 8/8 pairs" in done.stderr
    assert "wrote found.json" in done.stderr
    found = json.loads((place / "found.json").read_text())
    assert found["sentence"] in done.stderr
    assert done.returncode == (found["judgement"] != "established")
    assert found["gains"]["at_stake"]["value"] > 0.1
    assert found["environment"]["torch"]
    again = quick_sdb("guard", "audit", "a.guard", "both.npz", "--student", "mine:Student", "--pairs", "8",
                      "--few", "6", "--out", "found.json", cwd=place)  # fmt: skip
    assert again.returncode == 2
    assert "found.json exists" in again.stderr
    again = quick_sdb("guard", "audit", "a.guard", "both.npz", "--student", "mine:Student", "--pairs", "8",
                      "--few", "6", "--out", "found.json", "--overwrite", cwd=place)  # fmt: skip
    assert again.returncode == done.returncode, again.stderr
    assert json.loads((place / "found.json").read_text())["scores"] == found["scores"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("inputs.npz",), "holds no outputs; give --model"),
        (("outputs.npz",), "holds no inputs, which students learn from"),
        (("missing.npz",), "missing.npz: no such file"),
        (("both.npz", "--student", "mine:Nobody"), "--student 'mine:Nobody' cannot be imported"),
        (("both.npz", "--student", "nobody"), "student: 'nobody' is none of ngrams, mlp, trees"),
        (("both.npz", "--student", "ngrams"), "ngrams reads texts"),
        (("both.npz", "--few", "100"), "need 200 of it"),
        (("both.npz", "--pairs", "1"), "at least 3 pairs"),
    ],
)
def test_what_cannot_be_audited_is_said_in_a_line(place, quick_sdb, arguments, said):
    done = quick_sdb("guard", "audit", "a.guard", *arguments, "--out", "none.json", cwd=place)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (place / "none.json").exists()
