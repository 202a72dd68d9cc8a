"""Wrapping in a training loop of one's own: the loss terms of a batch, and a box at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sdb.box.box import Box
from sdb.config import WrapSettings
from sdb.data import Augment, Batch, as_images
from sdb.errors import ConfigError, DataError
from sdb.keys import Key, Owner
from sdb.models import Classifier
from sdb.training.evaluation import evaluation_batches
from sdb.training.repeated_views import asked
from sdb.wrapping.door import METHODS, check_keys, classifier_of, guess_shape
from sdb.wrapping.method import Material, Method
from sdb.wrapping.networks import frozen, start_network
from sdb.wrapping.wrap import with_measurements


class Wrapping(nn.Module):
    """A box in the making: what is trained are its parameters, on the network's device.

        wrapping = Wrapping(net, key=key, num_classes=7)
        optimizer = torch.optim.AdamW(wrapping.parameters(), lr=1e-3)
        for images, labels in loader:
            loss = sum(wrapping.losses(images, labels).values())
            optimizer.zero_grad(); loss.backward(); optimizer.step()
        box = wrapping.finish(validation)

    Args:
        network: the trained network; it is copied and not changed.
        key: what the box opens for: one key, or several of one kind; none for method "nasty".
        num_classes: number of logits.
        image_shape: (C, H, W) of one image; else the first batch says it.
        mean: per channel, of pixels in [0, 1], where the network takes normalised pixels; none where it normalises
            them itself.
        std: per channel, the deviation.
        class_names: in label order; else the numbers.
        owner: whose box it is; follows from the key where there is only one.
        settings: method and its weights; what is about training is not used.
        confusion: mean log-probabilities (C, C) of the network over training images, row c of class c (see
            `sdb.training.evaluation.class_mean_outputs`), from which decoys are chosen among the classes that it
            confuses least. Without, every other class may be a decoy.

    Raises:
        ConfigError: keys do not fit the method, or the image shape cannot be found.
        ModelError: the network does not map such images to `num_classes` logits.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        key: Key | Sequence[Key] | None,
        num_classes: int,
        image_shape: tuple[int, int, int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        class_names: Sequence[str] = (),
        owner: Owner | None = None,
        settings: WrapSettings | None = None,
        confusion: Tensor | None = None,
    ) -> None:
        super().__init__()
        settings = settings or WrapSettings()
        keys = (key,) if isinstance(key, Key) else tuple(key or ())
        check_keys(keys, owner, settings)
        names = tuple(class_names) or tuple(str(label) for label in range(num_classes))
        if len(names) != num_classes:
            raise ConfigError(f"class_names: {len(names)} names for {num_classes} classes")
        shape = image_shape or guess_shape(network, num_classes, mean, std)
        teacher = classifier_of(network, num_classes, shape, mean, std)
        device = teacher.mean.device
        teachers = (frozen(teacher, device),)
        self.network: Classifier = start_network(teachers[0], settings).to(device)
        self.network.class_names = names
        self._shape_known = image_shape is not None
        self._material = Material(
            teachers,
            self.network,
            keys,
            owner or (Owner.of(keys[0]) if keys else None),
            settings,
            names,
            Augment(),
            ask=asked,
            confusion=None if confusion is None else lambda: confusion,
        )
        self._method = self._made()
        self.private = self._method.beside

    def _made(self) -> Method:
        keys = self._material.keys
        return METHODS[self._material.settings.method, keys[0].kind if keys else ""](self._material)

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The loss terms of a batch, by name; their sum is what is minimised.

        Args:
            images: (N, C, H, W), floats in [0, 1] or uint8.
            labels: int64 (N,).

        Raises:
            DataError: these are no images, or not as many labels, or labels out of range.
        """
        device = self.network.mean.device
        images, labels = images.to(device), labels.to(device)
        if images.dim() != 4 or labels.shape != images.shape[:1] or labels.is_floating_point():
            raise DataError(
                f"images are {tuple(images.shape)}, labels {tuple(labels.shape)} of {labels.dtype}: expected "
                "(N, C, H, W) and whole numbers (N,)"
            )
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.network.num_classes:
            raise DataError(f"labels: {int(labels.max())} is outside 0..{self.network.num_classes - 1}")
        if not self._shape_known:
            self._set_shape((images.shape[1], images.shape[2], images.shape[3]))
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images
        batch = Batch(pixels, labels.long(), torch.arange(len(labels), device=device))
        return self._method.step(self._method.forward, batch)

    def finish(self, validation: Any = None) -> Box:
        """The box of what has been trained.

        Args:
            validation: a loader, a dataset or arrays (images, labels), see `sdb.data.as_images`: the box is measured
                on them, and how sure it may be. None measures nothing, and the box's confidence is then a guess.

        Raises:
            ConfigError, DataError: these are no images with labels of the box's classes.
        """
        self.eval()
        if validation is None:
            return self._method.finish(None)
        images = as_images(validation, self.network.num_classes)
        batches = evaluation_batches(images, self.network.mean.device)
        box = self._method.finish(batches)
        box.info = with_measurements(box, self._material.teachers[0], self._method.keyed, batches)
        return box

    def _set_shape(self, shape: tuple[int, int, int]) -> None:
        """What the first batch shows; a pattern in the image is then made anew, for that shape."""
        self._shape_known = True
        for each in (self.network, *self._material.teachers):
            each.image_shape = shape
            each.spec = replace(each.spec, image_shape=shape)
        if self._material.keys and self._material.keys[0].kind == "image":
            self._method = self._made()
