"""What an iteration of GSPO keeps of its completions, for its optimizer steps and for a run that goes on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from experiments.training.hosts import gathered
from experiments.training.sampling import Sampled
from o3jax.arrays import read_arrays, write_arrays
from o3jax.gspo.rows import UpdateBatch, UpdateShape, pack_groups
from o3jax.gspo.update import response_logprobs
from o3jax.models.batch import PromptBatch, TextRow, Tree, flatten, take, unflatten
from o3jax.models.config import Config
from o3jax.models.qwen3_vl import Qwen3VL
from o3jax.models.runtime import Runtime
from o3jax.sharding import own_rows, place_rows


@dataclasses.dataclass(frozen=True)
class Rollout:
    """What the optimizer steps of one iteration need; saved, so that a run goes on inside an iteration."""

    sampled: Sampled
    advantages: Float[np.ndarray, "B G"]
    logp_old: Float[np.ndarray, "B G T"]  # of the trainer, before the iteration's first step
    logp_ref: Float[np.ndarray, "B G T"] | None
    metrics: dict[str, float]

    def save(self, path: Path) -> None:
        """Writes all but the prompts' pixels or features, which are read or made again."""
        s = self.sampled
        arrays = flatten(s.prompts.inputs.text, "text")
        arrays |= {"tokens": s.tokens, "logprobs": s.logprobs, "length": s.length, "finished": s.finished}
        arrays |= {"advantages": self.advantages, "logp_old": self.logp_old}
        if self.logp_ref is not None:
            arrays["logp_ref"] = self.logp_ref
        write_arrays(path, metrics=json.dumps(self.metrics), **arrays)

    @classmethod
    def load(cls, path: Path, prompts: PromptBatch) -> Rollout:
        """Returns what `save` wrote, with the pixels or features of `prompts`."""
        arrays = read_arrays(path)
        inputs = dataclasses.replace(prompts.inputs, text=unflatten(TextRow, arrays, "text"))
        prompts = dataclasses.replace(prompts, inputs=inputs)
        names = ("tokens", "logprobs", "length", "finished")
        return cls(
            Sampled(prompts, None, None, *(arrays[name] for name in names)),
            arrays["advantages"],
            arrays["logp_old"],
            arrays.get("logp_ref"),
            json.loads(arrays["metrics"].item()),
        )


@dataclasses.dataclass(frozen=True)
class Updates:
    """How completions become rows of the update."""

    model: Config
    shape: UpdateShape
    prompts: int  # of a minibatch
    multiple: int  # of a host's rows: micro-batches times its devices that share one
    mask_truncated: bool
    runtime: Runtime = Runtime()  # of the update: another kernel, and the first step is off policy
    temperature: float = 1.0  # of the sampler
    micro_batches: int = 1
    mesh: Mesh | None = None

    def part(self, number: int) -> slice:
        """Returns which prompts of an iteration are those of a minibatch."""
        return slice(number * self.prompts, (number + 1) * self.prompts)

    def parts(self, sampled: Sampled) -> list[slice]:
        """Returns all prompts, in parts of a minibatch's size."""
        return [self.part(number) for number in range(-(-len(sampled.tokens) // self.prompts))]

    def pack(self, sampled: Sampled, part: slice) -> UpdateBatch:
        """Returns the update rows of some of the prompts."""
        prompts = take(sampled.prompts.inputs, part)
        responses = sampled.responses()[part]
        batch = pack_groups(prompts, responses, self.model, self.shape)
        rows = int(gathered(np.array([len(batch.sequence)])).max())
        if rows % self.multiple:
            rows += -rows % self.multiple
        if rows > len(batch.sequence):
            batch = pack_groups(prompts, responses, self.model, self.shape, rows=rows)
        counted = batch.by_sequence(self.counted(sampled)[part])[..., None]
        return dataclasses.replace(batch, response_mask=batch.response_mask & counted)

    def placed(self, rows: Tree) -> Tree:
        """Returns update rows where the mesh has them."""
        return rows if self.mesh is None else place_rows(rows, self.mesh)

    def own(self, x: Array) -> np.ndarray:
        """Returns what was computed of the rows of this host."""
        return np.asarray(x) if self.mesh is None else own_rows(x, self.mesh)

    def counted(self, sampled: Sampled) -> Bool[np.ndarray, "B G"]:
        """Returns which completions the update is made of: not those about a clip that could not be read."""
        read = sampled.prompts.number >= 0
        return (sampled.finished | (not self.mask_truncated)) & read[:, None]

    def wider(self, more: int) -> Updates:
        """Returns itself with room for so many more completions in each row."""
        length, sequences = self.shape.length + more * self.shape.response, self.shape.sequences + more
        shape = dataclasses.replace(self.shape, length=length, sequences=sequences)
        return dataclasses.replace(self, shape=shape)

    def minibatch(self, rollout: Rollout, number: int) -> UpdateBatch:
        """Returns what `gspo_objective` reads of a minibatch."""
        part, ref = self.part(number), rollout.logp_ref
        batch = self.pack(rollout.sampled, part)
        return dataclasses.replace(
            batch,
            advantages=batch.by_sequence(rollout.advantages[part]).astype(np.float32),
            logp_old=batch.by_sequence(rollout.logp_old[part]),
            logp_ref=None if ref is None else batch.by_sequence(ref[part]),
        )

    def logprobs(self, model: Qwen3VL, sampled: Sampled) -> Float[np.ndarray, "B G T"]:
        """Returns the trainer's log-probabilities of a host's completions, 0 behind their ends.

        Micro-batch by micro-batch, as the update computes them.
        """
        out = np.zeros(sampled.tokens.shape, np.float32)
        for part in self.parts(sampled):
            batch = self.pack(sampled, part)
            here, there = batch.places()
            size = len(batch.sequence) // self.micro_batches
            parts = [take(batch, slice(at * size, (at + 1) * size)) for at in range(self.micro_batches)]
            options = {"runtime": self.runtime, "temperature": self.temperature}
            found = [self.own(logprobs_of(model, self.placed(one), **options)) for one in parts]
            out[part][there] = np.concatenate(found)[here]
        return out


logprobs_of = jax.jit(response_logprobs, static_argnames=("runtime", "temperature"))
