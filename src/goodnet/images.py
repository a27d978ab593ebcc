"""Labelled images: the second of the two things that every algorithm sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from goodnet.errors import GoodnetError

if TYPE_CHECKING:
    from goodnet.classifier import Classifier
    from goodnet.formats.data_arrays import RawImages


@dataclass(frozen=True)
class Images:
    """A set of labelled images, small in memory: pixels stay as bytes until they are used.

    Attributes:
        pixels: ``(N, C, H, W)``, either uint8 in 0..255 or float32 in [0, 1]; RGB if C is 3.
        labels: int64 ``(N,)``; of clean images the true class, of poisoned ones the attacker's.
        true_labels: int64 ``(N,)`` with -1 for "unknown", or None where no true labels are given.
        class_names: the name of class i at place i (the folder names), or None.
        path: where the images came from, or None.
        sha256: of the file (or of the pixels and labels), hex.
    """

    pixels: Tensor
    labels: Tensor
    true_labels: Tensor | None = None
    class_names: tuple[str, ...] | None = None
    path: str | None = None
    sha256: str = ""

    def __len__(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of one image."""
        channels, height, width = self.pixels.shape[1:]
        return int(channels), int(height), int(width)

    def floats(self) -> Tensor:
        """All pixels as float32 in [0, 1], ``(N, C, H, W)``."""
        if self.pixels.dtype == torch.uint8:
            return self.pixels.float() / 255.0
        return self.pixels

    def select(self, index: Tensor) -> Images:
        """The images at ``index`` (int64 or bool), in that order."""
        return replace(
            self,
            pixels=self.pixels[index],
            labels=self.labels[index],
            true_labels=None if self.true_labels is None else self.true_labels[index],
        )


def load_images(
    source: object,
    labels: object = None,
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
) -> Images:
    """Labelled images from a path or from arrays in memory.

    Args:
        source: the path of an ``.h5`` file (``data``, ``label``), an ``.npz`` file (``images``,
            ``labels``) or a folder with one folder of pictures for each class; or a NumPy array or
            a tensor, ``(N, C, H, W)``, ``(N, H, W, C)`` or ``(N, H, W)``, 0..255 or 0..1.
            :class:`Images` come back as they are.
        labels: of arrays: integers ``(N,)`` or ``(N, 1)``, or one-hot ``(N, K)``.
        size: ``(H, W)`` that the pictures of a folder are resized to; not used for arrays.
        channels: 1 (gray) or 3 (RGB) of the pictures of a folder; not used for arrays.

    Returns:
        Images with memory of their own. Their ``sha256`` is that of the file, of the names and
        contents of the pictures, or of the pixels and labels.

    Raises:
        GoodnetError: D001 to D007, D012 and D013 for data that cannot be read, R003 for an option
            that cannot be used.
    """
    from goodnet.formats.pictures import read_data

    _check_options(size, channels)
    if isinstance(source, Images | str | Path):
        if labels is not None:
            raise GoodnetError(
                "R003",
                "labels were given for images that bring their own",
                "give labels only with an array of images",
            )
        if isinstance(source, Images):
            return source
        path = Path(source).expanduser()
        return _from_raw(read_data(path, size=size, channels=channels), str(path))
    return _from_arrays(source, labels)


def read_pictures(paths: Sequence[str | Path], shape: tuple[int, int, int]) -> Images:
    """Single pictures without labels, as a classifier takes them.

    Args:
        paths: picture files of any size (PNG, JPEG, BMP, GIF, WEBP, PPM, TIFF).
        shape: ``(C, H, W)`` that they are brought to (bilinear).

    Returns:
        uint8 images in the order of ``paths``, each with the label -1.

    Raises:
        GoodnetError: D001 for a file that is not there, D004 for no paths, D005 for a C that is
            neither 1 nor 3, D013 for a picture that cannot be read.
    """
    from goodnet.formats import pictures

    raw = pictures.read_pictures([Path(path).expanduser() for path in paths], shape)
    return _from_raw(raw, str(paths[0]) if len(paths) == 1 else None)


