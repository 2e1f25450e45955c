"""An .npz of images and labels, under the names and in the layouts that are usual."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable

import numpy as np

from ...errors import DatasetError
from ...storage.damage import reading
from ..card import MOST_CLASSES
from . import SPLITS, RawImages, ReadSettings, digest_of, from_arrays, resized

DENSEST = 1032  # bytes that one byte of deflate can stand for
IMAGE_KEYS, LABEL_KEYS = ("images", "image", "x", "data"), ("labels", "label", "y", "targets")


def read(source: str, settings: ReadSettings) -> RawImages:
    """The arrays of one split; pickled objects are refused."""
    failed, remedy = f"{source} cannot be read as an .npz of plain arrays", "fetch or make it again"
    with reading(failed, remedy), np.load(source, allow_pickle=False) as arrays:
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise ValueError("it is an .npy")
        pairs = _pairs(arrays.files)
        image_key, label_key = pairs[_one_split(source, pairs, settings.split)]
        images, labels = member(arrays, image_key), member(arrays, label_key)
        names = [str(n) for n in member(arrays, "class_names")] if "class_names" in arrays.files else None
    images = _nchw(_pixels(images, f"{source}:{image_key}"), settings.layout, f"{source}:{image_key}")
    labels = targets(labels, f"{source}:{label_key}")
    if len(images) != len(labels):
        raise DatasetError(f"{source} has {len(images)} {image_key} but {len(labels)} {label_key}")
    classes = len(names) if names else labels.shape[1] if labels.ndim == 2 else int(labels.max(initial=0)) + 1
    images = resized(images, settings)
    return from_arrays(images, labels, classes, names, digest_of(images.tobytes(), labels.tobytes()))


def member(arrays: np.lib.npyio.NpzFile, key: str) -> np.ndarray:
    """One array. Memory is not taken for what its header, or the archive's, only claims to be there."""
    assert arrays.zip is not None
    info = arrays.zip.getinfo(f"{key}.npy" if f"{key}.npy" in arrays.zip.namelist() else key)
    if info.compress_type == zipfile.ZIP_DEFLATED and info.file_size > DENSEST * info.compress_size + DENSEST:
        raise ValueError(f"{key} claims {info.file_size:,} bytes, but {info.compress_size:,} are compressed there")
    with arrays.zip.open(info) as file:
        first = np.lib.format.read_magic(file) == (1, 0)
        header = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(file)
        there = info.file_size - file.tell()
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != there:
        raise ValueError(f"{key} claims to be {dtype}{shape}, but has {there:,} bytes")
    array: np.ndarray = arrays[key]
    return array


def _pairs(keys: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Which arrays are images and labels of which split ("" where the names say none)."""
    lower = {key.lower(): key for key in keys}
    splits = {}
    for split, words in {"": ("",), **SPLITS}.items():
        picks = [
            next((lower[k] for word in words for n in names for k in _joined(word, n) if k in lower), None)
            for names in (IMAGE_KEYS, LABEL_KEYS)
        ]
        if picks[0] and picks[1]:
            splits[split] = (picks[0], picks[1])
    return splits


def _joined(word: str, name: str) -> tuple[str, ...]:
    return (f"{word}_{name}", f"{name}_{word}", word + name) if word else (name,)


def _one_split(source: str, pairs: dict[str, tuple[str, str]], split: str | None) -> str:
    if not pairs:
        raise DatasetError(f"{source} has no images and labels under names we know (x_train/y_train, test_images, ...)")
    if split in pairs:
        return str(split)
    if split is None and len(pairs) == 1:
        return next(iter(pairs))
    there = "|".join(k for k in pairs if k) or "none"
    raise DatasetError(
        f"{source} has the parts {there}; " + (f"--split {split} is not there" if split else "say --split")
    )


def _pixels(images: np.ndarray, where: str) -> np.ndarray:
    """uint8, or float32 on the scale 0..1."""
    if images.dtype == np.uint8:
        return images
    if images.dtype == bool:
        return images.astype(np.uint8) * 255
    if not _is_real(images):
        raise DatasetError(f"{where} holds {images.dtype}; bytes 0..255 or floats 0..1 are needed")
    low, high = float(images.min(initial=0)), float(images.max(initial=0))
    integral = np.issubdtype(images.dtype, np.integer) or (high > 1 and bool((images == np.round(images)).all()))
    if integral and low >= 0 and high <= 255:
        return images.astype(np.uint8)
    if low >= 0 and high <= 1:
        return images.astype(np.float32)
    raise DatasetError(f"{where} runs from {low:.3g} to {high:.3g}; bytes 0..255 or floats 0..1 are needed")


def _nchw(images: np.ndarray, layout: str, where: str) -> np.ndarray:
    if images.ndim == 3:
        return images[:, None]
    if images.ndim != 4:
        raise DatasetError(f"{where} has shape {images.shape}; (N, H, W), (N, H, W, C) or (N, C, H, W) is needed")
    last, first = images.shape[3] in (1, 3), images.shape[1] in (1, 3)
    if layout == "auto" and last == first:
        raise DatasetError(f"{where} has shape {images.shape}: say --layout nchw or nhwc")
    if layout == "nhwc" or (layout == "auto" and last):
        return images.transpose(0, 3, 1, 2)
    return images


def targets(labels: np.ndarray, where: str) -> np.ndarray:
    """Labels (N,) as integers, or multi-label targets (N, K) where they are not one-hot."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    real = _is_real(labels)
    if real and labels.ndim == 2 and (labels.sum(1) == 1).all() and ((labels == 0) | (labels == 1)).all():
        labels = labels.argmax(1)
    if real and labels.ndim == 2:
        return labels.astype(np.float32)
    if not real or labels.ndim != 1 or not (labels == np.round(labels)).all():
        raise DatasetError(
            f"{where} is {labels.dtype}{labels.shape}; one integer an image, or targets (N, K), is needed"
        )
    low, high = labels.min(initial=0), labels.max(initial=0)
    if low < 0 or high >= MOST_CLASSES:
        raise DatasetError(
            f"{where} has the label {low if low < 0 else high}; labels count from 0, to {MOST_CLASSES:,}"
        )
    return labels.astype(np.int64)


def _is_real(values: np.ndarray) -> bool:
    """Whether these are numbers, or yes and no; no text, dates or complex numbers."""
    return any(np.issubdtype(values.dtype, kind) for kind in (np.integer, np.floating, np.bool_))
