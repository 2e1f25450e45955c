"""The command line: a table of commands, each a function that is imported only when it is called.

Flags come from the function's signature (`settings.py`); what the function returns is printed as a table, or as one
JSON object with `--json`.
"""

from __future__ import annotations

import difflib
import importlib
import json
import math
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from .__version__ import __version__

COMMANDS = {
    "teacher show": ("phosphene.teacher:show", "What a trained network takes and gives"),
    "synthesize": ("phosphene.synthesis.command:synthesize", "A data set from a trained network alone"),
    "generator train": ("phosphene.synthesis.generator:train", "A generator of images, from a trained network alone"),
    "noise": ("phosphene.synthesis.noise:noise", "The baseline: noise images with the network's rows"),
    "unreal noise": ("phosphene.synthesis.unreal:noise", "Noise images with random labels"),
    "unreal fractal": ("phosphene.synthesis.unreal:fractal", "Fractals, with random labels or their categories"),
    "unreal random-labels": ("phosphene.synthesis.unreal:random_labels", "Real images with random labels"),
    "dataset import": ("phosphene.importing:import_", "Real images from folders, .npz, CIFAR's files, torchvision"),
    "dataset show": ("phosphene.gallery:show", "Counts, entropy and a contact sheet"),
    "dataset compare": ("phosphene.gallery:compare", "The same classes of several data sets side by side"),
    "dataset subset": ("phosphene.subset:subset", "Some of its images, the same share of every class"),
    "dataset label": ("phosphene.labelling:label", "A teacher's rows for images that are there"),
    "dataset export": ("phosphene.exporting:export", "Class folders and a CSV of rows, for other tools"),
    "dataset agreement": ("phosphene.agreement:agreement", "How far an unrelated network agrees with the labels"),
    "search darts": ("phosphene.search.command:darts", "Differentiable search of a cell (DARTS)"),
    "search sgas": ("phosphene.search.command:sgas", "The same, deciding one edge after the other (SGAS)"),
    "search proxyless": ("phosphene.search.proxyless_command:proxyless", "One drawn path at a time (ProxylessNAS)"),
    "search gumbel": ("phosphene.search.gumbel_command:gumbel", "Mixtures sampled by Gumbel-softmax (AutoReCon)"),
    "search spos": ("phosphene.search.command:spos", "A supernet trained path by path, then evolution (SPOS)"),
    "search evolution": ("phosphene.search.command:evolution", "Evolution on the supernet of another search"),
    "search pareto": ("phosphene.search.pareto_command:pareto", "A front of accuracy and up to two costs (NSGA-II)"),
    "search training-free": (
        "phosphene.search.command_training_free:training_free",
        "Evolution on a training-free score: nothing is trained",
    ),
    "search random": ("phosphene.search.command:random", "The baseline: a random architecture within the budget"),
    "score": ("phosphene.search.score:score", "Any architectures on a trained supernet"),
    "latency measure": ("phosphene.latency:measure", "Time the blocks of a space, for searches with --latency"),
    "arch show": ("phosphene.architecture:show", "Parameters, MACs and drawn cells of an architecture"),
    "arch compare": ("phosphene.comparison:compare", "Cells of several architectures side by side, in one picture"),
    "proxies": ("phosphene.proxies.command:proxies", "Scores of architectures without any training"),
    "train": ("phosphene.train:train", "Train an architecture on a data set"),
    "distill": ("phosphene.compress.distil:distill", "A student for a trained network, without its data"),
    "evaluate": ("phosphene.evaluate:evaluate", "Accuracy, calibration and confusion on test data"),
    "quantize": ("phosphene.compress.quantize:quantize", "A trained network in 2 to 8 bits, without its images"),
    "export": ("phosphene.compress.export:export", "ONNX, torch.export's file or safetensors, in float or int8"),
    "prune": ("phosphene.compress.prune:prune", "A trained network with fewer channels, without its images"),
    "compress": ("phosphene.pipeline.compress:compress", "The whole way to a smaller file, stage by stage"),
    "study classes": ("phosphene.studies.classes:classes", "What is found by the number of random classes"),
    "study difficulty": ("phosphene.studies.difficulty:difficulty", "Epochs that a network needs to learn a data set"),
    "study distinguish": ("phosphene.studies.distinguish:distinguish", "Does it rank networks as real data does?"),
    "study which": ("phosphene.studies.which:which", "The data set that ranks most reliably in the same minutes"),
    "study consistency": ("phosphene.studies.consistency:consistency", "How well scores of architectures rank them"),
    "study audit": ("phosphene.studies.audit:audit", "What a made data set is like, and whether it copies real images"),
    "study collapse": ("phosphene.studies.collapse:collapse", "Skip connections by search epoch, on several data sets"),
    "report": ("phosphene.report:report", "One HTML page of any set of runs"),
    "run": ("phosphene.recipe:run", "Run a recipe: a published result, stage by stage"),
    "results": ("phosphene.results:results", "The table of recorded results"),
    "demo": ("phosphene.demo:demo", "The whole chain on a bundled network, offline, in minutes"),
}
COMPILED = {"synthesize", "train"}  # a supernet's many small pieces take longer to compile than they save
GROUPS = {
    "teacher": "Trained networks",
    "generator": "Generators of images",
    "unreal": "Data sets without real images or real labels",
    "dataset": "Data sets of every origin",
    "search": "Architecture search",
    "latency": "Measured times of blocks",
    "arch": "Architectures",
    "study": "Studies: when a data set can be trusted to rank architectures",
}


