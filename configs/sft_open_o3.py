"""The published cold start of Open-o3 Video, on a Qwen3-VL: the text alone, and the loss on all of it.

Eight devices, 8 samples a step, 1 epoch: 3,896 steps of the published 31,166 records. Questions about
images (16 % of these) are rejected, and frames are native video tokens with their times, where the
published code writes up to 16 images with a line of text each.

    python -m experiments.sft --config=configs/sft_open_o3.py --workdir=runs/sft \\
        --config.model_name_or_path=Qwen3-VL-8B-Instruct --config.data_path=data/stgr_sft
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.sft()
    c.model_name_or_path = "models/Qwen3-VL-8B-Instruct"
    c.data_path = "data/stgr_sft"
    c.max_rejected_share = 0.2
    c.prompt_style = "open_o3_sft"
    c.full_text_loss = True
    # As many pixels as published; with an odd number of frames a pair is at most 127 tokens.
    c.video = ConfigDict(
        {"fps": 2.0, "min_frames": 4, "max_frames": 16, "cap_pixels_per_frame": True, "max_video_tokens": 102}
    )
    c.row_length = 4096
    c.row_groups = 8
    c.row_patches = 512

    c.mesh = common.mesh(fsdp=8)
    c.per_device_train_batch_size = 1
    c.num_train_epochs = 1.0
    c.learning_rate = 1e-6
    c.lr_scheduler_type = "linear"
    c.max_grad_norm = 5.0
    return c
