"""The networks that wrapping begins with: frozen copies, the network that becomes the box, fresh ones."""

from __future__ import annotations

import copy

import torch

from sdb.config import FitSettings, WrapSettings
from sdb.errors import ModelError
from sdb.models import MODULE, Classifier
from sdb.runtime import derive_seed


def frozen(module: Classifier, device: torch.device) -> Classifier:
    """A copy on the device, in eval mode, without gradients; the caller's module is left alone."""
    copied = copy.deepcopy(module).to(device).eval()
    return copied.requires_grad_(False)


def start_network(teacher: Classifier, settings: WrapSettings) -> Classifier:
    """The network that becomes the box: the teacher's copy, or the same architecture freshly initialised."""
    # With everything private, nothing of the teacher's weights may be in the public network.
    if settings.start == "teacher" and settings.private_part == "thin":
        return copy.deepcopy(teacher).requires_grad_(True)
    return fresh_copy(teacher, settings, "start")


def random_network(teacher: Classifier, settings: WrapSettings) -> Classifier | None:
    """The frozen random network of the augmentation term, or None where the term is off."""
    if settings.augmentation_weight == 0:
        return None
    device = next(teacher.parameters()).device
    return frozen(fresh_copy(teacher, settings, "random"), device)


def fresh_copy(teacher: Classifier, settings: FitSettings, purpose: str) -> Classifier:
    """The teacher's architecture with new weights, from the run's seed.

    Raises:
        ModelError: the teacher came as a module object, whose making nobody here knows.
    """
    if teacher.spec.name == MODULE:
        raise ModelError(
            "this needs a second network of the teacher's architecture, and the teacher is a module object: "
            "use start='teacher' and augmentation_weight=0, or build it from a ModelSpec"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(settings.seed, purpose))
        return teacher.spec.build()
