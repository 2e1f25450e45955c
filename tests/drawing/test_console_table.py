"""Tables that people read: they fit the width, cut no number, and say what is a percentage."""

import io
import re

import pytest
from rich.console import Console

from phosphene.drawing.console_table import Units, table


def shown(result, width=80, **units):
    console = Console(width=width, file=io.StringIO())
    console.print(table(result, width, Units(**units)))
    return console.file.getvalue()


SCORES = {"architecture": "sep_conv_3x3 " * 8, "kl": -0.30123, "accuracy": 84.4, "params": 123456789}
WIDE = {**SCORES, "macs": 12345678901, "empty": None, "milliseconds": 12.25, "another_figure": 0.333333, "last": 1}


def test_a_wide_table_wraps_texts_and_names_the_columns_that_it_leaves_out():
    text = shown({"scores": [WIDE, {**WIDE, "last": 2}]})
    assert max(map(len, text.splitlines())) <= 80 and "…" not in text
    assert all(number in text for number in ("-0.3012", "84.4", "123,456,789", "12,345,678,901"))
    assert text.count("sep_conv_3x3") == 16, "texts wrap and are whole"
    left_out = text[text.index("not shown") :]
    assert "last" in left_out and "--json" in left_out
    assert "last" in shown({"scores": [WIDE]}, 200) and "not shown" not in shown({"scores": [WIDE]}, 200)


def test_an_empty_column_is_not_printed():
    assert "empty" not in shown({"scores": [WIDE]}, 300)


@pytest.mark.parametrize("width", [30, 60, 80])
def test_long_names_are_whole_at_every_width(width):
    name = "a_network_with_a_name_that_is_longer_than_its_column"
    text = shown({"networks": {name: {"params": 1234567, "macs": 7654321}}}, width)
    assert "1,234,567" in text and "…" not in text
    assert name in "".join(re.sub(r"[\d,]{9}", "", text).split()), "folded, not cut"


def test_percentages_say_so():
    text = shown(
        {"top1": 84.4, "confidence": 0.843, "auc": 0.91, "per_class": {"ant": 75.0, "bee": 25.5}},
        shares=("confidence",),
    )
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    assert lines == ["top1 84.4 %", "confidence 84.3 %", "auc 0.91", "per class, %", "ant 75", "bee 25.5"]
    matrix = shown({"agreement": {"a": {"a": 1.0, "b": 0.25}, "b": {"a": 0.25, "b": 1.0}}}, shares=("agreement",))
    assert "agreement, %" in matrix and "100" in matrix and " 25" in matrix and "0.25" not in matrix
    each = shown({"per_class": {"ant": {"images": 40, "agreement": 0.75}}}, shares=("agreement",))
    assert "agreement, %" in each and "75" in each and "per class, %" not in each and "40" in each


def test_a_percentage_above_is_the_same_as_with_its_unit():
    assert "98.2 %" in shown({"share": 98.2}, percent=("share",)) and "0.982" not in shown({"share": 98.2})


def test_a_matrix_that_does_not_fit_is_not_cut():
    assert "30 × 30 numbers" in shown({"confusion": [[1000] * 30] * 30})
    assert shown({"confusion": [[3, 1], [0, 4]]}).split() == ["confusion", "0", "1", "0", "3", "1", "1", "0", "4"]


def test_figures_have_their_unit():
    figure = {"label": "ours", "mean": 91.234, "sd": 0.5, "digits": 1, "unit": "%", "published": 93, "group": "Drop"}
    assert shown({"figures": [figure]}).split() == [
        "Drop,",
        "%",
        "mean",
        "sd",
        "published",
        "ours",
        "91.2",
        "0.5",
        "93",
    ]
    two = shown({"figures": [figure, {**figure, "unit": "", "label": "minutes"}]})
    assert "unit" in two and "Drop, %" not in two


def test_long_lists_say_how_long_they_are():
    assert "11, … (50 in all)" in shown({"curve": list(range(50))})


@pytest.mark.parametrize("name", ["[red]x[/red]", "[/red]", "[bold", "\\[x]"])
def test_brackets_are_printed_as_they_are(name):
    """Brackets in a path are no markup of the console's."""
    assert name in shown({name: name}) and name in shown({"tables": [{name: name, "b": 1}]})


ODD = ["[red]x[/red]", "[/x]", "a\nb", "\x1b[31m", ":smile:", "\u202eabc", "\udcff", "日本", "_x", "$a$", ""]


@pytest.mark.parametrize("name", ODD)
def test_names_are_printed_as_they_are(name):
    """Rich's markup was taken out of them, or failed; a line break or a code for the terminal went through."""
    file = io.StringIO()
    console = Console(file=file, width=200, force_terminal=True, no_color=True, legacy_windows=False)
    figures = [{"label": name, "mean": 1.0, "sd": None, "group": name, "unit": name}]
    result = {"a": name, name: 1, "list": [name], "rows": {name: {name: 1.0, "b": name}}, "figures": figures}
    console.print(table(result, 200))
    printed = file.getvalue()
    assert "\x1b[31m" not in printed and "\u202e" not in printed
    written = name.encode("unicode_escape").decode() if not name.isprintable() else name
    assert printed.count(written) >= 5
