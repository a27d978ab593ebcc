"""Keras 3's zip archives: the members that matter, and the archive with one of them changed."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path

from goodnet.formats.keras_config import damaged
from goodnet.formats.keras_hdf5 import MAX_BYTES, MAX_TEXT

WEIGHTS = "model.weights.h5"
CONFIG = "config.json"
METADATA = "metadata.json"
_CAPS = {CONFIG: MAX_TEXT, METADATA: 1 << 20, WEIGHTS: MAX_BYTES}


def archive_members(source: Path | bytes) -> dict[str, bytes]:
    """The members of a ``.keras`` archive that matter, unpacked in memory.

    Args:
        source: the archive, or its path.

    Raises:
        GoodnetError: M003 when it is damaged, ambiguous or unpacks to an absurd size.
    """
    found: dict[str, bytes] = {}
    try:
        stream = io.BytesIO(source) if isinstance(source, bytes) else source
        with zipfile.ZipFile(stream) as archive:
            entries = archive.infolist()
            if len(entries) > 10_000 or len({entry.filename for entry in entries}) < len(entries):
                raise damaged("the archive has an absurd number of members, or two of one name")
            for entry in entries:
                cap = _CAPS.get(entry.filename)
                if cap is None:
                    continue
                # Deflate reaches 1032; honest weights hardly shrink.
                if entry.file_size > min(cap, (1 << 20) + 200 * entry.compress_size):
                    raise damaged(f"the archive's member {entry.filename} unpacks to absurd size")
                found[entry.filename] = archive.read(entry)
    except (
        zipfile.BadZipFile,
        zlib.error,
        OSError,
        ValueError,
        RuntimeError,
        EOFError,
        MemoryError,
    ) as error:
        raise damaged(f"the .keras archive is damaged: {str(error)[:100]}") from error
    return found


def with_member(archive: bytes, name: str, content: bytes) -> bytes:
    """A zip archive with other content in one member and the same in all others."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(result, "w") as new:
        for entry in old.infolist():
            data = content if entry.filename == name else old.read(entry)
            new.writestr(entry, data, compress_type=entry.compress_type)
    return result.getvalue()
