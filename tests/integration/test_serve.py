"""`sdb serve` as users have it: a process, the usual client, curl, a stop; and clients that do not behave."""

import http.client
import io
import json
import shutil
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

import uvicorn

from sdb.box.box import Box
from sdb.config import WrapSettings
from sdb.keys import Key
from sdb.service import create_app
from sdb.service.connection import connection_class
from sdb.service.limits import MAX_READING, RequestLimits
from sdb.service.watch import TokenFile
from sdb.wrapping.wrap import wrap

INFER = "/v2/models/box/infer"


@pytest.fixture(scope="module")
def place(few, make_net, tmp_path_factory):
    """A folder with a weight-key box, its partner's key, and tokens of the partner and of a guest."""
    folder = tmp_path_factory.mktemp("serve")
    key = Key.generate()
    key.save(folder / "partner.key")
    settings = WrapSettings(epochs=1, batch_size=16, learning_rate=0.01)
    box = wrap(make_net(few), few, settings, key=key)
    assert box.rows is not None
    box.save(folder / "model.box")
    file = TokenFile(folder / "tokens.db", create=True)
    tokens = {"partner": file.add("partner", partner=key.id), "guest": file.add("guest", answers="top_k")}
    (folder / "tokens.json").write_text(json.dumps(tokens))
    return folder


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((5, 1, 8, 8), dtype=np.float32)


def answers_of(module, images):
    with torch.no_grad():
        return module(torch.from_numpy(images)).numpy()


@pytest.fixture(scope="module")
def keyless(place, images):
    return answers_of(Box.load(place / "model.box"), images)


@pytest.fixture(scope="module")
def keyed(place, images):
    return answers_of(Box.load(place / "model.box").unlock(Key.load(place / "partner.key")), images)


@contextmanager
def process(sdb_command, *options, stop=signal.SIGTERM):
    """A server, and its port; it must end by itself, well, when it is told to."""
    command, environment = sdb_command
    arguments = [*command, "serve", *map(str, options), "--port", "0"]
    with subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True) as server:
        try:
            line = server.stderr.readline()
            assert line.startswith("serving box at http://127.0.0.1:"), line + server.stderr.read()
            yield server, int(line.split(" (")[0].rsplit(":", 1)[1])
            if server.poll() is None:
                server.send_signal(stop)
            assert server.wait(20) == 0
            assert server.stderr.read() == ""
        finally:
            server.kill()


@pytest.fixture(scope="module")
def served(place, sdb_command):
    options = (
        "--tokens",
        place / "tokens.db",
        "--partner-keys",
        place / "partner.key",
        "--watch",
        place / "watch.db",
    )
    with process(sdb_command, place / "model.box", *options, stop=signal.SIGINT) as (_, port):
        yield port


@pytest.fixture(scope="module")
def triton():
    return pytest.importorskip("tritonclient.http")


