"""Batches are made of rows, taken apart, and carried between processes as named arrays."""

import typing

import numpy as np
import pytest

from o3jax.models import batch as trees
from o3jax.models.batch import Batch, Patches, SupervisedBatch, TextRow


def row(start: int) -> SupervisedBatch:
    numbers = iter(range(start, start + 100))
    patches = Patches(*(np.full(3, next(numbers)) for _ in range(5)))
    text = TextRow(*(np.full((2, 3), next(numbers)) for _ in range(4)))
    return SupervisedBatch(Batch(text, patches=patches), labels=np.full(4, next(numbers)))


def test_rows_become_a_batch_and_rows_again():
    rows = [row(0), row(100)]
    batch = trees.stack(rows)
    assert batch.inputs.text.input_ids.shape == (2, 2, 3)
    assert batch.evidence is None and batch.inputs.features is None
    for number, one in enumerate(rows):
        again = trees.flatten(trees.take(batch, number))
        assert again.keys() == trees.flatten(one).keys()
        for name, array in trees.flatten(one).items():
            np.testing.assert_array_equal(again[name], array)


def test_named_arrays_are_the_tree():
    arrays = trees.flatten(row(7))
    assert arrays["inputs.patches.length"].tolist() == [8, 8, 8]
    assert len(arrays) == 10
    again = trees.unflatten(SupervisedBatch, arrays)
    assert again.evidence is None and again.inputs.dense is None
    for name, array in trees.flatten(again).items():
        assert array is arrays[name]


def test_put_writes_in_place():
    whole = trees.stack([row(0).inputs.patches, row(0).inputs.patches])
    trees.put(whole, 1, row(50).inputs.patches)
    assert whole.values.tolist() == [[0, 0, 0], [50, 50, 50]]


@pytest.mark.parametrize("kind", trees.TYPES)
def test_every_type_survives_the_journey(kind):
    """Its annotations can be read, and whatever is optional may be there."""

    def whole(kind):
        hints = typing.get_type_hints(kind).items()
        parts = {
            name: [t for t in (hint, *typing.get_args(hint)) if t in trees.TYPES] for name, hint in hints
        }
        return kind(**{name: whole(some[0]) if some else np.zeros(1) for name, some in parts.items()})

    arrays = trees.flatten(whole(kind))
    again = trees.flatten(trees.unflatten(kind, arrays))
    assert again.keys() == arrays.keys() and all(again[name] is array for name, array in arrays.items())
