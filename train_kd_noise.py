"""Distil a student with a key, as the reference does it: python train_kd_noise.py --save_path DIR."""

import sys

from sdb.cli.reference import main, train_kd_noise

if __name__ == "__main__":
    sys.exit(main(train_kd_noise))
