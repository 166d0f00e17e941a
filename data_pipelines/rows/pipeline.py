"""Rows -> batches, read ahead by threads or worker processes, from any position.

The stream is a pure function of the row's number: no row is skipped, and what is random in a row is drawn
for its number. So workers and hosts may change, and to resume is to slice.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from o3jax.child import end_with, no_stops
from o3jax.models.batch import TYPES, flatten, unflatten

Transform = grain.transforms.Map | grain.transforms.RandomMap


class _Named(grain.transforms.Map):
    """Row -> its arrays by name: between processes the library shares arrays in dictionaries, not in ours."""

    def map(self, row: Any) -> dict[str, np.ndarray]:
        return flatten(row, type(row).__name__)


class Batches(Iterator[Any]):
    """Batches of the types of `o3jax.models.batch`, from the arrays that the library hands over."""

    def __init__(self, arrays: grain.DatasetIterator):
        self._arrays = arrays

    def __next__(self) -> Any:
        arrays = next(self._arrays)
        name = next(iter(arrays)).partition(".")[0]
        return unflatten(next(kind for kind in TYPES if kind.__name__ == name), arrays, name)

    def close(self) -> None:
        self._arrays.close()
        del self._arrays  # which would print a traceback if it went when the interpreter ends


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """An endless stream of batches that can be opened anywhere.

    Attributes:
      rows: what the first transform takes, by the row's number.
      transforms: make a row, one of the types of `o3jax.models.batch`, one after the other.
      batch_size: rows of a batch, over all hosts.
      seed: of what is random in a row.
      num_workers: processes that make batches; 0 makes them in a thread of this one.
      process_index, process_count: this host, and how many share each batch, row by row.
      data_fingerprint: what decides which row has which number, by name; kept in checkpoints and compared.
    """

    rows: Sequence[Any]
    transforms: Sequence[Transform]
    batch_size: int
    seed: int
    num_workers: int = 0
    process_index: int = 0
    process_count: int = 1
    data_fingerprint: Mapping[str, str | int] = dataclasses.field(default_factory=dict)

    def open(self, position: int = 0) -> Batches:
        """Returns an iterator over the batches from row `position` on; arrays have a leading batch axis."""
        if self.batch_size % self.process_count:
            raise ValueError(f"{self.process_count} hosts cannot share a batch of {self.batch_size} rows")
        data = grain.MapDataset.source(self.rows).seed(self.seed).apply([*self.transforms, _Named()])
        data = data[position + self.process_index :: self.process_count]
        data = data.batch(self.batch_size // self.process_count, drop_remainder=True)
        # The library buffers 500 elements by default: 500 batches of video would fill the memory.
        ahead = 4 if not self.num_workers else 1
        stream = data.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=ahead))
        if self.num_workers:
            if not flags.FLAGS.is_parsed():  # the library reads flags of its own when it starts processes
                flags.FLAGS.mark_as_parsed()
            stream = stream.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=self.num_workers, per_worker_buffer_size=2),
                worker_init_fn=_start_worker,
            )
        arrays = iter(stream)
        if self.num_workers:
            with no_stops():
                arrays.start_prefetch()
        return Batches(arrays)


def _start_worker(number: int, count: int) -> None:
    del number, count
    end_with(multiprocessing.parent_process().pid)
