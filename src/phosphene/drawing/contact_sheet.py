"""Contact sheets: pictures of a data set in a tight grid, a line for each class.

Nothing here imports torch, so that a report may draw sheets too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import shown

if TYPE_CHECKING:
    from PIL import Image, ImageFont

INK, GREY, FAINT, PAPER, BLUE = "#1c1c1e", "#6e6e73", "#d6d6da", "#ffffff", "#3468ac"
TILE, GAP, LINE, MARGIN = 96, 8, 13, 16  # pixels
SHADES = 2.5  # standard deviations between grey and black, or white: 99 of 100 pixels of Gaussian noise are within


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet: uint8 (C, H, W), and what stands under it as (name, share in 0..1)."""

    pixels: np.ndarray
    shares: tuple[tuple[str, float], ...] = ()


def as_bytes(pixels: np.ndarray) -> np.ndarray:
    """uint8 as it is; float on the scale 0..1 rounded to uint8, clipped."""
    if pixels.dtype == np.uint8:
        return pixels
    scaled: np.ndarray = (np.clip(pixels.astype(np.float32), 0, 1) * 255).round().astype(np.uint8)
    return scaled


def picture(pixels: np.ndarray) -> Image.Image:
    """uint8 (C, H, W) as a Pillow image: RGB where there are three channels, else the first one in grey."""
    from PIL import Image

    return Image.fromarray(pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0])


def short_names(names: Sequence[str] | None, classes: int) -> list[str]:
    """ImageNet names list their synonyms; the first one will do, on one line."""
    first = (name.split(",")[0].strip() for name in names or map(str, range(classes)))
    return [shown(name, str) or str(k) for k, name in enumerate(first)]


def spread(count: int, most: int) -> list[int]:
    """`most` of ``range(count)`` at even distances, or all of it."""
    return list(range(count)) if count <= most else [round(i * (count - 1) / (most - 1 or 1)) for i in range(most)]


def tiles_of(
    pixels: np.ndarray, statistics: dict[str, Any], soft_labels: Iterable[np.ndarray] = (), names: Sequence[str] = ()
) -> list[Tile]:
    """Tiles of stored pixels (N, C, H, W), with the three likeliest classes of each by its `soft_labels` (N, K)."""
    shares = [tuple((names[k], float(p[k])) for k in np.argsort(-p)[:3]) for p in soft_labels] or [()] * len(pixels)
    return [Tile(image, under) for image, under in zip(visible(pixels, statistics), shares, strict=True)]


def visible(pixels: np.ndarray, statistics: dict[str, Any]) -> np.ndarray:
    """uint8 pictures; floats off the scale 0..1 (noise) have mean ± `SHADES` deviations from black to white."""
    if pixels.dtype == np.uint8:
        return pixels
    x: np.ndarray = pixels.astype(np.float32)
    if off_scale(x):
        mean, std = (np.array(statistics[key], np.float32)[:, None, None] for key in ("mean", "std"))
        x = (x - mean) / (2 * SHADES * std + 1e-9) + 0.5
    return as_bytes(x)


def off_scale(pixels: np.ndarray) -> bool:
    """Whether these are floats that leave the scale 0..1, as noise does."""
    return pixels.dtype != np.uint8 and pixels.size > 0 and bool(pixels.min() < 0 or pixels.max() > 1)


