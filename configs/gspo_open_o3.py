"""The published second stage of Open-o3 Video, on a Qwen3-VL: 8 prompts with 4 completions, one update each.

With one update per rollout the ratio is 1 and nothing is clipped, in the published code by construction;
here it is computed all the same. Frames, rewards ("compat") and the KL are as published.

    python -m experiments.gspo --config=configs/gspo_open_o3.py --workdir=runs/gspo \\
        --config.sft_model_path=runs/sft/model --config.rl_data_path=data/json_data/STGR-RL.json
"""

from ml_collections import ConfigDict

from configs import common, sft_open_o3


def get_config() -> ConfigDict:
    sft = sft_open_o3.get_config()
    c = common.gspo()
    c.sft_model_path = "runs/sft/model"
    c.rl_data_path = "data/json_data/STGR-RL.json"
    c.frames = common.frames(layout="images", stage="rl", timestamps="released", key_frames="released")
    for field in ("row_length", "row_frame_pairs", "row_patches", "num_workers", "mesh"):
        c[field] = sft[field]
    c.prompts_per_iteration = 8
    c.group_size = 4
    c.minibatches_per_rollout = 1
    c.sampling.top_p = 0.95
    c.reward = "open_o3"
    c.advantages.eps = 1e-4
    c.clip_low = c.clip_high = 0.2
    c.kl_coef = 0.04
    c.mask_truncated = False
    c.num_train_epochs = 1.0
    c.learning_rate = 1e-6
    c.weight_decay = 0.01
    c.max_grad_norm = 5.0
    c.log_every = 1
    return c
