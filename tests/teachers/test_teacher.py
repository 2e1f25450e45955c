"""Teachers: every source, every wrapper, and what is said when something does not fit."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from phosphene import models
from phosphene.data.dataset import ImageDataset
from phosphene.errors import DatasetError, MissingExtra, SettingsError, TeacherError
from phosphene.models import weights
from phosphene.runtime.machine import machine
from phosphene.settings import Settings, settings
from phosphene.teachers import loaders as sources
from phosphene.teachers import teacher as teachers

DATA = os.environ.get("PHOSPHENE_DATA")
real = pytest.mark.skipif(DATA is None, reason="PHOSPHENE_DATA is not set")
NORM = {"mean": 0.5, "std": 0.25, "size": 8}


def small(classes: int = 4, channels: int = 3, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return models.build("cifar-resnet8", classes, channels)


@pytest.fixture
def weights_file(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(small().state_dict(), path)
    return path


# -- weights files ---------------------------------------------------------------------------------------------------

WRAPPINGS = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"epoch": 3, "state_dict": s},
    "model": lambda s: {"model": s, "optimizer": {"lr": 1.0}},
    "ema beats model": lambda s: {"model": {k: v * 0 for k, v in s.items()}, "model_ema": s},
    "nested": lambda s: {"model": {"state_dict": s}},
    "module.": lambda s: {f"module.{k}": v for k, v in s.items()},
    "averaged": lambda s: {"model_ema": {"n_averaged": torch.tensor(5)} | {f"module.{k}": v for k, v in s.items()}},
    "compiled": lambda s: {"state_dict": {f"module._orig_mod.{k}": v for k, v in s.items()}},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("suffix", [".pt", ".th"])
def test_wrappers_are_found_by_themselves(tmp_path, wrapping, suffix):
    path = tmp_path / f"w{suffix}"
    torch.save(WRAPPINGS[wrapping](small().state_dict()), path)
    loaded = teachers.load("cifar-resnet8", checkpoint=path)
    assert loaded.classes == 4  # read off the last linear layer
    assert loaded.fingerprint == teachers.load(small(), mean=loaded.mean, std=loaded.std, size=32).fingerprint


def test_safetensors_with_channels_and_classes_from_the_file(tmp_path):
    save_file(small(7, 1).state_dict(), tmp_path / "w.safetensors")
    loaded = teachers.load("cifar-resnet8", checkpoint=tmp_path / "w.safetensors", mean=0.3, std=0.2, size="24x16")
    assert (loaded.classes, loaded.shape, loaded.mean, loaded.std) == (7, (1, 24, 16), (0.3,), (0.2,))


class Payload:
    """Would write a file when unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return (Path(self.path).touch, ())


def test_nothing_is_unpickled(tmp_path):
    torch.save({"state_dict": small().state_dict(), "args": Payload(str(tmp_path / "harm"))}, tmp_path / "w.pt")
    with pytest.raises(TeacherError, match="Python objects"):
        teachers.load("cifar-resnet8", checkpoint=tmp_path / "w.pt")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights", b"\x00" * 100])
def test_damaged_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TeacherError, match=f"--checkpoint .*{name}"):
        teachers.load("cifar-resnet8", checkpoint=tmp_path / name)


def test_a_cut_file(weights_file):
    weights_file.write_bytes(weights_file.read_bytes()[:-100])
    with pytest.raises(TeacherError, match="is it complete"):
        teachers.load("cifar-resnet8", checkpoint=weights_file)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], torch.zeros(3)])
def test_a_file_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(TeacherError, match="no weights in it"):
        weights.read(tmp_path / "w.pt")


def test_a_missing_file(tmp_path):
    with pytest.raises(TeacherError, match="no such file"):
        teachers.load("cifar-resnet8", checkpoint=tmp_path / "none.pt")


def test_what_does_not_fit_is_listed_ten_at_most(weights_file):
    with pytest.raises(TeacherError) as caught:
        teachers.load("cifar-resnet56", checkpoint=weights_file)
    message = str(caught.value)
    listed = message.split("missing: ")[1].split(", …")[0].split(", ")
    assert len(listed) == 10 and all(key in models.build("cifar-resnet56").state_dict() for key in listed)
    assert "unexpected" not in message and "num_batches_tracked" not in message


