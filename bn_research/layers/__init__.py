"""How a Normalization plugs into Flax: `layers.nnx` and `layers.linen`.

Both have the normalization layers of Flax under the same names, so that a
model is switched by its import alone, and `Norm` for any other Normalization.
"""
