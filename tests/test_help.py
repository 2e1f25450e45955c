"""Every command explains itself, quickly, with an example that parses; results go to one place, progress to another."""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from phosphene import cli, commands
from phosphene.errors import SettingsError, Stopped
from phosphene.runtime.machine import machine
from phosphene.runtime.run import Run
from phosphene.settings import examples, settings, summary

LONG = ("synthesize", "search darts", "train", "run", "demo")


def phosphene(*arguments):
    command = [sys.executable, "-m", "phosphene", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_help_is_quick_and_needs_no_torch():
    """As `python -m phosphene`; the best of five, since the machine may be busy with the other tests."""
    times = []
    for _ in range(5):
        began = time.perf_counter()
        done = phosphene("--help")
        times.append(time.perf_counter() - began)
        assert done.returncode == 0 and "phosphene demo" in done.stdout
        if times[-1] < 0.5:
            break
    assert min(times) < 0.5, times
    code = "import sys\nfrom phosphene import cli\nsys.argv = ['phosphene', '--help']\ntry:\n    cli.main()\n"
    code += "except SystemExit:\n    pass\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip().endswith("False")


def test_groups_list_their_commands():
    for group in cli.GROUPS:
        shown = phosphene(group, "--help").stdout
        for name in cli.COMMANDS:
            if name.startswith(group + " "):
                assert name.split()[1] in shown


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help(name):
    command = cli.command(name)
    shown = CliRunner().invoke(command, ["--help"])
    assert shown.exit_code == 0
    assert summary(commands.function(name)) and "Example" in shown.output and "--json" in shown.output
    for setting in settings(commands.function(name)):
        assert setting.help, f"phosphene {name}: {setting.flag} says nothing about itself"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_example_parses(name):
    lines = examples(commands.function(name))
    assert lines, f"phosphene {name} has no Example: block"
    for line in lines:
        words = shlex.split(line, comments=True)
        words = words[words.index("phosphene") :] if "phosphene" in words else words
        assert words[: 1 + len(name.split())] == ["phosphene", *name.split()], line
        method = " ".join(words[1 : 2 + len(name.split())])
        full = method if method in cli.COMMANDS else name  # an example of `prune` may be one of `prune uniform`
        context = cli.command(full).make_context(full, words[1 + len(full.split()) :], resilient_parsing=False)
        assert context.params


@pytest.mark.parametrize("name", LONG)
def test_long_commands_can_be_estimated_and_seeded(name):
    names = {setting.name for setting in settings(commands.function(name))}
    assert "estimate" in names and "out" in names and "device" in names
    assert "seed" in names or name == "run"


MISSPELT = [("synthesise", "synthesize"), ("dataset shwo", "show"), ("trian", "train")]


@pytest.mark.parametrize(("wrong", "right"), MISSPELT)
def test_a_misspelt_command_is_answered_with_the_nearest(wrong, right):
    done = phosphene(*wrong.split())
    assert done.returncode == 2 and f"Did you mean {right}?" in done.stderr


def test_errors_are_one_line_without_a_traceback():
    done = phosphene("teacher", "show", "nothing-of-the-kind")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("phosphene: ") and "Traceback" not in done.stderr


def fails(out: Path, began: bool = False) -> None:
    """A command that finds out late that it cannot be."""
    folder = Run.open("job", {"began": began}, [], out, machine("cpu", "fp32")).path
    if began:
        (folder / "metrics.jsonl").touch()
    raise MemoryError("12 TiB") if out.name == "large" else SettingsError("--x 1: no")


def test_a_command_that_fails_keeps_no_folder_in_which_nothing_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "evaluate", commands.Command(f"{__name__}:fails", "for this test"))

    def run(name, *flags):
        monkeypatch.setattr(sys, "argv", ["phosphene", "evaluate", str(tmp_path / name), *flags])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code

    assert run("a") == 2 and not (tmp_path / "a").exists()
    assert run("b", "--began") == 2 and (tmp_path / "b" / "config.json").exists()
    assert run("large") == 1 and capsys.readouterr().err.splitlines()[-1].startswith("phosphene: not enough memory (12")


def test_the_module_is_the_command_line():
    done = phosphene("--version")
    assert done.returncode == 0 and done.stdout.startswith("phosphene, version ")


