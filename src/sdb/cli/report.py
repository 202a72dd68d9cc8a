"""report show, table, compare: what an audit's claim says, as a page, a table, and beside another one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdb.cli.shell import say

report_app = typer.Typer(help="Read what `sdb audit` and `sdb demo` wrote.", no_args_is_help=True)

ClaimFile = Annotated[Path, typer.Argument(metavar="CLAIM", help="An audit's claim, a JSON file.")]
Shown = Annotated[
    Path, typer.Argument(metavar="FILE", help="An audit's claim or a demo's record, a JSON file, or its folder.")
]


def page_of(file: Path) -> Path:
    """The page of a claim or record: as the command that wrote it names it, else after the file."""
    from sdb.report.files import SHOWN

    if file.is_dir():
        return file / "report.html"
    return file.with_name("report.html") if file.name in SHOWN else file.with_suffix(".html")


@report_app.command()
def show(
    file: Shown,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="PAGE", help="The page; beside FILE unless said.")
    ] = None,
) -> None:
    """Write the report of a claim or of a demo's record as one HTML page, and say its verdict."""
    from sdb.errors import ConfigError
    from sdb.report.audit_page import write_audit_report
    from sdb.report.audit_verdict import judge as judge_claim
    from sdb.report.audit_words import summary
    from sdb.report.claim import Claim
    from sdb.report.files import load_shown
    from sdb.report.page import write_report
    from sdb.report.verdict import judge as judge_record

    shown = load_shown(file)
    page = out if out is not None else page_of(file)
    if page.exists() and page.samefile(file):
        raise ConfigError(f"--out {page} is the file itself that is shown; name another one")
    if isinstance(shown, Claim):
        write_audit_report(shown, page)
        text = summary(shown, judge_claim(shown))
    else:
        write_report(shown, page)
        text = judge_record(shown).summary
    say(f"{text}. Report: {page}")


@report_app.command()
def table(claim: ClaimFile) -> None:
    """Print a claim as a Markdown table: attacks as rows, defences as columns."""
    from sdb.report.files import load_claim
    from sdb.report.markdown import markdown_table

    typer.echo(markdown_table(load_claim(claim)), nl=False)


@report_app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="An audit's claim.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
) -> None:
    """Print as Markdown what differs between two audits: settings, cells beyond their intervals, verdicts."""
    from sdb.report.compare import compare as compare_claims
    from sdb.report.compare import comparison_text
    from sdb.report.files import load_claim

    result = compare_claims(load_claim(first), load_claim(second))
    typer.echo(comparison_text(result, (str(first), str(second))), nl=False)
