"""Writing a data set slice by slice, by one process or several, so that it may be killed at any moment."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import DatasetError
from .card import Card, array, centred, statistics

Slots = Tensor | np.ndarray | Sequence[int] | range


class Writer:
    """Writes a data set slice by slice; may be killed at any moment and opened again, by one rank or several.

    The files have their final size from the start, so the final bytes do not depend on the order of writing. A slice is
    flushed to disk BEFORE its line is appended to this rank's journal: a line is a promise. Ranks write
    disjoint slots.

        writer = Writer.create(folder, card, count)
        for chain in chains - writer.done:
            writer.write(slots, images, logits=logits, chain=chain)
        writer.close()
    """

    def __init__(
        self, path: Path, card: Card, arrays: dict[str, np.ndarray], rank: int, barrier: Callable[[], None]
    ) -> None:
        self.path, self.card, self.rank = path, card, rank
        self.finished = False  # whether the folder holds this very data set already
        self._arrays, self._barrier = arrays, barrier
        self._identity = hashlib.sha256(card.dumps().encode()).hexdigest()[:16]
        self._lines = self._read()

    @classmethod
    def create(
        cls,
        path: Path | str,
        card: Card,
        count: int,
        *,
        logits: bool = True,
        labels: bool = True,
        seeds: int = 0,
        regions: int = 0,
        dtype: str = "uint8",
        rank: int = 0,
        barrier: Callable[[], None] = lambda: None,
    ) -> Writer:
        """Begin the data set of `count` images in folder `path`, or go on with it.

        `logits` False: labels instead; `labels` False, too: no targets. `seeds`: columns of seeds.npy,
        `regions`: crops per image in regions.npy, 0 for none. `barrier`: waits for all ranks, needed when there are
        several. `finished` is set when the folder already holds this very data set. Raises `DatasetError` when it holds
        another one.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        card = dataclasses.replace(card, count=count)
        shapes: dict[str, tuple[str, tuple[int, ...]]] = {"images": (dtype, (count, *card.shape))}
        if logits:
            shapes["logits"] = ("float16", (count, card.classes))
        elif labels and card.task == "multi":
            shapes["labels"] = ("float32", (count, card.classes))
        elif labels:
            shapes["labels"] = ("int64", (count,))
        if seeds:
            shapes["seeds"] = ("int32", (count, seeds))
        if regions:
            shapes["regions"] = ("float16", (count, regions, card.classes))
        finished = _finished(folder, card)
        arrays = {} if finished else {name: _allocate(folder / f"{name}.npy", *spec) for name, spec in shapes.items()}
        writer = cls(folder, card, arrays, rank, barrier)
        writer.finished = finished
        return writer

    @property
    def done(self) -> set[int]:
        """The chains that are safely on disk, whichever rank wrote them."""
        return {line["chain"] for line in self._lines}

    @property
    def facts(self) -> dict[int, dict[str, Any]]:
        """The `facts` of each chain, in the order of chains."""
        return {line["chain"]: line["facts"] for line in sorted(self._lines, key=lambda line: line["chain"])}

    def write(
        self,
        slots: Slots,
        images: np.ndarray | Tensor,
        *,
        logits: np.ndarray | Tensor | None = None,
        labels: np.ndarray | Tensor | None = None,
        seeds: np.ndarray | Tensor | None = None,
        regions: np.ndarray | Tensor | None = None,
        chain: int | None = None,
        facts: dict[str, Any] | None = None,
    ) -> None:
        """Write images (n, C, H, W) and their targets into these slots; on return they survive a crash.

        `chain`: the number by which `done` knows this slice (default: its first slot). `facts`: JSON to keep with it.
        """
        if self.finished:
            raise DatasetError(f"{self.path} is finished; nothing more can be written into it")
        at = slots.numpy() if isinstance(slots, Tensor) else np.asarray(slots)
        slices = {"images": images, "logits": logits, "labels": labels, "seeds": seeds, "regions": regions}
        for name, mapped in self._arrays.items():
            if slices[name] is None:
                raise DatasetError(f"{self.path} expects {name} with every slice")
            values = array(slices[name])
            if name in ("logits", "regions"):
                values = centred(values.reshape(-1, self.card.classes), self.card.task).reshape(values.shape)
            mapped[at] = values
        for mapped in self._arrays.values():
            mapped.flush()  # type: ignore[attr-defined]
        line = {
            "chain": int(at[0]) if chain is None else int(chain),
            "slots": _ranges(at),
            "facts": facts or {},
            "of": self._identity,
        }
        _append(self.path / f"journal-{self.rank}.jsonl", json.dumps(line, sort_keys=True))
        self._lines.append(line)

    def close(self, **fields: Any) -> None:
        """Check that every slot is written, measure, write the card with `fields`, remove the journals.

        All ranks call it; rank 0 does it. Raises `DatasetError` when slots are missing.
        """
        self._barrier()
        try:
            if self.rank == 0 and not self.finished:
                self._lines = self._read()
                self._complete()
                card = dataclasses.replace(self.card, **fields)
                card.statistics = {**statistics(self._arrays["images"]), **card.statistics}
                card.save(self.path)
                for journal in self.path.glob("journal-*.jsonl"):
                    journal.unlink()
        finally:
            self._barrier()

    def _complete(self) -> None:
        seen = np.zeros(self.card.count, dtype=bool)
        for line in self._lines:
            for start, stop in line["slots"]:
                seen[start:stop] = True
        if not seen.all():
            missing = np.flatnonzero(~seen)
            lack = f"lacks {len(missing)} of {len(seen)} images (the first is {missing[0]})"
            raise DatasetError(f"{self.path} {lack}; run the same command again")

    def _read(self) -> list[dict[str, Any]]:
        lines = []
        for journal in sorted(self.path.glob("journal-*.jsonl")):
            for text in journal.read_text().splitlines():
                try:
                    line = json.loads(text)
                except ValueError:
                    continue  # torn by a kill: its slice is written again
                if line["of"] != self._identity:
                    raise DatasetError(f"{self.path} holds another unfinished data set; name another --out")
                lines.append(line)
        return lines


def _finished(folder: Path, card: Card) -> bool:
    if not (folder / "card.json").exists() or any(folder.glob("journal-*.jsonl")):
        return False
    there = Card.load(folder)
    same = ["name", "origin", "task", "shape", "classes", "count", "recipe", "label_view", "teacher", "mean", "std"]
    same += ["random_labels", "source", "grid"]
    one, two = (json.loads(each.dumps()) for each in (there, card))  # tuples and lists are the same there
    if any(one.get(key) != two.get(key) for key in same):
        what = f"{there.name!r}, {there.origin}, {there.count} images"
        raise DatasetError(f"{folder} holds another data set ({what}); name another --out or remove it")
    return True


def _allocate(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """A mapped .npy of its final size. Ranks may race here: all write the same header and the same length."""
    header = np.lib.format.header_data_from_array_1_0(np.empty(0, dtype)) | {"shape": shape}
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize)
    return np.lib.format.open_memmap(path, mode="r+")


def _append(path: Path, text: str) -> None:
    with open(path, "a+b") as file:
        if file.tell() and not _ends_line(file):  # a torn line of a killed run must not swallow this one
            file.write(b"\n")
        file.write(text.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _ends_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")


def _ranges(slots: np.ndarray) -> list[list[int]]:
    """Slots as [start, stop) pairs: [3, 4, 5, 9] -> [[3, 6], [9, 10]]."""
    breaks = np.flatnonzero(np.diff(slots) != 1) + 1
    return [[int(run[0]), int(run[-1]) + 1] for run in np.split(slots, breaks) if len(run)]
