"""Traffic signs drawn by this project's own code: a data set that needs no download.

A face is drawn once per class; each image then puts it, seen at an angle, before a background of
its own, and adds the light, the dirt and the noise of a cheap camera.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from goodnet.images import Images

PERSPECTIVE = Image.Transform.PERSPECTIVE
Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
Point = tuple[float, float]
Draw = ImageDraw.ImageDraw

SIGN_NAMES: tuple[str, ...] = (
    "Stop",
    "Yield",
    "No entry",
    "Speed limit 30",
    "Speed limit 50",
    "Speed limit 80",
    "Priority road",
    "Ahead only",
    "Turn right",
    "Roundabout",
    "Pedestrian crossing",
    "Danger",
)
"""The name of class i at place i."""

STOP, YIELD = SIGN_NAMES.index("Stop"), SIGN_NAMES.index("Yield")

RED, WHITE, BLUE = (196, 22, 36), (240, 240, 236), (16, 84, 170)
YELLOW, BLACK = (250, 190, 10), (24, 24, 28)

_FACE = 384
"""Side of the square on which a face is drawn before it is made small."""

_PALETTE = (
    ((150, 190, 235), (215, 228, 240)),
    ((38, 72, 30), (104, 128, 62)),
    ((128, 66, 50), (172, 104, 82)),
    ((96, 98, 102), (178, 176, 168)),
)
"""Of sky, foliage, brick and concrete: the colours at the top and at the bottom."""

_CHUNK = 128
"""Images made at a time: keeps the memory at some tens of megabytes."""


def draw_signs(per_class: int, *, size: int = 32, seed: int) -> Images:
    """Draws a set of traffic signs, the same for the same seed.

    Args:
        per_class: images of each class.
        size: height and width of an image in pixels, at least 16.
        seed: not negative; sets with different seeds share no image.

    Returns:
        uint8 RGB ``(12 * per_class, 3, size, size)`` with the names of the classes. The classes
        take turns, so every slice of the set is balanced.

    Raises:
        ValueError: an argument lies outside its range.
    """
    if per_class < 1 or size < 16 or seed < 0:
        raise ValueError(f"cannot draw {per_class} per class of size {size} with seed {seed}")
    rng = np.random.default_rng(seed)
    labels = np.tile(np.arange(len(SIGN_NAMES)), per_class)
    chunks = np.split(labels, range(_CHUNK, len(labels), _CHUNK))
    parts = [_photographs(chunk, size, rng) for chunk in chunks]
    pixels = torch.from_numpy(np.concatenate(parts)).permute(0, 3, 1, 2).contiguous()
    truth = torch.from_numpy(labels).long()
    return Images(pixels, truth, true_labels=truth.clone(), class_names=SIGN_NAMES)


# The faces, in units of the face's side: (0, 0) is its upper left corner, (1, 1) the lower right.


def _polygon(draw: Draw, points: list[Point], colour: tuple[int, int, int]) -> None:
    draw.polygon([(x * _FACE, y * _FACE) for x, y in points], fill=colour)


def _disc(draw: Draw, radius: float, colour: tuple[int, int, int], at: Point = (0.5, 0.5)) -> None:
    x, y = at
    box = [(x - radius) * _FACE, (y - radius) * _FACE, (x + radius) * _FACE, (y + radius) * _FACE]
    draw.ellipse(box, fill=colour)


def _line(draw: Draw, points: list[Point], width: float, colour: tuple[int, int, int]) -> None:
    scaled = [(x * _FACE, y * _FACE) for x, y in points]
    draw.line(scaled, fill=colour, width=round(width * _FACE), joint="curve")
    for x, y in points:
        _disc(draw, width / 2, colour, (x, y))


def _text(draw: Draw, words: str, height: float, colour: tuple[int, int, int]) -> None:
    font = ImageFont.load_default(height * _FACE)
    # The bundled font has no bold face: a stroke keeps the letters legible at 32 pixels.
    stroke = round(height * _FACE / 16)
    draw.text((_FACE / 2, _FACE / 2), words, colour, font, anchor="mm", stroke_width=stroke)


def _regular(corners: int, radius: float, turn: float, at: Point = (0.5, 0.5)) -> list[Point]:
    """A regular polygon; the first corner points up for ``turn`` 0, counted in degrees."""
    angles = [math.radians(turn + 360 * i / corners) for i in range(corners)]
    return [(at[0] + radius * math.sin(a), at[1] - radius * math.cos(a)) for a in angles]


def _stop(draw: Draw) -> None:
    _polygon(draw, _regular(8, 0.5, 22.5), WHITE)
    _polygon(draw, _regular(8, 0.46, 22.5), RED)
    _text(draw, "STOP", 0.29, WHITE)


def _yield(draw: Draw) -> None:
    _polygon(draw, _regular(3, 0.56, 180, (0.5, 0.4)), RED)
    _polygon(draw, _regular(3, 0.32, 180, (0.5, 0.4)), WHITE)


def _no_entry(draw: Draw) -> None:
    _disc(draw, 0.48, RED)
    _polygon(draw, [(0.16, 0.41), (0.84, 0.41), (0.84, 0.59), (0.16, 0.59)], WHITE)


def _limit(draw: Draw, number: int) -> None:
    _disc(draw, 0.48, RED)
    _disc(draw, 0.37, WHITE)
    _text(draw, str(number), 0.5, BLACK)


def _priority(draw: Draw) -> None:
    for radius, colour in ((0.5, WHITE), (0.45, BLACK), (0.43, WHITE), (0.33, YELLOW)):
        _polygon(draw, _regular(4, radius, 0), colour)


def _order(draw: Draw) -> None:
    _disc(draw, 0.48, WHITE)
    _disc(draw, 0.46, BLUE)


def _ahead(draw: Draw) -> None:
    _order(draw)
    _polygon(draw, [(0.45, 0.84), (0.45, 0.4), (0.55, 0.4), (0.55, 0.84)], WHITE)
    _polygon(draw, [(0.5, 0.12), (0.72, 0.44), (0.28, 0.44)], WHITE)


def _right(draw: Draw) -> None:
    _order(draw)
    _polygon(draw, [(0.28, 0.8), (0.28, 0.42), (0.4, 0.42), (0.4, 0.8)], WHITE)
    _polygon(draw, [(0.28, 0.53), (0.28, 0.42), (0.6, 0.42), (0.6, 0.53)], WHITE)
    _polygon(draw, [(0.86, 0.475), (0.57, 0.27), (0.57, 0.68)], WHITE)


def _roundabout(draw: Draw) -> None:
    _order(draw)
    box = [0.24 * _FACE, 0.24 * _FACE, 0.76 * _FACE, 0.76 * _FACE]
    for turn in (0, 120, 240):
        draw.arc(box, turn - 70, turn + 10, fill=WHITE, width=round(0.095 * _FACE))
        tip = math.radians(turn + 12)
        centre = (0.5 + 0.215 * math.cos(tip), 0.5 + 0.215 * math.sin(tip))
        _polygon(draw, _regular(3, 0.14, turn + 185, centre), WHITE)


def _crossing(draw: Draw) -> None:
    _polygon(draw, [(0.04, 0.04), (0.96, 0.04), (0.96, 0.96), (0.04, 0.96)], BLUE)
    _polygon(draw, [(0.5, 0.12), (0.92, 0.86), (0.08, 0.86)], WHITE)
    _disc(draw, 0.055, BLACK, (0.51, 0.36))
    _line(draw, [(0.5, 0.46), (0.48, 0.6)], 0.085, BLACK)
    _line(draw, [(0.48, 0.6), (0.58, 0.68), (0.6, 0.8)], 0.055, BLACK)
    _line(draw, [(0.48, 0.6), (0.43, 0.7), (0.35, 0.8)], 0.055, BLACK)
    _line(draw, [(0.39, 0.58), (0.5, 0.47), (0.6, 0.57)], 0.04, BLACK)


def _danger(draw: Draw) -> None:
    _polygon(draw, _regular(3, 0.56, 0, (0.5, 0.6)), RED)
    _polygon(draw, _regular(3, 0.36, 0, (0.5, 0.6)), WHITE)
    _polygon(draw, [(0.445, 0.36), (0.555, 0.36), (0.53, 0.62), (0.47, 0.62)], BLACK)
    _disc(draw, 0.05, BLACK, (0.5, 0.7))


_FACES: tuple[Callable[[Draw], None], ...] = (
    _stop,
    _yield,
    _no_entry,
    *(partial(_limit, number=number) for number in (30, 50, 80)),
    _priority,
    _ahead,
    _right,
    _roundabout,
    _crossing,
    _danger,
)


@lru_cache(maxsize=4)
def _faces(side: int) -> tuple[Image.Image, ...]:
    """All faces as RGBA pictures of ``side`` pixels, smooth at the rim."""
    faces = [Image.new("RGBA", (_FACE, _FACE), (0, 0, 0, 0)) for _ in _FACES]
    for face, paint in zip(faces, _FACES, strict=True):
        paint(ImageDraw.Draw(face))
    return tuple(face.resize((side, side), Image.Resampling.LANCZOS) for face in faces)


def _photographs(labels: NDArray[np.int64], size: int, rng: np.random.Generator) -> Bytes:
    """One picture for each label, uint8 ``(n, size, size, 3)``."""
    count, canvas = len(labels), 2 * size
    scenes = _backgrounds(count, canvas, rng)
    quads, coefficients = _views(count, canvas, 3 * size, rng)
    faces = _faces(3 * size)
    for i, label in enumerate(labels):
        picture = Image.fromarray(scenes[i])
        _clutter(picture, quads[i], rng)
        way = coefficients[i].tolist()
        face = faces[label].transform(picture.size, PERSPECTIVE, way, Image.Resampling.BILINEAR)
        picture.paste(face, (0, 0), face)
        if rng.random() < 0.25:
            _leaf(picture, quads[i], rng)
        scenes[i] = np.asarray(picture)
    # Two by two pixels become one: smooth edges, as a sensor sees them.
    small = scenes.reshape(count, size, 2, size, 2, 3).mean((2, 4), dtype=np.float32) / 255.0
    grainy = _noise(_blur(_light(small, rng), rng), rng)
    return np.round(grainy * 255.0).astype(np.uint8)


def _texture(count: int, side: int, cells: int, rng: np.random.Generator) -> Floats:
    """Smooth noise in [-1, 1], ``(n, side, side, 1)``, with ``cells`` random values each way."""
    places = np.linspace(0, cells - 1, side)
    weights = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(cells))).astype(np.float32)
    values = rng.uniform(-1, 1, (count, cells, cells)).astype(np.float32)
    smooth: Floats = weights @ values @ weights.T
    return smooth[..., None]


def _backgrounds(count: int, side: int, rng: np.random.Generator) -> Bytes:
    """Sky over land, foliage, brick or concrete, uint8 ``(n, side, side, 3)``."""
    kind = rng.integers(0, 4, count)
    base = np.array(_PALETTE, dtype=np.float32)[kind] + rng.normal(0, 14, (count, 2, 3)).astype(
        np.float32
    )
    fall = np.linspace(0, 1, side, dtype=np.float32)[None, :, None, None]
    rows = base[:, None, None, 0] * (1 - fall) + base[:, None, None, 1] * fall
    scene = np.repeat(rows, side, axis=2)
    rough = np.array([8, 46, 14, 16], dtype=np.float32)[kind].reshape(-1, 1, 1, 1)
    for cells in (4, 9, 20):
        scene += rough * _texture(count, side, cells, rng)
    y, x = np.mgrid[0:side, 0:side]
    for i in np.flatnonzero(kind == 2):
        height = rng.integers(6, 11)
        row = (y + rng.integers(0, height)) // height
        mortar = (y % height < 1) | ((x + row % 2 * height) % (2 * height) < 1)
        scene[i][mortar] += 45
    for i in np.flatnonzero(kind == 0):
        ground = y > side * rng.uniform(0.55, 1.0) + 3 * np.sin(x / rng.uniform(4, 12))
        scene[i][ground] = scene[i][ground] * 0.35 + rng.uniform(10, 60, 3)
    return scene.clip(0, 255).astype(np.uint8)


def _views(
    count: int, canvas: int, face: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where the face's corners land, ``(n, 4, 2)``, and Pillow's 8 numbers for each way back."""
    turn = rng.normal(0, math.radians(5), count)
    half = canvas * rng.uniform(0.35, 0.48, (count, 1, 1))
    spin = np.stack([np.cos(turn), np.sin(turn), -np.sin(turn), np.cos(turn)], 1).reshape(-1, 2, 2)
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], dtype=np.float64)
    squeeze = np.stack([rng.uniform(0.82, 1.0, count), np.ones(count)], 1)[:, None]
    quads = (corners * squeeze) @ spin * half
    quads += rng.uniform(-0.09, 0.09, (count, 4, 2)) * half
    quads += canvas / 2 + rng.uniform(-0.05, 0.05, (count, 1, 2)) * canvas
    u, v = ((corners + 1) / 2 * face).T
    x, y = quads[..., 0], quads[..., 1]
    one, zero = np.ones_like(x), np.zeros_like(x)
    # u = (a x + b y + c) / (g x + h y + 1), v likewise: 8 linear equations in a..h.
    first = np.stack([x, y, one, zero, zero, zero, -u * x, -u * y], -1)
    second = np.stack([zero, zero, zero, x, y, one, -v * x, -v * y], -1)
    known = np.concatenate([u, v])[None, :, None].repeat(count, 0)
    return quads, np.linalg.solve(np.concatenate([first, second], 1), known)[..., 0]


