"""What the description of a classifier may hold: sizes and normalisation."""

import functools
import logging
from collections.abc import Sequence
from numbers import Integral, Real

from sdb.errors import ModelError

MAX_CLASSES = 1_000_000
MAX_SIDE = 16_384

log = logging.getLogger("sdb")


def check_sizes(num_classes: int, image_shape: Sequence[int]) -> None:
    """Raise ModelError unless the number of classes and the image shape can be those of a classifier.

    The upper limits keep a damaged or hostile description from overflowing the sizes of tensors.
    """
    if not _is_whole(num_classes, 2, MAX_CLASSES):
        raise ModelError(f"num_classes is {num_classes!r}: give a whole number from 2 to {MAX_CLASSES}")
    if len(image_shape) != 3 or not all(_is_whole(size, 1, MAX_SIDE) for size in image_shape):
        raise ModelError(f"image_shape is {image_shape!r}: give (C, H, W), whole numbers from 1 to {MAX_SIDE}")


def check_normalisation(mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    """Raise ModelError unless mean and std hold one number per channel, that float32 can divide by."""
    for field, values, least in (("mean", mean, -1e6), ("std", std, 1e-6)):
        if len(values) != channels:
            raise ModelError(f"{field} has {len(values)} numbers for {channels} channels: give one per channel")
        for value in values:
            # The comparison also refuses NaN, infinities and integers beyond any float.
            if not isinstance(value, Real) or isinstance(value, bool) or not least <= value <= 1e6:
                raise ModelError(f"{field} holds {value!r}: give numbers from {least:g} to 1e6")


@functools.cache  # once for each normalisation
def warn_of_scale(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Warn of a normalisation that pixels in [0, 1] cannot have: it is meant for pixels from 0 to 255."""
    if max(*mean, *std) > 1:
        log.warning(
            "mean %s and std %s are not those of pixels in [0, 1], which is what a classifier takes: divide both by "
            "255 if they are on the 0-255 scale",
            mean,
            std,
        )


def _is_whole(value: object, least: int, most: int) -> bool:
    """Whether value is an integer (NumPy's too, not a bool) in [least, most]."""
    return isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) <= most
