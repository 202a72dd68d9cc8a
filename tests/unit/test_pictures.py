"""Training and serving see the same picture: what a data set holds is what /predict asks the model, pixel for pixel."""

import asyncio
import base64
import io
import json
import struct
import zlib
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("fastapi")

from sdb.config import Pictures
from sdb.data import load, pictures
from sdb.data.listing import Listing
from sdb.data.pixels import decode
from sdb.data.streamed import Streamed
from sdb.errors import DataError
from sdb.service.app import build_app
from sdb.service.limits import RequestLimits
from sdb.service.model import Model

RNG = np.random.default_rng(5)
OTHER = Pictures(background="#204060", fit="stretch", turn=False, filter="bilinear")
CHOICES = st.builds(
    Pictures,
    background=st.sampled_from(["#ffffff", "#000000", "#204060"]),
    fit=st.sampled_from(["crop", "stretch"]),
    turn=st.booleans(),
    filter=st.sampled_from(["bicubic", "bilinear"]),
)
# What NumPy does to an array (H, W, C) that is shown as an orientation says; Pillow has no part in it.
SHOWN = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


class Server:
    """A real application around a network that keeps the pixels that it is asked about."""

    def __init__(self, shape, choices):
        self.asked = []
        self.app = build_app(
            Model("box", shape, ("a", "b"), {"": self.forward}, "test", pictures=choices),
            watch=None,
            answers="logits",
            limits=RequestLimits(),
        )

    def forward(self, images):
        self.asked.append(images)
        return np.zeros((len(images), 2), np.float32)

    def post(self, path, body):
        """Status and JSON of the answer."""
        received, sent = [{"type": "http.request", "body": body}], []
        scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST"}
        scope |= {"scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": ""}
        scope |= {"headers": [(b"host", b"127.0.0.1")], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80)}

        async def receive():
            return received.pop()

        async def send(message):
            sent.append(message)

        asyncio.run(self.app(scope, receive, send))
        return sent[0]["status"], json.loads(sent[1]["body"])

    def predict(self, body):
        """Pixels uint8 (C, H, W) that the network was asked about, and what is said to have been changed."""
        status, answer = self.post("/predict", body)
        assert status == 200, answer
        pixels = self.asked.pop()[0] * 255
        assert np.abs(pixels - pixels.round()).max() < 1e-4
        return pixels.round().astype(np.uint8), answer["changes"]


def encoded(image, kind="PNG", orientation=1, **options):
    if orientation != 1:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif.tobytes()
    if kind == "JPEG":
        options = {"quality": 95} | options
    if kind == "WEBP":
        options = {"lossless": True} | options
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(mode, size):
    """A picture of random pixels; those of modes with transparency are half transparent."""
    width, height = size
    if mode == "I;16":
        return Image.fromarray(RNG.integers(0, 2**16, (height, width), dtype=np.uint16))
    colours = RNG.integers(0, 256, (height, width, 4), dtype=np.uint8)
    colours[..., 3] *= RNG.integers(0, 2, (height, width), dtype=np.uint8)
    return Image.fromarray(colours, "RGBA").convert(mode)


def options_of(mode, kind):
    """P, L and RGB with a colour that is transparent, where the format has that."""
    clear = {"P": 0, "L": 128, "RGB": (1, 2, 3), "I;16": 300}.get(mode)
    return {"transparency": clear} if kind == "PNG" and clear is not None else {}


# What a service takes: each mode in a format that holds it.
GREY = [("1", "PNG"), ("L", "PNG"), ("LA", "PNG"), ("I;16", "PNG"), ("L", "JPEG"), ("L", "BMP")]
COLOURED = [("P", "PNG"), ("P", "GIF"), ("RGB", "PNG"), ("RGB", "JPEG"), ("RGB", "WEBP"), ("RGB", "BMP")]
COLOURED += [("RGBA", "PNG"), ("RGBA", "WEBP"), ("CMYK", "JPEG")]
SIZES = [(12, 12), (40, 12), (7, 9), (61, 130)]


