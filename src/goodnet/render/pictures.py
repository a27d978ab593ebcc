"""Triggers as pictures."""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from goodnet.formats.files import atomic
from goodnet.render.words import shown_triggers
from goodnet.reports import ScanReport
from goodnet.trigger import Trigger

SMALLEST_SIDE = 160
"""Pixels: a 28 x 28 mask is a speck on today's screens."""

GAP = 2
"""Pixels between the images of a row, before enlarging."""


def trigger_pictures(trigger: Trigger, smallest: int = SMALLEST_SIDE) -> dict[str, Image.Image]:
    """A trigger as three pictures.

    Args:
        trigger: a patch, or an additive trigger, whose signed pattern is drawn around mid-grey.
        smallest: the shorter side gets at least so many pixels, by whole factors and without
            smoothing, so that the trigger's own pixels stay visible. 1 keeps the true size.

    Returns:
        ``"mask"`` (white where the trigger covers the image), ``"pattern"`` and ``"fused"``, which
        is mask x pattern: what is really seen on an image.
    """
    mask, pattern = _still(trigger.mask), _still(trigger.pattern)
    fused = mask * pattern
    if trigger.family == "additive":
        # One scale for both, else the two pictures could not be compared.
        reach = 2.0 * max(float(pattern.abs().max()), 1e-12)
        pattern, fused = 0.5 + pattern / reach, 0.5 + fused / reach
    tensors = {"mask": mask, "pattern": pattern, "fused": fused}
    return {name: enlarged(_picture(tensor), smallest) for name, tensor in tensors.items()}


def row(images: Tensor, smallest: int = SMALLEST_SIDE) -> Image.Image:
    """Images side by side, on a transparent ground (mode RGBA or LA).

    Args:
        images: float ``(n, C, H, W)`` in [0, 1], n >= 1.
        smallest: as for :func:`trigger_pictures`.
    """
    pictures = [_picture(_still(image)) for image in images]
    width, height = pictures[0].size
    mode = "LA" if pictures[0].mode == "L" else "RGBA"
    clear = (0,) * len(mode)
    strip = Image.new(mode, (len(pictures) * (width + GAP) - GAP, height), clear)
    for place, picture in enumerate(pictures):
        strip.paste(picture.convert(mode), (place * (width + GAP), 0))
    return enlarged(strip, smallest)


def stamped(trigger: Trigger, images: Tensor, smallest: int = SMALLEST_SIDE) -> Image.Image:
    """The trigger on real images, side by side; see :func:`row`."""
    still = Trigger(_still(trigger.mask), _still(trigger.pattern), trigger.target, trigger.family)
    return row(still.apply(_still(images)), smallest)


def write_pngs(report: ScanReport, folder: Path) -> list[Path]:
    """Writes ``label_000_mask.png``, ``_pattern.png`` and ``_fused.png`` per leading label.

    Args:
        report: a scan in this process: a report read back from JSON holds no triggers.
        folder: made if it does not exist. Pictures of an earlier scan's labels are removed.

    Returns:
        The files, those of the most suspicious label first.

    Raises:
        GoodnetError: O001 or O002 when a file cannot be written.
    """
    written = []
    for label, trigger in shown_triggers(report):
        for part, picture in trigger_pictures(trigger).items():
            path = folder / f"label_{label:03d}_{part}.png"
            with atomic(path) as temporary:
                picture.save(temporary, format="PNG")
            written.append(path)
    for path in folder.glob("label_*.png"):
        # They would pass for triggers of this scan.
        if path not in written and re.fullmatch(r"label_\d+_(mask|pattern|fused)", path.stem):
            path.unlink(missing_ok=True)
    return written


def enlarged(picture: Image.Image, smallest: int) -> Image.Image:
    """``picture``, magnified by a whole factor until its shorter side has ``smallest`` pixels."""
    factor = math.ceil(smallest / max(1, min(picture.size)))
    if factor <= 1:
        return picture
    size = (picture.width * factor, picture.height * factor)
    return picture.resize(size, Image.Resampling.NEAREST)


def _still(tensor: Tensor) -> Tensor:
    """A plain float copy on the CPU, with numbers only."""
    return torch.nan_to_num(tensor.detach().to("cpu", torch.float32))


def _picture(tensor: Tensor) -> Image.Image:
    """``(C, H, W)`` in [0, 1]: grey for fewer than three channels, else the first three as RGB."""
    pixels = (tensor.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
    if pixels.shape[0] < 3:
        return Image.fromarray(pixels[0].contiguous().numpy())
    return Image.fromarray(pixels[:3].permute(1, 2, 0).contiguous().numpy())
