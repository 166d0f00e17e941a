"""How the synthetic world looks: soft textures and anti-aliased shapes, drawn from signed distances.

Pixel i covers [i, i+1). Everything draws in place into uint8 RGB frames.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, UInt8

Frames = UInt8[np.ndarray, "T H W 3"]
Color = tuple[int, int, int]


def texture(seed: int, height: int, width: int) -> Float[np.ndarray, "H W 3"]:
    """Returns a soft, muted, low-contrast texture: two octaves of smooth noise on a grey."""
    rng = np.random.default_rng(seed)
    image = 80 + 70 * rng.random() + 12 * (rng.random(3) - 0.5)
    for cells, contrast in ((4, 36.0), (10, 14.0)):
        noise = contrast * (rng.random((cells, cells, 1)) - 0.5)
        noise = noise + 0.4 * contrast * (rng.random((cells, cells, 3)) - 0.5)
        rows = np.tensordot(_interpolation(height, cells), noise, 1)
        image = image + _interpolation(width, cells) @ rows
    return image.astype(np.float32)


@functools.lru_cache
def _interpolation(length: int, cells: int) -> Float[np.ndarray, "length cells"]:
    """Returns the matrix that interpolates `cells` values smoothly to `length` ones."""
    position = (np.arange(length) + 0.5) / length * (cells - 1)
    left = np.floor(position).astype(int)
    part = position - left
    weight = part * part * (3 - 2 * part)
    matrix = np.zeros((length, cells))
    matrix[np.arange(length), left] = 1 - weight
    matrix[np.arange(length), left + 1] = weight
    return matrix


def crop(
    image: Float[np.ndarray, "H W 3"], corner: Sequence[float], size: tuple[int, int]
) -> Float[np.ndarray, "h w 3"]:
    """Returns the (height, width) window with its top left at `corner` (x, y), linearly interpolated.

    The image must reach one pixel further to the right and to the bottom.
    """
    (column, row), (height, width) = (math.floor(c) for c in corner), size
    part_x, part_y = np.float32(corner[0] - column), np.float32(corner[1] - row)
    window = image[row : row + height + 1, column : column + width + 1]
    rows = window[:-1] + part_y * (window[1:] - window[:-1])
    return rows[:, :-1] + part_x * (rows[:, 1:] - rows[:, :-1])


def draw_shape(
    frames: Frames, shown: Int[np.ndarray, " n"], boxes: Float[np.ndarray, "n 4"], shape: str, color: Color
) -> None:
    """Draws a shape that just fills its box into the frames numbered `shown`.

    Args:
        boxes: square xyxy boxes in pixels, one for each of these frames, inside the frame.
    """
    if not shown.size:
        return
    centers, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2] - boxes[:, 0]) / 2
    # Only a window around the box is touched, equally large in all frames.
    window = math.ceil(2 * half.max()) + 2
    corners = np.floor(boxes[:, :2]).astype(int) - 1
    corners = np.clip(corners, 0, (frames.shape[2] - window, frames.shape[1] - window))
    points = (corners - centers)[..., None] + np.arange(window) + 0.5
    x, y = points.astype(np.float32).swapaxes(0, 1)
    distance = _distance(shape, x[:, None, :], y[:, :, None], half.astype(np.float32)[:, None, None])
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    ink = np.array(color, np.float32)
    for frame, (column, row), alpha in zip(shown, corners, cover, strict=True):
        patch = frames[frame, row : row + window, column : column + window]
        patch[:] = patch + alpha * (ink - patch) + 0.5


def draw_bar(frames: Frames, middles: Float[np.ndarray, " T"], width: float, color: Color) -> None:
    """Draws a vertical bar over every frame, its middle at x = `middles`, pixels; it may be outside."""
    columns = np.arange(frames.shape[2], dtype=np.float32) + 0.5
    for frame, middle in zip(frames, middles, strict=True):
        cover = np.clip(0.5 - (np.abs(columns - middle) - width / 2), 0, 1)
        touched = slice(*np.searchsorted(columns, (middle - width / 2 - 1, middle + width / 2 + 1)))
        patch = frame[:, touched]
        patch[:] = patch + cover[touched, None] * (np.array(color, np.float32) - patch) + 0.5


def add_noise(frame: UInt8[np.ndarray, "H W 3"], sigma: float, seed: tuple[int, ...]) -> None:
    """Adds normal noise of `sigma` grey levels to one frame, the same one for the same seed."""
    grain = np.random.default_rng(seed).standard_normal(frame.shape, np.float32)
    frame[:] = np.clip(frame + sigma * grain + 0.5, 0, 255)


def _distance(shape: str, x: np.ndarray, y: np.ndarray, half: np.ndarray) -> Float[np.ndarray, "n h w"]:
    """Returns the signed distance in pixels, negative inside, to a shape that just fills its box.

    x, y are pixels from the box's centre (x to the right, y down), `half` is half the box's side.
    """
    if shape == "circle":
        return np.sqrt(x * x + y * y) - half
    square = np.maximum(np.abs(x), np.abs(y)) - half
    if shape == "square":
        return square
    if shape == "diamond":
        return (np.abs(x) + np.abs(y) - half) / math.sqrt(2)
    if shape == "cross":
        arms = (np.maximum(np.abs(a) - half, np.abs(b) - half / 3) for a, b in ((x, y), (y, x)))
        return np.minimum(*arms)
    if shape == "triangle":  # apex on top; the side from (0, -1) to (1, 1) has the normal (2, -1)
        outline = (2 * np.abs(x) - y - half) / math.sqrt(5)
    else:
        outline = _star(x / half, y / half) * half
    return np.maximum(outline, square)  # otherwise a sharp point would fade out beyond the box


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the signed distance to a five-pointed star that fills -1..1, in about those units.

    Mirrors fold the plane onto one half of the top point, whose outline is a single line.
    """
    top, bottom = 1.0, -math.cos(math.radians(36))  # of a star whose points lie at radius 1
    x = np.abs(x) * math.sin(math.radians(72))
    y = (top + bottom) / 2 - y * ((top - bottom) / 2)
    for angle in (108, 36):  # from the top: half way between two points, where the mirrors stand
        normal_x, normal_y = math.cos(math.radians(angle)), -math.sin(math.radians(angle))
        beyond = 2 * np.maximum(x * normal_x + y * normal_y, 0)
        x, y = x - beyond * normal_x, y - beyond * normal_y
    notch = 0.45  # radius of the inner corners
    dx, dy = notch * math.sin(math.radians(36)), notch * math.cos(math.radians(36)) - 1
    return (np.abs(x) * -dy + (y - 1) * dx) / math.hypot(dx, dy)
