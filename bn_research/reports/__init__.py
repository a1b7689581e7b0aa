"""Draws figures and checks claims from workdirs, without training or JAX."""
