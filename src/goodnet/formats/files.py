"""Outputs that appear complete or not at all, and fingerprints of inputs."""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from goodnet.errors import GoodnetError


def sha256(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well.

    Raises:
        GoodnetError: O001 when the place cannot be written, O002 when the disk is full.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Part of the name, so that what a killed process left can be told: 255 bytes are a limit.
        prefix = f".goodnet-{path.name[:40]}-"
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=prefix, suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        # mkstemp makes private files; a result should have the permissions of any new file.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def unwritable(path: Path, error: OSError) -> GoodnetError:
    """O002 when the disk is full, else O001."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return GoodnetError(
            "O002", f"the disk is full: {path}", "free some space, or name another place"
        )
    return GoodnetError(
        "O001",
        f"cannot write {path}: {error.strerror or error}",
        "choose a folder that you may write to",
    )
