"""`phosphene export`: a trained network as ONNX, torch.export's .pt2 or safetensors, in float or in int8."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ...data.dataset import ImageDataset
from ...errors import DatasetError, SettingsError
from ...models import weights
from ...runtime.machine import Machine
from ...runtime.progress import say
from ...runtime.run import Run
from ...settings import OUTSIDE, Ge, Output, Seed, Settings, command
from ...storage import checksums, whole
from ...storage.typed import read_json, write_json
from ...synthesis.inversion.command import synthesize
from ...teachers.teacher import TargetKind, Teacher, TeacherSettings, TestData, check_images
from ..quantize.network import load_quantized
from .check import accuracy, center_crops, measure_latency, noise_images, parity
from .graph import ExportedFile, Job

__all__ = ["ExportSettings", "Exported", "FileFormat", "export", "format_module"]

CHECKED = 256  # images, beside noise, that a file is compared on


class FileFormat(Settings, heading="The exported file"):
    to: Annotated[Literal["onnx", "torch", "safetensors"], "file: ONNX, torch.export's .pt2, or weights alone"] = "onnx"
    int8: Annotated[bool, "int8 weights and activations; no float weights are left in the file"] = False
    with_preprocessing: Annotated[bool, "the file takes uint8 RGB (N, H, W, C) and gives probabilities"] = False


class ExportSettings(TargetKind, FileFormat, TestData, TeacherSettings, Output, Seed, heading="Calibration and checks"):
    quantized: Annotated[Path | None, "run of `phosphene quantize` on this network, whose grid int8 takes over"] = None
    data: Annotated[ImageDataset | str | Path | None, "images of int8's calibration and comparison, or `noise`"] = None
    images: Annotated[int, Ge(1), "calibration images of int8, from --data or synthesized where there is none"] = 256
    latency: Annotated[bool, OUTSIDE, "time the file on one thread, int8 beside float"] = True

    @property
    def noise(self) -> bool:
        """Whether noise is all that there is to calibrate on."""
        return str(self.data) == "noise"


@dataclass(frozen=True)
class Exported:
    """The folder of an export, what is known of its file, and the file's latency here (None: not timed)."""

    path: Path
    result: dict[str, Any]
    latency: dict[str, Any] | None

    @property
    def file(self) -> Path:
        """The exported file."""
        return self.path / str(self.result["file"])

    def summary(self) -> dict[str, Any]:
        """What the command prints."""
        return {"run": str(self.path), **self.result, **(self.latency or {})}


@command
def export(
    network: Annotated[Teacher | nn.Module | str, "run folder, or any trained network of `phosphene teacher show`"],
    settings: ExportSettings,
) -> Exported:
    """Write a trained network as ONNX, torch.export's .pt2 or safetensors, in float or in int8, and compare the two.

    Example:
        phosphene export digits --to onnx
        phosphene export student --to onnx --int8 --data d --with-preprocessing
        phosphene export digits --to torch --int8 --quantized small

    The number of images is free in ONNX and .pt2. The file's outputs are compared with the network's on noise and on
    `--data`: the greatest difference, and the percentage of equal arg-max. int8 is calibrated on synthesized images, or
    on noise where the network has no BatchNorm to synthesize by; a file that keeps float weights is refused.

    Raises:
        ExportError: the network has no such form, the file's outputs differ, or int8 would keep float weights.
        SettingsError: a flag cannot be used.
        TeacherError: the network cannot be loaded.
        DatasetError: the data do not fit the network.
        MissingExtra: onnx and onnxruntime, or for int8 with --to torch torchao, are not installed.
    """
    _check(network, settings)
    loaded = settings.load(network)
    teacher = replace(loaded, net=_plain_copy(loaded.net))
    data, test = _open(settings, teacher), settings.open_test()
    task = settings.task or ("single" if data is None else data.card.task)
    job = Job(teacher, settings.int8, settings.with_preprocessing, task)
    grid = None
    if settings.quantized is not None:
        job = replace(job, quantized=load_quantized(settings.quantized, teacher.net))
        grid = weights.digest(weights.read(settings.quantized / "quantized.safetensors"))
    identity: dict[str, Any] = {"to": settings.to, "int8": job.int8, "preprocessing": job.preprocessing}
    identity["task"] = task
    calibrates = job.int8 and grid is None
    identity |= {"images": settings.images, "noise": settings.noise} if calibrates else {"quantized": grid}
    inputs = [teacher.fingerprint, *(one.fingerprint for one in (data, test) if one is not None)]
    machine = Machine(torch.device("cpu"), channels_last=False)
    run = Run.open("export", identity, inputs, settings.out, machine, seed=settings.seed)
    if run.finished is not None:
        return _finished(run, settings)
    job, compared, origin = _images(run, job, data, settings)
    return _write(run, job, settings, compared, origin, test)


