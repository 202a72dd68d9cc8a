"""The private part of a weight-key box: what it is, how it is trained, how it travels, and who cannot have it."""

import hashlib
import json

import pytest
import torch
from torch import nn

from sdb.box.box import MANIFEST, WEIGHTS, Box
from sdb.box.boxfile import PRIVATE, RECORD, write_box_files
from sdb.box.private_part import DOWN, UP, PrivatePart, has_norms, head_of, put_in_place, replaceable
from sdb.config import WrapSettings
from sdb.errors import CheckpointError, ConfigError, KeyFileError, ModelError
from sdb.keys import Key, Owner, derive
from sdb.keys.sealing import NONCE_BYTES, seal, unseal
from sdb.models import ModelSpec, from_module
from sdb.wrapping.wrap import wrap

OWNER = Owner(bytes(range(32)))
FIRST, SECOND, STRANGER = OWNER.partner("first"), OWNER.partner("second"), Key(bytes(32), kind="weight")
SETTINGS = WrapSettings(method="decoy", epochs=2, batch_size=16, learning_rate=0.01, optimizer="adam")


class WithLayerNorm(nn.Module):
    """Two linear layers with as many outputs as classes; the one that is defined first runs last."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(10, 10)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, x):
        return self.head(self.body(x).relu())


class ConvHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 10, 3), nn.GroupNorm(2, 10), nn.ReLU())
        self.classify = nn.Conv2d(10, 10, 1)

    def forward(self, x):
        return self.classify(self.body(x)).mean((2, 3))


def module_of(network):
    return from_module(network, 10, (1, 8, 8), (0.3,), (0.4,))


def vit():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_labels=10,
    )
    return module_of(transformers.ViTForImageClassification(config))


def named(name, **arguments):
    return ModelSpec(name, arguments, 10, (1, 8, 8), (0.3,), (0.4,)).build()


# What each has as its private share at most; the smallest networks have the largest.
SHARES = {
    "net": (lambda: named("net", num_channels=24), 0.03),
    "net, narrow": (lambda: named("net", num_channels=4), 0.14),
    "preresnet20": (lambda: named("preresnet20"), 0.01),
    "mlp": (lambda: named("mlp"), 0.04),
    "vit": (vit, 0.05),
    "layer norm": (lambda: module_of(WithLayerNorm()), 0.08),
    "conv head": (lambda: module_of(ConvHead()), 0.7),
}


@pytest.fixture(params=SHARES)
def case(request):
    torch.manual_seed(0)
    make, share = SHARES[request.param]
    return used(make()), share


def used(classifier):
    """The network after a few images, so that running statistics are not those of a new one."""
    classifier.train()
    with torch.no_grad():
        classifier(images(32, seed=9))
    return classifier.eval()


def images(count=6, seed=0):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def disturb(private):
    """Other values everywhere, as training would leave them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in private.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator))


# --- what it is ------------------------------------------------------------------------------------------------------


def test_it_begins_as_nothing_bit_for_bit(case):
    classifier, _ = case
    private = PrivatePart(classifier).eval()
    assert torch.equal(private(classifier, images()), classifier(images()))


def test_it_is_small(case):
    classifier, most = case
    size = sum(p.numel() for p in PrivatePart(classifier).parameters())
    assert 0 < size <= most * sum(p.numel() for p in classifier.parameters())


def test_what_is_exported_and_put_in_place_answers_as_in_training_bit_for_bit(case, weights_of, same_weights):
    classifier, _ = case
    private = PrivatePart(classifier).eval()
    disturb(private)
    before = weights_of(classifier)
    keyed = private(classifier, images())
    unlocked = put_in_place(classifier, private.export())
    assert torch.equal(unlocked(images()), keyed)
    assert not torch.allclose(keyed, classifier(images()), atol=1e-3)
    assert same_weights(weights_of(classifier), before)
    assert not unlocked.training


def test_every_norm_and_the_head_are_private(case):
    classifier, _ = case
    names = set(replaceable(classifier))
    norms = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
    for prefix, module in classifier.named_modules():
        if isinstance(module, norms) or module is head_of(classifier):
            assert {f"{prefix}.{name}" for name in module.state_dict()} <= names
    assert names <= classifier.state_dict().keys()


