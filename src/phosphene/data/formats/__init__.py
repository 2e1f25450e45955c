"""Raw images of a source and the settings that readers share; one reader a file, each `read(source, settings)`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from ...drawing.contact_sheet import as_bytes, picture
from ...errors import DatasetError, SettingsError
from ...settings import Settings
from ...storage.damage import reading
from ..card import read_size

SPLITS = {"train": ("train", "training"), "validation": ("validation", "val", "valid"), "test": ("test", "testing")}
GREY = ("1", "L", "LA", "I", "I;16", "F")  # Pillow's modes without colour


@dataclass
class RawImages:
    """Images of a source: `read(range)` gives (n, C, H, W) of `dtype`; `about` goes into the card's recipe."""

    read: Callable[[range], np.ndarray]
    labels: np.ndarray
    shape: tuple[int, int, int]
    classes: int
    class_names: Sequence[str] | None = None
    dtype: str = "uint8"
    digest: str = ""
    about: dict[str, str] = field(default_factory=dict)

    @property
    def task(self) -> Literal["single", "multi"]:
        """Multi-label targets (N, K) make a `multi` task."""
        return "single" if self.labels.ndim == 1 else "multi"


class ReadSettings(Settings, heading="Source"):
    split: Annotated[Literal["train", "validation", "test"] | None, "part to read, where the source has several"] = None
    size: Annotated[str | None, "side of the images, or HEIGHTxWIDTH: resized, then cropped at the centre"] = None
    channels: Annotated[int | None, "channels of the images: 1 (grey) or 3 (colour); default: the first's"] = None
    layout: Annotated[Literal["auto", "nchw", "nhwc"], "order of the axes in an .npz"] = "auto"
    root: Annotated[Path | None, "folder of torchvision's downloads; default: ./downloads"] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels not in (None, 1, 3):
            raise SettingsError(f"--channels {self.channels} is neither 1 (grey) nor 3 (colour)")

    @property
    def sides(self) -> tuple[int, int] | None:
        """`size` as (height, width)."""
        return None if self.size is None else read_size(self.size)

    @property
    def downloads(self) -> Path:
        """`root`, or its default."""
        return self.root or Path("downloads")


class ChexpertSettings(ReadSettings, heading="CheXpert"):
    uncertain: Annotated[Literal["ones", "zeros", "ignore"] | None, "meaning of CheXpert's -1; default: ones"] = None
    blank: Annotated[Literal["zeros", "ignore"] | None, "CheXpert's blanks: absent (default) or unlabelled"] = None
    findings: Annotated[Literal["competition", "all"] | None, "CheXpert's labels: the competition's 5 or all 14"] = None
    views: Annotated[Literal["frontal", "lateral", "all"] | None, "CheXpert's views; default: all"] = None


def open_picture(path: Path) -> Any:
    """A decoded picture, upright; raises `DatasetError` naming the file."""
    from PIL import Image, ImageOps

    with reading(f"{path} is not a readable image", "remove or replace it"), Image.open(path) as image:
        return ImageOps.exif_transpose(image)  # this decodes it


def from_pictures(
    get: Callable[[int], Any], where: Callable[[int], str], labels: np.ndarray, classes: int, settings: ReadSettings
) -> RawImages:
    """Pillow images as bytes; size and colour are those of the first one where no flag says otherwise."""
    if not len(labels):
        raise DatasetError("there are no images")
    first = get(0)
    channels = settings.channels or (1 if first.mode in GREY else 3)
    height, width = settings.sides or (first.height, first.width)

    def one(i: int) -> np.ndarray:
        from PIL import Image, ImageOps

        image = get(i)
        if settings.channels is None and channels == 1 and image.mode not in GREY:
            raise DatasetError(f"{where(i)} is in colour, the first image is grey; say --channels 1 or 3")
        if settings.size is None and image.size != (width, height):
            text = f"{image.height}x{image.width}, the first image {height}x{width}"
            raise DatasetError(f"{where(i)} is {text}; give --size SIDE to make them alike")
        with reading(f"{where(i)} cannot be converted", "remove or replace it"):
            image = image.convert("L" if channels == 1 else "RGB")
            pixels = np.asarray(ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC))
        return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)

    return RawImages(lambda part: np.stack([one(i) for i in part]), labels, (channels, height, width), classes)


def from_arrays(
    images: np.ndarray, labels: np.ndarray, classes: int, class_names: Sequence[str] | None, digest: str
) -> RawImages:
    """Arrays (N, C, H, W) that are in memory already."""
    shape = (images.shape[1], images.shape[2], images.shape[3])
    dtype = str(images.dtype)
    return RawImages(lambda part: images[part.start : part.stop], labels, shape, classes, class_names, dtype, digest)


def resized(images: np.ndarray, settings: ReadSettings) -> np.ndarray:
    """Images (N, C, H, W) resized to the set size and channels; untouched where neither is set."""
    images = np.ascontiguousarray(images)
    if not len(images):
        return images
    if settings.channels in (None, images.shape[1]) and settings.sides in (None, images.shape[2:]):
        return images
    if images.shape[1] not in (1, 3):
        raise DatasetError(f"images of {images.shape[1]} channels cannot be resized; leave --size and --channels out")
    there = as_bytes(images)
    settings = replace(settings, channels=settings.channels or images.shape[1])
    return from_pictures(lambda i: picture(there[i]), str, np.zeros(len(images)), 1, settings).read(range(len(images)))


def digest_of(*parts: bytes) -> str:
    """16 hexadecimal digits that tell one content from another."""
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
