"""Mutators of text: JSON, lines of JSON, TOML, tables."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from .mutate_bytes import flip

ODD = ("", "\x00", "é–字🦆", "[red]x[/red]", "a\nb", "nan", "../../ESCAPED", "/", "x" * 70_000, "\ud800")
NUMBERS = (-1, 0, 2**31, 2**63, 2**64, 10**30, -(2**63) - 1, 1e308, 0.5, -0.0)
UNDEFINED = (float("nan"), float("inf"), float("-inf"))


def deep(content: bytes, random: Random) -> bytes:
    """100,000 brackets in each other."""
    opening, closing = random.choice((("[", "]"), ('{"a":', "}")))
    middle = "1" if opening != "[" else ""
    return (opening * 100_000 + middle + closing * 100_000).encode()


def wrong_top(content: bytes, random: Random) -> bytes:
    """JSON of another kind."""
    return random.choice(
        (b"null", b"[]", b"{}", b"1", b'"x"', b"[[1, 2], 3]", b"NaN", b"true", b"9" * 5000, b'{"a": 1}', b"1e999")
    )


def bad_text(content: bytes, random: Random) -> bytes:
    """What is no UTF-8, in the midst."""
    at = random.randrange(len(content) + 1)
    return content[:at] + b"\xff\xfe\xc3\x28" + content[at:]


def lines_mixed(content: bytes, random: Random) -> bytes:
    """Lines doubled, lost or exchanged."""
    lines = content.splitlines(keepends=True) or [b"\n"]
    at = random.randrange(len(lines))
    one = random.choice(("double", "lose", "shuffle", "half"))
    if one == "double":
        lines.insert(at, lines[at])
    elif one == "lose":
        del lines[at]
    elif one == "shuffle":
        random.shuffle(lines)
    else:
        lines[at] = lines[at][: len(lines[at]) // 2]
    return b"".join(lines)


def wrong_value(content: bytes, random: Random) -> bytes:
    """One value of the JSON, at any depth, of another type, out of any range, or gone."""
    if content.count(b"\n{") and not content.startswith(b"{\n"):
        lines = content.splitlines()
        at = random.randrange(len(lines))
        lines[at] = _changed(lines[at], random)
        return b"\n".join(lines) + b"\n"
    return _changed(content, random)


def _changed(content: bytes, random: Random) -> bytes:
    try:
        loaded = json.loads(content)
    except ValueError:
        return flip(content, random)
    places = list(_places(loaded))
    if not places:
        return wrong_top(content, random)
    holder, key = random.choice(places)
    if random.random() < 0.15:
        del holder[key]
    else:
        holder[key] = _other(holder[key], random)
    return json.dumps(loaded, indent=1).encode()


def _places(value: Any) -> Any:
    """(container, key) of everything inside."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inside in pairs:
        yield value, key
        yield from _places(inside)


def _other(value: Any, random: Random) -> Any:
    kinds = [
        random.choice(ODD),
        random.choice(NUMBERS),
        random.choice(NUMBERS),
        random.choice(UNDEFINED),
        random.choice((None, True, False)),
        random.choice(([], {}, [value] * 3, {"x": value}, [[[]]], [1] * 2000)),
    ]
    if isinstance(value, str):
        kinds += [value + random.choice(ODD[:-1]), value[:-1]]
    if isinstance(value, int | float) and not isinstance(value, bool):
        kinds += [-value, value * 1000, value + 1]
    if isinstance(value, list) and value:
        kinds += [value[:-1], value + value[:1]]
    return random.choice(kinds)


def wrong_toml(content: bytes, random: Random) -> bytes:
    """One value of a TOML file, as text."""
    lines = content.decode(errors="replace").splitlines()
    with_values = [i for i, line in enumerate(lines) if "=" in line]
    if not with_values:
        return flip(content, random)
    at = random.choice(with_values)
    values = (
        "1",
        "-1",
        "nan",
        "inf",
        '""',
        "[]",
        "{}",
        "true",
        '"é[red]"',
        '"../../ESCAPED"',
        "1e400",
        "9" * 30,
        '"@x"',
    )
    lines[at] = f"{lines[at].split('=')[0]}= {random.choice((*values, '[' * 50_000))}"
    return "\n".join(lines).encode()
