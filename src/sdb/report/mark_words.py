"""What a study of the mark says: which thieves are named, which lose the mark, and what that costs them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean
from typing import Any


class Outcome(StrEnum):
    """What becomes of a thief."""

    NAMED = "named"
    SOMETIMES = "named in some seeds"
    LOST = "not named"
    UNTESTABLE = "too few coins"
    SKIPPED = "left out"


@dataclass(frozen=True)
class Judged:
    """A thief over all seeds.

    Attributes:
        name: of the thief.
        outcome: what became of it.
        named: in how many seeds an account of its was named; seeds: of how many.
        accuracy: mean, a fraction.
        beside: how much more accurate than a thief of answers without ties, points; below 0: less.
        usable: coins on which its network answered one of the two classes, mean over accounts and seeds.
        agree: how often it then agreed, a fraction.
        log10_p: of its surest account, corrected, mean over seeds; worst: the highest.
        control: the same of the account that it never saw, the lowest; None where it saw no tie.
        why: it was left out.
    """

    name: str
    outcome: Outcome
    named: int = 0
    seeds: int = 0
    accuracy: float = 0.0
    beside: float = 0.0
    usable: float = 0.0
    agree: float = 0.0
    log10_p: float = 0.0
    worst: float = 0.0
    control: float | None = None
    why: str = ""


def judged(result: dict[str, Any]) -> list[Judged]:
    """Every thief of a study.

    Args:
        result: see `sdb.audit.marks.study.result_of`.
    """
    seeds = list(result["seeds"].values())
    names = list(dict.fromkeys(name for seed in seeds for name in seed["thieves"]))
    return [_judge(name, result, [seed for seed in seeds if name in seed["thieves"]]) for name in names]


def _judge(name: str, result: dict[str, Any], seeds: list[dict[str, Any]]) -> Judged:
    threshold, plain = result["threshold_log10_p"], fmean(seed["facts"]["plain_thief"] for seed in seeds)
    rows = [seed["thieves"][name] for seed in seeds]
    skipped = [row["skipped"] for row in rows if "skipped" in row]
    if skipped:
        return Judged(name, Outcome.SKIPPED, seeds=len(rows), why=skipped[0])
    tested = [account for row in rows for account in row["accounts"]]
    values = [min((each["corrected_log10_p"] for each in row["accounts"]), default=0.0) for row in rows]
    named = sum(value < threshold for value in values)
    usable, hits = sum(each["usable"] for each in tested), sum(each["hits"] for each in tested)
    controls = [row["control"]["corrected_log10_p"] for row in rows if row["control"] is not None]
    accuracy = fmean(row["accuracy"] for row in rows)
    if named:
        outcome = Outcome.NAMED if named == len(rows) else Outcome.SOMETIMES
    else:
        outcome = Outcome.LOST if any(_testable(row, threshold) for row in rows) else Outcome.UNTESTABLE
    return Judged(
        name,
        outcome,
        named,
        len(rows),
        accuracy,
        100 * (accuracy - plain),
        usable / max(1, len(tested)),
        hits / max(1, usable),
        fmean(values),
        max(values),
        min(controls, default=None),
    )


def _testable(row: dict[str, Any], threshold: float) -> bool:
    """Whether an account would be named if the thief's network agreed with every coin it was asked about."""
    most = max((each["asked"] for each in row["accounts"]), default=0)
    return math.log10(len(row["accounts"]) + 1) - most * math.log10(2) < threshold


def sentence(result: dict[str, Any]) -> str:
    """The result for people, in one or two sentences."""
    ties, coins = result["ties"], result["coins"]
    if not ties["tau"]:
        return (
            f"Nothing to test: {ties['images']:,} validation images show too few near ties to know what they cost, so "
            "no answer is marked. Labels of this model can be copied without a trace."
        )
    if coins["seen"] < coins["needed"]:
        return (
            f"Nothing to test: an account that asks for {result['queries']:,} labels sees {coins['seen']} secret "
            f"coins, and with fewer than {coins['needed']} nobody can be named at p < "
            f"{_threshold(result)}. This says nothing about thieves; more queries, or a model that is less sure, have "
            "more coins."
        )
    rows = judged(result)
    tested = [row for row in rows if row.outcome not in (Outcome.SKIPPED, Outcome.UNTESTABLE)]
    seeds = len(result["seeds"])
    named = [row for row in tested if row.outcome is Outcome.NAMED]
    where = f" in each of {seeds} seeds" if seeds > 1 else ""
    thieves = "thief" if len(tested) == 1 else "thieves"
    verb = "is" if len(named) == 1 else "are"
    text = (
        f"Of {len(tested)} {thieves} of {result['queries']:,} labels, {len(named)} {verb} named at p < "
        f"{_threshold(result)}{where}"
    )
    for outcome, words in ((Outcome.SOMETIMES, "in some seeds"), (Outcome.LOST, "the mark is lost to")):
        found = [f"{row.name} ({row.beside:+.1f})" for row in tested if row.outcome is outcome]
        text += f"; {words}: {', '.join(found)}" if found else ""
    text += "."
    if len(named) < len(tested):
        text += " In brackets: points of accuracy beside a thief of answers without ties."
    for outcome, words in ((Outcome.UNTESTABLE, "Too few coins to test"), (Outcome.SKIPPED, "Left out")):
        found = [f"{row.name}{f' ({row.why})' if row.why else ''}" for row in rows if row.outcome is outcome]
        text += f" {words}: {', '.join(found)}." if found else ""
    return _warning(rows, result) + text


