"""Every defence: built once, loaded the same, built again when interrupted, and refused where it does not belong."""

import json
from dataclasses import replace

import pytest
import torch

from sdb.audit.defences import DEFENCES, Defended, boxed
from sdb.audit.defences.boxes import Nasty
from sdb.audit.defences.defence import DONE
from sdb.audit.defences.redirection import GradientRedirection
from sdb.audit.defences.sparse_teacher import AdversarialSparse
from sdb.box.box import Box
from sdb.config import FitSettings
from sdb.errors import CheckpointError, KeyFileError, RunExistsError
from sdb.keys import Key
from sdb.runtime import folder_lock

SETTINGS = FitSettings(epochs=1, batch_size=16, learning_rate=0.01)
# The same defences, shorter where that changes nothing that is tested here.
QUICK = DEFENCES | {"adversarial_sparse": AdversarialSparse(steps=2)}
OUTPUT_ONLY = ("none", "labels_only", "rounded", "reverse_sigmoid", "stingy", "gradient_redirection", "key_switch")
KEYED = {"sdb": "image", "decoy": "weight", "decoy_image": "image"}
every = pytest.mark.parametrize("name", sorted(DEFENCES))


@pytest.fixture(scope="module")
def teacher(few, make_net):
    return make_net(few).eval()


@pytest.fixture(scope="module")
def images(few):
    return torch.from_numpy(few.test.images).float() / 255


@pytest.fixture(scope="module")
def built(teacher, few, tmp_path_factory):
    """A function that builds a defence once for all tests, and gives its folder."""
    folders = {}

    def build(name):
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            QUICK[name].build(teacher, few, SETTINGS, folders[name])
        return folders[name]

    return build


def ask(module, images):
    with torch.no_grad():
        return module(images)


