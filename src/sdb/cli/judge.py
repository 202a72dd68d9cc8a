"""evaluate, trace: the commands that look at models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sdb.cli.shell import KeyOption, Network, OtherClassNames, json_object, print_json, say
from sdb.errors import ConfigError
from sdb.runtime import json_text


def evaluate(
    path: Annotated[Path, typer.Argument(help="Run folder, checkpoint or box.")],
    key: KeyOption = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Architecture of bare weights (*.tar): sdb params model_name."),
    ] = None,
    model_args: Annotated[str | None, typer.Option(metavar="JSON", help="Its arguments, a JSON object.")] = None,
    network: Network = None,
    dataset: Annotated[str | None, typer.Option(help="Data set, where PATH does not say it.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    other_class_names: OtherClassNames = False,
) -> None:
    """Print what test images show as JSON: accuracy, calibration error, Brier score; of a box also levels and bits."""
    from sdb.runs.jobs import evaluate_job

    arguments = json_object("--model-args", model_args) if model_args is not None else {}
    if model_args is not None and model is None:
        raise ConfigError("--model-args: arguments of which architecture? Add --model NAME")
    result = evaluate_job(
        path,
        key_file=key,
        model_name=model,
        model_args=arguments,
        network=network,
        dataset=dataset,
        data_root=data_root,
        device=device,
        other_class_names=other_class_names,
    )
    print_json(result)


def trace(
    suspect: Annotated[
        str,
        typer.Argument(
            help="What may be a copy: run folder, checkpoint or box; for ties also a .onnx file, an address of the "
            "Open Inference Protocol, or package.module:factory."
        ),
    ],
    owner_file: Annotated[Path, typer.Option("--owner", metavar="FILE", help="The owner's file.")],
    box_path: Annotated[
        Path | None, typer.Option("--box", metavar="BOX", help="Look for the decoys of this box.")
    ] = None,
    ledger: Annotated[
        list[Path] | None,
        typer.Option(metavar="DB", help="Look for accounts' ties in this ledger; again for each server's."),
    ] = None,
    commitment: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="What sdb ledger commit wrote before; one per ledger, in their order."),
    ] = None,
    account: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Test this account alone (a token's name, or an id); again for more."),
    ] = None,
    tokens: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The token file, for accounts' names.")
    ] = None,
    budget: Annotated[int | None, typer.Option(min=1, help="Questions about ties at most.")] = None,
    queries: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Queries that you keep yourself, where the ledger has digests alone: .npy, or .jsonl of texts; again "
            "for more.",
        ),
    ] = None,
    token_env: Annotated[
        str | None, typer.Option(metavar="VARIABLE", help="Environment variable with the token for an address.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(metavar="PATH", help="The teacher: which classes look alike then counts less.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Data set, where BOX does not say it.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    reveal: Annotated[
        bool, typer.Option("--reveal", help="Also print the decoys, which are your secret.")
    ] = False,
    other_class_names: OtherClassNames = False,
    network: Network = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all rows here; - for stdout.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="HTML", help="Write a page about ties, with a plot, here.")
    ] = None,
) -> None:
    """Look for a mark in a suspect: a box's decoys (--box), or the ties that accounts were told (--ledger).

    Prints one sentence with an exact p-value, and a short table. Exits with 0 either way.
    """
    if box_path is None and not ledger:
        raise ConfigError("which mark? Give --box BOX for decoys, or --ledger DB for accounts' ties")
    of_decoys = {
        "--reference": reference,
        "--dataset": dataset,
        "--data-root": data_root,
        "--reveal": reveal or None,
    }
    of_ties = {
        "--commitment": commitment,
        "--account": account,
        "--tokens": tokens,
        "--budget": budget,
        "--queries": queries,
        "--token-env": token_env,
        "--report": report,
    }
    for options, flag, missing in (
        (of_decoys, "--box BOX", box_path is None),
        (of_ties, "--ledger DB", not ledger),
    ):
        if missing and (given := [name for name, value in options.items() if value]):
            raise ConfigError(f"{given[0]}: goes with {flag}")
    from sdb.runtime import write_atomic

    values: dict[str, Any] = {}
    lines: list[str] = []
    if box_path is not None:
        from sdb.runs.jobs import trace_job

        result = trace_job(
            Path(suspect),
            box_path=box_path,
            owner_file=owner_file,
            reference_path=reference,
            dataset=dataset,
            data_root=data_root,
            device=device,
            reveal=reveal,
            other_class_names=other_class_names,
            network=network,
        )
        values |= result.to_json()
        say(result.sentence())
        lines += result.lines()
    if ledger:
        from sdb.runs.ties import trace_ties_job

        names = {}
        if tokens is not None:
            from sdb.service.watch import TokenFile

            names = {row.principal.account: row.principal.name for row in TokenFile(tokens).rows()}
        found = trace_ties_job(
            suspect,
            ledgers=ledger,
            commitments=commitment or (),
            owner_file=owner_file,
            accounts=account or (),
            names=names,
            budget=budget,
            network=network,
            device=device,
            token_env=token_env,
            queries=queries or (),
        )
        values |= {"ties": found.to_json(names)}
        say(found.sentence(names))
        lines += found.lines(names)
        if report is not None:
            from sdb.report.trace_page import write_trace_page

            write_trace_page(values["ties"], found.sentence(names), suspect, report)
    if json_file == Path("-"):
        print_json(values)
        return
    if json_file is not None:
        write_atomic(json_file, (json_text(values, indent=1) + "\n").encode(), mode=0o600 if reveal else 0o644)
    for line in lines:
        typer.echo(line)
