"""Architecture search, distillation and compression of image networks without the images they were trained on.

    import phosphene
    data = phosphene.synthesize("digits", images=500)
    found = phosphene.search(data, "darts")

Names are imported when they are first used: `import phosphene` alone needs no torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .__version__ import __version__
from .errors import (
    ArchitectureError,
    BudgetError,
    DatasetError,
    ExportError,
    MissingExtra,
    PhospheneError,
    RecipeError,
    RunError,
    SettingsError,
    TeacherError,
)

if TYPE_CHECKING:
    from .augment import Augment
    from .compress.distil import distill
    from .compress.export import export
    from .compress.prune import load_pruned, prune
    from .compress.quantize import quantize
    from .compress.quantized import load_quantized
    from .core import Architecture, Batch
    from .costs import Budget
    from .dataset import ImageDataset
    from .evaluate import evaluate
    from .extensions import register_search, register_space
    from .importing import import_ as import_dataset
    from .labelling import label as label_dataset
    from .pipeline.compress import compress as compress_network
    from .recipe import run as run_recipe
    from .report import report
    from .studies.audit import audit as study_audit
    from .studies.classes import classes as study_classes
    from .studies.collapse import collapse as study_collapse
    from .studies.consistency import consistency as study_consistency
    from .studies.difficulty import difficulty as study_difficulty
    from .studies.distinguish import distinguish as study_distinguish
    from .studies.which import which as study_which
    from .synthesis.command import synthesize
    from .synthesis.generator import train as train_generator
    from .synthesis.noise import noise
    from .synthesis.unreal import fractal as unreal_fractal
    from .synthesis.unreal import noise as unreal_noise
    from .synthesis.unreal import random_labels as unreal_random_labels
    from .synthesis.unreal import relabel
    from .teacher import Teacher
    from .teacher import load as load_teacher
    from .train import load_network, train

__all__ = [
    "Architecture",
    "ArchitectureError",
    "Augment",
    "Batch",
    "Budget",
    "BudgetError",
    "DatasetError",
    "ExportError",
    "ImageDataset",
    "MissingExtra",
    "PhospheneError",
    "RecipeError",
    "RunError",
    "SettingsError",
    "Teacher",
    "TeacherError",
    "__version__",
    "compress_network",
    "distill",
    "evaluate",
    "export",
    "import_dataset",
    "label_dataset",
    "load_network",
    "load_pruned",
    "load_quantized",
    "load_teacher",
    "noise",
    "prune",
    "quantize",
    "register_search",
    "register_space",
    "relabel",
    "report",
    "run_recipe",
    "search",
    "study_audit",
    "study_classes",
    "study_collapse",
    "study_consistency",
    "study_difficulty",
    "study_distinguish",
    "study_which",
    "synthesize",
    "train",
    "train_generator",
    "unreal_fractal",
    "unreal_noise",
    "unreal_random_labels",
]

_WHERE = {
    "Architecture": "core:Architecture",
    "Augment": "augment:Augment",
    "Batch": "core:Batch",
    "Budget": "costs:Budget",
    "ImageDataset": "dataset:ImageDataset",
    "Teacher": "teacher:Teacher",
    "compress_network": "pipeline.compress:compress",
    "distill": "compress.distil:distill",
    "evaluate": "evaluate:evaluate",
    "export": "compress.export:export",
    "import_dataset": "importing:import_",
    "label_dataset": "labelling:label",
    "load_network": "train:load_network",
    "load_pruned": "compress.prune:load_pruned",
    "load_quantized": "compress.quantized:load_quantized",
    "load_teacher": "teacher:load",
    "noise": "synthesis.noise:noise",
    "prune": "compress.prune:prune",
    "quantize": "compress.quantize:quantize",
    "register_search": "extensions:register_search",
    "register_space": "extensions:register_space",
    "relabel": "synthesis.unreal:relabel",
    "report": "report:report",
    "run_recipe": "recipe:run",
    "study_audit": "studies.audit:audit",
    "study_classes": "studies.classes:classes",
    "study_collapse": "studies.collapse:collapse",
    "study_consistency": "studies.consistency:consistency",
    "study_difficulty": "studies.difficulty:difficulty",
    "study_distinguish": "studies.distinguish:distinguish",
    "study_which": "studies.which:which",
    "synthesize": "synthesis.command:synthesize",
    "train": "train:train",
    "train_generator": "synthesis.generator:train",
    "unreal_fractal": "synthesis.unreal:fractal",
    "unreal_noise": "synthesis.unreal:noise",
    "unreal_random_labels": "synthesis.unreal:random_labels",
}


def search(data: Any, algorithm: str = "darts", **settings: Any) -> Architecture:
    """Search an architecture on a data set.

    Args:
        data: an `ImageDataset` or its folder.
        algorithm: "darts", "sgas", "spos" and whatever else ``phosphene search --help`` lists.
        settings: of the algorithm; ``phosphene search ALGORITHM --help`` lists them.

    Raises:
        SettingsError: no such algorithm.
        BudgetError: no architecture keeps the budget.
    """
    stages = importlib.import_module("phosphene.stages")
    algorithms = [name.removeprefix("search ") for name in stages.calls() if name.startswith("search ")]
    if algorithm not in algorithms:
        raise SettingsError(f"algorithm {algorithm!r} is not one of {', '.join(algorithms)}")
    found: Architecture = stages.function(f"search {algorithm}")(data=data, **settings)
    return found


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'phosphene' has no attribute {name!r}")
    module, attribute = _WHERE[name].split(":")
    thing = getattr(importlib.import_module(f"phosphene.{module}"), attribute)
    globals()[name] = thing
    return thing


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})


class _Package(ModuleType):
    """Importing `phosphene.train` binds that module here under its function's name; the function is what stays."""

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) and name in __all__:
            if name not in _WHERE:
                return
            value = getattr(value, _WHERE[name].split(":")[1])
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