def test_unexpected_keys_and_shapes_are_listed(tmp_path):
    state = small().state_dict()
    state["conv1.weight"] = torch.zeros(16, 3, 5, 5)
    state["extra.weight"] = torch.zeros(2)
    save_file(state, tmp_path / "w.safetensors")
    expected = r"1 unexpected: extra.weight.*conv1.weight is \(16, 3, 5, 5\), not \(16, 3, 3, 3\)"
    with pytest.raises(TeacherError, match=expected):
        teachers.load("cifar-resnet8", checkpoint=tmp_path / "w.safetensors")


# -- sources ---------------------------------------------------------------------------------------------------------


def test_a_network_in_memory_is_copied():
    net = small().train()
    loaded = teachers.load(net, mean=[0.1, 0.2, 0.3], std="0.2,0.2,0.2", size=32, class_names="a,b, c,d")
    assert loaded.class_names == ("a", "b", "c", "d")
    assert net.training and all(p.requires_grad for p in net.parameters())
    assert not loaded.net.training and not any(p.requires_grad for p in loaded.net.parameters())
    assert teachers.load(loaded) is loaded


@pytest.mark.parametrize("missing", ["mean", "std", "size"])
def test_what_a_source_does_not_know_is_asked_for(missing):
    given = {"mean": 0.5, "std": 0.25, "size": 8}
    del given[missing]
    with pytest.raises(TeacherError, match=f"--{missing}"):
        teachers.load(small(), **given)


def test_a_design_has_no_weights():
    with pytest.raises(TeacherError, match="--checkpoint"):
        teachers.load("cifar-resnet20")


def test_an_unknown_source_names_all():
    with pytest.raises(TeacherError, match=r"torchvision:NAME.*cifar-resnet20"):
        teachers.load("resnet-twenty")


def test_a_python_file_is_executed(tmp_path, weights_file):
    file = tmp_path / "mine.py"
    file.write_text(
        "from phosphene import models\ndef make(classes=4):\n    return models.build('cifar-resnet8', classes)\n"
    )
    loaded = teachers.load(f"{file}:make", checkpoint=weights_file, **NORM)
    assert loaded.fingerprint == teachers.load(small(), **NORM).fingerprint
    for text, message in ((f"{file}:none", "no function"), (f"{file}.py:make", "no file")):
        with pytest.raises(TeacherError, match=message):
            teachers.load(text, **NORM)
    file.write_text("1 / 0")
    with pytest.raises(TeacherError, match="ZeroDivisionError"):
        teachers.load(f"{file}:make", **NORM)
    file.write_text("def make():\n    return 3")
    with pytest.raises(TeacherError, match=r"not a torch\.nn\.Module"):
        teachers.load(f"{file}:make", **NORM)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "efficientnet_b0", "squeezenet1_1"])
def test_torchvision(tmp_path, name):
    zoo = pytest.importorskip("torchvision.models")
    net = zoo.get_model(name, weights=None)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    loaded = teachers.load(f"torchvision:{name}", checkpoint=tmp_path / "w.pth")
    assert (loaded.shape, loaded.classes, len(loaded.class_names)) == ((3, 224, 224), 1000, 1000)
    assert loaded.class_names[0] == "tench" and loaded.mean == pytest.approx((0.485, 0.456, 0.406))


