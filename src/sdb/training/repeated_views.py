"""A fixed number of augmented views of every image, and a frozen module that is asked about each of them once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from sdb.data import Batch, Batches, ImageSet, LoaderBatches, LoaderSet
from sdb.data import augment as augmentation
from sdb.errors import ConfigError
from sdb.runtime import derive_seed, world

# What a frozen module answers to a batch: logits (B, classes).
Ask = Callable[[Batch], Tensor]
# More answers than this are not kept: the module is asked again.
ANSWER_BYTES = 2**30
# Images that go through a network at once without gradients; larger ones fewer, as many pixels as 512 of 96x96 have.
AT_ONCE, PIXELS_AT_ONCE = 512, 512 * 96 * 96


def images_at_once(images: ImageSet | LoaderSet) -> int:
    """How many images of a set go through a network at once without gradients."""
    _, height, width = images.image_shape
    return max(1, min(AT_ONCE, PIXELS_AT_ONCE // (height * width)))


class FixedViews(Batches):
    """The same batches as those given, but in epoch e every image comes in its view number e % views.

    A view of an image depends on the seed, the view's number and the image alone. The order is new in each epoch.

    Args:
        batches: of training images, augmented or not.
        views: how many views of an image there are.

    Attributes:
        current: the view that the epoch under way shows.
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
            resident=False,
        )
        # The images lie on the device once.
        self.resident, self._pixels = batches.resident, batches._pixels
        self.views = views
        self.looks = batches.augment
        self.current = 0

    def epoch(self, number: int = 0, *, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, see `Batches.epoch`."""
        self.current = number % self.views
        if self.looks is None:
            yield from super().epoch(number, start=start)
            return
        view = torch.Generator().manual_seed(derive_seed(self.seed, "view", self.current))
        drawn_here = augmentation.draw(self.looks, len(self.images), view)
        draws = augmentation.Draws(*(drawn.to(self.device) for drawn in drawn_here))
        for batch in super().epoch(number, start=start):
            own = augmentation.Draws(*(drawn[batch.index] for drawn in draws))
            pixels = augmentation.apply(self.looks, batch.images.mul(255).round().to(torch.uint8), own)
            yield batch._replace(images=pixels.float().div_(255))


def repeated(batches: Batches | LoaderBatches, views: int | None) -> Batches | LoaderBatches:
    """The batches in that many fixed views; without augmentation an image has one view, whatever is asked for.

    Raises:
        ConfigError: they are a loader's, which makes the views itself, and a number of them was asked for.
    """
    if isinstance(batches, LoaderBatches):
        if views is not None:
            raise ConfigError(
                f"views {views}: the loader makes the views of its images: leave views out, or give arrays"
            )
        return batches
    count = 1 if batches.augment is None else views
    return batches if count is None else FixedViews(batches, count)


class Remembered:
    """What a frozen module answers to the batches of a `FixedViews`; about each view it is asked once, all at a time.

    Args:
        module: from images (N, C, H, W) to logits (N, classes), on the batches' device.
        batches: what will be asked about.
    """

    def __init__(self, module: nn.Module, batches: FixedViews) -> None:
        self.module, self.batches = module, batches
        self._all = copy.copy(batches)
        self._all.shuffle, self._all.drop_last = False, False
        self._all.batch_size = images_at_once(batches.images)
        self._known: dict[int, Tensor] = {}

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """Logits (B, classes) of a batch of the epoch under way."""
        view = self.batches.current
        if view not in self._known:
            shown = self._all.epoch(view)
            self._known[view] = torch.cat([self.module(each.images) for each in shown])
        return self._known[view][batch.index]


def answers(module: nn.Module, batches: Batches | LoaderBatches, num_classes: int) -> Ask:
    """How a frozen module is asked about batches: once for each view where these are fixed, else batch by batch.

    Args:
        module: from images (N, C, H, W) to logits (N, num_classes), on the batches' device, in eval mode.
        batches: of training images.
        num_classes: number of logits.
    """
    if not isinstance(batches, FixedViews) or world().size > 1:
        return asked(module)
    size = 4 * batches.views * len(batches.images) * num_classes
    return Remembered(module, batches) if size <= ANSWER_BYTES else asked(module)


def asked(module: nn.Module) -> Ask:
    """A frozen module that is asked about each batch as it comes."""

    @torch.no_grad()
    def ask(batch: Batch) -> Tensor:
        return module(batch.images)

    return ask
