"""Messages are log records; on a terminal a bar, elsewhere lines; the handlers of a program get what it embeds."""

import io
import logging
import subprocess
import sys

import pytest

from phosphene.runtime import progress
from phosphene.runtime.progress import LONGEST, Progress, print_messages, say


class Terminal(io.StringIO):
    """Standard error as a terminal has it."""

    def isatty(self):
        return True


@pytest.fixture
def embedded(monkeypatch):
    """A program with handlers of its own, as pytest has them on the root logger."""
    monkeypatch.setattr(progress.MESSAGES, "handlers", [])
    monkeypatch.setattr(progress.MESSAGES, "propagate", True)


def test_the_command_line_prints_messages_on_standard_error(capsys):
    say("seed 0: synthesize")
    print_messages()
    say("once, not twice", logging.WARNING)
    assert capsys.readouterr() == ("", "seed 0: synthesize\nonce, not twice\n")


def test_a_program_with_handlers_gets_records_and_nothing_is_printed(embedded, caplog, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    with caplog.at_level(logging.INFO, "phosphene"):
        say("a [message] with 100 %")
        say("damaged", logging.WARNING)
        Progress("train", 10, 0).update(1, {"loss": 0.25})
    first, second, third = caplog.records
    assert (first.name, first.levelno, first.getMessage()) == ("phosphene", logging.INFO, "a [message] with 100 %")
    assert first.filename == "test_progress.py" and second.levelno == logging.WARNING
    assert third.name == "phosphene.progress" and third.getMessage().startswith("train  1/10  10 %  ")
    assert third.getMessage().endswith("left  loss 0.25")
    assert capsys.readouterr() == ("", "")


def test_a_level_of_the_program_holds(embedded, caplog):
    with caplog.at_level(logging.WARNING, "phosphene"):
        say("details")
    assert caplog.records == []


def test_a_script_without_any_logging_sees_messages():
    code = "import logging, sys\nfrom phosphene.runtime.progress import say\nsay('hello')\n"
    code += "logging.basicConfig(level=logging.INFO, format='%(name)s: %(message)s', stream=sys.stdout)\nsay('taken')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("phosphene: taken\n", "hello\n")


def test_a_terminal_has_a_bar_with_the_time_left(monkeypatch):
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(progress, "BAR_EVERY", 0.0)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    outer, inner = Progress("study", 4, 0), Progress("train [a]", 200, 50)
    outer.update(1, {})
    inner.update(100, {"loss": 0.30123456, "accuracy": 84.4, "a_long_name_that_has_no_room": 1.0})
    say("above the bar")
    assert "train [a]" in shown.getvalue() and "100/200" in shown.getvalue() and "50 %" in shown.getvalue()
    assert "0 s left" in shown.getvalue() and "loss 0.3012" in shown.getvalue() and "…" not in shown.getvalue()
    assert "above the bar" in shown.getvalue() and "a_long_name" not in shown.getvalue()
    inner.close()
    assert progress.Line.bars is not None
    outer.close()
    assert progress.Line.bars is None, "the last loop clears the terminal"


def test_elsewhere_a_line_now_and_then_with_whole_numbers(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    shown = Progress("train", 10, 0)
    shown.update(5, {f"figure_{k}": 1 / 3 for k in range(40)})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train  5/10  50 %") and len(line) <= LONGEST
    assert all(part.endswith(" 0.3333") for part in line.split("  ")[4:])
    monkeypatch.setattr(progress, "LINE_EVERY", 1000.0)
    Progress("train", 10, 0).update(5, {})
    Progress("train", 10, 0, quiet=True).update(5, {})
    assert capsys.readouterr().err == ""


def test_codes_for_a_terminal_in_a_name_are_spelt_out(capsys):
    say("a\x1b[31mb\r\u202ec\nd")
    assert capsys.readouterr().err == "a\\x1b[31mb\n\\u202ec\nd\n"  # a return ends a line
    shown = Progress("x\x1b[2J\ny", 10, 0)
    shown.terminal, shown.every = False, 0.0
    shown.update(5, {"loss": 1.0})
    line = capsys.readouterr().err
    assert "\x1b" not in line and len(line.splitlines()) == 1
