"""Fractals: FractalDB's rule against a plain loop written here, one image whatever draws it, and nothing broken."""

import importlib.util
import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phosphene.data.procedural import category as category_module
from phosphene.data.procedural import counter, fractal, orbit
from phosphene.data.procedural.category import Category, candidate
from phosphene.data.procedural.fractal import WEIGHTS, instances, masks
from phosphene.errors import DatasetError, MissingExtra, SettingsError

BACKENDS = ["numpy", "numba"] if importlib.util.find_spec("numba") else ["numpy"]
WORD = (1 << 64) - 1


@pytest.fixture(scope="module")
def categories():
    return fractal.find_categories(5, 0)


# --- an independent reference: whole numbers and floats of Python, one point after the other -------------------------


def mixed(z):
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & WORD
    z = (z ^ z >> 27) * 0x94D049BB133111EB & WORD
    return z ^ z >> 31


def plain(maps, key, points, size):
    """(row, column) -> the highest number of the maps that hit it, from 1; nothing for an orbit that explodes."""
    areas = [abs(a * d - b * c) for a, b, c, d, _, _ in maps]
    lanes, found = max(16, points // 128), []
    for lane in range(lanes):
        x = y = 0.0
        for step in range(20 + -(-points // lanes)):
            word = mixed(key + (step // 2 * lanes + lane + 1) * 0x9E3779B97F4A7C15 & WORD)
            share = (word >> 32 if step % 2 else word & 0xFFFFFFFF) / 2**32
            k = 0
            while k < len(maps) - 1 and share >= round(sum(areas[: k + 1]) / sum(areas) * 2**32) / 2**32:
                k += 1
            a, b, c, d, e, f = maps[k]
            x, y = a * x + b * y + e, c * x + d * y + f
            if step >= 20:
                found.append(((step - 20) * lanes + lane, x, y, k + 1))
    drawn = [(x, y, k) for place, x, y, k in found if place < points]
    if not all(abs(v) < 1e12 for x, y, _ in drawn for v in (x, y)):
        return {}
    pad = max(1, round(6 * size / 512))
    columns, rows = (pixels_of([point[axis] for point in drawn], size, pad) for axis in (0, 1))
    pixels = {}
    for column, row, (_, _, k) in zip(columns, rows, drawn, strict=True):
        pixels[size - 1 - row, column] = max(pixels.get((size - 1 - row, column), 0), k)
    return pixels


def pixels_of(values, size, pad):
    """The least value at the first pixel past the padding, the largest at the last one before it."""
    low, inner = min(values), size - 2 * pad
    scale = inner / (max(values) - low)
    return [min(int((v - low) * scale), inner - 1) + pad for v in values]


def draw_one(category, key, points, size, backend, scale=1.0):
    keys = np.array([key], np.uint64)
    maps = scale * category.padded[None]
    canvas, hits = orbit.render(maps, category.edges[None], keys, points=points, size=size, backend=backend)
    return canvas[0], int(hits[0])


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, WORD), st.integers(300, 2500), st.integers(16, 80))
def test_an_orbit_lands_on_the_pixels_of_a_plain_loop(backend, place, key, points, size):
    category = Category(candidate(3, place))
    canvas, hits = draw_one(category, key, points, size, backend)
    pixels = plain(category.maps.tolist(), key, points, size)
    assert hits == len(pixels) == np.count_nonzero(canvas)
    assert all(canvas[at] == k for at, k in pixels.items())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [8.0, 1e30])
def test_an_exploding_orbit_draws_nothing(backend, scale, categories):
    canvas, hits = draw_one(categories[0], 1, 1563, 32, backend, scale)
    assert hits == 0 and not canvas.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_orbit_that_stays_in_one_place_draws_nothing(backend):
    still = Category(np.array([[0.5, 0, 0, 0.5, 0, 0], [0, 0.5, -0.5, 0, 0, 0]]))
    assert draw_one(still, 1, 1563, 32, backend)[1] == 0


# --- categories ------------------------------------------------------------------------------------------------------


def test_candidates_follow_the_published_distribution():
    found = [candidate(7, place) for place in range(3000)]
    counts = np.bincount([len(m) for m in found], minlength=8)
    values = np.concatenate([m.ravel() for m in found])
    assert counts[:2].sum() == 0 and counts[2:].min() > 400 and len(counts) == 8  # 500 each; 5 deviations are 102
    assert values.min() >= -1 and values.max() < 1 and abs(values.mean()) < 0.01
    assert abs(np.histogram(values, 10, (-1, 1))[0] / len(values) - 0.1).max() < 0.005
    assert (candidate(7, 5) == found[5]).all() and not np.array_equal(candidate(8, 5)[:2], found[5][:2])


def test_maps_are_taken_in_proportion_to_their_determinants(categories):
    for category in categories:
        areas = np.array([abs(np.linalg.det([[a, b], [c, d]])) for a, b, c, d, _, _ in category.maps])
        np.testing.assert_allclose(category.probabilities, areas / areas.sum(), rtol=1e-9)
        taken = orbit.chosen_maps(category.edges[None], np.array([5], np.uint64), 1000, 300)
        shares = np.bincount(taken.ravel(), minlength=7) / taken.size
        np.testing.assert_allclose(shares[: len(areas)], areas / areas.sum(), atol=0.005)
        assert shares[len(areas) :].sum() == 0


def test_categories_fill_a_fifth_of_the_image_when_measured_again(categories):
    assert all(0.2 <= c.filling < 0.39 for c in categories)
    chosen = categories[1]
    key = int(counter.key(0, category_module.TRIAL, chosen.place)[0])
    assert len(plain(chosen.maps.tolist(), key, 100_000, 512)) / 512**2 == chosen.filling


def test_no_candidate_is_passed_over_and_none_is_taken_twice(categories):
    assert len({c.maps.tobytes() for c in categories}) == len(categories)
    for category in categories:
        assert (candidate(0, category.place) == category.maps).all()
    for place in set(range(categories[1].place)) - {categories[0].place}:
        trial = Category(candidate(0, place))
        key = int(counter.key(0, category_module.TRIAL, place)[0])
        assert draw_one(trial, key, 100_000, 512, "auto")[1] < 0.2 * 512**2


def test_a_longer_list_begins_with_the_shorter_one_whoever_measures(categories):
    small = {"filling": 0.25, "size": 64, "points": 2000}
    calls = []
    many = fractal.find_categories(20, 4, progress=lambda found, tried: calls.append((found, tried)), **small)
    for backend in BACKENDS:
        few = fractal.find_categories(7, 4, backend=backend, **small)
        assert [(c.place, c.filling, c.maps.tobytes()) for c in few] == [
            (c.place, c.filling, c.maps.tobytes()) for c in many[:7]
        ]
    assert calls == sorted(calls) and calls[-1][0] == 20
    assert fractal.find_categories(1, 5, **small)[0].maps.tobytes() != many[0].maps.tobytes()


@pytest.mark.parametrize(
    "wrong", [{"count": 0}, {"filling": 0.0}, {"filling": 0.9}, {"size": 4}, {"points": 0}], ids=lambda w: str(w)
)
def test_a_search_that_cannot_succeed_is_refused(wrong):
    with pytest.raises(SettingsError, match=str(next(iter(wrong.values())))):
        fractal.find_categories(**({"count": 1, "seed": 0} | wrong))


def test_a_search_gives_up_where_nothing_fills_so_much(monkeypatch):
    monkeypatch.setattr(category_module, "PATIENCE", 100)
    with pytest.raises(SettingsError, match=r"filling 0.45: 0 of 128 candidates"):
        fractal.find_categories(1, 0, filling=0.45, size=64, points=2000)


# --- the category file -----------------------------------------------------------------------------------------------


def test_categories_come_back_bit_by_bit(categories, tmp_path):
    fractal.save(categories, tmp_path / "c.json")
    back = fractal.load(tmp_path / "c.json")
    assert [c.maps.tobytes() for c in back] == [c.maps.tobytes() for c in categories]
    assert [(c.place, c.filling) for c in back] == [(c.place, c.filling) for c in categories]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3, width=64), min_size=12, max_size=42))
