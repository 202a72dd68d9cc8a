"""The command line: parse, call the library, print. No logic of its own.

Talk goes to stderr, data to stdout.

Exit codes: 0 done, 1 an audit did not establish every promise, 2 something the user can
mend (one line says what), 3 a box is kept that is less accurate than was asked for, 130
interrupted.
"""

from __future__ import annotations

import logging

import typer

from sdb.cli import (
    audit,
    export,
    grid,
    guard,
    judge,
    keys,
    ledger,
    marks,
    params,
    report,
    reproduce,
    runs,
    serve,
    tokens,
)
from sdb.cli.examples import example
from sdb.cli.shell import say
from sdb.errors import SDBError

app = typer.Typer(
    help="Safe Distillation Box: everyone can run the model, only key holders can distil it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (
    *(params.init, runs.check, params.params),
    *(runs.train, runs.wrap, runs.distill, judge.evaluate, judge.trace, runs.demo),
    *(export.export, export.sign, export.verify, audit.audit, marks.audit_marks, grid.grid, reproduce.reproduce),
    serve.serve,
):
    app.command(epilog=example(command.__name__.replace("_", "-")))(command)
app.add_typer(keys.key_app, name="key")
app.add_typer(tokens.token_app, name="token")
app.add_typer(ledger.ledger_app, name="ledger")
app.add_typer(guard.guard_app, name="guard")
app.add_typer(report.report_app, name="report")


def main() -> int:
    """Entry point."""
    return run_app(app)


def run_app(app: typer.Typer) -> int:
    """Run commands: one line and exit code 2 for what a user can mend; bugs keep their traceback."""
    # Also while a run's training.log is open, which would take warnings away from the user.
    warnings = logging.StreamHandler()
    warnings.setLevel(logging.WARNING)
    logging.getLogger("sdb").addHandler(warnings)
    try:
        app(standalone_mode=True)
    except SDBError as error:
        say(f"sdb: {' '.join(str(error).split())}")
        return 2
    except KeyboardInterrupt:
        say("sdb: interrupted")
        return 130
    return 0
