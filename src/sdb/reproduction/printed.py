"""What others print: accuracies with the place where each was read. Nothing here is from memory.

The result tables of both papers could not be read when this was written, only their abstracts, their code and their
repositories' threads. So most rows have no number; a number that is added here needs its source.
"""

from __future__ import annotations

from dataclasses import dataclass

NASTY_ISSUES = "https://github.com/VITA-Group/Nasty-Teacher/issues"


@dataclass(frozen=True, slots=True)
class Printed:
    """One accuracy that somebody else gives.

    Attributes:
        dataset, row, teacher, student: the cell of our table; no student for a network, no teacher for one alone.
        accuracy: a fraction.
        source: where it stands, and what it is.
        paper: whether the paper's authors give it as the paper's; else somebody's run of their code.
    """

    dataset: str
    row: str
    teacher: str | None
    student: str | None
    accuracy: float
    source: str
    paper: bool


_AUTHOR = (
    "Nasty Teacher (Ma et al., ICLR 2021), normal teacher on CIFAR-100, as its first author states it for the paper: "
    f"{NASTY_ISSUES}/13; the table itself was not read"
)
_RERUN_13 = (
    f"a user's run of Nasty Teacher's code, unchanged, torch 1.4: {NASTY_ISSUES}/13; not the paper's number"
)
_RERUN_14 = f"a user's run of Nasty Teacher's code, unchanged: {NASTY_ISSUES}/14; not the paper's number"

PRINTED: tuple[Printed, ...] = (
    Printed("cifar100", "teacher", "resnet18", None, 0.7744, _AUTHOR, True),
    Printed("cifar100", "teacher", "resnet50", None, 0.7812, _AUTHOR, True),
    Printed("cifar100", "teacher", "resnet18", None, 0.78085, _RERUN_13, False),
    Printed("cifar100", "teacher", "resnet50", None, 0.76681, _RERUN_13, False),
    Printed("cifar100", "from_nasty", "resnext29", "resnet18", 0.7383, _RERUN_14, False),
    Printed("cifar100", "from_nasty", "resnext29", "shufflenetv2", 0.6482, _RERUN_14, False),
    Printed("cifar100", "from_nasty", "resnext29", "resnext29", 0.7987, _RERUN_14, False),
)

# --- what to say where there is no number ---

# paper -> the data sets it uses; SDB's are those of its abstract page, https://ri.k117.org, and of its one file
USES = {"Nasty Teacher": ("cifar10", "cifar100", "tiny_imagenet"), "SDB": ("cifar10", "cifar100")}
# row -> the papers that have such a network or student
WHOSE = {
    "teacher": ("Nasty Teacher", "SDB"),
    "nasty": ("Nasty Teacher", "SDB"),
    "sdb.keyless": ("SDB",),
    "sdb.keyed": ("SDB",),
    "sdb.wrong_key": ("SDB",),
    "alone": ("Nasty Teacher", "SDB"),
    "from_teacher": ("Nasty Teacher", "SDB"),
    "from_nasty": ("Nasty Teacher", "SDB"),
    "from_sdb.keyless": ("SDB",),
    "from_sdb.keyed": ("SDB",),
    "from_sdb.wrong_key": ("SDB",),
}


def printed_for(dataset: str, row: str, teacher: str | None, student: str | None) -> list[Printed]:
    """What others print for one cell: the paper's first."""
    found = [
        each
        for each in PRINTED
        if (each.dataset, each.row, each.teacher, each.student) == (dataset, row, teacher, student)
    ]
    return sorted(found, key=lambda each: not each.paper)


def silence(dataset: str, row: str) -> str:
    """What to say of a row for which we know no printed number."""
    if "decoy" in row:
        return "nothing: it is ours"
    if row == "label_smoothing":
        return "nothing: the bar is that of CMIM, arXiv 2507.00012"
    papers = [paper for paper in WHOSE[row] if dataset in USES[paper]]
    return f"not read: the tables of {' and '.join(papers)}" if papers else "nothing: not their data"
