"""Trained networks, loaded, checked and frozen.

A teacher is a network together with the shape and normalisation of its input; `loaders` has the sources of networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import plugins
from ..data.card import Card, read_names, read_size
from ..data.dataset import ImageDataset
from ..data.formats import npz
from ..errors import DatasetError, SettingsError, TeacherError, shown
from ..models.weights import check as check_weights
from ..models.weights import digest, fit, head, stem
from ..models.weights import read as read_weights
from ..runtime.machine import Machine
from ..runtime.machine import machine as decide_machine
from ..settings import OUTSIDE, Ge, Hardware, Settings, command
from ..storage import arrays
from .loaders import SOURCES, Source, find, read_network

__all__ = ["Teacher", "check_images", "load", "open_test", "outputs", "read_names", "read_network", "read_size", "show"]

NPZ = (("x_test", "y_test"), ("test_images", "test_labels"), ("images", "labels"))
Numbers = str | float | Sequence[float] | None
HIGHEST = 1e6  # of normalised pixels: beyond it a --std is a slip of the finger
LARGEST = 1 << 26  # values of one image
TRIED = 5  # images that a network of one's own is tried on
SELDOM = 64  # batches from one look at the logits on a GPU to the next: each look waits for it


class Watch:
    """Counts images whose logits are not finite, without waiting for a GPU at each batch."""

    def __init__(self) -> None:
        self._bad: Tensor | None = None
        self._batches = 0

    def add(self, logits: Tensor) -> int:
        """The images since the last look; 0 until the next one is due."""
        if logits.device.type == "cpu":
            return bad_images(logits)
        bad = (~logits.isfinite()).any(1).sum()
        self._bad = bad if self._bad is None or self._bad.device != bad.device else self._bad + bad
        self._batches += 1
        if self._batches % SELDOM:
            return 0
        count, self._bad = int(self._bad), None
        return count


def bad_images(logits: Tensor) -> int:
    """Images whose logits are not all finite; where their sum is finite, as nearly always, each is."""
    return 0 if bool(logits.sum().isfinite()) else int((~logits.isfinite()).any(1).sum())


@dataclass(frozen=True)
class Teacher:
    """A frozen network and its input: `shape` (C, H, W), and `mean` and `std` of pixels in [0, 1]."""

    net: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shape: tuple[int, int, int]
    classes: int
    class_names: tuple[str, ...] | None
    name: str
    fingerprint: str
    watch: Watch = field(default_factory=Watch, compare=False, repr=False)

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 in 0..255 or float in [0, 1], ``(N, C, H, W)`` -> float32, as the network wants it."""
        scaled = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()
        mean, std = (torch.tensor(v, device=pixels.device).view(-1, 1, 1) for v in (self.mean, self.std))
        return (scaled - mean) / std

    @torch.no_grad()
    def logits(self, pixels: Tensor, machine: Machine | None = None, batch: int = 500) -> Tensor:
        """Pixels ``(N, C, H, W)`` as for `normalise` -> float32 logits ``(N, K)`` on the pixels' device."""
        machine = machine or Machine(pixels.device, channels_last=False)
        parts = [self._answer(self.normalise(machine.place(chunk)), machine) for chunk in pixels.split(batch)]
        if not parts:
            return torch.zeros(0, self.classes, device=pixels.device)
        logits = torch.cat([part.to(pixels.device) for part in parts])
        self._check(bad_images(logits), f"of {len(logits)} images")
        return logits

    def _answer(self, inputs: Tensor, machine: Machine) -> Tensor:
        """float32 logits ``(N, K)`` of normalised inputs; whatever the network's own code does wrong is named."""
        with plugins.foreign(self.name, TeacherError, f"fails on {len(inputs)} images"), machine.autocast():
            logits = machine.place(self.net)(inputs)
        expected = (len(inputs), self.classes)
        if not isinstance(logits, Tensor) or logits.shape != expected:
            kind = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise TeacherError(f"{self.name} gives {kind} for {len(inputs)} images, not logits {expected}")
        return logits.float()

    def _check(self, bad: int, of: str) -> None:
        """Raise `TeacherError` where the logits of some images are not finite."""
        if bad:
            remedy = "look at its weights and at --mean and --std"
            raise TeacherError(f"{self.name}: the logits of {bad} {of} are NaN or infinite; {remedy}")

    @torch.no_grad()
    def soft_labels(self, inputs: Tensor, data: ImageDataset, temperature: float, machine: Machine) -> Tensor:
        """Soft labels ``(N, K)`` at the temperature for images ``(N, C, H, W)`` that are normalised as `data` is."""
        expected, present = torch.tensor([self.mean, self.std]), torch.stack(data.normalisation)
        if not torch.allclose(expected, present, atol=1e-6):
            (mean, std), (m, s) = (pair.to(inputs).view(2, 1, -1, 1, 1) for pair in (present, expected))
            inputs = (inputs * std + mean - m) / s
        logits = self._answer(machine.place(inputs), machine)
        self._check(self.watch.add(logits), "images")
        sharp = logits / temperature
        return sharp.sigmoid() if data.card.task == "multi" else sharp.softmax(1)

    def card(self, name: str, origin: str, recipe: dict[str, Any], **own: Any) -> Card:
        """The card of images synthesized for this teacher; `own`: fields that differ from the teacher's."""
        names = list(self.class_names) if self.class_names else None
        facts: dict[str, Any] = {"shape": self.shape, "classes": self.classes, "class_names": names}
        facts |= {"mean": list(self.mean), "std": list(self.std), "teacher": self.describe()}
        return Card(name=name, origin=origin, recipe=recipe, **(facts | own))

    def describe(self) -> dict[str, Any]:
        """The teacher as JSON for a card: enough to see whether two data sets had the same one."""
        names = list(self.class_names) if self.class_names else None
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "shape": list(self.shape),
            "classes": self.classes,
            "class_names": names,
            "mean": list(self.mean),
            "std": list(self.std),
        }


Network = Annotated[Teacher | nn.Module | str, "the trained network: " + SOURCES]
"""What commands take a trained network as."""


class ForwardBatch(Settings, heading="Evaluation"):
    batch: Annotated[int, Ge(1), "images per forward pass"] = 500


class Normalisation(Settings, heading="The trained network"):
    mean: Annotated[Numbers, OUTSIDE, "mean of the pixels in [0, 1]: a number, or one a channel with commas"] = None
    std: Annotated[Numbers, OUTSIDE, "standard deviation of pixels in [0, 1], likewise"] = None


class Weights(Settings, heading="The trained network"):
    checkpoint: Annotated[
        Path | str | None, OUTSIDE, "weights of the network: .safetensors, .pt, .pth or .th; nothing in it is executed"
    ] = None

    def load(self, teacher: Teacher | nn.Module | str | Path) -> Teacher:
        """The trained network, with these weights and its input where that can be set; see `load`.

        Only what is said of the network: `channels` or `classes` of other concerns are not its own.
        """
        concern = next(one for one in (TeacherSettings, TeacherInput, Weights) if isinstance(self, one))
        return load(teacher, **self.keywords(concern))


class TeacherInput(Weights, Normalisation):
    size: Annotated[str | int | None, OUTSIDE, "input size of the network: a side, or HEIGHTxWIDTH"] = None


class TeacherSettings(TeacherInput):
    channels: Annotated[int | None, OUTSIDE, Ge(1), "input channels of the network: 1 for grey, 3 for colour"] = None
    classes: Annotated[int | None, OUTSIDE, Ge(1), "number of classes of the network"] = None
    class_names: Annotated[str | None, OUTSIDE, "class names with commas between, or a file of one a line"] = None