def test_torchvision_names(tmp_path, monkeypatch):
    zoo = pytest.importorskip("torchvision.models")
    with pytest.raises(TeacherError, match="no such network"):
        teachers.load("torchvision:resnet19")
    with pytest.raises(TeacherError, match="IMAGENET1K_V2"):
        teachers.load("torchvision:resnet50@V9")

    def unreachable(*args, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(zoo, "get_model", unreachable)
    with pytest.raises(TeacherError, match=r"OSError: no route to host.*--checkpoint"):
        teachers.load("torchvision:resnet18")


@pytest.mark.parametrize("name", ["resnet10t", "tf_efficientnet_lite0", "mobilenetv3_small_050", "convnext_atto"])
def test_timm(tmp_path, name):
    timm = pytest.importorskip("timm")
    net = timm.create_model(name, pretrained=False, num_classes=5, in_chans=1)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    known = timm.get_pretrained_cfg(name)
    loaded = teachers.load(
        f"timm:{name}", checkpoint=tmp_path / "w.safetensors", channels=1, classes=5, mean=0.5, std=0.5
    )
    assert loaded.classes == 5 and loaded.shape == (1, *known.input_size[1:])
    in_memory = teachers.load(timm.create_model(name, pretrained=False))
    assert in_memory.mean == tuple(known.mean) and in_memory.shape == known.input_size


def test_timm_without_a_hub(monkeypatch):
    timm = pytest.importorskip("timm")

    def unreachable(*args, **options):
        raise ConnectionError("hub unreachable\nat length")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(TeacherError, match=r"hub unreachable\); give --checkpoint"):
        teachers.load("timm:resnet10t")
    with pytest.raises(TeacherError, match="no such network"):
        teachers.load("timm:nothing_of_this_name")


@pytest.mark.parametrize(("package", "source"), [("torchvision", "torchvision:resnet18"), ("timm", "timm:resnet18")])
def test_missing_extras_say_how_to_install(monkeypatch, package, source):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(MissingExtra, match=r"pip install 'phosphene\[vision\]'"):
        teachers.load(source)


def test_the_bundled_digits():
    loaded = teachers.load("digits")
    assert (loaded.shape, loaded.classes, loaded.class_names) == ((1, 8, 8), 10, tuple("0123456789"))
    test = teachers.open_test(Path(teachers.__file__).parents[1] / "bundled" / "digits_test.npz")
    assert teachers.accuracy(loaded, test)["accuracy"] > 96
    info = json.loads((Path(teachers.__file__).parents[1] / "bundled" / "digits.json").read_text())
    assert loaded.mean == pytest.approx(info["mean"]) and loaded.std == pytest.approx(info["std"])


def test_an_unfinished_run_folder(tmp_path):
    (tmp_path / "arch.json").write_text("{}")
    with pytest.raises(TeacherError, match=r"weights.safetensors, network.json: not a finished run"):
        teachers.load(str(tmp_path))
    (tmp_path / "weights.safetensors").write_bytes(b"")
    (tmp_path / "network.json").write_text('{"shape": [3, 8, 8]}')
    with pytest.raises(TeacherError, match=r"network\.json: classes is missing"):
        sources.read_network(tmp_path)


# -- what is checked -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": "8by8"}, "--size 8by8"),
        ({"size": "8x8x8"}, "--size"),
        ({"size": 0}, "--size 0"),
        ({"mean": "a,b"}, "--mean a,b"),
        ({"mean": "0.1,0.2"}, "2 numbers for 3 channels"),
        ({"class_names": "a,b"}, "2 names for 4 classes"),
    ],
)
def test_flags_that_cannot_be_read(given, message):
    with pytest.raises(SettingsError, match=message):
        teachers.load(small(), **{**NORM, **given})


@pytest.mark.parametrize(("given", "message"), [({"std": 0.0}, "above 0"), ({"classes": 9}, "has 4 outputs")])
def test_flags_that_contradict_the_network(given, message):
    with pytest.raises(TeacherError, match=message):
        teachers.load(small(), **{**NORM, **given})


def test_no_classifier():
    with pytest.raises(TeacherError, match="not a classifier"):
        teachers.load(nn.Conv2d(3, 4, 3), **NORM)
    with pytest.raises(TeacherError, match="fails on a 3x8x8 image"):
        teachers.load(nn.Sequential(nn.Flatten(), nn.Linear(27, 4)), **NORM, channels=3)


def test_class_names_from_a_file(tmp_path):
    (tmp_path / "names.txt").write_text("ant\nbee\n\ncat\ndog\n")
    assert teachers.load(small(), **NORM, class_names=tmp_path / "names.txt").class_names == (
        "ant",
        "bee",
        "cat",
        "dog",
    )


def test_fingerprint_tells_weights_and_normalisation_apart():
    one = teachers.load(small(), **NORM)
    assert one.fingerprint == teachers.load(small(), **NORM).fingerprint
    assert one.fingerprint != teachers.load(small(seed=1), **NORM).fingerprint
    assert one.fingerprint != teachers.load(small(), **{**NORM, "mean": 0.4}).fingerprint
    assert len(one.fingerprint) == 64


def test_loading_takes_nothing_from_the_random_state(weights_file):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    teachers.load("cifar-resnet8", checkpoint=weights_file)
    assert torch.equal(torch.rand(2), expected)


