"""The baseline of every search: an architecture drawn at random within the budget. Nothing is trained."""

from __future__ import annotations

import torch

from ..core import Architecture, Objective, Score, SearchSpace
from ..costs import Budget
from ..dataset import ImageDataset
from ..run import Run
from ..spaces.moves import sample


def search(
    space: SearchSpace,
    data: ImageDataset,
    objective: Objective,
    score: Score,
    budget: Budget,
    run: Run,
    *,
    steps: int = 1,
) -> Architecture:
    """Draw decisions one by one, each option with equal chance among those that can still keep the budget.

    Args:
        space: what to choose from.
        data, objective, score, steps: unused; a baseline is called as every other search is.
        budget: kept by the choices.
        run: its seed decides the draw.

    Raises:
        BudgetError: nothing keeps the budget.
    """
    generator = torch.Generator().manual_seed(run.seed)
    return Architecture(space.spec, sample(space, generator, budget.fits))