@pytest.mark.parametrize("choices", [Pictures(), OTHER], ids=["default", "other"])
@pytest.mark.parametrize(("channels", "kinds"), [(1, GREY), (3, GREY + COLOURED)], ids=["grey", "colour"])
def test_a_folder_holds_what_predict_asks(tmp_path, monkeypatch, channels, kinds, choices):
    monkeypatch.setattr("sdb.data.pixels.PEEK", 10_000)
    for number, ((mode, kind), orientation) in enumerate(product(kinds, range(1, 9))):
        image = noise(mode, SIZES[number % len(SIZES)])
        data = encoded(image, kind, orientation if kind not in ("GIF", "BMP") else 1, **options_of(mode, kind))
        for place in ("train/a", "train/b", "test/a"):
            folder = tmp_path / "set" / place
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:03}.{kind.lower()}").write_bytes(data)
    files = sorted((tmp_path / "set/test/a").iterdir())
    server = Server((channels, 12, 12), choices)
    served = [server.predict(file.read_bytes()) for file in files]
    for stream in (False, True):
        options = {"cache": tmp_path / "cache", "image_size": 12, "stream": stream, "pictures": choices}
        data = load("folder", root=tmp_path / "set", **options)
        assert data.image_shape == (channels, 12, 12)
        assert data.pictures == choices
        np.testing.assert_array_equal(np.stack([pixels for pixels, _ in served]), data.test.images[:])
    for file, (pixels, changes) in zip(files, served, strict=True):
        status, answer = server.post("/pixels", file.read_bytes())
        assert (status, answer["changes"]) == (200, changes)
        shown = np.frombuffer(base64.b64decode(answer["pixels"]), np.uint8).reshape(answer["shape"])
        np.testing.assert_array_equal(shown, pixels)
    assert not server.asked


def test_other_choices_are_other_entries_of_the_cache(tmp_path):
    for place in ("train/a", "train/b", "test/a"):
        folder = tmp_path / "set" / place
        folder.mkdir(parents=True)
        for number in range(4):
            (folder / f"{number}.png").write_bytes(encoded(noise("RGBA", (20, 18)), orientation=6))
    variants = [Pictures(), Pictures(background="#000000"), Pictures(fit="stretch"), Pictures(turn=False)]
    variants.append(Pictures(filter="bilinear"))
    options = {"root": tmp_path / "set", "cache": tmp_path / "cache", "image_size": 12}
    sets = [load("folder", pictures=choices, **options) for choices in variants]
    assert len({data.test.images[:].tobytes() for data in sets}) == len(variants)
    stamps = {load("folder", pictures=c, stream=True, **options).mean for c in variants}
    assert len(stamps) == len(variants)


@settings(deadline=None)
@given(
    st.sampled_from(GREY + COLOURED),
    st.integers(1, 8),
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.sampled_from([1, 3]),
    st.booleans(),
    CHOICES,
)
def test_changes_say_what_was_done_and_nothing_else(form, orientation, size, target, channels, fits, choices):
    (mode, kind), turnable = form, form[1] not in ("GIF", "BMP")
    image = noise(mode, size)
    data = encoded(image, kind, orientation if turnable else 1, **options_of(mode, kind))
    turned = choices.turn and turnable and orientation != 1
    width, height = size[::-1] if turned and orientation > 4 else size
    target = (width, height) if fits else target
    pixels, changes = Server((channels, target[1], target[0]), choices).predict(data)
    said = " / ".join(changes)

    with Image.open(io.BytesIO(data)) as opened:
        plain = opened.convert("RGBA") if opened.mode != "I;16" else None
    assert ("EXIF" in said) == turned
    assert ("mirrored" in said) == (turned and orientation in (2, 4, 5, 7))
    w, h = target
    kept = (width, height)
    if choices.fit == "crop" and width * h > height * w:
        kept = max(1, round(height * w / h)), height
    elif choices.fit == "crop":
        kept = width, max(1, round(width * h / w))
    assert ("cropped" in said) == (kept != (width, height))
    assert ("resized" in said) == (kept != target)
    assert ("16 to 8" in said) == (mode == "I;16")
    if plain is None:
        return
    clear = np.asarray(plain)[..., 3:] / 255
    assert ("transparency" in said) == bool((clear < 1).any())
    if "cropped" in said or "resized" in said or channels == 1:
        return
    # Nothing was scaled: the pixels follow by arithmetic.
    ground = np.array([int(choices.background[at : at + 2], 16) for at in (1, 3, 5)])
    expected = np.asarray(plain)[..., :3] * clear + ground * (1 - clear)
    if turned:
        expected = SHOWN[orientation](expected)
    np.testing.assert_allclose(pixels.transpose(1, 2, 0), expected, atol=1.0)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(*extra):
    raw = encoded(Image.new("RGB", (8, 8), (200, 10, 10)))
    return raw[:33] + b"".join(extra) + raw[33:]


