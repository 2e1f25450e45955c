"""Recipes: strict about keys before anything runs, fanned out, resumable as a whole, and their figures recorded."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from phosphene import commands, models, spaces
from phosphene.core import Architecture
from phosphene.costs import budget as costs
from phosphene.data.dataset import ImageDataset
from phosphene.drawing import console_table as tables
from phosphene.errors import RecipeError, RunError, SettingsError
from phosphene.recipes import results
from phosphene.recipes import runner as recipe
from phosphene.recipes import toml as stages

ROOT = Path(__file__).resolve().parents[2]
DATA = os.environ.get("PHOSPHENE_DATA")
KILLED = """
import os, pathlib, signal
from phosphene.recipes import runner as recipe
from phosphene.runtime import run

def kill(phase, step):
    if phase == "train" and step == 2:
        os.kill(os.getpid(), signal.SIGKILL)

run.Run.after_step = kill
recipe.run("digits", out=pathlib.Path("FOLDER"))
"""
LONG = """
import pathlib
from phosphene.recipes import runner as recipe

if __name__ == "__main__":
    recipe.run("digits", out=pathlib.Path("FOLDER"), jobs=2, set=["steps=100000"])
"""
CALLED: list[tuple[str, dict]] = []
BREAKS: set[str] = set()


def make(
    source: Annotated[str, "what to make it of"],
    *,
    amount: Annotated[int, "how much"] = 1,
    style: Annotated[Literal["plain", "fancy"], "how"] = "plain",
    out: Path | None = None,
    seed: int = 0,
    device: str = "auto",
):
    """Make a thing.

    Example:
        phosphene make flour
    """
    CALLED.append(("make", {"source": source, "amount": amount, "style": style, "out": out, "seed": seed}))
    if out is not None and out.name in BREAKS:
        raise RunError("it broke")
    return {"weight": amount * 10 + seed, "inner": {"x": 0.5}}


def taste(thing: Annotated[str, "a folder"], *, limit: str = "", extra: list[str] | None = None):
    """Taste it.

    Example:
        phosphene taste thing
    """
    CALLED.append(("taste", {"thing": thing, "limit": limit, "extra": extra}))
    return {"score": len(CALLED) / 10}


@pytest.fixture(autouse=True)
def fake_commands(monkeypatch):
    CALLED.clear()
    table = {name: commands.Command(f"{__name__}:{name}", "") for name in ("make", "taste")}
    monkeypatch.setattr(commands, "COMMANDS", table)


GOOD = """
title = "Bread"
result = "bread"
paper = "Baker, 1901"
notes = ["salted"]
[scales.smoke]
core_minutes = 2
amount = 3
seeds = [0, 1]
flour = "rye"
[scales.cpu]
core_minutes = 20
amount = 30
seeds = [0, 1, 2]
flour = "$FLOUR"
[defaults.make]
amount = "{amount}"
[[stage]]
name = "dough"
call = "make"
with = { source = "{flour} flour" }
seeds = "{seeds}"
cases.plain = {}
cases.rich = { style = "fancy" }
[[stage]]
name = "bite"
call = "taste"
with = { thing = "@dough", limit = "@dough:weight~10%" }
seeds = "{seeds}"
cases = ["plain", "rich"]
[[stage]]
name = "feast"
call = "taste"
with = { thing = "@dough[rich,1]/crust", extra = ["@dough", "salt"] }
[[stage]]
name = "banquet"
call = "taste"
scales = ["cpu"]
with = { thing = "@dough[rich,2]" }
[[figure]]
label = "weight"
stage = "dough"
key = "weight"
unit = "g"
published = 40
[[figure]]
label = "inside of {case}"
stage = "dough"
case = "rich"
key = "inner.x"
times = 100
unit = "%"
group = "Crumb"
"""


def write(tmp_path, text=GOOD, name="bread"):
    path = tmp_path / f"{name}.toml"
    path.write_text(text)
    return str(path)


def test_runs_every_stage_with_its_settings(tmp_path):
    done = recipe.run(write(tmp_path), out=tmp_path / "o")
    doughs = [kw for call, kw in CALLED if call == "make"]
    assert [(d["source"], d["amount"], d["style"], d["seed"], d["out"].name) for d in doughs] == [
        ("rye flour", 3, "plain", 0, "dough-plain-0"),
        ("rye flour", 3, "fancy", 0, "dough-rich-0"),
        ("rye flour", 3, "plain", 1, "dough-plain-1"),
        ("rye flour", 3, "fancy", 1, "dough-rich-1"),
    ]
    tastes = [kw for call, kw in CALLED if call == "taste"]
    assert tastes[0] == {"thing": str(tmp_path / "o" / "dough-plain-0"), "limit": "27..33", "extra": None}
    feast = next(t for t in tastes if t["extra"])
    assert feast["thing"] == str(tmp_path / "o" / "dough-rich-1" / "crust")
    assert [Path(p).name for p in feast["extra"]] == [*(d["out"].name for d in sorted_by_recipe(doughs)), "salt"]
    assert done["jobs"] == 9 and done["missing"] == []


def sorted_by_recipe(doughs):
    """As the recipe lists them: by case, then seed."""
    return sorted(doughs, key=lambda d: (d["style"] != "plain", d["seed"]))


def test_one_seed_is_complete_before_the_next_begins(tmp_path):
    recipe.run(write(tmp_path), out=tmp_path / "o")
    order = [kw["out"].name if call == "make" else Path(kw["thing"]).name for call, kw in CALLED]
    last_of_first = max(i for i, name in enumerate(order) if name.endswith("-0"))
    assert all(not name.endswith("-1") or i > last_of_first for i, name in enumerate(order))


def test_priority_and_seed_decide_among_what_is_ready(tmp_path):
    text = GOOD + '[[stage]]\nname = "first"\ncall = "taste"\npriority = -1\nwith = { thing = "x" }\n'
    plan = stages.read(write(tmp_path, text), "smoke")
    assert recipe.in_order(plan, None)[0].stage == "first"


def test_figures_are_collected_over_seeds(tmp_path):
    done = recipe.run(write(tmp_path), out=tmp_path / "o")
    by_label = {f["label"]: f for f in done["figures"]}
    assert by_label["weight: plain"]["values"] == {"0": 30.0, "1": 31.0}
    assert by_label["weight: plain"]["mean"] == 30.5
    assert by_label["weight: plain"]["sd"] == pytest.approx(0.5**0.5)
    assert by_label["inside of rich"]["mean"] == 50 and "inside of plain" not in by_label


def test_a_figure_has_the_mean_of_its_intervals_and_may_be_what_a_stage_took(tmp_path):
    whole = GOOD.replace('key = "weight"', 'key = "weight"\ninterval = ["inner.x", "weight"]', 1)
    whole += '\n[[figure]]\nlabel = "minutes"\nstage = "dough"\nkey = "minutes"\n'
    source = tmp_path / "bread.toml"
    source.write_text(whole)
    found = {f["label"]: f for f in recipe.run(source, out=tmp_path / "o")["figures"]}
    assert found["weight: plain"]["interval"] == [0.5, 30.5]  # of seeds 0 and 1
    took = [json.loads((tmp_path / f"o/dough-plain-{seed}.json").read_text())["minutes"] for seed in (0, 1)]
    assert list(found["minutes: plain"]["values"].values()) == took


def test_minutes_may_count_what_a_stage_needed_and_be_drawn_against(tmp_path):
    whole = GOOD.replace('key = "weight"', 'key = "weight"\ngroup = "Weight"', 1)
    whole += '[[figure]]\nlabel = "weight"\nstage = "bite"\nkey = "minutes"\nplus = ["dough"]\ngroup = "Time"\n'
    whole += '[[picture]]\nname = "time"\nx = "Time"\ny = "Weight"\n'
    folder = tmp_path / "docs" / "results"
    done = recipe.run(write(tmp_path, whole), out=tmp_path / "o", record=True, results_dir=folder)
    took = [json.loads((tmp_path / f"o/{stage}-plain-0.json").read_text())["minutes"] for stage in ("dough", "bite")]
    assert next(f for f in done["figures"] if f.get("group") == "Time")["values"]["0"] == sum(took)
    assert "(results/bread-smoke-time.png)" in (tmp_path / "docs" / "results.md").read_text()
    with Image.open(folder / "bread-smoke-time.png") as picture:
        assert len(set(picture.convert("RGB").getdata())) > 10, "nothing was drawn"
    for wrong, message in (('x = "Tim"', "did you mean 'Time'"), ('key = "weight"', "plus is of minutes")):
        right = wrong.replace("Tim", "Time") if "Tim" in wrong else 'key = "minutes"'
        with pytest.raises(RecipeError, match=message):
            stages.read(write(tmp_path, whole.replace(right, wrong), "wrong"), "smoke")


def test_two_processes_in_one_folder_are_refused(tmp_path):
    holding = "import sys, time, pathlib; from phosphene.storage.lock import alone_in\n"
    holding += "with alone_in(pathlib.Path(sys.argv[1])):\n    print('in', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", holding, str(tmp_path / "o")], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "in\n"
    with pytest.raises(RunError, match="another process is at work in"):
        recipe.run(write(tmp_path), out=tmp_path / "o")
    other.kill()
    other.wait()
    assert recipe.run(write(tmp_path), out=tmp_path / "o")["missing"] == [], "a killed process holds nothing"


def test_a_figure_of_a_list_becomes_one_for_each_of_its_names(tmp_path):
    lists = '[lists.parts]\nweight = "all of it"\ninner.x = "its inside"\n'.replace("inner.x", '"inner.x"')
    several = '\n[[figure]]\neach = "parts"\nstage = "dough"\ncase = "rich"\nkey = "{name}"\ngroup = "Parts"\n'
    whole = GOOD.replace("[scales.smoke]", lists + "[scales.smoke]", 1)
    source = write(tmp_path, whole + several)
    found = {f["label"]: f for f in recipe.run(source, out=tmp_path / "o")["figures"] if f.get("group") == "Parts"}
    assert found["all of it"]["mean"] == 30.5 and found["its inside"]["mean"] == 0.5
    rows = whole.replace('"its inside"', '{ label = "inside", published = 0.7 }')
    (more,) = [
        f for f in stages.read(write(tmp_path, rows + several, "rows"), "smoke").figures if f["label"] == "inside"
    ]
    assert more["published"] == 0.7 and more["key"] == "inner.x"
    with pytest.raises(RecipeError, match=r"each.*did you mean 'parts'"):
        stages.read(write(tmp_path, whole + several.replace('"parts"', '"part"'), "other"), "smoke")
    with pytest.raises(RecipeError, match=r"each.*there are none"):
        stages.read(write(tmp_path, GOOD + several, "none"), "smoke")


def test_figures_are_printed_group_by_group():
    hidden = {"sd": None, "values": {"0": 2.0}, "unit": ""}
    rows = [{"label": "ours", "mean": 2.0, "published": 3, "group": "Drop", **hidden}]
    rows += [{**rows[0], "label": "noise", "published": None}, {**rows[0], "group": "Minutes"}]
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(tables.table({"figures": rows}))
    lines = [line.split() for line in console.export_text().splitlines() if line.strip()]
    assert lines == [
        ["Drop"], ["mean", "published"], ["ours", "2", "3"], ["noise", "2", "–"],
        ["Minutes"], ["mean", "published"], ["ours", "2", "3"],
    ]  # fmt: skip


def test_finished_stages_are_not_repeated(tmp_path, capsys):
    source = write(tmp_path)
    first = recipe.run(source, out=tmp_path / "o")
    CALLED.clear()
    assert recipe.run(source, out=tmp_path / "o")["figures"] == first["figures"]
    assert CALLED == []
    assert "dough-plain-0 is finished" in capsys.readouterr().err


def test_goes_on_where_it_broke(tmp_path, monkeypatch):
    source = write(tmp_path)
    monkeypatch.setattr(f"{__name__}.BREAKS", {"dough-rich-0"})
    with pytest.raises(RunError, match="it broke"):
        recipe.run(source, out=tmp_path / "o")
    assert [kw["out"].name for call, kw in CALLED if call == "make"] == ["dough-plain-0", "dough-rich-0"]
    CALLED.clear()
    monkeypatch.setattr(f"{__name__}.BREAKS", set())
    recipe.run(source, out=tmp_path / "o")
    made = [kw["out"].name for call, kw in CALLED if call == "make"]
    assert "dough-plain-0" not in made and made.count("dough-rich-0") == 1


def test_a_changed_recipe_does_not_take_old_results_for_new_ones(tmp_path):
    recipe.run(write(tmp_path), out=tmp_path / "o")
    with pytest.raises(RecipeError, match="other settings"):
        recipe.run(write(tmp_path, GOOD.replace("amount = 3\n", "amount = 4\n")), out=tmp_path / "o")


def test_what_builds_on_a_changed_stage_is_changed_too(tmp_path):
    texts = (GOOD, GOOD.replace("amount = 3\n", "amount = 4\n"))
    before, after = (stages.read(write(tmp_path, text), "smoke") for text in texts)
    jobs = [{job.name: results.JobStates(plan, Path("o")).digest(job) for job in plan.jobs} for plan in (before, after)]
    assert all(jobs[0][name] != jobs[1][name] for name in jobs[0])


def test_only_takes_what_it_needs_along(tmp_path):
    plan = stages.read(write(tmp_path), "smoke")
    doughs = {f"dough-{case}-{seed}" for case in ("plain", "rich") for seed in (0, 1)}
    assert {job.name for job in recipe.in_order(plan, ["feast"])} == doughs | {"feast"}
    with pytest.raises(RecipeError, match="did you mean 'feast'"):
        recipe.in_order(plan, ["feats"])


def test_estimate_runs_nothing(tmp_path):
    found = recipe.run(write(tmp_path), out=tmp_path / "o", estimate=True)
    assert found["core_minutes"] == 2 and found["finished"] == 0 and found["minutes_left"] > 0
    assert CALLED == [] and not (tmp_path / "o").exists()


def test_scale_values_from_the_environment_and_by_flag(tmp_path, monkeypatch):
    with pytest.raises(RecipeError, match="FLOUR, which is not set"):
        recipe.run(write(tmp_path), scale="cpu", out=tmp_path / "o")
    assert CALLED == []
    monkeypatch.setenv("FLOUR", "spelt")
    recipe.run(write(tmp_path), scale="cpu", out=tmp_path / "o", set=["amount=7", "seeds=[0, 1, 2]"])
    assert CALLED[0][1]["source"] == "spelt flour" and CALLED[0][1]["amount"] == 7
    assert any(Path(kw["thing"]).name == "dough-rich-2" for call, kw in CALLED if call == "taste")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[defaults.make]\namount", "[defaults.make]\namuont", "'amuont'; did you mean 'amount'"),
        ('name = "bite"\ncall', 'name = "bite"\nclal', "'clal'; did you mean 'call'"),
        ('call = "taste"', 'call = "tase"', "'tase'; did you mean 'taste'"),
        ('title = "Bread"', 'titel = "Bread"', "'titel'; did you mean 'title'"),
        ("[scales.smoke]", "[scales.smok]", "'smok'; did you mean 'smoke'"),
        ('"fancy" }', '"fanci" }', "--style fanci is not one of plain, fancy"),
        ('thing = "@dough"', 'thing = "@doug"', "'doug'; did you mean 'dough'"),
        ('thing = "@dough[rich,1]/crust"', 'thing = "@dough/crust"', "say which"),
        ('"{flour} flour"', '"{flou} flour"', "'flou'; did you mean 'flour'"),
        ("amount = 3", 'amount = "three"', "--amount 'three' is not a int"),
        ('with = { source = "{flour} flour" }', "with = {}", "'source' is missing"),
        ('stage = "dough"\nkey', 'stage = "dogh"\nkey', "'dogh'; did you mean 'dough'"),
        ('published = 40', 'publishd = 40', "'publishd'; did you mean 'published'"),
        ('seeds = "{seeds}"', "seeds = 3", "seeds must be a list"),
        ("core_minutes = 2\n", "", "'core_minutes' is missing"),
    ],
)  # fmt: skip
def test_every_mistake_is_found_before_anything_runs(tmp_path, old, new, message):
    assert old in GOOD
    with pytest.raises(RecipeError) as caught:
        recipe.run(write(tmp_path, GOOD.replace(old, new, 1)), out=tmp_path / "o")
    assert message in str(caught.value)
    assert CALLED == [] and not (tmp_path / "o").exists()


STAGE = 'name = "dough"\ncall = "make"'
TYPES = [
    ("[scales.smoke]\ncore_minutes = 2\namount = 3", "[scales]\nsmoke = 3\n[x]\na = 1", "scales.smoke should be"),
    ("core_minutes = 2", 'core_minutes = "two"', "core_minutes should be a number of minutes (got 'two')"),
    ("core_minutes = 2", "core_minutes = nan", "scales.smoke.core_minutes should be a finite number (got nan)"),
    ("amount = 3", "amount = { a = 1 }", "scales.smoke.amount should be text, a number, true or false"),
    ("amount = 3", "amount = 2020-01-01", "scales.smoke.amount should be text, a number, true or false"),
    ('title = "Bread"', "title = 3", "title should be a valid string (got 3)"),
    ('notes = ["salted"]', 'notes = "salted"', "notes should be a valid list (got 'salted')"),
    ('notes = ["salted"]', "notes = [3]", "notes.0 should be a valid string (got 3)"),
    ("[defaults.make]\namount = \"{amount}\"", "[defaults]\nmake = 3", "defaults.make should be"),
    ("[defaults.make]", "[defaults.mkae]", "'mkae'; did you mean 'make'"),
    ('[[stage]]\nname = "feast"', 'x = 1\n[[stage]]\nname = "feast"', "unknown key 'x'"),
    (STAGE, STAGE.replace('"dough"', "3"), "stage.0.name should be a valid string (got 3)"),
    (STAGE, STAGE + "\npriority = true", "stage.0.priority should be a valid integer (got True)"),
    (STAGE, STAGE + '\nscales = "smoke"', "stage.0.scales should be a valid list"),
    (STAGE, STAGE + "\nscales = [3]", "stage.0.scales.0 should be a valid string"),
    ('with = { source = "{flour} flour" }', 'with = "rye"', "stage.0.with should be a valid dictionary (got 'rye')"),
    ('with = { source = "{flour} flour" }', "with = { source = [[1]] }", "stage.0.with.source should be text"),
    ('seeds = "{seeds}"', 'seeds = ["x"]', "seeds must be a list of whole numbers from 0, each once, not ['x']"),
    ('seeds = "{seeds}"', "seeds = [-1]", "seeds must be a list of whole numbers"),
    ('seeds = "{seeds}"', "seeds = [0, 0]", "seeds must be a list of whole numbers"),
    ('seeds = "{seeds}"', "seeds = [true]", "seeds must be a list of whole numbers"),
    ("cases.plain = {}", "cases.plain = 3", "stage.0.cases should be a list of names, or a table of settings"),
    ('cases = ["plain", "rich"]', "cases = 3", "stage.1.cases should be a list of names, or a table"),
    ('cases = ["plain", "rich"]', "cases = [3]", "stage.1.cases should have names alone"),
    ('published = 40', "published = [40]", "[[figure]]: published"),
    ('published = 40', "digits = 40", "digits should be less than or equal to 15 (got 40)"),
    ('published = 40', 'times = "ten"', "[[figure]]: times should be a valid number (got 'ten')"),
    ('published = 40', 'interval = ["a"]', "[[figure]]: interval"),
    ('published = 40', "scales = 3", "[[figure]]: scales should be a valid list (got 3)"),
    ('published = 40', "each = 3", "[[figure]]: each should be a valid string (got 3)"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "message"), TYPES)
def test_a_wrong_type_is_named_with_its_key(tmp_path, old, new, message):
    assert old in GOOD
    with pytest.raises(RecipeError) as caught:
        recipe.run(write(tmp_path, GOOD.replace(old, new, 1)), out=tmp_path / "o")
    said = str(caught.value)
    assert message in said and "\n" not in said and ".toml" in said
    assert CALLED == [] and not (tmp_path / "o").exists()


NONSENSE = ["x = " + "[" * 100_000, "\x00", "stage = 3", "stage = [3]", "lists = [1]", "[figure]\na = 1"]
NONSENSE += ["x = 0x" + "f" * 9999]
NONSENSE += ["[picture]", "[[picture]]\nname = 3", "[lists]\nrows = 3", "title = 'a'\ntitle = 'b'", "\ufeff", "= 3"]


@pytest.mark.parametrize("text", NONSENSE, ids=range(len(NONSENSE)))
def test_nonsense_is_no_recipe(tmp_path, text):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(RecipeError, match=r"r\.toml") as caught:
        stages.read(str(tmp_path / "r.toml"), "smoke")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_bytes_that_are_no_text_are_no_recipe(tmp_path):
    (tmp_path / "r.toml").write_bytes(b"title = '\xff\xfe'")
    with pytest.raises(RecipeError, match=r"r\.toml is not a recipe"):
        stages.read(str(tmp_path / "r.toml"), "smoke")
    for name in ("x" * 10_000, "a\0b"):
        with pytest.raises(RecipeError, match="no recipe"):
            stages.read(name, "smoke")


PATHS = ["../../ESCAPED", "/tmp/ESCAPED", "a/b", "..", ".hidden", "a\\\\b", "-x", "", "x.json", "a\\nb", "x" * 200, "é"]


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize(
    "where", ['name = "dough"', 'result = "bread"', "cases.rich = ", 'cases = ["plain', "[[picture]]\nname = "]
)
def test_a_name_is_no_path(tmp_path, name, where):
    """A stage called `../../ESCAPED` wrote beside --out."""
    (tmp_path / "deep" / "inner").mkdir(parents=True)
    picture = '[[picture]]\nname = "p"\nx = "Time"\ny = "Weight"\n'
    old = where + '"p"' if "picture" in where else where
    new = {
        "name": f'name = "{name}"',
        "result": f'result = "{name}"',
        "cases.rich ": f'cases."{name}" = ',
        "cases ": f'cases = ["{name}',
        "[[picture]]\nname ": f'[[picture]]\nname = "{name}"',
    }[where.split("=")[0] if "cases" in where or "picture" in where else where.split(" ")[0]]
    text = GOOD + picture
    assert old in text
    with pytest.raises(RecipeError, match="should be a name of letters, digits"):
        recipe.run(write(tmp_path, text.replace(old, new, 1)), out=tmp_path / "deep" / "inner" / "o", record=True)
    assert CALLED == [] and not list(tmp_path.rglob("*ESCAPED*")) and not (tmp_path / "deep" / "inner" / "o").exists()


def test_a_state_that_is_damaged_is_named(tmp_path):
    source, out = write(tmp_path), tmp_path / "o"
    recipe.run(source, out=out)
    state = out / "dough-rich-0.json"
    good = json.loads(state.read_text())
    for key, value in (("minutes", "x"), ("minutes", -1), ("result", 3), ("digest", None)):
        state.write_text(json.dumps({**good, key: value}))
        with pytest.raises(RecipeError, match=rf"dough-rich-0\.json: {key} should be .*remove it"):
            recipe.run(source, out=out)
    state.write_text("[" * 100_000)
    with pytest.raises(RecipeError, match=r"dough-rich-0\.json"):
        recipe.run(source, out=out)


def test_a_figure_that_is_no_number_is_named(tmp_path):
    source = write(tmp_path, GOOD.replace('key = "weight"', 'key = "inner"', 1))
    with pytest.raises(RecipeError, match=r"its figure inner is no number, but {'x': 0.5}"):
        recipe.run(source, out=tmp_path / "o")
    text = GOOD.replace("@dough:weight~10%", "@dough:inner~10%")
    with pytest.raises(RecipeError, match=r"@dough:inner~10%: no number"):
        recipe.run(write(tmp_path, text), out=tmp_path / "p")


def test_a_forward_reference_is_a_mistake(tmp_path):
    text = GOOD.replace('source = "{flour} flour"', 'source = "@bite"')
    with pytest.raises(RecipeError, match="no such earlier stage"):
        recipe.run(write(tmp_path, text))


WRONG = [("amount", "NAME=VALUE"), ("amuont=3", "'amount'"), ("amount=x y", "TOML")]


@pytest.mark.parametrize(("override", "message"), WRONG)
def test_wrong_overrides(tmp_path, override, message):
    with pytest.raises(RecipeError, match=message):
        recipe.run(write(tmp_path), set=[override])


def test_no_such_recipe():
    with pytest.raises(RecipeError, match="no recipe cake"):
        recipe.run("cake")


def test_recorded_results_and_their_page(tmp_path):
    source, folder = write(tmp_path), tmp_path / "docs" / "results"
    recipe.run(source, out=tmp_path / "o", record=True, results_dir=folder, set=["flour=wheat"])
    record = json.loads((folder / "bread-smoke.json").read_text())
    assert record["seeds"] == [0, 1] and record["command"].endswith("--scale smoke --set flour=wheat --record")
    assert record["machine"]["cores"] >= 1 and record["notes"] == ["salted"]
    (tmp_path / "rye").write_text("")  # a file is told by its name
    again = {"out": tmp_path / "o2", "record": True, "results_dir": folder}
    recipe.run(source, **again, set=[f"flour={tmp_path / 'rye'}"])
    assert "--set flour=rye --record" in json.loads((folder / "bread-smoke.json").read_text())["command"]
    recipe.run(source, out=tmp_path / "o", record=True, results_dir=folder, set=["flour=wheat"])
    page = (tmp_path / "docs" / "results.md").read_text()
    assert page == results.render(results.load(folder))
    assert "| weight: plain | 30.50 ± 0.71 g (2) | 40 |" in page and "| Crumb | measured | published |" in page
    assert results.results(folder, check=True)["results"] == 1
    (tmp_path / "docs" / "results.md").write_text(page + "x")
    with pytest.raises(SettingsError, match="phosphene results"):
        results.results(folder, check=True)


def test_figures_not_measured_are_named(tmp_path):
    source = write(tmp_path)
    done = recipe.run(source, out=tmp_path / "o", only=["dough"])
    assert done["missing"] == []
    (tmp_path / "o" / "dough-rich-0.json").unlink()
    (tmp_path / "o" / "dough-rich-1.json").unlink()
    found, missing = results.figures(results.JobStates(stages.read(source, "smoke"), tmp_path / "o"))
    assert missing == ["weight: rich", "inside of rich"] and [f["label"] for f in found] == ["weight: plain"]


def test_a_damaged_recorded_result_is_named(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(SettingsError, match=r"x\.json lacks result"):
        results.load(tmp_path)
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(SettingsError, match="not a recorded result"):
        results.load(tmp_path)
    record = {"result": "a", "scale": "cpu", "title": "t", "command": "c", "seeds": [0], "machine": {}, "minutes": 1.0}
    line = {"label": "l", "mean": 1.0, "sd": None, "values": {}}
    bad = [("result", "../x"), ("scale", "a/b"), ("seeds", ["x"]), ("machine", 3), ("minutes", "x"), ("figures", {})]
    bad += [("figures", [{**line, "mean": "x"}]), ("figures", [{"label": "l"}]), ("figures", [{**line, "digits": 99}])]
    bad += [("pictures", [{"name": "../x", "x": "a", "y": "b"}]), ("title", None), ("missing", [3]), ("notes", 3)]
    for key, value in bad:
        (tmp_path / "x.json").write_text(json.dumps({"figures": [line], **record, key: value}))
        with pytest.raises(SettingsError, match=rf"x\.json: {key}"):
            results.load(tmp_path)


def test_the_page_of_this_checkout_is_what_its_results_say():
    folder = ROOT / "docs" / "results"
    assert (ROOT / "docs" / "results.md").read_text() == results.render(results.load(folder))


def until(question, seconds):
    """The first true answer, or the last one when the time is over."""
    end = time.monotonic() + seconds
    while not (answer := question()) and time.monotonic() < end:
        time.sleep(0.2)
    return answer


def children(parent):
    """Process ids of the processes that `parent` began."""
    return [int(text) for text in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def alive(number):
    try:
        return Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def needs_data(plan):
    """Whether a stage of this scale reads the folder of real data."""
    return any("PHOSPHENE_DATA" in text for job in plan.jobs for v in job.values.values() for text in stages.strings(v))


def weights_file(folder):
    """A checkpoint of MobileNetV2, with random weights in place of trained ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(models.build("mobilenetv2", 1000, 3).state_dict(), folder / "mobilenetv2.pth")
    return folder / "mobilenetv2.pth"


