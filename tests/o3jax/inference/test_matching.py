"""Candidate intervals against a step-by-step second implementation, and what training joins to them."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data_pipelines.rows.evidence import OpenCandidates
from o3jax.errors import UserError
from o3jax.inference.matching import candidate_intervals
from o3jax.inputs.dense import interval_mask
from o3jax.models.batch import (
    Batch,
    DenseStream,
    EvidenceTargets,
    EvidenceTruth,
    Features,
    Questions,
    SupervisedBatch,
)

QUARTERS = st.integers(0, 40).map(lambda i: i / 4)
SIGNALS = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 8)), min_size=1, max_size=20).map(
    lambda steps: (np.cumsum([gap / 4 for gap, _ in steps]), np.array([r / 8 for _, r in steps]))
)
INTERVALS = st.lists(st.tuples(QUARTERS, QUARTERS).map(lambda pair: tuple(sorted(pair))), max_size=5)


def brute_force(relevance, times, high, low, smooth_s, min_s):
    """A walk over the times with a state; then overlaps are joined pair by pair until none is left."""
    size = len(times)
    smooth = []
    for t in times:
        near = [r for r, u in zip(relevance, times, strict=True) if abs(t - u) <= smooth_s / 2]
        smooth.append(sum(near) / len(near))
    halves = [(b - a) / 2 for a, b in zip(times, times[1:], strict=False)] or [0.0]
    first, last = max(times[0] - halves[0], 0), times[-1] + halves[-1]
    left = [first, *(t - h for t, h in zip(times[1:], halves, strict=False))]
    right = [*(t + h for t, h in zip(times[:-1], halves, strict=False)), last]

    kept = [False] * size
    for order in (range(size), range(size - 1, -1, -1)):  # on from the start, and back from it
        on = False
        for i in order:
            on = smooth[i] >= low and (on or smooth[i] >= high)
            kept[i] = kept[i] or on
    found = []
    for i in range(size):
        if kept[i] and i and kept[i - 1]:
            found[-1][1] = right[i]
        elif kept[i]:
            found.append([left[i], right[i]])
    for interval in found:
        missing = min(min_s, last - first) - (interval[1] - interval[0])
        if missing > 0:
            interval[0] -= missing / 2
            interval[1] += missing / 2
            shift = max(first - interval[0], 0) + min(last - interval[1], 0)
            interval[0] += shift
            interval[1] += shift
    changed = True
    while changed:
        changed = False
        for a in found:
            for b in found:
                if a is not b and a[0] <= b[0] <= a[1]:
                    a[1] = max(a[1], b[1])
                    found.remove(b)
                    changed = True
                    break
            if changed:
                break
    return sorted(map(tuple, found))


@settings(max_examples=150, deadline=None)
@given(
    SIGNALS,
    st.tuples(st.integers(0, 8), st.integers(0, 8)),
    st.integers(0, 12).map(lambda i: i / 4),
    st.integers(0, 16).map(lambda i: i / 4),
)
def test_as_step_by_step(signal, thresholds, smooth_s, min_s):
    times, relevance = signal
    low, high = (t / 8 - 1e-3 for t in sorted(thresholds))  # means of eighths are never this near
    options = {"high": high, "low": low, "smooth_s": smooth_s, "min_s": min_s}
    found = candidate_intervals(relevance, times, **options)
    np.testing.assert_allclose(found, brute_force(relevance, times, **options), atol=1e-9)


def test_hysteresis_by_hand():
    times = np.arange(10.0)
    relevance = np.array([0.0, 0.5, 0.9, 0.5, 0.1, 0.5, 0.5, 0.0, 0.0, 0.9])
    options = {"high": 0.8, "low": 0.4, "smooth_s": 0.0}
    assert candidate_intervals(relevance, times, **options, min_s=0.0) == [(0.5, 3.5), (8.5, 9.5)]
    assert candidate_intervals(relevance, times, **options, min_s=4.0) == [(0.0, 4.0), (5.5, 9.5)]
    assert candidate_intervals(relevance, times, **options, min_s=7.0) == [(0.0, 9.5)]
    assert candidate_intervals(0 * relevance, times, **options, min_s=4.0) == []
    # The first time would stand for what is before it too; the video starts at 0.
    assert candidate_intervals(relevance[2:], times[:8], **options, min_s=0.0)[0] == (0.0, 1.5)
    # One outlier among five is smoothed away; a single time of a coarse pass is an interval.
    assert candidate_intervals(relevance, times, high=0.8, low=0.4, smooth_s=4.0, min_s=0.0) == []
    coarse = candidate_intervals(np.array([0, 1, 0]), np.array([0.0, 5.0, 10.0]), **options, min_s=0.0)
    assert coarse == [(2.5, 7.5)]
    assert candidate_intervals(np.array([]), np.array([]), **options, min_s=1.0) == []


def test_mistakes_are_named():
    options = {"smooth_s": 0.0, "min_s": 0.0}
    with pytest.raises(UserError, match="candidates.low"):
        candidate_intervals(np.ones(2), np.arange(2), high=0.2, low=0.5, **options)
    for times in (np.array([1.0, 1.0]), np.arange(3)):
        with pytest.raises(UserError, match="times that increase"):
            candidate_intervals(np.ones(2), times, high=0.5, low=0.2, **options)


LENGTH, TIMES = np.array([4] * 50 + [0] * 3), np.append(np.arange(50) / 5, [0, 0, 0])


def opened_row(intervals, clips, jitter_s, seed, *, dense_clip=None, times=TIMES, moments=()):
    """Returns what may be searched in a row of 50 frame pairs, 3 more are padding."""
    questions = len(intervals)
    has_time = np.tile([*[True] * len(moments), False], (questions, 1))  # the last one is padding
    nothing = [None] * 5
    mentions = EvidenceTargets(np.tile(np.float32([*moments, 0.0]), (questions, 1)), has_time, *nothing)
    dense_clip = np.minimum(LENGTH, 1) if dense_clip is None else dense_clip
    stream = DenseStream(times, None, features=Features(None, LENGTH), clip=dense_clip)
    inputs = Batch(None, dense=stream, questions=Questions(None, clip=np.array(clips)))
    row = SupervisedBatch(inputs, None, EvidenceTruth(mentions, np.float32(intervals)))
    out = OpenCandidates(jitter_s).random_map(row, np.random.default_rng(seed)).evidence
    assert out.intervals is None
    return out.search


@settings(max_examples=100, deadline=None)
@given(INTERVALS, st.lists(QUARTERS, max_size=3), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 0.5, 3.0]))
@example([(0.5, 0.5)], [], 150413382, 0.5)  # between two times; moved, it was nearer to the other
@example([], [0.5], 150413382, 0.5)
def test_what_training_may_search_holds_the_truth(truth, moments, seed, jitter_s):
    given_intervals = np.full((2, 5, 2), np.nan, np.float32)
    for i, interval in enumerate(truth):
        given_intervals[0, i] = interval
    out = opened_row(given_intervals, [1, 1], jitter_s, seed, moments=moments)
    assert not any(mask[:, 50:].any() for mask in (out.inside, out.known, out.candidates))
    times = TIMES[:50]
    inside, opened = out.inside[0, :50], out.candidates[0, :50]
    assert (inside == interval_mask(truth, times)).all()
    if not truth:
        assert opened.all() and not out.known.any()
        return
    assert out.known[0, :50].all() and (inside <= opened).all()
    # Also the mentions' times, which no interval need hold; times here are 0.2 s apart.
    assert all(abs(times[opened] - moment).min() < 0.2 + 1e-6 for moment in moments)
    spans = truth + [(moment, moment) for moment in moments]
    near = interval_mask([(a - jitter_s, b + jitter_s) for a, b in spans], times)
    assert (opened <= near).all()
    # The second question has no intervals: everything is searched, and nothing is known of it.
    assert out.candidates[1, :50].all() and not out.known[1].any()


def test_borders_move_and_the_same_seed_moves_them_alike():
    def searched(seed):
        return opened_row([[[4.0, 5.0]]], [1], 3.0, seed).candidates.tolist()

    assert searched(1) == searched(1) and len({str(searched(seed)) for seed in range(5)}) == 5


@settings(max_examples=60, deadline=None)
@given(SIGNALS, INTERVALS)
def test_a_mask_holds_the_times_inside_and_loses_no_interval(signal, intervals):
    times = signal[0]
    mask = interval_mask(intervals, times)
    for time, inside in zip(times, mask, strict=True):
        nearest = any(abs(time - (a + b) / 2) == min(abs(times - (a + b) / 2)) for a, b in intervals)
        within = any(a <= time <= b for a, b in intervals)
        assert within <= inside <= (within or nearest)
    assert all(mask[(times >= a) & (times <= b)].all() for a, b in intervals)
    assert mask.any() == bool(intervals)
    assert interval_mask([(0.0, 1.0)], np.array([])).shape == (0,)


def test_a_question_searches_its_own_clip_alone():
    dense_clip = np.array([1] * 20 + [2] * 30 + [0] * 3)
    times = np.concatenate([np.arange(20) / 5, np.arange(30) / 5, np.zeros(3)])
    intervals = [[[1.0, 2.0]], [[np.nan, np.nan]]]
    out = opened_row(intervals, [2, 1], 0.0, 0, dense_clip=dense_clip, times=times)
    # 1.0 to 2.0 s of the second clip are its pairs 5 to 10.
    assert np.flatnonzero(out.candidates[0]).tolist() == list(range(25, 31))
    assert np.flatnonzero(out.known[0]).tolist() == list(range(20, 50))
    assert np.flatnonzero(out.candidates[1]).tolist() == list(range(20))
