"""CheXpert's layout, written small by the test: policies, views, parts, odd files; and training and AUC on it."""

from __future__ import annotations

import csv
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from phosphene import cli, evaluate, train
from phosphene.data.dataset import ImageDataset
from phosphene.data.formats import chexpert
from phosphene.data.import_ import import_
from phosphene.errors import DatasetError

CPU = {"device": "cpu", "precision": "fp32"}
NAN = float("nan")
HEADER = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *chexpert.OBSERVATIONS]
# Atelectasis, Cardiomegaly, Consolidation, Edema, Pleural Effusion
TRAIN = [
    ("train/patient00001/study1/view1_frontal.jpg", ["1.0", "", "-1.0", "0.0", ""]),
    ("train/patient00001/study1/view2_lateral.jpg", ["1.0", "", "-1.0", "0.0", ""]),
    ("train/patient00002/study1/view1_frontal.jpg", ["-1.0", "0.0", "1.0", "", "1.0"]),
    ("train/patient00003/study2/view1_frontal.jpg", ["0", "1", "", "-1", "1"]),
]
VALID = [
    ("valid/patient64541/study1/view1_frontal.jpg", ["1.0", "0.0", "0.0", "1.0", "0.0"]),
    ("valid/patient64542/study1/view1_frontal.jpg", ["0.0", "1.0", "0.0", "0.0", "1.0"]),
]


def line(name: str, path: str, codes: list[str]) -> list[str]:
    view = "Lateral" if "lateral" in path else "Frontal"
    by_finding = dict(zip(chexpert.COMPETITION, codes, strict=True))
    rest = [by_finding.get(finding, "1.0" if finding == "Support Devices" else "") for finding in chexpert.OBSERVATIONS]
    return [f"{name}/{path}", "Female", "61", view, "" if view == "Lateral" else "AP", *rest]


