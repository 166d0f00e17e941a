"""Prompts with a group of responses each, and the same responses each behind a prompt of its own."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from o3jax.gspo import group_advantages, gspo_loss
from o3jax.gspo.rows import UpdateShape, pack_groups
from o3jax.inputs.collate import collate
from o3jax.models.batch import Batch
from tests.support.tiny import Reference, make_inputs

# Videos and images of different grids; groups of three responses. The first and third prompt share a row.
PROMPTS = [[3, (3, 4, 6), 4], [2, (2, 8, 6), 6], [3, (4, 6), 5], [2, (2, 4, 4), 3], [9]]
GROUP = 3
SHAPE = UpdateShape(length=96, frame_pairs=5, patches=48, sequences=6, response=8)
ROWS = 8  # most of the last ones empty
KL = 0.04
TRUNCATED = (1, 2)  # a response that is masked


@dataclasses.dataclass
class Setting:
    """A model, its prompts, their responses, and what a loss needs of them."""

    reference: Reference
    inputs: dict
    responses: list
    plain: Batch  # every response behind its own prompt, in a row of its own
    mask: np.ndarray  # [prompts, samples, T]: the tokens that count
    advantages: np.ndarray  # [prompts, samples]
    noise: np.ndarray  # [prompts, samples, T, 2]: how far the old and the reference policy are away

    @functools.cached_property
    def rows(self):
        return self.pack()

    @functools.cached_property
    def repeated(self):
        return self.pack(repeated=True)

    def pack(self, left=False, rows=ROWS, repeated=False):
        prompts = collate(make_inputs(PROMPTS, left=left), self.reference.config, length=64, patches=64)
        return pack_groups(
            prompts, self.responses, self.reference.config, SHAPE, rows=rows, repeated=repeated
        )

    @functools.cached_property
    def truth(self):
        """Loss, gradients and log-probabilities by whole logits of the plain rows, with nothing shared."""
        size = self.plain.text.input_ids.shape[1]
        starts = np.repeat([int(m.sum()) for m in make_inputs(PROMPTS)["attention_mask"]], GROUP)
        index = np.minimum(starts[:, None] - 1 + np.arange(SHAPE.response), size - 1)
        labels = np.take_along_axis(self.plain.text.input_ids, np.minimum(index + 1, size - 1), 1)
        there, mask, noise = (flat(a) for a in (self.lengths(), self.mask, self.noise))

        def loss(model):
            logits = jnp.take_along_axis(model(self.plain), index[..., None], 1)
            logp = jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], 2)[..., 0]
            old, ref = (jax.lax.stop_gradient(logp) - noise[..., i] for i in range(2))
            advantages = self.advantages.reshape(-1)
            value, _ = gspo_loss(logp, old, mask, advantages, logp_ref=ref, kl_coef=KL)
            return value, jnp.where(there, logp, 0)

        fn = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (value, logp), gradients = fn(self.reference.ours)
        return float(value), gradients, np.asarray(logp)

    def lengths(self):
        return np.arange(SHAPE.response) < np.array([[[len(r)] for r in g] for g in self.responses])

    def batch(self, rows, logp, noise):
        """Returns rows with all that the objective reads, for old and reference log-probabilities."""
        old, ref = (logp - rows.by_sequence(noise[..., i]) for i in range(2))
        advantages = rows.by_sequence(self.advantages.astype(np.float32))
        mask = rows.by_sequence(self.mask)
        return dataclasses.replace(
            rows, response_mask=mask, advantages=advantages, logp_old=old, logp_ref=ref
        )


def flat(x):
    return x.reshape(-1, *x.shape[2:])


def make_setting(reference: Reference) -> Setting:
    """Returns the prompts with random responses, rewards and changes of the policy."""
    inputs, rng = make_inputs(PROMPTS), np.random.default_rng(1)
    lengths = rng.permuted(np.resize([1, 8, 3, 5, 4], (len(PROMPTS), GROUP)), axis=1)
    responses = [[rng.integers(0, 299, n).tolist() for n in group] for group in lengths]
    plain = behind_own_prompts(inputs, responses)
    mask = np.arange(SHAPE.response) < lengths[..., None]
    mask[TRUNCATED] = False
    rewards = rng.integers(0, 5, (len(PROMPTS), GROUP)) / 2
    rewards[3] = 0.7  # a group without differences
    noise = rng.normal(0, 2e-3, (*mask.shape, 2)).astype(np.float32)
    return Setting(
        reference, plain, responses, collate(plain, reference.config), mask, group_advantages(rewards), noise
    )


def behind_own_prompts(inputs, responses):
    """Returns a processor's output for every response behind a copy of its prompt, right-padded."""
    ids = []
    for prompt, mask, group in zip(inputs["input_ids"], inputs["attention_mask"], responses, strict=True):
        ids += [[*prompt[mask == 1], *response] for response in group]
    size = max(map(len, ids))
    out = {
        "input_ids": np.array([row + [0] * (size - len(row)) for row in ids]),
        "attention_mask": np.array([[1] * len(row) + [0] * (size - len(row)) for row in ids]),
    }
    out["mm_token_type_ids"] = (out["input_ids"] == 300) + 2 * (out["input_ids"] == 301)
    for values, grids in (("pixel_values", "image_grid_thw"), ("pixel_values_videos", "video_grid_thw")):
        parts = np.split(inputs[values], np.cumsum(inputs[grids].prod(1))[:-1])
        out[values] = np.concatenate([part for part in parts for _ in range(GROUP)])
        out[grids] = np.repeat(inputs[grids], GROUP, 0)
    return out
