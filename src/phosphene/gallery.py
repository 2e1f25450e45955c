"""Contact sheets of data sets, and the same classes of several sets side by side.

Nothing here imports torch before a data set is opened, so that a report may draw sheets too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from .errors import DatasetError, SettingsError

if TYPE_CHECKING:
    from PIL import Image, ImageFont

    from .dataset import ImageDataset
    from .teacher import Teacher

INK, GREY, FAINT, PAPER = (28, 28, 30), (110, 110, 115), (214, 214, 218), (255, 255, 255)
BLUE = (52, 104, 172)
TILE, GAP, LINE, MARGIN = 96, 8, 13, 16  # pixels
SETS = ("#8a8a8f", "#d98c3f", "#3468ac", "#5a9a68", "#a0568f", "#6b6b6b")


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet: uint8 (C, H, W), and what stands under it as (name, share in 0..1)."""

    pixels: np.ndarray
    shares: tuple[tuple[str, float], ...] = ()


def show(
    data: Annotated[ImageDataset | str, "folder of a data set"],
    *,
    out: Annotated[Path | None, "the contact sheet to write; default contact.png in the data set's folder"] = None,
    columns: Annotated[int, "images in a row"] = 10,
    rows_per_class: Annotated[int, "rows for each class"] = 1,
    most_classes: Annotated[int, "classes to draw at most, spread evenly over all"] = 20,
) -> dict[str, Any]:
    """Counts, entropy and mean/std of a data set, and a contact sheet: rows = classes, top 3 of the soft label below.

    Raises `DatasetError` when the data set is missing or damaged.

    Example:
        phosphene dataset show d --out contact.png
    """
    data = _open(data)
    for flag, value in (("columns", columns), ("rows-per-class", rows_per_class), ("most-classes", most_classes)):
        if value < 1:
            raise SettingsError(f"--{flag} {value} is less than 1")
    path = out or (data.path / "contact.png" if data.path is not None else None)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        sheet(contact_rows(data, columns, rows_per_class, most_classes)).save(path)
    return {**described(data), "sheet": None if path is None else str(path)}


def compare(
    data: Annotated[list[ImageDataset | str], "folders of data sets with the same classes"],
    *,
    out: Annotated[Path, "folder for the figures"] = Path("comparison"),
    teacher: Annotated[Teacher | str | None, "whose class distributions to draw; default: the stored rows"] = None,
    checkpoint: Annotated[Path | None, "the teacher's weights"] = None,
    classes: Annotated[str | None, "classes to draw, names or numbers, comma-separated; default: ten at most"] = None,
    per_class: Annotated[int, "images of each class and set"] = 5,
) -> dict[str, Any]:
    """The same classes of several data sets side by side, and the class distribution of their images.

    Writes `images.png` (rows = classes, one block a set), `distributions.png` (the teacher's class distribution,
    averaged over a class, dots for single images) and `samples.png` (single images with their five likeliest classes);
    they correspond to figures 7, 2 and 8 of the Data-Free NAS paper. Sets with labels only, as real ones, have
    a distribution with `--teacher` alone. Raises `DatasetError` when the sets have different classes.

    Example:
        phosphene dataset compare real one-hot calibrated --teacher cifar-resnet20 --checkpoint r20.th --out figures
    """
    sets = [_open(one) for one in data]
    _comparable(sets)
    if teacher is not None:
        from .teacher import load

        teacher = load(teacher, checkpoint=checkpoint)
    names, titles = class_names(sets[0]), _titles(sets)
    chosen = _chosen(classes, names) if classes else spread(len(names), 10)
    rows = {title: _rows(one, teacher) for title, one in zip(titles, sets, strict=True)}
    out.mkdir(parents=True, exist_ok=True)
    blocks = [contact_rows(one, per_class, 1, 0, chosen, labelled=False) for one in sets]
    joined = [(name, [tiles for block in blocks for tiles in [block[i][1]]]) for i, (name, _) in enumerate(blocks[0])]
    side_by_side(joined, titles, per_class).save(out / "images.png")
    soft = {title: r for title, r in rows.items() if r is not None}
    if soft:
        ones = [one for one, title in zip(sets, titles, strict=True) if title in soft]
        _draw_distributions(ones, soft, names, chosen[:6], out / "distributions.png")
        _draw_samples(ones, soft, names, chosen[0], out / "samples.png")
    figures = {title: _figures(one, rows[title]) for title, one in zip(titles, sets, strict=True)}
    paths = {f: str(out / f"{f}.png") if soft else None for f in ("distributions", "samples")}
    return {"images": str(out / "images.png"), **paths, "sets": figures}


