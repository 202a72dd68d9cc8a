"""A remote teacher: the same answers as the box, each asked for once, through whatever a network does."""

import json
import logging
import stat
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from sdb.config import DistillSettings, WrapSettings, validate
from sdb.config.address import Address
from sdb.data import Batches
from sdb.distillation import distill
from sdb.errors import CheckpointError, ConfigError, DataError, ModelError, StorageError
from sdb.keys import Key
from sdb.remote import RemoteError, RemoteTeacher, token_from
from sdb.remote import wire as wire_module
from sdb.training.repeated_views import FixedViews
from sdb.wrapping.wrap import wrap

KEY = Key(bytes(range(32)), blend=0.5)
TOKEN = "sdb_s3cret-T0ken"
HEADER = "Inference-Header-Content-Length"


class Server:
    """The protocol's few routes on loopback, in front of a real box; says what it was asked, and fails as told.

    Attributes:
        failures: what to do in place of an answer, first come first: (status, headers, body), or a function of the
            handler.
        seen: images of each inference request that was answered, float32.
        headers: of every request.
        change: a function from the outputs of the right answer to others.
    """

    def __init__(self, module):
        self.module = module
        self.failures, self.seen, self.headers = [], [], []
        self.kind, self.as_json, self.limit, self.name = "logits", False, None, "box"
        self.metadata = {
            "name": "box",
            "versions": ["1"],
            "platform": "test",
            "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}],
            "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}],
        }
        self.change = lambda values: values
        self.url = ""

    @property
    def asked(self):
        return sum(len(images) for images in self.seen)

    def give(self, kind):
        self.kind = kind
        self.metadata["outputs"] = [{"name": kind, "datatype": "FP32", "shape": [-1, 10]}]

    def answer(self, handler, body):
        size = int(handler.headers[HEADER])
        request = json.loads(body[:size])
        (tensor,), (wanted,) = request["inputs"], request["outputs"]
        assert tensor["datatype"] == "FP32" and wanted == {"name": self.kind, "parameters": {"binary_data": True}}
        assert tensor["parameters"]["binary_data_size"] == len(body) - size
        images = np.frombuffer(body[size:], dtype="<f4").reshape(tensor["shape"]).copy()
        if self.limit is not None and len(images) > self.limit:
            return 413, {}, b'{"error": "too many images"}'
        with torch.no_grad():
            logits = self.module(torch.from_numpy(images))
        values = self.change((logits.softmax(1) if self.kind == "probabilities" else logits).numpy())
        self.seen.append(images)
        output = {"name": self.kind, "datatype": "FP32", "shape": list(values.shape)}
        if self.as_json:
            text = json.dumps({"outputs": [output | {"data": values.ravel().tolist()}]}).encode()
            return 200, {}, text
        data = values.astype("<f4").tobytes()
        text = json.dumps({"outputs": [output | {"parameters": {"binary_data_size": len(data)}}]}).encode()
        return 200, {HEADER: str(len(text))}, text + data


