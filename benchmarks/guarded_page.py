"""The sections of docs/results.md from benchmarks/guarded.py."""

from __future__ import annotations

from statistics import fmean, stdev
from typing import Any

from sdb.report.pairs import Scores, best, gain


def spread(values: list[float], scale: float = 100, digits: int = 1) -> str:
    """Mean and standard deviation over seeds."""
    around = f" ± {scale * stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{scale * fmean(values):.{digits}f}{around}"


def markdown(content: dict[str, Any]) -> str:
    """One data set's section."""
    seeds = content["seeds"]
    scores = {
        name: Scores(*(tuple(pair[at] for seed in seeds for pair in seed["scores"][name]) for at in (0, 1)))
        for name in seeds[0]["scores"]
    }
    chosen = {
        who: best(scores, [name for name in scores if name.startswith(f"{who}/")])
        for who in ("bar", "bare", "thief")
    }
    users = {name: spread([seed["users"][name] for seed in seeds]) for name in seeds[0]["users"]}
    lines = [
        f"## guarded: {content['data']}, {len(seeds)} seeds",
        "",
        f"    {content['command']}",
        "",
        "A guard around a classifier, without training. Test examples; mean ± standard deviation over seeds, percent. "
        f"An answer without a key tells {spread([seed['bits'] for seed in seeds], 1, 2)} bits beyond its class.",
        "",
        "| | accuracy | calibration error | Brier score |",
        "|---|---|---|---|",
        *(
            f"| {title} | {users[f'{who}_accuracy']} | {users[f'{who}_calibration_error']} | {users[f'{who}_brier']} |"
            for who, title in (("teacher", "the model, and partners"), ("keyless", "everyone"))
        ),
        "",
        f"Students of {seeds[0]['learned']} examples, in pairs; gains in points over the bar (the best of alone and "
        f"top-1, with and without label smoothing: {chosen['bar'].partition('/')[2]}), mean ± half the 95 % interval "
        "over pairs.",
        "",
        "| | gain | way |",
        "|---|---|---|",
    ]
    for who, title in (
        ("bare", "student of the model's answers: at stake, and a partner's"),
        ("thief", "thief of the guard"),
    ):
        found = gain(scores[chosen[who]], scores[chosen["bar"]])
        lines.append(
            f"| {title} | {100 * found.value:+.2f} ± {100 * found.half:.2f} | {chosen[who].partition('/')[2]} |"
        )
    marks = [seed["mark"] for seed in seeds]
    lines += [
        "",
        f"Ties: {spread([mark['share'] for mark in marks])} % of answers; they cost "
        f"{spread([mark['cost'] for mark in marks], 100, 2)} points of accuracy, the mean of both coins. Thieves of "
        "labels, log10 of p for the account that they learned from, and for a control that asked the same:",
        "",
        "| thief | queries | ties told | log10 p | worst | control, lowest |",
        "|---|---|---|---|---|---|",
    ]
    for name in (name for name in marks[0] if isinstance(marks[0][name], dict)):
        rows = [mark[name] for mark in marks]
        values = [row["log10_p"] for row in rows]
        lines.append(
            f"| {name} | {rows[0]['queries']:,} | {fmean(row['told'] for row in rows):.0f} | {fmean(values):.1f} | "
            f"{max(values):.1f} | {min(row['control'] for row in rows):.1f} |"
        )
    return "\n".join(lines)
