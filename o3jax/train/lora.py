"""Low-rank adapters (Hu et al. 2021): a frozen model, small matrices beside its projections, one merge.

    LoRA      base + adapters (+ evidence modules); what the train state holds. Checkpoints keep no base
    adapted   the same as a Qwen3-VL whose projections compute x W + alpha / r * (x A) B, for the loss
    merged    the same as a plain Qwen3-VL

The base is never trained, so it is of the dtype that the step computes in. An export reads it from its folder
again, as it is stored (`changes`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from o3jax.errors import UserError
from o3jax.models.layers import Initializer, LowRankWeight
from o3jax.models.qwen3_vl import Qwen3VL
from o3jax.models.runtime import Runtime
from o3jax.sharding import everywhere
from o3jax.train.state import Batch, LossFn, Metrics

# How many axes of a projection are its inputs and its outputs, where it is not one of each; axes in front
# of them stack layers and experts.
_INPUT_AXES = {"o": 2, "out": 2}
_OUTPUT_AXES = {"q": 2, "k": 2, "v": 2, "qkv": 3}
_TOWERS = ("vision", "text")


class Adapter(nnx.Module):
    """A [*stack, in, r] and B [*stack, r, out] of one projection; B is zero at first."""

    def __init__(self, name: str, weight: nnx.Param, rank: int, key: jax.Array):
        inputs, outputs = _INPUT_AXES.get(name, 1), _OUTPUT_AXES.get(name, 1)
        border = weight.ndim - outputs
        stack = border - inputs
        sizes, axes = weight.shape, weight.get_metadata()["axes"]
        size_in, size_out = math.prod(sizes[stack:border]), math.prod(sizes[border:])
        init = Initializer(key, jnp.float32, std=size_in**-0.5)
        # Several axes made one lie where their first one does.
        self.a = init.weight((*sizes[:stack], size_in, rank), (*axes[:stack], axes[stack], None))
        self.b = init.bias((*sizes[:stack], rank, size_out), (*axes[:stack], None, axes[border]))


class Adapters(nnx.Module):
    """The adapters of one tower's stacked layers, by the name of their projection."""

    def __init__(self, layers: nnx.Module, names: Sequence[str], rank: int, key: jax.Array):
        self.names = tuple(names)
        for number, name in enumerate(names):
            setattr(self, name, Adapter(name, getattr(layers, name), rank, jax.random.fold_in(key, number)))


class LowRank(nnx.Module):
    """A weight with its adapter, read as a parameter is: `[...]` is what products are made with."""

    def __init__(self, weight: nnx.Param, adapter: Adapter, scale: float):
        self.weight, self.adapter, self.scale = weight, adapter, scale

    def __getitem__(self, _: object) -> LowRankWeight:
        return LowRankWeight(self.weight[...], self.adapter.a[...], self.adapter.b[...], self.scale)

    def sum(self) -> Float[Array, "*dims"]:
        """Returns W + scale * A @ B, of the weight's dtype."""
        weight, change = self.weight[...], _change(self.adapter, self.scale)
        return (weight + change.reshape(weight.shape)).astype(weight.dtype)


def _change(adapter: Adapter, scale: float) -> Float[Array, "*stack in out"]:
    return scale * jnp.matmul(
        adapter.a[...],
        adapter.b[...],
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def merged(model: Qwen3VL) -> Qwen3VL:
    """Returns a model without `LowRank`: each is the sum, a new array beside the base's."""

    def plain(node: LowRank | Array) -> nnx.Param | Array:
        return node.weight.replace(node.sum()) if isinstance(node, LowRank) else node

    return jax.tree.map(plain, model, is_leaf=lambda node: isinstance(node, LowRank))


class LoRA(nnx.Module):
    """A model to train with `frozen=("base", ...)`: only what stands beside `base` has gradients and moments.

    The parts are named as those of a Qwen3-VL, so that learning rates per part act on their adapters.
    Evidence modules are no part of the base: they are trained whole.

    Args:
        model: layers stacked, as it was loaded.
        rank, alpha: r, and the numerator of the change's scale alpha / r.
        targets: names of projections, each in the text layers (q, k, v, o, gate, up, down; of a mixture
            router, and the experts' gate_up, down) or in the vision layers (qkv, out, fc1, fc2). Experts hold
            gate and up as one weight: both names together are gate_up.
        key: draws A.

    Raises:
        UserError: if there is no target, one is not the name of a projection, or one is half of a weight.
    """

    def __init__(self, model: Qwen3VL, *, rank: int, alpha: float, targets: Sequence[str], key: jax.Array):
        known = {tower: _projections(getattr(model, tower).layers) for tower in _TOWERS}
        names = [name for tower in _TOWERS for name in known[tower]]
        targets = _of_experts(targets) if "gate_up" in names else targets
        unknown = [name for name in targets if name not in names]
        if unknown or not targets:
            what = f"names '{unknown[0]}', which is no projection" if unknown else "is empty"
            raise UserError(f"config.lora.targets {what}: choose some of {', '.join(names)}")
        self.scale = alpha / rank
        self.base = _with_evidence(model, None)
        for number, tower in enumerate(_TOWERS):
            mine = [name for name in known[tower] if name in targets]
            layers = getattr(model, tower).layers
            setattr(self, tower, Adapters(layers, mine, rank, jax.random.fold_in(key, number)))
        self.evidence = model.evidence

    def adapted(self) -> Qwen3VL:
        """Returns the model with a `LowRank` in place of every adapted weight."""
        model = _with_evidence(self.base, self.evidence)
        for tower in _TOWERS:
            layers, adapters = getattr(model, tower).layers, getattr(self, tower)
            for name in adapters.names:
                setattr(layers, name, LowRank(getattr(layers, name), getattr(adapters, name), self.scale))
        return model

    def merged(self) -> Qwen3VL:
        """Returns the plain model, its adapted weights new arrays beside those of the base."""
        return merged(self.adapted())

    def change(self, leaf: str, number: int) -> Float[np.ndarray, "*stack in out"] | None:
        """Returns what is added to one layer of a leaf, float32; None where it has no adapter.

        Args:
            leaf: its dotted path, such as text.layers.q.
            number: of the layer.
        """
        tower, _, name = leaf.partition(".layers.")
        if name not in getattr(getattr(self, tower, None), "names", ()):
            return None
        layer = jax.tree.map(lambda a: a[number], getattr(getattr(self, tower), name))
        return everywhere(_change(layer, self.scale))


def adapted_loss(loss_fn: LossFn) -> LossFn:
    """Returns the loss of a `LoRA`: that of its adapted model."""

    def loss(
        model: LoRA, batch: Batch, counts: Metrics, runtime: Runtime = Runtime()
    ) -> tuple[Float[Array, ""], Metrics]:
        return loss_fn(model.adapted(), batch, counts, runtime)

    return loss


def _of_experts(targets: Sequence[str]) -> list[str]:
    """Returns the targets as experts have them, gate and up as one weight."""
    halves = [name for name in ("gate", "up") if name in targets]
    if len(halves) == 1:
        raise UserError(
            f"config.lora.targets names '{halves[0]}' alone; the experts of this model hold gate and up as "
            "one weight: name both, or gate_up"
        )
    return [name for name in targets if name not in halves] + ["gate_up"] * bool(halves)


def _with_evidence(model: Qwen3VL, evidence: nnx.Module | None) -> Qwen3VL:
    """Returns a new container around the same arrays, with other evidence modules."""
    model = jax.tree.map(lambda a: a, model)
    model.evidence = evidence
    return model


def _projections(layers: nnx.Module) -> list[str]:
    """Returns the names of the layers' weights that multiply their input, in one order for all models."""
    params = sorted(name for name, value in vars(layers).items() if isinstance(value, nnx.Param))
    return [name for name in params if not name.endswith(("norm", "scale", "bias"))]
