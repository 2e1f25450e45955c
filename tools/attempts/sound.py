"""The undisturbed runs and reads, made once for a campaign: what attempts are compared with, and how long they take."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from . import code, forks, readers, stock
from .attempt import Attempt
from .forks import Ended, Job


def make(place: Path) -> dict[str, float]:
    """Make `stock` in the place, or what is missing of it; returns the seconds of each run.

    What fails undisturbed ends the campaign: no failure could be told from it.
    """
    folder = place / "stock"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "files" / "results").exists():
        forks.run(Job([], folder, call=lambda: stock.make_files(folder / "files"), name="files"))
    kept = folder / "seconds.json"
    times: dict[str, float] = json.loads(kept.read_text()) if kept.exists() else {}
    for name in stock.RUNS:
        if name not in times:
            times[name] = _seconds(name, _run(name, folder))
            kept.write_text(json.dumps(times))
    _put_beside(place)
    for i, reader in enumerate(readers.READERS):
        if (name := f"reader {i}") not in times:
            made = Attempt("sound", i, 0, place, times)
            made.prepare()
            times[name] = _seconds(f"{reader.words} < {reader.of}", readers.sound(made, reader))
            kept.write_text(json.dumps(times))
    for i, words in enumerate((*code.WORDS, code.SEARCH)):
        if (name := f"code {i}") not in times:
            made = Attempt("sound", i, 0, place, times)
            made.prepare()
            times[name] = _seconds(words, code.sound(made, words))
            kept.write_text(json.dumps(times))
    return times


def _run(name: str, folder: Path) -> Ended:
    """A run of the table, in its folder of the stock."""
    run = folder / name
    run.mkdir(exist_ok=True)
    if not (run / "stock").is_symlink():
        (run / "stock").symlink_to(folder)
    return forks.run(Job(stock.words(name), run), 300.0)


def _put_beside(place: Path) -> None:
    """What a data set of random labels refers to, seen from the copy of it in an attempt's folder."""
    (place / "attempts").mkdir(exist_ok=True)
    if not (place / "attempts" / "import-npz").is_symlink():
        (place / "attempts" / "import-npz").symlink_to("../stock/import-npz")


def _seconds(what: str, ended: Ended) -> float:
    if ended.status:
        sys.exit(f"the campaign needs every extra of the package, and this to work: {what}\n{ended.errors[-500:]}")
    return ended.seconds
