"""Several clips in a row, and a stream of rows that is the same whoever reads it and wherever it starts."""

from __future__ import annotations

import dataclasses
import functools
import json
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from data_pipelines.rows.evidence import OpenCandidates
from data_pipelines.rows.packing import (
    PlannedRows,
    RowCapacity,
    RowCost,
    clip_order,
    first_fit,
    padding,
    plan_rows,
)
from data_pipelines.rows.pipeline import Pipeline
from data_pipelines.rows.settings import EvidenceShape, RowShape
from data_pipelines.rows.supervised import MakeRow
from data_pipelines.synthetic.clips import SyntheticClips
from data_pipelines.synthetic.datasets import write_video
from experiments.training.loop import Feed, RunLength, train
from experiments.training.workdir import Workdir
from o3jax.errors import UserError
from o3jax.hf import config_from_hf, load_weights
from o3jax.inputs.processor import load_processor
from o3jax.models.batch import flatten, map_arrays, stack
from o3jax.models.qwen3_vl import with_evidence
from o3jax.sft.evidence import EvidenceWeights
from o3jax.sft.joint import joint_counts, joint_loss
from o3jax.train.state import TrainState
from o3jax.train.token_loss import IGNORE
from tests.support.batches import assert_equal
from tests.support.clips import filmed
from tests.support.streams import Drawn, Named
from tests.support.tiny import EVIDENCE, film

SHAPE = EvidenceShape(
    frame_pairs=160, patches=16, questions=3, question_length=64, mentions=4, boxes=2, intervals=2
)
ROW = RowShape(640, 6, 16, clips=2)


@pytest.fixture(scope="module")
def setting(video_model):
    processor = load_processor(video_model)
    model = with_evidence(load_weights(video_model, config_from_hf(video_model)), EVIDENCE, jax.random.key(1))
    return model, MakeRow(processor, model.config, ROW, evidence=SHAPE)


@pytest.fixture(scope="module")
def two():
    return SyntheticClips("train", 1, questions=1)[3], SyntheticClips("train", 1, questions=2)[5]


def batch_of(*rows):
    return dataclasses.replace(stack(rows), failures=None)


@pytest.fixture(scope="module")
def run():
    loss = functools.partial(joint_loss, evidence_weight=0.4, weights=EvidenceWeights(), candidate_low=0.1)
    return jax.jit(jax.value_and_grad(loss, has_aux=True))


def opened(row):
    return OpenCandidates(0.0).random_map(row, np.random.default_rng(0))


# --- packed rows ---


def test_clips_in_one_row_are_as_in_rows_of_their_own(setting, two, run):
    model, rows = setting
    packed = batch_of(opened(rows.map(two)))
    apart = batch_of(*[opened(rows.map(clip)) for clip in two])
    counts = joint_counts(apart)
    for name, count in joint_counts(packed).items():
        assert count == counts[name], name
    (loss, sums), gradients = run(model, packed, counts)
    (alone, expected), wanted = run(model, apart, counts)
    np.testing.assert_allclose(loss, alone, rtol=1e-5)
    for name in sums:
        np.testing.assert_allclose(sums[name], expected[name], rtol=1e-5, atol=1e-5, err_msg=name)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(gradients), jax.tree.leaves(wanted), strict=True
    ):
        largest = max(float(jnp.abs(b).max()), 1e-2)
        np.testing.assert_allclose(a, b, atol=1e-5 * largest, err_msg=jax.tree_util.keystr(path))


def test_the_arrays_of_a_packed_row(setting, two):
    _, rows = setting
    packed, alone = rows.map(two), [rows.map(clip) for clip in two]
    text, dense = packed.inputs.text, packed.inputs.dense
    assert sorted(set(text.segment_ids)) == [0, 1, 2]
    for segment, row in enumerate(alone, start=1):
        own = row.inputs.text
        here, there = text.segment_ids == segment, own.segment_ids == 1
        for name in ("input_ids", "continuation_ids"):
            assert (getattr(text, name)[here] == getattr(own, name)[there]).all(), name
        assert (packed.labels[here] == row.labels[there]).all()
        assert (text.positions[:, here] == own.positions[:, there]).all()
    assert packed.inputs.questions.clip.tolist() == [1, 2, 2]
    assert np.bincount(dense.clip).tolist() == [10, 75, 75]
    clock = dense.clock[dense.length > 0]
    gaps = np.diff(clock)
    assert gaps.argmax() == 74 and gaps[74] > EVIDENCE.window_s and (gaps > 0).all()


