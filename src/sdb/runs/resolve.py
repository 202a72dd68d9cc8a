"""What the parameters of a run name: its data, its models, its keys."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdb import config
from sdb import data as datasets
from sdb.box.box import Box
from sdb.config import DistillParams, RunParams, TeacherParams, WrapParams, box_of
from sdb.data import Splits
from sdb.distillation import ask
from sdb.errors import ConfigError, KeyFileError
from sdb.keys import DEFAULT_BLEND, Key, Owner
from sdb.models import MODEL_DEFAULTS, Classifier, ModelSpec
from sdb.models.checkpoint import REFERENCE_NORMALISATION, check_fits, load_classifier
from sdb.runtime import derive_seed

KEY, OWNER = "key.json", "owner.json"

log = logging.getLogger(__name__)


def described_data(
    path: Path, dataset: str | None, data_root: Path | None, model: Box | Classifier | None
) -> Splits:
    """The data that the run around a checkpoint or box was made on, unless a data set is named.

    Its pictures become pixels as they did for the model, where there is one.
    """
    folder = path if path.is_dir() else path.parent
    described = next(
        (p for p in (folder / "params.resolved.json", folder.parent / "params.resolved.json") if p.exists()),
        None,
    )
    stored = config.read_json(described) if described else {}
    name = dataset or stored.get("dataset")
    if name is None:
        raise ConfigError(f"{path}: does not say which data it is for: add --dataset")
    root = data_root or (Path(stored["data_root"]) if stored.get("data_root") else None)
    # The run's own split, where the data has no test set of its own.
    own = ("image_size", "stream") if name == stored.get("dataset") else ()
    names = ("seed", "validation_fraction", *own)
    split = {name: stored[name] for name in names if name in stored}
    if model is not None:
        split["pictures"] = (model.classifier if isinstance(model, Box) else model).pictures
    return datasets.load(name, root=root, **split)


def load_data(params: RunParams, seed: int) -> Splits:
    """The data set that the parameters name."""
    return datasets.load(
        params.dataset,
        root=params.data_root,
        validation_fraction=params.validation_fraction,
        seed=seed,
        subset_percent=params.subset_percent,
        image_size=params.image_size,
        stream=params.stream,
        pictures=params.pictures,
    )


def new_model(params: RunParams, data: Splits, seed: int, purpose: str = "initialisation") -> Classifier:
    """A freshly initialised classifier for the data, other weights for another purpose."""
    mean, std = data.mean, data.std
    if params.normalisation == "reference":  # which has none for other data
        mean, std = REFERENCE_NORMALISATION.get(params.dataset, (mean, std))
    spec = ModelSpec(params.model_name, params.model_args, data.num_classes, data.image_shape, mean, std)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, purpose))
        model = spec.build()
    model.learns_from(data.class_names, data.pictures)
    return model


def trusted(params: TeacherParams) -> str | None:
    """The factory that the parameters name, and so trust: `teacher_model`, where that is package.module:factory."""
    return params.teacher_model if ":" in (params.teacher_model or "") else None


def load_teacher(params: TeacherParams, data: Splits) -> Box | Classifier:
    """The teacher that the parameters name, fitting the data."""
    if (place := box_of(params.teacher)) is not None:
        box = Box.load(place, network=trusted(params))
        names = data.class_names, params.other_class_names
        check_fits(box.classifier, place, data.num_classes, data.image_shape, *names)
        _compare_pictures(box.classifier, place, data)
        return box
    teacher = load_classifier(
        params.teacher,
        model_name=params.teacher_model,
        model_args=params.teacher_args,
        network=trusted(params),
        dataset=data.name,
        num_classes=data.num_classes,
        image_shape=data.image_shape,
        class_names=data.class_names,
        other_class_names=params.other_class_names,
    )
    _compare_pictures(teacher, params.teacher, data)
    return teacher


def _compare_pictures(teacher: Classifier, source: Path, data: Splits) -> None:
    """Warn where a teacher's own pictures became pixels in another way than the data's."""
    said = teacher.spec.pictures if teacher.spec is not None else None
    if said is not None and data.pictures not in (None, said):
        log.warning(
            "%s: learned from pictures that became pixels in another way (%s) than those of the data (%s): set "
            "`pictures` to the same",
            source,
            said,
            data.pictures,
        )


def like_teacher(params: WrapParams, teacher: Classifier) -> WrapParams:
    """The parameters with the teacher's own arguments where none are given: a box has its teacher's architecture.

    Raises:
        ConfigError: another architecture is named.
    """
    name, arguments = teacher.spec.name, teacher.spec.arguments
    # A network from another package has its whole configuration for arguments: nobody types that again.
    if params.model_name != name:
        raise ConfigError(
            f"model_name: {params.model_name} differs from the teacher's {name}; a box has its teacher's architecture"
        )
    if not (":" in name and not params.model_args):
        usual = MODEL_DEFAULTS.get(name, {})
        given, wanted = usual | params.model_args, usual | arguments
        differing = [each for each in given | wanted if given.get(each) != wanted.get(each)]
        if differing:
            parts = (f"{each} is {given.get(each)!r}, the teacher's {wanted.get(each)!r}" for each in differing)
            raise ConfigError(f"model_args: {', '.join(parts)}; a box has its teacher's architecture")
    return params.model_copy(update={"model_args": arguments})


def lacks_key(folder: Path, params: WrapParams) -> bool:
    """Whether a wrap is for a key that has to be made: none is named, and none is in DIR."""
    named = params.key is not None or params.partners
    return params.method != "nasty" and not named and not (folder / KEY).exists()


def make_keys(folder: Path, params: WrapParams) -> None:
    """Make DIR/key.json where it is needed and not there; method decoy's follows from an owner, DIR/owner.json.

    One process does this, before training begins: a box without its key would be of no use to its owner.
    """
    if not lacks_key(folder, params):
        return
    kind, blend = _kind_and_blend(params)
    if params.method == "sdb":
        key = Key.generate(kind, blend=blend)
    else:
        place = params.owner or folder / OWNER
        if not place.exists():
            Owner.generate().save(place)
        key = Owner.load(place).partner("partner", kind, blend)
    key.save(folder / KEY)


def _kind_and_blend(params: WrapParams) -> tuple[Any, float]:
    kind = params.key_kind or ("image" if params.method == "sdb" else "weight")
    return kind, DEFAULT_BLEND if params.key_blend is None else params.key_blend


def wrapping_keys(folder: Path, params: WrapParams) -> tuple[list[Key], Owner | None]:
    """The keys a box is wrapped for, and its owner: what `make_keys` has made, or the parameters name.

    The partners' keys where an owner and partners are named, else the key named, else DIR/key.json.

    Raises:
        ConfigError: partners are named and no owner.
        KeyFileError: a file is missing or damaged.
    """
    if params.method == "nasty":
        return [], None
    if params.partners and params.owner is None:
        raise ConfigError("partners: their keys follow from an owner: set owner to the owner's file")
    kind, blend = _kind_and_blend(params)
    key_path, owner_path = params.key or folder / KEY, params.owner or folder / OWNER
    owner = Owner.load(owner_path) if owner_path.exists() or params.owner is not None else None
    if params.partners and owner is not None:
        return [owner.partner(name, kind, blend) for name in params.partners], owner
    return [_agreeing(Key.load(key_path), params, key_path)], owner


def partner_key(folder: Path, params: DistillParams) -> Key | None:
    """The key a student is distilled with, or None for a thief.

    A file of the reference (`lamb`) names none: it lies in the student's folder, or beside the box, where the wrap
    left it.
    """
    if params.key is not None:
        return _agreeing(Key.load(params.key), params, params.key)
    if params.key_blend is None:
        return None
    places = [folder / KEY]
    if params.teacher is not None and (box := box_of(params.teacher)) is not None:
        places.append(box.parent / KEY)
    path = next((place for place in places if place.exists()), None)
    if path is None:
        raise KeyFileError(
            f"key_blend (lamb) is set and there is no key: set key to the partner's key file, or put it at "
            f"{' or '.join(map(str, places))}"
        )
    return _agreeing(Key.load(path), params, path)


def opened(teacher: Box | Classifier, key: Key | None, params: DistillParams) -> nn.Module:
    """What a student asks: its teacher, or a box as its key opens it.

    Raises:
        ConfigError: there is a key and no box.
        KeyFileError: the key is of another box.
    """
    if key is None:
        return teacher
    if not isinstance(teacher, Box):
        raise ConfigError(f"key: {params.teacher} is not a box, it needs no key; leave key out or name the box")
    return ask(teacher, key, params)


def _agreeing(key: Key, params: TeacherParams, path: Path) -> Key:
    if key.kind == "image" and params.key_blend not in (None, key.blend):
        raise ConfigError(f"key_blend: {params.key_blend} differs from {key.blend} of {path}; leave key_blend out")
    return key
