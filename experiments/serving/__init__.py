"""What `o3jax serve` is made of: one model that many requests share, and how it is spoken to over HTTP."""
