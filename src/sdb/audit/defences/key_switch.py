"""A server that holds the key: plain answers to partners, one fixed answer a class to everybody else; no training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sdb.answers.rows import decoy_logits
from sdb.audit.defences.defence import Defence, Defended, Parts, owner_of, tensors_of
from sdb.audit.defences.outputs import ONLY_OUTPUTS
from sdb.config import FitSettings, WrapSettings
from sdb.data import Splits
from sdb.models import Classifier, device_of
from sdb.runtime import choose_device
from sdb.training.evaluation import class_mean_outputs, evaluation_batches
from sdb.wrapping.decoy import choose_decoys
from sdb.wrapping.networks import frozen


class FixedAnswers(nn.Module):
    """Answers that depend on the teacher's top-1 class alone.

    Args:
        teacher: images to logits.
        answers: logits (K, K), row c for class c.
    """

    def __init__(self, teacher: nn.Module, answers: Tensor) -> None:
        super().__init__()
        self.teacher = teacher
        self.answers: Tensor
        self.register_buffer("answers", answers)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W) in [0, 1]."""
        return self.answers[self.teacher(images).argmax(dim=1)]


@dataclass(frozen=True, kw_only=True)
class KeySwitch(Defence):
    """The decoy box's contract kept by an if-statement on a server: the measure for a box that is trained."""

    name = "key_switch"
    title = "server with a key"
    summary = "A server that gives its teacher's logits to partners and one fixed answer a class to everybody else"
    source = "this project; the decoy map of docs/method.md without any training"
    threat_note = "The server must be trusted and never leak. " + ONLY_OUTPUTS
    file = "answers.safetensors"

    def make(self, teacher: Classifier, data: Splits, settings: FitSettings) -> Parts:
        """Choose the decoys as the decoy box does."""
        fitted = {name: getattr(settings, name) for name in FitSettings.model_fields}
        wrap_settings, device = WrapSettings(**fitted), choose_device(settings.device)
        owner = owner_of({"settings": fitted})
        confusion = class_mean_outputs(
            frozen(teacher, device), evaluation_batches(data.train, device), data.num_classes
        )
        chosen = choose_decoys(owner, confusion, data.num_classes, wrap_settings)
        answers = decoy_logits(chosen["decoys"], wrap_settings.decoy_height, wrap_settings.margin)
        return {"answers": answers}

    def open(self, teacher: Classifier, parts: Parts, record: dict[str, Any]) -> Defended:
        """The switch: fixed answers, or the teacher."""
        network = frozen(teacher, device_of(teacher))
        answers = tensors_of(parts)["answers"].to(device_of(teacher))
        keyless = FixedAnswers(network, answers).eval()
        return Defended(keyless, network, network, seconds=record["seconds"])
