"""The one rule by which a promise is judged, in an audit and in a demo: established, broken or not settled.

Every promise has one form: one accuracy must not lie above another by more than it may.

    thief     the thief's student above the bar: by nothing
    users     the teacher above the box: by the accuracy budget
    partner   the teacher's student above the partner's: by nothing

The excess is a mean over seeds with a 95 % half-width (`intervals`). In this order:

    broken        it is above what is allowed, beyond chance
    not settled   it was not measured; or there are too few seeds to know the luck of training; or the test is too
                  small: an excess of a point or more was seen within chance, or five points cannot be ruled out
    established   otherwise

Where the unprotected model's soft answers are worth nothing over the bar, no thief could show a gain: what would be
established, or not settled, is then "nothing at stake here".

What is judged is computed once; a page, a text and an exit code only render it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from sdb.report.intervals import FEWEST_SEEDS, Difference

# What a box may cost its users, as a fraction.
ACCURACY_BUDGET = 0.005
# A calibration error up to this is honest, whatever the teacher's.
HONEST = 0.02
# An excess of this much within chance is no proof that there is none.
NOTABLE = 0.01
# A test that cannot rule out this much establishes nothing.
COARSEST = 0.05

NOT_MEASURED = "it was not measured"
TOO_SMALL = "the test is too small"
NO_STAKE = "the unprotected model's soft answers are worth nothing over the bar"


class Judgement(StrEnum):
    """What is known about a promise."""

    ESTABLISHED = "established"
    BROKEN = "broken"
    NOT_SETTLED = "not settled"
    NOTHING_AT_STAKE = "nothing at stake here"


@dataclass(frozen=True)
class Judged:
    """A promise, or several together, judged.

    Attributes:
        judgement: How it came out.
        reasons: Why it is not settled; empty otherwise.
        smallest: The smallest excess that the test could have told from chance, a fraction; of several promises that
            of the bluntest test. None where nothing was measured.
    """

    judgement: Judgement
    reasons: tuple[str, ...] = ()
    smallest: float | None = None


def not_settled(reason: str, smallest: float | None = None) -> Judged:
    """A promise that is open, for one reason."""
    return Judged(Judgement.NOT_SETTLED, (reason,), smallest)


def judge_excess(excess: Difference | None, allowed: float = 0.0, *, trained: bool = True) -> Judged:
    """Judge one promise.

    Args:
        excess: How far what must not be above lies above the other; None where it was not measured.
        allowed: How far it may, a fraction.
        trained: Whether something was trained for it, so that the luck of training counts; two models that were given
            are what they are.
    """
    if excess is None:
        return not_settled(NOT_MEASURED)
    smallest = allowed + excess.half
    if excess.beyond(allowed):
        return Judged(Judgement.BROKEN, (), smallest)
    if trained and excess.seeds < FEWEST_SEEDS:
        return not_settled(f"too few seeds ({excess.seeds}; {FEWEST_SEEDS} are needed)", smallest)
    if excess.value >= NOTABLE or excess.value + excess.half >= COARSEST:
        return not_settled(TOO_SMALL, smallest)
    return Judged(Judgement.ESTABLISHED, (), smallest)


def at_stake(judged: Judged, stake: Difference | None) -> Judged:
    """A promise about thieves, where it is known what there was to steal.

    Args:
        judged: The promise by itself.
        stake: How far a student of the unprotected model's soft answers is above the bar.
    """
    if judged.judgement is Judgement.BROKEN or (stake is not None and stake.above):
        return judged
    return Judged(Judgement.NOTHING_AT_STAKE, (NO_STAKE,), judged.smallest)


def together(parts: Iterable[Judged]) -> Judged:
    """Several promises as one: broken where one is, established where there are some and all are."""
    known = tuple(parts)
    judgements = {part.judgement for part in known}
    measured = [part.smallest for part in known if part.smallest is not None]
    smallest = max(measured, default=None)
    if Judgement.BROKEN in judgements:
        return Judged(Judgement.BROKEN, (), smallest)
    if Judgement.NOTHING_AT_STAKE in judgements:
        reasons = dict.fromkeys(reason for part in known for reason in part.reasons)
        return Judged(Judgement.NOTHING_AT_STAKE, tuple(reasons), smallest)
    if judgements == {Judgement.ESTABLISHED}:
        return Judged(Judgement.ESTABLISHED, (), smallest)
    reasons = dict.fromkeys(reason for part in known for reason in part.reasons)
    return Judged(Judgement.NOT_SETTLED, tuple(reasons) or (NOT_MEASURED,), smallest)


def judge_honesty(error: float, teacher: float, half: float) -> Judged:
    """Judge a calibration error: up to `HONEST` is honest, and so is one within `NOTABLE` of the teacher's.

    Args:
        error: The box's, a fraction.
        teacher: The teacher's.
        half: 95 % half-width of the box's accuracy: as far off may be who is right, on so few images, by chance.
    """
    over = error - max(HONEST, teacher + NOTABLE)
    if over <= 0:
        return Judged(Judgement.ESTABLISHED)
    return Judged(Judgement.BROKEN) if over >= half else not_settled(TOO_SMALL)