@pytest.fixture
def client(triton, served):
    with triton.InferenceServerClient(f"127.0.0.1:{served}") as client:
        yield client


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
@pytest.mark.parametrize("binary_out", [True, False, None])
@pytest.mark.parametrize("binary_in", [True, False])
def test_the_usual_client_works_unmodified(triton, client, images, keyless, binary_in, binary_out, compression):
    tensor = triton.InferInput("image", images.shape, "FP32")
    tensor.set_data_from_numpy(images, binary_data=binary_in)
    outputs = None if binary_out is None else [triton.InferRequestedOutput("logits", binary_data=binary_out)]
    result = client.infer(
        "box",
        [tensor],
        outputs=outputs,
        request_id="r1",
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    np.testing.assert_allclose(result.as_numpy("logits"), keyless, atol=1e-5)
    assert result.get_response()["id"] == "r1"


def test_what_the_usual_client_can_ask_for(triton, client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("box")
    assert client.is_model_ready("box", "1")
    assert not client.is_model_ready("other")
    assert client.get_server_metadata()["name"] == "sdb"
    assert client.get_model_metadata("box")["inputs"][0]["shape"] == [-1, 1, 8, 8]
    assert client.get_model_repository_index()[0]["name"] == "box"


def test_the_usual_client_reads_refusals(triton, client, images):
    def infer(model="box", shape=images.shape, kind="FP32", values=images, version=""):
        tensor = triton.InferInput("image", shape, kind).set_data_from_numpy(values)
        return client.infer(model, [tensor], model_version=version)

    for wrong, message in (
        ({"model": "other"}, r"\[404\].*'box'"),
        ({"version": "7"}, r"\[404\].*version"),
        ({"shape": (5, 1, 4, 16), "values": images.reshape(5, 1, 4, 16)}, r"\[400\].*expected \(N, 1, 8, 8\)"),
        ({"values": images + 1}, r"\[400\].*\[0, 1\]"),
        ({"kind": "INT32", "values": images.astype(np.int32)}, r"\[400\].*datatype"),
    ):
        with pytest.raises(triton.InferenceServerException, match=message):
            infer(**wrong)


def test_tokens_over_the_wire(triton, client, place, images, keyless, keyed):
    tokens = json.loads((place / "tokens.json").read_text())
    tensor = triton.InferInput("image", images.shape, "FP32").set_data_from_numpy(images)

    def infer(token):
        return client.infer("box", [tensor], headers={"Authorization": f"Bearer {token}"})

    np.testing.assert_allclose(infer(tokens["partner"]).as_numpy("logits"), keyed, atol=1e-5)
    np.testing.assert_allclose(infer("wrong").as_numpy("logits"), keyless, atol=1e-5)
    np.testing.assert_array_equal(
        infer(tokens["guest"]).as_numpy("top_k"), np.argsort(-keyless, axis=1, kind="stable")[:, :5]
    )


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_a_picture_by_curl(served, tmp_path):
    picture = tmp_path / "x.png"
    # Above 1 MiB curl asks with "Expect: 100-continue" first.
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)).save(picture)
    url = f"http://127.0.0.1:{served}/predict"
    for options in (["-F", f"file=@{picture}"], ["--data-binary", f"@{picture}"]):
        done = subprocess.run(["curl", "-sS", *options, url], capture_output=True, text=True, check=True)
        answer = json.loads(done.stdout)
        assert answer["changes"] == ["converted from RGB to grey", "resized from 700x700 to 8x8"]
        assert len(answer["top"]) == 5
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**25)
    for body in ([], ["-H", "Expect:"]):
        command = ["curl", "-sS", *body, "--data-binary", f"@{tmp_path}/huge", "-w", "%{http_code}", url]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.endswith("413")
        assert "error" in done.stdout


def question(images):
    data = images.tobytes()
    tensor = {
        "name": "image",
        "shape": list(images.shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(data)},
    }
    text = json.dumps({"inputs": [tensor]}).encode()
    return text + data, {"Inference-Header-Content-Length": str(len(text))}