def _threshold(result: dict[str, Any]) -> str:
    return f"{10 ** result['threshold_log10_p']:.0e}".replace("e-0", "e-")


def _warning(rows: list[Judged], result: dict[str, Any]) -> str:
    wrong = [row.name for row in rows if row.control is not None and row.control < result["threshold_log10_p"]]
    if not wrong:
        return ""
    return f"Do not trust this: the control account, whose answers nobody learned, is named beside {', '.join(wrong)}. "


def _cells(row: Judged) -> list[str]:
    if row.outcome is Outcome.SKIPPED:
        return [row.name, row.outcome, "", "", "", "", "", "", ""]
    outcome = f"named, {row.named} of {row.seeds}" if row.outcome is Outcome.SOMETIMES else str(row.outcome)
    return [
        row.name,
        outcome,
        f"{100 * row.accuracy:.1f}",
        f"{row.beside:+.1f}",
        f"{row.usable:.0f}",
        f"{100 * row.agree:.0f} %",
        f"{row.log10_p:.1f}",
        f"{row.worst:.1f}",
        "" if row.control is None else f"{row.control:.1f}",
    ]


HEAD = ("thief", "outcome", "accuracy", "beside no ties", "coins", "agree", "log10 p", "worst seed", "control")


def facts_line(result: dict[str, Any]) -> str:
    """What ties are and cost, and what thieves are compared with."""
    facts = [seed["facts"] for seed in result["seeds"].values()]
    if not facts:
        return ""

    def mean(name: str) -> float:
        return 100 * fmean(each[name] for each in facts)

    return (
        f"Model {mean('teacher'):.1f} % right on {result['data']['test']:,} test images. Ties are margins below "
        f"{result['ties']['tau']:.3f}, {mean('share'):.1f} % of answers; they cost {100 * result['ties']['cost']:.2f} "
        f"points by {result['ties']['images']:,} validation images. A thief of answers without ties is "
        f"{mean('plain_thief'):.1f} % right."
    )


def lines(result: dict[str, Any]) -> list[str]:
    """A table for a terminal, one line a thief, and what its columns mean."""
    rows = [list(HEAD), *map(_cells, judged(result))]
    if len(rows) == 1:
        return []
    width = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    shown = [
        "  ".join(
            cell.ljust(size) if column < 2 else cell.rjust(size) for column, (cell, size) in enumerate(pairs)
        )
        for pairs in (list(zip(row, width, strict=True)) for row in rows)
    ]
    return [facts_line(result), *(line.rstrip() for line in shown)]


def markdown(result: dict[str, Any]) -> str:
    """The whole result as Markdown."""
    head = [f"## marks: {result['data']['name']}, {max(1, len(result['seeds']))} seed(s)", "", sentence(result)]
    rows = judged(result)
    if not rows:
        return "\n".join(head) + "\n"
    note = (
        "Accuracy in per cent of test images; the next column is the difference, in points, to a thief of answers "
        "without ties. Coins: on which the thief's network answers one of the two classes, and how often it agrees. "
        "log10 p: of the thief's surest account, corrected for all accounts (Holm). Control: an account that asked the "
        "same and whose answers were not learned; the lowest."
    )
    table = [f"| {' | '.join(HEAD)} |", "|---|---|---:|---:|---:|---:|---:|---:|---:|"]
    table += [f"| {' | '.join(_cells(row))} |" for row in rows]
    return "\n".join([*head, "", facts_line(result), "", *table, "", note]) + "\n"
