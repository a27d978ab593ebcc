"""Where a network is computed, and how much of it goes there at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

CHUNK = 48
"""Images that go through a network together on a core: what stays in its cache (see benchmarks)."""

FORWARD_CHUNK = 64
"""The same without a gradient."""

LARGE_CHUNK = 4096
"""At most so many on a graphics card, whose many units have to be given something to do."""


@dataclass(frozen=True)
class Device:
    """A processor or a graphics card.

    Attributes:
        name: as PyTorch calls it: ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
        chunk: images that go through the network together in a search.
        forward_chunk: images that go through it together without a gradient.
    """

    name: str = "cpu"
    chunk: int = CHUNK
    forward_chunk: int = FORWARD_CHUNK

    @property
    def place(self) -> torch.device:
        """As PyTorch takes it."""
        return torch.device(self.name)

    @property
    def is_processor(self) -> bool:
        """Whether it is the machine's own processor, with its cores and caches."""
        return self.place.type == "cpu"

    def rows(self, images: int) -> int:
        """How many labels go through the network together with ``images`` images each."""
        return max(1, self.chunk // images)


CPU = Device()


@contextmanager
def repeatable(device: Device) -> Iterator[None]:
    """The same numbers in every run, and float32 where float32 is said.

    Left to themselves, cuDNN and attention kernels add in any order, and convolutions round to 10
    bits. These settings are the process's: they are put back in the end.
    """
    if device.is_processor:
        yield
        return
    flags = torch.backends.cudnn.flags
    with (
        flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        sdpa_kernel(SDPBackend.MATH),
    ):
        yield
