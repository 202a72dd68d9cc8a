"""The embedded default: 1,797 handwritten digits of 8x8 pixels, in the package, so nothing is downloaded.

The test part of the UCI set "Optical Recognition of Handwritten Digits", as scikit-learn ships it.
Licence CC BY 4.0. Cite: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine
Learning Repository, 1998, https://doi.org/10.24432/C50P49. README.md here says how digits.npz was made.

The file holds the values as published, 0..16. They become pixels as floor(value * 255 / 16), exactly, in
integers: 0 stays 0 and 16 becomes 255. These 1,797 have no official split: the test set is 500 of them,
a like share of each class, drawn with the seed 0, always the same.
"""

from pathlib import Path

import numpy as np

from sdb.data.carve import stratified
from sdb.data.source import Source
from sdb.data.splits import Augment, ImageSet

FILE = Path(__file__).with_name("digits.npz")
TEST_IMAGES = 500
NOTE = (
    "UCI Optical Recognition of Handwritten Digits (E. Alpaydin, C. Kaynak, 1998, doi:10.24432/C50P49), "
    "CC BY 4.0; 1,297 training and 500 test images of 8x8, fixed split"
)


def read() -> Source:
    """The digits: uint8 (N, 1, 8, 8), ten classes."""
    with np.load(FILE, allow_pickle=False) as archive:
        values, labels = archive["images"], archive["labels"].astype(np.int64)
    images = (values.astype(np.uint16) * 255 // 16).astype(np.uint8)[:, None]
    everything = ImageSet(images, labels)
    train, test = stratified(labels, TEST_IMAGES / len(labels), seed=0)
    return Source(
        name="digits",
        train=everything.take(train),
        test=everything.take(test),
        class_names=tuple("0123456789"),
        augment=Augment(crop_padding=1),
        note=NOTE,
    )
