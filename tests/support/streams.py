"""What tests run in worker processes, in a module that these load fast."""

from __future__ import annotations

import dataclasses

import grain
import numpy as np

from o3jax.child import Child
from o3jax.models.batch import Batch, Failures, SupervisedBatch, TextRow


class Named(grain.transforms.Map):
    """Numbers of clips -> a row of them; 5 cannot be read."""

    def map(self, clips):
        failures = Failures(np.full(3, -1, np.int32), np.zeros((3, 8), np.uint8))
        for at, clip in enumerate(clips):
            failures.number[at] = clip
            if clip == 5:
                failures.error[at, :4] = np.frombuffer(b"torn", np.uint8)
        text = TextRow(*[np.zeros(2, np.float32)] * 4)
        return SupervisedBatch(Batch(text), labels=np.zeros(2), failures=failures)


class ReadInChild(Named):
    """The same, each row after an answer of a child of the process that makes it; a megabyte of labels."""

    child = None

    def map(self, clips):
        if self.child is None:
            self.child = Child("tests.support.streams:echo", None)
        self.child.send(b"row")
        assert self.child.receive(60) == b"row"
        return dataclasses.replace(super().map(clips), labels=np.zeros(2**17))


def echo(pipe, hello):
    """Answers with what it is asked."""
    pipe.send(hello)
    while True:
        pipe.send(pipe.recv_bytes())


class Drawn(grain.transforms.RandomMap):
    """Row -> row whose labels are drawn."""

    def random_map(self, row, rng):
        return dataclasses.replace(row, labels=rng.uniform(size=2))


def put_many(cache, start):
    """Puts twelve arrays, whose keys begin at `start`."""
    for number in range(start, start + 12):
        cache.put(str(number), (np.full(70_000, number % 256, np.uint8),))
