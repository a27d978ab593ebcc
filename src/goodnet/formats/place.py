"""Where many results go: a folder, or any URL that fsspec knows (``s3://``, ``gs://``, ...)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from goodnet.errors import GoodnetError
from goodnet.formats.files import atomic


@dataclass(frozen=True)
class Place:
    """A folder of files that appear complete or not at all.

    Attributes:
        root: a path, or a URL with ``://`` in it.
    """

    root: str

    @property
    def remote(self) -> bool:
        """Whether it is a URL."""
        return "://" in self.root

    def read(self, name: str) -> bytes | None:
        """The content of a file; None where there is none.

        Raises:
            GoodnetError: O001 when the place cannot be reached.
        """
        if not self.remote:
            path = Path(self.root).expanduser() / name
            return path.read_bytes() if path.is_file() else None
        files, folder = self._remote()
        try:
            content: bytes = files.cat_file(f"{folder}/{name}")
        except FileNotFoundError:
            return None
        except Exception as error:  # what a storage service raises is its own
            raise self._failed(error) from error
        return content

    def write(self, name: str, content: bytes) -> None:
        """Writes a file, all or nothing.

        Raises:
            GoodnetError: O001 or O002 when it cannot be written.
        """
        if not self.remote:
            with atomic(Path(self.root).expanduser() / name) as temporary:
                temporary.write_bytes(content)
            return
        files, folder = self._remote()
        path = f"{folder}/{name}"
        try:
            # A store of objects has no folders and no half-written ones; a file system has both.
            files.makedirs(path.rpartition("/")[0], exist_ok=True)
            files.pipe_file(f"{path}.part", content)
            files.mv(f"{path}.part", path)
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