def picture(path: Path, shade: int, size: tuple[int, int]) -> None:
    """A grey X-ray whose left half is `shade`, the right one black; no two need be of one size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((size[1], size[0]), np.uint8)
    pixels[:, : size[0] // 2] = shade
    Image.fromarray(pixels).save(path, quality=95)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """CheXpert-v1.0-small with four training and two validation images."""
    name = "CheXpert-v1.0-small"
    root = tmp_path / name
    for part, lines in (("train", TRAIN), ("valid", VALID)):
        for i, (path, _) in enumerate(lines):
            picture(root / path, 60 + 40 * i, (39 + i, 32))
        with (root / f"{part}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([HEADER, *(line(name, *each) for each in lines)])
    return root


def rows(data: ImageDataset) -> np.ndarray:
    return data.targets(range(len(data))).numpy()


def same(found: np.ndarray, expected: list[list[float]]) -> bool:
    return np.array_equal(found, np.array(expected, np.float32), equal_nan=True)


# -- what is read ------------------------------------------------------------------------------------------------------


def test_the_competitions_findings_by_default(folder: Path, tmp_path: Path) -> None:
    data = import_(str(folder), split="train", out=tmp_path / "d")
    assert data.card.task == "multi" and tuple(data.card.class_names or ()) == chexpert.COMPETITION
    assert data.card.shape == (1, 320, 320) and data.card.name == "chexpert-v1.0-small-train"
    assert same(rows(data), [[1, 0, 1, 0, 0], [1, 0, 1, 0, 0], [1, 0, 1, 0, 1], [0, 1, 0, 1, 1]])
    about = {"uncertain": "ones", "blank": "zeros", "findings": "competition", "views": "all", "format": "chexpert"}
    assert about.items() <= data.card.recipe.items()
    shades = data.pixels(range(4))[:, 0, 160, 40].float().numpy()
    assert np.abs(shades - [60, 100, 140, 180]).max() < 4  # each line has its own picture


@pytest.mark.parametrize("blank", ["zeros", "ignore"])
@pytest.mark.parametrize("uncertain", ["ones", "zeros", "ignore"])
def test_every_policy(folder: Path, tmp_path: Path, uncertain: str, blank: str) -> None:
    flags = {"uncertain": uncertain, "blank": blank, "size": "8"}
    data = import_(str(folder), split="train", out=tmp_path / "d", **flags)  # type: ignore[arg-type]
    u, b = {"ones": 1, "zeros": 0, "ignore": NAN}[uncertain], {"zeros": 0, "ignore": NAN}[blank]
    assert same(rows(data), [[1, b, u, 0, b], [1, b, u, 0, b], [u, 0, 1, b, 1], [0, 1, b, u, 1]])
    assert data.card.recipe["uncertain"] == uncertain and data.card.recipe["blank"] == blank


def test_another_policy_is_another_data_set(folder: Path, tmp_path: Path) -> None:
    import_(str(folder), split="train", size="8", out=tmp_path / "d")
    again = import_(str(folder), split="train", size="8", out=tmp_path / "d")
    assert len(again) == 4
    with pytest.raises(DatasetError, match="another data set"):
        import_(str(folder), split="train", size="8", uncertain="zeros", out=tmp_path / "d")


def test_another_picture_of_equal_size_is_another_data_set(folder: Path, tmp_path: Path) -> None:
    import_(str(folder), split="train", size="8", out=tmp_path / "d")
    content = bytearray((folder / TRAIN[1][0]).read_bytes())
    content[-3] ^= 1
    (folder / TRAIN[1][0]).write_bytes(content)
    with pytest.raises(DatasetError, match="another data set"):
        import_(str(folder), split="train", size="8", out=tmp_path / "d")


@pytest.mark.parametrize(("views", "count"), [("frontal", 3), ("lateral", 1), ("all", 4)])
@pytest.mark.parametrize("column", [True, False])
def test_views_by_column_or_by_name(folder: Path, tmp_path: Path, views: str, count: int, column: bool) -> None:
    if not column:
        text = (folder / "train.csv").read_text()
        (folder / "train.csv").write_text(text.replace("Frontal/Lateral", "Side"))
    data = import_(str(folder), split="train", views=views, size="8", out=tmp_path / "d")  # type: ignore[arg-type]
    assert len(data) == count


def test_all_findings(folder: Path, tmp_path: Path) -> None:
    data = import_(str(folder), split="train", findings="all", size="16x8", channels=3, out=tmp_path / "d")
    assert tuple(data.card.class_names or ()) == chexpert.OBSERVATIONS and data.card.shape == (3, 16, 8)
    table = rows(data)
    assert (table[:, -1] == 1).all() and (table[:, 0] == 0).all()
    five = [chexpert.OBSERVATIONS.index(name) for name in chexpert.COMPETITION]
    assert same(table[:, five], [[1, 0, 1, 0, 0], [1, 0, 1, 0, 0], [1, 0, 1, 0, 1], [0, 1, 0, 1, 1]])


def test_the_longer_side_is_cropped_at_the_centre(folder: Path, tmp_path: Path) -> None:
    """Left half bright, right half black: the border stays in the middle of a square picture."""
    picture(folder / TRAIN[0][0], 200, (64, 32))
    data = import_(str(folder), split="train", size="32", out=tmp_path / "d")
    pixels = data.pixels([0])[0, 0].numpy()
    assert (pixels[:, :14] > 180).all() and (pixels[:, 18:] < 20).all()


def test_a_test_part_without_the_patients_columns(folder: Path, tmp_path: Path) -> None:
    picture(folder / "test/patient64741/study1/view1_frontal.jpg", 90, (40, 32))
    codes = ["1.0" if k % 2 else "0.0" for k in range(14)]
    text = (
        ",".join(["Path", *chexpert.OBSERVATIONS])
        + "\n"
        + ",".join(["test/patient64741/study1/view1_frontal.jpg", *codes])
    )
    (folder / "test_labels.csv").write_text(text + "\n")
    data = import_(str(folder), split="test", findings="all", size="8", out=tmp_path / "d")
    assert same(rows(data), [[k % 2 for k in range(14)]])


def test_the_folder_may_have_another_name(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "x-rays"
    shutil.move(folder, moved)
    data = import_(str(moved), split="validation", size="8", out=tmp_path / "d")
    assert same(rows(data), [[1, 0, 0, 1, 0], [0, 1, 0, 0, 1]])


def test_a_folder_inside_a_folder_of_its_name(folder: Path, tmp_path: Path) -> None:
    """The CSVs above the folder of pictures."""
    above = tmp_path / "above"
    above.mkdir()
    shutil.copy(folder / "valid.csv", above)
    shutil.move(folder, above / folder.name)
    assert len(import_(str(above), size="8", out=tmp_path / "d")) == 2  # one part: no --split is needed


# -- what is wrong -----------------------------------------------------------------------------------------------------


def change(folder: Path, old: str, new: str) -> None:
    text = (folder / "train.csv").read_text()
    assert old in text
    (folder / "train.csv").write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Atelectasis", "Atelectase", r"train\.csv lacks the columns Atelectasis"),
        ("Path,", "File,", r"train\.csv lacks the columns Path"),
        (
            "1.0,,-1.0",
            "1.0,,maybe",
            r"train\.csv, line 4: Atelectasis is 'maybe'; it may be 1\.0, 0\.0, -1\.0 or blank",
        ),
        ("1.0,,-1.0", "1.0,,2.0", r"train\.csv, line 4: Atelectasis is '2\.0'"),
        ("Female,61,Lateral", "61,Lateral", r"train\.csv, line 3: 18 cells for 19 columns"),
        ("Female,61,Lateral", "Female,x,61,Lateral", r"train\.csv, line 3: 20 cells for 19 columns"),
        ("patient00002", "patient00009", r"train\.csv, line 4: there is no picture .*patient00009"),
        ("Female,61,Lateral", 'Female,61,"Lateral', r"train\.csv is not a readable CSV"),
    ],
)
def test_odd_csvs_are_named_with_their_line(folder: Path, tmp_path: Path, old: str, new: str, message: str) -> None:
    change(folder, old, new)
    with pytest.raises(DatasetError, match=message):
        import_(str(folder), split="train", format="chexpert", size="8", out=tmp_path / "d")
    assert not (tmp_path / "d").exists()


def test_a_view_that_nothing_says(folder: Path, tmp_path: Path) -> None:
    change(folder, "61,Lateral", "61,Oblique")
    with pytest.raises(DatasetError, match="line 3: neither the column Frontal/Lateral nor"):
        import_(str(folder), split="train", views="frontal", out=tmp_path / "d")


def test_damaged_pictures_and_binary_csvs(folder: Path, tmp_path: Path) -> None:
    (folder / TRAIN[2][0]).write_bytes(b"no picture")
    with pytest.raises(DatasetError, match=r"patient00002.* is not a readable image"):
        import_(str(folder), split="train", size="8", out=tmp_path / "d")
    (folder / "train.csv").write_bytes(b"\xff\xfe\x00Path")
    with pytest.raises(DatasetError, match="not a readable CSV"):
        import_(str(folder), split="train", size="8", format="chexpert", out=tmp_path / "e")


def test_parts_and_flags(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"several parts; say which with --split train\|validation"):
        import_(str(folder), out=tmp_path / "d")
    with pytest.raises(DatasetError, match=r"no test\.csv for --split test"):
        import_(str(folder), split="test", out=tmp_path / "d")
    with pytest.raises(DatasetError, match=r"none of train\.csv"):
        import_(str(folder / "train"), format="chexpert", out=tmp_path / "d")
    (tmp_path / "folders" / "a").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"--blank zeros is for CheXpert's layout, .* is read as folders"):
        import_(str(tmp_path / "folders"), blank="zeros", out=tmp_path / "d")
    change(folder, ",Lateral,", ",Frontal,")
    with pytest.raises(DatasetError, match="no lateral images; give --views all"):
        import_(str(folder), split="train", views="lateral", out=tmp_path / "d")


def test_other_csvs_are_not_taken_for_chexperts(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("Path,label\na.png,1\n")
    assert not chexpert.is_chexpert(tmp_path)


# -- and used ----------------------------------------------------------------------------------------------------------


def test_trained_and_evaluated(folder: Path, tmp_path: Path) -> None:
    """The published recipe on the small layout; the validation part has both kinds of three findings only."""
    data = import_(str(folder), split="train", uncertain="ignore", blank="ignore", size="32", out=tmp_path / "train")
    test = import_(str(folder), split="validation", size="32", out=tmp_path / "valid")
    found = train("cifar-resnet8", data=data, recipe="chexpert", batch=2, out=tmp_path / "net", **CPU)
    assert found.info["class_names"] == list(chexpert.COMPETITION) and found.result["steps"] == 3 * 2
    result = evaluate(tmp_path / "net", data=test, out=tmp_path / "e", **CPU)
    assert result["no_auc"] == ["Consolidation"] and result["per_finding"]["Consolidation"]["auc"] is None
    each = [result["per_finding"][name]["auc"] for name in chexpert.COMPETITION if name != "Consolidation"]
    assert all(auc in (0.0, 0.5, 1.0) for auc in each) and result["auc"] == pytest.approx(np.mean(each))


def test_every_command_of_the_page_is_typed_right() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "chexpert.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", page, re.S)
    lines = [line.strip() for text in blocks for line in text.splitlines() if line.strip().startswith("phosphene ")]
    assert len(lines) >= 10
    for line in lines:
        words = shlex.split(line.replace("$seed", "0"))
        name = " ".join(words[1:3]) if " ".join(words[1:3]) in cli.COMMANDS else words[1]
        cli.command(name).make_context(name, words[1 + len(name.split()) :])
