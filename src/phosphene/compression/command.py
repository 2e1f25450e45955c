"""`phosphene compress`: from a trained network to a smaller file, in one command.

Every stage is a command of its own in a folder of its own, with that command's identity and resume:

    images/              phosphene synthesize              (unless --data)
    given/  given-int8/  phosphene export                  the original network, as a file of the same format
    search/              phosphene search spos             (--student search)
    small/               phosphene prune | train           the compressed network, trained on the original's soft labels
    float/  int8/        phosphene export                  the compressed files
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from .. import plugins
from ..data.dataset import ImageDataset
from ..errors import DatasetError, MissingExtra
from ..evaluation.evaluate import evaluate
from ..reporting.html import report
from ..runtime.machine import machine as decide_machine
from ..runtime.progress import say
from ..runtime.run import Run
from ..settings import command
from ..storage import typed
from ..storage.typed import write_json
from ..teachers import loaders
from ..teachers.teacher import Teacher
from ..teachers.teacher import load as load_teacher
from ..training.setup import Trained
from .measure import Latencies, Stage, draw, figures_of, label, latencies, seen
from .stages import Pipeline, split
from .target import Compression, checked

__all__ = ["Compressed", "compress"]

TIMES, FIGURE, PAGE = "latency.json", "compress.png", "report.html"
NEEDS = {"onnx": ("onnx", "onnxruntime", "onnxscript"), "int8": ("torchao",), "prune": ("torch_pruning",)}


@dataclass(frozen=True)
class Compressed:
    """The run's folder, the compressed network, what is known of every file, and the times, which no result holds."""

    path: Path
    net: Trained
    result: dict[str, Any]
    latency: dict[str, Any]

    @property
    def file(self) -> Path:
        """The compressed file."""
        return self.path / str(self.result["file"])

    def summary(self) -> dict[str, Any]:
        """The result, with times and places: what `--json` gives and recipes read."""
        result, times = dict(self.result), self.latency.get("ms", {})
        stages, target = result.pop("stages"), result.pop("target")
        files = {name: one | ({"ms": times[name]} if name in times else {}) for name, one in stages.items()}
        about = {key: self.latency[key] for key in ("runtime",) if key in self.latency}
        shown = {"run": str(self.path), **result, "file": str(self.file), **about, "report": str(self.path / PAGE)}
        target = target | self.latency.get("target", {})
        return {**shown, **({"target": target} if target else {}), "stages": files}

    def printed(self) -> dict[str, Any]:
        """The summary as a table has it: the original and the compressed network under these names."""
        summary = self.summary()
        return summary | {"stages": {label(name): one for name, one in summary["stages"].items()}}


@command
def compress(teacher: Annotated[str, "the trained network: " + loaders.SOURCES], settings: Compression) -> Compressed:
    """Compress a trained network without its data: synthesize, prune or search, distil, export, and compare.

    Example:
        phosphene compress digits --macs 50% --int8 --test digits --out small
        phosphene compress torchvision:resnet18 --target "latency<60%" --images 5000 --int8 --with-preprocessing

    The table has one line for each file: the original and the compressed network, in float and in int8. `agreement` is
    that with the original network's predictions on synthesized images that nothing was trained on: it is no accuracy.
    All files are timed in one run of one runtime, on one thread. The same command again resumes at the stage reached.

    Raises:
        SettingsError: a flag has a value that cannot be used.
        TeacherError: the network cannot be loaded or traced.
        DatasetError: --data or --test does not fit the network.
        BudgetError: no network within the bounds is found, or the original network is within them.
        ExportError: the compressed network has no such file.
        MissingExtra: a package that a stage needs is not installed.
    """
    bounds = settings.bounds()
    _check_installed(settings)
    original = settings.load(teacher)
    data, test = _open(settings, original)
    identity = settings.identity() | {"target": bounds}
    identity |= {"code": code} if (code := plugins.code("width", "spos")) else {}
    inputs = [original.fingerprint, *(one.fingerprint for one in (data, test) if one is not None)]
    machine = decide_machine(settings.device, settings.precision)
    run = Run.start("compress", settings, identity, inputs, machine)
    pipeline = Pipeline(run, teacher, settings, bounds, original, test)
    if settings.estimate:
        raise pipeline.estimate(data)
    return _run(pipeline, data)


