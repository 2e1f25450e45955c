"""A result as a person reads it: names at the left, figures at the right, nested results as tables of their own.

Tables fit the width: long texts wrap, and where that is not enough the last columns are left out and named. A number
is never cut. What is a percentage says so.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..errors import shown

PERCENT = frozenset({"top1", "top5", "accuracy", "ece", "per_class", "drop"})
"""keys of results whose values are percentages in every command, as is whatever ends in `_accuracy`"""
GAP = 2  # blanks between columns
LINE = 16  # letters of a line, at least, where a text wraps
LONGEST = 100_000  # letters of a text
LIST = 12  # elements of a list that are printed


@dataclass(frozen=True)
class Units:
    """Which figures of a result are percentages: by key those in 0..100, and shares in [0, 1], printed in percent."""

    percent: Collection[str] = ()
    shares: Collection[str] = ()

    def is_percent(self, key: str) -> bool:
        """Whether the figure is printed in percent."""
        return key in PERCENT or key in self.percent or key in self.shares or key.endswith("_accuracy")

    def scaled(self, key: str, value: Any) -> Any:
        """The value, or a share as a percentage; lists and dicts elementwise."""
        if isinstance(value, dict):
            return {name: self.scaled(key, one) for name, one in value.items()}
        if isinstance(value, list):
            return [self.scaled(key, one) for one in value]
        return round(100 * value, 10) if key in self.shares and is_number(value) else value

    def title(self, key: str) -> str:
        """The key in words, with its unit."""
        return _words(key) + (", %" if self.is_percent(key) else "")


def table(result: dict[str, Any], width: int = 80, units: Units | None = None) -> RenderableType:
    """Plain values as two columns; lists and dicts of dicts, and matrices, as tables of at most `width` letters."""
    units = units or Units()
    parts: list[RenderableType] = [_pairs({k: v for k, v in result.items() if not _nested(v)}, units)]
    for key, value in result.items():
        if _nested(value):
            percent = units.is_percent(key) and _uniform(value)
            title, scaled = (units.title(key), units.scaled(key, value)) if percent else (_words(key), value)
            for name, inner in _groups(title, scaled):
                parts += [Text(), Text(plain(name), style="bold"), _grid(inner, width, units, percent)]
    return Group(*parts[2 if all(map(_nested, result.values())) and result else 0 :])


def _words(key: str) -> str:
    return plain(key.replace("_", " "))


def _uniform(value: Any) -> bool:
    """Whether all is one figure: plain numbers, or a square of them, as opposed to a line of figures for each name."""
    items = value.values() if isinstance(value, dict) else value
    return all(not isinstance(item, dict) or item.keys() <= set(value) for item in items)


def _pairs(values: dict[str, Any], units: Units, percent: bool = False) -> Table:
    """Names and values below each other; a percentage has its sign, unless the title above says so (`percent`)."""
    pairs = Table(box=None, show_header=False, pad_edge=False)
    pairs.add_column(style="dim", overflow="fold")
    pairs.add_column(overflow="fold")
    for name, value in values.items():
        scaled = units.scaled(name, value)
        sign = " %" if not percent and units.is_percent(name) and is_number(scaled) else ""
        pairs.add_row(Text(_words(name)), Text(text(scaled) + sign))
    return pairs


def _groups(name: str, value: Any) -> list[tuple[str, Any]]:
    """A recipe's figures are a table for each group, of what a person reads of them; all else is one table."""
    if not (isinstance(value, list) and all("label" in one and "mean" in one for one in value)):
        return [(name, value)]
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in value:
        groups.setdefault(one.get("group", name), []).append(one)
    return [_figures(title, figures) for title, figures in groups.items()]


