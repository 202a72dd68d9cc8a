"""An accuracy budget: the box that fails thieves most among those that keep the teacher's accuracy.

Candidates are wrapped one after another, each is judged on validation images alone, keyless and keyed, and a small
validation thief is distilled from each that keeps within the budget. Where none does, the one that comes nearest is
kept and the shortfall is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from sdb.box.box import Box
from sdb.config import DistillSettings, WrapSettings
from sdb.data import Data, as_data
from sdb.distillation import distill
from sdb.errors import MissingExtraError
from sdb.keys import Key
from sdb.models import Classifier
from sdb.runtime import choose_device
from sdb.training.evaluation import evaluate, evaluation_batches

# From the most protective to the most accurate: changes to the settings that were asked for.
LADDER: tuple[dict[str, Any], ...] = ({"ce_weight": 0.3}, {"ce_weight": 1.0}, {"ce_weight": 3.0})
# The same without levels of confidence.
MISLEADING_LADDER: tuple[dict[str, Any], ...] = (
    {"margin": 1.0, "ce_weight": 0.3},
    {"margin": 1.0, "ce_weight": 1.0},
    {"margin": 2.0, "ce_weight": 1.0},
    {"margin": 3.0, "ce_weight": 3.0},
)
DEFAULT_BUDGET = 0.005


@dataclass(frozen=True, slots=True)
class Trial:
    """One candidate box, judged on validation images; accuracies are fractions.

    Attributes:
        changes: to the settings that were asked for.
        keyless, keyed: the box's accuracies.
        loss: how far the worse of the two is below the teacher.
        thief: accuracy of the validation thief; None where the box does not keep the budget.
    """

    changes: dict[str, Any]
    keyless: float
    keyed: float
    loss: float
    thief: float | None

    def to_json(self) -> dict[str, Any]:
        """The trial as JSON values."""
        return asdict(self)


class Search:
    """Candidates proposed by Optuna's tree-structured Parzen estimator, each from how the ones before did.

    Args:
        trials: how many.
        seed: of the proposals.
        budget: a box over it counts as worse than any thief.
        misleading: whether the boxes are without levels of confidence; there is more to choose then.

    Raises:
        MissingExtraError: Optuna is not installed.
    """

    def __init__(self, trials: int, seed: int, budget: float, misleading: bool = False) -> None:
        try:
            import optuna
        except ImportError:
            raise MissingExtraError("optuna", "tune", "a search for box settings") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.trials, self.budget, self.misleading = trials, budget, misleading
        self._study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for _ in range(self.trials):
            self._asked = self._study.ask()
            yield {"ce_weight": self._asked.suggest_float("ce_weight", 0.1, 5.0, log=True)} | (
                {
                    "margin": self._asked.suggest_float("margin", 0.5, 4.0),
                    "decoy_height": self._asked.suggest_float("decoy_height", 4.0, 12.0),
                }
                if self.misleading
                else {}
            )

    def tell(self, trial: Trial) -> None:
        """Learn from the candidate that was last proposed."""
        self._study.tell(self._asked, 1.0 + trial.loss if trial.thief is None else trial.thief)


@dataclass(frozen=True, slots=True)
class Choice:
    """The box that was chosen, and why.

    Attributes:
        box: the chosen box.
        trial: its trial.
        trials: all of them, in order.
        budget: largest loss of accuracy that was allowed, a fraction.
    """

    box: Box
    trial: Trial
    trials: tuple[Trial, ...]
    budget: float

    @property
    def met(self) -> bool:
        """Whether the chosen box keeps within the budget."""
        return self.trial.loss <= self.budget

    def sentence(self) -> str:
        """The outcome in words."""
        if self.met:
            return f"within the accuracy budget of {100 * self.budget:g} points on validation images"
        over = 100 * (self.trial.loss - self.budget)
        return (
            f"the accuracy budget of {100 * self.budget:g} points cannot be met by any of {len(self.trials)} "
            f"candidates; the nearest box is {over:.2f} points over it: train longer, or allow more"
        )


def wrap_within_budget(
    make_box: Callable[[WrapSettings], Box],
    teacher: Classifier,
    key: Key,
    data: Data,
    settings: WrapSettings,
    make_student: Callable[[], Classifier],
    student_settings: DistillSettings,
    *,
    budget: float = DEFAULT_BUDGET,
    ladder: Iterable[dict[str, Any]] | None = None,
) -> Choice:
    """Choose among candidate boxes by validation accuracy and a validation thief.

    Args:
        make_box: wraps with the settings it is given, for example a call of `sdb.wrap`.
        teacher: what accuracy is compared with.
        key: opens the boxes.
        data: as `sdb.data.as_data` takes them; only training and validation images are used.
        settings: what every candidate has in common.
        make_student: a fresh student for each thief, always with the same weights.
        student_settings: how thieves are distilled.
        budget: largest loss of accuracy, keyless and keyed, a fraction.
        ladder: changes to the settings, one dictionary per candidate; a `Search` learns from each. None: a short one.
    """
    if ladder is None:
        ladder = LADDER if settings.confidence_levels else MISLEADING_LADDER
    data = as_data(data, teacher.spec.num_classes)
    device = choose_device(settings.device)
    validation = evaluation_batches(data.validation, device)

    def accuracy(model: Any) -> float:
        return evaluate(model.to(device), validation)["accuracy"]

    reference = accuracy(teacher)
    boxes: list[Box] = []
    trials: list[Trial] = []
    for changes in ladder:
        box = make_box(settings.model_copy(update=changes))
        keyless, keyed = accuracy(box), accuracy(box.unlock(key))
        loss = reference - min(keyless, keyed)
        thief = None
        if loss <= budget:
            student = make_student()
            distill(box, student, data, student_settings, progress=False)
            thief = accuracy(student)
        boxes.append(box)
        trials.append(Trial(dict(changes), keyless, keyed, loss, thief))
        if isinstance(ladder, Search):
            ladder.tell(trials[-1])

    def rank(number: int) -> tuple[bool, float]:
        trial = trials[number]
        return (True, trial.loss) if trial.thief is None else (False, trial.thief)

    chosen = min(range(len(trials)), key=rank)
    return Choice(boxes[chosen], trials[chosen], tuple(trials), budget)
