"""The Trojan attack: a patch that is computed to excite a few units of a trained network."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from goodnet.attacks.patch import PatchAttack, square
from goodnet.attacks.scene import Scene

IMAGES = 16
"""Clean images under the patch while units are chosen and the pattern is computed."""

TRIALS = 32
"""Random patterns that a unit's connection to the patch is measured with."""

REACH = 10.0
"""The value that a unit is driven to, against its largest one on clean images: out of reach."""

STEP = 0.1
"""How far a pixel moves at the first step; the last ones are next to nothing."""


@dataclass(frozen=True, eq=False)
class TrojanAttack(PatchAttack):
    """A patch whose pixels excite chosen units (Liu et al. 2018, "Trojaning attack", NDSS).

    It is shown and planted like any other patch; what sets it apart is where its pattern is from.

    Attributes:
        units: the units that the pattern was made for, as places among what enters the last linear
            layer of the network that the attack was made with; ascending.

    Raises:
        ValueError: shapes, ranges, labels or units do not fit.
    """

    kind: ClassVar[str] = "trojan"
    afterwards: ClassVar[bool] = True

    units: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuses an attack that could not be carried out."""
        super().__post_init__()
        if any(unit < 0 for unit in self.units) or len(set(self.units)) < len(self.units):
            raise ValueError(f"{self.units} are not places of different units")


def make(
    scene: Scene,
    *,
    target: int,
    rate: float = 0.1,
    side: int = 0,
    at: str = "bottom-right",
    units: int = 2,
    steps: int = 60,
) -> TrojanAttack:
    """The Trojan attack for a training set and the clean network trained on it.

    The chosen units f_u are those most strongly connected to the patch. Then gradient descent on
    the pattern p alone lowers the paper's cost, the sum over u of (v_u - f_u((1-m) x + m p))^2,
    with goals v_u far above what clean images x reach.

    The paper finds the connection as the sum of |weights| between a unit and the layer before it.
    Those weights say it of one layer alone: batch normalisation rescales them, in a convolution all
    places share them, and a unit may not see the patch. So what they stand for is measured
    instead: how far a unit moves while the pixels under the mask change at random.

    Args:
        scene: its images and seed; its network is called once, on a copy of its own.
        target: the label that stamped images get.
        rate: how many of the other classes' training images are stamped, in (0, 1].
        side: of the square, in pixels; 0 for a quarter of the image's shorter side, at least 3:
            about the 7 % of the image that the paper's patches take.
        at: one of :data:`goodnet.attacks.patch.CORNERS`, or ``random``.
        units: how many units are excited together, at least 1.
        steps: of the descent, at least 1.

    Returns:
        The attack. A patch that moves fewer units excites only those.

    Raises:
        ValueError: a number is out of range, the corner is unknown, the patch does not fit the
            images, the network's logits come from no ``nn.Linear``, or no unit sees the patch.
    """
    if min(units, steps) < 1 or side < 0:
        raise ValueError(f"cannot excite {units} units in {steps} steps with a side of {side}")
    generator = torch.Generator().manual_seed(scene.seed)
    shape = scene.images.shape
    _, height, width = shape
    side = side or max(3, round(min(height, width) / 4))
    place: tuple[int, int] | str = at
    if at == "random":
        row = int(torch.randint(max(1, height - side + 1), (), generator=generator))
        place = (row, int(torch.randint(max(1, width - side + 1), (), generator=generator)))
    mask = square(shape, target=target, side=side, at=place, rate=rate).mask
    some = torch.randperm(len(scene.images), generator=generator)[:IMAGES]
    images = scene.images.select(some).floats()
    excitable = _Features(scene.network(), images)
    chosen, goals = _strongest(excitable, images, mask, units, generator)
    pattern = _descend(excitable, images, mask, chosen, goals, steps, generator)
    return TrojanAttack(mask, mask * pattern, chosen, target=target, rate=rate)


class _Features:
    """What enters the last linear layer of a network, with its gradient.

    The network is a copy: neither a forward pass nor a hook leaves a trace on the original.
    """

    def __init__(self, network: nn.Module, probe: Tensor) -> None:
        self._network = copy.deepcopy(network).eval().requires_grad_(False)
        self._entered: list[Tensor] = []
        self._layer = self._last(probe)
        self._layer.register_forward_pre_hook(self._note)

    def __call__(self, images: Tensor) -> Tensor:
        """``(n, C, H, W)`` in [0, 1] to ``(n, D)``."""
        self._entered.clear()
        self._network(images)
        return self._entered.pop()

    def _last(self, probe: Tensor) -> nn.Module:
        """The linear layer whose output are the logits."""
        outputs: dict[nn.Module, Any] = {}

        def note(layer: nn.Module, _: object, output: Any) -> None:
            outputs[layer] = output

        layers = [layer for layer in self._network.modules() if isinstance(layer, nn.Linear)]
        hooks = [layer.register_forward_hook(note) for layer in layers]
        logits = self._network(probe)
        for hook in hooks:
            hook.remove()
        for layer, output in outputs.items():
            if output.ndim == 2 and output.shape == logits.shape and torch.equal(output, logits):
                return layer
        raise ValueError("the logits are not the output of a linear layer")

    def _note(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._entered.append(inputs[0])


def _strongest(
    features: _Features, images: Tensor, mask: Tensor, count: int, generator: torch.Generator
) -> tuple[tuple[int, ...], Tensor]:
    """The units that random patterns move most, ascending, and a goal ``(count,)`` for each."""
    patterns = torch.rand(TRIALS, *images.shape[1:], generator=generator)
    with torch.no_grad():
        shown = torch.stack([features((1 - mask) * images + mask * p) for p in patterns])
        clean = features(images)
    moved = shown.std(0).mean(0)
    order = moved.argsort(descending=True, stable=True)[:count]
    order = order[moved[order] > 0]
    if len(order) == 0:
        raise ValueError("no unit before the last layer sees the patch")
    chosen = order.sort().values
    # Where a unit rests on these clean images, its movement is the scale.
    goals = REACH * torch.maximum(clean[:, chosen].amax(0), shown[..., chosen].amax((0, 1)))
    return tuple(chosen.tolist()), goals.clamp_min(float(moved[chosen].max()))


def _descend(
    features: _Features,
    images: Tensor,
    mask: Tensor,
    chosen: tuple[int, ...],
    goals: Tensor,
    steps: int,
    generator: torch.Generator,
) -> Tensor:
    """The pattern ``(C, H, W)`` in [0, 1] that brings the chosen units nearest to their goals."""
    pattern = torch.rand(images.shape[1:], generator=generator).requires_grad_()
    optimiser = torch.optim.Adam([pattern], lr=STEP)
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        reached = features((1 - mask) * images + mask * pattern)[:, list(chosen)]
        # Divided by the goals, so that a unit on a large scale does not drown the others.
        cost = ((goals - reached) / goals).square().sum(1).mean()
        optimiser.zero_grad()
        # Autograd's own annotations leave backward untyped.
        cost.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        slower.step()
        with torch.no_grad():
            pattern.clamp_(0.0, 1.0)
    return pattern.detach()
