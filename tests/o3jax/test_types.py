"""The shapes in the annotations are true: forward, train step and generation with every call checked."""

import subprocess
import sys
import textwrap

from tests.support.paths import ROOT

PROGRAM = """
    import jaxtyping
    packages = ["o3jax.models", "o3jax.generate", "o3jax.sft", "o3jax.train"]
    jaxtyping.install_import_hook(packages, "beartype.beartype")

    import jax
    import numpy as np
    from o3jax.generate.sampler import Ending, greedy
    from o3jax.models.config import Config, TextConfig, VisionConfig
    from o3jax.models.layers import Initializer
    from o3jax.models.text import for_decoding
    from o3jax.models.qwen3_vl import Qwen3VL
    from o3jax.models.rope import text_angles
    from o3jax.inputs.collate import collate
    from o3jax.models.batch import SupervisedBatch, take
    from o3jax.sft.text import text_loss, token_counts
    from o3jax.train.optimizer import learning_rate, make_optimizer
    from o3jax.train.state import init_state, make_train_step

    text = TextConfig(64, 32, 48, 2, 2, 1, 16, 1e4, (4, 2, 2))
    vision = VisionConfig(2, 32, 48, 2, 32, (0,), num_position_embeddings=16)
    config = Config(text, vision, True, 60, 61, 62, 63)
    model = Qwen3VL(config, Initializer(jax.random.key(0)))
    ids = np.arange(20)[None] % 50
    ids[0, 5:8] = config.video_token_id
    pixels = np.ones((12, vision.patch_dim), np.float32)
    inputs = {"input_ids": ids, "pixel_values_videos": pixels, "video_grid_thw": np.array([[1, 2, 6]])}
    batch = collate(inputs, config)

    optimizer = make_optimizer(learning_rate("cosine", 1e-3, 10, 2), weight_decay=0.1, max_grad_norm=1.0)
    step = make_train_step(text_loss, optimizer, token_counts)
    micro = take(SupervisedBatch(batch, batch.text.input_ids), None)
    state, metrics = step(init_state(model, optimizer), micro)
    assert np.isfinite(metrics["loss"])
    model = state.model
    model.text.layers = for_decoding(model.text.layers)
    assert greedy(model, batch, Ending(3, (), 0)).tokens.shape == (1, 3)

    try:
        text_angles(np.zeros((3, 1, 20), np.float32), 16, 1e4, (4, 2, 2))
    except jaxtyping.TypeCheckError:
        print("checked")
"""


def test_annotated_shapes_hold():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(PROGRAM)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "checked"
