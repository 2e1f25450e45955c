"""Architecture search, distillation and compression of image networks without the images they were trained on.

    import phosphene
    data = phosphene.synthesize("digits", images=500)
    found = phosphene.search(data, "darts")

Names are imported when they are first used: `import phosphene` alone needs no torch.
"""

from __future__ import annotations

from .runtime import start as _start

if _start.is_command_line():
    _start.begin()  # before anything else is imported

from typing import TYPE_CHECKING, Any

from . import commands as _commands
from .__version__ import __version__ as __version__
from .errors import (
    ArchitectureError,
    BudgetError,
    DatasetError,
    ExportError,
    MissingExtra,
    NotFinite,
    PhospheneError,
    RecipeError,
    RunError,
    SettingsError,
    StorageError,
    TeacherError,
)

if TYPE_CHECKING:
    from .core import Architecture

_TYPES = {  # what is public besides the commands
    "Architecture": "phosphene.core:Architecture",
    "Augment": "phosphene.data.augment:Augment",
    "Batch": "phosphene.core:Batch",
    "Budget": "phosphene.costs.budget:Budget",
    "ImageDataset": "phosphene.data.dataset:ImageDataset",
    "Teacher": "phosphene.teachers.teacher:Teacher",
    "compress_network": "phosphene.compression.command:compress",
    "load_network": "phosphene.training.train:load_network",
    "load_pruned": "phosphene.compression.prune.command:load_pruned",
    "load_quantized": "phosphene.compression.quantize.network:load_quantized",
    "load_teacher": "phosphene.teachers.teacher:load",
    "register_search": "phosphene.plugins:register_search",
    "register_space": "phosphene.plugins:register_space",
    "relabel": "phosphene.synthesis.unreal:relabel",
}
_PUBLIC = {**_commands.python_names(), **_TYPES}
_ERRORS: tuple[type[PhospheneError], ...] = (
    *(ArchitectureError, BudgetError, DatasetError, ExportError, MissingExtra, NotFinite),
    *(PhospheneError, RecipeError, RunError, SettingsError, StorageError, TeacherError),
)
__all__ = sorted([*_PUBLIC, *(error.__name__ for error in _ERRORS), "__version__", "search"])


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
    algorithms = [name.removeprefix("search ") for name in _commands.calls() if name.startswith("search ")]
    if algorithm not in algorithms:
        raise SettingsError(f"algorithm {algorithm!r} is not one of {', '.join(algorithms)}")
    architecture: Architecture = _commands.function(f"search {algorithm}")(data=data, **settings)
    return architecture


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'phosphene' has no attribute {name!r}")
    globals()[name] = thing = _commands.load(_PUBLIC[name])
    return thing


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
