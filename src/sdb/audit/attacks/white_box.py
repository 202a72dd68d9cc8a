"""With the weights at hand: train the network a little further, cut it, give it a new head, or copy its features.

What such an attack must beat is a network of the attacker's own, trained from scratch on the same images: that needs no
box. A weight-key box hides the teacher's answers in its public norms and head, so new ones are the sharpest attack.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from sdb import losses
from sdb.audit.attacks.attack import Attack, Stolen
from sdb.audit.attacks.attacker import Attacker, StudentLoss
from sdb.audit.attacks.distil import Distil
from sdb.audit.attacks.retrain import Retrain
from sdb.audit.attacks.victim import Interface, Victim
from sdb.box.private_part import WITH_WEIGHTS, head_of
from sdb.data import Splits
from sdb.errors import ConfigError
from sdb.models import Classifier


def taught_by(
    recovered: nn.Module, victim: Victim, attacker: Attacker, details: dict[str, Any] | None = None
) -> Stolen:
    """A student of a module that an attack found, which answers with logits and is asked without limit.

    Args:
        recovered: images to logits.
        victim: where it came from, for its sizes.
        attacker: images, labels, student.
        details: for the record.
    """
    found = Victim(
        recovered.to(attacker.device),
        Interface.LOGITS,
        num_classes=victim.num_classes,
        image_shape=victim.image_shape,
    )
    return Stolen(Distil().run(found, attacker).student, recovered, details or {})


def again(victim: Victim, attacker: Attacker, **settings: Any) -> Classifier:
    """The victim's network trained again on the attacker's images; settings as in `Retrain`."""
    nothing = attacker.validation.take(np.arange(0))
    names = tuple(str(label) for label in range(victim.num_classes))
    data = Splits("own", attacker.train, nothing, nothing, names, (), (), attacker.augment)
    attack = Retrain(**settings, seed=attacker.seed("retrain"), device=str(attacker.device))
    return attack.run(cast(Classifier, victim.network()), data)


@dataclass(frozen=True, kw_only=True)
class FineTuned(Attack):
    """Train all weights a little further on labels: what hides an answer may be thinner than what makes it."""

    name = "fine_tuned"
    needs = Interface.WEIGHTS
    uses = frozenset({"labels"})
    summary = "All weights trained further on the thief's labels for a few steps, then distilled"
    source = "fine-tuning, as in Liu et al., RAID 2018 (arXiv 1805.12185); settings ours"

    steps: int = 200
    learning_rate: float = 1e-3

    def run(self, victim: Victim, attacker: Attacker) -> Stolen:
        """Fine-tune a copy, distil it."""
        victim.require(self.needs)
        tuned = again(victim, attacker, part="all", steps=self.steps, learning_rate=self.learning_rate)
        return taught_by(tuned, victim, attacker)


@dataclass(frozen=True, kw_only=True)
class Pruned(Attack):
    """Remove the smallest weights, then fine-tune."""

    name = "pruned"
    needs = Interface.WEIGHTS
    uses = frozenset({"labels"})
    summary = "The smallest weights of every layer set to zero, the rest trained further on labels, then distilled"
    source = "Liu et al., RAID 2018 (arXiv 1805.12185), by magnitude in place of activity"

    share: float = 0.5
    steps: int = 400
    learning_rate: float = 1e-3

    def run(self, victim: Victim, attacker: Attacker) -> Stolen:
        """Prune a copy, fine-tune, distil.

        Raises:
            ConfigError: the share is not in [0, 1).
        """
        victim.require(self.needs)
        if not 0 <= self.share < 1:
            raise ConfigError(f"share: {self.share} is not in [0, 1)")
        network = pruned(victim.network(), self.share)
        cut = Victim(
            network,
            Interface.WEIGHTS,
            num_classes=victim.num_classes,
            image_shape=victim.image_shape,
            network=network,
        )
        tuned = again(cut, attacker, part="all", steps=self.steps, learning_rate=self.learning_rate)
        return taught_by(tuned, victim, attacker)


@torch.no_grad()
def pruned(network: nn.Module, share: float) -> nn.Module:
    """A copy without the smallest share of each weight matrix and kernel."""
    copied = copy.deepcopy(network)
    for module in copied.modules():
        if isinstance(module, WITH_WEIGHTS):
            size = module.weight.abs()
            bound = size.flatten().kthvalue(max(1, round(share * size.numel()))).values if share else -1
            module.weight.mul_(size > bound)
    return copied


@dataclass(frozen=True, kw_only=True)
class FreshHead(Attack):
    """New norms and a new head around the shipped weights, trained on its top-1 answers or the attacker's labels."""

    needs = Interface.WEIGHTS
    uses = frozenset({"labels"})
    source = "ours, against weight-key boxes; linear probes: Alain and Bengio, 2016 (arXiv 1610.01644)"

    name: str = "fresh_head"
    summary: str = "New norms and a new head trained on the network's own top-1 answers, then distilled"
    goal: Literal["labels", "top1"] = "top1"
    steps: int = 600
    learning_rate: float = 3e-3

    def run(self, victim: Victim, attacker: Attacker) -> Stolen:
        """Train new norms and a new head, distil."""
        victim.require(self.needs)
        settings = {"goal": self.goal, "fresh": True, "steps": self.steps, "learning_rate": self.learning_rate}
        return taught_by(again(victim, attacker, **settings), victim, attacker)


