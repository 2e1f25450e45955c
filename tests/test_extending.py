"""docs/extending.md, as typed: its file is loaded, its commands run, and what it says of spaces and searches holds."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import phosphene
from phosphene import cli, settings, spaces
from phosphene import plugins as extensions
from phosphene.core import Architecture
from phosphene.costs import budget as costs
from phosphene.costs.budget import Budget
from phosphene.data.dataset import ImageDataset
from phosphene.errors import ArchitectureError, BudgetError, PhospheneError, SettingsError, TeacherError
from phosphene.recipes import toml as stages
from phosphene.runtime.run import Run
from phosphene.spaces.moves import sample

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "extending.md").read_text()
CODE = re.search(r"<!-- mine.py -->\n```python\n(.*?)```", PAGE, re.S)[1]  # type: ignore[index]
COMMANDS = re.search(r"<!-- run -->\n```sh\n(.*?)```", PAGE, re.S)[1].strip().splitlines()  # type: ignore[index]
SMALL: dict[str, Any] = {"name": "tiny", "shape": [1, 16, 16], "classes": 3, "widths": [4, 8]}
HERE = {"device": "cpu", "precision": "fp32", "width": 0.25, "final_width": 0.25, "images": 8}


def forget(patch: pytest.MonkeyPatch) -> None:
    """As in a new process: nothing is registered, nothing was executed."""
    for table in ("SPACES", "SEARCHES", "NOTATIONS"):
        patch.setattr(extensions, table, {})
    patch.setattr(extensions, "_executed", set())


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which everything on the page was done; its code stays registered for this module."""
    folder: Path = tmp_path_factory.mktemp("page")
    (folder / "mine.py").write_text(CODE)
    with pytest.MonkeyPatch.context() as patch:
        forget(patch)
        patch.chdir(folder)
        for line in COMMANDS:
            words = shlex.split(line)
            if words[0] == "export":
                patch.setenv(*words[1].split("="))
                continue
            done = CliRunner().invoke(cli.Lazy(), words[1:])
            assert done.exit_code == 0, f"{line}\n{done.output}\n{done.exception!r}"
        patch.setenv(extensions.CODE, str(folder / "mine.py"))
        extensions._executed.add(str(folder / "mine.py"))
        yield folder


def images() -> ImageDataset:
    draws = np.random.default_rng(7)
    pixels = draws.integers(0, 256, (24, 1, 16, 16), dtype=np.uint8)
    return ImageDataset.from_arrays(pixels, labels=np.arange(24) % 3, classes=3)


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


# -- what is on the page ---------------------------------------------------------------------------------------------


def test_every_command_of_the_page_left_what_it_says(page: Path) -> None:
    assert 1e6 <= result(page / "found")["macs"] <= 2e6 and result(page / "climbed")["params"] <= 50e3
    named = {name: Architecture.load(page / name / "arch.json").space["name"] for name in ("found", "climbed", "code")}
    assert named == {"found": "tiny", "climbed": "tiny", "code": "macro"}
    assert Architecture.load(page / "drawn" / "arch.json").space["depths"] == [1, 3]
    assert json.loads((page / "found/supernet.json").read_text())["space"]["widths"] == [8, 16]  # --width .5
    for picture in (page / "tiny.png", page / "climbed" / "architecture.png"):
        assert picture.read_bytes()[:4] == b"\x89PNG"
    assert (page / "network" / "weights.safetensors").exists()


def test_the_climb_never_falls_and_returns_its_best(page: Path) -> None:
    lines = [json.loads(line) for line in (page / "climbed/metrics.jsonl").read_text().splitlines()]
    tried, best = [line["tried"] for line in lines], [line["best"] for line in lines]
    assert len(lines) == 8 and best == list(np.maximum.accumulate(tried)) and len(set(best)) > 1


