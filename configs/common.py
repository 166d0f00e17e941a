"""What the training configs have in common; each of them then says what is its own."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict, config_dict

from data_pipelines.frames import FramesConfig
from o3jax.models.config import EvidenceConfig


def mesh(**sizes: int) -> ConfigDict:
    """Returns the devices along each mesh axis, 1 where none is named; batches lie over data and fsdp."""
    axes = ("data", "fsdp", "context", "tensor", "expert")
    return ConfigDict({axis: sizes.get(axis, 1) for axis in axes})


def sft() -> ConfigDict:
    """Returns every field of `experiments.sft`: the plain values, for a Qwen3-VL as published."""
    c = ConfigDict()
    c.seed = 0
    c.model_name_or_path = ""  # a Hugging Face folder
    c.data_path = ""  # a dataset folder, synthetic:LEVEL or captions:LEVEL
    c.split = "train"  # of the synthetic world
    # Weights of a data set's sources, by name or pattern ("*" is the rest); empty: as many as there are.
    # Set in a config file: the command line knows only fields that are there.
    c.mixture = ConfigDict()
    c.max_rejected_share = 0.05  # of a dataset folder's records; more stops the run before training
    c.max_failed_share = 0.05  # of the clips that were to be read; more stops the run, saved
    c.num_workers = 0  # processes that read and decode; 0 is a thread of the training process
    c.frames = frames()
    c.video = video()
    c.prompt_style = "open_o3"
    c.box_step = 1  # coordinates are multiples of this in 0-1000
    c.full_text_loss = False  # labels on the prompt too, not only on the response

    # What a row is padded to; what does not fit is an error. Several clips of a data set may share a row,
    # each a segment of its own, with the numbers of rows of their own; `evidence_shape` is the row's too.
    c.clips_per_row = 1
    c.questions_per_row = 1
    c.row_length = 4096  # tokens
    c.row_groups = 8  # frame pairs
    c.row_patches = 512  # of a frame

    # The modules, made anew for a model that has none; None trains the text alone.
    c.evidence = None
    c.evidence_shape = evidence_shape()
    # "prompt": the text is written from the modules' proposals; "none": on its own. None: as the model says.
    c.feedback = config_dict.placeholder(str)
    # 1 - evidence_weight is the text's; the others weigh the terms of the evidence, see EvidenceWeights.
    c.loss = ConfigDict({"evidence_weight": 0.4, "candidate_low": 0.1})
    c.loss.update({"time": 1.0, "time_ce": 1.0, "interval": 1.0, "interval_ce": 1.0, "relevance": 1.0})
    c.loss.update({"box_l1": 5.0, "box_giou": 2.0, "confidence": 0.1, "proposals": 0.5})
    # Factors on the learning rate; a part with 0 is frozen.
    c.rates = ConfigDict({"vision": 1.0, "text": 1.0, "evidence": 1.0})
    # Adapters of this rank on the named projections (see LoRA) instead of the backbone; 0 is off.
    c.lora = ConfigDict({"rank": 0, "alpha": 32.0, "targets": ("q", "k", "v", "o", "gate", "up", "down")})

    c.mesh = mesh()
    c.per_device_train_batch_size = 1  # rows
    c.gradient_accumulation_steps = 1
    # Exactly one of these; the other is 0.
    c.num_train_epochs = 0.0
    c.max_steps = 0
    c.optimizer = "adamw"
    c.learning_rate = 1e-5
    c.lr_scheduler_type = "cosine"
    c.warmup_steps = 0
    c.weight_decay = 0.0
    c.max_grad_norm = 1.0
    c.adam_b2 = 0.999
    c.compute_dtype = "bfloat16"
    c.remat = "names"
    # Standard deviation of the softened target around a number, in seconds and in 0-1000; 0 is off. For
    # small vocabularies: the table has a row and a column per token.
    c.soften_times = 0.0
    c.soften_coordinates = 0.0

    c.log_every = 10
    c.save_every = 500
    c.stop_at_step = 0
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
    """Returns the modules' sizes and rules, see EvidenceConfig; `feedback` is a field of its own."""
    c = ConfigDict(dataclasses.asdict(EvidenceConfig(**fields)))
    del c.feedback
    return c


def evidence_shape(**sizes: int) -> ConfigDict:
    """Returns what the evidence of a row is padded to, see EvidenceShape."""
    shape = {"groups": 75, "patches": 64, "questions": 1, "question_length": 512}
    return ConfigDict(shape | {"mentions": 16, "boxes": 8, "intervals": 16} | sizes)
