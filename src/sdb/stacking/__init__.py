"""Many small students at once: networks of one architecture whose weights lie stacked, trained in one loop.

A step of a small network is mostly waiting for one kernel after the other to be started. Stacked, the same kernels do
the work of all students. Every student gets the steps that it would get alone: all see the same batches, the loss is
the sum of theirs, so each gradient is its own, and SGD and Adam work number by number. Only dropout differs: its masks
are others than alone, and each student has its own.

    stack = Stack(students)                  # logits (K, N, classes)
    fit(stack, stacked_step(steps), ...)     # steps: one for each student, as it would have it alone
    students = stack.unstack()

    stack_job([("distill", folder, params), ...], resume=False, overwrite=False, progress=None)
"""

from sdb.stacking.job import Member, agreed, check_members, refused, stack_job
from sdb.stacking.stack import Stack, evaluate_stack, shared, stacked_step

__all__ = [
    "Member",
    "Stack",
    "agreed",
    "check_members",
    "evaluate_stack",
    "refused",
    "shared",
    "stack_job",
    "stacked_step",
]
