"""Settings are written once: flags, recipe keys and keywords follow from dataclasses; bounds are checked everywhere."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import click
import numpy as np
import pytest
from click.testing import CliRunner

from phosphene import cli, commands
from phosphene.compression import target
from phosphene.compression.quantize import methods as methods_of_bits
from phosphene.costs.budget import Budget
from phosphene.data import concat
from phosphene.data.card import read_size
from phosphene.errors import SettingsError, shown
from phosphene.limits import LIMITS
from phosphene.searches import sizes
from phosphene.settings import (
    OUTSIDE,
    Changes,
    Ge,
    Gt,
    Le,
    Lt,
    RunSettings,
    Settings,
    command,
    examples,
    methods,
    of_class,
    settings,
)
from phosphene.synthesis.inversion import plan


class Sgd(Settings, heading="SGD of the weights"):
    lr: Annotated[float, Gt(0), "learning rate at the start"] = 0.025
    momentum: Annotated[float, Ge(0), Lt(1), "momentum of SGD"] = 0.9


class Baking(Sgd, RunSettings, heading="The oven"):
    loaves: Annotated[int, Ge(1), "loaves of a batch"] = 2
    shape: Annotated[Literal["round", "long"], "shape of a loaf"] = "round"
    lr: float = 0.5


class Dough(Settings, heading="The dough"):
    water: Annotated[float, Ge(0), Le(1), "share of water"] = 0.7
    salt: Annotated[float | None, Gt(0), "grams of salt; default: by taste"] = None


DOUGHS = {"wheat": Dough(), "rye": Dough(water=0.8, salt=2.0)}


@command
def bake(
    flour: Annotated[Path | str, "the flour"],
    changes: Annotated[Changes[Dough], DOUGHS],
    oven: Baking,
    dough: Annotated[Literal["wheat", "rye"], "where unset settings come from"] = "wheat",
) -> dict[str, object]:
    """Bake bread.

    Example:
        phosphene bake flour --loaves 3
    """
    return {"flour": flour, "dough": changes.over(DOUGHS[dough]), "oven": oven}


def test_keywords_are_flat_and_arrive_in_their_classes():
    baked = bake("spelt", loaves=3, dough="rye", salt=1.0)
    assert baked == {"flour": "spelt", "dough": Dough(water=0.8, salt=1.0), "oven": Baking(loaves=3)}
    assert bake(flour="spelt", oven=Baking(lr=0.1))["oven"] == Baking(lr=0.1)


def test_an_overridden_default_keeps_help_bounds_and_heading():
    (lr,) = (one for one in of_class(Baking) if one.name == "lr")
    assert (lr.default, lr.help, lr.range, lr.group) == (
        0.5,
        "learning rate at the start",
        "above 0",
        "SGD of the weights",
    )
    assert Baking().lr == 0.5 and Sgd().lr == 0.025


def test_own_settings_come_first_and_the_run_last():
    names = [one.name for one in settings(bake)]
    assert names[0] == "flour" and names.index("loaves") < names.index("momentum") < names.index("seed")
    assert len(names) == len(set(names))


BAD = [
    ({"loaves": 0}, "--loaves must be at least 1 (got 0)"),
    ({"lr": 0.0}, "--lr must be above 0 (got 0)"),
    ({"momentum": 1.0}, "--momentum must be at least 0 and below 1 (got 1)"),
    ({"lr": float("nan")}, "--lr nan is not a finite number"),
    ({"water": 1.5}, "--water must be at least 0 and at most 1 (got 1.5)"),
    ({"shape": "square"}, "--shape square is not one of round, long"),
    ({"seed": 1 << 63}, "--seed must be at least 0 and below 2^63"),
]


@pytest.mark.parametrize(("values", "message"), BAD)
def test_bounds_have_one_wording_in_python_and_in_files(values, message):
    with pytest.raises(SettingsError) as error:
        bake("f", **values)
    assert str(error.value).startswith(message)
    ((name, value),) = values.items()
    (setting,) = (one for one in settings(bake) if one.name == name)
    with pytest.raises(SettingsError) as error:
        setting.check(value)
    assert str(error.value).startswith(message)


def test_the_largest_seed_is_allowed_and_none_passes_where_it_is_the_default():
    assert bake("f", seed=(1 << 63) - 1, salt=None)["oven"].seed == (1 << 63) - 1


def test_an_unknown_keyword_is_a_type_error():
    with pytest.raises(TypeError, match="yeast"):
        bake("f", yeast=1)


def test_identity_leaves_out_what_does_not_decide_the_result():
    assert Baking(out="x", seed=3).identity() == {"loaves": 2, "shape": "round", "lr": 0.5, "momentum": 0.9}
    assert "shape" not in Baking().identity("shape")


def test_a_note_keeps_a_field_out_of_the_identity():
    class Quiet(Settings):
        loud: Annotated[bool, OUTSIDE, "noise"] = False

    assert Quiet().identity() == {}


@command
def fry(pan: Annotated[str, "the pan"], settings: Dough) -> str:
    """Fry it."""
    return f"fried {pan} {settings.water}"


@command
def boil(pan: Annotated[str, "the pan"], settings: Sgd) -> str:
    """Boil it."""
    return f"boiled {pan} {settings.lr}"


@methods("method", {"fry": fry, "boil": boil}, default="fry")
def cook() -> None:
    """Cook something."""


def test_methods_take_their_own_settings_alone():
    assert cook("egg") == "fried egg 0.7" and cook("egg", method="boil", lr=1.0) == "boiled egg 1.0"
    assert cook("egg", method="boil", lr=None, water=None) == "boiled egg 0.025"  # as a command line passes unset flags
    with pytest.raises(
        SettingsError, match="--water is no setting of `cook boil`, but of fry; see `phosphene cook boil"
    ):
        cook("egg", method="boil", water=0.1)
    with pytest.raises(SettingsError, match="--method bake is not one of fry, boil"):
        cook("egg", method="bake")
    assert {one.name for one in settings(cook)} == {"pan", "method", "water", "salt", "lr", "momentum"}


@pytest.fixture
def kitchen(monkeypatch):
    table = {"bake": bake, "cook": cook, "cook fry": fry, "cook boil": boil}
    entries = {name: commands.Command(f"{__name__}:{made.__name__}", made.__name__) for name, made in table.items()}
    monkeypatch.setattr(cli, "COMMANDS", entries)
    monkeypatch.setattr(commands, "COMMANDS", entries)
    return cli.Lazy()


def invoke(kitchen, *words):
    return CliRunner().invoke(kitchen, list(words))


def test_help_groups_flags_and_tells_defaults_of_presets(kitchen):
    shown = " ".join(invoke(kitchen, "bake", "--help").output.split())
    for text in (
        "The oven:",
        "SGD of the weights:",
        "The dough:",
        "The run:",
        "Example: phosphene bake flour --loaves 3",
    ):
        assert text in shown
    assert "share of water [default: 0.7 (wheat), 0.8 (rye); at least 0 and at most 1]" in shown
    assert shown.index("The oven:") < shown.index("The run:")


def test_a_method_is_a_command_and_the_old_spelling_says_so(kitchen):
    assert invoke(kitchen, "cook", "boil", "egg", "--lr", "2").output.split() == ["result", "boiled", "egg", "2.0"]
    old = invoke(kitchen, "cook", "egg", "--method", "boil", "--lr", "2")
    assert "boiled egg 2.0" in old.output and "`cook boil` now" in old.output
    shown = invoke(kitchen, "cook", "--help").output
    assert "phosphene cook METHOD --help" in shown and "fry" in shown and "boil" in shown


def test_a_bound_is_a_usage_error_on_the_command_line(kitchen):
    done = invoke(kitchen, "bake", "flour", "--loaves", "0")
    assert done.exit_code == 2 and "--loaves must be at least 1 (got 0)" in done.output


def test_examples_are_read_from_the_docstring():
    assert examples(bake) == ["phosphene bake flour --loaves 3"]
    assert isinstance(cli._parameter(settings(bake)[0]), click.Argument)


def test_a_recipe_gives_a_folder_as_a_path():
    """`out` takes a path or its text, as the command line gives it."""
    (out,) = (one for one in of_class(Baking) if one.name == "out")
    assert out.check(Path("runs/bread")) == "runs/bread" == out.check("runs/bread")


class Kinds(Settings):
    lr: Annotated[float, Gt(0), "rate"] = 0.1
    count: Annotated[int, Ge(1), "count"] = 1
    quiet: Annotated[bool, "quiet"] = False
    name: Annotated[str, "name"] = "a"
    unset: Annotated[int | None, Ge(1), "unset"] = None
    either: Annotated[int | None, "one or none"] = 3
    several: Annotated[list[str] | None, "names"] = None
    place: Annotated[Path | str, "a place"] = Path("x")
    mean: Annotated[str | float | Sequence[float] | None, "a mean"] = None


@command
def kinds(data: Annotated["object | str", "an object or its folder"], settings: Kinds) -> Kinds:
    """Nothing."""
    return settings


WRONG = [("lr", "x"), ("lr", True), ("lr", None), ("count", 1.5), ("count", [1]), ("count", {}), ("count", "1")]
WRONG += [
    ("quiet", 1),
    ("quiet", "yes"),
    ("name", 3),
    ("name", (1, 2)),
    ("name", None),
    ("unset", 1j),
    ("several", [3]),
]
WRONG += [
    ("several", [3]),
    ("several", {}),
    ("place", 0),
    ("place", []),
    ("data", True),
    ("data", {}),
    ("data", 3),
    ("data", None),
    ("mean", {}),
    ("mean", True),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_value_of_another_type_is_refused_from_python(name, value):
    with pytest.raises(SettingsError, match=rf"^--{name} .* is not (a|true)"):
        kinds(**{"data": "d", name: value})


def test_values_of_the_type_pass():
    fine = {"lr": 1, "count": np.int64(3), "unset": None, "either": None, "several": ["a"], "place": "y"}
    for mean in (0.5, 1, "0.5,0.5", [0.5], (0.1, 0.2), np.ones(3)):
        assert kinds("d", mean=mean).mean is mean
    assert kinds(Kinds(), **fine).count == 3 and kinds("d", settings=Kinds(lr=np.float32(0.5))).lr == 0.5


SLIPS = [
    ("threads", 10**8, "--threads must be at most 4096 (got 100000000)"),
    ("lr", 1e39, "--lr must be at most 3e+38 (got 1e+39)"),
    ("lr", 10**30, "--lr must be at most 2147483647 (got a number of 100 bits)"),
    ("lr", 1e-300, "--lr must be 0 or at least 1.2e-38 (got 1e-300)"),
    ("loaves", 1 << 31, "--loaves must be at most 2147483647 (got 2147483648)"),
    ("loaves", 10**5000, "--loaves must be at most 2147483647 (got a number of 16612 bits)"),
    ("loaves", -(10**5000), "--loaves must be at least 1 (got a number of 16612 bits)"),
]


@pytest.mark.parametrize(("name", "value", "message"), SLIPS, ids=[message for *_, message in SLIPS])
def test_what_only_a_slip_of_the_finger_gives_is_refused(name, value, message):
    declared = {one.name: one for one in (*settings(bake), cli.THREADS)}
    with pytest.raises(SettingsError) as error:
        declared[name].check(value)
    assert str(error.value) == message


def every_number():
    """(command, setting) of each flag of every command that takes a number."""
    found = [(name, one) for name in commands.COMMANDS for one in settings(commands.function(name))]
    return [(name, one) for name, one in found if one.kind in (int, float)]


def test_every_number_has_an_end_on_both_sides():
    """What no flag could mean is refused by each of them, in the same words, and no default is."""
    for name, setting in every_number():
        for value in (10**400, -(10**400), float("nan"), float("inf"), -float("inf"), 1e300, -1e300):
            with pytest.raises(SettingsError, match=f"{setting.flag} "):
                setting.check_bounds(value)
        for given in (setting.default, *dict(setting.presets).values()):
            setting.check_bounds(given)
        assert setting.bounds or name == "unreal fractal" or setting.name in ("images", "channels"), (
            name,
            setting.name,
        )


def test_every_limit_is_of_a_flag():
    names = {setting.name for _, setting in every_number()} | {"threads"}
    assert set(LIMITS) <= names, set(LIMITS) - names


def test_no_text_has_a_nul_character():
    (out,) = (one for one in of_class(Baking) if one.name == "out")
    with pytest.raises(SettingsError, match=r"--out 'a.x00b' has a NUL character"):
        out.check("a\0b")


def test_what_a_message_shows_is_one_short_line():
    assert shown("a\nb\x1b[31m") == r"'a\nb\x1b[31m'" and shown("é 日") == "'é 日'"
    assert shown("a\nb\x1b", str) == r"a\nb\x1b" and len(shown("x" * 10**6)) < 300
    assert shown(10**5000) == "a whole number too long to print" and shown("\udcff", str) == r"\udcff"


@pytest.mark.parametrize("batch", [0, -1, -3])
def test_a_batch_of_none_is_refused_before_anything_is_measured(batch):
    """It reported an accuracy of what was left of the images: 9.69 % for 99.44."""
    for name, given in (("evaluate", ("digits", "--data", "digits")), ("teacher show", ("digits", "--test", "digits"))):
        done = CliRunner().invoke(cli.Lazy(), [*name.split(), *given, "--batch", str(batch)])
        assert done.exit_code == 2 and f"--batch must be at least 1 (got {batch})" in done.output
    with pytest.raises(SettingsError, match="--batch must be at least 1"):
        commands.function("evaluate")("digits", data="digits", batch=batch)


NUMBERS_IN_TEXTS = [
    "nan",
    "inf",
    "-1",
    "1e400",
    "x",
    "9" * 5000,
    "1,,2",
    "1x2x3",
    "10000000000000",
    "²",
    "a\nb",
    "0/0",
    "~nan",
]


@pytest.mark.parametrize("text", NUMBERS_IN_TEXTS, ids=range(len(NUMBERS_IN_TEXTS)))
def test_numbers_in_texts_are_checked_where_they_are_read(text):
    """A text is read, or it is a `SettingsError` that names its flag; nothing else."""
    readers = {
        "--params": lambda: Budget.parse(params=text),
        "--latency": lambda: target.read(None, {"latency": text}),
        "--target": lambda: target.read(f"macs<{text}", {}),
        "--size": lambda: read_size(text),
        "--shares": lambda: concat._shares(text, 2),
        "--depths": lambda: sizes._depths(text),
        "--layer-bits": lambda: methods_of_bits._width(f"conv={text}"),
        "--canvas": lambda: plan.sides("--canvas", text, (32, 32)),
    }
    for flag, read in readers.items():
        large, narrow = flag in ("--params", "--latency", "--target"), flag == "--layer-bits"
        if (large and text == "10000000000000") or (narrow and text == "0/0"):
            continue  # a bound that everything keeps; bits that the quantizer refuses
        with pytest.raises(SettingsError, match="--"):
            read()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, (1, "x"), (float("nan"), 3), {}])
def test_bounds_from_python_are_finite_numbers(value):
    with pytest.raises(SettingsError, match="--macs"):
        Budget.parse(macs=value)
    assert Budget.parse(macs=(1e6, float("inf"))).macs == (1e6, float("inf"))
