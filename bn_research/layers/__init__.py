"""The normalizations as layers of Flax: `layers.nnx` and `layers.linen`.

Both packages have the normalization layers of Flax under the names of Flax, so
a changed import is enough to switch a model. Both packages also have `Norm`, a
layer for any `norms.Normalization`.
"""
