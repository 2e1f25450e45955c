"""Variables of the environment that say nonsense, and settings from Python and from recipes."""

from __future__ import annotations

import json
from typing import Any

from . import flags, judge, stock
from .attempt import Attempt

VARIABLES = {
    "RANK": ("x", "", "-1", "1", "3", "1.5", "9" * 30, "0"),
    "WORLD_SIZE": ("x", "", "-1", "0", "1", "1.5", "9" * 30),
    "LOCAL_RANK": ("x", "", "-1", "7"),
    "MASTER_PORT": ("x", "", "-1", "0", "99999"),
    "PHOSPHENE_CHECKPOINT_SECONDS": ("x", "", "-1", "nan", "inf", "1e400", "0", "9" * 30, "1_0"),
    "PHOSPHENE_CODE": ("missing.py", "missing", "", ":", "/", "a\nb", "[red]"),
    "PHOSPHENE_DATA": ("missing", "", "/root/none", "a\nb"),
    "PHOSPHENE_CHECKSUMS": ("x", "", "off", "on", "0"),
    "COLUMNS": ("x", "", "-1", "0", "1", "9" * 9),
    "HOME": ("", "/nowhere"),
    "TMPDIR": ("", "/nowhere"),
    "LC_ALL": ("C", "x", "de_DE.UTF-8"),
    "PYTHONIOENCODING": ("ascii",),
}
REAL = {
    "OMP_NUM_THREADS": ("x", "", "-1", "0", "9" * 30, "100000"),
    "MKL_NUM_THREADS": ("x", "-1"),
    "PYTHONIOENCODING": ("ascii", "latin-1"),
    "LC_ALL": ("C", "x"),
    "COLUMNS": ("x", "0", "-1"),
    "MPLBACKEND": ("x", ""),
}
SHARE_REAL = 0.03
ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        2**31,
        2**63,
        10**30,
        -(10**30),
        0.5,
        1e308,
        float("nan"),
        float("inf"),
        float("-inf"),
    ),
    *("", "x", "é🦆", "[red]x[/red]", "a\nb", "nan", b"x", [], {}, [1], ["x"], {"a": 1}, (), (1, 2), 1j, object, print),
)


def environment(made: Attempt) -> str:
    """One command under one or two variables of nonsense."""
    random = made.random
    quick = [name for name in stock.RUNS if stock.usual(name) < 1.0]
    name = random.choice(quick)
    made.command = stock.command(name)
    real = random.random() < SHARE_REAL
    table = REAL if real else VARIABLES
    chosen: dict[str, str | None] = {
        key: random.choice(table[key]) for key in random.sample(sorted(table), random.choice((1, 2)))
    }
    made.what = f"{name}: {chosen}{' from the start-up on' if real else ''}"
    ended = made.run([*stock.words(name), *random.choice(([], ["--json"]))], 20.0, real=real, environment=chosen)
    return judge.problem(ended) or judge.undefined(made.folder / "out")


def python(made: Attempt) -> str:
    """A command called from Python with a keyword of an odd value or type: it works, or raises an error of ours."""
    from phosphene import commands
    from phosphene.settings import settings

    random = made.random
    quick = [name for name in stock.RUNS if stock.usual(name) < 1.5]
    name = random.choice(quick)
    made.command = stock.command(name)
    function = commands.function(made.command)
    keywords = _keywords(name, function)
    for one in random.sample(settings(function), random.choice((1, 1, 2))):
        keywords[one.name] = random.choice(ODD)
        made.what += f" {one.name}={keywords[one.name]!r:.60}"
    return _judged(made, lambda: _called(function, keywords))


def recipe(made: Attempt) -> str:
    """A recipe with a stage whose key has an odd value or type."""
    from phosphene import commands
    from phosphene.settings import settings

    random = made.random
    quick = [n for n in stock.RUNS if stock.usual(n) < 1.5 and commands.COMMANDS[stock.command(n)].in_recipes]
    name = random.choice(quick)
    made.command = stock.command(name)
    function = commands.function(made.command)
    given = {
        key: str(value) if not isinstance(value, int | float | list) else value
        for key, value in _keywords(name, function).items()
        if key != "out"
    }
    own = [one for one in settings(function) if one.name != "out"]
    for one in random.sample(own, min(len(own), random.choice((1, 1, 2)))):
        value = random.choice([odd for odd in ODD if isinstance(odd, bool | int | float | str | list | dict)])
        given[one.name] = value
        made.what += f" {one.name}={value!r:.60}"
    stage = random.choice(("one",) * 8 + ("../../ESCAPED", "", "é", "a/b", "a\nb", "[red]", "..", "/x", "x" * 300))
    made.what += f" stage {stage!r:.40}" if stage != "one" else ""
    lines = ['title = "t"', 'result = "r"', 'paper = "none"', "[scales.smoke]", "core_minutes = 1", "seeds = [0]"]
    lines += ["[[stage]]", f"name = {_toml(stage)}"]
    lines += [f"call = {_toml(made.command)}", f"with = {_toml(given)}", ""]
    (made.folder / "r.toml").write_text("\n".join(lines))
    ended = made.run(["run", "r.toml", "--out", "a/out", "--device", "cpu"], flags.SECONDS)
    inside = {"a", "stock", "r.toml", "runs"}
    escaped = [
        path.name for path in made.folder.iterdir() if path.name not in inside and not path.name.startswith("step")
    ]
    return (
        f"wrote outside of --out: {escaped[0]}"
        if escaped
        else judge.problem(ended) or judge.undefined(made.folder / "a")
    )


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml(str(k))} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return (
        json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf")
        if not isinstance(value, str)
        else json.dumps(value)
    )


def _keywords(name: str, function: Any) -> dict[str, Any]:
    """A run's words as keywords."""
    from phosphene import cli

    words = stock.words(name)[len(stock.command(name).split()) :]
    with cli.command(stock.command(name)).make_context(name, words) as context:
        source = context.get_parameter_source
        given = {k: v for k, v in context.params.items() if source(k).name == "COMMANDLINE"}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in given.items() if k not in ("threads", "as_json")}


def _called(function: Any, keywords: dict[str, Any]) -> None:
    import sys

    from phosphene.errors import Estimate, PhospheneError

    try:
        print(type(function(**keywords)).__name__)
    except Estimate:
        pass
    except PhospheneError as error:
        print(f"phosphene: {' '.join(str(error).split())}", file=sys.stderr)  # as the command line, on one line
        sys.exit(2)


def _judged(made: Attempt, call: Any) -> str:
    import resource

    limits = {resource.RLIMIT_AS: flags.MEMORY, resource.RLIMIT_FSIZE: flags.LARGEST}
    ended = made.run(["(Python)", made.what], flags.SECONDS, limits=limits, call=call)
    if ended.late and "KeyboardInterrupt" in ended.errors and not ended.stuck:
        return ""  # it was at work
    return judge.problem(ended) or judge.undefined(made.folder / "out")
