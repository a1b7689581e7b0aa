"""Many runs: the points of a sweep, and a pool of processes that trains them.

A point is the command line that a person would type, and its workdir alone says
whether it is still to do. Nothing here imports JAX.
"""
