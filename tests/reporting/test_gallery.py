"""Contact sheets and comparisons: figures in numbers against a plain count, drawings by their pixels."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import phosphene
from phosphene.data.dataset import ImageDataset
from phosphene.drawing.contact_sheet import GAP, MARGIN, TILE, spread, visible
from phosphene.errors import DatasetError, SettingsError, StorageError
from phosphene.reporting.dataset_compare import compare
from phosphene.reporting.dataset_show import contact_rows, show
from phosphene.teachers.teacher import Teacher

NAMES = ["red", "green", "blue"]


def coloured(n: int = 30, sharpness: float = 4.0, name: str = "colours", soft: bool = True) -> ImageDataset:
    """Class k is the pure colour k."""
    labels = np.arange(n) % 3
    images = np.zeros((n, 3, 8, 8), np.uint8)
    images[np.arange(n), labels] = 255
    targets = {"logits": sharpness * np.eye(3)[labels]} if soft else {"labels": labels}
    return ImageDataset.from_arrays(images, class_names=NAMES, name=name, **targets)


def test_show_says_what_is_there(tmp_path: Path) -> None:
    shown = show(coloured(31), out=tmp_path / "a" / "sheet.png")
    p = np.exp([4, 0, 0]) / np.exp([4, 0, 0]).sum()
    assert abs(shown["entropy"] + float((p * np.log(p)).sum())) < 2e-3
    assert shown["counts"] == {"red": 11, "green": 10, "blue": 10}
    assert shown["images"] == 31 and shown["mean"][0] == pytest.approx(11 / 31, abs=1e-3)


def test_the_sheet_has_classes_as_rows(tmp_path: Path) -> None:
    show(coloured(), out=tmp_path / "s.png", columns=4)
    pixels = np.asarray(Image.open(tmp_path / "s.png"))
    left = pixels.shape[1] - MARGIN - 4 * TILE - 3 * GAP
    height = (pixels.shape[0] - 2 * MARGIN + 10) // 3
    for k in range(3):
        for c in range(4):
            middle = pixels[MARGIN + k * height + TILE // 2, left + c * (TILE + GAP) + TILE // 2]
            assert middle.tolist() == [255 * (k == j) for j in range(3)]


def test_three_likeliest_under_each_image_only_for_soft_labels() -> None:
    (name, tiles), *_ = contact_rows(coloured(), 2)
    assert name == "red" and [s[0] for s in tiles[0].shares] == NAMES and tiles[0].shares[0][1] > 0.9
    assert all(not tile.shares for _, tiles in contact_rows(coloured(soft=False), 2) for tile in tiles)


def test_rows_per_class_and_empty_classes(tmp_path: Path) -> None:
    rows = contact_rows(coloured(30), 4, rows_per_class=2)
    assert [name for name, _ in rows] == ["red", "", "green", "", "blue", ""]
    assert sum(len(tiles) for _, tiles in rows) == 24
    lonely = coloured(30).subset([0, 3, 6])
    shown = show(lonely, out=tmp_path / "s.png")
    assert shown["counts"] == {"red": 3, "green": 0, "blue": 0} and (tmp_path / "s.png").exists()


def test_a_set_on_disk_gets_its_sheet_beside_it(tmp_path: Path) -> None:
    coloured().save(tmp_path / "d")
    assert show(str(tmp_path / "d"))["sheet"] == str(tmp_path / "d" / "contact.png")
    assert show(coloured())["sheet"] is None
    with pytest.raises(SettingsError, match=r"--columns must be at least 1 \(got 0\)"):
        show(coloured(), columns=0)


def test_many_classes_are_counted_in_short_and_drawn_in_part(tmp_path: Path) -> None:
    images = np.zeros((200, 1, 4, 6), np.uint8)
    data = ImageDataset.from_arrays(images, labels=np.arange(200) % 99, classes=100)
    shown = show(data, out=tmp_path / "s.png", most_classes=5)
    assert shown["counts"] == {"fewest": 0, "most": 3, "empty classes": 1}
    assert spread(100, 5) == [0, 25, 50, 74, 99] and spread(3, 5) == [0, 1, 2]


def test_of_very_many_classes_those_that_have_images_are_drawn() -> None:
    labels = np.array([7, 7, 501, 501, 501, 998])
    data = ImageDataset.from_arrays(np.zeros((6, 1, 4, 4), np.uint8), labels=labels, classes=1000)
    assert [(name, len(tiles)) for name, tiles in contact_rows(data, 2)] == [("7", 2), ("501", 2), ("998", 1)]
    assert [name for name, _ in contact_rows(data, 2, most=2)] == ["7", "998"]


def test_findings_have_an_entropy_and_counts(tmp_path: Path) -> None:
    findings = np.array([[1, 0, np.nan], [0.5, np.nan, 1]])
    data = ImageDataset.from_arrays(np.zeros((2, 1, 4, 4), np.uint8), labels=findings, task="multi", class_names=NAMES)
    shown = show(data, out=tmp_path / "s.png")
    assert shown["counts"] == {"red": 1, "green": 0, "blue": 1}
    assert shown["entropy"] == pytest.approx(np.log(2) / 4, abs=1e-4)


def test_an_image_stands_in_the_row_of_each_finding_that_it_has() -> None:
    findings = np.array([[1, 1, np.nan], [0, 1, np.nan], [0, np.nan, 0]])
    pixels = np.arange(3, dtype=np.uint8).repeat(16).reshape(3, 1, 4, 4)
    data = ImageDataset.from_arrays(pixels, labels=findings, task="multi", class_names=NAMES)
    rows = [[int(tile.pixels.max()) for tile in tiles] for _, tiles in contact_rows(data, 5)]
    assert rows == [[0], [0, 1], []]


def test_noise_is_shown_around_its_mean() -> None:
    noise = np.random.default_rng(0).normal(size=(50, 1, 8, 8)).astype(np.float32)
    seen = visible(noise, {"mean": [0.0], "std": [1.0]})
    assert abs(float(seen.mean()) - 127.5) < 2 and seen.std() == pytest.approx(255 / 5, rel=0.05)
    unit = np.array([[[[0.0, 0.5, 1.0]]]], np.float32)
    assert visible(unit, {}).flatten().tolist() == [0, 128, 255]


def test_compare_draws_all_three_figures(tmp_path: Path) -> None:
    sets = [coloured(name="sharp"), coloured(name="calibrated", sharpness=1.0), coloured(name="real", soft=False)]
    result = compare(sets, out=tmp_path / "c", per_class=2)
    for figure in ("images", "distributions", "samples"):
        with Image.open(result[figure]) as image:
            assert min(image.size) > 200
    figures = result["sets"]
    assert figures["sharp"]["entropy"] < figures["calibrated"]["entropy"] and figures["real"]["entropy"] is None
    assert figures["calibrated"]["confidence"] == pytest.approx(np.e / (np.e + 2), abs=1e-3)


ODD = ["[red]", "$a_$ b$", "_x\nb", "\x1b[31m", "日本\u202e", "\udcff", "", "<b>", "x" * 10_000]


@pytest.mark.parametrize("names", [ODD[k : k + 3] for k in range(0, len(ODD), 3)])
def test_any_name_is_drawn(tmp_path: Path, names: list[str], recwarn: pytest.WarningsRecorder) -> None:
    """A dollar began a formula that failed; a line break had no length."""
    sets = [coloured(name=name) for name in names]
    for one in sets:
        one.card.class_names = names
    for path in [v for k, v in compare(sets, out=tmp_path / "c").items() if k != "sets"]:
        with Image.open(path) as image:
            assert min(image.size) > 200
    assert show(sets[0], out=tmp_path / "contact.png")["counts"]
    assert not [one for one in recwarn if "Glyph" in str(one.message)]


@pytest.mark.parametrize("name", ["x.xyz", "x", "x.pdf", "x.png.txt", "x\n.y"])
def test_a_sheet_of_another_suffix_is_refused_at_once(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match=r"--out .* should end in \.png, \.jpg") as error:
        show("no data set", out=tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_sheet_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be written"):
        show(coloured(), out=tmp_path / "file" / "x.png")
    with pytest.raises(StorageError, match="cannot be written"):
        compare([coloured(), coloured()], out=tmp_path / "file" / "x")


class Colour(torch.nn.Module):
    """Scores a colour by its mean."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[2:] == (4, 4), "the teacher sees the centre of the canvas"
        return 3 * x.mean((2, 3))


