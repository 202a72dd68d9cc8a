"""The owner's service as thieves meet it: labels or soft answers by account, and a ledger of what was told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from sdb.answers.entries import Terms
from sdb.answers.ledger import Ledger
from sdb.answers.ties import Ties
from sdb.audit.marks.mark_seed import MarkSeed, logits_of
from sdb.audit.marks.thieves import CHANGED
from sdb.keys.sealing import public_of


class Partner(nn.Module):
    """A partner's answers: the network's own, on ties with the class of its coin ahead.

    Args:
        model: the network.
        ties: of the service.
        account: the partner's.
    """

    def __init__(self, model: nn.Module, ties: Ties, account: str) -> None:
        super().__init__()
        self.model, self.ties, self.account = model, ties, account

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Answers (N, C) to images in [0, 1]."""
        logits = self.model(images)
        told = self.ties.answer(logits.cpu().numpy(), self.account).answers
        return torch.from_numpy(told).to(logits.device)


class Service:
    """Labels for accounts.

    Args:
        seed: whose model, ties and owner it has.
        path: of the ledger that it makes.
    """

    def __init__(self, seed: MarkSeed, path: Path) -> None:
        self.seed, ties = seed, seed.ties
        public = public_of(seed.owner.queries_key).hex()
        Ledger.create(path, Terms(ties.box_id, ties.id, ties.tau, public, cap=10**6)).close()
        self.ledger = Ledger(path, writing=True)

    def ask(self, images: np.ndarray, accounts: Sequence[str]) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """What each account is told about images uint8 (N, C, H, W), int64 (N,), and the network's own logits."""
        logits = logits_of(self.seed.model, images)
        told = {}
        for account in accounts:
            answer = self.seed.ties.answer(logits, account)
            pixels = images[answer.found.rows].astype(np.float32) / np.float32(255)
            self.ledger.put(account, pixels, answer.found, answer.classes)
            told[account] = answer.answers.argmax(axis=1)
        return told, logits


def changed(images: np.ndarray, noise: int, rng: np.random.Generator) -> np.ndarray:
    """A copy of images uint8 (N, C, H, W): noise; with much of it also moved by up to a pixel, one in two mirrored.

    Args:
        images: not changed.
        noise: its standard deviation, of 255.
        rng: what is drawn from.
    """
    noisy = (images + rng.normal(0, noise, images.shape)).round().clip(0, 255).astype(np.uint8)
    if noise < CHANGED:
        return noisy
    moved = np.stack([np.roll(each, rng.integers(-1, 2, 2), (1, 2)) for each in noisy])
    mirrored = rng.random(len(moved)) < 0.5
    moved[mirrored] = moved[mirrored][..., ::-1]
    return moved