def written(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


@every
def test_a_defence_says_what_it_is(name):
    defence = DEFENCES[name]
    assert defence.name == name
    assert defence.title
    assert defence.summary
    assert defence.source
    json.dumps(defence.parameters())


@every
def test_what_is_loaded_answers_and_is_in_eval_mode(name, built, teacher, images):
    before = {key: tensor.clone() for key, tensor in teacher.state_dict().items()}
    defended = QUICK[name].load(teacher, built(name))
    assert isinstance(defended, Defended)
    for module in filter(None, (defended.keyless, defended.keyed, defended.network)):
        answers = ask(module, images)
        assert answers.shape == (40, 10)
        assert answers.dtype == torch.float32
        assert answers.isfinite().all()
        assert not any(part.training for part in module.modules())
        assert not any(parameter.requires_grad for parameter in module.parameters())
    assert defended.interface in ("labels", "top_k", "probabilities", "logits")
    assert (defended.keyed is not None) == (name in KEYED or name == "key_switch")
    assert defended.seconds > 0
    assert all(torch.equal(tensor, before[key]) for key, tensor in teacher.state_dict().items())


@every
def test_loading_twice_gives_the_same_answers(name, built, teacher, images):
    first, second = (QUICK[name].load(teacher, built(name)) for _ in range(2))
    assert torch.equal(ask(first.keyless, images), ask(second.keyless, images))
    if first.keyed is not None:
        assert torch.equal(ask(first.keyed, images), ask(second.keyed, images))


@every
def test_the_same_seed_gives_the_same_answers_and_draws_nothing_from_the_callers_stream(
    name, built, teacher, few, images, tmp_path
):
    torch.manual_seed(123)
    expected = torch.rand(1)
    torch.manual_seed(123)
    QUICK[name].build(teacher, few, SETTINGS, tmp_path)
    assert torch.equal(torch.rand(1), expected)
    first, second = QUICK[name].load(teacher, built(name)), QUICK[name].load(teacher, tmp_path)
    assert torch.equal(ask(first.keyless, images), ask(second.keyless, images))
    if first.keyed is not None:
        assert torch.equal(ask(first.keyed, images), ask(second.keyed, images))
    if first.key is not None:
        assert first.key.id == second.key.id


@every
def test_a_finished_build_is_left_alone(name, built, teacher, few):
    folder = built(name)
    before = written(folder)
    QUICK[name].build(teacher, few, SETTINGS, folder)
    assert written(folder) == before
    # Nothing that would have to be unpickled, and no key.
    assert {path.suffix for path in before} <= {".json", ".safetensors", ".bin"}
    assert not any(path.name == "key.json" for path in before)


@pytest.mark.parametrize("name", ["none", "cmi", "gradient_redirection", "decoy", "key_switch"])
def test_an_interrupted_build_is_done_again(name, built, teacher, few, images, tmp_path, monkeypatch):
    class Stopped(BaseException):
        pass

    def stop(*arguments, **keywords):
        raise Stopped

    with monkeypatch.context() as patched:
        patched.setattr("sdb.audit.defences.defence.write_atomic", stop)  # the moment before it would be complete
        with pytest.raises(Stopped):
            QUICK[name].build(teacher, few, SETTINGS, tmp_path)
    with pytest.raises(CheckpointError, match="no finished defence"):
        QUICK[name].load(teacher, tmp_path)
    for path in tmp_path.rglob("*.safetensors"):
        path.write_bytes(b"half")
    QUICK[name].build(teacher, few, SETTINGS, tmp_path)
    again = QUICK[name].load(teacher, tmp_path)
    assert torch.equal(ask(again.keyless, images), ask(QUICK[name].load(teacher, built(name)).keyless, images))


@pytest.mark.parametrize("name", OUTPUT_ONLY)
def test_the_top_class_of_the_teacher_is_kept(name, built, teacher, images):
    defended = QUICK[name].load(teacher, built(name))
    wanted = ask(teacher, images)
    assert torch.equal(ask(defended.keyless, images).argmax(dim=1), wanted.argmax(dim=1))
    # Whoever has the weights has the teacher.
    assert torch.equal(ask(defended.network, images), wanted)


@pytest.mark.parametrize("name", ["cmi", "label_smoothed", "nasty", "adversarial_sparse", "sdb", "decoy"])
def test_a_trained_in_defence_ships_what_it_answers_with(name, built, teacher, images):
    defended = QUICK[name].load(teacher, built(name))
    shipped, given = ask(defended.network, images), ask(defended.keyless, images)
    assert torch.equal(shipped.argmax(dim=1), given.argmax(dim=1))
    # Fixed answers are no part of the network: its holder takes them away.
    assert torch.equal(shipped, given) == (name != "decoy")
    assert not torch.equal(ask(defended.network, images), ask(teacher, images))


def test_labels_only_gives_labels(built, teacher):
    defended = DEFENCES["labels_only"].load(teacher, built("labels_only"))
    assert defended.interface == "labels"


def test_partners_of_a_server_with_a_key_get_the_teacher_and_others_nothing_but_the_class(built, teacher, images):
    defended = DEFENCES["key_switch"].load(teacher, built("key_switch"))
    assert torch.equal(ask(defended.keyed, images), ask(teacher, images))
    answers = ask(defended.keyless, images)
    named = answers.argmax(dim=1)
    for c in named.unique():
        assert len(answers[named == c].unique(dim=0)) == 1


@pytest.mark.parametrize("name", sorted(KEYED))
def test_boxes_come_with_their_key_and_owner(name, built, teacher, images):
    defended = QUICK[name].load(teacher, built(name))
    assert defended.key.kind == KEYED[name]
    assert (defended.blend is not None) == (KEYED[name] == "image")
    assert isinstance(defended.box, Box)
    assert defended.owner.id == defended.box.info.owner_id
    assert torch.equal(ask(defended.box.unlock(defended.key), images), ask(defended.keyed, images))
    assert not torch.equal(ask(defended.keyed, images), ask(defended.keyless, images))


def test_a_box_of_ones_own_is_a_defence_too(built, teacher, images):
    inside = DEFENCES["decoy"].load(teacher, built("decoy"))
    defended = boxed(Box.load(built("decoy") / "box"), inside.key, inside.owner)
    assert torch.equal(ask(defended.keyless, images), ask(inside.keyless, images))
    assert boxed(inside.box, None).keyed is None
    with pytest.raises(KeyFileError):
        boxed(inside.box, Key.generate())


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("digits", (4, 0.04)), ("cifar10", (4, 0.04)), ("cifar100", (20, 0.005)), ("tiny_imagenet", (20, 0.01))],
)
def test_nasty_takes_the_published_temperature_and_weight(few, name, wanted):
    changes = Nasty().changes(replace(few, name=name))
    assert (changes["temperature"], changes["disturbance_weight"]) == wanted
    assert Nasty(disturbance_weight=0.5).changes(few)["disturbance_weight"] == 0.5