def load(
    teacher: Teacher | nn.Module | str | Path,
    *,
    checkpoint: str | Path | None = None,
    mean: Numbers = None,
    std: Numbers = None,
    size: str | int | Sequence[int] | None = None,
    channels: int | None = None,
    classes: int | None = None,
    class_names: str | Path | Sequence[str] | None = None,
) -> Teacher:
    """Load, check and freeze a trained network; a network in memory is copied, never changed.

    `mean` and `std` are of pixels in [0, 1]; `size` is a side, ``"HxW"`` or ``(H, W)``. What is None comes from
    the source, or from the checkpoint's first convolution and last linear layer.

    Raises:
        TeacherError: the source is unknown, unreachable, does not fit its checkpoint, or its input stays unknown.
        MissingExtra: torchvision or timm is not installed.
    """
    if isinstance(teacher, Teacher):
        if any(value is not None for value in (checkpoint, mean, std, size, channels, classes, class_names)):
            raise TeacherError("this teacher is loaded already: leave out checkpoint, mean, std, size and the like")
        return teacher
    weights = read_weights(checkpoint) if checkpoint is not None else None
    called = type(teacher).__name__ if isinstance(teacher, nn.Module) else shown(teacher, str)
    with plugins.foreign(called, TeacherError, "cannot be used as a trained network"):
        with torch.random.fork_rng(devices=[]):  # building initializes weights that are overwritten
            source = find(teacher, checkpoint is not None, channels)
            net = _build(source, weights, classes, channels)
        if weights is not None:
            fit(net, weights, f"--checkpoint {checkpoint}")
        elif not source.trained:
            raise TeacherError(f"{source.name} is a design without weights; give --checkpoint FILE")
        else:
            check_weights(net.state_dict(), source.name)
        net.eval()
        net.requires_grad_(False)
        return _settle(source, net, mean, std, size, channels, classes, class_names)


def _build(source: Source, weights: dict[str, Tensor] | None, classes: int | None, channels: int | None) -> nn.Module:
    """The source's network, with as many classes and channels as flags say or the checkpoint has."""
    net = source.build(classes, channels)
    if weights is None or not source.resizable:
        return net
    top, bottom = head(net), stem(net)
    if classes is None and top in weights:
        classes = len(weights[top])
    if channels is None and bottom in weights:
        channels = weights[bottom].shape[1]
    current = net.state_dict()
    same = all(key not in weights or weights[key].shape == current[key].shape for key in (top, bottom) if key)
    return net if same else source.build(classes, channels)


def _settle(
    source: Source,
    net: nn.Module,
    mean: Numbers,
    std: Numbers,
    size: str | int | Sequence[int] | None,
    channels: int | None,
    classes: int | None,
    class_names: str | Path | Sequence[str] | None,
) -> Teacher:
    """The input by flags, else as the source has it; checked by a forward pass of one image."""
    side = source.size if size is None else read_size(size)
    if side is None:
        raise TeacherError(f"{source.name} has no known input size; give --size, as 32 or 224x160")
    first = net.state_dict().get(stem(net) or "")
    planes = channels or (first.shape[1] if first is not None else 3)
    means = _per_channel("--mean", mean, source.mean, planes, source.name)
    stds = _per_channel("--std", std, source.std, planes, source.name)
    _check_normalisation(means, stds)
    shape = (planes, *side)
    if math.prod(shape) > LARGEST:
        raise TeacherError(f"--size {side[0]}x{side[1]}: an image has {math.prod(shape)} values, more than {LARGEST}")
    count = outputs(net, shape, source.name)
    if classes is not None and classes != count:
        raise TeacherError(f"--classes {classes}: {source.name} has {count} outputs; leave the flag out")
    names = read_names(class_names, count)
    if names is None and source.class_names is not None and len(source.class_names) == count:
        names = source.class_names
    loaded = Teacher(net, means, stds, shape, count, names, source.name, digest(net, means, stds))
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    several = 1 if source.name.startswith(("torchvision:", "timm:")) else TRIED
    loaded.logits(torch.rand(several, *shape, generator=torch.Generator().manual_seed(0)).to(device))  # raises
    return loaded


