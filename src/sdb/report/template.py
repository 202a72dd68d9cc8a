"""Templates of pages: one environment for all, strict and escaping, and the style sheets that go into a page."""

from enum import StrEnum
from importlib.resources import files

import jinja2
from markupsafe import Markup

from sdb.report.judgement import Judgement


class Tone(StrEnum):
    """The colour of a card or a verdict, a class of the style sheet."""

    KEPT = "kept"
    OPEN = "open"
    BROKEN = "broken"


TONES = {
    Judgement.ESTABLISHED: Tone.KEPT,
    Judgement.BROKEN: Tone.BROKEN,
    Judgement.NOT_SETTLED: Tone.OPEN,
    Judgement.NOTHING_AT_STAKE: Tone.OPEN,
}


def pages_of(room: str) -> jinja2.Environment:
    """The templates of a room of this package, `report` or another."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("sdb", room),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def style(*names: str) -> Markup:
    """Style sheets of ours, one after the other; what else goes into a page is escaped."""
    return Markup("".join(files("sdb.report").joinpath(name).read_text(encoding="utf-8") for name in names))  # noqa: S704
