"""What a hostile file may not do: looked at byte by byte, before any library loads it.

Nothing here executes, imports or constructs what a file names. A pickle is read as a list of
opcodes, and every object that it would look up must stand on a short list of harmless ones.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import stat
import zipfile
from pathlib import Path
from typing import BinaryIO

from goodnet.errors import GoodnetError
from goodnet.formats.pickles import (
    BREAKS,
    MAX_PICKLE_BYTES,
    is_safe_global,
    is_text_pickle,
    is_torch_legacy,
    pickle_globals,
)

MAX_RATIO = 200
"""A member that inflates by more than this is a bomb, not a network."""
MAX_DEPTH = 3
"""Archives inside archives: a .pt2 holds a .pt of example inputs, nothing goes deeper."""

_LEGACY_PICKLES = 5

STATE_DICT_HINT = (
    "ask for the weights as a state dict or .safetensors (goodnet then needs --architecture), "
    "or for a torch.export file (.pt2)"
)


def check_exists(path: Path) -> None:
    """Make sure that a file with something in it stands there.

    Args:
        path: the model file.

    Raises:
        GoodnetError: M001 nothing there, or nothing that may be looked at, M002 a directory, M003
            an empty file.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise GoodnetError("M001", f"there is no file {path}", "check the path") from error
    except OSError as error:
        raise GoodnetError(
            "M001", f"cannot read {path}: {error.strerror}", "check the path and the permissions"
        ) from error
    if stat.S_ISDIR(found.st_mode):
        raise GoodnetError("M002", f"{path} is a directory", "name the model file inside it")
    if found.st_size == 0:
        raise GoodnetError("M003", f"{path} is empty", "fetch or export the model again")


def sniff(path: Path) -> str:
    """What kind of file it is: by content, and by suffix only where the content leaves it open.

    Args:
        path: an existing file.

    Returns:
        ``"hdf5"``, ``"keras-zip"``, ``"pt2"``, ``"torchscript"``, ``"torch-zip"`` (what
        ``torch.save`` writes), ``"torch-legacy"`` (what it wrote before version 1.6),
        ``"safetensors"``, ``"pickle"`` or ``"unknown"``.
    """
    with path.open("rb") as stream:
        head = stream.read(16)
        if head.startswith(b"\x89HDF\r\n\x1a\n"):
            return "hdf5"
        if head.startswith(b"PK\x03\x04"):
            return _sniff_zip(path)
        size = int.from_bytes(head[:8], "little")
        if head[8:9] == b"{" and size <= path.stat().st_size - 8:
            return "safetensors"
        stream.seek(0)
        if is_torch_legacy(stream):
            return "torch-legacy"
        if re.match(rb"\x80[\x00-\x05]", head) or path.suffix in (".pkl", ".pickle"):
            return "pickle"
        stream.seek(0)
        if is_text_pickle(stream):
            return "pickle"
    return "unknown"


def check_pickle_free_or_safe(path: Path) -> None:
    """Refuse a file in which a pickle would run code, or that would fill the memory.

    Raw pickles are refused whatever is in them. Every pickle inside an archive, at any depth, is
    read opcode by opcode; nothing is executed.

    Args:
        path: an existing file, of any kind; HDF5 and safetensors pass, they hold no pickles.

    Raises:
        GoodnetError: M004 naming what the pickle would call, M003 for a damaged or absurd archive.
    """
    kind = sniff(path)
    if kind == "pickle":
        with path.open("rb") as stream:
            _refuse_raw_pickle(path, stream)
    elif kind == "torch-legacy":
        with path.open("rb") as stream:
            _check_legacy(path, stream)
    elif kind == "safetensors":
        _check_safetensors(path)
    else:
        with path.open("rb") as stream:
            is_zip = stream.read(4) == b"PK\x03\x04"
            stream.seek(0)
            if is_zip:
                _check_zip(str(path), stream, path.stat().st_size, kind == "torchscript", 0)


def damaged(path: Path | str, reason: object = "") -> GoodnetError:
    """The M003 error of a file that is cut short or damaged; the caller raises it.

    Args:
        path: of the file.
        reason: what a library said; only its first line is used.
    """
    first = str(reason).strip().split("\n")[0][:200]
    detail = f" ({first})" if first else ""
    return GoodnetError(
        "M003", f"{path} is damaged or cut short{detail}", "fetch or export the model again"
    )


def _sniff_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "unknown"
    bare = {name.split("/", 1)[-1] for name in names}
    if "archive_format" in bare or "serialized_exported_program.json" in names:
        return "pt2"
    if "constants.pkl" in bare and any(name.startswith("code/") for name in bare):
        return "torchscript"
    if "config.json" in names and any(name.endswith(".weights.h5") for name in names):
        return "keras-zip"
    if "data.pkl" in bare or "data.pkl" in names:
        return "torch-zip"
    return {".keras": "keras-zip", ".pt2": "pt2"}.get(path.suffix.lower(), "unknown")


