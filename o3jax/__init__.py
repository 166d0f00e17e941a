"""Verifiable video reasoning in JAX: ask a video a question, get the answer with its evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Answer", "Evidence", "Model", "export_hf", "load", "load_processor"]

if TYPE_CHECKING:
    from o3jax.api import Answer, Evidence, Model, export_hf, load, load_processor


def __getattr__(name: str) -> Any:
    # Lazy, so that a data worker can import `o3jax.video` without starting JAX.
    if name in __all__:
        from o3jax import api

        return getattr(api, name)
    raise AttributeError(f"module 'o3jax' has no attribute '{name}'")
