"""Memory that was freed is kept for the next step, instead of being fetched anew a page at a time.

A step of a search takes and frees tensors of some megabytes each. glibc gives blocks of that size
back to the kernel at once, and every page of the next one is a fault: a quarter of the time of a
small network in one thread (``benchmarks/kernel.py``, with ``MALLOC_PERTURB_=0`` for how it is
without). Numbers do not change by it.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform

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
