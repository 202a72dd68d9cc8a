"""guard: the commands that put levels, decoys and ties in front of a model that is already served."""

from __future__ import annotations

import os
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
from sdb.cli.shell import Overwrite, print_json, say
from sdb.errors import ConfigError, MissingExtraError

guard_app = typer.Typer(
    help="Guard a model that already answers, without training and without its weights.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
ServedModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="Where NPZ holds inputs: http://HOST:PORT/v2/models/NAME, an ONNX file, or package.module:function.",
    ),
]
ServedOutput = Annotated[
    str | None, typer.Option("--output", metavar="NAME", help="The output of a served model that has several.")
]
TokenVariable = Annotated[
    str | None,
    typer.Option(
        "--token-env", metavar="VARIABLE", help="Environment variable with the token for a served model."
    ),
]
GuardFolder = Annotated[Path, typer.Argument(metavar="GUARD", help="The guard's folder.")]


@guard_app.command("new")
def guard_new(
    calibration: Annotated[
        Path,
        typer.Argument(
            metavar="NPZ",
            help="numpy.savez(FILE, outputs=..., labels=...), of examples that the model did not learn.",
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="GUARD", help="The folder to make.")],
    owner_file: Annotated[Path, typer.Option("--owner", metavar="FILE", help="The owner's file: sdb key owner.")],
    partner: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Opens for this partner's key; again for more.")
    ] = None,
    model: ServedModel = None,
    output: ServedOutput = None,
    token_env: TokenVariable = None,
    levels: Annotated[int, typer.Option(help="Levels of confidence that everyone is told, at most.")] = 2,
    bits: Annotated[float, typer.Option(help="What an answer may say beyond its class, on average.")] = 1.2,
    tie_budget: Annotated[float, typer.Option(help="Accuracy that ties may cost, a fraction of answers.")] = 0.001,
    version: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The model's version; answers of others are refused.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Make a guard from labelled examples, and say what it will answer."""
    from sdb.runs.guards import new_guard

    made = new_guard(
        calibration,
        out=out,
        owner_file=owner_file,
        partners=partner or (),
        model=model,
        output=output,
        token_env=token_env,
        levels=levels,
        bits=bits,
        tie_budget=tie_budget,
        version=version,
        overwrite=overwrite,
    )
    for line in made.summary().splitlines():
        say(line)
    say(f"wrote {out}; next: sdb guard serve {out} --upstream URL --model NAME --output NAME")


@guard_app.command("show")
def guard_show(guard: GuardFolder) -> None:
    """Say what a guard answers, as JSON."""
    from dataclasses import asdict

    from sdb.answers.guard import Guard

    loaded = Guard.load(guard)
    say(loaded.summary())
    print_json(asdict(loaded.info))


@guard_app.command("audit")
def guard_audit(
    guard: GuardFolder,
    examples: Annotated[
        Path,
        typer.Argument(
            metavar="NPZ",
            help="numpy.savez(FILE, inputs=..., labels=...), of examples that neither model nor guard has seen; with "
            "outputs=..., the model is not asked.",
        ),
    ],
    model: ServedModel = None,
    output: ServedOutput = None,
    token_env: TokenVariable = None,
    student: Annotated[
        str | None,
        typer.Option(
            metavar="STUDENT",
            help="ngrams (texts), mlp or trees (tables), or package.module:factory, a function from a seed to a "
            "student; by default ngrams or mlp.",
        ),
    ] = None,
    pairs: Annotated[int, typer.Option(help="Draws of a student's few examples.")] = 12,
    few: Annotated[int, typer.Option(help="Labelled examples of each class that a student has.")] = 15,
    seed: Annotated[int, typer.Option(help="Of draws and students.")] = 0,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write what was found, as JSON.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
) -> None:
    """Measure what a thief gains from a guard, beside what the bare model gives.

    Exits with 0 where every promise is established, and with 1 where one is broken or not settled, or nothing was at
    stake; the first lines say which.
    """
    from sdb.audit.guard_job import guard_audit_job
    from sdb.report.judgement import Judgement
    from sdb.training.progress import ShowTasks

    progress = ShowTasks("guard audit")
    try:
        found = guard_audit_job(
            guard,
            examples,
            model=model,
            output=output,
            token_env=token_env,
            student=student,
            pairs=pairs,
            few=few,
            seed=seed,
            out=out,
            overwrite=overwrite,
            on_progress=progress.on_progress,
        )
    finally:
        progress.close()
    for line in found.summary().splitlines():
        say(line)
    say(f"{found.seconds:.0f} s" + ("" if out is None else f"; wrote {out}"))
    if found.judged.judgement is not Judgement.ESTABLISHED:
        raise typer.Exit(1)


