"""The command `phosphene score`: any list of architectures on a trained supernet."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from .. import spaces
from ..core import Architecture, Choices, SearchSpace
from ..costs.budget import count
from ..costs.tables import prices
from ..errors import ArchitectureError, SettingsError
from ..models import weights
from ..runtime.machine import machine as decide_machine
from ..runtime.run import Run
from ..settings import RunSettings, command
from ..spaces.darts.genotype import parse
from ..storage import whole
from . import notation
from .settings import Data, SupernetRun, open_data
from .sizes import of_run
from .supernet.early_stopping import EarlyRejection
from .supernet.evaluator import Figures, Supernet
from .supernet.score_cache import ScoreCache, Scoring, StoredTemperature

CHUNK = 32  # candidates of a step, for each worker


By = Literal["kl", "accuracy", "both"]


class ScoreSettings(Scoring, StoredTemperature, RunSettings):
    by: Annotated[By, "order of the table: by −KL, by accuracy, or by the mean of the two ranks"] = "kl"
    paths: Annotated[bool, "score every path by itself, also where another path is the same network"] = False

    def rejection(self) -> EarlyRejection | None:
        """Early rejection, if any; raises `SettingsError` unless one figure ranks the candidates."""
        if self.give_up is None:
            return None
        if self.by == "both":
            raise SettingsError("--give-up needs one figure; give --by kl or --by accuracy")
        return EarlyRejection(self.give_up, self.by)


@command
def score(
    supernet: SupernetRun,
    archs: Annotated[list[str], "texts, names, arch.json, run folders, or files with one of these a line"],
    *,
    data: Data = None,
    settings: ScoreSettings,
) -> dict[str, Any]:
    """Score architectures on a trained supernet: BatchNorm statistics anew, then predictions on held-out images.

    `kl` is −KL of targets and predictions at the temperature, 0 at best; `accuracy` is in per cent. Scores are kept in
    `scores.jsonl`; the same command resumes the run. `table.csv` has all architectures, the best one first.

    With --give-up 10 an architecture that is hardly among the ten best has its figures predicted from a quarter of
    the images and of the statistics' batches, and is marked `stopped_early`. The best ones have their exact figures.

    Example:
        phosphene score found 22212220 macro-best other/arch.json --data d
        phosphene score found codes.txt --data d --by accuracy --jobs 2 --json

    Raises:
        RunError: the folder has no supernet.
        ArchitectureError: an architecture is none of the supernet's space.
        DatasetError: the data do not fit the supernet.
        SettingsError: a flag cannot be used.
    """
    images, folder = open_data(data), Path(supernet)
    machine = decide_machine(settings.device, settings.precision)
    loaded = Supernet.open(folder)
    space = loaded.space
    named = resolve(archs, space)
    rejection, temperature, seed = settings.rejection(), settings.temperature, settings.seed
    setup = settings.setup(folder, loaded.facts, images, machine, temperature=temperature, seed=seed)
    setup.check(space)
    candidates = list(named.values())
    identity = _identity(settings, [notation(space, choices) for choices in candidates], setup.temperature)
    inputs = [images.fingerprint, weights.digest(loaded.net.state_dict())]
    run = Run.open("score", identity, inputs, settings.out, machine, seed=seed, estimate=settings.estimate)
    journal = run.path / "scores.jsonl"
    scores = ScoreCache(space, setup, journal, machine, settings, paths=settings.paths, rejection=rejection)
    candidates, size = sorted(candidates, key=scores.key), CHUNK * settings.jobs
    rounds = [candidates[k : k + size] for k in range(0, len(candidates), size)]
    rounds = rounds if rejection is None else scores.rounds(candidates)
    for step in run.steps("score", len(rounds)):
        scores(rounds[step])
    if settings.estimate:
        run.finish({})
    scores.close()
    lines = table(named, scores(list(named.values())), of_run(folder)[1], settings.by)
    if rejection is not None:
        lines = [line | {"stopped_early": scores.stopped_early(named[line["architecture"]])} for line in lines]
    if machine.rank == 0:
        _write(lines, run.path / "table.csv")
    count = min(len(setup.valid), settings.score_images or len(setup.valid))
    about = {"images": count, "temperature": setup.temperature if setup.valid.soft else 1.0, "by": settings.by}
    return {**run.finish({**about, "scores": lines}), "out": str(run.path)}


def _identity(settings: ScoreSettings, architectures: list[str], temperature: float) -> dict[str, Any]:
    """The settings that decide the table."""
    identity: dict[str, Any] = {
        "architectures": architectures,
        "by": settings.by,
        "paths": settings.paths,
        "temperature": temperature,
    }
    identity |= {"held_out": settings.held_out, "images": settings.score_images}
    identity |= {"calibration": settings.calibration, "batch": settings.score_batch}
    return identity | ({} if settings.give_up is None else {"give_up": settings.give_up})


def resolve(archs: Sequence[str | Path | Architecture], space: SearchSpace) -> dict[str, Choices]:
    """The architectures by name: complete choices of the space, in order.

    Raises:
        ArchitectureError: an architecture is of another space, or none at all.
        SettingsError: nothing is named, or a file has no line.
    """
    named: dict[str, Choices] = {}
    for arch in archs:
        if isinstance(arch, Architecture):
            choices = _checked(arch, space)
            named[notation(space, choices)] = choices
            continue
        for text in _lines(Path(arch)) if _is_list(Path(arch)) else [str(arch).strip()]:
            named[text] = _choices(text, space)
    if not named:
        raise SettingsError("no architecture to score: name one or more, or a file that has one a line")
    return named


def _is_list(path: Path) -> bool:
    try:
        return path.is_file() and path.suffix != ".json"
    except OSError:  # a text longer than a file's name can be
        return False


def _lines(path: Path) -> list[str]:
    try:
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        remedy = "give a text file with one architecture a line"
        raise SettingsError(f"{path} cannot be read ({error}); {remedy}") from error


def _choices(text: str, space: Any) -> Choices:
    """The choices that a text means: in the space's own notation first, which knows its own depths."""
    try:
        if text.startswith("Genotype("):
            own: Choices = space.choices(parse(text))
        else:
            own = space.choices(text)
        return own
    except (ArchitectureError, AttributeError, TypeError):
        return _checked(spaces.architecture(text), space)


