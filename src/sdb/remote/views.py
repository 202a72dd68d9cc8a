"""A fixed number of augmented views of every image, in place of new ones each epoch: bounds what a student asks."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sdb.data import Batch, Batches
from sdb.data import augment as augmentation
from sdb.runtime import derive_seed


class FixedViews(Batches):
    """The same batches as those given, but in epoch e every image comes in its view number e % views.

    A view of an image depends on the seed, the view's number and the image alone. The order is new each epoch, as ever.

    Args:
        batches: of training images, augmented or not.
        views: how many views of an image there are.
    """

    def __init__(self, batches: Batches, views: int) -> None:
        super().__init__(
            batches.images,
            batches.batch_size,
            device=batches.device,
            seed=batches.seed,
            shuffle=batches.shuffle,
            drop_last=batches.drop_last,
            rank=batches.rank,
            world_size=batches.world_size,
        )
        self.views = views
        self.looks = batches.augment

    def epoch(self, number: int = 0, *, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, see `Batches.epoch`."""
        if self.looks is None:
            yield from super().epoch(number, start=start)
            return
        view = torch.Generator().manual_seed(derive_seed(self.seed, "view", number % self.views))
        draws = augmentation.draw(self.looks, len(self.images), view)
        for batch in super().epoch(number, start=start):
            rows = batch.index.cpu()
            own = augmentation.Draws(*(drawn[rows] for drawn in draws))
            pixels = augmentation.apply(self.looks, batch.images.mul(255).round().to(torch.uint8), own)
            yield batch._replace(images=pixels.float().div_(255))
