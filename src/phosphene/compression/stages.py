"""The stages of a compression, each a command of its own in a folder of its own."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from typing_extensions import TypedDict

from ..core import Architecture
from ..costs import budget as costs
from ..costs.bounds import Timing
from ..data.dataset import ImageDataset
from ..errors import BudgetError, DatasetError, Estimate, ExportError, needs_of
from ..runtime.progress import say
from ..runtime.run import Run
from ..searches.spos import spos
from ..settings import Hardware, Seed
from ..synthesis.inversion.command import synthesize
from ..synthesis.noise import noise
from ..teachers.teacher import Teacher, TeacherInput
from ..training import setup
from ..training.recipes import TrainingRecipe
from ..training.setup import Trained
from ..training.train import train
from .distill.command import find_student
from .export.command import FileFormat, export
from .export.graph import Job
from .measure import Stage
from .prune import plan
from .prune.command import prune
from .target import Compression, checked, latency_share, wanted

__all__ = ["Pipeline", "split"]

CHECKED = 1000  # images at most, one in ten, on which networks are compared and nothing is trained


class Whole(TypedDict):
    """`whole.json`: milliseconds of the original network."""

    ms: float


@dataclass
class Pipeline:
    """The stages of one compression in their order."""

    run: Run
    source: str
    settings: Compression
    bounds: dict[str, str]
    original: Teacher
    test: ImageDataset | None

    @property
    def place(self) -> dict[str, Any]:
        """Seed and hardware of every stage, as keywords."""
        return self.settings.keywords(Seed, Hardware) | {"estimate": self.settings.estimate}

    @property
    def network(self) -> dict[str, Any]:
        """Weights and input of the original network, as keywords."""
        return self.settings.keywords(TeacherInput)

    # -- stage one: images

    def images(self) -> ImageDataset:
        """Images synthesized from the network."""
        s, out = self.settings, self.run.path / "images"
        own = {"images": s.images, "preset": s.preset, "iterations": s.iterations}
        return synthesize(self.source, out=out, **own, **self.network, **self.place)

    # -- stages two and four: files

    def exports(self, name: str, network: Teacher, images: ImageDataset, original: bool = False) -> dict[str, Stage]:
        """A network's file in float and, with --int8, in int8, by name."""
        stages = {}
        if self.run.machine.rank == 0:
            for int8 in (False, True) if self.settings.int8 else (False,):
                folder = ("given-int8" if int8 else "given") if original else ("int8" if int8 else "float")
                try:
                    stages[f"{name}, int8" if int8 else name] = self._export(network, images, folder, int8, original)
                except ExportError as error:
                    if not (original and int8):
                        raise
                    say(f"the original network has no int8 file to compare with: {error}")
        self.run.machine.barrier()
        return stages

    def _export(self, network: Teacher, images: ImageDataset, folder: str, int8: bool, timed: bool) -> Stage:
        s, task = self.settings, images.card.task
        exported = export(
            network,
            data=images,
            out=self.run.path / folder,
            task=task,
            latency=timed and "latency" in self.bounds,
            seed=self.run.seed,
            **(s.keywords(FileFormat) | {"int8": int8}),
        )
        return Stage(Job(network, int8, s.with_preprocessing, task), exported)

    # -- stage three: the compressed network

    def small(self, images: ImageDataset, bounds: dict[str, str]) -> Trained:
        """The network pruned, or a student; both are trained on the original network's soft labels."""
        s, out = self.settings, self.run.path / "small"
        learning = {"epochs": s.epochs, "steps": s.steps, "lr": s.lr, **self.place}
        learning |= {} if s.batch is None else {"batch": s.batch}
        if s.student is None:
            own: dict[str, Any] = {"method": s.method, "rows": "teacher", "on": self._on, **bounds, **self.network}
            own |= {"supernet_steps": s.search_steps, "supernet_batch": s.search_batch, **self._evolution(images)}
            own |= {"multiple": s.block} if s.by_criterion else {}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # torch's exporter warns for each network that is timed
                return prune(self.source, data=images, out=out, **own, **learning)
        student = self._search(images, bounds) if s.student == "search" else self._student(s.student, bounds)
        return train(student, data=images, teacher=self.original, out=out, **learning)

    @property
    def _on(self) -> Literal["onnx", "cpu"]:
        """The runtime of networks that are timed on the way."""
        return "onnx" if self.settings.to == "onnx" else "cpu"

    def shared_bounds(self, before: dict[str, Stage]) -> dict[str, str]:
        """The bounds as stage three has them: latency as a share, computed once and kept in `bounds.json`."""
        if "latency" not in self.bounds:
            return self.bounds

        def shares() -> dict[str, Any]:
            ms: dict[str, Any] = {}
            for stage in before.values():
                ms |= stage.exported.latency or {}
            alike = float(ms.get("int8_ms", ms["float_ms"]))
            share = latency_share(self.bounds["latency"], float(ms["float_ms"]), alike, len(self.bounds) > 1)
            return self.bounds | {"latency": share}

        kept = plan.once(self.run, "bounds.json", shares, dict[str, str | None])
        return {name: text for name, text in kept.items() if text is not None}

    def _student(self, name: str, bounds: dict[str, str]) -> Architecture | nn.Module:
        """The student of this name; raises `BudgetError` where it exceeds a bound."""
        student, shape = find_student(name, self.original, self.run.seed), self.original.shape
        if isinstance(student, nn.Module):
            net = student
        else:
            design = setup.design(student, self.original.classes, shape, TrainingRecipe())
            with torch.device("meta"):
                net = setup.build(student, design)
        known = dict(zip(("params", "macs"), costs.count(net, shape), strict=True))
        for cost, one in checked(bounds, self._figures, known).items():
            if not one["kept"]:
                raise BudgetError(
                    f"--student {name} has {costs.short(one['reached'])} {cost}, which --{cost} {one['asked']} "
                    "excludes; take a smaller one, or leave the bound out"
                )
        return student

    @property
    def _figures(self) -> dict[str, float]:
        """Parameters and MACs of the original network."""
        return dict(zip(("params", "macs"), costs.count(self.original.net, self.original.shape), strict=True))

    def _search(self, images: ImageDataset, bounds: dict[str, str]) -> Architecture:
        """An architecture within the bounds, searched on the same images with the original network's soft labels."""
        s, run, figures = self.settings, self.run, self._figures
        if "latency" in bounds:
            timing = Timing(on=self._on)

            def measured() -> dict[str, Any]:
                return {"ms": plan.milliseconds(self.original.net, self.original.shape, timing, run.machine)}

            figures["latency"] = plan.once(run, "whole.json", measured, Whole)["ms"]
        own: dict[str, Any] = {"steps": s.search_steps, "batch": s.search_batch, "teacher": self.original}
        own |= {"width": s.width, "final_width": s.width} if s.width else {}
        own |= {**wanted(bounds, figures), **self._evolution(images), **self.place, "on": self._on}
        return spos(images, space=s.space, out=run.path / "search", **own)

    def _evolution(self, images: ImageDataset) -> dict[str, int]:
        """SPOS's proportions: the top fifth has offspring, half mutants, half children of two.

        Candidates are scored on 32 images of a class, or on a quarter where there are fewer.
        """
        size = self.settings.population
        own = {"population": size, "top": max(2, size // 5), "mutants": size // 2, "crossings": size // 2}
        held_out = max(1, min(32, len(images) // (4 * self.original.classes)))
        return own | {"generations": self.settings.generations, "held_out": held_out}

    # -- before any of them

    def estimate(self, data: ImageDataset | None) -> Estimate:
        """The needs of the stages, added up; noise stands for images that are not synthesized yet."""
        s, run = self.settings, self.run
        images = data
        if images is None:
            images = noise(self.original, images=s.images, out=run.path / "noise", **s.keywords(Seed, Hardware))
        bounds = {name: text for name, text in self.bounds.items() if name != "latency"} or {"macs": "50%"}
        parts: dict[str, Callable[[], object]] = {} if data is not None else {"synthesize": self.images}
        parts["small"] = lambda: self.small(images, bounds)
        known = {name: needs for name, part in parts.items() if (needs := needs_of(part))}
        minutes = {name: {"minutes": needs["minutes"]} for name, needs in known.items()}
        return Estimate.of("compress", [(needs, 1) for needs in known.values()], parts=minutes)


def split(images: ImageDataset, seed: int) -> tuple[ImageDataset, ImageDataset]:
    """(images to train on, images to compare networks on): of these one in ten, of every class, at most `CHECKED`."""
    if len(images) < 2:
        raise DatasetError(f"{images.card.name} has {len(images)} images; give more")
    held = min(CHECKED, max(1, len(images) // 10))
    return images.split(1 - held / len(images), seed)
