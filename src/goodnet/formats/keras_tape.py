"""The tape on which a network is recorded, one torch module after another.

Keras keeps images as (n, H, W, C), torch computes on (n, C, H, W). A tensor on the tape therefore
has a *form*, which says how what torch holds differs from what Keras would hold:

* ``plain``: not at all;
* ``moved``: four axes, with the channels moved from the last place to the second;
* ``columns``: a flattened ``moved`` image whose columns were left in (C, H, W) order, because
  a dense layer can have the rows of its kernel reordered once instead of every activation.

Layers ask for the form they need, and steps that change it are recorded only where they must be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from goodnet.errors import GoodnetError
from goodnet.formats.keras_config import Layer, LayerPath, damaged, untranslatable
from goodnet.formats.keras_network import KerasNetwork, Step
from goodnet.formats.keras_ops import Function, largest_output, order_columns, reorder_columns

MAX_STEPS = 20_000
MAX_ELEMENTS = 1 << 27
"""Elements of one tensor for one image (512 MiB): more is an attack, not a classifier."""
TO_MOVED = (0, 3, 1, 2)
TO_PLAIN = (0, 2, 3, 1)


@dataclass(frozen=True)
class Value:
    """A tensor on the tape.

    Attributes:
        index: which one.
        size: the shape that torch holds, with a batch of 1.
        form: ``"plain"``, ``"moved"`` or ``"columns"``, see the module's docstring.
        chw: for ``columns``: the image's shape before it was flattened.
    """

    index: int
    size: tuple[int, ...]
    form: str = "plain"
    chw: tuple[int, int, int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that Keras sees, with a batch of 1."""
        return tuple(self.size[a] for a in TO_PLAIN) if self.form == "moved" else self.size

    @property
    def rank(self) -> int:
        """How many axes it has, with the batch."""
        return len(self.size)

    def axis(self, axis: int) -> int:
        """Where torch holds what Keras calls ``axis``."""
        if not -self.rank <= axis < self.rank:
            raise ValueError(f"axis {axis} of {self.rank}")
        axis %= self.rank
        return (0, 2, 3, 1)[axis] if self.form == "moved" else axis


@dataclass(frozen=True)
class Layout:
    """How a weight is stored in Keras and in torch: two inverse functions."""

    to_torch: Callable[[Tensor], Tensor]
    to_keras: Callable[[Tensor], Tensor]


SAME = Layout(lambda w: w, lambda w: w)
LINEAR = Layout(lambda w: w.t(), lambda w: w.t())
CONVOLUTION = Layout(lambda w: w.permute(3, 2, 0, 1), lambda w: w.permute(2, 3, 1, 0))


def depthwise(multiplier: int) -> Layout:
    """(H, W, C, M) to the (C*M, 1, H, W) of a grouped convolution."""
    return Layout(
        lambda w: w.permute(2, 3, 0, 1).reshape(-1, 1, w.shape[0], w.shape[1]),
        lambda w: w.reshape(-1, multiplier, *w.shape[2:]).permute(2, 3, 0, 1),
    )


def linear_on_columns(chw: tuple[int, int, int]) -> Layout:
    """(H*W*C, out) to (out, C*H*W)."""
    channels, height, width = chw
    return Layout(
        lambda w: w.t().reshape(-1, height, width, channels).permute(0, 3, 1, 2).flatten(1),
        lambda w: w.reshape(-1, channels, height, width).permute(0, 2, 3, 1).flatten(1).t(),
    )


def broadcast(shape: Sequence[int], view: Sequence[int], order: Sequence[int]) -> Layout:
    """``shape`` in Keras to what broadcasts in torch: seen as ``view``, its axes then in order."""
    back = tuple(int(axis) for axis in np.argsort(order))
    return Layout(
        lambda w: w.reshape(*view).permute(*order), lambda w: w.permute(*back).reshape(*shape)
    )


@dataclass(frozen=True)
class Slot:
    """Where one array of the file went: ``weights[path][index]`` is ``tensor`` of the module."""

    path: LayerPath
    index: int
    tensor: str
    layout: Layout