def _refuse_raw_pickle(path: Path, stream: BinaryIO) -> None:
    calls: list[str] = []
    with contextlib.suppress(*BREAKS):
        for name in pickle_globals(stream):
            if not is_safe_global(name):
                calls.append(name)
    raise GoodnetError("M004", f"{path} is a raw pickle{_accusation(calls)}", STATE_DICT_HINT)


def _accusation(calls: list[str]) -> str:
    """Turn the names that a pickle looks up into the second half of a sentence."""
    layers = [name for name in calls if name.startswith("torch.nn.modules.")]
    others = [name for name in calls if name not in layers]
    if layers:
        return f": a whole pickled model ({calls[0]}), which runs code while it is loaded"
    return f": the pickle would call {others[0]}" if others else ", which could call anything"


def _check_pickle(where: str, data: bytes, torchscript: bool) -> None:
    calls: list[str] = []
    try:
        for name in pickle_globals(io.BytesIO(data)):
            if not is_safe_global(name, torchscript):
                calls.append(name)
    except BREAKS as error:
        # What was seen before the break would have run: loaders execute as they read.
        if not calls:
            raise damaged(where, error) from error
    _refuse(where, calls)


def _refuse(where: str, calls: list[str]) -> None:
    if not calls:
        return
    hint = STATE_DICT_HINT
    if any(name.startswith("torch.nn.modules.") for name in calls):
        hint = (
            "save model.state_dict() instead and pass --architecture FILE.py:FUNCTION, "
            "or save torch.export.export(model, ...) with torch.export.save"
        )
    raise GoodnetError("M004", f"{where}{_accusation(calls)}", hint)


def _check_legacy(path: Path, stream: BinaryIO) -> None:
    calls: list[str] = []
    try:
        for _ in range(_LEGACY_PICKLES):
            for name in pickle_globals(stream):
                if not is_safe_global(name):
                    calls.append(name)
    except BREAKS as error:
        if not calls:
            raise damaged(path, error) from error
    _refuse(str(path), calls)


def _check_safetensors(path: Path) -> None:
    # Seen here, a cut file is called cut before anybody asks for the architecture it belongs to.
    try:
        with path.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        end = max((int(entry["data_offsets"][1]) for entry in tensors), default=0)
    except (*BREAKS, TypeError, AttributeError, RecursionError) as error:
        raise damaged(path, error) from error
    if 8 + size + end != path.stat().st_size:
        raise damaged(path, "it is shorter or longer than its header says")


def _check_zip(where: str, stream: BinaryIO, size: int, torchscript: bool, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise damaged(where, "archives nested too deep")
    try:
        with zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
            _check_sizes(where, members, size)
            for member in members:
                _check_member(where, archive, member, torchscript, depth)
    except (zipfile.BadZipFile, OSError, NotImplementedError, RuntimeError, *BREAKS) as error:
        raise damaged(where, error) from error


def _check_sizes(where: str, members: list[zipfile.ZipInfo], size: int) -> None:
    # Readers differ in which of two equal names they take, and some ignore case: what was checked
    # must be what is loaded.
    if len({member.filename.casefold() for member in members}) < len(members):
        raise damaged(where, "two members of the archive have the same name")
    # A file cut right behind an archive inside it would pass for that inner archive.
    if min((member.header_offset for member in members), default=0) != 0:
        raise damaged(where, "the archive does not begin where the file begins")
    if sum(member.compress_size for member in members) > size:
        raise damaged(where, "members of the archive overlap")
    for member in members:
        if member.file_size > MAX_RATIO * max(member.compress_size, 1) + 2**20:
            raise damaged(where, f"{member.filename} inflates to {member.file_size} bytes")


def _check_member(
    where: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo, torchscript: bool, depth: int
) -> None:
    name = member.filename
    place = f"{where}/{name}"
    if name.endswith((".so", ".dll", ".dylib", ".pyd")) or "/aotinductor/" in f"/{name}":
        raise GoodnetError(
            "M004", f"{place} is machine code", "ask for a torch.export file without compiled code"
        )
    with archive.open(member) as stream:
        head = stream.read(16)
    if head.startswith(b"\x7fELF"):
        raise GoodnetError("M004", f"{place} is machine code", STATE_DICT_HINT)
    if head.startswith(b"PK\x03\x04"):
        data = archive.read(member)
        _check_zip(place, io.BytesIO(data), len(data), torchscript, depth + 1)
    elif name.endswith((".pkl", ".pickle", ".debug_pkl")) or re.search(
        r"(custom|opaque)_obj_\d", name
    ):
        if member.file_size > MAX_PICKLE_BYTES:
            raise damaged(where, f"{name} is too large for a pickle")
        _check_pickle(place, archive.read(member), torchscript)
    elif re.match(rb"\x80[\x02-\x05]", head) and member.file_size <= MAX_PICKLE_BYTES:
        # A tensor can begin with these two bytes by chance; then it does not read as a pickle.
        try:
            _check_pickle(place, archive.read(member), torchscript)
        except GoodnetError as error:
            if error.code != "M003":
                raise
