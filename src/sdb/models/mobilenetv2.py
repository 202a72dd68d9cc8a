"""MobileNetV2 for small images: a 1x1 stem and two strides fewer than the ImageNet form."""

import torch.nn.functional as F
from torch import Tensor, nn


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow: (N, I, H, W) to (N, O, H / stride, W / stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = in_channels * expansion
        # The biases before the norms do nothing; the reference's checkpoints hold them.
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, width, 1),
            nn.BatchNorm2d(width),
            nn.ReLU6(inplace=True),
            nn.Conv2d(width, width, 3, stride, padding=1, groups=width),
            nn.BatchNorm2d(width),
            nn.ReLU6(inplace=True),
            nn.Conv2d(width, out_channels, 1),
            nn.BatchNorm2d(out_channels),
        )
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Add the input where the shapes agree."""
        out = self.residual(x)
        return out + x if self.has_shortcut else out


class MobileNetV2(nn.Module):
    """Network of inverted residuals: (N, C, H, W) to logits (N, num_classes), for images of any size.

    The stem pads a 1x1 convolution, which adds a border of one pixel; kept, because trained weights know it.

    Source: Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018 (arXiv
    1801.04381), in the form for small images of weiaicunzai/pytorch-cifar100; structure and parameter names
    as in VITA-Group/Nasty-Teacher, model/mobilenetv2.py.

    Args:
        num_classes: number of logits.
        image_shape: (C, H, W) of one image; only C matters.
    """

    def __init__(self, *, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.pre = nn.Sequential(
            nn.Conv2d(image_shape[0], 32, 1, padding=1), nn.BatchNorm2d(32), nn.ReLU6(inplace=True)
        )
        self.stage1 = InvertedResidual(32, 16, stride=1, expansion=1)
        self.stage2 = _stage(16, 24, depth=2, stride=2)
        self.stage3 = _stage(24, 32, depth=3, stride=2)
        self.stage4 = _stage(32, 64, depth=4, stride=2)
        self.stage5 = _stage(64, 96, depth=3, stride=1)
        self.stage6 = _stage(96, 160, depth=3, stride=1)
        self.stage7 = InvertedResidual(160, 320, stride=1, expansion=6)
        self.conv1 = nn.Sequential(nn.Conv2d(320, 1280, 1), nn.BatchNorm2d(1280), nn.ReLU6(inplace=True))
        self.conv2 = nn.Conv2d(1280, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, C, H, W) to logits (N, num_classes)."""
        x = self.stage3(self.stage2(self.stage1(self.pre(x))))
        x = self.stage7(self.stage6(self.stage5(self.stage4(x))))
        x = F.adaptive_avg_pool2d(self.conv1(x), 1)
        return self.conv2(x).flatten(1)


def _stage(in_channels: int, out_channels: int, depth: int, stride: int) -> nn.Sequential:
    """A row of `depth` blocks, the first of which changes channels and size."""
    following = [InvertedResidual(out_channels, out_channels, 1, expansion=6) for _ in range(depth - 1)]
    return nn.Sequential(InvertedResidual(in_channels, out_channels, stride, expansion=6), *following)
