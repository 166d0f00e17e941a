"""What the fields of the training configs may be, said before anything is loaded.

A mistake is a UserError of one sentence that names the field and what to write. `check_sft` and `check_gspo`
are what these commands call; the others come to the rest when they know the model.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.rows.frames import FramesConfig
from o3jax.choices import COMPUTE_DTYPES, KERNELS, OPTIMIZERS, RATIOS, REMAT, SCALES, SCHEDULES
from o3jax.errors import UserError
from o3jax.models.config import BOX_FRAMES, EvidenceConfig
from o3jax.prompts.feedback import FEEDBACK

# Fields of earlier revisions, in files that people may have, and what they are called now.
RENAMED = {
    "rates": "lr_multipliers",
    "row_groups": "row_frame_pairs",
    "evidence_shape.groups": "evidence_shape.frame_pairs",
}
_RENAMED_VALUES = {("reward_evidence", "head"): "decoder"}

PROCESSES = max(16, 4 * (os.cpu_count() or 1))  # that one run may start of a kind
_TINY = 1e-9  # stands for "more than 0"
_MANY = 2**20

# What numbers may be, from and to, and the fields of any config that must be so; "loss.*" is all of that
# group. Of several the first counts. Where both ends are integers the field is one.
NUMBERS: tuple[tuple[float, float, tuple[str, ...]], ...] = (
    (
        *(0.0, 1.0),
        (
            *("max_rejected_share", "max_failed_share", "max_failed_rewards", "loss.evidence_weight"),
            *("loss.candidate_low", "sampling.top_p", "sampling.min_p"),
        ),
    ),
    (0.0, 1 - _TINY, ("adam_b2",)),
    (0, 2**32 - 1, ("seed",)),
    (0, 1, ("advantages.ddof",)),
    (0, PROCESSES, ("num_workers",)),
    (1, PROCESSES, ("reward_workers",)),
    (1, 4, ("level",)),
    (1, 1000, ("box_step",)),
    (1, 10**9, ("log_every", "save_every")),
    (0, 10**9, ("max_steps", "stop_at_step", "warmup_steps", "eval_every", "profile.*", "sampling.top_k")),
    (
        *(0, _MANY),
        (
            *("decode_mesh.data", "decode_mesh.tensor"),
            *("loss_chunk", "lora.rank", "rollout_slots", "eval_prompts", "eval_samples", "group_size"),
            *("evidence.intermediate_size", "evidence.*_layers", "evidence.proposals"),
        ),
    ),
    (
        *(_TINY, 1e6),
        (
            *("lora.alpha", "video.fps", "video_fps", "frames.fps", "reward_time_limit_s"),
            *("evidence.dense_fps", "evidence.window_s", "evidence.max_rate", "text.rope_theta"),
        ),
    ),
    (_TINY, math.inf, ("max_grad_norm",)),
    (
        *(1, _MANY),
        (
            *("per_device_train_batch_size", "gradient_accumulation_steps", "train_batch_size"),
            *("row_length", "row_frame_pairs", "row_patches", "clips_per_row", "questions_per_row"),
            *("mesh.*", "decode_mesh.*", "evidence_shape.*", "groups_per_row", "prompts_per_iteration"),
            *("minibatches_per_rollout", "max_completion_length", "pairs_per_clip", "vocab_size"),
            *("question_length", "frames.m*", "frames.frame_tokens", "text.*", "vision.*"),
            *("evidence.hidden_size", "evidence.num_heads", "eval_batches"),
        ),
    ),
    (1, 2**40, ("video.min_*", "video.max_*", "evidence.dense_pixels")),
    (-1e6, 1e6, ("reward_fallback",)),
    (
        *(0.0, 1e6),
        (
            *("num_train_epochs", "learning_rate", "lr_multipliers.*", "weight_decay", "loss.*"),
            *("soften_times", "soften_coordinates", "clip_low", "clip_high", "kl_coef", "advantages.eps"),
            *("sampling.temperature", "frame_cache_gib", "feature_cache_gib", "keep"),
        ),
    ),
)
_CHOICES = {
    "remat": REMAT,
    "kernel": KERNELS,
    "compute_dtype": COMPUTE_DTYPES,
    "feedback": (None, *FEEDBACK),
    "box_frames": (None, *BOX_FRAMES),
    "lr_scheduler_type": SCHEDULES,
    "optimizer": OPTIMIZERS,
    "ratio": RATIOS,
    "reward_evidence": ("text", "decoder", "both"),
    "advantages.scale_rewards": SCALES,
}


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the fields that have a value, each with its name as the command line knows it."""
    for name, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            yield from leaves(value, f"{prefix}{name}.")
        elif value is not None:
            yield prefix + name, value