def test_another_seed_has_another_key_and_other_decoys(built, teacher, few, tmp_path):
    other = SETTINGS.model_copy(update={"seed": 5})
    DEFENCES["decoy"].build(teacher, few, other, tmp_path)
    first, second = DEFENCES["decoy"].load(teacher, built("decoy")), DEFENCES["decoy"].load(teacher, tmp_path)
    assert first.key.id != second.key.id
    assert first.box.owner_record(first.owner)["decoys"] != second.box.owner_record(second.owner)["decoys"]


def test_a_folder_with_another_build_is_not_overwritten(built, teacher, few, make_net):
    folder = built("gradient_redirection")
    before = written(folder)
    defence, longer = DEFENCES["gradient_redirection"], SETTINGS.model_copy(update={"epochs": 2})
    with pytest.raises(RunExistsError, match="settings"):
        defence.build(teacher, few, longer, folder)
    with pytest.raises(RunExistsError, match="parameters"):
        GradientRedirection(budget=0.5).build(teacher, few, SETTINGS, folder)
    with pytest.raises(RunExistsError, match="name"):
        DEFENCES["none"].build(teacher, few, SETTINGS, folder)
    with pytest.raises(RunExistsError, match="teacher"):
        defence.build(make_net(few, seed=7), few, SETTINGS, folder)
    with pytest.raises(RunExistsError, match="data"):
        defence.build(teacher, replace(few, train=few.validation), SETTINGS, folder)
    assert written(folder) == before
    # Where it runs may change.
    defence.build(teacher, few, SETTINGS.model_copy(update={"device": "cpu"}), folder)


def test_what_is_loaded_belongs_together(built, teacher, few, make_net):
    with pytest.raises(CheckpointError, match="another teacher"):
        DEFENCES["rounded"].load(make_net(few, seed=7), built("rounded"))
    with pytest.raises(CheckpointError, match="holds defence 'rounded'"):
        DEFENCES["stingy"].load(teacher, built("rounded"))
    with pytest.raises(CheckpointError, match="parameters"):
        Nasty(disturbance_weight=1.0).load(teacher, built("nasty"))


@pytest.mark.parametrize(
    "damage", [b"", b"[]", b"{}", b'{"schema": 9}', b'{"schema": 1, "name": 3}', b"\xff", b"[" * 100_000]
)
def test_a_damaged_mark_is_an_error_with_a_name(teacher, few, tmp_path, damage):
    (tmp_path / DONE).write_bytes(damage)
    with pytest.raises(CheckpointError, match=DONE):
        DEFENCES["none"].load(teacher, tmp_path)
    with pytest.raises(CheckpointError, match=DONE):
        DEFENCES["none"].build(teacher, few, SETTINGS, tmp_path)


def test_two_builds_do_not_write_to_one_place(teacher, few, tmp_path):
    with folder_lock(tmp_path), pytest.raises(RunExistsError, match="another process"):
        DEFENCES["none"].build(teacher, few, SETTINGS, tmp_path)


def test_altered_weights_are_not_used(teacher, few, tmp_path):
    defence = DEFENCES["gradient_redirection"]
    defence.build(teacher, few, SETTINGS, tmp_path)
    path = next(tmp_path.glob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="sha256"):
        defence.load(teacher, tmp_path)
