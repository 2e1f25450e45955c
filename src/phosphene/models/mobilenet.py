"""MobileNetV2 (Sandler et al. 2018, Table 2) for ImageNet, and with fewer strides for 32-pixel images.

Parameter names are torchvision's, so that its published weights load as they are.
"""

from __future__ import annotations

from torch import Tensor, nn

# expansion t, channels c, repeats n, stride s (Table 2)
IMAGENET = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
CIFAR = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


class ConvBN(nn.Sequential):
    """Convolution, BatchNorm, ReLU6."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU6(inplace=True),
        )


class InvertedResidual(nn.Module):
    """Expand, filter depthwise, project; a shortcut where the shapes agree (Fig. 4d)."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [ConvBN(inputs, hidden, 1)] if expansion != 1 else []
        depthwise = ConvBN(hidden, hidden, 3, stride, groups=hidden)
        project = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.conv = nn.Sequential(*expand, depthwise, project, nn.BatchNorm2d(outputs))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, H, W)`` -> ``(N, outputs, H / stride, W / stride)``."""
        y: Tensor = self.conv(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """``forward``: ``(N, channels, H, W)`` -> logits ``(N, classes)``; `cifar` keeps 32-pixel images large enough."""

    def __init__(self, classes: int, channels: int, cifar: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = [ConvBN(channels, 32, 3, 1 if cifar else 2)]
        inputs = 32
        for expansion, outputs, repeats, stride in CIFAR if cifar else IMAGENET:
            for repeat in range(repeats):
                layers.append(InvertedResidual(inputs, outputs, stride if repeat == 0 else 1, expansion))
                inputs = outputs
        self.features = nn.Sequential(*layers, ConvBN(inputs, 1280, 1))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, channels, H, W)`` -> logits ``(N, classes)``."""
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


def _initialise(layer: nn.Module) -> None:
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out")
    elif isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, 0, 0.01)
        nn.init.zeros_(layer.bias)
