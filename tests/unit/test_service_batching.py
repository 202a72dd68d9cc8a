"""Batches: who waited is answered together, in order, each with its own rows; limits hold."""

import asyncio
import threading

import numpy as np
import pytest

from sdb.service.batching import Batcher
from sdb.service.limits import Refusal, RequestLimits

LIMITS = RequestLimits(max_batch=8, max_queue=16, timeout=5)


class Model:
    """Doubles its input, one pixel an image; holds every forward until it is let go."""

    def __init__(self, factor=2.0):
        self.factor = factor
        self.free = threading.Event()
        self.calls = []

    def __call__(self, images):
        self.calls.append(len(images))
        if not self.free.wait(10):
            raise TimeoutError
        return self.factor * images.reshape(len(images), 1)


def images(*values):
    return np.array(values, np.float32).reshape(-1, 1, 1, 1)


async def waiting(batcher, *jobs):
    """Submit jobs (variant, images) one after the other, without waiting for any."""
    tasks = []
    for variant, batch in jobs:
        tasks.append(asyncio.create_task(batcher.submit(variant, batch)))
        await asyncio.sleep(0)
    return tasks


async def begun(model, calls=1):
    while len(model.calls) < calls:
        await asyncio.sleep(0.001)


def test_what_waits_is_answered_together_and_nobody_gets_anothers_rows():
    model = Model()
    sizes = []
    batcher = Batcher({"": model}, LIMITS, sizes.append)

    async def run():
        first = await waiting(batcher, ("", images(0)))
        await begun(model)
        rest = await waiting(batcher, *[("", images(*range(n))) for n in (1, 2, 3, 4)])
        assert batcher.waiting == 10
        model.free.set()
        answers = await asyncio.gather(*first, *rest)
        assert [answer.ravel().tolist() for answer in answers] == [
            [0.0],
            *[[2.0 * value for value in range(n)] for n in (1, 2, 3, 4)],
        ]
        await batcher.drain()

    asyncio.run(run())
    # 1 + 2 + 3 fit with each other into 8, the 4 did not.
    assert sizes == model.calls == [1, 6, 4]
    assert batcher.waiting == 0
    batcher.close()


def test_variants_do_not_mix_and_keep_their_turn():
    keyless, keyed = Model(), Model(3.0)
    batcher = Batcher({"": keyless, "key": keyed}, LIMITS)

    async def run():
        tasks = await waiting(batcher, ("", images(1)))
        await begun(keyless)
        tasks += await waiting(
            batcher, ("key", images(1)), ("", images(2)), ("key", images(3)), ("", images(4, 5))
        )
        keyless.free.set()
        keyed.free.set()
        return [answer.ravel().tolist() for answer in await asyncio.gather(*tasks)]

    assert asyncio.run(run()) == [[2], [3], [4], [9], [8, 10]]
    assert (keyless.calls, keyed.calls) == ([1, 3], [2])


def test_a_full_queue_refuses_and_a_free_one_takes_again():
    model = Model()
    batcher = Batcher({"": model}, LIMITS)

    async def run():
        tasks = await waiting(batcher, ("", images(0)))
        await begun(model)
        tasks += await waiting(batcher, ("", images(*range(8))), ("", images(*range(8))))
        with pytest.raises(Refusal) as refusal:
            await batcher.submit("", images(1))
        assert (refusal.value.status, refusal.value.reason, refusal.value.retry_after) == (503, "queue", 1.0)
        model.free.set()
        await asyncio.gather(*tasks)
        assert (await batcher.submit("", images(7))).tolist() == [[14.0]]

    asyncio.run(run())


def test_who_waited_too_long_is_told_and_costs_no_forward():
    model = Model()
    batcher = Batcher({"": model}, RequestLimits(max_batch=8, max_queue=16, timeout=0.05))

    async def run():
        tasks = await waiting(batcher, ("", images(0)))
        await begun(model)
        tasks += await waiting(batcher, ("", images(1)))
        for task in tasks:
            with pytest.raises(Refusal) as refusal:
                await task
            assert (refusal.value.status, refusal.value.reason) == (503, "deadline")
        model.free.set()
        await batcher.drain()
        assert (await batcher.submit("", images(2))).tolist() == [[4.0]]

    asyncio.run(run())
    assert model.calls == [1, 1]
    assert batcher.waiting == 0


def test_a_failing_model_fails_its_batch_alone():
    calls = []

    def model(images):
        calls.append(len(images))
        if len(calls) == 1:
            raise ArithmeticError("broken")
        return images.reshape(len(images), 1)

    batcher = Batcher({"": model}, LIMITS)

    async def run():
        with pytest.raises(ArithmeticError):
            await batcher.submit("", images(1))
        assert (await batcher.submit("", images(2))).tolist() == [[2.0]]

    asyncio.run(run())
    # And again in another event loop: a batcher outlives the loop that used it.
    asyncio.run(batcher.submit("", images(3)))


def test_draining_waits_for_everything():
    model = Model()
    batcher = Batcher({"": model}, LIMITS)

    async def run():
        tasks = await waiting(batcher, *[("", images(n)) for n in range(6)])
        asyncio.get_running_loop().call_later(0.02, model.free.set)
        await batcher.drain()
        await asyncio.sleep(0)
        assert all(task.done() for task in tasks)

    asyncio.run(run())
