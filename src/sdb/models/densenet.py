"""DenseNet for small images: 121, 161 and 169 layers, a 3x3 stem and no max pooling."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdb.errors import ModelError


class DenseLayer(nn.Module):
    """Append `growth` new channels to the input: (N, I, H, W) to (N, I + growth, H, W)."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        width = 4 * growth
        self.bottle_neck = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(in_channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the input and what was computed from it."""
        return torch.cat((x, self.bottle_neck(x)), dim=1)


class Transition(nn.Module):
    """Fewer channels and half the size: (N, I, H, W) to (N, out_channels, H / 2, W / 2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.down_sample = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
            nn.AvgPool2d(2),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, mix channels, pool."""
        return self.down_sample(x)


class DenseNet(nn.Module):
    """DenseNet-BC: (N, C, H, W) to logits (N, num_classes), for images of 8x8 and more.

    Source: Huang et al., Densely Connected Convolutional Networks, CVPR 2017 (arXiv 1608.06993), in the
    form for small images of weiaicunzai/pytorch-cifar100; structure and parameter names (uneven as they
    are, so that checkpoints load) as in VITA-Group/Nasty-Teacher, model/densenet.py.

    Args:
        depths: dense layers in each of the four blocks.
        growth: channels that each dense layer adds.
        num_classes: number of logits.
        image_shape: (C, H, W) of one image; only C matters, beyond the least size.
    """

    def __init__(
        self,
        depths: tuple[int, int, int, int],
        growth: int,
        *,
        num_classes: int,
        image_shape: tuple[int, int, int],
    ) -> None:
        super().__init__()
        if min(image_shape[1:]) < 8:
            raise ModelError(f"densenet takes images of at least 8x8 pixels, not {image_shape[1:]}: enlarge them")
        channels = 2 * growth
        self.conv1 = nn.Conv2d(image_shape[0], channels, 3, padding=1, bias=False)
        self.features = nn.Sequential()
        for index, depth in enumerate(depths):
            last = index == len(depths) - 1
            name = f"dense_block{index}" if last else f"dense_block_layer_{index}"
            self.features.add_module(name, _dense_block(channels, depth, growth))
            channels += depth * growth
            if not last:
                self.features.add_module(f"transition_layer_{index}", Transition(channels, channels // 2))
                channels //= 2
        self.features.add_module("bn", nn.BatchNorm2d(channels))
        self.features.add_module("relu", nn.ReLU(inplace=True))
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, C, H, W) to logits (N, num_classes)."""
        x = self.features(self.conv1(x))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _dense_block(in_channels: int, depth: int, growth: int) -> nn.Sequential:
    """A row of `depth` dense layers, each of which sees the output of all before it."""
    block = nn.Sequential()
    for index in range(depth):
        block.add_module(f"bottle_neck_layer_{index}", DenseLayer(in_channels + index * growth, growth))
    return block