@contextmanager
def listening(served, port=0):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_):
            pass

        def do_GET(self):
            self.reply(200, {}, json.dumps(served.metadata).encode())

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            assert self.path == f"/v2/models/{served.name}/infer"
            if served.failures:
                failure = served.failures.pop(0)
                self.reply(*failure) if isinstance(failure, tuple) else failure(self)
                return
            self.reply(*served.answer(self, body))

        def reply(self, status, headers, body):
            served.headers.append(dict(self.headers))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_):
            pass  # a connection that a test cuts is no news

    with Quiet(("127.0.0.1", port), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        served.url = f"http://127.0.0.1:{server.server_port}/v2/models/{served.name}"
        try:
            yield served
        finally:
            server.shutdown()


@pytest.fixture(scope="module")
def box(few, make_net):
    return wrap(
        make_net(few), few, WrapSettings(method="sdb", epochs=1, batch_size=16, learning_rate=0.01), key=KEY
    )


@pytest.fixture
def server(box):
    with listening(Server(box)) as served:
        yield served


@pytest.fixture(scope="module")
def images(digits):
    """300 test images, all different."""
    pixels = np.unique(digits.test.images, axis=0)[:300]
    assert len(pixels) == 300
    return torch.from_numpy(pixels).float().div_(255)


@pytest.fixture
def pauses(monkeypatch):
    """How long the client would have waited, instead of the waiting."""
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


# --- answers ---------------------------------------------------------------------------------------------------------


def test_the_answers_are_the_box_s_in_the_order_asked(server, box, images):
    teacher = RemoteTeacher(server.url)
    with torch.no_grad():
        torch.testing.assert_close(teacher(images), box(images), rtol=0, atol=1e-6)
    assert [len(part) for part in server.seen] == [128, 128, 44]
    assert torch.equal(torch.from_numpy(np.concatenate(server.seen)), images)  # what is sent is exact
    assert teacher.counts == {"asked": 300, "from_cache": 0}


def test_an_image_is_asked_for_once_within_a_batch_too(server, box, images):
    teacher = RemoteTeacher(server.url)
    twice = images[[3, 1, 3, 2, 1, 3]]
    with torch.no_grad():
        torch.testing.assert_close(teacher(twice), box(twice), rtol=0, atol=1e-6)
    assert server.asked == 3 and teacher.counts == {"asked": 3, "from_cache": 3}


def test_an_image_key_stays_here_and_its_images_leave_keyed(server, box, images):
    teacher = RemoteTeacher(server.url, key=KEY)
    with torch.no_grad():
        torch.testing.assert_close(teacher(images[:20]), box.unlock(KEY)(images[:20]), rtol=0, atol=1e-6)
    assert torch.equal(torch.from_numpy(server.seen[0]), KEY.embed(images[:20]))


def test_a_weight_key_cannot_be_used_over_the_wire(server):
    with pytest.raises(ConfigError, match="teacher_token_env"):
        RemoteTeacher(server.url, key=Key(bytes(32), kind="weight"))


def test_a_server_that_answers_in_json_is_understood(server, box, images):
    server.as_json = True
    with torch.no_grad():
        torch.testing.assert_close(RemoteTeacher(server.url)(images), box(images), rtol=0, atol=1e-6)


def test_probabilities_become_logits_with_the_same_softmax_at_any_temperature(server, box, images):
    server.give("probabilities")
    given = RemoteTeacher(server.url)(images)
    with torch.no_grad():
        logits = box(images)
    for temperature in (1, 4, 20):
        torch.testing.assert_close((given / temperature).softmax(1), (logits / temperature).softmax(1))


def test_a_probability_of_zero_stays_finite(server, images):
    server.give("probabilities")
    server.change = lambda values: np.eye(10, dtype=np.float32)[values.argmax(1)]
    given = RemoteTeacher(server.url)(images[:5])
    assert torch.isfinite(given).all() and torch.equal(given.softmax(1).max(1).values, torch.ones(5))


@pytest.mark.parametrize(
    ("kind", "change", "says"),
    [
        ("logits", lambda v: np.exp(v) / np.exp(v).sum(1, keepdims=True), "says logits and sends probabilities"),
        ("probabilities", lambda v: v * 3, "do not sum to 1"),
        ("probabilities", lambda v: np.log(v), "do not sum to 1"),
        ("logits", lambda v: v * np.nan, "not finite"),
        ("logits", lambda v: v[:-1], "as its metadata promise"),
        ("logits", lambda v: v[:, :9], "as its metadata promise"),
    ],
)
def test_an_answer_of_another_kind_than_promised_is_refused(server, images, kind, change, says):
    server.give(kind)
    server.change = change
    with pytest.raises(RemoteError, match=says):
        RemoteTeacher(server.url)(images[:5])


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, b""),
        ({}, b"[]"),
        ({}, b'{"outputs": 3}'),
        ({}, b'{"outputs": []}'),
        ({}, b'{"outputs": [{"name": "labels", "datatype": "INT64", "shape": [5], "data": [1, 2, 3, 4, 5]}]}'),
        ({}, b'{"outputs": [{"name": "logits", "datatype": "FP32", "shape": [5, 10], "data": [1]}]}'),
        ({}, b'{"outputs": [{"name": "logits", "datatype": "FP32", "shape": [5, 10], "data": "x"}]}'),
        ({HEADER: "9999"}, b"{}"),
        ({HEADER: "-1"}, b"{}"),
        ({HEADER: "x"}, b"{}"),
        ({HEADER: "4"}, b"\xff\xfe\x00\x01"),
        ({}, b"[" * 100_000),
    ],
)
def test_a_garbled_answer_is_refused_in_words_and_not_kept(server, images, headers, body, tmp_path):
    server.failures = [(200, headers, body)]
    teacher = RemoteTeacher(server.url, cache=tmp_path / "a")
    with pytest.raises(RemoteError, match="did not answer with logits|more than"):
        teacher(images[:5])
    assert teacher.counts["asked"] == 0


