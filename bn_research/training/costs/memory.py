"""Counts the bytes that a forward pass keeps for the backward pass."""

import math
from collections.abc import Callable
from typing import Any

import jax


def kept(function: Callable[..., Any], *args: Any) -> int:
  """Returns the bytes of the arrays between the forward and the backward pass.

  An array that is an argument of the function, for example a parameter, needs
  no further memory, and does not count. An array that several operations keep
  counts once. The compiler may compute a cheap array again, or may keep an
  array longer, so the number is of the program and not of the machine.

  Args:
    function: A function with a real result of shape ().
    *args: Abstract or concrete arguments. The derivative is with respect to the
      first argument.
  """

  def residuals(first: Any, *others: Any) -> list[jax.Array]:
    _, pullback = jax.vjp(lambda first: function(first, *others), first)
    return jax.tree.leaves(pullback)

  jaxpr = jax.make_jaxpr(residuals)(*args).jaxpr
  arguments = {id(var) for var in (*jaxpr.invars, *jaxpr.constvars)}
  made = {
    id(var): var.aval for var in jaxpr.outvars if id(var) not in arguments
  }
  # A literal, such as the number 1, is a part of the program.
  return sum(
    math.prod(aval.shape) * aval.dtype.itemsize
    for aval in made.values()
    if hasattr(aval, 'shape')
  )
