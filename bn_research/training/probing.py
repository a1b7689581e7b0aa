"""Calls a probe on the training state."""

import functools

import jax
import optax
from flax import nnx

from bn_research import probes
from bn_research.training import gradients, losses
from bn_research.training import step as step_lib
from bn_research.training.state import TrainState


def probe(
  state: TrainState,
  examples: step_lib.Examples,
  *,
  measure: probes.Probe,
  graphdef: nnx.GraphDef,
  optimizer: optax.GradientTransformationExtraArgs,
  to_input: step_lib.ToInput,
  rule: gradients.Rule = gradients.PLAIN,
) -> dict[str, jax.Array]:
  """Calls a probe on the training state, without a change of the state.

  Args:
    state: The training state.
    examples: A batch of stored examples, on which the probe measures.
    measure: The probe, a function of an `Observation`.
    graphdef: The graph definition of the model.
    optimizer: The optimizer.
    to_input: The function from stored images to the inputs of the network.
    rule: How the training computes the gradient.

  Returns:
    The measured arrays by name.

  Raises:
    ValueError: If the probe does not return a dict of arrays, or if an array
      has the name of a constant of the probe.
  """
  x, labels = to_input(examples.images), examples.labels

  # The step is a function, because tracing a step takes time, and many probes
  # need no step.
  def take_step() -> probes.Step:
    return step_lib.train_step(
      state, x, labels, graphdef=graphdef, optimizer=optimizer, rule=rule
    )

  return probes.measure(
    measure,
    probes.Observation(
      num_steps=state.step,
      x=x,
      labels=labels,
      params=state.params,
      rest=state.rest,
      opt_state=state.opt_state,
      losses=functools.partial(
        losses.losses, label_smoothing=rule.label_smoothing
      ),
      # A call in training mode changes running statistics, and must change only
      # the statistics of a copy.
      make_model=lambda *states: nnx.merge(graphdef, *states, copy=True),
      take_step=take_step,
    ),
  )
