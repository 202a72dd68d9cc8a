"""Thieves of labels, as data: how much each asks, what it makes of the answers, and what it does with its network.

`sdb.audit.marks.measure` runs one of them. A thief's random numbers follow from its name, so a name means one result.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sdb.data import Augment
from sdb.errors import ConfigError

NOISY, CHANGED = 4, 16  # standard deviation of noise in copies, of 255
CROPS, FLIPS = Augment(crop_padding=4, flip=True), Augment(flip=True)


@dataclass(frozen=True)
class Thief:
    """What a thief does.

    Attributes:
        queries: images that it asks about; None for as many as the others.
        network: one of those that thieves train, by name.
        epochs: times as many as usual.
        accounts: that it asks by.
        shared: of its images those that accounts after the first are asked about too, a fraction.
        settings: of its training, beside the usual ones.
        augment: of its training.
        copies: changed copies of each image that it asks about, whose majority it takes.
        noise: in them; with much of it they are moved and mirrored too.
        labels: what it makes of the accounts' answers, see `sdb.audit.marks.lessons`.
        after: what it does with the trained network, see `sdb.audit.marks.after`.
    """

    queries: int | None = None
    network: str = "net"
    epochs: float = 1
    accounts: int = 1
    shared: float = 1
    settings: tuple[tuple[str, Any], ...] = ()
    augment: Augment | None = None
    copies: int = 1
    noise: int = 0
    labels: str = "as told"
    after: str = ""


SMOOTHED = (("label_smoothing", 0.1),)
THIEVES = {
    "labels": Thief(),
    "label smoothing": Thief(settings=SMOOTHED),
    "flips": Thief(augment=FLIPS),
    "smoothing, flips": Thief(settings=SMOOTHED, augment=FLIPS),
    "crops and flips": Thief(augment=CROPS),
    "crops and flips, 3 times the epochs": Thief(epochs=3, augment=CROPS),
    "smoothing, crops and flips": Thief(settings=SMOOTHED, augment=CROPS),
    "small net": Thief(network="small net"),
    "mlp": Thief(network="mlp"),
    "small net, flips": Thief(network="small net", augment=FLIPS),
    "a quarter of the epochs": Thief(epochs=0.25),
    "weight decay 0.5": Thief(settings=(("weight_decay", 0.5),)),
    "half its own labels": Thief(labels="half its own"),
    "drops the 10 % least sure": Thief(labels="drops 10"),
    "drops the 20 % least sure": Thief(labels="drops 20"),
    "drops the lowest level": Thief(labels="drops the lowest level"),
    "majority of 9 noisy copies": Thief(copies=9, noise=NOISY),
    "majority of 9 changed copies": Thief(copies=9, noise=CHANGED),
    "two accounts, one at random": Thief(accounts=2, labels="one at random"),
    "two accounts, drops disagreements": Thief(accounts=2, labels="drops disagreements"),
    "two accounts, relabels disagreements": Thief(accounts=2, labels="relabels disagreements"),
    "five accounts, majority": Thief(accounts=5, labels="majority"),
    "student of the thief, same images": Thief(after="again"),
    "student of the thief, other images": Thief(after="again, others"),
    "tuned on 1,000 true labels": Thief(after="tuned"),
    "half of the weights pruned": Thief(after="pruned"),
    "weights of 4 bits": Thief(after="quantised"),
    "a partner's student of soft answers": Thief(labels="soft"),
    "two accounts, estimates ties": Thief(accounts=2, shared=0.5, labels="estimates 90"),
    "two accounts, estimates half of the ties": Thief(accounts=2, shared=0.5, labels="estimates 50"),
    "boundaries moved": Thief(after="boundaries"),
    "boundaries moved, crops and flips": Thief(after="boundaries, crops"),
    "boundaries smoothed": Thief(after="boundaries, own consensus"),
}
# One of each kind, and what takes the mark away on Fashion-MNIST: docs/tracing.md.
QUICK = (
    "labels",
    "flips",
    "crops and flips",
    "small net",
    "drops the 20 % least sure",
    "drops the lowest level",
    "majority of 9 noisy copies",
    "two accounts, relabels disagreements",
    "two accounts, estimates ties",
    "student of the thief, other images",
    "half of the weights pruned",
    "boundaries moved",
)


def check_thieves(names: Sequence[str]) -> None:
    """Refuse names that are none of `THIEVES`.

    Raises:
        ConfigError: naming the first unknown one, the nearest, and all there are.
    """
    for name in names:
        if name not in THIEVES:
            near = difflib.get_close_matches(name, THIEVES, 1)
            meant = f" (did you mean {near[0]!r}?)" if near else ""
            raise ConfigError(f"no thief is called {name!r}{meant}; there are: {'; '.join(THIEVES)}")
