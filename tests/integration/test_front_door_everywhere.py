"""The front door for networks of one's own: wrapped, saved, loaded, unlocked, exported, served, audited, distilled."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

import sdb
from sdb.audit.plan import AuditSettings
from sdb.export import export
from sdb.service import create_app

transformers = pytest.importorskip("transformers")

SEVEN = ("ant", "bee", "cow", "dog", "emu", "fox", "gnu")
SHORT = sdb.WrapSettings(epochs=1, batch_size=14, learning_rate=0.003, optimizer="adam", device="cpu")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.2, 0.25)


class Convolutions(nn.Module):
    """A CNN of one's own, which takes normalised pixels."""

    def __init__(self, classes=7):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2),
            nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(16, classes)

    def forward(self, images):
        return self.head(self.features(images))


class WithoutNorm(nn.Module):
    """No normalisation layer anywhere."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 5, stride=3), nn.Linear(8, 7)

    def forward(self, images):
        return self.head(self.conv(images).relu().mean(dim=(2, 3)))


class NormalisesItself(Convolutions):
    """Takes pixels in [0, 1]."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))

    def forward(self, images):
        return super().forward((images - self.mean) / self.std)


def vision_transformer():
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=48, patch_size=16,
        num_labels=7,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


NETWORKS = {
    "a CNN": (Convolutions, {"mean": MEAN, "std": STD}),
    "a transformers ViT": (vision_transformer, {"mean": MEAN, "std": STD}),
    "no normalisation layer": (WithoutNorm, {}),
    "normalises itself": (NormalisesItself, {}),
}


class Pictures(Dataset):
    """A folder of class folders, as people read them."""

    def __init__(self, root):
        self.files = sorted(root.glob("*/*.png"))

    def __len__(self):
        return len(self.files)

    def __getitem__(self, number):
        pixels = np.asarray(Image.open(self.files[number]), dtype=np.float32) / 255
        return torch.from_numpy(pixels.transpose(2, 0, 1).copy()), SEVEN.index(self.files[number].parent.name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven classes of 48x48 pictures, each of a colour of its own with noise."""
    top, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number, name in enumerate(SEVEN):
        for part, count in (("train", 12), ("test", 4)):
            (top / part / name).mkdir(parents=True)
            for image in range(count):
                colour = np.array([number * 36, 255 - number * 36, (number % 3) * 100])
                pixels = (colour + draw.normal(0, 20, (48, 48, 3))).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(top / part / name / f"{image}.png")
    return top


SLOW = {"a transformers ViT"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in NETWORKS]
)
def test_a_network_of_one_s_own_goes_all_the_way(name, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SDB_CACHE", str(tmp_path / "cache"))
    make, scale = NETWORKS[name]
    torch.manual_seed(0)
    net = make()
    loader = DataLoader(Pictures(folder / "train"), batch_size=14, shuffle=True)
    held = DataLoader(Pictures(folder / "test"), batch_size=14)
    key = sdb.Key.generate()

    box = sdb.wrap(net, (loader, held, held), SHORT, key=key, **scale)
    assert "keyless" not in box.summary() or "accuracy" in box.summary()
    assert box.classifier.image_shape == (3, 48, 48)
    box.save(tmp_path / "model.box")
    loaded = sdb.Box.load(tmp_path / "model.box", network=make())
    images, _ = next(iter(held))
    assert torch.equal(loaded(images), box(images))
    knowledge = loaded.unlock(key)
    assert torch.equal(knowledge(images), box.unlock(key)(images))

    student = Convolutions()
    before = copy.deepcopy(student.state_dict())
    quick = sdb.DistillSettings(epochs=1, batch_size=14, learning_rate=0.01, device="cpu")
    assert sdb.distill(loaded, student, (loader, held), quick, key=key, mean=MEAN, std=STD) is student
    assert not torch.equal(before["head.weight"], student.head.weight)

    import onnxruntime

    export(loaded, tmp_path / "model.onnx", "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    logits = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
    assert np.abs(logits - loaded(images).numpy()).max() < 1e-4

    client = TestClient(create_app(loaded))
    answer = client.post("/predict", content=(folder / "test" / "cow" / "0.png").read_bytes()).json()
    picture = torch.from_numpy(np.asarray(Image.open(folder / "test" / "cow" / "0.png")).copy())
    assert answer["class"] == int(loaded(picture.permute(2, 0, 1)[None].float() / 255).argmax())

    settings = AuditSettings(
        attacks=("labels", "distil"), defences=("labels_only",), seeds=1, epochs=1, pairs=3, device="cpu"
    )
    told = []
    claim = sdb.audit(
        loaded,
        (loader, held, held),
        key=key,
        teacher=net,
        settings=settings,
        progress=lambda *of: told.append(of),
    )
    assert told[-1][0] == told[-1][1] > 1
    assert {row["name"] for row in claim["attacks"]} == {"labels", "distil"}


def test_a_loop_of_one_s_own_on_folders(folder):
    loader = DataLoader(Pictures(folder / "train"), batch_size=14, shuffle=True)
    torch.manual_seed(0)
    key = sdb.Key.generate()
    wrapping = sdb.Wrapping(Convolutions(), key=key, num_classes=7, class_names=SEVEN, mean=MEAN, std=STD)
    optimizer = torch.optim.AdamW(wrapping.parameters(), lr=3e-3)
    for images, labels in loader:
        loss = sum(wrapping.losses(images, labels).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    box = wrapping.finish(DataLoader(Pictures(folder / "test"), batch_size=14))
    assert box.classifier.image_shape == (3, 48, 48)
    assert box.info.measured["images"] == 28
    assert box.unlock(key)(torch.rand(2, 3, 48, 48)).shape == (2, 7)
