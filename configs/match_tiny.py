"""o3-tiny's question matching, for the rates of coarse to fine: 0.2, 1, 2 and 25 frames per second.

python -m experiments.match --config=configs/match_tiny.py --workdir=runs/match_tiny
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.part(max_steps=600, learning_rate=1e-3, warmup_steps=20, log_every=10, save_every=50)
    c.seed = 3
    c.model_name_or_path = "o3-tiny"
    c.row_frame_pairs = 100
    c.row_patches = 36  # of a dense frame
    c.questions_per_row = 12
    c.question_length = 48  # tokens
    c.keep = 3.0  # weight of how far features and the queries of proposals move
    c.train_batch_size = 8  # rows
    return c
