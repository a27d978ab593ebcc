"""Live ``nn.Module`` objects, and what every PyTorch format needs: logits from any module."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from goodnet.errors import GoodnetError
from goodnet.formats.network import Network

SMALLEST_PROBABILITY = 1e-30
"""Probabilities are clamped here before the logarithm: the smallest that keeps a gradient."""

_SOFTMAXES: frozenset[Any] = frozenset(
    {
        functional.softmax,
        functional.log_softmax,
        torch.softmax,
        torch.log_softmax,
        Tensor.softmax,
        Tensor.log_softmax,
        torch.ops.aten.softmax.int,
        torch.ops.aten.log_softmax.int,
        torch.ops.aten._softmax.default,
        torch.ops.aten._log_softmax.default,
    }
)
_Layout = dict[str, tuple[torch.device, torch.dtype, bool]]


class _SoftmaxTap(TorchFunctionMode):
    """Remembers the last softmax over the classes: what it was given and what it answered."""

    def __init__(self) -> None:
        super().__init__()
        self.given: Tensor | None = None
        self.answer: object = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in _SOFTMAXES:
            given = args[0] if args else kwargs.get("input", kwargs.get("self"))
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            # nn.Softmax() without a dimension means 1 for a matrix.
            if isinstance(given, Tensor) and dim in (1, -1, None):
                self.given, self.answer = given, result
        return result


class LogitsModule(nn.Module):
    """Any classifying module, answering with logits whatever it ends in.

    The wrapped module is never changed: a softmax is seen as it is called and its input is
    answered instead, be it a layer or a function. Where this cannot see it (inside TorchScript
    or compiled code), probabilities become ``log(p)``.

    Args:
        inner: takes ``float32 (n, C, H, W)``; answers a matrix, a tuple that begins with one, or
            an object with ``logits``.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        """``float32 (n, C, H, W)`` to logits ``float32 (n, K)``."""
        tap = _SoftmaxTap()
        with tap:
            output = tensor_of(self.inner(images))
        if output is tap.answer and tap.given is not None:
            return tap.given.flatten(1).float()
        return as_logits(output)


def tensor_of(output: object) -> Tensor:
    """The tensor of class scores in what a module answered.

    Args:
        output: a tensor, a tuple or list that begins with one, or an object or mapping with
            ``logits`` (as the models of ``transformers`` answer).

    Raises:
        GoodnetError: M009 when there is no such tensor.
    """
    if isinstance(output, Mapping) and "logits" in output:
        output = output["logits"]
    elif isinstance(output, tuple | list) and output:
        output = output[0]
    elif not isinstance(output, Tensor) and hasattr(output, "logits"):
        output = output.logits
    if not isinstance(output, Tensor):
        raise GoodnetError(
            "M009",
            f"the model answers with a {type(output).__name__}, not with class scores",
            "give a classifier whose forward() returns one (images, classes) tensor",
        )
    return output


def as_logits(output: Tensor) -> Tensor:
    """Class scores as logits: probabilities become ``log(p)``, everything else stays.

    Rows that are not negative and all sum to 1 are probabilities; logits do not do that. ``p`` is
    clamped at :data:`SMALLEST_PROBABILITY`, so where a float32 softmax has underflowed to 0 the
    logit is -69 and its gradient vanishes.

    Args:
        output: ``(n, K)``, or with trailing dimensions that are flattened.

    Returns:
        ``float32 (n, K)``.
    """
    output = output.flatten(1).float()
    values = output.detach()
    sums = values.sum(dim=1)
    if len(values) and bool((values >= 0).all()) and bool(((sums - 1).abs() < 1e-3).all()):
        return output.clamp_min(SMALLEST_PROBABILITY).log()
    return output


def freeze(module: nn.Module) -> nn.Module:
    """The same module in eval mode with frozen parameters, on the CPU; changed in place."""
    module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


def load_live(module: nn.Module) -> Network:
    """A network from a live PyTorch module.

    Args:
        module: an image classifier, NCHW; it is copied and stays as it is. A final softmax, as a
            layer or as a function, is looked through.

    Returns:
        A :class:`Network` of kind ``"torch-live"``. ``live`` gives a new module of the user's own
        type with the new weights, on the old devices, in the old precision and modes, ending in
        the same softmax. ``write`` saves the ``state_dict`` as ``torch.save`` does.

    Raises:
        GoodnetError: M011 when the module cannot be copied.
    """
    try:
        inner = copy.deepcopy(module)
    except Exception as error:
        raise GoodnetError(
            "M011",
            f"the {type(module).__name__} cannot be copied: {str(error).splitlines()[:1]}",
            "save its state_dict and pass --architecture, or use torch.export",
        ) from error
    layout = _layout(inner)
    training = {name: part.training for name, part in inner.named_modules()}
    wrapped = freeze(LogitsModule(inner.cpu().float()))
    return Network(
        module=wrapped,
        input_shape=None,
        num_classes=None,
        kind="torch-live",
        suffix="",
        write=_write_live,
        live=partial(_give_back, layout=layout, training=training),
    )


def _layout(module: nn.Module) -> _Layout:
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: (tensor.device, tensor.dtype, tensor.requires_grad) for name, tensor in tensors}


def _inner(module: nn.Module) -> nn.Module:
    if not isinstance(module, LogitsModule):
        raise TypeError(f"expected a copy of the network's module, got {type(module).__name__}")
    return module.inner


def _give_back(module: nn.Module, layout: _Layout, training: dict[str, bool]) -> nn.Module:
    result = copy.deepcopy(_inner(module))
    for name, tensor in [*result.named_parameters(), *result.named_buffers()]:
        device, dtype, requires_grad = layout[name]
        tensor.data = tensor.data.to(device=device, dtype=dtype)
        tensor.requires_grad_(requires_grad)
    for name, part in result.named_modules():
        part.training = training[name]
    return result


def _write_live(module: nn.Module, path: Path) -> None:
    torch.save(_inner(module).state_dict(), path)
