"""Training of question matching alone: it learns relevance, and holds the queries of proposals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from data_pipelines.synthetic.matching import MakeMatchingRow
from o3jax.hf.config import config_from_hf
from o3jax.hf.folder import model_folder
from o3jax.hf.weights import load_weights
from o3jax.inputs.processor import load_processor
from o3jax.models.batch import map_arrays, stack
from o3jax.sft.matching import FROZEN, Matching, matching_counts, matching_loss
from o3jax.train.state import init_state, make_train_step


def test_a_few_steps_learn_relevance_and_touch_nothing_else():
    folder = model_folder("o3-tiny")
    config = config_from_hf(folder)
    rows = MakeMatchingRow(load_processor(folder), config, 80, 36, 4, 48, seed=0)
    batch = map_arrays(lambda a: a[None], stack([rows.map(number) for number in range(3)]))
    model = load_weights(folder, config, dtype=jnp.float32)
    leaves = [np.array(leaf) for leaf in jax.tree.leaves(model)]
    optimizer = optax.adam(1e-3)
    state = init_state(Matching(model), optimizer, FROZEN)
    step = make_train_step(
        functools.partial(matching_loss, keep=1.0), optimizer, matching_counts, frozen=FROZEN
    )
    seen = []
    for _ in range(6):
        state, metrics = step(state, batch)
        seen.append({name: float(value) for name, value in metrics.items()})
    for held in ("moved", "features"):
        assert seen[0][held] < 1e-9 < seen[-1][held] < 0.2
    assert all(np.isfinite(list(metrics.values())).all() for metrics in seen)
    assert seen[-1]["relevance"] < 0.9 * seen[0]["relevance"]
    assert 0 <= seen[-1]["missed"] <= 1 and 0 <= seen[-1]["false"] <= 1
    after = state.model.trained()
    changed = {
        jax.tree_util.keystr(path)
        for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(after), leaves, strict=True)
        if not np.array_equal(a, b)
    }
    trained = (".evidence.temporal.", ".evidence.question.", ".evidence.decoder.question_in.")
    assert changed and all(name.startswith(trained) for name in changed), changed
