"""The batches that a network is trained on: how they are cut, and what is refused before training."""

from __future__ import annotations

import copy
from typing import overload

import torch
from torch import nn

from sdb.config import FitSettings
from sdb.data import Augment, Batches, LoaderBatches, LoaderSet, LoaderSplits, Splits
from sdb.errors import ConfigError
from sdb.models.probe import probes, undisturbed
from sdb.runtime import derive_seed, world


def check_batches(model: nn.Module, data: Splits | LoaderSplits, settings: FitSettings) -> None:
    """Refuse batches that cannot be cut, and lone images for a network that cannot learn from one.

    Batch norm over vectors needs two; a network without it may do with one. So it is tried, on a copy.

    Raises:
        ConfigError: saying why an image would be alone.
    """
    pieces = _pieces(data, settings)
    own = isinstance(data.train, LoaderSet) and not data.train.single
    smallest = data.train.smallest if own else min(settings.batch_size, len(data.train))
    if smallest // pieces > 1:
        return
    device = next(model.parameters()).device
    trial = copy.deepcopy(model)
    try:
        with undisturbed(trial, training=True):
            trial(probes(1, data.image_shape, device))
    except Exception as error:  # the network may be anyone's
        alone = f"batch_size {settings.batch_size} is cut into {pieces} parts, processes times accumulation_steps"
        if own:
            alone = (
                f"a batch of the loader has {smallest}, cut into {pieces}: let it drop its last batch (drop_last)"
            )
        elif pieces == 1:
            alone = "it is 1" if settings.batch_size == 1 else "there is 1 training image"
        raise ConfigError(
            f"batch_size: this network does not learn from a lone image, and images would be alone ({alone}): give "
            f"each part two or more ({str(error).splitlines()[0]})"
        ) from error


def _pieces(data: Splits | LoaderSplits, settings: FitSettings) -> int:
    """Into how many parts a batch is cut, over all processes.

    Raises:
        ConfigError: it does not divide, there are fewer images than one batch has, or each process would get all.
    """
    place = world()
    if isinstance(data, LoaderSplits) and place.size > 1:
        raise ConfigError(
            f"data: loaders and datasets feed one process, and there are {place.size}: give uint8 arrays or a folder"
        )
    pieces = place.size * settings.accumulation_steps
    if settings.batch_size % pieces:
        raise ConfigError(
            f"batch_size: {settings.batch_size} does not divide among {place.size} processes and "
            f"{settings.accumulation_steps} accumulation_steps"
        )
    if pieces > 1 and len(data.train) < settings.batch_size:
        raise ConfigError(f"batch_size: {settings.batch_size} is more than the {len(data.train)} training images")
    return pieces


@overload
def train_batches(data: Splits, settings: FitSettings, device: torch.device) -> Batches: ...
@overload
def train_batches(data: LoaderSplits, settings: FitSettings, device: torch.device) -> Batches | LoaderBatches: ...
def train_batches(
    data: Splits | LoaderSplits, settings: FitSettings, device: torch.device
) -> Batches | LoaderBatches:
    """The training images, shuffled and augmented as the settings say; this process's share of each batch.

    A loader's come in the loader's own batches, order and augmentation.
    """
    _pieces(data, settings)
    place = world()
    if isinstance(data.train, LoaderSet):
        return LoaderBatches(
            data.train,
            device,
            batch_size=settings.batch_size,
            shuffle=True,
            seed=derive_seed(settings.seed, "batches"),
            drop_last=len(data.train) >= settings.batch_size,
        )
    augment: Augment | None = data.augment if settings.augment else None
    return Batches(
        data.train,
        settings.batch_size,
        device=device,
        seed=derive_seed(settings.seed, "batches"),
        shuffle=True,
        augment=augment,
        # A lone last image has no batch statistics, and processes must take equal steps.
        drop_last=len(data.train) >= settings.batch_size,
        rank=place.rank,
        world_size=place.size,
    )
