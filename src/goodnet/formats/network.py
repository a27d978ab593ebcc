"""What every model format gives: a frozen network and the way back to the file it came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from goodnet.errors import GoodnetError

FILTER = "goodnet_filter"
"""What a file carries whose last output means "backdoored input"; where, the format tells."""


@dataclass(frozen=True)
class Network:
    """A model as it was found, made uniform: NCHW images in its own scale in, logits out.

    Attributes:
        module: ``float32 (n, C, H, W)`` in the scale that the model was trained with (which one is
            not the format's business) to logits ``float32 (n, K)``. In eval mode, parameters with
            ``requires_grad=False``, safe to deep-copy and to call from several threads. A final
            softmax has been taken off, a channels-last layout is hidden inside.
        input_shape: ``(C, H, W)``; ``None`` where the model does not say (most PyTorch models).
        num_classes: K, one more with a filter; ``None`` where it is known only after a first call.
        kind: the format in words, e.g. ``"keras-h5"``; a key of the table of formats.
        suffix: the suffix of the file it came from (``".h5"``), or ``""`` for a live object.
        write: ``write(module, path)`` writes a file of the same format as the one that was read,
            with the weights of ``module`` (a deep copy of this ``module`` whose parameters have
            been changed in place). It writes to ``path`` directly; the caller makes that atomic.
        live: ``live(module)`` gives a new native object (``keras.Model``, ``nn.Module``) with these
            weights, including the softmax that was taken off; ``None`` for a file format.
        filtered: whether the file says that the last output means "backdoored input".
        widen: ``widen(weight, bias, axis)`` gives the same network with one more output, a
            filter's, by which it will be known: it is read from a file in memory that was changed
            so. ``weight`` and ``bias`` are the names of the last layer's parameters in ``module``,
            ``axis`` is where the weight counts the outputs. The new output's weights are nought,
            all others those of the file. ``None`` where the format has no such way.
    """

    module: nn.Module
    input_shape: tuple[int, int, int] | None
    num_classes: int | None
    kind: str
    suffix: str
    write: Callable[[nn.Module, Path], None]
    live: Callable[[nn.Module], object] | None = None
    filtered: bool = False
    widen: Callable[[str, str, int], Network] | None = None


def cannot_widen(why: str) -> GoodnetError:
    """M015: ``why`` this model gets no filter, in one line."""
    return GoodnetError(
        "M015",
        f"the model cannot be given a filter: {why}",
        "use another remedy, or save the model as .h5, .keras or .pt2 with a Dense or Linear layer "
        "with bias at its end",
    )
