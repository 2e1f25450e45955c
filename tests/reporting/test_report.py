"""The report: everything of a run is on the page, nothing outside is asked for, and damage is named."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import phosphene
from phosphene.data.dataset import ImageDataset
from phosphene.errors import RunError, SettingsError
from phosphene.reporting.html import report

CONFIG = {
    "stage": "train",
    "settings": {"lr": 0.025, "augment": {"flip": True, "cutout": None}},
    "inputs": ["d0783b9c4b9a4b20"],
    "seed": 7,
    "precision": "fp32",
    "identity": "3d86",
    "versions": {"phosphene": "0.1.0", "torch": "2.13.0"},
    "git": "cd055c4c60250d0f1af9782d35c5bed6eafcb0ac",
}


def run(folder: Path, stage: str = "train", result: dict[str, object] | None = None, **config: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "stage": stage, **config}))
    if result is not None:
        (folder / "result.json").write_text(json.dumps(result))
        (folder / "timing.json").write_text(json.dumps({"seconds": 90.0}))
    return folder


def metrics(folder: Path, count: int = 1000, phase: str = "train") -> None:
    lines = [{"phase": phase, "step": i, "loss": 5 / (i + 1), "genotype": "x", "lr": 0.1} for i in range(count)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def soft_set(folder: Path, classes: int = 3) -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, 3, 8, 8), dtype=np.uint8)
    logits = 3 * np.eye(classes)[np.arange(30) % classes]
    ImageDataset.from_arrays(images, logits=logits, class_names=["ant", "bee", "cow<>"]).save(folder)


class Page(HTMLParser):
    """Every attribute that could fetch something, and whether tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"


def page(*folders: Path, out: Path) -> str:
    report([str(folder) for folder in folders], out=out)
    text = out.read_text()
    parsed = Page(text)
    assert parsed.open == []
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in parsed.links), "nothing is fetched"
    assert "@import" not in text and "url(http" not in text
    return text


def test_everything_of_a_run_is_on_the_page(tmp_path: Path) -> None:
    folder = run(tmp_path / "student", result={"loss": 1.25, "params": 1234567, "top1": 91.73})
    metrics(folder)
    text = page(folder, out=tmp_path / "r.html")
    for said in (
        "student",
        "train",
        "seed 7",
        "1.5 minutes",
        "torch 2.13.0",
        "cd055c4c6",
        "91.73",
        "1\u2009234\u2009567",
    ):
        assert said in text
    assert "augment.flip" in text and "augment.cutout" not in text and "d0783b9c4b9a4b20" in text
    assert len(re.findall("<svg", text)) == 2 and "learning rate" in text and "0.005 at the end" in text


def test_pictures_are_embedded_whole(tmp_path: Path) -> None:
    folder = run(tmp_path / "found", "search", {"params": 5})
    Image.new("RGB", (5, 7), (1, 2, 3)).save(folder / "cells.png")
    Image.new("RGB", (9, 3)).save(folder / "my_own_figure.png")
    text = page(folder, out=tmp_path / "r.html")
    found = [Image.open(io.BytesIO(base64.b64decode(d))).size for d in re.findall('base64,([^"]+)', text)]
    assert found == [(5, 7), (9, 3)]
    assert "The cells: normal and reduction" in text and "my own figure." in text


def test_a_data_set_gets_its_contact_sheet(tmp_path: Path) -> None:
    soft_set(tmp_path / "d")
    text = page(tmp_path / "d", out=tmp_path / "r.html")
    assert "30 images of 3×8×8, 3 classes" in text and "three likeliest" in text
    (sheet,) = re.findall('base64,([^"]+)', text)
    assert Image.open(io.BytesIO(base64.b64decode(sheet))).width > 8 * 96


def test_a_sheet_shows_an_image_in_the_row_of_each_finding(tmp_path: Path) -> None:
    black, findings = np.zeros((1, 1, 8, 8), np.uint8), np.array([[1, 1, np.nan]], np.float32)
    ImageDataset.from_arrays(black, labels=findings, task="multi", class_names=["a", "b", "c"]).save(tmp_path / "d")
    (sheet,) = re.findall('base64,([^"]+)', page(tmp_path / "d", out=tmp_path / "r.html"))
    grey = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet))).convert("L"))
    assert 2 * 96**2 <= (grey == 0).sum() < 3 * 96**2


def test_evaluation_tables_and_confusion(tmp_path: Path) -> None:
    result = {"top1": 50.0, "per_class": {"ant": 75.0, "bee": 25.0}, "confusion": [[3, 1], [3, 1]]}
    text = page(run(tmp_path / "e", "evaluate", result), out=tmp_path / "r.html")
    assert "width:75.0%" in text and "width:25.0%" in text
    assert re.search(r"0\.525\)\">3</td>", text) and re.search(r"0\.175\)\">1</td>", text)
    large = {"confusion": np.eye(100).tolist()}
    assert 'class="confusion"' not in page(run(tmp_path / "f", "evaluate", large), out=tmp_path / "s.html")


