"""The guard as a server, in front of models that fail in every way."""

import asyncio
import json
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("aiohttp")

import uvicorn
from starlette.testclient import TestClient

import sdb
from sdb.answers.entries import Terms
from sdb.answers.ledger import Ledger
from sdb.config.address import Address
from sdb.errors import ConfigError, KeyFileError, RemoteError
from sdb.keys import Owner
from sdb.keys.sealing import public_of
from sdb.service.gateway import Served, build_gateway
from sdb.service.limits import Refusal
from sdb.service.messages import read_question, read_reply
from sdb.service.reloading import follow
from sdb.service.upstream import Upstream, described
from sdb.service.watch import LimitSet, TokenFile, Watch

CLASSES = 4
OWNER = Owner(bytes(range(32)))


def examples(count=2000):
    rng = np.random.default_rng(0)
    logits = 2.0 * rng.normal(size=(count, CLASSES))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return shares.astype(np.float32), (shares.cumsum(axis=1) > rng.random((count, 1))).argmax(axis=1)


GUARD = sdb.guard(None, examples(), owner=OWNER, partners=("clinic",), version="7")


class Behind:
    """A server of texts: the first letter of each says the row of `SHARES`; `mode` is how it fails."""

    def __init__(self):
        self.mode, self.paths, self.asked = "", [], {}

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.paths.append(scope["path"])
        status, headers, content = 200, [], b"{}"
        if scope["path"].endswith("/infer"):
            status, headers, content = await self.answer(body, dict(scope["headers"]))
        elif scope["path"] == "/v2":
            content = json.dumps({"extensions": [] if self.mode == "json" else ["binary_tensor_data"]}).encode()
        elif scope["path"].endswith("/ready"):
            status = 503 if self.mode == "down" else 200
        else:
            inputs = [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
            outputs = [{"name": name, "datatype": "FP32", "shape": [-1, CLASSES]} for name in ("scores", "hidden")]
            if self.mode == "silent":
                inputs, outputs = [], []
            content = json.dumps({"name": "texts", "secret": 1, "inputs": inputs, "outputs": outputs}).encode()
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def answer(self, body, headers):
        size = int(headers.get(b"inference-header-content-length", len(body)))
        request = json.loads(body[:size])
        self.asked = request | {"type": headers.get(b"content-type"), "bytes": len(body) - size}
        count = request["inputs"][0]["shape"][0]
        shares = examples()[0][:count]
        if self.mode == "500":
            return 500, [], b"secret traceback"
        if self.mode == "422":
            return 422, [], b"secret reason"
        if self.mode == "late":
            await asyncio.sleep(3)
        if self.mode == "html":
            return 200, [], b"<html>"
        if self.mode == "nan":
            shares = shares * np.nan
        if self.mode == "scores":
            shares = shares * 0.5
        if self.mode == "logits":
            shares = np.log(shares)
        if self.mode == "rows":
            shares = shares[:-1]
        if self.mode == "classes":
            shares = shares[:, 1:]
        if self.mode == "single":
            shares = shares[0]
        if self.mode == "huge":
            return 200, [], b"x" * 5_000_000
        hidden = {"name": "hidden", "datatype": "FP32", "shape": [count, 2], "data": [0.123456] * (2 * count)}
        version = "8" if self.mode == "version" else "7"
        name = "other" if self.mode == "output" else "scores"
        head = {"model_name": "texts", "model_version": version, "id": request.get("id", "")}
        kind = "INT64" if self.mode == "whole" else "FP32"
        if not request.get("parameters", {}).get("binary_data_output"):
            output = {"name": name, "datatype": kind, "shape": list(shares.shape), "data": shares.ravel().tolist()}
            return 200, [], json.dumps(head | {"outputs": [hidden, output]}).encode()
        data = shares.astype("<f4").tobytes()
        first = {"name": "hidden", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}
        wrong = 4 if self.mode == "size" else 0
        output = {"name": name, "datatype": kind, "shape": list(shares.shape)}
        output["parameters"] = {"binary_data_size": len(data) - wrong}
        text = json.dumps(head | {"outputs": [first, output]}).encode()
        length = [(b"inference-header-content-length", str(len(text)).encode())]
        return 200, length, text + b"\0\0\0\0" + data


@contextmanager
def running(app):
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def behind():
    app = Behind()
    with running(app) as port:
        app.port = port
        yield app


@pytest.fixture(autouse=True)
def well(request):
    if "behind" in request.fixturenames:
        request.getfixturevalue("behind").mode = ""


def upstream_of(port, timeout=1.0):
    return Upstream(Address.parse(f"http://127.0.0.1:{port}/v2/models/texts"), timeout, 2**20)


@pytest.fixture
def tokens(tmp_path):
    file = TokenFile(tmp_path / "tokens.db", create=True)
    partner = OWNER.partner("clinic").id
    return {name: file.add(name, key) for name, key in (("bob", ""), ("clinic", partner), ("stranger", "00" * 16))}


@contextmanager
def gateway(behind, **more):
    app = build_gateway(GUARD, upstream_of(behind.port), Served("texts", "scores"), **more)
    with TestClient(app, base_url="http://localhost") as client:
        yield client


@pytest.fixture
def client(behind):
    with gateway(behind) as client:
        yield client


def question(count=3, *, binary=False, **more):
    tensor = {"name": "text", "datatype": "BYTES", "shape": [count], "data": [f"text {i}" for i in range(count)]}
    return {"id": "mine", "inputs": [tensor], "parameters": {"binary_data_output": binary}} | more


def ask(client, body, token=None, path="/v2/models/texts/infer"):
    return client.post(path, json=body, headers={"authorization": f"Bearer {token}"} if token else {})


def outputs_of(answer):
    return read_reply(answer.content, answer.headers.get("inference-header-content-length"), "scores").outputs


@pytest.mark.parametrize("binary", [True, False])
def test_the_one_output_is_rewritten_and_the_rest_dropped(client, binary):
    answer = ask(client, question(50, binary=binary))
    assert answer.status_code == 200, answer.text
    given = outputs_of(answer)
    assert given == pytest.approx(GUARD.answer(examples()[0][:50]), abs=1e-6)
    assert b"hidden" not in answer.content
    assert b"0.123456" not in answer.content
    head = json.loads(answer.content[: int(answer.headers.get("inference-header-content-length", 10**6))])
    assert (head["id"], head["model_version"], len(head["outputs"])) == ("mine", "7", 1)


@pytest.mark.parametrize("outputs", [{}, {"outputs": None}, {"outputs": []}])
@pytest.mark.parametrize("binary", [True, False])
def test_the_model_is_asked_for_the_one_output_alone(behind, client, binary, outputs):
    """Some models give another where none is named, and what comes with it is dropped anyway."""
    assert ask(client, question(binary=binary, **outputs)).status_code == 200
    wanted = {"name": "scores"} | ({"parameters": {"binary_data": True}} if binary else {})
    assert behind.asked["outputs"] == [wanted]
    assert behind.asked["type"] == b"application/json"
    assert behind.asked["id"] == "mine"


def test_a_client_s_own_outputs_and_bytes_stay(behind, client):
    outputs = [{"name": "scores", "parameters": {"binary_data": False}}]
    assert ask(client, question(outputs=outputs)).status_code == 200
    assert behind.asked["outputs"] == outputs
    tensor = {"name": "n", "datatype": "UINT8", "shape": [3], "parameters": {"binary_data_size": 3}}
    for encoding in ("utf-8", "utf-16"):
        text = json.dumps({"inputs": [tensor]}).encode(encoding)
        headers = {"inference-header-content-length": str(len(text)), "content-type": "text/anything"}
        answer = client.post("/v2/models/texts/infer", content=text + b"abc", headers=headers)
        assert answer.status_code == 200, answer.text
        assert (behind.asked["type"], behind.asked["bytes"]) == (b"application/octet-stream", 3)
        assert behind.asked["inputs"] == [tensor]
        assert behind.asked["outputs"] == [{"name": "scores"}]


@pytest.mark.parametrize("kind", [None, "application/json"])
def test_a_partner_s_request_has_the_type_that_it_came_with(behind, tokens, tmp_path, kind):
    with gateway(behind, watch=Watch.open(tokens=tmp_path / "tokens.db")) as client:
        headers = {"authorization": f"Bearer {tokens['clinic']}"} | ({"content-type": kind} if kind else {})
        content = json.dumps(question()).encode()
        assert client.post("/v2/models/texts/infer", content=content, headers=headers).status_code == 200
    assert behind.asked["type"] == (kind.encode() if kind else None)
    assert "outputs" not in behind.asked


@pytest.mark.parametrize("binary", [True, False])
def test_a_partner_s_answers_pass_untouched(behind, tokens, tmp_path, binary):
    with gateway(behind, watch=Watch.open(tokens=tmp_path / "tokens.db")) as client:
        given = ask(client, question(5, binary=binary), tokens["clinic"])
        assert (outputs_of(given) == examples()[0][:5]).all()
        assert b"hidden" in given.content
        for name in ("bob", "stranger"):  # a key that the guard does not open for is nobody's
            assert b"hidden" not in ask(client, question(5, binary=binary), tokens[name]).content


@pytest.mark.parametrize(
    ("mode", "status"),
    [
        ("500", 502),
        ("422", 400),
        ("late", 504),
        ("html", 502),
        ("nan", 502),
        ("scores", 502),
        ("logits", 502),
        ("rows", 502),
        ("classes", 502),
        ("version", 502),
        ("output", 502),
        ("whole", 502),
        ("size", 502),
        ("huge", 502),
    ],
)
def test_what_is_not_understood_is_refused(behind, client, mode, status):
    behind.mode = mode
    answer = ask(client, question(binary=mode in ("size", "nan")))
    assert answer.status_code == status
    assert answer.json().keys() == {"error"}
    assert ("more than it may" in answer.text) == (mode == "huge")
    for told in ("secret", "0.12", "hidden", "traceback"):
        assert told not in answer.text


def test_a_model_without_a_dimension_of_examples(behind):
    behind.mode = "single"
    served = Served("texts", "scores", batched=False)
    with TestClient(build_gateway(GUARD, upstream_of(behind.port), served), base_url="http://localhost") as client:
        tensor = {"name": "text", "datatype": "BYTES", "shape": [7], "data": list("seven!!")}
        answer = ask(client, {"inputs": [tensor]})
        assert answer.status_code == 200, answer.text
        given = outputs_of(answer)
        assert given.shape == (CLASSES,)
        assert given == pytest.approx(GUARD.answer(examples()[0][:1])[0], abs=1e-6)


def test_a_server_that_is_not_there(behind):
    app = build_gateway(GUARD, upstream_of(1), Served("texts", "scores"))
    with TestClient(app, base_url="http://localhost") as client:
        assert ask(client, question()).status_code == 502
        assert client.get("/v2/health/ready").status_code == 503
        assert client.get("/v2/health/live").status_code == 200


def test_readiness_is_the_model_s(behind, client):
    assert client.get("/v2/health/ready").status_code == 200
    assert client.get("/v2/models/texts/ready").status_code == 200
    behind.mode = "down"
    assert client.get("/v2/health/ready").status_code == 503
    assert client.get("/v2/models/texts/ready").status_code == 503


def test_metadata_name_the_one_output(client):
    found = client.get("/v2/models/texts").json()
    assert [each["name"] for each in found["outputs"]] == ["scores"]
    assert "secret" not in found
    assert found["parameters"]["guard_id"] == GUARD.info.id


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ([], "JSON object"),
        ({"inputs": 1}, "list of objects"),
        ({"inputs": []}, "same number"),
        ({"inputs": [{"name": "a"}]}, "name and a datatype"),
        ({"inputs": [{"name": "a", "datatype": "FP32", "shape": [-1]}]}, "whole numbers"),
        ({"inputs": [{"name": "a", "datatype": "FP32", "shape": [0], "data": []}]}, "at least 1"),
        (question(outputs=[{"name": "hidden"}]), "given is 'scores'"),
        (question(outputs=[{"name": "scores", "parameters": {"classification": 3}}]), "binary_data alone"),
        (question(outputs=[{"name": "scores", "parameters": {"shared_memory_region": "x"}}]), "no shared memory"),
        (question(257), "at most 256"),
    ],
)
def test_requests_that_are_refused_before_the_model_is_asked(behind, client, body, said):
    before = len(behind.paths)
    answer = ask(client, body)
    assert answer.status_code in (400, 413)
    assert said in answer.json()["error"]
    assert len(behind.paths) == before


