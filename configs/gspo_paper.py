"""GSPO as its paper has it (Zheng et al. 2025): four minibatches per rollout, clip 3e-4 / 4e-4, no KL.

    python -m experiments.gspo --config=configs/gspo_paper.py --workdir=runs/gspo \\
        --config.sft_model_path=runs/sft/model --config.rl_data_path=data/stgr_rl_36k
"""

from ml_collections import ConfigDict

from configs import common, gspo_article


def get_config() -> ConfigDict:
    article = gspo_article.get_config()
    c = common.gspo()
    for field in ("sft_model_path", "rl_data_path", "video", "row_length", "row_frame_pairs", "row_patches"):
        c[field] = article[field]
    for field in ("evidence_shape", "num_workers", "mesh"):
        c[field] = article[field]
    c.lr_multipliers.vision = 0.0
    c.num_train_epochs = 1.0
    c.learning_rate = 1e-6
    c.lr_scheduler_type = "constant"
    c.log_every = 4
    return c
