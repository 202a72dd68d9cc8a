"""What an audit does: its settings, its presets, and the grid of attacks and defences that follows from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from sdb.audit.attacks import ATTACKS
from sdb.audit.attacks.attack import Attack
from sdb.audit.attacks.victim import Interface
from sdb.audit.defences import DEFENCES
from sdb.audit.defences.defence import Defence
from sdb.audit.regime import Regime, few_images
from sdb.config import Settings, TrainSettings, optimizer_for
from sdb.data import Splits
from sdb.errors import ConfigError
from sdb.runtime import import_named

# The audited box and the plain teacher in the grid.
BOX, NONE = "box", "none"
# What quick audits run against every defence; the box and the teacher get everything.
CORE = ("labels", "distil", "tuned_distil", "averager")
# Defences of a quick audit: one of each kind; the dearest to build, and the box's own kin, are left to longer ones.
QUICK = ("labels_only", "reverse_sigmoid", "stingy", "gradient_redirection", "nasty", "sdb", "key_switch")

# About how long attacks take, in students; others take one. For the time left.
COSTS = {
    **dict.fromkeys(("shadow_recovery", "shadow_by_class", "key_by_queries", "key_by_gradients"), 20),
    **dict.fromkeys(("fresh_head", "fresh_head_labels", "pruned", "knockoff_adaptive"), 12),
    **dict.fromkeys(("random_patterns", "data_free", "knockoff_random"), 8),
    **dict.fromkeys(("tuned_distil", "fine_tuned", "margin_queries", "fixmatch", "two_boxes", "random_keys"), 4),
    **dict.fromkeys(("level_weights", "level_filter", "level_targets", "noise_average", "blend_average"), 2),
}
# Chosen on the validation images of students of digits and Fashion-MNIST, see benchmarks/few_images.py.
STUDENT_RATES = {"adam": 0.01, "sgd": 0.1}
# Steps of an epoch where images are few.
FEWEST_STEPS = 4

Positive = Annotated[float, Field(gt=0)]
Whole = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, slots=True)
class Preset:
    """Sizes of an audit.

    Attributes:
        seeds: of the grid.
        pairs: students by which the best thieves are measured against the bar, see `pairs` of the settings.
        confirmed: how many of the grid's attacks these are, at most.
        epochs, steps: of students: so many epochs, and more where images are few, until there are so many steps.
        maker_epochs: of teachers and boxes that the audit makes.
        views: augmented views of each image that a thief asks about.
        everywhere: whether every attack runs against every defence.
        effort: how expensive attacks may be: "brief", "usual" or "extended".
    """

    seeds: int
    pairs: int
    confirmed: int
    epochs: int
    steps: int
    maker_epochs: int
    views: int
    everywhere: bool
    effort: str


PRESETS = {
    "quick": Preset(1, 12, 2, 20, 240, 20, 8, False, "brief"),
    "standard": Preset(3, 60, 3, 40, 480, 40, 16, True, "usual"),
    "full": Preset(5, 120, 5, 60, 720, 60, 32, True, "extended"),
}


class AuditSettings(Settings):
    """How a box is audited. What is None takes the preset's value."""

    preset: Literal["quick", "standard", "full"] = "quick"
    """Sizes of everything that is not set."""
    threat: Literal["api", "shipped"] = "api"
    """api: the thief asks a service. shipped: it has the weights too; the bar then holds for both kinds of attack."""
    interface: Literal["labels", "top_k", "probabilities", "logits"] = "logits"
    """What the service gives away."""
    top_k: Whole = 3
    """Classes in a top-k answer."""
    query_budget: Whole | None = None
    """Images that the service answers for one thief; none for no limit."""
    labelled: Annotated[int, Field(ge=4)] | Literal["all"] | None = None
    """Images with labels that a thief has; a fifth of them is for choosing settings. None: fifteen per class, since
    soft answers are worth most to who has few."""
    unlabelled: Annotated[int, Field(ge=0)] = 0
    """Further images that a thief can only ask about."""
    pairs: Annotated[int, Field(ge=3)] | None = None
    """Students for each of the bar, the unprotected teacher, the best attacks and the partner, with images and a seed
    of their own. They decide; fewer where the standard error of a difference is known to a quarter of a point."""
    seeds: Whole | None = None
    """Number of seeds of the grid of attacks and defences; the first is `seed`."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of everything but the audited box and its key."""
    attacks: tuple[str, ...] = ()
    """Attacks to run, or package.module:name of one's own; all of them by default."""
    defences: tuple[str, ...] = ()
    """Defences to set beside the box; all of them by default."""
    model_name: str = "net"
    """Architecture of the teacher where there is neither a box nor a teacher."""
    model_args: dict[str, Any] = Field(default_factory=lambda: {"num_channels": 24})
    """Its arguments."""
    student_model: str = "net"
    """Architecture of every student."""
    student_args: dict[str, Any] = Field(default_factory=lambda: {"num_channels": 8})
    """Its arguments."""
    epochs: Whole | None = None
    """Of students; by default more where images are few."""
    maker_epochs: Whole | None = None
    """Of teachers and boxes that the audit makes."""
    views: Whole | None = None
    """Augmented views of each image that a thief asks about; each is a query."""
    batch_size: Whole = 64
    """Images per step; of students at most a quarter of theirs."""
    learning_rate: Positive = 0.003
    """Of what the audit makes."""
    student_learning_rate: Positive | None = None
    """Of students. None: 0.01 with Adam, 0.1 with SGD; they have few images and few steps."""
    optimizer: Literal["auto", "sgd", "adam"] = "auto"
    """As in training."""
    dataset: str = "digits"
    """Data set; with a box, the box's own."""
    data_root: Path | None = None
    """Where it lies."""
    subset_percent: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training images that exist for everybody in this audit, a fraction."""
    image_size: int | None = None
    """As in a run's parameters; with a box, the box's own."""
    stream: bool | None = None
    """As in a run's parameters."""
    other_class_names: bool = False
    """The data may call the classes of box and teacher by other names: the same classes in the same order."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def filled(self) -> AuditSettings:
        """The same with the preset's values in place of None."""
        preset = PRESETS[self.preset]
        values = {name: getattr(preset, name) for name in ("seeds", "pairs", "maker_epochs", "views")}
        return self.model_copy(update={n: v for n, v in values.items() if getattr(self, n) is None})

    def regime(self, data: Splits) -> Regime:
        """What a thief has of these data."""
        if self.labelled is None:
            return replace(few_images(data), unlabelled=self.unlabelled)
        return Regime(len(data.train) if self.labelled == "all" else self.labelled, self.unlabelled)

    def of_makers(self, seed: int, images: int) -> TrainSettings:
        """How teachers and boxes that the audit makes of so many images are trained."""
        return self._fit(seed, images, self.maker_epochs or PRESETS[self.preset].maker_epochs, self.learning_rate)

    def of_students(self, seed: int, images: int) -> TrainSettings:
        """How students of so many images are trained."""
        rate = self.student_learning_rate or STUDENT_RATES[optimizer_for(self.optimizer, self.student_model)]
        return self._fit(seed, images, self.epochs or PRESETS[self.preset].epochs, rate)

    def _fit(self, seed: int, images: int, epochs: int, rate: float) -> TrainSettings:
        batch = max(1, min(self.batch_size, images // FEWEST_STEPS))
        more = self.epochs is None and ceil(PRESETS[self.preset].steps / max(1, images // batch))
        return TrainSettings(
            epochs=max(epochs, more),
            seed=seed,
            batch_size=batch,
            learning_rate=rate,
            optimizer=self.optimizer,
            device=self.device,
        )

    def seed_list(self) -> list[int]:
        """The seeds."""
        return list(range(self.seed, self.seed + (self.seeds or PRESETS[self.preset].seeds)))


def chosen(names: tuple[str, ...], known: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The attacks or defences of those names; all for none.

    Raises:
        ConfigError: a name that does not exist, with the nearest that does; or one's own that cannot be imported.
    """
    import difflib

    found: dict[str, Any] = {}
    for name in names or tuple(known):
        if name in known:
            found[name] = known[name]
        elif ":" in name:
            own = _imported(name, what)
            found[own.name] = own
        else:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"{what}: {name!r} does not exist; {hint}known: {', '.join(sorted(known))}")
    return found


def _imported(name: str, what: str) -> Any:
    module, _, attribute = name.partition(":")
    try:
        value = getattr(import_named(module), attribute)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise ConfigError(f"{what}: {name!r} cannot be imported: {error}") from error
    value = value() if isinstance(value, type) else value
    if not isinstance(value, Attack | Defence):
        raise ConfigError(f"{what}: {name!r} is a {type(value).__name__}, an Attack or a Defence is expected")
    return value


def attacks_of(settings: AuditSettings) -> dict[str, Attack]:
    """The attacks of an audit, as expensive as its preset allows."""
    made: dict[str, Callable[[Attack], Attack]] = {
        "brief": lambda attack: attack.brief(),
        "usual": lambda attack: attack,
        "extended": lambda attack: attack.extended(),
    }
    effort = made[PRESETS[settings.preset].effort]
    return {name: effort(attack) for name, attack in chosen(settings.attacks, ATTACKS, "attack").items()}


def defences_of(settings: AuditSettings) -> dict[str, Defence]:
    """The defences of an audit; the plain teacher is always among them, since it is the positive control."""
    names = settings.defences or (() if PRESETS[settings.preset].everywhere else QUICK)
    return {NONE: DEFENCES[NONE]} | chosen(names, DEFENCES, "defence")


def threat_of(attack: Attack) -> str:
    """Whose attack it is: of a client (api), of a holder of the weights (shipped), or of a part of a key (leak)."""
    if "leaked_key" in attack.uses:
        return "leak"
    return "shipped" if attack.needs is Interface.WEIGHTS else "api"


def runs_everywhere(settings: AuditSettings, attack: str) -> bool:
    """Whether an attack runs against defences other than the box and the plain teacher."""
    return PRESETS[settings.preset].everywhere or bool(settings.attacks) or attack in CORE