def test_a_row_has_room_for_no_more(setting, two):
    _, rows = setting
    short = dataclasses.replace(rows, shape=dataclasses.replace(ROW, length=300))
    with pytest.raises(UserError, match="more than the 300 of a row: raise config.row_length"):
        short.map(two)
    few = dataclasses.replace(rows, evidence=dataclasses.replace(SHAPE, frame_pairs=150 - 1))
    with pytest.raises(UserError, match="150 dense frame pairs, more than the 149"):
        few.map(two)
    cost = [rows.cost(clip) for clip in two]
    assert [need.dense_pairs for need in cost] == [75, 75] and cost[1].questions == 2
    assert cost[0].tokens == (rows.map(two[0]).inputs.text.segment_ids > 0).sum()


def test_a_bad_clip_keeps_its_place_and_teaches_nothing(setting, two, tmp_path):
    _, rows = setting
    write_video(two[0].source.scene, tmp_path / "v.mp4")
    one = dataclasses.replace(two[0], source=filmed(tmp_path / "v.mp4"), number=7)
    good = rows.map((one, two[1]))
    (tmp_path / "v.mp4").write_bytes(b"\0" * 999)
    bad = rows.map((one, two[1]))
    shapes = map_arrays(np.shape, bad)
    assert flatten(shapes) == flatten(map_arrays(np.shape, good))
    assert bad.failures.number.tolist() == [7, two[1].number]
    assert "v.mp4" in bytes(bad.failures.error[0]).decode() and not bad.failures.error[1].any()
    assert_equal(bad.inputs.text, good.inputs.text)
    assert (bad.inputs.patches.length == good.inputs.patches.length).all()
    assert (bad.inputs.dense.length == good.inputs.dense.length).all()
    first = bad.inputs.text.segment_ids == 1
    assert (bad.labels[first] == IGNORE).all() and (good.labels[first] != IGNORE).any()
    assert (bad.labels[~first] == good.labels[~first]).all()
    judged = bad.evidence.mentions.judged
    assert not judged[0].any() and judged[1:].any()
    assert not opened(bad).evidence.search.known[0].any() and not bad.inputs.patches.values[:3].any()
    rows.reader.close()


def test_clips_of_one_row_have_dense_frames_of_one_size(setting, two):
    """The places of the cells are the row's, not the clip's; so the plan puts others into another row."""
    _, rows = setting
    rows = dataclasses.replace(rows, shape=dataclasses.replace(ROW, length=2000, frame_pairs=12, patches=32))
    # Large enough that 4 : 3 and 1 : 1 are not rounded to the same.
    large = dataclasses.replace(rows.config, evidence=dataclasses.replace(EVIDENCE, dense_pixels=128 * 128))
    shape = dataclasses.replace(SHAPE, frame_pairs=1700, questions=4, intervals=4, patches=64)
    rows = dataclasses.replace(rows, config=large, evidence=shape)
    wide = next(
        clip
        for clip in map(SyntheticClips("train", 3, questions=1).__getitem__, range(20))
        if clip.source.scene.size[0] != clip.source.scene.size[1]
    )
    clips = [two[0], wide, two[1], wide]
    cost = [rows.cost(clip) for clip in clips]
    assert cost[0].alike == cost[2].alike != cost[1].alike
    assert sorted(first_fit(cost, dataclasses.replace(rows.capacity(), clips=9))) == [[0, 2], [1, 3]]
    with pytest.raises(ValueError, match="dense frames of one size"):
        rows.map((two[0], wide))


# --- the plan ---


