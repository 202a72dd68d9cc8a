"""Networks of one architecture whose weights lie stacked: one forward for all, each with its own loss."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sdb.data import Batch, Batches
from sdb.errors import ConfigError, ModelError
from sdb.models import Classifier
from sdb.stacking.layers import stack_layers
from sdb.training import Step, StudentStep
from sdb.views import Ask

# Of a classifier's tensors, those that are the same in all students.
SHARED = ("mean", "std")
INSIDE = "together."


class Stack(nn.Module):
    """Pixels (N, C, H, W) in [0, 1] to the logits (K, N, num_classes) of K networks.

    Parameters and buffers have the classifiers' names below `together`, and one axis more, the first: (K, ...).

    Args:
        classifiers: of one architecture, on one device; their values are copied.

    Attributes:
        spec: of each of them.
        size: how many there are, K.

    Raises:
        ModelError: they differ in architecture, or it cannot be stacked.
    """

    def __init__(self, classifiers: Sequence[Classifier]) -> None:
        super().__init__()
        self.size = len(classifiers)
        self.spec = classifiers[0].spec if classifiers else None
        if self.spec is None or any(each.spec != self.spec for each in classifiers):
            raise ModelError("a stack needs classifiers of one architecture, built from one ModelSpec")
        self.together = copy.deepcopy(classifiers[0])
        stack_layers(self.together.network, [each.network for each in classifiers])
        # In a tuple, so that it is no part of this module: what single classifiers are made of again.
        self._single = (copy.deepcopy(classifiers[0]),)
        _try(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (K, N, num_classes); running statistics are updated in training mode."""
        many = images.unsqueeze(1).expand(-1, self.size, -1, -1, -1).flatten(0, 1)  # (N * K, C, H, W)
        return self.together(many).unflatten(0, (-1, self.size)).transpose(0, 1)

    @torch.no_grad()
    def unstack(self) -> list[Classifier]:
        """The K classifiers, copies, in the stack's mode."""
        held = tensors_of(self.together)
        made = []
        for number in range(self.size):
            classifier = copy.deepcopy(self._single[0]).to(held["mean"].device)
            for name, tensor in tensors_of(classifier).items():
                tensor.copy_(held[name] if name in SHARED else held[name][number])
            made.append(classifier.train(self.training))
        return made


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return dict(module.named_parameters()) | dict(module.named_buffers())


@torch.no_grad()
def _try(stack: Stack) -> None:
    """Send two random images through; the first network must answer as it does alone.

    Raises:
        ModelError: it does not, so it looks at more than one image at a time.
    """
    single, training = copy.deepcopy(stack._single[0]).eval(), stack.together.training
    images = torch.rand(2, *single.image_shape, generator=torch.Generator().manual_seed(0)).to(single.mean)
    alone, together = single(images), stack.eval()(images)[0]
    stack.train(training)
    if not torch.allclose(alone, together, rtol=1e-2, atol=1e-3 * float(alone.abs().max())):
        raise ModelError(
            f"{type(single.network).__name__} cannot be stacked, since it does not treat images one by one: train "
            "these students one after the other"
        )


def stacked_step(steps: Sequence[StudentStep]) -> Step:
    """The step of a stack: each student's own loss terms on its own logits, named "k/term", k from 0."""

    def step(forward: nn.Module, batch: Batch) -> dict[str, Tensor]:
        logits = forward(batch.images)
        terms: dict[str, Tensor] = {}
        for number, own in enumerate(steps):
            mine = own(lambda _, number=number: logits[number], batch)
            terms |= {f"{number}/{name}": term for name, term in mine.items()}
        return terms

    return step


def shared(ask: Ask) -> Ask:
    """The same answers; asked about one batch several times in a row, the frozen module works once."""
    last: list[tuple[Batch, Tensor]] = []

    def once(batch: Batch) -> Tensor:
        if not last or last[0][0] is not batch:
            last[:] = [(batch, ask(batch))]
        return last[0][1]

    return once


@torch.no_grad()
def evaluate_stack(stack: Stack, batches: Batches) -> dict[str, float]:
    """What `sdb.training.evaluate` says of each network, as "k/accuracy" ...; "accuracy" is the mean of all."""
    training = stack.training
    stack.eval()
    totals, count = torch.zeros(2, stack.size, dtype=torch.float64), 0
    for batch in batches.epoch(0):
        logits = stack(batch.images).float()
        correct = (logits.argmax(dim=2) == batch.labels).sum(dim=1)
        labels = batch.labels.expand(stack.size, -1)
        losses = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        part = torch.stack([correct.double(), losses.view(stack.size, -1).double().sum(dim=1)])
        totals = totals.to(part.device) + part
        count += len(batch.labels)
    stack.train(training)
    if count == 0:
        raise ConfigError("there are no images to evaluate on")
    accuracies, losses = (totals / count).tolist()
    result = {"accuracy": sum(accuracies) / stack.size}
    for number in range(stack.size):
        result |= {f"{number}/accuracy": accuracies[number], f"{number}/cross_entropy": losses[number]}
    return result
