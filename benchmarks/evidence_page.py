"""The evidence table: a section of docs/results.md from the pieces that are done. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from statistics import fmean, stdev
from typing import Any

from evidence_cases import CASES, ROWS

from sdb.report.pairs import Gain, Scores, best, gain

Pieces = list[dict[str, Any]]
HEAD = (
    "",
    "accuracy, no key",
    "with key",
    "calibration error",
    "bits",
    "at stake",
    "plain thief",
    "best thief",
    "(which)",
    "partner against the teacher's student",
    "trace, log10 p",
    "ties cost",
    "copy of labels, log10 p",
)


def scores_of(pieces: Pieces, row: str, student: str) -> dict[str, Scores]:
    """Accuracies by way of all pairs of a row that have what they are compared with, the unprotected row's ways too.

    Ways of the unprotected teacher are `bare/` and, for who asks nobody, `bar/`.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    plain = {(p["seed"], p["pair"]): p["ways"] for p in _pairs(pieces, "none", student)}
    for piece in _pairs(pieces, row, student):
        beside = plain.get((piece["seed"], piece["pair"]))
        if beside is None:
            continue
        bare = {way.replace("thief/", "bare/", 1): value for way, value in beside.items() if "thief/" in way}
        nobody = {way: beside[way] for way in ("bar/alone", "bar/label smoothing")}
        for way, value in (piece["ways"] | bare | nobody).items():
            found.setdefault(way, []).append(tuple(value))
    return {way: Scores(*zip(*values, strict=True)) for way, values in found.items()}


def _pairs(pieces: Pieces, row: str, student: str) -> Pieces:
    return [p for p in pieces if (p["kind"], p["row"], p["student"]) == ("pair", row, student)]


def gains_of(pieces: Pieces, row: str, student: str) -> dict[str, tuple[str, Gain]]:
    """Ways and gains over the bar: `bare`, `plain`, `thief` (the best), `partner` (over the teacher's student)."""
    scores = scores_of(pieces, row, student)
    if not scores:
        return {}

    def starting(*groups: str) -> list[str]:
        return [way for way in scores if way.partition("/")[0] in groups]

    bar, bare = best(scores, starting("bar")), best(scores, starting("bare"))
    found = {"bare": (bare, gain(scores[bare], scores[bar]))}
    thieves = starting("thief", "attack")
    if thieves:
        chosen = best(scores, thieves)
        # The same attack on classes alone: a better way to learn from them is no leak.
        twin = f"top1/{chosen.partition('/')[2]}"
        against = best(scores, [bar, twin]) if twin in scores else bar
        found |= {
            "plain": (thieves[0], gain(scores[thieves[0]], scores[bar])),
            "thief": (chosen, gain(scores[chosen], scores[against])),
        }
    elif classes := starting("top1"):
        chosen = best(scores, classes)
        found["thief"] = (chosen, gain(scores[chosen], scores[bar]))
    if partners := starting("partner"):
        found["partner"] = (best(scores, partners), gain(scores[best(scores, partners)], scores[bare]))
    return found


def over_the_bar(pieces: Pieces, row: str, student: str, *groups: str) -> Gain | None:
    """What the best way of some groups gains over the bar; None where no pairs are done."""
    scores = scores_of(pieces, row, student)
    chosen = [way for way in scores if way.partition("/")[0] in groups]
    if not chosen:
        return None
    bar = best(scores, [way for way in scores if way.startswith("bar/")])
    return gain(scores[best(scores, chosen)], scores[bar])


def bars_of(content: dict[str, Any]) -> dict[str, tuple[Gain, str]]:
    """The bars of a data set's figure, of its first student, with their colours; those whose pairs are done."""
    wanted = {
        "the bare model's student": ("none", ("thief",), "bare"),
        "a thief of the nasty teacher": ("nasty", ("thief", "attack"), "thief"),
        "a thief of the paper's box": ("sdb", ("thief", "attack"), "thief"),
        "a thief of our box": ("decoy", ("thief", "attack"), "thief"),
        "a partner of the paper's box": ("sdb", ("partner",), "partner"),
        "a partner of our box": ("decoy", ("partner",), "partner"),
    }
    student = next(iter(CASES[content["data"]].students))
    found = {}
    for name, (row, groups, colour) in wanted.items():
        if colour == "thief":  # as in the table: beside the same attack on classes alone
            over = gains_of(content["pieces"], row, student).get("thief", ("", None))[1]
        else:
            over = over_the_bar(content["pieces"], row, student, *groups)
        if over is not None and over.pairs > 1:
            found[name] = over, colour
    return found


