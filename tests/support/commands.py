"""Commands of `experiments` inside the test process: absl's flags are global, so each gets its own turn."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import NamedTuple

import pytest
from absl import app, flags

from tests.support.paths import ROOT

app.define_help_flags()  # which absl does only once, so not inside `command`


@contextlib.contextmanager
def command(name: str, *arguments: str) -> Iterator[ModuleType]:
    """Yields the module experiments.`name`, imported anew; its flags are forgotten at the end."""
    known, argv = set(flags.FLAGS), sys.argv
    module = f"experiments.{name}"
    if (ROOT / "experiments" / name).is_dir():
        module += ".__main__"
    with contextlib.chdir(ROOT):
        sys.argv = [module, *arguments]
        try:
            yield importlib.import_module(module)
        finally:
            sys.argv = argv
            for flag in set(flags.FLAGS) - known:
                owner = flags.FLAGS.find_module_defining_flag(flag)
                if owner.startswith("experiments.") or flag.startswith("config"):
                    delattr(flags.FLAGS, flag)
            sys.modules.pop(module, None)


class Finished(NamedTuple):
    """What a command left: its exit code and what it printed, by C libraries too."""

    code: int
    out: str
    err: str


def run_command(capfd: pytest.CaptureFixture[str], name: str, *arguments: str) -> Finished:
    """Returns how `python -m experiments.name arguments` ends."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as exit_info, command(name, *arguments) as module:
        module.shell.run(module.main)
    out, err = capfd.readouterr()
    return Finished(exit_info.value.code or 0, out, err)
