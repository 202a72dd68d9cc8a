"""docs/results.md from docs/results/*.json: means over seeds with 95 % t-intervals, nothing chosen by hand."""

import json
import math
from pathlib import Path
from typing import Any

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
        f"threat {claim['threat']}, thief has {100 * claim['data_share']:.0f} % of the images",
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


def readme_table(content: dict[str, Any]) -> str:
    """The README's table, from the main experiment on digits."""
    seeds, name = content["seeds"], "decoy, weight key"
    reference = {key: interval([record["reference"][key] for record in seeds]) for key in REFERENCE}
    lines = [
        f"| digits, mean of {len(seeds)} seeds ± half the 95 % interval | accuracy, % |",
        "|---|---|",
        f"| teacher | {reference['teacher']} |",
        f"| box, for everyone / with the key | {column(seeds, name, 'keyless')} / {column(seeds, name, 'keyed')} |",
        f"| student alone / with label smoothing (the bar) | {reference['alone']} / {reference['label_smoothing']} |",
        f"| student of the teacher | {reference['from_teacher']} |",
        f"| **thief**: distilled from the box, no key | {column(seeds, name, 'thief')} |",
        f"| thief with the best of nine settings, chosen on validation | {column(seeds, name, 'best_thief')} |",
        f"| **partner**: distilled with the key | {column(seeds, name, 'partner')} |",
        f"| thief of the paper's method / of Nasty Teacher | {column(seeds, 'sdb', 'thief')} / "
        f"{column(seeds, 'nasty', 'thief')} |",
        "",
        f"500 test images; {content['environment']['platform']}, torch {content['environment']['torch']}; command and "
        "all numbers: docs/results.md.",
    ]
    return "\n".join(lines)


def write_page() -> None:
    """Write docs/results.md, and the README's table."""
    files = sorted((ROOT / "docs" / "results").glob("*.json"))
    parts = [json.loads(path.read_text()) for path in files]
    intro = (
        "# Results\n\nGenerated by `python benchmarks/protection.py --write` from docs/results/*.json; do not edit. "
        "What the columns mean: docs/method.md. What they do not show: docs/threat-model.md.\n"
    )
    body = "\n\n".join(section(part) for part in parts if "experiment" in part)
    audits = "\n\n".join(audit_section(part) for part in parts if part.get("kind") == "audit")
    extra = "\n\n".join(part["markdown"] for part in parts if "markdown" in part)
    main = next((part for part in parts if part.get("experiment") == "main" and part["data"] == "digits"), None)
    if main is not None:
        readme = (ROOT / "README.md").read_text()
        before, _, rest = readme.partition(OPENING)
        _, _, after = rest.partition(CLOSING)
        (ROOT / "README.md").write_text(f"{before}{OPENING}\n{readme_table(main)}\n{CLOSING}{after}")
    (ROOT / "docs" / "results.md").write_text("\n".join(filter(None, [intro, body, audits, extra])) + "\n")
