"""The architecture as hashable dataclasses, with Hugging Face's field names."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower. Activation (tanh GELU), LayerNorm eps (1e-6) and biases are not configurable."""

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    deepstack_visual_indexes: tuple[int, ...]
    patch_size: int = 16
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    in_channels: int = 3
    num_position_embeddings: int = 2304

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Values of one patch: channels x temporal patch x height x width."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merge_unit(self) -> int:
        """Patches that become one language token."""
        return self.spatial_merge_size**2

    @property
    def grid_side(self) -> int:
        """Side of the square table of learned positions."""
        return round(self.num_position_embeddings**0.5)


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The Qwen3 decoder; `num_experts` > 0 makes every layer a mixture of experts."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float
    mrope_section: tuple[int, int, int]
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 262144
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0


BOX_FRAMES = ("stream", "pointed")  # of EvidenceConfig.box_frames


@dataclasses.dataclass(frozen=True)
class EvidenceConfig:
    """The modules that estimate evidence beside the text: temporal encoder, matching, evidence decoder."""

    hidden_size: int  # D' of the feature matrix F
    num_heads: int
    # Of the dense stream, where a video has more than 2 x max_rate frames per second; others keep their own.
    dense_fps: float = 25.0
    dense_pixels: int = 128 * 128  # area of a dense frame, about
    temporal_layers: int = 2
    decoder_layers: int = 2
    question_layers: int = 2
    intermediate_size: int = 0  # of the MLPs; 0 is four times the hidden size
    window_s: float = 2.0  # a frame pair reads those at most this far from it, seconds
    max_rate: float = 15.0  # frame pairs per second that a window is sized for (30 fps)
    strategy: str = "halo"  # of attention along a sharded time axis: see o3jax.models.temporal
    proposals: int = 4  # learned queries that ask with the question alone
    feedback: str = "none"  # or "prompt": the language model reads the proposals after the question
    # Boxes are read from the language stream's frame pairs, or from the frame pointed at, encoded extra.
    box_frames: str = "stream"

    @property
    def mlp_size(self) -> int:
        """Width of the MLPs."""
        return self.intermediate_size or 4 * self.hidden_size


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole Qwen3-VL, and the evidence modules beside it if there are any."""

    text: TextConfig
    vision: VisionConfig
    tie_word_embeddings: bool
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    evidence: EvidenceConfig | None = None  # not part of Hugging Face's config.json: see o3_config.json
