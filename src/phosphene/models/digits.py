"""The bundled teacher's network: four convolutions with BatchNorm for 8-pixel handwritten digits."""

from __future__ import annotations

from torch import Tensor, nn


class Digits(nn.Module):
    """``(N, channels, 8, 8)`` -> logits ``(N, classes)``; larger sides will do."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        widths = (channels, 16, 32, 64, 64)
        strides = (1, 1, 2, 1)
        self.features = nn.Sequential(
            *(convolution(*sizes) for sizes in zip(widths[:-1], widths[1:], strides, strict=True))
        )
        self.linear = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, channels, H, W)`` -> ``(N, classes)``."""
        logits: Tensor = self.linear(self.features(x).mean((2, 3)))
        return logits


def convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """3x3 convolution, BatchNorm, ReLU."""
    convolve = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(convolve, nn.BatchNorm2d(outputs), nn.ReLU())


def digits(classes: int = 10, channels: int = 1) -> Digits:
    """The network with fresh weights."""
    return Digits(classes, channels)
