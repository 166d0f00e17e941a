"""Work on many videos as an Apache Beam pipeline: every worker adds to the run's folder what it has done.

So a pipeline is one more way to spread the same work, and a run that broke goes on as any other. On several
machines the folder must be one that all of them see.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import threading
from collections.abc import Callable, Container, Sequence
from typing import Any, Protocol

from absl import flags

from o3jax import api
from o3jax.api import Model
from o3jax.errors import UserError
from o3jax.printing import shortened

_TRIES = 3  # as long as each brings something


class Work(Protocol):
    """What a worker does; it is pickled, so it holds plain data."""

    def open(self, name: str) -> Callable[[str], None]:
        """Returns what does an item; called once in each worker, whose name it is."""


flags.disclaim_key_flags()  # the flags below are those of the command that defines them


def define() -> tuple[flags.FlagHolder, flags.FlagHolder]:
    """Returns the flags that make a command a pipeline; they are the calling command's."""
    return (
        flags.DEFINE_string(
            "runner", None, "Run as an Apache Beam pipeline by this runner, such as DirectRunner."
        ),
        flags.DEFINE_multi_string(
            "beam_option", [], "An option of Beam's own, such as --beam_option=direct_num_workers=4."
        ),
    )


@functools.cache
def load_once(path: str) -> Model:
    """Returns the model of a folder, which the workers of one process share."""
    return api.load(path)


def spread(
    work: Work, items: Sequence[str], done: Callable[[], Container[str]], runner: str, options: Sequence[str]
) -> None:
    """Does work on items by a Beam pipeline.

    A pipeline that fails, because a worker died say, is run again on what is left, if it got on.

    Args:
        done: returns the items on which work was done, whether well or not.
        options: of Beam, NAME=VALUE.

    Raises:
        UserError: if Beam is not installed, does not know an option, or work is left.
    """
    made = pipeline_options(runner, options)
    import apache_beam as beam

    left, failed = list(items), None
    for _ in range(_TRIES):
        if not left:
            break
        pipeline = beam.Pipeline(options=made)
        _ = pipeline | beam.Create(left) | beam.Reshuffle() | beam.ParDo(_function(beam, work))
        if failed := _failure(lambda: pipeline.run().wait_until_finish()):  # noqa: B023 (is called at once)
            logging.warning("the pipeline failed (%s)", shortened(str(failed), 200))
        known, before = done(), left
        left = [item for item in left if item not in known]
        if len(left) == len(before):
            break
    if left:
        why = f" ({shortened(str(failed), 200)})" if failed else ""
        raise UserError(
            f"{len(left)} videos are left by the pipeline{why}: the same command goes on with them"
        )


def pipeline_options(runner: str, options: Sequence[str]) -> Any:
    """Returns Beam's `PipelineOptions`.

    Raises:
        UserError: if Beam is not installed, or does not understand the options.
    """
    try:
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError('--runner needs Apache Beam: pip install "o3jax[beam]"') from None
    try:
        return PipelineOptions([f"--{option.removeprefix('--')}" for option in options], runner=runner)
    except (SystemExit, ValueError, TypeError) as error:
        given = " ".join(options)
        raise UserError(f"Beam does not understand --beam_option={given:.200} ({error})") from None


def _failure(run: Callable[[], Any]) -> BaseException | None:
    """Returns why a pipeline failed, None if it did not.

    DirectRunner waits for ever for a worker that died; only an exception in a thread of its own tells.
    """
    failed: list[BaseException] = []
    over, before = threading.Event(), threading.excepthook

    def stop(error: BaseException | None) -> None:
        failed.extend([error] if error else [])
        over.set()

    def watched() -> None:
        try:
            run()
        except Exception as error:  # of any runner: each has exceptions of its own
            stop(error)
        over.set()

    threading.excepthook = lambda said: stop(said.exc_value)
    try:
        threading.Thread(target=watched, daemon=True).start()
        over.wait()
    finally:
        threading.excepthook = before
    return failed[0] if failed else None


def _function(beam: Any, work: Work) -> Any:
    class Do(beam.DoFn):
        """Opens the work once in each process, and does an item at a time."""

        def setup(self) -> None:
            logging.getLogger().setLevel(logging.WARNING)
            self._do = work.open(f"-beam-{socket.gethostname()}-{os.getpid()}-{id(self):x}")

        def process(self, item: str) -> None:
            self._do(item)

    return Do()
