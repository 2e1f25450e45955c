"""However a command ends: one line on standard error, an exit status, and for a fault of ours a file to report."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
import torch

from phosphene import cli, commands, plugins
from phosphene.errors import DatasetError, Fault, MissingExtra, Stopped, is_memory
from phosphene.runtime import ending, start

HERE = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}


def deep(depth: int) -> int:
    """Recursion without an end."""
    return deep(depth + 1)


def allocate() -> None:
    """More memory than there is, as torch says it."""
    torch.empty(1 << 50)


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


RAISED = {
    "unspeakable": Unspeakable(),
    "value": ValueError("a\nb\x1b[31m[red]"),
    "key": KeyError("x"),
    "nothing": RuntimeError(),
    "exit": SystemExit(3),
    "exit-text": SystemExit("bye"),
    "eof": EOFError("truncated"),
    "base": BaseException("odd"),
    "group": ExceptionGroup("two", [ValueError("1"), OSError("2")]),
    "memory": MemoryError("12 TiB"),
    "numpy": RuntimeError("could not create a primitive"),
    "enomem": OSError(errno.ENOMEM, "Cannot allocate memory", "images.npy"),
    "data": DatasetError("card.json: a\nb"),
    "fault": Fault("train: KeyError: 'x'"),
    "file": FileNotFoundError(errno.ENOENT, "No such file or directory", "a\nb"),
    "interrupt": KeyboardInterrupt(),
    "stopped": Stopped("stopped at 3"),
    "unread": BrokenPipeError(errno.EPIPE, "Broken pipe"),
    "surrogate": ValueError("\udcff日"),
}
STATUS = dict.fromkeys(
    ("value", "key", "nothing", "exit", "exit-text", "base", "eof", "group", "fault", "surrogate"), 70
)
STATUS |= dict.fromkeys(("memory", "numpy", "enomem"), 1) | dict.fromkeys(("data", "file"), 2)
STATUS |= {"interrupt": 130, "stopped": 130, "unread": 141, "allocate": 1}


def fails(what: str) -> None:
    """Raise it."""
    if what in ("recursion", "allocate"):
        deep(0) if what == "recursion" else allocate()
    raise RAISED[what]


@pytest.fixture
def failing(monkeypatch, capsys, tmp_path):
    """Run a command that raises: (exit status, standard output, standard error, files in the temporary folder)."""
    monkeypatch.setitem(cli.COMMANDS, "evaluate", commands.Command(f"{__name__}:fails", "for this test"))
    monkeypatch.setattr(ending.tempfile, "gettempdir", lambda: str(tmp_path))

    def run(what, *flags):
        monkeypatch.setattr(sys, "argv", ["phosphene", "evaluate", what, *flags])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return end.value.code, printed.out, printed.err, sorted(tmp_path.glob("phosphene-*.txt"))

    return run


@pytest.mark.parametrize("what", STATUS)
def test_every_end_is_one_line_and_a_status(failing, what):
    status, out, err, files = failing(what)
    assert (status, out) == (STATUS[what], "")
    assert len(err.splitlines()) == (what != "unread") and "Traceback" not in err
    assert "\x1b" not in err and (what == "unread" or err.startswith("phosphene: "))
    assert len(files) == (status == 70)
    if files:
        assert str(files[0]) in err and "please report it" in err
        text = files[0].read_text()
        assert "Traceback" in text and "def fails" not in text and str(os.getpid()) in files[0].name
        assert files[0].stat().st_mode & 0o77 == 0


@pytest.mark.parametrize("what", ["value", "memory", "data", "exit"])
def test_with_json_the_end_is_one_object_as_well(failing, what):
    status, out, err, _ = failing(what, "--json")
    end = json.loads(out)
    assert status == STATUS[what] and set(end) == {"error", "kind"} and end["error"] in err


def test_a_fault_without_a_place_for_its_file_says_where_it_was(failing, monkeypatch):
    monkeypatch.setattr(ending.tempfile, "gettempdir", lambda: "/dev/null/none")
    status, _, err, files = failing("value")
    assert status == 70 and not files and "test_ending.py:" in err and len(err.splitlines()) == 1


def test_two_faults_of_one_second_have_files_of_their_own(failing):
    failing("key")
    assert len(failing("key")[3]) == 2


def test_a_fault_of_the_users_code_is_theirs(failing, tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text("def make():\n    return {}['x']\n")
    own = plugins.execute(tmp_path / "own.py")
    monkeypatch.setattr(sys.modules[__name__], "allocate", own.make)
    status, _, err, files = failing("allocate")
    assert status == 2 and f"{tmp_path / 'own.py'}:2 fails: KeyError: 'x'" in err and str(files[0]) in err


MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    RuntimeError("could not create a primitive"),
    RuntimeError("Storage size calculation overflowed with sizes=[9223372036854775807, 4]"),
    ValueError("array is too big; `arr.size * arr.dtype.itemsize` is larger than the maximum possible size."),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
    RuntimeError("unable to mmap 4000 bytes from file <w.pt>: Cannot allocate memory (12)"),
]
OTHERS = [ValueError("x"), OSError(errno.ENOSPC, "No space left on device"), RuntimeError("shape mismatch"), None]


@pytest.mark.parametrize("error", MEMORY + OTHERS, ids=repr)
def test_memory_is_told_from_damage(error):
    assert is_memory(error) == (error in MEMORY)


def test_a_usage_error_is_one_line_that_names_the_help(monkeypatch, capsys):
    for words, said in ((["evaluate"], "RUN"), (["evaluate", "x", "--batch", "0"], "--batch"), (["trian"], "train?")):
        monkeypatch.setattr(sys, "argv", ["phosphene", *words])
        with pytest.raises(SystemExit) as end:
            cli.main()
        err = capsys.readouterr().err
        assert end.value.code == 2 and said in err and len(err.splitlines()) == 1 and "--help`" in err


def test_a_missing_extra_survives_the_way_from_a_worker():
    import pickle

    assert str(pickle.loads(pickle.dumps(MissingExtra("ray", "ray")))) == str(MissingExtra("ray", "ray"))


# -- as a process ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def interruptions():
    """Children answer Ctrl-C, though the tests themselves may have been started to ignore it, as a shell's `&` does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def phosphene(*words: str, python: tuple[str, ...] = (), **options) -> subprocess.Popen:
    command = [sys.executable, *python, "-m", "phosphene", *words]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": HERE, **options}
    return subprocess.Popen(command, **options)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_while_it_starts_is_one_line(number):
    """At eight moments from the first import of ours to the end; Python's own start-up is not in our hands."""
    pick, statuses, pythons = random.Random(0), set(), 0
    for _ in range(8):
        process = phosphene("teacher", "show", "digits")
        time.sleep(pick.uniform(0.06, 1.5))
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        statuses.add(process.returncode)
        early = process.returncode in (
            -number,
            1,
        )  # before the first line of ours, or while one handler replaces another
        pythons += early
        assert early or process.returncode in (0, 130)
        assert early or err.strip() in ("", f"phosphene: {start.MESSAGE}"), err
    assert 130 in statuses and pythons <= 3