def test_any_maps_come_back_bit_by_bit(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("any") / "c.json"
    maps = np.array(values[: len(values) // 6 * 6]).reshape(-1, 6)
    try:
        category = Category(maps)
    except DatasetError:
        assert not np.abs(maps[:, 0] * maps[:, 3] - maps[:, 1] * maps[:, 2]).sum() > 0
        return
    fractal.save([category], path)
    assert fractal.load(path)[0].maps.tobytes() == maps.tobytes()


def a_digit(text):
    """Another parameter in the first map."""
    content = json.loads(text)
    content["categories"][0]["maps"][0][0] += 1e-9
    return json.dumps(content)


DAMAGE = {
    "cut short": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "a list": lambda text: "[]",
    "another format": lambda text: text.replace("version 1", "version 0"),
    "no categories": lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "categories"}),
    "a changed number": a_digit,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_category_file_is_named(damage, categories, tmp_path):
    path = tmp_path / "c.json"
    fractal.save(categories, path)
    path.write_text(DAMAGE[damage](path.read_text()))
    with pytest.raises(DatasetError, match=r"c\.json.* make it again"):
        fractal.load(path)


def test_a_missing_file_and_one_with_a_duplicate_are_refused(categories, tmp_path):
    with pytest.raises(DatasetError, match=r"none\.json"):
        fractal.load(tmp_path / "none.json")
    for wrong in ([categories[0]] * 2, []):
        fractal.save(wrong, tmp_path / "c.json")
        with pytest.raises(DatasetError, match="no category, or one of them twice"):
            fractal.load(tmp_path / "c.json")


@pytest.mark.parametrize("maps", [np.ones((1, 6)), np.ones((3, 5)), np.full((2, 6), np.nan), np.ones((2, 6))])
def test_what_is_no_category_is_refused(maps):
    with pytest.raises(DatasetError):
        Category(maps)


# --- instances -------------------------------------------------------------------------------------------------------


def test_the_weight_rows_are_the_published_ones():
    rows = {tuple(row) for row in WEIGHTS.tolist()}
    expected = {tuple(w if i == k else 1.0 for i in range(6)) for k in range(6) for w in (0.2, 0.6, 1.4, 1.8)}
    assert rows == expected | {(1.0,) * 6} and len(WEIGHTS) == 25
    assert (WEIGHTS[0] == 1).all()


def test_a_thousand_instances_are_all_different_and_the_first_are_varied():
    number = np.arange(2000)
    found = instances(np.full(2000, 3), number, seed=1)
    combinations = list(zip(*(part.tolist() for part in found), strict=True))
    assert len(set(combinations)) == 2000
    assert set(found.row.tolist()) == set(range(25)) and set(found.flip.tolist()) == {0, 1, 2, 3}
    assert set(found.patch[:1000].tolist()) == set(range(10))
    assert set(found.patch[1000:].tolist()) == set(range(10, 20))
    assert len(set(found.row[:20].tolist())) > 8 and len(set(found.patch[:20].tolist())) > 5
    for start in (0, 1000):
        half = set(combinations[start : start + 500])
        assert len({(row, patch) for row, patch, _ in combinations[start : start + 250]}) == 250
        assert not any((row, patch, flip ^ 2) in half for row, patch, flip in half)  # no left-right mirror images
    other = instances(np.full(2000, 4), number, seed=1)
    assert (other.row != found.row).mean() > 0.9


def test_patches_are_never_empty_and_differ():
    found = masks(np.full(600, 2), np.arange(600), seed=0)
    assert found.min() >= 1 and found.max() <= 511 and len(set(found[:511].tolist())) == 511


def flips_of(size):
    """What flip 0, 1, 2, 3 does to an image ``(C, H, W)``."""
    return lambda x: x, lambda x: x[:, ::-1], lambda x: x[:, :, ::-1], lambda x: x[:, ::-1, ::-1]


def test_flips_mirror_one_image(categories):
    number = np.arange(1000)
    row, patch, flip = instances(np.full(1000, 2), number, seed=0)
    one = number[(row == row[0]) & (patch == patch[0])]
    images = fractal.draw(categories, one * len(categories) + 2, seed=0, size=48, colour=True)
    unflipped = [flips_of(48)[flip[n]](image) for n, image in zip(one, images, strict=True)]
    assert len(one) == 4 and all((image == unflipped[0]).all() for image in unflipped)


def test_the_patch_is_drawn_at_every_point(categories):
    index = np.arange(40)
    points = fractal.draw(categories, index, seed=0, size=32, patch=False, channels=1)
    patched = fractal.draw(categories, index, seed=0, size=32, patch=True, channels=1)
    category, number = index % 5, index // 5
    found = instances(category, number, seed=0)
    for i, mask in enumerate(masks(category, found.patch, seed=0)):
        back = flips_of(32)[found.flip[i]]
        drawn = np.zeros((1, 32, 32), np.uint8)
        for _, y, x in np.argwhere(back(points[i])):
            for bit in range(9):
                if mask >> bit & 1:
                    drawn[0, y + bit // 3 - 1, x + bit % 3 - 1] = 127
        assert (back(patched[i]) == drawn).all()


# --- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(len(BACKENDS) == 1, reason="numba is not installed")
@pytest.mark.parametrize(("size", "count"), [(32, 60), (45, 30), (128, 10), (512, 1)])
@pytest.mark.parametrize(("patch", "colour", "channels"), [(0, 0, 1), (1, 0, 3), (0, 1, 3), (1, 1, 3)])
def test_numba_and_numpy_draw_the_same_bytes(size, count, patch, colour, channels, categories):
    how = {"seed": 3, "size": size, "patch": bool(patch), "colour": bool(colour), "channels": channels}
    index = np.arange(7, 7 + count)
    first, second = (fractal.draw(categories, index, backend=backend, **how) for backend in BACKENDS)
    assert first.dtype == np.uint8 and first.shape == (count, channels, size, size)
    assert (first == second).all()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 10**5), min_size=1, max_size=30), st.booleans())
