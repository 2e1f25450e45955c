"""What several proxies do to a network: find its layers, decide what BatchNorm does, take gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ..core import Batch, Objective


def layers(net: nn.Module) -> list[nn.Module]:
    """Convolutions and linear layers, in the network's order."""
    return [module for module in net.modules() if isinstance(module, (_ConvNd, nn.Linear))]


def weights(net: nn.Module) -> list[Tensor]:
    """The weight of each of `layers`; biases and BatchNorm's scales are no part of any proxy here."""
    return [layer.weight for layer in layers(net)]  # type: ignore[misc]


def norms(net: nn.Module) -> list[_BatchNorm]:
    """BatchNorm layers, in the network's order."""
    return [module for module in net.modules() if isinstance(module, _BatchNorm)]


def batch_statistics(net: nn.Module) -> nn.Module:
    """BatchNorm by the batch's own figures, as fresh running statistics mean nothing; dropout and the like are off."""
    net.eval()
    for norm in norms(net):
        norm.train()
    return net


def gradients(net: nn.Module, batch: Batch, objective: Objective) -> list[Tensor]:
    """∂L/∂θ of each of `weights`, zeros where the loss does not depend on one."""
    parameters = weights(net)
    with torch.enable_grad():
        loss = objective(batch_statistics(net)(batch.inputs), batch)
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
