"""The GSPO loss against a worked example in float64, and against what must not change it."""

from __future__ import annotations

import contextlib
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from o3jax.choices import RATIOS
from o3jax.gspo import group_advantages, gspo_loss
from o3jax.gspo.loss import k3

# One prompt with four responses of 3, 2, 4 and 3 tokens. The numbers that follow from them were worked out
# apart from this code.
OLD = [[-1.20, -0.50, -2.00], [-0.30, -1.00], [-0.70, -0.10, -1.50, -0.90], [-2.20, -0.40, -0.60]]
CHANGE = [
    [0.0030, -0.0012, 0.0012],
    [-0.0006, 0.0002],
    [-0.0020, 0.0004, -0.0008, -0.0016],
    [0.0009, -0.0003, 0.0003],
]
REWARDS = [1, 0.5, 0, 0.75]
ADVANTAGES = [1.0246926766, -0.1463846681, -1.3174620128, 0.4391540043]
S = [1.0010005002, 0.9998000200, 0.9990004998, 1.0003000450]
LOSSES = [-1.0251025537, 0.1463553941, 1.3170667742, -0.4392857702]
LENGTHS = np.array([3, 2, 4, 3])
MASK = np.arange(4) < LENGTHS[:, None]

PRECISIONS = {"float64": 1e-10, "float32": 1e-6}


def padded(rows, dtype=np.float64):
    return np.array([row + [0.0] * (4 - len(row)) for row in rows], dtype)


@contextlib.contextmanager
def precision(dtype):
    with jax.enable_x64(dtype == "float64"):
        yield PRECISIONS[dtype]


def example(dtype="float64"):
    """Returns new and old log-probabilities and the advantages."""
    old, change = padded(OLD), padded(CHANGE)
    return (old + change).astype(dtype), old.astype(dtype), group_advantages(np.array(REWARDS, dtype))


def loss_and_gradient(new, old, mask, advantages, *clip, **options):
    """Returns the loss, its gradient by each new log-probability, and what goes with it."""

    def loss(new):
        return gspo_loss(new, jnp.asarray(old), jnp.asarray(mask), jnp.asarray(advantages), *clip, **options)

    (value, aux), gradient = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(new))
    return float(value), np.asarray(gradient), jax.tree.map(np.asarray, aux)


def per_token(gradients):
    return np.where(MASK, np.asarray(gradients)[:, None], 0)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("ratio", ["sequence", "sequence_token"])
def test_the_worked_example(dtype, ratio):
    with precision(dtype) as tolerance:
        new, old, advantages = example(dtype)
        loss, gradient, aux = loss_and_gradient(new, old, MASK, advantages, ratio=ratio)
        assert aux["ratio"].dtype == gradient.dtype == advantages.dtype == dtype
    digits = max(tolerance, 1e-10)
    np.testing.assert_allclose(advantages, ADVANTAGES, atol=digits)
    np.testing.assert_allclose(aux["ratio"], S, atol=digits)
    np.testing.assert_allclose(loss, -0.000241538911, atol=max(tolerance, 1e-12))
    # Exactly: the advantages are (r - 0.5625) / (std + 1e-6), std^2 = 0.546875 / 3, 1 and 3 are not clipped.
    exact = (np.array(REWARDS) - 0.5625) / ((0.546875 / 3) ** 0.5 + 1e-6)
    s = np.exp(padded(CHANGE).sum(1) / LENGTHS)
    wanted = -s * exact / LENGTHS / 4 * [0, 1, 0, 1]
    np.testing.assert_allclose(gradient, per_token(wanted), atol=tolerance)
    np.testing.assert_allclose(wanted, [0, 0.0182944243, 0, -0.0366071475], atol=1e-10)
    np.testing.assert_array_equal(aux["clipped"], [1, 0, 1, 0])
    assert aux["clip_fraction"] == 0.5
    share = (aux["clipped"] * LENGTHS).sum() / LENGTHS.sum()
    assert share == pytest.approx(0.583333, abs=1e-6)