def _figures(title: str, figures: list[dict[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """Title and lines of a group of figures: their unit in the title where they share one, else in a column."""
    units = {one.get("unit") or "" for one in figures}
    lines = [{"": one["label"], **_figure(one)} for one in figures]
    if len(units) == 1:
        (unit,) = units
        return (f"{title}, {unit}" if unit else title), lines
    return title, [{**line, "unit": one.get("unit") or None} for line, one in zip(lines, figures, strict=True)]


def _figure(one: dict[str, Any]) -> dict[str, Any]:
    digits = one.get("digits")
    numbers = {name: one.get(name) for name in ("mean", "sd")}
    if digits is not None:
        numbers = {name: None if value is None else f"{value:,.{digits}f}" for name, value in numbers.items()}
    return {**numbers, "published": one.get("published")}


def _nested(value: Any) -> bool:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return isinstance(value, dict) or (bool(items) and all(isinstance(item, dict | list) for item in items))


def _grid(value: Any, width: int, units: Units, percent: bool) -> RenderableType:
    """A table of dicts or of lists; a dict of plain values is a list of names and values."""
    if isinstance(value, dict) and not all(isinstance(item, dict) for item in value.values()):
        flat = {key: item for key, item in value.items() if not _nested(item)}
        return _pairs(flat, units, percent) if len(flat) == len(value) else table(value, width, units)
    matrix = isinstance(value, list) and isinstance(value[0], list)  # such as a confusion
    if matrix:
        value = {str(i): {str(j): item for j, item in enumerate(line)} for i, line in enumerate(value)}
    lines = [{"": key, **item} for key, item in value.items()] if isinstance(value, dict) else list(value)
    names = dict.fromkeys(name for line in lines for name in line)
    filled = [name for name in names if any(line.get(name) not in (None, "") for line in lines)]
    columns = [
        _Column(_words(name) if percent else units.title(name), [units.scaled(name, line.get(name)) for line in lines])
        for name in filled
    ]
    if matrix and _width(columns) > width:
        return Text(f"{len(value)} × {len(columns) - 1} numbers: too wide for this terminal, --json has them")
    return _fitting(columns, width)


class _Column:
    """A column of a table: its head, its cells as text, and how narrow it may be."""

    def __init__(self, head: str, values: Sequence[Any]) -> None:
        self.head, self.numeric = head, all(value is None or is_number(value) for value in values)
        self.cells = column_texts(values) if self.numeric else [text(value) for value in values]

    @property
    def least(self) -> int:
        """Letters it needs: its numbers whole, its texts in lines of `LINE` letters."""
        longest = max(map(len, [*self.head.split(), *self.cells]), default=0)
        return longest if self.numeric else min(longest, LINE)


def _width(columns: Sequence[_Column]) -> int:
    return sum(column.least + GAP for column in columns)


def _fitting(columns: list[_Column], width: int) -> RenderableType:
    """The table with as many of its columns as fit; a line below names the others."""
    kept = len(columns)
    while kept > 1 and _width(columns[:kept]) > width:
        kept -= 1
    grid = Table(box=None, pad_edge=False, header_style="dim", padding=(0, GAP, 0, 0))
    for column in columns[:kept]:
        side = "right" if column.numeric else "left"
        head = Text(column.head)
        grid.add_column(head, justify=side, overflow="fold", min_width=column.least)  # type: ignore[arg-type]
    for cells in zip(*(column.cells for column in columns[:kept]), strict=True):
        grid.add_row(*(Text(cell) for cell in cells))
    if kept == len(columns):
        return grid
    names = ", ".join(column.head for column in columns[kept:])
    return Group(grid, Text(f"not shown, for want of width: {names} (--json has all)", style="dim"))


def is_number(value: Any) -> bool:
    """Whether it is an int or a float, and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def column_texts(values: Sequence[Any], show: Callable[[Any], str] | None = None) -> list[str]:
    """The values of one column; its fractions have equal places, so that the points stand in line."""
    show = show or text
    places = max((len(show(v).partition(".")[2]) for v in values if isinstance(v, float)), default=0)
    aligned = places <= 4 and all(isinstance(v, float) and "e" not in show(v) for v in values if v is not None)
    return [f"{v:.{places}f}" if aligned and v is not None else show(v) for v in values]


def text(value: Any) -> str:
    """A single value: four figures of a fraction, commas between thousands, the first twelve of a list."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, (list, tuple)):
        more = f", … ({len(value)} in all)" if len(value) > LIST else ""
        return ", ".join(map(text, value[:LIST])) + more
    return plain(str(value))


def plain(name: str) -> str:
    """A text as it is, in one line: what a terminal would obey is spelt out. As `rich.text.Text` it has no markup."""
    return shown(name, str, LONGEST)
