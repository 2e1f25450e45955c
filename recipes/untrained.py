"""A network with random weights, so that a recipe's smoke scale needs no download: its figures mean nothing."""

import torch
from torch import nn

from phosphene import models


def mobilenetv2() -> nn.Module:
    """MobileNetV2 for 1000 classes, always the same random weights; the caller's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return models.build("mobilenetv2", 1000, 3)
