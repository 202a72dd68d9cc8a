"""Class names: kept with weights, compared wherever a model meets data, and refused where they differ."""

from __future__ import annotations

import json
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdb.audit.job import audit
from sdb.audit.plan import AuditSettings
from sdb.box.box import Box
from sdb.config import DistillSettings, TrainSettings, WrapSettings
from sdb.distillation import distill
from sdb.errors import CheckpointError, ModelError
from sdb.keys import Key, Owner
from sdb.models import compare_class_names
from sdb.models.checkpoint import check_fits, load_classifier, read_tensors, write_tensors
from sdb.runs.folder import open_run
from sdb.runtime import choose_device
from sdb.service.model import load_served
from sdb.tracing.decoys import trace
from sdb.training.loop import train
from sdb.wrapping.wrap import wrap

FIT = {"epochs": 1, "batch_size": 24, "device": "cpu", "learning_rate": 1e-3, "optimizer": "adam"}
LETTERS = tuple("abcdefghij")
SWAPPED = tuple("bacdefghij")
SAYS = "other_class_names"

names_of = st.lists(st.text(min_size=1, max_size=4), min_size=2, max_size=6, unique_by=str.casefold)


@pytest.mark.parametrize(
    ("own", "given_names", "refused"),
    [
        (("cat", "dog"), ("cat", "dog"), None),
        ((), ("cat", "dog"), None),
        (("cat", "dog"), (), None),
        (("Cat", "DOG"), ("cat", "dog"), None),
        (("caf\u00e9", "b"), ("cafe\u0301", "b"), None),
        (("cat", "dog"), ("dog", "cat"), "another"),
        (("cat", "dog", "emu"), ("ant", "cat", "emu"), "another"),
        (("a", "A"), ("A", "a"), "another"),
        (("cat", "dog", "emu"), ("ant", "bee", "cow"), "unless"),
        (("cat", "dog", "emu"), ("cat", "dog", "eel"), "unless"),
        (("0", "1"), ("cat", "dog"), "unless"),
        (("crane", "crane", "x"), ("n1", "crane", "x"), "unless"),
    ],
)
def test_which_names_are_refused(own, given_names, refused):
    """Another order always, other names unless told."""
    for told in (False, True):
        if refused == "another" or (refused == "unless" and not told):
            with pytest.raises(ModelError, match=SAYS if refused == "unless" else "model's order"):
                compare_class_names(own, given_names, "it", other_class_names=told)
        else:
            compare_class_names(own, given_names, "it", other_class_names=told)


@given(names_of, st.data())
def test_every_other_order_is_refused(names, data):
    composed = [unicodedata.normalize("NFC", name) for name in names]
    if len({name.casefold() for name in composed}) < len(composed):
        return
    order = data.draw(st.permutations(names))
    compare_class_names([unicodedata.normalize("NFD", name) for name in composed], composed, "it")
    if order != names:
        with pytest.raises(ModelError):
            compare_class_names(names, order, "it", other_class_names=True)


@pytest.fixture(scope="module")
def world(few, make_net):
    """A teacher and a box of ten letters, the key and the owner."""
    data = replace(few, class_names=LETTERS)
    teacher = make_net(data)
    train(teacher, data, TrainSettings(**FIT))
    owner = Owner.generate()
    key = owner.partner("p", "weight")
    return data, teacher, wrap(teacher, data, WrapSettings(**FIT), key=key, owner=owner), key, owner


def test_training_gives_a_model_its_names(world, make_net):
    data, teacher, box, key, _ = world
    assert teacher.class_names == box.classifier.class_names == box.unlock(key).class_names == LETTERS
    student = make_net(data)
    distill(box, student, data, DistillSettings(**FIT))
    assert student.class_names == LETTERS


