"""The guard over gRPC, with tritonclient before it and a server of the protocol behind it."""

import asyncio
import datetime
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("aiohttp")
pytest.importorskip("tritonclient.grpc")

import grpc
import tritonclient.grpc as client_of
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc as rpc

import sdb
from sdb.answers.entries import Terms
from sdb.answers.ledger import Ledger
from sdb.config.address import Address
from sdb.keys import Owner
from sdb.keys.sealing import public_of
from sdb.service.gateway import Gateway, Served
from sdb.service.grpc_gateway import GrpcGateway, question_of
from sdb.service.limits import Refusal, RequestLimits
from sdb.service.upstream import Upstream
from sdb.service.watch import TokenFile, Watch

CLASSES = 4
OWNER = Owner(bytes(range(32)))


def shares_of(count):
    logits = 2.0 * np.random.default_rng(0).normal(size=(count, CLASSES))
    return (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)


def examples(count=2000):
    shares = shares_of(count)
    return shares, (shares.cumsum(axis=1) > np.random.default_rng(1).random((count, 1))).argmax(axis=1)


GUARD = sdb.guard(None, examples(), owner=OWNER, partners=("clinic",))


class Behind(rpc.GRPCInferenceServiceServicer):
    mode = ""

    async def ModelInfer(self, request, context):
        self.headers = dict(context.invocation_metadata())
        if self.mode == "fails":
            await context.abort(grpc.StatusCode.INTERNAL, "secret traceback")
        if self.mode == "refuses":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "secret reason")
        if self.mode == "late":
            await asyncio.sleep(3)
        self.wanted = [each.name for each in request.outputs]
        shares = shares_of(request.inputs[0].shape[0])
        shares = shares * {"nan": np.nan, "scores": 0.5}.get(self.mode, 1)
        answer = pb.ModelInferResponse(model_name="texts", model_version="7", id=request.id)
        answer.outputs.add(name="hidden", datatype="FP32", shape=[1])
        answer.outputs.add(
            name="other" if self.mode == "output" else "scores", datatype="FP32", shape=shares.shape
        )
        if self.mode == "contents":
            answer.outputs[0].contents.fp32_contents.append(0.5)
            answer.outputs[1].contents.fp32_contents.extend(shares.ravel().tolist())
        else:
            cut = -4 if self.mode == "size" else None
            answer.raw_output_contents.extend([b"\0\0\0\0", shares.astype("<f4").tobytes()[:cut]])
        return answer

    async def ModelReady(self, request, context):
        return pb.ModelReadyResponse(ready=self.mode != "down")

    async def ModelMetadata(self, request, context):
        outputs = [{"name": name, "datatype": "FP32", "shape": [-1, CLASSES]} for name in ("scores", "hidden")]
        inputs = [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
        return pb.ModelMetadataResponse(name="texts", versions=["7"], inputs=inputs, outputs=outputs)


class Running:
    """Both servers in a thread of their own."""

    def __init__(self, **more):
        self.behind, self.ready, self.done = Behind(), threading.Event(), None
        self.more = {"watch": None, "ties": None, "ledger": None} | more
        self.thread = threading.Thread(target=lambda: asyncio.run(self.run()))

    async def run(self):
        self.loop, self.done = asyncio.get_running_loop(), asyncio.Event()
        server = grpc.aio.server()
        rpc.add_GRPCInferenceServiceServicer_to_server(self.behind, server)
        if tls := self.more.get("tls"):
            port = server.add_secure_port("localhost:0", grpc.ssl_server_credentials([tls]))
        else:
            port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        upstream = Upstream(Address.parse("http://127.0.0.1:1/v2/models/texts"), 1, 2**20, "their-token")
        served = Served("texts", "scores", others=frozenset({"second"}))
        gateway = Gateway(
            GUARD, upstream, served, self.more["watch"], RequestLimits(), self.more["ties"], self.more["ledger"]
        )
        behind = f"grpcs://localhost:{port}" if tls else f"127.0.0.1:{port}"
        guarded = GrpcGateway(gateway, behind, "127.0.0.1:0", 1.0, self.told)
        await guarded.start()
        await self.done.wait()
        await guarded.stop()
        await server.stop(0)

    def told(self, port):
        self.url = f"127.0.0.1:{port}"
        self.ready.set()

    def __enter__(self):
        self.thread.start()
        assert self.ready.wait(20)
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.done.set)
        self.thread.join()

    def ask(self, count=5, *, token=None, output="scores", model="texts"):
        texts = client_of.InferInput("text", [count], "BYTES")
        texts.set_data_from_numpy(np.array([f"text {i}".encode() for i in range(count)], object))
        headers = {"authorization": f"Bearer {token}"} if token else None
        with client_of.InferenceServerClient(self.url) as client:
            outputs = [client_of.InferRequestedOutput(output)] if output else None
            return client.infer(model, [texts], outputs=outputs, headers=headers, request_id="mine")


@pytest.fixture(scope="module")
def running():
    with Running() as found:
        yield found


@pytest.fixture(autouse=True)
def well(running):
    running.behind.mode = ""


@pytest.mark.parametrize("mode", ["", "contents"])
def test_the_one_output_is_rewritten_and_the_rest_dropped(running, mode):
    running.behind.mode = mode
    for output in ("scores", None):
        answer = running.ask(50, output=output)
        assert answer.as_numpy("scores") == pytest.approx(GUARD.answer(shares_of(50)), abs=1e-6)
        assert [each.name for each in answer.get_response().outputs] == running.behind.wanted == ["scores"]
        assert answer.get_response().id == "mine"


