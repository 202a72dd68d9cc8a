"""The reference's training loops, reimplemented to be timed: what ours is compared with in training_step.py.

As in JngwenYe/SDB, train_smb.py and train_kd.py, and their data loader: images are changed one by one with Pillow in
loader workers, padded with black, normalised there; the student sees plain images in one forward and keyed ones in a
second; teacher and random network answer every batch; the loss and the number of right answers are read back after
every step; weights lie channels first, SGD is torch's default. Formulas: docs/method.md. The reference asks for its
loss as `MSELoss(reduction="batchmean")`, which today's torch refuses; the sum that it meant is used.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)
BLEND, TEMPERATURE, WEIGHT, RANDOM_WEIGHT = 0.9, 4.0, 1.0, 0.001
KD_WEIGHT = 0.9
# Not its 0.1: on random images that soon gives no numbers, and those take other times.
LEARNING_RATE = 1e-3


class OneByOne(Dataset):
    """Images that are cropped, mirrored, scaled and normalised by Pillow and numpy, each when it is asked for."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images.transpose(0, 2, 3, 1), labels
        self.mean = torch.tensor(MEAN).view(3, 1, 1)
        self.std = torch.tensor(STD).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        """RandomCrop(32, 4), RandomHorizontalFlip, ToTensor, Normalize."""
        image = Image.fromarray(self.images[position])
        left, top = torch.randint(0, 9, (2,)).tolist()
        image = ImageOps.expand(image, 4).crop((left, top, left + 32, top + 32))
        if torch.rand(1).item() < 0.5:
            image = ImageOps.mirror(image)
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)
        return tensor.sub_(self.mean).div_(self.std), int(self.labels[position])


def loader(images: np.ndarray, labels: np.ndarray, batch_size: int, workers: int, pin: bool) -> DataLoader:
    """The reference's loader."""
    return DataLoader(
        OneByOne(images, labels), batch_size, shuffle=True, num_workers=workers, pin_memory=pin, drop_last=True
    )


class BoxLoop:
    """train_smb.py: a box around a teacher. Networks take normalised images.

    Args:
        network, teacher, random: on the device, channels first.
        pattern: the key as a normalised image, (3, H, W).
        device: where all is.
        autocast: forward in bfloat16; the reference has none, this is for a comparison in the same precision.
    """

    def __init__(
        self,
        network: nn.Module,
        teacher: nn.Module,
        random: nn.Module,
        pattern: Tensor,
        device: torch.device,
        autocast: bool,
    ) -> None:
        self.network, self.teacher, self.random = network.train(), teacher.eval(), random.eval()
        self.pattern, self.device, self.autocast = pattern.to(device), device, autocast
        self.optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=5e-4)
        self.total = self.right = 0.0

    def run(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        """Train on all batches."""
        divergence = nn.KLDivLoss(reduction="batchmean")
        square = nn.MSELoss(reduction="sum")
        for images, labels in batches:
            images = images.to(self.device, non_blocking=True)
            labels = labels.to(self.device, non_blocking=True)
            keyed = BLEND * images + (1 - BLEND) * self.pattern
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                output = self.network(images)
                output_keyed = self.network(keyed)
                with torch.no_grad():
                    normal, rand = self.teacher(images), self.random(images)
                loss = 2 * F.cross_entropy(output, labels) + F.cross_entropy(output_keyed, labels)
                apart = divergence(F.log_softmax(normal / TEMPERATURE, 1), F.softmax(output / TEMPERATURE, 1))
                together = divergence(F.log_softmax(output_keyed.detach(), 1), F.softmax(output, 1))
                loss = loss - WEIGHT * (apart * TEMPERATURE**2 - together)
                loss = loss + square(F.softmax(normal / TEMPERATURE, 1), F.softmax(output_keyed / TEMPERATURE, 1))
                near = 0.01 * square(F.relu(normal), F.relu(output_keyed))
                loss = loss - RANDOM_WEIGHT * (near - square(F.relu(rand), F.relu(output_keyed)))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.total += loss.item()
            self.right += output.argmax(1).eq(labels).sum().item()


class DistillationLoop:
    """train_kd.py: a student of a teacher."""

    def __init__(self, student: nn.Module, teacher: nn.Module, device: torch.device, autocast: bool) -> None:
        self.student, self.teacher, self.device, self.autocast = student.train(), teacher.eval(), device, autocast
        self.optimizer = torch.optim.SGD(student.parameters(), lr=LEARNING_RATE, momentum=0.9, weight_decay=5e-4)
        self.total = self.right = 0.0

    def run(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        """Train on all batches."""
        for images, labels in batches:
            images = images.to(self.device, non_blocking=True)
            labels = labels.to(self.device, non_blocking=True)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                with torch.no_grad():
                    target = self.teacher(images)
                output = self.student(images)
                soft = nn.KLDivLoss(reduction="batchmean")(
                    F.log_softmax(output / TEMPERATURE, 1), F.softmax(target / TEMPERATURE, 1)
                )
                loss = KD_WEIGHT * TEMPERATURE**2 * soft + (1 - KD_WEIGHT) * F.cross_entropy(output, labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.total += loss.item()
            self.right += output.argmax(1).eq(labels).sum().item()