def test_an_endless_answer_is_cut_short(server, images):
    server.failures = [(200, {}, b" " * 10_000_000)]
    with pytest.raises(RemoteError, match="more than"):
        RemoteTeacher(server.url)(images[:5])


@pytest.mark.parametrize(
    ("outputs", "says"),
    [
        ([{"name": "labels", "datatype": "INT64", "shape": [-1]}], "gives labels;"),
        (
            [
                {"name": "top_k", "datatype": "INT64", "shape": [-1, 5]},
                {"name": "top_k_probabilities", "datatype": "FP32", "shape": [-1, 5]},
            ],
            "logits or probabilities of all classes",
        ),
        ([], "gives nothing"),
        ([{"name": "logits", "datatype": "FP64", "shape": [-1, 10]}], "expected FP32"),
        ([{"name": "logits", "datatype": "FP32", "shape": [-1]}], "expected FP32"),
        (None, "does not describe itself"),
    ],
)
def test_a_model_without_soft_answers_is_refused_before_anything_is_asked(server, outputs, says):
    server.metadata["outputs"] = outputs
    with pytest.raises(RemoteError, match=says):
        RemoteTeacher(server.url)
    assert server.asked == 0


def test_a_model_of_other_images_or_classes_is_refused(server):
    with pytest.raises(ModelError, match=r"\(1, 8, 8\) and knows 10 classes"):
        RemoteTeacher(server.url).check_fits(100, (3, 32, 32))
    names = tuple("abcdefghij")
    RemoteTeacher(server.url).check_fits(10, (1, 8, 8), names)  # a server that says no names is not refused
    server.metadata["parameters"] = {"class_names": list(names)}
    RemoteTeacher(server.url).check_fits(10, (1, 8, 8), names)
    with pytest.raises(ModelError, match="teacher_url: its classes are 'a'"):
        RemoteTeacher(server.url).check_fits(10, (1, 8, 8), tuple("klmnopqrst"))
    RemoteTeacher(server.url).check_fits(10, (1, 8, 8), tuple("klmnopqrst"), other_class_names=True)
    for damaged in ("abcdefghij", list(names[:9]), [1] * 10, None):
        server.metadata["parameters"]["class_names"] = damaged
        assert RemoteTeacher(server.url).model.class_names == ()
    server.metadata["inputs"][0]["datatype"] = "BYTES"
    with pytest.raises(RemoteError, match="images are FP32"):
        RemoteTeacher(server.url)


@pytest.mark.parametrize("bad", [lambda x: x + 0.001, lambda x: x * 255, lambda x: -x, lambda x: x[:0]])
def test_only_images_of_8_bits_are_sent(server, images, bad):
    with pytest.raises(DataError, match="pixels"):
        RemoteTeacher(server.url)(bad(images[:4]))
    assert server.asked == 0


# --- the cache -------------------------------------------------------------------------------------------------------


def test_what_was_answered_is_never_asked_again(server, images, tmp_path):
    first = RemoteTeacher(server.url, cache=tmp_path / "a")
    before = first(images[:50])
    again = RemoteTeacher(server.url, cache=tmp_path / "a")
    assert torch.equal(again(images[:60])[:50], before)
    assert server.asked == 60 and again.counts == {"asked": 60, "from_cache": 50}


