"""Named normalizations, and related methods without a `Normalization`."""
