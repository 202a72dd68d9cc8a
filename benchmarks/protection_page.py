"""docs/results.md from docs/results/*.json: means over seeds with 95 % t-intervals, nothing chosen by hand."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from evidence_cases import CASES as EVIDENCE
from evidence_page import bars_of
from evidence_page import markdown as evidence_section
from few_images import CASES
from figures import TITLES, evidence_figure, gains_figure, gains_of, levels_figure

ROOT = Path(__file__).resolve().parent.parent
# Two-sided 95 % quantiles of Student's t for 1 to 9 degrees of freedom.
T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
REFERENCE = ("teacher", "alone", "label_smoothing", "from_teacher")
OPENING = "<!-- results: written by benchmarks/protection.py --write -->"
CLOSING = "<!-- /results -->"
DATA_NOTES = {
    "digits": "UCI handwritten digits, 8x8, 500 test images",
    "cifar10": "CIFAR-10 (JPEG): 32x32 JPEG copies, not the lossless originals, so not comparable digit for digit "
    "with published CIFAR-10 numbers",
    "fashion_mnist": "Fashion-MNIST",
}


def interval(values: list[float], scale: float = 100.0) -> str:
    """Mean and half width of the 95 % interval over seeds."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return f"{scale * mean:.1f}"
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    half = T95[min(len(values) - 2, len(T95) - 1)] * deviation / math.sqrt(len(values))
    return f"{scale * mean:.1f} ± {scale * half:.1f}"


def column(seeds: list[dict[str, Any]], name: str, *path: str) -> str:
    """One cell: a measurement of a variant over all seeds, or a dash."""
    values = []
    for record in seeds:
        value: Any = record["variants"][name]
        for part in path:
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            values.append(value)
    return interval(values) if values else "–"