BOMB = zlib.compress(bytes(2 << 20))
BROKEN = {
    "zTXt bomb": png_with(chunk(b"zTXt", b"c\0\0" + BOMB)),
    "iCCP bomb": png_with(chunk(b"iCCP", b"p\0\0" + BOMB)),
    "iTXt bomb": png_with(chunk(b"iTXt", b"c\0\1\0\0\0" + BOMB)),
    "short tRNS": png_with(chunk(b"tRNS", b"\0")),
    "short gAMA": png_with(chunk(b"gAMA", b"\0")),
    "short cHRM": png_with(chunk(b"cHRM", b"\0\0\0")),
    "second IHDR": png_with(chunk(b"IHDR", b"")),
    "PPM value too large": b"P3 8 8 255\n" + b"999 " * 192,
    "PPM no number": b"P3 8 8 255\n" + b"x " * 192,
    "PPM maxval 0": b"P6 8 8 0\n" + bytes(192),
    "TIFF without tags": b"II*\0\x08\0\0\0\0\0\0\0\0\0",
    "floats": encoded(Image.new("F", (8, 8)), "TIFF"),
    "32 bits": encoded(Image.new("I", (8, 8)), "TIFF"),
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n",
    "header of GIF": b"GIF89a\x08\0\x08\0",
    "cut JPEG": encoded(noise("RGB", (64, 64)), "JPEG")[:-200],
    "cut WEBP": encoded(noise("RGB", (64, 64)), "WEBP")[:-20],
    "nothing": b"",
}


@pytest.mark.parametrize("size", [None, 8])
def test_what_pillow_fails_on_is_one_error_that_names_the_file(tmp_path, size):
    server = Server((3, 8, 8), Pictures())
    for name, data in BROKEN.items():
        (tmp_path / "a.png").write_bytes(data)
        with pytest.raises(DataError, match=r"a\.png: ") as refused:
            Streamed(Listing(tmp_path, ["a.png"], np.zeros(1, np.int64)), 3, size)[:]
        assert "\n" not in str(refused.value), name
        assert "object at 0x" not in str(refused.value), name
        status, answer = server.post("/predict", data)
        assert status in (400, 413, 415), name
        assert answer.keys() == {"error"}


SAMPLES = [
    (encoded(noise(mode, (20, 14)), kind, **({} if kind in ("PPM", "BMP", "GIF") else {"orientation": 6})), kind)
    for mode, kind in [*COLOURED, ("LA", "PNG"), ("I;16", "PNG"), ("RGB", "TIFF"), ("RGB", "PPM"), ("P", "TIFF")]
]


@settings(deadline=None)
@given(st.sampled_from(SAMPLES), st.data())
def test_damage_anywhere_is_refused_by_both_or_read_alike(sample, draw):
    (data, kind), at = sample, draw.draw(st.integers(0, len(sample[0]) - 1))
    damaged = data[:at] + bytes([draw.draw(st.integers(0, 255))]) + data[at + 1 :]
    damaged = damaged[: draw.draw(st.sampled_from([at, None]))]
    try:
        held = decode(damaged, 3, "here", 8).transpose(2, 0, 1)
    except DataError:
        held = None
    server = Server((3, 8, 8), Pictures())
    status, answer = server.post("/predict", damaged)
    if kind in ("TIFF", "PPM") or held is None:
        assert status in (400, 413, 415)
    else:
        assert status == 200, answer
        np.testing.assert_array_equal((server.asked[0][0] * 255).round(), held)


def directory(*entries, tail=b""):
    """EXIF data with these entries (tag, type, count, value)."""
    body = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + bytes(4) + tail


TURN = (0x0112, 3, 1, b"\6\0\0\0")
EXIF = {
    "empty": (b"Exif\0\0", False),
    "garbage": (b"Exif\0\0garbage!", False),
    "no directory": (directory(TURN)[:16], False),
    "text": (directory((0x0112, 2, 2, b"6\0\0\0")), False),
    "nine": (directory((0x0112, 3, 1, b"\x09\0\0\0")), False),
    "zero": (directory((0x0112, 3, 1, b"\0\0\0\0")), False),
    "none": (directory((0x0112, 3, 0, b"\6\0\0\0")), None),
    "twice the head": (b"Exif\0\0" + directory(TURN), True),
    "rational 0/0": (directory(TURN, (0x011A, 5, 1, struct.pack("<I", 38)), tail=bytes(8)), True),
    "unknown type": (directory(TURN, (0x9999, 99, 1, bytes(4))), True),
    "beyond the end": (directory(TURN, (0x010F, 2, 50, struct.pack("<I", 99_999))), True),
    "GPS nowhere": (directory(TURN, (0x8825, 4, 1, struct.pack("<I", 5_000))), True),
}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_refuses_nothing_and_is_read_alike(kind):
    image = noise("RGB", (20, 20))
    for name, (exif, turned) in EXIF.items():
        data = encoded(image, kind, exif=exif)
        pixels, changes = Server((3, 20, 20), Pictures()).predict(data)
        np.testing.assert_array_equal(pixels, decode(data, 3, name).transpose(2, 0, 1), err_msg=name)
        if turned is not None:
            assert changes == (["turned right, as its EXIF data say"] if turned else []), name