# -- figures in numbers -----------------------------------------------------------------------------------------------


def described(data: ImageDataset) -> dict[str, Any]:
    """What `show` prints: where it came from, counts by class, entropy of the rows in nats, mean and std by channel."""
    counts = np.bincount(data.labels, minlength=data.card.classes) if data.card.task == "single" else _positive(data)
    named = dict(zip(class_names(data), counts.tolist(), strict=True))
    many = {"fewest": int(counts.min()), "most": int(counts.max()), "empty classes": int((counts == 0).sum())}
    return {**data.summary(), "entropy": round(entropy(data), 4), "counts": named if len(named) <= 20 else many}


def _positive(data: ImageDataset) -> np.ndarray:
    """How often each finding is there; a `multi` task has no single label to count."""
    parts = (range(s, min(s + 4096, len(data))) for s in range(0, len(data), 4096))
    return np.sum([(data.rows(part).numpy() > 0.5).sum(0) for part in parts], axis=0)  # type: ignore[no-any-return]


def entropy(data: ImageDataset) -> float:
    """The mean entropy of the rows in nats; of a `multi` task, of each labelled finding."""
    total, count = 0.0, 0
    for start in range(0, len(data), 4096):
        p = data.rows(range(start, min(start + 4096, len(data)))).double().numpy()
        terms = -_plogp(p) if data.card.task == "single" else -_plogp(p) - _plogp(1 - p)
        total += float(np.nansum(terms))
        count += len(p) if data.card.task == "single" else int((~np.isnan(p)).sum())
    return total / max(count, 1)


def _plogp(p: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p == 0, 0, p * np.log(p))  # keeps NaN


def class_names(data: ImageDataset) -> list[str]:
    """The names on the card, short, or numbers."""
    return short_names(data.card.class_names, data.card.classes)


def short_names(names: Sequence[str] | None, classes: int) -> list[str]:
    """ImageNet names list their synonyms; the first one will do."""
    return [name.split(",")[0].strip() or str(k) for k, name in enumerate(names or map(str, range(classes)))]


def spread(count: int, most: int) -> list[int]:
    """`most` of ``range(count)`` at even distances, or all of it."""
    return list(range(count)) if count <= most else [round(i * (count - 1) / (most - 1 or 1)) for i in range(most)]


def _rows(data: ImageDataset, teacher: Teacher | None) -> np.ndarray | None:
    """The class distribution of every image (N, K), of at most 2,000 images a class; NaN for the others."""
    if teacher is None and not data.soft:
        return None
    rows = np.full((len(data), data.card.classes), np.nan, np.float32)
    at = np.concatenate([np.flatnonzero(data.labels == k)[:2000] for k in range(data.card.classes)])
    for start in range(0, len(at), 500):
        part = at[start : start + 500]
        if teacher is None:
            rows[part] = data.rows(part).numpy()
        else:
            rows[part] = teacher.logits(_centre(data.pixels(part), teacher.shape)).softmax(1).numpy()
    return rows


def _centre(pixels: Any, shape: tuple[int, int, int]) -> Any:
    """The teacher's view of a canvas: its centre."""
    height, width = pixels.shape[2:]
    if pixels.shape[1] != shape[0] or height < shape[1] or width < shape[2]:
        raise DatasetError(f"images of {tuple(pixels.shape[1:])} do not cover the teacher's input {shape}")
    top, left = (height - shape[1]) // 2, (width - shape[2]) // 2
    return pixels[:, :, top : top + shape[1], left : left + shape[2]]


def _figures(data: ImageDataset, rows: np.ndarray | None) -> dict[str, Any]:
    if rows is None:
        return {"images": len(data), "entropy": None, "confidence": None}
    known = rows[~np.isnan(rows[:, 0])]
    own = rows[np.arange(len(rows)), data.labels]
    return {
        "images": len(data),
        "entropy": round(float(-_plogp(known.astype(np.float64)).sum(1).mean()), 4),
        "confidence": round(float(np.nanmean(own)), 4),
    }


# -- which images -----------------------------------------------------------------------------------------------------


