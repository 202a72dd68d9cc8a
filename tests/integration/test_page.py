"""The page at `/` of a real server, used in Debian's Chromium: by mouse, by keyboard, on a phone, in the dark."""

import base64
import io
import json
import subprocess
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("playwright.sync_api")

from playwright import sync_api

from sdb.box.box import Box
from sdb.config import WrapSettings
from sdb.keys import Key
from sdb.service.watch import Limits, TokenFile
from sdb.wrapping.wrap import wrap

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.skipif(not CHROMIUM.exists(), reason="no Chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def place(few, make_net, tmp_path_factory):
    """Boxes with an image key and with a weight key, their keys, and tokens with several policies."""
    folder = tmp_path_factory.mktemp("page")
    settings = WrapSettings(epochs=1, batch_size=16, learning_rate=0.01)
    for kind in ("image", "weight"):
        key = Key.generate(kind=kind, scope="St. Mary's", blend=0.7)
        key.save(folder / f"{kind}.key.json")
        wrap(make_net(few), few, settings, key=key).save(folder / f"{kind}.box")
    file = TokenFile(folder / "tokens.db", create=True)
    tokens = {
        "partner": file.add("partner", partner=Key.load(folder / "weight.key.json").id),
        "top_k": file.add("top_k", answers="top_k"),
        "probabilities": file.add("probabilities", answers="probabilities"),
        "labels": file.add("labels", answers="labels"),
        "poor": file.add("poor", limits=Limits(images_total=1)),
    }
    (folder / "tokens.json").write_text(json.dumps(tokens))
    return folder


@contextmanager
def process(sdb_command, box, *options):
    """A server, and its URL."""
    command, environment = sdb_command
    arguments = [*command, "serve", str(box), *map(str, options), "--port", "0"]
    with subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True) as server:
        line = server.stderr.readline()
        yield line.split(" (")[0].rsplit(" ", 1)[1] + "/"
        server.terminate()


@pytest.fixture(scope="module")
def image_server(place, sdb_command):
    with process(sdb_command, place / "image.box") as url:
        yield url


@pytest.fixture(scope="module")
def weight_server(place, sdb_command):
    options = "--tokens", place / "tokens.db", "--partner-keys", place / "weight.key.json"
    with process(sdb_command, place / "weight.box", *options) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """A function that opens the page; no visit may leave an error in the console or ask another server."""
    contexts, complaints, seen = [], [], []

    def go(url, **options):
        context = browser.new_context(**options)
        context.set_default_timeout(10_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: seen.append(request))
        page.goto(url)
        page.locator("#main").wait_for(state="visible")
        wait_for(page, "keyless")  # it opens on a sample
        page.requests = []
        page.on("request", lambda request: page.requests.append(request))
        return page

    yield go
    for context in contexts:
        context.close()
    failed = "Failed to load resource: the server responded with a status of"  # the browser's own words
    refusals = (f"{failed} 415", f"{failed} 429")  # no picture; too many questions
    assert [text for text in complaints if not text.startswith(refusals)] == []
    assert len({urlsplit(request.url).netloc for request in seen}) == 1


def bars(page, who):
    """The shares that the bars of a column show, by class; None where there is none."""
    script = f"""rows => rows.map(row => {{
        const bar = row.querySelector("td.{who} b");
        return bar && parseFloat(bar.style.width) / 100;
    }})"""
    return page.locator("#bars tr").evaluate_all(script)


def wait_for(page, who):
    page.locator(f"#bars[aria-busy=false] td.{who}.label").first.wait_for()


def wait_for_none(page, who):
    page.locator("#bars[aria-busy=false]").wait_for()
    page.locator(f"td.{who}.label").wait_for(state="detached")


def wait_for_picture(page, name):
    page.locator(f"#seen-keyless[aria-label^='{name}']").wait_for()
    wait_for(page, "keyless")


def softmax_of(module, images, temperature=1.0):
    with torch.no_grad():
        return torch.softmax(module(images) / temperature, dim=1)[0].numpy()


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"name": "digit.png", "mimeType": "image/png", "buffer": buffer.getvalue()}