def test_tables_in_results(tmp_path: Path) -> None:
    result = {"table": [{"network": "found", "top1": 90.1}, {"network": "random", "top1": 85.0}], "flags": {"a": True}}
    text = page(run(tmp_path / "demo", "demo", result), out=tmp_path / "r.html")
    assert '<td class="number">90.1</td>' in text and "random" in text and "yes" in text


def test_points_of_a_column_stand_in_line(tmp_path: Path) -> None:
    folders = [run(tmp_path / name, "evaluate", {"top1": value}) for name, value in (("a", 92.0), ("b", 5.125))]
    text = page(*folders, out=tmp_path / "r.html")
    assert ">92.000</td>" in text and ">5.125</td>" in text


def test_chains_are_drawn_together(tmp_path: Path) -> None:
    folder = run(tmp_path / "made", "synthesize", {"images": 30})
    lines = [{"phase": f"chain-{c}", "step": s, "loss": 1.0 + c + s} for c in range(50) for s in range(3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = page(folder, out=tmp_path / "r.html")
    assert len(re.findall("<svg", text)) == 1 and "50 times, chain; a mean of 27.5 at the end" in text


def test_unfinished_runs_say_so_even_with_a_torn_line(tmp_path: Path) -> None:
    folder = run(tmp_path / "going")
    metrics(folder, 5)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"phase": "tr')
    assert "This run is not finished" in page(folder, out=tmp_path / "r.html")


def test_a_folder_of_runs_comes_in_the_order_of_the_work(tmp_path: Path) -> None:
    run(tmp_path / "all" / "a", "evaluate", {"top1": 1.0})
    run(tmp_path / "all" / "b", "train", {"loss": 1.0})
    run(tmp_path / "all" / "grid" / "c", "search", {"params": 1})
    soft_set(tmp_path / "all" / "z")
    text = page(tmp_path / "all", out=tmp_path / "r.html")
    assert re.findall("<h2>(.*)</h2>", text) == ["z", "c", "b", "a"]


def test_names_that_are_alike_are_told_apart(tmp_path: Path) -> None:
    one, two = run(tmp_path / "x" / "s", result={}), run(tmp_path / "y" / "s", result={})
    assert re.findall("<h2>(.*)</h2>", page(one, two, out=tmp_path / "r.html")) == ["x/s", "y/s"]


def test_a_study_shows_its_figures_and_what_it_is_made_of(tmp_path: Path) -> None:
    result = {"collapse": {"real": {"skips": 6.0, "first_4": [57, None]}, "noise": {"skips": 2.5, "first_4": [None]}}}
    folder = run(tmp_path / "dynamics", "study-collapse", result)
    (folder / "table.csv").write_text("data,epoch\nreal,1\nnoise,1\n")
    Image.new("RGB", (9, 3)).save(folder / "skips.png")
    run(folder / "searches" / "real-0", "search", {"params": 1})
    run(folder / "searches" / "noise-0", "search")
    text = page(folder, out=tmp_path / "r.html")
    assert re.findall("<h2>(.*)</h2>", text) == ["dynamics"] and "study collapse" in text
    for said in ("2 runs inside, 1 finished", "table.csv has 2 rows", "3.0 minutes", ">57, –</td>", ">2.5</td>"):
        assert said in text, said
    assert "Skip connections in the current genotype" in text
    together = page(folder, folder / "searches", out=tmp_path / "r.html")
    assert "3 runs, 3.0 minutes" in together, "minutes inside a study are counted once"


def test_many_runs_of_a_kind_are_folded(tmp_path: Path) -> None:
    for number in range(7):
        run(tmp_path / "set" / f"noise-{number}", "search", {"params": number, "algorithm": "sgas"})
    run(tmp_path / "set" / "student", "train", {"params": 1})
    text = page(tmp_path / "set", out=tmp_path / "r.html")
    assert text.count('<details class="whole">') == 7 and text.count(">sgas</td>") == 7
    student = text[text.index("<h2>student") :]
    assert '<details class="whole">' not in student


def test_wide_pictures_leave_the_column(tmp_path: Path) -> None:
    folder = run(tmp_path / "compared", "arch-compare", {"settings": {"cells": 20}})
    Image.new("RGB", (2400, 10)).save(folder / "genotypes.png")
    Image.new("RGB", (1200, 10)).save(folder / "other.png")
    text = page(folder, out=tmp_path / "r.html")
    assert re.findall('<figure class="picture ([a-z]*)">', text) == ["wide", ""]


def test_text_is_escaped(tmp_path: Path) -> None:
    folder = run(tmp_path / "s", result={"note": "<script>alert(1)</script>"}, settings={"<b>": "<i>"})
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps({"phase": "<u>", "step": i, "<s>loss": i}) + "\n" for i in range(3))
    )
    text = page(folder, out=tmp_path / "r.html")
    assert "<script" not in text and "<i>" not in text and "<u>" not in text and "<s>" not in text


