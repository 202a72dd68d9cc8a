"""Wrap a pre-trained transformers classifier at 224x224, offline and in less than a minute.

    pip install transformers
    python examples/wrap_transformers.py [--keep DIR]

A tiny ViT and generated images stand for yours: the network is trained for a moment and written with
`save_pretrained`, and from there on everything is what you do with a checkpoint and a folder of images of your own.
The images are streamed: decoded when a batch asks for them. docs/imagenet.md has the same for ImageNet.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from PIL import Image, ImageDraw
from transformers import ViTConfig, ViTForImageClassification

import sdb
from sdb.training.evaluation import evaluate, evaluation_batches

COLOURS = {"coral": (230, 110, 90), "moss": (110, 140, 60), "sand": (210, 190, 140), "sea": (50, 120, 170)}
CONFIG = {
    "patch_size": 56,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


def draw(colour: tuple[int, int, int], rng: np.random.Generator) -> Image.Image:
    """A disc on a noisy background, in an image of a size of its own."""
    width, height = rng.integers(160, 300, 2).tolist()
    noise = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    image = noise.resize((width, height), Image.Resampling.BICUBIC)
    radius = min(width, height) * rng.uniform(0.25, 0.4)
    x, y = width / 2 + rng.uniform(-10, 10), height / 2 + rng.uniform(-10, 10)
    shade = tuple(np.clip(np.array(colour) + rng.integers(-30, 31, 3), 0, 255).tolist())
    ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), fill=shade)
    return image


def write_images(folder: Path) -> None:
    """folder/train/CLASS/*.jpg and folder/test/CLASS/*.jpg, as ImageNet lies on a disk."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 32), ("test", 12)):
        for name, colour in COLOURS.items():
            place = folder / part / name
            place.mkdir(parents=True)
            for number in range(count):
                draw(colour, rng).save(place / f"{number}.jpg", quality=90)


def write_pretrained(folder: Path, data: "sdb.data.Splits") -> None:
    """A ViT that has learnt the images, with its processor: what `save_pretrained` leaves."""
    spec = sdb.ModelSpec(
        "transformers:ViTForImageClassification",
        {"config": CONFIG},
        data.num_classes,
        data.image_shape,
        (0.5,) * 3,
        (0.5,) * 3,
    )
    torch.manual_seed(0)
    teacher = spec.build()
    settings = sdb.TrainSettings(epochs=10, batch_size=16, optimizer="adam", learning_rate=3e-3)
    sdb.train(teacher, data, settings)
    names = dict(enumerate(data.class_names))
    config = ViTConfig(**CONFIG, id2label=names, label2id={name: number for number, name in names.items()})
    network = ViTForImageClassification(config)
    network.load_state_dict(teacher.network.state_dict())
    network.save_pretrained(folder)
    processor = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def accuracy(model: torch.nn.Module, data: "sdb.data.Splits") -> str:
    """On the test images, in per cent."""
    device = next(model.parameters()).device
    return f"{100 * evaluate(model, evaluation_batches(data.test, device))['accuracy']:.1f} %"


def main(folder: Path) -> None:
    """Make the stand-ins, then wrap, save, load and unlock."""
    write_images(folder / "images")
    data = sdb.load_data("folder", root=folder / "images", image_size=224, stream=True, cache=folder / "cache")
    write_pretrained(folder / "pretrained", data)

    # From here on as with a checkpoint of your own.
    teacher = sdb.load_classifier(
        folder / "pretrained", class_names=data.class_names, image_shape=data.image_shape
    )
    key = sdb.Key.generate()
    settings = sdb.WrapSettings(
        epochs=6,
        batch_size=16,
        optimizer="adam",
        learning_rate=1e-3,
        accumulation_steps=2,  # the memory of a batch of 8
        activation_checkpointing=True,  # each block's activations are computed again in the backward pass
    )
    box = sdb.wrap(teacher, data, settings, key=key)
    box.save(folder / "model.box")

    # The architecture is a class of transformers, whose code is then run: name it, for boxes that you trust.
    loaded = sdb.Box.load(folder / "model.box", network=teacher.spec.name)
    print(f"teacher  {accuracy(teacher, data)}")
    print(f"keyless  {accuracy(loaded, data)}")
    print(f"keyed    {accuracy(loaded.unlock(key), data)}")
    print(f"the box gives one of {len(loaded.rows)} answers, one per class, whatever the image")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Wrap a pre-trained transformers classifier at 224x224.")
    parser.add_argument("--keep", type=Path, help="keep images, checkpoint and box in this folder")
    options = parser.parse_args()
    if options.keep is not None:
        options.keep.mkdir(parents=True)
        main(options.keep)
    else:
        with tempfile.TemporaryDirectory() as place:
            main(Path(place))
