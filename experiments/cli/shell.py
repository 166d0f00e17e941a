"""What every command shares: one sentence and exit code 2 for a user's mistake, the compilation cache."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

import configs
from experiments.cli import terminal
from experiments.cli.verbs import VERBS
from o3jax.child import guard_from_the_first_line
from o3jax.errors import UserError
from o3jax.files import is_remote, local_path, refusal, refused
from o3jax.printing import shortened


def run(main: Callable[[Sequence[str]], None]) -> None:
    """Runs an absl `main`. --help prints one example before the flags.

    A UserError, a wrong flag, or a file that the system refuses to read or write becomes one sentence on
    stderr and exit code 2.
    """
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(_help(main))
        sys.exit()
    guard_from_the_first_line()
    logging.set_verbosity(logging.WARNING)

    def guarded(argv: Sequence[str]) -> None:
        try:
            main(argv)
            sys.stdout.flush()
        except UserError as error:
            _fail(str(error))
        except KeyboardInterrupt:
            _fail("stopped by Ctrl-C", 128 + signal.SIGINT)
        except Exception as error:
            if not (sentence := refused(error)):
                raise
            if getattr(error, "filename", None) is None:  # standard output, which Python would try again
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            _fail(sentence)

    logging.use_absl_handler()  # which takes the place of handlers of what then still is standard error
    with terminal.guarded():
        app.run(guarded, flags_parser=_parse_flags)


@contextlib.contextmanager
def told() -> Iterator[Callable[[str, str], None]]:
    """Yields a function of a line that says how far something is, and of what it is doing.

    The line appears on stderr when something new begins, and now and then.
    """
    doing, quiet_until, terminal = "", 0.0, sys.stderr.isatty()

    def show(line: str, what: str) -> None:
        nonlocal doing, quiet_until
        if what == doing and time.monotonic() < quiet_until:
            return
        doing, quiet_until = what, time.monotonic() + (0.2 if terminal else 5)
        line, end = (f"\r{line:<60}", "") if terminal else (line, "\n")
        print(line, end=end, file=sys.stderr, flush=True)

    try:
        yield show
    finally:
        if doing and terminal:
            print(file=sys.stderr)


@contextlib.contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function of how many bytes of how many are done; on stderr it says so, if it takes seconds."""
    begun = time.monotonic()
    with told() as tell:

        def show(done: int, total: int) -> None:
            if time.monotonic() > begun + 2:
                tell(f"{what}: {done / 2**30:.1f} of {total / 2**30:.1f} GiB", what)

        yield show


def load_model(path: str, **options: Any) -> Any:
    """Returns the `o3jax.Model` of a folder; stderr says how far it is. Programs then come from the cache.

    Args:
        options: of `o3jax.load`.

    Raises:
        UserError: if it cannot answer: the weights or the calibration are refused.
    """
    from o3jax import api  # after the flags are checked: starting JAX takes seconds

    use_compilation_cache()
    with progress("reading the weights") as show:
        model = api.load(path, progress=show, **options)
    _ = model.calibration  # refused before a video is read
    return model


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS and not isinstance(flags.FLAGS["config"].value, ConfigDict):
            raise TypeError("get_config returns no ConfigDict")
    except Exception as error:
        _fail_for_flags(error)
    config = flags.FLAGS["config"].value if "config" in flags.FLAGS else None
    try:
        _check_places(config)
    except UserError as error:
        _fail(str(error))
    if config is not None:
        _check_warmup(config)
    return rest


_IN_STORES: set[str] = set()  # names of flags


def takes_store(flag: flags.FlagHolder) -> flags.FlagHolder:
    """Returns a flag whose value may name a place in a store, such as gs://bucket/run.

    Any other flag or field of a config that names one is refused: as a path it would be a folder "gs:" here.
    """
    _IN_STORES.add(flag.name)
    return flag


def _check_places(config: ConfigDict | None) -> None:
    """Refuses places in stores where a disk is needed."""
    given = [(f"--{name}", flags.FLAGS[name].value) for name in flags.FLAGS if flags.FLAGS[name].present]
    given = [(name, value) for name, value in given if name[2:] not in _IN_STORES]
    fields: list[tuple[str, Any]] = []
    if config is not None:
        from configs.checks import leaves

        fields = [(f"config.{name}", value) for name, value in leaves(config)]
    for name, value in given + fields:
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, str) and is_remote(one):
                local_path(one, f"what {name} names")


def _check_warmup(config: ConfigDict) -> None:
    """Refuses a warm-up that is longer than the run, unless the command line made this one a short trial."""
    from configs.checks import warmup_note

    if note := warmup_note(config, config.get("max_steps", 0)):
        given = {arg.partition("=")[0] for arg in sys.argv}
        if "--config.warmup_steps" in given or "--config.max_steps" not in given:
            _fail(f"{note}: write fewer of them")
        print(f"note: {note}", file=sys.stderr)


def define_config(default: str) -> flags.FlagHolder[ConfigDict]:
    """Returns the flag --config=FILE[:ARGUMENT], whose fields are flags too: --config.field=value."""
    sys.argv = [_found(arg) if arg.startswith("--config=") else arg for arg in sys.argv]
    given = [arg for arg in sys.argv if arg.startswith("--config=")]
    path = (given[-1] if given else _found(f"--config={default}")).partition("=")[2]
    if not Path(path.partition(":")[0]).is_file():
        name = Path(default).stem
        _fail(f"--config={path} names no file: give a file such as {default}, or a name such as {name}")
    try:
        # The library reads --config.field=value here already, so the file must be the given one.
        return config_flags.DEFINE_config_file("config", path)
    except Exception as error:
        _fail_for_flags(error)


def _found(flag: str) -> str:
    """Returns the flag with the package's config of this name, where no such file is here."""
    name, colon, argument = flag.partition("=")[2].partition(":")
    given, ours = Path(name), Path(configs.__file__).with_name(f"{Path(name).stem}.py")
    if given.is_file() or given.parent not in (Path(), Path("configs")) or not ours.is_file():
        return flag
    return f"--config={ours}{colon}{argument}"


def _help(main: Callable[[Sequence[str]], None]) -> str:
    """Returns an example and the flags of the command whose `main` this is."""
    module = sys.modules[main.__module__]
    own = sys.argv[0] if module.__name__ == "__main__" else module.__name__
    listed = flags.FLAGS.module_help(own).partition(":\n")[2].rstrip()
    name = module.__spec__.name.removeprefix("experiments.")
    example = next((f"example:\n  {v.example}\n\n" for v in VERBS.values() if v.module == name), "")
    if hasattr(module, "_CONFIG"):
        listed += "\n  --config=FILE[:ARGUMENT]: a config: your file, or one of the package by name"
        listed += "\n  --config.FIELD=VALUE: any field of it, such as --config.learning_rate=1e-5"
    return f"{example}{module.__doc__.strip()}\n\nflags:\n{listed}"


def _fail_for_flags(error: Exception) -> NoReturn:
    """Says what is wrong with a flag, with a field of the config, or in the config's file."""
    said = " ".join(str(error).split()) or type(error).__name__
    if "Traceback" in said:  # of a config's own code: its last line is what it says
        given = next((arg for arg in reversed(sys.argv) if arg.startswith("--config")), "--config")
        _fail(f"{given:.200} cannot be used: {str(error).strip().splitlines()[-1].strip():.300}")
    if isinstance(error, flags.Error) and "cannot import" not in said.lower():
        _fail(f"{said:.400} (--help lists the flags)")
    if isinstance(error, AttributeError | KeyError) and "has no attribute" not in said:
        # --config.field=value, where there is no such field: in quotes, and a guess behind it
        found = re.search(r"\w+", said)
        name = found.group() if found else said
        from configs.checks import RENAMED  # half a second that asking a question does not need

        for old, new in RENAMED.items():
            if name == old.rpartition(".")[2]:
                _fail(f"config.{old} is now called {new}: write config.{new}")
        _fail(f"the config has no field '{name}': check the name after --config.")
    given = next((arg for arg in reversed(sys.argv) if arg.startswith("--config")), "--config")
    _fail(f"{given:.200} cannot be used: {type(error).__name__}: {said:.300}")


def _fail(sentence: str, code: int = 2) -> NoReturn:
    print(f"error: {shortened(sentence, 900)}", file=sys.stderr)
    sys.exit(code)


def use_compilation_cache() -> None:
    """Keeps compiled programs in $JAX_COMPILATION_CACHE_DIR or ~/.cache/o3jax, across runs."""
    import jax

    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(Path.home() / ".cache" / "o3jax")
    try:
        if not is_remote(folder):
            Path(folder).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(bytes(2**20))
        jax.config.update("jax_compilation_cache_dir", folder)
    except OSError as error:
        logging.warning(
            "the compilation cache %s cannot be written (%s): going on without", folder, refusal(error)
        )
        jax.config.update("jax_enable_compilation_cache", False)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # many take a moment each
