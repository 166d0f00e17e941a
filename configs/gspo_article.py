"""The article's second stage: 16 prompts with 3 completions each, its own rewards, 5 epochs.

Of the completions of a prompt only those above their mean pull the policy, as the article has it. The
evidence modules stay as they are; to refit them afterwards: experiments.sft with
`--config.lr_multipliers.text=0` and `--config.lr_multipliers.vision=0`.

    python -m experiments.gspo --config=configs/gspo_article.py --workdir=runs/gspo \\
        --config.sft_model_path=runs/sft/model --config.rl_data_path=data/stgr_rl_36k
"""

from ml_collections import ConfigDict

from configs import common, sft_article


def get_config() -> ConfigDict:
    sft = sft_article.get_config()
    c = common.gspo()
    c.sft_model_path = "runs/sft/model"
    c.rl_data_path = "data/stgr_rl_36k"
    for field in ("video", "row_frame_pairs", "row_patches", "evidence_shape", "num_workers", "mesh"):
        c[field] = sft[field]
    c.row_length = 6144  # the longest prompt; the update has room for its completions beside
    c.prompts_per_iteration = 16
    c.group_size = 3
    c.minibatches_per_rollout = 2  # of 8 prompts, one to a device
    c.advantages.positive_only = True
    c.lr_multipliers.vision = 0.0
    c.num_train_epochs = 5.0
    c.learning_rate = 1e-6
    c.lr_scheduler_type = "constant"
    c.log_every = 2
    return c
