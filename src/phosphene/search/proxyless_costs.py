"""How ProxylessNAS weighs costs: in the reward, or as a penalty on the expected cost (Cai et al. 2019, §3.3, App. C).

Units are parameters, multiply-accumulates and milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

Penalty = Literal["log", "linear"]


def reward(score: float, costs: Mapping[str, float], aims: Mapping[str, float], weight: float) -> float:
    """score · Π (aim / cost)^weight; theirs is .1."""
    return float(score * math.prod((aim / costs[name]) ** weight for name, aim in aims.items()))


def penalised(
    loss: Tensor,
    expected: Mapping[str, Tensor],
    aims: Mapping[str, float],
    penalty: Penalty,
    *,
    scale: float = 0.2,
    power: float = 0.3,
    weight: float = 0.1,
) -> Tensor:
    """The loss with the expected costs in it.

    "log": loss · scale · Π (log E[cost] / log aim)^power. "linear": loss + weight · Σ (E[cost] − aim) / aim.

    Args:
        loss: a scalar, 0 or more.
        expected: name -> mean cost, a scalar with its graph.
        aims: name -> the value to be near; above 1 where the penalty is "log".
    """
    if penalty == "linear":
        return loss + weight * torch.stack([(expected[name] - aim) / aim for name, aim in aims.items()]).sum()
    ratios = [expected[name].clamp_min(1.01).log() / math.log(aim) for name, aim in aims.items()]
    return loss * scale * torch.stack(ratios).pow(power).prod()
