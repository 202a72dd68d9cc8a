"""What answers: the networks of one box, as functions from images to logits, by torch or by ONNX Runtime.

Variant "" is the keyless box. Each partner whose key the server holds has one more, named by the key's id. Time: no
token, a wrong one and a revoked one run the same code. A partner's network has the same layers; the keyless box looks
up a row too, which takes microseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from sdb.answers.ties import FixedRows
from sdb.box.box import Box
from sdb.box.load import load_model
from sdb.config import DEFAULT_PICTURES, Pictures
from sdb.errors import ConfigError, MissingExtraError, ModelError
from sdb.keys import Key
from sdb.models import Classifier, check
from sdb.runtime import choose_device
from sdb.service.batching import Forward

if TYPE_CHECKING:
    import onnxruntime

KEYLESS = ""
PROBES = 4  # random images that a file and the box must agree on
TOLERANCE = 1e-3  # of logits, absolute and relative
INPUT, OUTPUT = "image", "logits"


@dataclass(frozen=True, slots=True)
class Model:
    """A loaded model.

    Attributes:
        name: in URLs.
        image_shape: (C, H, W).
        class_names: in label order.
        variants: functions from images float32 (N, C, H, W) to logits float32 (N, K), by key id; "" is keyless.
        platform: what runs it, as the protocol's metadata has it.
        box_id: public name of the box, "" for an unprotected classifier.
        pictures: how pictures become pixels for it.
        confidence: what the box states of its keyless answers, see `stated`; empty where it states nothing.
        rows: what the box answers with; only where variant "" leaves them out, see `load_served`.
    """

    name: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    variants: Mapping[str, Forward]
    platform: str
    box_id: str = ""
    pictures: Pictures = DEFAULT_PICTURES
    confidence: Mapping[str, Any] = field(default_factory=dict)
    rows: FixedRows | None = None


def stated(source: Box | Classifier) -> dict[str, Any]:
    """What a box states of the confidence in its keyless answers, measured on held-out images when it was made.

    accuracy, calibration_error and brier are fractions; bits is what an answer says beyond its class on average;
    levels are those of confidence, from the least sure: how many images, the share that was right, its 95 % interval.
    """
    if not isinstance(source, Box):
        return {}
    measured = source.info.measured
    names = {name: f"keyless_{name}" for name in ("accuracy", "calibration_error", "brier")} | {"bits": "bits"}
    found: dict[str, Any] = {name: measured[place] for name, place in names.items() if place in measured}
    return found | ({"levels": [asdict(level) for level in source.info.levels]} if source.info.levels else {})


def load_served(
    source: Path | str | Box | Classifier,
    *,
    name: str = "box",
    onnx: Sequence[Path | str] = (),
    partner_keys: Sequence[Path | str] = (),
    network: nn.Module | str | None = None,
    device: str = "auto",
    bare: bool = False,
) -> Model:
    """Load a model and try every variant once; `sdb.service.create_app` explains the other arguments.

    With `bare`, variant "" gives the network's own logits, also of a box with rows: ties are found in them.

    Raises:
        ConfigError: partner keys that the box has no use for, ONNX files that are not of this box, or `bare` with them.
        CheckpointError, KeyFileError, ModelError: a file is missing, damaged, or does not fit the box.
        MissingExtraError: onnxruntime is needed and not installed.
    """
    if not name or not all(c.isascii() and (c.isalnum() or c in "._-") for c in name):
        raise ConfigError(f"name is {name!r}: it is part of a URL; use letters, digits, '.', '_' and '-'")
    if not isinstance(source, (Box, Classifier)):
        source = load_model(source, network)
    classifier = source.classifier if isinstance(source, Box) else source
    place = choose_device(device)
    rows = source.rows if bare and isinstance(source, Box) else None
    if rows is not None and onnx:
        raise ConfigError(
            "--onnx with --ties: a file of this box gives its answers, and ties are found in its network's own; leave "
            "--onnx out"
        )
    answering: nn.Module = source if rows is None else classifier
    modules: dict[str, nn.Module] = {KEYLESS: answering} | _unlocked(source, partner_keys)
    for module in modules.values():
        module.eval().requires_grad_(False).to(place)
        check(module, classifier.image_shape, classifier.num_classes, place)
    box_id = source.info.id if isinstance(source, Box) else ""
    variants = {variant: _by_torch(module, place) for variant, module in modules.items()}
    if onnx:
        variants = _by_files(variants, onnx, classifier.image_shape, box_id)
    return Model(
        name=name,
        image_shape=classifier.image_shape,
        class_names=classifier.class_names or tuple(map(str, range(classifier.num_classes))),
        variants=variants,
        platform="onnxruntime_onnx" if onnx else "pytorch_safetensors",
        box_id=box_id,
        pictures=classifier.pictures,
        confidence=stated(source),
        rows=None if rows is None else FixedRows(rows.rows.cpu().numpy(), rows.edges.cpu().numpy()),
    )


def _unlocked(source: Box | Classifier, files: Sequence[Path | str]) -> dict[str, nn.Module]:
    """By key id, what the partners' keys open."""
    if not files:
        return {}
    if not isinstance(source, Box) or source.info.key_kind != "weight":
        raise ConfigError(
            "partner keys are for weight-key boxes: with an image key the partner's images arrive keyed and the server "
            "needs no key; leave them out"
        )
    keys = [Key.load(file) for file in files]
    return {key.id: source.unlock(key) for key in keys}


