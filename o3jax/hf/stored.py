"""Safetensors on disk: the files of a checkpoint, where each tensor lies, whether its numbers are finite; and
how one is written without holding more than a block of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from o3jax.errors import UserError
from o3jax.fields import MOST_BYTES, folder_file, folder_json, shown

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(ml_dtypes.bfloat16), "F16": np.dtype(np.float16)}
_BLOCK = 1 << 21  # numbers that are looked at at a time
# As whole numbers without the sign, infinity and NaN are the largest: from here on.
_INFINITY = {"F32": 0x7F800000, "BF16": 0x7F80, "F16": 0x7C00}


@dataclasses.dataclass(frozen=True)
class Stored:
    """Where one tensor lies on disk."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    def view(self) -> np.ndarray:
        """Returns the tensor as a read-only memory map."""
        return np.memmap(self.path, DTYPES[self.dtype], "r", self.offset, self.shape)

    def is_finite(self) -> bool:
        """Returns whether no number of the tensor is NaN or infinite."""
        whole = np.dtype(f"u{DTYPES[self.dtype].itemsize}")
        bits = np.memmap(self.path, whole, "r", self.offset, (self.nbytes // whole.itemsize,))
        sign, limit = whole.type(1 << (8 * whole.itemsize - 1)), _INFINITY[self.dtype]
        blocks = (bits[i : i + _BLOCK] for i in range(0, len(bits), _BLOCK))
        return all(int((block & ~sign).max()) < limit for block in blocks)

    def same_bytes(self, other: Stored) -> bool:
        """Returns whether another tensor is the same, bit by bit."""
        if (self.dtype, self.shape) != (other.dtype, other.shape):
            return False
        if not self.nbytes:  # nothing can be mapped
            return True
        x, y = (np.memmap(s.path, np.uint8, "r", s.offset, (s.nbytes,)) for s in (self, other))
        step = 1 << 26
        return all(np.array_equal(x[i : i + step], y[i : i + step]) for i in range(0, self.nbytes, step))


def weight_files(folder: Path) -> list[Path]:
    """Returns the safetensors files that make a folder's checkpoint.

    Raises:
        UserError: if there are none, the index is damaged, or files that it names are missing.
    """
    single = folder_file(folder, SINGLE, None)
    if single:
        return [single]
    values = folder_json(folder, INDEX)
    if values is None:
        pickled = next(
            (p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in sorted(folder.glob(pattern))), None
        )
        if pickled:
            raise UserError(
                f"{folder} has {pickled} but no safetensors, and only safetensors are read: "
                "save the model again with safe_serialization"
            )
        raise UserError(f"{folder} has neither {SINGLE} nor {INDEX}: pass a folder with the model's weights")
    index = folder / INDEX
    named = values.get("weight_map")
    if not isinstance(named, dict):
        raise UserError(f"{index} is not a safetensors index with a weight_map: restore the file")
    for name in named.values():
        inside = isinstance(name, str) and Path(name).name == name and "\0" not in name
        if not inside or not name.endswith(".safetensors"):
            raise UserError(
                f"{index} names the file {shown(name)}, which is no safetensors file inside the folder"
            )
    names = sorted(set(named.values()))
    if not names:
        raise UserError(f"{index} names no files in its weight_map: restore the file")
    lost = [name for name in names if folder_file(folder, name, None) is None]
    if lost:
        raise UserError(f"{folder} lacks the weight files that its index names: {some(lost)}; restore them")
    return [folder / name for name in names]


def stored_tensors(files: Iterable[Path]) -> dict[str, Stored]:
    """Returns where every tensor of a checkpoint lies, from the files' validated headers.

    Raises:
        UserError: if a file is damaged, or a tensor is in two of them.
    """
    found: dict[str, Stored] = {}
    for path in files:
        size, header = _header(path)
        for name, info in header.items():
            if name in found:
                raise UserError(
                    f"{name} is in both {found[name].path.name} and {path.name}: keep one of them"
                )
            begin, end = info["data_offsets"]
            found[name] = Stored(path, info["dtype"], tuple(info["shape"]), 8 + size + begin, end - begin)
    return found


def _header(path: Path) -> tuple[int, dict]:
    """Returns how many bytes the header has, and what it says of each tensor."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > MOST_BYTES:
                raise UserError(f"{path} is damaged (its header has {size} bytes): restore it")
        # The library checks sizes, overlaps and the length of the file before we trust the header.
        with safe_open(path, "np"):
            pass
        with path.open("rb") as file:
            file.seek(8)
            header = json.loads(file.read(size))
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is damaged or not a safetensors file ({error}): restore it") from error
    header.pop("__metadata__", None)
    return size, header


def write_tensors(
    path: Path, tensors: Mapping[str, tuple[tuple[int, ...], Callable[[], np.ndarray]]], dtype: np.dtype
) -> None:
    """Writes a safetensors file, a tensor at a time, byte for byte as the library does.

    The library's own writer wants all of them at once.

    Args:
        tensors: by name, the shape and what returns the numbers.
        dtype: that they are written in.
    """
    (name,) = (name for name, known in DTYPES.items() if known == dtype)
    header, end = {"__metadata__": {"format": "pt"}}, 0
    tensors = dict(sorted(tensors.items()))
    for key, (shape, _) in tensors.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[key] = {"dtype": name, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, read in tensors.values():
            tensor = np.atleast_1d(read())
            rows = max(1, _BLOCK * len(tensor) // max(tensor.size, 1))
            for start in range(0, len(tensor), rows):
                block = np.asarray(tensor[start : start + rows], dtype, order="C")
                file.write(block.reshape(-1).view(np.uint8))


def weights_fingerprint(folder: Path) -> str:
    """Returns a short hash of which weights a folder has: names, shapes, and the first numbers of each."""
    found = hashlib.sha256()
    for name, tensor in sorted(stored_tensors(weight_files(folder)).items()):
        found.update(f"{name} {tensor.dtype} {tensor.shape} ".encode())
        found.update(np.memmap(tensor.path, np.uint8, "r", tensor.offset, (min(tensor.nbytes, 256),)))
    return found.hexdigest()[:16]


def some(items: Iterable[str], limit: int = 5) -> str:
    """Returns the first items, and how many more there are."""
    items = list(items)
    return ", ".join(items[:limit]) + (f" and {len(items) - limit} more" if len(items) > limit else "")