def test_without_and_with_the_key_side_by_side(few, place, image_server, visit):
    page = visit(image_server)
    page.set_input_files("#file", png(few.test.images[3, 0]))
    wait_for(page, "keyless")
    box, key = Box.load(place / "image.box"), Key.load(place / "image.key.json")
    images = torch.from_numpy(few.test.images[3:4]).float() / 255
    expected = softmax_of(box, images)
    np.testing.assert_allclose(bars(page, "keyless"), expected, atol=1e-3)
    said = f"The model says {few.class_names[expected.argmax()]} ({100 * expected.max():.1f} %)."
    assert page.inner_text("#verdict") == said
    assert bars(page, "keyed") == [None] * 10

    page.set_input_files("#key-file", place / "image.key.json")
    wait_for(page, "keyed")
    for temperature in (1, 4.5, 20):
        page.fill("#temperature", str(temperature))
        np.testing.assert_allclose(bars(page, "keyless"), softmax_of(box, images, temperature), atol=1e-3)
        keyed = softmax_of(box, key.embed(images), temperature)
        np.testing.assert_allclose(bars(page, "keyed"), keyed, atol=1e-3)
        bits = -(keyed * np.log2(keyed)).sum()
        assert page.inner_text("#spread-keyed").startswith(f"{bits:.2f} bits: ")
        assert f"{2**bits:.1f} of 10 classes" in page.inner_text("#spread-keyed")
    assert key.id[:8] in page.inner_text("#key-status")

    page.click("#forget")
    wait_for_none(page, "keyed")
    assert bars(page, "keyed") == [None] * 10


def test_the_key_never_leaves_the_browser(place, image_server, visit):
    page = visit(image_server)
    with page.expect_response("**/infer"):  # else the sample may come after the key, and be asked with it
        page.click(".samples button >> nth=0")
    page.set_input_files("#key-file", place / "image.key.json")
    wait_for(page, "keyed")
    assert sum(request.url.endswith("/infer") for request in page.requests) == 3  # plain; plain and keyed
    secret = Key.load(place / "image.key.json").secret
    forms = {secret, secret.hex().encode(), secret[::-1], (place / "image.key.json").read_bytes()}
    for skip in range(3):  # base64 of the secret, wherever in a longer text it begins
        text = base64.b64encode(bytes(skip) + secret)[4 if skip else 0 : -4]
        forms |= {text, text.translate(bytes.maketrans(b"+/", b"-_"))}
    for request in page.requests:
        head = request.url + json.dumps(request.headers)
        sent = (head.encode() + (request.post_data_buffer or b"")).lower()
        assert not [form for form in forms if form.lower() in sent]
    stored = page.evaluate("[document.cookie, localStorage.length, sessionStorage.length]")
    assert stored == ["", 0, 0]


def test_a_token_shows_what_its_partner_gets(few, place, weight_server, visit):
    page = visit(weight_server)
    tokens = json.loads((place / "tokens.json").read_text())
    page.set_input_files("#file", png(few.test.images[0, 0]))
    page.set_input_files("#key-file", place / "weight.key.json")
    page.locator("#key-status", has_text="the server uses it, not this page").wait_for()
    page.fill("#token", tokens["partner"])
    page.press("#token", "Enter")
    wait_for(page, "keyed")
    box, images = Box.load(place / "weight.box"), torch.from_numpy(few.test.images[:1]).float() / 255
    np.testing.assert_allclose(bars(page, "keyless"), softmax_of(box, images), atol=1e-3)
    knowledge = softmax_of(box.unlock(Key.load(place / "weight.key.json")), images)
    np.testing.assert_allclose(bars(page, "keyed"), knowledge, atol=1e-3)
    with_token = [r for r in page.requests if "authorization" in r.headers]
    assert [r.headers["authorization"] for r in with_token] == [f"Bearer {tokens['partner']}"]
    assert page.evaluate("localStorage.length + document.cookie.length") == 0


def test_policies_are_shown_as_they_are(few, place, weight_server, visit):
    page = visit(weight_server)
    tokens = json.loads((place / "tokens.json").read_text())
    page.set_input_files("#file", png(few.test.images[0, 0]))
    wait_for(page, "keyless")

    def use(name):
        page.fill("#token", tokens[name])
        page.click("#token-form button")
        wait_for(page, "keyed")

    use("top_k")
    assert "The best 5 of 10 classes" in page.inner_text("#spread-keyed")
    given = [share for share in bars(page, "keyed") if share is not None]
    np.testing.assert_allclose(sorted(given), sorted(bars(page, "keyless"))[-5:], atol=1e-3)
    assert page.locator("td.keyed", has_text="not given").count() == 5
    use("labels")
    assert "The label and nothing else" in page.inner_text("#spread-keyed")
    assert bars(page, "keyed") == [None] * 10
    assert page.inner_text("td.keyed.label") == "label"
    page.fill("#temperature", "6")
    use("probabilities")
    assert "bits" in page.inner_text("#spread-keyed")
    np.testing.assert_allclose(bars(page, "keyed"), bars(page, "keyless"), atol=1e-3)


