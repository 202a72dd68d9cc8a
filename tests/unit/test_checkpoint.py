"""Weights on disk: whole or refused, never guessed; and nothing that is read is executed."""

import argparse
import json
import os
import pickle
import struct
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from sdb.errors import CheckpointError, ModelError, SDBError
from sdb.models.bare import read_reference
from sdb.models.checkpoint import (
    REFERENCE_NORMALISATION,
    load_classifier,
    load_weights,
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


# --- weights as training loops leave them ----------------------------------------------------------------------------


def prefixed(*prefixes):
    return lambda state: {"".join(prefixes) + name: tensor for name, tensor in state.items()}


def inside(*names):
    def put(state):
        for name in reversed(names):
            state = {name: state, "epoch": 3}
        return state

    return put


def with_beside(**beside):
    return lambda state: {"state_dict": state} | beside


def without_batches(state):
    return {name: tensor for name, tensor in state.items() if "num_batches_tracked" not in name}


def cast(kind):
    return lambda state: {n: t.to(kind) if t.is_floating_point() else t for n, t in state.items()}


def averaged(state):
    return {"n_averaged": torch.tensor(3)} | prefixed("module.")(state)


LEFT_BY_LOOPS = {
    "bare": dict,
    "data parallel": prefixed("module."),
    "compiled": prefixed("_orig_mod."),
    "compiled, then parallel": prefixed("module.", "_orig_mod."),
    "parallel, then compiled": prefixed("_orig_mod.", "module."),
    "lightning": prefixed("model."),
    "lightning, compiled and parallel": prefixed("net.", "_orig_mod.", "module."),
    "twice": prefixed("module.", "module."),
    "a network's network": prefixed("network.", "model."),
    "averaged": averaged,
    "averaged in lightning": lambda state: prefixed("model.")(averaged(state)),
    "moving average with its decay": lambda state: {
        "decay": torch.tensor(0.9),
        "num_updates": torch.tensor(2),
        **state,
    },
    "counted among the weights": lambda state: {**state, "epoch": 3, "arch": "net"},
    "without batch counts": without_batches,
    "half": cast(torch.float16),
    "bfloat16": cast(torch.bfloat16),
    "double": cast(torch.float64),
    "parameters": lambda state: {n: torch.nn.Parameter(t, requires_grad=False) for n, t in state.items()},
    "model": inside("model"),
    "net": inside("net"),
    "weights": inside("weights"),
    "average only": inside("state_dict_ema"),
    "average inside": inside("ema", "module"),
    "in two": inside("model", "state_dict"),
    "numpy numbers beside": with_beside(best=np.float64(0.9), step=np.int64(3), mean=np.arange(3.0)),
    "arguments beside": with_beside(args=argparse.Namespace(lr=0.1, out=Path("x"), at=datetime.now())),
}


@pytest.mark.parametrize("left", LEFT_BY_LOOPS.values(), ids=LEFT_BY_LOOPS)
def test_weights_load_as_a_training_loop_left_them(tmp_path, few, make_net, same_weights, left):
    source = make_net(few, seed=3)
    content = left(source.network.state_dict())
    torch.save(content, tmp_path / "x.pth")
    files = [tmp_path / "x.pth"]
    if all(isinstance(value, torch.Tensor) for value in content.values()):
        files.append(tmp_path / "x.safetensors")
        save_file({name: tensor.contiguous() for name, tensor in content.items()}, files[1])
    own = source.network.state_dict()
    for path in files:
        loaded = load_classifier(
            str(path),
            model_name="net",
            model_args={"num_channels": 4},
            num_classes=10,
            image_shape=few.image_shape,
        )
        read = loaded.network.state_dict()
        assert {tensor.dtype for tensor in loaded.parameters()} == {torch.float32}
        if left in (LEFT_BY_LOOPS["half"], LEFT_BY_LOOPS["bfloat16"]):
            assert all(torch.allclose(own[name].float(), read[name].float(), rtol=1e-2, atol=1e-3) for name in own)
        else:
            assert same_weights(own, read)


@pytest.mark.parametrize(
    ("left", "says"),
    [
        (lambda state: prefixed("teacher.")(state) | prefixed("student.")(state), "another architecture"),
        (lambda state: state | {"extra.weight": torch.zeros(1)}, r"unknown \(e.g. extra.weight\)"),
        (lambda state: state | {"scale": torch.zeros(())}, r"unknown \(e.g. scale\)"),
        (lambda state: {n: t for n, t in state.items() if n != "bn1.running_mean"}, "missing"),
        (lambda state: state | {"fc1.weight": state["fc1.weight"].to(torch.int8)}, "without fractions.*int8"),
        (lambda state: state | {"fc1.weight": state["fc1.weight"] * torch.nan}, "fc1.weight is not finite"),
        (lambda state: state | {"fc1.bias": state["fc1.bias"] / 0}, "fc1.bias is not finite"),
        (
            lambda state: state | {"bn1.running_var": state["bn1.running_var"] * torch.inf},
            "bn1.running_var is not",
        ),
    ],
    ids=range(8),
)
def test_weights_that_would_mean_something_else_are_refused(tmp_path, few, make_net, left, says):
    torch.save(left(make_net(few, seed=3).network.state_dict()), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=says):
        load_classifier(
            tmp_path / "x.pth",
            model_name="net",
            model_args={"num_channels": 4},
            num_classes=10,
            image_shape=few.image_shape,
        )


@pytest.mark.parametrize("put", [lambda m: m, lambda m: {"model": m}], ids=["alone", "in a dictionary"])
def test_a_pickled_module_is_refused_with_the_remedy(tmp_path, few, make_net, put):
    torch.save(put(make_net(few).network), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"whole module.*torch\.save\(model\.state_dict\(\), FILE\)"):
        read_reference(tmp_path / "x.pt")


def test_a_file_that_holds_itself_is_refused(tmp_path):
    content = {}
    content["model"] = content
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="no state_dict"):
        read_reference(tmp_path / "x.pt")


