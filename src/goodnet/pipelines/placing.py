"""Which device a network is looked at on, and in which precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from goodnet.classifier import Classifier
from goodnet.device import CPU, LARGE_CHUNK, Device
from goodnet.errors import GoodnetError
from goodnet.images import Images
from goodnet.memory import available
from goodnet.parallel import cores
from goodnet.watching import Watching

AUTO = "auto"

KNOWN = ("cpu", "cuda")
"""Kinds of device that may be named; ROCm's cards call themselves "cuda" as well."""

FULL_PRECISION = "float32"
"""Behind a comma after a device's name: no bfloat16."""

PROBES = 16
"""Images on which another way of computing has to answer as before."""

MEMORY_SHARE, CROWDED = 0.4, 0.8
"""Of a graphics card's memory, and at most of what is free: what a search keeps besides the network
is in the rest."""

THREADS_SHARE, WORKSPACE = 0.7, 1.5
"""Of the memory that is free, for threads on a processor; and what one takes, as a multiple of what
the network keeps of the images for their gradients: gradients and single operations come on top."""

ROUGH = 0.05
"""How far logits in bfloat16 may lie from those in float32, against the largest one: a few
roundings to 8 bits."""

LARGE = 5e7
"""Multiplications for an image from which bfloat16 pays on a card: the first scan of a process, of
a network of 8e6 (CSAW's DeepID, 1,283 labels), took 8.6 s with it on an H100 and 4.3 s without; in
a ResNet-50 (4e9) a third of the time of a step is saved."""

_ATEN = torch.ops.aten
_CONVOLUTIONS = (_ATEN.convolution, _ATEN._convolution, _ATEN.conv2d)
_SLOW_IN_HALF = ("aten::bmm", "aten::baddbmm", "aten::_scaled_dot_product")
"""How the names of operations begin that attention is made of."""


def placed(classifier: Classifier, device: str, probe: Tensor) -> Classifier:
    """The classifier on the device that the user has named, for looking at.

    Args:
        classifier: on the processor.
        device: ``"auto"`` (a graphics card where there is one that gives the same answers), or a
            name of PyTorch's (``"cpu"``, ``"cuda"``, ``"cuda:1"``); ``",float32"`` behind it keeps
            searches from using bfloat16.
        probe: float32 ``(n, C, H, W)`` in [0, 1]: a few images, on which answers are compared.

    Returns:
        A classifier that takes its images there, still with gradients in float32: whether bfloat16
        suits the network is for :func:`in_half` to say.

    Raises:
        GoodnetError: R010 for a device that is not there or on which the network does not run.
    """
    name, _, precision = device.strip().lower().partition(",")
    if precision.strip() not in ("", FULL_PRECISION):
        raise _no_device(device, f"'{precision.strip()}' is no precision that can be asked for")
    name = name.strip()
    here = replace(classifier, device=CPU, float32_only=bool(precision))
    if name == "cpu" or (name == AUTO and not torch.cuda.is_available()):
        return here
    if name != AUTO and name.partition(":")[0] not in KNOWN:
        raise _no_device(device, "that is no device that goodnet uses")
    try:
        there = _moved(here, "cuda" if name == AUTO else name, probe)
    except Exception as error:  # a driver's or a foreign network's, of whatever kind
        if name == AUTO:
            return here
        raise _no_device(device, str(error).splitlines()[0][:200] if str(error) else "") from error
    if there is None and name != AUTO:
        raise _no_device(device, "the model answers differently there")
    return there or here


def probes(images: Images) -> Tensor:
    """The first images, float32 ``(n, C, H, W)`` in [0, 1], on which answers are compared."""
    return images.select(torch.arange(min(PROBES, len(images)))).floats()


def _moved(classifier: Classifier, name: str, probe: Tensor) -> Classifier | None:
    """The classifier there, with chunks that fit; None where it answers differently."""
    if torch.device(name).type == "cpu":
        return classifier
    there = classifier.on(Device(name, chunk=PROBES, forward_chunk=PROBES))
    expected, found = classifier.logits(probe[:PROBES]), there.logits(probe[:PROBES])
    scale = float(expected.abs().max())
    if not torch.allclose(expected, found, rtol=1e-2, atol=1e-2 * scale):
        return None
    chunk = _chunk(there, probe[:PROBES])
    return replace(there, device=Device(name, chunk=chunk, forward_chunk=chunk))