def test_another_asker_or_another_model_is_asked_anew(server, images, tmp_path):
    for number, change in enumerate([{}, {"key": KEY}, {"token": TOKEN}, {"token": TOKEN + "x"}], start=1):
        RemoteTeacher(server.url, cache=tmp_path / "a", **change)(images[:10])
        assert server.asked == 10 * number
    server.metadata["parameters"] = {"box_id": "another", "max_images": 1}
    RemoteTeacher(server.url, cache=tmp_path / "a")(images[:10])
    assert server.asked == 50
    server.metadata["parameters"]["max_images"] = 2
    server.metadata["platform"] = "faster"
    RemoteTeacher(server.url, cache=tmp_path / "a")(images[:10])
    assert server.asked == 50


def test_an_interruption_loses_no_answer_that_came(server, images, tmp_path):
    server.failures = []
    teacher = RemoteTeacher(server.url, cache=tmp_path / "a", patience=0)
    original = server.answer

    def once(handler, body):
        server.failures = [(503, {}, b"{}")]
        return original(handler, body)

    server.answer = once
    with pytest.raises(RemoteError, match="--resume"):
        teacher(images)
    server.answer = original
    RemoteTeacher(server.url, cache=tmp_path / "a")(images)
    assert server.asked == 300  # the first 128 came once


def test_the_answers_are_for_their_owner_alone_and_hold_no_token(server, images, tmp_path):
    RemoteTeacher(server.url, cache=tmp_path / "a", token=TOKEN)(images[:10])
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert TOKEN.encode() not in path.read_bytes()


def test_a_damaged_file_of_answers_is_refused_in_words(server, images, tmp_path):
    (tmp_path / "a").write_bytes(b"this is no database, but long enough to be read as one" * 100)
    with pytest.raises(CheckpointError, match="is damaged"):
        RemoteTeacher(server.url, cache=tmp_path / "a")(images[:1])
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot write"):
        RemoteTeacher(server.url, cache=tmp_path / "file/a")(images[:1])
    assert server.asked == 0


# --- what a network does ---------------------------------------------------------------------------------------------


def drop(handler):
    """Hang up without an answer."""
    handler.close_connection = True
    handler.connection.close()