@pytest.mark.parametrize(
    "path",
    [
        "/v2/models/other/infer",
        "/v2/models/texts/generate",
        "/v2/models/texts/config",
        "/v2/repository/models/texts/unload",
        "/v2/models/texts/versions/..%2F..%2Fother/infer",
        "/v2/systemsharedmemory/status",
    ],
)
def test_nothing_else_of_the_server_is_reached(behind, client, path):
    before = len(behind.paths)
    assert client.post(path, json=question()).status_code in (404, 405)
    assert client.get(path).status_code in (404, 405)
    assert len(behind.paths) == before


def test_a_version_is_asked_for_by_its_path(behind, client):
    assert ask(client, question(), path="/v2/models/texts/versions/7/infer").status_code == 200
    assert behind.paths[-1] == "/v2/models/texts/versions/7/infer"


def test_labels_alone_are_one_row_a_class(behind, tmp_path):
    token = TokenFile(tmp_path / "tokens.db", create=True).add("plain", "", "labels")
    with gateway(behind, watch=Watch.open(tokens=tmp_path / "tokens.db")) as client:
        given = outputs_of(ask(client, question(200), token))
    assert (given.argmax(axis=1) == examples()[0][:200].argmax(axis=1)).all()
    assert len(np.unique(given, axis=0)) == CLASSES


