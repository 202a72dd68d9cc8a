"""The decoy method with weight keys: a second, private set of some parameters, trained beside the public ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdb.answers.rows import named
from sdb.box.box import Box
from sdb.box.private_part import PrivatePart
from sdb.models import Classifier
from sdb.runtime import derive_seed
from sdb.wrapping import decoy
from sdb.wrapping.method import Material, Method


def weight_key(material: Material) -> Method:
    """The method."""
    network, settings = material.network, material.settings
    step, answers, chosen = decoy.taught(material)
    whole = settings.private_part == "whole"
    with torch.random.fork_rng(devices=[]):  # adapters begin at random, the same in every process
        torch.manual_seed(derive_seed(settings.seed, "private"))
        private = PrivatePart(material.teachers[0] if whole else network, whole).to(network.mean.device)

    def finish() -> Box:
        more = {"private_part": settings.private_part} if whole else {}
        info = material.info((*decoy.RECORDED, "fixed_answers"), **more)
        box = Box(network.eval(), info, rows=named(answers) if settings.fixed_answers else None)
        return box.lock(private.export(), chosen, list(material.keys), decoy.owner_of(material))

    return Method(
        network,
        step,
        forward=WeightKeyPasses(network, private),
        keyed=WithPrivatePart(network, private),
        beside=private,
        finish=finish,
    )


class WeightKeyPasses(nn.Module):
    """Plain images through the public network and through the one with its private part in place."""

    def __init__(self, classifier: Classifier, private: PrivatePart) -> None:
        super().__init__()
        self.classifier, self.private = classifier, private

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keyless and keyed logits (N, classes), and no wrong-key logits: a wrong weight key opens nothing."""
        keyless = self.classifier(images)
        return keyless, self.private(self.classifier, images), keyless[:0]


class WithPrivatePart(nn.Module):
    """The network with its private part in place, while both are still being trained."""

    def __init__(self, network: Classifier, private: PrivatePart) -> None:
        super().__init__()
        self.network, self.private = network, private

    def forward(self, images: Tensor) -> Tensor:
        """Keyed logits (N, classes)."""
        return self.private(self.network, images)
