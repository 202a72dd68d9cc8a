"""What makes an attack trusted: the bounds of its two controls, and how an audit's claim puts cells together."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest

from sdb.audit.archive import Memory
from sdb.audit.attacks.attack import Attack, Stolen
from sdb.audit.attacks.victim import Interface
from sdb.audit.audit_seed import AuditSeed
from sdb.audit.cells import Task, agreement, applies, cell, distance
from sdb.audit.collect import cells_of, negative_control, positive_control
from sdb.audit.plan import AuditSettings, defences_of
from sdb.audit.subject import Subject
from sdb.errors import TrainingError
from sdb.keys import Key
from sdb.training.evaluation import evaluation_batches


def reached(*accuracies, closed=None, status="done"):
    return [{"status": status, "reason": "it fell", "accuracy": each, "gap_closed": closed} for each in accuracies]


@pytest.mark.parametrize(
    ("accuracies", "passed"),
    [((0.80, 0.84), True), ((0.8199, 0.8199), False), ((0.82,), True), ((0.5, 0.99), False), ((1.0, 0.7), True)],
)
def test_a_positive_control_asks_for_its_share_of_the_way_from_chance_to_the_best(accuracies, passed):
    # Ten classes; students of the teacher at 0.9 and 1.0, on average 0.95.
    best, share = [0.9, 1.0], 0.72 / 0.85
    control = positive_control(reached(*accuracies), best, "none", share - 1e-9, 10)
    assert control["needed"] == pytest.approx(0.82)
    assert control["passed"] is passed
    assert control["accuracies"] == list(accuracies)
    assert control["reason"] == "against the unprotected teacher"
    assert (control["closed"], control["closed_needed"]) == (None, None)
    exact = positive_control(reached(control["needed"]), best, "none", share - 1e-9, 10)
    assert exact["passed"] is True


@pytest.mark.parametrize(
    ("column", "closed", "passed", "kept"),
    [
        ("none", 0.51, True, 0.51),
        ("none", 0.5, False, 0.5),
        ("none", -2.0, False, -2.0),
        ("none", None, True, None),
        # On a box there is no telling how near to the teacher an attack can come.
        ("decoy", 0.0, True, None),
        ("sdb", 0.0, True, None),
    ],
)
def test_who_is_handed_the_teacher_must_come_near_it(column, closed, passed, kept):
    control = positive_control(reached(0.9, 0.9, closed=closed), [0.9, 0.9], column, 0.9, 10)
    assert (control["passed"], control["closed"]) == (passed, kept)
    assert control["closed_needed"] == (None if kept is None else 0.5)
    weak = positive_control(reached(0.2, 0.2, closed=closed), [0.9, 0.9], column, 0.9, 10)
    assert weak["passed"] is False, "coming near is not enough: its student must be good too"
    if column != "none":
        assert control["reason"] == f"against the {column} box"


def test_the_share_closed_is_a_mean_over_the_seeds_that_have_one():
    for shares, mean, passed in (((0.6, None), 0.6, True), ((0.2, 0.9), 0.55, True), ((0.9, 0.0), 0.45, False)):
        found = [each | {"gap_closed": share} for each, share in zip(reached(0.9, 0.9), shares, strict=True)]
        control = positive_control(found, [0.9, 0.9], "none", 0.9, 10)
        assert (control["closed"], control["passed"]) == (pytest.approx(mean), passed)


@pytest.mark.parametrize(
    ("classes", "accuracy", "passed"),
    [
        # Three times chance, and with few classes half of the way from chance to all.
        (10, 0.3, True),
        (10, 0.301, False),
        (100, 0.03, True),
        (100, 0.031, False),
        (2, 0.75, True),
        (2, 0.751, False),
        (3, 0.666, True),
        (3, 0.667, False),
    ],
)
def test_a_negative_control_may_be_right_by_luck_and_no_oftener(classes, accuracy, passed):
    control = negative_control(reached(accuracy)[0], classes)
    assert control["limit"] == pytest.approx(min(3 / classes, (1 + 1 / classes) / 2))
    assert (control["passed"], control["accuracies"]) == (passed, [accuracy])
    assert control["reason"] == "against shuffled answers and labels"


@pytest.mark.parametrize("status", ["failed", "not_applicable"])
def test_a_control_that_could_not_be_run_passes_nothing(status):
    found = [*reached(0.99), *reached(0.99, status=status)]
    positive = positive_control(found, [0.9, 0.9], "none", 0.9, 10)
    negative = negative_control(found[1], 10)
    assert (positive["passed"], positive["accuracies"]) == (None, [])
    assert positive["reason"] == "against the unprotected teacher: it fell"
    assert (negative["passed"], negative["accuracies"]) == (None, [])
    assert negative["reason"] == "against shuffled answers and labels: it fell"


def trial(accuracy=0.5, status="done", reason=""):
    done = {"accuracy": accuracy, "validation": 0.4, "agreement": 0.3, "queries": 7, "gap_closed": None}
    return {
        "status": status,
        "reason": reason,
        "seconds": 1.5,
        **(done | {"details": {}} if status == "done" else {}),
    }


def test_a_cell_that_fell_in_one_seed_is_no_cell_that_was_done():
    results = {
        Task("cell", 0, "box", "distil"): trial(0.5),
        Task("cell", 1, "box", "distil"): trial(status="failed", reason="not finite"),
        Task("cell", 0, "none", "distil"): trial(0.6),
        Task("cell", 1, "none", "distil"): trial(0.7),
        # Neither a control's column that nobody asked for, nor a negative control, is a cell of the claim.
        Task("cell", 0, "sdb", "distil"): trial(0.9),
        Task("negative", 0, "none", "distil"): trial(0.1),
    }
    found = cells_of(results, ["box", "none"])
    assert [(each["defence"], each["status"], each["reason"]) for each in found] == [
        ("box", "failed", "not finite"),
        ("none", "done", ""),
    ]
    assert [[each["seed"] for each in every["seeds"]] for every in found] == [[0], [0, 1]]
    assert [each["accuracy"] for each in found[1]["seeds"]] == [0.6, 0.7]
    kept = {"seed", "accuracy", "validation", "agreement", "queries", "seconds", "gap_closed", "details"}
    assert set(found[1]["seeds"][0]) == kept


# --- what is measured ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def audit_seed():
    settings = AuditSettings(
        attacks=("labels",),
        defences=("stingy",),
        subset_percent=0.3,
        epochs=1,
        maker_epochs=8,
        views=1,
        seeds=1,
        model_args={"num_channels": 6},
        student_args={"num_channels": 4},
        device="cpu",
        query_budget=50,
    ).filled()
    made = AuditSeed(settings, Subject(), 0, Memory())
    made.make_teacher()
    made.make("none", defences_of(settings))
    made.archive.keep(Task("reference", 0).place, {"own_distance": 2.0, "seconds": 1.0})
    return made


@dataclass(frozen=True, kw_only=True)
class Returns(Attack):
    """Returns what it was made with, after having asked twice about ten images."""

    name = "returns"
    needs = Interface.LABELS
    summary = "returns a module"
    source = "this test"

    def run(self, victim, means):
        import torch

        images = torch.from_numpy(means.train.images[:10].copy()).float() / 255
        victim.ask(images), victim.ask(images)
        made = Returns.made(means)
        return Stolen(means.new_student(), made, {"loss": float("nan"), "steps": [1, float("-inf"), 0.5, "kd"]})


def run(audit_seed, made, kind="cell"):
    Returns.made = made
    return cell(audit_seed, Task(kind, 0, "none", "returns"), Returns(), defences_of(audit_seed.settings))


def test_the_share_closed_is_measured_from_the_thiefs_own_network(audit_seed):
    test = evaluation_batches(audit_seed.data.test, audit_seed.device)
    assert run(audit_seed, lambda means: audit_seed.teacher)["gap_closed"] == pytest.approx(1, abs=1e-6)
    other = audit_seed.network("other").eval()
    far = distance(audit_seed.teacher, other, test)
    found = run(audit_seed, lambda means: other)
    assert found["gap_closed"] == pytest.approx(1 - far / 2.0)
    assert found["queries"] == 20, "the judge's own questions are not the attacker's"
    assert (found["status"], found["reason"]) == ("done", "")
    assert found["details"] == {"loss": "nan", "steps": [1, "-inf", 0.5, "kd"]}, "JSON has no such numbers"
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    # Nothing recovered, or a negative control: nothing to measure.
    assert run(audit_seed, lambda means: None)["gap_closed"] is None
    assert run(audit_seed, lambda means: audit_seed.teacher, "negative")["gap_closed"] is None


def test_there_is_no_share_of_no_distance(audit_seed):
    place = Task("reference", 0).place
    before = audit_seed.archive.result(place)
    for own, share in ((0.0, None), (0.5, 1.0)):
        audit_seed.archive.keep(place, {"own_distance": own, "seconds": 1.0})
        found = run(audit_seed, lambda attacker: audit_seed.teacher)["gap_closed"]
        assert found == (None if share is None else pytest.approx(share, abs=1e-5))
    audit_seed.archive.keep(place, before)


def test_what_is_no_number_is_a_failure_and_not_a_distance(audit_seed):
    import torch

    broken = audit_seed.network("broken").eval()
    with torch.no_grad():
        for parameter in broken.parameters():
            parameter.fill_(float("nan"))
    found = run(audit_seed, lambda means: broken)
    assert found["status"] == "failed"
    assert "not finite" in found["reason"]
    with pytest.raises(TrainingError, match="not finite"):
        distance(audit_seed.teacher, broken, evaluation_batches(audit_seed.data.test, audit_seed.device))


def test_distance_and_agreement_of_a_model_with_itself_and_with_another(audit_seed):
    import torch

    test = evaluation_batches(audit_seed.data.test, audit_seed.device)
    assert distance(audit_seed.teacher, audit_seed.teacher, test) == pytest.approx(0, abs=1e-6)
    assert agreement(audit_seed.teacher, audit_seed.teacher, test) == 1
    other = audit_seed.network("other").eval()
    images = torch.from_numpy(audit_seed.data.test.images.copy()).float() / 255
    with torch.no_grad():
        ours, theirs = audit_seed.teacher(images).double(), other(images).double()
    p, q = (ours / 4).softmax(1), (theirs / 4).softmax(1)
    mean = float((p * (p / q).log()).sum(1).mean())
    assert distance(audit_seed.teacher, other, test) == pytest.approx(mean, rel=1e-4)
    same = float((ours.argmax(1) == theirs.argmax(1)).double().mean())
    assert agreement(audit_seed.teacher, other, test) == pytest.approx(same)


@dataclass(frozen=True, kw_only=True)
class Needs(Returns):
    """Needs something that a victim may not have."""

    name = "needs"


@pytest.mark.parametrize(
    ("needs", "uses", "reason"),
    [
        (Interface.LABELS, (), ""),
        (Interface.LOGITS, (), ""),
        (Interface.WEIGHTS, (), ""),
        (Interface.LABELS, ("image_key",), "for boxes with an image key"),
        (Interface.LABELS, ("weight_key",), "for boxes with a weight key"),
        (Interface.LABELS, ("leaked_key",), "needs the true key, to leak a part of it: give --key"),
    ],
)
def test_an_attack_that_cannot_be_run_says_why_and_has_no_numbers(audit_seed, monkeypatch, needs, uses, reason):
    monkeypatch.setattr(Needs, "needs", needs)
    monkeypatch.setattr(Needs, "uses", frozenset(uses))
    assert applies(audit_seed, "none", Needs(), defences_of(audit_seed.settings)) == reason
    if reason:
        found = cell(audit_seed, Task("cell", 0, "none", "needs"), Needs(), defences_of(audit_seed.settings))
        assert found == {"status": "not_applicable", "reason": reason}


NEITHER = "for boxes with an image key", "for boxes with a weight key"


@pytest.mark.parametrize(
    ("key", "box", "name", "reasons"),
    [
        # What is said of attacks that use an image key, a weight key and a leaked key.
        ("image", None, "sdb", ("", NEITHER[1], "")),
        ("weight", None, "decoy", (NEITHER[0], "", "")),
        # The box says its kind where no key was given, and only of itself.
        (None, "image", "box", ("", NEITHER[1], "needs the true key, to leak a part of it: give --key")),
        (None, "weight", "box", (NEITHER[0], "", "needs the true key, to leak a part of it: give --key")),
        (None, "weight", "none", (*NEITHER, "needs the true key, to leak a part of it: give --key")),
        (None, None, "box", (*NEITHER, "needs the true key, to leak a part of it: give --key")),
    ],
)
def test_attacks_on_keys_meet_the_boxes_of_their_kind(audit_seed, monkeypatch, key, box, name, reasons):
    plain = audit_seed.defended("none", defences_of(audit_seed.settings))
    defended = replace(plain, key=None if key is None else Key.generate(kind=key))
    around = None if box is None else SimpleNamespace(info=SimpleNamespace(key_kind=box))
    seed = SimpleNamespace(defended=lambda name, defences: defended, victim=audit_seed.victim, box=around)
    for use, reason in zip(("image_key", "weight_key", "leaked_key"), reasons, strict=True):
        monkeypatch.setattr(Needs, "uses", frozenset({use}))
        assert applies(seed, name, Needs(), {}) == reason


def test_what_the_interface_does_not_give_cannot_be_used(audit_seed, monkeypatch):
    settings = audit_seed.settings.model_copy(update={"interface": "labels"})
    seed = AuditSeed(settings, Subject(), 0, audit_seed.archive)
    monkeypatch.setattr(Needs, "needs", Interface.PROBABILITIES)
    assert applies(seed, "none", Needs(), defences_of(settings)) == "needs probabilities, it gives labels"
    # Who has the files does not ask the service.
    monkeypatch.setattr(Needs, "needs", Interface.WEIGHTS)
    assert applies(seed, "none", Needs(), defences_of(settings)) == ""


def test_a_thief_who_asks_too_often_is_stopped_by_the_budget(audit_seed, monkeypatch):
    def greedy(self, victim, means):
        import torch

        victim.ask(torch.from_numpy(means.train.images[:51].copy()).float() / 255)
        return Stolen(means.new_student())

    monkeypatch.setattr(Returns, "run", greedy)
    found = cell(audit_seed, Task("cell", 0, "none", "returns"), Returns(), defences_of(audit_seed.settings))
    assert found["status"] == "not_applicable"
    assert "50" in found["reason"]
