"""Made-up audits that look like real ones, for the tests of their report. Loaded with `runpy`, not collected."""

from __future__ import annotations

from typing import Any

import numpy as np

TEST_IMAGES = 500
# name, threat, needs, uses, what it gains over the bar against a plain teacher and against a decoy box, in points
ATTACKS: list[tuple[str, str, str, list[str], float, float]] = [
    ("labels", "api", "labels", ["images"], 0.4, -0.2),
    ("labels_proxy", "api", "labels", ["proxy images"], -6.0, -7.0),
    ("distil", "api", "probabilities", ["images", "labels"], 1.6, -5.5),
    ("tuned_distil", "api", "probabilities", ["images", "labels"], 2.2, -0.6),
    ("averager", "api", "probabilities", ["images", "labels"], 1.4, -0.4),
    ("decoys_removed", "api", "probabilities", ["images"], 1.0, -0.7),
    ("skeptical", "api", "probabilities", ["images", "labels"], 1.2, -0.9),
    ("noisy_queries", "api", "probabilities", ["images"], 1.5, -4.2),
    ("collusion", "api", "probabilities", ["images", "another customer's box"], 1.7, -3.0),
    ("shadow_boxes", "api", "probabilities", ["images", "labels", "boxes of its own"], 1.3, -1.1),
    ("knockoff_random", "api", "probabilities", ["proxy images"], -4.0, -12.0),
    ("data_free", "api", "logits", [], -30.0, -45.0),
    ("random_keys", "api", "logits", ["images"], 1.5, -5.0),
    ("batch_norm", "shipped", "weights", ["images"], 1.5, -4.8),
    ("retrain_public", "shipped", "weights", ["images", "labels"], 1.9, -0.1),
    ("pruning", "shipped", "weights", ["images"], 1.1, -5.1),
    ("partial_key", "leak", "logits", ["images", "half of the key"], 1.5, 0.3),
]
# name, title, how much of what an attack gains it stops, keyless accuracy lost in points, partner's gain or None
DEFENCES: list[tuple[str, str, float, float, float | None]] = [
    ("none", "No defence", 0.0, 0.0, 0.0),
    ("labels_only", "Labels only", 0.8, 0.0, None),
    ("rounding", "Rounding", 0.1, 0.0, None),
    ("reverse_sigmoid", "Reverse sigmoid", 0.35, 0.2, None),
    ("top_k", "Top-k (stingy)", 0.3, 0.0, None),
    ("nasty", "Nasty Teacher", 0.6, 1.4, None),
    ("adversarial_sparse", "Adversarial sparse teacher", 0.5, 1.1, None),
    ("cluster_collapse", "Cluster collapse", 0.85, 0.3, None),
    ("gradient_redirection", "Gradient redirection", 0.45, 0.0, None),
    ("sdb", "Safe Distillation Box (2022)", 0.55, 0.9, -0.3),
    ("key_server", "Server with the key", 1.0, 0.1, 0.2),
    ("box", "The audited box", 1.0, 0.1, 0.4),
]


def fraction(points: float) -> float:
    """Per cent to what so many test images can show."""
    return round(min(max(points, 0.0), 100.0) / 100 * TEST_IMAGES) / TEST_IMAGES


PAIRS = 24


def pairs_of(gains: dict[str, float], random: np.random.Generator) -> dict[str, Any]:
    """Pairs in which ways gain that much over the bar, in points."""
    bar = 0.9 + 0.01 * random.standard_normal(PAIRS)
    ways = {"bar/label smoothing": 0.0, "bar/alone": -0.4, "bare/T=4": gains.get("bare", 2.4)}
    if gains.get("partner", 2.5) is not None:
        ways["partner/T=4"] = gains.get("partner", 2.5)
    ways |= {f"attack/{name}": value for name, value in gains.items() if name not in ("bare", "partner")}
    scores = {}
    for name, gain in ways.items():
        noise = random.normal(0, 0.012, PAIRS)
        test = bar + (gain / 100 + noise - noise.mean() if name != "bar/label smoothing" else 0)
        scores[name] = {"test": [*map(float, test)], "validation": [0.93 + gain / 100] * PAIRS}
    return {"number": PAIRS, "ways": scores, "left_out": {}}


