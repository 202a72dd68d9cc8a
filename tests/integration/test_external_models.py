"""Networks named `package.module:factory`, and those of transformers, without any download."""

import json
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sdb.box.box import Box
from sdb.config import DistillSettings, WrapSettings
from sdb.data import from_arrays
from sdb.distillation import distill
from sdb.errors import CheckpointError, ModelError
from sdb.export import export
from sdb.keys import Key
from sdb.models import ModelSpec, build
from sdb.models.checkpoint import load_classifier, write_tensors
from sdb.wrapping.wrap import wrap

MEAN, STD = (0.5,) * 3, (0.25,) * 3

SOURCE = """
from torch import nn

COUNT = 3

class Head(nn.Module):
    def __init__(self, num_classes, scale=1.0):
        super().__init__()
        self.fc = nn.Linear(3, num_classes)
        self.scale = scale

    def forward(self, x):
        return self.scale * self.fc(x.mean((2, 3)))

def other_name(n_classes):
    return Head(n_classes)

def by_keywords(**kwargs):
    return Head(**kwargs)

def not_a_module():
    return "weights"

def broken():
    return 1 / 0
"""


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    """A module of the user's on the path; its name."""
    (tmp_path / "user_networks.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "user_networks"
    sys.modules.pop("user_networks", None)


@pytest.fixture(scope="module")
def transformers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield pytest.importorskip("transformers")


def outputs(network: nn.Module) -> int:
    """Number of logits of a `Head`."""
    return len(network.state_dict()["fc.weight"])


class TestFactories:
    def test_gets_num_classes_by_name(self, user_module):
        network = build(f"{user_module}:Head", num_classes=7, arguments={"scale": 2.0})
        assert (outputs(network), network.scale) == (7, 2.0)

    def test_an_argument_wins(self, user_module):
        assert outputs(build(f"{user_module}:Head", num_classes=7, arguments={"num_classes": 9})) == 9

    @pytest.mark.parametrize(
        ("factory", "argument"), [("other_name", "n_classes"), ("by_keywords", "num_classes")]
    )
    def test_other_ways_to_say_it_go_through_arguments(self, user_module, factory, argument):
        network = build(f"{user_module}:{factory}", num_classes=7, arguments={argument: 7})
        assert outputs(network) == 7
        with pytest.raises(ModelError, match=rf"{factory} failed with TypeError.*arguments given: none"):
            build(f"{user_module}:{factory}", num_classes=7)

    def test_refused_without_importing(self, user_module):
        with pytest.raises(ModelError, match=f"not allowed here.*--network {user_module}:Head "):
            build(f"{user_module}:Head", num_classes=7, allow_factory=False)
        spec = ModelSpec(f"{user_module}:Head", {}, 7, (3, 8, 8), MEAN, STD)
        with pytest.raises(ModelError, match="not allowed here"):
            spec.build(allow_factory=False)
        assert user_module not in sys.modules

    def test_spec_builds_and_tries_it(self, user_module):
        classifier = ModelSpec(f"{user_module}:Head", {}, 7, (3, 8, 8), MEAN, STD).build()
        assert classifier(torch.rand(2, 3, 8, 8)).shape == (2, 7)
        with pytest.raises(ModelError, match=r"returned \(2, 9\), and logits \(N, 7\) are expected"):
            ModelSpec(f"{user_module}:Head", {"num_classes": 9}, 7, (3, 8, 8), MEAN, STD).build()

    @pytest.mark.parametrize(
        ("attribute", "message"),
        [
            ("Heads", "has no Heads; nearest: Head"),
            ("COUNT", "is a int: name something that can be called"),
            ("not_a_module", "returned a str"),
            ("broken", "failed with ZeroDivisionError"),
        ],
    )
    def test_bad_factories(self, user_module, attribute, message):
        with pytest.raises(ModelError, match=message):
            build(f"{user_module}:{attribute}", num_classes=7)

    def test_unknown_argument(self, user_module):
        with pytest.raises(ModelError, match=r"unexpected keyword argument 'width'.*arguments given: width"):
            build(f"{user_module}:Head", num_classes=7, arguments={"width": 3})

    def test_missing_module(self):
        with pytest.raises(ModelError, match="cannot import no_such_package"):
            build("no_such_package.models:Head", num_classes=7)

    @pytest.mark.parametrize("name", [":Head", "module:", "a:b:c", ".relative:Head", "a b:c", "../x:y"])
    def test_malformed_names(self, name):
        with pytest.raises(ModelError, match=r"package\.module:factory"):
            build(name, num_classes=7)


class TestTransformers:
    @pytest.mark.parametrize(
        ("name", "config"),
        [
            (
                "ViTForImageClassification",
                {
                    "image_size": 16,
                    "patch_size": 4,
                    "hidden_size": 16,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "intermediate_size": 32,
                },
            ),
            (
                "ResNetForImageClassification",
                {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
            ),
        ],
    )
    def test_from_a_configuration(self, transformers, name, config):
        spec = ModelSpec(f"transformers:{name}", {"config": config}, 7, (3, 16, 16), MEAN, STD)
        classifier = ModelSpec.from_json(spec.to_json()).build()
        logits = classifier(torch.rand(4, 3, 16, 16))
        assert logits.shape == (4, 7)
        nn.functional.cross_entropy(logits, torch.arange(4)).backward()
        assert all(parameter.grad is not None for parameter in classifier.parameters())

    def test_wrong_image_size_is_caught_on_building(self, transformers):
        config = {"image_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        spec = ModelSpec("transformers:ViTForImageClassification", {"config": config}, 7, (3, 16, 16), MEAN, STD)
        with pytest.raises(ModelError, match=r"fails on images of shape .*\(3, 16, 16\)"):
            spec.build()

    @pytest.mark.parametrize("arguments", [{"hidden_size": 16}, {"config": {"hidden_size": "wide"}}])
    def test_bad_arguments(self, transformers, arguments):
        with pytest.raises(ModelError, match="hidden_size"):
            build("transformers:ViTForImageClassification", num_classes=7, arguments=arguments)


VIT = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "id2label": {0: "cat", 1: "cow", 2: "dog"},
    "label2id": {"cat": 0, "cow": 1, "dog": 2},
}
RESNET = {
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "layer_type": "basic",
    "id2label": VIT["id2label"],
    "label2id": VIT["label2id"],
}
PROCESSOR = {"do_normalize": True, "do_rescale": True, "rescale_factor": 1 / 255, "size": {"shortest_edge": 32}}


@pytest.fixture
def pretrained(transformers, tmp_path):
    """A function that makes a folder as `save_pretrained` does; it gives the folder and the network."""

    def make(name="ViT", processor=None, **changes):
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**(VIT if name == "ViT" else RESNET) | changes)
        network = getattr(transformers, f"{name}ForImageClassification")(config).eval()
        folder = tmp_path / f"pretrained-{name}"
        network.save_pretrained(folder)
        fields = PROCESSOR | {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.25, 0.2, 0.1]} | (processor or {})
        (folder / "preprocessor_config.json").write_text(json.dumps(fields))
        return folder, network

    return make


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