def test_compare_asks_the_teacher(tmp_path: Path) -> None:
    teacher = Teacher(Colour(), (0.0,) * 3, (1.0,) * 3, (3, 4, 4), 3, None, "colour", "f")
    result = compare([coloured(soft=False)], out=tmp_path / "c", teacher=teacher, classes="blue,1")
    assert result["sets"]["colours"]["confidence"] == pytest.approx(np.exp(3) / (np.exp(3) + 2), abs=1e-3)


def test_compare_without_any_distribution_still_draws_the_images(tmp_path: Path) -> None:
    result = compare([coloured(soft=False)] * 2, out=tmp_path / "c")
    assert Path(result["images"]).exists() and result["distributions"] is None
    assert list(result["sets"]) == ["colours (1)", "colours (2)"]


def test_what_does_not_compare(tmp_path: Path) -> None:
    other = ImageDataset.from_arrays(np.zeros((4, 3, 8, 8), np.uint8), labels=[0, 1, 2, 3])
    with pytest.raises(DatasetError, match="same single-label classes"):
        compare([coloured(), other], out=tmp_path)
    with pytest.raises(DatasetError, match="--classes pink"):
        compare([coloured()], out=tmp_path, classes="red,pink")


def test_drawing_does_not_import_torch() -> None:
    source = str(Path(phosphene.__file__).parents[1])
    code = f"import sys; sys.path.insert(0, {source!r}); import phosphene.reporting.dataset_show\n"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
