"""serve: the command that answers others' requests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdb.cli.serving import (
    AllowedHost,
    Budgets,
    Host,
    LedgerFile,
    Port,
    TiesFile,
    Tokens,
    WatchStore,
    check_marks,
    opened,
)
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
    host: Host = "127.0.0.1",
    port: Port = 8000,
    allowed_host: AllowedHost = None,
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
    tokens: Tokens = None,
    watch: WatchStore = None,
    profile: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What ordinary images look like: sdb token profile makes it."),
    ] = None,
    budgets: Budgets = None,
    alerts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the watch's alerts here, not on stderr.")
    ] = None,
    ties: TiesFile = None,
    ledger: LedgerFile = None,
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
    check_marks(ties, ledger)
    try:
        from sdb.service.run import is_loopback
        from sdb.service.run import serve as run
    except ImportError as error:
        raise MissingExtraError(error.name or "uvicorn", "serve", "sdb serve") from None
    from sdb.service import create_app
    from sdb.service.limits import RequestLimits

    limits = RequestLimits(max_batch=max_batch, max_queue=max_queue, timeout=timeout)
    with opened(
        tokens=tokens, watch=watch, budgets=budgets, ties=ties, ledger=ledger, profile=profile, alerts=alerts
    ) as known:
        app = create_app(
            box,
            name=name,
            onnx=onnx or (),
            partner_keys=partner_keys or (),
            watch=known.watch,
            answers=answers,
            limits=limits,
            # A page on the internet can have its own name lead to this machine; what others reach has many names.
            allowed_hosts=(allowed_host or ()) if allowed_host or is_loopback(host) else None,
            ties=known.ties,
            ledger=known.ledger,
            network=network,
            device=device,
        )
        advice = "" if is_loopback(host) else "; others can reach it, unencrypted: put a TLS proxy in front"
        run(app, host, port, limits, lambda url: say(f"serving {name} at {url} (stop: Ctrl-C){advice}"))