class Lazy(click.Group):
    """A group whose commands are imported when they are called, so that `--help` needs no torch."""

    def __init__(self, prefix: str = "", **options: Any) -> None:
        super().__init__(name=prefix.strip() or "phosphene", no_args_is_help=True, **options)
        self.prefix = prefix

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names at this level, in the table's order."""
        every = [*COMMANDS, *_registered(self.prefix)]
        names = [name.removeprefix(self.prefix).split()[0] for name in every if name.startswith(self.prefix)]
        return list(dict.fromkeys(names))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now, or the group of this name."""
        full = self.prefix + cmd_name
        if full in COMMANDS or full in _registered(self.prefix):
            return command(full)
        return Lazy(full + " ", help=GROUPS[full]) if full in GROUPS else None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As click does, with the nearest name where there is no such command."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), 1)
            raise click.UsageError(f"{error.message}" + (f" Did you mean {near[0]}?" if near else "")) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table of commands, from the table: nothing is imported."""
        rows = []
        for name in self.list_commands(ctx):
            full = self.prefix + name
            own = _registered(self.prefix)
            rows.append((name, COMMANDS[full][1] if full in COMMANDS else own[full] if full in own else GROUPS[full]))
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _registered(prefix: str) -> dict[str, str]:
    """name -> what it does, of the searches that the user registered; nothing is imported where there are none."""
    if prefix != "search ":
        return {}
    from . import extensions, stages
    from .settings import summary

    stages.calls()  # loads them, and refuses names that are taken
    return {f"search {name}": summary(search) for name, search in extensions.SEARCHES.items()}


