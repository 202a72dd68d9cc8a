"""ledger: the commands for what accounts are told on near ties, by which copies are traced."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdb.cli.shell import Network, OtherClassNames, print_json, say
from sdb.errors import ConfigError, StorageError

ledger_app = typer.Typer(
    help="Mark answers by account, and keep what was told.", no_args_is_help=True, rich_markup_mode=None
)
LedgerFile = Annotated[Path, typer.Argument(metavar="LEDGER", help="The ledger, an SQLite file.")]


@ledger_app.command("new")
def ledger_new(
    box_path: Annotated[
        Path, typer.Argument(metavar="BOX", help="The box that is served (or its run folder), or a guard.")
    ],
    out: Annotated[Path, typer.Option(metavar="DB", help="The ledger to make.")],
    ties_file: Annotated[
        Path,
        typer.Option(
            "--ties",
            metavar="FILE",
            help="Where to write the ties' secret, for the server; a second server's ledger may name the first's.",
        ),
    ],
    owner_file: Annotated[Path, typer.Option("--owner", metavar="FILE", help="The owner's file.")],
    budget: Annotated[float, typer.Option(help="Accuracy that ties may cost, a fraction of all answers.")] = 0.001,
    digests: Annotated[
        bool, typer.Option("--digests", help="Keep digests of queries alone: you keep the queries elsewhere.")
    ] = False,
    days: Annotated[int, typer.Option(help="How long queries are kept.")] = 365,
    cap: Annotated[int, typer.Option(help="Queries kept per account.")] = 5000,
    dataset: Annotated[str | None, typer.Option(help="Data set, where BOX does not say it.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
    other_class_names: OtherClassNames = False,
    network: Network = None,
) -> None:
    """Choose what counts as a tie on validation images, and make BOX's secret of ties and an empty ledger.

    Prints as JSON what ties will cost. Give both files to `sdb serve`.
    """
    from dataclasses import asdict

    from sdb.answers.guard import MANIFEST
    from sdb.runs.ties import new_ledger

    cost, levels = new_ledger(
        box_path,
        out=out,
        ties_file=ties_file,
        owner_file=owner_file,
        budget=budget,
        keep_queries=not digests,
        days=days,
        cap=cap,
        dataset=dataset,
        data_root=data_root,
        other_class_names=other_class_names,
        network=network,
    )
    say(
        f"{100 * cost.share:.1f} % of answers are ties, which cost {100 * cost.cost:.2f} points (95 % interval "
        f"{100 * cost.low:.2f} to {100 * cost.high:.2f}, {cost.images} images)"
    )
    if levels:
        first = levels[0]
        say(
            f"answers of level {first['level']:.0f}, the least sure, are right in "
            f"{100 * first['with_ties']:.1f} % with ties, in {100 * first['without']:.1f} % without"
        )
    serve = "sdb guard serve" if (box_path / MANIFEST).exists() else "sdb serve"
    say(f"serve it: {serve} {box_path} --tokens TOKENS --ties {ties_file} --ledger {out}")
    print_json(asdict(cost) | {"levels": levels})


@ledger_app.command("show")
def ledger_show(path: LedgerFile) -> None:
    """Print as JSON what a ledger is of, and how many entries each account has."""
    from collections import Counter
    from dataclasses import asdict

    from sdb.answers.ledger import Ledger

    ledger = Ledger(path)
    entries = ledger.entries()
    counts = Counter(entry.account for entry in entries if entry.account is not None)
    queries = sum(entry.sealed is not None for entry in entries)
    erased = sum(entry.account is None for entry in entries)
    numbers = {"entries": len(entries), "queries": queries, "erased": erased, "accounts": dict(counts)}
    print_json(asdict(ledger.terms) | numbers)
    ledger.close()


@ledger_app.command("commit")
def ledger_commit(
    path: LedgerFile,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write the commitment.")],
) -> None:
    """Fix the secret, the margin and all entries so far, before a suspect is asked; print the digest to lodge."""
    from sdb.answers.ledger import Ledger
    from sdb.tracing.ties import Commitment

    if out.exists():
        raise StorageError(f"{out} exists; a commitment is not overwritten: choose another name")
    ledger = Ledger(path)
    commitment = Commitment.of(ledger)
    ledger.close()
    commitment.save(out)
    say(f"{out}: {commitment.entries} entries. Lodge or time-stamp this digest before you ask a suspect:")
    typer.echo(commitment.digest)


@ledger_app.command("erase")
def ledger_erase(
    path: LedgerFile,
    account: Annotated[str | None, typer.Option(help="Id of the account, as show has it.")] = None,
    token: Annotated[str | None, typer.Option(metavar="NAME", help="Name of its token, with --tokens.")] = None,
    tokens: Annotated[Path | None, typer.Option(metavar="FILE", help="The token file.")] = None,
) -> None:
    """Forget an account: its queries and answers are gone, their digests stay in the chain."""
    from sdb.answers.ledger import Ledger
    from sdb.service.watch import TokenFile

    if (account is None) == (token is None) or (token is None) != (tokens is None):
        raise ConfigError("whose entries? Give --account ID, or --token NAME with --tokens FILE")
    if token is not None and tokens is not None:
        names = {row.principal.name: row.principal.account for row in TokenFile(tokens).rows()}
        if token not in names:
            raise ConfigError(f"{tokens} has no token {token!r}: sdb token list --tokens {tokens}")
        account = names[token]
    ledger = Ledger(path)
    done = ledger.erase(account or "")
    ledger.close()
    if not done:
        raise ConfigError(f"{path} has no entries of this account: sdb ledger show {path}")
    say(f"{path}: {done} entries erased")