def test_a_turn_in_xmp_is_followed_with_and_without_the_fast_decoder(monkeypatch):
    note = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><a tiff:Orientation="3"/></x:xmpmeta>'
    raw = encoded(noise("RGB", (16, 24)), "JPEG")
    data = raw[:2] + b"\xff\xe1" + struct.pack(">H", len(note) + 2) + note + raw[2:]
    fast = decode(data, 3, "here")
    np.testing.assert_array_equal(fast, decode(raw, 3, "here")[::-1, ::-1])
    monkeypatch.setattr(pictures, "_simplejpeg", lambda: None)
    np.testing.assert_array_equal(decode(data, 3, "here"), fast)


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 100), st.integers(0, 2), st.booleans())
def test_the_fast_decoder_gives_the_pixels_of_pillow(width, height, quality, subsampling, progressive):
    pytest.importorskip("simplejpeg")
    for mode, channels in (("RGB", 3), ("L", 3), ("L", 1)):
        options = {"quality": quality, "subsampling": subsampling, "progressive": progressive}
        data = encoded(noise(mode, (width, height)), "JPEG", **options)
        found = pictures._fast(data, channels, Pictures(), None, None)
        assert found is not None
        with Image.open(io.BytesIO(data)) as image:
            expected = np.asarray(image.convert("RGB" if channels == 3 else "L"))
        np.testing.assert_array_equal(found.pixels.reshape(expected.shape), expected)


def test_a_large_jpeg_is_fitted_the_same_whichever_way_it_lies():
    """It is decoded at a part of its size, which must follow the side that the turn makes the short one."""
    smooth = Image.fromarray(RNG.integers(0, 256, (4, 6, 3), dtype=np.uint8)).resize((900, 600))
    for choices in (Pictures(), Pictures(fit="stretch")):
        plain = pictures.read(encoded(smooth, "PNG"), 3, choices, (40, 20)).pixels.astype(int)
        for orientation in SHOWN:
            back = {6: 8, 8: 6}.get(orientation, orientation)
            lying = Image.fromarray(np.ascontiguousarray(SHOWN[back](np.asarray(smooth))))
            found = pictures.read(encoded(lying, "JPEG", orientation), 3, choices, (40, 20)).pixels
            assert np.abs(found - plain).mean() < 1.5, orientation


def test_sixteen_bits_are_scaled(tmp_path):
    values = np.array([[0, 255, 256, 32_768, 40_000, 65_535]], np.uint16)
    expected = [[0, 0, 1, 128, 156, 255]]
    for kind in ("PNG", "PPM", "TIFF"):
        assert decode(encoded(Image.fromarray(values), kind), 1, kind)[..., 0].tolist() == expected
        assert decode(encoded(Image.fromarray(values), kind), 3, kind)[..., 1].tolist() == expected


def test_what_only_data_sets_read_is_turned_as_well():
    image = noise("RGB", (21, 14))
    for orientation, size in product(SHOWN, (None, 9)):
        expected = decode(encoded(image, "PNG", orientation), 3, "png", size)
        np.testing.assert_array_equal(decode(encoded(image, "TIFF", orientation), 3, "tiff", size), expected)
    bare = SHOWN[6](np.asarray(image)).tobytes()
    assert decode(b"P6 14 21 255\n" + bare, 3, "ppm").tobytes() == bare


@settings(deadline=None)
@given(
    st.tuples(st.integers(1, 900), st.integers(1, 900)), st.tuples(st.integers(1, 40), st.integers(1, 40)), CHOICES
)
def test_a_jpeg_of_any_size_is_brought_to_any_size(size, target, choices):
    for orientation in (1, 6):
        picture = pictures.read(encoded(Image.new("L", size, 77), "JPEG", orientation), 3, choices, target)
        assert picture.pixels.shape == (target[1], target[0], 3)
        assert np.abs(picture.pixels.astype(int) - 77).max() <= 1
