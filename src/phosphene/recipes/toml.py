"""A recipe file, read strictly: TOML into jobs, each one call of a command with its settings (docs/recipes.md).

    title = "…"   paper = "…"   result = "name"   notes = ["…"]
    [scales.cpu]                 core_minutes = 120, and any values of your own: images = 2500
    [defaults.train]             settings of every `train` in this recipe
    [[stage]]                    name, call, with = {…}, seeds = [0, 1], cases.NAME = {…}, scales, priority = 0
    [[figure]]                   label, stage, key, case, seed, unit, times, digits, published, source, group, scales,
                                 interval = [key, key] (where a study gives one); the key "minutes" is the job's time,
                                 and with plus = ["stage", …] that of those stages' jobs of its case and seed besides
    [[picture]]                  name, x, y, scales: the figures of group y drawn against those of group x of one label;
                                 y_from is where the axis begins, if not at 0
    [lists.rows]                 name = "label", …: a figure with each = "rows" becomes one for each of them, {name}
                                 and that label filled in; name = {label = "…", published = …} fills in more

A stage with seeds and cases becomes one job for each pair. In a setting, `{images}`, `{seed}` and `{case}` are filled
in, `$NAME` is read from the environment, and `@stage` is the folder of an earlier stage's job: the one of the same
seed and case, or `@stage[case]`, `@stage[0]`, `@stage[case,0]`. `@stage/file` is a file in it; `@stage:key` a figure of
its result, and `@stage:key~5%` the range five percent about it, "LO..HI". In a list, `@stage` means all that match.
`{here}` in a scale's value is the recipe's folder; a setting that is filled in as "" is left out.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import math
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..commands import calls, function
from ..errors import RecipeError, SettingsError, shown
from ..settings import settings
from ..storage import typed
from . import shape

SCALES = ("smoke", "cpu", "gpu", "paper")
TOP = ("title", "paper", "result", "notes", "scales", "defaults", "lists", "stage", "figure", "picture")
STAGE = ("name", "call", "with", "seeds", "cases", "scales", "priority")
SHOWN = ("unit", "digits", "published", "source", "group")  # of a figure, carried into the recorded result as they are
FIGURE = ("label", "stage", "key", "case", "seed", "times", "plus", "interval", "scales", *SHOWN)
PICTURE = ("name", "x", "y", "y_from", "scales")
REFERENCE = re.compile(
    r"@(?P<stage>[\w-]+)(\[(?P<which>[^\]]*)\])?"
    r"(/(?P<file>.+)|:(?P<key>[\w.-]+)(~(?P<span>\d+)%)?)?"
)


@dataclass(frozen=True)
class Job:
    """One call: a stage at one seed and one case."""

    stage: str
    call: str
    axes: dict[str, Any]
    values: dict[str, Any]  # settings, with references still to be resolved
    priority: int = 0

    @property
    def name(self) -> str:
        """The name of the job's folder: ``student-onehot-0``."""
        return "-".join([self.stage, *(str(value) for value in self.axes.values())])


@dataclass(frozen=True)
class Recipe:
    """A recipe at one scale."""

    path: Path
    title: str
    result: str
    scale: str
    core_minutes: float
    paper: str = ""
    notes: tuple[str, ...] = ()
    jobs: tuple[Job, ...] = ()
    figures: tuple[dict[str, Any], ...] = ()
    pictures: tuple[dict[str, Any], ...] = ()
    values: dict[str, Any] = field(default_factory=dict)

    def matching(self, job: Job, reference: re.Match[str]) -> list[Job]:
        """The jobs that a reference in `job` means: as its brackets say, else of the same seed and case."""
        jobs = [other for other in self.jobs if other.stage == reference["stage"]]
        which = [part.strip() for part in (reference["which"] or "").split(",") if part.strip()]
        for part in which:
            jobs = [other for other in jobs if part in map(str, other.axes.values())]
        for axis, value in job.axes.items():
            same = [other for other in jobs if other.axes.get(axis) == value]
            explicit = {str(other.axes.get(axis)) for other in jobs} & set(which)
            jobs = same if same and not explicit else jobs
        return jobs

    def needs(self, job: Job) -> list[Job]:
        """The jobs whose folders or figures this job's settings name."""
        texts = [text for value in job.values.values() for text in strings(value)]
        references = [match for match in map(REFERENCE.fullmatch, texts) if match]
        return [other for reference in references for other in self.matching(job, reference)]


