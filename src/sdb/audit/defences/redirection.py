"""Gradient redirection: answers changed, within a budget, to lead the gradient of whoever learns from them astray."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp

from sdb.audit.defences.defence import Defence, Defended, Parts, tensors_of
from sdb.audit.defences.outputs import ONLY_OUTPUTS, SMALLEST, TIED, Changed
from sdb.config import DistillSettings, FitSettings
from sdb.data import Splits
from sdb.distillation import distill
from sdb.errors import ModelError
from sdb.models import Classifier, device_of
from sdb.models.checkpoint import load_weights
from sdb.models.probe import probes
from sdb.runtime import choose_device
from sdb.wrapping.networks import fresh_copy, frozen


def redirection(network: nn.Module, images: Tensor) -> Tensor:
    """How far each class's mass in an answer leads the learner's gradient along the direction of all ones: (N, K).

    The gradient of CE(y, h(x)) over all parameters of a learner h is linear in the answer y, so its product with a
    direction d is v y with v_c = -<grad log S(h(x))_c, d>, that is less the derivative of log S(h(x)) along d. One
    forward-mode pass gives v for a whole batch; the source differentiates twice backwards for the same numbers.

    Args:
        network: the learner, in eval mode, so that images do not depend on each other.
        images: (N, C, H, W) in [0, 1].

    Source: Mazeika et al., ICML 2022 (gradient redirection, target ALL-ONES).
    """
    parameters = {name: tensor.detach() for name, tensor in network.named_parameters()}
    ones = {name: torch.ones_like(tensor) for name, tensor in parameters.items()}

    def answers(held: dict[str, Tensor]) -> Tensor:
        return functional_call(network, held, (images,)).log_softmax(dim=1)

    return -jvp(answers, (parameters,), (ones,))[1]


def check_differentiable(network: Classifier) -> None:
    """Refuse a network that torch cannot differentiate forwards.

    Raises:
        ModelError: saying why.
    """
    try:
        with torch.no_grad():
            redirection(network, probes(2, network.image_shape, device_of(network)))
    except Exception as error:  # the network may be anyone's
        raise ModelError(
            f"torch cannot differentiate this network in forward mode ({str(error).splitlines()[0]})"
        ) from error


def redirect(shares: Tensor, values: Tensor, budget: float) -> Tensor:
    """The probabilities within l1 distance `budget` of `shares` (N, K) with the largest product with `values` (N, K).

    Half the budget's mass goes from the classes of least value to the one of most; no other move gives more.
    """
    order = values.argsort(dim=1)
    best = order[:, -1:]
    room = (1 - shares.gather(1, best)).clamp(max=budget / 2)  # (N, 1)
    held = shares.gather(1, order)
    held[:, -1] = 0
    before = held.cumsum(dim=1) - held
    taken = torch.minimum(held, (room - before).clamp_min(0))
    moved = shares.scatter_add(1, order, -taken)
    return moved.scatter_add(1, best, taken.sum(dim=1, keepdim=True)).clamp_min(0)


def hold_top(shares: Tensor, moved: Tensor, top: Tensor) -> Tensor:
    """The farthest point from `shares` towards `moved`, both (N, K), at which `top` int64 (N,) still leads.

    Where a move would unseat the top class this is less than the best that is allowed, and simple.
    """
    place = top.unsqueeze(1)
    lead = shares.gather(1, place) - shares * (1 + TIED)
    after = moved.gather(1, place) - moved * (1 + TIED)
    lost = after < 0
    share = torch.where(lost, lead / (lead - after), 1.0).scatter(1, place, 1.0).clamp(0, 1)
    return shares + share.amin(dim=1, keepdim=True) * (moved - shares)


class RedirectedAnswers(Changed):
    """Probabilities moved as far as a budget allows in the direction that leads a surrogate's gradient astray."""

    def __init__(self, teacher: nn.Module, surrogate: nn.Module, budget: float) -> None:
        super().__init__(teacher)
        self.surrogate, self.budget = surrogate, budget

    def change(self, images: Tensor, logits: Tensor) -> Tensor:
        """Move within the budget; the top class stays on top."""
        shares = logits.softmax(dim=1)
        with torch.no_grad():
            values = redirection(self.surrogate, images).double()
        moved = hold_top(shares, redirect(shares, values, self.budget), logits.argmax(dim=1))
        return moved.clamp_min(SMALLEST).log()


@dataclass(frozen=True, kw_only=True)
class GradientRedirection(Defence):
    """Answers moved within an l1 budget so that a surrogate thief's gradient goes where it should not.

    The surrogate has the teacher's architecture and learned from the plain teacher on the training images; the source
    also teaches it on changed answers, which we leave out.

    Attributes:
        budget: largest l1 distance of an answer from the teacher's, in [0, 2].
        surrogate_epochs: of the surrogate's training, the source's 10; fewer where the settings have fewer.
    """

    name = "gradient_redirection"
    title = "gradient redirection"
    summary = "Answers moved within a budget so that a copying network's gradient is led astray"
    source = "Mazeika et al., ICML 2022 (GRAD2, target ALL-ONES)"
    threat_note = ONLY_OUTPUTS
    file = "surrogate.safetensors"

    budget: float = 1.0
    surrogate_epochs: int = 10

    def make(self, teacher: Classifier, data: Splits, settings: FitSettings) -> Parts:
        """Train the surrogate on the teacher's answers at temperature 1."""
        surrogate = fresh_copy(teacher, settings, "surrogate").to(choose_device(settings.device))
        fitted = {name: getattr(settings, name) for name in FitSettings.model_fields}
        fitted["epochs"] = min(settings.epochs, self.surrogate_epochs)
        learning = DistillSettings(**fitted, kd_weight=1.0, kd_temperature=1.0)
        distill(teacher, surrogate, data, learning, progress=False)
        check_differentiable(surrogate)
        return surrogate.state_dict()

    def open(self, teacher: Classifier, parts: Parts, record: dict[str, Any]) -> Defended:
        """The teacher with redirection after it."""
        network = frozen(teacher, device_of(teacher))
        surrogate = copy.deepcopy(network)
        load_weights(surrogate, tensors_of(parts), "the surrogate")
        keyless = RedirectedAnswers(network, surrogate.eval(), self.budget).eval()
        return Defended(keyless, None, network, seconds=record["seconds"])