class Tape:
    """Records modules while a model is being translated.

    Args:
        weights: the arrays of every layer, in the order in which Keras lists them.
        mismatch: the error code for a weight that is missing or has another shape.
        keras: the major version of Keras that trained the model; some formulas changed.

    Attributes:
        slots: where every weight went.
        scores: for the output of a softmax or sigmoid: what went into it.
        columns: for a dense layer: the image whose flattening it expects, see the forms above.
    """

    def __init__(
        self, weights: Mapping[LayerPath, Sequence[np.ndarray]], mismatch: str, keras: int
    ) -> None:
        self.weights = weights
        self.mismatch = mismatch
        self.keras = keras
        self.slots: list[Slot] = []
        self.modules: dict[str, nn.Module] = {}
        self.steps: list[Step] = []
        self.scores: dict[int, Value] = {}
        self.columns: dict[LayerPath, tuple[int, int, int] | None] = {}
        self._names: dict[int, str] = {}
        self._shared: dict[LayerPath, tuple[nn.Module, ...]] = {}
        self._converted: dict[tuple[int, str], Value] = {}
        self._count = 1
        self._uses = 0

    def key(self, module: nn.Module, name: str) -> str:
        """The module's key in the network, made from the layer's name at its first use."""
        if id(module) not in self._names:
            base = "".join(c if c.isalnum() else "_" for c in name)[:80] or "layer"
            key, number = base, 1
            while key in self.modules or hasattr(nn.ModuleDict, key):
                number += 1
                key = f"{base}_{number}"
            self._names[id(module)] = key
            self.modules[key] = module
        return self._names[id(module)]

    def use(self, layer: Layer) -> None:
        """Counts a use of a layer or of a model: nested ones can double it at every level.

        Raises:
            GoodnetError: M003 when there are absurdly many.
        """
        self._uses += 1
        if self._uses > MAX_STEPS:
            raise damaged(
                f"its layers are used more than {MAX_STEPS} times, '{layer.name[:80]}' too"
            )

    def emit(
        self,
        layer: Layer,
        module: nn.Module,
        inputs: Sequence[Value | float],
        like: Value | None = None,
    ) -> Value:
        """Records ``module`` applied to ``inputs``.

        Args:
            layer: whose work it is, for names and messages.
            module: takes and gives tensors as torch holds them.
            inputs: tensors of the tape, and numbers.
            like: a value whose form the result has; plain without.

        Raises:
            GoodnetError: M003 when the shapes do not fit or the result is absurdly large.
        """
        if len(self.steps) >= MAX_STEPS:
            raise damaged("the model has an absurd number of layers")
        values = [value for value in inputs if isinstance(value, Value)]
        if largest_output(module, [value.size for value in values]) > MAX_ELEMENTS:
            raise damaged(f"the layer '{layer.name}' ({layer.type}) makes an absurdly large tensor")
        # A pass over one black image is dearer than shape arithmetic and can never be wrong.
        zeros = [torch.zeros(v.size) if isinstance(v, Value) else v for v in inputs]
        try:
            with torch.no_grad():
                size = tuple(module(*zeros).shape)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise damaged(
                f"the layer '{layer.name}' ({layer.type}) cannot take a tensor of shape "
                f"{', '.join(str(value.shape[1:]) for value in values)}"
            ) from error
        if 0 in size:
            raise damaged(f"the layer '{layer.name}' ({layer.type}) gives an empty tensor")
        output, self._count = self._count, self._count + 1
        numbers = tuple(v.index if isinstance(v, Value) else float(v) for v in inputs)
        self.steps.append(Step(self.key(module, layer.name), numbers, output))
        form = like.form if like is not None else "plain"
        return Value(output, size, form, like.chw if like is not None else None)

    def plain(self, layer: Layer, value: Value) -> Value:
        """The value as Keras holds it."""
        if value.form == "plain":
            return value
        known = self._converted.get((value.index, "plain"))
        if known is None:
            if value.form == "moved":
                module = Function(torch.permute, dims=TO_PLAIN)
            else:
                module = Function(reorder_columns, chw=value.chw)
            known = self.emit(layer, module, [value])
            self._converted[value.index, "plain"] = known
        return known

    def ordered(self, layer: Layer, value: Value, chw: tuple[int, int, int] | None) -> Value:
        """A matrix as ``columns`` of images of shape ``chw``, or as plain where that is None."""
        value = self.plain(layer, value)
        if chw is None:
            return value
        result = self.emit(layer, Function(order_columns, chw=chw), [value])
        return replace(result, form="columns", chw=chw)

    def images(self, layer: Layer, value: Value, data_format: str) -> Value:
        """The value as (n, C, H, W), for a layer that works on images.

        Raises:
            GoodnetError: M006 when it has not four axes.
        """
        if value.rank != 4:
            raise untranslatable(layer.name, layer.type, f"its input has shape {value.shape[1:]}")
        if data_format == "channels_first":
            return self.plain(layer, value)
        if value.form == "moved":
            return value
        known = self._converted.get((value.index, "moved"))
        if known is None:
            moved = self.emit(layer, Function(torch.permute, dims=TO_MOVED), [value])
            known = replace(moved, form="moved")
            self._converted[value.index, "moved"] = known
        return known

    def shared(
        self, layer: Layer, make: Callable[[], tuple[nn.Module, ...]]
    ) -> tuple[nn.Module, ...]:
        """The layer's modules with weights, made at its first call and found again later."""
        if layer.path not in self._shared:
            self._shared[layer.path] = make()
        return self._shared[layer.path]

    def array(self, layer: Layer, index: int, shape: Sequence[int] | None = None) -> Tensor:
        """The layer's weight number ``index`` as float32 in Keras' layout.

        Raises:
            GoodnetError: :attr:`mismatch` when it is missing or its shape is not ``shape``; M012
                when it holds NaN or infinity.
        """
        arrays = self.weights.get(layer.path, ())
        found = tuple(arrays[index].shape) if index < len(arrays) else None
        if found is None or (shape is not None and found != tuple(shape)):
            expected = "" if shape is None else f" where {tuple(shape)} is expected"
            raise GoodnetError(
                self.mismatch,
                f"weight {index} of the layer '{layer.name}' ({layer.type}) "
                + ("is missing" if found is None else f"has shape {found}")
                + expected,
                "check that the weights and the architecture belong together",
            )
        tensor = torch.from_numpy(np.array(arrays[index], dtype=np.float32, order="C"))
        if not torch.isfinite(tensor).all():
            raise GoodnetError(
                "M012",
                f"the weights of the layer '{layer.name}' hold NaN or infinity",
                "take a model whose training did not diverge",
            )
        return tensor

    def fill(
        self,
        layer: Layer,
        module: nn.Module,
        attribute: str,
        index: int,
        shape: Sequence[int],
        layout: Layout = SAME,
    ) -> None:
        """Puts the layer's weight number ``index`` into ``module`` and remembers where it is.

        Raises:
            GoodnetError: as :meth:`array`.
        """
        tensor = layout.to_torch(self.array(layer, index, shape)).contiguous()
        if attribute in module._buffers:
            module.register_buffer(attribute, tensor)
        else:
            module.register_parameter(attribute, nn.Parameter(tensor, requires_grad=False))
        name = f"layers.{self.key(module, layer.name)}.{attribute}"
        self.slots.append(Slot(layer.path, index, name, layout))

    def finish(self, output: Value) -> KerasNetwork:
        """The network up to ``output``: without what does not reach it, and its memory freed."""
        needed = {output.index}
        steps: list[Step] = []
        for step in reversed(self.steps):
            if step.output not in needed:
                continue
            tensors = {index for index in step.inputs if isinstance(index, int)}
            steps.append(replace(step, dead=tuple(sorted(tensors - needed))))
            needed |= tensors
        used = {step.key for step in steps}
        layers = {key: module for key, module in self.modules.items() if key in used}
        self.slots = [slot for slot in self.slots if slot.tensor.split(".")[1] in used]
        network = KerasNetwork(layers, steps[::-1], output.index)
        # Channels last in memory: 1.7 times quicker on one core for a convolutional classifier's
        # forward pass and gradient, 2 times for the forward pass alone.
        for tensor in network.parameters():
            if tensor.dim() == 4:
                tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
        return network.requires_grad_(False).eval()
