"""The command line: the table of commands (`commands.py`), each imported only when it is called.

Flags are the settings of a command (`settings.py`); what the function returns is printed as a table, or as one
JSON object with `--json`.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from .__version__ import __version__
from .commands import COMMANDS, GROUPS, PERCENT, SHARES, function, is_method, registered
from .errors import Estimate, SettingsError
from .runtime import ending, environment, start
from .runtime.progress import print_messages
from .settings import Ge, Setting, examples, settings, summary

THREADS = Setting("threads", int, None, "CPU threads; default: all cores", bounds=(Ge(1),))
OPTIONS = 24  # letters of a flag's options that stand beside it; longer ones stand in its help
WORDS = {None: "none", "": "none", True: "on", False: "off"}  # of values in a help
COMPILED = {"synthesize", "train"}  # a supernet's many small pieces take longer to compile than they save


class Lazy(click.Group):
    """A group whose commands are imported when they are called, so that `--help` needs no torch."""

    def __init__(self, prefix: str = "", **options: Any) -> None:
        super().__init__(name=prefix.strip() or "phosphene", no_args_is_help=True, **options)
        self.prefix = prefix

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names at this level, in the table's order."""
        every = [*COMMANDS, *(registered() if self.prefix == "search " else ())]
        names = [name.removeprefix(self.prefix).split()[0] for name in every if name.startswith(self.prefix)]
        return list(dict.fromkeys(names))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now, or the group of this name."""
        full = self.prefix + cmd_name
        if full in GROUPS:
            return Lazy(full + " ", help=GROUPS[full])
        return command(full) if full in COMMANDS or cmd_name in self.list_commands(ctx) else None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """As click does; `quantize gdfq NET` is a command of its own, a misspelt name gets the nearest one."""
        method = " ".join([self.prefix + args[0], *args[1:2]])
        if method in COMMANDS and args[0] not in GROUPS:
            return method, command(method), args[2:]
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), 1)
            raise click.UsageError(f"{error.message}" + (f" Did you mean {near[0]}?" if near else ""), ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table of commands, from the table: nothing is imported."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._summary(self.prefix + name)) for name in self.list_commands(ctx)])

    def _summary(self, full: str) -> str:
        if full in GROUPS:
            return GROUPS[full]
        return COMMANDS[full].summary if full in COMMANDS else summary(registered()[full])


class Flags(click.Command):
    """A command whose help has its flags under the headings of their concerns, then its methods and examples."""

    def __init__(self, groups: Mapping[str, str], examples: list[str], **options: Any) -> None:
        super().__init__(**options)
        self.groups, self.examples = groups, examples

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """One section a concern, in the order in which the concerns first come; how it runs and prints comes last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and not isinstance(parameter, click.Argument):
                sections.setdefault(self.groups.get(parameter.name or "", "") or "Options", []).append(record)
        for last in ("The run", "Options"):
            if last in sections:
                sections[last] = sections.pop(last)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The methods that are commands of their own, and examples that can be copied."""
        prefix = f"{self.name} "
        methods = [(name.removeprefix(prefix), c.summary) for name, c in COMMANDS.items() if name.startswith(prefix)]
        if methods:
            with formatter.section(f"Methods, each with its own settings (phosphene {prefix}METHOD --help)"):
                formatter.write_dl(methods)
        if self.examples:
            with formatter.section("Examples" if self.examples[1:] else "Example"):
                for line in self.examples:
                    formatter.write(textwrap.indent(_continued(line, formatter.width - 4), "  ") + "\n")


def _continued(line: str, width: int) -> str:
    """A command of several lines, as a shell reads it."""
    lines = textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False)
    return " \\\n    ".join(lines)


def command(name: str) -> click.Command:
    """The click command of a function: its settings as flags, and `--json`."""
    call_it = function(name)
    declared = settings(call_it)
    groups = {setting.name: setting.group for setting in declared}
    parameters = [_parameter(setting) for setting in declared]
    if "device" in groups:
        parameters.append(_parameter(THREADS))
        groups["threads"] = groups["device"]
    if name in COMPILED:
        note = "compile the hot loop by torch.compile: a minute or more before the first step"
        parameters.append(click.Option(["--compile"], is_flag=True, help=note))
        groups["compile"] = groups["device"]
    parameters.append(click.Option(["--json", "as_json"], is_flag=True, help="print one JSON object"))
    many = {setting.name for setting in declared if setting.many}

    def call(as_json: bool, threads: int | None = None, compile: bool = False, **values: Any) -> None:
        _prefer(threads, compile)
        _note_method(name, getattr(call_it, "method_flag", None), values)
        keywords = {key: list(value) or None if key in many else value for key, value in values.items()}
        start.work()
        _print(_result(call_it(**keywords), as_json), as_json, name)

    return Flags(groups, examples(call_it), name=name, params=parameters, callback=call, help=summary(call_it))


def _note_method(name: str, flag: str | None, values: Mapping[str, Any]) -> None:
    """Say what `--method X` is called now."""
    if flag is not None and values.get(flag) is not None:
        click.echo(f"phosphene: `{name} --{flag} {values[flag]}` is `{name} {values[flag]}` now; both work", err=True)


def _prefer(threads: int | None, compiled: bool) -> None:
    if threads or compiled:
        from .runtime.machine import PREFERENCES

        PREFERENCES.threads, PREFERENCES.compile = threads, compiled


def _parameter(setting: Setting) -> click.Parameter:
    kind: Any = click.Choice(setting.options) if setting.options else _click_type(setting)
    if setting.required:
        nargs = -1 if setting.many else 1
        return click.Argument([setting.name], type=kind, nargs=nargs, required=True, help=setting.help)
    if setting.kind is bool:
        both = setting.default is not False
        flags = f"{setting.flag}/--no-{setting.flag[2:]}" if both else setting.flag
        return click.Option([flags, setting.name], is_flag=True, default=setting.default, help=_help(setting))
    options = {"default": setting.default, "help": _help(setting), "multiple": setting.many}
    return click.Option([setting.flag, setting.name], type=kind, metavar=_metavar(setting), **options)


def _metavar(setting: Setting) -> str:
    """What stands for the value in the help: the options where they are short, else the kind of value."""
    options = f"[{'|'.join(setting.options)}]"
    if setting.options and len(options) <= OPTIONS:
        return options
    return "NAME" if setting.options else {int: "INT", float: "FLOAT", Path: "PATH"}.get(setting.kind, "TEXT")


def _help(setting: Setting) -> str:
    """The help with the default and the bounds: ``learning rate  [default: .1 (fast), .25 (paper); above 0]``."""
    notes = []
    if setting.presets:
        notes.append("default: " + _by_preset(setting.presets))
    elif setting.kind is bool:
        notes += ["default: on"] if setting.default else []
    elif setting.default not in (None, "", []):
        default = setting.default
        notes.append(f"default: {f'{default:g}' if isinstance(default, float) else default}")
    notes += [setting.range] if setting.bounds and setting.name != "seed" else []
    notes += ["one of " + ", ".join(setting.options)] if _metavar(setting) == "NAME" else []
    return setting.help + (f"  [{'; '.join(notes)}]" if notes else "")


def _by_preset(presets: tuple[tuple[str, Any], ...]) -> str:
    """What each preset says, once for those that agree: ``40 (fast), 2000 (paper-cifar, smoke)``."""
    names: dict[str, list[str]] = {}
    for name, value in presets:
        plain = value not in (None, "") and not isinstance(value, bool)
        names.setdefault(str(value) if plain else WORDS[value], []).append(name)
    if len(names) == 1:
        return next(iter(names))
    return ", ".join(f"{value} ({', '.join(who)})" for value, who in names.items())


def _click_type(setting: Setting) -> Any:
    if setting.kind in (int, float):
        return Number(setting)
    return click.Path(path_type=Path) if setting.kind is Path else setting.kind


class Number(click.ParamType[Any]):
    """A number within the setting's bounds; floats are finite, since every comparison with NaN is false."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.name = setting, "integer" if setting.kind is int else "float"
        self.plain: click.ParamType[Any] = click.INT if setting.kind is int else click.FLOAT

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or click's error."""
        number = self.plain.convert(value, param, ctx)
        try:
            self.setting.check_bounds(number)
        except SettingsError as error:
            raise click.UsageError(str(error), ctx) from None
        return number