def test_a_network_without_norms_gets_low_rank_additions():
    classifier = named("mlp")
    assert not has_norms(classifier)
    exported = PrivatePart(classifier).export()
    assert {name for name in exported if name.endswith((UP, DOWN))} == {
        f"network.{layer}.weight{end}" for layer in ("fc1", "fc2") for end in (UP, DOWN)
    }
    assert {"network.fc3.weight", "network.fc3.bias"} <= exported.keys()
    assert exported["network.fc2.weight" + UP].shape == (512, 4)
    assert not exported["network.fc2.weight" + UP].any()


def test_the_head_is_the_layer_that_runs_last_not_the_one_that_stands_last():
    network = WithLayerNorm()
    assert head_of(module_of(network)) is network.head


def test_a_convolution_can_be_the_head():
    network = ConvHead()
    assert head_of(module_of(network)) is network.classify


def test_looking_for_the_head_leaves_modes_hooks_and_statistics_alone(weights_of, same_weights):
    classifier = named("net", num_channels=4).train()
    classifier.network.bn1.eval()
    before = weights_of(classifier)
    head_of(classifier)
    assert same_weights(weights_of(classifier), before)
    assert classifier.network.bn2.training
    assert not classifier.network.bn1.training
    assert not any(module._forward_hooks for module in classifier.modules())


def test_a_network_without_a_head_is_refused():
    class NoHead(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(64, 10))

        def forward(self, x):
            return x.flatten(1) @ self.weight

    with pytest.raises(ModelError, match="use image keys"):
        PrivatePart(module_of(NoHead()))


# --- how it is trained -----------------------------------------------------------------------------------------------


def test_the_keyed_loss_reaches_shared_weights_and_the_private_part_only(case):
    classifier, _ = case
    private = PrivatePart(classifier).train()
    classifier.train()
    public = {name: classifier.state_dict()[name].clone() for name in private.replaced}
    private(classifier, images(8)).square().sum().backward()
    twins = set(private.replaced)
    for name, parameter in classifier.named_parameters():
        if name in twins:
            assert parameter.grad is None, f"public {name}"
    shared = [p for name, p in classifier.named_parameters() if name not in twins and p.grad is not None]
    assert sum(float(p.grad.abs().sum()) for p in shared) > 0
    # The lower factor of an addition gets none while the upper one is nothing; all others get some.
    assert all(p.grad is not None for p in private.parameters())
    assert all(torch.equal(classifier.state_dict()[name], value) for name, value in public.items())


def test_the_keyless_loss_does_not_reach_the_private_part():
    classifier = named("net", num_channels=4).train()
    private = PrivatePart(classifier)
    before = private.export()
    classifier(images(8)).square().sum().backward()
    assert all(p.grad is None for p in private.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in private.export().items())


def test_running_statistics_are_apart():
    classifier = used(named("net", num_channels=4)).train()
    private = PrivatePart(classifier).train()
    public_before = classifier.network.bn1.running_mean.clone()
    private(classifier, 1 - images(16))
    name = "network.bn1.running_mean"
    assert torch.equal(classifier.network.bn1.running_mean, public_before)
    assert not torch.equal(private.export()[name], public_before)
    assert private.export()["network.bn1.num_batches_tracked"] == 2
    held = private.export()[name]
    classifier(images(16))
    assert torch.equal(private.export()[name], held)
    assert not torch.equal(classifier.network.bn1.running_mean, public_before)


def test_tensors_of_another_network_are_refused():
    exported = PrivatePart(named("net", num_channels=4)).export()
    with pytest.raises(CheckpointError, match="of another"):
        put_in_place(named("net", num_channels=8), exported)
    with pytest.raises(CheckpointError, match="of another"):
        put_in_place(named("mlp"), exported)


# --- a box with it ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(few, make_net):
    """A box, and its private part as it was when training ended."""
    caught = []
    with pytest.MonkeyPatch.context() as patch:
        original = PrivatePart.export
        patch.setattr(PrivatePart, "export", lambda self: caught.append(original(self)) or caught[-1])
        box = wrap(make_net(few), few, SETTINGS, key=[FIRST], owner=OWNER)
    assert len(caught) == 1
    return box, caught[0]


@pytest.fixture
def box(made):
    return made[0]


def test_unlocked_answers_are_those_of_training(made):
    box, held = made
    assert torch.equal(box.unlock(FIRST)(images()), put_in_place(box.classifier, held)(images()))
    assert not torch.allclose(box.unlock(FIRST)(images()), box(images()), atol=1e-2)