def test_budgets_count_examples(behind, tokens, tmp_path):
    limits = LimitSet.load(_write(tmp_path / "budgets.json", {"named": {"images_total": 10}}))
    with gateway(behind, watch=Watch.open(tokens=tmp_path / "tokens.db", limits=limits)) as client:
        assert ask(client, question(8), tokens["bob"]).status_code == 200
        assert ask(client, question(3), tokens["bob"]).status_code == 429
        assert ask(client, question(2), tokens["bob"]).status_code == 200


def _write(path, content):
    path.write_text(json.dumps(content))
    return path


def test_ties_are_told_by_account_and_kept(behind, tokens, tmp_path):
    ties = GUARD.ties(OWNER)
    terms = Terms(ties.box_id, ties.id, ties.tau, public_of(OWNER.queries_key).hex())
    Ledger.create(tmp_path / "ledger.db", terms).close()
    ledger = Ledger(tmp_path / "ledger.db", writing=True)
    watch = Watch.open(tokens=tmp_path / "tokens.db")
    with gateway(behind, watch=watch, ties=ties, ledger=ledger) as client:
        nobody = outputs_of(ask(client, question(250)))
        told = outputs_of(ask(client, question(250), tokens["bob"]))
    ledger.close()
    shares = examples()[0][:250]
    best = np.sort(shares, axis=1)
    tied = best[:, -1] - best[:, -2] < ties.tau
    assert tied.sum() > 10
    assert (told.argmax(axis=1) == shares.argmax(axis=1))[~tied].all()
    assert (told.argmax(axis=1) != nobody.argmax(axis=1)).any()
    kept = Ledger(tmp_path / "ledger.db")
    entries = kept.entries()
    assert {entry.account for entry in entries} == {watch.identify(tokens["bob"]).account}
    for entry in entries:
        row = int(kept.query(entry, OWNER.queries_key).removeprefix("text "))
        assert tied[row]
        assert told[row].argmax() == entry.answer