def _clutter(picture: Image.Image, quad: NDArray[np.float64], rng: np.random.Generator) -> None:
    """Things behind the sign (walls, cars, trees, all out of focus) and the post that holds it."""
    draw, side = ImageDraw.Draw(picture), picture.width
    for _ in range(rng.integers(0, 5)):
        x, y = rng.uniform(-0.2, 1.0, 2) * side
        w, h = rng.uniform(0.1, 0.6, 2) * side
        # Towns are grey with a little colour: a street of pure colours looks like confetti.
        colour = tuple((rng.integers(30, 220) + rng.integers(-30, 31, 3)).clip(0, 255).tolist())
        (draw.rectangle if rng.random() < 0.6 else draw.ellipse)([x, y, x + w, y + h], fill=colour)
    if rng.random() < 0.8:
        x, y = quad.mean(0)
        shade = int(rng.integers(90, 170))
        draw.rectangle([x - side / 28, y, x + side / 28, side], fill=(shade, shade, shade + 4))


def _leaf(picture: Image.Image, quad: NDArray[np.float64], rng: np.random.Generator) -> None:
    """Something that hides a bit of the sign's rim: leaves, snow or dirt."""
    draw, side = ImageDraw.Draw(picture), picture.width
    colour = ((52, 88, 40), (225, 228, 232), (92, 80, 66))[rng.integers(0, 3)]
    middle, place = quad.mean(0), quad[rng.integers(0, 4)]
    place = middle + (place - middle) * rng.uniform(0.5, 0.9)
    for _ in range(4):
        x, y = place + rng.normal(0, side / 20, 2)
        w, h = rng.uniform(0.03, 0.08, 2) * side
        draw.ellipse([x - w, y - h, x + w, y + h], fill=colour)


