"""`phosphene arch show`: the published figures, the genotype, and cells drawn so that they can be read."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from phosphene import spaces
from phosphene.errors import ArchitectureError, RunError, SettingsError
from phosphene.reporting import arch_compare as comparison
from phosphene.reporting import arch_show as architecture
from phosphene.spaces.darts import drawing as cells
from phosphene.spaces.darts import genotype
from phosphene.spaces.darts.graph_layout import LABEL, RADIUS, _trace, arrange
from phosphene.spaces.darts.space import DartsSpace
from phosphene.spaces.moves import sample


def test_a_published_name_at_its_published_setting(tmp_path):
    shown = architecture.show("darts-v2", out=tmp_path / "cells.png")
    assert (shown["params"], shown["macs"]) == (3349342, 528359040)
    assert genotype.parse(shown["genotype"]) == spaces.space({"name": "darts"}).genotype(
        spaces.architecture("darts-v2").choices
    )
    assert shown["normal"][3] == "3 = skip_connect(c_{k-2}) + dil_conv_3x3(0)"
    assert shown["cells"] == str(tmp_path / "cells.png") and json.loads(json.dumps(shown)) == shown


def test_settings_are_flags(tmp_path):
    big = {"size": 224, "classes": 1000, "out": tmp_path / "a.png"}
    assert architecture.show("darts-v1", **big)["params"] == 4510432
    shown = architecture.show("darts-v1", auxiliary=True, **big)
    assert (shown["params"], shown["macs"]) == (5771208, 507419136)
    grey = architecture.show("darts-v1", input_channels=1, channels=8, cells=3, size=8, out=tmp_path / "a.png")
    told = {key: grey["settings"][key] for key in ("shape", "channels", "cells", "stem")}
    assert told == {"shape": [1, 8, 8], "channels": 8, "cells": 3, "stem": "tiny"}


def test_a_file_is_shown_as_it_is_unless_flags_say_otherwise(tmp_path):
    space = DartsSpace(channels=8, cells=4, nodes=3, shape=(1, 28, 28), classes=7)
    found = architecture.Architecture(space.spec, sample(space, torch.Generator().manual_seed(0)))
    found.save(tmp_path / "arch.json")
    out = tmp_path / "cells.png"
    assert architecture.show(tmp_path, out=out)["settings"] == {k: v for k, v in space.spec.items() if k != "name"}
    assert architecture.show(str(tmp_path / "arch.json"), channels=10, out=out)["settings"]["channels"] == 10
    assert architecture.show(found, size=32, out=out)["settings"]["shape"] == [1, 32, 32]


def test_a_model_has_no_cells(tmp_path):
    shown = architecture.show("cifar-resnet20")
    assert shown["params"] == 269722 and "cells" not in shown and not list(tmp_path.iterdir())
    with pytest.raises(SettingsError, match="--out"):
        architecture.show("cifar-resnet20", out=tmp_path / "cells.png")


def test_what_cannot_be_shown_is_named(tmp_path):
    with pytest.raises(ArchitectureError, match="nothing-of-this-name"):
        architecture.show("nothing-of-this-name")
    with pytest.raises(ArchitectureError, match="arch"):
        (tmp_path / "bad.json").write_text("[]")
        architecture.show(tmp_path / "bad.json")
    with pytest.raises(SettingsError, match="there is no folder"):
        architecture.show("darts-v1", out=tmp_path / "no" / "folder.png")
    with pytest.raises(SettingsError, match="nothing to compare"):
        comparison.compare([])
    with pytest.raises(ArchitectureError, match="no cells"):
        architecture.draw_cells({}, tmp_path / "x.png")


def test_cells_are_drawn_large_in_colour_and_each_its_own_way(tmp_path):
    for name in ("darts-v1", "sgas-cri1"):
        architecture.draw_cells(spaces.architecture(name), tmp_path / f"{name}.png")
    first, again, other = (np.array(Image.open(tmp_path / f"{n}.png")) for n in ("darts-v1", "darts-v1", "sgas-cri1"))
    assert first.shape[1] >= 1200 and np.array_equal(first, again) and not np.array_equal(first.shape, other.shape)
    flat = first[..., :3].reshape(-1, 3)
    for family in ("sep", "skip", "max"):
        colour = [int(cells.FAMILIES[family][1][k : k + 2], 16) for k in (1, 3, 5)]
        assert (np.abs(flat.astype(int) - colour).sum(1) < 6).sum() > 300, family
    purple = [int(cells.FAMILIES["dil"][1][k : k + 2], 16) for k in (1, 3, 5)]
    assert not (np.abs(flat.astype(int) - purple).sum(1) < 6).any(), "no dilated convolution in darts-v1"


def every_cell():
    for name, text in genotype.PUBLISHED.items():
        for kind in genotype.KINDS:
            yield pytest.param(getattr(genotype.parse(text), kind), id=f"{name}-{kind}")
    space = DartsSpace(nodes=3)
    for seed in range(2):
        drawn = space.genotype(sample(space, torch.Generator().manual_seed(seed)))
        yield pytest.param(drawn.normal, id=f"random-{seed}")


@pytest.mark.parametrize("cell", every_cell())
def test_nothing_lies_on_anything_else(cell):
    drawing = arrange(cell)
    assert [edge.operation for edge in drawing.edges] == [operation for operation, _ in cell]
    for a, b in itertools.combinations(drawing.edges, 2):
        apart = np.abs(a.label - b.label)
        assert apart[0] >= 2 * LABEL[0] or apart[1] >= 2 * LABEL[1], "labels touch"
    for k, edge in enumerate(drawing.edges):
        source, node = cell[k][1], 2 + k // 2
        assert np.linalg.norm(edge.control[0] - drawing.points[source]) < 0.4, "an edge begins at its state"
        assert np.linalg.norm(edge.control[-1] - drawing.points[node]) == pytest.approx(RADIUS)
        others = [point for j, point in enumerate(drawing.points) if j not in (source, node)]
        gaps = np.linalg.norm(_trace(edge.control)[:, None] - np.array(others)[None], axis=2)
        assert gaps.min() > RADIUS, "an edge runs through a node"
    left, right, bottom, top = drawing.frame
    assert np.all(drawing.points > [left, bottom]) and np.all(drawing.points < [right, top])


def test_names_for_readers():
    assert [cells.words(name) for name in ("sep_conv_3x3", "skip_connect", "max_pool_3x3")] == [
        "sep conv 3×3",
        "skip",
        "max pool 3×3",
    ]


def test_the_command_prints_one_json_object(tmp_path):
    command = [sys.executable, "-c", "from phosphene.cli import main; main()", "arch", "show", "sgas-cri1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    shown = json.loads(done.stdout)
    assert shown["params"] == 3795166 and (tmp_path / "cells-sgas-cri1.png").exists()


def edited(text: str, before: str, after: str) -> genotype.Genotype:
    assert before in text
    return genotype.parse(text.replace(before, after, 1))


def test_what_tells_architectures_apart():
    """Figures that can be read off the published genotypes by eye."""
    first, second = (genotype.parse(genotype.PUBLISHED[name]) for name in ("darts-v1", "darts-v2"))
    counted = comparison.facts(first.normal)
    assert {name: count for name, count in counted.items() if count} == {
        "depth": 2,
        "skip_connect": 3,
        "sep_conv_3x3": 5,
    }
    assert comparison.agree(first, first) == 1 and comparison.agree(first, second) == comparison.agree(second, first)
    changed = edited(genotype.PUBLISHED["darts-v1"], "('skip_connect', 2)], normal", "('max_pool_3x3', 2)], normal")
    assert comparison.agree(first, changed) == 15 / 16
    turned = edited(
        genotype.PUBLISHED["darts-v1"],
        "('sep_conv_3x3', 1), ('sep_conv_3x3', 0)",
        "('sep_conv_3x3', 0), ('sep_conv_3x3', 1)",
    )
    assert comparison.agree(first, turned) == 1, "the order of a node's inputs means nothing"
    chain = [("skip_connect", source) for node in range(2, 6) for source in (node - 1, node - 2)]
    assert comparison.depth(chain) == 4 and comparison.depth([("skip_connect", 0), ("skip_connect", 1)] * 4) == 1


def test_chance_agreement_is_what_the_help_says():
    space = DartsSpace(channels=4, cells=3)
    chance = torch.Generator().manual_seed(0)
    drawn = [space.genotype(sample(space, chance)) for _ in range(60)]
    shared = [comparison.agree(a, b) for a, b in itertools.combinations(drawn, 2)]
    assert np.mean(shared) == pytest.approx(0.09, abs=0.01)


def test_architectures_are_compared_at_one_size(tmp_path):
    """Whatever they were searched with: a head of 5,000 classes must not decide who is larger."""
    for classes, folder in ((5000, "noise/search"), (7, "fractal/search")):
        space = DartsSpace(channels=8, cells=4, classes=classes)
        (tmp_path / folder).mkdir(parents=True)
        architecture.Architecture(space.spec, spaces.architecture("darts-v1").choices).save(
            tmp_path / folder / "arch.json"
        )
    given = [str(tmp_path / "noise/search"), str(tmp_path / "fractal/search" / "arch.json"), "darts-v1"]
    told = comparison.compare(given, channels=8, cells=4, out=tmp_path / "g.png")
    assert list(told["architectures"]) == ["noise/search", "fractal/search", "darts-v1"]
    assert len({json.dumps(row) for row in told["architectures"].values()}) == 1
    assert told["normal"]["darts-v1"]["skip_connect"] == 3 and told["reduce"]["darts-v1"]["max_pool_3x3"] == 4
    assert set(told["agreement"]["darts-v1"].values()) == {1.0} and json.loads(json.dumps(told)) == told
    three = Image.open(tmp_path / "g.png").size
    comparison.compare(["darts-v1"] * 2, channels=8, cells=4, out=tmp_path / "g.png")
    two = Image.open(tmp_path / "g.png").size
    assert three[1] == two[1] and 1.4 < three[0] / two[0] < 1.6, "a column each"


def test_a_comparison_in_a_folder_is_a_run_that_a_report_can_show(tmp_path):
    told = comparison.compare(["darts-v1", "darts-v2"], channels=4, cells=3, out=tmp_path / "both")
    assert told["drawing"] == str(tmp_path / "both" / "genotypes.png") and (tmp_path / "both/genotypes.png").exists()
    assert json.loads((tmp_path / "both" / "result.json").read_text())["agreement"] == told["agreement"]
    again = comparison.compare(["darts-v1", "darts-v2"], channels=4, cells=3, out=tmp_path / "both")
    assert again == told
    with pytest.raises(RunError, match="holds another run"):
        comparison.compare(["darts-v1", "sgas-cri1"], channels=4, cells=3, out=tmp_path / "both")


def test_layers_of_block_networks_are_compared(tmp_path):
    """The published network, (2, 1, 0, 1, 2, 0, 2, 0, 2, 0, 2, 3, …), and that of 5x5 blocks alone, counted by eye."""
    told = comparison.compare(["spos", "spos-all-shuffle-5x5"], size=32, out=tmp_path / "two.png")
    assert told["options"]["spos"] == {"shuffle_7x7": 6, "shuffle_5x5": 2, "shuffle_3x3": 8, "xception": 4}
    assert told["options"]["spos-all-shuffle-5x5"] == {"shuffle_5x5": 20}
    assert told["agreement"]["spos"] == {"spos": 1.0, "spos-all-shuffle-5x5": 2 / 20}
    assert len(told["differ"]) == 18
    first = next(iter(told["differ"].values()))
    assert first == {"spos": "shuffle_7x7", "spos-all-shuffle-5x5": "shuffle_5x5"}
    assert told["architectures"]["spos"]["macs"] != told["architectures"]["spos-all-shuffle-5x5"]["macs"]
    assert json.loads(json.dumps(told)) == told
    two = Image.open(tmp_path / "two.png").size
    comparison.compare(["spos"], size=32, out=tmp_path / "one.png")
    one = Image.open(tmp_path / "one.png").size
    assert two == (one[0], 2 * one[1]), "one below the other"


@pytest.mark.parametrize(("names", "layers"), [(["00112102", "00112100"], 1), (["nb201-best", "nb201-best"], 0)])
def test_a_comparison_of_layers_in_a_folder_is_a_run(tmp_path, names, layers):
    told = comparison.compare(names, out=tmp_path / "both")
    assert told["drawing"] == str(tmp_path / "both" / "networks.png") and (tmp_path / "both/networks.png").exists()
    assert len(told["differ"]) == layers and len(told["notation"]) == 2
    assert json.loads((tmp_path / "both" / "result.json").read_text())["differ"] == told["differ"]


def test_what_cannot_be_compared_is_named(tmp_path):
    with pytest.raises(SettingsError, match="cifar-resnet20 has no cells"):
        comparison.compare(["darts-v1", "cifar-resnet20"], out=tmp_path / "g.png")
    with pytest.raises(SettingsError, match="darts-v1 is of the space darts, spos of shufflenet; compare"):
        comparison.compare(["darts-v1", "spos"], out=tmp_path / "g.png")
    with pytest.raises(SettingsError, match="macro-best has 8 layers and network 3"):
        short = {**spaces.architecture("macro-best").space, "depths": [1, 1, 1]}
        (tmp_path / "network").mkdir()
        choices = {f"stage{k}/layer1": 1 for k in (1, 2, 3)}
        architecture.Architecture(short, choices).save(tmp_path / "network" / "arch.json")
        comparison.compare(["macro-best", str(tmp_path / "network")], out=tmp_path / "g.png")
    assert not (tmp_path / "g.png").exists()
    with pytest.raises(ArchitectureError, match="nothing-of-this-name"):
        comparison.compare(["nothing-of-this-name"], out=tmp_path / "g.png")
    with pytest.raises(SettingsError, match=r"--out .*g\.svg: the drawing is a PNG"):
        comparison.compare(["darts-v1"], out=tmp_path / "g.svg")


@pytest.mark.parametrize("name", ["spos", "proxyless-gpu", "macro-best", "nb201-best"])
def test_pictures_of_networks_without_darts_cells(name, tmp_path):
    shown = architecture.show(name, out=tmp_path / "drawn.png")
    assert shown["params"] > 0 and shown["notation"] and (tmp_path / "drawn.png").stat().st_size > 5000


@pytest.mark.parametrize("name", ["x.xyz", "x", "x.gif"])
def test_a_drawing_of_another_suffix_is_refused_at_once(tmp_path, name):
    with pytest.raises(SettingsError, match=r"--out .* should end in \.png, .*\.pdf, \.svg"):
        architecture.show("no such architecture", out=tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "pdf", "svg"])
def test_a_drawing_of_each_suffix_that_is_named(tmp_path, suffix):
    architecture.show("darts-v2", out=tmp_path / f"x.{suffix}")
    assert [one.name for one in tmp_path.iterdir()] == [f"x.{suffix}"]


def test_architectures_of_odd_names_are_drawn(tmp_path):
    names = [tmp_path / name for name in ("$a_$ b$", "_x", "[red]")]
    for name in names:
        name.mkdir()
        spaces.architecture("darts-v2").save(name / "arch.json")
    comparison.compare([str(name) for name in names], out=tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        assert min(image.size) > 200