def test_an_image_is_the_same_in_whatever_company(categories, index, colour):
    how = {"seed": 0, "size": 32, "points": 500, "colour": colour}
    together = fractal.draw(categories, np.array(index), **how)
    for i, image in zip(index, together, strict=True):
        assert (fractal.draw(categories, np.array([i]), **how)[0] == image).all()


def test_no_result_depends_on_how_many_are_drawn_at_once(categories, monkeypatch):
    index = np.arange(200)
    expected = fractal.draw(categories, index, seed=0, size=32)
    monkeypatch.setattr(fractal, "BATCH", 7 * 32 * 32)
    monkeypatch.setattr(orbit, "CHUNK", 5000)
    for backend in BACKENDS:
        assert (fractal.draw(categories, index, seed=0, size=32, backend=backend) == expected).all()


def test_an_image_does_not_depend_on_the_categories_after_its_own(categories):
    few = fractal.draw(categories[:2], np.array([0, 1, 2, 3]), seed=0, size=32)
    many = fractal.draw(categories, np.array([0, 1, 5, 6]), seed=0, size=32)
    assert (few == many).all()


def test_seeds_give_other_images(categories):
    a, b = (fractal.draw(categories, np.arange(50), seed=s, size=32) for s in (0, 1))
    assert ((a != b).any((1, 2, 3))).all()


