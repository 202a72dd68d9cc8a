"""The application, asked without a socket: protocol, policies, partners, pages, metrics, and clean refusals."""

import asyncio
import gzip
import io
import json
import logging
import re
from dataclasses import asdict, dataclass

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("fastapi")

from sdb.box.box import Box
from sdb.config import WrapSettings
from sdb.errors import CheckpointError, ConfigError, KeyFileError
from sdb.keys import Key
from sdb.runs.folder import RunFolder
from sdb.service import create_app
from sdb.service.limits import RequestLimits
from sdb.service.watch import Limits as Allowed
from sdb.service.watch import LimitSet, TokenFile, Watch
from sdb.wrapping.wrap import wrap

INFER = "/v2/models/box/infer"
BINARY = {"parameters": {"binary_data_output": True}}


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    def tensor(self, name="logits"):
        entry = next(entry for entry in self.json["outputs"] if entry["name"] == name)
        return np.array(entry["data"], np.float32).reshape(entry["shape"])


def ask(app, path, body=b"", method=None, **headers):
    """One request straight into an ASGI application; headers by name, `_` for `-`."""
    parts = [{"type": "http.request", "body": body, "more_body": False}]
    sent = []

    async def receive():
        return parts.pop() if parts else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method or ("POST" if body else "GET"),
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(k.replace("_", "-").lower().encode(), v.encode("latin-1")) for k, v in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    asyncio.run(app(scope, receive, send))
    start, *bodies = sent
    return Answer(
        start["status"],
        {name.decode(): value.decode() for name, value in start["headers"]},
        b"".join(message.get("body", b"") for message in bodies),
    )


def question(images, **more):
    tensor = {"name": "image", "shape": list(images.shape), "datatype": "FP32", "data": images.ravel().tolist()}
    return json.dumps({"inputs": [tensor], **more}).encode()


@pytest.fixture(scope="module")
def key():
    return Key.generate()


@pytest.fixture(scope="module")
def box(few, make_net, key):
    box = wrap(make_net(few), few, WrapSettings(epochs=1, batch_size=16, learning_rate=0.01), key=key)
    assert box.rows is not None
    return box


@pytest.fixture(scope="module")
def app(box):
    return create_app(box, limits=RequestLimits(max_batch=16, max_queue=32), allowed_hosts=())


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((3, 1, 8, 8), dtype=np.float32)


@pytest.fixture(scope="module")
def keyless(box, images):
    with torch.no_grad():
        return box(torch.from_numpy(images)).numpy()


@pytest.fixture(scope="module")
def keyed(box, images, key):
    with torch.no_grad():
        return box.unlock(key)(torch.from_numpy(images)).numpy()


def test_health_and_metadata(app, box):
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/box/ready", "/v2/models/box/versions/1/ready"):
        assert ask(app, path).status == 200
    assert ask(app, "/v2").json["extensions"] == ["binary_tensor_data"]
    assert ask(app, "/v2/health/live").json == {"live": True}
    assert ask(app, "/v2/health/ready").json == {"live": True, "ready": True}
    said = ask(app, "/v2/models/box").json
    assert said == ask(app, "/v2/models/box/versions/1").json
    assert said["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    assert said["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}]
    assert said["parameters"]["class_names"] == list(box.info.class_names)
    assert said["parameters"]["max_images"] == 16
    assert said["parameters"]["box_id"] == box.info.id
    confidence, measured = said["parameters"]["confidence"], box.info.measured
    assert confidence["levels"] == [asdict(level) for level in box.info.levels]
    assert (confidence["bits"], confidence["brier"]) == (measured["bits"], measured["keyless_brier"])


def test_the_answers_are_the_boxes(app, images, keyless):
    np.testing.assert_allclose(ask(app, INFER, question(images)).tensor(), keyless, atol=1e-5)
    packed = ask(app, INFER, gzip.compress(question(images)), content_encoding="gzip")
    np.testing.assert_allclose(packed.tensor(), keyless, atol=1e-5)