def test_normalise_and_logits_against_their_formulas():
    loaded = teachers.load(small(), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7), size=8)
    pixels = torch.randint(0, 256, (7, 3, 8, 8), dtype=torch.uint8)
    m, s = (torch.tensor(v).view(3, 1, 1) for v in (loaded.mean, loaded.std))
    expected = (pixels / 255 - m) / s
    assert torch.allclose(loaded.normalise(pixels), expected, atol=1e-6)
    assert torch.allclose(loaded.normalise(pixels / 255), expected, atol=1e-6)
    rows = loaded.logits(pixels, batch=3)
    assert rows.dtype == torch.float32 and torch.allclose(rows, loaded.net(expected), atol=1e-4)
    fast = loaded.logits(pixels, machine("cpu", "bf16"))
    assert fast.dtype == torch.float32 and torch.allclose(fast, rows, atol=0.1)
    assert loaded.logits(pixels[:0]).shape == (0, 4)


# -- show ------------------------------------------------------------------------------------------------------------


def test_show(tmp_path, weights_file):
    shown = teachers.show("cifar-resnet8", checkpoint=weights_file)
    assert json.loads(json.dumps(shown)) == shown
    assert shown["shape"] == [3, 32, 32] and shown["classes"] == 4 and shown["batchnorm_layers"] == 7
    assert shown["params"] == sum(p.numel() for p in small().parameters()) and "note" not in shown
    assert shown["macs"] == 12_239_104 and "accuracy" not in shown


def test_show_on_a_network_without_batchnorm_says_what_to_do(tmp_path):
    file = tmp_path / "plain.py"
    file.write_text("from torch import nn\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n")
    shown = teachers.show(f"{file}:make", mean="0", std="1", size="8", channels=1)
    assert shown["batchnorm_layers"] == 0 and "--bn-weight 0" in shown["note"] and shown["macs"] == 192


def test_accuracy_is_counted_on_the_test_data(tmp_path, weights_file):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    loaded = teachers.load("cifar-resnet8", checkpoint=weights_file)
    guesses = loaded.logits(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).argmax(1).numpy()
    labels = np.where(np.arange(30) < 21, guesses, (guesses + 1) % 4)
    labels[-4:] = [0, 1, 2, 3]  # every class occurs, so that the file says how many there are
    np.savez(tmp_path / "t.npz", x_test=images, y_test=labels[:, None])
    shown = teachers.show("cifar-resnet8", checkpoint=weights_file, test=tmp_path / "t.npz")
    assert shown["images"] == 30 and shown["accuracy"] == pytest.approx(100 * (labels == guesses).mean(), abs=1e-4)
    data = ImageDataset.from_arrays(images[:, :16].transpose(0, 3, 1, 2).copy(), labels=labels)
    with pytest.raises(DatasetError, match=r"shape \(3, 16, 32\)"):
        teachers.accuracy(loaded, data)


@pytest.mark.parametrize("arrays", [{"x_train": np.zeros(3)}, {"y_test": np.zeros(3)}])
def test_an_npz_without_a_test_part(tmp_path, arrays):
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(DatasetError, match="x_test and y_test"):
        teachers.open_test(tmp_path / "t.npz")


def test_help_says_that_a_python_file_is_executed():
    assert "executed" in settings(teachers.show)[0].help


# -- real weights ----------------------------------------------------------------------------------------------------


