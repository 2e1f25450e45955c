"""A blank figure for an architecture's drawing, and the PNG that it is saved to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..drawing.figure_style import save_picture


def blank(width: float, height: float) -> Any:
    """An empty white figure of these inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def full_panel(figure: Any, x: tuple[float, float], y: tuple[float, float]) -> Any:
    """One panel without axes that covers a figure; `x` and `y` are the limits of its coordinates."""
    panel = figure.add_axes((0, 0, 1, 1))
    panel.set_xlim(*x)
    panel.set_ylim(*y)
    panel.axis("off")
    return panel


def save(figure: Any, path: str | Path, dpi: int = 120) -> None:
    """Write a figure, or a `PIL` image, as a PNG; raises `SettingsError` or `StorageError` where it cannot be."""
    save_picture(figure, path, dpi=dpi)
