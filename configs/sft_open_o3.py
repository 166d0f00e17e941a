"""The published cold start of Open-o3 Video, on a Qwen3-VL: the text alone, and the loss on all of it.

Eight devices, 8 samples a step, 1 epoch: 3,896 steps of the published 31,166 records. Frames are as
published: up to 16 images, each behind a line that tells the released time, and the annotated ones among
them; `FramesConfig` says where Qwen3-VL's tokens differ. True times: `--config.frames.timestamps=true`.

    python -m experiments.sft --config=configs/sft_open_o3.py --workdir=runs/sft \\
        --config.model_name_or_path=Qwen3-VL-8B-Instruct --config.data_path=data/stgr_sft
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.sft()
    c.model_name_or_path = "models/Qwen3-VL-8B-Instruct"
    c.data_path = "data/stgr_sft"
    c.prompt_style = "open_o3_sft"
    c.full_text_loss = True
    c.frames = common.frames(layout="images", timestamps="released", key_frames="released")
    # 16 frames, as many annotated ones as there may be, and the images of visual questions.
    c.row_length = 6144
    c.row_frame_pairs = 24
    c.row_patches = 1024
    c.num_workers = 8

    c.mesh = common.mesh(fsdp=8)
    c.per_device_train_batch_size = 1
    c.num_train_epochs = 1.0
    c.learning_rate = 1e-6
    c.lr_scheduler_type = "linear"
    c.max_grad_norm = 5.0
    return c
