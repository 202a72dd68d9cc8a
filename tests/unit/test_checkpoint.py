"""Weights on disk: whole or refused, never guessed; and nothing that is read is executed."""

import json
import os
import pickle
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sdb.errors import CheckpointError, ModelError
from sdb.models.checkpoint import (
    REFERENCE_NORMALISATION,
    load_classifier,
    load_weights,
    read_reference,
    read_tensors,
    resolve,
    write_tensors,
)
from sdb.training.optimizers import flatten_optimizer, restore_optimizer

TENSORS = {
    "model.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "model.count": torch.tensor(7),
    "half": torch.randn(3, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "empty": torch.zeros(0, 4),
    "strided": torch.arange(6.0).reshape(2, 3).t(),
}
HEADER = {"spec": {"name": "net"}, "history": [{"epoch": 1, "loss": 0.1}]}


def save(path, model, **header):
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    write_tensors(path, weights, {"spec": model.spec.to_json(), "history": []} | header)
    return path


def equal(first, second):
    return first.keys() == second.keys() and all(
        first[n].dtype == second[n].dtype and torch.equal(first[n], second[n]) for n in first
    )


# --- our own files ---------------------------------------------------------------------------------------------------


def test_tensors_and_header_come_back_equal(tmp_path):
    write_tensors(tmp_path / "a.safetensors", TENSORS, HEADER)
    tensors, header = read_tensors(tmp_path / "a.safetensors")
    assert equal(tensors, TENSORS)
    assert header == {"schema": 1} | HEADER


def test_tensors_that_share_memory_are_all_kept(tmp_path):
    shared = torch.arange(4.0)
    write_tensors(tmp_path / "a.safetensors", {"a": shared, "b": shared, "c": shared[1:]}, {})
    tensors, _ = read_tensors(tmp_path / "a.safetensors")
    assert equal(tensors, {"a": shared, "b": shared, "c": shared[1:]})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "a.safetensors"
    write_tensors(path, TENSORS, HEADER)
    return path.read_bytes()


def read_bytes(data, folder):
    path = folder.mktemp("damaged") / "a.safetensors"
    path.write_bytes(data)
    return read_tensors(path)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_a_flipped_byte_is_refused_or_changes_nothing(whole, tmp_path_factory, data):
    damaged = bytearray(whole)
    damaged[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        tensors, header = read_bytes(bytes(damaged), tmp_path_factory)
    except CheckpointError:
        return
    assert equal(tensors, TENSORS)
    assert header == {"schema": 1} | HEADER


def test_a_flipped_byte_of_a_weight_is_refused(whole, tmp_path_factory):
    damaged = bytearray(whole)
    damaged[-1] ^= 1
    with pytest.raises(CheckpointError, match="restore it from a copy"):
        read_bytes(bytes(damaged), tmp_path_factory)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_truncated_file_is_refused(whole, tmp_path_factory, data):
    with pytest.raises(CheckpointError):
        read_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))], tmp_path_factory)


@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None)
def test_any_other_bytes_are_refused(tmp_path_factory, data):
    with pytest.raises(CheckpointError):
        read_bytes(data, tmp_path_factory)


def with_metadata(metadata):
    header = json.dumps({"__metadata__": metadata} if metadata is not None else {}).encode()
    return struct.pack("<Q", len(header)) + header


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        {"sdb": ""},
        {"sdb": "[]"},
        {"sdb": "3"},
        {"sdb": "null"},
        {"sdb": "{}"},
        {"sdb": "[" * 100_000},
        {"sdb": '{"schema": 2}'},
        {"sdb": '{"schema": 1}'},
    ],
    ids=range(10),
)
def test_safetensors_files_of_others_are_refused(tmp_path_factory, metadata):
    with pytest.raises(CheckpointError):
        read_bytes(with_metadata(metadata), tmp_path_factory)


def test_a_newer_schema_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("sdb.models.checkpoint.SCHEMA", 2)
    write_tensors(tmp_path / "a.safetensors", TENSORS, HEADER)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="schema 2, this sdb reads 1"):
        read_tensors(tmp_path / "a.safetensors")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"a\.safetensors: no such checkpoint"):
        read_tensors(tmp_path / "a.safetensors")


# --- into a model ----------------------------------------------------------------------------------------------------


def test_a_saved_classifier_loads_as_itself_in_eval_mode(tmp_path, few, make_net, weights_of, same_weights):
    model = make_net(few, seed=3, dropout_rate=0.2)
    loaded = load_classifier(save(tmp_path / "best.safetensors", model))
    assert same_weights(weights_of(loaded), weights_of(model))
    assert loaded.spec == model.spec
    assert not loaded.training