def test_a_foreign_key_is_refused_and_its_attempt_is_keyless(box):
    with pytest.raises(KeyFileError, match="another box"):
        box.unlock(STRANGER)
    with pytest.raises(KeyFileError, match="another box"):
        box.unlock(SECOND)
    assert torch.equal(box.attempt(STRANGER)(images()), box(images()))


def test_a_saved_box_opens_as_before(box, tmp_path):
    box.save(tmp_path / "a.zip")
    loaded = Box.load(tmp_path / "a.zip")
    assert torch.equal(loaded.unlock(FIRST)(images()), box.unlock(FIRST)(images()))
    assert loaded.owner_record(OWNER) == box.owner_record(OWNER)


def test_a_partner_is_added_by_the_owner_without_data(box, tmp_path):
    box.save(tmp_path / "old.box")
    more = Box.load(tmp_path / "old.box").add_partner(SECOND, OWNER)
    more.save(tmp_path / "new.box")
    loaded = Box.load(tmp_path / "new.box")
    assert torch.equal(loaded.unlock(SECOND)(images()), loaded.unlock(FIRST)(images()))
    assert torch.equal(loaded.unlock(FIRST)(images()), box.unlock(FIRST)(images()))
    for name in (WEIGHTS, PRIVATE, RECORD):
        assert (tmp_path / "old.box" / name).read_bytes() == (tmp_path / "new.box" / name).read_bytes()
    with pytest.raises(KeyFileError, match="another box"):
        box.unlock(SECOND)  # the old box knows nothing of it


def test_a_wrong_owner_adds_nobody(box):
    with pytest.raises(KeyFileError, match="does not own"):
        box.add_partner(SECOND, Owner(bytes(32)))
    with pytest.raises(KeyFileError, match="does not own"):
        box.owner_record(Owner(bytes(32)))
    # Somebody who writes a public id into an owner object of their own still lacks the secret.
    with pytest.raises(ConfigError, match="weight"):
        box.add_partner(Key(bytes(32)), OWNER)


def test_fifty_partners_cost_at_most_two_hundred_bytes_each(box, tmp_path):
    keys = [OWNER.partner(f"partner {number}") for number in range(50)]
    box.save(tmp_path / "one.box")
    many = box
    for key in keys:
        many = many.add_partner(key, OWNER)
    many.save(tmp_path / "many.box")
    sizes = [(tmp_path / name / MANIFEST).stat().st_size for name in ("one.box", "many.box")]
    assert (sizes[1] - sizes[0]) / 50 <= 200
    loaded = Box.load(tmp_path / "many.box")
    expected = box.unlock(FIRST)(images())
    assert all(torch.equal(loaded.unlock(key)(images()), expected) for key in keys)
    assert len(set(loaded.info.slots.values())) == 51
    assert many.add_partner(keys[0], OWNER).info.key_ids == many.info.key_ids  # once is enough


def test_no_private_tensor_and_no_secret_lies_open_in_any_file(made, tmp_path):
    box, held = made
    box.save(tmp_path / "a.box")
    everything = b"".join(path.read_bytes() for path in (tmp_path / "a.box").iterdir())
    public = box.classifier.state_dict()
    # The first norm sees the same in both worlds, so its statistics are no secret; all else must differ.
    same = {
        name for name, tensor in held.items() if tensor.is_floating_point() and torch.equal(tensor, public[name])
    }
    assert same == {"network.bn1.running_mean", "network.bn1.running_var"}
    for name, tensor in held.items():
        if tensor.is_floating_point() and name not in same:
            assert tensor.numpy().tobytes()[:16] not in everything, name
    content = derive(OWNER.secret, f"content/{box.info.id}")
    for secret in (OWNER.secret, FIRST.secret, content):
        assert secret not in everything
        assert secret.hex().encode() not in everything
    decoys = json.dumps(box.owner_record(OWNER)["decoys"])
    assert decoys.encode() not in everything


# --- altered boxes, written so that every checksum is right ----------------------------------------------------------


def forge(box, folder, changes=(), files=()):
    """The saved box with changed manifest fields and files, and all digests made again, as an attacker would."""
    box.save(folder / "true.box")
    contents = {p.name: p.read_bytes() for p in (folder / "true.box").iterdir()} | dict(files)
    manifest = json.loads(contents.pop(MANIFEST)) | dict(changes)
    for name in ("sdb_box", "files", "sha256"):
        del manifest[name]
    write_box_files(folder / "forged.box", manifest, contents)
    digest = json.loads((folder / "forged.box" / MANIFEST).read_text())["files"]
    assert all(hashlib.sha256(data).hexdigest() == digest[name] for name, data in contents.items())
    return Box.load(folder / "forged.box")


