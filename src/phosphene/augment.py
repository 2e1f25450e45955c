"""Random crop, flip, cutout and mixup on whole batches of tensors, each image with its own random numbers.

Crops and flips work on the stored bytes, before normalisation; cutout and mixup on normalised images, where zero is the mean
colour. Random numbers are drawn on the CPU whatever the device, so that a seed means the same everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import SettingsError


@dataclass(frozen=True)
class Augment:
    """What happens to a batch; the default is nothing.

    `crop`: side of the region cut at a random place of each image (None: the side of the image). `pad`: black pixels added on
    every side before the crop. `flip`: mirrored with probability 1/2. `cutout`: side of the square set to zero, its centre anywhere
    in the image (0: none). `mixup`: a of Beta(a, a), by which each image and its row are mixed with another's (0: none).
    """

    crop: int | None = None
    pad: int = 0
    flip: bool = False
    cutout: int = 0
    mixup: float = 0.0

    def __post_init__(self) -> None:
        for key in ("pad", "cutout", "mixup"):
            if getattr(self, key) < 0:
                raise SettingsError(f"--{key} {getattr(self, key)} is negative; 0 turns it off")

    def __call__(
        self, inputs: Tensor, targets: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Inputs (N, C, H, W), rows (N, K) -> inputs (N, C, crop, crop), rows (N, K): `move`, then `mix`."""
        return self.mix(self.move(inputs, generator), targets, generator)

    def move(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Pad, crop and flip images (N, C, H, W) of any dtype; every output pixel is an input pixel (or the black margin)."""
        if self.pad:
            pixels = F.pad(pixels, (self.pad,) * 4)
        n, _, height, width = pixels.shape
        h, w = self._region(height, width)
        top = torch.randint(0, height - h + 1, (n,), generator=generator)
        left = torch.randint(0, width - w + 1, (n,), generator=generator)
        mirrored = torch.rand(n, generator=generator) < 0.5 if self.flip else torch.zeros(n, dtype=torch.bool)
        if (h, w) == (height, width) and not self.flip:
            return pixels
        return _cut(pixels, top, left, h, w, mirrored)

    def mix(
        self, inputs: Tensor, targets: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Cut out a square and mix pairs: float images (N, C, H, W) and rows (N, K), soft rows included."""
        if self.cutout:
            inputs = inputs * _holes(inputs, self.cutout, generator)
        if self.mixup:
            n = len(inputs)
            share = beta(self.mixup, n, generator).to(inputs.device)
            other = torch.randperm(n, generator=generator).to(inputs.device)
            inputs = torch.lerp(inputs[other], inputs, share.view(n, 1, 1, 1).to(inputs.dtype))
            targets = torch.lerp(targets[other], targets, share.view(n, 1).to(targets.dtype))
        return inputs, targets

    def _region(self, height: int, width: int) -> tuple[int, int]:
        if self.crop is None:
            return height - 2 * self.pad, width - 2 * self.pad
        if self.crop > min(height, width):
            raise SettingsError(f"--crop {self.crop} is larger than the image ({height}x{width} with --pad {self.pad})")
        return self.crop, self.crop


def _cut(pixels: Tensor, top: Tensor, left: Tensor, h: int, w: int, mirrored: Tensor) -> Tensor:
    """One gather does crop and flip: rows top..top+h, columns left..left+w, counted backwards where mirrored."""
    n, channels, _, _ = pixels.shape
    rows = top[:, None] + torch.arange(h)
    columns = torch.where(mirrored[:, None], torch.arange(w - 1, -1, -1), torch.arange(w)) + left[:, None]
    rows, columns = rows.to(pixels.device), columns.to(pixels.device)
    images = torch.arange(n, device=pixels.device)
    planes = torch.arange(channels, device=pixels.device)
    return pixels[images[:, None, None, None], planes[None, :, None, None], rows[:, None, :, None], columns[:, None, None, :]]


def _holes(inputs: Tensor, side: int, generator: torch.Generator | None) -> Tensor:
    """Masks (N, 1, H, W): 0 in a square of `side` around a random centre, clipped at the border; 1 elsewhere."""
    n, _, height, width = inputs.shape
    y = torch.randint(0, height, (n, 1), generator=generator) - side // 2
    x = torch.randint(0, width, (n, 1), generator=generator) - side // 2
    inside_y = (torch.arange(height) >= y) & (torch.arange(height) < y + side)
    inside_x = (torch.arange(width) >= x) & (torch.arange(width) < x + side)
    hole = inside_y[:, :, None] & inside_x[:, None, :]
    return (~hole).unsqueeze(1).to(inputs.device, inputs.dtype)


def beta(a: float, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Beta(a, a) numbers (count,), float32. torch's own sampler takes no generator, so numpy draws from a seed of ours."""
    seed = int(torch.randint(0, 2**62, (), generator=generator))
    return torch.from_numpy(np.random.default_rng(seed).beta(a, a, count).astype(np.float32))