def read(source: str, scale: str, overrides: Iterable[str] = ()) -> Recipe:
    """The recipe in a TOML file (or of that name in ``recipes/``) at one scale, checked as far as it can be.

    Raises `RecipeError`: unknown keys, stages, scales, references, settings; each with the nearest name there is.
    """
    path = find(source)
    table = _table(path)
    known(table, TOP, f"{path}")
    known(table.get("defaults", {}), calls(), f"{path} [defaults]")
    scales = table.get("scales", {})
    known(scales, SCALES, f"{path} [scales]")
    if scale not in scales:
        raise RecipeError(f"--scale {scale} is not in {path}; it has {', '.join(scales)}")
    values = _overridden(scales[scale], overrides, f"{path} [scales.{scale}]")
    here = {"here": str(path.parent)}
    values = {key: _fill(value, here, f"{path} [scales.{scale}]") for key, value in values.items()}
    _check_minutes(_needed(values, "core_minutes", f"{path} [scales.{scale}]"), f"{path} [scales.{scale}]")
    jobs = [job for stage in table.get("stage", []) for job in _jobs(stage, scale, values, table, path)]
    for figure in table.get("figure", []):
        typed.check(figure, shape.Figure, f"{path} [[figure]]", RecipeError, "docs/recipes.md has the keys of a figure")
    of_scale = [f for f in table.get("figure", []) if scale in f.get("scales", SCALES)]
    figures = [f for entry in of_scale for f in _each(entry, table.get("lists", {}), path)]
    recipe = Recipe(
        path=path,
        title=str(_needed(table, "title", path)),
        result=str(_needed(table, "result", path)),
        scale=scale,
        core_minutes=float(values["core_minutes"]),
        paper=str(table.get("paper", "")),
        notes=tuple(table.get("notes", ())),
        jobs=tuple(jobs),
        figures=tuple(figures),
        pictures=tuple(one for one in table.get("picture", []) if scale in one.get("scales", SCALES)),
        values=values,
    )
    _check(recipe)
    return recipe