def test_other_processes_know_it_from_the_environment(page: Path) -> None:
    """As a user types it: a new process lists the search, and its workers load the space by its name."""
    typed = [*("found", "n5 w5 n5 n3", "w3 w3 w3 n3"), *("--data", "fractals", "--jobs", "2", "--out", "scored")]
    code = "import sys; from phosphene import cli\n"
    code += f"sys.argv = ['phosphene', 'score', *{typed!r}, '--score-images', '8', '--calibration', '1']\ncli.main()\n"
    code += "from click.testing import CliRunner; print(CliRunner().invoke(cli.Lazy(), ['search', '--help']).output)"
    environment = {**os.environ, extensions.CODE: "mine.py"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=page, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    assert "hill" in done.stdout and "Climb a proxy" in done.stdout
    assert len((page / "scored/scores.jsonl").read_text().splitlines()) == 2


# -- what a space owes -----------------------------------------------------------------------------------------------


def test_the_space_is_made_again_from_its_spec_and_reads_what_it_writes(page: Path) -> None:
    space: Any = spaces.space(SMALL)
    again = spaces.space(json.loads(json.dumps(space.spec)))
    assert again.spec == space.spec and again.decisions == space.decisions
    draw = torch.Generator().manual_seed(0)
    for _ in range(10):
        choices = sample(space, draw)
        assert space.choices(space.notation(choices)) == choices
    assert spaces.architecture("n3 w5 n3 w3").space["name"] == "tiny"
    with pytest.raises(ArchitectureError, match="is not a sequence of n3"):
        space.choices("n3 x5 n3 w3")
    with pytest.raises(ArchitectureError, match="has 3 layers"):
        spaces.architecture("n3 w5 n3")


def test_a_path_of_the_supernet_is_the_built_network(page: Path) -> None:
    space: Any = spaces.space({**SMALL, "affine": True})
    supernet, x = space.supernet().eval(), torch.randn(2, 1, 16, 16)
    choices = sample(space, torch.Generator().manual_seed(1))
    net = space.build(choices).eval()
    for mine, theirs in ((net.first, supernet.first), (net.last, supernet.last)):
        mine.load_state_dict(theirs.state_dict())
    for layer, options, place in zip(net.layers, supernet.layers, space.layers, strict=True):
        layer.load_state_dict(options.options[choices[place.name]].state_dict())
    one_hot = {d.name: torch.eye(len(d.options))[choices[d.name]] for d in space.decisions}
    torch.testing.assert_close(supernet(x, choices), net(x))
    torch.testing.assert_close(supernet(x, one_hot), net(x))


def test_its_table_of_costs_is_what_networks_cost(page: Path) -> None:
    space = spaces.space(SMALL)
    budget = Budget.parse(macs=">=1").of(space)
    draw = torch.Generator().manual_seed(2)
    for _ in range(8):
        choices = sample(space, draw)
        assert tuple(budget.costs(choices).values()) == costs.measure(space, choices)
    with pytest.raises(BudgetError, match=r"--macs 10 excludes every architecture \(smallest .*, largest"):
        Budget.parse(macs="10").of(space)


# -- what a search owes ----------------------------------------------------------------------------------------------


def climb(out: Path, **given: Any) -> Any:
    return phosphene.search(images(), "hill", space="tiny", out=out, steps=5, **{**HERE, **given})


def files(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in ("arch.json", "result.json", "metrics.jsonl", "genotype.txt")}


def test_the_same_seed_gives_the_same_files_and_another_another(page: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        climb(tmp_path / name, seed=seed)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a")["metrics.jsonl"] != files(tmp_path / "c")["metrics.jsonl"]


@pytest.mark.parametrize("step", [0, 2, 4])
def test_it_goes_on_after_a_fault_bit_for_bit(
    step: int, page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(phase: str, now: int) -> None:
        if now == step:
            raise RuntimeError("injected")

    climb(tmp_path / "undisturbed")
    monkeypatch.setenv("PHOSPHENE_CHECKPOINT_SECONDS", "0")
    monkeypatch.setattr(Run, "after_step", staticmethod(fail))
    with pytest.raises(SettingsError, match="RuntimeError: injected"):
        climb(tmp_path / "run")
    done: list[int] = []
    monkeypatch.setattr(Run, "after_step", staticmethod(lambda phase, now: done.append(now)))
    climb(tmp_path / "run")
    assert done == list(range(step + 1, 5)) and files(tmp_path / "run") == files(tmp_path / "undisturbed")


def test_its_bounds_are_kept_and_impossible_ones_refused(page: Path, tmp_path: Path) -> None:
    free = [climb(tmp_path / f"free{seed}", seed=seed, proxy="macs").result["macs"] for seed in range(2)]
    bound = int(0.7 * min(free))
    assert climb(tmp_path / "bound", proxy="macs", macs=str(bound)).result["macs"] <= bound
    with pytest.raises(BudgetError, match="smallest"):
        climb(tmp_path / "none", macs="10")
    assert not (tmp_path / "none").exists()


# -- how it is registered --------------------------------------------------------------------------------------------


def test_flags_are_those_of_the_constructor(page: Path, tmp_path: Path) -> None:
    declared = {setting.name: setting for setting in settings.settings(stages.function("search hill"))}
    assert declared["steps"].default == 50 and declared["proxy"].help.startswith("what to climb")
    assert declared["space"].options[-1] == "tiny" and "fixed" not in declared["space"].options
    with pytest.raises(SettingsError, match="--cells 3 is no size of the tiny space; it takes --depths, --width"):
        climb(tmp_path / "a", cells=3)
    with pytest.raises(SettingsError, match="--stem cifar: a tiny space has no stems"):
        climb(tmp_path / "a", stem="cifar")
    shown = CliRunner().invoke(cli.command("search hill"), ["--data", "d", "--space", "tinny"])
    assert shown.exit_code == 2 and "tinny" in shown.output


def test_a_folder_begun_with_other_code_is_another_run(page: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, text in (("one", CODE), ("other", CODE + "\n# changed\n")):
            forget(patch)
            (tmp_path / f"{name}.py").write_text(text)
            patch.setenv(extensions.CODE, str(tmp_path / f"{name}.py"))
            if name == "one":
                climb(tmp_path / "run")
                continue
            with pytest.raises(PhospheneError, match="holds another run"):
                climb(tmp_path / "run")


def test_a_folder_executes_nothing(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variable a space is an unknown name, whatever lies beside the file that says it."""
    forget(monkeypatch)
    monkeypatch.delenv(extensions.CODE)
    monkeypatch.chdir(page)
    with pytest.raises(ArchitectureError, match=r"no space is called 'tiny'.*PHOSPHENE_CODE"):
        spaces.architecture("climbed")
    with pytest.raises(SettingsError, match="'hill' is not one of"):
        phosphene.search(images(), "hill")
    assert not extensions.SPACES


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (None, r"PHOSPHENE_CODE=.*bad\.py: there is no file"),
        ("1 / 0", r"bad\.py fails when executed: ZeroDivisionError"),
        ("import phosphene\nphosphene.register_space('macro')(dict)", "'macro'.*take another name"),
        ("import phosphene\nphosphene.register_space('Tiny')", "'Tiny' names no space"),
        ("import phosphene\nphosphene.register_space('tiny', notation='(')", "no regular expression"),
    ],
)
def test_code_that_cannot_be_used_is_told_from_other_mistakes(
    code: str | None, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(monkeypatch)
    if code is not None:
        (tmp_path / "bad.py").write_text(code)
    monkeypatch.setenv(extensions.CODE, str(tmp_path / "bad.py"))
    for _ in range(2):  # the second time, too
        with pytest.raises(SettingsError, match=says):
            spaces.known()


def test_names_that_are_taken_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch)
    monkeypatch.setenv(extensions.CODE, "no_such_module")
    with pytest.raises(SettingsError, match="no such module"):
        stages.calls()
    monkeypatch.delenv(extensions.CODE)

    @phosphene.register_search("random")
    def another(space: Any, data: Any, objective: Any, score: Any, budget: Any, run: Any, *, steps: int = 1) -> None:
        """Nothing."""

    with pytest.raises(SettingsError, match="`search random` is a command of the package"):
        stages.calls()
    extensions.SEARCHES.clear()

    @phosphene.register_search("mine")
    def colliding(space: Any, data: Any, objective: Any, score: Any, budget: Any, run: Any, *, seed: int = 1) -> None:
        """Nothing."""

    with pytest.raises(SettingsError, match="every search has a setting 'seed'"):
        stages.function("search mine")
    phosphene.register_space("mine")(type(spaces.space({"name": "macro"})))
    with pytest.raises(ArchitectureError, match="the spec of a mine space is named 'macro'"):
        spaces.space({"name": "mine"})


def test_a_teachers_file_is_executed_by_the_same_rule(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("raise OSError('no disk')")
    with pytest.raises(TeacherError, match=r"net\.py fails when executed: OSError: no disk"):
        phosphene.load_teacher(f"{tmp_path / 'net.py'}:make", size=8, channels=1, classes=2)


SEARCH = """
import sys
import phosphene

@phosphene.register_search("odd")
def odd(space, data, objective, score, budget, run, *, how: str = ""):
    '''Odd.'''
    {body}
"""
ODD = [
    ("raise KeyError('x')", r"search odd fails when executed: KeyError: 'x' \(at .*odd\.py:8\)"),
    ("sys.exit(3)", r"search odd fails when executed: SystemExit: 3 \(at .*odd\.py:8\)"),
    ("return 1 / 0", r"ZeroDivisionError"),
    ("return None", "search odd returns None, not an Architecture"),
    ("return phosphene.Architecture(space.spec, {})", "search odd returns None for .*, which should be 0 to"),
    ("class Odd(BaseException): pass\n    raise Odd('a\\nb')", r"search odd fails when executed: Odd: a\\nb"),
]


@pytest.mark.parametrize(("body", "says"), ODD, ids=[body[:12] for body, _ in ODD])
def test_a_search_that_fails_or_returns_nonsense_is_named(
    body: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(monkeypatch)
    (tmp_path / "odd.py").write_text(SEARCH.format(body=body))
    monkeypatch.setenv(extensions.CODE, str(tmp_path / "odd.py"))
    with pytest.raises(SettingsError, match=says) as error:
        phosphene.search(images(), "odd", out=tmp_path / "run", device="cpu", precision="fp32")
    assert "\n" not in str(error.value)


FACTORIES = [
    ("import sys\nsys.exit('bye')", r"net\.py fails when executed: SystemExit: bye \(at .*net\.py:2\)"),
    ("def make(", r"net\.py fails when executed: SyntaxError"),
    ("def make():\n    raise BaseException('odd')", r"net\.py:make fails when executed: BaseException: odd"),
    ("def make():\n    raise SystemExit", r"net\.py:make fails when executed: SystemExit"),
    ("def make():\n    return 3", r"returns a int, not a torch\.nn\.Module"),
    ("make = 3", "defines no function 'make'"),
    ("make = dict.fromkeys", r"net\.py:make"),
]


@pytest.mark.parametrize(("code", "says"), FACTORIES, ids=[code[:12] for code, _ in FACTORIES])
def test_a_factory_that_fails_or_returns_nonsense_is_named(code: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(code)
    with pytest.raises(TeacherError, match=says) as error:
        phosphene.load_teacher(f"{tmp_path / 'net.py'}:make", size=8, channels=1, classes=2)
    assert "\n" not in str(error.value)


def test_an_interruption_of_foreign_code_is_one() -> None:
    with pytest.raises(KeyboardInterrupt), extensions.foreign("it"):
        raise KeyboardInterrupt
    with pytest.raises(MemoryError), extensions.foreign("it"):
        raise MemoryError


@pytest.mark.parametrize("name", ["a..b", ".x", "", "no.such.module", "sys.nothing"])
def test_a_module_that_is_none_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="no such module"):
        extensions._import(name)


def test_what_cannot_be_called_is_not_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    forget(monkeypatch)
    with pytest.raises(SettingsError, match=r"register_search\('mine'\) decorates 3, which cannot be called"):
        phosphene.register_search("mine")(3)  # type: ignore[type-var]