need = st.builds(
    RowCost,
    st.integers(1, 60),
    st.integers(1, 9),
    st.integers(1, 2),
    st.integers(0, 30),
    st.sampled_from([(), (2, 2)]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(need, min_size=1, max_size=300))
def test_every_clip_is_in_one_row_that_has_room(cost):
    capacity = RowCapacity(tokens=60, frame_pairs=10, questions=4, dense_pairs=40, clips=3)
    rows = first_fit(cost, capacity)
    assert sorted(n for row in rows for n in row) == list(range(len(cost)))
    for row in rows:
        assert len({cost[n].alike for n in row}) == 1
        assert (np.sum([cost[n].counts() for n in row], axis=0) <= capacity.counts()).all()


def test_padding_by_hand():
    cost, capacity = [RowCost(6, 1), RowCost(5, 2), RowCost(3, 1)], RowCapacity(10, 4, None, None, 9)
    rows = first_fit(cost, capacity)
    assert sorted(rows) == [[0, 2], [1]]
    assert padding(rows, cost, capacity) == pytest.approx({"tokens": 1 - 14 / 20, "frame pairs": 1 - 4 / 8})


def test_an_epoch_is_every_clip_once_and_the_next_one_another_order():
    cost = [RowCost(3 + n % 5, 1) for n in range(40)]
    capacity = RowCapacity(16, 9, None, None, 4)
    options = {"seed": 5, "mixture": {}, "epochs": 2.0}
    rows = plan_rows(cost, ["a"] * 40, capacity, **options)
    taken = [n for row in rows for n in row]
    assert sorted(taken[:40]) == sorted(taken[40:]) == list(range(40)) and taken[:40] != taken[40:]
    assert rows == plan_rows(cost, ["a"] * 40, capacity, **options)
    assert rows != plan_rows(cost, ["a"] * 40, capacity, **(options | {"seed": 6}))
    assert len(plan_rows(cost, ["a"] * 40, capacity, seed=5, mixture={}, least=77)) >= 77


def test_a_mixture_takes_sources_by_their_weights():
    sources = ["plm"] * 10 + ["got10k"] * 90 + ["synthetic-l1"] * 5
    order = clip_order(sources, 400, 0, {"plm": 1.0, "syn*": 2.0, "*": 1.0})
    shares = {name: np.mean([sources[n] == name for n in order]) for name in set(sources)}
    assert shares == pytest.approx({"plm": 0.25, "synthetic-l1": 0.5, "got10k": 0.25}, abs=0.01)
    assert {name: len({n for n in order if sources[n] == name}) for name in set(sources)} == {
        "plm": 10,
        "got10k": 90,
        "synthetic-l1": 5,
    }
    with pytest.raises(UserError, match="says nothing of the source 'got10k'"):
        clip_order(sources, 9, 0, {"plm": 1.0, "syn*": 1.0})
    with pytest.raises(UserError, match=r"mixture\['star'\]"):
        clip_order(sources, 9, 0, {"star": 1.0, "*": 1.0})


# --- the stream ---


NEEDS = [RowCost(3 + n % 4, 1) for n in range(23)]
ROWS = plan_rows(NEEDS, ["a"] * 23, RowCapacity(12, 9, None, None, 3), seed=1, mixture={}, epochs=6.0)


def stream(**options) -> Pipeline:
    rows = PlannedRows(range(23), ROWS)
    options = {"batch_size": 4, "seed": 3, "data_fingerprint": {"data": "abc"}} | options
    return Pipeline(rows, [Named(), Drawn()], **options)


def taken(pipeline, count, position=0):
    """Returns `count` batches, and ends what made them."""
    iterator = pipeline.open(position)
    batches = [map_arrays(np.array, next(iterator)) for _ in range(count)]
    if hasattr(iterator, "close"):
        iterator.close()
    return batches


def same(one, other):
    for a, b in zip(one, other, strict=True):
        assert_equal(a, b)


@pytest.fixture(scope="module")
def nine():
    return taken(stream(), 9)


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_any_number_of_workers_continues_anywhere(nine, workers):
    numbers = np.concatenate([batch.failures.number for batch in nine])
    assert [[n for n in row if n >= 0] for row in numbers.tolist()] == ROWS[:36]
    assert any(batch.failures.error.any() for batch in nine)
    k = random.Random(workers).randint(1, 6)
    same(taken(stream(num_workers=workers), 3, position=4 * k), nine[k : k + 3])


def test_two_hosts_share_the_rows_of_a_batch(nine):
    halves = [taken(stream(process_index=host, process_count=2), 5, position=8) for host in (0, 1)]
    for batch, *parts in zip(nine[2:7], *halves, strict=True):
        both = map_arrays(lambda a, *some: np.stack(some, axis=1).reshape(a.shape), batch, *parts)
        assert_equal(both, batch)


def test_another_batch_size_continues_at_the_same_row(nine):
    (batch,) = taken(stream(batch_size=6), 1, position=8)
    expected = np.concatenate([nine[2].failures.number, nine[3].failures.number[:2]])
    np.testing.assert_array_equal(batch.failures.number, expected)


@pytest.mark.parametrize("workers", [0, 1])
def test_files_among_them_a_torn_one(setting, tmp_path, workers):
    """Real rows: the same with a worker process, and a file that breaks after it was indexed."""
    _, rows = setting
    clips = film(tmp_path, 3)
    (tmp_path / "1.mp4").write_bytes((tmp_path / "1.mp4").read_bytes()[:300])
    cost = [rows.cost(clip) for clip in clips.clips]
    planned = plan_rows(cost, ["a"] * 3, rows.capacity(), seed=0, mixture={}, epochs=1.0)
    assert len(planned) == 2
    pipeline = Pipeline(PlannedRows(clips.clips, planned), [rows], 1, 0, num_workers=workers)
    batches = taken(pipeline, 2)
    assert [[n for n in b.failures.number[0].tolist() if n >= 0] for b in batches] == planned
    failed = [
        int(b.failures.number[0, at]) for b in batches for at in np.flatnonzero(b.failures.error[0, :, 0])
    ]
    assert failed == [1]


# --- training ---


def config(**fields) -> ConfigDict:
    return ConfigDict(
        {"max_steps": 8, "log_every": 1, "save_every": 3, "stop_at_step": 0, "max_failed_share": 1.0} | fields
    )


def trained(folder, c, pipeline, seen):
    """Runs a step that only writes down which clips it was given."""

    def step(state, batch):
        seen.append(batch.labels[0, 0])
        return dataclasses.replace(state, step=state.step + 1), {"loss": jnp.float32(0)}

    state = TrainState(jnp.zeros((), jnp.int32), {"w": jnp.zeros(2)}, {})
    return train(
        state,
        step,
        Feed(pipeline, name_of=lambda n: f"clip-{n}"),
        Workdir(folder, c),
        RunLength.of(c, c.max_steps),
    )


def test_failures_are_listed_and_resuming_goes_on(tmp_path, nine, capsys):
    seen = []
    for stop in (2, 5):
        trained(tmp_path, config(stop_at_step=stop), stream(), seen)
    trained(tmp_path, config(), stream(num_workers=0, batch_size=4), seen)
    np.testing.assert_array_equal(seen, [batch.labels[0, 0] for batch in nine[:8]])
    lines = [json.loads(line) for line in (tmp_path / "failed.jsonl").read_text().splitlines()]
    rows = [n for row in ROWS[:32] for n in row]
    assert len(lines) == rows.count(5) > 1
    assert {(line["id"], line["error"]) for line in lines} == {("clip-5", "torn")}
    assert [line["step"] for line in lines] == sorted(
        1 + at // 4 for at, row in enumerate(ROWS[:32]) if 5 in row
    )
    assert f"failed {len(lines)}" in capsys.readouterr().out


def test_other_data_are_refused(tmp_path):
    trained(tmp_path, config(stop_at_step=3), stream(), [])
    with pytest.raises(UserError, match="was trained with data abc, which now is xyz.*--workdir"):
        trained(tmp_path, config(), stream(data_fingerprint={"data": "xyz"}), [])


def test_too_many_failures_stop_the_run_saved(tmp_path, monkeypatch):
    monkeypatch.setattr("experiments.training.failed_samples.FailedSamples.LEAST", 1)
    workdir, seen = tmp_path / "run", []
    with pytest.raises(UserError, match=r"1 of \d+ clips could not be read.*max_failed_share=0.01; step \d"):
        trained(workdir, config(max_failed_share=0.01), stream(), seen)
    assert Workdir(workdir, config()).manager.latest_step() == len(seen) < 8
    trained(workdir, config(max_failed_share=0.5), stream(), seen)
    assert len(seen) == 8
