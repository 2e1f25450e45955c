"""The settings of `phosphene quantize`, and the methods' recipes: classes of these settings with each paper's defaults.

Quantization            bit widths, ranges, data                          rtn, dfq
├─ ZeroQ                ranges from images (Cai et al. 2020)              zeroq
└─ FineTuning           GDFQ's training of the student                    inversion
   ├─ Synthesized       images synthesized in the run                     dfc, best
   └─ Generated         a generator beside the student                    gdfq, autorecon
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from ...core import Architecture
from ...data.dataset import ImageDataset
from ...errors import SettingsError, shown
from ...settings import OUTSIDE, Ge, Gt, Le, RunSettings, Settings
from ...synthesis.generator.latents import LabelMixing
from ...synthesis.generator.loss import BalancedReconstruction, LowPass, ViewSettings
from ...synthesis.generator.train import GeneratorSize
from ...teachers.teacher import TeacherSettings, TestData
from ...training.recipes import BatchSize, Sgd, Temperature

EIGHT = 8  # bits, at which quantization is meant to change next to nothing
OBSERVED = 50  # batches that set the moving averages of ranges
PUBLISHED_WARMUP = 800  # batches of GDFQ's generator alone: 4 epochs of 200
Criterion = Literal["error", "minmax"]


class BitWidths(Settings, heading="Bit widths"):
    weight_bits: Annotated[int, Ge(2), Le(8), "bit width of the weights"] = 4
    activation_bits: Annotated[int, Ge(2), Le(8), "bit width of each layer's input"] = 4
    ends: Annotated[int | None, Ge(2), Le(8), "bit width of the first and last layer, if different (often 8)"] = None
    layer_bits: Annotated[list[str] | None, "bits of one layer: NAME=4, or NAME=4/8 (weights/input); repeatable"] = None
    size_budget: Annotated[float | None, Gt(0), "limit in MiB, kept by mixed bit widths of the weights (ZeroQ)"] = None
    weight_grid: Annotated[Literal["channel", "tensor"], "scales of weights: one per channel, or one"] = "channel"

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.widths  # raises where --layer-bits cannot be read

    @property
    def widths(self) -> tuple[tuple[str, int, int], ...]:
        """(layer, bits of its weight, bits of its input) of every `--layer-bits`."""
        return tuple(_width(text) for text in self.layer_bits or ())


def _width(text: str) -> tuple[str, int, int]:
    """``NAME=4`` -> (name, 4, 4); ``NAME=4/8`` -> (name, 4, 8)."""
    name, _, bits = text.rpartition("=")
    weight, _, activation = bits.partition("/")
    if not name or not weight.isdecimal() or not (activation or "0").isdecimal() or len(bits) > 5:
        raise SettingsError(
            f"--layer-bits {shown(text, str)} is not NAME=BITS or NAME=WEIGHT/ACTIVATION, like conv1=4/8"
        )
    return name, int(weight), int(activation or weight)


class Quantization(BitWidths, TestData, TeacherSettings, RunSettings, heading="Ranges and data"):
    ranges: Annotated[Criterion | None, "input ranges: least squared error, or minmax (default at 8 bits)"] = None
    images: Annotated[int, Ge(1), "images that ranges are fitted to"] = 256
    data: Annotated[ImageDataset | str | Path | None, OUTSIDE, "synthesized images, of this teacher"] = None
    precision: str = "fp32"

    @property
    def criterion(self) -> Criterion:
        """How ranges are fitted; with 8 bits nothing is cut off."""
        return self.ranges or ("minmax" if self.activation_bits == EIGHT else "error")


class WithoutImages(Quantization):
    """Methods that need images for a size budget only."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data is not None and self.size_budget is None:
            raise SettingsError("--data is for zeroq, inversion, dfc and best, or for --size-budget; leave it out")


class ZeroQ(Quantization):
    """Ranges from images (Cai et al. 2020)."""

    ranges: Criterion | None = "minmax"


class Training(Sgd, BatchSize, Temperature, heading="Fine-tuning of the student, with GDFQ's values (Xu et al. 2020)"):
    steps: Annotated[int, Ge(1), "steps of fine-tuning"] = 2000
    epoch: Annotated[int, Ge(1), "steps between two measurements on the test data"] = 200
    warmup: Annotated[int | None, Ge(1), "batches before the first step (gdfq, autorecon: STEPS/5 to 800)"] = OBSERVED
    batch: int = 200
    lr: Annotated[float, Ge(0), "learning rate of the student"] = 1e-4
    weight_decay: float = 1e-4
    schedule: Annotated[Literal["steps", "cosine"], "learning rate: a tenth each quarter of steps, or cosine"] = "steps"
    temperature: float = 20.0
    ce_weight: Annotated[float, Ge(0), "weight of the cross-entropy to the labels"] = 1.0
    kl_weight: Annotated[float, Ge(0), "weight of the divergence from the teacher"] = 1.0
    kl: Annotated[Literal["elements", "images"], "divisor: images x classes (GDFQ's code), or images"] = "elements"
    flip: Annotated[bool, "mirror half of the images of --data"] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ce_weight and not self.kl_weight:
            raise SettingsError("--ce-weight 0 and --kl-weight 0 leave nothing to train by; give one of them")

    @property
    def warmup_steps(self) -> int:
        """Batches before the first step."""
        return OBSERVED if self.warmup is None else self.warmup


