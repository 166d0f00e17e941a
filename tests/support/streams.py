"""What tests run in worker processes, in a module that these load fast."""

from __future__ import annotations

import grain
import numpy as np


class Named(grain.transforms.Map):
    """Numbers of clips -> a row of them; 5 cannot be read."""

    def map(self, clips):
        row = {
            "clip_number": np.full(3, -1, np.int32),
            "clip_error": np.zeros((3, 8), np.uint8),
            "x": np.zeros(2, np.float32),
        }
        for at, clip in enumerate(clips):
            row["clip_number"][at] = clip
            if clip == 5:
                row["clip_error"][at, :4] = np.frombuffer(b"torn", np.uint8)
        return row


class Drawn(grain.transforms.RandomMap):
    def random_map(self, row, rng):
        return row | {"drawn": rng.uniform(size=2)}


def put_many(cache, start):
    """Puts twelve arrays, whose keys begin at `start`."""
    for number in range(start, start + 12):
        cache.put(str(number), (np.full(70_000, number % 256, np.uint8),))
