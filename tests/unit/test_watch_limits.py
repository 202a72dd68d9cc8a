"""Budgets and rates: what is let in is what the numbers say."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdb.errors import ConfigError
from sdb.service.watch.limits import SECONDS_A_DAY, Limits, LimitSet, Meter

NOON = 20_000 * SECONDS_A_DAY + SECONDS_A_DAY / 2


def ask(meter, limits, images, now):
    refusal = meter.refusal(images, limits, now)
    if refusal is None:
        meter.charge(images, limits, now)
    return refusal


def test_a_budget_is_spent_to_the_last_image_and_not_beyond():
    meter, limits = Meter(20_000), Limits(images_total=10)
    assert ask(meter, limits, 7, NOON) is None
    assert ask(meter, limits, 4, NOON) == ("total", SECONDS_A_DAY)
    assert ask(meter, limits, 3, NOON) is None and meter.total == 10
    assert ask(meter, limits, 1, NOON + 400 * SECONDS_A_DAY)[0] == "total"


def test_a_day_ends_at_midnight_utc_and_its_count_with_it():
    meter, limits = Meter(20_000), Limits(images_day=5)
    assert ask(meter, limits, 5, NOON) is None
    assert ask(meter, limits, 1, NOON) == ("day", SECONDS_A_DAY / 2)
    assert ask(meter, limits, 1, NOON + SECONDS_A_DAY / 2) is None
    assert (meter.total, meter.today) == (6, 1)


def test_a_clock_set_back_opens_no_new_day():
    meter, limits = Meter(20_000), Limits(images_day=5)
    ask(meter, limits, 5, NOON)
    assert ask(meter, limits, 1, NOON - SECONDS_A_DAY)[0] == "day"
    assert ask(meter, limits, 1, NOON)[0] == "day"


def test_the_rate_binds_after_the_burst_and_says_when_to_come_back():
    meter, limits = Meter(20_000), Limits(rate=2.0, burst=4)
    assert [ask(meter, limits, 1, NOON) for _ in range(4)] == [None] * 4
    reason, wait = ask(meter, limits, 1, NOON)
    assert (reason, wait) == ("rate", 0.5)
    assert ask(meter, limits, 1, NOON + wait / 2) is not None
    assert ask(meter, limits, 1, NOON + wait) is None


def test_no_burst_is_no_limit_at_once(tmp_path):
    (tmp_path / "b.json").write_text(
        '{"named": {"burst": null, "rate": 2, "images_day": null}, "everyone": {"burst": null}}'
    )
    limits = LimitSet.load(tmp_path / "b.json")
    assert (limits.named.burst, limits.named.rate, limits.everyone.burst) == (None, 2, None)
    meter = Meter(20_000)
    assert [ask(meter, limits.named, 1_000, NOON) for _ in range(5)] == [None] * 5
    assert ask(meter, limits.named, 1, NOON)[0] == "total"  # the other limits stay


def test_a_batch_above_the_burst_is_slow_and_not_impossible():
    meter, limits = Meter(20_000), Limits(rate=10.0, burst=4)
    assert ask(meter, limits, 100, NOON) is None
    reason, wait = ask(meter, limits, 1, NOON)
    assert reason == "rate" and wait == pytest.approx((100 + 1 - 4) / 10)
    assert ask(meter, limits, 100, NOON + 10.0) is None


@given(
    st.lists(st.tuples(st.integers(1, 30), st.floats(0, 5)), max_size=60),
    st.floats(0.5, 20),
    st.integers(1, 20),
    st.integers(1, 200),
)
def test_no_stretch_of_time_lets_in_more_than_rate_and_burst_allow(requests, rate, burst, total):
    meter, limits = Meter(20_000), Limits(images_total=total, rate=rate, burst=burst)
    now, admitted = NOON, []
    for images, pause in requests:
        now += pause
        if ask(meter, limits, images, now) is None:
            admitted.append((now, images))
    assert sum(images for _, images in admitted) == meter.total <= total
    largest = max((images for _, images in admitted), default=0)
    for first, (since, _) in enumerate(admitted):
        for until, _ in admitted[first:]:
            asked = sum(images for at, images in admitted if since <= at <= until)
            assert asked <= burst + largest + rate * (until - since) + 1e-6


def test_limits_out_of_range_are_refused_by_name():
    for values in (
        {"images_total": 0},
        {"rate": -1.0},
        {"rate": float("nan")},
        {"images_day": "many"},
        {"burst": 0},
    ):
        with pytest.raises(ConfigError, match=next(iter(values))):
            Limits(**values)


def test_limits_come_from_a_file_and_keep_defaults_for_the_rest(tmp_path):
    path = tmp_path / "limits.json"
    path.write_text(json.dumps({"anonymous": {"images_total": None, "images_day": 7}}))
    limits = LimitSet.load(path)
    assert limits.anonymous == Limits(None, 7, LimitSet().anonymous.rate)
    assert limits.named == LimitSet().named


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"nobody": {}}', '{"named": {"images": 3}}', '{"named": {"rate": "fast"}}', '{"named": 3}'],
)
def test_a_bad_file_of_limits_is_refused(tmp_path, text):
    path = tmp_path / "limits.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="limits.json"):
        LimitSet.load(path)


def test_the_defaults_lie_below_what_extraction_costs():
    """6,016 queries close half of the distance to an image key on 64 pixels (docs/results.md)."""
    for limits in (LimitSet().anonymous, LimitSet().named):
        assert limits.images_total < 6_016 and limits.images_day < limits.images_total
