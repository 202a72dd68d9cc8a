"""Images of 224x224 from a folder, streamed: a small ViT is wrapped with spared memory, by one process and by two."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sdb.data
from sdb.box.box import Box
from sdb.config import WrapSettings
from sdb.keys import Key
from sdb.models import ModelSpec
from sdb.wrapping.wrap import wrap

pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]
VIT = {
    "patch_size": 56,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "hidden_dropout_prob": 0.1,
}
NAME = "transformers:ViTForImageClassification"
QUICK = {"epochs": 1, "batch_size": 8, "learning_rate": 0.01, "optimizer": "sgd", "device": "cpu"}
SPARE = {"accumulation_steps": 2, "activation_checkpointing": True}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of two classes, 16 and 6 images each, every one of another size."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for part, count in (("train", 16), ("test", 6)):
        for name, colour in (("blue", (40, 60, 200)), ("red", (200, 60, 40))):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                noise = rng.integers(-40, 40, (9, 9, 3)) + colour
                image = Image.fromarray(noise.clip(0, 255).astype(np.uint8))
                image.resize((230 + 9 * number, 300 - 7 * number)).save(folder / part / name / f"{number}.jpg")
    return folder


@pytest.fixture
def load(images, tmp_path):
    def made(**options):
        return sdb.data.load("folder", root=images, image_size=224, cache=tmp_path / "cache", **options)

    return made


def teacher_for(data):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ModelSpec(NAME, {"config": VIT}, 2, data.image_shape, (0.5,) * 3, (0.5,) * 3).build()


@pytest.mark.parametrize("kind", ["weight", "image"])
def test_neither_streaming_nor_recomputation_changes_a_box(load, kind, same_weights):
    key = Key(bytes(range(32)), kind=kind)
    boxes = []
    for stream, spare in ((True, SPARE), (False, SPARE | {"activation_checkpointing": False})):
        data = load(stream=stream)
        boxes.append(wrap(teacher_for(data), data, WrapSettings(**QUICK, **spare), key=key))
    first, second = boxes
    assert same_weights(first.state_dict(), second.state_dict())
    assert same_weights(first.unlock(key).state_dict(), second.unlock(key).state_dict())


@pytest.mark.slow
def test_a_pretrained_folder_is_wrapped_from_the_command_line(images, load, quick_sdb, tmp_path):
    teacher = teacher_for(load(stream=True))
    teacher.network.config.id2label = {0: "blue", 1: "red"}
    teacher.network.save_pretrained(tmp_path / "vit")
    (tmp_path / "vit" / "preprocessor_config.json").write_text('{"image_mean": 0.5, "image_std": 0.5}')
    params = (
        QUICK
        | SPARE
        | {
            "model_name": NAME,
            "dataset": "folder",
            "data_root": str(images),
            "image_size": 224,
            "stream": True,
            "teacher": "vit",
            "allowed_loss": 1,
        }
    )
    (tmp_path / "box").mkdir()
    (tmp_path / "box" / "params.json").write_text(json.dumps(params))
    done = quick_sdb("wrap", "box", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "box" / "result.json").read_text())
    done = quick_sdb("evaluate", "box/box", "--key", "box/key.json", "--network", NAME, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [found[name] for name in ("keyless", "keyed")] == [result[name] for name in ("keyless", "keyed")]
    box = Box.load(tmp_path / "box" / "box", network="transformers:ViTForImageClassification")
    assert box.classifier.image_shape == (3, 224, 224)
    assert box.info.class_names == ("blue", "red")


SHARED = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import sdb.data
from sdb.config import WrapSettings
from sdb.keys import Key
from sdb.models import ModelSpec
from sdb.runtime import world
from sdb.wrapping.wrap import wrap

images, out = map(Path, sys.argv[1:])
data = sdb.data.load("folder", root=images, image_size=224, stream=True, cache=out / "cache")
vit = {"patch_size": 56, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
torch.manual_seed(0)
spec = ModelSpec("transformers:ViTForImageClassification", {"config": vit}, 2, (3, 224, 224), (0.5,) * 3, (0.5,) * 3)
settings = WrapSettings(
    epochs=1, batch_size=8, learning_rate=0.01, optimizer="sgd", device="cpu", mixed_share=0, accumulation_steps=2,
    activation_checkpointing=True, precision="float32",
)
key = Key(bytes(range(32)), kind="weight")
box = wrap(spec.build(), data, settings, key=key)
states = {"keyless": box.classifier.state_dict(), "keyed": box.unlock(key).state_dict()}
torch.save(states, out / f"rank{world().rank}.pt")
"""


@pytest.mark.slow
def test_two_processes_make_the_box_of_one(images, tmp_path, monkeypatch):
    script = tmp_path / "job.py"
    script.write_text(SHARED)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(sys, "argv", [str(script), str(images), str(tmp_path / "one")])
    with torch.random.fork_rng():
        runpy.run_path(str(script))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, str(script), str(images), str(tmp_path / "two")],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    expected = torch.load(tmp_path / "one" / "rank0.pt", weights_only=True)
    ranks = [torch.load(tmp_path / "two" / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    for part in ("keyless", "keyed"):
        torch.testing.assert_close(ranks[0][part], expected[part], rtol=1e-4, atol=1e-5)
        assert all(torch.equal(ranks[0][part][name], ranks[1][part][name]) for name in expected[part])


@pytest.mark.slow
def test_the_example_runs():
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "wrap_transformers.py")],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    accuracies = {line.split()[0]: float(line.split()[1]) for line in done.stdout.splitlines()[:3]}
    assert accuracies.keys() == {"teacher", "keyless", "keyed"}
    assert min(accuracies.values()) > 80