def test_ties_of_another_guard_or_ledger_are_refused(behind, tokens, tmp_path):
    ties, watch = GUARD.ties(OWNER), Watch.open(tokens=tmp_path / "tokens.db")
    other = sdb.guard(None, examples(), owner=OWNER).ties(OWNER)
    Ledger.create(tmp_path / "l.db", Terms(other.box_id, other.id, other.tau, "00" * 32)).close()
    for more, error, said in (
        ({"ties": ties}, ConfigError, "nobody could say"),
        ({"ties": other, "watch": watch}, ConfigError, "not of guard"),
        ({"ties": ties, "watch": watch, "ledger": Ledger(tmp_path / "l.db")}, KeyFileError, "of other ties"),
    ):
        with pytest.raises(error, match=said):
            build_gateway(GUARD, upstream_of(behind.port), Served("texts", "scores"), **more)
    watch.close()


def test_what_is_said_before_it_starts(behind):
    assert described(upstream_of(behind.port), "scores") == []
    with pytest.raises(ConfigError, match="gives scores, hidden"):
        described(upstream_of(behind.port), "other")
    (said,) = described(upstream_of(1), "scores")
    assert "requests are refused until it does" in said


def test_rows_of_a_request_are_read_only_where_they_are_needed():
    numbers = np.arange(6, dtype="<i8").reshape(3, 2)
    words = b"".join(len(word).to_bytes(4, "little") + word for word in (b"a", b"bc", b""))
    tensors = [
        {"name": "ids", "datatype": "INT64", "shape": [3, 2], "parameters": {"binary_data_size": 48}},
        {"name": "word", "datatype": "BYTES", "shape": [3, 1], "parameters": {"binary_data_size": len(words)}},
    ]
    text = json.dumps({"inputs": tensors}).encode()
    body = text + numbers.tobytes() + words
    found = read_question(body, str(len(text)), "scores", batched=True, most=9)
    first, last = found[np.array([0, 2])]
    assert (first["ids"] == [0, 1]).all()
    assert (first["word"], last["word"]) == (b"a", b"")
    tensors[1]["shape"] = [4, 1]
    text = json.dumps({"inputs": tensors}).encode()
    with pytest.raises(Refusal, match="same number"):
        read_question(text + numbers.tobytes() + words, str(len(text)), "scores", batched=True, most=9)


