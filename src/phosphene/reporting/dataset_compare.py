"""The same classes of several data sets side by side: images, and class distributions as bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from torch import Tensor

from ..data.dataset import ImageDataset
from ..drawing.contact_sheet import (
    BLUE,
    FAINT,
    GREY,
    INK,
    Tile,
    percent,
    side_by_side,
    spread,
    thumbnail,
    visible,
)
from ..drawing.figure_style import save_picture
from ..errors import DatasetError
from ..settings import Ge, command
from ..storage import whole
from ..teachers.teacher import Teacher, Weights, load
from .dataset_show import class_names, contact_rows, plogp, tiles_at

SETS = ("#8a8a8f", "#d98c3f", BLUE, "#5a9a68", "#a0568f", "#6b6b6b")  # the colour of each data set
MOST = 2000  # images of a class whose distribution is computed
BATCH = 500  # images per forward pass
DOTS = 12  # single images in a panel


class CompareSettings(Weights, heading="The figures"):
    out: Annotated[Path | str, "folder for the figures"] = Path("comparison")
    teacher: Annotated[Teacher | str | None, "network whose predictions are drawn; default: the soft labels"] = None
    classes: Annotated[str | None, "classes to draw: names or numbers with commas between; default: ten at most"] = None
    per_class: Annotated[int, Ge(1), "images of each class and data set"] = 5


@dataclass(frozen=True)
class Compared:
    """A data set, its title, and the class distribution of each image (N, K): NaN where unknown, None without any."""

    title: str
    data: ImageDataset
    distributions: np.ndarray | None

    def of(self, k: int) -> np.ndarray:
        """The known distributions of the images of class `k`."""
        assert self.distributions is not None
        p: np.ndarray = self.distributions[(self.data.labels == k) & ~np.isnan(self.distributions[:, 0])]
        return p


@command
def compare(
    data: Annotated[list[ImageDataset | str], "folders of data sets with the same classes"], settings: CompareSettings
) -> dict[str, Any]:
    """The same classes of several data sets side by side, and the class distribution of their images.

    Writes `images.png` (lines = classes, one block a data set), `distributions.png` (the teacher's class distribution,
    averaged over a class, dots for single images) and `samples.png` (single images with their five likeliest classes);
    they correspond to figures 7, 2 and 8 of the Data-Free NAS paper. Data sets with hard labels, as real ones, have
    a distribution with `--teacher` alone. Random labels have no class in common with anything: the images of such data
    sets stand in their order, and they may have any number of classes. Raises `DatasetError` where the other data sets
    have different classes.

    Example:
        phosphene dataset compare real one-hot calibrated --teacher cifar-resnet20 --checkpoint r20.th --out figures
    """
    opened = [ImageDataset.open(one) for one in data]
    model = _comparable(opened)
    teacher = None if settings.teacher is None else load(settings.teacher, checkpoint=settings.checkpoint)
    sets = [
        Compared(title, one, _distributions(one, teacher)) for title, one in zip(_titles(opened), opened, strict=True)
    ]
    names, out = class_names(model), Path(settings.out)
    chosen = _chosen(settings.classes, names) if settings.classes else spread(len(names), 10)
    with whole.storing(out):
        out.mkdir(parents=True, exist_ok=True)
    blocks = [_block(one.data, settings.per_class, chosen) for one in sets]
    heads = ["" if model.card.random_labels else names[k] for k in chosen]
    lines = [(name, [block[i] for block in blocks]) for i, name in enumerate(heads)]
    save_picture(side_by_side(lines, [one.title for one in sets], settings.per_class), out / "images.png")
    soft = [one for one in sets if one.distributions is not None]
    if soft:
        draw_distributions(soft, names, chosen[:6], out / "distributions.png")
        draw_samples(soft, names, chosen[0], out / "samples.png")
    paths = {f: str(out / f"{f}.png") if soft else None for f in ("distributions", "samples")}
    return {"images": str(out / "images.png"), **paths, "sets": {one.title: _figures(one) for one in sets}}


def _distributions(data: ImageDataset, teacher: Teacher | None) -> np.ndarray | None:
    """The class distribution of every image (N, K), of at most `MOST` images a class; NaN for the others."""
    if data.card.random_labels or (teacher is None and not data.soft):
        return None
    p = np.full((len(data), data.card.classes), np.nan, np.float32)
    at = np.concatenate([np.flatnonzero(data.labels == k)[:MOST] for k in range(data.card.classes)])
    for start in range(0, len(at), BATCH):
        part = at[start : start + BATCH]
        if teacher is None:
            p[part] = data.targets(part).numpy()
        else:
            p[part] = teacher.logits(_centre(data.pixels(part), teacher.shape)).softmax(1).numpy()
    return p


def _centre(pixels: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The centre of canvases (N, C, H, W) that are larger than the teacher's input `shape` (C, h, w)."""
    height, width = pixels.shape[2:]
    if pixels.shape[1] != shape[0] or height < shape[1] or width < shape[2]:
        raise DatasetError(f"images of {tuple(pixels.shape[1:])} do not cover the teacher's input {shape}")
    top, left = (height - shape[1]) // 2, (width - shape[2]) // 2
    return pixels[:, :, top : top + shape[1], left : left + shape[2]]


