"""Settings, written once: a field of a frozen dataclass is a flag, a recipe's key and a Python keyword.

    class Sgd(Settings, heading="SGD of the weights"):              # the heading of these flags in --help
        lr: Annotated[float, Gt(0), "learning rate at the start"] = 0.025
        momentum: Annotated[float, Ge(0), Lt(1), "momentum of SGD"] = 0.9

    class Darts(Sgd, RunSettings, heading="DARTS"):                 # a command's settings inherit its concerns
        epochs: Annotated[int, Ge(1), "epochs of the search"] = 50
        lr: float = 0.1                                             # only another default: help and bounds are Sgd's

    @command
    def darts(data: Annotated[ImageDataset | str, "the data set"], settings: Darts) -> Result: ...

`darts(data, epochs=3)` and `darts(data, settings=Darts(epochs=3))` are the same call. A parameter annotated with a
class of settings is spread out into its fields; every other parameter of a command is an input. Where presets give
the values, the parameter is ``changes: Annotated[Changes[Recipe], PRESETS]``: its flags are unset by default, --help
has what each preset says, and ``changes.over(PRESETS[preset])`` is the recipe with the flags that were given.

Types: unions that contain `str` take objects from Python and text from a command line. Bounds are those of
`annotated_types`. A function among the notes of a type says which options there are now, as `Literal` says them once.
"""

from __future__ import annotations

import builtins
import dataclasses
import functools
import inspect
import math
import numbers
import operator
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar, dataclass_transform, get_args, get_origin

from annotated_types import BaseMetadata
from annotated_types import Ge as Ge
from annotated_types import Gt as Gt
from annotated_types import Le as Le
from annotated_types import Lt as Lt

from .errors import SettingsError, shown
from .limits import SMALLEST, limit

REQUIRED = inspect.Parameter.empty
OUTSIDE = object()
"""A note on a field that does not decide the result: it is no part of a run's identity."""
BOUNDS = {Ge: ("at least", operator.ge), Gt: ("above", operator.gt), Le: ("at most", operator.le)}
BOUNDS[Lt] = ("below", operator.lt)
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a name or a text", Path: "a path"}
Recipe = TypeVar("Recipe", bound="Settings")
Returned = TypeVar("Returned")


