"""docs/parameters.md from the models of the parameters; `python tests/contract/parameter_page.py` writes it."""

from pathlib import Path

from sdb.config import ALIASES, IGNORED, LOSS_DEFAULTS, MODEL_ARGUMENTS
from sdb.config.described import Parameter, parameters

PAGE = Path(__file__).resolve().parents[2] / "docs" / "parameters.md"
HEAD = """\
# Parameters

Written by `python tests/contract/parameter_page.py` from the models in `src/sdb/config/`; do not edit it by hand.

`sdb init DIR` writes a commented `DIR/params.toml`, and `sdb params NAME` prints one row of this page. A
`DIR/params.json` is read in the same way: one flat JSON object, where none is `null`. `--set NAME=VALUE` overrides one
parameter; `--set model_args.num_channels=8` changes one value inside an object. Unknown names and values out of range
are refused, all of them in one message. From Python the same names are fields of `sdb.TrainSettings`,
`sdb.WrapSettings` and `sdb.DistillSettings`. What the weights and temperatures mean: docs/method.md, Equations.
"""
THEIRS = """\
Published `params.json` files use these names, and any file may. A file that gives one parameter by two names with
different values is refused. A `--set` value wins over the file's, whichever name each uses. What such a file means
beyond its words: docs/method.md.
"""
SPECIAL = {
    "adversarial_model": "`teacher_model` (wrap)",
    "adversarial_resume": "`teacher` (wrap)",
    "teacher_resume": "`teacher` (distill)",
    "augmentation": "`augment`; 0 and 1 are false and true",
}


def table(rows: list[Parameter]) -> str:
    """Rows as a Markdown table."""
    lines = ["| name | values | default | what it does |", "|---|---|---|---|"]
    for row in rows:
        cells = (row.values, row.default, row.help)
        lines.append(" | ".join([f"| `{row.name}`", *(cell.replace("|", "&#124;") for cell in cells)]) + " |")
    return "\n".join(lines)


def theirs() -> str:
    """The reference's names for parameters."""
    rows = {name: SPECIAL.get(name, f"`{ours}`") for name, ours in ALIASES.items()}
    rows["temperature"] = "`temperature` (wrap), `kd_temperature` (distill)"
    rows |= dict.fromkeys(MODEL_ARGUMENTS, "the same, inside `model_args`")
    rows["cuda"] = (
        "`device`: 0 is cpu, anything else auto; the reference ignores the value and uses a GPU if there is one"
    )
    rows |= dict.fromkeys(IGNORED, "accepted and ignored: there are no loader processes")
    return "\n".join(
        ["| theirs | ours |", "|---|---|", *(f"| `{name}` | {ours} |" for name, ours in rows.items())]
    )


def losses() -> str:
    """What each distillation loss takes where nothing is set."""
    rows = [
        f"| `{loss}` | " + " | ".join(f"{value:g}" for value in values) + " |"
        for loss, values in LOSS_DEFAULTS.items()
    ]
    return "\n".join(["| loss | `kd_weight` | `ce_weight` | `kd_temperature` |", "|---|---|---|---|", *rows])


def page() -> str:
    """The whole page."""
    of = {command: list(parameters(command)) for command in ("train", "wrap", "distill")}
    every = [row for row in of["train"] if row in of["wrap"] and row in of["distill"]]
    learned = [row for row in of["train"] if row in of["distill"] and row not in every]
    wrap = [row for row in of["wrap"] if row not in every]
    decoy = [row for row in wrap if row.help.startswith("decoy") and row.name != "method"]
    parts = [
        HEAD,
        "## Every command\n",
        table(every) + "\n",
        "## Train and distill\n",
        table(learned) + "\n",
        "## Wrap\n",
        table([row for row in wrap if row not in decoy]) + "\n",
        "## Wrap, method decoy\n",
        table(decoy) + "\n",
        "## Distill\n",
        table([row for row in of["distill"] if row not in every and row not in learned]) + "\n",
        losses() + "\n",
        "## Names of the reference and of Nasty Teacher\n",
        THEIRS,
        theirs() + "\n",
    ]
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
