"""ResNet-18 and -34 for 32-pixel images: the ImageNet widths behind a 3x3 stem, without its pooling.

The teachers of the data-free literature on CIFAR; parameter names are those in which their weights circulate.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .cifar_resnet import stage

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class WideStageResNet(nn.Module):
    """Four stages of 64, 128, 256 and 512 channels; ``forward``: ``(N, channels, H, W)`` -> logits ``(N, classes)``."""

    def __init__(self, depth: int, classes: int, channels: int) -> None:
        super().__init__()
        one, two, three, four = BLOCKS[depth]
        self.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = stage(64, 64, one, 1, "B")
        self.layer2 = stage(64, 128, two, 2, "B")
        self.layer3 = stage(128, 256, three, 2, "B")
        self.layer4 = stage(256, 512, four, 2, "B")
        self.linear = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, channels, H, W)`` -> logits ``(N, classes)``."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits
