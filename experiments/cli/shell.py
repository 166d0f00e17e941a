"""What every command shares: one sentence and exit code 2 for a user's mistake, the compilation cache."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from configs.checks import RENAMED
from o3jax.errors import UserError


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs an absl `main`; a UserError, a wrong flag or a path that cannot be written becomes one sentence on
    stderr and exit code 2."""

    logging.set_verbosity(logging.WARNING)

    def guarded(argv: Sequence[str]) -> None:
        try:
            main(argv)
        except UserError as error:
            _fail(str(error))
        except (FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
            if error.filename is None:
                raise
            _fail(f"{error.filename} cannot be used ({error.strerror}): name another path")

    app.run(guarded, flags_parser=_parse_flags)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        _fail(f"{' '.join(str(error).split())} (--help lists the flags)")
    except (AttributeError, KeyError) as error:  # --config.field=value, where there is no such field
        _fail_for_field(error)


def define_config(default: str) -> flags.FlagHolder[ConfigDict]:
    """Returns the flag --config=FILE[:ARGUMENT], whose fields are flags too: --config.field=value."""
    given = [arg.partition("=")[2] for arg in sys.argv if arg.startswith("--config=")]
    path = given[-1] if given else default
    if not Path(path.partition(":")[0]).is_file():
        _fail(f"--config={path} names no file: give a file such as {default}")
    try:
        # The library reads --config.field=value here already, so the file must be the given one.
        return config_flags.DEFINE_config_file("config", path)
    except flags.Error as error:  # its last line is what get_config raised
        _fail(f"--config={path} cannot be used: {str(error).splitlines()[-1]}")
    except (AttributeError, KeyError) as error:
        _fail_for_field(error)


def _fail_for_field(error: Exception) -> NoReturn:
    found = re.search(r"\w+", str(error))  # the library puts it in quotes, and a guess behind it
    name = found.group() if found else str(error)
    for old, new in RENAMED.items():
        if name == old.rpartition(".")[2]:
            _fail(f"config.{old} is now called {new}: write config.{new}")
    _fail(f"the config has no field '{name}': check the name after --config.")


def _fail(sentence: str) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(2)


def join_hosts() -> None:
    """Makes this process one of several that train together, where the environment says so.

    JAX_COORDINATOR_ADDRESS is host:port of the first, JAX_NUM_PROCESSES and JAX_PROCESS_ID tell how many
    there are and which one this is. Nothing of JAX may have been used before.
    """
    import jax

    if address := os.environ.get("JAX_COORDINATOR_ADDRESS"):
        count, number = (os.environ.get(name, "") for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
        if not (count.isdigit() and number.isdigit()):
            raise UserError("JAX_COORDINATOR_ADDRESS is set: set JAX_NUM_PROCESSES and JAX_PROCESS_ID too")
        jax.distributed.initialize(address, int(count), int(number))


def use_compilation_cache() -> None:
    """Keeps compiled programs in $JAX_COMPILATION_CACHE_DIR or ~/.cache/o3jax, across runs."""
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "o3jax"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # many take a moment each
