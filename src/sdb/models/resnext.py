"""ResNeXt for small images: 29 layers, grouped 3x3 convolutions."""

import torch.nn.functional as F
from torch import Tensor, nn


class GroupedBottleneck(nn.Module):
    """1x1, grouped 3x3, 1x1 convolutions and a shortcut: (N, I, H, W) to (N, O, H / stride, W / stride)."""

    def __init__(self, in_channels: int, out_channels: int, width: int, groups: int, stride: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn_reduce = nn.BatchNorm2d(width)
        self.conv_conv = nn.Conv2d(width, width, 3, stride, padding=1, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.conv_expand = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn_expand = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential()
        if in_channels != out_channels:
            self.shortcut.add_module("shortcut_conv", nn.Conv2d(in_channels, out_channels, 1, stride, bias=False))
            self.shortcut.add_module("shortcut_bn", nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Add the convolved path to the shortcut."""
        out = F.relu(self.bn_reduce(self.conv_reduce(x)), inplace=True)
        out = F.relu(self.bn(self.conv_conv(out)), inplace=True)
        out = self.bn_expand(self.conv_expand(out))
        return F.relu(out + self.shortcut(x), inplace=True)


class ResNeXt(nn.Module):
    """Aggregated residual network: (N, C, H, W) to logits (N, num_classes), for images of any size.

    Convolutions start from a normal distribution scaled by their fan-out, the head from one scaled by its
    fan-in.

    Source: Xie et al., Aggregated Residual Transformations for Deep Neural Networks, CVPR 2017 (arXiv
    1611.05431); structure, parameter names and initialisation as in VITA-Group/Nasty-Teacher,
    model/resnext.py, after prlz77/ResNeXt.pytorch.

    Args:
        depth: 9n + 2 layers, n blocks in each of three stages.
        groups: groups of the 3x3 convolutions (the paper's cardinality).
        num_classes: number of logits.
        image_shape: (C, H, W) of one image; only C matters.
    """

    def __init__(self, depth: int, groups: int, *, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        blocks = (depth - 2) // 9
        self.conv_1_3x3 = nn.Conv2d(image_shape[0], 64, 3, padding=1, bias=False)
        self.bn_1 = nn.BatchNorm2d(64)
        self.stage_1 = _stage("stage_1", 64, 256, blocks, groups, stride=1)
        self.stage_2 = _stage("stage_2", 256, 512, blocks, groups, stride=2)
        self.stage_3 = _stage("stage_3", 512, 1024, blocks, groups, stride=2)
        self.classifier = nn.Linear(1024, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.kaiming_normal_(self.classifier.weight, nonlinearity="relu")
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, C, H, W) to logits (N, num_classes)."""
        x = F.relu(self.bn_1(self.conv_1_3x3(x)), inplace=True)
        x = self.stage_3(self.stage_2(self.stage_1(x)))
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _stage(name: str, in_channels: int, out_channels: int, depth: int, groups: int, stride: int) -> nn.Sequential:
    """A row of `depth` blocks, the first of which changes channels and size."""
    width = groups * out_channels // 4
    stage = nn.Sequential()
    for index in range(depth):
        block = (
            GroupedBottleneck(in_channels, out_channels, width, groups, stride)
            if index == 0
            else GroupedBottleneck(out_channels, out_channels, width, groups, 1)
        )
        stage.add_module(f"{name}_bottleneck_{index}", block)
    return stage
