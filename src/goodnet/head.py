"""The last linear layer of a classifier, and the channels of its last convolution, found by
watching the operations, whatever the format.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from goodnet.classifier import Classifier
from goodnet.device import FORWARD_CHUNK
from goodnet.errors import GoodnetError
from goodnet.watching import Watching

TOLERANCE = 1e-3
"""How far features @ weights + bias may lie from the logits, against the largest logit or 1."""

_ATEN = torch.ops.aten
_CONVOLUTIONS = (_ATEN.convolution, _ATEN._convolution, _ATEN.conv2d)


@dataclass(frozen=True)
class Head:
    """The last linear layer: ``logits = features @ weight.T + bias``.

    Attributes:
        weight: the classifier's own parameter, so that changing it in place (under
            ``torch.no_grad()``) changes the classifier; ``(K, D)``, or ``(D, K)`` if
            ``transposed``. Of a 1x1 convolution it is the ``(K, D)`` view of the parameter.
        bias: its ``(K,)`` parameter, or None where there is none.
        transposed: whether ``weight`` is ``(D, K)``, as Keras keeps it.
        features: ``float32 (n, C, H, W)`` in [0, 1] to what enters the layer, ``float32 (n, D)``,
            without a gradient. They do not depend on ``weight`` and ``bias``.
    """

    weight: Tensor
    bias: Tensor | None
    transposed: bool
    features: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Channels:
    """The channels of the last convolution, after its norm and its activation function.

    Attributes:
        tensors: the classifier's own parameters that make the channels, ``(C, ...)`` each. With row
            c of all of them at nought, channel c is nought (or constant, where what follows adds
            something that is no parameter).
        sizes: float32 ``(C,)``: mean absolute activation over images and places.
    """

    tensors: tuple[Tensor, ...]
    sizes: Tensor


@dataclass(frozen=True)
class _Product:
    """One product with a parameter: what entered, ``(rows, D)``, and where the parameters lie."""

    entered: Tensor
    weight: int
    bias: int


class _Watcher:
    """Notes every linear operation that answers with one number for each class."""

    def __init__(self, owners: dict[int, Tensor], classes: int) -> None:
        self.owners = owners
        self.classes = classes
        self.products: list[_Product] = []

    def saw(self, operation: Any, args: tuple[Any, ...], result: Any) -> None:
        """One operation; see :data:`goodnet.watching.Saw`."""
        packet = getattr(operation, "overloadpacket", None)
        if packet in (_ATEN.add, _ATEN.add_) and self.products:
            # Keras adds the bias in a step of its own.
            for summand in args[:2]:
                owner = self.owners.get(_address(summand))
                if owner is not None and owner.shape == (self.classes,):
                    last = self.products[-1]
                    self.products[-1] = _Product(last.entered, last.weight, _address(summand))
        operands = _operands(packet, args)
        if operands is not None and result.ndim in (2, 4) and result.shape[1] == self.classes:
            entered, weight, bias = operands
            if _address(weight) in self.owners:
                self.products.append(_Product(entered, _address(weight), _address(bias)))


class _Follower:
    """Follows the last convolution's output as long as each place and channel stays what it is."""

    def __init__(self, owners: dict[int, Tensor], passed_over: int) -> None:
        self.owners = owners
        self.passed_over = passed_over
        self.current: Tensor | None = None
        self.tensors: list[Tensor] = []

    def saw(self, operation: Any, args: tuple[Any, ...], result: Any) -> None:
        """One operation; see :data:`goodnet.watching.Saw`."""
        first = result[0] if isinstance(result, tuple) and result else result
        if not isinstance(first, Tensor) or first.ndim != 4:
            return
        packet = getattr(operation, "overloadpacket", None)
        entered = [arg for arg in args if isinstance(arg, Tensor)]
        if packet in _CONVOLUTIONS:
            if _address(args[1]) in self.owners and _address(args[1]) != self.passed_over:
                self.current, self.tensors = first, []
                self._note(entered[1:], first.shape[1])
        elif self.current is not None and any(arg is self.current for arg in entered):
            images = [arg for arg in entered if arg.shape == first.shape]
            # A sum with a shortcut is no longer the convolution's alone.
            if len(images) == 1 and images[0] is self.current:
                self.current = first
                self._note(entered, first.shape[1])

    def _note(self, entered: Sequence[Tensor], channels: int) -> None:
        owned = [self.owners.get(_address(tensor)) for tensor in entered]
        self.tensors += [t for t in owned if t is not None and t.shape[:1] == (channels,)]


def find_channels(classifier: Classifier, images: Tensor) -> Channels:
    """The channels of the last convolution before the last linear layer.

    Args:
        classifier: of any format.
        images: ``float32 (n, C, H, W)`` in [0, 1] over which activation is averaged.

    Raises:
        GoodnetError: M013 when no convolution with parameters was seen.
    """
    try:
        passed_over = _address(find_head(classifier, images).weight)
    except GoodnetError:
        passed_over = 0
    # Buffers stay out: a norm's statistics are not weights.
    owners: dict[int, Tensor] = {_address(p): p for p in classifier.module.parameters()}
    owners.pop(0, None)
    total: Tensor | None = None
    for batch in torch.split(images, FORWARD_CHUNK):
        follower = _Follower(owners, passed_over)
        with torch.no_grad(), Watching(follower.saw):
            classifier(batch)
        if follower.current is None:
            raise _no_head("no convolution was seen")
        sizes = follower.current.abs().mean((2, 3)).mean(0) * len(batch)
        total = sizes if total is None else total + sizes
    if total is None:
        raise _no_head("there are no images to look at")
    return Channels(tuple({id(t): t for t in follower.tensors}.values()), total / len(images))