def test_an_interruption_that_a_library_turns_into_another_error_is_one(tmp_path):
    code = tmp_path / "mine.py"
    code.write_text(
        "import os, signal, time\n\n\ndef make():\n"
        "    try:\n        os.kill(os.getpid(), signal.SIGTERM)\n        time.sleep(5)\n"
        "    except BaseException as error:\n        raise ImportError('numpy failed to import') from error\n"
    )
    process = phosphene("teacher", "show", f"{code}:make")
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, f"phosphene: {start.MESSAGE}\n")


def test_a_program_that_imports_it_keeps_its_signals():
    code = "import signal, phosphene; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=HERE, timeout=60)
    assert done.stdout == "True\n"


def test_nobody_reads_the_output():
    read, write = os.pipe()
    os.close(read)
    process = phosphene("teacher", "--help", stdout=write)
    _, err = process.communicate(timeout=60)
    os.close(write)
    assert (process.returncode, err) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_the_output_is_full():
    with open("/dev/full", "w") as full:
        process = phosphene("--help", stdout=full)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2 and err.startswith("phosphene: ") and len(err.splitlines()) == 1
    assert "No space left" in err


def test_an_ascii_terminal_prints_everything():
    ascii_only = {**HERE, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for words, status in ((("teacher", "show", "digits"), 0), (("teacher", "show", "日本\udcff"), 2)):
        process = phosphene(*words, env=ascii_only)
        _, err = process.communicate(timeout=60)
        assert process.returncode == status and "Error" not in err, err


ODD = [("RANK", "x"), ("WORLD_SIZE", "-1"), ("LOCAL_RANK", "x"), ("OMP_NUM_THREADS", "x"), ("OMP_NUM_THREADS", "0")]
ODD += [("PHOSPHENE_CHECKPOINT_SECONDS", value) for value in ("x", "nan", "-1", "inf")]
ODD += [("PHOSPHENE_CHECKSUMS", "maybe"), ("MASTER_PORT", "70000"), ("RANK", "9" * 5000), ("RANK", "٣x"), ("RANK", "3")]


@pytest.mark.parametrize(("name", "value"), ODD)
def test_a_variable_that_cannot_be_used_is_named(monkeypatch, capsys, name, value):
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["phosphene", "teacher", "show", "digits"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    err = capsys.readouterr().err
    assert end.value.code == 2 and err.startswith(f"phosphene: {name}={value[:9]}") and len(err.splitlines()) == 1


def test_switches_of_every_command_are_variables(monkeypatch, capsys):
    """So that workers have them, too."""
    for name in ("PHOSPHENE_CHECKSUMS", "PHOSPHENE_FOLLOW"):
        monkeypatch.setenv(name, "")
    monkeypatch.setitem(cli.COMMANDS, "evaluate", commands.Command(f"{__name__}:switches", "for this test"))
    for flags, shown in (((), " "), (("--no-checksums",), "off "), (("--no-checksums", "--follow"), "off 1")):
        monkeypatch.setattr(sys, "argv", ["phosphene", *flags, "evaluate", "--json"])
        cli.main()
        assert json.loads(capsys.readouterr().out) == {"result": shown}
    assert all(flag in cli._group().get_help(click.Context(cli._group())) for flag in cli.SWITCHES)


def switches() -> str:
    """What the variables say."""
    return f"{os.environ['PHOSPHENE_CHECKSUMS']} {os.environ['PHOSPHENE_FOLLOW']}"


def test_a_process_that_waits_for_others_can_be_ended(tmp_path):
    """The wait is not Python's, so that no handler of Python's would run."""
    ranks = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    code = "import sys, torch.distributed as d\nsys.orig_argv = ['python', '-m', 'phosphene']; sys.argv = ['-m']\n"
    code += "import phosphene\nfrom phosphene.runtime import machine\nprint('ready', flush=True)\n"
    code += "machine.machine('cpu')"
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**HERE, **ranks})
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    process.terminate()
    assert process.wait(timeout=20) == -signal.SIGTERM
    process.stdout.close()
