"""From what a loader or a dataset of the caller's gives to tensors: which part is the images, which the labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sdb.config import DEFAULT_PICTURES
from sdb.data.pictures import plain
from sdb.errors import DataError

IMAGE_NAMES = ("pixel_values", "image", "images", "img")
LABEL_NAMES = ("label", "labels")
MOST_CHANNELS = 4  # a last axis this short, behind a longer first one, holds the channels
ONLY = "this is for images only, for now (no text, no tables)"


def collate(samples: list[Any], where: str) -> tuple[Tensor, Tensor]:
    """Put samples of a dataset into one batch: images as `images_of` gives them, labels as they came."""
    pairs = [pair_of(sample, where) for sample in samples]
    return images_of([image for image, _ in pairs], where), _stacked_labels([label for _, label in pairs], where)


def batch_of(item: Any, num_classes: int | None, where: str) -> tuple[Tensor, Tensor]:
    """Images and labels of what a loader gave.

    Args:
        item: (images, labels, ...), a dictionary with both, or a list of samples that were not put together.
        num_classes: labels must be below; None lets any whole number pass.
        where: what to call it in an error.

    Returns:
        Images (N, C, H, W), uint8 or of a floating type, as they came; labels int64 (N,).

    Raises:
        DataError: there are no labels, it is not images, or one of the two is of a wrong type, shape or range.
    """
    if isinstance(item, list) and item and all(isinstance(each, (tuple, Mapping)) for each in item):
        item = collate(item, where)
    images, labels = pair_of(item, where)
    pixels = images_of(images, where)
    return pixels, labels_of(labels, len(pixels), num_classes, where)


def pair_of(item: Any, where: str) -> tuple[Any, Any]:
    """The images and the labels of a batch, or of a sample.

    Raises:
        DataError: it is not clear which they are.
    """
    if isinstance(item, Mapping):
        found = [[name for name in names if name in item] for names in (IMAGE_NAMES, LABEL_NAMES)]
        if all(len(names) == 1 for names in found):
            return item[found[0][0]], item[found[1][0]]
        raise DataError(
            f"{where}: a dictionary with {', '.join(map(repr, item))}: expected one of {', '.join(IMAGE_NAMES)} and "
            f"one of {', '.join(LABEL_NAMES)}: rename them, or give pairs (images, labels); {ONLY}"
        )
    if isinstance(item, (tuple, list)) and len(item) > 1:
        return item[0], item[1]  # what follows is a path, an index, a weight
    if isinstance(item, str):
        raise DataError(f"{where}: text: {ONLY}")
    if isinstance(item, (Tensor, np.ndarray, Image.Image, tuple, list)):
        raise DataError(f"{where}: images without labels: let it give pairs (images, labels)")
    raise DataError(f"{where}: a {type(item).__name__}: expected a pair (images, labels), or a dictionary of both")


def images_of(value: Any, where: str) -> Tensor:
    """A batch of images as a tensor (N, C, H, W), uint8 or of a floating type.

    Args:
        value: a tensor or array (N, C, H, W), (N, H, W, C) or (N, H, W); or a list of PIL images, tensors or arrays.
        where: what to call it in an error.

    Raises:
        DataError: it is not images, or not all of one shape.
    """
    if isinstance(value, (list, tuple)):
        pictures = [picture(each, where) for each in value]
        shapes = list(dict.fromkeys(tuple(each.shape) for each in pictures))
        if len(shapes) > 1:
            raise DataError(changing(shapes[0], shapes[1], where))
        if not pictures:
            raise DataError(f"{where}: it is empty: expected at least one image")
        return torch.stack(pictures)
    tensor = _tensor(value, 4, where)
    if tensor.ndim == 3:  # grey, (N, H, W)
        tensor = tensor.unsqueeze(1)
    return _channels_first(tensor)


def picture(value: Any, where: str) -> Tensor:
    """One image, a PIL image, tensor or array, as a tensor (C, H, W), uint8 or of a floating type.

    Raises:
        DataError: it is none of these.
    """
    if isinstance(value, Image.Image):
        if value.mode == "F":
            raise DataError(
                f"{where}: an image of mode F, which does not say what is white: convert to 8 bits first"
            )
        image, _ = plain(value, DEFAULT_PICTURES.background)
        value = np.array(image.convert("L") if image.mode == "1" else image)
    tensor = _tensor(value, 3, where)
    if tensor.ndim == 2:
        tensor = tensor.unsqueeze(0)
    return _channels_first(tensor)


def changing(first: tuple[int, ...], other: tuple[int, ...], where: str) -> str:
    """What is said of images of two shapes (C, H, W)."""
    return (
        f"{where}: images of {other} follow images of {first} (C, H, W): resize all to one size, and convert all to "
        "RGB or all to grey, in the transform"
    )


def _tensor(value: Any, axes: int, where: str) -> Tensor:
    """Pixels with that many axes, or one less."""
    if isinstance(value, (str, bytes)):
        raise DataError(f"{where}: text: {ONLY}")
    if not isinstance(value, Tensor):
        try:
            value = torch.from_numpy(np.array(value))  # a copy: what was given may not be writeable
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{where}: a {type(value).__name__} in the place of images: expected a tensor, an array or PIL images; "
                f"{ONLY}"
            ) from error
    if not axes - 1 <= value.ndim <= axes:
        wanted = "images (N, C, H, W)" if axes == 4 else "an image (C, H, W)"
        raise DataError(f"{where}: a tensor {tuple(value.shape)} in the place of {wanted}: {ONLY}")
    if value.dtype != torch.uint8 and not value.is_floating_point():
        raise DataError(
            f"{where}: images of {value.dtype}: expected uint8 in 0..255, or floats in [0, 1]: convert them in the "
            "transform"
        )
    return value


def _channels_first(images: Tensor) -> Tensor:
    """(..., H, W, C) becomes (..., C, H, W)."""
    if images.shape[-3] > MOST_CHANNELS >= images.shape[-1]:
        return images.movedim(-1, -3)
    return images


def labels_of(value: Any, count: int, num_classes: int | None, where: str) -> Tensor:
    """The labels of a batch, int64 (N,).

    Args:
        value: whole numbers.
        count: number of images N.
        num_classes: labels must be below; None lets any whole number pass.
        where: what to call it in an error.

    Raises:
        DataError: they are of a wrong type, shape or range.
    """
    labels = value if isinstance(value, Tensor) else _stacked_labels(value, where)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2:
        raise DataError(
            f"{where}: labels {tuple(labels.shape)}, one row per image: expected the number of the class: take "
            "argmax(1) of one-hot rows, and leave MixUp, CutMix and soft labels out"
        )
    if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
        raise DataError(f"{where}: labels of {labels.dtype}: expected whole numbers from 0: use .long()")
    if labels.ndim == 0:
        raise DataError(
            f"{where}: one label: expected batches, images (N, C, H, W) and labels (N,): set batch_size"
        )
    if labels.shape != (count,):
        raise DataError(f"{where}: labels {tuple(labels.shape)} for {count} images: expected ({count},)")
    labels = labels.long()
    if count and (low := int(labels.min())) < 0:
        raise DataError(f"{where}: label {low}: expected whole numbers from 0; leave out images without a class")
    if count and num_classes is not None and (high := int(labels.max())) >= num_classes:
        raise DataError(
            f"{where}: label {high} is outside 0..{num_classes - 1} ({num_classes} classes): number the classes from "
            "0, or name all of them with class_names"
        )
    return labels


def _stacked_labels(labels: Any, where: str) -> Tensor:
    try:
        if isinstance(labels, (list, tuple)):
            return torch.stack([torch.as_tensor(label) for label in labels])
        return torch.from_numpy(np.array(labels))
    except (TypeError, ValueError, RuntimeError) as error:
        kind = type(labels[0] if isinstance(labels, (list, tuple)) and labels else labels).__name__
        raise DataError(
            f"{where}: labels of type {kind}: expected whole numbers from 0: number the classes"
        ) from error
