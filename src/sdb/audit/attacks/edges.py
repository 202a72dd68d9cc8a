"""Thieves that choose what they ask: images along the margin, and points on the edge between two levels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sdb.audit.attacks.attack import Attack, Stolen
from sdb.audit.attacks.attacker import Attacker, TransferSet
from sdb.audit.attacks.budget import affordable
from sdb.audit.attacks.distil import SMOOTHING
from sdb.audit.attacks.random_patterns import as_pixels
from sdb.audit.attacks.victim import BATCH, Answers, Interface, Victim
from sdb.data import Batch
from sdb.models import Classifier

# A first student's own confidence in a class that was told counts between these.
TRUSTED = (0.5, 0.99)
# Confidences that differ by rounding alone are the same.
SAME = 1e-4


def with_more(transfer: TransferSet, pixels: Tensor) -> TransferSet:
    """A transfer set and further images, uint8 (M, C, H, W), shared out among its views; what does not divide is left.

    The rows of view v are its old ones, then its share of the new ones.
    """
    own, more = len(transfer.pixels) // transfer.views, len(pixels) // transfer.views
    shape = transfer.pixels.shape[1:]
    extra = pixels[: more * transfer.views].to(transfer.pixels.device)
    together = torch.cat(
        [transfer.pixels.reshape(transfer.views, own, *shape), extra.reshape(transfer.views, more, *shape)], dim=1
    )
    unknown = transfer.targets.new_full((transfer.views, more), -1)
    targets = torch.cat([transfer.targets.reshape(transfer.views, own), unknown], dim=1)
    return replace(transfer, pixels=together.reshape(-1, *shape), targets=targets.reshape(-1))


def blends(images: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Images (count, C, H, W), each between two of those given, in a random share."""
    first, second = (torch.randint(len(images), (count,), generator=generator) for _ in range(2))
    share = torch.rand(count, 1, 1, 1, generator=generator).to(images.device)
    return share * images[first] + (1 - share) * images[second]


def doubtful(labels: Tensor, confidence: Tensor, num_classes: int) -> Tensor:
    """Soft targets (N, K): the confidence at the label, the doubt spread over the others."""
    doubt = (1 - confidence).clamp(0, 1).unsqueeze(1)
    named = F.one_hot(labels, num_classes).to(confidence.dtype)
    return (1 - doubt) * named + doubt * (1 - named) / (num_classes - 1)


def of_targets(attacker: Attacker, student: Classifier, transfer: TransferSet, targets: Tensor) -> Classifier:
    """A student, trained in place, of soft targets (M, K) for a transfer set of M images."""

    def loss(logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"cross_entropy": -(targets[batch.index] * logits.log_softmax(dim=1)).sum(dim=1).mean()}

    return attacker.learn(student, transfer, loss, same_each_step=True)


@torch.no_grad()
def shares_of(student: Classifier, pixels: Tensor) -> Tensor:
    """A student's probabilities (N, K) for images uint8 (N, C, H, W), few at a time: there may be tens of thousands."""
    return torch.cat([student(part.float() / 255).softmax(dim=1) for part in pixels.split(BATCH)])


def sure_of(answers: Answers) -> tuple[Tensor, Tensor]:
    """Confidence and class of each answer; bare classes are told without any, and get that of smoothed labels."""
    confidence, named = answers.scores().softmax(dim=1).max(dim=1)
    if answers.kind is Interface.LABELS:
        confidence = torch.full_like(confidence, 1 - SMOOTHING)
    return confidence, named


def tells_doubt(confidence: Tensor, named: Tensor) -> bool:
    """Whether answers of one class differ in confidence (N,), so that a class is told with how far to trust it."""
    return any(float(confidence[named == each].std(correction=0)) > SAME for each in named.unique())


def trust_of(student: Classifier, pixels: Tensor, named: Tensor) -> Tensor:
    """How sure a student is of classes that it was told of images uint8 (N, C, H, W), within `TRUSTED`; (N,)."""
    return shares_of(student, pixels).gather(1, named.unsqueeze(1)).squeeze(1).clamp(*TRUSTED)


def told(transfer: TransferSet, answers: Answers) -> Tensor:
    """Soft targets of what answers say: the thief's label where it has one, with the confidence that was told."""
    confidence, named = sure_of(answers)
    own = transfer.targets >= 0
    labels = torch.where(own, transfer.targets, named)
    # An answer that contradicts a label says nothing of how sure to be of it.
    sure = torch.where(own & (named != transfer.targets), 1 - SMOOTHING, confidence)
    return doubtful(labels, sure, answers.num_classes)


