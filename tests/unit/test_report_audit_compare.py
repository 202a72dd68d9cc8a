"""Two audits side by side: what moved, what differs, and what cannot be compared."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from sdb.report.claim import read_claim
from sdb.report.compare import compare, comparison_text
from sdb.report.markdown import escaped

make_claim = runpy.run_path(str(Path(__file__).with_name("audit_claims.py")))["make_claim"]


@pytest.fixture(scope="module")
def first():
    return read_claim(make_claim())


def test_a_claim_does_not_differ_from_itself(first):
    found = compare(first, first)
    assert (found.settings, found.moved, found.only_first, found.only_second) == ((), (), (), ())
    assert found.changed is False
    assert found.within == sum(cell.status == "done" for cell in first.cells)
    assert "No setting differs." in comparison_text(found, ("a", "b"))


def test_what_moved_is_told_from_chance(first):
    found = compare(first, read_claim(make_claim(broken="distil")))
    assert [(item.first.attack.name, item.first.defence, item.beyond) for item in found.moved] == [
        ("distil", "box", True)
    ]
    assert found.changed
    text = comparison_text(found, ("before.json", "after_it.json"))
    assert text.startswith("Verdict changed:\n- before.json: Established")
    assert "- after\\_it.json: Broken" in text
    assert "| distil | box | −5.5" in text


def test_another_box_is_said_and_compared(first):
    raw = make_claim()
    raw["box"] |= {"id": "other", "path": "other.box"}
    raw["victim"]["model"] = "resnet"
    found = compare(first, read_claim(raw))
    assert [change.path for change in found.settings] == ["box.path", "box.id", "victim.model"]
    assert found.moved == ()


def test_a_box_is_compared_with_a_decoy_box_made_by_the_audit(first):
    raw = make_claim()
    raw["box"] = None
    raw["defences"][-1]["name"] = "decoy"
    for cell in raw["cells"]:
        cell["defence"] = "decoy" if cell["defence"] == "box" else cell["defence"]
    found = compare(first, read_claim(raw))
    assert found.only_first == found.only_second == ()


def test_seeds_parameters_and_environment_are_named():
    raw = make_claim()
    raw["settings"]["seed"] = 0
    other = make_claim()
    other["settings"]["seed"] = 7
    other["seeds"] = [7, 8, 9]
    for cell in other["cells"]:
        for trial in cell["seeds"]:
            trial["seed"] += 7
    other["environment"]["torch"] = "2.14.0"
    other["attacks"][2]["parameters"]["epochs"] = 90
    found = compare(read_claim(raw), read_claim(other))
    assert [change.path for change in found.settings] == [
        "settings.seed",
        "seeds",
        "environment.torch",
        "attacks.distil.epochs",
    ]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("data", "name"), "CIFAR-10"),
        (("data", "test"), 400),
        (("student", "parameters"), 1),
        (("settings", "epochs"), 3),
        (("interface",), "labels"),
        (("query_budget",), None),
        (("regime", "labelled"), 300),
        (("views",), 1),
    ],
    ids=lambda value: ".".join(value) if isinstance(value, tuple) else "",
)
def test_cells_of_different_things_are_not_compared(first, path, value):
    raw = make_claim()
    place = raw
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    found = compare(first, read_claim(raw))
    assert found.apart == (".".join(path),)
    assert (found.moved, found.within, found.only_first, found.only_second) == ((), 0, (), ())
    assert ".".join(path) in [change.path for change in found.settings]
    text = comparison_text(found, ("a", "b"))
    assert f"Cells are not compared: these audits differ in {escaped('.'.join(path))}, " in text
    assert "cell(s) stayed" not in text


def test_cells_of_one_claim_only_are_counted(first):
    found = compare(first, read_claim(make_claim(everywhere=False)))
    assert found.only_second == ()
    text = comparison_text(found, ("a", "b"))
    assert "Only in a: labels\\_proxy on labels\\_only" in text
    assert f"and {len(found.only_first) - 6} more cells" in text
