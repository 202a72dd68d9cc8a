"""Exported files: they answer as the box does, and say nothing of where they come from."""

import getpass
import importlib.util
import io
import json
import re
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import sdb.export
from sdb.box.box import Box, BoxInfo
from sdb.config import WrapSettings
from sdb.errors import ConfigError, KeyFileError, MissingExtraError, ModelError, StorageError
from sdb.export import export
from sdb.export.network import compare, example, neutral, search
from sdb.keys import Key
from sdb.wrapping.wrap import wrap

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

KEYS = {
    "image": Key(bytes(range(32)), blend=0.5),
    "weight": Key(bytes(range(32)), kind="weight"),
}
METHODS = {"image": "sdb", "weight": "decoy"}
LICENCE = "Licence: for evaluation only. © Owner"
FORMATS = ["onnx", "pt2"]
ROOT = Path(sdb.export.__file__).parents[1]


@pytest.fixture(scope="module")
def boxes(few, make_net):
    """A box for each kind of key."""
    settings = {"epochs": 1, "batch_size": 16, "learning_rate": 0.01}
    return {
        kind: wrap(make_net(few), few, WrapSettings(method=METHODS[kind], **settings), key=key)
        for kind, key in KEYS.items()
    }


@pytest.fixture(scope="module")
def exported(boxes, tmp_path_factory):
    """A function that exports a box, once for all tests, and gives the file."""
    place, done = tmp_path_factory.mktemp("exported"), {}

    def file(kind, to, keyed):
        name = f"{kind}-{'keyed' if keyed else 'keyless'}.{to}"
        if name not in done:
            export(boxes[kind], place / name, to, key=KEYS[kind] if keyed else None, licence=LICENCE)
            done[name] = place / name
        return done[name]

    return file