FAILURES = [
    (["teacher", "show", "nothing-of-the-kind"], 2, "TeacherError", "nothing-of-the-kind"),
    (["evaluate", "net", "--batch", "0"], 2, "UsageError", "--batch must be at least 1 (got 0)"),
    (["evaluate", "net", "--btch", "5"], 2, "NoSuchOption", "--btch"),
    (["evaluate"], 2, "MissingParameter", "RUN"),
    (["trian"], 2, "UsageError", "Did you mean train?"),
    (["results", "nowhere"], 2, "UsageError", "unexpected"),
]


@pytest.mark.parametrize(("arguments", "status", "kind", "words"), FAILURES)
def test_errors_are_json_where_json_was_asked_for(arguments, status, kind, words, monkeypatch, capsys):
    for flags in (["--json"], []):
        monkeypatch.setattr(sys, "argv", ["phosphene", *arguments, *flags])
        with pytest.raises(SystemExit) as end:
            cli.main()
        shown = capsys.readouterr()
        assert end.value.code == status and words in shown.err and "Traceback" not in shown.err
        if flags:
            assert json.loads(shown.out)["kind"] == kind and words in json.loads(shown.out)["error"]
        else:
            assert shown.out == ""


ENDS = [
    (KeyboardInterrupt(), 130, {"error": "interrupted; run the same command to go on", "kind": "Interrupted"}),
    (Stopped("stopped after step 3"), 130, {"error": "stopped after step 3", "kind": "Stopped"}),
    (FileNotFoundError(2, "No such file", "a.png"), 2, {"error": "a.png: No such file", "kind": "OSError"}),
]


@pytest.mark.parametrize(("error", "status", "printed"), ENDS)
def test_interruptions_are_json_as_well(error, status, printed, monkeypatch, capsys):
    def raises(out: Path) -> None:
        raise error

    monkeypatch.setattr(cli, "function", lambda name: raises)
    monkeypatch.setattr(sys, "argv", ["phosphene", "evaluate", "x", "--json"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    shown = capsys.readouterr()
    assert end.value.code == status and json.loads(shown.out) == printed
    assert shown.err.strip() == f"phosphene: {printed['error']}"


def test_a_fault_of_ours_is_json_and_a_status_of_its_own(monkeypatch, capsys):
    monkeypatch.setattr(cli, "function", lambda name: dict.__getitem__)
    monkeypatch.setattr(cli, "settings", lambda function: ())
    monkeypatch.setattr(sys, "argv", ["phosphene", "evaluate", "--json"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 70 and json.loads(capsys.readouterr().out)["kind"] == "TypeError"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_fits_80_columns(name):
    shown = CliRunner().invoke(cli.command(name), ["--help"], terminal_width=80, prog_name=f"phosphene {name}")
    assert max(map(len, shown.output.splitlines())) <= 80
    assert "RANGE" not in shown.output


def test_methods_and_examples_stand_below_the_flags():
    shown = CliRunner().invoke(cli.command("quantize"), ["--help"], terminal_width=80).output
    methods = [name.split()[1] for name in cli.COMMANDS if name.startswith("quantize ")]
    assert all(f"  {method} " in shown for method in methods)
    example = shown[shown.index("Examples:") :].replace("\\\n", "")
    assert "phosphene quantize digits" in example


def test_json_is_one_object_on_standard_output():
    done = phosphene("arch", "show", "DARTS_V2", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["params"] > 1_000_000


def test_json_has_no_nan(capsys):
    cli._print({"tau": float("nan"), "each": [{"low": float("-inf")}, 0.5]}, as_json=True)
    printed = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert printed == {"tau": None, "each": [{"low": None}, 0.5]}


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_numbers_are_finite(value):
    done = phosphene("search", "darts", "--data", "d", "--lr", value)
    assert done.returncode == 2 and f"--lr {value} is not a finite number" in done.stderr
    (setting,) = (one for one in settings(commands.function("search darts")) if one.name == "lr")
    with pytest.raises(SettingsError, match=r"--lr .*is not a finite number"):
        setting.check(float(value))


@pytest.mark.parametrize("value", ["-1", str(1 << 63)])
def test_seeds_are_what_every_generator_takes(value):
    done = CliRunner().invoke(cli.command("demo"), ["--seed", value])
    assert done.exit_code == 2 and "--seed must be at least 0 and below 2^63 (got" in done.output
    (setting,) = (one for one in settings(commands.function("demo")) if one.name == "seed")
    with pytest.raises(SettingsError, match="--seed"):
        setting.check(int(value))


def test_flags_are_checked_by_click():
    with pytest.raises(click.UsageError, match="No such option"):
        cli.command("train").make_context("train", ["cifar-resnet8", "--dta", "d"])
