"""The decoy method with weight keys: a second, private set of some parameters, trained beside the public ones."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sdb.answers.levels import FEWEST, cross_fitted, fit
from sdb.answers.rows import Rows, decoy_logits
from sdb.box.box import Box
from sdb.box.private_part import PrivatePart
from sdb.config import WrapSettings
from sdb.models import Classifier
from sdb.runtime import derive_seed
from sdb.training.evaluation import answers_to, honesty
from sdb.wrapping import decoy
from sdb.wrapping.method import HeldOut, Material, Method

log = logging.getLogger(__name__)


def weight_key(material: Material) -> Method:
    """The method."""
    network, settings = material.network, material.settings
    step, chosen = decoy.taught(material)
    whole = settings.private_part == "whole"
    with torch.random.fork_rng(devices=[]):  # adapters begin at random, the same in every process
        torch.manual_seed(derive_seed(settings.seed, "private"))
        private = PrivatePart(material.teachers[0] if whole else network, whole).to(network.mean.device)

    def finish(held_out: HeldOut) -> Box:
        more = {"private_part": settings.private_part} if whole else {}
        info = material.info((*decoy.RECORDED, "confidence_bits", "fixed_answers"), **more)
        rows, found = None, {}
        if settings.fixed_answers:
            rows, found = answering(network.eval(), chosen["decoys"], settings, held_out)
        box = Box(network.eval(), replace(info, **found), rows=rows)
        return box.lock(private.export(), chosen, list(material.keys), decoy.owner_of(material))

    return Method(
        network,
        step,
        forward=WeightKeyPasses(network, private),
        keyed=WithPrivatePart(network, private),
        beside=private,
        finish=finish,
    )


def answering(
    network: Classifier, decoys: list[list[int]], settings: WrapSettings, held_out: HeldOut
) -> tuple[Rows, dict[str, Any]]:
    """What the box will answer without a key, and what it will say of that, by the name in `BoxInfo`."""
    if settings.confidence_levels == 0:
        return Rows.misleading(decoy_logits(decoys, settings.decoy_height, settings.margin)), {}
    classes = network.num_classes
    logits, labels = torch.empty(0, classes), torch.empty(0, dtype=torch.int64)
    if held_out is not None:
        logits, labels = answers_to(network, held_out)
    if len(labels) < FEWEST:
        log.warning(
            "the box's confidence is a guess, one level for all answers: %d held-out images, %d are needed to measure "
            "it; give validation images",
            len(labels),
            FEWEST,
        )
    wanted = {"levels": settings.confidence_levels, "bits": settings.confidence_bits}
    fitted = fit(logits, labels, decoys, **wanted)
    measured = {"bits": fitted.bits}
    if len(labels) >= FEWEST:
        honest = honesty(cross_fitted(logits, labels, decoys, **wanted), labels)
        measured |= {f"keyless_{score}": honest[score] for score in ("calibration_error", "brier")}
    return fitted.rows.to(network.mean.device), {"measured": measured, "levels": fitted.levels}


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