def test_other_models_pass_as_they_are_where_they_are_named(running):
    answer = running.ask(5, model="second", output=None)
    assert [each.name for each in answer.get_response().outputs] == ["hidden", "scores"]
    assert (answer.as_numpy("scores") == shares_of(5)).all()
    with client_of.InferenceServerClient(running.url) as client:
        assert len(client.get_model_metadata("second").outputs) == 2
        assert client.is_model_ready("second")


def test_the_server_behind_is_asked_with_its_own_token_and_no_client_s(running):
    running.ask(token="a-client-s")
    assert running.behind.headers["authorization"] == "Bearer their-token"


def certificate():
    """A private key and its certificate for localhost, PEM."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 7, begin, begin + datetime.timedelta(days=1))
        .add_extension(names, critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    return secret, made.public_bytes(pem)


def test_the_server_behind_may_speak_tls(tmp_path, monkeypatch):
    secret, public = certificate()
    (tmp_path / "roots.pem").write_bytes(public)
    refused = pytest.raises(client_of.InferenceServerException, match="does not answer")
    with Running(tls=(secret, public)) as stranger, refused:  # nobody vouches for it
        stranger.ask()
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from tests.unit import test_grpc_gateway as t; t.over_tls()"
    )
    env = {"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(tmp_path / "roots.pem"), "SECRET": secret.decode()}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, str(root)], env=os.environ | env, capture_output=True, text=True
    )
    assert done.stdout.strip() == "5", done.stderr


def over_tls():
    """In a process of its own: gRPC reads its roots once."""
    public = Path(os.environ["GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"]).read_bytes()
    with Running(tls=(os.environ["SECRET"].encode(), public)) as found:
        print(len(found.ask(5).as_numpy("scores")))


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("fails", "INTERNAL.*does not answer"),
        ("refuses", "INVALID_ARGUMENT.*refuses this request"),
        ("late", "DEADLINE_EXCEEDED.*does not answer"),
        ("nan", "INTERNAL.*something else"),
        ("scores", "INTERNAL.*something else"),
        ("output", "INTERNAL.*something else"),
        ("size", "INTERNAL.*something else"),
    ],
)
def test_what_is_not_understood_is_refused(running, mode, said):
    running.behind.mode = mode
    with pytest.raises(client_of.InferenceServerException, match=said) as caught:
        running.ask()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"output": "hidden"}, "INVALID_ARGUMENT.*given is 'scores'"),
        ({"model": "other"}, "NOT_FOUND.*unknown model"),
        ({"count": 257}, "INVALID_ARGUMENT.*at most 256"),
    ],
)
def test_what_is_not_given_is_refused(running, changes, said):
    with pytest.raises(client_of.InferenceServerException, match=said):
        running.ask(**changes)


def test_nothing_else_of_the_service_exists(running):
    with client_of.InferenceServerClient(running.url) as client:
        for method in (client.get_model_repository_index, client.get_system_shared_memory_status):
            with pytest.raises(client_of.InferenceServerException, match="UNIMPLEMENTED"):
                method()
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("texts")
        assert [each.name for each in client.get_model_metadata("texts").outputs] == ["scores"]
        running.behind.mode = "down"
        assert not client.is_server_ready()


def test_partners_and_accounts(tmp_path):
    file = TokenFile(tmp_path / "tokens.db", create=True)
    tokens = {name: file.add(name, key) for name, key in (("bob", ""), ("clinic", OWNER.partner("clinic").id))}
    ties = GUARD.ties(OWNER)
    terms = Terms(ties.box_id, ties.id, ties.tau, public_of(OWNER.queries_key).hex())
    Ledger.create(tmp_path / "ledger.db", terms).close()
    ledger = Ledger(tmp_path / "ledger.db", writing=True)
    watch = Watch.open(tokens=tmp_path / "tokens.db")
    with Running(watch=watch, ties=ties, ledger=ledger) as running:
        partner = running.ask(200, token=tokens["clinic"], output=None)
        assert (partner.as_numpy("scores") == shares_of(200)).all()
        assert [each.name for each in partner.get_response().outputs] == ["hidden", "scores"]
        told = running.ask(200, token=tokens["bob"]).as_numpy("scores")
    ledger.close()
    kept = Ledger(tmp_path / "ledger.db")
    assert kept.entries()
    for entry in kept.entries():
        row = int(kept.query(entry, OWNER.queries_key).removeprefix(b"text "))
        assert told[row].argmax() == entry.answer


def test_requests_that_contradict_themselves():
    asked = pb.ModelInferRequest(model_name="texts")
    asked.inputs.add(name="a", datatype="FP32", shape=[2, 1])
    asked.raw_input_contents.extend([b"\0" * 8, b""])
    with pytest.raises(Refusal, match="2 tensors for 1 inputs"):
        question_of(asked, batched=True, most=9)
    asked.inputs[0].parameters["shared_memory_region"].string_param = "x"
    del asked.raw_input_contents[:]
    with pytest.raises(Refusal, match="no shared memory"):
        question_of(asked, batched=True, most=9)
    asked.inputs[0].parameters.clear()
    asked.inputs[0].contents.fp32_contents.extend([1, 2])
    assert question_of(asked, batched=True, most=9)[np.array([1])][0] == [2.0]
