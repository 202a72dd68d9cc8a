"""The decoy method with image keys: the same network, asked with a pattern blended into the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sdb.box.box import Box, Embed
from sdb.keys import Key
from sdb.models import Classifier
from sdb.wrapping import decoy
from sdb.wrapping.method import HeldOut, Material, Method

# Share of a batch that also goes through with a random wrong key.
REJECTED_SHARE = 0.5


def image_key(material: Material) -> Method:
    """The method. A key of this kind shows in the image, and so only in the network's own logits: no fixed rows."""
    network, settings, keys = material.network, material.settings, material.keys
    step, chosen = decoy.taught(material)

    def finish(held_out: HeldOut) -> Box:
        box = Box(network.eval(), material.info(decoy.RECORDED))
        return box.lock(None, chosen, list(keys), decoy.owner_of(material))

    passes = ImageKeyPasses(network, keys, settings.forward == "joint", settings.wrong_key_rejection)
    keyed = nn.Sequential(Embed(keys[0], network.image_shape), network)
    device = network.mean.device
    return Method(network, step, forward=passes.to(device), keyed=keyed.to(device), beside=None, finish=finish)


class ImageKeyPasses(nn.Module):
    """Plain, keyed and wrongly keyed images through one network; each image's key is drawn among the partners'.

    Wrong keys are fresh random patterns in every step, so that none but the partners' ever opens the network.

    Args:
        classifier: the box's network.
        keys: the partners' image keys, one blend for all.
        joint: one forward for all, or one for each kind of image.
        rejection: whether there are wrongly keyed images.
    """

    def __init__(self, classifier: Classifier, keys: Sequence[Key], joint: bool, rejection: bool) -> None:
        super().__init__()
        self.classifier, self.joint, self.rejection = classifier, joint, rejection
        self.blend = keys[0].blend
        self.offsets: Tensor
        patterns = torch.stack([Embed(key, classifier.image_shape).offset for key in keys])  # (K, C, H, W)
        self.register_buffer("offsets", patterns, persistent=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keyless (N, classes), keyed (N, classes) and wrong-key logits (M, classes), M a share of N from the front."""
        # Random numbers are drawn where they are used: a copy from the CPU would wait for all work before it.
        chosen = torch.randint(len(self.offsets), (len(images),), device=images.device)
        parts = [images, self.blend * images + self.offsets[chosen]]
        wrong = images[: int(REJECTED_SHARE * len(images))] if self.rejection else images[:0]
        if len(wrong):
            parts.append(self.blend * wrong + (1 - self.blend) * torch.rand_like(wrong))
        sizes = [len(part) for part in parts]
        logits = (
            self.classifier(torch.cat(parts)).split(sizes) if self.joint else [self.classifier(p) for p in parts]
        )
        keyless, keyed = logits[0], logits[1]
        return keyless, keyed, logits[2] if len(wrong) else keyless[:0]