@pytest.mark.parametrize("names", [SWAPPED, tuple("ABCDEFGHIZ"), tuple("0123456789")])
def test_models_meet_data_of_other_names(world, make_net, names, tmp_path):
    """Wrap, distil (also keyed), trace and audit refuse, and run where they are told, unless the order is another."""
    data, teacher, box, key, owner = world
    other = replace(data, class_names=names)
    key_of = Key.generate()
    quick = {
        "seeds": 1,
        "epochs": 1,
        "maker_epochs": 1,
        "attacks": ("labels",),
        "defences": ("none",),
        "device": "cpu",
    }

    def runs(**told):
        yield lambda: wrap(teacher, other, WrapSettings(**FIT, **told), key=key_of)
        yield lambda: distill(teacher, make_net(data), other, DistillSettings(**FIT, **told))
        yield lambda: distill(box, make_net(data), other, DistillSettings(**FIT, **told))
        yield lambda: distill(box, make_net(data), other, DistillSettings(**FIT, **told), key=key)
        yield lambda: trace(teacher, box, owner, other, **told)
        yield lambda: check_fits(teacher, "x", None, None, names, **told)

    for run in runs():
        with pytest.raises(ModelError):
            run()
    for run in runs(other_class_names=True):
        if names == SWAPPED:
            with pytest.raises(ModelError, match="model's order"):
                run()
        else:
            run()
    with pytest.raises(ModelError):
        audit(box, other, teacher=teacher, settings=AuditSettings(**quick))


def test_a_suspect_of_other_names(world, make_net):
    data, _, box, _, owner = world
    suspect = make_net(data)
    suspect.class_names = tuple("klmnopqrst")
    with pytest.raises(ModelError, match="the suspect"):
        trace(suspect, box, owner, data.test)
    with pytest.raises(ModelError, match="the reference"):
        trace(make_net(data), box, owner, data.test, reference=suspect)
    trace(suspect, box, owner, data.test, other_class_names=True)


def test_checkpoints_keep_names(world, make_net, tmp_path):
    """The last and the best, also those that have none; and a run is resumed on the same classes."""
    data, *_ = world
    device = choose_device("cpu")
    settings = TrainSettings(**FIT)
    values = settings.model_dump(mode="json")
    with open_run(tmp_path / "run", values, device) as run:
        train(make_net(data), data, settings, run=run)
    for file in (tmp_path / "run", tmp_path / "run" / "best.safetensors"):
        assert load_classifier(file, class_names=LETTERS).class_names == LETTERS
        with pytest.raises(ModelError, match=r"its classes are 'a', 'b', 'c', 'd' \.\.\."):
            load_classifier(file, class_names=tuple("0123456789"))
    assert load_served(tmp_path / "run").class_names == LETTERS  # what a server says of it
    swapped = replace(data, class_names=SWAPPED)
    with (
        open_run(tmp_path / "run", values, device, resume=True) as run,
        pytest.raises(ModelError, match="class 0"),
    ):
        train(make_net(data), swapped, settings, run=run)

    tensors, header = read_tensors(tmp_path / "run" / "last.safetensors")
    for names, says in (
        (None, None),
        ([], None),
        (["a"], "1 class names"),
        ("abcdefghij", "no list"),
        ([1] * 10, "no"),
    ):
        changed = {n: v for n, v in (header | {"class_names": names}).items() if v is not None}
        write_tensors(tmp_path / "x.safetensors", tensors, changed)
        if says is None:
            assert load_classifier(tmp_path / "x.safetensors", class_names=SWAPPED).class_names == ()
        else:
            with pytest.raises(CheckpointError, match=says):
                load_classifier(tmp_path / "x.safetensors")


def test_an_old_box_opens_with_its_names(world, tmp_path):
    _, _, box, key, _ = world
    box.save(tmp_path / "x.box")
    assert "class_names" not in json.loads((tmp_path / "x.box" / "box.json").read_text())["model"]
    loaded = Box.load(tmp_path / "x.box")
    assert loaded.classifier.class_names == loaded.unlock(key).class_names == LETTERS
