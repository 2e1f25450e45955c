"""Figures against figures: which points there are, and that names can be read."""

import pytest
from PIL import Image

from phosphene import against
from phosphene.results import figure


def test_points_are_labels_that_both_groups_have_measured():
    figures = [
        figure("one", {"0": 1.0, "1": 3.0}, group="x"),
        figure("one", {"0": 10.0}, group="y"),
        figure("two", {"0": 5.0}, group="y"),
        figure("three", {"0": None}, group="x"),
        figure("three", {"0": 5.0}, group="y"),
    ]
    assert against.points(figures, "x", "y") == [against.Point("one", 2.0, 10.0, 2.0**0.5, 0.0)]


def test_names_of_equal_points_do_not_lie_on_each_other():
    heights = against._spread([5.0, 5.0, 1.0, 5.1], 1.0)
    assert heights == [5.0, 6.0, 1.0, 7.0]


@pytest.mark.parametrize("values", [[(1.0, 90.0)], [(0.0, 0.0), (0.0, 0.0)], [(5.0, 10.0 + k) for k in range(8)]])
def test_is_drawn_whatever_the_values(tmp_path, values):
    found = [against.Point(f"method {k}", x, y, 0.0, 1.0) for k, (x, y) in enumerate(values)]
    against.draw(tmp_path / "p.png", found, "minutes", "accuracy")
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.width > 900 and len(set(picture.convert("RGB").getdata())) > 10
