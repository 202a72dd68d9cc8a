"""A guard in front of a served model: real commands, a real server behind it, tritonclient before it."""

import json
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("aiohttp")


@contextmanager
def running(sdb_command, place, *arguments):
    start, env = sdb_command
    with subprocess.Popen([*start, *arguments], cwd=place, env=env, stderr=subprocess.PIPE, text=True) as server:
        said = ""
        try:
            while not (found := re.search(r"http://\S+?:\d+ \(stop", said)):
                said = server.stderr.readline()
                assert said, "the server ended"
            yield found[0].removesuffix(" (stop")
        finally:
            server.terminate()
            server.stderr.read()


@pytest.fixture(scope="module")
def upstream(tmp_path_factory, quick_sdb, sdb_command):
    """A folder with a served classifier, an owner and a partner; the classifier's address."""
    place = tmp_path_factory.mktemp("guard")
    common = {"model_name": "net", "num_channels": 6, "dataset": "digits", "learning_rate": 0.01, "epochs": 12}
    (place / "teacher").mkdir()
    (place / "teacher" / "params.json").write_text(
        json.dumps(common | {"subset_percent": 0.4, "validation_fraction": 0.4})
    )
    for command in (
        ("train", "teacher"),
        ("key", "owner", "new", "owner.json"),
        ("key", "partner", "clinic", "--owner", "owner.json", "--out", "clinic.json"),
    ):
        done = quick_sdb(*command, cwd=place)
        assert done.returncode == 0, (command, done.stderr)
    arguments = ("serve", "teacher", "--answers", "probabilities", "--name", "digits", "--port", "0")
    with running(sdb_command, place, *arguments) as url:
        yield place, url


def client_of(url):
    return pytest.importorskip("tritonclient.http").InferenceServerClient(url.removeprefix("http://"))


def asked(url, images, *, token=None, binary=True):
    http = pytest.importorskip("tritonclient.http")
    tensor = http.InferInput("image", list(images.shape), "FP32")
    tensor.set_data_from_numpy(images, binary_data=binary)
    output = http.InferRequestedOutput("probabilities", binary_data=binary)
    headers = {"Authorization": f"Bearer {token}"} if token else None
    with client_of(url) as client:
        return client.infer("digits", [tensor], outputs=[output], headers=headers).as_numpy("probabilities")


