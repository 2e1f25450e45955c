"""`phosphene prune`: a trained network with fewer channels, without the images it was trained on; by method."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ... import plugins, spaces
from ...core import Architecture
from ...costs import budget as costs
from ...costs.budget import Budget
from ...data.dataset import ImageDataset
from ...errors import Estimate, PhospheneError, SettingsError, TeacherError
from ...evaluation.evaluate import evaluate
from ...models import MODELS, weights
from ...runtime.machine import machine as decide_machine
from ...runtime.progress import say
from ...runtime.run import Run
from ...settings import Hardware, RunSettings, command, ignoring, methods
from ...spaces.fixed import cut
from ...spaces.width.space import WidthSpace
from ...storage import checksums, tensors, typed
from ...storage.typed import write_json
from ...teachers import loaders
from ...teachers.teacher import Network, Teacher
from ...training.setup import Trained
from ...training.train import train
from . import plan
from .criteria import DESCRIPTION, Pruned, alike, chosen, pruned
from .plan import TIMES, Criterion, MetaPruning, Original, Pruning, Recovery, Search, Uniform
from .widths import searched, uniform, widest, width_space

__all__ = ["PrunedRun", "load_pruned", "prune"]

FRESH_LR, TUNED_LR = 0.1, 0.02  # from scratch; of weights that are kept


class PrunedRun(Trained):
    """A pruned network, what is known of it, and the times of both networks, which no result holds."""

    def summary(self) -> dict[str, Any]:
        """What the command prints."""
        file = self.path / TIMES
        times: dict[str, Any] = dict(typed.read(file, plan.Times)) if file.is_file() else {}
        shown = {name: value for name, value in times.items() if name in ("whole_ms", "ms")}
        return {"run": str(self.path), **self.result, **shown}


# -- the methods ------------------------------------------------------------------------------------------------------


@command
def metapruning(teacher: Network, settings: MetaPruning) -> PrunedRun:
    """Search the widths of a network by evolution on a supernet, and train it from scratch (Liu et al. 2019).

    Example:
        phosphene prune metapruning cifar-resnet20 --checkpoint c10.pt --data d --macs 48%..50% --out small
    """
    return _run("metapruning", teacher, settings)


@command
def uniform_widths(teacher: Network, settings: Uniform) -> PrunedRun:
    """Keep the same share of the channels everywhere, and train the network from scratch: the baseline.

    Example:
        phosphene prune uniform cifar-resnet20 --checkpoint c10.pt --data d --macs 50%
    """
    return _run("uniform", teacher, settings)


@command
def magnitude(teacher: Network, settings: Criterion) -> PrunedRun:
    """Remove the channels whose filters have the smallest L1 norm, and train the rest (Li et al. 2017).

    Example:
        phosphene prune magnitude torchvision:resnet18 --data d --macs 50% --epochs 8
    """
    return _run("magnitude", teacher, settings)


@command
def group_norm(teacher: Network, settings: Criterion) -> PrunedRun:
    """Remove the channels of the smallest L2 norm over all weights that make or read them (DepGraph, Fang et al. 2023).

    Example:
        phosphene prune group-norm torchvision:resnet18 --data d --macs 50% --epochs 8
    """
    return _run("group-norm", teacher, settings)


METHODS = {"metapruning": metapruning}
# recipes give the settings of the search to all methods alike: `--method uniform` takes them, `prune uniform` does not
METHODS |= {"uniform": ignoring(uniform_widths, Search), "magnitude": ignoring(magnitude, Search)}
METHODS |= {"group-norm": ignoring(group_norm, Search)}


@methods("method", METHODS, default="metapruning")
def prune(teacher: Network) -> PrunedRun:
    """Prune a trained network's channels without its data, and train what is left on other images (DFNAS, §4.3).

    Example:
        phosphene prune metapruning cifar-resnet20 --checkpoint c10.pt --data d --macs 48%..50% --out small
        phosphene prune group-norm torchvision:resnet18 --data d --macs 50% --epochs 8

    The result is smaller in every tensor, and a network like any other: `phosphene evaluate small`, `train small`,
    `distill T small`. metapruning and uniform train it from scratch, the criteria from the weights that are left. The
    same command again resumes the run at the stage that it had reached.

    Raises:
        SettingsError: a flag has a value that cannot be used, or belongs to another method.
        TeacherError: the teacher cannot be loaded, or torch-pruning cannot trace it.
        DatasetError: the data does not fit the teacher.
        BudgetError: no smaller network is within the bounds.
        MissingExtra: a criterion without torch-pruning.
    """
    raise NotImplementedError  # `methods` calls the method's own command


# -- the stages -------------------------------------------------------------------------------------------------------


def _run(method: str, network: Teacher | nn.Module | str, settings: Pruning) -> PrunedRun:
    """Prune, or read the finished run."""
    if settings.data is None:
        raise SettingsError("--data is missing; give a data set made by `phosphene synthesize` or `dataset import`")
    settings.check_readable()
    teacher, images = settings.load(network), ImageDataset.open(settings.data)
    online = settings.rows == "teacher" or (settings.rows == "auto" and not images.soft)
    figures: dict[str, float] = dict(zip(("params", "macs"), costs.count(teacher.net, teacher.shape), strict=True))
    original = Original(teacher, design_of(network, teacher), images, teacher if online else None, figures)
    original.check()
    space = width_space(teacher, settings.network, method) if isinstance(settings, Uniform) else None
    test = settings.open_test()
    identity = {"method": method, **settings.identity(), "precision": settings.precision}
    identity |= {"space": None if space is None else space.spec}
    if own := plugins.code("width", "spos"):
        identity |= {"code": own}
    inputs = [teacher.fingerprint, images.fingerprint, *([test.fingerprint] if test else [])]
    machine = decide_machine(settings.device, settings.precision)
    run = Run.start("prune", settings, identity, inputs, machine)
    if run.finished is None:
        _Stages(run, method, settings, original, space, test).all()
    else:
        say(f"{run.path} is finished")
    return _read(run, original)


@dataclass
class _Stages:
    """The stages of a pruning, each a run of its own in the run's folder."""

    run: Run
    method: str
    settings: Pruning
    original: Original
    space: WidthSpace | None
    test: ImageDataset | None
    needs: list[dict[str, Any]] = field(default_factory=list)
    """of an estimate, stage by stage"""

    def all(self) -> None:
        """Every stage, or the rest of them."""
        net, architecture = self._pruned()
        trained = self._needing(lambda: self._train(net))
        if self.run.estimating:
            named = [(f"{one['stage']} {name}", phase) for one in self.needs for name, phase in one["phases"].items()]
            raise Estimate.of("prune", [(one, 1) for one in self.needs], phases=dict(named))
        _settle(self.run, trained, architecture or trained.architecture)
        self.run.machine.barrier()
        self.run.finish(self._result(trained))

    def _bounds(self) -> dict[str, str | None]:
        """`--macs`, `--params` and `--latency` as numbers."""
        figures = dict(self.original.figures)
        if "%" in str(self.settings.latency or ""):
            figures |= {"latency": plan.original_time(self.run, self.original.teacher, self.settings)}
        return self.settings.absolute(figures)

    def _pruned(self) -> tuple[Architecture | nn.Module, Architecture | None]:
        """(what is trained, the architecture that rebuilds a network that was cut)."""
        settings, space, run, original = self.settings, self.space, self.run, self.original
        bounds = self._bounds()
        budget = Budget.parse(**bounds)
        if isinstance(settings, MetaPruning):
            assert space is not None
            architecture = self._needing(lambda: searched(run, original, space, bounds, settings))
            return (widest(space) if architecture is None else Architecture(space.spec, architecture.choices)), None
        plan.hard(budget)
        if isinstance(settings, Uniform):
            assert space is not None
            return uniform(run, original, space, budget, settings), None
        assert isinstance(settings, Criterion)
        return pruned(original, {} if run.estimating else chosen(run, original, budget, self.method, settings))

    def _train(self, net: Architecture | nn.Module) -> Trained:
        """Train the pruned network on stored soft labels, or on the teacher's."""
        s, original = self.settings, self.original
        rate = TUNED_LR if isinstance(net, nn.Module) else FRESH_LR
        own = s.keywords(Recovery, RunSettings) | {"out": self.run.path / "train"}
        own |= {"epochs": None if s.steps else s.epochs or 128, "lr": rate if s.lr is None else s.lr}
        return train(net, data=original.images, teacher=original.online, crop=original.crop, **own)

    def _result(self, trained: Trained) -> dict[str, Any]:
        """Costs and accuracies of both networks; times are written to a file of their own."""
        run, original, shape = self.run, self.original, self.original.teacher.shape
        params, macs = costs.count(trained.net, shape)
        about = {"method": self.method, "network": original.teacher.name, "params": params, "macs": macs}
        before = {f"whole_{name}": value for name, value in original.figures.items()}
        shares = {"params_share": params / original.figures["params"], "macs_share": macs / original.figures["macs"]}
        result = {**about, **before, **{name: round(100 * share, 3) for name, share in shares.items()}}
        result |= {"loss": trained.result["loss"], "fingerprint": trained.result["fingerprint"]}
        plan.original_time(run, original.teacher, self.settings)
        if run.machine.rank == 0:
            times = typed.read(run.path / TIMES, plan.Times)
            taken = plan.milliseconds(trained.net, shape, self.settings, run.machine)
            write_json(run.path / TIMES, {**times, "ms": round(taken, 6)})
        return result | self._tested(trained)

    def _tested(self, trained: Trained) -> dict[str, Any]:
        """Both networks on the test data."""
        if self.test is None:
            return {}
        path, here = self.run.path, self.settings.keywords(Hardware)
        small = evaluate(trained, data=self.test, out=path / "test", **here)
        large = evaluate(self.original.teacher, data=self.test, out=path / "test-whole", **here)
        key = "top1" if "top1" in small else "accuracy"
        figures = {"accuracy": small[key], "whole_accuracy": large[key], "test": small["data"]}
        return figures | ({"auc": small["auc"], "whole_auc": large["auc"]} if "auc" in small else {})

    def _needing(self, stage: Callable[[], Any]) -> Any:
        """The result of a stage; of an estimate None, and its needs are noted."""
        try:
            return stage()
        except Estimate as estimate:
            self.needs.append(estimate.needs)
            return None


