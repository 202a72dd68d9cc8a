"""A weight-key box's answers say no more than the class that it names."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from sdb.answers.rows import decoy_logits, named
from sdb.box.box import Box, BoxInfo
from sdb.config import TrainSettings, WrapSettings
from sdb.errors import CheckpointError, ModelError
from sdb.keys import Owner
from sdb.training.loop import train
from sdb.wrapping.wrap import wrap

SHORT = {"epochs": 2, "batch_size": 32, "learning_rate": 0.005}
OWNER = Owner(bytes(range(32)))
IMAGES = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def teacher(digits, make_net):
    made = make_net(digits)
    train(made, digits, TrainSettings(epochs=8, batch_size=32, learning_rate=0.005))
    return made


def boxed(teacher, digits, kind="weight", **changes):
    key = OWNER.partner("a", kind, 0.5)
    return wrap(teacher, digits, WrapSettings(**SHORT | changes), key=key, owner=OWNER), key


@pytest.fixture(scope="module")
def made(teacher, digits):
    return boxed(teacher, digits)


def test_the_answer_is_a_function_of_the_named_class(made):
    box, _ = made
    with torch.no_grad():
        answers, own = box(IMAGES), box.classifier(IMAGES)
    assert torch.equal(answers.argmax(dim=1), own.argmax(dim=1))
    for label in answers.argmax(dim=1).unique():
        rows = answers[answers.argmax(dim=1) == label]
        assert (rows == rows[0]).all()


def test_the_rows_are_the_owners_decoys_and_nothing_of_the_teacher(made):
    box, _ = made
    decoys = box.owner_record(OWNER)["decoys"]
    assert torch.equal(box.rows, named(decoy_logits(decoys, 8.0, 1.0)))
    # A hair above what the decoys' answer is, which is what training aims at.
    torch.testing.assert_close(box.rows, decoy_logits(decoys, 8.0, 1.0), rtol=0, atol=2e-3)


def test_the_key_opens_past_them(made):
    box, key = made
    with torch.no_grad():
        knowledge = box.unlock(key)(IMAGES)
    named_as = knowledge.argmax(dim=1)
    assert any(
        not torch.equal(rows, rows[:1].expand_as(rows))
        for rows in (knowledge[named_as == label] for label in named_as.unique())
    )


@pytest.mark.parametrize("name", ["model.box", "model.zip"])
def test_they_travel_with_the_box_and_with_a_new_partner(made, tmp_path, name):
    box, _ = made
    box.save(tmp_path / name)
    loaded = Box.load(tmp_path / name)
    assert torch.equal(loaded.rows, box.rows)
    more = loaded.add_partner(OWNER.partner("b"), OWNER)
    with torch.no_grad():
        assert torch.equal(more(IMAGES), box(IMAGES))


def test_switched_off_the_networks_own_logits_come_out(teacher, digits):
    box, _ = boxed(teacher, digits, fixed_answers=False)
    assert box.rows is None
    with torch.no_grad():
        assert torch.equal(box(IMAGES), box.classifier(IMAGES))


def test_training_is_the_same_with_and_without(teacher, digits, made, weights_of, same_weights):
    off, _ = boxed(teacher, digits, fixed_answers=False)
    assert same_weights(weights_of(off.classifier), weights_of(made[0].classifier))


def test_an_image_key_needs_the_networks_own_logits(teacher, digits):
    box, key = boxed(teacher, digits, kind="image")
    assert box.rows is None
    with torch.no_grad():
        assert not torch.equal(box.unlock(key)(IMAGES), box(IMAGES))


def test_a_margin_of_nothing_still_names_the_class(teacher, digits):
    box, _ = boxed(teacher, digits, margin=0.0)
    with torch.no_grad():
        assert torch.equal(box(IMAGES).argmax(dim=1), box.classifier(IMAGES).argmax(dim=1))


@pytest.mark.parametrize(
    "answers",
    [
        torch.zeros(10, 10),
        torch.eye(9),
        torch.eye(10).roll(1, 0),
        torch.eye(10) * torch.inf,
        torch.eye(10)[None],
        torch.eye(10).double(),
        torch.eye(10).bool(),
    ],
)
def test_answers_that_would_not_name_the_class_are_refused(digits, make_net, answers):
    with pytest.raises(ModelError, match="row c is highest at c"):
        Box(make_net(digits), BoxInfo("decoy", {}, digits.class_names), rows=answers)


def test_altered_answers_are_refused(made, tmp_path):
    box, _ = made
    box.save(tmp_path / "model.box")
    path = tmp_path / "model.box" / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError):
        Box.load(tmp_path / "model.box")


# --- as a module -----------------------------------------------------------------------------------------------------


def through_a_state_dict(box):
    """A box built anew, with other weights, whose state is read from a file."""
    other = Box(copy.deepcopy(box.classifier), box.info, box.private, box.record)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    file = io.BytesIO()
    torch.save(box.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


def through_torch_save(box):
    file = io.BytesIO()
    torch.save(box, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def through_a_parent(box):
    """The state of a module that holds the box."""
    made = nn.Sequential(nn.Identity(), Box(copy.deepcopy(box.classifier), box.info, box.private, box.record))
    made.load_state_dict(nn.Sequential(nn.Identity(), box).state_dict())
    return made[1]


COPIES = [
    through_a_state_dict,
    through_torch_save,
    through_a_parent,
    copy.deepcopy,
    lambda b: pickle.loads(pickle.dumps(b)),
]


@pytest.mark.parametrize("through", COPIES)
def test_they_are_part_of_the_module_s_state(made, through):
    box, key = made
    again = through(box)
    with torch.no_grad():
        assert torch.equal(again(IMAGES), box(IMAGES))
        assert torch.equal(again.unlock(key)(IMAGES), box.unlock(key)(IMAGES))
    assert again.info == box.info


def test_a_state_without_them_does_not_switch_them_off_and_one_that_would_not_name_the_class_is_refused(made):
    box = copy.deepcopy(made[0])
    state = box.state_dict()
    with pytest.raises(ModelError, match="row c is highest at c"):
        box.load_state_dict(state | {"rows": box.rows.roll(1, 0)})
    del state["rows"]
    with pytest.raises(RuntimeError, match="rows"):
        box.load_state_dict(state)
    assert torch.equal(box.rows, made[0].rows)
    box.load_state_dict(state, strict=False)
    assert torch.equal(box.rows, made[0].rows)


def test_a_box_without_fixed_answers_has_none_in_its_state(teacher, digits):
    box, _ = boxed(teacher, digits, fixed_answers=False)
    assert "rows" not in box.state_dict()
    assert through_a_state_dict(box).rows is None
