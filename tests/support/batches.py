"""Batches with other arrays in them."""

from __future__ import annotations

from typing import Any

import numpy as np

from o3jax.models.batch import Tree, flatten, unflatten


def changed(tree: Tree, arrays: dict[str, Any]) -> Tree:
    """Returns the tree with other arrays, by the names of `flatten`; None takes one away."""
    unknown = arrays.keys() - flatten(tree).keys()
    assert not unknown, unknown
    kept = {name: array for name, array in (flatten(tree) | arrays).items() if array is not None}
    return unflatten(type(tree), kept)


def assert_equal(one: Tree, other: Tree) -> None:
    """Asserts that two trees are the same, bit for bit."""
    arrays, others = flatten(one), flatten(other)
    assert type(one) is type(other) and arrays.keys() == others.keys()
    for name, array in arrays.items():
        assert array.dtype == others[name].dtype, name
        np.testing.assert_array_equal(array, others[name], err_msg=name)
