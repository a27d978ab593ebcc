"""What a scan has measured so far, on disk: a scan that was ended goes on where it stopped."""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from goodnet.errors import GoodnetError
from goodnet.evidence.evidence import Evidence
from goodnet.formats.files import atomic
from goodnet.trigger import Trigger, pack, unpack

SUFFIX = ".block"
"""Of the files of a store: no other file is ever removed."""


@dataclass(frozen=True)
class Store:
    """Finished blocks of one scan, one file each.

    Attributes:
        folder: where they lie; those of other scans may lie there, too.
        key: SHA-256, hex, of all that the scan's numbers depend on; part of every name.
    """

    folder: Path
    key: str

    def get(self, block: str) -> Evidence | None:
        """What an earlier run measured, or None; a file that is not sound counts as none."""
        from safetensors import safe_open

        path = self._path(block)
        if not path.is_file():
            return None
        try:
            with safe_open(str(path), framework="pt") as file:
                told = json.loads(file.metadata()["values"])
                named = unpack({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - the file is no mapping
            values = {int(label): tuple(map(float, row)) for label, row in told.items()}
            found: dict[int, list[Trigger]] = {}
            for _, trigger in sorted(named.items(), key=lambda item: int(item[0].split("-")[1])):
                found.setdefault(trigger.target, []).append(trigger)
        except Exception:  # whatever is wrong with it, it is measured again
            return None
        return Evidence(values, {label: tuple(row) for label, row in found.items()})

    def put(self, block: str, evidence: Evidence) -> None:
        """Keeps a finished block, all or nothing.

        Raises:
            GoodnetError: O001 or O002 when it cannot be written.
        """
        from safetensors.torch import save

        named = {
            f"{label}-{turn}": trigger
            for label, row in evidence.triggers.items()
            for turn, trigger in enumerate(row)
        }
        content = save(pack(named), {"values": json.dumps(evidence.values)})
        with atomic(self._path(block)) as temporary:
            temporary.write_bytes(content)

    def remove(self) -> None:
        """Removes this scan's blocks, and the folder if nothing else lies there."""
        clear(self.folder, f"{self.key[:16]}-*{SUFFIX}")

    def _path(self, block: str) -> Path:
        digest = hashlib.sha256(f"{self.key}\n{block}".encode()).hexdigest()
        return self.folder / f"{self.key[:16]}-{digest[:24]}{SUFFIX}"


def clear(folder: Path, mine: str = f"*{SUFFIX}") -> None:
    """Removes blocks, by default those of any scan, and the folder if nothing else lies there."""
    # A run that was killed while it wrote one leaves the temporary file of it.
    for path in (*folder.glob(mine), *folder.glob(f".goodnet-{mine}")):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def open_store(folder: Path, key: str) -> Store:
    """The blocks of a scan in a folder.

    Args:
        folder: made with the first block, if it is not there.
        key: what tells this scan from any other.

    Raises:
        GoodnetError: O001 when it is a link: what lies elsewhere is none of a scan's business.
    """
    if folder.is_symlink():
        raise GoodnetError(
            "O001",
            f"{folder} is a link; a scan keeps no state in one",
            "name another place for the output",
        )
    return Store(folder, hashlib.sha256(key.encode()).hexdigest())
