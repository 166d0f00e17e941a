"""The peer in a benchmark: transformers' Qwen3-VL in torch, driven the way its users drive it.

Torch is no dependency of the project, so this module is imported by the benchmarks alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from experiments.bench.inputs import Inputs
from experiments.bench.ours import B2, LEARNING_RATE, MAX_GRAD_NORM, WEIGHT_DECAY
from o3jax.errors import UserError

for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ[name] = "1"

try:
    import torch
    import transformers
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
    from transformers.utils import ModelOutput
except ImportError as error:
    raise UserError(
        f"the benchmark compares with transformers in torch, and {error.name} is not installed: "
        "run `make setup`, or pip install -r requirements-dev.txt"
    ) from error

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


Tensors = Mapping[str, torch.Tensor]


class Theirs:
    """A transformers model with sdpa attention, behind the calls of `experiments.bench.ours.Side`.

    Args:
        cache: how keys and values are kept while generating, "static" or transformers' default. Where it is
            static and the device a GPU, transformers compiles the decoding step by itself.
        random: weights are drawn on the device, and the folder has a config.json alone.
    """

    def __init__(
        self,
        folder: Path,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        cache: str | None = None,
        random: bool = False,
    ):
        self.device = torch.device(device)
        options = {"dtype": getattr(torch, dtype), "attn_implementation": "sdpa"}
        if random:
            config = Qwen3VLConfig.from_pretrained(folder)
            with self.device:
                self.model = Qwen3VLForConditionalGeneration._from_config(config, **options)
        else:
            self.model = Qwen3VLForConditionalGeneration.from_pretrained(folder, **options)
        self.model.to(self.device).eval()
        # A fixed number of new tokens: nothing ends a row early.
        self.model.generation_config.eos_token_id = None
        self.model.generation_config.pad_token_id = 0
        self.model.generation_config.cache_implementation = cache

    def inputs(self, inputs: Inputs) -> Tensors:
        def tensor(a: np.ndarray) -> torch.Tensor:
            t = torch.from_numpy(a).to(self.device)
            return t.to(self.model.dtype) if t.is_floating_point() else t

        return {key: tensor(value) for key, value in inputs.items()}

    def run(self, inputs: Tensors, **options: int) -> ModelOutput:
        """Returns what transformers returns; the model forgets the last prompt's position offset."""
        self.model.model.rope_deltas = None
        return self.model(**inputs, use_cache=False, **options)

    def forward(self, inputs: Tensors) -> torch.Tensor:
        with torch.inference_mode():
            return self._finished(self.run(inputs).logits)

    def vision(self, inputs: Tensors) -> torch.Tensor:
        with torch.inference_mode():
            out = self.model.model.visual(inputs["pixel_values_videos"], inputs["video_grid_thw"])
            return self._finished(out.pooler_output)

    def generate(self, inputs: Tensors, new_tokens: int, **options: float) -> torch.Tensor:
        options = options or {"do_sample": False}
        with torch.inference_mode():
            self.model.model.rope_deltas = None
            ids = self.model.generate(**inputs, max_new_tokens=new_tokens, **options)
        return self._finished(ids[:, inputs["input_ids"].shape[1] :])

    def trainer(self) -> Callable[[Tensors], float]:
        plain, decayed = [], []  # matrices decay, norms and biases do not
        for name, p in self.model.named_parameters():
            (plain if "norm" in name or "bias" in name else decayed).append(p)
        groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": WEIGHT_DECAY}]
        optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, B2), eps=1e-8, fused=True)
        self.model.train()

        def step(inputs: Tensors) -> float:
            loss = self.run(inputs).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return self._finished(loss).item()

        return step

    def host(self, found: torch.Tensor | float) -> np.ndarray:
        found = torch.as_tensor(found).detach().cpu()
        return (found.float() if found.is_floating_point() else found).numpy()

    def _finished(self, x: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return x