def renamed(config: Mapping[str, Any]) -> tuple[str, str] | None:
    """Returns a field or value of an earlier revision, as it is written, and what it is called now."""
    for name, value in leaves(config):
        for old, new in RENAMED.items():
            if name == old or name.startswith(f"{old}."):
                return old, new
        if isinstance(value, str) and (name, value) in _RENAMED_VALUES:
            return f"{name}='{value}'", f"{name}='{_RENAMED_VALUES[name, value]}'"
    return None


def check_fields(config: ConfigDict) -> None:
    """Raises a UserError for a field's old name, a choice that is none, or a number that no run can mean."""
    if found := renamed(config):
        raise UserError(f"config.{found[0]} is now called {found[1]}: write config.{found[1]}")
    for name, value in leaves(config):
        if name in _CHOICES and value not in _CHOICES[name]:
            known = ", ".join(filter(None, _CHOICES[name]))
            raise UserError(f"config.{name} is '{value}'; choose one of {known}")
        if isinstance(value, bool | tuple | list):
            continue
        for low, high, fields in NUMBERS:
            if any(fnmatchcase(name, field) for field in fields):
                _check_number(name, value, low, high)
                break
    for name, low in leaves(config):
        group, dot, last = name.rpartition(".")
        most = f"{group}{dot}max_{last.removeprefix('min_')}"
        if last.startswith("min_") and (high := dict(leaves(config)).get(most, low)) < low:
            raise UserError(
                f"config.{name} is {low:g}, more than config.{most}, which is {high:g}: change one"
            )
    stop = config.get("stop", ())
    if not all(isinstance(text, str) and text for text in stop):
        raise UserError(f"config.stop is {repr(tuple(stop))[:80]}; write strings that are not empty")


def _check_number(name: str, value: Any, low: float, high: float) -> None:
    if not isinstance(value, int | float):
        raise UserError(f"config.{name} is {value!r:.80}; write a number")
    whole = isinstance(low, int) and isinstance(high, int)
    if low <= value <= high and (not whole or float(value).is_integer()):
        return
    words = {_TINY: "more than 0", 0: "0 or more"}.get(low, f"at least {low:g}")
    most = "" if high == math.inf else f", at most {high if whole else f'{high:g}'}"
    words = "a share from 0 to 1" if (low, high) == (0.0, 1.0) and not whole else words + most
    words = "0 or more, but less than 1" if high == 1 - _TINY else words
    words = f"a whole number, {words}" if whole and low <= value <= high else words
    shown = f"{value:g}" if isinstance(value, float) or abs(value) < 10**15 else f"{value!s:.40}"
    raise UserError(f"config.{name} is {shown}; write {words}")


def warmup_note(config: ConfigDict, steps: int) -> str:
    """Returns what is to be said of a run of so many steps that ends before its learning rate is reached."""
    warmup = config.get("warmup_steps", 0)
    return f"config.warmup_steps is {warmup}, but the run has {steps} steps" if warmup > steps > 0 else ""


def check_sft(config: ConfigDict) -> None:
    """Raises a UserError for a config that `experiments.sft` cannot follow."""
    _check_stage(config, "model_name_or_path", "data_path")
    if config.evidence is None:
        for name in ("feedback", "box_frames"):
            if config[name] not in (None, "none", "stream"):  # these are what a text does without modules
                raise UserError(
                    f"config.{name} is '{config[name]}', but config.evidence is None, which trains the text "
                    f"alone: describe the modules in config.evidence, or leave out config.{name}"
                )
    if config.feature_cache and config.lr_multipliers.vision:
        raise UserError(
            "config.feature_cache keeps what a frozen tower makes, but this one is trained: set "
            "config.lr_multipliers.vision=0, or leave config.feature_cache empty"
        )
    if config.feature_cache and generated(config.data_path):
        raise UserError(
            f"config.feature_cache keeps the clips of a data set, but those of {config.data_path} never come "
            "twice: leave config.feature_cache empty"
        )
    held_out = config.eval_data_path or config.data_path
    if config.eval_every and generated(held_out) != "synthetic" and held_out == config.data_path:
        raise UserError(
            f"config.eval_every is {config.eval_every}, but of {config.data_path} no clips are held out: set "
            "config.eval_data_path to another data set, or to synthetic:1, :2 or :3"
        )


def check_kernel(config: ConfigDict) -> None:
    """Raises a UserError if the attention kernel cannot read the rows that the config makes."""
    if config.kernel not in ("cudnn", "triton"):
        return
    shared = config.questions_per_row > 1 or "rl_data_path" in config
    packed = config.kernel == "cudnn" and config.get("clips_per_row", 1) > 1
    if shared or packed or config.mesh.context > 1:
        what = "a row over several devices" if config.mesh.context > 1 else "several texts behind one video"
        what = "several clips in a row" if packed else what
        raise UserError(
            f"config.kernel is '{config.kernel}', which cannot read {what}: write xla, or splash on a TPU"
        )


