"""What an audit's pairs of students show: the bar, what is at stake, what attacks and partners gain. Pure functions."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist, fmean

from sdb.report.intervals import Difference, Z
from sdb.report.pairs import Gain, Scores, best, gain

BAR, BARE, PARTNER, ATTACK, ON_TOP1 = "bar/", "bare/", "partner/", "attack/", "top1/"


@dataclass(frozen=True)
class Measured:
    """What pairs measured.

    Attributes:
        pairs: how many.
        bar: the way that makes the bar, and its mean accuracy.
        taught: the way by which a student of the unprotected teacher does best.
        stake: how far it is above the bar.
        attacks: how far the measured attacks are above the bar, by name; or above the same attack on top-1 answers
            alone, where that is better than the bar: a better way to learn is no leak.
        given: the way by which a partner does best; None without a key.
        partner: how far it is above the bar.
        short: how far the partner falls short of the teacher's student.
    """

    pairs: int
    bar: str
    taught: str
    stake: Gain
    attacks: dict[str, Gain]
    given: str | None
    partner: Gain | None
    short: Gain | None

    @property
    def spread(self) -> float:
        """The luck of one draw and student in a difference, a standard deviation."""
        return self.stake.error * self.pairs**0.5

    def attack(self, name: str) -> Difference | None:
        """How far an attack is above the bar; wider, since the best of several is looked at."""
        found = self.attacks.get(name)
        return None if found is None else found.difference(wider(len(self.attacks)))


def wider(count: int) -> float:
    """How much wider intervals must be where `count` of them are looked at, for one false alarm in 40 together.

    Source: Bonferroni, 1936.
    """
    return NormalDist().inv_cdf(1 - 0.025 / max(1, count)) / Z


def measured(scores: Mapping[str, Scores]) -> Measured:
    """Put pairs together; the best way of each group is chosen on validation images."""
    groups = {group: [name for name in scores if name.startswith(group)] for group in (BAR, BARE, PARTNER, ATTACK)}
    chosen = {group: best(scores, names) for group, names in groups.items() if names and group != ATTACK}
    bar, taught = scores[chosen[BAR]], scores[chosen[BARE]]

    def top1_by(name: str) -> Scores:
        twin = scores.get(ON_TOP1 + name.removeprefix(ATTACK), bar)
        return max(twin, bar, key=lambda each: fmean(each.test))

    partner = scores[chosen[PARTNER]] if PARTNER in chosen else None
    return Measured(
        pairs=len(bar.test),
        bar=chosen[BAR].removeprefix(BAR),
        taught=chosen[BARE].removeprefix(BARE),
        stake=gain(taught, bar),
        attacks={name.removeprefix(ATTACK): gain(scores[name], top1_by(name)) for name in groups[ATTACK]},
        given=chosen[PARTNER].removeprefix(PARTNER) if PARTNER in chosen else None,
        partner=None if partner is None else gain(partner, bar),
        short=None if partner is None else gain(taught, partner),
    )


def errors_of(scores: Mapping[str, Scores]) -> list[float]:
    """The standard errors of the differences that decide."""
    found = measured(scores)
    gains = [found.stake, *found.attacks.values(), *([found.short] if found.short else [])]
    return [each.error for each in gains]
