"""The losses of the evidence modules, against float64 and by hand, and finite at every edge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3jax.models.evidence import (
    NEVER,
    Estimate,
)
from o3jax.sft.evidence import (
    EvidenceTargets,
    EvidenceWeights,
    box_overlaps,
    match_proposals,
    mention_counts,
    mention_loss,
    open_candidates,
    relevance_loss,
)

WEIGHTS = EvidenceWeights()


def assert_same(a, b, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def make_estimate(rng, rows, mentions, groups):
    boxes = np.sort(rng.uniform(0, 1, (rows, mentions, 2, 2)), axis=2)
    times = rng.uniform(0, groups, (rows, mentions))
    estimate = Estimate(
        time_logits=rng.standard_normal((rows, mentions, groups)),
        interval_logits=rng.standard_normal((rows, mentions, 2, groups)),
        time_s=times,
        spread_s=rng.uniform(0.01, 1, (rows, mentions)),
        interval=np.stack([times - 0.5, times + 1], -1),
        box=boxes.reshape(rows, mentions, 4),
        confidence=rng.standard_normal((rows, mentions)),
    )
    return jax.tree.map(lambda x: x.astype(np.float32), estimate)


def make_targets(rng, rows, mentions, boxes=2, share=0.7):
    def some(*shape):
        return rng.uniform(size=shape) < share

    corners = np.sort(rng.uniform(0, 1, (rows, mentions, boxes, 2, 2)), axis=3)
    return EvidenceTargets(
        time=rng.uniform(0, 6, (rows, mentions)).astype(np.float32),
        has_time=some(rows, mentions),
        interval=np.sort(rng.uniform(0, 6, (rows, mentions, 2))).astype(np.float32),
        has_interval=some(rows, mentions),
        boxes=corners.reshape(rows, mentions, boxes, 4).astype(np.float32),
        has_box=some(rows, mentions, boxes),
        judged=some(rows, mentions),
    )


def overlaps(a, b):
    """IoU and GIoU of two boxes in float64, from the four areas."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    iou = width * height / union
    return iou, iou - (hull - union) / hull


def softmax(x):
    x = np.exp(x - x.max())
    return x / x.sum()


def test_the_loss_as_written_out_in_float64():
    rng = np.random.default_rng(3)
    rows, mentions, groups = 3, 4, 7
    estimate, targets = make_estimate(rng, rows, mentions, groups), make_targets(rng, rows, mentions)
    estimate.time_logits[:, :, 2] = NEVER
    # One mention that is right, among all those that are not.
    estimate.time_s[0, 0] = targets.time[0, 0] + 0.4
    estimate.box[0, 0] = targets.boxes[0, 0, 1]
    times = np.tile(np.arange(groups, dtype=np.float32), (rows, 1))
    weights = EvidenceWeights(bell_s=0.7, huber_s=0.8)
    e, t = (jax.tree.map(lambda x: np.asarray(x, np.float64), x) for x in (estimate, targets))

    def bell(true, allowed):
        return softmax(np.where(allowed, -0.5 * ((np.arange(groups) - true) / 0.7) ** 2, -1e30))

    def ce(true, logits):
        p = softmax(logits)
        return sum(-q * np.log(p[i]) for i, q in enumerate(bell(true, logits > -1e8)) if logits[i] > -1e8)

    def huber(x):
        return 0.5 * x * x if abs(x) <= 0.8 else 0.8 * (abs(x) - 0.4)

    expected = dict.fromkeys(mention_counts(targets), 0.0)
    counts = dict.fromkeys(expected, 0)

    def add(values):
        for name, value in values.items():
            expected[name] += value
            counts[name] += 1

    for i in np.ndindex(rows, mentions):
        error = abs(e.time_s[i] - t.time[i])
        right = True
        if t.has_time[i]:
            add({"time": huber(error), "time_error": error, "time_ce": ce(t.time[i], e.time_logits[i])})
            right &= error <= 0.5
        if t.has_interval[i]:
            sides = range(2)
            add({"interval": np.mean([huber(e.interval[i][s] - t.interval[i][s]) for s in sides])})
            add({"interval_ce": np.mean([ce(t.interval[i][s], e.interval_logits[i][s]) for s in sides])})
        found = []
        for k in np.flatnonzero(t.has_box[i]):
            l1 = np.abs(e.box[i] - t.boxes[i][k]).mean()
            iou, giou = overlaps(e.box[i], t.boxes[i][k])
            found.append((5 * l1 + 2 * (1 - giou), l1, giou, iou))
        if found:
            _, l1, giou, iou = min(found)
            add({"box_l1": l1, "box_giou": 1 - giou, "box_iou": iou})
            right &= iou >= 0.5
        if t.judged[i]:
            right &= bool(t.has_time[i] or found)
            p = 1 / (1 + np.exp(-e.confidence[i]))
            add({"confidence": -np.log(p if right else 1 - p), "right": right})
    got = mention_counts(targets)
    assert {name: float(value) for name, value in got.items()} == counts
    assert min(counts.values()) > 2 and expected["right"] >= 1
    loss, sums = jax.jit(lambda e, t: mention_loss(e, t, times, weights, got))(estimate, targets)
    for name, value in expected.items():
        assert float(sums[name]) == pytest.approx(value, rel=1e-4, abs=1e-5), name
    factors = {
        "time": 1,
        "time_ce": 1,
        "interval": 1,
        "interval_ce": 1,
        "box_l1": 5,
        "box_giou": 2,
        "confidence": 0.1,
    }
    total = sum(factor * expected[name] / counts[name] for name, factor in factors.items())
    assert float(loss) == pytest.approx(total, rel=1e-4)


