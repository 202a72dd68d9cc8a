"""Data-free extraction, reduced: a generator seeks images on which student and victim differ; the student learns them.

The published attack asks 20 million times. This one works on a hundred thousand because nothing is asked
only once: a share of the budget goes to smooth random patterns, which need neither images nor a generator; every answer
is kept and learnt again (as in MAZE); and the victim's gradient is estimated for the direction alone in which student
and victim differ, the student's own being known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdb.audit.attacks.attack import Attack, Stolen
from sdb.audit.attacks.attacker import Attacker
from sdb.audit.attacks.budget import payable
from sdb.audit.attacks.knockoff import asked_about, in_parts
from sdb.audit.attacks.random_patterns import as_pixels, patterns
from sdb.audit.attacks.victim import Interface, Victim
from sdb.data import Batch
from sdb.errors import ConfigError

LATENT = 64


def centred(scores: Tensor) -> Tensor:
    """Log-probabilities (N, K), each row brought to mean 0: the same from logits and from probabilities."""
    logs = scores.log_softmax(dim=1)
    return logs - logs.mean(dim=1, keepdim=True)


class Generator(nn.Module):
    """Noise (N, LATENT) to images (N, C, H, W) in (0, 1).

    Source: the generator of DFME (Truong et al., CVPR 2021), with fewer channels and for any image size.
    """

    def __init__(self, image_shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        channels, height, across = image_shape
        self.size = (height, across)
        self.start = (width, -(-height // 4), -(-across // 4))
        self.linear = nn.Linear(LATENT, width * self.start[1] * self.start[2])
        self.first = nn.Sequential(nn.BatchNorm2d(width), nn.Upsample(scale_factor=2))
        self.middle = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.LeakyReLU(0.2)
        )
        self.last = nn.Sequential(
            nn.Conv2d(width, width // 2, 3, padding=1),
            nn.BatchNorm2d(width // 2),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width // 2, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
        )

    def forward(self, noise: Tensor) -> Tensor:
        """Draw."""
        maps = self.middle(self.first(self.linear(noise).view(-1, *self.start)))
        return (2 * self.last(F.interpolate(maps, size=self.size))).sigmoid()


@dataclass(frozen=True, kw_only=True)
class DataFree(Attack):
    """Steal without any image.

    Attributes:
        queries: asked at most; fewer where the budget is smaller.
        pattern_share: share of them for smooth random patterns.
        batch_size: images per step.
        student_steps: of the student for each of the generator; one of them on new images, the others on earlier ones.
        generator_rate: Adam's.
        student_rate: Adam's, of the student that the generator plays against.
        balance: weight of the generator's classes being even.
        difference: step of the victim's finite difference, of pixels in [0, 1].
        width: the generator's channels.
        passes: over all answers when the final student learns.
    """

    name = "data_free"
    needs = Interface.TOP_K
    uses = frozenset({"no_images"})
    summary = "Without any image: a generator against a student, reduced to a hundred thousand queries"
    source = (
        "DFME: Truong et al., CVPR 2021 (arXiv 2011.14779), 20 M queries there; replay: MAZE, Kariyappa et al., CVPR "
        "2021; balance: DFMS-HL, Sanyal et al., CVPR 2022; patterns: ours"
    )
    control = 0.7

    queries: int = 100_000
    pattern_share: float = 0.6
    batch_size: int = 256
    student_steps: int = 3
    generator_rate: float = 5e-4
    student_rate: float = 2e-3
    balance: float = 5.0
    difference: float = 0.02
    width: int = 32
    passes: int = 4

    def brief(self) -> DataFree:
        """With fewer queries."""
        return replace(self, queries=30_000)

    def extended(self) -> DataFree:
        """With ten times the queries."""
        return replace(self, queries=10 * self.queries)

    def run(self, victim: Victim, attacker: Attacker) -> Stolen:
        """Ask about patterns, play generator against student, learn everything that was answered."""
        victim.require(self.needs)
        if not 0 < self.pattern_share <= 1:
            raise ConfigError(f"pattern_share: {self.pattern_share}; a share above 0 and up to 1 is expected")
        budget = payable(victim, self.queries)
        draw = torch.Generator().manual_seed(attacker.seed(self.name))
        shown = patterns(int(self.pattern_share * budget), victim.image_shape, draw).to(attacker.device)
        told = centred(asked_about(victim, shown).scores())
        if 3 * self.batch_size <= budget - len(shown):
            shown, told = self._play(victim, attacker, budget - len(shown), shown, told, draw)
        order = torch.randperm(len(shown), generator=draw).to(attacker.device)
        shown, told = shown[order], told[order]
        transfer = in_parts(
            shown, attacker, parts=attacker.settings.epochs // self.passes, batch_size=self.batch_size
        )

        def loss(logits: Tensor, batch: Batch) -> dict[str, Tensor]:
            return {"l1": (centred(logits) - told[batch.index]).abs().mean()}

        student = attacker.learn(attacker.new_student(), transfer, loss)
        return Stolen(student, details={"images": len(shown)})

    def _play(
        self, victim: Victim, attacker: Attacker, budget: int, shown: Tensor, told: Tensor, draw: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The min-max game; all images uint8 (M, C, H, W) and centred answers (M, K), the given ones first."""
        device, size = attacker.device, self.batch_size
        rounds = budget // (3 * size)
        first = len(shown)
        # Room for all answers, so that earlier ones are not copied every round.
        shown = torch.cat([shown, shown.new_zeros(2 * size * rounds, *shown.shape[1:])])
        told = torch.cat([told, told.new_zeros(2 * size * rounds, told.shape[1])])
        student = attacker.new_student().to(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(attacker.seed(self.name, "generator"))
            generator = Generator(victim.image_shape, self.width).to(device)
        for_student = torch.optim.Adam(student.parameters(), lr=self.student_rate)
        for_generator = torch.optim.Adam(generator.parameters(), lr=self.generator_rate)

        def learn(rows: Tensor) -> None:
            student.train()
            loss = (centred(student(shown[rows].float() / 255)) - told[rows]).abs().mean()
            for_student.zero_grad()
            loss.backward()
            for_student.step()

        def earlier(end: int) -> Tensor:
            return torch.randint(end, (size,), generator=draw).to(device)

        for _ in range(first // size):
            learn(earlier(first))
        for number in range(rounds):
            end = first + 2 * size * number
            images = generator(torch.randn(size, LATENT, generator=draw).to(device))
            shown[end : end + size] = as_pixels(images.detach())
            asked = shown[end : end + size].float() / 255
            told[end : end + size] = answers = centred(victim.ask(asked).scores())
            student.eval()
            apart = self._disagreement(victim, student, asked, answers, draw)
            share = student(images).softmax(dim=1).mean(dim=0)
            evenness = (share * share.clamp_min(1e-8).log()).sum()
            loss = self.balance * evenness - (images * apart).sum() / size
            for_generator.zero_grad()
            loss.backward()
            for_generator.step()
            with torch.no_grad():
                fresh = as_pixels(generator(torch.randn(size, LATENT, generator=draw).to(device)))
            shown[end + size : end + 2 * size] = fresh
            told[end + size : end + 2 * size] = centred(victim.ask(fresh.float() / 255).scores())
            learn(torch.arange(end + size, end + 2 * size, device=device))
            for _ in range(self.student_steps - 1):
                learn(earlier(end + 2 * size))
        return shown, told

    def _disagreement(
        self, victim: Victim, student: nn.Module, asked: Tensor, answers: Tensor, draw: torch.Generator
    ) -> Tensor:
        """Direction (N, C, H, W), of norm 1, in which the l1 distance of student and victim grows at each image.

        The student's part is its gradient; the victim's is a forward difference in one random direction.
        """
        pixels = asked.clone().requires_grad_()
        guessed = centred(student(pixels))
        sign = (guessed - answers).sign().detach()
        (own,) = torch.autograd.grad((sign * guessed).sum(), pixels)
        direction = torch.randn(asked.shape, generator=draw).to(asked.device)
        moved = centred(victim.ask(asked + self.difference * direction).scores())
        slope = (sign * (moved - answers)).sum(dim=1) / self.difference
        apart = own - slope.view(-1, 1, 1, 1) * direction
        return apart / apart.flatten(1).norm(dim=1).clamp_min(1e-8).view(-1, 1, 1, 1)
