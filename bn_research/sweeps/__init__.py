"""Many runs: the points of a sweep, and a pool of processes for the training.

A point is a command line, which a person could also type. The status in the
workdir of a point tells whether the point still needs a run. No module of this
folder imports JAX, hence the process of a sweep starts fast and stays small.
"""
