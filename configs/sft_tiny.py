"""SFT of o3-tiny on the synthetic world, rendered while it trains (no clip comes twice).

First single frames with captions, then clips with questions:

    python -m experiments.sft --config=configs/sft_tiny.py:captions --workdir=runs/captions_tiny
    python -m experiments.sft --config=configs/sft_tiny.py --workdir=runs/sft_tiny
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "questions") -> ConfigDict:
    c = common.sft()
    c.model_name_or_path = "runs/captions_tiny/model"
    c.data_path = "synthetic:1"
    c.prompt_style = "plain"
    c.box_step = 10
    c.questions_per_row = 3
    c.row_length = 576
    c.row_groups = 12
    c.row_patches = 64

    c.evidence = ConfigDict({"hidden_size": 128, "num_heads": 4, "dense_pixels": 96 * 96, "proposals": 2})
    c.evidence_shape = common.evidence_shape(
        patches=36, questions=c.questions_per_row, question_length=32, mentions=2, boxes=1, intervals=1
    )

    c.per_device_train_batch_size = 4
    c.max_steps = 1900
    c.optimizer = "muon"
    c.learning_rate = 1.5e-3
    c.warmup_steps = 100
    c.weight_decay = 0.02
    c.adam_b2 = 0.99
    c.compute_dtype = "float32"
    c.remat = "none"
    c.soften_times = 0.1
    c.soften_coordinates = 15.0
    c.log_every = 50

    if arg == "captions":
        c.model_name_or_path = "runs/ground_tiny/model"
        c.data_path = "captions:1"
        c.evidence = None
        c.row_groups = 2
        c.row_length = 224
        c.per_device_train_batch_size = 16
        c.max_steps = 800
        c.lr_scheduler_type = "constant"
    elif arg != "questions":
        raise ValueError(f"unknown argument '{arg}': questions or captions")
    return c