def _open(settings: Compression, original: Teacher) -> tuple[ImageDataset | None, ImageDataset | None]:
    """The images and the test data, checked: of the network's input and of one task."""
    data = None if settings.data is None else ImageDataset.open(settings.data)
    if data is not None:
        seen(data.subset(range(min(8, len(data)))), original)
    test = settings.open_test()
    if test is not None and test.card.task != ("single" if data is None else data.card.task):
        kinds = {"single": "classes", "multi": "multi-label targets"}
        whose = "synthesized images have classes" if data is None else f"{data.card.name} has {kinds[data.card.task]}"
        raise DatasetError(f"{test.card.name} has {kinds[test.card.task]}, but {whose}; give --data of the same kind")
    return data, test


def _check_installed(settings: Compression) -> None:
    """Raise `MissingExtra` where a package is missing that a later stage needs."""
    extras = [settings.to] if settings.to == "onnx" else ["int8"] if settings.to == "torch" and settings.int8 else []
    for extra in [*extras, *(["prune"] if settings.by_criterion else [])]:
        if missing := [name for name in NEEDS[extra] if importlib.util.find_spec(name) is None]:
            raise MissingExtra(missing[0], extra)


def _run(pipeline: Pipeline, data: ImageDataset | None) -> Compressed:
    """Every stage, or the rest of them."""
    run = pipeline.run
    if pipeline.test is not None:
        evaluate(pipeline.original, data=pipeline.test, device=pipeline.settings.device, out=run.path / "test")
    images = data if data is not None else pipeline.images()
    learnt, held = split(images, run.seed)
    before = pipeline.exports("given", pipeline.original, images, original=True)
    small = pipeline.small(learnt, pipeline.shared_bounds(before))
    if run.finished is None:
        _finish(pipeline, images, held, before, small)
    else:
        say(f"{run.path} is finished")
    if run.machine.rank == 0 and not (run.path / PAGE).is_file():
        inside = sorted(path.parent for path in run.path.glob("*/result.json"))
        report([str(folder) for folder in (run.path, *inside)], out=run.path / PAGE)
    result, times = run.finished, run.path / TIMES
    assert result is not None
    return Compressed(run.path, small, result, dict(typed.read(times, Latencies)) if times.is_file() else {})


def _finish(
    pipeline: Pipeline, images: ImageDataset, held: ImageDataset, before: dict[str, Stage], small: Trained
) -> None:
    """Export the compressed network, and measure all files."""
    run, original, info = pipeline.run, pipeline.original, small.info
    known = {"mean": info["mean"], "std": info["std"], "size": info["shape"][1:], "class_names": info["class_names"]}
    # the name stands in files
    compressed = replace(load_teacher(small.net, **known), name=f"{original.name}, smaller")
    stages = before | pipeline.exports("small", compressed, images)
    if run.machine.rank:
        run.finish({})
        return
    pixels = seen(held, original)
    logits = original.logits(pixels)
    files = {name: figures_of(stage, pixels, logits, pipeline.test) for name, stage in stages.items()}
    last, final = list(stages.items())[-1]
    times = _times(pipeline, stages, last)
    draw({name: one | ({"ms": times[name]} if times else {}) for name, one in files.items()}, run.path / FIGURE)
    reached = {name: float(files[last][name]) for name in ("params", "macs")}
    about = {"network": original.name, "file": str(final.exported.file.relative_to(run.path))}
    about |= {"compared_on": f"{len(held)} images ({images.card.origin}), none of them trained on"}
    run.finish({**about, "target": checked(pipeline.bounds, files["given"], reached), "stages": files})


def _times(pipeline: Pipeline, stages: dict[str, Stage], last: str) -> dict[str, float]:
    """Milliseconds of each file; says where the bound is missed. None of safetensors, which has no runtime."""
    if pipeline.settings.to == "safetensors":
        return {}
    file = pipeline.run.path / TIMES
    times = latencies(stages, file, pipeline.run.seed)
    ms: dict[str, float] = times["ms"]
    kept = checked(pipeline.bounds, {"latency": ms["given"]}, {"latency": ms[last]})
    write_json(file, times | {"target": kept})
    if not all(one["kept"] for one in kept.values()):
        say(f"the file takes {ms[last]} ms, above the bound; lower --latency a little")
    return ms