def _figures(one: Compared) -> dict[str, Any]:
    """Images, mean entropy in nats, mean probability of the image's own class in [0, 1]."""
    p = one.distributions
    if p is None:
        return {"images": len(one.data), "entropy": None, "confidence": None}
    known = p[~np.isnan(p[:, 0])]
    own = p[np.arange(len(p)), one.data.labels]
    return {
        "images": len(one.data),
        "entropy": round(float(-plogp(known.astype(np.float64)).sum(1).mean()), 4),
        "confidence": round(float(np.nanmean(own)), 4),
    }


def _block(data: ImageDataset, per_class: int, chosen: list[int]) -> list[list[Tile]]:
    """A line of tiles for each chosen class; one image after the other where labels say nothing about them."""
    if not data.card.random_labels:
        return [tiles for _, tiles in contact_rows(data, per_class, 1, 0, chosen, labelled=False)]
    at = np.arange(min(len(data), per_class * len(chosen)))
    tiles = tiles_at(data, at, [], labelled=False)
    return [tiles[i * per_class : (i + 1) * per_class] for i in range(len(chosen))]


# -- what the flags name -----------------------------------------------------------------------------------------------


def _comparable(sets: list[ImageDataset]) -> ImageDataset:
    """The data set whose classes are compared: the first one whose labels say something, if there is one."""
    if not sets:
        raise DatasetError("no data set to compare; name one at least")
    meant = [one for one in sets if not one.card.random_labels]
    kinds = {(one.card.classes, one.card.task) for one in meant}
    if len(kinds) > 1 or any(one.card.task != "single" for one in sets):
        text = ", ".join(f"{one.card.name}: {one.card.classes} ({one.card.task})" for one in sets)
        raise DatasetError(f"only sets with the same single-label classes compare; these have {text}")
    return meant[0] if meant else sets[0]


def _titles(sets: list[ImageDataset]) -> list[str]:
    """The names on the cards; numbered where two are alike."""
    names = [one.card.name for one in sets]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})" for i, name in enumerate(names)
    ]


def _chosen(classes: str, names: Sequence[str]) -> list[int]:
    """The numbers of the classes that ``--classes`` names."""
    chosen = []
    for word in filter(None, (part.strip() for part in classes.split(","))):
        if word in names:
            chosen.append(names.index(word))
        elif word.isdigit() and int(word) < len(names):
            chosen.append(int(word))
        else:
            raise DatasetError(f"--classes {word}: no such class; there are {', '.join(names[:12])}")
    return chosen or spread(len(names), 10)


# -- figures -----------------------------------------------------------------------------------------------------------