def _table(path: Path) -> dict[str, Any]:
    """The TOML of the file, with what each key should hold."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path} is not a recipe ({shown(error, str)})") from error
    typed.check(table, shape.Table, f"{path}", RecipeError, "docs/recipes.md has the keys of a recipe")
    return table


def _check_minutes(minutes: Any, where: str) -> None:
    if isinstance(minutes, bool) or not isinstance(minutes, int | float) or not 0 <= minutes < math.inf:
        raise RecipeError(f"{where}: core_minutes should be a number of minutes (got {shown(minutes)})")


def find(source: str) -> Path:
    """A path as it is, or a name in ``recipes/``."""
    for path in (Path(source), Path("recipes") / f"{source}.toml"):
        with contextlib.suppress(OSError, ValueError):  # too long for a path, or with a NUL character
            if path.is_file():
                return path
    there = sorted(path.stem for path in Path("recipes").glob("*.toml"))
    raise RecipeError(f"no recipe {shown(source, str)}; give a TOML file{nearest(source, there)}")


def known(table: Mapping[str, Any], allowed: Iterable[str], where: str) -> None:
    """Raise `RecipeError` for the first key that is not allowed, naming the nearest one that is."""
    allowed = list(allowed)
    for key in table:
        if key not in allowed:
            raise RecipeError(f"{where}: unknown key {key!r}{nearest(key, allowed)}")


def nearest(name: str, names: Iterable[str]) -> str:
    """``; did you mean 'x'?`` or, where nothing is near, the list."""
    names = list(names)
    close = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are {', '.join(names) or 'none'}"


def _needed(table: Mapping[str, Any], key: str, where: object) -> Any:
    if key not in table:
        raise RecipeError(f"{where}: {key!r} is missing")
    return table[key]


def _overridden(values: Mapping[str, Any], overrides: Iterable[str], where: str) -> dict[str, Any]:
    changed = dict(values)
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise RecipeError(f"--set {override} is not NAME=VALUE")
        known({name: text}, values, where)
        changed[name] = text if isinstance(values[name], str) else _toml(text, override)
    return changed


def _toml(text: str, override: str) -> Any:
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except ValueError as error:
        raise RecipeError(f"--set {override}: the value is not TOML ({error})") from error


def _jobs(stage: dict[str, Any], scale: str, values: dict[str, Any], table: dict[str, Any], path: Path) -> list[Job]:
    name = str(_needed(stage, "name", f"{path} [[stage]]"))
    where = f"{path}, stage {name}"
    known(stage, STAGE, where)
    call = str(_needed(stage, "call", where))
    known({call: None}, calls(), where)
    known(dict.fromkeys(stage.get("scales", ())), SCALES, where)
    if scale not in stage.get("scales", SCALES):
        return []
    common = {**table.get("defaults", {}).get(call, {}), **stage.get("with", {})}
    jobs = []
    for axes, own in _axes(stage, values, where):
        filled = {key: _fill(value, {**values, **axes}, where) for key, value in {**common, **own}.items()}
        settings = {key: value for key, value in filled.items() if value != ""}
        jobs.append(Job(name, call, axes, settings, int(stage.get("priority", 0))))
    return jobs


def _axes(stage: dict[str, Any], values: dict[str, Any], where: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Every (case, seed) of a stage, with the settings of its own that the case brings."""
    cases = stage.get("cases", {})
    cases = {case: {} for case in cases} if isinstance(cases, list) else cases
    seeds = _fill(stage.get("seeds", []), values, where)
    if not isinstance(seeds, list) or not all(map(_is_seed, seeds)) or len({*seeds}) < len(seeds):
        raise RecipeError(f"{where}: seeds must be a list of whole numbers from 0, each once, not {shown(seeds)}")
    pairs = []
    for case, own in cases.items() or [(None, {})]:
        for seed in seeds or [None]:
            axes = {"case": case, "seed": seed}
            pairs.append(({name: value for name, value in axes.items() if value is not None}, own))
    return pairs


