"""Ledgers of guards: what is refused, and what is said of levels."""

from __future__ import annotations

import numpy as np
import pytest

import sdb
from sdb.errors import ConfigError
from sdb.keys import Owner
from sdb.runs.ties import new_ledger


def made(place, classes, **more):
    """A guard whose model is often unsure, and a call that makes its ledger."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 1.5, (3000, classes))
    chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (rng.random((3000, 1)) > chances.cumsum(axis=1)).sum(axis=1).clip(0, classes - 1)
    owner = Owner(bytes(range(32)))
    owner.save(place / "owner.json")
    sdb.guard(None, (logits, labels), owner=owner).save(place / "a.guard")
    given = {
        "out": place / "ledger.db",
        "ties_file": place / "ties.json",
        "owner_file": place / "owner.json",
        "budget": 0.001,
        "keep_queries": True,
        "days": 365,
        "cap": 5000,
        "dataset": None,
        "data_root": None,
        "other_class_names": False,
        "network": None,
    }
    return new_ledger(place / "a.guard", **(given | more))


def test_levels_are_said_with_ties_and_without(tmp_path):
    cost, levels = made(tmp_path, 4)
    assert cost.tau > 0
    assert [each["level"] for each in levels] == list(range(1, len(levels) + 1))
    assert len(levels) > 1
    lost = sum(each["without"] - each["with_ties"] for each in levels)
    assert 0 < lost < 0.05
    assert "with ties in" in sdb.Guard.load(tmp_path / "a.guard").summary()


def test_two_classes_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="two classes have one cell"):
        made(tmp_path, 2)
    assert not (tmp_path / "ledger.db").exists()
    assert not (tmp_path / "ties.json").exists()


@pytest.mark.parametrize("more", [{"budget": 0.05}, {"dataset": "digits"}, {"network": "a:b"}])
def test_what_is_for_boxes_is_refused_for_guards(tmp_path, more):
    with pytest.raises(ConfigError, match="was found when it was made"):
        made(tmp_path, 4, **more)
    assert not (tmp_path / "ledger.db").exists()


def test_days_beyond_a_century_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="days: 1000000000000"):
        made(tmp_path, 4, days=10**12)
