"""Where many results go: a folder, or any URL that fsspec knows (``s3://``, ``gs://``, ...)."""

from __future__ import annotations

import contextlib
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from goodnet.errors import GoodnetError
from goodnet.formats.files import atomic, unwritable

HERE = "file://"


@dataclass(frozen=True)
class Place:
    """A folder of files that appear complete or not at all, as far as the storage behind a URL does
    that (stores of objects do).

    Attributes:
        root: a path, or a URL with ``://`` in it.
    """

    root: str

    @property
    def remote(self) -> bool:
        """Whether it is a URL of somewhere else."""
        return "://" in self.root and not self.root.startswith(HERE)

    @property
    def folder(self) -> Path | None:
        """The folder on this machine, or None where it is a URL of somewhere else."""
        return None if self.remote else self._folder

    @property
    def _folder(self) -> Path:
        return Path(self.root.removeprefix(HERE)).expanduser()

    def check(self) -> None:
        """Makes sure that it can be written to, before the long work begins.

        Raises:
            GoodnetError: O001 or O002 when it cannot.
        """
        if self.remote:
            files, folder = self._remote()
            try:
                files.makedirs(folder, exist_ok=True)
                # Stores of objects have no folders to make: only writing shows who may write.
                probe = f"{folder}/.goodnet-{uuid.uuid4().hex}"
                files.pipe_file(probe, b"")
                with contextlib.suppress(Exception):  # who may write may not always remove
                    files.rm_file(probe)
            except Exception as error:  # what a storage service raises is its own
                raise self._failed(error) from error
            return
        there = self._folder.absolute()
        try:
            while not there.exists():
                there = there.parent
            # Root passes every test of permissions; only writing shows a read-only file system.
            with tempfile.TemporaryFile(dir=there, prefix=".goodnet-"):
                pass
        except OSError as error:
            raise unwritable(self._folder, error) from error

    def read(self, name: str) -> bytes | None:
        """The content of a file; None where there is none.

        Raises:
            GoodnetError: O001 when the place cannot be reached.
        """
        if not self.remote:
            path = self._folder / name
            try:
                return path.read_bytes() if path.is_file() else None
            except OSError as error:
                raise unwritable(path, error) from error
        files, folder = self._remote()
        try:
            content: bytes = files.cat_file(f"{folder}/{name}")
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._failed(error) from error
        return content

    def write(self, name: str, content: bytes) -> None:
        """Writes a file, all or nothing.

        Raises:
            GoodnetError: O001 or O002 when it cannot be written.
        """
        if not self.remote:
            with atomic(self._folder / name) as temporary:
                temporary.write_bytes(content)
            return
        files, folder = self._remote()
        try:
            files.pipe_file(f"{folder}/{name}", content)
        except Exception as error:
            raise self._failed(error) from error

    def _remote(self) -> tuple[Any, str]:
        try:
            import fsspec
        except ImportError as error:
            raise GoodnetError(
                "O001",
                f"writing to {self.root} needs fsspec",
                "pip install fsspec, and the package for this kind of URL",
            ) from error
        try:
            files, folder = fsspec.core.url_to_fs(self.root)
        except Exception as error:
            raise self._failed(error) from error
        return files, folder.rstrip("/")

    def _failed(self, error: Exception) -> GoodnetError:
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        return GoodnetError(
            "O001", f"cannot use {self.root}: {reason[:200]}", "check the URL and your access to it"
        )
