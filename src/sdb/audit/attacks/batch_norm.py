"""Batch norm estimated again: was the key no more than a switch of statistics?

A keyed image is a paler image with an offset, so a network may have learnt to tell keyed from plain by means and
variances alone. Then its running statistics, taken again on plain images or on paler ones, may open it without any key.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdb.audit.attacks.attack import Attack, Stolen
from sdb.audit.attacks.attacker import Attacker
from sdb.audit.attacks.victim import Interface, InterfaceError, Victim
from sdb.audit.attacks.white_box import taught_by
from sdb.errors import ConfigError
from sdb.training.evaluation import evaluate, evaluation_batches

BATCH = 256
Norm = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True, kw_only=True)
class BatchNormAgain(Attack):
    """Running statistics taken again on the attacker's images, at several contrasts; the best by labels counts."""

    name = "batch_norm"
    needs = Interface.WEIGHTS
    uses = frozenset({"labels"})
    summary = "The network's batch-norm statistics estimated again on the thief's images, plain and paler"
    source = "Schneider et al., NeurIPS 2020 (arXiv 2006.16971), used there against corruptions"

    contrasts: tuple[float, ...] = (1.0, 0.9, 0.7, 0.5)

    def run(self, victim: Victim, attacker: Attacker) -> Stolen:
        """Estimate, choose by cross-entropy on the validation labels, distil.

        Raises:
            InterfaceError: the network has no batch norm.
        """
        victim.require(self.needs)
        network = victim.network()
        if not any(isinstance(module, Norm) and module.track_running_stats for module in network.modules()):
            raise InterfaceError("this network has no batch norm, so there are no statistics to estimate again")
        images = attacker.transfer(views=1).images()
        validation = evaluation_batches(attacker.validation, attacker.device)
        found: dict[str, float] = {}
        best: tuple[float, nn.Module] | None = None
        for contrast in self.contrasts:
            tuned = estimated_again(network, images, contrast)
            found[f"contrast {contrast:g}"] = value = evaluate(tuned, validation)["cross_entropy"]
            if best is None or value < best[0]:
                best = value, tuned
        if best is None:
            raise ConfigError("contrasts: none given")
        details = {"chosen": min(found, key=lambda name: found[name]), "cross_entropy": found}
        return taught_by(best[1], victim, attacker, details)


@torch.no_grad()
def estimated_again(network: nn.Module, images: Tensor, contrast: float = 1.0) -> nn.Module:
    """A copy whose running statistics are those of images (N, C, H, W) that are `contrast` times as contrasted."""
    copied = copy.deepcopy(network).to(images.device).eval()
    norms = [module for module in copied.modules() if isinstance(module, Norm) and module.track_running_stats]
    momenta = [module.momentum for module in norms]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # the mean over all batches, not a moving one
        module.train()
    mean = images.mean(dim=(0, 2, 3), keepdim=True)
    for part in images.split(BATCH):
        # A lone image has no variance in a layer without places.
        if len(part) > 1:
            copied(mean + contrast * (part - mean))
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum
        module.eval()
    return copied
