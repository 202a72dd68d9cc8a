"""ShuffleNetV2 (width 1x) for small images: a 3x3 stem without stride and no max pooling."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DownUnit(nn.Module):
    """Both branches see all channels: (N, I, H, W) to (N, O, H / 2, W / 2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.residual = _branch(in_channels, out_channels // 2, stride=2)
        self.shortcut = nn.Sequential(*_depthwise(in_channels, out_channels // 2, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the branches and shuffle."""
        return _shuffle(torch.cat((self.shortcut(x), self.residual(x)), dim=1))


class Unit(nn.Module):
    """One half of the channels passes, the other is convolved: (N, C, H, W) to (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.residual = _branch(channels // 2, channels // 2, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        """Concatenate the halves and shuffle."""
        passed, convolved = x.chunk(2, dim=1)
        return _shuffle(torch.cat((passed, self.residual(convolved)), dim=1))


class ShuffleNetV2(nn.Module):
    """Split and shuffled channels: (N, C, H, W) to logits (N, num_classes), for images of any size.

    Source: Ma et al., ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design, ECCV 2018
    (arXiv 1807.11164), in the form for small images of weiaicunzai/pytorch-cifar100; structure and
    parameter names as in VITA-Group/Nasty-Teacher, model/shufflenetv2.py (its stem has no activation, and
    its convolutions have biases).

    Args:
        num_classes: number of logits.
        image_shape: (C, H, W) of one image; only C matters.
    """

    def __init__(self, *, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.pre = nn.Sequential(nn.Conv2d(image_shape[0], 24, 3, padding=1), nn.BatchNorm2d(24))
        self.stage2 = _stage(24, 116, depth=4)
        self.stage3 = _stage(116, 232, depth=8)
        self.stage4 = _stage(232, 464, depth=4)
        self.conv5 = nn.Sequential(*_pointwise(464, 1024))
        self.fc = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, C, H, W) to logits (N, num_classes)."""
        x = self.conv5(self.stage4(self.stage3(self.stage2(self.pre(x)))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _shuffle(x: Tensor) -> Tensor:
    """Interleave the two halves of the channels, in plain operations that every exporter knows."""
    return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def _pointwise(in_channels: int, out_channels: int) -> list[nn.Module]:
    """1x1 convolution, norm, activation."""
    return [nn.Conv2d(in_channels, out_channels, 1), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


def _depthwise(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
    """3x3 convolution of each channel by itself, norm, then 1x1 convolution, norm, activation."""
    return [
        nn.Conv2d(in_channels, in_channels, 3, stride, padding=1, groups=in_channels),
        nn.BatchNorm2d(in_channels),
        *_pointwise(in_channels, out_channels),
    ]


def _branch(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """The convolved branch of a unit: (N, I, H, W) to (N, O, H / stride, W / stride)."""
    return nn.Sequential(*_pointwise(in_channels, in_channels), *_depthwise(in_channels, out_channels, stride))


def _stage(in_channels: int, out_channels: int, depth: int) -> nn.Sequential:
    """A row of `depth` units, the first of which changes channels and size."""
    following = [Unit(out_channels) for _ in range(depth - 1)]
    return nn.Sequential(DownUnit(in_channels, out_channels), *following)
