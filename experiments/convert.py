"""`python -m experiments.convert`: copies a model folder, evidence and all, in another dtype if asked."""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from experiments.cli import shell

_SOURCE = flags.DEFINE_string("source", None, "A model folder.", required=True)
_TARGET = flags.DEFINE_string(
    "target", None, "The folder to write; must not exist, or be empty.", required=True
)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16", "float16"], "Of the stored weights.")


def main(argv: Sequence[str]) -> None:
    del argv
    import jax.numpy as jnp

    import o3jax

    model = o3jax.load(_SOURCE.value, dtype=jnp.float32)
    o3jax.export_hf(model, _TARGET.value, dtype=_DTYPE.value)
    print(f"wrote {_TARGET.value}")


if __name__ == "__main__":
    shell.run(main)
