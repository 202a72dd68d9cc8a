"""Pre-activation ResNet for small images: 20, 32, 44, 56 and 110 layers."""

import torch.nn.functional as F
from torch import Tensor, nn


class PreBasicBlock(nn.Module):
    """Two 3x3 convolutions, each after its norm: (N, I, H, W) to (N, width, H / stride, W / stride)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.downsample = _downsample(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Add the convolved path to the shortcut."""
        out = self.conv1(F.relu(self.bn1(x), inplace=True))
        out = self.conv2(F.relu(self.bn2(out), inplace=True))
        return out + self.downsample(x)


class PreBottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions after norms: (N, I, H, W) to (N, 4 * width, H / stride, W / stride)."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, self.expansion * width, 1, bias=False)
        self.downsample = _downsample(in_channels, self.expansion * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Add the convolved path to the shortcut."""
        out = self.conv1(F.relu(self.bn1(x), inplace=True))
        out = self.conv2(F.relu(self.bn2(out), inplace=True))
        out = self.conv3(F.relu(self.bn3(out), inplace=True))
        return out + self.downsample(x)


class PreResNet(nn.Module):
    """Residual network with identity mappings: (N, C, H, W) to logits (N, num_classes), images of any size.

    Depths of 44 and more use bottleneck blocks, lesser ones basic blocks. Convolutions start from a normal
    distribution scaled by their fan-out (He et al., 2015).

    Source: He et al., Identity Mappings in Deep Residual Networks, ECCV 2016 (arXiv 1603.05027); structure
    and parameter names as in VITA-Group/Nasty-Teacher, model/preresnet.py, after
    bearpaw/pytorch-classification.

    Args:
        depth: 6n + 2 layers, n blocks in each of three stages.
        num_classes: number of logits.
        image_shape: (C, H, W) of one image; only C matters.
    """

    def __init__(self, depth: int, *, num_classes: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        block = PreBottleneck if depth >= 44 else PreBasicBlock
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(image_shape[0], 16, 3, padding=1, bias=False)
        self.layer1 = _stage(block, 16, 16, blocks, stride=1)
        self.layer2 = _stage(block, 16 * block.expansion, 32, blocks, stride=2)
        self.layer3 = _stage(block, 32 * block.expansion, 64, blocks, stride=2)
        self.bn = nn.BatchNorm2d(64 * block.expansion)
        self.fc = nn.Linear(64 * block.expansion, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map normalised images (N, C, H, W) to logits (N, num_classes)."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        x = F.relu(self.bn(x), inplace=True)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def _downsample(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Nothing where the shapes agree, else a 1x1 convolution without a norm."""
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False))


def _stage(
    block: type[PreBasicBlock] | type[PreBottleneck], in_channels: int, width: int, depth: int, stride: int
) -> nn.Sequential:
    """A row of `depth` blocks, the first of which changes channels and size."""
    following = [block(width * block.expansion, width, 1) for _ in range(depth - 1)]
    return nn.Sequential(block(in_channels, width, stride), *following)
