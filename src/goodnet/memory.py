"""How much memory there is, and that what was freed is kept for the next step.

A step of a search takes and frees tensors of some megabytes each. glibc gives blocks of that size
back to the kernel at once, and every page of the next one is a fault: a quarter of the time of a
small network in one thread (``benchmarks/kernel.py``, with ``MALLOC_PERTURB_=0`` for how it is
without). Numbers do not change by it.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import platform
from pathlib import Path

TRIM, OWN_MAPPING = -1, -3
"""``M_TRIM_THRESHOLD`` and ``M_MMAP_THRESHOLD`` of glibc's ``malloc.h``."""

NEVER = 2**31 - 1
LARGE = 256 << 20
"""Bytes from which a block is mapped by itself, and goes back to the kernel when it is freed."""

STATED = ("MALLOC_", "GLIBC_TUNABLES")
"""How environment variables begin by which a user has said what is wanted."""


@functools.cache
def keep_freed() -> bool:
    """Tells the process's allocator, once, to keep what is freed.

    Returns:
        Whether it does: elsewhere than on glibc, and where the user's environment says how memory
        is to be handled, nothing is changed.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith(STATED) for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(OWN_MAPPING, LARGE)) and bool(mallopt(TRIM, NEVER))


SYSTEM, GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
"""Where Linux says how much memory is left, and what a container may take."""


def available() -> int | None:
    """Bytes that this process may still take without others having to give way; None where the
    system does not say.
    """
    told = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = SYSTEM.read_text("ascii").splitlines()
        told.append(1024 * next(int(x.split()[1]) for x in lines if x.startswith("MemAvailable")))
    # "max" is no number: there is no limit.
    with contextlib.suppress(OSError, ValueError):
        limit = int((GROUP / "memory.max").read_text("ascii"))
        told.append(limit - int((GROUP / "memory.current").read_text("ascii")))
    return max(0, min(told)) if told else None