def shown(found: Gain) -> str:
    """A gain in points with half its 95 % interval."""
    return f"{100 * found.value:+.2f}" + (f" ± {100 * found.half:.2f}" if math.isfinite(found.half) else "")


def mean_of(values: list[float]) -> str:
    """Per cent, over seeds."""
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):.1f}{spread}"


def line(pieces: Pieces, row: str, student: str) -> list[str]:
    """One row of the table."""
    facts = [p for p in pieces if p["kind"] == "facts" and p["row"] == row]
    if not facts:
        return [ROWS[row], *["to do"] * (len(HEAD) - 1)]
    gains = gains_of(pieces, row, student)
    keyed = [p["keyed"] for p in facts if p["keyed"] is not None]
    bits = [p["bits"] for p in facts if p["bits"] is not None]
    traces = [p["trace_log10_p"] for p in facts if "trace_log10_p" in p]
    cells = {name: shown(found) for name, (_, found) in gains.items()}
    return [
        ROWS[row],
        mean_of([p["keyless"]["accuracy"] for p in facts]),
        mean_of(keyed) if keyed else "–",
        mean_of([p["keyless"]["calibration_error"] for p in facts]),
        f"{fmean(bits):.2f}" if bits else "all",
        cells.get("bare", "to do"),
        cells.get("plain", "–"),
        cells.get("thief", "–"),
        gains["thief"][0].partition("/")[2] if "thief" in gains else "–",
        cells.get("partner", "–"),
        f"{max(traces):.1f} at most" if traces else "–",
        *marked(pieces, row),
    ]


def marked(pieces: Pieces, row: str) -> list[str]:
    """What ties cost in points, and the worst trace of a copy of labels."""
    marks = [p for p in pieces if (p["kind"], p["row"]) == ("mark", row)]
    known = [p for p in marks if "log10_p" in p]
    if not known:
        return ["too few", "–"] if marks else ["–", "–"]
    costs = [100 * p["cost"] for p in known]
    spread = f" ± {stdev(costs):.2f}" if len(costs) > 1 else ""
    some = f" (too few in {len(marks) - len(known)} of {len(marks)} seeds)" if len(known) < len(marks) else ""
    return [f"{fmean(costs):.2f}{spread}{some}", f"{max(p['log10_p'] for p in known):.1f} at most"]


def asked_of_ours(pieces: Pieces, students: Iterable[str]) -> list[str]:
    """What our box is to reach, with what it has reached, as a table; nothing before there are pairs of it."""
    gains = {student: found for student in students if "partner" in (found := gains_of(pieces, "decoy", student))}
    facts = {(p["row"], p["seed"]): p["keyless"] for p in pieces if p["kind"] == "facts"}
    seeds = [seed for row, seed in facts if row == "decoy" and ("none", seed) in facts]
    if not gains or not seeds:
        return []

    def of(group: str) -> list[float]:
        return [100 * found[group][1].value for found in gains.values()]

    def beyond(name: str) -> list[float]:
        means = fmean(100 * (facts["decoy", seed][name] - facts["none", seed][name]) for seed in seeds)
        return [means] * len(gains)

    asked: list[tuple[str, list[float], Callable[[float], bool]]] = [
        ("at stake above 1.5, with one of the students at least", of("bare"), lambda found: found > 1.5),
        ("best thief at most 0.5", of("thief"), lambda found: found <= 0.5),
        ("partner at least the teacher's student minus 0.5", of("partner"), lambda found: found >= -0.5),
        (
            "accuracy without a key, at least the teacher's minus 0.5",
            beyond("accuracy"),
            lambda found: found >= -0.5,
        ),
        ("calibration error, at most the teacher's plus 1", beyond("calibration_error"), lambda found: found <= 1),
    ]
    lines = ["", f"| asked of our box, points, means | {' | '.join(gains)} |", "|---|" + "---|" * len(gains)]
    for number, (name, values, reached) in enumerate(asked):
        shown = [round(value, 2) for value in values]
        no = "no" if number == 0 and any(map(reached, shown)) else "**missed**"
        lines.append(f"| {name} | " + " | ".join(f"{v:+.2f}, {'yes' if reached(v) else no}" for v in shown) + " |")
    return lines