def sheet(rows: list[tuple[str, list[Tile]]]) -> Image.Image:
    """A contact sheet: names at the left, tiles in a tight grid, the shares of the label under each tile."""
    from PIL import Image, ImageDraw

    lines = max((len(tile.shares) for _, tiles in rows for tile in tiles), default=0)
    left = MARGIN + _label_width([name for name, _ in rows])
    columns, step = max((len(tiles) for _, tiles in rows), default=1), _step(lines)
    width, height = (
        left + columns * (TILE + GAP) - GAP + MARGIN,
        2 * MARGIN + len(rows) * step - (step - TILE - LINE * lines),
    )
    canvas = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(canvas)
    for r, (name, tiles) in enumerate(rows):
        y = MARGIN + r * step
        draw.text((left - 12, y + TILE // 2), _fit(name, left - MARGIN - 10, _font(13)), INK, _font(13), anchor="rm")
        for c, tile in enumerate(tiles):
            x = left + c * (TILE + GAP)
            canvas.paste(thumbnail(tile.pixels), (x, y))
            _write_shares(draw, tile.shares, x, y + TILE)
    return canvas


def side_by_side(rows: list[tuple[str, list[list[Tile]]]], titles: list[str], per_class: int) -> Image.Image:
    """One block of tiles for each data set, its title above; the same class in the same row."""
    from PIL import Image, ImageDraw

    tight, between, head = 3, 28, 30
    left = MARGIN + _label_width([name for name, _ in rows])
    block = per_class * (TILE + tight) - tight
    width = left + len(titles) * (block + between) - between + MARGIN
    canvas = Image.new("RGB", (width, MARGIN + head + len(rows) * (TILE + tight) - tight + MARGIN), PAPER)
    draw = ImageDraw.Draw(canvas)
    for b, title in enumerate(titles):
        draw.text((left + b * (block + between), MARGIN + 4), _fit(title, block, _font(15)), INK, _font(15))
    for r, (name, blocks) in enumerate(rows):
        y = MARGIN + head + r * (TILE + tight)
        draw.text((left - 12, y + TILE // 2), _fit(name, left - MARGIN - 10, _font(13)), INK, _font(13), anchor="rm")
        for b, tiles in enumerate(blocks):
            for c, tile in enumerate(tiles):
                canvas.paste(thumbnail(tile.pixels), (left + b * (block + between) + c * (TILE + tight), y))
    return canvas


def _step(lines: int) -> int:
    return TILE + (GAP if not lines else 4 + lines * LINE + 10)


def _label_width(names: list[str]) -> int:
    return int(min(170, max((_font(13).getlength(shown(name, str)) for name in names), default=0))) + 14


def thumbnail(pixels: np.ndarray) -> Image.Image:
    """A tile of this picture: small ones in sharp pixels, large ones shrunk smoothly; grey unless it has 3 channels."""
    from PIL import Image

    image = picture(pixels).convert("RGB")
    scale = TILE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    if scale > 1:  # a whole multiple first, so that all pixels are equally wide
        whole = -int(-scale // 1)
        image = image.resize((image.width * whole, image.height * whole), Image.Resampling.NEAREST)
    shown = image.resize(size, Image.Resampling.BOX if scale > 1 else Image.Resampling.LANCZOS)
    tile = Image.new("RGB", (TILE, TILE), PAPER)
    tile.paste(shown, ((TILE - size[0]) // 2, (TILE - size[1]) // 2))
    return tile


def _write_shares(draw: Any, shares: tuple[tuple[str, float], ...], x: int, y: int) -> None:
    """Name at the left, per cent at the right, and a hairline as long as the share."""
    font = _font(10)
    for i, (name, share) in enumerate(shares):
        top, ink = y + 4 + i * LINE, INK if i == 0 else GREY
        draw.text((x, top), _fit(name, TILE - 26, font), ink, font)
        draw.text((x + TILE, top), percent(share), ink, font, anchor="ra")
    if shares:
        draw.rectangle((x, y + 1, x + TILE - 1, y + 2), FAINT)
        draw.rectangle((x, y + 1, x + max(0, round(TILE * shares[0][1]) - 1), y + 2), BLUE)


def percent(share: float) -> str:
    """A share in 0..1 in percent; what would round to nothing is shown as less than one."""
    return "<1" if 0 < share < 0.005 else f"{100 * share:.0f}"


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along: the same letters on every machine."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _fit(text: str, width: float, font: ImageFont.FreeTypeFont) -> str:
    text = shown(text, str)  # Pillow measures no line break
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"
