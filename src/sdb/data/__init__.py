"""Data: every source becomes uint8 `Splits` or loaders, and batches on a device. Nothing of networks."""

from sdb.data.as_data import Data, LoaderSplits, as_data, as_images, as_splits, from_loaders
from sdb.data.load import DATASETS, load
from sdb.data.loader import Batch, Batches
from sdb.data.loader_sets import LoaderBatches, LoaderSet
from sdb.data.objects import from_arrays, from_dataset
from sdb.data.rows import Rows
from sdb.data.splits import Augment, ImageSet, Splits

__all__ = [
    "DATASETS",
    "Augment",
    "Batch",
    "Batches",
    "Data",
    "ImageSet",
    "LoaderBatches",
    "LoaderSet",
    "LoaderSplits",
    "Rows",
    "Splits",
    "as_data",
    "as_images",
    "as_splits",
    "from_arrays",
    "from_dataset",
    "from_loaders",
    "load",
]