@pytest.fixture(scope="module")
def guarded(upstream, quick_sdb, sdb_command, digits):
    """The guard's address, the server's behind it, tokens, and the images that it was not calibrated with."""
    place, url = upstream
    images = digits.test.images.astype(np.float32) / np.float32(255)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(images), 1500)
    images = (images[rows] + rng.normal(0, 0.15, images[rows].shape)).clip(0, 1).astype(np.float32)
    labels = digits.test.labels[rows]
    parts = [asked(url, part) for part in np.array_split(images, 10)]
    np.savez(place / "calibration.npz", outputs=np.concatenate(parts)[:1000], labels=labels[:1000])
    new = (
        "guard",
        "new",
        "calibration.npz",
        "--out",
        "digits.guard",
        "--owner",
        "owner.json",
        "--partner",
        "clinic",
    )
    done = quick_sdb(*new, "--tie-budget", "0.02", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "An answer without a key tells the class and one of 2 levels" in done.stderr
    ledger = (
        "ledger",
        "new",
        "digits.guard",
        "--out",
        "ledger.db",
        "--ties",
        "ties.json",
        "--owner",
        "owner.json",
    )
    done = quick_sdb(*ledger, cwd=place)
    assert done.returncode == 0, done.stderr
    key_id = json.loads(quick_sdb("key", "show", "clinic.json", cwd=place).stdout)["id"]
    tokens = {}
    for name, more in (("bob", ()), ("clinic", ("--partner", key_id)), ("plain", ("--answers", "labels"))):
        done = quick_sdb("token", "new", name, "--tokens", "tokens.db", "--no-limits", *more, cwd=place)
        tokens[name] = json.loads(done.stdout)["token"]
    arguments = (
        "guard",
        "serve",
        "digits.guard",
        "--upstream",
        url,
        "--model",
        "digits",
        "--output",
        "probabilities",
    )
    marks = ("--tokens", "tokens.db", "--ties", "ties.json", "--ledger", "ledger.db")
    with running(sdb_command, place, *arguments, *marks, "--port", "0") as address:
        yield address, url, tokens, images[1000:]


@pytest.mark.parametrize("binary", [True, False])
def test_a_partner_gets_the_model_s_own_answers_bit_for_bit(guarded, binary):
    address, url, tokens, images = guarded
    given = asked(address, images[:40], token=tokens["clinic"], binary=binary)
    assert (given == asked(url, images[:40], binary=binary)).all()


@pytest.mark.parametrize("binary", [True, False])
def test_everyone_gets_the_class_a_level_and_decoys(guarded, upstream, binary):
    address, url, tokens, images = guarded
    tau = json.loads((upstream[0] / "digits.guard" / "guard.json").read_text())["ties"]["tau"]
    own, given = asked(url, images[:200]), asked(address, images[:200], token=tokens["bob"], binary=binary)
    assert given.dtype == own.dtype == np.float32
    assert given.shape == own.shape
    assert given.sum(axis=1) == pytest.approx(1, abs=1e-5)
    same = given.argmax(axis=1) == own.argmax(axis=1)
    best = np.sort(own, axis=1)
    tied = best[:, -1] - best[:, -2] < tau
    assert same[~tied].all()  # ties alone may differ
    assert not same[tied].all()
    for named in range(10):
        rows = np.unique(given[given.argmax(axis=1) == named], axis=0)
        assert len(rows) <= 2


def test_labels_alone_is_one_row_a_class(guarded):
    address, _, tokens, images = guarded
    given = asked(address, images[:200], token=tokens["plain"])
    assert len(np.unique(given, axis=0)) == len(np.unique(given.argmax(axis=1)))


def test_what_accounts_are_told_on_ties_can_be_asked_later(guarded, upstream, quick_sdb):
    """An account's own answers, as a suspect's, name it; the network behind the guard does not."""
    address, _, tokens, images = guarded
    asked(address, images[:250], token=tokens["bob"])
    asked(address, images[250:], token=tokens["bob"])
    place, _ = upstream
    from sdb.answers.ledger import Ledger
    from sdb.answers.ties import Ties
    from sdb.keys import Owner
    from sdb.tracing.ties import trace_ties

    owner, ties = Owner.load(place / "owner.json"), Ties.load(place / "ties.json")
    time.sleep(1.5)  # the ledger is written behind
    ledger = Ledger(place / "ledger.db")

    def copied(queries):
        return asked(address, queries, token=tokens["bob"]).argmax(axis=1)

    found = trace_ties(copied, [ledger], ties, owner.queries_key)
    assert [each.named for each in found.accounts] == [True, False]  # the other token asked too
    done = quick_sdb("trace", "teacher", "--ledger", "ledger.db", "--owner", "owner.json", cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("No account is named")


def test_the_guard_describes_itself(guarded):
    address, _, _, _ = guarded
    with client_of(address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("digits")
        found = client.get_model_metadata("digits")
    assert [each["name"] for each in found["outputs"]] == ["probabilities"]
    assert found["parameters"]["confidence"]["bits"] <= 1.2
    assert len(found["parameters"]["confidence"]["levels"]) == 2


def test_another_model_and_output_are_refused(guarded):
    http = pytest.importorskip("tritonclient.http")
    address, _, _, images = guarded
    tensor = http.InferInput("image", [1, *images.shape[1:]], "FP32")
    tensor.set_data_from_numpy(images[:1])
    with client_of(address) as client:
        with pytest.raises(Exception, match="unknown model; this server has 'digits'"):
            client.infer("other", [tensor])
        with pytest.raises(Exception, match="an output was asked for that is not given here"):
            client.infer("digits", [tensor], outputs=[http.InferRequestedOutput("logits")])
        with pytest.raises(Exception, match="binary_data alone"):
            client.infer("digits", [tensor], outputs=[http.InferRequestedOutput("probabilities", class_count=3)])


def test_compressed_requests_and_answers(guarded):
    http = pytest.importorskip("tritonclient.http")
    address, _, tokens, images = guarded
    tensor = http.InferInput("image", list(images[:64].shape), "FP32")
    tensor.set_data_from_numpy(images[:64])
    with client_of(address) as client:
        for token in tokens.values():
            done = client.infer(
                "digits",
                [tensor],
                headers={"Authorization": f"Bearer {token}"},
                request_compression_algorithm="gzip",
                response_compression_algorithm="gzip",
            )
            assert done.as_numpy("probabilities").shape == (64, 10)


def test_guards_that_cannot_be_made(upstream, quick_sdb):
    place, _ = upstream
    good = {"outputs": np.full((40, 3), 1 / 3), "labels": np.arange(40) % 3}
    for changes, said in (
        ({"outputs": np.full((40, 3), 0.9)}, "do not sum to 1"),
        ({"outputs": np.full((40, 1), 0.9)}, "is a regression"),
        ({"outputs": np.full((40, 3), np.nan)}, "NaN"),
        ({"labels": np.arange(40)}, "classes are 0 to 2"),
        ({"labels": np.arange(39) % 3}, "one per example"),
        ({"class_names": np.array(["a", "b"])}, "class_names: 2 for 3 classes"),
    ):
        np.savez(place / "bad.npz", **(good | changes))
        done = quick_sdb("guard", "new", "bad.npz", "--out", "bad.guard", "--owner", "owner.json", cwd=place)
        assert done.returncode == 2, said
        assert said in done.stderr
        assert not (place / "bad.guard").exists()
    done = quick_sdb("guard", "show", "owner.json", cwd=place)
    assert done.returncode == 2
    assert "no guard is there" in done.stderr or "damaged guard" in done.stderr


@pytest.mark.slow
def test_the_example_of_magika_runs(tmp_path):
    pytest.importorskip("magika")
    script = Path(__file__).parents[2] / "examples" / "guard_magika.py"
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "The suspect learned from the answers of account mallory" in done.stdout
    assert "alice: it agrees" not in done.stdout


def test_a_served_model_is_asked_about_inputs(upstream, quick_sdb, digits):
    """As from recorded outputs."""
    pytest.importorskip("httpx2")
    place, url = upstream
    images = digits.test.images[:300].astype(np.float32) / np.float32(255)
    found = {}
    for name, given in (("inputs", images), ("outputs", asked(url, images[:200]))):
        labels = digits.test.labels[: len(given)]
        np.savez(place / f"{name}.npz", **{name: given, "labels": labels})
        more = ("--model", f"{url}/v2/models/digits") if name == "inputs" else ()
        new = ("guard", "new", f"{name}.npz", "--out", f"{name}.guard", "--owner", "owner.json", *more)
        done = quick_sdb(*new, cwd=place)
        assert done.returncode == 0, done.stderr
        found[name] = json.loads((place / f"{name}.guard" / "guard.json").read_text())
    assert found["inputs"]["examples"] == 300
    assert found["inputs"]["gives"] == found["outputs"]["gives"] == "probabilities"
    right = asked(url, images[:256]).argmax(axis=1), asked(url, images[256:]).argmax(axis=1)
    accuracy = (np.concatenate(right) == digits.test.labels[:300]).mean()
    assert found["inputs"]["measured"]["teacher_accuracy"] == pytest.approx(accuracy)
    np.savez(place / "wrong.npz", inputs=images[:, :, :4], labels=digits.test.labels[:300])
    new = ("guard", "new", "wrong.npz", "--out", "wrong.guard", "--owner", "owner.json")
    done = quick_sdb(*new, "--model", f"{url}/v2/models/digits", cwd=place)
    assert done.returncode == 2
    assert "400" in done.stderr
    done = quick_sdb(*new, "--model", f"{url}/v2/models/digits", "--output", "scores", cwd=place)
    assert "the model gives probabilities" in done.stderr


def test_grpc_beside_http(guarded, upstream, sdb_command):
    grpc = pytest.importorskip("tritonclient.grpc")
    start, env = sdb_command
    arguments = ("guard", "serve", "digits.guard", "--upstream", guarded[1], "--model", "digits", "--port", "0")
    more = ("--output", "probabilities", "--upstream-grpc", "127.0.0.1:1", "--grpc-port", "0")
    with subprocess.Popen(
        [*start, *arguments, *more], cwd=upstream[0], env=env, stderr=subprocess.PIPE, text=True
    ) as server:
        said = [server.stderr.readline(), server.stderr.readline()]
        (line,) = (each for each in said if "by gRPC at" in each)
        with grpc.InferenceServerClient(line.split()[-1]) as client:
            assert client.is_server_live()
            tensor = grpc.InferInput("image", [1, 1, 8, 8], "FP32")
            tensor.set_data_from_numpy(np.zeros((1, 1, 8, 8), np.float32))
            with pytest.raises(grpc.InferenceServerException, match="does not answer"):
                client.infer("digits", [tensor])
        server.terminate()
        assert "Traceback" not in server.stderr.read()
        assert server.wait(20) == 0
