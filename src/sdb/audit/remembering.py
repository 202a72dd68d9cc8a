"""A victim's module that answers the same batch once: thieves of one pair ask the same images, each for itself."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn


class Remembering(nn.Module):
    """Answers of another module, in evaluation mode and without gradient, kept by the digest of the batch.

    Only for modules whose answer depends on nothing but the batch, and whose weights do not change.

    Args:
        module: images (N, C, H, W) to logits (N, K).
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self._known: dict[bytes, Tensor] = {}

    def forward(self, images: Tensor) -> Tensor:
        """The module's answer (N, K)."""
        if self.training or torch.is_grad_enabled():
            return self.module(images)
        content = images.detach().cpu().contiguous()
        head = f"{images.dtype} {tuple(images.shape)}".encode()
        digest = hashlib.sha256(head + content.view(torch.uint8).numpy().tobytes()).digest()
        if digest not in self._known:
            self._known[digest] = self.module(images)
        return self._known[digest].clone()
