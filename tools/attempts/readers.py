"""Every file that is read, damaged, and the commands that read it."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import NamedTuple

from phosphene import commands

from . import judge, mutations
from .attempt import Attempt
from .forks import Ended
from .stock import FINAL, HERE, SCORES

SECONDS = 15.0
TRAIN = f"--steps 2 --batch 8 --out out {HERE}"
OUT = f"--out out {HERE} --json"
GREY = "--channels 1 --mean .3056 --std .3759"


class Reader(NamedTuple):
    """A command that reads `subject`, the copy of a folder or file of the stock."""

    words: str
    of: str
    seconds: float = 0.3  # about as long as it takes


DATA = ("made", "noise-stored", "labelled", "fractal-asked", "fractal-stored", "import-npz", "import-chexpert")
READERS = (
    *(Reader("teacher show subject --json", f"{n}/out") for n in ("trained", "student", "magnitude", "distilled")),
    *(Reader(f"evaluate subject --data digits {OUT}", f"{n}/out") for n in ("trained", "student", "magnitude")),
    Reader(f"train subject --data stock/made/out --teacher digits {TRAIN} --channels 2 --cells 2 --json", "darts/out"),
    Reader(f"train subject --data stock/made/out {TRAIN} --json", "spos/out"),
    *(Reader(f"train cifar-resnet8 --data subject {TRAIN} --json", f"{n}/out") for n in DATA),
    *(
        Reader("dataset show subject --out sheet.png --json", f"{n}/out")
        for n in ("made", "noise-asked", "fractal-asked", "labelled", "import-chexpert")
    ),
    Reader("dataset export subject --out out --json", "import-npz/out"),
    Reader("dataset subset subject --images 10 --out out --json", "made/out"),
    Reader("dataset label subject --teacher digits --out out --device cpu --json", "noise-stored/out"),
    Reader(f"--follow train cifar-resnet8 --data subject {TRAIN} --json", "random-labels/out"),
    Reader("unreal random-labels subject --classes 3 --out out --json", "import-npz/out"),
    Reader("dataset compare subject stock/made/out --out out --json", "import-npz/out", 1.0),
    Reader(
        "search evolution --data stock/made/out --supernet subject --candidates 4 --population 3 --drawn 2 "
        f"{SCORES} {OUT}",
        "spos/out",
    ),
    Reader(
        f"search pareto subject --data stock/made/out --costs macs --steps 2 --population 4 {SCORES} {OUT}",
        "spos/out",
    ),
    Reader(f"score subject 111 021 --data stock/made/out {SCORES} {OUT}", "spos/out"),
    Reader(f"score stock/spos/out subject --data stock/made/out {SCORES} {OUT}", "files/archs.txt"),
    Reader(f"score stock/spos/out subject --data stock/made/out {SCORES} {OUT}", "random/out"),
    *(
        Reader(f"dataset import subject --size 8 --channels 1 {s} --out out --json", f"files/{n}")
        for n, s in (
            ("classes", ""),
            ("images.npz", ""),
            ("packed.npz", "--split test"),
            ("cifar", "--split test"),
            ("cifar.tar.gz", "--split test"),
        )
    ),
    Reader("dataset import subject --size 8 --split train --out out --json", "files/chexpert"),
    Reader("dataset import stock/files/images.npz --class-names subject --out out --json", "files/names.txt"),
    *(
        Reader("teacher show cifar-resnet8 --checkpoint subject --size 8 --mean .5 --std .25 --json", f"files/{n}")
        for n in ("weights.pt", "nested.pth", "old.pt")
    ),
    Reader(
        f"teacher show cifar-resnet8 --checkpoint subject --size 8 {GREY} --json", "student/out/weights.safetensors"
    ),
    Reader(f"teacher show subject:network --size 8 {GREY} --json", "files/factory.py"),
    Reader("arch show subject --out a.png --json", "darts/out", 1.5),
    Reader("arch show subject --out a.png --json", "spos/out/arch.json"),
    Reader("arch show subject --out a.png --json", "trained/out/arch.json", 1.5),
    Reader("proxies subject --data stock/made/out --proxy macs --proxy snip --images 8 --json", "random/out"),
    Reader("export subject --to safetensors --out out --json", "trained/out"),
    Reader("export digits --int8 --quantized subject --to safetensors --out out --json", "rtn/out"),
    Reader("quantize rtn subject --out out --device cpu --json", "student/out"),
    Reader(f"distill data subject cifar-resnet8 --data stock/made/out {TRAIN} --json", "student/out"),
    Reader(f"prune magnitude subject --data stock/made/out --macs 50% {TRAIN} --json", "student/out"),
    Reader(f"synthesize subject --images 10 --iterations 2 --rounds 1 --batch 10 {OUT}", "student/out"),
    Reader(
        f"search random --data stock/made/out {FINAL} --latency 900 --latency-table subject {OUT}",
        "latency/latency.json",
    ),
    Reader("run subject --out out --device cpu --precision fp32 --json", "files/small.toml"),
    Reader("run stock/files/small.toml --out subject --device cpu --precision fp32 --json", "recipe/out"),
    Reader(f"study consistency --truth subject --proxy params --proxy layers --channels 2 {OUT}", "files/truth.json"),
    Reader(
        f"quantize autorecon digits --generator subject --steps 2 --batch 8 --warmup 1 --images 8 {OUT}",
        "generator/out",
    ),
    Reader("results --folder subject --page page.md --json", "files/results"),
    *(
        Reader("report subject --out page.html --json", f"{n}/out")
        for n in ("darts", "spos", "made", "trained", "rtn", "pareto", "difficulty", "recipe", "magnitude")
    ),
)
SUMS = "checksums.json"
PICTURES = (".png", ".svg", ".html")


def attempt(made: Attempt) -> str:
    """One file of the subject damaged; then the command that reads it."""
    reader = made.random.choices(READERS, [1 / (0.2 + one.seconds) for one in READERS])[0]
    words, subject = prepared(reader, made)
    file = made.random.choice(files(subject))
    before = _bytes(file)
    done = mutations.damage(file, made.random)
    if (subject / SUMS).is_file() and made.random.random() < 0.3:  # as folders of before were, and as an attacker does
        (subject / SUMS).unlink()
        done += ", without checksums"
    relative = file.relative_to(made.folder)
    made.what = f"{relative} of {reader.of}: {done}"
    ended = made.run(words, SECONDS)
    if (made.folder / "ESCAPED").exists():
        return "a file was executed"
    told = judge.problem(ended) or judge.undefined(made.folder / "out")
    if (
        not told
        and ended.status == 0
        and before != _bytes(file)
        and _ours(file, subject)
        and _is_read(file, words, made)
    ):
        told = f"unnoticed: {relative.name} was damaged ({done})"
    return told


def sound(made: Attempt, reader: Reader) -> Ended:
    """The command on the sound subject: where this fails, nothing is learnt from damage."""
    return made.run(prepared(reader, made)[0])


def prepared(reader: Reader, made: Attempt) -> tuple[list[str], Path]:
    """The words, and the copy of the subject that they name."""
    source = made.stock / reader.of
    target = made.folder / ("subject" + "".join(source.suffixes))
    words = shlex.split(reader.words)
    called = words[words[0] == "--follow" :]
    made.command = " ".join(called[: 2 if called[0] in commands.GROUPS else 1])
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy(source, target)
    return [word.replace("subject", target.name) for word in words], target


def files(subject: Path) -> list[Path]:
    """The files that may be read: of a run its pictures and times are not."""
    if subject.is_file():
        return [subject]
    run = (subject / "config.json").exists()
    files = [file for file in sorted(subject.rglob("*")) if file.is_file() and file.name != "timing.json"]
    return [file for file in files if not run or file.suffix not in PICTURES]


def _bytes(file: Path) -> bytes | None:
    return file.read_bytes() if file.is_file() else None


def _ours(file: Path, subject: Path) -> bool:
    """Whether this is an artifact that carries a checksum."""
    return (subject / SUMS).exists() and file.suffix in (".npy", ".safetensors") and file.is_file()


def _is_read(file: Path, words: list[str], made: Attempt) -> bool:
    """Whether the command cannot do without this file."""
    content = file.read_bytes()
    file.write_bytes(b"")
    for left in made.folder.glob("out"):
        left.rename(made.folder / "before")
    ended = made.run(words, SECONDS)
    file.write_bytes(content)
    return ended.status != 0