@dataclass(frozen=True)
class Setting:
    """One flag: `kind` is bool, int, float, str or Path; `many` a repeatable list; `options` a closed set."""

    name: str
    kind: type
    default: Any
    help: str = ""
    many: bool = False
    options: tuple[str, ...] = ()
    bounds: tuple[BaseMetadata, ...] = ()
    group: str = ""  # the heading it stands under in --help
    presets: tuple[tuple[str, Any], ...] = ()  # (preset, the value it gives)

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is REQUIRED

    @property
    def flag(self) -> str:
        """How the command line spells it."""
        return "--" + self.name.replace("_", "-")

    @property
    def range(self) -> str:
        """The bounds in words: ``at least 1``, ``above 0 and at most 1``."""
        return " and ".join(f"{BOUNDS[type(bound)][0]} {_number(_limit(bound))}" for bound in self.bounds)

    def check(self, value: Any) -> Any:
        """A value from a file or a command line in its type; raises `SettingsError` naming the flag."""
        if value is None:
            if self.default is None:
                return None
            raise SettingsError(f"{self.flag} needs a value")
        if self.many:
            return [self._one(item) for item in (value if isinstance(value, list) else [value])]
        return self._one(value)

    def check_type(self, value: Any, hint: Any) -> None:
        """Raise `SettingsError` where a value from Python is none of the annotation's: a text for a number, say.

        Objects of other packages pass: whoever takes them knows them.
        """
        if (value is None and (_takes_none(hint) or self.default is None)) or value is self.default:
            return
        for one in value if self.many and isinstance(value, list | tuple) else [value]:
            if not self._is_of(one, hint):
                raise SettingsError(f"{self.flag} {shown(one)} is not {KINDS[self.kind]}")

    def _is_of(self, value: Any, hint: Any) -> bool:
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if self.kind in (int, float):
            return number and (self.kind is float or isinstance(value, numbers.Integral))
        if self.kind is bool:
            return isinstance(value, bool)
        if isinstance(value, str | Path) or type(value).__module__ != "builtins":
            return True
        others = {get_origin(one) or one for one in _alternatives(hint)}
        counted = isinstance(value, numbers.Integral) and int in others
        return (number and (counted or float in others)) or (isinstance(value, list | tuple) and Sequence in others)

    def check_bounds(self, value: Any) -> None:
        """Raise `SettingsError` where a number is out of bounds or not finite, or a text is none of the options."""
        if isinstance(value, str) and self.options and value not in self.options:
            raise SettingsError(f"{self.flag} {value} is not one of {', '.join(self.options)}")
        if isinstance(value, list | tuple):
            for item in value:
                self.check_bounds(item)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return
        if isinstance(value, float) and not math.isfinite(value):
            raise SettingsError(f"{self.flag} {value!r} is not a finite number")
        if not all(BOUNDS[type(bound)][1](value, _limit(bound)) for bound in self.bounds):
            raise SettingsError(f"{self.flag} must be {self.range} (got {_number(value)})")
        self._check_slip(value)

    def _check_slip(self, value: float) -> None:
        """Raise `SettingsError` for what only a typing error gives (limits.py), unless the flag has its own bound."""
        if any(isinstance(bound, Le | Lt) for bound in self.bounds):
            return
        most = limit(self.name, self.kind if isinstance(value, float) else int)
        if not -most <= value <= most:
            side = f"at most {_number(most)}" if value > 0 else f"at least {_number(-most)}"
            raise SettingsError(f"{self.flag} must be {side} (got {_number(value)})")
        if 0 < abs(value) < SMALLEST:
            raise SettingsError(f"{self.flag} must be 0 or at least {_number(SMALLEST)} (got {_number(value)})")

    def _one(self, value: Any) -> Any:
        allowed = {float: (int, float), Path: (str, Path), str: (str, int, float, Path)}.get(self.kind, (self.kind,))
        if self.options and value not in self.options:
            raise SettingsError(f"{self.flag} {shown(value, str)} is not one of {', '.join(self.options)}")
        if not isinstance(value, allowed) or (isinstance(value, bool) and self.kind is not bool):
            raise SettingsError(f"{self.flag} {shown(value)} is not a {self.kind.__name__}")
        if isinstance(value, str) and "\0" in value:
            raise SettingsError(f"{self.flag} {shown(value)} has a NUL character, which no name and no path has")
        self.check_bounds(value)
        return self.kind(value)


def _limit(bound: BaseMetadata) -> Any:
    return getattr(bound, type(bound).__name__.lower())


def _number(value: float) -> str:
    """The number in words of an error, however large."""
    if value == 1 << 63:
        return "2^63"
    if isinstance(value, int):
        return str(value) if abs(value) < 10**15 else f"a number of {len(f'{abs(value):x}') * 4} bits"
    return f"{value:.15g}"


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Settings:
    """What all settings have in common: subclasses are frozen dataclasses, and values are checked when they are made.

    The class argument `heading` is what stands above the fields of the class in --help; unsaid, it is that of its base.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    heading: ClassVar[str] = ""

    def __init_subclass__(cls, heading: str | None = None) -> None:
        if heading is not None:
            cls.heading = heading
        dataclass(frozen=True, kw_only=True)(cls)

    def __post_init__(self) -> None:
        cls: Any = type(self)
        hints = _written(cls)
        for setting in of_class(cls):
            value = getattr(self, setting.name)
            setting.check_type(value, hints[setting.name].hint)
            setting.check_bounds(value)

    def identity(self, *without: str) -> dict[str, Any]:
        """The fields that decide a result, flat: what a run's `config.json` keeps. `without`: fields left out, too."""
        cls: Any = type(self)
        outside = {name for name, written in _written(cls).items() if OUTSIDE in written.notes}
        return {
            one.name: getattr(self, one.name)
            for one in dataclasses.fields(self)
            if one.name not in outside | {*without}
        }

    def keywords(self, *concerns: type[Settings]) -> dict[str, Any]:
        """The fields that these settings have in common with the concerns, as keywords of another command."""
        names = {one.name for concern in concerns for one in dataclasses.fields(concern)}
        return {one.name: getattr(self, one.name) for one in dataclasses.fields(self) if one.name in names}