@dataclass(frozen=True, kw_only=True)
class MarginQueries(Attack):
    """Ask about blends of which a first student is least sure, beside the thief's own images.

    Blends lie between classes, so a bare class must not be learned as if it were sure: where the victim tells nothing
    of how sure it is of an image, the first student's own confidence stands in. Without that, what a level seems to
    tell is how doubtful blends are.

    Attributes:
        pool: blends that are looked at, for each image of a view.
        share: of the pool that is asked about.
    """

    name = "margin_queries"
    needs = Interface.LABELS
    uses = frozenset({"labels"})
    summary = (
        "Asks about blends of which a first student is least sure, learns class and confidence of all answers"
    )
    source = "Pal et al., AAAI 2020 (ActiveThief), uncertainty; blends: Beyer et al., CVPR 2022"

    pool: int = 16
    share: float = 0.25

    def run(self, victim: Victim, attacker: Attacker) -> Stolen:
        """A first student of the labels, blends, the least sure ones to the victim, a student of everything."""
        left = victim.left()
        half = None if left is None else left // 2
        transfer = affordable(victim, attacker, each=1 if half is None else 2)
        answers = transfer.ask(victim)
        first = of_targets(attacker, attacker.new_student(1), transfer, told(transfer, answers))
        own = transfer.images()[: len(transfer.pixels) // transfer.views]
        generator = torch.Generator().manual_seed(attacker.seed(self.name))
        found = as_pixels(blends(own, self.pool * len(own), generator))
        sure = shares_of(first, found).topk(2, dim=1).values
        wanted = int(self.share * len(found)) // transfer.views * transfer.views
        remaining = victim.left()
        payable = wanted if remaining is None else min(wanted, remaining // transfer.views * transfer.views)
        chosen = found[(sure[:, 0] - sure[:, 1]).argsort()[:payable]]
        chosen = chosen[torch.randperm(len(chosen), generator=generator)]
        if len(chosen) == 0:
            return Stolen(first, details={"asked": 0})
        confidence, named = sure_of(victim.ask(chosen.float() / 255))
        if not tells_doubt(confidence, named):
            confidence = trust_of(first, chosen, named)
        extra = doubtful(named, confidence, victim.num_classes)
        return Stolen(learned(attacker, transfer, answers, chosen, extra), details={"asked": len(chosen)})


def learned(
    attacker: Attacker, transfer: TransferSet, answers: Answers, more: Tensor, targets: Tensor
) -> Classifier:
    """A student of the answers to a transfer set, and of further images (M, C, H, W) with soft targets (M, K)."""
    both, classes = with_more(transfer, more), answers.num_classes
    extra = targets[: len(both.pixels) - len(transfer.pixels)]
    parts = [each.reshape(transfer.views, -1, classes) for each in (told(transfer, answers), extra)]
    return of_targets(attacker, attacker.new_student(), both, torch.cat(parts, dim=1).reshape(-1, classes))


@dataclass(frozen=True, kw_only=True)
class EdgeWalking(Attack):
    """Walk between a sure and a less sure image of one class to the edge between two levels, by bisection.

    A point on an edge has a confidence that is known better than a level tells: between the two levels. Against a
    victim that answers with exact confidences or without any there is no edge to find.

    Attributes:
        walks: at most, for each class that an answer named.
        steps: bisections of a walk; each is a query.
    """

    name = "edge_walking"
    needs = Interface.TOP_K
    uses = frozenset({"labels"})
    summary = "Walks to the edges between the victim's levels of confidence and learns from the points on them"
    source = "ours; bisection to a boundary: Lowd and Meek, KDD 2005"

    walks: int = 24
    steps: int = 6

    def run(self, victim: Victim, attacker: Attacker) -> Stolen:
        """Ask, walk where two levels of a class are seen, learn from own images and the points found."""
        victim.require(self.needs)
        left = victim.left()
        transfer = affordable(victim, attacker, each=1 if left is None else 2)
        answers = transfer.ask(victim)
        points, confidence, named = self.walk(victim, transfer.images(), answers, attacker.seed(self.name))
        if len(points) < transfer.views:
            student = of_targets(attacker, attacker.new_student(), transfer, told(transfer, answers))
            return Stolen(student, details={"points": 0})
        extra = doubtful(named, confidence, victim.num_classes)
        return Stolen(
            learned(attacker, transfer, answers, as_pixels(points), extra), details={"points": len(points)}
        )

    def walk(self, victim: Victim, images: Tensor, answers: Answers, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Points on edges (P, C, H, W), the confidence half-way between the levels that meet there, and their class."""
        generator = torch.Generator().manual_seed(seed)
        confidence, label = answers.scores().softmax(dim=1).max(dim=1)
        low, high = [], []
        for name in range(victim.num_classes):
            own = (label == name).nonzero().squeeze(1)
            if len(own) < 2 or len(confidence[own].unique()) == 1:
                continue
            middle = (confidence[own].min() + confidence[own].max()) / 2
            sure, less = own[confidence[own] >= middle], own[confidence[own] < middle]
            count = min(self.walks, max(len(sure), len(less)))
            high.append(sure[torch.randint(len(sure), (count,), generator=generator)])
            low.append(less[torch.randint(len(less), (count,), generator=generator)])
        if not low:
            return images[:0], confidence[:0], label[:0]
        start, end = torch.cat(low), torch.cat(high)
        left = victim.left()
        payable = len(start) if left is None else min(len(start), left // self.steps)
        start, end = start[:payable], end[:payable]
        a, b, told_a, told_b = images[start], images[end], confidence[start], confidence[end]
        class_of, inside = label[end], torch.ones(len(start), dtype=torch.bool, device=label.device)
        for _ in range(self.steps if payable else 0):
            point = (a + b) / 2
            said, name = victim.ask(point).scores().softmax(dim=1).max(dim=1)
            same = name == class_of
            up = same & (said >= told_b - 1e-6)
            place = up.view(-1, 1, 1, 1)
            a, b = torch.where(place, a, point), torch.where(place, point, b)
            told_a, inside = torch.where(up, told_a, said), torch.where(up, inside, same)
        # Where the class is lost just below, the walk ended between two classes, not between two levels.
        return b[inside], ((told_a + told_b) / 2)[inside], class_of[inside]