def test_image_keys_need_no_key_in_the_server(few, make_net, images):
    key = Key(bytes(range(32)), blend=0.5)
    box = wrap(
        make_net(few), few, WrapSettings(method="sdb", epochs=1, batch_size=16, learning_rate=0.01), key=key
    )
    app = create_app(box)
    keyed = key.embed(torch.from_numpy(images))
    with torch.no_grad():
        expected = box.unlock(key)(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(ask(app, INFER, question(keyed.numpy())).tensor(), expected, atol=1e-4)


@pytest.mark.parametrize("policy", ["probabilities", "top_k", "labels"])
def test_policies(box, images, keyless, policy):
    app = create_app(box, answers=policy)
    said = ask(app, "/v2/models/box").json
    answer = ask(app, INFER, question(images)).json
    assert [entry["name"] for entry in answer["outputs"]] == [entry["name"] for entry in said["outputs"]]
    assert said["parameters"]["answers"] == policy
    refused = ask(app, INFER, question(images, outputs=[{"name": "logits"}]))
    assert refused.status == 400
    assert policy in refused.json["error"]
    # Nor does a picture say more than the policy.
    picture = ask(app, "/predict", png()).json
    assert ("top" in picture) == (policy != "labels")


def png():
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), "red").save(buffer, "PNG")
    return buffer.getvalue()


def test_a_picture(app, box):
    answer = ask(app, "/predict", png()).json
    assert answer["class_name"] == box.info.class_names[answer["class"]]
    assert answer["top"][0]["class"] == answer["class"]
    assert len(answer["top"]) == 5
    assert answer["changes"] == [
        "converted from RGB to grey",
        "cropped from 20x10 to the middle 10x10",
        "resized from 10x10 to 8x8",
    ]


@pytest.fixture(scope="module")
def guarded(box, key, tmp_path_factory):
    """An application with tokens: of a partner, of a guest who gets labels, and of a partner of another box."""
    place = tmp_path_factory.mktemp("guarded")
    key.save(place / "partner.key")
    file = TokenFile(place / "tokens.db", create=True)
    tokens = {
        "partner": file.add("partner", partner=key.id),
        "guest": file.add("guest", answers="labels"),
        "stranger": file.add("stranger", partner="0" * 32),
        "poor": file.add("poor", limits=Allowed(images_total=4)),
        "late": file.add("late", partner=key.id, lasts=-1.0),
    }
    free = Allowed()
    watch = Watch.open(tokens=place / "tokens.db", limits=LimitSet(free, free, free, free))
    yield create_app(box, partner_keys=[place / "partner.key"], watch=watch), tokens
    watch.close()


def test_a_partners_token_gets_knowledge(guarded, images, keyed, keyless):
    app, tokens = guarded
    answer = ask(app, INFER, question(images), authorization=f"Bearer {tokens['partner']}")
    np.testing.assert_allclose(answer.tensor(), keyed, atol=1e-5)
    assert np.abs(keyed - keyless).max() > 1e-2


@pytest.mark.parametrize(
    "credentials",
    ["", "Bearer", "Bearer ", "Bearer wrong", "Bearer {partner}x", "Basic {partner}", "{partner}", "Bearer {stranger}",
     "Bearer \xff\x80"],
)  # fmt: skip
def test_everybody_else_gets_the_keyless_answer_in_the_same_form(guarded, images, keyless, credentials):
    app, tokens = guarded
    known = ask(app, INFER, question(images), authorization=f"Bearer {tokens['partner']}")
    answer = ask(app, INFER, question(images), authorization=credentials.format(**tokens))
    np.testing.assert_allclose(answer.tensor(), keyless, atol=1e-5)
    assert answer.status == known.status
    assert answer.headers.keys() == known.headers.keys()
    assert answer.json.keys() == known.json.keys()
    assert len(answer.body) == len(known.body)


