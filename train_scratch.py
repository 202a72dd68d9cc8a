"""Train a classifier from scratch, as the reference does it: python train_scratch.py --save_path DIR."""

import sys

from sdb.cli.reference import main, train_scratch

if __name__ == "__main__":
    sys.exit(main(train_scratch))
