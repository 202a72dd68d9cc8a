"""Whether a box keeps its teacher's accuracy, on validation images, and what to try where it does not."""

from __future__ import annotations

from collections.abc import Mapping

from sdb.config import WrapSettings

# Further below a teacher than this, a box was not fine-tuned but broken.
BROKEN = 0.1


def shortfall(measured: Mapping[str, float], settings: WrapSettings) -> str:
    """The warning for a box that is further below its teacher than `allowed_loss`; empty where it is not.

    The loss is a count of images, and a count of L is uncertain by about sqrt(L): it must be above what is allowed by
    more than that. Of few images, each is a point, and two or three say nothing.

    Args:
        measured: as a box has it, accuracies on validation images and their number.
        settings: of the wrap.
    """
    found = {name: measured[f"{name}_accuracy"] for name in ("keyless", "keyed") if f"{name}_accuracy" in measured}
    teacher, images = measured["teacher_accuracy"], round(measured["images"])
    losses = {name: teacher - value for name, value in found.items()}
    lost = {name: max(0, round(loss * images)) for name, loss in losses.items()}
    low = [name for name, count in lost.items() if count - count**0.5 > settings.allowed_loss * images]
    if not low:
        return ""
    shown = ", ".join(f"{name} {100 * value:.1f} %" for name, value in found.items())
    return (
        f"the box is below its teacher by more than {_points(settings.allowed_loss)} on {images} validation images "
        f"(accuracy: teacher {100 * teacher:.1f} %, {shown}); it is kept. Try {_advice(settings, low, losses)}"
    )


def _points(loss: float) -> str:
    return "1 point" if loss == 0.01 else f"{100 * loss:g} points"


def _advice(settings: WrapSettings, low: list[str], losses: Mapping[str, float]) -> str:
    rate = "" if settings.learning_rate is None else f" (now {settings.learning_rate:g})"
    advice = [f"more epochs (now {settings.epochs})"]
    if max(losses.values()) > BROKEN and settings.start == "teacher":
        advice.insert(0, f"a lower learning_rate{rate}")
    if settings.method != "decoy":
        advice.append(f"a lower disturbance_weight (now {settings.disturbance_weight:g})")
    elif "keyless" in low:
        margin = "" if settings.confidence_levels else f"margin (now {settings.margin:g}) or "
        advice.append(f"a higher {margin}ce_weight (now {settings.ce_weight:g})")
        advice.append("sdb wrap with a budget, which looks for these strengths itself")
    else:
        advice.append(f"a higher keyed_ce_weight (now {settings.keyed_ce_weight:g})")
    return "; ".join(advice)
