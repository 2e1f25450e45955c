"""The sound runs that everything is compared with, and the files that they read: as small as each command allows.

`stock/NAME/out` is the run of `RUNS[NAME]`, begun in `stock/NAME`; runs name each other's folders as `stock/OTHER/out`,
`stock` being a link in every folder in which a command runs.
"""

from __future__ import annotations

import csv
import io
import json
import pickle
import shlex
import tarfile
from pathlib import Path

CELLS = "--channels 2 --cells 2 --final-channels 2 --final-cells 2 --nodes 2 --batch 16"
FINAL = "--space macro --final-width .1 --depths 1,2"
BLOCKS = f"{FINAL} --width .07"
SCORES = "--calibration 1 --score-images 6"
STUDY = "--channels 2 --cells 2 --batch 16"
FEW = f"--architectures 3 {STUDY}"
HERE = "--device cpu --precision fp32"
RUNS = {
    "noise-stored": "unreal noise --images 48 --size 8 --channels 1 --classes 10 --store",
    "noise-asked": "unreal noise --images 48 --size 8 --channels 1 --classes 10",
    "fractal-stored": "unreal fractal --images 32 --categories 4 --size 8 --channels 1 --store",
    "fractal-asked": "unreal fractal --images 32 --categories 4 --size 8 --channels 1",
    "baseline": "noise digits --images 40",
    "import-folders": "dataset import stock/files/classes --size 8 --channels 1",
    "import-npz": "dataset import stock/files/images.npz",
    "import-cifar": "dataset import stock/files/cifar --split test",
    "import-tar": "dataset import stock/files/cifar.tar.gz --split test",
    "import-chexpert": "dataset import stock/files/chexpert --split train --size 8",
    "random-labels": "unreal random-labels stock/import-npz/out --classes 4",
    "subset": "dataset subset stock/import-npz/out --images 20",
    "labelled": "dataset label stock/noise-stored/out --teacher digits",
    "exported-data": "dataset export stock/import-npz/out",
    "made": "synthesize digits --images 40 --iterations 6 --rounds 2 --batch 20",
    "generator": "generator train digits --arch gdfq-cifar --scale .25 --steps 5 --batch 8",
    "darts": f"search darts --data stock/made/out --steps 6 {CELLS}",
    "sgas": f"search sgas --data stock/import-npz/out --epochs 2 --warm-up 1 {CELLS}",
    "proxyless": f"search proxyless --data stock/made/out {BLOCKS} --steps 6 --batch 8 --nets 2",
    "gumbel": f"search gumbel --data stock/made/out {BLOCKS} --steps 6 --batch 8",
    "spos": f"search spos --data stock/made/out {BLOCKS} --steps 6 --batch 8 --generations 2 --population 4 --top 2 "
    f"--mutants 2 --crossings 1 --held-out 1 {SCORES}",
    "evolution": "search evolution --data stock/made/out --supernet stock/spos/out --candidates 8 --population 4 "
    f"--drawn 2 {SCORES}",
    "pareto": f"search pareto stock/spos/out --data stock/made/out --costs macs --steps 3 --population 4 {SCORES}",
    "random": f"search random --data stock/made/out {FINAL}",
    "training-free": "search training-free --data stock/made/out --space macro --depths 1,2 --final-width .1 "
    "--images 8 --candidates 8 --population 4 --drawn 2 --proxy snip",
    "score": f"score stock/spos/out 111 222 stock/random/out --data stock/made/out {SCORES}",
    "latency": "latency measure macro --side 8 --channels 1 --table latency.json",
    "trained": "train stock/darts/out --data stock/made/out --teacher digits --steps 8 --batch 16 --no-flip",
    "student": "train cifar-resnet8 --data stock/made/out --steps 6 --batch 16",
    "evaluated": "evaluate stock/trained/out --data digits",
    "evaluated-digits": "evaluate digits --data digits",
    "rtn": "quantize rtn digits --weight-bits 8 --activation-bits 8",
    "dfq": "quantize dfq digits --weight-bits 4",
    "zeroq": "quantize zeroq digits --data stock/made/out --images 20",
    "inversion": "quantize inversion digits --data stock/made/out --images 20 --steps 6 --batch 8 --warmup 2",
    "gdfq": "quantize gdfq digits --scale .25 --steps 6 --batch 8 --warmup 2 --images 16",
    "quantized-beside": "quantize autorecon digits --scale .25 --steps 4 --batch 8 --warmup 2 --images 16",
    "best": "quantize best digits --data stock/made/out --steps 4 --batch 8 --warmup 2 --images 16",
    "distilled": "distill data digits cifar-resnet8 --data stock/made/out --steps 6 --batch 8",
    "fast": "distill fast digits cifar-resnet8 --epochs 2 --iterations 2 --student-steps 2 --batch 8",
    "dfad": "distill dfad digits cifar-resnet8 --epochs 2 --iterations 2 --batch 8",
    "dafl": "distill dafl digits cifar-resnet8 --epochs 2 --iterations 2 --batch 8 --scale .25",
    "searched": "distill autorecon digits cifar-resnet8 --epochs 2 --iterations 2 --batch 8 --scale .25",
    "magnitude": "prune magnitude digits --data stock/made/out --macs 50% --steps 4 --batch 8",
    "group-norm": "prune group-norm digits --data stock/made/out --macs 50% --steps 4 --batch 8",
    "uniform": "prune uniform cifar-resnet8 --checkpoint stock/student/out/weights.safetensors --mean .3056 "
    "--std .3759 --size 8 --data stock/made/out --macs 50% --steps 4 --batch 8",
    "metapruning": "prune metapruning cifar-resnet8 --checkpoint stock/student/out/weights.safetensors --mean .3056 "
    "--std .3759 --size 8 --data stock/made/out --macs 60% --supernet-steps 4 --steps 4 --batch 8 --supernet-batch 8 "
    "--held-out 1 --generations 1 --population 4 --top 2 --mutants 2 --crossings 2",
    "safetensors": "export stock/trained/out --to safetensors",
    "onnx": "export digits --to onnx",
    "compressed": "compress digits --macs 50% --images 20 --preset smoke --steps 2 --batch 8 --to safetensors",
    "difficulty": f"study difficulty --data stock/made/out --data stock/import-npz/out --epochs 1 {STUDY}",
    "collapse": "study collapse --data stock/made/out --epochs 1 --warm-up 1 --nodes 2 --channels 2 --cells 2 "
    "--batch 8",
    "which": f"study which --data stock/made/out --data stock/import-npz/out --epochs 1 --budget 9 {FEW}",
    "distinguish": "study distinguish --data stock/made/out --truth-data stock/import-npz/out "
    f"--test stock/import-npz/out --epochs 1 {FEW}",
    "consistency": "study consistency --truth-data stock/import-npz/out --data stock/made/out "
    f"--test stock/import-npz/out --epochs 1 {FEW}",
    "classes": "study classes --data stock/import-npz/out --classes 2 --search-epochs 1 --search-warm-up 0 "
    "--search-batch 20 --search-channels 2 --search-cells 2 --train-steps 2 --train-batch 8 --train-channels 2 "
    "--train-cells 2 --baselines 1 --train stock/import-npz/out --test stock/import-npz/out",
    "audit": "study audit stock/made/out --teacher digits --judge stock/student/out --real stock/import-npz/out",
    "recipe": "run stock/files/small.toml",
    "report": "report --out page.html stock/darts/out stock/made/out stock/trained/out",
    "shown": "dataset show stock/made/out --out sheet.png",
    "compared": "dataset compare stock/made/out stock/import-npz/out --out out",
    "teacher": "teacher show stock/trained/out",
    "agreement": "dataset agreement stock/made/out stock/student/out",
    "architecture": "arch show stock/darts/out --out cells.png",
    "architectures": "arch compare stock/spos/out stock/random/out --out table.png",
    "proxies": "proxies stock/darts/out stock/random/out --data stock/made/out --proxy naswot --proxy macs --images 8 "
    "--out table.csv",
    "results": "results --folder stock/files/results --page page.md",
}
SECONDS = {
    "classes": 9,
    "darts": 3,
    "sgas": 3,
    "which": 3,
    "onnx": 3,
    "collapse": 2.5,
    "consistency": 2,
    "distinguish": 2,
}
SECONDS |= {"latency": 2, "compressed": 1.5, "metapruning": 1.5, "architecture": 1.3, "audit": 1, "compared": 1}
"""run -> the seconds that it takes, about; others take half of one: the longer, the less often it is tried"""
TIMED = {"which": ("plan.json", "table.csv")}
"""run -> files that say how long something took"""
RECIPE = """title = "Small"
result = "small"
paper = "none"
notes = ["Of no meaning."]

[scales.smoke]
core_minutes = 1
seeds = [0, 1]

[[stage]]
name = "noise"
call = "noise"
seeds = "{seeds}"
with = { teacher = "digits", images = 20 }

[[stage]]
name = "network"
call = "train"
seeds = "{seeds}"
with = { arch = "cifar-resnet8", data = "@noise", teacher = "digits", steps = 3, batch = 8, flip = false }

[[stage]]
name = "accuracy"
call = "evaluate"
seeds = "{seeds}"
with = { run = "@network", data = "digits" }

[[figure]]
label = "accuracy"
stage = "accuracy"
key = "top1"
unit = "%"
"""
FACTORY = """import torch
from torch import nn


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
    )
"""


