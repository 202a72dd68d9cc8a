"""evaluate, trace: the commands that look at models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    suspect: Annotated[Path, typer.Argument(help="Run folder, checkpoint or box that may be a copy.")],
    box_path: Annotated[Path, typer.Option("--box", metavar="BOX", help="The decoy box.")],
    owner_file: Annotated[Path, typer.Option("--owner", metavar="FILE", help="The owner's file.")],
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
) -> None:
    """Look for a box's mark in a suspect.

    Prints one sentence with an exact p-value, and a short table. Exits with 0 either way.
    """
    from sdb.runs.jobs import trace_job
    from sdb.runtime import write_atomic

    result = trace_job(
        suspect,
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
    values, to_stdout = result.to_json(), json_file == Path("-")
    if json_file is not None and not to_stdout:
        write_atomic(json_file, (json_text(values, indent=1) + "\n").encode(), mode=0o600 if reveal else 0o644)
    say(result.sentence())
    if to_stdout:
        print_json(values)
        return
    typer.echo(f"log10 p      {result.log10_p:.1f}, marked below {values['threshold_log10_p']:g}")
    typer.echo(f"decoys       {result.found} of {result.total} stand first among their class's candidates")
    typer.echo(f"rank sum     {result.statistic}, {result.expected:.1f} expected without the box")
    typer.echo(f"images       {result.images} of {len(result.table)} classes")
    if reveal:
        for row in result.table:
            typer.echo(f"{row.name:<12} decoys {row.chosen}, ranks {row.ranks} of {row.candidates}")
