"""What a query budget pays for: fewer views first, then fewer images."""

from __future__ import annotations

import numpy as np

from sdb.audit.attacks.attacker import Attacker, TransferSet
from sdb.audit.attacks.victim import QueryBudgetError, Victim


def affordable(victim: Victim, attacker: Attacker, *, each: int = 1) -> TransferSet:
    """The attacker's own images, in as many views as the victim's budget allows.

    Args:
        victim: whose remaining queries count.
        attacker: whose images and views.
        each: queries that one view of one image costs.

    Returns:
        All views where the budget suffices; else fewer; else one view of some images, chosen by seed.

    Raises:
        QueryBudgetError: not even one query for each class is left.
    """
    left = victim.left()
    if left is None:
        return attacker.transfer()
    payable = left // each
    if payable < victim.num_classes:
        raise QueryBudgetError(
            f"{left} queries are left; with {each} for an image, at least {victim.num_classes * each} are needed: "
            "one image for each class"
        )
    if payable >= len(attacker.train):
        return attacker.transfer(views=min(attacker.views, payable // len(attacker.train)))
    some = np.random.default_rng(attacker.seed("some images")).permutation(len(attacker.train))[:payable]
    return attacker.transfer(attacker.train.take(np.sort(some)), views=1)


def payable(victim: Victim, wanted: int) -> int:
    """How many of so many images the budget allows.

    Raises:
        QueryBudgetError: not even one for each class.
    """
    left = victim.left()
    count = wanted if left is None else min(wanted, left)
    if count < victim.num_classes:
        raise QueryBudgetError(
            f"{count} images can be asked about; at least {victim.num_classes} are needed: one for each class"
        )
    return count