def _light(images: Floats, rng: np.random.Generator) -> Floats:
    """Exposure, contrast, colour of the light and a shadow's edge; ``(n, s, s, 3)`` in [0, 1]."""
    count, side = images.shape[:2]
    gain = rng.uniform(0.4, 1.15, (count, 1, 1, 1)) * rng.normal(1, 0.05, (count, 1, 1, 3))
    haze = rng.uniform(0, 0.25, (count, 1, 1, 1)) * (rng.random((count, 1, 1, 1)) < 0.4)
    lit = images * gain * (1 - haze) + 0.7 * haze
    angle = rng.uniform(0, 2 * math.pi, (count, 1, 1))
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    edge = x * np.cos(angle) + y * np.sin(angle) - rng.uniform(-0.3, 0.3, (count, 1, 1))
    depth = rng.uniform(0.25, 0.6, (count, 1, 1)) * (rng.random((count, 1, 1)) < 0.35)
    shade = 1 - depth / (1 + np.exp(-edge * 30))
    return np.asarray(np.clip(lit * shade[..., None], 0, 1), dtype=np.float32)


def _blur(images: Floats, rng: np.random.Generator) -> Floats:
    """Out of focus or in motion: each picture mixed with two blurred ones."""
    pad = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    across = (pad[:, 1:-1, :-2] + 2 * images + pad[:, 1:-1, 2:]) / 4
    pad = np.pad(across, ((0, 0), (1, 1), (0, 0), (0, 0)), mode="edge")
    both = (pad[:, :-2] + 2 * across + pad[:, 2:]) / 4
    focus, motion = rng.uniform(0, 1, (2, len(images), 1, 1, 1)).astype(np.float32)
    mixed: Floats = both * focus + (across * motion + images * (1 - motion)) * (1 - focus)
    return mixed


def _noise(images: Floats, rng: np.random.Generator) -> Floats:
    """A sensor's noise, stronger in some pictures than in others; clipped to [0, 1]."""
    spread = rng.uniform(0.004, 0.045, (len(images), 1, 1, 1)).astype(np.float32)
    grain = rng.standard_normal(images.shape, dtype=np.float32)
    return np.clip(images + spread * grain, 0, 1)