def make_claim(
    seeds: int = 3,
    *,
    threat: str = "api",
    broken: str | None = None,
    recovered: str | None = "retrain_public",
    failed_controls: tuple[str, ...] = (),
    failed: tuple[str, ...] = (),
    not_applicable: tuple[str, ...] = ("random_keys",),
    key: bool = True,
    lost: float = 0.1,
    everywhere: bool = True,
    teacher: float = 98.6,
    pairs: dict[str, float] | None = None,
) -> dict[str, Any]:
    """An audit's claim.

    `broken` gains 3 points on the box, `recovered` rebuilds the teacher from it, `lost` are the points that the box
    costs its users; without `everywhere` only the box and the plain teacher meet every attack. `pairs` says what the
    best attacks, by name, gain over the bar on fresh students, in points; "bare" and "partner" what these gain.
    """
    random = np.random.default_rng(11)
    bar = teacher - 4.6

    def per_seed(points: float, spread: float = 0.25) -> list[float]:
        return [fraction(points + float(random.normal(0, spread))) for _ in range(seeds)]

    smoothed = per_seed(bar)
    references = {
        "teacher": per_seed(teacher, 0.1),
        "calibration_error": [0.012] * seeds,
        "brier": [0.01] * seeds,
        "bar": {"label smoothing": smoothed, "alone": per_seed(bar - 0.3)},
        "from_teacher": per_seed(bar + 3.2),
        "own_distance": [0.045] * seeds,
    }
    defences, cells = [], []
    for name, title, strength, cost, partner in DEFENCES:
        cost = lost if name == "box" else cost
        has_key = partner is not None and (key or name != "box")
        defences.append(
            {
                "name": name,
                "title": title,
                "summary": f"What {title.lower()} does to the answers, in a sentence.",
                "source": "arXiv 2112.03695" if name == "sdb" else "this project",
                "parameters": {"temperature": 4.0, "margin": 1.0} if name == "box" else {},
                "threat_note": "A server only: it needs the key at hand." if name == "key_server" else "",
                "keyless": [fraction(100 * value - cost) for value in references["teacher"]],
                "keyed": per_seed(teacher + 0.1, 0.1) if has_key else [None] * seeds,
                "partner": per_seed(bar + 2.2 + partner) if has_key else [None] * seeds,
                "distance": [round(3.2 * strength + 0.01 * i, 4) for i in range(seeds)],
                "seconds": [round(2 + 20 * strength, 2)] * seeds,
                "calibration_error": [0.011] * seeds,
                "brier": [0.012] * seeds,
                "bits": [0.16 if name == "box" else None] * seeds,
            }
        )
        for attack, kind, _, _, plain, boxed in ATTACKS:
            if not everywhere and name not in ("none", "box") and attack not in ("labels", "distil", "averager"):
                continue
            points = plain + strength * (boxed - plain)
            if name == "box" and attack == broken:
                points = 3.0
            status = "done"
            if name == "box":
                status = "failed" if attack in failed else status
                status = "not_applicable" if attack in not_applicable else status
            closes = kind == "shipped" and name not in ("none", "labels_only")
            cells.append(
                {
                    "defence": name,
                    "attack": attack,
                    "status": status,
                    "reason": {"failed": "its loss was no longer finite", "not_applicable": "a weight key"}.get(
                        status, ""
                    ),
                    "seeds": [
                        {
                            "seed": seed,
                            "accuracy": fraction(100 * smoothed[seed] + points + float(random.normal(0, 0.2))),
                            "validation": 0.93,
                            "agreement": fraction(94 + points / 2),
                            "queries": 0 if kind == "shipped" else int(8000 + 100 * abs(points)),
                            "seconds": round(3.5 + float(random.uniform(0, 4)), 2),
                            "gap_closed": (0.93 if (name, attack) == ("box", recovered) else 0.05)
                            if closes
                            else None,
                            "details": {"temperature": 4.0, "chosen by": "validation"},
                        }
                        for seed in range(seeds)
                        if status == "done"
                    ],
                }
            )
    return {
        "schema": 3,
        "kind": "audit",
        "title": "How far does each attack get against this box?",
        "preset": "standard" if seeds > 1 else "quick",
        "threat": threat,
        "seeds": list(range(seeds)),
        "interface": "logits",
        "top_k": 3,
        "query_budget": 50_000,
        "views": 8,
        "regime": {"labelled": 150, "unlabelled": 0, "validation": 30},
        "given": False,
        "data": {
            "name": "Handwritten digits",
            "train": 120,
            "validation": 30,
            "test": TEST_IMAGES,
            "classes": [str(digit) for digit in range(10)],
            "image_shape": [1, 8, 8],
            "note": "1,797 digits of 8 x 8 pixels, UCI, CC BY 4.0.",
            "proxy": "Random strokes",
        },
        "box": {
            "path": "runs/demo/model.box",
            "id": "3f9a1c",
            "method": "decoy",
            "key_kind": "weight" if key else None,
            "levels": 2,
            "bits": 0.17,
        },
        "student": {"model": "net", "arguments": {"num_channels": 8}, "parameters": 5_218},
        "victim": {"model": "net", "arguments": {"num_channels": 24}, "parameters": 98_762},
        "settings": {"epochs": 60, "batch_size": 64, "learning_rate": 0.003},
        "references": references,
        "pairs": None if pairs is None else pairs_of(pairs, random),
        "defences": defences,
        "attacks": [
            {
                "name": name,
                "summary": f"What {name.replace('_', ' ')} tries, in a sentence of ordinary length.",
                "source": "arXiv 2507.00012" if name == "averager" else "this project",
                "needs": needs,
                "uses": uses,
                "threat": kind,
                "parameters": {"epochs": 60},
            }
            for name, kind, needs, uses, _, _ in ATTACKS
        ],
        "cells": cells,
        "controls": {
            name: {
                "positive": {
                    "passed": name not in failed_controls,
                    "reason": "",
                    "accuracies": [fraction(bar + plain)] * seeds,
                    "needed": fraction(bar + plain - 2),
                    "closed": 0.97 if kind == "shipped" else None,
                    "closed_needed": 0.5 if kind == "shipped" else None,
                },
                "negative": {"passed": True, "reason": "", "accuracies": [0.108] * seeds, "limit": 0.2},
            }
            for name, kind, _, _, plain, _ in ATTACKS
        },
        "unlock": [
            {"label": "no key", "similarity": None, "distance": 3.21},
            {"label": "true key", "similarity": 1.0, "distance": 0.02},
            *(
                {
                    "label": f"noise, cosine {cosine:g}",
                    "similarity": cosine,
                    "distance": round(3.2 * (1 - cosine) ** 0.6, 3),
                }
                for cosine in (0.99, 0.95, 0.9, 0.8, 0.6, 0.3)
            ),
            *(
                {
                    "label": f"random {i}",
                    "similarity": round(0.1 * np.sin(i), 3),
                    "distance": round(3.1 + 0.1 * np.cos(i), 3),
                }
                for i in range(20)
            ),
        ],
        "traces": [
            {"label": "thief: distil", "found": 20, "total": 20, "log10_p": -14.2, "marked": True},
            {"label": "thief: labels", "found": 4, "total": 20, "log10_p": -0.2, "marked": False},
            {"label": "student alone", "found": 5, "total": 20, "log10_p": -0.5, "marked": False},
        ],
        "seconds": 1843.2,
        "workers": 2,
        "command": "sdb audit runs/demo/model.box --key partner.json --preset standard",
        "environment": {"python": "3.11.7", "torch": "2.13.0", "device": "cpu", "commit": "ab5fc42"},
        "started": "2026-11-24T08:00:00+00:00",
        "finished": "2026-11-24T08:30:43+00:00",
    }