@pytest.mark.parametrize(
    ("ddof", "eps", "advantages", "loss"),
    [
        (1, 1e-4, [1.0244551328, -0.1463507333, -1.3171565993, 0.4390521998], -0.000241482918),
        (0, 1e-4, [1.1828960431, -0.1689851490, -1.5208663412, 0.5069554471], -0.000278830355),
    ],
)
def test_other_implementations_advantages(ddof, eps, advantages, loss):
    with precision("float64"):
        new, old, _ = example()
        got = group_advantages(jnp.asarray(REWARDS, jnp.float64), ddof=ddof, eps=eps)
        np.testing.assert_allclose(got, advantages, atol=1e-10)
        np.testing.assert_allclose(loss_and_gradient(new, old, MASK, got)[0], loss, atol=1e-12)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("ratio", RATIOS)
def test_on_policy_every_ratio_is_the_policy_gradient(dtype, ratio):
    with precision(dtype) as tolerance:
        _, old, advantages = example(dtype)
        loss, gradient, aux = loss_and_gradient(old, old, MASK, advantages, ratio=ratio)
    assert abs(loss) <= min(tolerance, 1e-7) and (aux["ratio"] == 1).all() and aux["clip_fraction"] == 0
    wanted = [-0.0853910564, 0.0182980835, 0.0823413758, -0.0365961670]
    np.testing.assert_allclose(gradient, per_token(wanted), atol=max(tolerance, 1e-10))


@pytest.mark.parametrize(("ratio", "loss"), [("sequence", -0.000625762167), ("token", -0.000626013680)])
def test_a_wide_clip(ratio, loss):
    with precision("float64"):
        got, gradient, aux = loss_and_gradient(*example()[:2], MASK, ADVANTAGES, 0.2, 0.2, ratio=ratio)
        assert got == pytest.approx(loss, abs=1e-10) and aux["clip_fraction"] == 0
        change = (
            padded(CHANGE) if ratio == "token" else padded(CHANGE).sum(1, keepdims=True) / LENGTHS[:, None]
        )
        np.testing.assert_allclose(
            gradient, per_token(np.array(ADVANTAGES) / LENGTHS / -4) * np.exp(change), atol=1e-12
        )


def test_the_published_ratio_is_never_clipped():
    with precision("float64"):
        new, old, advantages = example()
        loss, gradient, aux = loss_and_gradient(new, old, MASK, advantages, ratio="one")
        assert abs(loss) < 1e-15 and (aux["ratio"] == 1).all() and not aux["clipped"].any()
        np.testing.assert_allclose(gradient, per_token(-advantages / LENGTHS / 4), atol=1e-15)
        assert (aux["approx_kl"] > 1e-8).all()  # how far the policy has moved is told all the same


def test_k3_and_its_place_in_the_loss():
    with precision("float64"):
        new, old, advantages = example()
        each = k3(jnp.asarray(old - new))
        assert float(each[MASK].mean()) == pytest.approx(8.593756975854e-07, abs=1e-16)
        plain, gradient, _ = loss_and_gradient(new, old, MASK, advantages)
        loss, moved, aux = loss_and_gradient(new, old, MASK, advantages, logp_ref=old, kl_coef=0.04)
        of_response = np.where(MASK, each, 0).sum(1) / LENGTHS
        np.testing.assert_allclose(aux["kl"], of_response, atol=1e-18)
        assert loss - plain == pytest.approx(0.04 * of_response.mean(), rel=1e-6)
        # The derivative of exp(x) - x - 1 by logp, x = ref - logp, is 1 - exp(x).
        by_hand = 0.04 * (1 - np.exp(old - new)) / LENGTHS[:, None] / 4
        np.testing.assert_allclose((moved - gradient)[MASK], by_hand[MASK], rtol=1e-8)
        far = k3(jnp.array([-50.0, 50.0]))
        np.testing.assert_allclose(far, np.exp([-10, 10]) - [-10, 10] - 1)


def test_a_masked_response_stays_in_the_denominator():
    with precision("float64"):
        new, old, advantages = example()
        mask = MASK & (np.arange(4) != 2)[:, None]
        loss, gradient, aux = loss_and_gradient(new, old, mask, advantages)
        assert loss == pytest.approx(-0.329508232454, abs=1e-10)
        assert not gradient[2].any() and aux["clip_fraction"] == 0.25
        none = loss_and_gradient(new, old, np.zeros_like(MASK), advantages, logp_ref=old, kl_coef=1.0)
        assert none[0] == 0 and not none[1].any() and none[2]["clip_fraction"] == 0


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("junk", [np.inf, np.nan])
def test_padding_never_enters(ratio, junk):
    new, old, advantages = example("float32")
    wanted = loss_and_gradient(new, old, MASK, advantages, ratio=ratio, logp_ref=old, kl_coef=0.1)
    dirty = [np.where(MASK, x, junk * sign).astype(np.float32) for x, sign in ((new, -1), (old, 1))]
    got = loss_and_gradient(*dirty, MASK, advantages, ratio=ratio, logp_ref=dirty[1], kl_coef=0.1)
    assert got[0] == wanted[0]
    np.testing.assert_array_equal(got[1], wanted[1])
    for name, value in wanted[2].items():
        np.testing.assert_array_equal(got[2][name], value, err_msg=name)


