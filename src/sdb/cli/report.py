"""report show, table, compare: what an audit's claim says, as a page, a table, and beside another one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdb.cli.shell import say

report_app = typer.Typer(help="Read what `sdb audit` wrote.", no_args_is_help=True)

Claim = Annotated[Path, typer.Argument(metavar="CLAIM", help="An audit's claim, a JSON file.")]


@report_app.command()
def show(
    claim: Claim,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The page; beside the claim unless said.")
    ] = None,
) -> None:
    """Write a claim's report as one HTML page, and say its verdict."""
    from sdb.errors import ConfigError
    from sdb.report.audit_page import write_audit_report
    from sdb.report.audit_verdict import judge
    from sdb.report.audit_words import summary
    from sdb.report.claim import load_claim

    checked = load_claim(claim)
    page = out if out is not None else claim.with_suffix(".html")
    if page.exists() and page.samefile(claim):
        raise ConfigError(f"--out {page} is the claim itself; name another file")
    write_audit_report(checked, page)
    say(f"{summary(checked, judge(checked))}. Report: {page}")


@report_app.command()
def table(claim: Claim) -> None:
    """Print a claim as a Markdown table: attacks as rows, defences as columns."""
    from sdb.report.claim import load_claim
    from sdb.report.markdown import markdown_table

    typer.echo(markdown_table(load_claim(claim)), nl=False)


@report_app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="An audit's claim.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
) -> None:
    """Print as Markdown what differs between two audits: settings, cells beyond their intervals, verdicts."""
    from sdb.report.claim import load_claim
    from sdb.report.compare import compare as compare_claims
    from sdb.report.compare import comparison_text

    result = compare_claims(load_claim(first), load_claim(second))
    typer.echo(comparison_text(result, (str(first), str(second))), nl=False)
