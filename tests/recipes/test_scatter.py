"""Figures against figures: which points there are, and that names can be read."""

from itertools import combinations

import pytest
from matplotlib.figure import Figure
from PIL import Image

from phosphene.drawing import figure_style
from phosphene.recipes.results import figure


def test_points_are_labels_that_both_groups_have_measured():
    figures = [
        figure("one", {"0": 1.0, "1": 3.0}, group="x"),
        figure("one", {"0": 10.0}, group="y"),
        figure("two", {"0": 5.0}, group="y"),
        figure("three", {"0": None}, group="x"),
        figure("three", {"0": 5.0}, group="y"),
    ]
    assert figure_style.points(figures, "x", "y") == [figure_style.Point("one", 2.0, 10.0, 2.0**0.5, 0.0)]


def test_no_name_hides_another_or_a_point():
    found = [
        figure_style.Point(f"a method of some length, {k}", x, 0.95) for k, x in enumerate((0.6, 1.4, 2.6, 5.4, 5.4))
    ]
    axis = Figure(figsize=(7.2, 4.4)).subplots()
    axis.set(xlim=(0, 7), ylim=(0.5, 1))
    boxes = figure_style.write_names(axis, found)
    spots = axis.transData.transform([(one.x, one.y) for one in found])
    assert len(boxes) == 5 and not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert not any(box.contains(*spot) for box in boxes for spot in spots)


def test_the_axis_begins_where_it_shall_or_lower(tmp_path, monkeypatch):
    limits = []
    monkeypatch.setattr(figure_style, "write_names", lambda axis, shown: limits.append(axis.get_ylim()[0]))
    points = [figure_style.Point("one", 1.0, 0.9), figure_style.Point("two", 2.0, 0.7)]
    for begin in (0.0, 0.5, 0.8):
        figure_style.draw_scatter(tmp_path / "p.png", points, "ms", "AUC", begin)
    assert limits == [0.0, 0.5, 0.7]


@pytest.mark.parametrize("values", [[(1.0, 90.0)], [(0.0, 0.0), (0.0, 0.0)], [(5.0, 10.0 + k) for k in range(8)]])
def test_is_drawn_whatever_the_values(tmp_path, values):
    found = [figure_style.Point(f"method {k}", x, y, 0.0, 1.0) for k, (x, y) in enumerate(values)]
    figure_style.draw_scatter(tmp_path / "p.png", found, "minutes", "accuracy")
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.width > 900 and len(set(picture.convert("RGB").getdata())) > 10


def test_names_are_no_formulas(tmp_path):
    points = [
        figure_style.Point(name, k + 1.0, k + 1.0) for k, name in enumerate(("$a_$ b$", "_x", "a\nb", "\x1b[31m"))
    ]
    figure_style.draw_scatter(tmp_path / "x.png", points, "$x_$ of$", "y $ $")
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == (1008, 616)


def test_a_logarithmic_axis_keeps_its_powers(tmp_path):
    drawn, axes = figure_style.figure(1, 1, (3, 3))
    axes[0, 0].set(xscale="log", xlim=(1, 1e6), title="$")
    figure_style.save_picture(drawn, tmp_path / "x.png")
    figure_style.literal(drawn)
    (label, *_) = [one for one in axes[0, 0].get_xticklabels() if "mathdefault" in one.get_text()]
    assert label.get_parse_math()
