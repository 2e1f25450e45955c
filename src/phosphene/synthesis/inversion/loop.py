"""Images by inverting a trained network: DFNAS section 3.1, DeepInversion and DeepDream are settings of one loop.

    X* = argmin_X CE(M(X), y) + L_input + L_feat                                    eqs. 3, 4, 5
    ŷ_t = M(X_t),   X_{t+1}* = argmin_X CE(M(X), ŷ_t) + …                           eqs. 6, 7: label calibration
    G = ∇_X L(M(X_R), y) for a random region R of the canvas; the rest stays        eq. 8: regional update

The loop is `synthesize_chain`. A chain is a batch of images that goes through every round of label calibration; chains
are independent of each other, and take their random numbers from (seed, number of the chain) alone. M is the frozen
teacher, X the canvas ``(N, C, H, W)`` in the teacher's normalised pixels, y the targets ``(N, K)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import NotFinite, SettingsError, TeacherError
from ...losses import (
    bn_distance,
    competition,
    l2,
    layer_weights,
    pixel_statistics,
    soft_cross_entropy,
    total_variation,
)
from ...runtime.machine import Machine
from ...runtime.run import Run
from ...storage import finite
from ...teachers.teacher import Teacher
from .bn_statistics import Probe
from .parametrization import Adam, Canvas, Fourier, Pixels, Range, numbered, windows
from .plan import Geometry, Stage
from .presets import Inversion

LOG_EVERY = 20  # iterations; reading a loss makes the device wait
Finish = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass
class Inverter:
    """The common part of all chains: recipe, frozen teacher (and student), machine; and the loss of a batch."""

    recipe: Inversion
    teacher: Teacher
    machine: Machine
    student: Teacher | None = None

    def __post_init__(self) -> None:
        self.geometry = Geometry.of(self.recipe, self.teacher.shape)
        self.probe = Probe(self.teacher, self.machine)  # logits, and the brackets of eq. 5
        self.bn_weights = self._layer_weights().to(self.machine.device)  # the release: the first layer x10
        mean, std = torch.tensor(self.teacher.mean), torch.tensor(self.teacher.std)
        self.range = Range(mean.to(self.machine.device), std.to(self.machine.device))
        self.net = self.machine.place(self.teacher.net)
        self._try_sizes()

    @torch.no_grad()
    def _try_sizes(self) -> None:
        """Pass one image of every size that will occur through the network: some accept one size only."""
        views = {"--crop": self.geometry.crop}
        if self.recipe.half_iterations:
            height, width = self.geometry.stages[0].crop
            views["--half-iterations"] = (height // 2, width // 2)
        if self.recipe.label_view == "full":
            views["--label-view full"] = self.geometry.canvas
        for flag, (h, w) in views.items():
            try:
                self.logits(torch.zeros(1, self.teacher.shape[0], h, w, device=self.machine.device))
            except (RuntimeError, AssertionError, ValueError) as error:
                raise SettingsError(f"{flag}: {self.teacher.name} fails on {h}x{w} images ({error})") from error

    def _layer_weights(self) -> Tensor:
        r, layers = self.recipe, len(self.probe.layers)
        if r.bn_weight and not layers:
            raise TeacherError(f"{self.teacher.name} has no BatchNorm statistics to match; use --bn-weight 0")
        try:
            each = [float(weight) for weight in r.bn_layer_weights.split(",") if weight.strip()]
            return layer_weights(layers, r.first_bn_multiplier, each or None)
        except ValueError as error:
            raise SettingsError(f"--bn-layer-weights {r.bn_layer_weights}: {error}") from error

    def canvas(self, size: int) -> Canvas:
        """An empty canvas of `size` images, in the parametrization of the recipe."""
        r = self.recipe
        shape, adam = (size, self.teacher.shape[0], *self.geometry.canvas), Adam(r.beta1, r.beta2)
        if r.parametrization == "fourier":
            return Fourier(shape, self.range, adam, start=r.start_spectrum)
        outside = r.momentum_outside
        return Pixels(shape, self.range, adam, start=r.start_spectrum, clip=r.clip, momentum_outside=outside)

    def energy(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The weighted terms of the loss for the teacher's view ``(N, C, h, w)``; those of weight 0 are left out."""
        r, terms = self.recipe, {}
        if r.bn_weight:
            logits, distances = self.probe(inputs)
            terms["bn"] = r.bn_weight * bn_distance(distances, self.bn_weights)  # L_feat, eq. 5
        else:
            logits = self.logits(inputs)
        if r.ce_weight:
            terms["ce"] = r.ce_weight * soft_cross_entropy(logits, targets)  # L_CE, eqs. 3, 7
        if r.tv_weight:
            terms["tv"] = r.tv_weight * total_variation(inputs, r.tv_maps)  # L_input, eq. 4
        if r.l2_weight:
            terms["l2"] = r.l2_weight * l2(inputs)  # DeepDream's, as in the release
        if r.statistics_weight:
            terms["statistics"] = r.statistics_weight * pixel_statistics(inputs)  # mean 0, deviation 1 a channel
        if r.competition_weight:
            terms["competition"] = r.competition_weight * competition(
                logits, self.student_logits(inputs)
            )  # DeepInversion
        return terms

    def logits(self, inputs: Tensor) -> Tensor:
        """The teacher's logits ``(N, K)`` alone, without the BatchNorm statistics: cheaper."""
        with self.machine.autocast():
            logits: Tensor = self.net(inputs)
        return logits.float()

    def student_logits(self, inputs: Tensor) -> Tensor:
        """The student's logits ``(N, K)`` for the teacher's inputs, normalised with the student's mean and std."""
        assert self.student is not None
        pixels = inputs * self.range.std.view(-1, 1, 1) + self.range.mean.view(-1, 1, 1)  # [0, 1], where valid
        with self.machine.autocast():
            logits: Tensor = self.machine.place(self.student.net)(self.student.normalise(pixels))
        return logits.float()