def test_a_checkpoint_of_ours_that_is_not_finite_is_refused_by_name(tmp_path, few, make_net):
    model = make_net(few)
    with torch.no_grad():
        model.network.bn1.running_mean[0] = torch.nan
    with pytest.raises(CheckpointError, match=r"last\.safetensors: its network\.bn1\.running_mean is not finite"):
        load_classifier(save(tmp_path / "last.safetensors", model).parent)


# --- hostile headers -------------------------------------------------------------------------------------------------

odd = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(), max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_whatever_a_header_holds_the_network_is_the_same_or_refused(
    tmp_path_factory, few, make_net, weights_of, same_weights, data
):
    classifier = make_net(few)
    weights = {f"model.{name}": tensor for name, tensor in classifier.state_dict().items()}
    header = {"spec": classifier.spec.to_json(), "history": []}
    inside = header["spec"] if data.draw(st.booleans()) else header
    inside[data.draw(st.sampled_from([*sorted(inside), "schema", "another"]))] = data.draw(odd)
    path = tmp_path_factory.mktemp("headers") / "a.safetensors"
    write_tensors(path, weights, header)
    try:
        loaded = load_classifier(path)
    except SDBError:
        return
    assert same_weights(weights_of(loaded), weights_of(classifier))


def test_a_header_that_asks_for_more_than_the_weights_have_takes_no_memory(tmp_path, few, make_net):
    classifier = make_net(few)
    weights = {f"model.{name}": tensor for name, tensor in classifier.state_dict().items()}
    spec = classifier.spec.to_json() | {"name": "mlp", "arguments": {}, "image_shape": [1, 16384, 16384]}
    write_tensors(tmp_path / "a.safetensors", weights, {"spec": spec, "history": []})
    with pytest.raises(CheckpointError, match="another architecture"):
        load_classifier(tmp_path / "a.safetensors")


def test_an_old_run_s_history_that_is_not_finite_is_still_read(tmp_path, monkeypatch):
    monkeypatch.setattr("sdb.models.checkpoint.json_text", json.dumps)  # as it was written then
    write_tensors(tmp_path / "a.safetensors", {"a": torch.ones(1)}, {"history": [{"loss": float("nan")}]})
    assert read_tensors(tmp_path / "a.safetensors")[1]["history"] != [{"loss": 0}]