class Synq(LowPass, heading="SynQ (Kim et al. 2025)"):
    hard: Annotated[float | None, Ge(0), Le(1), "teacher's doubt above which labels are left out (SynQ: 0.5)"] = None


class Inundation(Settings, heading="Gradient inundation (AIT, Choi et al. 2022)"):
    gradient_rule: Annotated[Literal["none", "ait"], "ait: steps change a share of each weight's integers"] = "none"
    gradient_share: Annotated[float, Ge(0), Le(1), "that share (AIT: 0.001 for CIFAR, 0.0001 for ImageNet)"] = 1e-3
    gradient_decay: Annotated[float, Ge(0), Le(1), "factor of the share after each quarter of the steps"] = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("gradient_share", "gradient_decay"):
            if self.gradient_rule == "none" and getattr(self, name) != getattr(Inundation, name):
                flag = name.replace("_", "-")
                raise SettingsError(f"--{flag} {getattr(self, name):g} is for --gradient-rule ait; leave it out")


class FineTuning(Training, Synq, Inundation, Quantization):
    """Fine-tuning on synthesized images by GDFQ's scheme."""

    ranges: Criterion | None = "minmax"  # over batches: a moving average, as published

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hard is not None and not (self.ce_weight and self.kl_weight):
            raise SettingsError(f"--hard {self.hard:g} needs --ce-weight and --kl-weight above 0")


class Inversion(FineTuning):
    """Fine-tuning on the images of --data."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data is None:
            raise SettingsError("inversion needs --data: the images of `phosphene synthesize` from this teacher")


class Synthesized(FineTuning, heading="Images that are synthesized in the run"):
    priors: ClassVar[bool] = True  # class labels, total variation and pixel statistics, besides BatchNorm statistics
    synthesize: Annotated[int, Ge(1), "images to synthesize where --data is unset"] = 2000

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data is not None and self.synthesize != Synthesized.synthesize:
            raise SettingsError(f"--synthesize {self.synthesize} has no use beside --data; leave one out")


class Dfc(Synthesized):
    """BatchNorm statistics alone, and no labels (Haroush et al. 2020)."""

    priors: ClassVar[bool] = False
    ce_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ce_weight:
            raise SettingsError(f"--ce-weight {self.ce_weight:g}: the images of dfc have no labels; leave it out")


class Best(Synthesized):
    """Our own choice, without test data: docs/decisions/0020-quantization.md."""

    ranges: Criterion | None = "error"
    lr: float = 5e-4
    schedule: Literal["steps", "cosine"] = "cosine"
    ce_weight: float = 0.0
    kl: Literal["elements", "images"] = "images"


class GeneratorSettings(
    BalancedReconstruction,
    LabelMixing,
    ViewSettings,
    GeneratorSize,
    heading="The generator beside the student (GDFQ; AutoReCon, Zhu et al. 2021)",
):
    arch: Annotated[Architecture | str | None, "generator: gdfq-cifar, autorecon-cifar10 …, arch.json, a run"] = None
    generator: Annotated[str | Path | None, "initial generator: a run of `generator train` or of this command"] = None
    generator_lr: Annotated[float, Ge(0), "learning rate of the generator's Adam; 0 leaves it unchanged"] = 1e-3
    low_pass: float | None = None  # type: ignore[assignment]  # unset: as --generator was trained, else no filter
    clip: bool | None = None  # type: ignore[assignment]  # unset: likewise, else no clamp, as published

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.label or self.bn or self.entropy):
            raise SettingsError("every weight of the generator's loss is 0; give --label or --bn")


class Generated(GeneratorSettings, FineTuning, WithoutImages):
    """A generator and the student by turns."""

    warmup: int | None = None

    @property
    def warmup_steps(self) -> int:
        """A generator has to learn something before the student learns from it."""
        if self.warmup is not None or not self.generator_lr:
            return super().warmup_steps
        return max(1, min(PUBLISHED_WARMUP, self.steps // 5))


def identity(method: str, settings: Quantization, unused: Training | None = None) -> dict[str, Any]:
    """What decides a result: the settings of all methods, those that the method does not have at their defaults.

    `unused` are settings of training for a method that trains nothing. The generator's stand apart, once it is known.
    """
    training = settings if isinstance(settings, Training) else unused or Training()
    every = Synthesized().identity() | training.identity() | settings.identity()
    settled: dict[str, Any] = {"method": method, "ranges": settings.criterion, "widths": settings.widths}
    settled |= {"warmup": training.warmup_steps, "low_pass": every["low_pass"] or 0.0}
    return {name: every[name] for name in Synthesized().identity("layer_bits")} | settled
