"""Bodies: never more bytes than allowed, before or after decompression, and never for longer."""

import asyncio
import gzip
import tracemalloc
import zlib

import pytest

pytest.importorskip("fastapi")

from starlette.requests import ClientDisconnect, Request

from sdb.errors import ConfigError
from sdb.service.bodies import Intake, compress, decompress
from sdb.service.limits import Refusal, RequestLimits

PACK = {"gzip": gzip.compress, "deflate": zlib.compress}


def request_of(*parts, headers=(), pause=0.0):
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages[-1]["more_body"] = False
    queue = iter(messages)

    async def receive():
        await asyncio.sleep(pause)
        return next(queue, {"type": "http.disconnect"})

    return Request({"type": "http", "headers": list(headers)}, receive)


def received(intake, request):
    async def read():
        async with intake.body(request) as body:
            return body, intake.held

    return asyncio.run(read())


def test_parts_are_joined_and_counted_while_they_are_used():
    intake = Intake(10, 20, 1)
    assert received(intake, request_of(b"abc", b"", b"de")) == (b"abcde", 5)
    assert intake.held == 0


@pytest.mark.parametrize("parts", [(b"x" * 11,), (b"x" * 5, b"y" * 6), tuple([b"x" * 9] * 100)])
def test_too_large(parts):
    intake = Intake(10, 1000, 1)
    with pytest.raises(Refusal) as refusal:
        received(intake, request_of(*parts))
    assert refusal.value.status == 413
    assert intake.held == 0


def test_a_client_that_asks_first_is_told_before_it_sends():
    request = request_of(b"never read", headers=[(b"expect", b"100-continue"), (b"content-length", b"11")])
    with pytest.raises(Refusal) as refusal:
        received(Intake(10, 100, 1), request)
    assert refusal.value.status == 413
    assert asyncio.run(request.receive())["body"] == b"never read"


def test_too_slow_and_gone():
    intake = Intake(10, 100, 0.01)
    with pytest.raises(Refusal) as refusal:
        received(intake, request_of(b"a", b"b", pause=0.5))
    assert refusal.value.status == 408
    request = request_of(b"a")
    asyncio.run(request.receive())
    with pytest.raises(ClientDisconnect):
        received(intake, request)
    assert intake.held == 0


def test_a_timeout_of_the_work_is_not_blamed_on_the_client():
    async def work():
        async with Intake(10, 100, 1).body(request_of(b"a")):
            raise TimeoutError

    with pytest.raises(TimeoutError):
        asyncio.run(work())


def test_all_bodies_together_are_limited():
    intake = Intake(10, 15, 1)

    async def two():
        async with intake.body(request_of(b"x" * 10)), intake.body(request_of(b"y" * 10)):
            pass

    with pytest.raises(Refusal) as refusal:
        asyncio.run(two())
    assert (refusal.value.status, refusal.value.retry_after) == (503, 1.0)
    assert intake.held == 0


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_decompressing(encoding):
    packed = PACK[encoding](b"abc" * 100)
    assert decompress(packed, encoding.upper(), 300) == b"abc" * 100
    assert decompress(b"abc", "identity", 3) == b"abc"
    for bad, status in (
        (packed[:-1], 400),
        (packed + b"x", 400),
        (packed + packed, 400),
        (b"plain", 400),
        (b"", 400),
    ):
        with pytest.raises(Refusal) as refusal:
            decompress(bad, encoding, 300)
        assert refusal.value.status == status
    with pytest.raises(Refusal) as refusal:
        decompress(packed, encoding, 299)
    assert refusal.value.status == 413
    with pytest.raises(Refusal) as refusal:
        decompress(packed, "br", 300)
    assert refusal.value.status == 415


def test_a_bomb_does_not_go_off():
    bomb = gzip.compress(bytes(2**26))
    tracemalloc.start()
    with pytest.raises(Refusal):
        decompress(bomb, "gzip", 2**16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [("gzip, deflate", "gzip"), ("deflate", "deflate"), ("br", None), ("", None), ("gzip;q=0", None)],
)
def test_answers_are_compressed_as_the_client_asks(accepted, encoding):
    body = b"0.125, " * 1000
    packed, headers = compress(body, accepted)
    assert headers == ({"content-encoding": encoding} if encoding else {})
    assert decompress(packed, encoding or "", len(body)) == body
    assert compress(b"short", accepted) == (b"short", {})


def test_limits_are_checked_and_fit_the_model():
    for wrong in ({"max_batch": 0}, {"timeout": -1.0}, {"timeout": float("nan")}, {"max_queue": 10}):
        with pytest.raises(ConfigError):
            RequestLimits(**wrong)
    limits = RequestLimits()
    # A full batch of CIFAR images fits as FP64, whatever the model a photograph does, and nothing is boundless.
    assert limits.body((3, 32, 32)) >= 256 * 3 * 32 * 32 * 8
    assert limits.body((1, 8, 8)) >= 2**23
    assert limits.body((3, 1024, 1024)) <= 2**27
