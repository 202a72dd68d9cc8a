"""Data: every source becomes uint8 `Splits` or loaders, and batches on a device. Nothing of networks."""

from sdb.data.load import DATASETS, load
from sdb.data.loader import Batch, Batches
from sdb.data.objects import from_arrays, from_dataset
from sdb.data.rows import Rows
from sdb.data.splits import Augment, ImageSet, Splits

__all__ = [
    "DATASETS",
    "Augment",
    "Batch",
    "Batches",
    "ImageSet",
    "Rows",
    "Splits",
    "from_arrays",
    "from_dataset",
    "load",
]