def find_head(classifier: Classifier, images: Tensor) -> Head:
    """The last linear layer of a classifier, if its output are the logits.

    The operations of one call are watched; a matrix product (or a 1x1 convolution, averaged over
    the image) with a parameter of the network is believed only if its input times its weights plus
    its bias give the logits of these very images. The last one that does is taken.

    Args:
        classifier: of any format.
        images: ``float32 (n, C, H, W)`` in [0, 1], n >= 1; 8 are enough.

    Returns:
        The :class:`Head`; its tensors are those of ``classifier.module``.

    Raises:
        GoodnetError: M013 when there is no such layer, or the logits are more than it answers.
    """
    owners = _owners(classifier)
    products, logits = _watch(classifier, images[:FORWARD_CHUNK])
    # Newest first, each weight once: a later product hides no earlier one that fits.
    for address, bias_address in dict.fromkeys((p.weight, p.bias) for p in reversed(products)):
        parameter, bias = owners[address], owners.get(bias_address)
        entered = _entered(products, address, len(logits))
        if entered is None:
            continue
        weight = parameter[:, :, 0, 0] if parameter.ndim == 4 else parameter
        for transposed in (False, True):
            matrix = weight.T if transposed else weight
            if _explains(entered, matrix, bias, logits):
                return Head(weight, bias, transposed, _features(classifier, parameter))
    raise _no_head(
        "the logits are not the output of a linear layer"
        if products
        else "no linear layer with one output for each class was seen"
    )


def _features(classifier: Classifier, parameter: Tensor) -> Callable[[Tensor], Tensor]:
    def features(images: Tensor) -> Tensor:
        rows = []
        for batch in torch.split(images, FORWARD_CHUNK):
            products, _ = _watch(classifier, batch)
            entered = _entered(products, _address(parameter), len(batch))
            if entered is None:
                raise _no_head("the network took another path on other images")
            rows.append(entered)
        return torch.cat(rows)

    return features


def _watch(classifier: Classifier, images: Tensor) -> tuple[list[_Product], Tensor]:
    watcher = _Watcher(_owners(classifier), classifier.outputs)
    with torch.no_grad(), Watching(watcher.saw):
        logits = classifier(images)
    return watcher.products, logits


def _owners(classifier: Classifier) -> dict[int, Tensor]:
    """Every parameter and buffer by its address; parameters last, so that they prevail."""
    module = classifier.module
    return {_address(t): t for t in [*module.buffers(), *module.parameters()] if _address(t)}


def _address(value: object) -> int:
    """Where a tensor's numbers begin, the same for a transposed view; 0 for anything else."""
    if isinstance(value, Tensor) and value.layout == torch.strided:
        return value.data_ptr()
    return 0


def _operands(packet: Any, args: tuple[Any, ...]) -> tuple[Tensor, Tensor, object] | None:
    """What enters a linear operation, its weights and its bias; None for any other operation."""
    if packet is _ATEN.addmm:
        return args[1], args[2], args[0]
    if packet in (_ATEN.mm, _ATEN.matmul) and args[0].ndim == 2:
        return args[0], args[1], None
    if packet is _ATEN.linear and args[0].ndim == 2:
        return args[0], args[1], args[2] if len(args) > 2 else None
    if packet in _CONVOLUTIONS:
        entered, weight = args[0], args[1]
        if weight.ndim == 4 and weight.shape[2:] == (1, 1):
            # Averaging the image before or after a 1x1 convolution comes to the same.
            return entered.mean((2, 3)), weight, args[2] if len(args) > 2 else None
    return None


def _entered(products: list[_Product], address: int, count: int) -> Tensor | None:
    # A network of a fixed batch size answers in several calls and drops the last one's surplus.
    parts = [product.entered for product in products if product.weight == address]
    if not parts or len({part.shape[1:] for part in parts}) > 1:
        return None
    rows = torch.cat(parts)[:count].float()
    return rows if len(rows) == count else None


def _explains(entered: Tensor, matrix: Tensor, bias: Tensor | None, logits: Tensor) -> bool:
    if matrix.shape != (logits.shape[1], entered.shape[1]):
        return False
    expected = entered @ matrix.T.float()
    if bias is not None:
        expected = expected + bias
    scale = max(1.0, float(logits.abs().max()))
    return bool((expected - logits).abs().max() <= TOLERANCE * scale)


def _no_head(reason: str) -> GoodnetError:
    return GoodnetError(
        "M013",
        f"the last layer was not found: {reason}",
        "use a remedy that does not re-fit the last layer",
    )
