"""Qwen3-VL in Hugging Face's format and in ours, both ways. Safetensors only; no remote code."""

from o3jax.hf.config import config_from_hf, config_to_hf
from o3jax.hf.export import export_weights
from o3jax.hf.weights import load_weights

__all__ = ["config_from_hf", "config_to_hf", "export_weights", "load_weights"]