def format_module(to: str) -> Any:
    """The module of a `--to`: its `make` turns a `Job` into an `ExportedFile`."""
    return importlib.import_module(f".{to}", __package__)


def _open(settings: ExportSettings, teacher: Teacher) -> ImageDataset | None:
    """The images of `--data`, checked; None for noise or none."""
    if settings.data is None or settings.noise:
        return None
    data = ImageDataset.open(settings.data)
    check_images(data, teacher)
    if not len(data):
        raise DatasetError(f"{data.card.name} has no images; give another --data")
    return data


def _finished(run: Run, settings: ExportSettings) -> Exported:
    """The export of a folder that is finished."""
    say(f"{run.path} is finished")
    assert run.finished is not None
    timing = run.path / "latency.json"
    if settings.latency and settings.to != "safetensors" and not timing.exists():
        say(f"{run.path} was not timed; to have it timed, name another --out")
    return Exported(run.path, run.finished, read_json(timing) if timing.exists() else None)


def _images(
    run: Run, job: Job, data: ImageDataset | None, settings: ExportSettings
) -> tuple[Job, dict[str, Tensor], dict[str, Any]]:
    """The job with its calibration images, the images to compare on by name, and what the result says of both."""
    compared, shape = {"noise": noise_images(job, run.seed)}, job.teacher.shape
    calibrates = job.int8 and job.quantized is None
    if calibrates and data is None and not settings.noise and _has_statistics(job.teacher.net):
        folder = run.path / "images"
        data = synthesize(
            job.teacher, images=settings.images, out=folder, seed=run.seed, device="cpu", precision="fp32"
        )
    taken = 0 if data is None or not calibrates else min(settings.images, len(data))
    if data is not None:
        compared["images"] = center_crops(data, _compared(len(data), taken), shape)
    if not calibrates:
        return job, compared, {}
    if data is None:
        calibration, origin = noise_images(job, run.seed + 1, settings.images), "noise"
    else:
        calibration, origin = center_crops(data, range(taken), shape), data.card.origin
    return replace(job, pixels=calibration), compared, {"calibrated_on": f"{len(calibration)} images ({origin})"}


def _compared(count: int, taken: int) -> range:
    """The last images, without those that calibrated the file if there are any others."""
    return range(max(taken if taken < count else 0, count - CHECKED), count)


def _write(
    run: Run,
    job: Job,
    settings: ExportSettings,
    compared: Mapping[str, Tensor],
    origin: dict[str, Any],
    test: ImageDataset | None,
) -> Exported:
    """Make the file, compare and time it, and write the result; no file where any of it fails."""
    file: ExportedFile = format_module(settings.to).make(job)
    agreement = parity(job, file.predict, compared, exact=not job.int8)
    tested = {} if test is None else accuracy(job, file.predict, test)
    timing = measure_latency(job, file, run.seed) if settings.latency else None
    name = f"network.int8.{file.ending}" if job.int8 else f"network.{file.ending}"
    whole.write(run.path / name, file.content)
    checksums.record(run.path, name)
    if file.description is not None:
        write_json(run.path / "network.json", file.description)
    if timing is not None:
        write_json(run.path / "latency.json", timing)
    sizes = {"mib": len(file.content)} | ({"float_mib": file.float_size} if file.float_size else {})
    result = {
        "file": name,
        "to": settings.to,
        "int8": job.int8,
        "input": job.metadata()["input"],
        "output": job.metadata()["output"],
        **origin,
        **file.notes,
        **agreement,
        **tested,
        "compared_on": {key: len(pixels) for key, pixels in compared.items()},
        "compared_with": "the fake-quantized network" if job.quantized is not None else "the float network",
        **{key: round(size / 2**20, 4) for key, size in sizes.items()},
    }
    return Exported(run.path, run.finish(result), timing)


def _plain_copy(net: nn.Module) -> nn.Module:
    """A copy on the CPU, in the contiguous memory layout, in evaluation mode."""
    copied: nn.Module = copy.deepcopy(net).to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return copied.eval().requires_grad_(False)


def _has_statistics(net: nn.Module) -> bool:
    """Whether BatchNorm keeps statistics of the training data, so that images can be synthesized."""
    return any(isinstance(layer, _BatchNorm) and layer.running_mean is not None for layer in net.modules())


def _check(network: Any, settings: ExportSettings) -> None:
    if settings.quantized is not None and not settings.int8:
        raise SettingsError("--quantized is the quantization grid of int8; give --int8 too, or leave it out")
    if isinstance(network, str | Path) and (Path(network) / "quantized.json").is_file():
        raise SettingsError(
            f"{network} is a run of `phosphene quantize`, which has no design: give the network that was quantized, "
            f"and --int8 --quantized {network}"
        )
