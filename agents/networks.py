"""Networks of learners and policies, in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from dilqr_rl.checks import MOST, whole

__all__ = ["ACTIVATIONS", "Layers", "critic_layers", "draw_uniformly", "perceptron", "seeded", "widths"]

Layers = Sequence[int] | Mapping[str, Sequence[int]] | None

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


def perceptron(sizes: Sequence[int], activation: str, generator: torch.Generator | None) -> nn.Sequential:
    """Linear layers with an activation between each two of them, in float64, on weights as torch draws them.

    Args:
        sizes: of the input, of each hidden layer, and of the output.
        activation: one of ACTIVATIONS.
        generator: of the weights, so that the global random numbers aren't touched; None: these.

    Raises:
        ValueError: a size that isn't a positive integer, or another activation.
    """
    sizes = widths("hidden", sizes)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {[*ACTIVATIONS]}, got {activation!r}.")
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        linear = nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=torch.float64)
        draw_uniformly(linear, 1 / math.sqrt(inputs), generator)
        layers += [linear, ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


@torch.no_grad()
def draw_uniformly(module: nn.Module, bound: float, generator: torch.Generator | None) -> None:
    """Overwrite all parameters of a module with numbers between -bound and bound, as torch's own layers start."""
    for parameter in module.parameters():
        parameter.uniform_(-bound, bound, generator=generator)


def seeded(seed: int, part: int = 0) -> torch.Generator:
    """The random numbers of one part of a network, so that no two parts start alike.

    Raises:
        ValueError: the seed isn't a whole number from 0 on.
    """
    seed = whole("seed", seed, "a whole number from 0 on", 0)
    return torch.Generator().manual_seed(int(np.random.SeedSequence((seed, part)).generate_state(1)[0]))


def widths(name: str, values: Iterable[int]) -> list[int]:
    """Widths of layers, as Python's integers.

    Raises:
        ValueError: one isn't a positive integer.
    """
    return [whole(name, value, "positive integers", most=MOST) for value in values]


def critic_layers(net_arch: Layers, name: str, default: list[int]) -> dict[str, list[int]]:
    """Stable-Baselines3's net_arch, of a policy whose actor has no layers.

    Args:
        net_arch: widths of the critic's hidden layers, by themselves or under its name.
        name: of the critic, "vf" or "qf".
        default: widths if it is None.

    Raises:
        ValueError: layers for the actor, or something else.
    """
    layers = net_arch.get(name, []) if isinstance(net_arch, Mapping) else default if net_arch is None else net_arch
    others = {key for key, widths in net_arch.items() if widths} - {name} if isinstance(net_arch, Mapping) else set()
    if others or isinstance(layers, str) or not isinstance(layers, Sequence):
        raise ValueError(
            f'net_arch: expected widths of the critic\'s layers, a list or {{"{name}": [...]}}, got {net_arch!r}: '
            "the actor plans."
        )
    return {"pi": [], name: widths("net_arch", layers)}
