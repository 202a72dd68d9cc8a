"""Attacks of IBM's Adversarial Robustness Toolbox (ART), run against our victims through its own interfaces.

    sdb audit BOX --attack sdb.audit.attacks.art:Knockoff --attack sdb.audit.attacks.art:Copycat

Needs the extra `art`; so they are in no audit unless named. ART's extraction attacks take logits for granted and learn
the top-1 answers (`use_probability` is off by default); both are kept.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from sdb.audit.attacks.attack import Attack, Stolen
from sdb.audit.attacks.attacker import Attacker
from sdb.audit.attacks.victim import Interface, QueryBudgetError, Victim
from sdb.data import ImageSet
from sdb.errors import MissingExtraError
from sdb.training.optimizers import resolved

BATCH = 512


def part_of_art(module: str, name: str) -> Any:
    """A class of ART's.

    Raises:
        MissingExtraError: ART is not installed.
    """
    try:
        return getattr(importlib.import_module(f"art.{module}"), name)
    except ImportError:
        raise MissingExtraError("adversarial-robustness-toolbox", "art", "this attack") from None


def behind(victim: Victim, device: torch.device) -> Any:
    """A victim as ART's `BlackBoxClassifier`: numpy images (N, C, H, W) in [0, 1] to scores (N, K), counted as queries.

    Raises:
        MissingExtraError: ART is not installed.
    """
    classifier = part_of_art("estimators.classification", "BlackBoxClassifier")

    def predict(images: np.ndarray) -> np.ndarray:
        asked = torch.from_numpy(np.asarray(images, np.float32)).to(device)
        return victim.ask(asked).scores().cpu().numpy()

    return classifier(predict, victim.image_shape, victim.num_classes, clip_values=(0.0, 1.0))


def thief(student: nn.Module, victim: Victim, attacker: Attacker) -> Any:
    """A student as ART's `PyTorchClassifier`, with ART's own training loop."""
    fitted = resolved(attacker.settings.model_copy(update={"optimizer": "adam"}), student)
    optimizer = torch.optim.Adam(student.parameters(), lr=fitted.highest_rate)
    kind = "gpu" if attacker.device.type == "cuda" else "cpu"
    return part_of_art("estimators.classification", "PyTorchClassifier")(
        student.to(attacker.device),
        nn.CrossEntropyLoss(),
        victim.image_shape,
        victim.num_classes,
        optimizer,
        clip_values=(0.0, 1.0),
        device_type=kind,
    )


@contextlib.contextmanager
def seeded(seed: int) -> Generator[None]:
    """ART draws from the global streams of numpy and torch: seeded here, and put back as they were."""
    before = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield
    finally:
        np.random.set_state(before)


def extracted(
    attack: Callable[..., Any], victim: Victim, attacker: Attacker, images: ImageSet, **settings: Any
) -> Stolen:
    """Run one of ART's extraction attacks on as many images as the budget allows."""
    pixels = np.array(images.images, np.float32) / 255
    left = victim.left()
    if left == 0:
        raise QueryBudgetError("no queries are left")
    count = len(pixels) if left is None else min(left, len(pixels))
    student = attacker.new_student()
    with seeded(attacker.seed("art")):
        made = attack(
            classifier=behind(victim, attacker.device),
            batch_size_fit=min(attacker.settings.batch_size, count),
            batch_size_query=BATCH,
            nb_epochs=attacker.settings.epochs,
            nb_stolen=count,
            **settings,
        )
        made.extract(x=pixels, thieved_classifier=thief(student, victim, attacker))
    return Stolen(student.eval(), details={"images": count})


@dataclass(frozen=True, kw_only=True)
class Knockoff(Attack):
    """ART's KnockoffNets with random choice, on images of another kind."""

    name = "art_knockoff"
    needs = Interface.LABELS
    uses = frozenset({"proxy", "no_images"})
    summary = "KnockoffNets as the Adversarial Robustness Toolbox has it: top-1 answers to images of another kind"
    source = "Orekondy et al., CVPR 2019; art.attacks.extraction.KnockoffNets"
    control = 0.5

    def run(self, victim: Victim, attacker: Attacker) -> Stolen:
        """Ask about proxy images, learn their labels."""
        attack = part_of_art("attacks.extraction", "KnockoffNets")
        return extracted(attack, victim, attacker, attacker.proxy, sampling_strategy="random", verbose=False)


@dataclass(frozen=True, kw_only=True)
class Copycat(Attack):
    """ART's CopycatCNN on the attacker's own images."""

    name = "art_copycat"
    needs = Interface.LABELS
    summary = "CopycatCNN as the Adversarial Robustness Toolbox has it: top-1 answers to the thief's own images"
    source = "Correia-Silva et al., IJCNN 2018; art.attacks.extraction.CopycatCNN"

    def run(self, victim: Victim, attacker: Attacker) -> Stolen:
        """Ask about the attacker's own images, learn their labels."""
        attack = part_of_art("attacks.extraction", "CopycatCNN")
        return extracted(attack, victim, attacker, attacker.train)