def _by_torch(module: nn.Module, device: torch.device) -> Forward:
    def forward(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(images).to(device)).float().cpu().numpy()

    return forward


def _by_files(
    expected: Mapping[str, Forward], files: Sequence[Path | str], image_shape: tuple[int, int, int], box_id: str
) -> dict[str, Forward]:
    """By variant, the file that answers as the box itself does; which is whose is found by asking both."""
    probes = np.random.default_rng(0).random((PROBES, *image_shape), dtype=np.float32)
    wanted = {variant: forward(probes) for variant, forward in expected.items()}
    found: dict[str, Forward] = {}
    for file in files:
        session = _session(Path(file))
        # Boxes of one owner may have the same fixed answers, and so answer random images alike.
        if session.get_modelmeta().custom_metadata_map.get("id", "") != box_id:
            raise ConfigError(f"{file}: is of another box: export it from this one")
        forward = _by_onnx(session)
        try:
            given = forward(probes)
        except Exception as error:  # ONNX Runtime has no common base for its errors
            raise ModelError(
                f"{file}: fails on images {image_shape}: {type(error).__name__}: not of this box"
            ) from None
        matches = [
            variant
            for variant, logits in wanted.items()
            if given.shape == logits.shape and np.allclose(given, logits, TOLERANCE, TOLERANCE)
        ]
        if not matches:
            raise ConfigError(
                f"{file}: does not answer as this box does, keyless or with a partner key that was given: export it "
                "from this box, and for a partner's file give its key too"
            )
        found[matches[0]] = forward
    if missing := [variant for variant in expected if variant not in found]:
        whose = f"key {missing[0][:8]}" if missing[0] else "the keyless box"
        raise ConfigError(
            f"no ONNX file answers for {whose}: all variants run on one engine; export one for it too"
        )
    return found


def _session(file: Path) -> onnxruntime.InferenceSession:
    try:
        import onnxruntime
    except ImportError:
        raise MissingExtraError("onnxruntime", "onnx", "answering by ONNX Runtime") from None
    options = onnxruntime.SessionOptions()
    # One knob for both engines: OMP_NUM_THREADS, which ONNX Runtime itself does not look at.
    options.intra_op_num_threads = torch.get_num_threads()
    # Idle workers that spin would take the cores from the event loop.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    available = onnxruntime.get_available_providers()
    providers = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in available]
    if not file.is_file():
        raise ModelError(f"{file}: no such file; sdb export BOX --to onnx makes one")
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=providers)
    except Exception as error:  # ONNX Runtime has no common base for its errors
        raise ModelError(
            f"{file}: ONNX Runtime does not load it ({type(error).__name__}); export it again"
        ) from None
    names = [entry.name for entry in session.get_inputs()], [entry.name for entry in session.get_outputs()]
    if names != ([INPUT], [OUTPUT]):
        raise ModelError(f"{file}: takes {names[0]} and gives {names[1]}; expected {INPUT!r} and {OUTPUT!r}")
    return session


def _by_onnx(session: Any) -> Forward:
    def forward(images: np.ndarray) -> np.ndarray:
        return session.run([OUTPUT], {INPUT: images})[0]

    return forward
