"""Weights on disk: one safetensors file a checkpoint, JSON in its header, nothing unpickled.

`last.safetensors` holds the model, the optimizer and the history, enough to go on; `best.safetensors` the model alone.
`load_classifier` reads what a teacher may be: a run folder, a checkpoint, a folder of transformers' `save_pretrained`,
or bare weights (a reference checkpoint `*.tar` and the like, read by torch's weights-only loader, or safetensors).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from sdb.config import box_of
from sdb.errors import CheckpointError, ModelError
from sdb.models.architectures import MODELS
from sdb.models.bare import description_in, read_reference
from sdb.models.class_names import compare_class_names
from sdb.models.classifier import MODULE, Classifier, ModelSpec, class_of
from sdb.models.external import from_factory
from sdb.models.pretrained import is_pretrained, load_pretrained, normalisation_beside
from sdb.models.weights import fitted, not_finite
from sdb.runtime import WEIGHTS_LIMIT, check_regular, expand, json_text, parse_json, write_atomic

SCHEMA = 1
# Per-channel constants that the reference's data loader normalises with; its checkpoints expect them.
REFERENCE_NORMALISATION = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "cifar100": ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)),
    "tiny_imagenet": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
}

log = logging.getLogger(__name__)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: dict[str, Any]) -> None:
    """Write named tensors and a JSON header, atomically."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json_text({"schema": SCHEMA, **header})
    write_atomic(path, to_bytes(plain, {"sdb": text, "sha256": _digest(text, plain)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Raises:
        CheckpointError: missing, truncated, altered, or not ours.
    """
    try:
        check_regular(path, WEIGHTS_LIMIT)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read as a checkpoint: {error.strerror or error}") from None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            header = parse_json(metadata.get("sdb", "{}"), finite=False)  # a history may hold NaN
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}); restore it from a copy") from None
    schema = header.get("schema") if isinstance(header, dict) else None
    if schema != SCHEMA:
        raise CheckpointError(
            f"{path}: schema {schema!r}, this sdb reads {SCHEMA}: not an sdb checkpoint; bare weights need a "
            "teacher_model"
        )
    if metadata.get("sha256") != _digest(metadata["sdb"], tensors):
        raise CheckpointError(f"{path}: was altered or damaged (sha256 differs); restore it from a copy")
    return tensors, header


def _digest(header: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the header and every tensor's name, type, shape and bytes: a damaged weight is not used."""
    digest = hashlib.sha256(header.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def build_with(
    spec: ModelSpec, weights: Mapping[str, Tensor], source: object, network: nn.Module | str | None = None
) -> Classifier:
    """The classifier that a file describes, with the file's weights.

    Names and shapes are compared before any memory is taken for it: a description may ask for more than there is.

    Args:
        spec: the description.
        weights: as in the classifier's state dict.
        source: of both, for messages.
        network: see `build_described`.

    Raises:
        CheckpointError: the weights are of another architecture.
        ModelError: the architecture cannot be built, or is a factory that the caller did not name.
    """
    if spec.name in MODELS:
        try:
            with torch.device("meta"):
                described = spec.build()
        except RuntimeError as error:  # sizes that overflow
            raise ModelError(f"{source}: its description cannot be built: {error}") from None
        check_weights(described, weights, source)
    classifier = build_described(spec, source, network)
    load_weights(classifier, weights, source)
    return classifier


def build_described(spec: ModelSpec, source: object, network: nn.Module | str | None = None) -> Classifier:
    """The classifier that a file describes, with other weights.

    Args:
        spec: the description.
        source: of it, for messages.
        network: what the file cannot make: an instance of the class whose weights it holds, or the name of a factory
            that the caller trusts, package.module:factory, which runs where the file asks for it and nowhere else.
            A file alone runs nothing.

    Raises:
        ModelError: the architecture cannot be built, or is a factory that the caller did not name.
    """
    if not isinstance(network, str):
        return spec.build(allow_factory=False, network=network)
    if spec.name == MODULE:
        return spec.build(network=from_factory(network, spec.num_classes, {}))
    if ":" in spec.name and network != spec.name:
        raise ModelError(f"{source}: holds a {spec.name}, not a {network}: correct the network's name")
    return spec.build()


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: object) -> None:
    """Put weights into a model; every name and shape must fit, every weight be finite.

    Raises:
        CheckpointError: the weights are of another architecture, or one holds NaN or an infinity.
    """
    check_weights(model, weights, source)
    model.load_state_dict(dict(weights))
    check_finite(model, source)


def check_finite(model: nn.Module, source: object) -> None:
    """Refuse a model whose weights are no numbers.

    Raises:
        CheckpointError: naming the first that is not finite.
    """
    if (name := not_finite(model)) is not None:
        raise CheckpointError(
            f"{source}: its {name} is not finite (it holds NaN or an infinity): the training that made it went wrong; "
            "take an earlier checkpoint, or train again"
        )


def check_weights(model: nn.Module, weights: Mapping[str, Tensor], source: object) -> None:
    """Refuse weights whose names or shapes are not the model's.

    Raises:
        CheckpointError: the weights are of another architecture.
    """
    own = model.state_dict()
    missing, extra = own.keys() - weights.keys(), weights.keys() - own.keys()
    both = own.keys() & weights.keys()
    wrong = [name for name in both if own[name].shape != weights[name].shape]
    kinds = [n for n in both if own[n].is_floating_point() > weights[n].is_floating_point()]
    if missing or extra or wrong or kinds:
        parts = [
            f"{len(missing)} missing (e.g. {min(missing)})" if missing else "",
            f"{len(extra)} unknown (e.g. {min(extra)})" if extra else "",
            f"{len(wrong)} of another shape (e.g. {min(wrong)})" if wrong else "",
            f"{len(kinds)} without fractions (e.g. {min(kinds)}: {weights[min(kinds)].dtype})" if kinds else "",
        ]
        raise CheckpointError(
            f"{source}: weights of another architecture: {', '.join(filter(None, parts))}; check the model name, its "
            "arguments and the number of classes"
        )


def load_classifier(
    path: Path | str,
    *,
    model_name: str | None = None,
    model_args: dict[str, Any] | None = None,
    network: nn.Module | str | None = None,
    dataset: str | None = None,
    num_classes: int | None = None,
    image_shape: tuple[int, int, int] | None = None,
    class_names: Sequence[str] = (),
    other_class_names: bool = False,
) -> Classifier:
    """A trained classifier, in eval mode, from a run folder, a checkpoint, a pre-trained folder or bare weights.

    Args:
        path: `DIR`, `DIR/best.safetensors`, a folder of `save_pretrained`, `*.tar`, `*.pt`, a plain `*.safetensors`;
            a published `DIR/best_model.tar` that is not there stands for DIR's own `best.safetensors`, so that
            reference parameter files name our runs too.
        model_name: needed for bare weights, checked against the others.
        model_args: arguments of that architecture.
        network: see `build_described`; an instance takes bare weights too.
        dataset: for bare weights, whose normalisation constants they were trained with; a preprocessor_config.json
            beside them (image_mean, image_std) says more.
        num_classes: number of classes that the caller has.
        image_shape: (C, H, W) that the caller has.
        class_names: that the caller has, in label order; checked where the file has names too.
        other_class_names: see `check_fits`.

    Raises:
        CheckpointError: missing, damaged, or of another architecture.
        ModelError: the classifier does not fit the data.
    """
    path = expand(path)
    if (box := box_of(path)) is not None:
        raise CheckpointError(
            f"{path}: stands for the box {box}: Box.load opens it; here, name a plain classifier"
        )
    if is_pretrained(path):
        classifier = load_pretrained(path, image_shape=image_shape)
        if model_name not in (None, classifier.spec.name):
            raise CheckpointError(
                f"{path}: holds a {classifier.spec.name}, not a {model_name}: correct teacher_model"
            )
        check_fits(classifier, path, num_classes, image_shape, class_names, other_class_names)
        return classifier
    path = resolve(path)
    described = description_in(path)
    if described is not None and path.with_name("best.safetensors").is_file():
        # The run's own file is as new as the run; the .tar is written at its end.
        path, described = path.with_name("best.safetensors"), None
    if described is not None:
        spec = ModelSpec.from_json(described.get("spec"))
        if model_name not in (None, spec.name):
            raise CheckpointError(f"{path}: holds a {spec.name}, not a {model_name}: correct teacher_model")
        classifier = build_described(spec, path, network)
        load_weights(classifier.network, read_reference(path), path)
        classifier.class_names = _names_in(described, classifier.num_classes, path)
    elif path.suffix == ".safetensors" and (model_name is None or not _is_bare(path)):
        tensors, header = read_tensors(path)
        spec = ModelSpec.from_json(header.get("spec"))
        if model_name is not None and model_name != spec.name and spec.name != MODULE:
            raise CheckpointError(f"{path}: holds a {spec.name}, not a {model_name}: correct teacher_model")
        weights = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
        classifier = build_with(spec, weights, path, network)
        classifier.class_names = _names_in(header, classifier.num_classes, path)
    else:
        if isinstance(network, nn.Module):
            model_name, model_args = MODULE, {"class": class_of(network)}
        elif model_name is None:
            model_name = network
        if model_name is None or num_classes is None or image_shape is None:
            raise CheckpointError(
                f"{path}: bare weights do not say their architecture: name it, --model NAME --dataset NAME (in the "
                "parameters of a run teacher_model; in Python model_name, num_classes and image_shape)"
            )
        weights = read_reference(path)
        known = _normalisation(path, dataset, image_shape[0])
        mean, std = known or ((0.0,) * image_shape[0], (1.0,) * image_shape[0])
        spec = ModelSpec(model_name, model_args or {}, num_classes, image_shape, mean, std)
        classifier = spec.build(network=network if isinstance(network, nn.Module) else None)
        load_weights(classifier.network, fitted(classifier.network.state_dict(), weights), path)
        if known is None:
            log.warning(
                "%s: nothing says which normalisation it was trained with: its network gets pixels in [0, 1]. Put a "
                "preprocessor_config.json with image_mean and image_std beside it if that is wrong",
                path,
            )
    check_fits(classifier, path, num_classes, image_shape, class_names, other_class_names)
    return classifier.eval()


def _names_in(header: dict[str, Any], num_classes: int, path: Path) -> tuple[str, ...]:
    """The class names that a checkpoint's header holds; none in one that was written before they were kept."""
    names = header.get("class_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{path}: its class names are no list of strings; restore it from a copy")
    if len(names) not in (0, num_classes):
        raise CheckpointError(
            f"{path}: {len(names)} class names for {num_classes} classes; restore it from a copy"
        )
    return tuple(names)


def _normalisation(
    path: Path, dataset: str | None, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation that bare weights were trained with: said beside them, or those of the reference's loader."""
    return normalisation_beside(path.parent, channels) or REFERENCE_NORMALISATION.get(dataset or "")


def _is_bare(path: Path) -> bool:
    """Whether a safetensors file has no header of ours; a damaged one is left to those who read it."""
    try:
        with safe_open(path, framework="pt") as file:
            return "sdb" not in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def check_fits(
    classifier: Classifier,
    source: object,
    num_classes: int | None,
    image_shape: tuple[int, int, int] | None,
    class_names: Sequence[str] = (),
    other_class_names: bool = False,
) -> None:
    """Refuse a classifier whose classes or images are not the data's.

    Args:
        classifier: any; one that knows no class names is not refused for them.
        source: what to call it.
        num_classes: of the data; None is not checked.
        image_shape: of the data; None is not checked.
        class_names: of the data; empty is not checked.
        other_class_names: see `sdb.models.class_names.compare_class_names`.

    Raises:
        ModelError: naming both.
    """
    if num_classes is not None and classifier.num_classes != num_classes:
        raise ModelError(f"{source}: made for {classifier.num_classes} classes, the data has {num_classes}")
    if image_shape is not None and tuple(classifier.image_shape) != tuple(image_shape):
        raise ModelError(
            f"{source}: made for images {tuple(classifier.image_shape)}, the data has {tuple(image_shape)}"
        )
    compare_class_names(classifier.class_names, class_names, source, other_class_names=other_class_names)


def resolve(path: Path) -> Path:
    """The checkpoint file that a path stands for.

    Raises:
        CheckpointError: nothing is there.
    """
    if path.is_dir():
        if not (path / "last.safetensors").is_file():
            raise CheckpointError(f"{path}: holds no last.safetensors: train it first, or name another folder")
        return path / "last.safetensors"
    if not path.exists() and path.name in ("best_model.tar", "last_model.tar"):
        ours = path.with_name(path.name.replace("_model.tar", ".safetensors"))
        if ours.is_file():
            return ours
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint; train the teacher first, or correct the path")
    return path