def flipped(data, at):
    data = bytearray(data)
    data[at] ^= 1
    return bytes(data)


PLACES = {"nonce": 0, "first": NONCE_BYTES, "tag": -1}


@pytest.mark.parametrize("at", PLACES.values(), ids=PLACES)
def test_one_flipped_bit_of_the_private_part_is_noticed(box, tmp_path, at):
    forged = forge(box, tmp_path, files={PRIVATE: flipped(box.private, at)})
    assert torch.equal(forged(images()), box(images()))
    with pytest.raises(CheckpointError, match="private part does not open"):
        forged.unlock(FIRST)


@pytest.mark.parametrize("at", PLACES.values(), ids=PLACES)
def test_one_flipped_bit_of_the_record_is_noticed(box, tmp_path, at):
    forged = forge(box, tmp_path, files={RECORD: flipped(box.record, at)})
    with pytest.raises(CheckpointError, match="record does not open"):
        forged.owner_record(OWNER)


@pytest.mark.parametrize("at", PLACES.values(), ids=PLACES)
def test_one_flipped_bit_of_a_slot_is_noticed(box, tmp_path, at):
    slot = flipped(bytes.fromhex(box.info.slots[FIRST.id]), at).hex()
    forged = forge(box, tmp_path, {"slots": {FIRST.id: slot}})
    with pytest.raises(CheckpointError, match="slot does not open"):
        forged.unlock(FIRST)


@pytest.mark.parametrize("slots", [{}, {FIRST.id: "no hexadecimal"}, {FIRST.id: ""}, {FIRST.id: "00" * 20}])
def test_a_slot_that_is_none_is_refused(box, tmp_path, slots):
    with pytest.raises(CheckpointError, match="slot"):
        forge(box, tmp_path, {"slots": slots}).unlock(FIRST)


def test_a_missing_private_part_is_refused(box, tmp_path):
    box.save(tmp_path / "a.box")
    loaded = Box.load(tmp_path / "a.box")
    loaded.private = None
    with pytest.raises(CheckpointError, match=PRIVATE):
        loaded.unlock(FIRST)


def test_a_slot_of_another_partner_is_refused(box, tmp_path):
    both = box.add_partner(SECOND, OWNER)
    swapped = {FIRST.id: both.info.slots[SECOND.id], SECOND.id: both.info.slots[FIRST.id]}
    forged = forge(both, tmp_path, {"slots": swapped})
    for key in (FIRST, SECOND):
        with pytest.raises(CheckpointError, match="slot does not open"):
            forged.unlock(key)


@pytest.mark.parametrize(
    "changes",
    [{"id": "0" * 32}, {"method": "sdb"}, {"class_names": [*"jihgfedcba"]}],
    ids=["id", "method", "classes"],
)
def test_sealed_parts_are_bound_to_what_the_box_says_of_itself(box, tmp_path, changes):
    forged = forge(box, tmp_path, changes)
    with pytest.raises(CheckpointError, match="slot does not open"):
        forged.unlock(FIRST)


def test_sealing_the_same_twice_gives_other_bytes_and_both_open():
    secret, context = bytes(32), {"box": "a"}
    first, second = (seal(secret, b"the same", context) for _ in range(2))
    assert first[:NONCE_BYTES] != second[:NONCE_BYTES]
    assert first[NONCE_BYTES:] != second[NONCE_BYTES:]
    assert unseal(secret, first, context, "it") == unseal(secret, second, context, "it") == b"the same"
    with pytest.raises(CheckpointError, match="it does not open"):
        unseal(secret, first, context | {"box": "b"}, "it")


@pytest.fixture(scope="module")
def other(few, make_net):
    """Another box of the same owner, for the same partner, from the same teacher, seed and data."""
    return wrap(make_net(few), few, SETTINGS, key=[FIRST], owner=OWNER)


def test_a_private_part_of_another_box_is_refused(box, other, tmp_path):
    forged = forge(box, tmp_path, files={PRIVATE: other.private})
    with pytest.raises(CheckpointError, match="private part does not open"):
        forged.unlock(FIRST)


