"""The names that fields of configs choose from, apart from what they name: to check one needs no jax."""

MESH_AXES = ("data", "fsdp", "context", "tensor", "expert")
# What axes of arrays mean; `o3jax.sharding.ShardingRules` says where each lies on the mesh.
LOGICAL_AXES = ("batch", "sequence", "prefix", "frame_pairs", "frames")  # of activations
LOGICAL_AXES += ("embed", "heads", "kv_heads", "mlp", "vocab", "expert")  # of parameters, and of both
REMAT = ("none", "full", "names", "offload")  # of a layer's activations, see `o3jax.models.layers`
KERNELS = ("xla", "splash", "cudnn", "triton")  # of attention, see `o3jax.models.attention`
COMPUTE_DTYPES = ("float32", "bfloat16")
SCHEDULES = ("constant", "linear", "cosine")  # of the learning rate, see `o3jax.train.optimizer`
OPTIMIZERS = ("adamw", "muon")
RATIOS = ("sequence", "sequence_token", "token", "one")  # see `o3jax.gspo.loss`
SCALES = ("group", "none")  # of advantages
