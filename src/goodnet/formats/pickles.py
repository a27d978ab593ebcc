"""Pickles read as a list of opcodes: what would they look up? Nothing is executed."""

from __future__ import annotations

import pickletools
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO

MAX_PICKLE_BYTES = 256 * 2**20
"""A longer pickle is refused: a state dict's pickle holds names and shapes, not the weights."""

SAFE_GLOBALS = frozenset(
    {
        "collections.OrderedDict",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch._tensor._rebuild_from_type_v2",
        "torch.nn.parameter.Parameter",
        "torch.Tensor",
        "torch.Size",
        "torch.device",
        "torch.serialization._get_layout",
        "torch.storage.UntypedStorage",
        "torch.storage.TypedStorage",
        "_codecs.encode",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
    }
)
"""Globals that a pickled state dict uses and that cannot be made to run a stranger's code."""

_SAFE_PATTERN = re.compile(
    r"torch\.(\w+Storage|float\d+|u?int\d+|bfloat16|bool|half|double|float|long|complex\d+)"
    r"|numpy\.dtypes\.\w+DType"
)
# TorchScript's own reader is C++ and knows these two families only; Python never unpickles them.
_SCRIPT_PATTERN = re.compile(r"__torch__\..*|torch\.jit\._pickle\.\w+")

_MAGIC_TORCH_LEGACY = 0x1950A86A20F9469CFC6C
_STRINGS = {
    "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "STRING", "BINSTRING",
    "SHORT_BINSTRING",
}  # fmt: skip
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_EXTENSIONS = {"EXT1", "EXT2", "EXT4"}
BREAKS = (ValueError, EOFError, KeyError, IndexError, struct.error, UnicodeError, OverflowError)
"""What a broken pickle makes ``pickletools`` raise."""


def pickle_globals(stream: BinaryIO) -> Iterator[str]:
    """The dotted names that one pickle would look up, without executing it.

    Args:
        stream: positioned at the pickle; left behind its STOP opcode.

    Yields:
        ``"module.name"``; ``"(a hidden name)"`` where the pickle computes the name, which no
        honest writer does.

    Raises:
        ValueError: (or one of its kin) the bytes are not a complete pickle.
    """
    memo: dict[int, str | None] = {}
    # The strings pushed by the immediately preceding opcodes: a name looked up on the stack is
    # believed only if nothing that could reorder the stack stands in between.
    recent: list[str | None] = []
    for opcode, argument, _ in pickletools.genops(stream):
        name = opcode.name
        if name == "FRAME":
            continue
        if name in _STRINGS:
            recent.append(str(argument))
        elif name in _GETS:
            recent.append(memo.get(int(str(argument))))
        elif name == "MEMOIZE" or name in _PUTS:
            index = len(memo) if name == "MEMOIZE" else int(str(argument))
            memo[index] = recent[-1] if recent else None
        else:
            if name in ("GLOBAL", "INST"):
                yield str(argument).replace(" ", ".", 1)
            elif name == "STACK_GLOBAL":
                pair = recent[-2:]
                known = len(pair) == 2 and None not in pair
                yield f"{pair[0]}.{pair[1]}" if known else "(a hidden name)"
            elif name in _EXTENSIONS:
                yield "(a hidden name)"
            recent = []


def is_safe_global(name: str, torchscript: bool = False) -> bool:
    """Whether a pickle may look this dotted name up.

    Args:
        name: as :func:`pickle_globals` gives it.
        torchscript: also allow the names that only TorchScript's C++ reader resolves.
    """
    if name in SAFE_GLOBALS or _SAFE_PATTERN.fullmatch(name):
        return True
    return torchscript and _SCRIPT_PATTERN.fullmatch(name) is not None


def is_torch_legacy(stream: BinaryIO) -> bool:
    """Whether the bytes begin as ``torch.save`` wrote them before version 1.6.

    Args:
        stream: positioned at the beginning of the file.
    """
    try:
        for opcode, argument, position in pickletools.genops(stream):
            if opcode.name in ("LONG1", "INT", "LONG"):
                return argument == _MAGIC_TORCH_LEGACY
            if (position or 0) > 64:
                return False
    except BREAKS:
        pass
    return False


def is_text_pickle(stream: BinaryIO) -> bool:
    """Whether the bytes read as a pickle of the old protocols that looks a name up.

    Args:
        stream: positioned at the beginning of the file.
    """
    # Protocols 0 and 1 have no header: it is a pickle if it reads as one and would look names up.
    looked_up = False
    try:
        for opcode, _, position in pickletools.genops(stream):
            looked_up = looked_up or opcode.name in ("GLOBAL", "INST", "STACK_GLOBAL")
            if (position or 0) > MAX_PICKLE_BYTES:
                break
    except BREAKS:
        return False
    return looked_up