def synthesize_chain(
    chain: int,
    classes: Tensor,
    inverter: Inverter,
    run: Run,
    finish: Finish,
    *,
    alike: int = 1,
    title: str | None = None,
    phase: str | None = None,
) -> None:
    """One batch of images, one for each entry of `classes` ``(N,)``, through every round of the recipe.

    `finish(round, images, targets, offsets)` is called once a round (again, with the same values, where the run is
    resumed just there) with the round's normalised canvas ``(N, C, H, W)``, its targets ``(N, K)`` and the last crop's
    offsets ``(N, 2)``. It returns the targets ``(N, K)`` of the next round. `phase`: the name under which the run keeps
    its steps, where the chain is made once more.
    """
    recipe, geometry, machine = inverter.recipe, inverter.geometry, inverter.machine
    numbers = numbered(run.seed, chain)  # of this chain alone
    canvas, best = inverter.canvas(len(classes)), Best()  # X
    targets = F.one_hot(classes, inverter.teacher.classes).float().to(machine.device)  # y of eq. 3, in round 0
    offsets = torch.zeros(len(classes), 2, dtype=torch.long, device=machine.device)
    steps = run.steps(
        phase or f"chain-{chain}",
        recipe.rounds * recipe.per_round,
        alone=True,
        keep=False,
        alike=alike,
        title=title,
        canvas=canvas,
        targets=targets,
        offsets=offsets,
        numbers=numbers,
        best=best,
    )
    for step in steps:
        t, k = divmod(step, recipe.per_round)  # round, and iteration of the round
        stage, i = stage_at(geometry, k)  # resolution, and iteration at that resolution
        if k == 0 and t > 0:
            done = sound(best.images(canvas), chain)
            targets.copy_(finish(t - 1, done, targets, offsets))  # eq. 6: ŷ_{t-1} = M(X_{t-1})
        if k == 0 and not (t > 0 and recipe.warm_start):
            canvas.redraw(numbers)  # every round begins with new noise
        if i == 0:
            canvas.fresh_adam()  # as the release does, for each resolution
            best.forget()

        offsets.copy_(draw_offsets(geometry, stage, len(classes), recipe.crop_per, numbers))  # R_selected of eq. 8
        window = windows(offsets, stage.crop, geometry.canvas) if stage.crop != geometry.canvas else None
        view = canvas.crop(window)
        inputs = jitter(F.avg_pool2d(view, 2) if stage.scale == 2 else view, recipe, numbers)
        terms = inverter.energy(inputs, targets)  # eqs. 3-5; from round 1 on eq. 7
        loss = torch.stack(list(terms.values())).sum()  # eqs. 3 + 4 + 5
        loss.backward()  # eq. 8: the gradient of the region alone
        if recipe.best:
            best.consider(loss, canvas)
        canvas.step(recipe.lr * schedule(i, stage.iterations, recipe.warmup, recipe.final_lr))  # Adam on the region

        if step % LOG_EVERY == 0 or k == recipe.per_round - 1:
            run.log(loss=loss, **terms)
    if not run.estimating:
        finish(recipe.rounds - 1, sound(best.images(canvas), chain), targets, offsets)


def sound(images: Tensor, chain: int) -> Tensor:
    """The images of a round as they are; raises `NotFinite` where they have lost their numbers."""
    if bad := finite.first_bad({"images": images}):
        remedy = "lower --lr and the weights of the loss, and name another --out"
        raise NotFinite(f"synthesize chain-{chain}: {bad}; {remedy}")
    return images


