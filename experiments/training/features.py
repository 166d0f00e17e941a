"""The frozen tower beside a training run: it makes the features that the feature cache does not have."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from ml_collections import ConfigDict

import o3jax.inputs
import o3jax.models
from data_pipelines.reading.feature_cache import FeatureCache
from data_pipelines.reading.frame_cache import ArrayCache
from experiments.data.clips import code_of
from o3jax.errors import UserError
from o3jax.inputs import collate
from o3jax.models.batch import Features, Patches, SupervisedBatch, map_arrays, take
from o3jax.models.qwen3_vl import Qwen3VL, dense_tokens, visual_features
from o3jax.models.vision import VisionTower


class FeatureMaker:
    """The tower as it computes, and the cache of what it makes.

    Each clip is computed for itself, so that its features do not depend on what shares its row.
    """

    def __init__(self, tower: VisionTower, cache: ArrayCache, dtype: str, *shape: int):
        self.tower = jax.tree.map(lambda a: jnp.array(a, dtype), tower)  # training gives its own away
        self.cache = FeatureCache(cache, _fingerprint(self.tower, shape), dtype)

    def __call__(self, batch: SupervisedBatch) -> SupervisedBatch:
        """Returns the batch with features in place of patches; those that are missing are made and kept."""
        inputs, dense, missing = batch.inputs, batch.inputs.dense, batch.missing
        streams = [(_visual, inputs.patches, inputs.features, missing.clip)]
        if dense is not None:
            streams.append((_dense, dense.patches, dense.features, dense.clip))
        made = [np.array(features.values) for _, _, features, _ in streams]
        for row, number in np.argwhere(missing.key.any(-1)):
            entry = []
            for (encode, patches, _, clip), out in zip(streams, made, strict=True):
                at = np.flatnonzero(clip[row] == number + 1)
                features = self._make(encode, take(take(patches, row), at))
                out[row, at, : features.shape[1]] = features
                entry.append(features)
            if dense is not None:
                entry.append(dense.times[row, at])
            self.cache.cache.put(missing.key[row, number].tobytes().decode(), tuple(entry))
        visual, *others = (Features(out, one[2].length) for out, one in zip(made, streams, strict=True))
        if dense is not None:
            dense = dataclasses.replace(dense, patches=None, features=others[0])
        inputs = dataclasses.replace(inputs, patches=None, features=visual, dense=dense)
        return dataclasses.replace(batch, inputs=inputs, missing=None)

    def _make(self, encode: Callable[[VisionTower, Patches], Array], patches: Patches) -> np.ndarray:
        """Returns the features of some frame pairs, as many tokens of each as the largest has."""
        count, most = len(patches.length), patches.length.max() // self.tower.config.merge_unit
        pad = collate.bucket(count) - count
        padded = map_arrays(lambda a: np.pad(a, [(0, pad)] + [(0, 0)] * (a.ndim - 1))[None], patches)
        return np.asarray(encode(self.tower, padded))[0, :count, :most]


@jax.jit
def _visual(tower: VisionTower, patches: Patches) -> Float[Array, "B T P K D"]:
    tokens, taps = tower(patches)
    return visual_features(tokens, taps, patches.length.shape[1])


@jax.jit
def _dense(tower: VisionTower, patches: Patches) -> Float[Array, "B T P D"]:
    return dense_tokens(tower, patches)


def _fingerprint(tower: VisionTower, shape: Sequence[int]) -> str:
    """Returns a hash of all that features depend on beside the clip: weights, code, sizes, the machine."""
    device = jax.devices()[0].device_kind
    machine = (tower.config, shape, jax.__version__, device, jax.config.jax_default_matmul_precision)
    digest = hashlib.sha256(repr(machine).encode())
    for source in code_of(o3jax.inputs, o3jax.models):
        digest.update(source.encode())
    for leaf in jax.tree.leaves(tower):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def open_features(config: ConfigDict, model: Qwen3VL) -> FeatureMaker | None:
    """Returns what makes and keeps features, where the config names a folder for them.

    Raises:
        UserError: if several hosts share the run.
    """
    if not config.feature_cache:
        return None
    if jax.process_count() > 1:
        raise UserError("config.feature_cache works on one host: leave it empty")
    cache = ArrayCache(config.feature_cache, int(config.feature_cache_gib * 2**30))
    patches = config.row_patches, config.evidence_shape.patches
    return FeatureMaker(model.vision, cache, config.compute_dtype, *patches)
