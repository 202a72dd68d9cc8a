"""The reference's multilayer perceptron: two hidden layers of 512 units."""

import math

import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """Three linear layers over all pixels: (N, C, H, W) to logits (N, num_classes), for one image size.

    The reference also applies a ReLU to the logits, so that a class whose logit is negative gets no
    gradient, and declares a dropout layer that it never calls. We do neither; its checkpoints load, and its
    outputs are ours with negative logits set to zero.

    Source: structure and parameter names as in VITA-Group/Nasty-Teacher, model/mlp.py.

    Args:
        num_classes: number of logits.
        image_shape: (C, H, W) of one image.
    """

    def __init__(self, *, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.fc1 = nn.Linear(math.prod(image_shape), 512)
        self.fc2 = nn.Linear(512, 512)
        self.fc3 = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, C, H, W) to logits (N, num_classes)."""
        x = F.relu(self.fc1(x.flatten(1)))
        return self.fc3(F.relu(self.fc2(x)))
