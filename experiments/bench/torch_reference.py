"""The peer in a benchmark: transformers' Qwen3-VL in torch, driven the way its users drive it.

Torch is no dependency of the project, so this module is imported by the benchmarks alone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from o3jax.errors import UserError

for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ[name] = "1"

try:
    import torch
    import transformers
    from transformers import Qwen3VLForConditionalGeneration
except ImportError as error:
    raise UserError(
        f"the benchmark compares with transformers in torch, and {error.name} is not installed: "
        "run `make setup`, or pip install -r requirements-dev.txt"
    ) from error

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


class Theirs:
    """A transformers model with sdpa attention; every method returns when the device has finished."""

    def __init__(self, folder: Path, *, dtype: str = "float32", device: str = "cpu"):
        self.device = torch.device(device)
        self.model = Qwen3VLForConditionalGeneration.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa"
        )
        self.model.to(self.device).eval()
        # A fixed number of new tokens: nothing ends a row early.
        self.model.generation_config.eos_token_id = None
        self.model.generation_config.pad_token_id = 0
        self.optimizer: torch.optim.Optimizer | None = None

    def inputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
        """Returns the arrays as tensors on the device, floats in the model's dtype."""

        def tensor(a: np.ndarray) -> torch.Tensor:
            t = torch.from_numpy(a).to(self.device)
            return t.to(self.model.dtype) if t.is_floating_point() else t

        return {key: tensor(value) for key, value in inputs.items()}

    def _finished(self, x: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return x

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns logits [B, S, V]."""
        with torch.inference_mode():
            self.model.model.rope_deltas = None
            return self._finished(self.model(**inputs, use_cache=False).logits)

    def vision(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Returns the language tokens of all frames [tokens, D]."""
        with torch.inference_mode():
            out = self.model.model.visual(inputs["pixel_values_videos"], inputs["video_grid_thw"])
            return self._finished(out.pooler_output)

    def make_optimizer(self, *, lr: float, weight_decay: float, b2: float) -> None:
        """Sets up AdamW on all parameters; matrices decay, norms and biases do not."""
        plain, decayed = [], []
        for name, p in self.model.named_parameters():
            (plain if "norm" in name or "bias" in name else decayed).append(p)
        groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, b2), eps=1e-8, fused=True)
        self.model.train()

    def train_step(
        self, inputs: Mapping[str, torch.Tensor], labels: torch.Tensor, max_grad_norm: float
    ) -> float:
        """Returns the mean loss after one step of AdamW with clipped gradients."""
        self.model.model.rope_deltas = None
        loss = self.model(**inputs, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return self._finished(loss).item()

    def generate(self, inputs: Mapping[str, torch.Tensor], new_tokens: int, **options: Any) -> np.ndarray:
        """Returns the greedy tokens [B, new]."""
        with torch.inference_mode():
            self.model.model.rope_deltas = None
            ids = self.model.generate(**inputs, do_sample=False, max_new_tokens=new_tokens, **options)
        return ids[:, inputs["input_ids"].shape[1] :].cpu().numpy()
