"""Arrays in files: as they were written, or refused."""

from __future__ import annotations

import numpy as np
import pytest

from o3jax.arrays import read_arrays, write_arrays


@pytest.fixture
def path(tmp_path):
    write_arrays(tmp_path / "a.npz", x=np.arange(300), y="text")
    return tmp_path / "a.npz"


def test_arrays_come_back_as_they_were_written(path):
    with np.load(path) as arrays:
        assert arrays["x"].tolist() == list(range(300)) and arrays["y"].item() == "text"
    assert {name: array.tolist() for name, array in read_arrays(path).items()} == {
        "x": list(range(300)),
        "y": "text",
    }


@pytest.mark.parametrize("damage", ["cut", "empty", "flipped", "no archive", "one array", "pickled"])
def test_a_file_that_is_not_whole_is_refused(path, damage):
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[300] ^= 255
    if damage == "one array":
        np.save(path.open("wb"), np.arange(3))
    elif damage == "pickled":
        np.savez(path, x=np.array([{}]))
    else:
        path.write_bytes(
            {"cut": content[:-50], "empty": b"", "flipped": bytes(flipped), "no archive": b"x" * 100}[damage]
        )
    with pytest.raises(ValueError):
        read_arrays(path)
    path.unlink()
    with pytest.raises(OSError):
        read_arrays(path)
