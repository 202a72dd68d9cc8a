"""serve: the command that answers others' requests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdb.cli.shell import Network, say
from sdb.errors import ConfigError, MissingExtraError


def serve(
    box: Annotated[
        Path,
        typer.Argument(metavar="BOX", help="Box, run folder that holds one, or a checkpoint of a classifier."),
    ],
    onnx: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Answer by this file of sdb export; again for each partner's."),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="torch or onnx; follows from --onnx where it is left out.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any that is free.")] = 8000,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A name of this server, where a proxy on this machine passes it on."),
    ] = None,
    name: Annotated[str, typer.Option(help="The model's name in URLs.")] = "box",
    answers: Annotated[
        str, typer.Option(help="What is given away: logits, probabilities, top_k or labels.")
    ] = "logits",
    max_batch: Annotated[int, typer.Option(min=1, help="Images in one forward, and in one request.")] = 256,
    max_queue: Annotated[int, typer.Option(min=1, help="Images that may wait; beyond it answers are 503.")] = 1024,
    timeout: Annotated[float, typer.Option(help="Seconds that a request may wait before it is 503.")] = 10.0,
    partner_keys: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Key of a weight-key box's partner, whose token then gets knowledge."),
    ] = None,
    tokens: Annotated[Path | None, typer.Option(metavar="FILE", help="Who has a token: see sdb token.")] = None,
    watch: Annotated[
        str | None,
        typer.Option(metavar="DB", help="Count and limit requests: an SQLite file, or redis://HOST/N."),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What ordinary images look like: sdb token profile makes it."),
    ] = None,
    budgets: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON of budgets and rates, see docs/aisvs.md.")
    ] = None,
    alerts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the watch's alerts here, not on stderr.")
    ] = None,
    ties: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Mark near ties by account: sdb ledger new makes it.")
    ] = None,
    ledger: Annotated[
        Path | None, typer.Option(metavar="DB", help="Keep what accounts are told on ties: sdb ledger new.")
    ] = None,
    network: Network = None,
    device: Annotated[str, typer.Option(help="For torch: auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Serve BOX over the Open Inference Protocol v2.

    Until Ctrl-C or SIGTERM; what was accepted is answered first.
    """
    if engine not in (None, "torch", "onnx") or (engine is not None and (engine == "onnx") != bool(onnx)):
        raise ConfigError(
            f"--engine {engine}: give onnx with --onnx FILE (sdb export makes one), or torch without"
        )
    if partner_keys and tokens is None:
        raise ConfigError("--partner-keys without --tokens FILE: nobody could say who the partner is")
    if (ties is None) != (ledger is None):
        raise ConfigError(
            "--ties and --ledger go together: what is told on ties and not kept can be traced by nobody"
        )
    try:
        from sdb.service.run import is_loopback
        from sdb.service.run import serve as run
    except ImportError as error:
        raise MissingExtraError(error.name or "uvicorn", "serve", "sdb serve") from None
    from sdb.service import create_app
    from sdb.service.limits import RequestLimits

    watcher = None
    if watch is not None or tokens is not None:
        from sdb.service.watch import LimitSet, Watch

        allowed = None if budgets is None else LimitSet.load(budgets)
        watcher = Watch.open(watch, tokens=tokens, limits=allowed, profile=profile, alerts=alerts)
    elif alerts is not None or profile is not None or budgets is not None:
        raise ConfigError(
            "--alerts, --profile and --budgets are the watch's: give --watch DB or --tokens FILE too"
        )
    coins = kept = None
    if ties is not None and ledger is not None:
        from sdb.answers.ledger import Ledger
        from sdb.answers.ties import Ties

        coins, kept = Ties.load(ties), Ledger(ledger, writing=True)
    limits = RequestLimits(max_batch=max_batch, max_queue=max_queue, timeout=timeout)
    try:
        app = create_app(
            box,
            name=name,
            onnx=onnx or (),
            partner_keys=partner_keys or (),
            watch=watcher,
            answers=answers,
            limits=limits,
            # A page on the internet can have its own name lead to this machine; what others reach has many names.
            allowed_hosts=(allowed_host or ()) if allowed_host or is_loopback(host) else None,
            ties=coins,
            ledger=kept,
            network=network,
            device=device,
        )
        advice = "" if is_loopback(host) else "; others can reach it, unencrypted: put a TLS proxy in front"
        run(app, host, port, limits, lambda url: say(f"serving {name} at {url} (stop: Ctrl-C){advice}"))
    finally:
        if kept is not None:
            kept.close()
        if watcher is not None:
            watcher.close()
