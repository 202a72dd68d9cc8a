"""From a served box with two tokens to the name of the account that a thief learned from, by the real commands."""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import contextmanager

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
pytest.importorskip("onnxruntime")

# An ordinary script: it asks for classes over HTTP, trains a network of its own, and knows nothing of sdb.
THIEF = """
import json, os, sys, urllib.request
import numpy as np, torch
from torch import nn

url, images, out = sys.argv[1], np.load(sys.argv[2]), sys.argv[3]
labels = []
for part in np.array_split(images, len(images) // 100):
    tensor = {"name": "image", "datatype": "FP32", "shape": list(part.shape), "data": part.ravel().tolist()}
    request = urllib.request.Request(
        url + "/infer", json.dumps({"inputs": [tensor]}).encode(), {"Authorization": "Bearer " + os.environ["TOKEN"]}
    )
    (given,) = json.load(urllib.request.urlopen(request))["outputs"]
    assert given["name"] == "labels", given
    labels += given["data"]
x, y = torch.from_numpy(images), torch.tensor(labels)
torch.manual_seed(0)
net = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
optimizer = torch.optim.Adam(net.parameters(), 3e-3)
for epoch in range(150):
    for at in torch.randperm(len(x)).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[at]), y[at]).backward()
        optimizer.step()
torch.onnx.export(net.eval(), (x[:1],), out, input_names=["x"], dynamo=False, dynamic_axes={"x": {0: "n"}})
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory, quick_sdb, digits):
    """A teacher that is often unsure and a box around it, with ledger, ties and tokens; images that it has not seen."""
    import numpy as np

    place = tmp_path_factory.mktemp("ties")
    common = {
        "model_name": "net",
        "num_channels": 6,
        "dataset": "digits",
        "learning_rate": 0.01,
        "subset_percent": 0.4,
    }
    for name, more in (
        ("teacher", {"epochs": 25}),
        ("box", {"epochs": 5, "teacher": "teacher", "allowed_loss": 1}),
    ):
        (place / name).mkdir()
        (place / name / "params.json").write_text(json.dumps(common | {"validation_fraction": 0.4} | more))
    for command in (
        ("train", "teacher"),
        ("wrap", "box"),
        (
            "ledger",
            "new",
            "box",
            "--out",
            "ledger.db",
            "--ties",
            "ties.json",
            "--owner",
            "box/owner.json",
            "--budget",
            "0.02",
        ),
    ):
        done = quick_sdb(*command, cwd=place)
        assert done.returncode == 0, (command, done.stderr)
    assert "of answers are ties, which cost" in done.stderr
    assert "answers of level 1, the least sure, are right in" in done.stderr
    made = json.loads(done.stdout)
    assert 0 < made["tau"] <= 0.3
    assert all(0 < each["with_ties"] <= each["without"] + 0.01 for each in made["levels"])
    tokens = {}
    for name in ("alice", "bob"):
        done = quick_sdb("token", "new", name, "--tokens", "tokens.db", "--no-limits", cwd=place)
        tokens[name] = json.loads(done.stdout)["token"]
    rng = np.random.default_rng(0)
    images = digits.test.images[rng.integers(0, len(digits.test), 1500)] / np.float32(255)
    images = (images + rng.normal(0, 0.15, images.shape)).clip(0, 1)
    np.save(place / "images.npy", (images * 255).round().astype(np.float32) / np.float32(255))
    (place / "thief.py").write_text(THIEF)
    (place / "budgets.json").write_text('{"everyone": {"images_day": null, "rate": null, "burst": null}}')
    return place, tokens


@contextmanager
def serving(place, sdb_command, *more):
    start, env = sdb_command
    arguments = ["serve", "box", "--answers", "labels", "--tokens", "tokens.db", "--budgets", "budgets.json"]
    arguments += ["--ties", "ties.json", "--port", "0"]
    with subprocess.Popen(
        [*start, *arguments, *more], cwd=place, env=env, stderr=subprocess.PIPE, text=True
    ) as server:
        said = server.stderr.readline()
        try:
            yield re.search(r"http://\S+?:\d+", said)[0] + "/v2/models/box", server
        finally:
            server.send_signal(signal.SIGTERM)
            server.stderr.read()


@pytest.fixture(scope="module")
def stolen(place, sdb_command):
    """Both tokens asked; the thief's network learned from bob's answers."""
    folder, tokens = place
    with serving(folder, sdb_command, "--ledger", "ledger.db") as (url, _):
        for name, out in (("alice", "innocent.onnx"), ("bob", "stolen.onnx")):
            subprocess.run(
                [sys.executable, "thief.py", url, "images.npy", out],
                cwd=folder,
                env=os.environ | {"TOKEN": tokens[name], "OMP_NUM_THREADS": "1"},
                check=True,
                timeout=300,
            )
    return folder


def trace(quick_sdb, folder, suspect, *more, ledger="ledger.db"):
    return quick_sdb(
        "trace",
        suspect,
        "--ledger",
        ledger,
        "--owner",
        "box/owner.json",
        "--tokens",
        "tokens.db",
        *more,
        cwd=folder,
    )


def test_the_account_is_named(stolen, quick_sdb):
    done = trace(quick_sdb, stolen, "stolen.onnx")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("The suspect learned from the answers of account bob: it agrees with ")
    assert "alice" not in done.stderr
    assert re.search(r"^bob .*\n^alice ", done.stdout, re.M)
    done = trace(quick_sdb, stolen, "stolen.onnx", "--json", "-", "--account", "bob", "--report", "trace.html")
    page = (stolen / "trace.html").read_text()
    assert "An account is named" in page
    assert "The suspect learned from the answers of account bob" in page
    assert 'aria-label="Agreement with each account&#x27;s coins. bob: ' in page
    (row,) = json.loads(done.stdout)["ties"]["accounts"]
    assert row["name"] == "bob"
    assert row["named"]
    assert row["log10_p"] < -6
    assert row["hits"] / row["usable"] > 0.9


def test_a_commitment_is_made_before_and_held_to(stolen, quick_sdb):
    committed = quick_sdb("ledger", "commit", "ledger.db", "--out", "commitment.json", cwd=stolen)
    assert committed.returncode == 0, committed.stderr
    assert re.fullmatch("[0-9a-f]{64}\n", committed.stdout)
    done = trace(quick_sdb, stolen, "stolen.onnx", "--commitment", "commitment.json", "--budget", "60")
    assert done.returncode == 0, done.stderr
    assert re.search("questions    60 of [0-9]+ ties;", done.stdout)
    assert "(lodged before)" in done.stdout
    again = quick_sdb("ledger", "commit", "ledger.db", "--out", "commitment.json", cwd=stolen)
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "a commitment is not overwritten" in again.stderr
    content = json.loads((stolen / "commitment.json").read_text())
    (stolen / "other.json").write_text(json.dumps(content | {"entries": 1}))
    done = trace(quick_sdb, stolen, "stolen.onnx", "--commitment", "other.json")
    assert done.returncode == 2
    assert "is not the ledger that was committed to" in done.stderr


def test_queries_may_be_kept_elsewhere(stolen, quick_sdb, tmp_path):
    """A ledger of digests alone says with the owner's own copy of the queries what one with queries says."""
    shutil.copy(stolen / "ledger.db", tmp_path / "bare.db")
    with sqlite3.connect(tmp_path / "bare.db") as connection:
        connection.execute("UPDATE entries SET sealed = NULL")
    bare = {"ledger": tmp_path / "bare.db"}
    assert trace(quick_sdb, stolen, "stolen.onnx", **bare).stderr.startswith("Nothing to test")
    found = trace(quick_sdb, stolen, "stolen.onnx", "--queries", "images.npy", "--json", "-", **bare)
    whole = trace(quick_sdb, stolen, "stolen.onnx", "--json", "-")
    assert found.stderr == whole.stderr
    assert json.loads(found.stdout)["ties"]["accounts"] == json.loads(whole.stdout)["ties"]["accounts"]