def test_the_same_runs_give_the_same_page(tmp_path: Path) -> None:
    folder = run(tmp_path / "s", result={"loss": 1.0})
    metrics(folder)
    assert page(folder, out=tmp_path / "a.html") == page(folder, out=tmp_path / "b.html")


@pytest.mark.parametrize("file", ["config.json", "result.json", "timing.json", "card.json", "metrics.jsonl"])
@pytest.mark.parametrize("content", ["{", "[1]\n{}\n", "17\n{}"])
def test_damage_is_named(tmp_path: Path, file: str, content: str) -> None:
    folder = run(tmp_path / "s", result={"loss": 1.0})
    (folder / file).write_text(content + "\n\n" if file != "metrics.jsonl" else content + "\n{}\n")
    with pytest.raises(RunError, match=re.escape(str(folder / file))):
        report([str(folder)], out=tmp_path / "r.html")


NONSENSE = [
    ("config.json", {"stage": 3}, "stage should be a valid string"),
    ("config.json", {"stage": "train", "settings": []}, "settings should be"),
    ("config.json", {"stage": "train", "versions": 3}, "versions should be"),
    ("timing.json", {"seconds": "x"}, "seconds should be a valid number"),
    ("timing.json", {"seconds": -1}, "seconds should be greater"),
    ("card.json", {"count": "x"}, "count should be a valid integer"),
    ("card.json", {"classes": 10**9}, "classes should be less"),
    ("card.json", {"shape": "x"}, "shape should be a valid"),
    ("card.json", {"class_names": [3]}, "class_names"),
    ("card.json", {"statistics": 3}, "statistics should be"),
    ("result.json", {"confusion": "x"}, "cannot be shown"),
    ("result.json", {"confusion": [[1, 2], [3]]}, "cannot be shown"),
    ("metrics.jsonl", {"phase": 3}, "phase should be a valid string"),
    ("metrics.jsonl", {"step": "x"}, "step should be a valid integer"),
]


@pytest.mark.parametrize(
    ("file", "content", "says"), NONSENSE, ids=[f"{file}-{next(iter(c))}" for file, c, _ in NONSENSE]
)
def test_a_wrong_type_is_named(tmp_path: Path, file: str, content: dict[str, object], says: str) -> None:
    folder = run(tmp_path / "s", result={"loss": 1.0})
    (folder / file).write_text(json.dumps(content) + "\n")
    with pytest.raises(RunError, match=says) as error:
        report([str(folder)], out=tmp_path / "r.html")
    assert str(folder) in str(error.value) and "\n" not in str(error.value) and not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("key", ["[red]", "\x1b[31m", "a\nb", "$a$"])
def test_odd_figures_are_shown(tmp_path: Path, key: str) -> None:
    result = {key: key, "n": {key: {key: 1}}, "l": [{key: [1, key]}], "e": {}, "b": True, "big": 10**300, "m": [[1]]}
    page(run(tmp_path / "s", result=result, settings={key: [key]}), out=tmp_path / "r.html")


@pytest.mark.parametrize("name", ["r.xyz", "r", "r.htm.txt"])
def test_a_page_of_another_suffix_is_refused_at_once(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match=r"--out .* should end in \.html, \.htm"):
        report(["nowhere"], out=tmp_path / name)


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="nowhere is not a folder"):
        report([str(tmp_path / "nowhere")], out=tmp_path / "r.html")
    (tmp_path / "photos").mkdir()
    with pytest.raises(RunError, match="photos is no run folder"):
        report([str(tmp_path / "photos")], out=tmp_path / "r.html")
    (tmp_path / "photos" / "config.json").write_text('{"camera": 1}')
    with pytest.raises(RunError, match=r"photos.*names no stage"):
        report([str(tmp_path / "photos")], out=tmp_path / "r.html")


@pytest.mark.parametrize("file", ["images.npy", "logits.npy"])
def test_a_damaged_array_is_named(tmp_path: Path, file: str) -> None:
    """One bit of it by its checksum; nonsense where there is none."""
    soft_set(tmp_path / "d")
    array = tmp_path / "d" / file
    array.write_bytes(array.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(RunError, match=rf"{file} was changed since it was written"):
        report([str(tmp_path / "d")], out=tmp_path / "r.html")
    (tmp_path / "d" / "checksums.json").unlink()
    array.write_bytes(b"nothing")
    with pytest.raises(RunError, match=rf"{file} cannot be read"):
        report([str(tmp_path / "d")], out=tmp_path / "r.html")


def test_it_imports_no_torch(tmp_path: Path) -> None:
    soft_set(tmp_path / "d")
    metrics(run(tmp_path / "s", result={"loss": 1.0}))
    code = (
        f"import sys; sys.path.insert(0, {str(Path(phosphene.__file__).parents[1])!r}); from pathlib import Path; "
        "from phosphene.reporting.html import report; report(['d', 's'], out=Path('r.html')); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0