def _check_normalisation(means: tuple[float, ...], stds: tuple[float, ...]) -> None:
    """Raise `TeacherError` where pixels in [0, 1] cannot be normalised by these."""
    for flag, numbers in (("--mean", means), ("--std", stds)):
        if not all(map(math.isfinite, numbers)):
            raise TeacherError(f"{flag} {_listed(numbers)}: every value must be a finite number, like 0.25")
    if min(stds) <= 0:
        raise TeacherError(f"--std {_listed(stds)}: every value must be above 0")
    highest = max(max(abs(m), abs(1 - m)) / s for m, s in zip(means, stds, strict=True))
    if highest > HIGHEST:
        both = f"--mean {_listed(means)} and --std {_listed(stds)}"
        raise TeacherError(f"{both} make pixels in [0, 1] as large as {highest:.1e}; give those of such pixels")


def _listed(numbers: Sequence[float]) -> str:
    return ",".join(f"{number:g}" for number in numbers)


def _per_channel(
    flag: str, value: Numbers, known: tuple[float, ...] | None, channels: int, name: str
) -> tuple[float, ...]:
    if value is None and known is None:
        raise TeacherError(f"{name} has no known normalisation; give {flag}, one number a channel")
    chosen = value if value is not None else known
    try:
        parts = (
            chosen.split(",") if isinstance(chosen, str) else [chosen] if isinstance(chosen, float | int) else chosen
        )
        numbers = tuple(float(part) for part in parts or ())
    except (ValueError, TypeError, OverflowError) as error:
        raise SettingsError(f"{flag} {value} is not numbers with commas between, like 0.49,0.48,0.45") from error
    if len(numbers) == 1:
        return numbers * channels
    if len(numbers) != channels:
        raise SettingsError(f"{flag} {value or known} has {len(numbers)} numbers for {channels} channels")
    return numbers


def outputs(net: nn.Module, shape: Sequence[int], name: str) -> int:
    """The number of logits; raises `TeacherError` where the network fails on one image, or is no classifier."""
    device = next((p.device for p in net.parameters()), torch.device("cpu"))
    size = "x".join(map(str, shape))
    remedy = "give --size or --channels"
    try:
        with torch.no_grad(), plugins.foreign(name, TeacherError, f"fails on a {size} image"):
            output = net(torch.zeros(1, *shape, device=device))
    except TeacherError as error:
        raise TeacherError(f"{error}; {remedy}") from error
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != 1 or not output.shape[1]:
        kind = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise TeacherError(f"{name} is not a classifier: for one image it gives {kind}, not logits (1, classes)")
    if not output.is_floating_point():
        kind = str(output.dtype).removeprefix("torch.")
        raise TeacherError(f"{name} is not a classifier: for one image it gives {kind}, not logits (1, classes)")
    if not bool(output.isfinite().all()):
        raise TeacherError(f"{name}: the logits of an image of mean pixels are NaN or infinite; look at its weights")
    return output.shape[1]


class TargetKind(Settings, heading="Soft labels"):
    task: Annotated[Literal["single", "multi"] | None, "targets: one class or multi-label; default: the data's"] = None


class TestData(Settings, heading="Test data"):
    __test__ = False  # no test of pytest's

    test: Annotated[ImageDataset | str | Path | None, OUTSIDE, "labelled data for accuracy: a data set or .npz"] = None

    def open_test(self) -> ImageDataset | None:
        """The test data, if there are any; see `open_test`."""
        return self.test if self.test is None or isinstance(self.test, ImageDataset) else open_test(self.test)


class ShowSettings(TeacherSettings, TestData, ForwardBatch, Hardware):
    """The test."""

    precision: str = "fp32"


