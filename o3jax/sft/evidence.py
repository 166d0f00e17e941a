"""The supervised loss of the evidence modules: when, how long, where, how relevant, how sure."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float
from optax.assignment import hungarian_algorithm

from o3jax.models.batch import EvidenceTargets
from o3jax.models.evidence import NEVER, Estimate
from o3jax.train.state import Metrics

_TINY = 1e-8  # an area below any that a pixel has
_FAR_S = 100.0  # seconds; among proposals, errors beyond it are alike


@dataclasses.dataclass(frozen=True)
class EvidenceWeights:
    """The terms' weights in the loss, and the scales that they are measured on."""

    time: float = 1.0  # Huber of the expected time, per second
    time_ce: float = 1.0
    interval: float = 1.0  # Huber of start and end, per second, the mean of the two
    interval_ce: float = 1.0
    box_l1: float = 5.0  # mean over the four sides; this and the next as in DETR, whose L1 is a sum
    box_giou: float = 2.0
    confidence: float = 0.1
    relevance: float = 1.0
    proposals: float = 0.5  # of all terms above, of the proposals
    huber_s: float = 1.0  # an error above this many seconds counts linearly
    bell_s: float = 0.1  # standard deviation of the softened target over pairs


# A mention is right when it is this close in time and overlaps a true box this much.
RIGHT_S = 0.5
RIGHT_IOU = 0.5


def mention_counts(targets: EvidenceTargets) -> Metrics:
    """Returns how many mentions each entry of `mention_loss`'s sums counts.

    They depend on data alone, so the counts of a large batch are known before its first micro-batch
    is run: see `mention_loss`.
    """
    time, interval = targets.has_time.sum(), targets.has_interval.sum()
    box, judged = targets.has_box.any(-1).sum(), targets.judged.sum()
    counts = {
        "time": time,
        "time_ce": time,
        "time_error": time,
        "interval": interval,
        "interval_ce": interval,
        "box_l1": box,
        "box_giou": box,
        "box_iou": box,
        "confidence": judged,
        "right": judged,
    }
    return {name: count.astype(jnp.float32) for name, count in counts.items()}


def mention_loss(
    estimate: Estimate,
    targets: EvidenceTargets,
    times: Float[Array, "B T"],
    weights: EvidenceWeights,
    counts: Metrics,
) -> tuple[Float[Array, ""], Metrics]:
    """Returns the weighted sum of the terms' means, and each term's unweighted sum; float32.

    Each term is divided by its own count. With the counts of the whole batch (`mention_counts` of
    all its micro-batches, added) the losses and gradients of the micro-batches add up to those of
    the whole batch, and so do the sums; `sums[name] / counts[name]` is what to log. A training loss
    of 60 % text is 0.6 * text_sum / all_tokens + 0.4 * (mention_loss + relevance_loss), with
    all_tokens counted in the same way, and gradients then are only added.

    Beside the terms there are `time_error` (seconds), `box_iou` (of the best-fitting true box) and
    `right` (see RIGHT_S and RIGHT_IOU; what the confidence learns).

    Args:
        estimate: of the decoder; time in it is over the pairs at `times`.
        targets: what is true; times outside the video are approached as far as it goes.
        times: seconds of the dense frame pairs.
        weights: of the terms.
        counts: denominators, by term.
    """
    log_time = jax.nn.log_softmax(estimate.time_logits)
    soft = _bell(targets.time, estimate.time_logits, times, weights.bell_s)
    time_error = jnp.abs(estimate.time_s - targets.time)
    log_interval = jax.nn.log_softmax(estimate.interval_logits)
    soft_interval = _bell(targets.interval, estimate.interval_logits, times[:, None], weights.bell_s)

    iou, giou = box_overlaps(estimate.box[:, :, None], targets.boxes)
    l1 = jnp.abs(estimate.box[:, :, None] - targets.boxes).mean(-1)
    cost = weights.box_l1 * l1 + weights.box_giou * (1 - giou)
    best = jnp.where(targets.has_box, cost, jnp.inf).argmin(-1, keepdims=True)
    l1, giou, iou = (jnp.take_along_axis(x, best, axis=-1)[..., 0] for x in (l1, giou, iou))

    has_box = targets.has_box.any(-1)
    in_time = jnp.where(targets.has_time, time_error <= RIGHT_S, True)
    in_place = jnp.where(has_box, iou >= RIGHT_IOU, True)
    right = jax.lax.stop_gradient(in_time & in_place & (targets.has_time | has_box))

    def huber(estimated: Array, true: Array) -> Array:
        return optax.huber_loss(estimated, true, delta=weights.huber_s)

    terms = {
        "time": (huber(estimate.time_s, targets.time), targets.has_time),
        "time_ce": (-(soft * log_time).sum(-1), targets.has_time),
        "time_error": (time_error, targets.has_time),
        "interval": (huber(estimate.interval, targets.interval).mean(-1), targets.has_interval),
        "interval_ce": (-(soft_interval * log_interval).sum(-1).mean(-1), targets.has_interval),
        "box_l1": (l1, has_box),
        "box_giou": (1 - giou, has_box),
        "box_iou": (iou, has_box),
        "confidence": (
            optax.sigmoid_binary_cross_entropy(estimate.confidence, right.astype(jnp.float32)),
            targets.judged,
        ),
        "right": (right.astype(jnp.float32), targets.judged),
    }
    sums = {name: jnp.where(mask, term, 0.0).sum() for name, (term, mask) in terms.items()}
    learned = ("time", "time_ce", "interval", "interval_ce", "box_l1", "box_giou", "confidence")
    loss = sum(getattr(weights, name) * sums[name] / jnp.maximum(counts[name], 1.0) for name in learned)
    return loss, jax.tree.map(jax.lax.stop_gradient, sums)


