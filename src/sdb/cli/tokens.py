"""token: the commands that say who may ask a served box, and how ordinary requests look."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sdb.cli.shell import Network, OtherClassNames, print_json, say

token_app = typer.Typer(
    help="Who may ask a served box, and how much.", no_args_is_help=True, rich_markup_mode=None
)
Tokens = Annotated[Path, typer.Option("--tokens", metavar="FILE", help="The token file, an SQLite file.")]


@token_app.command("new")
def token_new(
    name: Annotated[str, typer.Argument(help="Who gets it; appears in alerts and counts.")],
    tokens: Tokens,
    partner: Annotated[
        str, typer.Option(metavar="KEY_ID", help="The partner's key id (sdb key show FILE): may distil.")
    ] = "",
    answers: Annotated[
        str | None, typer.Option(help="logits, probabilities, top_k or labels, in place of the server's.")
    ] = None,
    images_total: Annotated[int | None, typer.Option(help="Images answered at most, ever.")] = None,
    images_day: Annotated[int | None, typer.Option(help="Images answered at most in a day (UTC).")] = None,
    rate: Annotated[float | None, typer.Option(help="Images per second, on average.")] = None,
    burst: Annotated[int | None, typer.Option(help="Images at once.")] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="TIME", help="How long it lasts: 12h, 90d or 8w; left out, for good.")
    ] = None,
    no_limits: Annotated[bool, typer.Option("--no-limits", help="No limits but those given here.")] = False,
) -> None:
    """Make a token and print it, once.

    Only its hash is kept. With none of the options for limits the server's limits apply. With one, the others are
    the defaults of docs/aisvs.md, whatever --budgets says.
    """
    from dataclasses import replace

    from sdb.service.watch import Limits, LimitSet, TokenFile
    from sdb.service.watch.tokens import seconds_of

    lasts = None if expires is None else seconds_of(expires)
    given = {"images_total": images_total, "images_day": images_day, "rate": rate, "burst": burst}
    changes = {field: value for field, value in given.items() if value is not None}
    limits = None
    if changes or no_limits:
        usual = LimitSet().partner if partner else LimitSet().named
        limits = replace(Limits() if no_limits else usual, **changes)
    token = TokenFile(tokens, create=True).add(name, partner, answers, limits, lasts)
    say(f"{tokens}: token for {name}. It is shown this once; hand it over in a safe way.")
    print_json({"name": name, "token": token})


@token_app.command("list")
def token_list(tokens: Tokens) -> None:
    """Print who has a token, as JSON, without the tokens."""
    from sdb.service.watch import TokenFile

    print_json([row.public() for row in TokenFile(tokens).rows()])


@token_app.command("revoke")
def token_revoke(name: Annotated[str, typer.Argument(help="Whose token ends.")], tokens: Tokens) -> None:
    """End a token for good.

    A running server sees it within two seconds; its requests are anonymous from then on.
    """
    from sdb.service.watch import TokenFile

    TokenFile(tokens).revoke(name)
    say(f"{tokens}: the token of {name} is revoked")


@token_app.command("alerts")
def token_alerts(
    store: Annotated[
        str, typer.Argument(metavar="DB", help="What sdb serve --watch has: a file, or a redis:// URL.")
    ],
) -> None:
    """Print the alerts that a server has kept, as JSON, oldest first."""
    from sdb.errors import StorageError
    from sdb.service.watch.store import open_store

    if "://" not in store and not Path(store).is_file():
        raise StorageError(f"{store}: no such file; sdb serve BOX --watch {store} makes it")
    kept = open_store(store)
    print_json(kept.alerts())
    kept.close()


@token_app.command("profile")
def token_profile(
    box_path: Annotated[Path, typer.Argument(metavar="BOX", help="The box that is served, or its run folder.")],
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to write the profile.")],
    dataset: Annotated[str | None, typer.Option(help="Data set, where BOX does not say it.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Where the data set lies.")] = None,
    other_class_names: OtherClassNames = False,
    network: Network = None,
) -> None:
    """Write what ordinary questions to BOX look like, for its server's detector.

    Statistics of the validation images and of the box's answers to them; no image is kept.
    """
    import numpy as np
    import torch

    from sdb.box.box import Box
    from sdb.box.load import load_model
    from sdb.models.checkpoint import check_fits
    from sdb.runs.resolve import described_data
    from sdb.service.watch.detector import FEWEST_GOOD, MOST_USED, fit_profile

    model = load_model(box_path, network).eval()
    data = described_data(box_path, dataset, data_root, model)
    classifier = model.classifier if isinstance(model, Box) else model
    check_fits(classifier, box_path, data.num_classes, data.image_shape, data.class_names, other_class_names)
    parts = [data.validation]
    if len(data.validation) < FEWEST_GOOD:
        say(f"{len(data.validation)} validation images are few: training images are used too")
        parts.append(data.train)
    pixels = np.concatenate([np.asarray(part.take(np.arange(min(len(part), MOST_USED))).images) for part in parts])
    images = pixels[:MOST_USED].astype(np.float32) / 255
    with torch.no_grad():
        logits = np.concatenate(
            [model(torch.from_numpy(some)).numpy() for some in np.array_split(images, -(-len(images) // 64))]
        )
    profile = fit_profile(images, logits, coverage_images=len(data.train))
    profile.save(out)
    thresholds = ", ".join(f"{name} {value:.2f}" for name, value in profile.thresholds.items())
    say(f"{out}: profile of {len(images)} images; thresholds {thresholds}")