def test_micro_batches_add_up():
    rng = np.random.default_rng(5)
    estimate, targets = make_estimate(rng, 4, 3, 6), make_targets(rng, 4, 3)
    times = np.tile(np.arange(6, dtype=np.float32), (4, 1))
    counts = mention_counts(targets)

    @jax.jit
    def gradient(estimate, targets, times):
        return jax.grad(lambda e: mention_loss(e, targets, times, WEIGHTS, counts)[0])(estimate)

    everything = (estimate, targets, times)
    parts = [gradient(*jax.tree.map(lambda x, i=i: x[i : i + 2], everything)) for i in (0, 2)]
    assert_same(jax.tree.map(lambda *x: np.concatenate(x), *parts), gradient(*everything), atol=1e-6)


def test_overlaps_of_boxes_by_hand():
    a = jnp.array([[0, 0, 2, 2], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0], [0.5, 0.5, 0.5, 0.5]], jnp.float32)
    b = jnp.array([[1, 1, 3, 3], [0, 0, 1, 1], [2, 0, 3, 1], [0, 0, 0, 0], [0, 0, 1, 1]], jnp.float32)
    iou, giou = box_overlaps(a, b)
    np.testing.assert_allclose(iou, [1 / 7, 1, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(giou, [1 / 7 - 2 / 9, 1, -1 / 3, 0, 0], atol=1e-6)


def test_relevance_is_balanced():
    logits = jnp.array([[0.0, 2.0, -1.0, -3.0], [1.0, 1.0, 1.0, NEVER], [0.5, 0.5, 0.5, 0.5]])
    inside = jnp.array([[True, False, False, False], [True, True, True, False], [True, False, True, False]])
    known = jnp.array([[True] * 4, [True, True, True, False], [False] * 4])
    total, count = relevance_loss(logits, inside, known)
    softplus = lambda x: np.log1p(np.exp(x))  # noqa: E731
    first = (softplus(0) + np.mean([softplus(2), softplus(-1), softplus(-3)])) / 2
    assert float(total) == pytest.approx(first + softplus(-1), rel=1e-5)
    assert float(count) == 2


def test_training_candidates():
    relevance = jnp.array([[3.0, -3.0, -3.0, 3.0]])
    true = jnp.array([[False, True, False, False]])
    valid = jnp.array([[True, True, True, False]])
    assert open_candidates(relevance, true, valid, low=0.5).tolist() == [[True, True, False, False]]


def test_proposals_are_matched_one_to_one():
    rng = np.random.default_rng(0)
    estimate, targets = make_estimate(rng, 3, 3, 6), make_targets(rng, 3, 2, share=1.1)
    targets.time[:] = [[5.0, 1.0], [2.0, 0.0], [0.0, 0.0]]
    targets.has_time[:] = [[True, True], [True, False], [False, False]]
    targets.has_box[:] = False
    estimate.time_s[:] = [[1.1, 3.0, 1.2], [9.0, 2.1, 0.0], [0.0, 0.0, 0.0]]
    match = jax.jit(lambda e, t: match_proposals(e, t, WEIGHTS))
    matched = jax.tree.map(np.asarray, match(estimate, targets))
    assert matched.has_time.tolist() == [[True, True, False], [False, True, False], [False] * 3]
    assert matched.time[matched.has_time].tolist() == [1.0, 5.0, 2.0]
    assert matched.judged.tolist() == [[True] * 3, [True] * 3, [False] * 3]
    # Among 40, most of them padding in the first row; in the others each slot gets one of its own.
    many = make_targets(rng, 3, 40, share=1.1)
    many.has_time[0], many.has_box[0] = False, False
    many.has_time[0, [7, 30]], many.time[0, [7, 30]] = True, [5.0, 1.0]
    matched = jax.tree.map(np.asarray, match(estimate, many))
    assert matched.has_time[0].tolist() == [True, True, False]
    assert matched.time[0, :2].tolist() == [1.0, 5.0]
    assert all(len(set(row)) == 3 for row in matched.time[1:].tolist())


def loss_and_gradient(estimate, targets, times):
    def total(estimate):
        counts = mention_counts(targets)
        loss, sums = mention_loss(estimate, targets, times, WEIGHTS, counts)
        slots = mention_loss(estimate, match_proposals(estimate, targets, WEIGHTS), times, WEIGHTS, counts)
        relevance, _ = relevance_loss(estimate.time_logits[:, 0], times < targets.time[:, :1], times >= 0)
        return loss + slots[0] + relevance, sums

    return jax.value_and_grad(total, has_aux=True)(estimate)


EDGES = st.sampled_from([0.0, 0.5, 1.0, 1e-7, 0.3])
SECONDS = st.sampled_from([0.0, 2.0, -50.0, 1e6, 1e30, 3.3])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_losses_are_finite(data):
    """Boxes without area, times outside, no mention, 40 mentions, nothing searched."""
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    mentions, groups = 40, 5
    estimate = make_estimate(rng, 2, mentions, groups)
    targets = make_targets(rng, 2, mentions, share=data.draw(st.sampled_from([0.0, 0.5, 1.1])))
    corner, size = data.draw(EDGES), data.draw(EDGES)
    flat = [corner, corner, min(corner + size, 1.0), corner]
    targets.time[:, 0] = data.draw(SECONDS)
    targets.interval[:, 0] = sorted([data.draw(SECONDS), data.draw(SECONDS)])
    targets.boxes[:, 0] = flat
    estimate.box[:, 0] = data.draw(st.sampled_from([flat, [corner] * 4, [0.0, 0.0, 1.0, 1.0]]))
    estimate.time_logits[:, :, : data.draw(st.sampled_from([0, groups - 1, groups]))] = NEVER
    estimate.confidence[:, 0] = data.draw(st.sampled_from([0.0, 1e4, -1e4]))
    times = np.tile(0.08 * np.arange(groups, dtype=np.float32), (2, 1))
    (loss, sums), gradient = FINITE(estimate, targets, times)
    assert np.isfinite(loss) and all(np.isfinite(x).all() for x in jax.tree.leaves((sums, gradient)))


FINITE = jax.jit(loss_and_gradient)