@command
def show(
    teacher: Annotated[str, "where the network comes from: " + SOURCES + " (FILE.py is executed)"],
    settings: ShowSettings,
) -> dict[str, Any]:
    """Load a trained network and print its input, classes, size, BatchNorm layers and accuracy on real data.

    Example:
        phosphene teacher show digits

    Raises:
        TeacherError: the network cannot be loaded or does not fit its checkpoint.
        DatasetError: the test data has another shape or other classes.
    """
    from ..costs import budget

    loaded = settings.load(teacher)
    norms = [layer for layer in loaded.net.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    facts = loaded.describe() | {
        "params": budget.params(loaded.net),
        "macs": budget.macs(loaded.net, loaded.shape),
        "batchnorm_layers": len(norms),
    }
    if not norms:
        facts["note"] = "no BatchNorm statistics to match: synthesize with --bn-weight 0"
    if (test := settings.open_test()) is not None:
        machine = decide_machine(settings.device, settings.precision)
        facts |= {"test": str(settings.test)} | accuracy(loaded, test, machine, settings.batch)
    return facts


def check_images(data: ImageDataset, teacher: Teacher) -> None:
    """Raise `DatasetError` where the images do not have the teacher's input shape."""
    if data.seen != teacher.shape:
        theirs, ours = ("x".join(map(str, shape)) for shape in (data.seen, teacher.shape))
        raise DatasetError(f"{data.card.name} has {theirs} images, {teacher.name} takes {ours}; give another --data")


def accuracy(teacher: Teacher, data: ImageDataset, machine: Machine | None = None, batch: int = 500) -> dict[str, Any]:
    """Top-1 accuracy in percent, and the number of images it was measured on.

    Raises:
        DatasetError: the data has images of another shape, other classes, or multi-label targets.
    """
    card = data.card
    if card.task != "single":
        raise DatasetError(f"{card.name} has multi-label targets; `phosphene evaluate` measures those")
    for what, theirs, ours in (("shape", tuple(card.shape), teacher.shape), ("classes", card.classes, teacher.classes)):
        if theirs != ours:
            raise DatasetError(f"{card.name} has {what} {theirs}, but {teacher.name} has {ours}; give another data set")
    if not len(data):
        raise DatasetError(f"{card.name} holds no images; give another data set")
    right = 0
    for start in range(0, len(data), batch):
        index = torch.arange(start, min(start + batch, len(data)))
        predictions = teacher.logits(data.pixels(index), machine, batch).argmax(1)
        right += int((predictions.numpy() == data.labels[index.numpy()]).sum())
    return {"accuracy": round(100 * right / len(data), 4), "images": len(data)}


def open_test(data: str | Path) -> ImageDataset:
    """A data set folder, `digits` (the bundled test half), or an .npz with images and labels.

    The .npz has `x_test` and `y_test` (or `test_images` and `test_labels`, or `images` and `labels`): uint8,
    ``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)``.

    Raises:
        DatasetError: it is neither, is damaged, or holds no images.
    """
    path = Path(__file__).parents[1] / "bundled" / "digits_test.npz" if str(data) == "digits" else Path(data)
    if path.suffix != ".npz":
        return ImageDataset.open(path)
    if not path.is_file():
        raise DatasetError(f"--test {path}: there is no such file")
    with arrays.read_npz(path) as stored:
        names = next((pair for pair in NPZ if pair[0] in stored.files and pair[1] in stored.files), None)
        if names is None:
            expected = ", ".join(" and ".join(pair) for pair in NPZ)
            raise DatasetError(
                f"{path} has {shown(', '.join(stored.files), str)}; one of these pairs is needed: {expected}"
            )
        images, labels = npz.member(stored, names[0]), npz.targets(npz.member(stored, names[1]), f"{path}:{names[1]}")
    if images.ndim not in (3, 4) or labels.ndim != 1 or not 0 < len(images) == len(labels):
        wanted = "(N, H, W), (N, H, W, C) or (N, C, H, W), and as many labels, at least one, are needed"
        raise DatasetError(f"{path} has images of shape {images.shape} and labels of {labels.shape}; {wanted}")
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[1] not in (1, 3):
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return ImageDataset.from_arrays(images, labels=labels, name=path.stem, origin="real")