# -- files ------------------------------------------------------------------------------------------------------------


def design_of(source: Teacher | nn.Module | str, teacher: Teacher) -> Architecture | None:
    """The architecture that builds the teacher's network anew; None for a network of one's own code."""
    text = str(source) if isinstance(source, str | Path) else ""
    name = text.partition("@")[0] if text.startswith("torchvision:") else text
    if not (text.startswith(("torchvision:", "timm:")) or text in MODELS or (text and Path(text).is_dir())):
        return None
    try:
        design = spaces.architecture(name, classes=teacher.classes, shape=teacher.shape)
        with torch.device("meta"):
            net = spaces.network(design)
    except PhospheneError:
        return None
    return design if alike(net, teacher.net) else None


def _settle(run: Run, trained: Trained, architecture: Architecture | None) -> None:
    """The files of the trained network, copied into the run's folder."""
    if run.machine.rank:
        return
    if architecture is not None:
        architecture.save(run.path / "arch.json")
    write_json(run.path / "network.json", trained.info)
    tensors.save(run.path / "weights.safetensors", weights.read(run.path / "train" / "weights.safetensors"))
    checksums.record(run.path, "network.json")


def _read(run: Run, original: Original) -> PrunedRun:
    """The result in the run's folder."""
    result, info, file = run.finished, dict(loaders.read_input(run.path)), run.path / "arch.json"
    assert result is not None
    if file.is_file():
        return PrunedRun(load_pruned(run.path), info, run.path, result, Architecture.load(file))
    return PrunedRun(load_pruned(run.path, original.teacher.net), info, run.path, result, None)


def load_pruned(folder: Path | str, network: nn.Module | None = None) -> nn.Module:
    """The network of a run folder of `phosphene prune`, in evaluation mode.

    Args:
        folder: the run's folder.
        network: the original network, with any weights, where its design is one of your own code; it stays as it is.

    Raises:
        TeacherError: files are missing or damaged, or `network` is missing or another one.
    """
    folder = Path(folder)
    if network is None:
        if not (folder / "arch.json").is_file() and (folder / DESCRIPTION).is_file():
            raise TeacherError(f"{folder} was pruned from a network of one's own code: give it as `network`")
        return loaders.read_network(folder)[0]
    if not (folder / DESCRIPTION).is_file():
        raise TeacherError(f"{folder} has no {DESCRIPTION}: no network was cut there; leave `network` out")
    described = typed.read(folder / DESCRIPTION, Pruned, TeacherError, "prune again")
    net = cut(copy.deepcopy(network).cpu(), described["kept"])
    weights.fit(net, weights.read(folder / "weights.safetensors"), str(folder / "weights.safetensors"))
    return net.eval()
