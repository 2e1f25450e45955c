"""What is in a data set: its figures, and a contact sheet.

Nothing here imports torch before a data set is opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from ..drawing.contact_sheet import SHADES, Tile, off_scale, sheet, short_names, spread, tiles_of
from ..drawing.figure_style import save_picture
from ..settings import PICTURES, Ge, Settings, check_file, command
from ..storage import whole

if TYPE_CHECKING:
    from ..data.dataset import ImageDataset

CHUNK = 4096  # images read at a time


class SheetSettings(Settings, heading="The contact sheet"):
    out: Annotated[Path | str | None, "PNG to write; default: contact.png in the data set's folder"] = None
    columns: Annotated[int, Ge(1), "images side by side on the sheet"] = 10
    rows_per_class: Annotated[int, Ge(1), "lines of images for each class"] = 1
    most_classes: Annotated[int, Ge(1), "classes on the sheet at most, spread evenly over all"] = 20


@command
def show(data: Annotated[ImageDataset | str, "folder of a data set"], settings: SheetSettings) -> dict[str, Any]:
    """Figures of a data set, and a contact sheet with a line of images for each class.

    Counts by class, mean entropy of the soft labels in nats, mean and standard deviation of each channel. Under each
    image stand the three likeliest classes of its soft label, in percent. Pixels off the scale [0, 1], as those of
    noise, are drawn with mean ± 2.5 standard deviations from black to white. Raises `DatasetError` where the data set
    is missing or damaged.

    Example:
        phosphene dataset show d --out contact.png
    """
    from ..data.dataset import ImageDataset

    check_file("--out", settings.out, PICTURES, in_a_folder=False)
    data = ImageDataset.open(data)
    default = data.path / "contact.png" if data.path is not None else None
    path = default if settings.out is None else Path(settings.out)
    if path is not None:
        with whole.storing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        tiles = contact_rows(data, settings.columns, settings.rows_per_class, settings.most_classes)
        save_picture(sheet(tiles), path)
    return {**described(data), **_shades(data), "sheet": None if path is None else str(path)}


def _shades(data: ImageDataset) -> dict[str, str]:
    """How pixels off the scale were mapped to shades of grey."""
    noisy = len(data) > 0 and off_scale(data.pixels([0]).numpy())
    return {"drawn": f"mean ± {SHADES} std from black to white"} if noisy else {}


# -- figures -----------------------------------------------------------------------------------------------------------


def described(data: ImageDataset) -> dict[str, Any]:
    """Origin, counts by class, entropy of the soft labels in nats, mean and standard deviation by channel."""
    counts = np.bincount(data.labels, minlength=data.card.classes) if data.card.task == "single" else _positive(data)
    named = dict(zip(class_names(data), counts.tolist(), strict=True))
    many = {"fewest": int(counts.min()), "most": int(counts.max()), "empty classes": int((counts == 0).sum())}
    return {**data.summary(), "entropy": round(entropy(data), 4), "counts": named if len(named) <= 20 else many}


def _chunks(data: ImageDataset) -> Iterator[range]:
    return (range(start, min(start + CHUNK, len(data))) for start in range(0, len(data), CHUNK))


def _positive(data: ImageDataset) -> np.ndarray:
    """How many images have each label of a `multi` task, where an image has any number of them."""
    return np.sum([(data.targets(part).numpy() > 0.5).sum(0) for part in _chunks(data)], axis=0)  # type: ignore[no-any-return]


def entropy(data: ImageDataset) -> float:
    """The mean entropy of the soft labels in nats; in a `multi` task, of each label that is known."""
    if data.card.task == "single" and not data.soft:
        return 0.0  # a hard label
    total, count = 0.0, 0
    for part in _chunks(data):
        p = data.targets(part).double().numpy()
        terms = -plogp(p) if data.card.task == "single" else -plogp(p) - plogp(1 - p)  # Σ p log p, or each binary one
        total += float(np.nansum(terms))
        count += len(p) if data.card.task == "single" else int((~np.isnan(p)).sum())
    return total / max(count, 1)


def plogp(p: np.ndarray) -> np.ndarray:
    """``p log p``, elementwise, 0 at 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p == 0, 0, p * np.log(p))  # keeps NaN


def class_names(data: ImageDataset) -> list[str]:
    """The names on the card, short, or numbers."""
    return short_names(data.card.class_names, data.card.classes)


# -- which images ------------------------------------------------------------------------------------------------------


def contact_rows(
    data: ImageDataset,
    columns: int,
    rows_per_class: int = 1,
    most: int = 20,
    chosen: Sequence[int] | None = None,
    labelled: bool = True,
) -> list[tuple[str, list[Tile]]]:
    """For each row of a sheet the class's name (once) and its tiles: the first images of the class.

    In a `multi` task an image stands in the row of each of its labels.
    """
    names = class_names(data)
    rows: list[tuple[str, list[Tile]]] = []
    for k in chosen if chosen is not None else _classes_shown(data, most):
        at = _of_class(data, k)[: columns * rows_per_class]
        tiles = tiles_at(data, at, names, labelled and data.soft)
        for r in range(max(1, -(-len(tiles) // columns))):
            rows.append((names[k] if r == 0 else "", tiles[r * columns : (r + 1) * columns]))
    return rows


def _classes_shown(data: ImageDataset, most: int) -> list[int]:
    """All classes where they fit, else `most` at even distances of those that have images."""
    count = data.card.classes
    if count <= most or data.card.task != "single":
        return spread(count, most)
    there = np.unique(data.labels)
    return [int(there[place]) for place in spread(len(there), most)]


def _of_class(data: ImageDataset, k: int) -> np.ndarray:
    """The numbers of all images with the label k."""
    if data.card.task == "single":
        return np.flatnonzero(data.labels == k)
    at = [part.start + np.flatnonzero(data.targets(part)[:, k].numpy() > 0.5) for part in _chunks(data)]
    return np.concatenate([np.zeros(0, np.int64), *at])


def tiles_at(data: ImageDataset, at: np.ndarray, names: list[str], labelled: bool) -> list[Tile]:
    """Tiles of the images numbered `at`, with their likeliest classes where `labelled`."""
    if not len(at):
        return []
    soft_labels = data.targets(at).numpy() if labelled else ()
    return tiles_of(data.pixels(at).numpy(), data.card.statistics, soft_labels, names)