def _bell(
    true: Float[Array, "*dims"], logits: Float[Array, "*dims T"], times: Array, deviation: float
) -> Float[Array, "*dims T"]:
    """Returns a bell around each true time over the pairs that the logits allow; sums to one.

    A softmax, so that a time far from every searched pair still weighs the nearest ones.
    """
    true = jnp.clip(true, times.min(), times.max())
    bell = -0.5 * jnp.square((times[:, None] - true[..., None]) / deviation)
    return jax.nn.softmax(jnp.where(logits > NEVER / 2, bell, jnp.finfo(jnp.float32).min))


def box_overlaps(
    a: Float[Array, "*#dims 4"], b: Float[Array, "*#dims 4"]
) -> tuple[Float[Array, "*dims"], Float[Array, "*dims"]]:
    """Returns intersection over union and its generalisation (GIoU, Rezatofighi et al. 2019) of boxes.

    Boxes are ordered xyxy. Finite, with finite gradients, for boxes without area too: these overlap
    nothing, and two equal ones have a GIoU of 0.
    """
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)

    def area(low: Array, high: Array) -> Array:
        return jnp.prod(jnp.maximum(high - low, 0.0), axis=-1)

    inner = area(jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:]))
    hull = area(jnp.minimum(a[..., :2], b[..., :2]), jnp.maximum(a[..., 2:], b[..., 2:]))
    union = area(a[..., :2], a[..., 2:]) + area(b[..., :2], b[..., 2:]) - inner
    iou = inner / jnp.maximum(union, _TINY)
    return iou, iou - (hull - union) / jnp.maximum(hull, _TINY)


def relevance_loss(
    relevance: Float[Array, "B T"], inside: Bool[Array, "B T"], known: Bool[Array, "B T"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the summed loss of the rows with a known pair, and how many rows these are.

    A row's loss is the binary cross-entropy, averaged over the pairs inside the true intervals and
    over those outside, and over these two (or the one that there is): short evidence in a long video
    weighs as much as the rest. The caller divides the sum by the count over all micro-batches.

    Args:
        relevance: logits.
        inside: which pairs lie in a true interval.
        known: which pairs count: the valid ones of rows whose intervals are known.
    """
    losses = optax.sigmoid_binary_cross_entropy(relevance, inside.astype(jnp.float32))
    total, sides = jnp.zeros(len(relevance)), jnp.zeros(len(relevance))
    for mask in (known & inside, known & ~inside):
        count = mask.sum(-1)
        total += jnp.where(mask, losses, 0.0).sum(-1) / jnp.maximum(count, 1)
        sides += count > 0
    return (total / jnp.maximum(sides, 1)).sum(), (sides > 0).sum().astype(jnp.float32)


def open_candidates(
    relevance: Float[Array, "B T"], true: Bool[Array, "B T"], valid: Bool[Array, "B T"], *, low: float
) -> Bool[Array, "B T"]:
    """Returns the pairs that the decoder searches in a training step, where relevance is in the making.

    Those whose probability reaches `low`, and those of `true`: the true intervals and times, jittered
    on the host (`data_pipelines.rows.evidence.OpenCandidates`), so that the truth is always inside.
    """
    return valid & (true | (jax.nn.sigmoid(relevance) >= low))


def match_proposals(
    estimate: Estimate, targets: EvidenceTargets, weights: EvidenceWeights
) -> EvidenceTargets:
    """Returns the targets of a question's proposals, [B, slots]: each truth goes to at most one slot.

    The pairing with the least time error and box misfit in all (Hungarian method). In rows with any
    truth, a slot that was left over learns only that it is not right. `mention_loss` of proposals
    takes the counts of the mentions' own targets, which are data.
    """
    stopped = jax.lax.stop_gradient(estimate)
    slots = stopped.time_s.shape[1]
    error = jnp.abs(stopped.time_s[:, :, None] - targets.time[:, None])
    _, giou = box_overlaps(stopped.box[:, :, None, None], targets.boxes[:, None])
    misfit = jnp.where(targets.has_box[:, None], 1 - giou, 2.0).min(-1)
    has_box = targets.has_box.any(-1)
    known = targets.has_time | has_box
    cost = weights.time * jnp.where(targets.has_time[:, None], jnp.minimum(error, _FAR_S), 0.0)
    cost += weights.box_giou * jnp.where(has_box[:, None], misfit, 0.0)
    # Dearer than any truth, but not by much: the method adds and subtracts these in float32.
    cost = jnp.where(known[:, None], cost, 2 * (weights.time * _FAR_S + 2 * weights.box_giou))

    def one(cost: Array, known: Array) -> tuple[Array, Array]:
        rows, columns = hungarian_algorithm(cost)
        chosen = jnp.zeros(slots, jnp.int32).at[rows].set(columns.astype(jnp.int32))
        taken = jnp.zeros(slots, bool).at[rows].set(known[columns])
        return chosen, taken

    chosen, taken = jax.vmap(one)(cost, known)

    def pick(x: Array) -> Array:
        return jax.vmap(lambda row, index: row[index])(x, chosen)

    return EvidenceTargets(
        time=pick(targets.time),
        has_time=pick(targets.has_time) & taken,
        interval=pick(targets.interval),
        has_interval=pick(targets.has_interval) & taken,
        boxes=pick(targets.boxes),
        has_box=pick(targets.has_box) & taken[..., None],
        judged=jnp.broadcast_to(known.any(-1, keepdims=True), taken.shape),
    )
