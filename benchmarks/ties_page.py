"""The section of docs/results.md on ties."""

from __future__ import annotations

from statistics import fmean, stdev
from typing import Any


def markdown(content: dict[str, Any]) -> str:
    """The section."""
    seeds = list(content["seeds"].values())
    facts = [seed["facts"] for seed in seeds]
    plain = fmean(each["plain_thief"] for each in facts)
    expected = [f"{100 * each['expected']['cost']:.2f}" for each in facts]
    lines = [
        f"## ties: {content['data']}, {len(seeds)} seeds",
        "",
        f"    {content['command']}",
        "",
        f"Teacher {_points(facts, 'teacher')} %. Ties are margins below {_numbers(facts, 'tau', '.3f')}, "
        f"{_points(facts, 'share')} % of answers; they cost {_points(facts, 'cost', 2)} points on test images, the "
        f"mean of both coins ({' / '.join(expected)} expected from validation images). A thief of answers without ties "
        f"is {_points(facts, 'plain_thief')} % right. Each thief below asked for labels, 10,000 where nothing else is "
        "said; log10 p is corrected for the number of accounts (Holm), of several accounts the largest; mean and worst "
        "seed. The control asked the same, and its answers were not learned.",
        "",
        "| thief | accuracy | beside no ties | usable cells | agree | log10 p | worst seed | control, lowest |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in (name for name in seeds[0] if name not in ("facts", "innocents")):
        rows = [seed[name] for seed in seeds if name in seed]
        values = [max(each["corrected_log10_p"] for each in row["accounts"]) for row in rows]
        usable = fmean(each["usable"] for row in rows for each in row["accounts"])
        hits = fmean(each["hits"] for row in rows for each in row["accounts"])
        accuracy = [row["accuracy"] for row in rows]
        control = min(row["control"]["corrected_log10_p"] for row in rows)
        lines.append(
            f"| {name} | {_spread(accuracy)} | {100 * (fmean(accuracy) - plain):+.1f} | {usable:.0f} | "
            f"{100 * hits / max(usable, 1):.0f} % | {fmean(values):.1f} | {max(values):.1f} | {control:.1f} |"
        )
    if any("innocents" not in seed for seed in seeds):
        return "\n".join([*lines, "", "Other thieves, and innocents, are missing: the command goes on."])
    told = [seed["innocents"] for seed in seeds]
    total = sum(each["tests"] for each in told)
    rates = ", ".join(
        f"below 10^-{power}: {sum(each['below'][power] for each in told) / total:.1e}" for power in ("2", "3", "4")
    )
    lines += [
        "",
        f"Innocents: {len(told[0]['models'])} models per seed (the owner's own, students of other accounts, of answers "
        f"without ties, of true labels) against {told[0]['secrets']:,} secrets, {total:,} tests: p {rates}; the "
        f"smallest is 10^{min(each['least'] for each in told):.1f}.",
    ]
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{100 * fmean(values):.1f}" + (f" ± {100 * stdev(values):.1f}" if len(values) > 1 else "")


def _points(facts: list[dict[str, Any]], name: str, digits: int = 1) -> str:
    values = [100 * each[name] for each in facts]
    spread = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{fmean(values):.{digits}f}{spread}"


def _numbers(facts: list[dict[str, Any]], name: str, form: str) -> str:
    return " / ".join(format(each[name], form) for each in facts)
