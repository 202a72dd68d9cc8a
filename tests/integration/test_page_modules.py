"""The page's modules in a real browser, beside Python: SHAKE-256, key files, fitted pictures."""

import base64
import hashlib
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("playwright.sync_api")

from playwright import sync_api

from sdb.keys import Key, Owner
from sdb.service.images import read_picture

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="no Chromium: apt-get install chromium")
STATIC = Path(__file__).parents[2] / "src" / "sdb" / "service" / "static"


class Quiet(SimpleHTTPRequestHandler):
    """The page's files, and no log."""

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def page():
    """A browser's page from which the modules can be imported."""
    with (
        ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=STATIC)) as server,
        sync_api.sync_playwright() as playwright,
    ):
        threading.Thread(target=server.serve_forever).start()
        try:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page()
            page.goto(f"http://127.0.0.1:{server.server_port}/digit-0.png")
            yield page
            browser.close()
        finally:
            server.shutdown()


def test_shake_is_that_of_python(page):
    cases = [(0, 1), (1, 64), (135, 136), (136, 137), (137, 272), (32, 3 * 32 * 32), (500, 1000)]
    script = """async cases => {
        const { shake256 } = await import("/shake.js");
        return cases.map(([size, length]) =>
            Array.from(shake256(Uint8Array.from({ length: size }, (_, i) => (7 * i + 3) % 256), length)));
    }"""
    for (size, length), found in zip(cases, page.evaluate(script, cases), strict=True):
        message = bytes((7 * i + 3) % 256 for i in range(size))
        assert bytes(found) == hashlib.shake_256(message).digest(length)


def read_keys(page, texts, shape):
    """What keys.js makes of key files: id and pattern, or its message."""
    script = """async ([texts, shape]) => {
        const { readKey } = await import("/keys.js");
        const found = [];
        for (const text of texts) {
            try {
                const { id, pattern } = await readKey(new Blob([text]), shape);
                found.push([id, pattern && Array.from(pattern)]);
            } catch (error) {
                found.push(error.message);
            }
        }
        return found;
    }"""
    return page.evaluate(script, [texts, shape])


def test_keys_are_read_as_python_reads_them(tmp_path, page):
    blends = [0.9, 0.5, 1.0, 0.1 + 0.2, 1 / 3, 0.001, 1e-4, 0.0000123, 1e-7, 5e-324]
    keys = [Key.generate("image", blend=blend, scope="Zoë ☂") for blend in blends] + [Key.generate()]
    texts = []
    for number, key in enumerate(keys):
        key.save(tmp_path / str(number))
        texts.append((tmp_path / str(number)).read_text())
    for shape in ((3, 32, 32), (1, 5, 7)):
        for key, (key_id, pattern) in zip(keys, read_keys(page, texts, shape), strict=True):
            assert key_id == key.id
            if key.kind == "image":
                np.testing.assert_array_equal(np.array(pattern).reshape(shape), key.pattern(shape))
            else:
                assert pattern is None


def test_files_that_are_no_key_are_refused(tmp_path, monkeypatch, page):
    monkeypatch.setenv("SDB_SCRYPT_LOG_N", "4")
    key = Key.generate("image")
    key.save(tmp_path / "plain")
    key.save(tmp_path / "sealed", passphrase="x")
    Owner.generate().save(tmp_path / "owner")
    sound = json.loads((tmp_path / "plain").read_text())
    damaged = "This is not an sdb key file"
    cases = {
        (tmp_path / "owner").read_text(): "This is an owner's secret",
        (tmp_path / "sealed").read_text(): "This key file is encrypted",
        json.dumps(sound | {"blend": 0.8}): "The key file was altered",
        json.dumps(sound | {"scope": "you"}): "The key file was altered",
        json.dumps(sound | {"secret": sound["secret"][2:]}): damaged,
        json.dumps(sound | {"secret": 7}): damaged,
        json.dumps(sound | {"blend": 0}): damaged,
        json.dumps(sound | {"kind": "door"}): damaged,
        json.dumps(sound | {"sdb_key": 2}): "This page reads key files of version 1 only",
        json.dumps(sound) + " " * 70_000: damaged,
        "[]": damaged,
        "null": damaged,
        "{": damaged,
    }
    found = read_keys(page, list(cases), (1, 8, 8))
    for message, expected in zip(found, cases.values(), strict=True):
        assert message.startswith(expected)
        assert sound["secret"][:8] not in message


def test_a_drawing_is_a_file_that_python_reads(page):
    script = """async () => {
        const { contextOf, fileOf } = await import("/pictures.js");
        const canvas = document.createElement("canvas");
        Object.assign(canvas, { width: 3, height: 2 });
        const context = contextOf(canvas);
        context.fillStyle = "rgb(10, 20, 30)";
        context.fillRect(0, 0, 3, 2);
        const bytes = new Uint8Array(await (await fileOf(canvas)).arrayBuffer());
        return btoa(String.fromCharCode(...bytes));
    }"""
    pixels, changes = read_picture(base64.b64decode(page.evaluate(script)), (3, 2, 3))
    np.testing.assert_allclose(
        pixels, np.broadcast_to(np.array([10, 20, 30]).reshape(1, 3, 1, 1) / 255, (1, 3, 2, 3))
    )
    assert changes in ([], ["converted from RGBA to colour"])


def test_pixels_are_those_that_the_server_gives(page):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 5), np.uint8)
    answer = {
        "shape": [3, 4, 5],
        "pixels": base64.b64encode(pixels.tobytes()).decode(),
        "changes": ["turned left"],
    }
    page.route("**/pixels", lambda route: route.fulfill(json=answer))
    script = """async () => {
        const { fit } = await import("/protocol.js");
        const { pixels, changes } = await fit(new Blob(["a picture"]));
        return [Array.from(pixels), changes];
    }"""
    found, changes = page.evaluate(script)
    np.testing.assert_array_equal(np.array(found, np.float32).reshape(3, 4, 5), pixels.astype(np.float32) / 255)
    assert changes == ["turned left"]


def test_the_package_holds_every_file_of_the_page():
    """`service/static/*` in pyproject.toml takes files, not folders; and the page names no file that is missing."""
    assert all(path.is_file() for path in STATIC.iterdir())
    text = "".join(path.read_text() for path in STATIC.iterdir() if path.suffix in (".html", ".js"))
    for file in STATIC.iterdir():
        assert file.name in text or file.name in ("index.html",) or file.name.startswith("digit-")


def test_levels_are_said_from_the_surest(page):
    script = """async levels => (await import("/levels.js")).levelsInWords(levels)"""
    sure = {"images": 260, "accuracy": 0.996, "low": 0.979, "high": 0.9999}
    less = {"images": 40, "accuracy": 0.7, "low": 0.535, "high": 0.834}
    assert page.evaluate(script, []) == ""
    one = page.evaluate(script, [sure])
    assert "one honest confidence" in one
    assert "99.6 % of 260 were right (95 % interval 97.9 % to 100.0 %)" in one
    two = page.evaluate(script, [less, sure])
    assert "one of 2 levels" in two
    assert two.index("of the surest answers, 99.6 %") < two.index("of the least sure answers, 70.0 %")