def test_a_server_is_a_suspect_too(stolen, quick_sdb, sdb_command):
    """The owner's own service answers an account what it was told; as nobody's it is independent of both."""
    start, env = sdb_command
    command = [*start, "serve", "teacher", "--answers", "labels", "--port", "0", "--name", "suspect"]
    with subprocess.Popen(command, cwd=stolen, env=env, stderr=subprocess.PIPE, text=True) as server:
        url = re.search(r"http://\S+?:\d+", server.stderr.readline())[0] + "/v2/models/suspect"
        done = trace(quick_sdb, stolen, url)
        server.terminate()
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("No account is named")


def test_the_owner_s_plain_model_is_innocent(stolen, quick_sdb):
    done = trace(quick_sdb, stolen, "teacher")
    assert done.stderr.startswith("No account is named: the nearest agrees in ")
    both = trace(quick_sdb, stolen, "teacher", "--box", "box")
    assert "No mark" in both.stderr
    assert "No account is named" in both.stderr


def test_code_is_a_suspect_too(stolen, quick_sdb):
    (stolen / "mine.py").write_text(
        "import torch\ndef make():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    done = trace(quick_sdb, stolen, "mine:make")
    assert done.returncode == 0, done.stderr
    assert "p = " in done.stderr or "Nothing" in done.stderr
    for name, code in (("gives_labels", "lambda x: x.flatten(1).argmax(1)"), ("breaks", "lambda x: {}['key']")):
        (stolen / f"{name}.py").write_text(
            f"import torch\nclass Odd(torch.nn.Module):\n    def forward(self, x):\n        return ({code})(x)\n"
            "def make():\n    return Odd()\n"
        )
        done = trace(quick_sdb, stolen, f"{name}:make")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "the suspect" in done.stderr


def test_an_account_is_erased(stolen, quick_sdb, tmp_path):
    shutil.copy(stolen / "ledger.db", tmp_path / "ledger.db")
    before = quick_sdb("ledger", "commit", tmp_path / "ledger.db", "--out", "before.json", cwd=stolen)
    done = quick_sdb(
        "ledger", "erase", tmp_path / "ledger.db", "--token", "bob", "--tokens", "tokens.db", cwd=stolen
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(quick_sdb("ledger", "show", tmp_path / "ledger.db", cwd=stolen).stdout)
    assert shown["erased"] > 20
    assert len(shown["accounts"]) == 1
    after = quick_sdb("ledger", "commit", tmp_path / "ledger.db", "--out", "after.json", cwd=stolen)
    assert before.stdout == after.stdout  # the chain is what it was
    done = trace(quick_sdb, stolen, "stolen.onnx", ledger=tmp_path / "ledger.db")
    assert done.stderr.startswith("No account is named")
    done = quick_sdb(
        "ledger", "erase", tmp_path / "ledger.db", "--token", "bob", "--tokens", "tokens.db", cwd=stolen
    )
    assert done.returncode == 2
    assert "no entries of this account" in done.stderr


def test_what_was_told_survives_a_kill(place, sdb_command, quick_sdb):
    """All but the last second of it."""
    import time
    import urllib.request

    import numpy as np

    folder, tokens = place
    done = quick_sdb(
        *("ledger", "new", "box", "--out", "killed.db", "--ties", "killed.json", "--owner", "box/owner.json"),
        *("--budget", "0.02"),
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    images = np.load(folder / "images.npy")[:300]
    tensor = {"name": "image", "datatype": "FP32", "shape": list(images.shape), "data": images.ravel().tolist()}
    start, env = sdb_command
    command = [*start, "serve", "box", "--tokens", "tokens.db", "--ties", "killed.json", "--ledger", "killed.db"]
    with subprocess.Popen(
        [*command, "--port", "0", "--max-batch", "300"], cwd=folder, env=env, stderr=subprocess.PIPE, text=True
    ) as server:
        url = re.search(r"http://\S+?:\d+", server.stderr.readline())[0] + "/v2/models/box/infer"
        body = json.dumps({"inputs": [tensor]}).encode()
        with urllib.request.urlopen(
            urllib.request.Request(url, body, {"Authorization": f"Bearer {tokens['alice']}"})
        ) as answer:
            assert len(json.load(answer)["outputs"][0]["data"]) == 3000
        time.sleep(1.5)
        server.kill()
    shown = json.loads(quick_sdb("ledger", "show", "killed.db", cwd=folder).stdout)
    assert shown["entries"] == shown["queries"] > 5
    assert quick_sdb("ledger", "commit", "killed.db", "--out", "killed-c.json", cwd=folder).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("serve", "box", "--ties", "ties.json"), "--ties and --ledger go together"),
        (("serve", "box", "--ties", "ties.json", "--ledger", "ledger.db"), "--ties without --tokens"),
        (
            ("serve", "teacher", "--ties", "ties.json", "--ledger", "ledger.db", "--tokens", "tokens.db"),
            "--ties: of box",
        ),
        (("trace", "teacher", "--owner", "box/owner.json"), "which mark?"),
        (
            ("trace", "teacher", "--owner", "box/owner.json", "--budget", "5", "--box", "box"),
            "--budget: goes with --ledger",
        ),
        (
            ("trace", "teacher", "--owner", "box/owner.json", "--reveal", "--ledger", "ledger.db"),
            "--reveal: goes with --box",
        ),
        (
            ("trace", "teacher", "--owner", "box/owner.json", "--ledger", "tokens.db"),
            "no ledger, or a damaged one",
        ),
        (
            ("trace", "teacher", "--owner", "box/owner.json", "--ledger", "ledger.db", "--account", "eve"),
            "--account eve: neither a token's name",
        ),
        (
            ("trace", "nothing.onnx", "--owner", "box/owner.json", "--ledger", "ledger.db"),
            "nothing.onnx: no such file",
        ),
        (("ledger", "erase", "ledger.db"), "whose entries?"),
        (("ledger", "show", "nothing.db"), "no ledger; make one"),
        (
            ("ledger", "new", "box", "--out", "ledger.db", "--ties", "t.json", "--owner", "box/owner.json"),
            "ledger.db exists; it is not overwritten",
        ),
        (
            (
                "ledger",
                "new",
                "box",
                "--out",
                "n.db",
                "--ties",
                "t.json",
                "--owner",
                "box/owner.json",
                "--budget",
                "0",
            ),
            "too few near ties to know what they cost",
        ),
    ],
)
def test_bad_input_is_one_line(stolen, quick_sdb, arguments, said):
    done = quick_sdb(*arguments, cwd=stolen)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (stolen / "t.json").exists()


def test_another_owner_cannot_trace(stolen, quick_sdb):
    assert quick_sdb("key", "owner", "new", "eve.json", cwd=stolen).returncode == 0
    done = quick_sdb("trace", "teacher", "--owner", "eve.json", "--ledger", "ledger.db", cwd=stolen)
    assert done.returncode == 2
    assert "is of other ties" in done.stderr