class Changes(Generic[Recipe]):
    """The settings of a recipe that were given, to be put over those of a preset."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = {name: value for name, value in given.items() if value is not None}

    def over(self, preset: Recipe) -> Recipe:
        """The preset with what was given instead of its own."""
        return replace(preset, **self.given)


class Output(Settings, heading="The run"):
    out: Annotated[Path | str | None, OUTSIDE, "folder of the run; default: in runs/, named after the command"] = None


class Seed(Settings, heading="The run"):
    seed: Annotated[int, OUTSIDE, Ge(0), Lt(1 << 63), "seed of all random numbers"] = 0


class Device(Settings, heading="The run"):
    device: Annotated[str, OUTSIDE, "device: auto, cpu, cuda, cuda:N or mps"] = "auto"


class Precision(Settings, heading="The run"):
    precision: Annotated[str, OUTSIDE, "arithmetic: auto, fp32 or bf16"] = "auto"


class Hardware(Device, Precision):
    """The run."""


class Estimate(Settings, heading="The run"):
    estimate: Annotated[bool, OUTSIDE, "only measure the minutes, memory and disk that it would need"] = False


class LearningRate(Settings, heading="Learning rate and optimizer"):
    lr: Annotated[float, Gt(0), "highest learning rate"] = 0.1


class CellSizes(Settings, heading="Cell architectures"):
    channels: Annotated[int | None, Ge(1), "channels of the first cell; unset: as published or in the file"] = None
    cells: Annotated[int | None, Ge(1), "number of cells; unset: as published or in the file"] = None


class RunSettings(Output, Seed, Hardware, Estimate):
    """The run."""


@dataclass(frozen=True)
class _Written:
    """Where a field is written with its help: its type, the notes on it, and the heading of its class."""

    hint: Any
    notes: tuple[Any, ...]
    heading: str


PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff")
DRAWINGS = (*PICTURES, ".pdf", ".svg")


def check_file(flag: str, path: Path | str | None, suffixes: tuple[str, ...], *, in_a_folder: bool = True) -> None:
    """Raise `SettingsError` where a file cannot be written under this name: before there is work to lose.

    Args:
        suffixes: those that work.
        in_a_folder: its folder has to be there; else it will be made.
    """
    if path is None:
        return
    name, path = shown(path, str), Path(path)
    if path.suffix.lower() not in suffixes:
        raise SettingsError(f"{flag} {name}: the name of this file should end in {', '.join(suffixes)}")
    if path.is_dir():
        raise SettingsError(f"{flag} {name} is a folder; name a file")
    if in_a_folder and not path.parent.is_dir():
        raise SettingsError(f"{flag} {name}: there is no folder {shown(path.parent, str)}; make it, or name another")


def of_class(settings: Any) -> tuple[Setting, ...]:
    """The settings of a class, those of its own first, then concern by concern in the order of its bases.

    Not cached: the options of a flag may grow while the process runs, as spaces are registered.
    """
    defaults = {
        one.name: REQUIRED if one.default is dataclasses.MISSING else one.default
        for one in dataclasses.fields(settings)
    }
    return tuple(
        _setting(name, written.hint, defaults[name], written.heading) for name, written in _written(settings).items()
    )


@functools.cache
def _written(settings: Any) -> dict[str, _Written]:
    """Each field as the first class along the MRO writes it that says more than a type."""
    found: dict[str, _Written] = {}
    for owner in settings.__mro__[:-1]:
        names = _Names(vars(sys.modules[owner.__module__]))
        for name, hint in inspect.get_annotations(owner, locals=names, eval_str=True).items():
            origin: Any = get_origin(hint)
            if origin is Annotated:
                found.setdefault(name, _Written(hint, get_args(hint)[1:], getattr(owner, "heading", "")))
    return found


def settings(function: Callable[..., Any]) -> tuple[Setting, ...]:
    """The settings of a command: its inputs, then the fields of its classes of settings; each name once."""
    own: tuple[Setting, ...] | None = getattr(function, "every_setting", None)
    if own is not None:
        return own
    found: dict[str, Setting] = {}
    for name, hint, default in _parameters(function):
        for setting in _spread(hint) or [_setting(name, hint, default)]:
            found.setdefault(setting.name, setting)
    return tuple(found.values())


def command(function: Callable[..., Returned]) -> Callable[..., Returned]:
    """Let a function of inputs and of classes of settings be called with flat keywords: its flags and recipe keys."""

    @functools.wraps(function)
    def call(*args: Any, **given: Any) -> Returned:
        _check_inputs(function, args, given)
        return function(*args, **_gathered(function, len(args), given))

    return call


def _check_inputs(function: Callable[..., Any], args: tuple[Any, ...], given: Mapping[str, Any]) -> None:
    """Raise `SettingsError` where an input is of a type that none of it has; classes of settings check themselves."""
    for number, (name, hint, default) in enumerate(_parameters(function)):
        value = args[number] if number < len(args) else given.get(name, REQUIRED)
        if value is not REQUIRED and not _spread(hint):
            _setting(name, hint, default).check_type(value, hint)


def methods(
    flag: str, table: Mapping[str, Callable[..., Returned]], default: str
) -> Callable[[Callable[..., Any]], Callable[..., Returned]]:
    """Make a command that chooses another one by a flag: ``quantize NET --method gdfq`` is ``quantize gdfq NET``.

    The decorated function gives the name, the help and the inputs; its settings are those of all methods together, of
    which only those may be given that the chosen one has.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Returned]:
        @functools.wraps(function)
        def call(*args: Any, **given: Any) -> Returned:
            chosen = given.pop(flag, None) or default
            given = {name: value for name, value in given.items() if value is not None}
            _check_method(function.__name__, flag, chosen, table, given)
            return table[chosen](*args, **given)

        call.every_setting = _together(flag, table, default)  # type: ignore[attr-defined]
        call.method_flag = flag  # type: ignore[attr-defined]
        return call

    return decorate


