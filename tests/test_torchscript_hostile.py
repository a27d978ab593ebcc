"""TorchScript files that would do more than classify: refused before anything of them runs."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from goodnet.errors import GoodnetError
from goodnet.formats import read_model

IMAGES = torch.rand((2, 3, 4, 4), generator=torch.Generator().manual_seed(0))


def refused(path: Path, code: str) -> GoodnetError:
    with pytest.raises(GoodnetError) as caught:
        read_model(path)
    assert caught.value.code == code
    return caught.value


def harmless() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 5)).eval()


class Saves(nn.Module):
    def forward(self, x):
        torch.save(x, "marker")
        return x


class Reads(nn.Module):
    def forward(self, x):
        return x + torch.from_file("marker", False, 4)


class Prints(nn.Module):
    def forward(self, x):
        print(x)
        return x


class BadMemory(nn.Module):
    def forward(self, x):
        where = torch.full([1, 1], 10**12, dtype=torch.long)
        wild = torch.ops.aten._sparse_coo_tensor_unsafe(where, x.flatten()[:1], [4])
        return x + wild.to_dense()


@pytest.mark.parametrize("model", [Saves, Reads, Prints, BadMemory])
def test_a_program_that_reaches_out_is_refused(tmp_path, monkeypatch, model):
    monkeypatch.chdir(tmp_path)
    outer = nn.Sequential(nn.Identity(), nn.Sequential(model()))
    torch.jit.script(outer).save(tmp_path / "m.pt")
    refused(tmp_path / "m.pt", "M014")
    assert not (tmp_path / "marker").exists()


class OnLoad(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x = torch.ones(1)

    def forward(self, x):
        return x.flatten(1)[:, :5]

    @torch.jit.export
    def __getstate__(self):
        return self.x, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        self.x = state[0]
        self.training = state[1]
        torch.save(self.x, "marker")


class LoopsOnLoad(OnLoad):
    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        self.x = state[0]
        self.training = state[1]
        while bool(self.x.sum() >= 0.0):
            self.x = self.x + 1.0


def test_a_program_that_acts_while_it_is_loaded_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.jit.script(OnLoad()).save(tmp_path / "m.pt")
    torch.jit.load(tmp_path / "m.pt")
    assert (tmp_path / "marker").exists(), "plain torch runs it while loading"
    (tmp_path / "marker").unlink()
    refused(tmp_path / "m.pt", "M014")
    assert not (tmp_path / "marker").exists()


def test_a_program_that_loops_while_it_is_loaded_is_refused(tmp_path):
    torch.jit.script(LoopsOnLoad()).save(tmp_path / "m.pt")
    assert "while it is read" in refused(tmp_path / "m.pt", "M014").message


def saved(model: nn.Module) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(model), buffer)
    return buffer.getvalue()


def parts(archive: bytes) -> tuple[bytes, bytes, int]:
    """The members of an archive, its directory, and how many there are."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        names = len(opened.infolist())
        size = sum(46 + len(m.filename) + len(m.extra) + len(m.comment) for m in opened.infolist())
        start = opened.start_dir
    return archive[:start], archive[start : start + size], names


def plain(archive: bytes) -> bytes:
    """The same archive as Python writes it."""
    result = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(archive)) as old,
        zipfile.ZipFile(result, "w", zipfile.ZIP_STORED) as new,
    ):
        for member in old.infolist():
            new.writestr(zipfile.ZipInfo(member.filename), old.read(member))
    return result.getvalue()


def moved(directory: bytes, by: int) -> bytes:
    """A directory whose members lie further back."""
    result, place = bytearray(directory), 0
    while place < len(directory):
        lengths = struct.unpack_from("<HHH", directory, place + 28)
        (offset,) = struct.unpack_from("<L", directory, place + 42)
        struct.pack_into("<L", result, place + 42, offset + by)
        place += 46 + sum(lengths)
    return bytes(result)


def record(members: int, size: int, offset: int) -> bytes:
    """The end-of-directory record of a large archive."""
    return struct.pack(
        "<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, members, members, size, offset
    )


def two_faced(shown: bytes, hidden: bytes) -> bytes:
    """One file that is ``shown`` to who looks in front of the locator, and ``hidden`` to who goes
    where the locator points.
    """
    body, directory, count = parts(plain(shown))
    other, other_directory, other_count = parts(plain(hidden))
    result = body + other
    start = len(result)
    result += moved(other_directory, len(body))
    there = len(result)
    result += record(other_count, len(other_directory), start)
    start = len(result)
    result += directory + record(count, len(directory), start)
    result += struct.pack("<4sLQL", b"PK\x06\x07", 0, there, 1)
    return result + struct.pack(
        "<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0
    )


def test_a_file_that_is_two_archives_is_loaded_as_the_one_that_was_checked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "m.pt"
    path.write_bytes(two_faced(saved(harmless()), saved(OnLoad())))
    torch.jit.load(path)
    assert (tmp_path / "marker").exists(), "plain torch reads the hidden one"
    (tmp_path / "marker").unlink()
    try:
        network = read_model(path)
    except GoodnetError as error:
        # Later versions of Python see the contradiction.
        told = error.code
    else:
        told = tuple(network.module(IMAGES).shape)
    assert told in ("M003", (2, 5))
    assert not (tmp_path / "marker").exists()


def test_functions_that_call_each_other_twice_are_not_written_out(tmp_path):
    model = torch.jit.script(harmless())
    body = "def f0(x: Tensor) -> Tensor:\n  return torch.add(x, 1)\n" + "".join(
        f"def f{n}(x: Tensor) -> Tensor:\n"
        f"  return __torch__.many.f{n - 1}(__torch__.many.f{n - 1}(x, ), )\n"
        for n in range(1, 61)
    )
    model.save(tmp_path / "good.pt")
    path, changed = tmp_path / "m.pt", 0
    with (
        zipfile.ZipFile(tmp_path / "good.pt") as old,
        zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new,
    ):
        for name in old.namelist():
            data = old.read(name)
            if name.endswith(".py"):
                changed += data.count(b".forward(input, )")
                data = data.replace(b"(input, )", b"(__torch__.many.f60(input, ), )")
            if not name.endswith(".debug_pkl"):
                new.writestr(name, data)
        new.writestr(f"{name.split('/')[0]}/code/__torch__/many.py", body)
    assert changed == 1
    torch.jit.load(path)
    assert "call each other" in refused(path, "M003").message