def test_a_request_without_a_dimension_of_examples_is_one():
    tensor = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2]}
    body = json.dumps({"inputs": [tensor]}).encode()
    found = read_question(body, None, "scores", batched=False, most=9)
    assert found.rows == 1
    assert (found[np.array([0])][0] == [1, 2]).all()
    body = json.dumps({"inputs": [tensor | {"data": [1, "a"]}]}).encode()
    with pytest.raises(Refusal, match="are not what its shape"):
        read_question(body, None, "scores", batched=False, most=9)[np.array([0])]


def test_a_served_model_as_a_function(behind):
    """What the calibration of a guard asks."""
    pytest.importorskip("httpx2")
    from sdb.remote.any_model import asked_model

    url = f"http://127.0.0.1:{behind.port}/v2/models/texts"
    ask = asked_model(url, "scores", None)
    for given in (np.array(["a", "b"]), np.array([[1], [2]]), np.array([True, False])):
        assert (ask(text=given) == examples()[0][:2]).all()
    with pytest.raises(ConfigError, match="no such type"):
        ask(text=np.array([1j]))
    with pytest.raises(ConfigError, match="gives scores, hidden; name one"):
        asked_model(url, None, None)
    assert behind.asked["bytes"] > 0
    for behind.mode in ("json", "silent"):
        ask = asked_model(url, "scores", None)
        for given in (np.array(["a", "b"]), np.array([b"a", b"b"]), np.array([[1.5], [2]])):
            assert (ask(given) == examples()[0][:2]).all()
            sent = behind.asked["inputs"][0]
            if behind.mode == "json":
                assert (behind.asked["type"], behind.asked["bytes"]) == (b"application/json", 0)
                assert sent["data"] == (["a", "b"] if sent["datatype"] == "BYTES" else [1.5, 2.0])
    with pytest.raises(ConfigError, match="does not say what it gives"):
        asked_model(url, None, None)
    behind.mode = "json"
    with pytest.raises(ConfigError, match="JSON alone"):
        asked_model(url, "scores", None)(np.array([b"\xff"]))
    behind.mode = "output"
    with pytest.raises(RemoteError, match="did not answer with scores"):
        ask(text=np.array(["a"]))


