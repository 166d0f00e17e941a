"""`python -m experiments.bench.memory`: peak memory of frames of unlike sizes, and the time of attention.

Each mixture runs in a process of its own, whose peak is that of the mixture. Training rows are measured by
the gradient of a batch of them, as large as the largest clip makes them and as large as their own.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Sequence

import numpy as np

from experiments.bench.timing import peak_bytes, timed

# Name: sizes of the images, (frames, height, width) of the videos, whether each is a row of its own.
MIXTURES: dict[str, tuple[list[tuple[int, int]], list[tuple[int, int, int]], bool]] = {
    "two rows: an image of 512 x 512; 128 pairs of 64 x 64": ([(512, 512)], [(256, 64, 64)], True),
    "384 pairs of 64 x 64 beside an image of 512 x 512": ([(512, 512)], [(768, 64, 64)], False),
    "384 pairs of 128 x 224 beside an image of 1080 x 1920": ([(1080, 1920)], [(768, 128, 224)], False),
    "a photo of 3024 x 4032": ([(3024, 4032)], [], False),
}


def mixture(name: str) -> None:
    """Prints what generating two tokens from a mixture takes of this process."""
    import o3jax

    images, videos, apart = MIXTURES[name]
    model, rng = o3jax.load("o3-tiny"), np.random.default_rng(0)
    processor = model.processor
    processor.image_config = dataclasses.replace(processor.image_config, min_pixels=1024, max_pixels=16777216)
    processor.video_config = dataclasses.replace(
        processor.video_config, min_pixels=1024, max_pixels=25165824, fps=25.0, max_frames=2000
    )
    marks = [f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("image", "video")]
    texts = [marks[0]] * len(images) + [marks[1]] * len(videos)
    given = {
        "images": [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in images],
        "videos": [rng.integers(0, 255, (*size, 3), dtype=np.uint8) for size in videos],
        "video_metadata": [{"fps": 25.0, "total_num_frames": size[0]} for size in videos],
    }
    inputs = processor(
        text=[f"{text} what" for text in texts] if apart else ["".join(texts) + " what"],
        padding_side="right",
        **{key: value for key, value in given.items() if value},
    )
    patches = sum(len(inputs[key]) for key in ("pixel_values", "pixel_values_videos") if key in inputs)
    spent = timed(lambda: model.generate(**inputs, max_new_tokens=2))[1][0]
    peak = peak_bytes() / 1e9
    print(f"{name:56} {patches:7,} patches  {peak:5.1f} GB  {spent:5.1f} s", flush=True)


# Of a batch of four training rows: frame pairs and patches that each is padded to. Clips have 4 pairs of 64
# patches, and one of the data set has 16 of 1,024 (`tests/data_pipelines/rows/test_sizes.py`).
ROWS = {"rows of 16 x 1024, as the largest clip": (16, 1024), "rows of 4 x 64, their own size": (4, 64)}


def training_rows(name: str) -> None:
    """Prints how much room the gradient of the text's loss needs, on four rows of one size; none is run."""
    import jax

    import o3jax
    from o3jax.inputs.collate import empty_patches
    from o3jax.models.batch import Batch, SupervisedBatch, TextRow, stack
    from o3jax.sft.text import text_loss, token_counts

    model, (pairs, patches), length = o3jax.load("o3-tiny"), ROWS[name], 384
    shown = empty_patches((pairs, patches), model.config.vision, np.uint8)
    shown.length[:4] = 64
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (3, length))
    index = np.full(length, -1, np.int32)
    index[:64] = np.arange(4).repeat(16) * (patches // 4) + np.tile(np.arange(16), 4)
    ids, ones = np.full(length, 9, np.int32), np.ones(length, np.int32)
    text = TextRow(ids, ones, positions, index, continuation_ids=0 * ones)
    batch = stack([SupervisedBatch(Batch(text, patches=shown), ids)] * 4)
    run = jax.jit(jax.value_and_grad(text_loss, has_aux=True))
    compiled = run.lower(model.backbone, batch, token_counts(batch)).compile()
    room = compiled.memory_analysis().temp_size_in_bytes / 1e9
    print(f"{name:56} {4 * pairs * patches:7,} patches  {room:5.2f} GB", flush=True)


def attention_times() -> None:
    """Prints the CPU milliseconds of attention and of its gradient, and how long they compile."""
    import jax
    import jax.numpy as jnp

    from o3jax.models.attention import Mask, attention

    def once(fn, *inputs):
        return jax.block_until_ready(fn(*inputs))

    rng = np.random.default_rng(0)
    for size, causal in ((512, True), (2048, True), (4096, True), (2048, False)):
        q, k, v = (jnp.asarray(rng.standard_normal((1, size, n, 64)), jnp.float32) for n in (8, 4, 4))
        ids = np.ones((1, size), np.int32)

        def run(q, k, v, mask=Mask(ids, ids, causal=causal)):  # noqa: B008 (one a loop)
            return attention(q, k, v, mask)

        found = []
        for fn in (jax.jit(run), jax.jit(jax.grad(lambda *x, run=run: run(*x).sum(), (0, 1, 2)))):
            first, *others = [timed(once, fn, q, k, v)[1] for _ in range(8)]
            least = 1e3 * min(processor for _, processor in others)
            found.append(f"{least:7.1f} ms, compiled in {first[0]:4.1f} s")
        print(f"{size:6} queries, {'causal' if causal else 'all keys':8}", *found, flush=True)


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        return (mixture if argv[1] in MIXTURES else training_rows)(argv[1])
    for name in (*MIXTURES, *ROWS):
        subprocess.run([sys.executable, "-m", "experiments.bench.memory", name], check=True)
    attention_times()


if __name__ == "__main__":
    main(sys.argv)