def _result(returned: Any, as_json: bool) -> dict[str, Any]:
    """What is printed: a result may have names of its own in a table, by `printed`."""
    if isinstance(returned, dict):
        return returned
    if not as_json and hasattr(returned, "printed"):
        return dict(returned.printed())
    return returned.summary() if hasattr(returned, "summary") else {"result": str(returned)}


def _print(result: dict[str, Any], as_json: bool, name: str = "") -> None:
    """The result of a command, by the first process where there are several."""
    if environment.ranks()[0] > 0:
        return
    if as_json:
        from .storage.typed import defined

        click.echo(json.dumps(defined(result), default=str, allow_nan=False))
        return
    from rich.console import Console

    from .drawing.console_table import Units, table

    console, known = Console(), name.rpartition(" ")[0] if is_method(name) else name
    console.print(table(result, console.width, Units(PERCENT.get(known, ()), SHARES.get(known, ()))))


def main() -> None:
    """Run the command line.

    An error is one line on standard error and an exit status of `ending`; with `--json`, also one JSON object on
    standard output: ``{"error": MESSAGE, "kind": CLASS}``.
    """
    print_messages()
    ending.print_anything()
    if start.HANDLED:
        ending.watch_others()
    as_json = "--json" in sys.argv[1:]
    try:
        _run(as_json)
        ending.flush()
        start.end()
    except BaseException as error:
        start.end()
        _fail(ending.of(error), as_json)