def words(name: str, out: str = "out") -> list[str]:
    """The words of a run, with its folder and the machine where the command knows these."""
    from phosphene import commands
    from phosphene.settings import settings

    given = shlex.split(RUNS[name])
    flags = {setting.name for setting in settings(commands.function(command(name)))}
    more = ["--out", out] if "out" in flags and "--out" not in given else []
    more += ["--device", "cpu"] if "device" in flags else []
    more += ["--precision", "fp32"] if "precision" in flags else []
    return [*given, *more]


def usual(name: str) -> float:
    """The seconds that a run takes on any machine, so that the same seed chooses the same."""
    return SECONDS.get(name, 0.5)


def command(name: str) -> str:
    """The command's name in the table of commands."""
    from phosphene import commands

    given = shlex.split(RUNS[name])
    return max((" ".join(given[:n]) for n in (1, 2) if " ".join(given[:n]) in commands.COMMANDS), key=len)


def make_files(folder: Path) -> None:
    """What comes from elsewhere: pictures, arrays, archives, tables, recipes, networks, results."""
    import numpy as np
    import torch
    from PIL import Image

    from phosphene.data.formats import chexpert
    from phosphene.models import build

    random = np.random.default_rng(0)
    pixels, labels = random.integers(0, 256, (40, 8, 8, 1), dtype=np.uint8), np.arange(40) % 10
    for i, picture in enumerate(pixels):
        place = folder / "classes" / f"class{labels[i] % 4}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[:, :, 0]).save(place / f"{i}.{('png', 'jpg', 'bmp', 'gif')[i % 4]}")
    np.savez(folder / "images.npz", images=pixels, labels=labels)
    np.savez_compressed(folder / "packed.npz", x_test=pixels, y_test=labels)
    _make_cifar(folder, random.integers(0, 256, (20, 3072), dtype=np.uint8), [int(k) for k in labels[:20]])
    for i in range(4):
        place = folder / "chexpert" / "train" / f"patient{i:05}" / "study1" / "view1_frontal.jpg"
        place.parent.mkdir(parents=True)
        Image.fromarray(random.integers(0, 256, (10, 9), dtype=np.uint8)).save(place)
    with (folder / "chexpert" / "train.csv").open("w", newline="") as file:
        write = csv.writer(file).writerow
        write(["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *chexpert.OBSERVATIONS])
        for i in range(4):
            codes = [("1.0", "0.0", "-1.0", "")[(i + k) % 4] for k in range(len(chexpert.OBSERVATIONS))]
            write([f"chexpert/train/patient{i:05}/study1/view1_frontal.jpg", "Female", "61", "Frontal", "AP", *codes])
    torch.manual_seed(0)
    network = build("cifar-resnet8")
    torch.save(network.state_dict(), folder / "weights.pt")
    torch.save({"state_dict": network.state_dict(), "epoch": 3}, folder / "nested.pth")
    torch.save(network.state_dict(), folder / "old.pt", _use_new_zipfile_serialization=False)
    (folder / "small.toml").write_text(RECIPE)
    (folder / "factory.py").write_text(FACTORY)
    (folder / "archs.txt").write_text("111\n222\n121\n")
    (folder / "truth.json").write_text(
        json.dumps({"00112102": 90.0, "22110021": 91.0, "12121212": 92.0, "20202020": 88.5})
    )
    (folder / "names.txt").write_text("\n".join(f"name {k}" for k in range(10)))
    (folder / "results").mkdir()
    (folder / "results" / "one-smoke.json").write_text(json.dumps(RESULT))


RESULT = {
    "result": "one",
    "scale": "smoke",
    "title": "One",
    "paper": "none",
    "command": "phosphene run one.toml",
    "seeds": [0],
    "machine": {"cpu": "a", "cores": 2, "memory_gb": 8.0},
    "minutes": 1.5,
    "figures": [{"label": "accuracy", "mean": 90.0, "sd": None, "values": {"0": 90.0}, "unit": "%"}],
    "missing": [],
    "notes": [],
}


def _make_cifar(folder: Path, pixels: object, labels: list[int]) -> None:
    batch = pickle.dumps({b"data": pixels, b"labels": labels}, protocol=2)
    meta = pickle.dumps({b"label_names": [b"class %d" % k for k in range(10)]}, protocol=2)
    files = {**{f"data_batch_{k}": batch for k in range(1, 6)}, "test_batch": batch, "batches.meta": meta}
    (folder / "cifar").mkdir()
    with tarfile.open(folder / "cifar.tar.gz", "w:gz") as archive:
        for name, content in files.items():
            (folder / "cifar" / name).write_bytes(content)
            inside = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            inside.size = len(content)
            archive.addfile(inside, io.BytesIO(content))