def test_slot_and_private_part_of_another_box_together_are_refused(box, other, tmp_path):
    forged = forge(box, tmp_path, {"slots": other.info.slots}, {PRIVATE: other.private})
    with pytest.raises(CheckpointError, match="slot does not open"):
        forged.unlock(FIRST)


# --- revocation ------------------------------------------------------------------------------------------------------


def test_a_revoked_partner_s_secret_opens_nothing(few, make_net, made):
    old = made[0].add_partner(SECOND, OWNER)
    old.unlock(SECOND)
    new = wrap(make_net(few), few, SETTINGS, key=[FIRST], owner=OWNER)
    new.unlock(FIRST)
    with pytest.raises(KeyFileError, match="another box"):
        new.unlock(SECOND)
    assert torch.equal(new.attempt(SECOND)(images()), new(images()))
    # Whatever can be derived from the secret, and the content secret that it once opened, on all that is sealed.
    once = unseal(
        derive(SECOND.secret, f"slot/{old.info.id}"),
        bytes.fromhex(old.info.slots[SECOND.id]),
        old._context(f"slot/{SECOND.id}"),
        "slot",
    )
    sealed = [new.private, new.record, *(bytes.fromhex(slot) for slot in new.info.slots.values())]
    purposes = ("private", "record", f"slot/{FIRST.id}", f"slot/{SECOND.id}")
    for secret in (SECOND.secret, once, derive(SECOND.secret, f"slot/{new.info.id}")):
        for data in sealed:
            for purpose in purposes:
                with pytest.raises(CheckpointError, match="does not open"):
                    unseal(secret, data, new._context(purpose), "it")


def test_every_box_has_its_own_secrets_though_owner_teacher_and_seed_are_the_same(made, other):
    box = made[0]
    assert box.info.id != other.info.id
    assert box.private != other.private
    assert box._content_secret(OWNER) != other._content_secret(OWNER)


# --- everything private ----------------------------------------------------------------------------------------------


def test_a_whole_private_part_shares_no_weight_with_the_public_network(few, make_net, weights_of):
    teacher = make_net(few, seed=1)
    whole = SETTINGS.model_copy(update={"private_part": "whole"})
    box = wrap(teacher, few, whole, key=FIRST)
    private = PrivatePart(box.classifier, whole=True)
    assert set(private.export()) == set(box.classifier.state_dict()) - {"mean", "std"}
    assert box.info.parameters["private_part"] == "whole"
    # With one level the public network follows from the classes that the teacher names, not from how sure it is.
    surer = make_net(few, seed=1)
    with torch.no_grad():
        surer.network.fc2.weight.mul_(2)
        surer.network.fc2.bias.mul_(2)
    any_decoys = whole.model_copy(update={"decoy_choice": "any", "confidence_levels": 1})
    first, second = (weights_of(wrap(each, few, any_decoys, key=FIRST).classifier) for each in (teacher, surer))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_whole_private_part_starts_as_the_teacher_and_travels(few, make_net, tmp_path):
    teacher = make_net(few, seed=1)
    still = SETTINGS.model_copy(update={"private_part": "whole", "epochs": 1, "learning_rate": 1e-12})
    box = wrap(teacher, few, still, key=FIRST)
    box.save(tmp_path / "box")
    opened = Box.load(tmp_path / "box").unlock(FIRST)
    for name, parameter in teacher.named_parameters():
        assert torch.allclose(opened.state_dict()[name], parameter, atol=1e-6), name
        if parameter.ndim > 1:
            assert not torch.allclose(box.classifier.state_dict()[name], parameter, atol=1e-2), name


@pytest.mark.parametrize("changes", [{"method": "sdb"}, {"method": "decoy"}])
def test_a_whole_private_part_is_for_weight_keys(few, make_net, changes):
    settings = SETTINGS.model_copy(update={"private_part": "whole"} | changes)
    with pytest.raises(ConfigError, match="private_part"):
        wrap(make_net(few), few, settings, key=Key(bytes(32)))


def test_adapters_begin_the_same_in_every_process(few, make_net):
    """A network without norms gets additions that begin at random: from the run's seed, not from what ran before."""
    teacher, boxes = make_net(few, "mlp", seed=1), []
    for drawn in (0, 7):
        torch.rand(drawn)
        boxes.append(wrap(teacher, few, SETTINGS, key=FIRST, owner=OWNER).unlock(FIRST).state_dict())
    assert any(name.endswith("weight") for name in boxes[0])
    assert all(torch.equal(tensor, boxes[1][name]) for name, tensor in boxes[0].items())