def check_gspo(config: ConfigDict) -> None:
    """Raises a UserError for a config that `experiments.gspo` cannot follow."""
    _check_stage(config, "sft_model_path", "rl_data_path")
    kind = generated(config.rl_data_path)
    if kind == "captions":
        raise UserError(
            f"config.rl_data_path is '{config.rl_data_path}', which asks nothing: write synthetic:1, :2 or "
            ":3, or a dataset folder"
        )
    if config.group_size < 2:
        raise UserError(
            f"config.group_size is {config.group_size}; write at least 2: advantages compare the "
            "completions of a group"
        )
    if config.sampling.temperature == 0:
        raise UserError(
            "config.sampling.temperature is 0, at which the completions of a group are all the same: write a "
            "positive number"
        )
    if config.eval_every and kind != "synthetic":
        raise UserError("config.eval_every is for synthetic clips: set it to 0, and use experiments.evaluate")
    if config.eval_every and config.eval_prompts < 1:
        raise UserError(f"config.eval_prompts is {config.eval_prompts}; write at least 1, or eval_every=0")
    if config.eval_samples < 0:
        raise UserError(f"config.eval_samples is {config.eval_samples}; write how many, 0 for greedy alone")
    if config.prompts_per_iteration % config.minibatches_per_rollout:
        raise UserError(
            f"config.prompts_per_iteration is {config.prompts_per_iteration}, which "
            f"{config.minibatches_per_rollout} minibatches cannot share: make it a multiple"
        )
    if config.max_steps % config.minibatches_per_rollout:
        raise UserError(
            f"config.max_steps is {config.max_steps} optimizer steps, {config.minibatches_per_rollout} to an "
            "iteration: make it a multiple"
        )


def _check_stage(config: ConfigDict, model: str, data: str) -> None:
    """Checks what both stages have, `model` and `data` being the fields that name these."""
    check_fields(config)
    check_kernel(config)
    for name in (model, data):
        if not config[name]:
            raise UserError(f"config.{name} is empty: write a folder")
    FramesConfig(**config.frames)
    kind, _, level = config[data].partition(":")
    if generated(config[data]) and level not in ("1", "2", "3", "4"):
        raise UserError(f"config.{data} is '{config[data]}'; write {kind}:1, :2, :3 or :4")
    steps, epochs = config.max_steps, config.num_train_epochs
    if (steps > 0) == (epochs > 0):
        raise UserError(
            f"config.max_steps is {steps} and config.num_train_epochs is {epochs:g}: "
            "set exactly one of them, and the other to 0"
        )
    if epochs > 0 and generated(config[data]):
        raise UserError(
            f"config.num_train_epochs is {epochs:g}, but {config[data]} has no end: set config.max_steps"
        )


def generated(path: str) -> str:
    """Returns "synthetic", "captions" or "levels" where data of the synthetic world are named, "" for a data
    set."""
    kind = path.partition(":")[0]
    return kind if kind in ("synthetic", "captions", "levels") else ""


def choose_modules(config: ConfigDict, asked: EvidenceConfig, have: EvidenceConfig | None) -> EvidenceConfig:
    """Returns the evidence modules that are trained: the model's, or new ones as the config describes them.

    The sharding strategy is the config's, and so are `feedback` and `box_frames` where it says so.

    Args:
        asked: of `config.evidence`.
        have: the model's modules, if it has any.

    Raises:
        UserError: if the config describes other modules than those that the model has.
    """
    rules = ("feedback", "box_frames")
    have = have or asked
    chosen = dataclasses.replace(asked, **{name: config[name] or getattr(have, name) for name in rules})
    for name, value in dataclasses.asdict(have).items():
        if name not in ("strategy", *rules) and getattr(chosen, name) != value:
            raise UserError(
                f"config.evidence.{name} is {getattr(chosen, name)}, but the model has evidence modules with "
                f"{value}: write that, or start from a model without them"
            )
    return chosen


def check_text_alone(have: EvidenceConfig | None) -> None:
    """Raises a UserError if a text is to be trained alone that is written with the help of its modules."""
    if have and have.feedback == "prompt":
        raise UserError(
            "the model's text reads its evidence modules' proposals, but config.evidence is None, which "
            "would train it without: take a config that describes the modules, such as configs/sft_tiny.py "
            "(to train the text alone, with config.loss.evidence_weight=0 and "
            "config.lr_multipliers.evidence=0)"
        )
