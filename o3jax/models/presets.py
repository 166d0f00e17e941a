"""The shapes of the published Qwen3-VL checkpoints.

From the `config.json` of huggingface.co/Qwen/Qwen3-VL-{2B,4B,8B,32B,30B-A3B}-Instruct; a test compares the
number of parameters of each with that of the checkpoint. Weights are not here: see `o3jax.load`.
"""

from __future__ import annotations

from o3jax.models.config import Config, TextConfig, VisionConfig


def _text(hidden: int, mlp: int, layers: int, heads: int, kv_heads: int, **experts: int) -> TextConfig:
    return TextConfig(
        vocab_size=151936,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=128,
        rope_theta=5e6,
        mrope_section=(24, 20, 20),
        **experts,
    )


def _small_tower(out: int) -> VisionConfig:
    return VisionConfig(24, 1024, 4096, 16, out, deepstack_visual_indexes=(5, 11, 17))


def _large_tower(out: int) -> VisionConfig:
    return VisionConfig(27, 1152, 4304, 16, out, deepstack_visual_indexes=(8, 16, 24))


PRESETS: dict[str, Config] = {
    "2B": Config(_text(2048, 6144, 28, 16, 8), _small_tower(2048), tie_word_embeddings=True),
    "4B": Config(_text(2560, 9728, 36, 32, 8), _small_tower(2560), tie_word_embeddings=True),
    "8B": Config(_text(4096, 12288, 36, 32, 8), _large_tower(4096), tie_word_embeddings=False),
    "32B": Config(_text(5120, 25600, 64, 64, 8), _large_tower(5120), tie_word_embeddings=False),
    "30B-A3B": Config(
        _text(*(2048, 6144, 48, 32, 4), num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768),
        _large_tower(2048),
        tie_word_embeddings=False,
    ),
}
