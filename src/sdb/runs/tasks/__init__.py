"""The one engine for many pieces of work: in this process, in processes of this machine, or on a Ray cluster.

    run([Work("teacher", train, (a,)), Work("box", wrap, (b,), needs=("teacher",))], Where(workers=2), on_progress)

What a piece of work makes are files, written whole, so it can be done again after anything; nothing is handed back.
"""

from sdb.runs.tasks.graph import run
from sdb.runs.tasks.work import OnProgress, Where, Work, one_thread

__all__ = ["OnProgress", "Where", "Work", "one_thread", "run"]
