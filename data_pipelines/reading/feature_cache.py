"""What a frozen vision tower made of the clips of a data set, kept for later epochs and runs.

Rows are made where there is no accelerator. So a row says which entry of the cache is each clip's own: where
there is one, the row holds it, and zeros for frames that need not be decoded; where there is none, the
training process makes it of the frames and puts it there (`experiments.training.features`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.reading.frame_cache import ArrayCache, Arrays, entry_key
from o3jax.models.batch import Features, MissingFeatures, Patches, SupervisedBatch
from o3jax.models.config import VisionConfig


@dataclasses.dataclass(frozen=True)
class FeatureCache:
    """The features of clips.

    An entry is the features of the clip's frame pairs in the language stream, [n, tokens, 1 + taps, D], and
    where there is a dense stream those of its pairs, [m, tokens, D], and their times [m].

    Attributes:
      cache: where they are.
      tower: names the tower, and all else but the clip that features depend on.
      dtype: of the features, by name.
    """

    cache: ArrayCache
    tower: str
    dtype: str

    def find(self, files: Sequence[Path], *asked: Any) -> tuple[str, Arrays | None]:
        """Returns the key of a clip's entry, and the entry if there is one.

        There is no key if a file is missing, or if the clip has none.

        Args:
            files: what is read of the clip.
            asked: what of them, and how.
        """
        key = entry_key(files, self.tower, self.dtype, asked)
        return key, self.cache.get(key) if key else None

    def fill(
        self, c: VisionConfig, row: SupervisedBatch, missing: MissingFeatures, kept: Sequence[Arrays | None]
    ) -> SupervisedBatch:
        """Returns a row with its features beside its patches, zeros where they are to be made.

        Args:
            missing: what is to be made.
            kept: of each clip the entry, if there is one.
        """

        def empty(patches: Patches, *depth: int) -> Features:
            frame_pairs, size, _ = patches.values.shape
            shape = (frame_pairs, size // c.merge_unit, *depth, c.out_hidden_size)
            return Features(np.zeros(shape, self.dtype), patches.length)

        inputs, dense = row.inputs, row.inputs.dense
        visual = empty(inputs.patches, 1 + len(c.deepstack_visual_indexes))
        streams = [(visual, missing.clip)]
        if dense is not None:
            dense = dataclasses.replace(dense, features=empty(dense.patches))
            streams.append((dense.features, dense.clip))
        for number, entry in enumerate(kept, start=1):
            for (into, clip), features in zip(streams, entry or (), strict=False):
                into.values[clip == number, : features.shape[1]] = features
        inputs = dataclasses.replace(inputs, features=visual, dense=dense)
        return dataclasses.replace(row, inputs=inputs, missing=missing)
