"""The network that a Keras model becomes: torch modules, run one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Step:
    """One module applied: the tensors it takes and gives, and those nobody needs afterwards."""

    key: str
    inputs: tuple[int | float, ...]
    output: int
    dead: tuple[int, ...] = ()


class KerasNetwork(nn.Module):
    """A translated Keras model: float32 ``(n, C, H, W)`` to logits ``(n, K)``.

    Args:
        layers: one module for each step, the names taken from the Keras layers.
        steps: in order of execution; tensor 0 is the input.
        output: the number of the tensor that is given back.
    """

    def __init__(self, layers: Mapping[str, nn.Module], steps: Sequence[Step], output: int) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(dict(layers))
        self.steps = tuple(steps)
        self.output = output

    def forward(self, images: Tensor) -> Tensor:
        """Logits of ``images``; keeps its state in local variables, so threads may share it."""
        values: dict[int, Tensor] = {0: images.contiguous(memory_format=torch.channels_last)}
        for step in self.steps:
            arguments = [values[i] if type(i) is int else i for i in step.inputs]
            values[step.output] = self.layers[step.key](*arguments)
            for index in step.dead:
                del values[index]
        return values[self.output]