def test_the_sequence_decides_not_its_tokens():
    """Tokens' ratios of e and 1/e whose geometric mean is 1: nothing is clipped for GSPO, half for GRPO."""
    change = np.array([[1.0, -1.0, 1.0, -1.0], [-1.0, 1.0, -1.0, 1.0]])
    old, mask, advantages = np.full((2, 4), -3.0), np.ones((2, 4), bool), np.array([1.0, -1.0])
    with precision("float64"):
        for ratio in ("sequence", "sequence_token"):
            loss, gradient, aux = loss_and_gradient(old + change, old, mask, advantages, ratio=ratio)
            np.testing.assert_allclose(aux["ratio"], 1, atol=1e-15)
            assert abs(loss) < 1e-15 and aux["clip_fraction"] == 0
            np.testing.assert_allclose(gradient, np.tile([[-0.125], [0.125]], 4), atol=1e-15)
        _, gradient, aux = loss_and_gradient(old + change, old, mask, advantages, ratio="token")
        np.testing.assert_array_equal(aux["clipped"], [0.5, 0.5])
        np.testing.assert_allclose(gradient[0], [0, -np.exp(-1) / 8, 0, -np.exp(-1) / 8], atol=1e-15)


@pytest.mark.parametrize(
    ("advantage", "moves", "clipped"), [(1.0, 5e-4, 1), (1.0, -5e-4, 0), (-1.0, -5e-4, 1), (-1.0, 5e-4, 0)]
)
def test_the_clip_stops_only_what_goes_on_in_its_direction(advantage, moves, clipped):
    with precision("float64"):
        new, old = np.full((1, 3), moves - 1.0), np.full((1, 3), -1.0)
        _, gradient, aux = loss_and_gradient(new, old, np.ones((1, 3), bool), np.array([advantage]))
    assert aux["clipped"] == clipped and gradient.any() == (not clipped)


def test_the_token_form_equals_the_sequence_form():
    rng = np.random.default_rng(0)
    old, mask = rng.normal(-1, 0.5, (64, 9)), np.arange(9) < rng.integers(1, 10, (64, 1))
    new = old + rng.normal(0, 1e-3, old.shape)
    with precision("float64"):
        both = [
            loss_and_gradient(new, old, mask, np.sin(np.arange(64)), ratio=r)
            for r in ("sequence", "sequence_token")
        ]
    assert both[0][0] == pytest.approx(both[1][0], abs=1e-14)
    np.testing.assert_allclose(both[0][1], both[1][1], atol=1e-17)
    assert 0.05 < both[0][2]["clip_fraction"] < 0.8


@pytest.mark.parametrize("ratio", RATIOS)
def test_bfloat16_log_probabilities_give_float32_ratios(ratio):
    new, old, advantages = example("float32")
    low = [jnp.asarray(x, jnp.bfloat16) for x in (new, old)]
    loss, aux = gspo_loss(*low, jnp.asarray(MASK), advantages, ratio=ratio)
    assert loss.dtype == aux["ratio"].dtype == jnp.float32
    if ratio != "one":
        exact = np.where(MASK, np.float64(low[0]) - np.float64(low[1]), 0).sum(1) / LENGTHS
        np.testing.assert_allclose(aux["ratio"], np.exp(exact), rtol=1e-6)
        assert (aux["ratio"].astype(jnp.bfloat16) != aux["ratio"]).any()


def test_enormous_changes_stay_finite():
    old, mask, advantages = np.full((2, 3), -1.0, np.float32), np.ones((2, 3), bool), np.array([1.0, -1.0])
    for ratio in RATIOS:
        loss, gradient, _ = loss_and_gradient(old + 400, old, mask, advantages, ratio=ratio)
        assert np.isfinite(loss) and np.isfinite(gradient).all(), ratio