@guard_app.command("serve")
def guard_serve(
    guard: GuardFolder,
    upstream: Annotated[str, typer.Option(metavar="URL", help="The server behind it, http://HOST:PORT.")],
    model: Annotated[str, typer.Option(metavar="NAME", help="Its model that is guarded.")],
    output: Annotated[str, typer.Option(metavar="NAME", help="The output of it that is answered.")],
    upstream_grpc: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="That server's gRPC, with --grpc-port; TLS: grpcs://..."),
    ] = None,
    grpc_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Also answer gRPC here; 0 for any that is free.")
    ] = None,
    upstream_token_env: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="Environment variable with that server's token.")
    ] = None,
    single: Annotated[
        bool, typer.Option("--single", help="Inputs have no dimension of examples: a request is one example.")
    ] = False,
    pass_model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Another model of that server, passed on as it is; again for more."),
    ] = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    allowed_host: AllowedHost = None,
    max_batch: Annotated[int, typer.Option(min=1, help="Examples in one request.")] = 256,
    max_body: Annotated[int, typer.Option(min=1, help="MiB of one request.")] = 64,
    timeout: Annotated[float, typer.Option(help="Seconds for the model's whole answer.")] = 30.0,
    tokens: Tokens = None,
    watch: WatchStore = None,
    budgets: Budgets = None,
    ties: TiesFile = None,
    ledger: LedgerFile = None,
) -> None:
    """Answer for a model of another server, over the Open Inference Protocol v2.

    Everyone gets the class, an honest level of confidence and decoys; who holds a partner's token gets the model's own
    answers. Until Ctrl-C or SIGTERM.
    """
    check_marks(ties, ledger)
    if (upstream_grpc is None) != (grpc_port is None):
        raise ConfigError("--upstream-grpc and --grpc-port go together: gRPC is passed on as gRPC")
    if model in (others := frozenset(pass_model or ())):
        raise ConfigError(f"--pass-model {model!r} is the guarded model: nobody but partners may ask it as it is")
    if upstream_token_env is not None and not os.environ.get(upstream_token_env):
        raise ConfigError(f"--upstream-token-env: {upstream_token_env} is not set")
    try:
        from sdb.service.gateway import Gateway, Served, build_gateway
        from sdb.service.run import is_loopback
        from sdb.service.run import serve as run
    except ImportError as error:
        raise MissingExtraError(error.name or "aiohttp", "guard", "sdb guard serve") from None
    from sdb.answers.guard import Guard
    from sdb.config.address import Address
    from sdb.service.limits import RequestLimits
    from sdb.service.reloading import follow
    from sdb.service.upstream import Upstream, described

    loaded = Guard.load(guard)
    address = Address.parse(f"{upstream.rstrip('/')}/v2/models/{model}")
    token = None if upstream_token_env is None else os.environ[upstream_token_env]
    behind = Upstream(address, timeout, max_body * 2**20, token)
    for line in described(behind, output):
        say(line)
    limits, beside = RequestLimits(timeout=timeout), None
    if upstream_grpc is not None:
        from sdb.service.grpc_gateway import GrpcGateway

        where = f"[{host}]" if ":" in host else host

        def beside(gateway: Gateway, target: str = upstream_grpc) -> GrpcGateway:
            said = f"guarding {model} by gRPC at {where}"
            return GrpcGateway(gateway, target, f"{where}:{grpc_port}", timeout, lambda at: say(f"{said}:{at}"))

    with opened(tokens=tokens, watch=watch, budgets=budgets, ties=ties, ledger=ledger) as known:
        app = build_gateway(
            loaded,
            behind,
            Served(model, output, not single, max_batch, max_body * 2**20, others),
            watch=known.watch,
            limits=limits,
            allowed_hosts=(allowed_host or ()) if allowed_host or is_loopback(host) else None,
            ties=known.ties,
            ledger=known.ledger,
            beside=beside,
            follow=lambda gateway: follow(guard, gateway, say),
        )
        advice = "" if is_loopback(host) else "; others can reach it, unencrypted: put a TLS proxy in front"
        run(app, host, port, limits, lambda url: say(f"guarding {model} at {url} (stop: Ctrl-C){advice}"))
