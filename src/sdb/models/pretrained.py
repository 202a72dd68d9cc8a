"""An image classifier as transformers' `save_pretrained` writes it, with the normalisation of its image processor.

Read from the disk only: config.json, safetensors, preprocessor_config.json. Nothing is downloaded or unpickled, and no
code of the folder runs.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

from torch import nn

from sdb.errors import CheckpointError, ModelError
from sdb.models.class_names import WITHOUT_NAMES
from sdb.models.classifier import Classifier, ModelSpec
from sdb.runtime import JSON_LIMIT, json_text, parse_json, read_bytes

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
# Fields of a configuration that name code, or weights, that lie elsewhere.
ELSEWHERE = ("auto_map", "quantization_config", "backbone", "use_pretrained_backbone", "use_timm_backbone")
# Fields that say nothing of the architecture; the number of classes is in the spec.
ASIDE = (
    *("architectures", "model_type", "transformers_version", "dtype", "torch_dtype", "_name_or_path"),
    *("id2label", "label2id", "num_labels", "problem_type", "_attn_implementation", "attn_implementation"),
)


def is_pretrained(path: Path) -> bool:
    """Whether a path is a folder of `save_pretrained`."""
    return path.is_dir() and (path / CONFIG).is_file()


def load_pretrained(
    folder: Path,
    *,
    image_shape: tuple[int, int, int] | None = None,
) -> Classifier:
    """A trained classifier with the normalisation of its processor, in eval mode.

    Args:
        folder: as `save_pretrained` of the model and of its image processor wrote it.
        image_shape: (C, H, W) of the images it will be given; None takes the size that it was made for.

    Raises:
        CheckpointError: a file is missing, damaged, or not what is read here.
        ModelError: transformers is not installed; not an image classifier; it does not fit the images.
    """
    fields = _json(folder / CONFIG)
    name = _architecture(fields, folder)
    if given := [field for field in ELSEWHERE if fields.get(field)]:
        raise CheckpointError(f"{folder / CONFIG}: {', '.join(given)} names code or weights elsewhere: not read")
    if not any((folder / file).is_file() for file in WEIGHTS):
        raise CheckpointError(
            f"{folder}: holds no {WEIGHTS[0]}: save the model with save_pretrained(folder), as safetensors"
        )
    network, config = _network(name, fields, folder)
    classes = tuple(str(config.id2label[number]) for number in range(config.num_labels))
    processor = _json(folder / PROCESSOR) if (folder / PROCESSOR).is_file() else {}
    shape = image_shape or _shape(config, processor, folder)
    normalisation = normalisation_beside(folder, shape[0])
    if normalisation is None:
        raise CheckpointError(
            f"{folder}: holds no {PROCESSOR}, so its normalisation is not known: save the image processor there "
            "too, or write one with image_mean and image_std"
        )
    plain = json.loads(json_text(config.to_diff_dict()))
    arguments = {"config": {key: value for key, value in plain.items() if key not in ASIDE}}
    classifier = ModelSpec(f"transformers:{name}", arguments, len(classes), shape, *normalisation).build()
    # Strict, so that what the spec describes is what was read.
    try:
        classifier.network.load_state_dict(network.state_dict())
    except RuntimeError as error:
        raise CheckpointError(f"{folder}: its weights do not fit its configuration: {error}") from None
    if not all(WITHOUT_NAMES.fullmatch(name) for name in classes):
        classifier.class_names = classes
    return classifier.eval()


def normalisation_beside(folder: Path, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation, of pixels in [0, 1], that a preprocessor_config.json in a folder says; None without one.

    Raises:
        CheckpointError: it is damaged, or says something else.
    """
    file = folder / PROCESSOR
    if not file.is_file():
        return None
    fields = _json(file)
    if fields.get("rescale_offset"):
        raise CheckpointError(f"{file}: rescale_offset is not supported: give image_mean and image_std without it")
    # A processor scales 0..255 by its factor; ours are scaled by 1/255 already.
    scale = 255 * fields.get("rescale_factor", 1 / 255) if fields.get("do_rescale", True) else 255
    try:
        if not fields.get("do_normalize", "image_mean" in fields):
            return (0.0,) * channels, (1 / scale,) * channels
        mean, std = (_per_channel(fields[name], channels) for name in ("image_mean", "image_std"))
        return tuple(value / scale for value in mean), tuple(value / scale for value in std)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            f"{file}: image_mean and image_std: expected {channels} numbers each ({type(error).__name__})"
        ) from None


def _per_channel(values: Any, channels: int) -> list[float]:
    listed = values if isinstance(values, list) else [values] * channels
    if len(listed) != channels:
        raise ValueError(f"{len(listed)} numbers for {channels} channels")
    return [float(value) for value in listed]


def _json(file: Path) -> dict[str, Any]:
    try:
        content = parse_json(read_bytes(file, JSON_LIMIT))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: not readable JSON ({error}): restore it from a copy") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: holds a {type(content).__name__}, a JSON object is expected")
    return content


def _architecture(fields: dict[str, Any], folder: Path) -> str:
    """The class that a configuration names, if it is one of transformers' image classifiers."""
    try:
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as KNOWN
    except ImportError as error:
        raise ModelError(f"{folder}: reading it needs transformers: pip install transformers") from error
    known = {name for names in KNOWN.values() for name in ([names] if isinstance(names, str) else names)}
    known.discard(
        "TimmWrapperForImageClassification"
    )  # its configuration names code and weights of another package
    named = fields.get("architectures")
    name = named[0] if isinstance(named, list) and named else None
    if name not in known:
        raise ModelError(
            f"{folder / CONFIG}: architecture {name!r} is not an image classifier of the installed transformers: "
            "give one with a classification head, such as ViTForImageClassification"
        )
    return name


def _network(name: str, fields: dict[str, Any], folder: Path) -> tuple[nn.Module, Any]:
    """The network as transformers reads it (it knows the names that older versions gave weights), and its config."""
    import transformers

    factory = getattr(transformers, name)
    aside = ("_attn_implementation", "attn_implementation")
    try:
        config = factory.config_class.from_dict({key: value for key, value in fields.items() if key not in aside})
        with _quiet(transformers):
            network, report = factory.from_pretrained(
                str(folder), config=config, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
    except Exception as error:  # somebody else's code on somebody else's file
        raise CheckpointError(f"{folder}: transformers cannot read it: {type(error).__name__}: {error}") from error
    if missing := sorted(map(str, report["missing_keys"])):
        raise CheckpointError(f"{folder}: {len(missing)} weights are missing (e.g. {missing[0]})")
    return network.float(), config


@contextlib.contextmanager
def _quiet(transformers: Any) -> Generator[None]:
    """No bars and no report while weights are read: we say ourselves what is wrong with them."""
    logging_ = transformers.utils.logging
    bars, level = logging_.is_progress_bar_enabled(), logging_.get_verbosity()
    logging_.disable_progress_bar()
    logging_.set_verbosity_error()
    try:
        yield
    finally:
        logging_.set_verbosity(level)
        if bars:
            logging_.enable_progress_bar()


def _shape(config: Any, processor: dict[str, Any], folder: Path) -> tuple[int, int, int]:
    """The shape (C, H, W) of the images that a model was made for."""
    size = getattr(config, "image_size", None) or processor.get("crop_size") or processor.get("size")
    if isinstance(size, dict):
        size = size.get("shortest_edge") or (size.get("height"), size.get("width"))
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    if not isinstance(height, int) or not isinstance(width, int):
        raise CheckpointError(f"{folder}: does not say the size of its images: give it as the data has it")
    return int(getattr(config, "num_channels", 3)), height, width