def _checked(arch: Architecture, space: Any) -> Choices:
    if arch.space.get("name") != space.spec["name"]:
        of = arch.space.get("name")
        raise ArchitectureError(f"an architecture of the {of} space is no path of a supernet of {space.spec['name']}")
    space.check(arch.choices)
    return arch.choices


def table(named: dict[str, Choices], figures: Sequence[Figures], final: SearchSpace, by: By) -> list[dict[str, Any]]:
    """A row for each architecture, the best first: its two scores, parameters and MACs of the final network."""
    cost = prices(final, count)
    rows: list[dict[str, Any]] = []
    for (name, choices), one in zip(named.items(), figures, strict=True):
        params, macs = cost.of(choices)
        scores = {"kl": one.kl, "accuracy": 100 * one.accuracy}
        rows.append({"architecture": name, **scores, "params": params, "macs": macs})
    both = [a + b for a, b in zip(*(ranks([one[k] for one in figures]) for k in (0, 1)), strict=True)]
    keys = {"kl": [one.kl for one in figures], "accuracy": [one.accuracy for one in figures], "both": both}
    return [rows[k] for k in sorted(range(len(rows)), key=lambda k: -keys[by][k])]


def ranks(values: Sequence[float]) -> list[float]:
    """The number of smaller values, ties counting half."""
    _, place, counts = np.unique(np.array(values), return_inverse=True, return_counts=True)
    ranks: list[float] = (np.cumsum(counts) - (counts + 1) / 2)[place].tolist()
    return ranks


def _write(rows: Sequence[dict[str, Any]], path: Path) -> None:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    whole.write(path, file.getvalue())