def test_an_unknown_ratio_is_refused():
    with pytest.raises(
        ValueError, match="unknown importance ratio 'grpo'; available: sequence, sequence_token"
    ):
        gspo_loss(*example("float32")[:2], MASK, np.zeros(4), ratio="grpo")


# --- advantages ---


@pytest.mark.parametrize("asarray", [np.array, jnp.asarray])
def test_equal_rewards_have_no_advantage(asarray):
    """In float32 the mean of seven 0.7 is not 0.7: divided by eps, that would be an advantage of 0.05."""
    rewards = np.full(7, 0.7, np.float32)
    noise = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-6)
    assert np.abs(noise).max() > 0.01
    got = group_advantages(asarray(np.stack([rewards, np.arange(7, dtype=np.float32)])))
    assert not np.asarray(got[0]).any() and abs(got[1]).max() > 1
    assert not np.asarray(group_advantages(asarray([0.5] * 4))).any()
    assert group_advantages(asarray([3.0])) == 0  # a group of one


def test_rewards_need_not_be_scaled():
    """Then a group counts by how much its rewards differ: the update is the gradient of the mean reward."""
    rewards = np.array([REWARDS, np.array(REWARDS) / 100, [0.7] * 4])
    got = group_advantages(rewards, scale_rewards="none")
    np.testing.assert_allclose(got, rewards - rewards.mean(1, keepdims=True), atol=1e-12)
    kept = group_advantages(rewards, scale_rewards="none", positive_only=True)
    np.testing.assert_array_equal(kept, np.maximum(got, 0))
    # Two answers, the first with probability p: its gradient by the logit is p (1 - p) times the gap.
    p = 0.3
    answers = np.array(list(itertools.product([0, 1], repeat=6)))
    chance = np.prod(np.where(answers == 0, p, 1 - p), axis=1)
    advantages = group_advantages(np.where(answers == 0, 1.0, 0.2), scale_rewards="none")
    slope = (advantages * np.where(answers == 0, 1 - p, -p)).mean(1)  # of the log-probabilities
    biased = 5 / 6  # a sample is part of its own baseline
    assert (chance * slope).sum() == pytest.approx(biased * p * (1 - p) * 0.8, abs=1e-12)


def test_only_good_directions_are_kept():
    kept = group_advantages(np.array(REWARDS), positive_only=True)
    np.testing.assert_allclose(kept, np.maximum(ADVANTAGES, 0), atol=1e-10)
    with precision("float64"):
        _, gradient, _ = loss_and_gradient(example()[1], example()[1], MASK, kept)
    np.testing.assert_array_equal(gradient.any(1), [True, False, False, True])
    np.testing.assert_allclose(gradient[0, 0], -0.0853910564, atol=1e-10)  # by 4 responses, not by 2


@pytest.mark.parametrize("dtype", [np.int32, np.float16, jnp.bfloat16])
def test_advantages_are_float32_or_wider(dtype):
    got = group_advantages(jnp.asarray([0, 1, 1, 4], dtype))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, group_advantages(np.array([0.0, 1, 1, 4])), atol=1e-6)


groups = st.integers(2, 8).flatmap(
    lambda size: st.lists(st.integers(-1000, 1000), min_size=size, max_size=size)
)


@settings(max_examples=60, deadline=None)
@given(groups, st.integers(-5000, 5000), st.integers(1, 64), st.randoms(use_true_random=False))
def test_advantages_know_neither_shift_nor_scale_nor_order(rewards, shift, scale, random):
    rewards = np.array(rewards, np.float64)
    of = functools.partial(group_advantages, eps=0.0)
    wanted = of(rewards)
    np.testing.assert_allclose(of(scale * rewards + shift), wanted, atol=1e-9)
    order = list(range(len(rewards)))
    random.shuffle(order)
    np.testing.assert_allclose(of(rewards[order]), wanted[order], atol=1e-12)
    np.testing.assert_array_equal(of(np.stack([rewards, rewards[order]]))[0], wanted)
    if len(set(rewards)) > 1:
        assert abs(wanted.sum()) < 1e-9 and wanted.std(ddof=1) == pytest.approx(1)
        assert (np.argsort(wanted, kind="stable") == np.argsort(rewards, kind="stable")).all()
