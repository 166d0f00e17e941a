"""`o3jax watch PATHS --events events.yaml [--out DIR]`: alerts when what the events ask about is seen.

PATHS are videos and folders of them. events.yaml names each event and the question that finds it. A run that
was stopped goes on with the same command. With --follow files that are still written are watched until they
stop growing; rtsp:// addresses are recorded into DIR and watched so, if --allow_url names their host.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from absl import flags

from experiments.cli import shell
from experiments.library import command, events, streams
from experiments.library.session import Extras, Follow, Job
from o3jax.errors import UserError

_EVENTS = flags.DEFINE_string("events", None, "The YAML file of events: a name and a question each.")
_COMMON = command.define("watch")
_CAMERA = flags.DEFINE_string("camera", None, "The camera's name; None: the name of a video's folder.")
_STARTS_AT = flags.DEFINE_string(
    "starts_at",
    None,
    "The clock's time of the first frame, such as 2026-05-01T08:00:00+02:00; None: as the file says.",
)
_CLIPS = flags.DEFINE_bool(
    "clips", False, "Also keep each event as a clip with its boxes drawn, and a hash of its source."
)
_FOLLOW = flags.DEFINE_bool("follow", False, "Watch files that are still written, until they stop growing.")
_IDLE = flags.DEFINE_float(
    "idle_s", 10.0, "Seconds without growth after which a followed file is complete.", lower_bound=0.1
)
_ALLOW_URL = flags.DEFINE_list("allow_url", [], "Hosts whose rtsp:// addresses may be watched.")


def main(argv: Sequence[str]) -> None:
    if not _EVENTS.value:
        raise UserError("--events is missing: name the YAML file that says what to look for")
    questions = events.read_questions(_EVENTS.value, "events")
    urls = [path for path in argv[1:] if "://" in path]
    begun = datetime.now().astimezone() if urls and len(urls) == len(argv) - 1 else None
    extras = Extras(_CLIPS.value, _CAMERA.value, _start(_STARTS_AT.value) or begun)
    paths = [path for path in argv[1:] if "://" not in path]
    with streams.recorded(urls, _ALLOW_URL.value, Path(_COMMON.out.value or ".")) as files:
        follow = Follow(_IDLE.value) if _FOLLOW.value or files else None
        command.run(
            "watch",
            _COMMON,
            [*paths, *files],
            lambda about: Job(questions=questions, **about),
            extras,
            follow,
        )


def _start(text: str | None) -> datetime | None:
    try:
        return None if text is None else datetime.fromisoformat(text)
    except ValueError:
        raise UserError(
            f"--starts_at={text:.60} is no time: write it such as 2026-05-01T08:00:00+02:00"
        ) from None


if __name__ == "__main__":
    shell.run(main)
