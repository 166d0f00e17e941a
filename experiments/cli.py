"""What every command shares: one sentence and exit code 2 for a user's mistake, the compilation cache."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, logging

from o3jax.errors import UserError


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs an absl `main`; a UserError becomes its sentence on stderr and exit code 2."""

    logging.set_verbosity(logging.WARNING)

    def guarded(argv: Sequence[str]) -> None:
        try:
            main(argv)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    app.run(guarded)


def use_compilation_cache() -> None:
    """Keeps compiled programs in $JAX_COMPILATION_CACHE_DIR or ~/.cache/o3jax, across runs."""
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "o3jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