def test_a_run_folder_stands_for_its_last_epoch(tmp_path, few, make_net, weights_of, same_weights):
    model = make_net(few, seed=3)
    save(tmp_path / "last.safetensors", model)
    save(tmp_path / "best.safetensors", make_net(few, seed=4))
    assert same_weights(weights_of(load_classifier(tmp_path)), weights_of(model))


@pytest.mark.parametrize("which", ["best", "last"])
def test_the_reference_s_file_name_stands_for_ours(tmp_path, few, make_net, weights_of, same_weights, which):
    models = {name: make_net(few, seed=seed) for seed, name in enumerate(("best", "last"))}
    for name, model in models.items():
        save(tmp_path / f"{name}.safetensors", model)
    loaded = load_classifier(tmp_path / f"{which}_model.tar")
    assert same_weights(weights_of(loaded), weights_of(models[which]))


def test_a_reference_file_that_is_there_is_not_replaced_by_ours(tmp_path, few, make_net):
    save(tmp_path / "best.safetensors", make_net(few))
    (tmp_path / "best_model.tar").touch()
    assert resolve(tmp_path / "best_model.tar").name == "best_model.tar"


@pytest.mark.parametrize("name", ["", "best.safetensors", "best_model.tar", "other/best_model.tar"])
def test_a_checkpoint_that_is_not_there_is_named(tmp_path, name):
    with pytest.raises(CheckpointError, match="train"):
        load_classifier(tmp_path / name)


def test_another_architecture_is_refused_with_names(tmp_path, few, make_net):
    path = save(tmp_path / "a.safetensors", make_net(few, "mlp"))
    with pytest.raises(CheckpointError, match="holds a mlp, not a net"):
        load_classifier(path, model_name="net")
    with pytest.raises(
        CheckpointError, match=r"missing \(e.g. network.bn1.bias\).*unknown \(e.g. network.fc3.bias\)"
    ):
        load_weights(make_net(few), make_net(few, "mlp").state_dict(), "x")
    with pytest.raises(CheckpointError, match=r"another shape \(e.g. network.bn1.bias\)"):
        load_weights(make_net(few), make_net(few, num_channels=5).state_dict(), "x")


def test_a_refused_weight_changes_nothing(few, make_net, weights_of, same_weights):
    model = make_net(few)
    before = weights_of(model)
    with pytest.raises(CheckpointError):
        load_weights(model, make_net(few, seed=1).state_dict() | {"extra": torch.zeros(1)}, "x")
    assert same_weights(weights_of(model), before)


def test_other_classes_or_images_are_refused_naming_both(tmp_path, few, make_net):
    path = save(tmp_path / "a.safetensors", make_net(few))
    with pytest.raises(ModelError, match="10 classes, the data has 100"):
        load_classifier(path, num_classes=100)
    with pytest.raises(ModelError, match=r"\(1, 8, 8\), the data has \(3, 32, 32\)"):
        load_classifier(path, image_shape=(3, 32, 32))


@pytest.mark.parametrize("spec", [None, {}, [], "net", {"name": "net"}])
def test_a_checkpoint_without_a_usable_description_is_refused(tmp_path, few, make_net, spec):
    path = save(tmp_path / "a.safetensors", make_net(few), spec=spec)
    with pytest.raises((CheckpointError, ModelError)):
        load_classifier(path)


def test_a_checkpoint_that_describes_nothing_is_refused(tmp_path):
    write_tensors(tmp_path / "a.safetensors", TENSORS, {})
    with pytest.raises((CheckpointError, ModelError)):
        load_classifier(tmp_path / "a.safetensors")


def test_a_factory_is_not_imported_on_a_file_s_word(tmp_path, few, make_net):
    description = make_net(few).spec.to_json() | {"name": "antigravity:geohash"}
    path = save(tmp_path / "a.safetensors", make_net(few), spec=description)
    with pytest.raises(ModelError, match="not allowed"):
        load_classifier(path)


# --- reference checkpoints -------------------------------------------------------------------------------------------


def reference_file(path, network, prefix=""):
    state = {prefix + name: tensor for name, tensor in network.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state, "optim_dict": {"state": {}, "param_groups": [{"lr": 0.1}]}}, path)
    return path


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("dataset", ["digits", "cifar10"])
def test_a_reference_checkpoint_loads_with_its_normalisation(
    tmp_path, few, make_net, weights_of, same_weights, prefix, dataset
):
    shape = few.image_shape if dataset == "digits" else (3, 8, 8)
    source = make_net(few, "mlp", seed=5) if dataset == "digits" else _colour_mlp()
    loaded = load_classifier(
        reference_file(tmp_path / "best_model.tar", source.network, prefix),
        model_name="mlp",
        dataset=dataset,
        num_classes=10,
        image_shape=shape,
    )
    assert same_weights(weights_of(loaded.network), weights_of(source.network))
    assert not loaded.training
    mean, std = REFERENCE_NORMALISATION.get(dataset, ((0.0,), (1.0,)))
    torch.testing.assert_close(loaded.mean.flatten(), torch.tensor(mean))
    torch.testing.assert_close(loaded.std.flatten(), torch.tensor(std))


