"""Wrap a teacher into a box, as the reference does it: python train_smb.py --save_path DIR."""

import sys

from sdb.cli.reference import main, train_smb

if __name__ == "__main__":
    sys.exit(main(train_smb))