class TestPretrainedFolder:
    @pytest.mark.parametrize("name", ["ViT", "ResNet"])
    def test_answers_are_those_of_the_network_behind_its_processor(self, pretrained, name):
        folder, network = pretrained(name)
        classifier = load_classifier(folder)
        assert not classifier.training
        assert classifier.image_shape == (3, 32, 32)
        assert classifier.num_classes == 3
        images = torch.randint(0, 256, (4, 3, 32, 32))
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.5, 0.4, 0.3], [0.25, 0.2, 0.1]))
        with torch.no_grad():
            expected = network((images / 255 - mean) / std).logits
            torch.testing.assert_close(classifier(images / 255), expected)
        again = ModelSpec.from_json(classifier.spec.to_json()).build()
        again.load_state_dict(classifier.state_dict())
        with torch.no_grad():
            torch.testing.assert_close(again.eval()(images / 255), expected)

    @pytest.mark.parametrize(
        ("processor", "scale"),
        [
            ({"rescale_factor": 1 / 127.5}, 2),
            ({"do_rescale": False}, 255),
            ({"image_mean": 0.5, "image_std": 0.5}, 1),
        ],
    )
    def test_other_normalisations(self, pretrained, processor, scale):
        folder, _ = pretrained(processor=processor)
        classifier = load_classifier(folder)
        fields = json.loads((folder / "preprocessor_config.json").read_text())
        pixels = torch.rand(1, 3, 2, 2)
        mean, std = (
            torch.tensor(values).expand(3).view(3, 1, 1) for values in (fields["image_mean"], fields["image_std"])
        )
        torch.testing.assert_close((pixels - classifier.mean) / classifier.std, (scale * pixels - mean) / std)

    def test_no_normalisation(self, pretrained):
        folder, _ = pretrained(processor={"do_normalize": False})
        classifier = load_classifier(folder)
        assert classifier.mean.flatten().tolist() == [0, 0, 0]
        assert classifier.std.flatten().tolist() == [1, 1, 1]

    def test_a_fully_convolutional_network_takes_the_size_of_the_data(self, pretrained):
        assert load_classifier(pretrained("ResNet")[0], image_shape=(3, 48, 48)).image_shape == (3, 48, 48)
        with pytest.raises(ModelError, match="fails on images of shape"):
            load_classifier(pretrained()[0], image_shape=(3, 48, 48))

    def test_class_names(self, pretrained):
        folder, _ = pretrained()
        assert load_classifier(folder, class_names=("Cat", "Cow", "Dog")).class_names == ("cat", "cow", "dog")
        with pytest.raises(ModelError, match=r"class 0 is 'cat' there and 'dog' in the data"):
            load_classifier(folder, class_names=("dog", "cow", "cat"))
        with pytest.raises(ModelError, match="say so: other_class_names"):
            load_classifier(folder, class_names=("n01", "n02", "n03"))
        load_classifier(folder, class_names=("n01", "n02", "n03"), other_class_names=True)
        with pytest.raises(ModelError, match="made for 3 classes, the data has 4"):
            load_classifier(folder, num_classes=4)

    def test_another_architecture_than_named(self, pretrained):
        with pytest.raises(CheckpointError, match=r"holds a transformers:ViT.*correct teacher_model"):
            load_classifier(pretrained()[0], model_name="resnet18")

    @pytest.mark.parametrize(
        ("damage", "error", "word"),
        [
            (lambda f: (f / "model.safetensors").unlink(), CheckpointError, "holds no model.safetensors"),
            (
                lambda f: (f / "model.safetensors").write_bytes(b"x" * 99),
                CheckpointError,
                "transformers cannot read",
            ),
            (lambda f: (f / "config.json").write_text("{"), CheckpointError, "config.json: not readable JSON"),
            (lambda f: edit(f / "config.json", hidden_size=32), CheckpointError, "transformers cannot read it"),
            (lambda f: edit(f / "config.json", num_hidden_layers=3), CheckpointError, "weights are missing"),
            (lambda f: edit(f / "config.json", architectures=["ViTModel"]), ModelError, "not an image classifier"),
            (lambda f: edit(f / "config.json", architectures=["os"]), ModelError, "not an image classifier"),
            (
                lambda f: edit(f / "config.json", auto_map={"AutoModel": "x.py"}),
                CheckpointError,
                "auto_map names code",
            ),
            (lambda f: (f / "preprocessor_config.json").unlink(), CheckpointError, "normalisation is not known"),
            (lambda f: edit(f / "preprocessor_config.json", image_mean=[1, 2]), CheckpointError, "3 numbers each"),
            (lambda f: edit(f / "preprocessor_config.json", image_std="x"), CheckpointError, "3 numbers each"),
            (
                lambda f: edit(f / "preprocessor_config.json", rescale_offset=True),
                CheckpointError,
                "rescale_offset",
            ),
        ],
    )
    def test_what_is_refused(self, pretrained, damage, error, word):
        folder, _ = pretrained()
        damage(folder)
        with pytest.raises(error, match=word):
            load_classifier(folder)

    def test_pickled_weights_are_not_read(self, pretrained):
        folder, network = pretrained()
        (folder / "model.safetensors").unlink()
        torch.save(network.state_dict(), folder / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match=r"holds no model\.safetensors"):
            load_classifier(folder)

    def test_half_precision_becomes_single(self, pretrained):
        folder, network = pretrained()
        network.to(torch.bfloat16).save_pretrained(folder)
        assert {tensor.dtype for tensor in load_classifier(folder).parameters()} == {torch.float32}