def section(content: dict[str, Any]) -> str:
    """One experiment."""
    seeds, environment = content["seeds"], content["environment"]
    names = list(seeds[0]["variants"])
    reference = {key: interval([record["reference"][key] for record in seeds]) for key in REFERENCE}
    lines = [
        f"## {content['experiment']}: {content['data']}, {len(seeds)} seeds",
        "",
        f"{DATA_NOTES.get(content['data'], content['data'])}. Preset `{content['preset']}`. Accuracies in per cent on "
        "test images, last epoch, mean over seeds ± half the 95 % t-interval.",
        "",
        *([content["note"], ""] if "note" in content else []),
        f"    {content['command']}",
        "",
        f"torch {environment['torch']}, {environment['platform']}, {environment['cores']} cores, "
        f"commit {environment['commit']}.",
        "",
        f"Teacher {reference['teacher']}. Students that never saw a box: alone {reference['alone']}, label smoothing "
        f"{reference['label_smoothing']} (the bar), from the teacher {reference['from_teacher']}.",
        "",
        "| variant | keyless | keyed | thief a=.9 T=4 | best thief | partner | 100 wrong keys | trace log10 p |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in names:
        traces = [record["variants"][name].get("trace_log10_p") for record in seeds]
        found = [value for value in traces if value is not None]
        trace = f"{max(found):.1f} at most" if found else "–"
        cells = [
            column(seeds, name, path) if isinstance(path, str) else column(seeds, name, *path)
            for path in ("keyless", "keyed", "thief", "best_thief", "partner", ("wrong_keys", "mean"))
        ]
        lines.append(f"| {name} | {' | '.join(cells)} | {trace} |")
    lines += ["", "Calibration (expected calibration error / mean confidence, per cent):", ""]
    lines += ["| | keyless | keyed |", "|---|---|---|"]
    teacher = [record["reference"]["teacher_calibration"] for record in seeds]
    lines.append(f"| teacher | {_calibration(teacher)} | |")
    for name in names:
        cells = [
            _calibration([record["variants"][name].get(f"{side}_calibration") for record in seeds])
            for side in ("keyless", "keyed")
        ]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def audit_section(claim: dict[str, Any]) -> str:
    """One audit, from its claim."""
    from sdb.report.audit_verdict import judge
    from sdb.report.audit_words import findings, headline, summary
    from sdb.report.claim import read_claim
    from sdb.report.markdown import markdown_table

    found = read_claim(claim)
    verdict = judge(found)
    what = f"box {claim['box']['id'][:8]}" if claim["box"] else "boxes made here"
    lines = [
        f"## audit: {claim['data']['name']}, {what}, preset {claim['preset']}, {len(claim['seeds'])} seeds, "
        f"threat {claim['threat']}, thief has {found.regime.labelled:,} labelled images",
        "",
        f"{summary(found, verdict)}. {headline(found, verdict)}",
        "",
        *(f"- {each.title}: {each.status}. {each.sentence}" for each in findings(found, verdict)),
        "",
        f"    {claim['command']}",
        "",
        f"{claim['seconds']:.0f} s with {claim['workers']} processes; torch {claim['environment']['torch']}, "
        f"{claim['environment']['platform']}, {claim['environment']['cores']} cores, commit "
        f"{claim['environment']['commit']}.",
        "",
        markdown_table(found),
    ]
    return "\n".join(lines)


def _calibration(records: list[dict[str, float] | None]) -> str:
    found = [record for record in records if record is not None]
    if not found:
        return "–"
    error = interval([record["calibration_error"] for record in found])
    return f"{error} / {interval([record['confidence'] for record in found])}"


def readme_table(files: dict[str, dict[str, Any]]) -> str:
    """The README's table: what is at stake, denied, given, and what users get, where students have few images."""
    gains = {name: gains_of(content) for name, content in files.items()}
    first = next(iter(files.values()))

    def row(title: str, cell: Callable[[str], str]) -> str:
        return f"| {title} | " + " | ".join(cell(name) for name in files) + " |"

    def gained(group: str) -> Callable[[str], str]:
        return lambda name: f"{100 * gains[name][group].value:+.1f} ± {100 * gains[name][group].half:.1f}"

    def models(name: str, score: str) -> str:
        seeds = files[name]["seeds"].values()
        return " / ".join(
            f"{100 * sum(seed['models'][which][score] for seed in seeds) / len(seeds):.1f}"
            for which in ("box, no key", "teacher")
        )

    bits = {name: [seed["bits"] for seed in content["seeds"].values()] for name, content in files.items()}
    lines = [
        "| points of accuracy over what top-1 answers give | " + " | ".join(TITLES[name] for name in files) + " |",
        "|---|" + "---|" * len(files),
        row("**at stake**: a student of the bare model", gained("bare")),
        row("**denied**: a thief of the box, in its best way", gained("thief")),
        row("**partner**: a student with the key", gained("partner")),
        "",
        "| what users get: box without a key / teacher, % | " + " | ".join(TITLES[name] for name in files) + " |",
        "|---|" + "---|" * len(files),
        row("accuracy", lambda name: models(name, "accuracy")),
        row("calibration error", lambda name: models(name, "calibration_error")),
        row("Brier score", lambda name: models(name, "brier")),
        row("an answer says beyond its class, bits", lambda name: f"{sum(bits[name]) / len(bits[name]):.2f}"),
        "",
        "Students have "
        + ", ".join(
            f"{CASES[name].labelled} labelled images on {TITLES[name]} ({len(content['seeds'])} seeds of "
            f"{CASES[name].pairs} students each)"
            for name, content in files.items()
        )
        + f"; means ± half the 95 % interval; {first['environment']['platform']}, torch "
        f"{first['environment']['torch']}. Commands and all numbers: docs/results.md.",
    ]
    return "\n".join(lines)


def evidence_line(content: dict[str, Any]) -> str:
    """What a data set's evidence shows so far, a sentence for the README; empty where our box is not there yet."""
    bars = {
        name: f"{100 * each.value:+.1f} ± {100 * each.half:.1f}" for name, (each, _) in bars_of(content).items()
    }
    wanted = ("the bare model's student", "a thief of our box", "a partner of our box")
    if not all(name in bars for name in wanted):
        return ""
    facts = {
        row: [p for p in content["pieces"] if (p["kind"], p["row"]) == ("facts", row)] for row in ("none", "decoy")
    }
    accuracy = {
        row: 100 * sum(p["keyless"]["accuracy"] for p in found) / len(found) for row, found in facts.items()
    }
    seeds = len(facts["decoy"])
    return (
        f"{content['data'].upper().replace('CIFAR', 'CIFAR-')}, {seeds} seed{'s' * (seeds > 1)} so far (box without a "
        f"key / teacher {accuracy['decoy']:.1f} / {accuracy['none']:.1f} % right): at stake {bars[wanted[0]]}, denied "
        f"{bars[wanted[1]]}, partner {bars[wanted[2]]}."
    )


def write_page() -> None:
    """Write docs/results.md, the README's table and the figures."""
    files = sorted((ROOT / "docs" / "results").glob("*.json"))
    parts = [json.loads(path.read_text()) for path in files]
    intro = (
        "# Results\n\nGenerated by `python benchmarks/protection.py --write` from docs/results/*.json; do not edit. "
        "What the columns mean: docs/method.md. What they do not show: docs/threat-model.md.\n"
    )
    body = "\n\n".join(section(part) for part in parts if "experiment" in part)
    audits = "\n\n".join(audit_section(part) for part in parts if part.get("kind") == "audit")
    evidence = {part["data"]: part for part in parts if part.get("kind") == "evidence"}
    # What the field measures on leads.
    first = "\n\n".join(evidence_section(evidence[name]) for name in EVIDENCE if name in evidence)
    extra = "\n\n".join(
        part["markdown"] for part in parts if "markdown" in part and part.get("kind") != "evidence"
    )
    few = {part["data"]: part for part in parts if part.get("kind") == "few-images"}
    readme = (ROOT / "README.md").read_text()
    before, _, rest = readme.partition(OPENING)
    _, _, after = rest.partition(CLOSING)
    lines = [evidence_line(evidence[name]) for name in ("cifar10", "cifar100") if name in evidence]
    table = "\n\n".join(filter(None, [readme_table(few), *lines]))
    (ROOT / "README.md").write_text(f"{before}{OPENING}\n{table}\n{CLOSING}{after}")
    gains_figure(few)
    for part in evidence.values():
        evidence_figure(part)
    levels_figure({part["data"]: part for part in parts if part.get("kind") == "levels"})
    (ROOT / "docs" / "results.md").write_text(
        "\n".join(filter(None, [intro, first and f"{first}\n", body, audits, extra])) + "\n"
    )
