"""A weight-key box's answers say no more than the class that it names, and the level of its confidence."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from sdb.answers.rows import Rows, decoy_logits
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


@pytest.fixture(scope="module")
def misled(teacher, digits):
    return boxed(teacher, digits, confidence_levels=0)


def test_the_answer_is_a_function_of_the_named_class_and_its_level(made):
    box, _ = made
    with torch.no_grad():
        answers, own = box(IMAGES), box.classifier(IMAGES)
    assert torch.equal(answers.argmax(dim=1), own.argmax(dim=1))
    labels, levels = box.rows.level(own)
    assert torch.equal(answers, box.rows.rows[labels, levels])
    for label in labels.unique():
        assert len(answers[labels == label].unique(dim=0)) <= box.rows.levels


def test_the_rows_are_the_owners_decoys_and_how_often_they_are_right(made):
    box, _ = made
    decoys = box.owner_record(OWNER)["decoys"]
    for label, row in ((c, level) for c in range(10) for level in box.rows.rows[c]):
        shares = row.softmax(dim=0)
        others = [c for c in range(10) if c != label and c not in decoys[label]]
        assert shares[decoys[label]].min() > shares[others].max()
        assert shares[label] > shares[decoys[label]].max()
        assert shares[decoys[label]].sum() >= 0.0099


def test_without_levels_they_are_the_decoys_alone(misled):
    box, _ = misled
    decoys = box.owner_record(OWNER)["decoys"]
    assert box.rows.levels == 1
    assert box.info.levels == ()
    assert box.info.parameters["confidence_levels"] == 0
    # A hair above what the decoys' answer is, which is what training aims at.
    torch.testing.assert_close(box.rows.rows[:, 0], decoy_logits(decoys, 8.0, 1.0), rtol=0, atol=2e-3)
    assert box.rows.rows[0, 0].argmax() == 0


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
    assert torch.equal(loaded.rows.rows, box.rows.rows)
    assert torch.equal(loaded.rows.edges, box.rows.edges)
    assert loaded.info == box.info
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
    box, _ = boxed(teacher, digits, confidence_levels=0, margin=0.0)
    with torch.no_grad():
        assert torch.equal(box(IMAGES).argmax(dim=1), box.classifier(IMAGES).argmax(dim=1))


def table(levels=2):
    """Rows of ten classes that name their class."""
    return torch.eye(10)[:, None].repeat(1, levels, 1)


EDGES = torch.full((10, 1), 0.5)


@pytest.mark.parametrize(
    ("rows", "edges", "field"),
    [
        (torch.zeros(10, 2, 10), EDGES, "rows"),
        (table().roll(1, 0), EDGES, "rows"),
        (table() * torch.inf, EDGES, "rows"),
        (table()[:, :, :9], EDGES, "rows"),
        (table()[:, :0], EDGES, "rows"),
        (torch.eye(10), EDGES, "rows"),
        (table().double(), EDGES, "rows"),
        (table().bool(), EDGES, "rows"),
        (table(3), torch.full((10, 2), 0.5), "edges"),
        (table(3), EDGES, "edges"),
        (table(), EDGES[:9], "edges"),
        (table(), EDGES * torch.nan, "edges"),
        (table(), EDGES.double(), "edges"),
        (table(), None, "edges"),
    ],
)
def test_rows_and_edges_that_are_none_are_refused_by_name(rows, edges, field):
    with pytest.raises(ModelError, match=f"^{field}: "):
        Rows(rows, edges)


def test_rows_of_another_number_of_classes_are_refused(digits, make_net):
    nine = Rows(torch.eye(9)[:, None])
    with pytest.raises(ModelError, match="rows of 9 classes for 10"):
        Box(make_net(digits), BoxInfo("decoy", {}, digits.class_names), rows=nine)


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
    with pytest.raises(ModelError, match="highest at c"):
        box.load_state_dict(state | {"rows.rows": box.rows.rows.roll(1, 0)})
    del state["rows.rows"]
    with pytest.raises(RuntimeError, match="rows"):
        box.load_state_dict(state)
    box.load_state_dict(state, strict=False)
    with torch.no_grad():
        assert torch.equal(box(IMAGES), made[0](IMAGES))


def test_a_state_of_another_number_of_levels_is_taken(made, misled):
    box = copy.deepcopy(misled[0])
    box.load_state_dict(made[0].state_dict())
    with torch.no_grad():
        assert torch.equal(box(IMAGES), made[0](IMAGES))


def test_a_box_without_fixed_answers_has_none_in_its_state(teacher, digits):
    box, _ = boxed(teacher, digits, fixed_answers=False)
    assert not [name for name in box.state_dict() if name.startswith("rows")]
    assert through_a_state_dict(box).rows is None
