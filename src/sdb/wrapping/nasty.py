"""Nasty Teacher: a box without a key, whose soft outputs are pushed away from the teacher's.

Source: Ma et al., ICLR 2021 (arXiv 2105.07381).
"""

from __future__ import annotations

from torch import Tensor, nn

from sdb import losses
from sdb.box.box import Box
from sdb.config import WrapSettings
from sdb.data import Batch
from sdb.training.loop import Step
from sdb.training.repeated_views import Ask
from sdb.wrapping.method import Material, Method

RECORDED = ("start", "temperature", "disturbance_weight")


def nasty(material: Material) -> Method:
    """The method."""
    network = material.network
    return Method(
        network,
        nasty_step(material.ask(material.teachers[0]), material.settings),
        forward=network,
        keyed=None,
        beside=None,
        finish=lambda held_out: Box(network.eval(), material.info(RECORDED)),
    )


def nasty_step(teacher: Ask, settings: WrapSettings) -> Step:
    """Loss terms of Nasty Teacher."""

    def step(forward: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return losses.nasty_terms(
            forward(batch.images),
            batch.labels,
            teacher(batch),
            temperature=settings.temperature,
            disturbance_weight=settings.disturbance_weight,
        )

    return step