def test_a_refusal_is_told(few, place, weight_server, visit):
    page = visit(weight_server)
    page.set_input_files("#file", png(few.test.images[0, 0]))
    page.fill("#token", json.loads((place / "tokens.json").read_text())["poor"])
    page.press("#token", "Enter")
    wait_for(page, "keyed")
    page.check("#invert")
    page.locator("#error", has_text="The server refused (429)").wait_for()
    assert bars(page, "keyed") == [None] * 10
    assert None not in bars(page, "keyless")
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": b"no picture"})
    page.locator("#error", has_text="not a readable image").wait_for()


def test_by_keyboard_alone(few, place, image_server, visit):
    page = visit(image_server)

    def tab_to(selector):
        for _ in range(25):
            page.keyboard.press("Tab")
            if page.evaluate(f"document.activeElement.matches({selector!r})"):
                return
        raise AssertionError(f"{selector} is not reached")

    with page.expect_file_chooser() as chooser:
        tab_to("#file")
        page.keyboard.press("Enter")
    chooser.value.set_files(png(few.test.images[3, 0]))
    wait_for(page, "keyless")
    first = bars(page, "keyless")
    tab_to(".samples button:nth-child(2)")
    page.keyboard.press("Enter")
    wait_for_picture(page, "a sample")
    tab_to("#pad")
    assert page.locator("#pen").is_visible()
    for press in (" ", "ArrowUp", "ArrowUp", "ArrowRight", " "):
        page.keyboard.press(press)
    wait_for_picture(page, "your drawing")
    assert bars(page, "keyless") != first
    tab_to("#temperature")
    for _ in range(6):
        page.keyboard.press("ArrowRight")
    assert page.inner_text("#temperature-value") == "4"
    with page.expect_file_chooser() as chooser:
        tab_to("#key-file")
        page.keyboard.press("Enter")
    chooser.value.set_files(place / "image.key.json")
    wait_for(page, "keyed")
    tab_to("#forget")
    page.keyboard.press("Enter")
    wait_for_none(page, "keyed")
    assert page.evaluate("document.activeElement.id") == "key-file"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 900)])
def test_it_fits_and_can_be_read(place, image_server, visit, width, height, scheme):
    page = visit(image_server, viewport={"width": width, "height": height}, color_scheme=scheme)
    page.click(".samples button >> nth=3")
    page.set_input_files("#key-file", place / "image.key.json")
    wait_for(page, "keyed")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    script = """() => {
        const channels = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(value => {
            const share = value / 255;
            return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
        });
        const shares = [0.2126, 0.7152, 0.0722];
        const light = colour => channels(colour).reduce((sum, value, i) => sum + value * shares[i], 0);
        const paper = light(getComputedStyle(document.body).backgroundColor);
        const found = {};
        for (const node of document.querySelectorAll("h1, p, label, th, td, td span, small, a, button.link")) {
            if (!node.checkVisibility() || !node.textContent.trim()) continue;
            const ink = light(getComputedStyle(node).color);
            found[node.outerHTML.slice(0, 60)] =
                (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
        }
        return [paper, found];
    }"""
    paper, contrasts = page.evaluate(script)
    assert (paper < 0.1) == (scheme == "dark")
    assert len(contrasts) > 20
    assert {text: contrast for text, contrast in contrasts.items() if contrast < 4.5} == {}


def test_every_control_has_a_name(image_server, visit):
    page = visit(image_server)
    for role, names in {
        "button": ["Handwritten 0", "Wipe", "Use"],
        "slider": ["Temperature"],
        "checkbox": ["Invert light and dark, of any picture"],
        "columnheader": ["Without a key what a thief gets"],
        "rowheader": ["Sent", "7", "Spread"],
    }.items():
        for name in names:
            assert page.get_by_role(role, name=name, exact=True).count() == 1, (role, name)
    for label in ("Choose a picture", "Choose an image key file", "Or a partner's token"):
        assert page.get_by_label(label).count() == 1
