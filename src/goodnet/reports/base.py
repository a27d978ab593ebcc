"""What all reports are made of, and how they are written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _readable(value: object) -> object:
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


Name = Annotated[str, BeforeValidator(_readable)]
"""A text that may come from a file system, where names are bytes: what is no UTF-8 is escaped."""


Family = Literal["transformer", "other"]
"""What a network's score is held against: networks of attention, or all others."""


class Data(BaseModel):
    """Base of all report types: frozen, and nothing unknown gets in."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class Proportion(Data):
    """A share of ``n`` images with its exact 95 % interval (Clopper and Pearson 1934)."""

    value: float = Field(ge=0.0, le=1.0)
    low: float = Field(ge=0.0, le=1.0)
    high: float = Field(ge=0.0, le=1.0)
    n: int = Field(ge=0)


class FileRef(Data):
    """What was read: where it lay, and its SHA-256."""

    path: Name | None
    sha256: str


class ModelRef(FileRef):
    """The model that was scanned."""

    kind: str
    num_classes: int = Field(ge=2)
    input_shape: tuple[int, int, int]


class DataRef(FileRef):
    """The clean images."""

    images: int
    classes: int


def as_text(report: Data) -> str:
    """``report`` as one JSON document."""
    return report.model_dump_json(indent=2) + "\n"


def write_text(path: Path, report: Data) -> None:
    """Writes ``report`` as one JSON document, all or nothing."""
    from goodnet.formats.files import atomic

    with atomic(path) as temporary:
        temporary.write_text(as_text(report), encoding="utf-8")
