"""What a campaign has shown, as a recorded result for the page of `phosphene results`, and what is left and why."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any, NamedTuple


class Left(NamedTuple):
    """A way to fail that stays, since it is not ours to mend: how it is known, and why."""

    kinds: tuple[str, ...]
    pattern: str
    why: str


LEFT: tuple[Left, ...] = (
    Left(
        ("memory",),
        r"signal SIG(SEGV|ABRT|BUS)",
        "a process whose address space is limited to little more than its imports take (`ulimit -v`) crashed in native "
        "code, where an allocation was refused; Python is never told, and the same command went on without the limit",
    ),
    Left(
        ("resumed",),
        r"differs: [\w-]+/(arch\.json|network\.json|weights\.safetensors|\w+\.npy|result\.json)",
        "a file of a recipe's stage that was finished was damaged, and no later stage read it: finished stages are "
        "compared with their checksums by whoever reads them, not by the recipe",
    ),
    Left(
        ("flags",),
        r"stuck",
        "a network of ten times its width: one step takes longer than the campaign waits after an interrupt, and a run "
        "ends after its step",
    ),
)
FAILURES = {  # what a problem begins with -> what it counts as
    "tracebacks, or faults of the program (exit 70)": r"traceback|exit 70",
    "folders that differ from the undisturbed run": r"differs",
    "runs that could not go on": r"cannot go on|neither went on",
    "NaN or infinities without a word": r"not finite",
    "damaged weights or arrays that went unnoticed": r"unnoticed",
    "stuck processes": r"stuck",
    "signals that nobody sent": r"signal",
    "files written outside of --out, or executed": r"wrote outside|a file was executed",
    "messages that are no single line": r"no message of one line|a message of",
    "other ends": r"",
}


def left(line: dict[str, Any]) -> Left | None:
    """The known exception that a failed attempt is."""
    return next((one for one in LEFT if line["kind"] in one.kinds and re.search(one.pattern, line["problem"])), None)


def record(
    lines: list[dict[str, Any]], seed: int, minutes: float, jobs: int, machine: dict[str, Any]
) -> dict[str, Any]:
    """The result: attempts by kind, kills by command, failures by what they are."""
    known = [one for line in lines if line["problem"] and (one := left(line))]
    failed = [line for line in lines if line["problem"] and not left(line)]
    kinds = Counter(line["kind"] for line in lines)
    kills = Counter[str]()
    for line in lines:
        kills[line["command"]] += line["kills"]
    counted: Counter[str] = Counter(_counts_as(line["problem"]) for line in failed)
    figures = [_figure("attempts", "all", len(lines))]
    figures += [_figure("attempts", kind, count) for kind, count in kinds.most_common()]
    figures += [_figure("kills", "all", sum(kills.values()))]
    figures += [_figure("kills", command, count) for command, count in sorted(kills.items()) if count]
    figures += [_figure("failures", name, counted[name]) for name in FAILURES]
    figures += [_figure("failures", "exceptions that are left, see below", len(known))]
    return {
        "result": "campaign",
        "scale": "cpu",
        "title": "A campaign of attempts at breaking the package",
        "paper": "none; tools/campaign.py",
        "command": f"python tools/campaign.py --minutes {minutes:g} --jobs {jobs} --seed {seed}",
        "seeds": [seed],
        "machine": machine,
        "minutes": round(minutes, 1),
        "core_minutes": round(sum(line["seconds"] for line in lines) / 60, 1),
        "figures": figures,
        "missing": [],
        "notes": notes(lines),
    }


def notes(lines: list[dict[str, Any]]) -> list[str]:
    """How it was counted, and each exception that is left with its reason."""
    told = Counter(one for line in lines if line["problem"] and (one := left(line)))
    return [
        "Each attempt is one command, or a few, on damaged files, odd flags, full disks, too little memory, or killed "
        "and run again; what it may end with: a sound result, or one line that says what to do (exit 2; 1 for lack of "
        "memory; 130 after an interrupt).",
        "After kills, full disks and lack of memory the same command ran to its end; its folder was compared byte by "
        "byte with that of an undisturbed run, but for times, git revisions and pictures.",
        *(f"Left, {count} times: {one.why}." for one, count in told.items()),
    ]


def _counts_as(problem: str) -> str:
    return next(name for name, pattern in FAILURES.items() if re.match(pattern, problem))


def _figure(group: str, label: str, count: int) -> dict[str, Any]:
    return {"label": label, "mean": count, "sd": None, "values": {"0": count}, "digits": 0, "group": group}
