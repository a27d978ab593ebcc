"""The classifier: the first of the two things that every algorithm sees."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from goodnet.device import CPU, Device
from goodnet.errors import GoodnetError
from goodnet.formats.network import Network, cannot_widen


@dataclass(frozen=True)
class Preprocess:
    """The affine step between an image in [0, 1] and what a network was trained on.

    ``scale * x[channels] + shift`` per channel, after reversing the channels if ``bgr``.

    Attributes:
        name: as printed and as accepted by ``--preprocess``, e.g. ``"unit"`` or ``"byte,bgr"``.
        scale: one factor, or one for each channel.
        shift: one summand, or one for each channel.
        bgr: whether the network takes blue first.
    """

    name: str
    scale: tuple[float, ...] = (1.0,)
    shift: tuple[float, ...] = (0.0,)
    bgr: bool = False

    def apply(self, images: Tensor) -> Tensor:
        """``(n, C, H, W)`` in [0, 1] to the network's own scale."""
        if self.bgr:
            images = images.flip(1)
        if self.scale == (1.0,) and self.shift == (0.0,):
            return images
        scale = images.new_tensor(self.scale).view(1, -1, 1, 1)
        shift = images.new_tensor(self.shift).view(1, -1, 1, 1)
        return images * scale + shift


@dataclass(frozen=True)
class Classifier:
    """An image classifier: images in [0, 1], NCHW, to logits.

    Attributes:
        network: the network and its way back to a file.
        preprocess: what happens to an image in [0, 1] before the network sees it.
        input_shape: ``(C, H, W)`` of one image.
        num_classes: K, without the output of a filter.
        path: where the model came from, or None for a live object.
        sha256: of the model file (or of the weights of a live object), hex.
        memory_format: how images lie in memory when the network gets them. Convolutions are
            fastest with channels last, but a network may insist (``x.view`` after a convolution).
        device: where the network is; images are taken there.
        half: whether gradients are taken in bfloat16, for a search only. Without a gradient every
            answer is of float32.
        float32_only: whether the user wants no bfloat16.
        changed: whether the weights are no longer those of the file at ``path``; ``sha256`` is that
            of the weights then.
    """

    network: Network
    preprocess: Preprocess
    input_shape: tuple[int, int, int]
    num_classes: int
    path: str | None = None
    sha256: str = ""
    memory_format: torch.memory_format = torch.contiguous_format
    device: Device = CPU
    half: bool = False
    float32_only: bool = False
    changed: bool = False

    @property
    def module(self) -> nn.Module:
        """The network itself: eval mode, parameters frozen, logits out."""
        return self.network.module

    @property
    def filtered(self) -> bool:
        """Whether there is one more output than classes, K, which means "backdoored input"."""
        return self.network.filtered

    @property
    def outputs(self) -> int:
        """K, or K + 1 with a filter."""
        return self.num_classes + self.filtered

    def __call__(self, images: Tensor) -> Tensor:
        """Logits, float32 ``(n, outputs)``, of ``images``, ``(n, C, H, W)`` in [0, 1], on
        :attr:`device`, where the images have to be.
        """
        ready = self.preprocess.apply(images).contiguous(memory_format=self.memory_format)
        logits: Tensor
        if self.half and torch.is_grad_enabled():
            with torch.autocast(self.device.place.type, torch.bfloat16):
                logits = self.network.module(ready)
            return logits.float()
        logits = self.network.module(ready)
        return logits

    def logits(self, images: Tensor) -> Tensor:
        """As a call, in batches and without a gradient; also takes uint8 pixels in 0..255.

        The images may be anywhere: they are taken to :attr:`device`, and the logits back.
        """
        rows = []
        with torch.no_grad():
            for part in torch.split(images, self.device.forward_chunk):
                batch = part.to(self.device.place)
                batch = batch.float() / 255 if batch.dtype == torch.uint8 else batch
                rows.append(self(batch).to(images.device))
        return torch.cat(rows)

    def on(self, device: Device) -> Classifier:
        """The same classifier on another device, with parameters of its own."""
        module = copy.deepcopy(self.network.module).to(device.place)
        return replace(self, network=replace(self.network, module=module), device=device)

    def copy(self) -> Classifier:
        """The same classifier with parameters of its own, to be changed by a remedy."""
        module = copy.deepcopy(self.network.module)
        return replace(self, network=replace(self.network, module=module))

    def with_filter(self, weight: str, bias: str, axis: int) -> Classifier:
        """The classifier as it was read, with one more output whose weights are nought.

        Args:
            weight: the name of the last layer's weight in :attr:`module`.
            bias: the name of its bias.
            axis: where the weight counts the outputs.

        Raises:
            GoodnetError: M015 where the format or the network does not allow it.
        """
        if self.filtered or self.network.widen is None:
            raise cannot_widen(
                "it has one already" if self.filtered else f"it came as {self.network.kind}"
            )
        try:
            return replace(self, network=self.network.widen(weight, bias, axis))
        except (KeyError, TypeError, ValueError, StopIteration, AttributeError) as error:
            raise cannot_widen("its last layer was not found in the file") from error
        except GoodnetError as error:
            if error.code == "M015":
                raise
            # What follows the last layer does not take one output more.
            raise cannot_widen(error.message) from error

    def classes_only(self) -> Classifier:
        """The classifier without its filter, to be looked at, not saved; itself where it has none.

        To an optimiser a filter's answer is one more label that is easily forced, and that hides
        what the classes would answer.
        """
        if not self.filtered:
            return self
        module = _First(self.network.module, self.num_classes)
        bare = replace(self.network, module=module, num_classes=self.num_classes, filtered=False)
        return replace(self, network=bare)


class _First(nn.Module):
    """The first outputs of a network."""

    def __init__(self, inner: nn.Module, count: int) -> None:
        super().__init__()
        self.inner = inner
        self.count = count

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images)
        return logits[:, : self.count]