LARGEST = {"dfnas-spos-imagenet": 330e6, "dfnas-proxyless-imagenet": 470e6}


def is_of_imagenet(folder, largest):
    """What these recipes make at smoke scale is of ImageNet's sizes, and the network keeps its bound."""
    assert tuple(ImageDataset.open(folder / "made-0").card.shape) == (3, 256, 256)
    with Image.open(folder / "made-0" / "contact.png") as sheet:
        assert sheet.width > 8 * 60 and sheet.height > 60
    found = Architecture.load(folder / "search-0" / "arch.json")
    assert found.space["shape"] == [3, 224, 224] and found.space["classes"] == 1000
    assert costs.measure(spaces.space(found.space), found.choices)[1] <= largest
    if (folder / "search-0" / "evolution.json").exists():
        archive = json.loads((folder / "search-0" / "evolution.json").read_text())
        assert {entry["step"] for entry in archive} == {0, 1}


class TestShipped:
    """The recipes of this checkout, against the real commands."""

    @pytest.fixture(autouse=True)
    def real_commands(self, fake_commands, monkeypatch):
        monkeypatch.undo()
        monkeypatch.chdir(ROOT)
        monkeypatch.setenv("PHOSPHENE_DATA", "data")

    @pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda p: p.stem)
    @pytest.mark.parametrize("scale", stages.SCALES)
    def test_is_right_at_every_scale_it_has(self, path, scale):
        try:
            plan = stages.read(str(path), scale)
        except RecipeError as error:
            if f"--scale {scale} is not in" not in str(error):
                raise
            pytest.skip(f"{path.stem} has no scale {scale}")
        assert plan.core_minutes > 0 and plan.jobs and plan.figures
        assert len(recipe.in_order(plan, None)) == len(plan.jobs)

    @pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda p: p.stem)
    def test_runs_at_smoke_scale(self, path, tmp_path, monkeypatch):
        monkeypatch.setenv("PHOSPHENE_DATA", DATA or "none")
        plan = stages.read(str(path), "smoke")
        if DATA is None and needs_data(plan):
            pytest.skip("PHOSPHENE_DATA is not set")
        pixels = np.random.default_rng(0).integers(0, 256, (150, 32, 32, 3), dtype=np.uint8)
        labels = np.arange(150, dtype=np.uint8) % 10
        halves = {"x_train": pixels[50:], "y_train": labels[50:], "x_test": pixels[:50], "y_test": labels[:50]}
        np.savez(tmp_path / "cifar10.npz", **halves)
        given = [f"cifar10={tmp_path / 'cifar10.npz'}"] if "cifar10" in plan.values else []
        if path.stem == "dfnas-spos-imagenet":  # as its header says for trained weights; the other one as it comes
            given = ["teacher=mobilenetv2", "asked=mobilenetv2", f"checkpoint={weights_file(tmp_path)}"]
        done = recipe.run(str(path), out=tmp_path / "o", set=given, record=True, results_dir=tmp_path / "results")
        assert done["figures"] and done["missing"] == []
        assert str(tmp_path) not in (tmp_path / "results.md").read_text(), "a result names a folder of this machine"
        again = recipe.run(str(path), out=tmp_path / "o", set=given)
        assert again["figures"] == done["figures"]
        if path.stem in LARGEST:
            is_of_imagenet(tmp_path / "o", LARGEST[path.stem])

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_workers_end_with_their_recipe_and_leave_their_work(self, tmp_path, number):
        """A worker that went on alone would write into the folder beside the next run of the same command."""
        script = tmp_path / "script.py"
        script.write_text(LONG.replace("FOLDER", str(tmp_path / "o")))
        process = subprocess.Popen([sys.executable, str(script)], stderr=subprocess.PIPE, start_new_session=True)
        busy = until(lambda: [p for p in (tmp_path / "o").glob("*/metrics.jsonl") if p.stat().st_size], 120)
        assert busy, process.stderr.read() if process.poll() is not None else "nothing was logged"
        workers = children(process.pid)
        assert workers
        os.kill(process.pid, number)
        process.wait(60)
        assert until(lambda: not any(alive(worker) for worker in workers), 60), "a worker outlived its recipe"

    def test_a_killed_recipe_goes_on_to_the_same_files(self, tmp_path, monkeypatch):
        """SIGKILL in the middle of a stage; then the same command: the same figures and weights, bit for bit."""
        whole = recipe.run("digits", out=tmp_path / "whole")
        code = KILLED.replace("FOLDER", str(tmp_path / "killed"))
        environment = {**os.environ, "PHOSPHENE_CHECKPOINT_SECONDS": "0"}
        killed = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=200, env=environment)
        assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
        assert recipe.run("digits", out=tmp_path / "killed")["figures"] == whole["figures"]
        for path in sorted((tmp_path / "whole").rglob("weights.safetensors")):
            other = tmp_path / "killed" / path.relative_to(tmp_path / "whole")
            assert other.read_bytes() == path.read_bytes(), path