def function_of(name: str) -> Callable[..., Any]:
    """The function behind a command's name."""
    if name not in COMMANDS:
        from . import stages

        return stages.function(name)
    module, attribute = COMMANDS[name][0].split(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
    return function


def command(name: str) -> click.Command:
    """The click command of a function: its settings as flags, and `--json`."""
    from .settings import examples, settings, summary

    function = function_of(name)
    declared = settings(function)
    lines = examples(function)
    epilog = "\b\nExample:\n" + "\n".join("  " + line for line in lines) if lines else None
    parameters = [_parameter(setting) for setting in declared]
    if any(setting.name == "device" for setting in declared):
        parameters.append(click.Option(["--threads"], type=click.IntRange(1), help="CPU threads [default: all cores]"))
    if name in COMPILED:
        note = "torch.compile the hot loop: a minute or more before the first step"
        parameters.append(click.Option(["--compile"], is_flag=True, help=note))
    parameters.append(click.Option(["--json", "as_json"], is_flag=True, help="print one JSON object"))

    def call(as_json: bool, threads: int | None = None, compile: bool = False, **values: Any) -> None:
        _prefer(threads, compile)
        lists = {setting.name for setting in declared if setting.many}
        given = {name: list(value) or None if name in lists else value for name, value in values.items()}
        _print(_result(function(**given)), as_json)

    return click.Command(name.split()[-1], params=parameters, callback=call, help=summary(function), epilog=epilog)


def _prefer(threads: int | None, compiled: bool) -> None:
    if threads or compiled:
        from .hardware import PREFERENCES

        PREFERENCES.threads, PREFERENCES.compile = threads, compiled


def _parameter(setting: Any) -> click.Parameter:
    kind: Any = click.Choice(setting.options) if setting.options else _click_type(setting.kind)
    if setting.required:
        return click.Argument([setting.name], type=kind, nargs=-1 if setting.many else 1, required=True)
    if setting.kind is bool and setting.default is not None:
        flags = f"{setting.flag}/--no-{setting.flag[2:]}" if setting.default else setting.flag
        return click.Option([flags, setting.name], is_flag=True, default=setting.default, help=setting.help)
    if setting.kind is bool:
        both = f"{setting.flag}/--no-{setting.flag[2:]}"
        return click.Option([both, setting.name], default=None, help=setting.help)
    if setting.name == "seed":
        kind = Seed()
    shown = setting.default is not None and setting.default != ""
    options = {"default": setting.default, "help": setting.help, "show_default": shown, "multiple": setting.many}
    return click.Option([setting.flag, setting.name], type=kind, **options)


def _click_type(kind: type) -> Any:
    from pathlib import Path

    return {Path: click.Path(path_type=Path), float: Finite()}.get(kind, kind)


class Seed(click.types.IntParamType):
    """What every random generator takes: numpy's take nothing below 0, torch's nothing above 64 bits."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number, or click's error."""
        number = int(super().convert(value, param, ctx))
        if not 0 <= number < 1 << 63:
            self.fail(f"{number} is not between 0 and 2^63.", param, ctx)
        return number


class Finite(click.types.FloatParamType):
    """A float that is neither NaN nor infinite: every comparison with NaN is false, so no check would stop it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, or click's error."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


def _result(returned: Any) -> dict[str, Any]:
    if isinstance(returned, dict):
        return returned
    described: dict[str, Any] = returned.summary() if hasattr(returned, "summary") else {"result": str(returned)}
    return described


def _print(result: dict[str, Any], as_json: bool) -> None:
    if int(os.environ.get("RANK", "0")) > 0:
        return
    if as_json:
        from .files import defined

        click.echo(json.dumps(defined(result), default=str, allow_nan=False))
        return
    from rich.console import Console

    from .tables import table

    Console().print(table(result))


def main() -> None:
    """Run the command line; errors of ours are one line and exit status 2, an interruption is 130."""
    from .errors import Estimate, PhospheneError, Stopped

    group = Lazy(
        help="Search, distil and compress image networks without the images they were trained on.\n\n"
        "Start with: phosphene demo"
    )
    group = click.version_option(__version__, prog_name="phosphene")(group)
    try:
        group(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted; run the same command to go on", 130)
    except PhospheneError as error:
        if not isinstance(error, Stopped):
            _release()
        _fail(str(error), 130 if isinstance(error, Stopped) else 2)
    except MemoryError as error:
        _fail(f"not enough memory ({error}); take fewer or smaller images, or a smaller --batch", 1)
    except OSError as error:
        _fail(f"{error.filename or 'input or output'}: {error.strerror or error}", 2)
    except Estimate as found:
        _print(found.needs, "--json" in sys.argv)


def _release() -> None:
    """Give back run folders in which nothing was begun; only what was imported anyway can have taken one."""
    identity = sys.modules.get("phosphene.identity")
    if identity is not None:
        identity.release()


def _fail(message: str, status: int) -> None:
    print(f"phosphene: {message}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    main()