def ignoring(function: Callable[..., Returned], unused: type[Settings]) -> Callable[..., Returned]:
    """A method's command that also takes, checks and ignores settings of another method, as recipes have them."""
    names = {field.name for field in dataclasses.fields(unused)} - {setting.name for setting in settings(function)}

    @functools.wraps(function)
    def call(*args: Any, **keywords: Any) -> Returned:
        unused(**{name: keywords.pop(name) for name in names & keywords.keys()})
        return function(*args, **keywords)

    extra = [setting for setting in of_class(unused) if setting.name in names]
    call.every_setting = (*settings(function), *extra)  # type: ignore[attr-defined]
    return call


def _check_method(
    name: str, flag: str, chosen: str, table: Mapping[str, Callable[..., Any]], given: Iterable[str]
) -> None:
    if chosen not in table:
        raise SettingsError(f"--{flag} {chosen} is not one of {', '.join(table)}")
    known = {setting.name for setting in settings(table[chosen])}
    for other in given:
        if other not in known:
            theirs = [method for method, made in table.items() if other in {s.name for s in settings(made)}]
            raise SettingsError(
                f"--{other.replace('_', '-')} is no setting of `{name} {chosen}`"
                + (f", but of {', '.join(theirs)}" if theirs else "")
                + f"; see `phosphene {name} {chosen} --help`"
            )


def _together(flag: str, table: Mapping[str, Callable[..., Any]], default: str) -> tuple[Setting, ...]:
    """The settings of all methods: unset where they are not inputs, since each method has defaults of its own."""
    found = {flag: Setting(flag, str, None, f"the method; default: {default}", options=tuple(table))}
    for function in table.values():
        for setting in settings(function):
            found.setdefault(setting.name, setting if setting.required else replace(setting, default=None))
    inputs = [setting for setting in found.values() if setting.required]
    return tuple(inputs + [setting for setting in found.values() if not setting.required])


