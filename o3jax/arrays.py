"""Arrays by name in .npz files, which appear whole or not at all."""

from __future__ import annotations

import os
import zipfile
import zlib
from typing import Any

import numpy as np

from o3jax.files import whole_file


def write_arrays(path: str | os.PathLike, **arrays: Any) -> None:
    """Writes an .npz file of arrays by name, whole or not at all."""
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Returns the arrays of an .npz file by name.

    Raises:
        OSError, ValueError: if it cannot be read, or is not whole, which its checksums tell.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not whole ({error})") from error