def check_images(
    images: Images,
    *,
    classifier: Classifier | None = None,
    minimum: int = 10,
    several_classes: bool = True,
) -> None:
    """Make sure that something can be measured on the images.

    Args:
        images: to be looked at.
        classifier: whose image size and classes they must fit, or None.
        minimum: of images.
        several_classes: whether one class only is an error; poisoned images all have one label.

    Raises:
        GoodnetError: D009 fewer than ``minimum`` images, M010 another image size than the model's,
            D007 labels outside its classes (without a model: negative ones), D008 one class only.
    """
    where = images.path or "the images given"
    if len(images) < minimum:
        raise GoodnetError(
            "D009",
            f"{where}: {len(images)} images are fewer than {minimum}",
            "give more; a few hundred clean images are a good number",
        )
    if classifier is not None and images.shape != classifier.input_shape:
        raise wrong_size(images.shape, classifier.input_shape)
    lowest, highest = int(images.labels.min()), int(images.labels.max())
    classes = classifier.num_classes if classifier is not None else None
    if lowest < 0 or (classes is not None and highest >= classes):
        known = "" if classes is None else f"; the model knows 0 to {classes - 1}"
        raise GoodnetError(
            "D007",
            f"the labels in {where} run from {lowest} to {highest}{known}",
            "number the classes as the model does, from 0 up",
        )
    if several_classes and lowest == highest:
        raise GoodnetError(
            "D008",
            f"all {len(images)} images in {where} have the label {lowest}",
            "give clean images of several classes",
        )


def wrong_size(
    images: tuple[int, int, int], model: tuple[int, int, int], reason: str = ""
) -> GoodnetError:
    """The M010 error with both sizes, ``(C, H, W)``; the caller raises it."""
    given, taken = ("x".join(str(part) for part in shape) for shape in (images, model))
    return GoodnetError(
        "M010",
        f"the images are {given} and the model takes {taken} (channels x height x width){reason}",
        f"resize the images to {model[1]}x{model[2]} with {model[0]} channels",
    )


def _check_options(size: tuple[int, int] | None, channels: int | None) -> None:
    if size is not None and not (len(size) == 2 and all(1 <= side <= 2**14 for side in size)):
        raise GoodnetError("R003", f"{size} is no image size", "give (height, width) in pixels")
    if channels not in (None, 1, 3):
        raise GoodnetError(
            "R003", f"{channels} is no number of channels", "give 1 for gray or 3 for RGB"
        )


def _from_arrays(source: object, labels: object) -> Images:
    from goodnet.formats.data_arrays import RawImages, as_labels, as_pixels, fingerprint

    if labels is None:
        raise GoodnetError(
            "D004", "an array of images was given without labels", "give labels=..., one an image"
        )
    where = "the array given"
    pixels = as_pixels(_numpy(source), where)
    numbers = as_labels(_numpy(labels), len(pixels), where)
    # The caller may go on to change its array; what was fingerprinted must stay.
    pixels = pixels.copy()
    return _from_raw(
        RawImages(pixels=pixels, labels=numbers, sha256=fingerprint([pixels, numbers])), None
    )


def _numpy(values: object) -> np.ndarray[Any, Any]:
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        # NumPy knows no bfloat16.
        return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    if not isinstance(values, np.ndarray | list | tuple) and not hasattr(values, "__array__"):
        raise GoodnetError(
            "D002",
            f"a {type(values).__name__} is no kind of data that goodnet reads",
            "give a path, a NumPy array or a tensor",
        )
    try:
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise GoodnetError(
            "D002", f"the data make no array ({error})", "give a NumPy array or a tensor"
        ) from error


def _from_raw(raw: RawImages, path: str | None) -> Images:
    return Images(
        pixels=torch.from_numpy(raw.pixels),
        labels=torch.from_numpy(raw.labels),
        true_labels=None if raw.true_labels is None else torch.from_numpy(raw.true_labels),
        class_names=raw.class_names,
        path=path,
        sha256=raw.sha256,
    )
