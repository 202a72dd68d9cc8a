"""`python -m sdb`."""

import sys

from sdb.cli import main

sys.exit(main())
