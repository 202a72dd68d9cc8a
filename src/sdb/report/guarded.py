"""What the audit of a guard showed: judged by the one rule of `judgement`, and in words. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sdb.report.intervals import half_width, points_and_half, same_examples
from sdb.report.judgement import (
    ACCURACY_BUDGET,
    NOTABLE,
    Judged,
    Judgement,
    at_stake,
    judge_excess,
    judge_honesty,
    together,
)
from sdb.report.pairs import Gain, Scores, best, gain
from sdb.report.verdict import story
from sdb.runtime import json_text

SCHEMA = 1
THIEF, USERS = "a thief cannot copy it", "everyone can use it"


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardAudit:
    """What an audit of a guard measured; accuracies and scores are fractions.

    Attributes:
        guard: its id.
        student: the kind of students.
        classes: of the guard.
        few: labelled examples of a class that a student has.
        learned: examples that a student learns from.
        choosing: examples that it keeps to choose among ways to learn.
        test: examples that measure.
        seed: of draws and students.
        levels: of confidence.
        stated_bits: what the guard says that its answers tell beyond their class.
        bits: what they were found to tell on test examples; None where they are not a few rows per class.
        users: teacher_ and keyless_ accuracy, calibration_error and brier on test examples.
        only_right: test examples that the model alone got right, and that the guard alone did.
        scores: of each way to learn, named bar/, bare/ or thief/ and how.
        seconds: that it took.
    """

    guard: str
    student: str
    classes: int
    few: int
    learned: int
    choosing: int
    test: int
    seed: int
    levels: int
    stated_bits: float
    bits: float | None
    users: Mapping[str, float]
    only_right: tuple[int, int]
    scores: Mapping[str, Scores]
    seconds: float

    def way(self, who: str) -> str:
        """The best way of `bar`, `bare` or `thief`, on the students' own validation examples."""
        return best(self.scores, [name for name in self.scores if name.startswith(f"{who}/")])

    def _over_the_bar(self, who: str) -> Gain:
        return gain(self.scores[self.way(who)], self.scores[self.way("bar")])

    @property
    def at_stake(self) -> Gain:
        """How far a student of the bare model's answers is above the bar."""
        return self._over_the_bar("bare")

    @property
    def partner(self) -> Gain:
        """The same of a partner, who gets the bare model's answers, bit for bit."""
        return self.at_stake

    @property
    def thief(self) -> Gain:
        """The same of the best thief of the guard."""
        return self._over_the_bar("thief")

    @property
    def promises(self) -> dict[str, Judged]:
        """Each promise, judged."""
        theirs, ours = self.only_right
        accuracy = judge_excess(same_examples(theirs, ours, self.test), ACCURACY_BUDGET, trained=False)
        errors = (self.users[f"{who}_calibration_error"] for who in ("keyless", "teacher"))
        honest = judge_honesty(*errors, half_width([self.users["keyless_accuracy"]], self.test))
        thief = at_stake(judge_excess(self.thief.difference()), self.at_stake.difference())
        return {THIEF: thief, USERS: together([accuracy, honest])}

    @property
    def judged(self) -> Judged:
        """All promises together."""
        return together(self.promises.values())

    @property
    def sentence(self) -> str:
        """Who gains what."""
        gains = (each.difference() for each in (self.at_stake, self.thief, self.partner))
        return story(f"With {self.few} labelled examples per class", "guard", *gains)

    def summary(self) -> str:
        """Lines for people, without a line break at the end."""
        lines = [self.sentence, *(_promised(name, each) for name, each in self.promises.items())]
        lines.append(f"{'':20}{'model':>15}{'without a key':>15}")
        for row, title in (
            ("accuracy", "accuracy"),
            ("calibration_error", "calibration error"),
            ("brier", "Brier score"),
        ):
            values = (self.users[f"{who}_{row}"] for who in ("teacher", "keyless"))
            lines.append(f"{title:20}" + "".join(f"{100 * value:13.1f} %" for value in values))
        found = "an answer for each input" if self.bits is None else f"{self.bits:.2f} bits"
        lines += [
            f"measured on {self.test:,} examples; beyond the class answers tell {found} (the guard says "
            f"{self.stated_bits:.2f} bits)",
            f"{len(self.scores[self.way('bar')].test)} pairs of {self.student}, each of {self.learned} examples and "
            f"{self.choosing} to choose by; over {_named(self.way('bar'))}, the best that labels and classes give:",
            f"  the bare model, and partners: {_points(self.at_stake)} points, by {_named(self.way('bare'))}",
            f"  a thief of the guard: {_points(self.thief)} points, by {_named(self.way('thief'))}",
        ]
        if self.promises[THIEF].judgement is Judgement.BROKEN and self.levels > 1:
            lines.append("A guard of one level (confidence_levels=1, --levels 1) tells nothing beyond the class.")
        if not self.at_stake.above and self.at_stake.value >= NOTABLE:
            lines.append(
                "Something may be at stake: this test is too small to see it; take more pairs or examples."
            )
        lines.append("Other students, and thieves who make up what they ask, were not tried.")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON has it: what was measured, and what follows from it."""
        return {
            "kind": "guard_audit",
            "schema": SCHEMA,
            **asdict(self),
            "sentence": self.sentence,
            "ways": {who: self.way(who) for who in ("bar", "bare", "thief")},
            "gains": {name: asdict(getattr(self, name)) for name in ("at_stake", "thief", "partner")},
            "promises": {name: _as_dict(each) for name, each in self.promises.items()},
            "judgement": str(self.judged.judgement),
        }

    def to_json(self) -> str:
        """The same as text."""
        return json_text(self.as_dict(), indent=1)


def _promised(name: str, judged: Judged) -> str:
    why = f" ({'; '.join(judged.reasons)})" if judged.reasons else ""
    seen = "" if judged.smallest is None else f"; {100 * judged.smallest:.1f} points too much would have been seen"
    return f"{name.capitalize()}: {judged.judgement}{why}{seen}"


def _as_dict(judged: Judged) -> dict[str, Any]:
    return asdict(judged) | {"judgement": str(judged.judgement)}


def _named(way: str) -> str:
    return way.partition("/")[2]


def _points(found: Gain) -> str:
    return points_and_half(found.value, found.half)
