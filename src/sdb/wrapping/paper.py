"""The paper's box (method "sdb"): an image key, and the three terms disturbance, preservation and augmentation.

Source: Ye et al., AAAI 2022 (arXiv 2112.03695), as the reference code computes it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdb import losses
from sdb.box.box import Box, Embed
from sdb.config import WrapSettings
from sdb.data import Batch
from sdb.models import Classifier
from sdb.runtime import world
from sdb.training.loop import Step
from sdb.training.repeated_views import Ask
from sdb.wrapping.method import Material, Method
from sdb.wrapping.networks import random_network

RECORDED = (
    "start",
    "forward",
    "temperature",
    "disturbance_weight",
    "preservation_weight",
    "augmentation_weight",
)


def paper(material: Material) -> Method:
    """The method."""
    network, settings, teacher = material.network, material.settings, material.teachers[0]
    embed = Embed(material.keys[0], network.image_shape).to(network.mean.device)
    random = random_network(teacher, settings)
    return Method(
        network,
        sdb_step(material.ask(teacher), None if random is None else material.ask(random), settings),
        forward=TwoPasses(network, embed, settings.forward == "joint"),
        keyed=nn.Sequential(embed, network),
        beside=None,
        finish=lambda held_out: Box(network.eval(), material.info(RECORDED)),
    )


class TwoPasses(nn.Module):
    """Plain and keyed images through one network: images (N, C, H, W) to two logits (N, classes).

    Args:
        classifier: the box's network.
        embed: puts the key into images.
        joint: one forward of the concatenated batch, so that batch norm normalises both by the same statistics
            and its running statistics fit both; else two forwards, plain first, as the reference.
    """

    def __init__(self, classifier: Classifier, embed: nn.Module, joint: bool) -> None:
        super().__init__()
        self.classifier, self.embed, self.joint = classifier, embed, joint

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Keyless and keyed logits."""
        keyed = self.embed(images)
        if not self.joint:
            return self.classifier(images), self.classifier(keyed)
        keyless_logits, keyed_logits = self.classifier(torch.cat([images, keyed])).chunk(2)
        return keyless_logits, keyed_logits


def sdb_step(teacher: Ask, random: Ask | None, settings: WrapSettings) -> Step:
    """Loss terms of the paper's box."""
    # A sum over the batch, where the other terms are means: parts of a batch are averaged, sums must not be.
    sum_scale = world().size * settings.accumulation_steps

    def step(forward: nn.Module, batch: Batch) -> dict[str, Tensor]:
        keyless, keyed = forward(batch.images)
        return losses.sdb_terms(
            keyless,
            keyed,
            batch.labels,
            teacher(batch),
            random(batch) if random is not None else None,
            temperature=settings.temperature,
            disturbance_weight=settings.disturbance_weight,
            preservation_weight=settings.preservation_weight,
            augmentation_weight=settings.augmentation_weight,
            sum_scale=sum_scale,
        )

    return step