def test_an_expired_token_is_told_so_everywhere_and_gets_nothing(guarded, images):
    app, tokens = guarded
    late = f"Bearer {tokens['late']}"
    for path, body in ((INFER, question(images)), ("/predict", png()), ("/v2/models/box", b"")):
        answer = ask(app, path, body, authorization=late)
        assert answer.status == 401 and list(answer.json) == ["error"]
        assert "expired on" in answer.json["error"] and tokens["late"] not in answer.json["error"]
        assert answer.headers["www-authenticate"].startswith("Bearer")


def test_partners_networks_are_of_the_same_make(guarded):
    """The same layers, so the same time; which one answers is looked up in a dictionary."""
    app, _ = guarded
    variants = app.state.service.model.variants
    keyless, keyed = (variant.__closure__ for variant in variants.values())
    layers = [
        [
            (name.removeprefix("classifier."), tuple(tensor.shape))
            for name, tensor in cell.cell_contents.state_dict().items()
            if not name.startswith("rows.")  # that a keyless answer is looked up in
        ]
        for closure in (keyless, keyed)
        for cell in closure
        if isinstance(cell.cell_contents, torch.nn.Module)
    ]
    assert layers[0] == layers[1]


def test_a_principals_own_policy_and_budget(guarded, images):
    app, tokens = guarded
    guest, poor = (f"Bearer {tokens[name]}" for name in ("guest", "poor"))
    assert ask(app, "/v2/models/box", authorization=guest).json["outputs"][0]["name"] == "labels"
    assert ask(app, INFER, question(images), authorization=guest).json["outputs"][0]["name"] == "labels"
    assert ask(app, INFER, question(images), authorization=poor).status == 200
    spent = ask(app, INFER, question(images), authorization=poor)
    assert spent.status == 429
    assert int(spent.headers["retry-after"]) >= 1
    assert "error" in spent.json
    text = ask(app, "/metrics").body.decode()
    assert "sdb_watch_requests_refused 1.0" in text
    # What the watch noticed, or missed, is not for whoever asks.
    assert not re.search("alerts|not_observed|detector", text)


def test_nothing_secret_is_logged(guarded, images, caplog):
    app, tokens = guarded
    with caplog.at_level(logging.DEBUG):
        ask(app, INFER, question(images), authorization=f"Bearer {tokens['partner']}")
        ask(app, INFER, b"{", authorization=f"Bearer {tokens['partner']}")
    assert tokens["partner"] not in caplog.text


def test_a_bug_stays_inside(box, images, caplog):
    app = create_app(box)

    def broken(images):
        raise ArithmeticError("secret detail")

    app.state.service.batcher.variants = {"": broken}
    answer = ask(app, INFER, question(images))
    assert (answer.status, answer.json) == (500, {"error": "internal error; it was logged"})
    assert "secret detail" in caplog.text
    app.state.service.batcher.variants = {"": lambda images: np.full((len(images), 10), np.nan, np.float32)}
    assert ask(app, INFER, question(images)).status == 500


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [
        ("/nothing", "GET", 404),
        ("/v2/models/other", "GET", 404),
        ("/v2/models/other/infer", "POST", 404),
        ("/v2/models/box/versions/2", "GET", 404),
        ("/v2/models/box/versions/2/infer", "POST", 404),
        ("/v2/models/../../etc/passwd", "GET", 404),
        (INFER, "GET", 405),
        ("/v2", "DELETE", 405),
        (INFER, "POST", 400),
        ("/predict", "POST", 415),
        ("/v2/health/live?" + "x" * 40_000, "GET", 431),
    ],
)
def test_every_refusal_is_json(app, path, method, status):
    answer = ask(app, path, method=method)
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json) == ["error"]
    assert isinstance(answer.json["error"], str)


def test_large_heads_and_bodies(app, images):
    assert ask(app, INFER, question(images), x_padding="x" * 40_000).status == 431
    most = app.state.service.max_body
    large = ask(app, INFER, bytes(most + 1))
    assert large.status == 413
    assert large.headers["connection"] == "close"
    assert ask(app, INFER, gzip.compress(bytes(most + 1)), content_encoding="gzip").status == 413
    assert ask(app, INFER, b"x", content_encoding="br").status == 415
    assert app.state.service.intake.held == 0


