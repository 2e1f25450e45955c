"""Flags of every command with odd values: the run is opened, or the error is ours and says so in a line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from in_process import SMALL, fresh, run

from attempts import flags, stock
from phosphene import commands
from phosphene.settings import settings as settings_of

SLOW = ("onnx", "audit", "architecture", "architectures")  # seconds before any run would begin
SUITABLE = [
    name
    for name in stock.RUNS
    if name not in SLOW and {w.split("/")[1] for w in stock.words(name) if w.startswith("stock/")} <= {*SMALL, "files"}
]


@st.composite
def odd_commands(draw: st.DrawFn) -> list[str]:
    """A run of the campaign's with one or two odd flags."""
    name = draw(st.sampled_from(SUITABLE))
    command, words = stock.command(name), stock.words(name)
    every = [one for one in settings_of(commands.function(command)) if not one.required]
    for one in draw(st.lists(st.sampled_from(every), min_size=1, max_size=2)):
        value = draw(
            st.sampled_from(flags.values(one)) | st.text(max_size=20) | st.integers().map(str) | st.floats().map(str)
        )
        words += [one.flag] if one.kind is bool else [f"{one.flag}={value}"]
    return words


@pytest.mark.usefixtures("never_begun")
@settings(
    max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(words=odd_commands())
def test_odd_flags(words: list[str], place: Path) -> None:
    with fresh(place):
        end = run(words)
    assert end.status in (None, 0, 1, 2), f"{words}: {end}"
    assert end.error is None, f"{words}: {end.error!r}"