@pytest.mark.parametrize("patch", [True, False])
@pytest.mark.parametrize("size", [32, 64])
def test_no_image_is_empty_and_orbits_that_show_too_little_are_replaced(size, patch, categories):
    """All 1,000 instances of each category; among them are weight rows whose orbits explode or shrink to a spot."""
    index = np.arange(5000 if size == 32 else 1500)
    images = fractal.draw(categories, index, seed=0, size=size, patch=patch, channels=1)
    least = 2 * size if not patch else size  # a patch of one corner bit moves points, and none is lost
    assert (np.count_nonzero(images.reshape(len(images), -1), axis=1) >= least).all()
    assert set(np.unique(images).tolist()) == {0, 127}


def test_the_next_weight_row_stands_in_for_one_that_explodes(categories):
    """Which happens: 1.8 times the first parameter makes many systems expand."""
    category, number = (part.ravel() for part in np.meshgrid(np.arange(5), np.arange(1000), indexing="ij"))
    found = instances(category, number, seed=0)
    maps = np.stack([c.padded for c in categories])[category] * WEIGHTS[found.row][:, None]
    edges = np.stack([c.edges for c in categories])[category]
    keys = counter.key(0, fractal.ORBIT, category, found.row, found.patch, 0)
    hits = orbit.render(maps, edges, keys, points=1563, size=32)[1]
    assert 10 < (hits < 64).sum() < 1000 and (hits[found.row == 0] >= 64).all()
    i = int(np.argmin(hits))
    image = fractal.draw(categories, number[i : i + 1] * 5 + category[i], seed=0, size=32, patch=False, channels=1)
    row, attempt = int(found.row[i]), 0
    while hits[i] < 64:
        attempt += 1
        weighted = categories[category[i]].padded * WEIGHTS[(row + attempt) % 25]
        key = counter.key(0, fractal.ORBIT, int(category[i]), (row + attempt) % 25, int(found.patch[i]), attempt)
        canvas, hits[i : i + 1] = orbit.render(weighted[None], edges[i : i + 1], key, points=1563, size=32)
    assert (flips_of(32)[found.flip[i]](image[0]) == 127 * (canvas > 0)).all()


