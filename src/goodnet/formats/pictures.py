"""Data in, whatever they are: HDF5, NumPy archives, folders of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from goodnet.errors import GoodnetError
from goodnet.formats.data_arrays import RawImages, damaged
from goodnet.formats.data_folder import SUFFIXES, Size, read_files, read_folder

LAYOUTS = (
    "give an .h5 file with 'data' and 'label', an .npz file with 'images' and 'labels', "
    "or a folder with one folder of pictures for each class"
)


def read_data(path: Path, *, size: Size | None = None, channels: int | None = None) -> RawImages:
    """Labelled images from a file or a folder: by content, and by suffix where that is no help.

    Args:
        path: an ``.h5`` file, an ``.npz`` file or a folder of class folders.
        size: ``(H, W)`` that pictures of a folder are resized to; arrays are taken as they are.
        channels: 1 or 3, of pictures of a folder; arrays are taken as they are.

    Raises:
        GoodnetError: D001 to D007, D012, D013.
    """
    try:
        if path.is_dir():
            return read_folder(path, size=size, channels=channels)
        if not path.exists():
            raise GoodnetError("D001", f"there is nothing at {path}", "check the path")
        if not path.is_file():
            raise GoodnetError("D002", f"{path} is not a regular file", LAYOUTS)
        return _read_file(path)
    except OSError as error:
        raise GoodnetError(
            "D001",
            f"cannot read {path}: {error.strerror or error}",
            "check the path and the permissions",
        ) from error


def read_pictures(paths: Sequence[Path], shape: tuple[int, int, int]) -> RawImages:
    """Single pictures, resized to ``(C, H, W)``, with labels of -1.

    Raises:
        GoodnetError: D001 for one that is not there, D013 for one that cannot be read, D004 for
            no paths at all.
    """
    if not paths:
        raise GoodnetError("D004", "no pictures were given", "name at least one picture file")
    return read_files(paths, shape)


def _read_file(path: Path) -> RawImages:
    with path.open("rb") as stream:
        head = stream.read(8)
    suffix = path.suffix.lower()
    if not head:
        raise damaged(path, "no bytes")
    # h5py is imported only where it is needed: single pictures do without.
    if head == b"\x89HDF\r\n\x1a\n":
        from goodnet.formats.data_h5 import read_h5

        return read_h5(path)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        from goodnet.formats.data_npz import read_npz

        return read_npz(path)
    if suffix in (".h5", ".hdf5", ".npz"):
        raise damaged(path, f"its contents are not those of a {suffix} file")
    hint = LAYOUTS
    if suffix in SUFFIXES:
        hint = "a scan needs many pictures: " + LAYOUTS
    elif head.startswith(b"\x93NUMPY"):
        hint = "an .npy file has no labels: write np.savez(path, images=..., labels=...)"
    raise GoodnetError("D002", f"{path} is no kind of data that goodnet reads", hint)
