"""What the training configs have in common; each of them then says what is its own."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict, config_dict

from data_pipelines.rows.frames import FramesConfig
from o3jax.choices import LOGICAL_AXES, MESH_AXES
from o3jax.models.config import EvidenceConfig


def mesh(**sizes: int) -> ConfigDict:
    """Returns the devices along each mesh axis, 1 where none is named; batches lie over data and fsdp."""
    return ConfigDict({axis: sizes.get(axis, 1) for axis in MESH_AXES})


def with_whole_frames(config: ConfigDict) -> ConfigDict:
    """Returns a config whose rows have so many frame pairs that all devices of `mesh.context` have as many.

    What is added is padding. Else what is made of frames would be gathered whole on each of them.
    """
    config = config.copy_and_resolve_references()
    for section, name in ((config, "row_frame_pairs"), (config.evidence_shape, "frame_pairs")):
        section[name] += -section[name] % config.mesh.context
    return config


def sharding() -> ConfigDict:
    """Returns where logical axes lie on the mesh, see ShardingRules: `fsdp,context` or `` for nowhere.

    A field without value is as the rules have it.
    """
    return ConfigDict({axis: config_dict.placeholder(str) for axis in LOGICAL_AXES})


def sft() -> ConfigDict:
    """Returns every field of `experiments.sft`: the plain values, for a Qwen3-VL as published."""
    c = _stage()
    c.model_name_or_path = ""  # a Hugging Face folder
    c.data_path = ""  # a dataset folder, synthetic:LEVEL, levels:LEVEL or captions:LEVEL
    c.full_text_loss = False  # labels on the prompt too, not only on the response
    c.feature_cache = ""  # a folder that keeps what a frozen tower makes of the clips of a data set
    c.feature_cache_gib = 100.0  # a full folder takes no more

    # Several clips of a data set may share a row, each a segment of its own, with the numbers of rows of
    # their own; `evidence_shape` is the row's too.
    c.clips_per_row = 1
    c.questions_per_row = 1

    # The modules, made anew for a model that has none; None trains the text alone, which then must not read
    # what they say.
    c.evidence = None
    # Boxes are read from the prompt's frames ("stream"), or from the frame pointed at, encoded extra
    # ("pointed": one of `row_frame_pairs` for each mention with a box). None: as the model says.
    c.box_frames = config_dict.placeholder(str)
    # 1 - evidence_weight is the text's; the others weigh the terms of the evidence, see EvidenceWeights.
    c.loss = ConfigDict({"evidence_weight": 0.4, "candidate_low": 0.1})
    c.loss.update({"time": 1.0, "time_ce": 1.0, "interval": 1.0, "interval_ce": 1.0, "relevance": 1.0})
    c.loss.update({"box_l1": 5.0, "box_giou": 2.0, "confidence": 0.1, "proposals": 0.5})

    # Batches that are not trained on, after every so many steps and the last one; their metrics stand in the
    # log as eval/NAME. Of the synthetic world its validation split, or another data set.
    c.eval_every = 0  # 0 is off
    c.eval_batches = 8
    c.eval_data_path = ""

    c.per_device_train_batch_size = 1  # rows
    # Standard deviation of the softened target around a number, in seconds and in 0-1000; 0 is off. For
    # small vocabularies: the table has a row and a column per token.
    c.soften_times = 0.0
    c.soften_coordinates = 0.0
    return c


def gspo() -> ConfigDict:
    """Returns every field of `experiments.gspo`: the values of the GSPO paper where it has one."""
    c = _stage()
    c.sft_model_path = ""  # the folder of a model that was fine-tuned
    c.rl_data_path = ""  # a dataset folder, synthetic:LEVEL or levels:LEVEL
    c.questions_per_row = 1

    # An iteration: as many prompts, a group of completions each, shared by as many optimizer steps. Those
    # after the first see a policy that has moved, which is what the clip is for.
    c.prompts_per_iteration = 32
    c.group_size = 8
    c.minibatches_per_rollout = 4
    c.max_completion_length = 768  # tokens
    # 1, 1, 0, 0 is the model's own distribution, which the update assumes; see `Sampling`.
    c.sampling = ConfigDict({"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0})
    c.stop = ()  # strings that end a completion, beside the model's end of text
    c.rollout_slots = 0  # prompts that are sampled at a time; 0 is all
    # Several devices decode by rules and on a mesh of their own. With a 0, `tensor` has as many as share the
    # key heads within a node, and `data` the rest.
    c.decode_mesh = ConfigDict({"data": 0, "context": 1, "tensor": 0, "expert": 1})
    c.decode_sharding = sharding()
    c.groups_per_row = 1  # of the update; short groups may share the room of a long one

    c.reward = "article"  # a name of o3jax.rewards.registry, or one's own as package.module:function
    c.reward_options = ConfigDict()  # keyword arguments of the reward
    c.reward_evidence = "text"  # what is rewarded: the text's claims, the modules' ("decoder"), or "both"
    c.reward_workers = 2  # processes
    c.reward_time_limit_s = 10.0  # of a completion
    c.reward_fallback = 0.0  # of a completion that cannot be rewarded
    c.max_failed_rewards = 0.05  # share of all completions; more stops the run

    c.advantages = ConfigDict({"ddof": 1, "eps": 1e-6, "scale_rewards": "group", "positive_only": False})
    c.ratio = "sequence"  # or sequence_token, token (GRPO), one (the published code's)
    c.clip_low = 3e-4
    c.clip_high = 4e-4
    c.kl_coef = 0.0  # of the KL to the model before training, which is then kept beside
    # A truncated completion has no gradient, but counts in the loss's denominator.
    c.mask_truncated = True

    # Completions of held-out synthetic prompts, before an iteration, one greedy and some of the policy.
    c.eval_every = 0  # 0 is off
    c.eval_prompts = 64
    c.eval_samples = 4
    return c


def _stage() -> ConfigDict:
    """Returns the fields of both stages."""
    c = ConfigDict()
    c.seed = 0
    c.split = "train"  # of the synthetic world
    # Weights of a data set's sources, by name or pattern ("*" is the rest); empty: as many as there are.
    # Set in a config file: the command line knows only fields that are there.
    c.mixture = ConfigDict()
    c.max_rejected_share = 0.05  # of a dataset folder's records; more stops the run before training
    c.max_failed_share = 0.05  # of the clips that were to be read; more stops the run, saved
    c.num_workers = 0  # processes that read and decode; 0 is a thread of the training process
    c.frame_cache = ""  # a folder that keeps decoded frames, for all epochs and runs; empty: none are kept
    c.frame_cache_gib = 20.0  # a full folder takes no more
    c.frames = frames()
    c.video = video()
    c.prompt_style = "open_o3"
    c.box_step = 1  # coordinates are multiples of this in 0-1000
    # "prompt": the text is written from the modules' proposals; "none": on its own. None: as the model says.
    c.feedback = config_dict.placeholder(str)

    # What a row is padded to; what does not fit is an error.
    c.row_length = 4096  # tokens
    c.row_frame_pairs = 8  # frame pairs
    c.row_patches = 512  # of a frame
    c.evidence_shape = evidence_shape()

    # Factors on the learning rate; a part with 0 is frozen.
    c.lr_multipliers = ConfigDict({"vision": 1.0, "text": 1.0, "evidence": 1.0})
    # Adapters of this rank on the named projections (see LoRA) instead of the backbone; 0 is off.
    c.lora = ConfigDict({"rank": 0, "alpha": 32.0, "targets": ("q", "k", "v", "o", "gate", "up", "down")})
    c.mesh = mesh()
    c.sharding = sharding()
    c.gradient_accumulation_steps = 1
    # Exactly one of these; the other is 0.
    c.num_train_epochs = 0.0
    c.max_steps = 0
    c.optimizer = "adamw"
    c.learning_rate = 1e-5
    c.lr_scheduler_type = "cosine"
    c.warmup_steps = 0
    c.weight_decay = 0.0
    c.max_grad_norm = 1.0  # of all gradients together, which are scaled down to it; inf is off
    c.adam_b2 = 0.999
    c.compute_dtype = "bfloat16"
    c.remat = "names"
    c.kernel = "xla"  # of attention: a name of o3jax.models.attention.KERNELS
    c.loss_chunk = 1024  # positions of a row whose logits exist at a time

    c.log_every = 10
    c.save_every = 500
    c.profile = ConfigDict({"start": 10, "steps": 0})  # a trace of so many steps, in WORKDIR/profile
    c.stop_at_step = 0
    return c


def part(**fields: Any) -> ConfigDict:
    """Returns how `experiments.ground` and `.match` train a part of a tiny model, and the given fields."""
    c = ConfigDict({"mesh": mesh(), "optimizer": "muon", "lr_scheduler_type": "cosine", "stop_at_step": 0})
    c.update({"weight_decay": 0.01, "max_grad_norm": 1.0, "adam_b2": 0.99})
    c.update(fields)
    return c


def frames(**fields: Any) -> ConfigDict:
    """Returns how frames enter the prompt, see FramesConfig; by default as Qwen3-VL reads them."""
    return ConfigDict(dataclasses.asdict(FramesConfig(**fields)))


def video(**fields: Any) -> ConfigDict:
    """Returns what to change in the model's own VideoConfig; a field without value stays the model's."""
    c = ConfigDict({"fps": config_dict.placeholder(float)})
    for name in ("min_frames", "max_frames", "min_pixels", "max_pixels", "max_video_tokens"):
        c[name] = config_dict.placeholder(int)
    c.cap_pixels_per_frame = config_dict.placeholder(bool)
    c.update(fields)
    return c


def given(c: ConfigDict) -> dict[str, Any]:
    """Returns the fields that have a value."""
    return {name: value for name, value in c.items() if value is not None}


def evidence(**fields: Any) -> ConfigDict:
    """Returns the modules' sizes, see EvidenceConfig; `feedback` and `box_frames` are fields of their own."""
    c = ConfigDict(dataclasses.asdict(EvidenceConfig(**fields)))
    del c.feedback, c.box_frames
    return c


def evidence_shape(**sizes: int) -> ConfigDict:
    """Returns what the evidence of a row is padded to, see EvidenceShape."""
    shape = {"frame_pairs": 75, "patches": 64, "questions": 1, "question_length": 512}
    return ConfigDict(shape | {"mentions": 16, "boxes": 8, "intervals": 16} | sizes)