def contact_rows(
    data: ImageDataset,
    columns: int,
    rows_per_class: int = 1,
    most: int = 20,
    chosen: Sequence[int] | None = None,
    labelled: bool = True,
) -> list[tuple[str, list[Tile]]]:
    """For each row of a sheet the class's name (once) and its tiles: the first images of the class."""
    names = class_names(data)
    rows: list[tuple[str, list[Tile]]] = []
    for k in chosen if chosen is not None else spread(len(names), most):
        at = np.flatnonzero(data.labels == k)[: columns * rows_per_class]
        tiles = _tiles(data, at, names, labelled and data.soft)
        for r in range(max(1, -(-len(tiles) // columns))):
            rows.append((names[k] if r == 0 else "", tiles[r * columns : (r + 1) * columns]))
    return rows


def _tiles(data: ImageDataset, at: np.ndarray, names: list[str], labelled: bool) -> list[Tile]:
    if not len(at):
        return []
    pixels = visible(data.pixels(at).numpy(), data.card.statistics)
    shares: list[tuple[tuple[str, float], ...]] = [()] * len(at)
    if labelled:
        rows = data.rows(at).numpy()
        shares = [tuple((names[k], float(row[k])) for k in np.argsort(-row)[:3]) for row in rows]
    return [Tile(image, under) for image, under in zip(pixels, shares, strict=True)]


def visible(pixels: np.ndarray, statistics: dict[str, Any]) -> np.ndarray:
    """uint8 pictures; floats off the scale 0..1 (noise) are shown as mean ± 3 standard deviations."""
    if pixels.dtype == np.uint8:
        return pixels
    x: np.ndarray = pixels.astype(np.float32)
    if x.size and (x.min() < 0 or x.max() > 1):
        mean, std = (np.array(statistics[key], np.float32)[:, None, None] for key in ("mean", "std"))
        x = (x - mean) / (6 * std + 1e-9) + 0.5
    shown: np.ndarray = (np.clip(x, 0, 1) * 255).round().astype(np.uint8)
    return shown


# -- drawing ----------------------------------------------------------------------------------------------------------


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
            canvas.paste(_picture(tile.pixels), (x, y))
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
                canvas.paste(_picture(tile.pixels), (left + b * (block + between) + c * (TILE + tight), y))
    return canvas


def _step(lines: int) -> int:
    return TILE + (GAP if not lines else 4 + lines * LINE + 10)


def _label_width(names: list[str]) -> int:
    return int(min(170, max((_font(13).getlength(name) for name in names), default=0))) + 14


def _picture(pixels: np.ndarray) -> Image.Image:
    """A tile of this picture: small ones in sharp pixels, large ones shrunk smoothly; grey unless it has 3 channels."""
    from PIL import Image

    image = Image.fromarray(pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0]).convert("RGB")
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
        draw.text((x + TILE, top), _percent(share), ink, font, anchor="ra")
    if shares:
        draw.rectangle((x, y + 1, x + TILE - 1, y + 2), FAINT)
        draw.rectangle((x, y + 1, x + max(0, round(TILE * shares[0][1]) - 1), y + 2), BLUE)


def _percent(share: float) -> str:
    return "<1" if 0 < share < 0.005 else f"{100 * share:.0f}"


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings along: the same letters on every machine."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _fit(text: str, width: float, font: ImageFont.FreeTypeFont) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…"


# -- distributions ----------------------------------------------------------------------------------------------------


def _draw_distributions(
    sets: list[ImageDataset], rows: dict[str, np.ndarray], names: list[str], chosen: list[int], path: Path
) -> None:
    """A panel for each class and set: bars = mean over the images of the class, dots = single images."""
    labels = {title: one.labels for title, one in zip(rows, sets, strict=True)}
    figure, axes = _panels(len(chosen), len(rows), 2.5, 0.5 + 0.19 * min(len(names), 12))
    for a, k in enumerate(chosen):
        own = {title: r[(labels[title] == k) & ~np.isnan(r[:, 0])] for title, r in rows.items()}
        means = {title: r.mean(0) if len(r) else np.zeros(len(names), np.float32) for title, r in own.items()}
        top = _likeliest(np.mean(list(means.values()), axis=0), 10)
        for b, title in enumerate(rows):
            axis = axes[a][b]
            _bars(axis, means[title][top], [names[t] for t in top] if b == 0 else [], SETS[b % len(SETS)])
            for image in own[title][:12]:
                seen = image[top] > 0.02
                axis.plot(
                    image[top][seen], np.flatnonzero(seen), ".", color="#1c1c1e", ms=3, mew=0, alpha=0.5, clip_on=False
                )
            if a == 0:
                axis.set_title(title, fontsize=10, loc="left", color="#1c1c1e", pad=16)
            text = f"{names[k]}, {len(own[title]):,} images"
            axis.text(0, 1.02, text, transform=axis.transAxes, fontsize=7.5, color="#6e6e73")
    figure.supxlabel("bars: mean over the class, per cent; dots: twelve single images", fontsize=7.5, color="#6e6e73")
    _save(figure, path)


def _draw_samples(
    sets: list[ImageDataset], rows: dict[str, np.ndarray], names: list[str], k: int, path: Path, count: int = 5
) -> None:
    """A row for each set: images of class `k`, and under each its five likeliest classes."""
    figure, axes = _panels(2 * len(sets), count, 1.95, 1.15, {"wspace": 1.05, "hspace": 0.16})
    for a, (one, (title, r)) in enumerate(zip(sets, rows.items(), strict=True)):
        at = np.flatnonzero(one.labels == k)[:count]
        tiles = _tiles(one, at, names, False)
        for above, below in zip(axes[2 * a][len(at) :], axes[2 * a + 1][len(at) :], strict=True):
            above.axis("off")
            below.axis("off")
        for b, (i, tile) in enumerate(zip(at, tiles, strict=True)):
            axes[2 * a][b].imshow(np.asarray(_picture(tile.pixels)), interpolation="nearest")
            axes[2 * a][b].axis("off")
            axes[2 * a][b].set_anchor("W")
            top = _likeliest(r[i], 5, keep_order=False)
            _bars(axes[2 * a + 1][b], r[i][top], [names[t] for t in top], SETS[a % len(SETS)])
            _shrink(axes[2 * a + 1][b], 0.72)
        axes[2 * a][0].set_title(f"{title}: {names[k]}", fontsize=10, loc="left", color="#1c1c1e", pad=6)
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
    """Horizontal bars with their per cent at the right, names at the left where given; no frame, no grid."""
    at = np.arange(len(values))
    axis.barh(at, values, height=0.68, color=colour)
    for y, value in zip(at, values, strict=True):
        axis.text(1.05, y, _percent(float(value)), va="center", ha="left", fontsize=6.5, color="#6e6e73")
    axis.set(xlim=(0, 1), ylim=(len(values) - 0.4, -0.6), xticks=[])
    axis.set_yticks(at if names else [], [_clip(name) for name in names], fontsize=7, color="#1c1c1e")
    axis.tick_params(length=0, pad=2)
    for side in ("top", "right", "bottom"):
        axis.spines[side].set_visible(False)
    axis.spines["left"].set_color("#d6d6da")


def _clip(name: str) -> str:
    return name if len(name) <= 16 else name[:15] + "…"


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, facecolor="white", bbox_inches="tight", pad_inches=0.12, metadata={"Software": None})


# -- what the flags name ----------------------------------------------------------------------------------------------


def _open(data: ImageDataset | str) -> ImageDataset:
    from .dataset import ImageDataset

    return data if isinstance(data, ImageDataset) else ImageDataset.open(data)


def _comparable(sets: list[ImageDataset]) -> None:
    if not sets:
        raise DatasetError("no data set to compare; name one at least")
    kinds = {(one.card.classes, one.card.task) for one in sets}
    if len(kinds) > 1 or sets[0].card.task != "single":
        text = ", ".join(f"{one.card.name}: {one.card.classes} ({one.card.task})" for one in sets)
        raise DatasetError(f"only sets with the same single-label classes compare; these have {text}")


def _titles(sets: list[ImageDataset]) -> list[str]:
    """The names on the cards; numbered where two are alike."""
    names = [one.card.name for one in sets]
    return [
        name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})" for i, name in enumerate(names)
    ]


def _chosen(classes: str, names: list[str]) -> list[int]:
    chosen = []
    for word in filter(None, (part.strip() for part in classes.split(","))):
        if word in names:
            chosen.append(names.index(word))
        elif word.isdigit() and int(word) < len(names):
            chosen.append(int(word))
        else:
            raise DatasetError(f"--classes {word}: no such class; there are {', '.join(names[:12])}")
    return chosen or spread(len(names), 10)
