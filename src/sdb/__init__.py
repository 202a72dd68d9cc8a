"""Safe Distillation Box: everyone can run the model, only key holders can distil it.

    import sdb

    data = sdb.load_data("digits")
    key = sdb.Key.generate()
    box = sdb.wrap(teacher, data, key=key)      # a Box: an nn.Module, pixels in [0, 1] in, logits out
    logits = box(images)                        # anyone
    knowledge = box.unlock(key)(images)         # the key's holder
    sdb.distill(box, student, data, key=key)
    claim = sdb.audit(box, data, key=key)       # every attack against it
    box.save("model.box"); sdb.Box.load("model.box")

Names are loaded when they are first used, so that `import sdb` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names for editors and type checkers; a test compares the two
    from sdb import data as data
    from sdb.answers.guard import Guard as Guard
    from sdb.audit.guarded import audit_guard as audit_guard
    from sdb.audit.job import audit as audit
    from sdb.audit.plan import AuditSettings as AuditSettings
    from sdb.box.box import Box as Box
    from sdb.config import DistillSettings as DistillSettings
    from sdb.config import Pictures as Pictures
    from sdb.config import TrainSettings as TrainSettings
    from sdb.config import WrapSettings as WrapSettings
    from sdb.data import load as load_data
    from sdb.distillation import distill as distill
    from sdb.errors import SDBError as SDBError
    from sdb.keys.keys import Key as Key
    from sdb.keys.keys import Owner as Owner
    from sdb.models import Classifier as Classifier
    from sdb.models import ModelSpec as ModelSpec
    from sdb.models import from_module as from_module
    from sdb.models.checkpoint import load_classifier as load_classifier
    from sdb.remote import RemoteTeacher as RemoteTeacher
    from sdb.training.loop import train as train
    from sdb.wrapping.guarded import guard as guard
    from sdb.wrapping.own_loop import Wrapping as Wrapping
    from sdb.wrapping.wrap import wrap as wrap


_HOMES = {
    "AuditSettings": "sdb.audit.plan",
    "Box": "sdb.box.box",
    "Classifier": "sdb.models",
    "DistillSettings": "sdb.config",
    "Guard": "sdb.answers.guard",
    "Key": "sdb.keys.keys",
    "ModelSpec": "sdb.models",
    "Owner": "sdb.keys.keys",
    "Pictures": "sdb.config",
    "RemoteTeacher": "sdb.remote",
    "SDBError": "sdb.errors",
    "TrainSettings": "sdb.config",
    "WrapSettings": "sdb.config",
    "audit_guard": "sdb.audit.guarded",
    "distill": "sdb.distillation",
    "from_module": "sdb.models",
    "guard": "sdb.wrapping.guarded",
    "load_classifier": "sdb.models.checkpoint",
    "load_data": "sdb.data",
    "train": "sdb.training.loop",
    "wrap": "sdb.wrapping.wrap",
    "Wrapping": "sdb.wrapping.own_loop",
}

__all__ = [  # noqa: PLE0604, RUF100 - names that __getattr__ gives
    "AuditSettings",
    "Box",
    "Classifier",
    "DistillSettings",
    "Guard",
    "Key",
    "ModelSpec",
    "Owner",
    "Pictures",
    "RemoteTeacher",
    "SDBError",
    "TrainSettings",
    "WrapSettings",
    "Wrapping",
    "audit",
    "audit_guard",
    "data",
    "distill",
    "from_module",
    "guard",
    "load_classifier",
    "load_data",
    "train",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name in ("audit", "data"):  # a package that can be called, and one whose functions are
        return import_module(f"sdb.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'sdb' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), "load" if name == "load_data" else name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
