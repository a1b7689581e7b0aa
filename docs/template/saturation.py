"""A probe: which part of the inputs of each nonlinearity is large."""

import jax.numpy as jnp


def saturation(observation, limit: float = 2.0):
  """Returns the part of |input| > limit, by nonlinearity, and a gradient.

  Args:
    observation: A moment of the run: `x`, `labels`, `model()`, `loss()`,
      `take_step()` and more; see `bn_research/probes/observation.py`.
    limit: An option, which a config may give.
  """
  measured = {}

  def tap(name, value):
    measured[name] = jnp.mean(jnp.abs(value) > limit)
    return value

  observation.model()(observation.x, train=True, tap=tap)
  grads = observation.take_step().grads
  measured['output_gradient'] = jnp.linalg.norm(grads['output']['kernel'])
  return measured