def draw_distributions(sets: Sequence[Compared], names: list[str], chosen: list[int], path: Path) -> None:
    """A panel for each class and data set: bars = mean over the images of the class, dots = single images."""
    figure, axes = _panels(len(chosen), len(sets), 2.5, 0.5 + 0.19 * min(len(names), 12))
    for line, k in zip(axes, chosen, strict=True):
        own = [one.of(k) for one in sets]
        means = [p.mean(0) if len(p) else np.zeros(len(names), np.float32) for p in own]
        top = _likeliest(np.mean(means, axis=0), 10)
        for b, (axis, p) in enumerate(zip(line, own, strict=True)):
            _bars(axis, means[b][top], [names[t] for t in top] if b == 0 else [], SETS[b % len(SETS)])
            for image in p[:DOTS]:
                seen = image[top] > 0.02
                axis.plot(image[top][seen], np.flatnonzero(seen), ".", color=INK, ms=3, mew=0, alpha=0.5, clip_on=False)
            text = f"{names[k]}, {len(p):,} images"
            axis.text(0, 1.02, text, transform=axis.transAxes, fontsize=7.5, color=GREY)
    for axis, one in zip(axes[0], sets, strict=True):
        axis.set_title(one.title, fontsize=10, loc="left", color=INK, pad=16)
    figure.supxlabel(f"bars: mean over the class in percent; dots: {DOTS} single images", fontsize=7.5, color=GREY)
    _save(figure, path)


def draw_samples(sets: Sequence[Compared], names: list[str], k: int, path: Path, count: int = 5) -> None:
    """A line for each data set: images of class `k`, and under each its five likeliest classes."""
    figure, axes = _panels(2 * len(sets), count, 1.95, 1.15, {"wspace": 1.05, "hspace": 0.16})
    for a, one in enumerate(sets):
        above, below = axes[2 * a], axes[2 * a + 1]
        at = np.flatnonzero(one.data.labels == k)[:count]
        for axis in [*above, *below[len(at) :]]:
            axis.axis("off")
        pictures = visible(one.data.pixels(at).numpy(), one.data.card.statistics)
        for b, (i, pixels) in enumerate(zip(at, pictures, strict=True)):
            above[b].imshow(np.asarray(thumbnail(pixels)), interpolation="nearest")
            above[b].set_anchor("W")
            assert one.distributions is not None
            p = one.distributions[i]
            top = _likeliest(p, 5, keep_order=False)
            _bars(below[b], p[top], [names[t] for t in top], SETS[a % len(SETS)])
            _shrink(below[b], 0.72)
        above[0].set_title(f"{one.title}: {names[k]}", fontsize=10, loc="left", color=INK, pad=6)
    _save(figure, path)


def _shrink(axis: Any, share: float) -> None:
    """Lower the axis to `share` of its height, its top in place: white space before the next set."""
    box = axis.get_position()
    axis.set_position((box.x0, box.y0 + (1 - share) * box.height, box.width, share * box.height))


def _panels(rows: int, columns: int, width: float, height: float, gaps: dict[str, float] | None = None) -> Any:
    """Figure and axes; laid out by itself, or with fixed `gaps` where columns must be equally wide."""
    from matplotlib.figure import Figure

    size = (width * columns + 0.6, height * rows + 0.3)
    figure = Figure(figsize=size, layout=None if gaps else "constrained", dpi=150)
    return figure, figure.subplots(rows, columns, squeeze=False, gridspec_kw=gaps or {})


def _likeliest(p: np.ndarray, most: int, keep_order: bool = True) -> np.ndarray:
    """The indices of the `most` largest, in the order of the classes or of their size."""
    if keep_order and len(p) <= 12:
        return np.arange(len(p))
    top = np.argsort(-p)[:most]
    return np.sort(top) if keep_order else top


def _bars(axis: Any, values: np.ndarray, names: list[str], colour: str) -> None:
    """Horizontal bars with their percent at the right, names at the left where given; no frame, no grid."""
    at = np.arange(len(values))
    axis.barh(at, values, height=0.68, color=colour)
    for y, value in zip(at, values, strict=True):
        axis.text(1.05, y, percent(float(value)), va="center", ha="left", fontsize=6.5, color=GREY)
    axis.set(xlim=(0, 1), ylim=(len(values) - 0.4, -0.6), xticks=[])
    axis.set_yticks(at if names else [], [_clip(name) for name in names], fontsize=7, color=INK)
    axis.tick_params(length=0, pad=2)
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)
    axis.spines["left"].set_color(FAINT)


def _clip(name: str) -> str:
    return name if len(name) <= 16 else name[:15] + "…"


def _save(figure: Any, path: Path) -> None:
    save_picture(figure, path, facecolor="white", bbox_inches="tight", pad_inches=0.12, metadata={"Software": None})