def test_a_category_that_shows_nothing_is_refused():
    speck = Category(np.array([[1e-9, 0, 0, 1e-9, 0.1, 0.1], [1e-9, 0, 0, 1e-9, 0.2, 0.3]]))
    with pytest.raises(DatasetError, match="category 0 draws nothing visible at 32x32"):
        fractal.draw([speck], np.arange(1), seed=0, size=32)


def test_grey_repeats_and_colours_are_the_maps_own(categories):
    index = np.arange(30)
    one = fractal.draw(categories, index, seed=0, size=64, channels=1)
    three = fractal.draw(categories, index, seed=0, size=64, channels=3)
    coloured = fractal.draw(categories, index, seed=0, size=64, colour=True)
    assert (three == one).all()
    assert ((coloured.max(1) > 0) == (one[:, 0] > 0)).all()
    for i, image in enumerate(coloured):
        colours = {tuple(c) for c in image.reshape(3, -1).T.tolist()}
        assert 2 <= len(colours - {(0, 0, 0)}) <= len(categories[i % 5].maps)
        assert all(max(c) == 191 for c in colours - {(0, 0, 0)})  # .75 of 255


def test_density_is_the_published_one():
    assert fractal.points_of(362) == 200_000 and fractal.points_of(32) == 1563


WRONG = {
    "no such channels": ({"channels": 2}, "channels 2"),
    "colour on one channel": ({"channels": 1, "colour": True}, "colour needs 3"),
    "too small": ({"size": 4}, "size 4"),
    "too large": ({"size": 2000}, "size 2000"),
    "too few points": ({"points": 10}, "points 10"),
}


@pytest.mark.parametrize("case", WRONG)
def test_settings_that_cannot_be_used_are_named(case, categories):
    how, message = WRONG[case]
    with pytest.raises(SettingsError, match=message):
        fractal.draw(categories, np.arange(2), **({"seed": 0, "size": 32} | how))


def test_negative_numbers_and_no_category_are_refused(categories):
    with pytest.raises(SettingsError, match="numbered from 0"):
        fractal.draw(categories, np.array([-1]), seed=0, size=32)
    with pytest.raises(DatasetError, match="no fractal categories"):
        fractal.draw([], np.array([0]), seed=0, size=32)
    assert fractal.draw(categories, np.array([], np.int64), seed=0, size=32).shape == (0, 3, 32, 32)


def test_without_numba_numpy_draws(monkeypatch, categories):
    expected = fractal.draw(categories, np.arange(20), seed=0, size=32)
    monkeypatch.setitem(sys.modules, "numba", None)
    orbit._has_numba.cache_clear()
    try:
        assert orbit.choose("auto") == "numpy"
        assert (fractal.draw(categories, np.arange(20), seed=0, size=32) == expected).all()
        with pytest.raises(MissingExtra, match=r"phosphene\[fractal\]"):
            fractal.draw(categories, np.arange(1), seed=0, size=32, backend="numba")
    finally:
        orbit._has_numba.cache_clear()
