"""What is spent on never being silently wrong: checksums, checks for NaN, locks and digests of slices, in a run's time.

The functions that check are wrapped in a stopwatch, and three ordinary runs go through the same code as their commands:
a training of one epoch on a stored set of 50,000 images (three channels, 32 pixels), a DARTS search on a thousand of
them, and a synthesis from a trained network. A figure is the processor time inside the checks as a share of the whole
run's, reading the data set for its checksum included: what a clock shows on an idle machine, and unlike it unmoved by
neighbours.

    python bench/checks.py [--quick]

Last line: `share: X.XX %`, the largest of the three.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import numpy as np  # noqa: E402
import torch  # noqa: E402

import phosphene  # noqa: E402
from phosphene import models  # noqa: E402
from phosphene.data import stored, writer  # noqa: E402
from phosphene.runtime.finite_states import FiniteStates  # noqa: E402
from phosphene.storage import checksums, finite, lock  # noqa: E402

CHECKS = (
    *((FiniteStates, name) for name in ("__init__", "look", "check")),
    *((checksums, name) for name in ("record", "verify")),
    *((finite, name) for name in ("first_bad", "bad_values", "is_finite")),
    *((lock, name) for name in ("take", "give_back")),
    *((stored, name) for name in ("check", "refuse")),
    *((writer, name) for name in ("_digest", "_keep_sound")),
)


class Stopwatch:
    """Processor seconds inside the functions that it has wrapped; a call within a call is counted once."""

    def __init__(self) -> None:
        self.seconds, self.calls, self._inside = 0.0, 0, False
        for owner, name in CHECKS:
            setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            if self._inside:
                return function(*args, **keywords)
            self._inside, began = True, time.process_time()
            try:
                return function(*args, **keywords)
            finally:
                self._inside = False
                self.seconds += time.process_time() - began
                self.calls += 1

        return call

    def share_of(self, run: Callable[[], object]) -> tuple[float, float, int]:
        """(share of the run's processor time, its seconds, calls)."""
        self.seconds, self.calls, began = 0.0, 0, time.process_time()
        run()
        whole = time.process_time() - began
        return self.seconds / whole, whole, self.calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a fifth of the images and of the steps")
    few = 5 if parser.parse_args().quick else 1
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, draws = 50_000 // few, np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        pixels = draws.integers(0, 256, (images, 3, 32, 32), dtype=np.uint8)
        phosphene.ImageDataset.from_arrays(pixels, labels=np.arange(images) % 10, classes=10).save(folder / "data")
        few_images = phosphene.ImageDataset.open(folder / "data").subset(range(1000))
        checksums._verified.clear()  # as a process that has not written it
        data, teacher = str(folder / "data"), models.build("cifar-resnet20", 10, 3)
        known: dict[str, Any] = {"mean": "0.5", "std": "0.25", "size": 32}
        runs: dict[str, Callable[[], object]] = {
            "train": lambda: phosphene.train("cifar-resnet8", data=data, epochs=1, batch=128, out=folder / "t"),
            "search darts": lambda: phosphene.search(
                few_images, "darts", epochs=1, steps=20 // few, batch=32, channels=8, cells=5, out=folder / "s"
            ),
            "synthesize": lambda: phosphene.synthesize(
                teacher, images=250 // few, batch=250 // few, iterations=200 // few, **known, out=folder / "y"
            ),
        }
        watch, shares = Stopwatch(), []
        for name, run in runs.items():
            checksums._verified.clear()
            share, seconds, calls = watch.share_of(run)
            shares.append(share)
            print(f"  {name}: {100 * share:.3f} % of {seconds:.1f} s ({calls} calls)")
    print(f"share: {100 * max(shares):.2f} %")


if __name__ == "__main__":
    main()
