"""Stage 0 of o3-tiny: a random model, its tokenizer, and the grounding warm-up of its vision tower.

python -m experiments.ground --config=configs/ground_tiny.py --workdir=runs/ground_tiny
"""

from ml_collections import ConfigDict

from configs import common


def get_config() -> ConfigDict:
    c = common.part(max_steps=2000, learning_rate=2e-3, warmup_steps=50, log_every=50, save_every=500)
    c.seed = 0
    c.level = 1
    c.vocab_size = 1280
    c.video_fps = 4.0  # frames per second of the language stream
    c.row_frame_pairs = 12  # frame pairs of a row
    c.row_patches = 64  # patches of a frame

    c.text = ConfigDict(
        dict(
            hidden_size=192,
            intermediate_size=448,
            num_hidden_layers=5,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=48,
            rope_theta=10_000.0,
            mrope_section=(8, 8, 8),
        )
    )
    c.vision = ConfigDict(
        dict(
            depth=3,
            hidden_size=128,
            intermediate_size=320,
            num_heads=4,
            out_hidden_size=192,
            deepstack_visual_indexes=(1,),
            num_position_embeddings=64,
        )
    )

    c.train_batch_size = 48  # clips
    c.pairs_per_clip = 1  # pairs of one clip are too alike to pay
    return c
