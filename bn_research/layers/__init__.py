"""How a Normalization plugs into Flax: `layers.nnx` and `layers.linen`."""
