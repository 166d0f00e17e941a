"""Images and video frames to patches: sizes, resizing and row order of Hugging Face's Qwen3-VL processors."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
from einops import rearrange
from jaxtyping import Float32, UInt8
from PIL import Image

from o3jax.errors import UserError
from o3jax.files import read_json

_BICUBIC = 3  # as numbered by Pillow and in the preprocessor files
_MAX_ASPECT = 200


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """How one kind of medium becomes patches; the defaults are those of the published checkpoints."""

    patch_size: int = 16
    merge_size: int = 2  # one language token per merge_size x merge_size patches
    temporal_patch_size: int = 2
    min_pixels: int = 65536
    max_pixels: int = 16777216
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    rescale_factor: float = 1 / 255

    @property
    def factor(self) -> int:
        """Both sides of a resized frame are multiples of this."""
        return self.patch_size * self.merge_size

    def to_json(self) -> dict[str, Any]:
        """Returns the content of a preprocessor file that says the same."""
        fields = dataclasses.asdict(self)
        size = {"shortest_edge": fields.pop("min_pixels"), "longest_edge": fields.pop("max_pixels")}
        return {
            "size": size,
            "do_resize": True,
            "do_rescale": True,
            "do_normalize": True,
            "do_convert_rgb": True,
            "resample": _BICUBIC,
            **fields,
        }


@dataclasses.dataclass(frozen=True)
class VideoConfig(ImageConfig):
    """As `ImageConfig`, the pixels counted over the whole clip; and how frames are sampled."""

    min_pixels: int = 4096
    max_pixels: int = 25165824
    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 768
    cap_pixels_per_frame: bool = False
    max_video_tokens: int = 768  # per frame, where capped

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "do_sample_frames": True}


def read_image_config(folder: Path) -> ImageConfig:
    """Returns the image settings of a model folder; published defaults where it has no such file."""
    return _read_config(ImageConfig, folder, "image_processor", "preprocessor_config.json")


def read_video_config(folder: Path) -> VideoConfig:
    """Returns the video settings of a model folder; published defaults where it has no such file."""
    return _read_config(VideoConfig, folder, "video_processor", "video_preprocessor_config.json")


def _read_config(kind: type, folder: Path, nested: str, file_name: str) -> Any:
    # Newer transformers nests both in one file and prefers that file, as we do.
    values = read_json(folder / "processor_config.json", absent={}).get(nested)
    path = folder / ("processor_config.json" if values else file_name)
    values = values or read_json(path, absent={})
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if values.get(step) is False:
            raise UserError(f"{path}: {step} is false, which is not supported; set it to true")
    if values.get("resample", _BICUBIC) != _BICUBIC:
        raise UserError(f"{path}: resample is {values['resample']}, only {_BICUBIC} (bicubic) is supported")

    size = values.get("size") or {}
    values = {"min_pixels": size.get("shortest_edge"), "max_pixels": size.get("longest_edge")} | {
        key: value for key, value in values.items() if value is not None
    }
    names = {field.name for field in dataclasses.fields(kind)}
    found = {key: value for key, value in values.items() if key in names and value is not None}
    for key in ("image_mean", "image_std"):
        if key in found:
            found[key] = tuple(found[key])
    return kind(**found)


def image_size(height: int, width: int, config: ImageConfig) -> tuple[int, int]:
    """Returns the (height, width) that an image is resized to: multiples of the factor, area within limits.

    Raises:
        UserError: if one side is more than 200 times the other.
    """
    _check_aspect(height, width)
    return _fit(height, width, 1, 1, config.factor, config.min_pixels, config.max_pixels)


def video_size(num_frames: int, height: int, width: int, config: VideoConfig) -> tuple[int, int]:
    """Returns the (height, width) that every frame of a clip is resized to: area x frames within limits.

    Raises:
        UserError: if there are fewer frames than one temporal patch, or one side is more than 200
            times the other.
    """
    group, factor = config.temporal_patch_size, config.factor
    if num_frames < group:
        raise UserError(f"a video needs at least {group} frames, and this one has {num_frames}; use an image")
    _check_aspect(height, width)
    if height < factor or width < factor:
        scale = max(factor / height, factor / width)
        height, width = int(height * scale), int(width * scale)
    max_pixels = config.max_pixels
    if config.cap_pixels_per_frame:
        cap = min(config.max_video_tokens * factor * factor, max_pixels // num_frames)
        max_pixels = max(cap, int(config.min_pixels * 1.05)) * num_frames
    even_frames = round(num_frames / group) * group
    return _fit(height, width, num_frames, even_frames, factor, config.min_pixels, max_pixels)


def _check_aspect(height: int, width: int) -> None:
    if min(height, width) < 1 or max(height, width) > _MAX_ASPECT * min(height, width):
        raise UserError(
            f"a frame of {width} x {height} pixels cannot be read: one side may be at most "
            f"{_MAX_ASPECT} times the other; crop it"
        )


def _fit(
    height: int, width: int, frames: int, counted_frames: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Returns the rounded size; `counted_frames` decide whether to scale, `frames` by how much (as in HF)."""
    # Python's round is half to even, and so it must be.
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    pixels = counted_frames * new_height * new_width
    if pixels > max_pixels:
        shrink = math.sqrt(frames * height * width / max_pixels)
        new_height = max(factor, math.floor(height / shrink / factor) * factor)
        new_width = max(factor, math.floor(width / shrink / factor) * factor)
    elif pixels < min_pixels:
        grow = math.sqrt(min_pixels / (frames * height * width))
        new_height = math.ceil(height * grow / factor) * factor
        new_width = math.ceil(width * grow / factor) * factor
    return new_height, new_width