class TestBareWeights:
    """A state dict of the user's, with the architecture named beside it."""

    def load(self, file, **changes):
        options = {
            "model_name": "preresnet20",
            "dataset": "folder-mine",
            "num_classes": 5,
            "image_shape": (3, 32, 32),
        }
        return load_classifier(file, **options | changes)

    @pytest.fixture
    def network(self):
        torch.manual_seed(0)
        return build("preresnet20", num_classes=5)

    @pytest.mark.parametrize("form", ["safetensors", "bare", "state_dict", "model"])
    def test_forms(self, network, tmp_path, form, caplog):
        state = network.state_dict()
        file = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pt")
        if form == "safetensors":
            save_file(state, file)
        else:
            torch.save(state if form == "bare" else {form: state, "epoch": 3}, file)
        classifier = self.load(file)
        assert all(torch.equal(state[name], tensor) for name, tensor in classifier.network.state_dict().items())
        assert "nothing says which normalisation" in caplog.text
        (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.4, 0.3], "image_std": 0.25}')
        classifier = self.load(file)
        assert classifier.spec.mean == (0.5, 0.4, 0.3)
        assert classifier.spec.std == (0.25,) * 3

    def test_safetensors_without_a_name_or_damaged(self, network, tmp_path):
        file = tmp_path / "weights.safetensors"
        save_file(network.state_dict(), file)
        with pytest.raises(CheckpointError, match=r"bare weights need a teacher_model"):
            self.load(file, model_name=None)
        file.write_bytes(file.read_bytes()[:1000])
        with pytest.raises(CheckpointError, match="not a whole safetensors file"):
            self.load(file)