def cut(handler):
    """Hang up in the middle of an answer."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"{")
    handler.close_connection = True


BUSY = [(status, {}, b'{"error": "busy"}') for status in (429, 502, 503, 504, 408)]


@pytest.mark.parametrize("failure", [*BUSY, drop, cut])
def test_what_passes_is_tried_again(server, box, images, pauses, failure):
    server.failures = [failure] * 3
    with torch.no_grad():
        torch.testing.assert_close(RemoteTeacher(server.url)(images[:7]), box(images[:7]), rtol=0, atol=1e-6)
    assert server.asked == 7 and len(pauses) == 3
    for number, pause in enumerate(pauses):
        assert 0.25 * 2**number <= pause <= 0.5 * 2**number


def test_the_pauses_differ_between_clients_and_do_not_grow_without_end(server, images, pauses):
    server.failures = [BUSY[2]] * 12
    RemoteTeacher(server.url)(images[:1])
    first = list(pauses)
    assert 15 <= first[-1] <= 30
    pauses.clear()
    server.failures = [BUSY[2]] * 12
    RemoteTeacher(server.url)(images[1:2])
    assert pauses != first


@pytest.mark.parametrize(
    "value", ["7", lambda: format_datetime(datetime.now(UTC) + timedelta(seconds=9), usegmt=True)]
)
def test_the_server_says_how_long_to_wait(server, images, pauses, value):
    after = value if isinstance(value, str) else value()
    server.failures = [(429, {"Retry-After": after}, b"{}")]
    RemoteTeacher(server.url)(images[:1])
    assert len(pauses) == 1 and 7 <= pauses[0] <= 10


@pytest.mark.parametrize("value", ["soon", "", "-5", "1e9", "Mon, 99 Foo 2020"])
def test_a_retry_after_that_says_nothing_is_not_heard(server, images, pauses, value):
    server.failures = [(503, {"Retry-After": value}, b"{}")]
    RemoteTeacher(server.url)(images[:1])
    assert len(pauses) == 1 and pauses[0] <= 0.5


def test_who_is_told_to_come_back_tomorrow_gives_up_now_and_says_so(server, images, pauses):
    server.failures = [(429, {"Retry-After": "86400"}, b'{"error": "daily budget is spent"}')]
    with pytest.raises(RemoteError) as caught:
        RemoteTeacher(server.url)(images[:1])
    assert not pauses
    for part in ("429", "daily budget is spent", "86400 s", "--resume"):
        assert part in str(caught.value)


def test_patience_has_an_end(server, images):
    server.failures = [BUSY[2]] * 1000
    with pytest.raises(RemoteError, match=r"503: busy; given up after \d+ tries"):
        RemoteTeacher(server.url, patience=0.9)(images[:1])


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422, 500])
def test_what_will_not_pass_is_not_tried_again(server, images, pauses, status):
    server.failures = [(status, {}, b'{"error": "no,\\n\\u0007 really"}')]
    with pytest.raises(RemoteError, match=f"answered {status}: no, really"):
        RemoteTeacher(server.url)(images[:1])
    assert not pauses


def test_a_redirection_is_not_followed_so_the_token_goes_nowhere_else(server, images):
    server.failures = [(307, {"Location": "http://127.0.0.1:1/elsewhere"}, b"")]
    with pytest.raises(RemoteError, match="307; name the address that it leads to"):
        RemoteTeacher(server.url, token=TOKEN)(images[:1])


@pytest.mark.parametrize("limit", [1, 5, 60])
def test_a_server_that_takes_less_at_once_gets_less(server, box, images, limit):
    server.limit = limit
    with torch.no_grad():
        torch.testing.assert_close(RemoteTeacher(server.url)(images[:130]), box(images[:130]), rtol=0, atol=1e-6)
    assert server.asked == 130 and max(len(part) for part in server.seen) <= limit


def test_a_server_that_says_how_much_it_takes_is_not_asked_for_more(server, images):
    server.limit = 50
    server.metadata["parameters"] = {"max_images": 50}
    RemoteTeacher(server.url)(images[:130])
    assert [len(part) for part in server.seen] == [50, 50, 30] and len(server.headers) == 4


@pytest.mark.parametrize("hint", [0, -1, "50", True, 10**9, None])
def test_a_hint_that_makes_no_sense_is_not_taken(server, images, hint):
    server.metadata["parameters"] = {"max_images": hint}
    RemoteTeacher(server.url)(images[:130])
    assert [len(part) for part in server.seen] == [128, 2]


def test_an_image_that_is_too_large_alone_is_an_error(server, images):
    server.limit = 0
    with pytest.raises(RemoteError, match="413"):
        RemoteTeacher(server.url)(images[:2])


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v2/models/box", "https://HERE/v2/models/box"])
def test_nobody_there_is_said_at_once(server, url):
    with pytest.raises(RemoteError, match="is the server running"):
        RemoteTeacher(url.replace("HERE", server.url.split("/")[2]))


def test_a_server_that_restarts_is_waited_for(box, images, monkeypatch):
    monkeypatch.setattr(wire_module, "FIRST_WAIT", 0.02)
    monkeypatch.setattr(wire_module, "IDLE", 0.0)  # the first server's thread would answer on
    with listening(Server(box)) as first:
        teacher = RemoteTeacher(first.url)
        before = teacher(images[:5])
        port = int(first.url.split("/")[2].split(":")[1])
    second = Server(box)
    start = threading.Timer(0.3, lambda: running.enter_context(listening(second, port)))
    with ExitStack() as running:
        start.start()
        after = teacher(images[:10])
        start.join()
    assert torch.equal(after[:5], before) and second.asked == 5


def test_without_its_extra_only_a_remote_teacher_is_missing():
    lines = (
        "import sys",
        "sys.modules['httpx2'] = None",
        "from sdb.distillation import distill",
        "from sdb.remote import RemoteTeacher",
        "RemoteTeacher('http://127.0.0.1:9/v2/models/box')",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert "MissingExtraError" in last and "httpx2" in last and "safe-distillation-box[remote]" in last


# --- tokens ----------------------------------------------------------------------------------------------------------


def test_the_token_is_sent_and_said_nowhere(server, images, caplog):
    caplog.set_level(logging.DEBUG)
    server.failures = [(403, {}, json.dumps({"error": f"bad token {TOKEN}"}).encode())]
    teacher = RemoteTeacher(server.url, token=TOKEN)
    with pytest.raises(RemoteError, match=r"bad token \.\.\..*teacher_token_env") as caught:
        teacher(images[:1])
    teacher(images[:1])
    assert [headers["Authorization"] for headers in server.headers] == [f"Bearer {TOKEN}"] * 3
    assert TOKEN not in f"{caught.value}{caplog.text}{teacher!r}{vars(teacher)}"


@pytest.mark.parametrize("token", ["two words", "line\r\nX-Evil: 1", "ключ"])
def test_a_token_that_is_none_is_refused_without_repeating_it(server, token):
    with pytest.raises(ConfigError) as caught:
        RemoteTeacher(server.url, token=token)
    assert token not in str(caught.value)


def test_an_empty_variable_is_no_token(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "")
    with pytest.raises(ConfigError, match="no such environment variable"):
        token_from("SOME_TOKEN")
    monkeypatch.setenv("SOME_TOKEN", TOKEN)
    assert token_from("SOME_TOKEN") == TOKEN and token_from(None) is None


def test_a_token_in_place_of_the_variable_s_name_is_not_repeated():
    with pytest.raises(ConfigError, match="give the name") as caught:
        token_from(TOKEN)
    assert TOKEN not in str(caught.value)


# --- addresses and parameters ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("http://127.0.0.1:8000/v2/models/box", (False, "127.0.0.1", 8000, "/v2/models/box")),
        ("http://host/v2/models/box/", (False, "host", 80, "/v2/models/box")),
        ("https://host/v2/models/a.b-c/versions/1", (True, "host", 443, "/v2/models/a.b-c/versions/1")),
        ("https://[::1]:9/under/v2/models/m", (True, "::1", 9, "/under/v2/models/m")),
    ],
)
def test_addresses(url, parts):
    address = Address.parse(url)
    assert (address.secure, address.host, address.port, address.path) == parts


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://anna:hunter2@host/v2/models/box", "teacher_token_env"),
        ("http://hunter2@host/v2/models/box", "teacher_token_env"),
        ("ftp://host/v2/models/hunter2", "http"),
        ("file:///v2/models/hunter2", "http"),
        ("/v2/models/hunter2", "http"),
        ("http:///v2/models/hunter2", "http"),
        ("http://host:99999/v2/models/hunter2", "no URL"),
        ("http://[::1/v2/models/hunter2", "no URL"),
        ("http://a..hunter2/v2/models/box", "no URL"),
        (f"http://{'hunter2' * 10}/v2/models/box", "no URL"),
        ("http://hünter2/v2/models/box", "no URL"),
        ("http://host:0/v2/models/hunter2", "no URL"),
        ("http://host/hunter2", "name a model"),
        ("http://host/v2/models/box/infer/hunter2", "name a model"),
        ("http://host/v2/models/box?token=hunter2", "query"),
        ("http://host/v2/models/box#hunter2", "fragment"),
        ("http://host/v2/models/a b\r\nX: hunter2", "name a model|no URL"),
    ],
)
def test_other_urls_are_refused_by_field_without_repeating_them(url, says):
    with pytest.raises(ConfigError, match=says) as caught:
        validate({"model_name": "net", "teacher_url": url}, "distill", "params.json")
    assert "teacher_url: " in str(caught.value) and "hunter2" not in str(caught.value)


URL = "http://host:1/v2/models/box"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "teacher_url: give a teacher or a teacher_url"),
        ({"teacher": "t", "teacher_url": URL}, "teacher_url: give a teacher or a teacher_url"),
        ({"teacher": "t", "teacher_token_env": "X"}, "teacher_token_env: goes with a teacher_url"),
        ({"teacher_url": URL, "teacher_model": "net"}, "leave teacher_model"),
        ({"teacher_url": URL, "views": 0}, "views"),
        ({"teacher_url": 3}, "teacher_url"),
    ],
)
def test_parameters_that_contradict_each_other_are_refused(values, says):
    with pytest.raises(ConfigError, match=says):
        validate({"model_name": "net"} | values, "distill", "params.json")


def test_one_teacher_is_enough():
    remote = validate({"model_name": "net", "teacher_url": URL + "/", "teacher_token_env": "X"}, "distill", "p")
    assert (remote.teacher, remote.teacher_url) == (None, URL)
    assert type(remote)(**json.loads(remote.model_dump_json())) == remote
    assert validate({"model_name": "net", "teacher": "t"}, "distill", "p").teacher_url is None


# --- distilling ------------------------------------------------------------------------------------------------------

QUICK = {"epochs": 3, "batch_size": 16, "learning_rate": 0.01}


@pytest.mark.parametrize("key", [None, KEY], ids=["thief", "partner"])
def test_a_remote_student_is_the_local_one(server, box, few, make_net, weights_of, key):
    # Answers come in batches of another size, so they differ by rounding; without batch norm and with plain steps
    # training makes little of that, and thief and partner differ by a thousand times as much.
    plain = DistillSettings(**QUICK, optimizer="sgd")
    students = [make_net(few, "mlp", seed=7) for _ in range(2)]
    distill(box, students[0], few, plain, key=key)
    distill(RemoteTeacher(server.url, key=key), students[1], few, plain)
    local, remote = map(weights_of, students)
    for name in local:
        torch.testing.assert_close(local[name], remote[name], rtol=0, atol=1e-5)


def test_without_augmentation_every_image_is_asked_once(server, few, make_net):
    teacher = RemoteTeacher(server.url)
    distill(teacher, make_net(few), few, DistillSettings(**QUICK, augment=False))
    assert server.asked == len(few.train) == 48
    assert teacher.counts == {"asked": 48, "from_cache": 96}


def test_fixed_views_bound_what_is_asked(server, few, make_net):
    longer = QUICK | {"epochs": 8}
    distill(RemoteTeacher(server.url), make_net(few), few, DistillSettings(**longer))
    free, server.seen = server.asked, []
    teacher = RemoteTeacher(server.url)
    distill(teacher, make_net(few), few, DistillSettings(**longer, views=2))
    assert 48 < server.asked <= 2 * 48 < free
    assert sum(teacher.counts.values()) == 8 * 48


def test_views_belong_to_images_and_come_in_turn(few):
    batches = Batches(few.train, 16, seed=3, shuffle=True, augment=few.augment)
    views = FixedViews(batches, 3)

    def epoch(number):
        parts = list(views.epoch(number))
        index, pixels = torch.cat([b.index for b in parts]), torch.cat([b.images for b in parts])
        assert all(torch.equal(b.labels, torch.from_numpy(few.train.labels[b.index])) for b in parts)
        return index, pixels[index.argsort()]

    orders, looks = zip(*(epoch(number) for number in range(6)), strict=True)
    for number in range(3):
        assert torch.equal(looks[number], looks[number + 3])
        assert not torch.equal(orders[number], orders[number + 3])
        assert not torch.equal(looks[number], looks[(number + 1) % 3])
    assert torch.equal(orders[1], torch.cat([b.index for b in batches.epoch(1)]))
    # The same views, whatever the batches or the number of processes.
    other = FixedViews(Batches(few.train, 24, seed=3, augment=few.augment, rank=1, world_size=2), 3)
    for batch in other.epoch(4):
        assert torch.equal(batch.images, looks[1][batch.index])


def test_views_are_shifted_images_and_plain_ones_stay_plain(few):
    plain = torch.from_numpy(few.train.images).float().div_(255)
    (without,) = FixedViews(Batches(few.train, 48, seed=3), 3).epoch(1)
    assert torch.equal(without.images, plain)
    (looked,) = FixedViews(Batches(few.train, 48, seed=3, augment=few.augment), 3).epoch(1)
    padded = torch.nn.functional.pad(plain, (1, 1, 1, 1))
    shifts = [padded[:, :, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    same = torch.stack([(looked.images == shift).flatten(1).all(1) for shift in shifts])
    assert same.any(0).all() and same.any(1).sum() > 5
