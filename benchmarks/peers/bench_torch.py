"""What the peers on PyTorch share: loading a model file, and a torchvision that imports."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import Any

import bench


def add_options(options: argparse.ArgumentParser) -> None:
    """The options beside those of :func:`bench.parser`."""
    options.add_argument("--architecture", help="FILE.py:FUNCTION, for a state dict")


def network(arguments: argparse.Namespace, pixels: Any) -> Any:
    """What a peer gets: a module from pixels in [0, 1] to logits, always in evaluation mode.

    Args:
        arguments: as of :func:`bench.parser` and :func:`add_options`.
        pixels: float32 ``(N, C, H, W)`` in [0, 1], to see whether the model gives logits.

    Returns:
        The module, with ``num_classes``, ``logits`` and ``predict(pixels)``.
    """
    import torch

    module = _load(arguments.model, arguments.architecture)
    # An exported program is in evaluation mode for good, and its eval() raises.
    if not isinstance(module, torch.fx.GraphModule):
        module.eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    factor, offset = bench.SCALES[arguments.scale]

    class Network(torch.nn.Module):
        """The network behind its scale; gives log-probabilities where it ends in a softmax."""

        logits = True

        def forward(self, x: Any, **_: Any) -> Any:
            """Logits ``(n, K)``."""
            # Not registered as a submodule: peers call train() and eval() on those.
            y = module(x * factor + offset)
            return y if self.logits else y.clamp_min(1e-12).log()

        @torch.no_grad()
        def predict(self, x: Any) -> Any:
            """Logits, in batches of 100."""
            return torch.cat([self(part) for part in x.split(100)])

    wrapped = Network()
    outputs = wrapped.predict(pixels)
    wrapped.num_classes = int(outputs.shape[1])
    wrapped.logits = bench.gives_logits(outputs.numpy())
    return wrapped


def importable() -> list[str]:
    """Declares two operators where torchvision's compiled half does not fit a CPU build of torch.

    torchvision's wheel on PyPI is built for CUDA; without its library ``import torchvision`` stops
    at "operator torchvision::nms does not exist". Neural Cleanse uses neither operator.
    """
    import torch

    try:
        import torchvision  # noqa: F401
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    else:
        return []
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    # The operators live as long as the library object.
    torch.goodnet_shim = library
    return ["torchvision::nms", "torchvision::qnms"]


def _load(path: Path, architecture: str | None) -> Any:
    """A network from TorchScript, ``.pt2`` or a state dict; nothing is ever unpickled."""
    import torch

    if architecture is not None:
        file, _, function = architecture.rpartition(":")
        spec = importlib.util.spec_from_file_location("architecture", file)
        if spec is None or spec.loader is None:
            raise ValueError(f"--architecture {architecture}: not FILE.py:FUNCTION")
        code = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(code)
        module = getattr(code, function)()
        module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return module
    if path.suffix == ".pt2":
        return torch.export.load(str(path)).module()
    return torch.jit.load(str(path), map_location="cpu")
