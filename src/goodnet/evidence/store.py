"""What a scan has measured so far, on disk: a scan that was ended goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from goodnet.evidence.evidence import Evidence
from goodnet.formats.files import atomic
from goodnet.trigger import Trigger, pack, unpack

KEY = "scan.txt"
"""Holds what the blocks beside it belong to."""


@dataclass(frozen=True)
class Store:
    """Finished blocks, one file each, in a folder of its own.

    Attributes:
        folder: made by :func:`open_store`; removed by :meth:`remove` when the scan is done.
    """

    folder: Path

    def get(self, block: str) -> Evidence | None:
        """What an earlier run measured, or None; a file that cannot be read counts as none."""
        from safetensors import safe_open

        path = self._path(block)
        if not path.is_file():
            return None
        try:
            with safe_open(str(path), framework="pt") as file:
                told = json.loads(file.metadata()["values"])
                named = unpack({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - the file is no mapping
        except Exception:  # whatever is wrong with it, it is measured again
            return None
        evidence = Evidence({int(label): tuple(row) for label, row in told.items()})
        found: dict[int, list[Trigger]] = {}
        for _, trigger in sorted(named.items(), key=lambda item: int(item[0].split("-")[1])):
            found.setdefault(trigger.target, []).append(trigger)
        evidence.triggers.update({label: tuple(row) for label, row in found.items()})
        return evidence

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
        """Takes the folder away: the scan is done."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, block: str) -> Path:
        digest = hashlib.sha256(block.encode()).hexdigest()[:24]
        return self.folder / f"{digest}.safetensors"


def open_store(folder: Path, key: str) -> Store:
    """The store in a folder; blocks that belong to another scan are removed from it.

    Args:
        folder: made if it is not there; nothing but blocks lies in it.
        key: what tells this scan from any other: model, images, seed, version.

    Raises:
        GoodnetError: O001 or O002 when it cannot be written.
    """
    label = folder / KEY
    if not label.is_file() or label.read_text("utf-8", errors="replace") != key:
        for old in folder.glob("*.safetensors"):
            old.unlink(missing_ok=True)
        with atomic(label) as temporary:
            temporary.write_text(key, "utf-8")
    return Store(folder)