def test_other_models_pass_as_they_are_where_they_are_named(behind, tokens):
    app = build_gateway(GUARD, upstream_of(behind.port), Served("texts", "scores", others=frozenset({"other"})))
    with TestClient(app, base_url="http://localhost") as client:
        given = ask(client, question(3), path="/v2/models/other/versions/2/infer")
        assert json.loads(given.content)["outputs"][0]["name"] == "hidden"
        assert behind.paths[-1] == "/v2/models/other/versions/2/infer"
        assert client.get("/v2/models/other").json()["secret"] == 1
        behind.mode = "422"  # what that model refuses is its own affair
        assert (given := ask(client, question(3), path="/v2/models/other/infer")).status_code == 422
        assert given.text == "secret reason"
        behind.mode = "down"
        assert client.get("/v2/models/other/ready").status_code == 503
        assert client.get("/v2/models/third").status_code == 404
        behind.mode = ""
        assert b"hidden" not in ask(client, question(3)).content  # the guarded one does not


def test_a_guard_that_is_written_again_is_taken_while_it_is_served(behind, tmp_path):
    said = []
    one_level = sdb.guard(None, examples(), owner=OWNER, confidence_levels=1)
    GUARD.save(tmp_path / "texts.guard")
    app = build_gateway(
        sdb.Guard.load(tmp_path / "texts.guard"),
        upstream_of(behind.port),
        Served("texts", "scores"),
        follow=lambda gateway: follow(tmp_path / "texts.guard", gateway, said.append, every=0.02),
    )

    def written(guard, word):
        guard.save(tmp_path / "texts.guard", overwrite=True)
        until(word)

    def until(word):
        deadline = time.monotonic() + 20
        while not any(word in each for each in said):
            assert time.monotonic() < deadline, said
            time.sleep(0.01)

    with TestClient(app, base_url="http://localhost") as client:
        assert outputs_of(ask(client, question(50))) == pytest.approx(GUARD.answer(examples()[0][:50]), abs=1e-6)
        written(one_level, one_level.info.id[:8])
        told = one_level.answer(examples()[0][:50])
        assert outputs_of(ask(client, question(50))) == pytest.approx(told, abs=1e-6)
        written(sdb.guard(None, examples(), owner=Owner(bytes(32))), "owner_id differs")
        assert outputs_of(ask(client, question(50))) == pytest.approx(told, abs=1e-6)
        (tmp_path / "texts.guard" / "guard.json").write_text("{}")
        until("is not taken, answers stay as they are: " + str(tmp_path / "texts.guard") + ": guard version None")
        assert outputs_of(ask(client, question(50))) == pytest.approx(told, abs=1e-6)


def test_a_guard_of_other_ties_is_not_taken(behind, tokens, tmp_path):
    ties = GUARD.ties(OWNER)
    watch = Watch.open(tokens=tmp_path / "tokens.db")
    app = build_gateway(GUARD, upstream_of(behind.port), Served("texts", "scores"), watch=watch, ties=ties)
    with pytest.raises(ConfigError, match="sdb ledger new"):
        app.state.service.take(sdb.guard(None, examples(), owner=OWNER, version="7"))
