"""Pictures from anywhere: fitted to the model, told what was changed, bombs and damage refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("fastapi")

from sdb.service.images import read_picture
from sdb.service.limits import Refusal

GREY, COLOUR = (1, 8, 8), (3, 8, 8)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(mode="RGB", size=(8, 8)):
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), np.uint8)
    return Image.fromarray(pixels.squeeze() if channels == 1 else pixels, mode)


def test_a_picture_that_fits_is_taken_as_it_is():
    for mode, shape in (("L", GREY), ("RGB", COLOUR)):
        image = noise(mode)
        pixels, changes = read_picture(encoded(image), shape)
        expected = np.asarray(image, np.float32).reshape(8, 8, -1).transpose(2, 0, 1)[None] / 255
        np.testing.assert_array_equal(pixels, expected)
        assert changes == []


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("shape", [GREY, COLOUR])
def test_any_picture_is_fitted_and_says_so(kind, shape):
    pixels, changes = read_picture(encoded(noise(size=(30, 20)), kind), shape)
    assert pixels.shape == (1, *shape)
    assert pixels.dtype == np.float32
    assert 0 <= pixels.min() <= pixels.max() <= 1
    assert changes[-2:] == ["cropped from 30x20 to the middle 20x20", "resized from 20x20 to 8x8"]
    assert any("grey" in change for change in changes) == (shape == GREY)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_ends_as_plain_pixels(mode):
    image = noise("RGB").convert(mode) if mode != "LA" else noise("L").convert("LA")
    kind = "JPEG" if mode == "CMYK" else "PNG"
    for shape in (GREY, COLOUR):
        pixels, _ = read_picture(encoded(image, kind), shape)
        assert pixels.shape == (1, *shape)


def test_what_is_transparent_is_white():
    pixels, changes = read_picture(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0))), COLOUR)
    assert (pixels == 1).all()
    assert changes == ["transparency laid on #ffffff", "converted from RGBA to colour"]


def test_a_turned_photograph_is_turned_back():
    exif = Image.Exif()
    exif[0x0112] = 6
    _, changes = read_picture(encoded(noise(size=(8, 16)), "JPEG", exif=exif), COLOUR)
    assert changes == ["turned right, as its EXIF data say", "cropped from 16x8 to the middle 8x8"]


def test_a_bomb_is_refused_by_its_header():
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000)))
    with pytest.raises(Refusal) as refusal:
        read_picture(bomb, COLOUR)
    assert refusal.value.status == 413
    with pytest.raises(Refusal) as refusal:
        read_picture(encoded(Image.new("1", (8000, 8000))), COLOUR)
    assert refusal.value.status == 413


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"BM" + b"\xff" * 60]
)
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(Refusal) as refusal:
        read_picture(data, COLOUR)
    assert refusal.value.status == 415


def test_odd_models_are_refused():
    with pytest.raises(Refusal, match="4 channels"):
        read_picture(encoded(noise()), (4, 8, 8))


SAMPLES = [encoded(noise(size=(20, 20)), kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP")]


@given(st.sampled_from(SAMPLES), st.data())
def test_damage_anywhere_is_refused_or_harmless(sample, data):
    position = data.draw(st.integers(0, len(sample) - 1))
    if data.draw(st.booleans()):
        damaged = sample[:position]
    else:
        damaged = sample[:position] + bytes([data.draw(st.integers(0, 255))]) + sample[position + 1 :]
    status = 200
    try:
        pixels, _ = read_picture(damaged, COLOUR)
    except Refusal as refusal:
        status = refusal.status
    assert status in (400, 413, 415) or pixels.shape == (1, *COLOUR)
