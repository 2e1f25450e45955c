"""Limits that only a slip of the finger passes, by the name of the flag: they keep a typing error from a whole machine.

    --threads 100000000, --channels 64000000, --size 320000

What a method forbids is a bound of its field, and stands in --help. What no one could want stands here, generously, and
is the same for every flag of the name, in every command and for registered searches, too. A field with an upper bound
of its own has no other. A number without a name here is at most what its arithmetic holds.
"""

from __future__ import annotations

LARGEST = {int: (1 << 31) - 1, float: 3e38}
"""of any whole number, and of any fraction: what a C int and a float32 hold"""
SMALLEST = 1.2e-38
"""of any fraction but 0: what float32 tells from 0"""

SIDE, CHANNELS, BATCH, WORKERS, CLASSES = 1 << 14, 1 << 16, 1 << 20, 1 << 12, 10**7
CELLS, NODES, SHEET, POPULATION, SCALE, WEIGHT = 1000, 100, 1000, 10**6, 64.0, 1e12
REPEATS = 10_000

LIMITS: dict[str, float] = {
    **dict.fromkeys(("threads", "jobs"), WORKERS),
    **dict.fromkeys(("size", "side", "crop", "pad", "cutout", "roll"), SIDE),
    **dict.fromkeys(
        ("channels", "final_channels", "search_channels", "train_channels", "multiple", "latent"), CHANNELS
    ),
    **dict.fromkeys(("batch", "batch_increase", "latency_batch", "score_batch", "search_batch"), BATCH),
    **dict.fromkeys(("supernet_batch", "train_batch"), BATCH),
    **dict.fromkeys(("input_channels",), 1024),
    **dict.fromkeys(("cells", "final_cells", "search_cells", "train_cells"), CELLS),
    **dict.fromkeys(("nodes",), NODES),
    **dict.fromkeys(("classes", "categories", "mixed"), CLASSES),
    **dict.fromkeys(("columns", "rows_per_class", "per_class", "most_classes", "crops", "rounds"), SHEET),
    **dict.fromkeys(("population", "children", "crossings", "mutants", "drawn", "top", "nets"), POPULATION),
    **dict.fromkeys(("architectures", "baselines"), POPULATION),
    **dict.fromkeys(("seeds",), REPEATS),
    **dict.fromkeys(("width", "final_width", "scale"), SCALE),
    **dict.fromkeys(("spectrum", "start_spectrum", "penalty_power", "cost_weight"), 100.0),
    **dict.fromkeys(("mixup", "cutmix", "amplitude"), 1e6),
    **dict.fromkeys(("temperature", "tau", "tau_min"), WEIGHT),
}
"""flag -> the largest value that is no typing error"""


def limit(name: str, kind: type) -> float:
    """The largest magnitude of a number of this name and kind."""
    return LIMITS.get(name, LARGEST.get(kind, LARGEST[float]))
