"""Writing a data set slice by slice, by one process or several, so that it may be killed at any moment."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Len
from torch import Tensor
from typing_extensions import TypedDict

from ..errors import DatasetError
from ..runtime.progress import Progress, say
from ..storage import checksums, lock, typed, whole
from . import stored
from .arrays import array, centred, statistics
from .card import Card

Spec = tuple[str, tuple[int, ...]]
Slots = Tensor | np.ndarray | Sequence[int] | range


class Line(TypedDict):
    """A slice that is safely on disk; `sha256` is that of each array's part."""

    chain: int
    slots: Annotated[list[tuple[Annotated[int, Ge(0)], Annotated[int, Ge(1)]]], Len(1)]
    facts: dict[str, Any]
    of: str
    sha256: dict[str, str]


class Writer:
    """Writes a data set slice by slice; may be killed at any moment and opened again, by one rank or several.

    The files have their final size from the start, so the final bytes do not depend on the order of writing. A slice is
    flushed to disk BEFORE its line is appended to this rank's journal: a line is a promise. Ranks write
    disjoint slots.

        writer = Writer.create(folder, card, count)
        for chain in writer.missing(chains):
            writer.write(slots, images, logits=logits, chain=chain)
        writer.close()
    """

    def __init__(
        self, path: Path, card: Card, arrays: dict[str, np.ndarray], rank: int, barrier: Callable[[], None]
    ) -> None:
        self.path, self.card, self.rank = path, card, rank
        self.finished = False  # whether the folder holds this very data set already
        self._arrays, self._barrier = arrays, barrier
        self._identity = _identity(card)
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
        first: Callable[[Callable[[], object]], object] | None = None,
    ) -> Writer:
        """Begin the data set of `count` images in folder `path`, or go on with it.

        What was written before is read once and compared with the journal: a slice that was damaged or lost is said,
        and made again. Rank 0 does it; the others wait.

        `logits` False: labels instead; `labels` False, too: no targets. `seeds`: columns of seeds.npy,
        `regions`: crops per image in regions.npy, 0 for none. `barrier`: waits for all ranks; `first`:
        has the first rank do it while the others wait; both are the machine's, and needed when there are several ranks.
        `finished` is set when the folder already holds this very data set.

        Raises:
            DatasetError: the folder holds another data set.
            StorageError: there is no room on the disk for the whole data set.
        """
        folder = Path(path)
        card = dataclasses.replace(card, count=count)
        shapes = _shapes(card, logits, labels, seeds, regions, dtype)
        if first is not None:
            first(lambda: _begin(folder, card, shapes))
        elif rank == 0:
            _begin(folder, card, shapes)
        finished = _finished(folder, card)
        names = [] if finished else [*shapes]
        arrays: dict[str, np.ndarray] = {name: _open(folder / f"{name}.npy", *shapes[name]) for name in names}
        barrier()  # all have seen whether it is finished before anyone can finish it
        writer = cls(folder, card, arrays, rank, barrier)
        writer.finished = finished
        return writer

    @staticmethod
    def is_there(folder: Path, card: Card, count: int) -> bool:
        """Whether the folder holds this very data set, finished; raises `DatasetError` when it is another one."""
        there = _finished(folder, dataclasses.replace(card, count=count))
        if there:
            lock.clear(folder)
        return there

    @property
    def done(self) -> set[int]:
        """The chains that are safely on disk, whichever rank wrote them."""
        return {line["chain"] for line in self._lines}

    def missing(self, chains: Iterable[int]) -> list[int]:
        """Those of the chains that are not on disk yet."""
        done = self.done
        return [] if self.finished else [chain for chain in chains if chain not in done]

    @property
    def facts(self) -> dict[int, dict[str, Any]]:
        """The `facts` of each chain, in the order of chains."""
        return {line["chain"]: line["facts"] for line in sorted(self._lines, key=lambda line: line["chain"])}

    def gather(self) -> dict[int, dict[str, Any]]:
        """`facts` of all ranks, once all have written what is theirs."""
        self._barrier()
        self._lines = self._read()
        return self.facts

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
        Raises `DatasetError` for values that are NaN or infinite; labels may be NaN, for unlabelled.
        """
        if self.finished:
            raise DatasetError(f"{self.path} is finished; nothing more can be written into it")
        at = slots.numpy() if isinstance(slots, Tensor) else np.asarray(slots)
        parts = {"images": images, "logits": logits, "labels": labels, "seeds": seeds, "regions": regions}
        slices = {name: self._checked(name, parts[name], at) for name in self._arrays}
        for name, mapped in self._arrays.items():
            mapped[at] = slices[name]
        with whole.storing(self.path):
            for mapped in self._arrays.values():
                mapped.flush()  # type: ignore[attr-defined]
        line: Line = {
            "chain": int(at[0]) if chain is None else int(chain),
            "slots": _ranges(at),
            "facts": facts or {},
            "of": self._identity,
            "sha256": {name: _digest(mapped, at) for name, mapped in self._arrays.items()},
        }
        if typed.defined(line["facts"]) != line["facts"]:
            raise DatasetError(f"{self.path}: figures of image {at[0]} on are NaN or infinite: {line['facts']}")
        _append(self.path / f"journal-{self.rank}.jsonl", json.dumps(line, sort_keys=True))
        self._lines.append(line)

    def _checked(self, name: str, given: Any, at: np.ndarray) -> np.ndarray:
        """The values as they will be stored."""
        if given is None:
            raise DatasetError(f"{self.path} expects {name} with every slice")
        values = array(given)
        stored.refuse(f"{self.path}", name, values, at)
        if name in ("logits", "regions"):
            values = centred(values.reshape(-1, self.card.classes), self.card.task).reshape(values.shape)
        return values

    def close(self, **fields: Any) -> None:
        """Check that every slot is written, measure, write the card with `fields` and the checksums, end the journals.

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
                checksums.record(self.path, "card.json", *(f"{name}.npy" for name in self._arrays))
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
        for name in self._arrays:
            if not (self.path / f"{name}.npy").exists():
                raise DatasetError(f"{self.path / name}.npy was removed in the meantime; run the same command again")

    def _read(self) -> list[Line]:
        return [line for journal in _journals(self.path) for line in _lines(journal, self.card)[0]]


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Inside, no other process is in the folder; where nothing was begun in it, it does not stay.

    For writers without a run, which has its folder for itself. Raises `RunError` where another process is at work.
    """
    new = not folder.exists()
    try:
        with lock.alone_in(folder):
            yield
    finally:
        if new:
            with contextlib.suppress(OSError):  # something is in it
                folder.rmdir()


# -- the beginning -----------------------------------------------------------------------------------------------------


def _begin(folder: Path, card: Card, shapes: dict[str, Spec]) -> None:
    """Make the files, or find them: journals then tell the truth, and the arrays have room on the disk."""
    with whole.storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if _finished(folder, card):
        return
    for file in filter(whole.unfinished, folder.iterdir()):
        file.unlink(missing_ok=True)
    journals = _journals(folder)
    if not journals:
        _refuse_foreign(folder, shapes)
        _append(folder / "journal-0.jsonl", "")  # from here on the arrays are known to be ours
    checksums.forget(folder, "card.json", *(f"{name}.npy" for name in stored.ARRAYS))
    for name, spec in shapes.items():
        _allocate(folder / f"{name}.npy", *spec)
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in shapes}
    lost = sum(_keep_sound(journal, card, arrays) for journal in journals)
    if lost:
        say(f"{folder}: {lost:,} images that were written are damaged or lost; they are made again", logging.WARNING)


def _refuse_foreign(folder: Path, shapes: dict[str, Spec]) -> None:
    """Raise `DatasetError` where an array is there that no unfinished data set has begun."""
    for name in shapes:
        if (folder / f"{name}.npy").exists():
            raise DatasetError(f"{folder / name}.npy is there, but no data set around it; name another --out")


def _shapes(card: Card, logits: bool, labels: bool, seeds: int, regions: int, dtype: str) -> dict[str, Spec]:
    """The type and shape of each array."""
    shapes: dict[str, Spec] = {"images": (dtype, (card.count, *card.shape))}
    if logits:
        shapes["logits"] = ("float16", (card.count, card.classes))
    elif labels and card.task == "multi":
        shapes["labels"] = ("float32", (card.count, card.classes))
    elif labels:
        shapes["labels"] = ("int64", (card.count,))
    if seeds:
        shapes["seeds"] = ("int32", (card.count, seeds))
    if regions:
        shapes["regions"] = ("float16", (card.count, regions, card.classes))
    return shapes


def _identity(card: Card) -> str:
    return hashlib.sha256(card.dumps().encode()).hexdigest()[:16]


def _digest(array: np.ndarray, at: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array[at]).tobytes()).hexdigest()


# -- journals ----------------------------------------------------------------------------------------------------------


def _journals(folder: Path) -> list[Path]:
    return sorted(folder.glob("journal-*.jsonl"))


def _lines(journal: Path, card: Card) -> tuple[list[Line], int]:
    """The lines that can be read, and how many cannot: torn by a kill, damaged, or of a version without digests."""
    lines, identity, unreadable = [], _identity(card), 0
    for text in journal.read_bytes().splitlines():
        if not text.strip():
            continue
        try:
            line = typed.parse(text, Line, f"{journal}", DatasetError, "")
            fits = all(start < stop <= card.count for start, stop in line["slots"])
        except DatasetError:
            fits = False
        if not fits:
            unreadable += 1  # its slice is written again
        elif line["of"] != identity:
            raise DatasetError(f"{journal.parent} holds another unfinished data set; name another --out")
        else:
            lines.append(line)
    return lines, unreadable


def _keep_sound(journal: Path, card: Card, arrays: dict[str, np.ndarray]) -> int:
    """Leave the lines whose slices are still what was written; how many images the others had."""
    lines, unreadable = _lines(journal, card)
    bar = Progress(f"checking {journal.parent.name}", len(lines), 0)
    sound = []
    for number, line in enumerate(lines, 1):
        sound += [line] if _is_sound(line, arrays) else []
        bar.update(number, {})
    bar.close()
    if len(sound) < len(lines) or unreadable:
        whole.write(journal, "".join(json.dumps(line, sort_keys=True) + "\n" for line in sound))
    kept = {line["chain"] for line in sound}
    return sum(len(_slots(line)) for line in lines if line["chain"] not in kept)


def _is_sound(line: Line, arrays: dict[str, np.ndarray]) -> bool:
    at = _slots(line)
    return all(line["sha256"].get(name) == _digest(array, at) for name, array in arrays.items())


def _slots(line: Line) -> np.ndarray:
    return np.concatenate([np.arange(start, stop) for start, stop in line["slots"]])


def _finished(folder: Path, card: Card) -> bool:
    if not (folder / "card.json").exists() or _journals(folder):
        return False
    there = Card.load(folder)
    same = ["name", "origin", "task", "shape", "classes", "count", "recipe", "label_view", "teacher", "mean", "std"]
    same += ["random_labels", "source", "grid"]
    one, two = (json.loads(each.dumps()) for each in (there, card))  # tuples and lists are the same there
    if any(one.get(key) != two.get(key) for key in same):
        what = f"{there.name!r}, {there.origin}, {there.count} images"
        raise DatasetError(f"{folder} holds another data set ({what}); name another --out or remove it")
    return True


def _allocate(path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    """An .npy of its final size, with room on the disk for all of it, so that no map of it is killed by a full one."""
    header, start = np.lib.format.header_data_from_array_1_0(np.empty(0, dtype)) | {"shape": shape}, io.BytesIO()
    np.lib.format.write_array_header_1_0(start, header)
    size = int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
    with whole.storing(path, size), open(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
        whole.reserve(file, path, len(start.getvalue()) + size)
        file.write(start.getvalue())


def _open(path: Path, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """A map of the array to write to."""
    if not path.exists():  # a rank alone, without the first one
        _allocate(path, dtype, shape)
    return np.lib.format.open_memmap(path, mode="r+")


def _append(path: Path, text: str) -> None:
    with whole.storing(path), open(path, "a+b") as file:
        if file.tell() and not _ends_line(file):  # a torn line of a killed run must not swallow this one
            file.write(b"\n")
        file.write(text.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _ends_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")


def _ranges(slots: np.ndarray) -> list[tuple[int, int]]:
    """Slots as [start, stop) pairs: [3, 4, 5, 9] -> [(3, 6), (9, 10)]."""
    breaks = np.flatnonzero(np.diff(slots) != 1) + 1
    return [(int(run[0]), int(run[-1]) + 1) for run in np.split(slots, breaks) if len(run)]