def times(pieces: Pieces, rows: dict[str, str]) -> str:
    """How long what users wait for takes, for people."""
    found = []
    for name, kind, row in [("a teacher", "teacher", "")] + [(name, "defence", row) for row, name in rows.items()]:
        seconds = [p["seconds"] for p in pieces if (p["kind"], p["row"]) == (kind, row)]
        if seconds and fmean(seconds) >= 1:
            found.append(f"{name} {_time(fmean(seconds))}")
    ways = [(p["seconds"], len(p["ways"])) for p in pieces if p["kind"] == "pair"]
    if ways:
        found.append(f"a way to steal {_time(sum(s for s, _ in ways) / sum(count for _, count in ways))}")
    made = [p["machine"] for p in pieces if "precision" in p["machine"]]
    machines = {(m["platform"], m.get("device", "cpu"), m["precision"]) for m in made}
    where = "; ".join(", ".join(each) for each in sorted(machines)) or "precision not kept"
    return f"One process took for {', '.join(found)} ({where})." if found else ""


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def markdown(content: dict[str, Any]) -> str:
    """The section."""
    case, pieces, made = CASES[content["data"]], content["pieces"], content["environment"]
    seconds = sum(piece["seconds"] for piece in pieces)
    lossy = any("(JPEG)" in piece["machine"].get("images", "") for piece in pieces)
    lines = [
        f"## evidence: {content['data']}{' (JPEG)' if lossy else ''}",
        "",
        f"Teacher {case.teacher[0]}, {case.images[1]:,} test images; a thief has {case.regime.labelled:,} labelled "
        "images, a fifth of them to choose by. Gains in points over the bar (the best of alone, label smoothing and "
        "the row's top-1 answers, chosen on the thieves' validation images), mean over pairs ± half the 95 % interval; "
        "the best thief is chosen on validation images among plain distillation, ways that use levels, "
        "`tuned_distil`, `skeptical` and `margin_queries`, the last held against itself on classes alone; of the top-1 "
        "server it is what chosen questions add to the bar. Accuracy and calibration"
        " in per cent, mean ± standard deviation over seeds. Traced: a thief of all training images. Ties: what they "
        "cost in points of accuracy on test images, and the trace of a copy of labels, 2,000 of them or of half of the "
        "test images; too few: a model that is rarely unsure has not enough of them.",
        "",
        f"    {content['command']}",
        "",
        f"torch {made['torch']}, {made['platform']}, {made['cores']} cores, commit {made['commit']}; "
        f"{len(pieces)} pieces in {seconds / 60:.0f} minutes of one process; {len(content['missing'])} are missing. "
        + times(pieces, ROWS),
    ]
    if bars_of(content):
        name = f"figures/evidence-{content['data']}"
        lines += [
            "",
            "<picture>",
            f'  <source media="(prefers-color-scheme: dark)" srcset="{name}-dark.svg">',
            f'  <img alt="What students gain over the bar: {content["data"]}" src="{name}-light.svg">',
            "</picture>",
        ]
    for student in case.students:
        pairs = {row: len(_pairs(pieces, row, student)) for row in ROWS}
        if not any(pairs.values()):
            continue
        seeds = {row: len({p["seed"] for p in pieces if p["row"] == row and p["kind"] == "facts"}) for row in ROWS}
        lines += ["", f"Students: {student}.", "", "| seeds, pairs | " + " | ".join(HEAD) + " |"]
        lines.append("|---|" + "---|" * len(HEAD))
        for row in ROWS:
            lines.append(f"| {seeds[row]}, {pairs[row]} | " + " | ".join(line(pieces, row, student)) + " |")
    return "\n".join([*lines, *asked_of_ours(pieces, case.students)])
