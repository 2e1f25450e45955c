"""The DARTS supernet: size, decisions, gates, and that the fast paths compute what the plain operations compute."""

import torch

from phosphene.spaces.darts_supernet import DartsSupernet, edges


def test_published_size() -> None:
    net = DartsSupernet(channels=16, cells=8, nodes=4, stem="cifar", shape=(3, 32, 32), classes=10)
    assert sum(p.numel() for p in net.parameters()) == 1_930_618
    assert len(edges(4)) == 14
