"""The reference's plain convolutional network, a small student that trains in seconds."""

import torch.nn.functional as F
from torch import Tensor, nn

from sdb.errors import ModelError


class Net(nn.Module):
    """Small CNN: (N, C, H, W) to logits (N, num_classes), for images of 8x8 and more.

    The first linear layer sees the whole pooled map, (H // 8) x (W // 8), so a network fits one image size.

    Source: structure and parameter names as in VITA-Group/Nasty-Teacher, model/net.py.

    Args:
        num_classes: number of logits.
        image_shape: (C, H, W) of one image.
        num_channels: width of the first convolution; the second is twice, the third four times as wide.
        dropout_rate: share of the hidden units dropped in training, in [0, 1).
    """

    def __init__(
        self, *, num_classes: int, image_shape: tuple[int, int, int], num_channels: int, dropout_rate: float
    ) -> None:
        super().__init__()
        in_channels, height, width = image_shape
        if height < 8 or width < 8:
            raise ModelError(
                f"net takes images of at least 8x8 pixels, not {height}x{width}: enlarge them or take mlp"
            )
        if type(num_channels) is not int or not 1 <= num_channels <= 4096:
            raise ModelError(f"net: num_channels is {num_channels!r}: give a whole number from 1 to 4096")
        if type(dropout_rate) not in (int, float) or not 0 <= dropout_rate < 1:
            raise ModelError(f"net: dropout_rate is {dropout_rate!r}: give a number in [0, 1)")
        self.conv1 = nn.Conv2d(in_channels, num_channels, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(num_channels)
        self.conv2 = nn.Conv2d(num_channels, 2 * num_channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(2 * num_channels)
        self.conv3 = nn.Conv2d(2 * num_channels, 4 * num_channels, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(4 * num_channels)
        self.fc1 = nn.Linear((height // 8) * (width // 8) * 4 * num_channels, 4 * num_channels)
        self.fcbn1 = nn.BatchNorm1d(4 * num_channels)
        self.fc2 = nn.Linear(4 * num_channels, num_classes)
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, C, H, W) to logits (N, num_classes)."""
        x = F.relu(F.max_pool2d(self.bn1(self.conv1(x)), 2))  # (N, num_channels, H / 2, W / 2)
        x = F.relu(F.max_pool2d(self.bn2(self.conv2(x)), 2))  # (N, 2 * num_channels, H / 4, W / 4)
        x = F.relu(F.max_pool2d(self.bn3(self.conv3(x)), 2))  # (N, 4 * num_channels, H / 8, W / 8)
        x = F.relu(self.fcbn1(self.fc1(x.flatten(1))))  # (N, 4 * num_channels)
        return self.fc2(self.dropout(x))
