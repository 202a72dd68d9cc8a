"""What one seed of an audit stands on: data, teacher, references, defended models, and an attacker's means.

Everything here is made once, kept in the audit's archive, and read again by whichever process needs it.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Generator
from dataclasses import replace

import torch
from torch import Tensor, nn

from sdb import data as datasets
from sdb.audit.archive import Archive
from sdb.audit.attacks.attack import Attack
from sdb.audit.attacks.attacker import Attacker, Shadow
from sdb.audit.attacks.victim import Interface, Victim
from sdb.audit.defences import DEFENCES, boxed
from sdb.audit.defences.defence import Defence, Defended
from sdb.audit.plan import BOX, NONE, AuditSettings
from sdb.audit.proxy import letters
from sdb.audit.regime import Regime, attacker_of
from sdb.audit.subject import Subject, original
from sdb.box.box import Box
from sdb.config import WrapSettings
from sdb.data import ImageSet, Splits
from sdb.errors import ConfigError, ModelError
from sdb.models import MODULE, Classifier, ModelSpec
from sdb.models.checkpoint import check_fits
from sdb.runtime import choose_device, derive_seed
from sdb.training.loop import train
from sdb.wrapping.networks import made_again

# Another customer's box and an attacker's own are made as this one was, from seeds of their own.
COLLUDER = 1_000_000
SHADOW = 2_000_000
# Images of another kind for each of the attacker's own.
PROXY_SHARE = 4
# The grid's attackers are one pair; those that measure count from 1.
GRID = 0
# Which defence makes boxes of a method and kind of key.
MAKERS = {
    ("nasty", ""): "nasty",
    ("sdb", "image"): "sdb",
    ("decoy", "weight"): "decoy",
    ("decoy", "image"): "decoy_image",
}


class AuditSeed:
    """One seed of an audit; holds what its process has loaded so far.

    Args:
        settings: filled, see `AuditSettings.filled`.
        subject: what is audited.
        seed: of this ground.
        archive: where the audit keeps what is finished.
        data: instead of the data set that the settings name.
    """

    def __init__(
        self, settings: AuditSettings, subject: Subject, seed: int, archive: Archive, data: Splits | None = None
    ) -> None:
        self.settings, self.subject, self.seed, self.archive = settings, subject, seed, archive
        self.device = choose_device(settings.device)
        self._data = data

    @functools.cached_property
    def data(self) -> Splits:
        """The data set."""
        if self._data is not None:
            return self._data
        split = self.seed if self.subject.split_seed is None else self.subject.split_seed
        return datasets.load(
            self.settings.dataset,
            root=self.settings.data_root,
            seed=split,
            validation_fraction=self.subject.validation_fraction,
            subset_percent=self.settings.subset_percent,
            image_size=self.settings.image_size,
            stream=self.settings.stream,
            pictures=self.subject.pictures,
        )

    @functools.cached_property
    def box(self) -> Box | None:
        """The audited box."""
        if self.subject.box is None:
            return None
        box = copy.deepcopy(self.subject.box)
        self._check_fits(box.classifier, "box")
        return box.to(self.device).eval()

    @functools.cached_property
    def teacher(self) -> Classifier:
        """The unprotected model: the box's teacher where it was given, else one of the same architecture."""
        if self.subject.teacher is not None:
            teacher = copy.deepcopy(self.subject.teacher)
            self._check_fits(teacher, "teacher")
        else:
            teacher = self.archive.trained(self._place("teacher"), self.network("teacher"))
        return teacher.to(self.device).eval()

    def _place(self, *parts: str) -> str:
        return "/".join((f"seed-{self.seed}", *parts))

    def _check_fits(self, classifier: Classifier, what: str) -> None:
        data, files = self.data, self.subject.files
        source = getattr(files, what, None) or f"the {what}"
        names = data.class_names, self.settings.other_class_names
        check_fits(classifier, source, data.num_classes, data.image_shape, *names)
        classifier.class_names = data.class_names  # names that were let pass are not asked about again

    def check(self) -> None:
        """Refuse what cannot be audited, before anything is written or trained.

        Raises:
            CheckpointError, ModelError, KeyFileError: box, key or teacher is damaged, or not of this data or this box.
            ConfigError: there are not so many images as a thief is to have.
        """
        self.student()
        self.means()
        if self.box is not None:
            self.maker(BOX, {})
            self.defended(BOX, {})
        if self.subject.teacher is not None:
            _ = self.teacher

    def make_teacher(self) -> None:
        """Train the unprotected model where none was given; goes on where it was stopped."""
        if self.subject.teacher is None:
            # A shadow's teacher is trained in the same way: what the audit makes is made with one recipe.
            fitted = self.settings.of_makers(self.seed, len(self.data.train))
            self.archive.train(self._place("teacher"), self.network("teacher"), self.data, fitted)

    def network(self, purpose: object) -> Classifier:
        """A fresh network of the victim's architecture; a student's, where nobody here can make one of the victim's."""
        known = original(self.subject)
        if known is None:
            return self._build(self.settings.model_name, self.settings.model_args, purpose)
        if known.spec.name != MODULE:
            return self._build(known.spec.name, known.spec.arguments, purpose)
        try:
            return self._again(known, purpose)
        except ModelError:
            return self.student(purpose)

    def student(self, purpose: object = "student") -> Classifier:
        """A fresh student, the same weights for the same purpose.

        Raises:
            ModelError: it is to be the victim's own architecture, which nobody here can make.
        """
        known = original(self.subject)
        if self.settings.student_model == MODULE and known is not None:
            return self._again(known, purpose)
        return self._build(self.settings.student_model, self.settings.student_args, purpose)

    def _build(self, name: str, arguments: dict, purpose: object) -> Classifier:
        data = self.data
        spec = ModelSpec(name, arguments, data.num_classes, data.image_shape, data.mean, data.std)
        with self._drawn(purpose):
            return spec.build().to(self.device)

    def _again(self, known: Classifier, purpose: object) -> Classifier:
        with self._drawn(purpose):
            return made_again(known).to(self.device)

    @contextlib.contextmanager
    def _drawn(self, purpose: object) -> Generator[None]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, "network", purpose))
            yield

    # --- defended models --------------------------------------------------------------------------------------------

    def maker(self, name: str, defences: dict[str, Defence]) -> Defence:
        """The defence of that name; for the box the one that makes boxes of its kind.

        Raises:
            ConfigError: nobody here can make boxes of this method.
        """
        if name != BOX:
            return defences.get(name) or DEFENCES[name]
        info = self.box.info if self.box is not None else None
        kind = (info.method, info.key_kind) if info is not None else ("", "")
        if kind not in MAKERS:
            raise ConfigError(f"the box's method, {kind[0]!r}, is none that an audit can make again")
        if self.box is None or info is None:
            return DEFENCES[MAKERS[kind]]
        # Others' boxes and shadows are made by the recipe that this box says of itself.
        public = {name: value for name, value in info.parameters.items() if name in WrapSettings.model_fields}
        if kind == ("decoy", "weight"):
            public["fixed_answers"] = self.box.rows is not None
            public.setdefault("confidence_levels", 0)  # of an sdb without them
        blend = {"key_blend": info.parameters["key_blend"]} if info.key_kind == "image" else {}
        return replace(DEFENCES[MAKERS[kind]], public=tuple(sorted(public.items())), **blend)

    def make(self, name: str, defences: dict[str, Defence], *, colluder: bool = False) -> None:
        """Build a defence around the teacher, or another customer's copy of it."""
        if name == BOX and not colluder:
            return
        fitted = self.settings.of_makers(self.seed + COLLUDER * colluder, len(self.data.train))
        place = self._place_of(name, colluder)
        self.archive.build(place, self.maker(name, defences), self.teacher, self.data, fitted)

    def defended(self, name: str, defences: dict[str, Defence], *, colluder: bool = False) -> Defended:
        """A defended model that `make` has made, or the audited box."""
        if name == BOX and not colluder and self.box is not None:
            return boxed(self.box, self.subject.key)
        return self.archive.defended(self._place_of(name, colluder), self.maker(name, defences), self.teacher)

    def _place_of(self, name: str, colluder: bool) -> str:
        return self._place("defences", f"{name}-colluder" if colluder else name)

    # --- the attacker -----------------------------------------------------------------------------------------------

    def victim(self, defended: Defended, attack: Attack) -> Victim:
        """What an attack gets to see of a defended model."""
        shipped = attack.needs is Interface.WEIGHTS
        given = min(Interface[self.settings.interface.upper()], Interface[defended.interface.upper()])
        return Victim(
            defended.network if shipped else defended.keyless,
            Interface.WEIGHTS if shipped else given,
            num_classes=self.data.num_classes,
            image_shape=self.data.image_shape,
            top_k=min(self.settings.top_k, defended.top_k or self.settings.top_k),
            budget=self.settings.query_budget,
            network=defended.network if shipped else None,
        )

    @property
    def regime(self) -> Regime:
        """What an attacker has of the data."""
        return self.settings.regime(self.data)

    def means(self, pair: int = GRID) -> Attacker:
        """What every attacker has: images, networks, time; of the grid, or of a pair, which has others.

        Raises:
            ConfigError: there are not so many images.
        """
        regime = self.regime
        fitted = self.settings.of_students(self.seed, regime.learners(self.data.num_classes))
        attacker = attacker_of(self.data, regime, self.student, fitted, pair)
        return replace(
            attacker,
            new_network=lambda purpose="attacker": self.network(("attacker", purpose, pair)),
            views=self.settings.views or 1,
        )

    def attacker(
        self,
        name: str = NONE,
        defences: dict[str, Defence] | None = None,
        attack: Attack | None = None,
        pair: int = GRID,
    ) -> Attacker:
        """The means of an attacker of one defence."""
        attacker = self.means(pair)
        uses = attack.uses if attack is not None else frozenset()
        known = defences or {}
        if "proxy" in uses:
            attacker = replace(attacker, proxy=self.proxy(PROXY_SHARE * len(attacker.train)))
        if "colluder" in uses:
            other = self.defended(name, known, colluder=True)
            attacker = replace(attacker, colluder=self.victim(other, attack))  # ty: ignore[invalid-argument-type]
        if "shadow" in uses:
            attacker = replace(attacker, shadow=self.shadow(name, known, attacker.validation))
        if uses & {"image_key", "leaked_key"}:
            defended = self.defended(name, known)
            leaked = defended.key if "leaked_key" in uses else None
            public = defended.box.info.parameters.get("key_blend") if defended.box is not None else None
            attacker = replace(attacker, blend=public, leaked_key=leaked)
        return attacker

    def proxy(self, count: int) -> ImageSet:
        """Images of another kind; they are easier to come by than the right ones."""
        return letters(count, self.data.image_shape, derive_seed(self.seed, "proxy"))

    def shadow(self, name: str, defences: dict[str, Defence], own: ImageSet) -> Shadow:
        """How an attacker makes the defence again: own teacher, own data, the public recipe, keys of its own."""
        maker = self.maker(name, defences)

        def make(images: ImageSet, seed: int) -> tuple[nn.Module, nn.Module]:
            fitted = self.settings.of_makers(SHADOW + seed % SHADOW, len(images))
            mine = replace(self.data, train=images, validation=own, test=own)
            teacher = self.network(("shadow", seed))
            train(teacher, mine, fitted, progress=False)
            built = maker.built(teacher, mine, fitted)
            return teacher, maker.open(teacher, built.parts, built.record).keyless

        return make


class Shuffled(nn.Module):
    """A module whose classes are in another order for each image; the order follows from the image's pixels."""

    def __init__(self, module: nn.Module, image_shape: tuple[int, int, int], num_classes: int, seed: int) -> None:
        super().__init__()
        self.module = module
        generator = torch.Generator().manual_seed(seed)
        size = image_shape[0] * image_shape[1] * image_shape[2]
        self.directions: Tensor
        self.register_buffer("directions", 1e3 * torch.randn(size, num_classes, generator=generator))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, K), each row in an order of its own."""
        order = (images.flatten(1) @ self.directions).sin().argsort(dim=1)
        return self.module(images).gather(1, order)


def shuffled_labels(images: ImageSet, seed: int) -> ImageSet:
    """The same images with their labels in another order."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).numpy()
    return replace(images, labels=images.labels[order])
