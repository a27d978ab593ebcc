"""Images from pictures: a folder of class folders, or single files."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from goodnet.errors import GoodnetError
from goodnet.formats.data_arrays import MAX_BYTES, Array, RawImages

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM", "TIFF")
"""Pillow decoders that may be used: the common ones, none that starts another program."""
SUFFIXES = frozenset(
    f".{ending}"
    for ending in "png jpg jpeg jpe bmp gif webp ppm pgm pbm pnm tif tiff".split()  # noqa: SIM905
)
MAX_PIXELS = 2**26
"""Pixels of one picture: 8192 x 8192; a file that claims more is a bomb, not a photograph."""
MAX_FILE_BYTES = 2**29

Size = tuple[int, int]


def read_folder(path: Path, *, size: Size | None = None, channels: int | None = None) -> RawImages:
    """Images from a folder with one folder of pictures for each class.

    Class folders that are all named by integers are their own labels; otherwise they are numbered
    in the order of their names, empty ones too, and the names are kept. Hidden files and files that
    are not pictures are passed over. The first frame of an animation counts, alpha is dropped.

    Args:
        path: an existing folder.
        size: ``(H, W)`` to resize to (bilinear); None where all pictures have one size.
        channels: 3 for RGB, 1 for gray; None for gray where all pictures are, else RGB.

    Raises:
        GoodnetError: D002 for another layout, D005 for pictures of different sizes, D013 for a
            picture that cannot be read.
    """
    folders = sorted((p for p in path.iterdir() if _visible(p) and p.is_dir()), key=_name)
    files = [(folder, sorted(_pictures(folder), key=_name)) for folder in folders]
    if not any(pictures for _, pictures in files):
        raise _wrong_layout(path, folders)
    numbers, names = _classes(path, [folder.name for folder in folders])
    paths = [picture for _, pictures in files for picture in pictures]
    labels = [
        number for number, (_, found) in zip(numbers, files, strict=True) for _ in range(len(found))
    ]
    pixels, digest = _stack(
        paths, size, channels, name=lambda picture: picture.relative_to(path).as_posix()
    )
    return RawImages(
        pixels=pixels, labels=np.array(labels, np.int64), class_names=names, sha256=digest
    )


def read_files(paths: Sequence[Path], shape: tuple[int, int, int]) -> RawImages:
    """Single pictures, with labels of -1.

    Args:
        paths: picture files, of any size.
        shape: ``(C, H, W)`` that they are brought to.

    Raises:
        GoodnetError: D001 for a file that is not there, D013 for one that cannot be read.
    """
    channels, height, width = shape
    if channels not in (1, 3):
        raise GoodnetError(
            "D005",
            f"pictures have 1 or 3 channels, and the model takes {channels}",
            "give the images as an array in a .npz or .h5 file",
        )
    for path in paths:
        try:
            path.stat()
        except OSError as error:
            raise GoodnetError(
                "D001", f"there is no picture {path}: {error.strerror}", "check the path"
            ) from error
    pixels, digest = _stack(paths, (height, width), channels, name=_name)
    return RawImages(pixels=pixels, labels=np.full(len(paths), -1, np.int64), sha256=digest)


def _name(path: Path) -> str:
    return path.name


def _visible(path: Path) -> bool:
    return not path.name.startswith(".") and path.name != "__MACOSX"


def _pictures(folder: Path) -> list[Path]:
    return [
        p
        for p in folder.iterdir()
        if _visible(p) and p.suffix.lower() in SUFFIXES and not p.is_dir()
    ]


def _wrong_layout(path: Path, folders: list[Path]) -> GoodnetError:
    if _pictures(path):
        return GoodnetError(
            "D002",
            f"{path} holds pictures, but no folder for each class",
            "put the pictures of each class into a folder of their own, named after the class",
        )
    for folder in folders:
        if any(_visible(p) and p.is_dir() for p in folder.iterdir()):
            return GoodnetError(
                "D002",
                f"the folders of {path} hold folders, not pictures",
                f"name the folder that holds the class folders, perhaps {folder}",
            )
    return GoodnetError(
        "D002",
        f"{path} holds no folders with pictures",
        f"give a folder of class folders with pictures ({', '.join(FORMATS)})",
    )


def _classes(path: Path, names: list[str]) -> tuple[list[int], tuple[str, ...] | None]:
    if not all(re.fullmatch(r"[0-9]{1,9}", name) for name in names):
        return list(range(len(names))), tuple(names)
    numbers = [int(name) for name in names]
    if len(set(numbers)) < len(numbers):
        twice = next(number for number in numbers if numbers.count(number) > 1)
        raise GoodnetError(
            "D002", f"two folders of {path} stand for class {twice}", "merge them into one"
        )
    return numbers, None


def _stack(
    paths: Sequence[Path], size: Size | None, channels: int | None, name: Callable[[Path], str]
) -> tuple[Array, str]:
    """``(N, C, H, W)`` uint8 of all pictures, and a hash over their names and contents."""
    digest = hashlib.sha256()
    arrays: list[Array] = []
    total = 0
    for path in paths:
        array, content = _decode(path, size, channels)
        digest.update(name(path).encode("utf-8", "surrogateescape") + b"\0" + content)
        if arrays and array.shape[:2] != arrays[0].shape[:2]:
            first, this = arrays[0].shape, array.shape
            raise GoodnetError(
                "D005",
                f"the pictures differ in size: {paths[0]} is {first[0]}x{first[1]}, "
                f"{path} is {this[0]}x{this[1]} (height x width)",
                "resize them to what the model takes, or pass size=(H, W) to load_images",
            )
        total += array.size
        if total > MAX_BYTES:
            raise GoodnetError(
                "D005",
                f"the pictures take more than {MAX_BYTES / 2**30:.0f} GiB",
                "give fewer, a few hundred are enough, or smaller ones",
            )
        arrays.append(array)
    if len({array.ndim for array in arrays}) > 1:
        arrays = [np.stack([a] * 3, axis=2) if a.ndim == 2 else a for a in arrays]
    pixels = np.stack(arrays)
    pixels = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(pixels), digest.hexdigest()


def _decode(path: Path, size: Size | None, channels: int | None) -> tuple[Array, bytes]:
    """One picture, uint8 ``(H, W)`` or ``(H, W, 3)``, and the SHA-256 of its file."""
    try:
        if not path.is_file() or path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError("not a file, or far too large")
        content = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # Warnings about odd metadata are of no use to somebody who wants a class.
            warnings.simplefilter("ignore", UserWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
                if picture.width * picture.height > MAX_PIXELS:
                    raise ValueError(f"it claims {picture.width}x{picture.height} pixels")
                return _to_array(picture, size, channels), hashlib.sha256(content).digest()
    # A decoder that meets a damaged file raises nearly anything, struct.error included.
    except Exception as error:
        reason = str(error).split("\n")[0][:120] or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "no picture format that goodnet reads"
        raise GoodnetError(
            "D013",
            f"cannot read the picture {path} ({reason})",
            "replace or remove it; " + ", ".join(FORMATS) + " are read",
        ) from error


def _to_array(picture: Image.Image, size: Size | None, channels: int | None) -> Array:
    # EXIF orientation is left alone: torchvision and Keras leave it alone in training, too.
    picture.load()
    if picture.mode.startswith("I"):
        # Pillow clips 16 bits at 255 in a conversion instead of scaling them.
        wide = np.asarray(picture).astype(np.int64)
        image = Image.fromarray((wide.clip(0, 65535) // 257).astype(np.uint8))
    elif picture.mode == "F":
        raise ValueError("its pixels are floats")
    else:
        gray = picture.mode in ("1", "L", "LA", "La")
        image = picture.convert("L" if gray else "RGB")
    if channels is not None:
        image = image.convert("RGB" if channels == 3 else "L")
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(image)