def test_pages_come_from_here_alone(app):
    docs = ask(app, "/docs")
    assert docs.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in docs.headers["content-security-policy"]
    assert "<script" not in docs.body.decode()
    assert not re.search(r"(src|href)=.https?:", docs.body.decode())
    assert INFER.replace("box", "{name}") in docs.body.decode()
    schema = ask(app, "/openapi.json").json
    assert {"/predict", "/metrics", "/v2", "/v2/models/{name}/infer"} <= schema["paths"].keys()
    for path, entries in schema["paths"].items():
        for entry in entries.values():
            named = [each["name"] for each in entry.get("parameters", []) if each["in"] == "path"]
            assert named == re.findall(r"{(\w+)}", path)


def test_the_page_is_its_files_and_nothing_else(box, tmp_path, monkeypatch):
    from sdb.service import pages

    page = tmp_path / "page"
    (page / "more").mkdir(parents=True)
    (page / "index.html").write_text("<p>page")
    (page / "more" / "a.js").write_text("1")
    (tmp_path / "secret").write_text("secret")
    monkeypatch.setattr(pages, "STATIC", page)
    app = create_app(box)
    for path, kind in (("/", "text/html"), ("/more/a.js", "text/javascript")):
        answer = ask(app, path)
        assert answer.status == 200
        assert answer.headers["content-type"].startswith(kind)
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    for path in ("/../secret", "/more/../../secret", "/more", "//etc/passwd", "/index.html/.."):
        assert ask(app, path).status == 404
    assert ask(app, "/", method="POST").status == 405
    assert ask(app, INFER, method="GET").status == 405


def test_metrics_count(box, images):
    app = create_app(box)
    ask(app, INFER, question(images))
    ask(app, "/v2/models/other")
    ask(app, INFER, b"{")
    ask(app, "/secret-path")
    text = ask(app, "/metrics").body.decode()
    for line in (
        'sdb_requests_total{route="/v2/models/{name}/infer",status="200"} 1.0',
        'sdb_requests_total{route="/v2/models/{name}/infer",status="400"} 1.0',
        'sdb_requests_total{route="/v2/models/{name}",status="404"} 1.0',
        'sdb_requests_total{route="other",status="404"} 1.0',
        'sdb_refused_total{reason="bad"} 2.0',
        "sdb_images_total 3.0",
        "sdb_batch_images_count 1.0",
        "sdb_batch_images_sum 3.0",
        "sdb_queue_images 0.0",
    ):
        assert line in text.splitlines()
    assert "secret-path" not in text


def test_another_application_can_mount_it(app, images, keyless):
    from starlette.applications import Starlette
    from starlette.routing import Mount

    outer = Starlette(routes=[Mount("/models", app)])
    np.testing.assert_allclose(ask(outer, "/models" + INFER, question(images)).tensor(), keyless, atol=1e-5)
    assert ask(outer, "/models/nothing").json == {"error": "Not Found"}


