"""Every flag of every command with values that it should refuse, or take in good sense."""

from __future__ import annotations

import functools
import resource
from pathlib import Path
from typing import Any

from . import judge, stock
from .attempt import Attempt

SECONDS = 6.0
MEMORY = 6 << 30
LARGEST = 64 << 20  # bytes of a file
NUMBERS = (
    "0",
    "-1",
    "1",
    "2147483648",
    "9223372036854775808",
    "1" + "0" * 30,
    "-9223372036854775809",
    "1.5",
    "1e3",
    "0x10",
)
FLOATS = ("nan", "inf", "-inf", "1e30", "1e-300", "-0.0", "1e400", "0", "-1", "1", ".5", "1e38", "-1e30", "1_0")
TEXTS = (
    "",
    " ",
    "é世界🦆",
    "[red]x[/red]",
    "[/red]",
    "a\nb",
    "nan",
    "-",
    "--",
    "../../ESCAPED",
    "x" * 2000,
    "a=b=c",
    "0",
    ",",
    "~",
    "..",
)
PATHS = (
    "",
    ".",
    "/",
    "stock/made",
    "missing.file",
    "/root/none/x",
    "/dev/null",
    "stock/files/classes",
    "é🦆",
    "a\nb",
    "[red]",
    "x" * 300,
    "/proc/self/mem",
)
WORTH = (
    *(f"stock/{n}/out" for n in ("made", "darts", "spos", "trained", "noise-asked", "rtn", "import-npz")),
    "digits",
    "darts-v2",
    "cifar-resnet8",
)
MORE = {"threads": NUMBERS, "json": ()}


@functools.cache
def runs() -> tuple[tuple[str, float], ...]:
    """The runs and how often each is tried: slow ones less."""
    return tuple((name, 1.0) for name in stock.RUNS)


def attempt(made: Attempt) -> str:
    """One command with one flag (or two, or an input) that says something odd."""
    random = made.random
    names = list(stock.RUNS)
    name = random.choices(names, [1 / (0.2 + stock.usual(n)) for n in names])[0]
    made.command = stock.command(name)
    words = stock.words(name)
    if random.random() < 0.1:
        words, made.what = _odd_input(words, made)
    else:
        words, made.what = words, ""
        for _ in range(random.choice((1, 1, 1, 2))):
            words, what = _odd_flag(words, made)
            made.what = " ".join((made.what, what)).strip()
    limits = {resource.RLIMIT_AS: MEMORY, resource.RLIMIT_FSIZE: LARGEST}
    ended = made.run([*words, "--json"], SECONDS, limits=limits)
    return judge.problem(ended) or judge.undefined(made.folder / "out")


def _odd_input(words: list[str], made: Attempt) -> tuple[list[str], str]:
    """Another word in place of an input."""
    inputs = [
        i
        for i in range(len(made.command.split()), len(words))
        if not words[i - 1].startswith("--") and not words[i].startswith("--")
    ]
    if not inputs:
        return _odd_flag(words, made)
    at = made.random.choice(inputs)
    value = made.random.choice((*TEXTS, *PATHS, *WORTH))
    return [*words[:at], value, *words[at + 1 :]], f"{words[at]!r} -> {value[:60]!r}"


def _odd_flag(words: list[str], made: Attempt) -> tuple[list[str], str]:
    from phosphene import commands
    from phosphene.settings import settings

    every = [one for one in settings(commands.function(made.command)) if not one.required]
    one = made.random.choice(every)
    if one.kind is bool:
        value: Any = None
        more = [made.random.choice((one.flag, "--no-" + one.flag[2:], one.flag + "=x"))]
    else:
        value = made.random.choice(values(one))
        more = [one.flag, value] if not value.startswith("-") else [f"{one.flag}={value}"]
    if one.name == "out":
        (made.folder / "busy").mkdir(exist_ok=True)
        (made.folder / "busy" / "x.txt").write_text("mine")
    return [*words, *more], f"{one.flag} {'' if value is None else value[:60]!r}"


def values(one: Any) -> tuple[str, ...]:
    """What to try for a flag."""
    if one.options:
        return (*one.options, *one.options, *one.options, *TEXTS)
    if one.kind is int:
        return (*NUMBERS, *NUMBERS, "nan", "", "x", "é", "1e30", "2", "3", "7")
    if one.kind is float:
        return (*FLOATS, *FLOATS, "", "x", "1,2", "2")
    if one.kind is Path or one.name in ("out", "checkpoint"):
        return (*PATHS, "busy", "busy/x.txt", *TEXTS[2:6])
    return (
        *TEXTS,
        *TEXTS,
        *NUMBERS[:5],
        *FLOATS[:4],
        *PATHS,
        *WORTH,
        "1,2",
        "3,3,3",
        "10%",
        "~5M",
        "1..2",
        "5..1",
        "1k..1G",
    )
