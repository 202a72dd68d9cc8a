"""A guard before MLServer with a scikit-learn model, which lives in an environment of its own (docs/guarding.md)."""

import json
import os
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import numpy as np
import pytest

PYTHON = os.environ.get("SDB_MLSERVER_PYTHON")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="SDB_MLSERVER_PYTHON names no environment with MLServer"),
]
for needed in ("fastapi", "uvicorn", "aiohttp", "httpx2"):
    pytest.importorskip(needed)
http = pytest.importorskip("tritonclient.http")

TRAIN = """
import joblib, numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier

images, labels = load_digits(return_X_y=True)
images /= 16
forest = RandomForestClassifier(40, min_samples_leaf=2, random_state=0).fit(images[:800], labels[:800])
joblib.dump(forest, "model.joblib")
np.savez("calibration.npz", inputs=images[800:1500], labels=labels[800:1500])
np.savez("rest.npz", images=images[1550:], own=forest.predict_proba(images[1550:]))
"""
MODEL = {"name": "digits", "implementation": "mlserver_sklearn.SKLearnModel"}


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def answers(url):
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False


@contextmanager
def ending(process):
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)
        if process.stderr:
            process.stderr.close()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory, sdb, sdb_command):
    """The guard's address, MLServer's, tokens by name, images, and what the forest says of them."""
    place = tmp_path_factory.mktemp("mlserver")
    subprocess.run([PYTHON, "-c", TRAIN], cwd=place, check=True)
    (place / "model-settings.json").write_text(
        json.dumps(MODEL | {"parameters": {"uri": "./model.joblib", "version": "v1"}})
    )
    ports = {name: free_port() for name in ("http_port", "grpc_port", "metrics_port")}
    (place / "settings.json").write_text(json.dumps({"host": "127.0.0.1", "parallel_workers": 0} | ports))
    url = f"http://127.0.0.1:{ports['http_port']}"
    with ending(
        subprocess.Popen([PYTHON, "-m", "mlserver.cli.main", "start", "."], cwd=place, stdout=subprocess.DEVNULL)
    ) as server:
        deadline = time.monotonic() + 120
        while not answers(f"{url}/v2/models/digits/ready"):
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        for command in (
            ("key", "owner", "new", "owner.json"),
            ("key", "partner", "clinic", "--owner", "owner.json", "--out", "clinic.json"),
            (
                *("guard", "new", "calibration.npz", "--owner", "owner.json", "--partner", "clinic"),
                *("--out", "digits.guard", "--version", "v1", "--tie-budget", "0.02"),
                *("--model", f"{url}/v2/models/digits", "--output", "predict_proba"),
            ),
            (
                *("ledger", "new", "digits.guard", "--owner", "owner.json"),
                *("--ties", "ties.json", "--out", "ledger.db"),
            ),
        ):
            done = sdb(*command, cwd=place)
            assert done.returncode == 0, done.stderr
        key = json.loads(sdb("key", "show", "clinic.json", cwd=place).stdout)["id"]
        tokens = {}
        for name, more in (("clinic", ("--partner", key)), ("bob", ())):
            done = sdb("token", "new", name, "--tokens", "tokens.db", "--no-limits", *more, cwd=place)
            tokens[name] = json.loads(done.stdout)["token"]
        start, environment = sdb_command
        command = [*start, "guard", "serve", "digits.guard", "--upstream", url, "--model", "digits", "--port", "0"]
        command += [
            "--output",
            "predict_proba",
            "--tokens",
            "tokens.db",
            "--ties",
            "ties.json",
            "--ledger",
            "ledger.db",
        ]
        with ending(
            subprocess.Popen(command, cwd=place, env=environment, stderr=subprocess.PIPE, text=True)
        ) as guard:
            line = guard.stderr.readline()
            found = re.search(r"127.0.0.1:\d+", line)
            assert found, line
            with np.load(place / "rest.npz") as rest:
                yield found[0], url.removeprefix("http://"), tokens, rest["images"], rest["own"]


def asked(address, images, token=None, *, named=True):
    """By tritonclient, in JSON."""
    tensor = http.InferInput("pixels", list(images.shape), "FP64")
    tensor.set_data_from_numpy(images, binary_data=False)
    outputs = [http.InferRequestedOutput("predict_proba", binary_data=False)] if named else None
    headers = {"Authorization": f"Bearer {token}"} if token else None
    with http.InferenceServerClient(address) as client:
        return client.infer("digits", [tensor], outputs=outputs, headers=headers).as_numpy("predict_proba")


def posted(address, images, kind, token, **more):
    """By hand, in JSON: status and answer."""
    tensor = {"name": "pixels", "shape": list(images.shape), "datatype": "FP64", "data": images.ravel().tolist()}
    request = urllib.request.Request(
        f"http://{address}/v2/models/digits/infer",
        json.dumps({"inputs": [tensor]} | more).encode(),
        {"Content-Type": kind, "Authorization": f"Bearer {token}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_partner_gets_the_forest_s_own_answers_bit_for_bit(guarded):
    address, server, tokens, images, own = guarded
    given = asked(address, images, tokens["clinic"])
    assert given.dtype == np.float64
    assert (given == asked(server, images)).all()
    assert (given == own).all()


@pytest.mark.parametrize("named", [True, False])
def test_everyone_gets_the_class_and_a_level(guarded, named):
    """Also who names no output, though MLServer itself then gives `predict`."""
    address, _, tokens, images, own = guarded
    given = asked(address, images, tokens["bob"], named=named)
    assert given.shape == own.shape and given.dtype == np.float64
    assert given.sum(axis=1) == pytest.approx(1)
    best = np.sort(own, axis=1)
    clear = best[:, -1] - best[:, -2] > 0.3
    assert clear.sum() > 100
    assert (given.argmax(axis=1) == own.argmax(axis=1))[clear].all()
    assert len(np.unique(given, axis=0)) <= 20


@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded"])
def test_json_of_any_type(guarded, kind):
    address, _, tokens, images, _ = guarded
    status, answer = posted(address, images[:4], kind, tokens["bob"])
    assert status == 200, answer
    assert [(each["name"], each["shape"]) for each in answer["outputs"]] == [("predict_proba", [4, 10])]


def test_what_is_refused(guarded):
    address, _, tokens, images, _ = guarded
    status, answer = posted(address, images[:4], "application/json", tokens["bob"], outputs=[{"name": "predict"}])
    assert status == 400
    assert "given is 'predict_proba'" in answer["error"]
    assert posted(address, images[:4, :10], "application/json", tokens["bob"])[0] in (400, 502)
    tensor = http.InferInput("pixels", [4, 64], "FP64").set_data_from_numpy(images[:4])  # bytes: MLServer fails
    headers = {"Authorization": f"Bearer {tokens['bob']}"}
    with (
        http.InferenceServerClient(address) as client,
        pytest.raises(http.InferenceServerException, match="does not answer"),
    ):
        client.infer("digits", [tensor], headers=headers)
    with http.InferenceServerClient(address) as client:
        assert client.is_server_ready() and client.is_model_ready("digits")
        assert client.get_model_metadata("digits")["parameters"]["gives"] == "probabilities"