def test_a_checkpoint_is_served_too(few, make_net, images):
    net = make_net(few)
    app = create_app(net)
    with torch.no_grad():
        expected = net(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(ask(app, INFER, question(images)).tensor(), expected, atol=1e-5)


def test_a_run_folder_that_holds_a_box_is_that_box(few, make_net, key, images, tmp_path):
    """And never the network beside it, which gives what the box's fixed answers keep."""
    recipe = WrapSettings(epochs=1, batch_size=16, learning_rate=0.01)
    wrap(make_net(few), few, recipe, key=key, run=RunFolder(tmp_path, {}, resume=False)).save(tmp_path / "box")
    assert (tmp_path / "last.safetensors").is_file()
    box = Box.load(tmp_path / "box")
    assert box.rows is not None
    with torch.no_grad():
        expected, own = box(torch.from_numpy(images)).numpy(), box.classifier(torch.from_numpy(images)).numpy()
    given = ask(create_app(tmp_path), INFER, question(images)).tensor()
    np.testing.assert_allclose(given, expected, atol=1e-5)
    assert np.abs(given - own).max() > 1e-2


def test_what_does_not_fit_is_said_at_the_start(box, few, make_net, key, tmp_path):
    key.save(tmp_path / "partner.key")
    Key.generate().save(tmp_path / "other.key")
    with pytest.raises(ConfigError, match="URL"):
        create_app(box, name="a/b")
    with pytest.raises(ConfigError, match="top_k"):
        create_app(box, answers="all")
    with pytest.raises(ConfigError, match="weight-key"):
        create_app(make_net(few), partner_keys=[tmp_path / "partner.key"])
    with pytest.raises(KeyFileError, match="another box"):
        create_app(box, partner_keys=[tmp_path / "other.key"])
    with pytest.raises(CheckpointError):
        create_app(tmp_path / "missing")


# Near-valid requests: the right keys with anything under them.
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
PARAMETERS = st.dictionaries(
    st.sampled_from(["binary_data_size", "binary_data", "binary_data_output", "classification", "x"]), ANYTHING
)
TENSOR = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("image") | ANYTHING,
        "shape": st.just([1, 1, 8, 8]) | st.lists(st.integers(-1, 70), max_size=5) | ANYTHING,
        "datatype": st.sampled_from(["FP32", "UINT8", "FP16", "BYTES"]) | ANYTHING,
        "data": st.just([0.5] * 64) | st.lists(st.floats(), max_size=70) | ANYTHING,
        "parameters": PARAMETERS | ANYTHING,
    },
)
REQUEST = st.fixed_dictionaries(
    {},
    optional={
        "id": st.text() | ANYTHING,
        "inputs": st.lists(TENSOR, max_size=2) | ANYTHING,
        "outputs": st.lists(st.fixed_dictionaries({}, optional={"name": ANYTHING, "parameters": PARAMETERS}))
        | ANYTHING,
        "parameters": PARAMETERS | ANYTHING,
    },
)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "inference_header_content_length": st.integers(-2, 400).map(str) | st.text("0123456789abc-. ", max_size=8),
        "content_encoding": st.sampled_from(["gzip", "deflate", "identity", "br", "", "gzip, gzip"]),
        "content_length": st.text("0123456789-x", max_size=12),
        "content_type": st.sampled_from(
            ["application/json", "multipart/form-data", "multipart/form-data; boundary=x", "image/png", ";;=", ""]
        ),
        "accept_encoding": st.sampled_from(["gzip", "deflate", "*", "gzip;q=", ""]),
        "authorization": st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=20),
        "expect": st.just("100-continue"),
        "origin": st.sampled_from(["null", "http://[", "://"]) | st.text("htp:/.[]x", max_size=12),
        "sec_fetch_site": st.sampled_from(["cross-site", "none", "x"]),
        "host": st.text("abc.:[]@%1", max_size=12),
    },
)
PATHS = st.sampled_from(
    [
        INFER,
        INFER,
        "/predict",
        "/v2/models/box",
        "/v2/models/box/versions/1/infer",
        "/v2/repository/index",
        "/metrics",
    ]
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=PATHS,
    method=st.sampled_from(["POST", "POST", "POST", "GET", "PUT"]),
    body=REQUEST.map(lambda value: json.dumps(value).encode())
    | st.tuples(REQUEST.map(lambda value: json.dumps(value).encode()), st.binary(max_size=300)).map(b"".join)
    | st.binary(max_size=200),
    packed=st.booleans(),
    headers=HEADERS,
)
def test_no_input_breaks_the_server(app, path, method, body, packed, headers):
    if packed:
        body = gzip.compress(body)
    answer = ask(app, path, body, method, **headers)
    assert answer.status in (200, 400, 403, 404, 405, 408, 413, 415, 421)
    if answer.status != 200:
        assert list(answer.json) == ["error"]
    assert "Traceback" not in answer.body.decode("latin-1")
    service = app.state.service
    assert (service.intake.held, service.batcher.waiting) == (0, 0)
