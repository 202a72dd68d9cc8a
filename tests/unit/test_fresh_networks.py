"""Networks made afresh from a module object, and the step that makes a wrap's keys."""

import copy

import pytest
import torch
from torch import nn

from sdb.config import FitSettings, WrapParams
from sdb.errors import ConfigError, KeyFileError, ModelError
from sdb.keys import Key, Owner
from sdb.models import from_module
from sdb.runs.resolve import KEY, OWNER, lacks_key, make_keys, wrapping_keys
from sdb.wrapping.networks import fresh_copy

SETTINGS = FitSettings(seed=5)


class Attention(nn.Module):
    """Rows of an image as tokens."""

    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, images):
        return self.head(self.layer(images.squeeze(1)).mean(dim=1))


class Scaled(nn.Module):
    """Has a parameter of its own, in `kept`, that nobody draws again."""

    def __init__(self):
        super().__init__()
        self.flat = nn.Linear(64, 10)
        self.kept = nn.Parameter(torch.ones(10))

    def forward(self, images):
        return self.kept * self.flat(images.flatten(1))


class Reset(Scaled):
    def reset_parameters(self):
        nn.init.ones_(self.kept)


class Broken(Scaled):
    def reset_parameters(self):
        raise RuntimeError("not today")


def convolutions():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
    )


@pytest.mark.parametrize("make", [convolutions, Attention, Reset])
def test_a_module_object_is_made_afresh_where_all_its_parts_draw_their_weights_again(make):
    teacher = from_module(make(), 10, (1, 8, 8), (0.2,), (0.5,))
    with torch.no_grad():  # as training leaves it: nothing has the value that it began with
        for parameter in teacher.parameters():
            parameter.add_(0.5)
    teacher.eval().requires_grad_(False)
    before, state = copy.deepcopy(teacher.state_dict()), torch.random.get_rng_state()
    first, again, other = (fresh_copy(teacher, SETTINGS, purpose) for purpose in ("a", "a", "b"))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert first.training
    assert all(parameter.requires_grad for parameter in first.parameters())
    for (name, value), same in zip(first.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(value, same), name
        assert torch.isfinite(value).all(), name
        assert not torch.equal(value, before[name]), name
    assert not all(map(torch.equal, first.parameters(), other.parameters()))
    assert torch.equal(first.mean, teacher.mean)
    assert first.spec == teacher.spec


@pytest.mark.parametrize(("make", "named"), [(Scaled, "kept"), (Broken, "not today")])
def test_one_that_would_keep_a_weight_is_refused(make, named):
    with pytest.raises(ModelError, match=rf"module object.*{named}.*reset_parameters"):
        fresh_copy(from_module(make(), 10, (1, 8, 8), (0.0,), (1.0,)), SETTINGS, "a")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("method", "made"), [("decoy", [KEY, OWNER]), ("sdb", [KEY]), ("nasty", [])])
def test_keys_are_made_in_a_step_of_their_own_and_then_only_read(tmp_path, method, made):
    params = WrapParams(dataset="digits", model_name="mlp", teacher="teacher", method=method)
    assert lacks_key(tmp_path, params) == bool(made)
    if made:
        with pytest.raises(KeyFileError):
            wrapping_keys(tmp_path, params)
    assert names(tmp_path) == []
    make_keys(tmp_path, params)
    assert names(tmp_path) == made
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    make_keys(tmp_path, params)
    keys, owner = wrapping_keys(tmp_path, params)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert [key.id for key in keys] == ([Key.load(tmp_path / KEY).id] if made else [])
    assert (owner is not None) == (OWNER in made)


def test_what_is_named_is_not_made(tmp_path):
    Owner.generate().save(tmp_path / "mine.json")
    named = {"dataset": "digits", "model_name": "mlp", "teacher": "teacher"}
    params = WrapParams(**named, owner=tmp_path / "mine.json", partners=["anna", "bert"])
    make_keys(tmp_path, params)
    keys, owner = wrapping_keys(tmp_path, params)
    assert [key.id for key in keys] == [owner.partner(name).id for name in ("anna", "bert")]
    assert names(tmp_path) == ["mine.json"]
    with pytest.raises(ConfigError, match="partners"):
        wrapping_keys(tmp_path, WrapParams(**named, partners=["anna"]))