def _colour_mlp():
    from sdb.models import ModelSpec

    return ModelSpec("mlp", {}, 10, (3, 8, 8), (0.0,) * 3, (1.0,) * 3).build()


def test_a_bare_state_dict_loads_too(tmp_path, few, make_net):
    network = make_net(few).network
    torch.save(network.state_dict(), tmp_path / "a.tar")
    assert equal(read_reference(tmp_path / "a.tar"), dict(network.state_dict()))


def test_a_reference_checkpoint_needs_its_architecture_named(tmp_path, few, make_net):
    path = reference_file(tmp_path / "a.tar", make_net(few).network)
    with pytest.raises(CheckpointError, match="teacher_model"):
        load_classifier(path, num_classes=10, image_shape=(1, 8, 8))


def test_a_reference_checkpoint_of_another_architecture_is_refused(tmp_path, few, make_net):
    path = reference_file(tmp_path / "a.tar", make_net(few).network)
    with pytest.raises(CheckpointError, match="another architecture"):
        load_classifier(path, model_name="mlp", num_classes=10, image_shape=(1, 8, 8))


class Bomb:
    """What a hostile checkpoint may hold: a pickle that makes a file when it is loaded."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("place", ["state_dict", "optim_dict", "epoch"])
def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path, place):
    mark = tmp_path / "ran"
    content = {"epoch": 1, "state_dict": {"w": torch.zeros(1)}, "optim_dict": {}} | {place: Bomb(mark)}
    torch.save(content, tmp_path / "a.tar")
    with pytest.raises(CheckpointError, match="could run code"):
        read_reference(tmp_path / "a.tar")
    assert not mark.exists()


def test_a_bare_pickle_that_runs_code_is_refused_and_not_run(tmp_path):
    mark = tmp_path / "ran"
    (tmp_path / "a.tar").write_bytes(pickle.dumps({"state_dict": Bomb(mark)}, protocol=2))
    with pytest.raises(CheckpointError):
        read_reference(tmp_path / "a.tar")
    assert not mark.exists()
    pickle.loads((tmp_path / "a.tar").read_bytes())  # the control: it does run where nothing guards
    assert mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"state_dict": {}},
        {"state_dict": [1]},
        {"state_dict": {"w": 3}},
        {"state_dict": None},
        {"state_dict": {1: torch.zeros(1)}},
        [torch.zeros(1)],
        torch.zeros(1),
        3,
    ],
    ids=range(9),
)
def test_a_torch_file_without_a_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.tar")
    with pytest.raises(CheckpointError, match="state_dict"):
        read_reference(tmp_path / "a.tar")


@pytest.fixture(scope="module")
def whole_reference(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "a.tar"
    reference_file(path, torch.nn.Linear(2, 2))
    return path.read_bytes()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@given(st.data())
@settings(max_examples=120, deadline=None)
def test_a_damaged_reference_checkpoint_is_read_or_refused_but_never_fails_otherwise(
    whole_reference, tmp_path_factory, data
):
    path = tmp_path_factory.mktemp("damaged") / "a.tar"
    damaged = bytearray(whole_reference)
    if data.draw(st.booleans()):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        del damaged[data.draw(st.integers(0, len(damaged) - 1)) :]
    path.write_bytes(damaged)
    try:
        state = read_reference(path)
    except CheckpointError:
        return
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())


# --- optimizers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.Adam(parameters, lr=0.1),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-3),
        lambda parameters: torch.optim.SGD(parameters, lr=0.1),
    ],
    ids=["adam", "momentum", "plain"],
)
def test_an_optimizer_put_back_goes_on_as_before(tmp_path, make):
    def steps(layer, optimizer, count):
        for number in range(count):
            optimizer.zero_grad()
            layer(torch.full((2, 3), float(number + 1))).square().sum().backward()
            optimizer.step()

    layer = torch.nn.Linear(3, 2)
    optimizer = make(layer.parameters())
    steps(layer, optimizer, 3)
    write_tensors(tmp_path / "a.safetensors", flatten_optimizer(optimizer), {})
    twin = torch.nn.Linear(3, 2)
    twin.load_state_dict(layer.state_dict())
    restored = make(twin.parameters())
    restore_optimizer(restored, read_tensors(tmp_path / "a.safetensors")[0])
    steps(layer, optimizer, 2)
    steps(twin, restored, 2)
    assert equal(layer.state_dict(), twin.state_dict())