@real
@pytest.mark.parametrize(
    ("name", "file", "params", "norms"),
    [("cifar-resnet20", "resnet20-12fca82f.th", 269_722, 19), ("cifar-resnet56", "resnet56-4bfd9763.th", 853_018, 55)],
)
def test_real_weights_load_as_they_are(name, file, params, norms):
    """The accuracies, 91.73 and 93.39 % on CIFAR-10's test images, need its images: see docs/results.md."""
    path = Path(str(DATA)) / "teachers" / file
    shown = teachers.show(name, checkpoint=path)
    assert (shown["params"], shown["batchnorm_layers"], shown["classes"]) == (params, norms, 10)
    loaded = teachers.load(name, checkpoint=path)
    raw = torch.load(path, weights_only=True, map_location="cpu")["state_dict"]
    state = loaded.net.state_dict()
    assert all(torch.equal(state[key.removeprefix("module.")], value) for key, value in raw.items())
    rows = loaded.logits(torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    sure = rows.softmax(1).max(1).values.mean()
    assert 0.3 < sure <= 1 and rows.abs().max() < 50  # trained: sure even of noise, and its numbers stay in bounds


@real
def test_real_weights_do_not_fit_another_shortcut():
    path = Path(str(DATA)) / "teachers" / "resnet20-12fca82f.th"
    with pytest.raises(TeacherError, match=r"shortcut\.0\.weight"):
        teachers.load("cifar-resnet20b", checkpoint=path)


def test_weights_pass_on_what_is_said_of_the_network_alone():
    """A search's --channels are those of its cells."""

    class Sizes(Settings):
        channels: Annotated[int | None, "channels of the first cell"] = None

    class Search(Sizes, teachers.Weights):
        pass

    class Command(Sizes, teachers.TeacherSettings):
        pass

    loaded = teachers.load("digits")
    assert Search(channels=4).load(loaded) is loaded
    with pytest.raises(TeacherError, match="loaded already"):
        Command(channels=4).load(loaded)


# -- networks that lie, fail or leave ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"std": "nan"}, "--std nan"),
        ({"std": "inf"}, "--std inf"),
        ({"mean": "nan"}, "--mean nan"),
        ({"mean": "1e30"}, "as large as"),
        ({"std": "1e-30"}, "as large as"),
        ({"std": -0.5}, "above 0"),
        ({"size": 10_000}, "--size 10000x10000"),
    ],
)
def test_an_input_that_is_no_input(given, message):
    with pytest.raises(TeacherError, match=message):
        teachers.load(small(), **{**NORM, **given})


def test_weights_that_are_not_finite_are_found_in_every_source(tmp_path):
    net = small()
    net.bn1.running_var.fill_(float("nan"))
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    file = tmp_path / "mine.py"
    file.write_text(
        "import torch\ndef make():\n    net = torch.nn.Linear(3, 2)\n    net.weight.data[0, 0] = float('nan')\n"
    )
    file.write_text(file.read_text() + "    return net\n")
    for source, options in ((net, NORM), ("cifar-resnet8", {"checkpoint": tmp_path / "w.safetensors"})):
        with pytest.raises(TeacherError, match=r"bn1\.running_var has 16 values that are NaN"):
            teachers.load(source, **options)
    with pytest.raises(TeacherError, match="weight has 1 value that is NaN"):
        teachers.load(f"{file}:make", **NORM)


