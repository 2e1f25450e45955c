"""Random crop, flip, cutout, mixup and CutMix on whole batches, each image with its own random numbers; fixed views.

Crops and flips work on the stored bytes, before normalisation; cutout and mixup on normalised images, where zero is
the mean colour. Random numbers are sampled on the CPU on every device, so that a seed means the same everywhere.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import SettingsError


@dataclass(frozen=True)
class Augment:
    """What happens to a batch; the default is nothing.

    `crop`: side of the region cut at a random place of each image (None: the side of the image). `pad`: black pixels
    added on every side before the crop. `flip`: mirrored with probability 1/2. `cutout`: side of the square set to
    zero, its centre anywhere in the image (0: none). `mixup`: a of Beta(a, a), by which an image and its target are
    mixed with another's (0: none). `cutmix`: a of Beta(a, a), by whose area a rectangle of another's takes its
    place, in the target by its share of the pixels (Yun et al. 2019; 0: none). Of both, a coin chooses for each batch.
    """

    crop: int | None = None
    pad: int = 0
    flip: bool = False
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        for key in ("pad", "cutout", "mixup", "cutmix"):
            if getattr(self, key) < 0:
                raise SettingsError(f"--{key} {getattr(self, key)} is negative; 0 turns it off")

    def __call__(
        self, inputs: Tensor, targets: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Inputs (N, C, H, W), targets (N, K) -> inputs (N, C, crop, crop), targets (N, K): `move`, then `mix`."""
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
        """Cut out a square and mix pairs: float images (N, C, H, W) and targets (N, K), hard or soft."""
        if self.cutout:
            inputs = inputs * _holes(inputs, self.cutout, generator)
        if self.cutmix and not (self.mixup and torch.rand((), generator=generator) < 0.5):
            return _cut_and_mix(inputs, targets, self.cutmix, generator)
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
    """One fixed view of every image: the centre, `crop` pixels wide (None: all of it), mirrored or not."""

    crop: int | None = None
    mirror: bool = False

    def move(self, pixels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Images (N, C, H, W) of any dtype -> (N, C, crop, crop); no random numbers."""
        if self.crop is not None:
            top, left = (max(0, (length - self.crop) // 2) for length in pixels.shape[2:])
            pixels = pixels[:, :, top : top + self.crop, left : left + self.crop]
        return pixels.flip(-1) if self.mirror else pixels

    def mix(self, inputs: Tensor, targets: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Unchanged."""
        return inputs, targets


@dataclass(frozen=True)
class Grid:
    """Numbered crops of every image: those with stored soft labels, which training then uses.

    `height`, `width`: of a crop. `tops`, `lefts`: where they begin, with `pad` black pixels around the image.
    `mirror`: every crop also mirrored. Crop r is that at ``tops[a], lefts[b]`` with
    ``r = (a * len(lefts) + b) * (1 + mirror) + mirrored``.
    """

    height: int
    width: int
    tops: tuple[int, ...]
    lefts: tuple[int, ...]
    pad: int = 0
    mirror: bool = False

    @classmethod
    def even(cls, shape: tuple[int, int], region: tuple[int, int], most: int, pad: int, mirror: bool) -> Grid:
        """At most `most` positions along each side, evenly from border to border; one stands in the middle.

        `shape`: (H, W) of the images; `region`: (h, w) of a crop.

        Raises:
            SettingsError: the crop does not fit.
        """
        room = [side + 2 * pad - length for side, length in zip(shape, region, strict=True)]
        if most < 1 or pad < 0 or min(room) < 0:
            raise SettingsError(
                f"--crops {most} with --pad {pad} does not fit the images; give 1 or more, and 0 or more"
            )
        tops, lefts = (
            sorted({round(i * free / (most - 1)) if most > 1 else free // 2 for i in range(most)}) for free in room
        )
        return cls(*region, tuple(tops), tuple(lefts), pad, mirror)

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Grid:
        """The inverse of `describe`."""
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return cls(**known)

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether every crop lies within images (H, W) and their border."""
        ends = (max(self.tops) + self.height, max(self.lefts) + self.width)
        return min(*self.tops, *self.lefts) >= 0 and all(
            end <= side + 2 * self.pad for end, side in zip(ends, shape, strict=True)
        )

    def describe(self) -> dict[str, Any]:
        """The grid as JSON, for a card."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts) * (1 + self.mirror)

    def draw(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Crop numbers ``(count,)``, uniform over the grid."""
        return torch.randint(0, len(self), (count,), generator=generator)

    def cut(self, pixels: Tensor, region: Tensor) -> Tensor:
        """Images (N, C, H, W) of any dtype and crop numbers (N,) -> (N, C, height, width)."""
        if self.pad:
            pixels = F.pad(pixels, (self.pad,) * 4)
        place, mirrored = (region // 2, region % 2 == 1) if self.mirror else (region, region < 0)
        top = torch.tensor(self.tops)[place // len(self.lefts)]
        left = torch.tensor(self.lefts)[place % len(self.lefts)]
        return _cut(pixels, top, left, self.height, self.width, mirrored)


def _cut(pixels: Tensor, top: Tensor, left: Tensor, h: int, w: int, mirrored: Tensor) -> Tensor:
    """Pixels top..top+h, left..left+w of each image, the columns counted backwards where mirrored."""
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
    """`_cut` in one kernel, for devices where a loop over images would be many kernels."""
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


def _cut_and_mix(inputs: Tensor, targets: Tensor, a: float, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """CutMix (Yun et al. 2019, eqs. 1 and 2): a rectangle of area 1 − λ, λ ~ Beta(a, a), clipped at the border."""
    n, _, height, width = inputs.shape
    side = (1 - beta(a, n, generator)).sqrt()
    edges = []
    for length in (height, width):
        half = (side * length).long() // 2
        centre = torch.randint(0, length, (n,), generator=generator)
        edges.append(((centre - half).clamp(min=0), (centre + half).clamp(max=length)))
    (top, bottom), (left, right) = ((low[:, None], high[:, None]) for low, high in edges)
    rows, columns = torch.arange(height), torch.arange(width)
    inside = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None, :]
    share = 1 - inside.float().mean((1, 2))  # of the pixels that stay: λ after clipping
    other, inside = torch.randperm(n, generator=generator).to(inputs.device), inside[:, None].to(inputs.device)
    targets = torch.lerp(targets[other], targets, share.view(n, 1).to(targets.device, targets.dtype))
    return torch.where(inside, inputs[other], inputs), targets


def beta(a: float, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Beta(a, a) numbers (count,), float32; sampled by numpy, since torch's own sampler takes no generator."""
    seed = int(torch.randint(0, 2**62, (), generator=generator))
    return torch.from_numpy(np.random.default_rng(seed).beta(a, a, count).astype(np.float32))