class Best:
    """The canvas of least loss in this stage; empty without --best, and then the last canvas counts."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    def forget(self) -> None:
        """A new stage or round has begun."""
        self._tensors = {}

    @torch.no_grad()
    def consider(self, loss: Tensor, canvas: Canvas) -> None:
        """Keep the canvas if its loss is the least; decided on the device, without synchronization."""
        images, loss = canvas.images(), loss.detach()
        if not self._tensors:  # the first iteration of a stage
            self._tensors = {"images": images, "loss": loss}
            return
        better = loss < self._tensors["loss"]  # of the whole batch, not of each image
        self._tensors = {
            "images": torch.where(better, images, self._tensors["images"]),
            "loss": torch.where(better, loss, self._tensors["loss"]),
        }

    def images(self, canvas: Canvas) -> Tensor:
        """The best images, or the canvas's."""
        return self._tensors["images"] if self._tensors else canvas.images()

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._tensors)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._tensors = dict(state)


def stage_at(geometry: Geometry, k: int) -> tuple[Stage, int]:
    """The stage of iteration `k` of a round, and the iteration's number within it."""
    for stage in geometry.stages:
        if k < stage.iterations:
            return stage, k
        k -= stage.iterations
    raise IndexError(k)


def draw_offsets(geometry: Geometry, stage: Stage, count: int, per: str, numbers: torch.Generator) -> Tensor:
    """Random upper left corners of the regions ``(N, 2)``, in pixels of the full canvas; multiples of the scale."""
    each = count if per == "image" else 1  # else one offset for the batch
    room = [(full - crop) // stage.scale + 1 for full, crop in zip(geometry.canvas, stage.crop, strict=True)]
    corners = [torch.randint(choices, (each,), generator=numbers) * stage.scale for choices in room]
    return torch.stack(corners, dim=1).expand(count, 2)


def jitter(view: Tensor, recipe: Inversion, numbers: torch.Generator) -> Tensor:
    """The view, randomly mirrored (the batch together or each image by itself) and rolled by up to `roll` pixels."""
    if recipe.roll:
        down, right = torch.randint(-recipe.roll, recipe.roll + 1, (2,), generator=numbers).tolist()
        view = view.roll((down, right), dims=(2, 3))  # DeepInversion: ±2 on CIFAR
    if recipe.flip == "batch" and torch.rand((), generator=numbers) < 0.5:
        return view.flip(3)
    if recipe.flip == "image":
        mirrored = torch.rand(len(view), 1, 1, 1, generator=numbers) < 0.5
        return torch.where(mirrored.to(view.device), view.flip(3), view)
    return view


def schedule(i: int, iterations: int, warmup: int, final: float) -> float:
    """The learning rate's factor: linear to 1 over `warmup` iterations, then half a cosine down to `final`."""
    warmup = min(warmup, iterations // 2)  # a shortened run still has its cosine
    if i < warmup:
        return (i + 1) / warmup
    progress = (i - warmup) / max(1, iterations - warmup)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))


def view_offsets(view: str, geometry: Geometry, last: Tensor) -> list[Tensor]:
    """Offsets ``(N, 2)`` of the crops whose logits are averaged into the stored soft label; empty: the full canvas."""
    spare = [full - crop for full, crop in zip(geometry.canvas, geometry.crop, strict=True)]  # pixels
    if view == "full":
        return []
    if view == "last-crop":
        return [last]  # as in the authors' code
    if view == "centre":
        return [torch.tensor([spare[0] // 2, spare[1] // 2], device=last.device).expand_as(last)]
    grid = [(spare[0] * a // 2, spare[1] * b // 2) for a in range(3) for b in range(3)]  # 3 x 3 crops
    return [torch.tensor(corner, device=last.device).expand_as(last) for corner in dict.fromkeys(grid)]


def cut(pixels: Tensor, offsets: Tensor, geometry: Geometry) -> Tensor:
    """Regions of uint8 or float images ``(N, C, H, W)`` at `offsets`."""
    if not geometry.regional:
        return pixels
    N, C, H, W = pixels.shape
    window = windows(offsets, geometry.crop, geometry.canvas)
    return pixels.permute(0, 2, 3, 1).reshape(N * H * W, C)[window].permute(0, 3, 1, 2)


def label(pixels: Tensor, view: str, last: Tensor, inverter: Inverter) -> Tensor:
    """The teacher's logits ``(N, K)`` of stored uint8 images, in float32, centred, by this label view."""
    exact = replace(inverter.machine, precision="fp32")  # stored labels: always float32
    crops = view_offsets(view, inverter.geometry, last)
    views = [cut(pixels, offsets, inverter.geometry) for offsets in crops] or [pixels]
    logits = torch.stack([inverter.teacher.logits(v, exact) for v in views])  # M(X) of eq. 6, for each view
    return (logits - logits.mean(dim=2, keepdim=True)).mean(dim=0)  # a softmax does not see the shift
