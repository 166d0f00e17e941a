"""`python -m experiments.gspo`: group sequence policy optimisation of a fine-tuned model.

An iteration samples a group of completions for each of its prompts, rewards them and takes
`minibatches_per_rollout` optimizer steps on them; a step of the log is an optimizer step. `WORKDIR/model`
is the result, a Hugging Face folder; WORKDIR/samples has what was sampled, as JSON lines and as a page.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from jax.sharding import Mesh
from ml_collections import ConfigDict

from configs.checks import check_gspo
from data_pipelines.formats.sample import Sample
from data_pipelines.rows.clips import Clip
from data_pipelines.rows.frames import FramesConfig
from data_pipelines.rows.pipeline import Pipeline
from data_pipelines.rows.prompts import MakePrompt, Minibatch, Minibatches
from data_pipelines.rows.settings import EvidenceShape, RowShape
from data_pipelines.synthetic.clips import SyntheticClips
from experiments.cli import shell
from experiments.data.audit import as_record
from experiments.data.clips import open_clips, open_processor, open_reader, plan
from experiments.training.hosts import micro_batches, open_mesh
from experiments.training.loop import RunLength, StepFn, train
from experiments.training.rollouts import (
    Rollout,
    Sampled,
    Stopwatch,
    Updates,
    decoder,
    decoder_evidence,
    sample,
    with_features,
)
from experiments.training.samples_page import write_samples
from experiments.training.scoring import Scored, Scorer
from experiments.training.trainer import export, make_trainer, optimizer_of, trained_model
from experiments.training.workdir import Workdir
from o3jax.api import end_tokens, model_folder
from o3jax.errors import UserError
from o3jax.files import write_text
from o3jax.generate.sampling import Sampling
from o3jax.gspo import group_advantages
from o3jax.gspo.rows import UpdateShape
from o3jax.gspo.update import gspo_objective, sequence_counts
from o3jax.hf.config import config_from_hf
from o3jax.hf.weights import load_weights
from o3jax.inference.respond import encode_visuals
from o3jax.inputs.processor import Processor
from o3jax.models.batch import PromptBatch, stack
from o3jax.models.qwen3_vl import Qwen3VL
from o3jax.rewards import registry
from o3jax.sharding import use_mesh
from o3jax.train.state import Metrics, TrainState

_CONFIG = shell.define_config("configs/gspo_tiny.py")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of this run; the same folder resumes.", required=True)

_GREEDY = Sampling(temperature=0.0)


@dataclasses.dataclass
class Iterations:
    """The step function of the loop: an iteration's rollout before its first step, then one step each."""

    config: ConfigDict
    processor: Processor
    scorer: Scorer
    step: StepFn
    updates: Updates
    eos_ids: tuple[int, ...]
    mesh: Mesh
    workdir: Workdir
    steps: int  # of the whole run
    rows: MakePrompt
    clips: Sequence[Clip]
    reference: Any  # the model before training, where the loss has a KL to it
    held_out: PromptBatch | None  # prompts of the evaluation, and their clips
    asked: Sequence[Clip]
    watch: Callable[[TrainState], None]
    rollout: Rollout | None = None

    def __call__(self, state: TrainState, item: Minibatch) -> tuple[TrainState, Metrics]:
        """Returns the state after an optimizer step, and what there is to log of it."""
        number, count = item.number, self.config.minibatches_per_rollout
        iteration = int(state.step) // count
        if number == 0:
            if self.held_out is not None and iteration % self.config.eval_every == 0:
                self.evaluate(state)
            self.rollout = self._roll_out(state, iteration, item.prompts)
            self.rollout.save(self._saved(iteration))
            self._clear(iteration)
        elif self.rollout is None:
            prompts = item.prompts
            if not self.config.lr_multipliers.vision:
                prompts = with_features(prompts, encode_visuals(decoder(self._policy(state)), prompts.inputs))
            self.rollout = Rollout.load(self._saved(iteration), prompts)
        watch = Stopwatch()
        batch = self.updates.minibatch(self.rollout, self._part(number))
        batch = micro_batches(batch, steps=self.config.gradient_accumulation_steps, mesh=self.mesh)
        state, metrics = self.step(state, batch)
        self.watch(state)
        jax.block_until_ready(metrics)
        watch.lap("update")
        return state, dict(metrics) | self.rollout.metrics | watch.seconds | {"minibatch": number}

    def evaluate(self, state: TrainState) -> None:
        """Adds a line to WORKDIR/eval.jsonl: the rewards of completions of the held-out prompts.

        Greedy ones, as answers are written; under "sampled/" those of the policy, the same draws every time.
        """
        policy = self._policy(state)
        line: dict[str, float] = {"step": int(state.step)}
        of_policy = Sampling(**self.config.sampling)
        for prefix, count, how in (("", 1, _GREEDY), ("sampled/", self.config.eval_samples, of_policy)):
            if count:
                sampled = self._sample(policy, self.held_out, self.asked, jax.random.key(0), count, how)
                samples = [clip.samples[0] for clip in self.asked]
                updates = self.updates.wider(max(count - self.config.group_size, 0))
                scored = self._score(policy, updates, sampled, samples, 1.0)
                values = _means(scored) | {"length": float(sampled.length.mean())}
                line |= {prefix + name: value for name, value in values.items()}
        path = self.workdir.path / "eval.jsonl"
        kept = path.read_text().splitlines() if path.exists() else []
        kept = [text for text in kept if json.loads(text)["step"] < line["step"]]
        write_text(path, "".join(text + "\n" for text in [*kept, json.dumps(line)]))
        shown = "  ".join(f"{name} {value:.4g}" for name, value in line.items())
        print(f"held out: {shown}", flush=True)

    def _roll_out(self, state: TrainState, iteration: int, prompts: PromptBatch) -> Rollout:
        config, watch = self.config, Stopwatch()
        policy = self._policy(state)
        clips = [self.clips[n] if n >= 0 else None for n in prompts.number.tolist()]
        samples = [clip and clip.samples[0] for clip in clips]
        key = jax.random.fold_in(jax.random.key(config.seed), iteration)
        sampled = self._sample(policy, prompts, clips, key, config.group_size, Sampling(**config.sampling))
        watch.lap("rollout")
        scored = self._score(policy, self.updates, sampled, samples, (int(state.step) + 1) / self.steps)
        watch.lap("rewards")
        rewards = np.array([[one.total for one in group] for group in scored], np.float32)
        advantages = group_advantages(rewards, **config.advantages)
        parts = self._parts(len(samples))
        logp_old = self.updates.logprobs(policy, sampled, parts)
        logp_ref = None
        if self.reference is not None:
            logp_ref = self.updates.logprobs(self.reference, sampled, parts)
        watch.lap("logprobs")
        tokens = int(sampled.length.sum())
        counted = self.updates.counted(sampled)  # the others' log-probabilities are masked
        read = [row for row, one in enumerate(samples) if one is not None] or [*range(len(samples))]
        metrics = _means([scored[row] for row in read]) | _by_task(samples, rewards) | watch.seconds
        metrics |= {
            "reward_std": float(rewards[read].std(-1, ddof=1).mean()),
            "zero_variance": float((rewards[read].max(-1) == rewards[read].min(-1)).mean()),
            "length": tokens / sampled.length.size,
            "truncated": float(1 - sampled.finished.mean()),
            "tokens_per_s": tokens / watch.seconds["seconds/rollout"],
            # The sampler's log-probabilities against the trainer's: what another engine would get wrong.
            "sampler_gap": float(np.abs(logp_old - sampled.logprobs)[counted].max(initial=0)),
        }
        folder, texts = self.workdir.path / "samples", self._texts(sampled)
        write_samples(folder, iteration, samples, texts, scored, advantages, sampled.finished)
        if self.scorer.is_over():
            raise UserError(
                f"{self.scorer.failed} of {self.scorer.scored} completions could not be scored, more than "
                f"the share config.max_failed_rewards={config.max_failed_rewards:g}: mend the reward "
                "function, or raise config.reward_time_limit_s or the share: the command then goes on here"
            )
        return Rollout(sampled, advantages, logp_old, logp_ref, metrics)

    def _policy(self, state: TrainState) -> Qwen3VL:
        """Returns the model as the update computes it."""
        dtype = jnp.dtype(self.config.compute_dtype)
        # Before adapters are merged, as in the update: merged first, the sum would round differently.
        cast = jax.tree.map(lambda a: a.astype(dtype), state.model)
        return trained_model(dataclasses.replace(state, model=cast))

    def _sample(
        self,
        policy: Qwen3VL,
        prompts: PromptBatch,
        clips: Sequence[Clip | None],
        key: jax.Array,
        group_size: int,
        sampling: Sampling,
    ) -> Sampled:
        samples = [clip and clip.samples[0] for clip in clips]
        sources = [clip and self.rows.single_frames(clip) for clip in clips]
        options = {"group_size": group_size, "sampling": sampling, "eos_ids": self.eos_ids}
        return sample(decoder(policy), self.processor, self.config, prompts, samples, sources, key, **options)

    def _texts(self, sampled: Sampled) -> list[list[str]]:
        return [[self.processor.decode(tokens) for tokens in group] for group in sampled.responses()]

    def _score(
        self,
        policy: Qwen3VL,
        updates: Updates,
        sampled: Sampled,
        samples: Sequence[Sample | None],
        step_percent: float,
    ) -> list[list[Scored]]:
        """Returns what the completions are worth; those about a clip that could not be read all 0."""
        texts, group, evidence = self._texts(sampled), sampled.tokens.shape[1], None
        readable = [row for row, one in enumerate(samples) if one is not None]
        if self.config.reward_evidence != "text":
            found = decoder_evidence(policy, self.processor, updates, sampled, self._parts(len(samples)))
            evidence = [one for row in readable for one in found[row]]
        completions = [text for row in readable for text in texts[row]]
        records = [as_record(samples[row]) for row in readable]
        records = [record for record in records for _ in range(group)]
        results = iter(self.scorer.score(completions, records, evidence, step_percent))
        scored = [
            [Scored({}, 0.0) if one is None else next(results) for _ in range(group)] for one in samples
        ]
        for error in [one.error for row in scored for one in row if one.error]:
            print(f"not scored: {error}", flush=True)
        return scored

    @property
    def _size(self) -> int:
        return self.config.prompts_per_iteration // self.config.minibatches_per_rollout

    def _part(self, number: int) -> slice:
        return slice(number * self._size, (number + 1) * self._size)

    def _parts(self, prompts: int) -> list[slice]:
        """Returns prompts in parts of a minibatch's size."""
        return [self._part(number) for number in range(-(-prompts // self._size))]

    def _saved(self, iteration: int) -> Path:
        return self.workdir.path / f"rollout_{iteration:06d}.npz"

    def _clear(self, iteration: int) -> None:
        """Deletes the rollouts that neither this iteration nor any checkpoint goes on from."""
        steps = self.workdir.manager.all_steps()
        kept = {iteration, *(step // self.config.minibatches_per_rollout for step in steps)}
        for path in set(self.workdir.path.glob("rollout_*.npz")) - set(map(self._saved, kept)):
            path.unlink()


def _means(scored: Sequence[Sequence[Scored]]) -> dict[str, float]:
    """Returns the mean reward and that of each term, over the completions that have it."""
    flat = [one for group in scored for one in group]
    names = sorted({name for one in flat for name in one.terms})
    means = {
        f"reward/{name}": float(np.mean([one.terms[name] for one in flat if name in one.terms]))
        for name in names
    }
    return {"reward": float(np.mean([one.total for one in flat]))} | means


def _by_task(samples: Sequence[Sample | None], rewards: np.ndarray) -> dict[str, float]:
    tasks = sorted({one.task for one in samples if one is not None})
    return {
        f"task/{task}": float(
            np.mean(
                [row.mean() for one, row in zip(samples, rewards, strict=True) if one and one.task == task]
            )
        )
        for task in tasks
    }


def held_out(config: ConfigDict, rows: MakePrompt) -> tuple[PromptBatch | None, list[Clip]]:
    """Returns prompts of the synthetic world's validation split, with their clips; none if that is off."""
    if not config.eval_every:
        return None, []
    level = config.rl_data_path.partition(":")[2]
    clips = SyntheticClips("val", int(level), 1, 0)
    chosen = [clips[index] for index in range(config.eval_prompts)]
    return stack([rows.map(clip) for clip in chosen]), chosen


def main(argv: Sequence[str]) -> None:
    del argv
    run(_CONFIG.value, _WORKDIR.value)


def run(
    config: ConfigDict,
    folder: str,
    optimizer: optax.GradientTransformation | None = None,
    watch: Callable[[TrainState], None] = lambda state: None,
) -> None:
    """Trains in a folder until config.max_steps, and exports the model.

    Args:
        optimizer: in place of the config's.
        watch: is called with the state after each step.
    """
    shell.use_compilation_cache()
    if os.environ.get("JAX_COORDINATOR_ADDRESS"):
        raise UserError("GSPO runs on one host and all its devices: unset JAX_COORDINATOR_ADDRESS")
    check_gspo(config)
    Sampling(**config.sampling)
    workdir = Workdir(folder, config)

    source = model_folder(config.sft_model_path)
    processor = open_processor(source, config)
    clips, note = open_clips(config, processor, workdir, "rl_data_path")
    mesh = open_mesh(config.mesh)
    model = load_weights(source, config_from_hf(source), dtype=jnp.float32, mesh=mesh)
    if config.reward_evidence != "text" and model.evidence is None:
        raise UserError(
            f"config.reward_evidence is '{config.reward_evidence}', but {config.sft_model_path} has no "
            "evidence modules: write text"
        )
    if config.feedback == "prompt" and model.evidence is None:
        raise UserError(
            f"config.feedback is 'prompt', but {config.sft_model_path} has no evidence modules "
            "to propose anything: leave it out"
        )
    if config.feedback and model.evidence is not None:
        evidence = dataclasses.replace(model.config.evidence, feedback=config.feedback)
        model.config = dataclasses.replace(model.config, evidence=evidence)

    rows = MakePrompt(
        processor,
        model.config,
        RowShape(config.row_length, config.row_frame_pairs, config.row_patches),
        config.prompt_style,
        config.box_step,
        EvidenceShape(**config.evidence_shape) if model.evidence is not None else None,
        frames=FramesConfig(**config.frames),
        reader=open_reader(config),
    )
    minibatches, groups = config.minibatches_per_rollout, config.groups_per_row
    steps_each = config.prompts_per_iteration // minibatches
    cost = workdir.path / "costs.npz"
    planned, data_fingerprint, steps = plan(config, clips, rows, steps_each, field="rl_data_path", kept=cost)
    steps = math.ceil(steps / minibatches) * minibatches
    prompts = Pipeline(
        planned,
        [rows],
        batch_size=config.prompts_per_iteration,
        seed=config.seed,
        num_workers=config.num_workers,
        data_fingerprint=data_fingerprint,
    )

    loss = functools.partial(
        gspo_objective,
        clip_low=config.clip_low,
        clip_high=config.clip_high,
        ratio=config.ratio,
        kl_coef=config.kl_coef,
    )
    dtype = jnp.dtype(config.compute_dtype)
    reference = jax.tree.map(lambda a: jnp.array(a, dtype), model) if config.kl_coef else None
    optimizer = optimizer or optimizer_of(config, steps)
    trainer = make_trainer(config, loss, sequence_counts, evidence=False, optimizer=optimizer)
    state, step = trainer.start(model, mesh)
    updates = Updates(
        model.config,
        UpdateShape(
            length=config.row_length + config.group_size * config.max_completion_length,
            frame_pairs=groups * config.row_frame_pairs,
            patches=config.row_patches,
            sequences=groups * config.group_size,
            response=config.max_completion_length,
        ),
        config.gradient_accumulation_steps * mesh.shape["data"] * mesh.shape["fsdp"],
        config.mask_truncated,
    )
    eos_ids, _ = end_tokens(source)
    with use_mesh(mesh), _scorer(config) as scorer:
        iterations = Iterations(
            config,
            processor,
            scorer,
            step,
            updates,
            eos_ids,
            mesh,
            workdir,
            steps,
            rows,
            clips,
            reference,
            *held_out(config, rows),
            watch,
        )
        del model
        state = train(
            state,
            iterations,
            Minibatches(prompts, minibatches),
            lambda item: item,
            workdir,
            RunLength.of(config, steps),
            note,
            lambda n: clips[n].samples[0].id,
        )
        if iterations.held_out is not None and int(state.step) == steps:
            iterations.evaluate(state)
    asked = {"prompt_style": config.prompt_style, "box_step": config.box_step}
    export(state, source, workdir.path / "model", processor, **asked)


def _scorer(config: ConfigDict) -> Scorer:
    options = config.reward_options.to_dict()
    if config.reward_evidence != "text":
        reads = registry.parameters(registry.load(config.reward))
        if not reads & {"evidence", "source"}:
            raise UserError(
                f"config.reward_evidence is '{config.reward_evidence}', but reward '{config.reward}' reads "
                "the text alone: write text, or a reward with a parameter `evidence`, such as article"
            )
        options |= {"source": config.reward_evidence} if "source" in reads else {}
    return Scorer(
        config.reward,
        options=options,
        workers=config.reward_workers,
        time_limit_s=config.reward_time_limit_s,
        fallback=config.reward_fallback,
        max_failed_share=config.max_failed_rewards,
    )


if __name__ == "__main__":
    shell.run(main)