def _chunk(classifier: Classifier, probe: Tensor) -> int:
    """How many images with gradient fit in the card's memory; a power of two.

    Its size decides as long as that much is free: the answer is to be the same tomorrow.
    """
    place = classifier.device.place
    torch.cuda.reset_peak_memory_stats(place)
    before = torch.cuda.memory_allocated(place)
    images = probe.to(place).requires_grad_(True)
    torch.autograd.grad(classifier(images).sum(), images)
    each = max(1, torch.cuda.max_memory_allocated(place) - before) / len(probe)
    free, size = torch.cuda.mem_get_info(place)
    room = min(MEMORY_SHARE * size, CROWDED * free)
    chunk = LARGE_CHUNK
    while chunk > 1 and chunk * each > room:
        chunk //= 2
    return chunk


def in_half(classifier: Classifier, probe: Tensor) -> Classifier:
    """The classifier with searches that take their gradients in bfloat16, where that is quicker.

    It is with plain convolutions (1.2 to 1.5 times on a processor with AVX-512 BF16,
    ``benchmarks/precision.py``); grouped convolutions and attention are slower by a multiple there,
    and without such a processor everything is. On a graphics card it is with large networks.

    Args:
        classifier: on its device.
        probe: float32 ``(n, C, H, W)`` in [0, 1]: a few images, on which answers are compared.

    Returns:
        ``classifier`` itself where it should stay as it is.
    """
    if classifier.float32_only or not _has_half(classifier.device):
        return classifier
    probe = probe[:PROBES].to(classifier.device.place)
    seen = _Convolutions()
    with torch.no_grad(), Watching(seen.saw):
        exact = classifier(probe)
    enough = 1 if classifier.device.is_processor else LARGE * len(probe)
    if seen.slow or seen.products < enough:
        return classifier
    half = replace(classifier, half=True)
    try:
        images = probe.clone().requires_grad_(True)
        rough = half(images)
        (gradient,) = torch.autograd.grad(rough.sum(), images)
    # What a foreign network raises is up to its author; a refusal is an answer here.
    except Exception:
        return classifier
    alike = bool((rough.detach() - exact).abs().max() <= ROUGH * exact.abs().max())
    return half if alike and bool(gradient.isfinite().all()) else classifier


def threads(classifier: Classifier, wanted: int | None, probe: Tensor, most: int = 0) -> int:
    """How many threads work on blocks of labels: one feeds a graphics card. A processor has one for
    each core, as long as there is memory for what each of them keeps of a large network.

    Args:
        classifier: in the form in which it is searched.
        wanted: what the user says, or None.
        probe: float32 ``(n, C, H, W)`` in [0, 1], at least one image.
        most: images that go through it together, if they are more than usual.
    """
    if wanted or not classifier.device.is_processor:
        return wanted or 1
    free = available()
    if free is None:
        return cores()
    together = max(classifier.device.chunk, most)
    each = WORKSPACE * together * _kept_for_a_gradient(classifier, probe[:2])
    return int(min(cores(), max(1.0, THREADS_SHARE * free / max(each, 1.0))))


def _kept_for_a_gradient(classifier: Classifier, images: Tensor) -> float:
    """Bytes that the network keeps on the way of an image, besides its own weights."""
    weights = {p.untyped_storage().data_ptr() for p in classifier.module.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # The graph holds them, so that no two have the same place.
        logits = classifier(images.clone().requires_grad_(True))
    del logits
    return sum(kept.values()) / len(images)


def _has_half(device: Device) -> bool:
    if device.place.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    # Who keeps PyTorch to AVX2 keeps it from these units: a scan of 43 labels in bfloat16 took
    # 264 s so, and 29 s with them.
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    # Named with an underscore, and since PyTorch 2.6: without an answer the answer is no.
    asked: Sequence[Callable[[], bool] | None] = [
        getattr(torch.cpu, name, None)
        for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    ]
    return any(has is not None and has() for has in asked)


class _Convolutions:
    """Notes how many products a network's convolutions make, and what bfloat16 is slow at."""

    def __init__(self) -> None:
        self.products = 0
        self.slow = False

    def saw(self, operation: Any, args: tuple[Any, ...], result: Any) -> None:
        """One operation; see :data:`goodnet.watching.Saw`."""
        if getattr(operation, "overloadpacket", None) in _CONVOLUTIONS:
            self.products += result.numel() * args[1][0].numel()
            # Inputs of a group, against those that there are.
            self.slow |= args[1].shape[1] != args[0].shape[1]
        self.slow |= operation.name().startswith(_SLOW_IN_HALF)


def _no_device(device: str, why: str) -> GoodnetError:
    return GoodnetError(
        "R010",
        f"the model cannot be looked at on '{device}'" + (f": {why}" if why else ""),
        "leave --device away, or give cpu, cuda or cuda:1; ',float32' behind it for no bfloat16",
    )