def _is_seed(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < shape.SEEDS


def _fill(value: Any, names: Mapping[str, Any], where: str) -> Any:
    """`value` with ``{name}`` filled in (keeping the type where it is the whole string) and ``$NAME`` read."""
    if isinstance(value, list):
        return [_fill(item, names, where) for item in value]
    if not isinstance(value, str):
        return value
    whole = re.fullmatch(r"\{(\w+)\}", value)
    for name in re.findall(r"\{(\w+)\}", value):
        known({name: None}, names, f"{where}, {value!r}")
    if whole:
        return names[whole[1]]
    return re.sub(r"\{(\w+)\}", lambda m: str(names[m[1]]), value)


def _each(figure: dict[str, Any], lists: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    """The figure, or where it names a list one for each name and label in it."""
    if "each" not in figure:
        return [figure]
    known({figure["each"]: None}, lists, f"{path} [[figure]] each")
    rest = {key: value for key, value in figure.items() if key != "each"}
    entries: dict[str, Any] = {
        name: own if isinstance(own, dict) else {"label": own} for name, own in lists[figure["each"]].items()
    }
    return [{**own, **_named(rest, name)} for name, own in entries.items()]


def _named(value: Any, name: str) -> Any:
    """`value` with ``{name}`` filled in, whatever is inside it."""
    if isinstance(value, dict):
        return {key: _named(inner, name) for key, inner in value.items()}
    if isinstance(value, list):
        return [_named(inner, name) for inner in value]
    return value.replace("{name}", name) if isinstance(value, str) else value


def environment(value: str, where: str) -> str:
    """`value` with every ``$NAME`` replaced; raises `RecipeError` where one is not set."""

    def look_up(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise RecipeError(f"{where}: {value!r} needs the environment variable {match[1]}, which is not set")
        return os.environ[match[1]]

    return re.sub(r"\$([A-Z][A-Z0-9_]*)", look_up, value)


def strings(value: Any) -> list[str]:
    """The strings of a setting: itself, or those in a list."""
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]


def _check(recipe: Recipe) -> None:
    """Everything that can be wrong before the first stage runs."""
    names = [job.name for job in recipe.jobs]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"{recipe.path}: two stages are called {name}")
    for index, job in enumerate(recipe.jobs):
        _check_references(recipe, job, index)
        _check_settings(recipe, job)
    for figure in recipe.figures:
        remedy = "docs/recipes.md has the keys of a figure"
        typed.check(figure, shape.Figure, f"{recipe.path} [[figure]]", RecipeError, remedy)
        known(figure, FIGURE, f"{recipe.path} [[figure]] {figure.get('label', '')}")
        stages = list(dict.fromkeys(job.stage for job in recipe.jobs))
        known({_needed(figure, "stage", recipe.path): None}, stages, f"{recipe.path} [[figure]] {figure.get('label')}")
        known(dict.fromkeys(figure.get("plus", ())), stages, f"{recipe.path} [[figure]] {figure.get('label')}, plus")
        if "plus" in figure and figure.get("key") != "minutes":
            raise RecipeError(
                f"{recipe.path} [[figure]] {figure.get('label')}: plus is of minutes, not {figure.get('key')}"
            )
        for key in ("label", "key"):
            _needed(figure, key, f"{recipe.path} [[figure]]")
    groups = list(dict.fromkeys(figure.get("group", "") for figure in recipe.figures))
    for picture in recipe.pictures:
        known(picture, PICTURE, f"{recipe.path} [[picture]]")
        for key in ("name", "x", "y"):
            _needed(picture, key, f"{recipe.path} [[picture]]")
        known({picture["x"]: None, picture["y"]: None}, groups, f"{recipe.path} [[picture]] {picture['name']}, group")


def _check_references(recipe: Recipe, job: Job, index: int) -> None:
    where = f"{recipe.path}, stage {job.name}"
    for key, value in job.values.items():
        for text in strings(value):
            environment(text, f"{where}, {key}")
            reference = REFERENCE.fullmatch(text)
            if reference is None:
                continue
            earlier = list(dict.fromkeys(other.stage for other in recipe.jobs[:index] if other.stage != job.stage))
            known({reference["stage"]: None}, earlier, f"{where}, {key} = {text!r}, no such earlier stage")
            jobs = recipe.matching(job, reference)
            if not jobs or (len(jobs) > 1 and not isinstance(value, list)):
                names = ", ".join(o.name for o in jobs) or "none of " + reference["stage"]
                raise RecipeError(f"{where}: {key} = {text!r} means {names}; say which, as @stage[case,seed]")


def _check_settings(recipe: Recipe, job: Job) -> None:
    """The settings against the command's signature; values that refer to other jobs are known only later."""
    where = f"{recipe.path}, stage {job.name} ({job.call})"
    declared = {setting.name: setting for setting in settings(function(job.call))}
    known(job.values, declared, where)
    for name, setting in declared.items():
        value = job.values.get(name)
        if setting.required and name not in job.values:
            raise RecipeError(f"{where}: {name!r} is missing ({setting.help})")
        if name in job.values and not any(REFERENCE.fullmatch(text) for text in strings(value)):
            try:
                setting.check(value)
            except SettingsError as error:
                raise RecipeError(f"{where}: {error}") from error


def digest_source(job: Job) -> str:
    """What a job is, as text: another text is another job."""
    return json.dumps({"call": job.call, "values": job.values, "axes": job.axes}, sort_keys=True)
