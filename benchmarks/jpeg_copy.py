"""A small copy of a data set for a machine that only few megabytes can be carried to.

    python benchmarks/jpeg_copy.py --from DIR --to OTHER/cifar100 --label fine_label

From class folders of PNG (DIR/train/CLASS/*.png and DIR/test) to parquet files of JPEG in quality 75, laid out as the
hub's CIFAR: 20 MB in place of 130. The images lose a little, and results say "(JPEG)".
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

QUALITY = 75


def rows_of(folder: Path) -> list[tuple[bytes, int]]:
    """Encoded images and class numbers; classes are numbered by the names of their folders."""
    found = []
    for number, own in enumerate(sorted(each for each in folder.iterdir() if each.is_dir())):
        for file in sorted(own.glob("*.png")):
            encoded = io.BytesIO()
            with Image.open(file) as image:
                image.convert("RGB").save(encoded, "JPEG", quality=QUALITY, optimize=True)
            found.append((encoded.getvalue(), number))
    return found


def main() -> int:
    """Write both parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="source", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--label", default="label", help="column of the class; CIFAR-100: fine_label")
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    for part in ("train", "test"):
        if not (options.source / part).is_dir():
            print(
                f"jpeg_copy: {options.source / part}: no such folder: give --from the data set's", file=sys.stderr
            )
            return 2
        rows = rows_of(options.source / part)
        order = np.random.default_rng(0).permutation(len(rows))
        images = [{"bytes": rows[place][0], "path": None} for place in order]
        form = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        labels = pa.array([rows[place][1] for place in order], pa.int64())
        table = pa.table({"img": pa.array(images, form), options.label: labels})
        file = options.to / f"{part}-00000-of-00001.parquet"
        pq.write_table(table, file, compression="zstd")
        print(f"{file}: {len(rows):,} images, {file.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
