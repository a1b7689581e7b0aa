"""The steps of a run as compiled programs: many steps a call, or one."""

import copy
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bn_research.training import (
  feeding,
  gradients,
  loops,
  state,
  step,
  streaming,
)
from bn_research.training.compiling import Compiler


def create(
  compiler: Compiler,
  feed: feeding.Memory | streaming.Streamed,
  abstract: state.TrainState,
  max_steps: int,
  parts: Mapping[str, Any],
) -> 'OnDevice | OneByOne':
  """Starts to compile the steps of a run, in the form that fits the program.

  The form depends on the program, on the platform and on the kind of data, and
  never on a clock, because the two forms round differently.

  Args:
    compiler: The compiler.
    feed: The data.
    abstract: Shapes, dtypes and shardings of the training state.
    max_steps: The largest number of steps in a call of `train`.
    parts: The keyword arguments of `step.on_batch`.
  """
  # The forward pass has the convolutions of the step, and is quickly traced.
  forward = functools.partial(
    step.forward, graphdef=parts['graphdef'], to_input=parts['to_input']
  )
  traced = compiler.trace(forward, abstract, *feed.abstract(compiler))
  is_slow = loops.is_slow_on_device(traced.jaxpr, compiler.platform)
  if isinstance(feed, feeding.Memory) and not is_slow:
    return OnDevice(compiler, feed, abstract, max_steps, parts)
  rule = parts['rule']._replace(unroll=is_slow)
  return OneByOne(compiler, feed, abstract, {**parts, 'rule': rule})


class OnDevice:
  """Steps in a loop on the devices, for data in memory.

  Attributes:
    rule: The rule of the gradient.
    norms: Empty, because `norms_of_next` has the norms of a step.
  """

  def __init__(
    self,
    compiler: Compiler,
    feed: feeding.Memory,
    abstract: state.TrainState,
    max_steps: int,
    parts: Mapping[str, Any],
  ):
    """Starts to compile the loop, and a program of the norms of a step."""
    self._feed, self._max_steps = feed, max_steps
    self.norms: dict[str, jax.Array] = {}
    self.rule: gradients.Rule = parts['rule']
    (_, batch) = feed.abstract(compiler)
    # The donation lets XLA write the new parameters over the old parameters.
    self._loop = compiler.ahead(
      functools.partial(step.train_steps, **parts),
      abstract,
      feed.train,
      compiler.int32(max_steps, *batch.shape),
      compiler.int32(),
      donate_argnums=0,
    )
    self._norms: Any = None
    # With sums in the state, every step computes the norms already.
    if not abstract.sums:
      self._norms = compiler.ahead(
        functools.partial(step.scalars, **parts),
        abstract,
        *feed.abstract(compiler),
      )

  def with_feed(self, feed: feeding.Memory) -> 'OnDevice':
    """Returns the same programs on other data of the same shapes."""
    other = copy.copy(self)
    other._feed = feed
    return other

  def train(
    self, train_state: state.TrainState, start: int, stop: int
  ) -> state.TrainState:
    """Takes steps; see `Programs.train`."""
    rows = self._feed.rows(start, stop, self._max_steps)
    return self._loop(
      train_state, self._feed.train, rows, np.int32(stop - start)
    )

  def norms_of_next(
    self, train_state: state.TrainState, start: int
  ) -> dict[str, jax.Array]:
    """Returns the norms of the next step, from a separate program.

    Args:
      train_state: The training state after `start` steps.
      start: The number of completed steps.
    """
    if self._norms is None:
      return {}
    (given,) = self._feed.steps(start, start + 1)
    return self._norms(train_state, *given)


class OneByOne:
  """Steps as one call for each step, with the norms of the step.

  Attributes:
    rule: The rule of the gradient.
    norms: The norms of the last step; empty before the first step, and with
      sums in the state.
  """

  def __init__(
    self,
    compiler: Compiler,
    feed: feeding.Memory | streaming.Streamed,
    abstract: state.TrainState,
    parts: Mapping[str, Any],
  ):
    """Starts to compile the step; see `create`."""
    self._feed = feed
    self.norms: dict[str, jax.Array] = {}
    self.rule: gradients.Rule = parts['rule']
    self._step = compiler.ahead(
      functools.partial(step.guarded_step, **parts),
      abstract,
      *feed.abstract(compiler),
      donate_argnums=0,
    )

  def with_feed(self, feed: feeding.Memory) -> 'OneByOne':
    """Returns the same programs on other data of the same shapes."""
    other = copy.copy(self)
    other._feed = feed
    return other

  def train(
    self, train_state: state.TrainState, start: int, stop: int
  ) -> state.TrainState:
    """Takes steps; see `Programs.train`."""
    arguments = self._feed.steps(start, stop)
    train_state, self.norms = loops.call_each(
      self._step, train_state, arguments
    )
    return train_state

  def norms_of_next(
    self, train_state: state.TrainState, start: int
  ) -> dict[str, jax.Array]:
    """Returns an empty dict, because a step itself has the norms."""
    del train_state, start
    return {}