class Answers(nn.Module):
    """Gives what it is told to, for images that are not black."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        good = torch.zeros(len(x), 3)
        return self.answer(x, good) if float(x.abs().max()) > 0 else good


def leave(x, good):
    raise SystemExit(3)


class UnspeakableError(Exception):
    def __str__(self):
        raise ValueError("no text")


def unspeakable(x, good):
    raise UnspeakableError


ANSWERS = {
    "NaN": (lambda x, good: good * float("nan"), "logits of 5 of 5 images are NaN"),
    "infinities": (lambda x, good: good - float("inf"), "logits of 5 of 5 images are NaN or infinite"),
    "a tuple": (lambda x, good: (good, good), r"gives tuple for 5 images"),
    "nothing": (lambda x, good: None, "gives NoneType"),
    "another shape": (lambda x, good: good[:, :2], r"gives \(5, 2\) for 5 images"),
    "some of the images": (lambda x, good: good[:3], r"gives \(3, 3\) for 5 images"),
    "an exit": (leave, r"fails on 5 images: SystemExit: 3"),
    "an error without words": (unspeakable, r"fails on 5 images: UnspeakableError"),
    "an unknown key": (lambda x, good: {}["key"], "KeyError"),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_answers_that_are_no_logits(answer):
    give, message = ANSWERS[answer]
    with pytest.raises(TeacherError, match=message):
        teachers.load(Answers(give), mean=0, std=1, size=4, channels=1)


def test_logits_and_soft_labels_are_finite_or_an_error():
    loaded = teachers.load(Answers(lambda x, good: good / (x.flatten(1).amax(1, keepdim=True) < 5)), **NORM)
    pixels = torch.rand(4, 3, 8, 8)
    assert loaded.logits(pixels).isfinite().all()
    pixels[1:3] = 9.0
    with pytest.raises(TeacherError, match=r"Answers: the logits of 2 of 4 images are NaN"):
        loaded.logits(pixels, batch=2)
    data = ImageDataset.from_arrays(
        np.zeros((4, 3, 8, 8), np.uint8), labels=np.zeros(4), classes=3, mean=[0.5] * 3, std=[0.25] * 3
    )
    with pytest.raises(TeacherError, match=r"Answers: the logits of 2 images are NaN"):
        loaded.soft_labels(loaded.normalise(pixels), data, 1.0, machine("cpu", "fp32"))


FACTORIES = {
    "raises": ("raise KeyError('lost')", "KeyError"),
    "exits": ("import sys; sys.exit('gone')", "SystemExit: gone"),
    "returns text": ("return 'net'", "returns a str"),
    "returns a class": ("return torch.nn.Linear", "returns a type"),
    "is endless": ("return make()", "RecursionError"),
    "has lazy layers": ("return torch.nn.LazyLinear(3)", "lazy layer"),
    "has a sparse weight": (
        "n = torch.nn.Linear(2, 2); n.register_buffer('s', torch.eye(2).to_sparse()); return n",
        "sparse",
    ),
}


@pytest.mark.parametrize("what", FACTORIES)
def test_a_factory_of_others(tmp_path, what):
    body, message = FACTORIES[what]
    file = tmp_path / "mine.py"
    file.write_text(f"import torch\ndef make():\n    {body}\n")
    with pytest.raises(TeacherError, match=message) as caught:
        teachers.load(f"{file}:make", **NORM)
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_exits_and_a_factory_without_signature(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("raise SystemExit(1)\n")
    with pytest.raises(TeacherError, match="SystemExit"):
        teachers.load(f"{file}:make", **NORM)
    file.write_text("make = dict\nodd = type('Odd', (), {'__signature__': 3, '__call__': lambda self: 4})()\n")
    for name in ("make", "odd"):
        with pytest.raises(TeacherError, match="not a torch"):
            teachers.load(f"{file}:{name}", **NORM)


def test_a_name_longer_than_any_file():
    with pytest.raises(TeacherError, match="File name too long") as caught:
        teachers.load("n" * 10_000, **NORM)
    assert len(str(caught.value)) < 1000


ARRAYS = {
    "no images": ({"x_test": np.zeros((0, 8, 8), np.uint8), "y_test": np.zeros(0, int)}, "at least one"),
    "too few labels": ({"x_test": np.zeros((3, 8, 8), np.uint8), "y_test": np.zeros(2, int)}, "as many labels"),
    "no pictures": ({"x_test": np.zeros(3, np.uint8), "y_test": np.zeros(3, int)}, r"shape \(3,\)"),
    "one number": ({"x_test": np.uint8(3), "y_test": np.int64(3)}, "is needed|are needed"),
    "fractions": ({"x_test": np.zeros((3, 8, 8), np.uint8), "y_test": np.full(3, 0.5)}, "one integer an image"),
    "negative": ({"x_test": np.zeros((3, 8, 8), np.uint8), "y_test": np.array([0, 1, -1])}, "label -1"),
    "huge": ({"x_test": np.zeros((3, 8, 8), np.uint8), "y_test": np.array([0, 1, 2**62])}, "labels count from 0"),
    "not finite": ({"x_test": np.full((3, 8, 8), np.nan, np.float32), "y_test": np.arange(3)}, "NaN|finite"),
    "text": ({"x_test": np.zeros((3, 8, 8), np.uint8), "y_test": np.array(["a", "b", "c"])}, "one integer an image"),
    "objects": ({"x_test": np.array([{}, {}], object), "y_test": np.arange(2)}, "cannot be read|claims"),
}


@pytest.mark.parametrize("what", ARRAYS)
def test_an_npz_that_is_no_test_data(tmp_path, what):
    arrays, message = ARRAYS[what]
    np.savez(tmp_path / "t.npz", **arrays)
    with pytest.raises(DatasetError, match=message) as caught:
        teachers.open_test(tmp_path / "t.npz")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04" + bytes(60), b"\x93NUMPY\x01\x00"])
def test_an_npz_that_is_none(tmp_path, content):
    (tmp_path / "t.npz").write_bytes(content)
    with pytest.raises(DatasetError, match=r"t\.npz cannot be read"):
        teachers.open_test(tmp_path / "t.npz")
    with pytest.raises(DatasetError, match="no such file"):
        teachers.open_test(tmp_path / "none.npz")