def test_a_stop_answers_what_was_accepted(place, sdb_command, images):
    """Clients ask without a pause; each must get whole answers until it is told that the connection closes."""
    body, headers = question(images)
    started = threading.Barrier(9)

    def ask_until_closed(port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        for count in range(100_000):
            connection.request("POST", INFER, body, headers)
            answer = connection.getresponse()
            assert answer.status == 200
            assert len(json.loads(answer.read())["outputs"][0]["data"]) == 50
            if count == 2:
                started.wait(20)
            if answer.getheader("connection") == "close":
                return True
        return False

    with (
        process(sdb_command, place / "model.box", "--max-batch", 16) as (server, port),
        ThreadPoolExecutor(8) as pool,
    ):
        clients = [pool.submit(ask_until_closed, port) for _ in range(8)]
        started.wait(20)
        server.send_signal(signal.SIGTERM)
        assert all(client.result(20) for client in clients)
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", port))


def export(module, path, box_id):
    """An ONNX file with the input, output and box id of `sdb export`."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    program = torch.onnx.export(
        module,
        (torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)),),
        dynamo=True,
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    model = program.model_proto
    entry = model.metadata_props.add()
    entry.key, entry.value = "id", box_id
    path.write_bytes(model.SerializeToString())


@pytest.fixture(scope="module")
def onnx(place):
    box = Box.load(place / "model.box")
    export(box, place / "keyless.onnx", box.info.id)
    export(box.unlock(Key.load(place / "partner.key")), place / "keyed.onnx", box.info.id)
    export(box, place / "other.onnx", "0" * 32)
    return place / "keyless.onnx", place / "keyed.onnx"


def test_onnx_files_answer_as_the_box_does(place, onnx, sdb_command, images, keyless, triton):
    with process(sdb_command, place / "model.box", "--engine", "onnx", "--onnx", onnx[0]) as (_, port):
        client = triton.InferenceServerClient(f"127.0.0.1:{port}")
        assert client.get_model_metadata("box")["platform"] == "onnxruntime_onnx"
        for count in (1, 5):
            tensor = triton.InferInput("image", (count, 1, 8, 8), "FP32").set_data_from_numpy(images[:count])
            result = client.infer("box", [tensor])
            np.testing.assert_allclose(result.as_numpy("logits"), keyless[:count], atol=1e-5)
        client.close()


def test_onnx_files_are_matched_with_keys_by_their_answers(place, onnx, images, keyless, keyed):
    from sdb.errors import ConfigError, ModelError

    box, key = place / "model.box", place / "partner.key"
    for files in (onnx, onnx[::-1]):
        variants = create_app(box, onnx=files, partner_keys=[key]).state.service.model.variants
        np.testing.assert_allclose(variants[""](images), keyless, atol=1e-5)
        np.testing.assert_allclose(variants[Key.load(key).id](images), keyed, atol=1e-5)
    with pytest.raises(ConfigError, match="no ONNX file answers for key"):
        create_app(box, onnx=onnx[:1], partner_keys=[key])
    with pytest.raises(ConfigError, match="does not answer as this box does"):
        create_app(box, onnx=onnx)
    with pytest.raises(ConfigError, match="is of another box"):
        create_app(box, onnx=[place / "other.onnx"])
    with pytest.raises(ModelError):
        create_app(box, onnx=[place / "tokens.db"])
    with pytest.raises(ModelError, match="no such file"):
        create_app(box, onnx=[place / "missing.onnx"])


def test_on_loopback_only_our_own_names_are_served(place, sdb_command):
    def head(port, host):
        return raw(port, f"GET /v2 HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())[:12]

    with process(sdb_command, place / "model.box", "--allowed-host", "models.example.com") as (_, port):
        asked = {host: head(port, host) for host in ("evil.example", f"localhost:{port}", "models.example.com")}
    assert list(asked.values()) == [b"HTTP/1.1 421", b"HTTP/1.1 200", b"HTTP/1.1 200"]


def test_a_start_that_fails_says_why_in_one_line(place, quick_sdb, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for options, word in (
            ((tmp_path / "missing",), "missing"),
            ((place / "model.box", "--port", taken.getsockname()[1]), "listen"),
            ((place / "model.box", "--host", "192.0.2.1"), "listen"),
            ((place / "model.box", "--engine", "onnx"), "--onnx"),
            ((place / "model.box", "--answers", "all"), "top_k"),
            ((place / "model.box", "--allowed-host", "http://x"), "without scheme"),
            ((place / "model.box", "--max-batch", "64", "--max-queue", "32"), "max_queue"),
            ((place / "model.box", "--partner-keys", place / "partner.key"), "--tokens"),
            ((place / "model.box", "--tokens", tmp_path / "missing.db"), "token"),
        ):
            done = quick_sdb("serve", *options, cwd=tmp_path)
            assert done.returncode == 2, options
            assert word in done.stderr
            assert len(done.stderr.splitlines()) == 1


@contextmanager
def local(app, read_timeout):
    """The application behind real connections, in this process."""
    config = uvicorn.Config(
        app, port=0, http=connection_class(read_timeout), ws="none", log_config=None, log_level="error"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)


def raw(port, *parts, pause=0.0):
    """Send bytes as they are; everything that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        received = b""
        with suppress(ConnectionError):  # the server may close before everything is sent
            for part in parts:
                connection.sendall(part)
                time.sleep(pause)
        with suppress(ConnectionError):
            while part := connection.recv(65536):
                received += part
        return received


def test_clients_that_do_not_behave(place):
    limits = RequestLimits(max_batch=4, max_queue=4, read_timeout=0.3)
    with local(create_app(place / "model.box", limits=limits), limits.read_timeout) as port:
        head = b"POST /v2/models/box/infer HTTP/1.1\r\nhost: x\r\n"
        cases = {
            "not HTTP": ((b"\x16\x03\x01 hello\r\n\r\n",), b" 400 "),
            "odd URL": ((b"GET \xff\xfe HTTP/1.1\r\n\r\n",), b" 400 "),
            "star": ((b"OPTIONS * HTTP/1.1\r\nconnection: close\r\n\r\n",), b" 404 "),
            "half a head": ((head,), b" 408 "),
            "only line ends": ((b"\r\n\r\n",), b" 408 "),
            "half a body": ((head + b"content-length: 100\r\n\r\nabc",), b" 408 "),
            "half a chunk": ((head + b"transfer-encoding: chunked\r\n\r\n50\r\nabc",), b" 408 "),
            "bad chunk": ((head + b"transfer-encoding: chunked\r\n\r\nxyz\r\n",), b" 400 "),
            "endless head": ((head + b"x: ", *[b"y" * 2**16] * 8), b" 431 "),
            "large head": ((head + b"connection: close\r\nx: " + b"y" * 40_000 + b"\r\n\r\n",), b" 431 "),
            "upgrade": ((head + b"connection: upgrade\r\nupgrade: websocket\r\n\r\n",), b" 4"),
            "nothing": ((), b""),
        }
        with ThreadPoolExecutor(len(cases)) as pool:
            answers = {name: pool.submit(raw, port, *parts) for name, (parts, _) in cases.items()}
        for name, (_, status) in cases.items():
            answer = answers[name].result()
            assert status in answer.split(b"\r\n")[0] if status else answer == b"", (name, answer)
            if status:
                assert list(json.loads(answer.partition(b"\r\n\r\n")[2].splitlines()[-1])) == ["error"], name
                assert answer.lower().count(b"x-content-type-options: nosniff") == 1, name
            assert b"Traceback" not in answer
        # One byte at a time is too slow as well (the answer may be lost with the connection); others are answered.
        assert raw(port, *[bytes([byte]) for byte in head[:12]], pause=0.05)[:12] in (b"HTTP/1.1 408", b"")
        assert b" 200 " in raw(port, b"GET /v2/health/live HTTP/1.1\r\nconnection: close\r\n\r\n")
        seen = raw(port, b"HEAD /v2/health/live HTTP/1.1\r\nconnection: close\r\n\r\n")
        assert b" 200 " in seen and b"content-length: 14" in seen.lower() and seen.endswith(b"\r\n\r\n")


def test_an_idle_connection_is_kept_for_a_while(place):
    with local(create_app(place / "model.box"), 0.2) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        for _ in range(2):
            connection.request("GET", "/v2/health/live")
            assert connection.getresponse().read()
            time.sleep(0.4)


def test_pictures_are_decoded_beside_the_event_loop_and_few_wait(place):
    """A small file that is a large picture holds up nobody but other pictures."""
    app = create_app(place / "model.box")
    large = io.BytesIO()
    Image.new("P", (4096, 4096)).save(large, "PNG")
    assert len(large.getvalue()) < 2**16
    begun, free = threading.Event(), threading.Event()

    def occupy():
        begun.set()
        free.wait(20)

    def ask(port, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET" if body is None else "POST", path, body)
        answer = connection.getresponse()
        return answer.status, answer.getheader("retry-after"), json.loads(answer.read())

    with local(app, 10) as port, ThreadPoolExecutor(MAX_READING + 4) as pool:
        assert ask(port, "/predict", large.getvalue())[0] == 200
        app.state.service._reader.submit(occupy)
        assert begun.wait(10)
        small = io.BytesIO()
        Image.new("L", (8, 8)).save(small, "PNG")
        asked = [pool.submit(ask, port, "/predict", small.getvalue()) for _ in range(MAX_READING + 4)]
        while sum(one.done() for one in asked) < 4:
            time.sleep(0.005)
        assert ask(port, "/v2/health/live")[0] == 200
        free.set()
        results = [one.result() for one in asked]
        assert ask(port, "/predict", small.getvalue())[0] == 200
    refused = [result for result in results if result[0] == 503]
    assert refused == [(503, "1", {"error": "too many bodies wait to be read"})] * 4
    assert sum(status == 200 for status, _, _ in results) == MAX_READING


def test_a_flood_is_refused_in_part_and_the_rest_is_answered(place, images):
    limits = RequestLimits(max_batch=8, max_queue=8, timeout=20)
    app = create_app(place / "model.box", limits=limits)
    service = app.state.service
    forward, free, most = service.model.variants[""], threading.Event(), []

    def slow(batch):
        free.wait(10)
        most.append(service.batcher.waiting)
        return forward(batch)

    service.batcher.variants = {"": slow}
    body, headers = question(images[:2])

    def ask(port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("POST", INFER, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.getheader("retry-after"), json.loads(answer.read())

    with local(app, 10) as port, ThreadPoolExecutor(40) as pool:
        asked = [pool.submit(ask, port) for _ in range(40)]
        while sum(one.done() for one in asked) < 35:
            time.sleep(0.005)
        free.set()
        results = [one.result() for one in asked]
    refused = [result for result in results if result[0] == 503]
    # One request is computed, four wait, whoever comes then is told to come back.
    assert len(refused) == 35
    assert all(after == "1" and list(answer) == ["error"] for _, after, answer in refused)
    assert sum(status == 200 for status, _, _ in results) == 5
    assert max(most) <= limits.max_queue