def run_of(path):
    """A function from float32 images (N, C, H, W) to logits, by a runtime that knows nothing of sdb."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda images: session.run(["logits"], {"image": images})[0]
    module = torch.export.load(path).module()
    return lambda images: module(torch.from_numpy(images)).detach().numpy()


def texts_of(path):
    """What a file holds beside its weights."""
    if path.suffix == ".onnx":
        model = onnx.load(path)
        for tensor in model.graph.initializer:
            tensor.ClearField("raw_data")
        return model.SerializeToString()
    with zipfile.ZipFile(path) as archive:
        return b"\n".join(
            name.encode() + b"\n" + archive.read(name)
            for name in archive.namelist()
            if "/weights/weight_" not in name
        )


def metadata_of(path):
    if path.suffix == ".onnx":
        return {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    extra = {"metadata.json": ""}
    torch.export.load(path, extra_files=extra)
    return json.loads(extra["metadata.json"])


def assert_same_answers(box, path, images, key=None):
    module = box if key is None else box.unlock(key)
    with torch.no_grad():
        expected = module(torch.from_numpy(images)).numpy()
    given = run_of(path)(images)
    assert given.dtype == np.float32 and given.shape == expected.shape
    # Two runtimes add in another order: float32 rounds sums of a few dozen terms at some 1e-6 of the logits. Where two
    # classes are as near as that, either may be named.
    two = np.sort(box.classifier(torch.from_numpy(images)).detach().numpy() if key is None else expected)[:, -2:]
    clear = two[:, 1] - two[:, 0] > 1e-4
    assert clear.mean() > 0.95
    np.testing.assert_allclose(given[clear], expected[clear], rtol=1e-5, atol=1e-5)
    assert np.array_equal(given[clear].argmax(1), expected[clear].argmax(1))


ALL = pytest.mark.parametrize(
    ("kind", "to", "keyed"),
    [(kind, to, keyed) for kind in KEYS for to in FORMATS for keyed in (False, True)],
)


@ALL
def test_the_file_answers_as_the_box_on_the_whole_test_set(boxes, digits, exported, kind, to, keyed):
    images = digits.test.images.astype(np.float32) / 255
    assert len(images) == 500
    assert_same_answers(boxes[kind], exported(kind, to, keyed), images, KEYS[kind] if keyed else None)


@ALL
def test_keyed_and_keyless_files_differ_and_any_batch_size_is_taken(boxes, exported, kind, to, keyed):
    run = run_of(exported(kind, to, keyed))
    images = np.random.default_rng(0).random((7, 1, 8, 8), dtype=np.float32)
    alone = np.concatenate([run(images[i : i + 1]) for i in range(7)])
    np.testing.assert_allclose(run(images), alone, atol=1e-5)
    assert not np.allclose(run(images), run_of(exported(kind, to, not keyed))(images), atol=1e-3)


@ALL
def test_the_file_does_not_say_where_it_comes_from(boxes, exported, kind, to, keyed):
    path = exported(kind, to, keyed)
    data, text = path.read_bytes(), texts_of(path)
    box = boxes[kind]
    modules = {
        type(module)
        for module in [*box.modules(), *box.attempt(KEYS[kind]).modules()]
        if type(module).__module__.startswith("sdb")
    }
    words = {module.__name__ for module in modules} | {module.__module__ for module in modules}
    words |= {file.name for file in ROOT.rglob("*.py")}
    words |= set(box.state_dict()) | {name.replace(".", "_") for name in box.classifier.state_dict()}
    words |= {
        str(ROOT.parents[1]),
        str(Path.cwd()),
        str(Path.home()),
        str(path.parent),
        getpass.getuser(),
        "site-packages",
    }
    words |= {"decoy", "private", "keyed", "embed", "teacher", "sdb", "unlock", "stack_trace", "module_stack"}
    words -= {"", "/", "__init__.py", "mean", "std"}
    assert {"Classifier", "Net", "classifier.network.conv1.weight", "box.py"} <= words
    # Three letters come up in random weights by chance, so short words are looked for beside the weights only.
    found = {word for word in words if word.encode() in (data if len(word) > 5 else text)}
    assert not found
    assert not re.search(rb"[\w/]+\.py\b", text)


@ALL
def test_no_input_travels_with_the_file(exported, kind, to, keyed):
    data = exported(kind, to, keyed).read_bytes()
    for image in example((1, 8, 8)).numpy():
        assert image.tobytes() not in data and image[0, 0].tobytes() not in data
    if to == "pt2":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert all(not archive.read(name) for name in archive.namelist() if "sample_inputs" in name)


def test_the_traces_are_there_when_nothing_removes_them(boxes, tmp_path):
    """Otherwise the tests above would look for what never was."""
    path = tmp_path / "plain.pt2"
    batch = torch.export.Dim("batch")
    program = torch.export.export(boxes["image"], (example((1, 8, 8)),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    text = texts_of(path)
    assert str(ROOT).encode() in text and b"sdb.models.net.Net" in text
    assert example((1, 8, 8)).numpy()[0].tobytes() in path.read_bytes()


@pytest.mark.parametrize("to", FORMATS)
def test_the_file_says_what_a_user_needs(boxes, few, exported, to):
    told = metadata_of(exported("weight", to, False))
    parsed = {n: json.loads(v) if isinstance(v, str) and v[:1] in "[{" else v for n, v in told.items()}
    assert parsed == {
        "id": boxes["weight"].info.id,
        "classes": list(few.class_names),
        "input": {"name": "image", "type": "float32", "shape": ["batch", 1, 8, 8], "range": [0, 1]},
        "pictures": {"background": "#ffffff", "fit": "crop", "turn": True, "filter": "bicubic"},
        "output": {"name": "logits", "type": "float32", "shape": ["batch", 10]},
        "licence": LICENCE,
    }


def test_onnx_passes_its_checker_and_names_its_ends(exported):
    model = onnx.load(exported("image", "onnx", True))
    onnx.checker.check_model(model, full_check=True)
    (given,), (answer,) = model.graph.input, model.graph.output
    assert (given.name, answer.name) == ("image", "logits")
    assert [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim] == ["batch", 1, 8, 8]
    assert [d.dim_param or d.dim_value for d in answer.type.tensor_type.shape.dim] == ["batch", 10]


SLOW = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("mobilenetv2", "shufflenetv2", "resnet18", "resnext29")
]


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("name", ["mlp", "preresnet20", *SLOW])
def test_other_architectures(few, make_net, tmp_path, name, to):
    box = Box(make_net(few, name), BoxInfo("nasty", {}, few.class_names))
    export(box, tmp_path / "file", to)
    (tmp_path / "file").rename(tmp_path / f"file.{to}")
    assert_same_answers(box, tmp_path / f"file.{to}", few.test.images.astype(np.float32) / 255)


# --- writing ---------------------------------------------------------------------------------------------------------


def test_what_is_there_stays_unless_told(boxes, tmp_path):
    path = tmp_path / "model.pt2"
    path.write_bytes(b"precious")
    with pytest.raises(ConfigError, match="--overwrite"):
        export(boxes["image"], path, "pt2")
    assert path.read_bytes() == b"precious"
    export(boxes["image"], path, "pt2", overwrite=True)
    assert path.read_bytes()[:2] == b"PK"
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt2"]


def test_a_keyed_file_is_for_its_owner_alone(exported):
    modes = [stat.S_IMODE(exported("image", "pt2", keyed).stat().st_mode) for keyed in (False, True)]
    assert modes == [0o644, 0o600]


def test_the_box_stays_as_it_was(boxes, tmp_path, weights_of, same_weights):
    box = boxes["weight"]
    before = weights_of(box)
    export(box, tmp_path / "a.pt2", "pt2", key=KEYS["weight"])
    assert same_weights(before, weights_of(box)) and not box.training


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"to": "tflite"}, ConfigError, "onnx, pt2"),
        ({"key": Key(bytes(32), kind="weight")}, KeyFileError, "another box"),
    ],
)
def test_a_wrong_request_is_refused_and_nothing_is_written(boxes, tmp_path, changes, error, says):
    with pytest.raises(error, match=says):
        export(boxes["weight"], tmp_path / "out", **{"to": "pt2", **changes})
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_without_the_extra_it_says_which(boxes, tmp_path, monkeypatch, package):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == package else find(n, *a))
    with pytest.raises(MissingExtraError, match=rf"needs {package}, .*\[onnx\]"):
        export(boxes["image"], tmp_path / "x.onnx", "onnx")
    assert not any(tmp_path.iterdir())


def test_a_folder_in_the_file_s_place_is_refused(boxes, tmp_path):
    with pytest.raises(ConfigError, match="folder"):
        export(boxes["image"], tmp_path, "pt2", overwrite=True)


def test_a_place_that_cannot_be_written_is_said(boxes):
    with pytest.raises(StorageError, match="cannot write"):
        export(boxes["image"], Path("/proc/nowhere/model.pt2"), "pt2")


def test_a_network_that_depends_on_its_input_is_refused(few, tmp_path):
    from sdb.models import from_module

    class Moody(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(64, 10)

        def forward(self, images):
            return self.fc(images.flatten(1)) * (2 if float(images.mean()) > 0 else 3)

    classifier = from_module(Moody(), 10, few.image_shape, few.mean, few.std)
    with pytest.raises(ModelError, match="serve it instead"):
        export(Box(classifier, BoxInfo("nasty", {}, few.class_names)), tmp_path / "x.pt2", "pt2")


def test_a_file_that_would_tell_is_refused():
    with pytest.raises(ModelError, match=r"\.py"):
        search(b'{"stack": "/home/me/project/model.py"}')


def test_a_network_that_answers_otherwise_is_refused(boxes):
    box, shape = boxes["image"], (1, 8, 8)
    same = neutral(box, shape)
    compare(box, same, shape)
    with pytest.raises(ModelError, match="differs"):
        compare(box, lambda images: same(images) + 0.01, shape)
    with pytest.raises(ModelError, match="differs"):
        compare(box, lambda images: same(images) * float("nan"), shape)
