"""metrics.jsonl and TensorBoard of a run, and the JSON lines of a run that goes on."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np
from google.protobuf.message import Message

from experiments.training.hosts import is_first_host
from o3jax.files import append_text, write_text, writing
from o3jax.train.state import Metrics

# Where torch is installed, tensorboardX would load it for what is not used here: a second of every start.
sys.modules.setdefault("torch", None)
try:
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import scalar
finally:
    if sys.modules["torch"] is None:
        del sys.modules["torch"]


def lines_until(path: Path, step: int) -> list[str]:
    """Returns the lines of a file of JSON objects up to a step, from which a run goes on.

    A last line that was cut off when the process was killed counts as not written; of others that cannot be
    read it is said that they are left out.
    """
    content = path.read_bytes() if path.exists() else b""
    lines, damaged = [], 0
    for line in content.splitlines(keepends=True):
        try:
            text = line.decode()
            if json.loads(text)["step"] <= step:
                lines.append(text.rstrip("\r\n"))
        except (ValueError, TypeError, KeyError, RecursionError):
            damaged += line.endswith(b"\n")
    if damaged:
        print(f"{path} has {damaged} damaged lines, which are left out", flush=True)
    return lines


def write_lines(path: Path, lines: list[str]) -> None:
    """Writes a file of lines, whole or not at all; of several hosts the first does."""
    if is_first_host():
        write_text(path, "".join(line + "\n" for line in lines))


class MetricsLog:
    """metrics.jsonl and TensorBoard; lines after the resumed step are dropped, so curves are one line."""

    def __init__(self, workdir: Path, step: int):
        self.path = workdir / "metrics.jsonl"
        write_lines(self.path, lines_until(self.path, step))
        self.events = None
        if is_first_host():
            with writing(workdir):
                (workdir / "tensorboard").mkdir(exist_ok=True)
                # Not the library's `SummaryWriter`, whose thread would meet a full disk alone.
                self.events = EventsWriter(str(workdir / "tensorboard" / "events"))
                if step:
                    self._add(SessionLog(status=SessionLog.START), "session_log", step + 1)

    def write(self, step: int, window: list[Metrics]) -> dict[str, float]:
        """Writes one line for each of the steps up to `step`; returns their mean."""
        rows = [{k: float(v) for k, v in m.items()} for m in jax.device_get(window)]
        if self.events is not None:
            numbered = list(enumerate(rows, start=step - len(rows) + 1))
            append_text(self.path, "".join(json.dumps({"step": at, **row}) + "\n" for at, row in numbered))
            with writing(self.path.parent):
                for at, row in numbered:
                    for name, value in row.items():
                        self._add(scalar(name, value), "summary", at)
                self.events.flush()
        names = dict.fromkeys(name for row in rows for name in row)  # not every step need have all
        return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}

    def _add(self, what: Message, kind: str, step: int) -> None:
        self.events.write_event(Event(wall_time=time.time(), step=step, **{kind: what}))

    def close(self) -> None:
        if self.events is not None:
            with contextlib.suppress(OSError):  # flushed after every write; the rest has no room either
                self.events.close()
