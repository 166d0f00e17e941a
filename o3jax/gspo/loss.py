"""Group advantages and the clipped objective of GSPO (Zheng et al. 2025, arXiv 2507.18071).

With s the importance ratio of a response to the policy that sampled it, and A its advantage, the loss is the
mean over responses of -min(s A, clip(s, 1 - low, 1 + high) A). What s is, `RATIOS` names:

    sequence         exp(mean over tokens of log pi_new - log pi_old): GSPO
    sequence_token   the same value, its gradient by token: GSPO-token; equal where A is one per response
    token            pi_new / pi_old of each token: GRPO
    one              1, whatever the old policy was, with the gradient of `sequence`: the published Open-o3
                     Video, where nothing is ever clipped
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from o3jax.choices import RATIOS

# Of a log-ratio, where it is exponentiated: far outside of any clip, and far from overflow.
_LARGEST = 20.0
_LARGEST_KL = 10.0  # the same for the KL estimate, as published


def group_advantages(
    rewards: ArrayLike,
    ddof: int = 1,
    eps: float = 1e-6,
    *,
    scale_rewards: str = "group",
    positive_only: bool = False,
) -> Float[Array | np.ndarray, "*B G"]:
    """Returns (r - mean) / (std + eps) within each group, of the rewards' shape, float32 or wider.

    A group without differences has advantages of exactly 0 (in float32 its standard deviation need not be)
    and its responses still count in the loss's denominator. NumPy in, NumPy out.

    Args:
        rewards: [G], or [B, G] for B groups.
        ddof: the divisor of the variance is G - ddof; 1 as in most implementations, 0 in some.
        eps: added to the standard deviation.
        scale_rewards: one of `SCALES`; "none" leaves r - mean, the gradient of the mean reward (Dr. GRPO,
            arXiv:2503.20783): a group whose rewards hardly differ then hardly counts.
        positive_only: the article's "keep only the update direction of high-scoring samples": advantages
            below 0 become 0, so such responses push nothing away, but still count in the denominator.
    """
    xp = jnp if isinstance(rewards, jax.Array) else np
    rewards = xp.asarray(rewards)
    rewards = rewards.astype(xp.promote_types(rewards.dtype, xp.float32))
    centred = rewards - rewards.mean(-1, keepdims=True)
    std = xp.sqrt(xp.square(centred).sum(-1, keepdims=True) / max(rewards.shape[-1] - ddof, 1))
    scale = std + eps if scale_rewards == "group" else 1
    alike = rewards.max(-1, keepdims=True) == rewards.min(-1, keepdims=True)
    advantages = xp.where(alike, 0, centred / xp.where(alike, 1, scale))
    return xp.maximum(advantages, 0) if positive_only else advantages


def gspo_loss(
    logp_new: Float[Array, "N T"],
    logp_old: Float[Array, "N T"],
    mask: Bool[Array, "N T"],
    advantages: Float[Array, " N"],
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
    *,
    ratio: str = "sequence",
    logp_ref: Float[Array, "N T"] | None = None,
    kl_coef: float = 0.0,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Returns the loss of N responses, and what `sequence_losses` says of each with `clip_fraction`.

    The denominator is N: a response without any token in `mask` (a truncated one, say) contributes 0 and
    stays in it. `clip_fraction` is the share of the N whose gradient the clip removes.

    Args: see `sequence_losses`.
    """
    losses, aux = sequence_losses(
        logp_new,
        logp_old,
        mask,
        advantages,
        clip_low,
        clip_high,
        ratio=ratio,
        logp_ref=logp_ref,
        kl_coef=kl_coef,
    )
    return losses.mean(), aux | {"clip_fraction": aux["clipped"].mean()}


def sequence_losses(
    logp_new: Float[Array, "N T"],
    logp_old: Float[Array, "N T"],
    mask: Bool[Array, "N T"],
    advantages: Float[Array, " N"],
    clip_low: float,
    clip_high: float,
    *,
    ratio: str = "sequence",
    logp_ref: Float[Array, "N T"] | None = None,
    kl_coef: float = 0.0,
) -> tuple[Float[Array, " N"], dict[str, Float[Array, " N"]]]:
    """Returns each response's loss, and without gradient what there is to log of it.

    That is `ratio`, the sequence's (1 for the kind "one"); `clipped`, the share of its tokens whose gradient
    the clip removes (all or none, but for the kind "token"); `approx_kl`, the k3 estimate of KL(old || new);
    and `kl`, of KL(new || ref), where there is a reference. Each is a mean over the response's tokens.

    Args:
        logp_new: log-probability of each token, with gradient. All is computed in its dtype, but at least
            in float32: the clip is narrower than the spacing of bfloat16 around 1.
        logp_old: the same under the policy that sampled, computed by the same code as `logp_new`.
        mask: the tokens that count; what the others hold enters nothing.
        advantages: of each response, from `group_advantages`.
        clip_low, clip_high: widths of the clip below and above 1.
        ratio: one of `RATIOS`.
        logp_ref: under a reference policy, for `kl_coef` times the k3 estimate of the KL to it.

    Raises:
        ValueError: if `ratio` is none of `RATIOS`.
    """
    if ratio not in RATIOS:
        raise ValueError(f"unknown importance ratio '{ratio}'; available: {', '.join(RATIOS)}")
    wide = jnp.promote_types(jnp.result_type(logp_new), jnp.float32)
    new = jnp.asarray(logp_new, wide)
    mask = jnp.asarray(mask, bool)
    advantages = jax.lax.stop_gradient(jnp.asarray(advantages, wide))[:, None]
    lengths = jnp.maximum(mask.sum(-1), 1)

    def difference(a: Array, b: Array) -> Array:
        return jnp.where(mask, jnp.asarray(a, wide) - jnp.asarray(b, wide), 0)

    def mean(x: Array) -> Array:
        return jnp.where(mask, x, 0).sum(-1) / lengths

    change = difference(new, jax.lax.stop_gradient(logp_old))
    aux = {"approx_kl": mean(k3(change))}
    if ratio == "one":
        change -= jax.lax.stop_gradient(change)
    of_sequence = _exp(mean(change))
    if ratio == "token":
        s = _exp(change)
    elif ratio == "sequence_token":
        s = jax.lax.stop_gradient(of_sequence)[:, None] * jnp.exp(change - jax.lax.stop_gradient(change))
    else:
        s = jnp.broadcast_to(of_sequence[:, None], change.shape)

    bounded = jnp.clip(s, 1 - clip_low, 1 + clip_high)
    clipped = s * advantages > bounded * advantages
    # Chosen, not min(): where both are equal its derivative would be that of either by half.
    losses = -mean(jnp.where(clipped, jax.lax.stop_gradient(bounded), s) * advantages)
    aux |= {"ratio": of_sequence, "clipped": mean(clipped.astype(wide))}
    if logp_ref is not None:
        aux["kl"] = mean(k3(difference(jax.lax.stop_gradient(logp_ref), new)))
        losses += kl_coef * aux["kl"]
    return losses, jax.lax.stop_gradient(aux)


def k3(log_ratio: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
    """Returns exp(x) - x - 1 of x = log p - log q; its mean under q estimates KL(q || p) (Schulman)."""
    x = jnp.clip(log_ratio, -_LARGEST_KL, _LARGEST_KL)
    return jnp.expm1(x) - x


def _exp(log_ratio: Array) -> Array:
    return jnp.exp(jnp.clip(log_ratio, -_LARGEST, _LARGEST))
