"""Rows whose frames are padded to sizes of their own: few of them, little padding, and the same numbers."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from data_pipelines.rows.clips import FolderClips
from data_pipelines.rows.packing import RowCapacity, RowCost
from data_pipelines.rows.pipeline import Pipeline
from data_pipelines.rows.settings import EvidenceShape, RowShape
from data_pipelines.rows.sizes import MOST, RowSize, plan_sized_rows
from data_pipelines.rows.supervised import MakeRow
from data_pipelines.synthetic.clips import SyntheticClips
from experiments.data.clips import plan
from o3jax.hf import config_from_hf, load_weights
from o3jax.inputs.processor import load_processor
from o3jax.models.batch import take
from tests.support.batches import assert_equal
from tests.support.tiny import EVIDENCE, film

PATCHES, BATCH = 1024, 4
SHAPE = EvidenceShape(
    frame_pairs=160, patches=16, questions=3, question_length=64, mentions=4, boxes=2, intervals=2
)
ONE = {"seed": 3, "mixture": {}, "epochs": 2.0}


def planned(cost: list[RowCost], clips: int, **options):
    capacity = RowCapacity(4096, 16, None, None, clips)
    return plan_sized_rows(cost, ["a"] * len(cost), capacity, PATCHES, BATCH, **(ONE | options))


def handed(rows, sizes, cost) -> float:
    """How many patches rows have, by the patches that clips have; both counted one by one."""
    whole = there = 0
    for row in rows:
        first = cost[row[0]]
        fits = [s for s in sizes if first.patches <= s.patches and first.frame_pairs <= s.clip_pairs]
        whole += fits[0].frame_pairs * fits[0].patches if sizes else 16 * PATCHES
        for clip in row:
            there += cost[clip].frame_pairs * cost[clip].patches
    return whole / there


MIXTURES = {
    "small ones beside one large": [(4, 64)] * 199 + [(1, 1024)],
    "384 pairs of two shapes": [(2, 98)] * 96 + [(1, 1024)] * 96,
    "landscapes and portraits": [(6, 112), (8, 120), (3, 480), (16, 1000), (1, 256)] * 40,
    "anything": [(1 + n * 7 % 16, 4 * (1 + n * 37 % 256)) for n in range(400)],
    "a wide range": [(1 + n % 8, int(16 * 2 ** (n % 7))) for n in range(350)],
}


@pytest.mark.parametrize("clips", [1, 4])
@pytest.mark.parametrize("kind", MIXTURES)
def test_any_mixture_takes_little_more_than_its_patches(kind, clips):
    cost = [RowCost(50, pairs, patches=patches) for pairs, patches in MIXTURES[kind]]
    rows, sizes = planned(cost, clips)
    assert handed(rows, sizes, cost) <= 1.5
    assert len(sizes) <= MOST and all(s.frame_pairs * s.patches <= 16 * PATCHES for s in sizes)


COSTS = st.builds(
    lambda pairs, tokens, alike: RowCost(50, pairs, patches=4 * tokens, alike=alike),
    st.integers(1, 16),
    st.integers(1, PATCHES // 4),
    st.sampled_from([(), (2, 2)]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(COSTS, min_size=1, max_size=120), st.integers(1, 4))
def test_every_clip_is_in_a_row_of_its_size(cost, clips):
    rows, sizes = planned(cost, clips)
    assert (rows, sizes) == planned(cost, clips)
    times = np.bincount([clip for row in rows for clip in row], minlength=len(cost))
    assert times.min() >= 2  # of two epochs; and some rows again, so that each size fills whole batches
    sizes = sizes or (RowSize(16, PATCHES, 16),)
    numbers = []
    for row in rows:
        held = {next(k for k, size in enumerate(sizes) if size.holds(cost[clip])) for clip in row}
        assert len(held) == 1 and len(row) <= clips and len({cost[clip].alike for clip in row}) == 1
        numbers += held
        assert sum(cost[clip].frame_pairs for clip in row) <= sizes[numbers[-1]].frame_pairs
    if len(sizes) > 1:
        assert len(rows) % BATCH == 0
        assert all(len(set(numbers[at : at + BATCH])) == 1 for at in range(0, len(rows), BATCH))


def test_like_clips_have_one_size():
    cost = [RowCost(50, 12 + n % 5, patches=900) for n in range(50)]
    rows, sizes = planned(cost, 1)
    assert sizes == () and len(rows) == 100
    assert len(planned(cost, 1, epochs=0.0, least=77)[0]) >= 77


def test_a_row_of_its_own_size_says_the_same(video_model):
    """4 x 16 patches in rows of 6 x 64 and of 4 x 16: the same tokens of the tower at the same places."""
    config = config_from_hf(video_model)
    tower = jax.jit(load_weights(video_model, config).vision)
    config = dataclasses.replace(config, evidence=EVIDENCE)
    shape = RowShape(640, 6, 64, clips=1)
    large = MakeRow(load_processor(video_model), config, shape, evidence=SHAPE)
    small = dataclasses.replace(large, sizes=(RowSize(4, 16, 4), RowSize(6, 64, 6)))
    clip = SyntheticClips("train", 1, questions=2)[5]
    assert large.cost(clip).frame_pairs <= 4 and large.cost(clip).patches == 16
    rows, read = (large.map(clip), small.map(clip)), []
    for row, sizes in zip(rows, ((6, 64), (4, 16)), strict=True):
        assert row.inputs.patches.values.shape[:2] == sizes
        tokens, taps = tower(take(row.inputs.patches, None))
        index = row.inputs.text.visual_index
        read.append(np.concatenate([tokens, *taps], -1)[0, index[index >= 0]])
    np.testing.assert_allclose(*read, rtol=1e-4, atol=1e-5)
    one, other = rows
    assert ((one.inputs.text.visual_index >= 0) == (other.inputs.text.visual_index >= 0)).all()
    assert (other.inputs.patches.length == one.inputs.patches.length[:4]).all()
    for name in ("times", "clip", "clock"):
        assert (getattr(other.inputs.places, name) == getattr(one.inputs.places, name)[:4]).all()
    assert (other.inputs.places.centres == one.inputs.places.centres[:4, :4]).all()
    for row in rows:
        row.inputs.text.visual_index[:] = 0
        object.__setattr__(row, "inputs", dataclasses.replace(row.inputs, patches=None, places=None))
    assert_equal(one, other)


def test_a_run_on_unlike_videos(video_model, tmp_path):
    """From files to batches: each of one size, all clips among them, and told at the start."""
    processor = load_processor(video_model)
    processor.video_config = dataclasses.replace(processor.video_config, max_pixels=2**22)
    films = film(tmp_path, 5)
    media = dict(films.index.media)
    media["4.mp4"] = dataclasses.replace(media["4.mp4"], height=512, width=384)  # is read as if it were
    films = FolderClips(dataclasses.replace(films.index, media=media), 1)
    maker = MakeRow(processor, config_from_hf(video_model), RowShape(4000, 6, 768, clips=1))
    config = ConfigDict(
        {"seed": 0, "data_path": "films", "mixture": {}, "num_train_epochs": 1.0, "max_steps": 0}
        | {"max_rejected_share": 0.0}
    )
    planned = plan(config, films, maker, 2)
    maker = dataclasses.replace(maker, sizes=planned.sizes)
    stream = Pipeline(planned.rows, [maker], batch_size=2, seed=0).open()
    batches = [next(stream) for _ in range(planned.steps)]
    stream.close()
    shapes = [batch.inputs.patches.values.shape[1:3] for batch in batches]
    assert len(planned.sizes) == 2 == len(set(shapes)) and max(p for _, p in shapes) > 10 * min(
        p for _, p in shapes
    )
    assert {n for batch in batches for n in batch.failures.number.ravel().tolist()} == set(range(5))
    assert not any(batch.failures.error.any() for batch in batches)
    assert planned.data_fingerprint["rows"] != plan(config, films, maker, 3).data_fingerprint["rows"]