NAMES = ["ViT", "ResNet"]


@pytest.fixture
def small_data():
    """72 images of 32x32 in three classes that differ in colour."""
    rng = np.random.default_rng(0)
    labels = np.arange(72) % 3
    images = rng.integers(0, 60, (72, 3, 32, 32), dtype=np.uint8)
    images[np.arange(72), labels] += 150
    options = {"class_names": ("cat", "cow", "dog"), "validation_fraction": 0.2, "name": "colours"}
    return from_arrays(images, labels, test_images=images[:24], test_labels=labels[:24], **options)


@pytest.mark.parametrize("kind", ["weight", "image"])
@pytest.mark.parametrize("name", NAMES)
def test_a_pretrained_network_is_wrapped_saved_unlocked_and_distilled(
    pretrained, small_data, tmp_path, name, kind
):
    folder, _ = pretrained(name)
    teacher = load_classifier(folder, num_classes=3, image_shape=(3, 32, 32), class_names=small_data.class_names)
    key = Key.generate(kind=kind)
    quick = {"epochs": 1, "batch_size": 24, "learning_rate": 0.01, "optimizer": "adam", "device": "cpu"}
    spare = {"accumulation_steps": 2, "activation_checkpointing": True}
    box = wrap(teacher, small_data, WrapSettings(**quick, **spare), key=key)
    box.save(tmp_path / "a.box")
    with pytest.raises(ModelError, match="not allowed here"):
        Box.load(tmp_path / "a.box")
    loaded = Box.load(tmp_path / "a.box", network=teacher.spec.name)
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), box(images))
        torch.testing.assert_close(loaded.unlock(key)(images), box.unlock(key)(images))
    student = ModelSpec("net", {"num_channels": 4}, 3, (3, 32, 32), MEAN, STD).build()
    history = []
    distill(loaded, student, small_data, DistillSettings(**quick), key=key, history=history)
    assert np.isfinite(history[-1]["loss"])
    # The teacher of a box's run is read by name again.
    run = tmp_path / "run"
    run.mkdir()
    write_tensors(
        run / "last.safetensors",
        {f"model.{n}": t for n, t in teacher.state_dict().items()},
        {"spec": teacher.spec.to_json()},
    )
    assert load_classifier(run, network=teacher.spec.name).spec == teacher.spec


@pytest.mark.parametrize(("name", "keyed"), [("ViT", False), ("ResNet", True)])
def test_a_wrapped_pretrained_network_is_exported(pretrained, small_data, tmp_path, name, keyed):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder, _ = pretrained(name)
    quick = {"epochs": 1, "batch_size": 24, "learning_rate": 0.01, "device": "cpu"}
    key = Key.generate()
    box = wrap(load_classifier(folder), small_data, WrapSettings(**quick), key=key)
    file = tmp_path / "box.onnx"
    export(box, file, "onnx", key=key if keyed else None)
    images = torch.rand(5, 3, 32, 32)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        expected = (box.unlock(key) if keyed else box)(images)
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-3, atol=1e-3)
