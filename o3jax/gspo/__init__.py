"""Group sequence policy optimisation (GSPO): advantages, loss, update rows and the objective of a step."""

from o3jax.gspo.loss import group_advantages, gspo_loss

__all__ = ["group_advantages", "gspo_loss"]
