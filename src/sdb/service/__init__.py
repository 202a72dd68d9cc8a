"""The service: a box behind the Open Inference Protocol v2, as an ASGI application. No training, no attacks.

    app = sdb.service.create_app("model.box")          # any ASGI host can mount it
    sdb serve model.box                                # the same under uvicorn

What it is made of: `model` (what answers: torch or ONNX Runtime), `batching` (many requests, one forward), `limits`
(what is refused), `origins` (pages of other sites), `bodies`, `forms`, `tensors` and `protocol` (bytes to images and
back), `images` (pictures), `answers` (how much of an answer is given), `ties` (whose coin decides near ties),
`metrics`, `guard` (around every route), `service` and `app` (the routes), `run` (sockets, signals), `watch` (who asks,
and how much).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI
    from torch import nn

    from sdb.answers.ledger import Ledger
    from sdb.answers.ties import Ties
    from sdb.box.box import Box
    from sdb.models import Classifier
    from sdb.service.limits import RequestLimits
    from sdb.service.watch import Watch

__all__ = ["create_app"]


def create_app(
    box: Path | str | Box | Classifier,
    *,
    name: str = "box",
    onnx: Sequence[Path | str] = (),
    partner_keys: Sequence[Path | str] = (),
    watch: Watch | None = None,
    answers: str = "logits",
    limits: RequestLimits | None = None,
    allowed_hosts: Sequence[str] | None = None,
    ties: Ties | None = None,
    ledger: Ledger | None = None,
    network: nn.Module | str | None = None,
    device: str = "auto",
) -> FastAPI:
    """Make the server's ASGI application, with its model loaded and tried once.

    Args:
        box: a box or classifier, or the path of a box, of a run folder that holds one, or of a classifier's checkpoint.
        name: of the model, in its URLs.
        onnx: files that `sdb export` made of this box; they then answer, by ONNX Runtime. One for the keyless network
            and one for each partner.
        partner_keys: key files of a weight-key box's partners, who are told apart by `watch`.
        watch: says who asks and how much they may; None: everybody is anonymous and nothing is counted.
        answers: what is given away: logits, probabilities, top_k or labels.
        limits: what is refused; None for the defaults.
        allowed_hosts: names that a request may ask this server by, besides localhost and addresses; None for any.
        ties: how near ties are answered, made for this box; needs `watch`, which says whose coins are used.
        ledger: keeps what accounts were told on ties, opened for writing; its closing is the caller's.
        network: what the file of `box` cannot make itself, see `Box.load`.
        device: for torch: auto, cpu, cuda or cuda:N.

    Raises:
        ConfigError: an argument is wrong, or the arguments contradict each other.
        CheckpointError, KeyFileError, ModelError: a file is missing, damaged, or does not fit the box.
        MissingExtraError: the extra `serve`, or for ONNX files `onnx`, is not installed.
    """
    from sdb.service.app import build_app
    from sdb.service.limits import RequestLimits
    from sdb.service.model import load_served
    from sdb.service.ties import teller_of

    model = load_served(
        box,
        name=name,
        onnx=onnx,
        partner_keys=partner_keys,
        network=network,
        device=device,
        bare=ties is not None,
    )
    return build_app(
        model,
        watch=watch,
        answers=answers,
        limits=limits or RequestLimits(),
        allowed_hosts=allowed_hosts,
        teller=None if ties is None else teller_of(model, watch, ties, ledger),
    )