FROM_LABELS = FreshHead(
    name="fresh_head_labels",
    summary="New norms and a new head trained on the thief's labels, then distilled",
    goal="labels",
)


@dataclass(frozen=True, kw_only=True)
class Features(Attack):
    """A student that copies what goes into the head, not what comes out of it."""

    name = "features"
    needs = Interface.WEIGHTS
    uses = frozenset({"labels"})
    summary = "A student that regresses the network's last features, beside the thief's labels"
    source = "Romero et al., ICLR 2015 (FitNets, arXiv 1412.6550), last layer, linear regressor"

    weight: float = 1.0

    def run(self, victim: Victim, attacker: Attacker) -> Stolen:
        """Read the features of every view, regress them through a linear map that is thrown away."""
        victim.require(self.needs)
        transfer = attacker.transfer()
        network = WithFeatures(cast(Classifier, copy.deepcopy(victim.network()))).to(attacker.device).eval()
        with torch.no_grad():
            read = torch.cat([network(part) for part in transfer.images().split(512)])
        target = read[:, victim.num_classes :]
        target = (target - target.mean(dim=0)) / (target.std(dim=0) + 1e-6)
        student = attacker.new_student().to(attacker.device)
        watched = WithFeatures(student)
        with torch.no_grad():
            width = watched.eval()(transfer.images()[:2]).shape[1] - victim.num_classes
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(attacker.seed("regressor"))
            watched.regressor = nn.Linear(width, target.shape[1]).to(attacker.device)

        def loss(output: Tensor, batch: Any) -> dict[str, Tensor]:
            logits, features = output[:, : victim.num_classes], output[:, victim.num_classes :]
            return {
                "features": self.weight * (features - target[batch.index]).square().mean(),
                "cross_entropy": losses.cross_entropy(logits, batch.labels),
            }

        step: StudentLoss = loss
        return Stolen(attacker.learn(student, transfer, step, forward=watched, beside=watched.regressor))


class WithFeatures(nn.Module):
    """A classifier that also says what goes into its head: images to (N, K + D), logits first.

    Args:
        classifier: any, with a head that `sdb.box.private_part.head_of` finds.

    Attributes:
        regressor: what the features go through.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.regressor: nn.Module = nn.Identity()
        self._head = [head_of(classifier)]  # in a list, so that it is not registered twice

    def forward(self, images: Tensor) -> Tensor:
        """Logits and features, side by side."""
        seen: list[Tensor] = []
        # Only for this forward: the classifier is given away afterwards.
        hook = self._head[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        try:
            logits = self.classifier(images)
        finally:
            hook.remove()
        features = seen[-1]
        if features.ndim > 2:  # a map; its places count alike
            features = features.flatten(2).mean(dim=2)
        return torch.cat([logits, self.regressor(features)], dim=1)