def _run(as_json: bool) -> None:
    """The command, its estimate, or the help."""
    environment.check()
    try:
        _invoke(_group())
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
    except Estimate as estimate:
        _print(estimate.needs, as_json)


def _invoke(group: click.Command) -> None:
    """As `group.main` does, which calls the end of a file an interruption, and prints a line before one."""
    if "_PHOSPHENE_COMPLETE" in os.environ:
        group.main(prog_name="phosphene")  # a shell asks for completions
    try:
        with group.make_context("phosphene", sys.argv[1:]) as context:
            group.invoke(context)
    except click.exceptions.Exit:
        pass  # --help and --version have printed what they print


def _fail(end: ending.End, as_json: bool) -> None:
    """Say how it ended, where anybody listens, and leave with that status."""
    if end.status != start.INTERRUPTED:
        _release()
    try:
        if as_json and os.environ.get("RANK", "0") in ("", "0"):
            click.echo(json.dumps({"error": end.message, "kind": end.kind}))
        if end.status != ending.UNREAD:
            print(f"phosphene: {end.message}", file=sys.stderr, flush=True)
    except OSError:
        pass  # the output is gone, or full: the exit status tells
    ending.let_go()
    sys.exit(end.status)


def _group() -> click.Command:
    group = Lazy(
        help="Search, distil and compress image networks without the images they were trained on.\n\n"
        "Start with: phosphene demo",
        params=[_switch("--no-checksums", environment.CHECKSUMS, "off"), _switch("--follow", environment.FOLLOW, "1")],
    )
    return click.version_option(__version__, prog_name="phosphene")(group)


SWITCHES = {
    "--no-checksums": "read artifacts without comparing their checksums: for sets that take minutes to read",
    "--follow": "let the card of a data set lead to images outside of its folder; only for cards that you trust",
}
"""flags of every command, which stand before it: `phosphene --no-checksums COMMAND`"""


def _switch(flag: str, variable: str, value: str) -> click.Option:
    """A flag that sets an environment variable, for this process and the workers it starts."""

    def set_variable(context: click.Context, option: click.Parameter, given: bool) -> None:
        if given:
            os.environ[variable] = value

    note = f"{SWITCHES[flag]}  [as {variable}={value}]"
    return click.Option([flag], is_flag=True, expose_value=False, callback=set_variable, help=note)


def _release() -> None:
    """Give back run folders in which nothing was begun; only what was imported anyway can have taken one."""
    identity = sys.modules.get("phosphene.runtime.identity")
    if identity is not None:
        identity.release()


if __name__ == "__main__":
    main()
