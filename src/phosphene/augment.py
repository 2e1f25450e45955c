"""Random crop, flip, cutout and mixup on whole batches of tensors, each image with its own random numbers; fixed views.

Crops and flips work on the stored bytes, before normalisation; cutout and mixup on normalised images, where zero is
the mean colour. Random numbers are drawn on the CPU whatever the device, so that a seed means the same everywhere.
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

    `crop`: side of the region cut at a random place of each image (None: the side of the image). `pad`: black pixels
    added on every side before the crop. `flip`: mirrored with probability 1/2. `cutout`: side of the square set to
    zero, its centre anywhere in the image (0: none). `mixup`: a of Beta(a, a), by which an image and its row are mixed
    with another's (0: none).
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
        """Pad, crop and flip images (N, C, H, W) of any dtype; each pixel stays as it is, only its place changes."""
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

    def mix(self, inputs: Tensor, targets: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
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


@dataclass(frozen=True)
class View:
    """One view of every image, without chance: the middle, `crop` pixels wide (None: all of it), mirrored or not."""

    crop: int | None = None
    mirror: bool = False

    def move(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images (N, C, H, W) of any dtype -> (N, C, crop, crop); draws nothing."""
        if self.crop is not None:
            top, left = (max(0, (length - self.crop) // 2) for length in pixels.shape[2:])
            pixels = pixels[:, :, top : top + self.crop, left : left + self.crop]
        return pixels.flip(-1) if self.mirror else pixels

    def mix(self, inputs: Tensor, targets: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """As they are."""
        return inputs, targets


def _cut(pixels: Tensor, top: Tensor, left: Tensor, h: int, w: int, mirrored: Tensor) -> Tensor:
    """Rows top..top+h and columns left..left+w of each image, the columns counted backwards where mirrored."""
    if pixels.device.type != "cpu":
        return _gather(pixels, top, left, h, w, mirrored)
    images = pixels.numpy()
    out = np.empty((len(images), images.shape[1], h, w), images.dtype)
    # copying slices costs a tenth of a gather on a CPU
    for target, image, y, x, mirror in zip(out, images, top.tolist(), left.tolist(), mirrored.tolist(), strict=True):
        region = image[:, y : y + h, x : x + w]
        target[...] = region[:, :, ::-1] if mirror else region
    return torch.from_numpy(out)


def _gather(pixels: Tensor, top: Tensor, left: Tensor, h: int, w: int, mirrored: Tensor) -> Tensor:
    """`_cut` in one kernel, for devices where a loop over images would be many."""
    rows = (top[:, None] + torch.arange(h)).to(pixels.device)[:, None, :, None]
    columns = torch.where(mirrored[:, None], torch.arange(w - 1, -1, -1), torch.arange(w)) + left[:, None]
    columns = columns.to(pixels.device)[:, None, None, :]
    images = torch.arange(pixels.shape[0], device=pixels.device)[:, None, None, None]
    planes = torch.arange(pixels.shape[1], device=pixels.device)[None, :, None, None]
    return pixels[images, planes, rows, columns]


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
    """Beta(a, a) numbers (count,), float32; drawn by numpy, since torch's own sampler takes no generator."""
    seed = int(torch.randint(0, 2**62, (), generator=generator))
    return torch.from_numpy(np.random.default_rng(seed).beta(a, a, count).astype(np.float32))
