"""Whether anything can be learned from the targets of a data set."""

from __future__ import annotations

import numpy as np

from ..errors import DatasetError
from ..runtime.progress import say
from .arrays import parts
from .dataset import ImageDataset

PART = 4096  # images looked at together


def check(data: ImageDataset) -> None:
    """Raise `DatasetError` where images are unlabelled, or multi-label targets are all NaN or outside of [0, 1]."""
    data.targets([0])  # raises where nobody labelled the images
    if data.card.task == "multi" and not data.soft:
        _check_multi_label(data)


def _check_multi_label(data: ImageDataset) -> None:
    """Multi-label targets are in [0, 1] or NaN, and not all NaN; says for which classes there are none."""
    low, high, some, name = np.inf, -np.inf, np.zeros(data.card.classes, bool), data.card.name
    for part in parts(np.arange(len(data)), PART):
        targets = data.targets(part).numpy()
        known = ~np.isnan(targets)
        low, high = targets.min(where=known, initial=low), targets.max(where=known, initial=high)
        some |= known.any(0)
    if not some.any():
        raise DatasetError(f"{name}: all targets of all images are unlabelled (NaN); import them with another policy")
    if not 0 <= low <= high <= 1:
        wanted = "targets must be in [0, 1], NaN where unlabelled; import them with a policy for other codes"
        raise DatasetError(f"{name} has targets from {low:g} to {high:g}; {wanted}")
    if not some.all():
        names = data.card.class_names or [str(k) for k in range(data.card.classes)]
        say(f"{name}: no image is labelled for {', '.join(names[k] for k in np.flatnonzero(~some))}")
