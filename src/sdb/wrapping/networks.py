"""The networks that wrapping begins with: frozen copies, the network that becomes the box, fresh ones."""

from __future__ import annotations

import copy

import torch

from sdb.config import FitSettings, WrapSettings
from sdb.errors import ModelError
from sdb.models import MODULE, Classifier
from sdb.runtime import derive_seed

# How torch's modules draw their parameters again; those of attention have the second.
RESETS = ("reset_parameters", "_reset_parameters")


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
        ModelError: see `made_again`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(settings.seed, purpose))
        return made_again(teacher)


def made_again(classifier: Classifier) -> Classifier:
    """The same architecture with weights drawn from torch's random state: on the CPU, in training mode.

    A network that came as a module object is copied, and its parts draw their parameters again.

    Raises:
        ModelError: a parameter of a module object would keep its value, so nobody here can make the network afresh.
    """
    if classifier.spec.name != MODULE:
        return classifier.spec.build()
    copied = copy.deepcopy(classifier).cpu().train().requires_grad_(True)
    copied.class_names = ()
    problem = ""
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.fill_(torch.nan)  # what is not drawn again stays so
        try:
            for module in copied.network.modules():
                for name in RESETS:
                    if callable(reset := getattr(module, name, None)):
                        reset()
        except Exception as error:  # the module may be anyone's
            problem = f"{type(error).__name__}: {error}"
        kept = [name for name, parameter in copied.network.named_parameters() if parameter.isnan().any()]
    if problem or kept:
        raise ModelError(
            "this needs a second network of the teacher's architecture, and the teacher is a module object whose "
            f"parts do not all draw their weights again ({problem or kept[0]}): give them a reset_parameters(), use "
            "start='teacher' and augmentation_weight=0, or build it from a ModelSpec"
        )
    return copied
