"""Distil a student without a key, as the reference does it: python train_kd.py --save_path DIR."""

import sys

from sdb.cli.reference import main, train_kd

if __name__ == "__main__":
    sys.exit(main(train_kd))