def resize_image(frame: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the image at (height, width), bicubic with antialias, as HF's Pillow backend does it."""
    height, width = size
    if frame.shape[:2] == size:
        return frame
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))


def resize_video(frames: UInt8[np.ndarray, "T H W 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "T h w 3"]:
    """Returns the frames at (height, width), bicubic with antialias; the same array where nothing changes.

    Width before height, as torch does it for HF's video processor: between the two passes values are
    clipped, and Pillow alone would choose the order by the shape (up to 11 levels apart at hard edges).
    """
    height, width = size
    if frames.shape[1:3] == size:
        return frames
    out = np.empty((len(frames), height, width, 3), np.uint8)
    for i, frame in enumerate(frames):
        out[i] = resize_image(resize_image(frame, (frame.shape[0], width)), size)
    return out


def patchify(frames: UInt8[np.ndarray, "T H W 3"], config: ImageConfig) -> UInt8[np.ndarray, "N D"]:
    """Returns one row per patch, in HF's order: time, block row, block column, row and column in the block.

    D = 3 * temporal_patch_size * patch_size ** 2, channel first, then time, y, x. The last frame is
    repeated until the frames fill the last temporal patch (an image is one frame).
    """
    group, merge, patch = config.temporal_patch_size, config.merge_size, config.patch_size
    missing = -len(frames) % group
    if missing:
        frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
    return rearrange(
        frames,
        "(t g) (h i y) (w j x) c -> (t h w i j) (c g y x)",
        g=group,
        i=merge,
        y=patch,
        j=merge,
        x=patch,
    )


def normalize(patches: UInt8[np.ndarray, "N D"], config: ImageConfig) -> Float32[np.ndarray, "N D"]:
    """Returns the floats that the model reads: (x * rescale_factor - mean) / std per channel."""
    scale = 1 / config.rescale_factor
    mean = np.asarray(config.image_mean, np.float32)[:, None] * np.float32(scale)
    std = np.asarray(config.image_std, np.float32)[:, None] * np.float32(scale)
    values = patches.astype(np.float32).reshape(len(patches), len(config.image_mean), -1)
    values -= mean
    values /= std
    return values.reshape(patches.shape)