def _parameters(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """(name, annotation, default) of each parameter that can be set."""
    plain = inspect.unwrap(function)
    types_of = hints(plain)
    takes = [p for p in inspect.signature(plain).parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    return [(p.name, types_of.get(p.name, str), p.default) for p in takes if not p.name.startswith("_")]


def _spread(hint: Any) -> list[Setting]:
    """The settings that an annotation spreads out into: none where it is that of an input."""
    if isinstance(hint, type) and issubclass(hint, Settings):
        return list(of_class(hint))
    recipe, presets = _recipe(hint)
    if recipe is None:
        return []
    given = [replace(setting, default=None) for setting in of_class(recipe)]
    return [
        replace(one, presets=tuple((name, getattr(preset, one.name)) for name, preset in presets.items()))
        for one in given
    ]


def _recipe(hint: Any) -> tuple[type[Settings] | None, Mapping[str, Any]]:
    """What `Annotated[Changes[RECIPE], PRESETS]` is about."""
    inner, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    if get_origin(inner) is not Changes:
        return None, {}
    return get_args(inner)[0], next((note for note in notes if isinstance(note, Mapping)), {})


def _gathered(function: Callable[..., Any], positional: int, given: dict[str, Any]) -> dict[str, Any]:
    """Flat keywords as the function takes them: fields in an object of their class, the rest as it is."""
    made: dict[str, Any] = {}
    used: set[str] = set()
    for name, hint, _ in _parameters(function)[positional:]:
        fields = {setting.name for setting in _spread(hint)}
        if not fields or name in given:
            continue
        own = {key: value for key, value in given.items() if key in fields}
        made[name] = hint(**own) if isinstance(hint, type) else Changes(own)
        used |= own.keys()
    return {**{key: value for key, value in given.items() if key not in used}, **made}


def hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of a function, with their notes."""
    names = _Names(getattr(inspect.unwrap(function), "__globals__", {}))
    return typing.get_type_hints(function, localns=names, include_extras=True)


class _Names(dict[str, Any]):
    """A module's names; a type that is imported for type checkers only stands for an object in memory."""

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            return getattr(builtins, name)
        return type(name, (), {})


def summary(function: Callable[..., Any]) -> str:
    """The first paragraph of the docstring, on one line."""
    text = inspect.getdoc(function) or ""
    return " ".join(text.split("\n\n")[0].split())


def examples(function: Callable[..., Any]) -> list[str]:
    """The lines of the docstring's `Example:` block."""
    lines = (inspect.getdoc(function) or "").splitlines()
    start = next((i for i, line in enumerate(lines) if line.strip() in ("Example:", "Examples:")), len(lines))
    block: list[str] = []
    for line in lines[start + 1 :]:
        if not line.strip() or not line.startswith(" "):
            break
        block.append(line.strip())
    return block


def _setting(name: str, hint: Any, default: Any, group: str = "") -> Setting:
    notes = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    text = next((note for note in notes if isinstance(note, str)), "")
    bounds = tuple(note for note in notes if isinstance(note, BaseMetadata))
    kind, many, options = _kind(hint)
    return Setting(name, kind, default, text, many, options, bounds, group)


def _takes_none(hint: Any) -> bool:
    return type(None) in _alternatives(hint)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The types of a union."""
    return get_args(get_args(hint)[0] if get_origin(hint) is Annotated else hint)


def _kind(hint: Any) -> tuple[type, bool, tuple[str, ...]]:
    origin = get_origin(hint)
    if origin is Annotated:
        hint, *notes = get_args(hint)
        kind, many, options = _kind(hint)
        tables = [note for note in notes if callable(note)]
        return kind, many, tuple(tables[0]()) if tables else options
    if origin is Literal:
        return str, False, tuple(get_args(hint))
    if origin in (list, tuple) or str(origin).endswith("Sequence'>"):
        return _kind(get_args(hint)[0])[0], True, ()
    if origin in (typing.Union, types.UnionType):
        return _kind_of_union([part for part in get_args(hint) if part is not type(None)])
    return hint if hint in (bool, int, float, str, Path) else str, False, ()


def _kind_of_union(parts: list[Any]) -> tuple[type, bool, tuple[str, ...]]:
    if len(parts) == 1:
        return _kind(parts[0])
    many = next((part for part in parts if get_origin(part) in (list, tuple)), None)
    if many is not None:
        return _kind(many)
    return (str if str in parts else Path if Path in parts else str), False, ()
