"""Text SFT of o3-tiny on the synthetic world, rendered while it trains (no clip comes twice).

First single frames with captions, then clips with questions:

    python -m experiments.sft --config=configs/sft_tiny.py:captions --workdir=runs/captions_tiny
    python -m experiments.sft --config=configs/sft_tiny.py --workdir=runs/sft_tiny
"""

from ml_collections import ConfigDict


def get_config(arg: str = "questions") -> ConfigDict:
    c = ConfigDict()
    c.seed = 0
    c.model_name_or_path = "runs/captions_tiny/model"
    c.data_path = "synthetic:1"  # or captions:1, or a dataset folder
    c.split = "train"
    c.questions_per_row = 3
    c.prompt_style = "plain"
    c.box_step = 10  # coordinates are multiples of this in 0-1000
    c.row_length = 576
    c.row_groups = 12
    c.row_patches = 64

    # Devices along each mesh axis; the batch is spread over data and fsdp.
    c.mesh = ConfigDict({"data": 1, "fsdp": 1, "context": 1, "tensor": 1, "expert": 1})
    c.per_device_train_batch_size = 4  # clips
    c.gradient_accumulation_steps = 1
    c.max_steps = 1900
    c.optimizer = "muon"
    c.learning_rate = 1.5e-3
    c.lr_scheduler_type = "cosine"
    c.warmup_steps = 100
    c.weight_decay = 0.02
    c.max_grad_norm = 1.0
    c.adam_b2 = 0.99
    c.compute_dtype = "float32"
    c.remat = "none"
    # Standard deviation of the softened target around a number, in seconds and in 0-1000; 0 is off.
    c.soften_times = 0.1
    c.soften_coordinates = 15.0

    c.log_every = 50
    c.save_every = 500
    c.stop_at_step = 0

    if arg == "captions":
        c.model_name_or_path = "runs/ground_tiny/model"
        c.data_path = "captions:1"
        c.row_groups = 2
        c.row_length = 224
        c.per_device_train_batch_size = 16
        c.max_steps = 800
        c.lr_scheduler_type = "constant"
    elif arg != "questions":
        raise ValueError(f"unknown argument '{arg}': questions or captions")
    return c
