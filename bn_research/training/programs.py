"""The compiled programs of a run."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from bn_research import data, fitting, optim, probes
from bn_research.training import (
  compiling,
  configuration,
  evaluation,
  feeding,
  gradients,
  loops,
  state,
  step,
)
from bn_research.training import mesh as mesh_lib

# Longer chunks are not faster, and the indices of a chunk take memory.
_MAX_STEPS = 4096
_MAX_INDICES = 1 << 20


class Programs:
  """The programs of a run, compiled in parallel.

  All methods need the mesh in context, by `jax.set_mesh`.

  Attributes:
    max_steps: The largest number of steps in a call of `train`.
    abstract: Shapes, dtypes and shardings of the training state.
    probes: The probes by key of `config.probes`.
  """

  def __init__(
    self, config: Mapping[str, Any], dataset: data.Dataset, mesh: Mesh
  ):
    """Copies the data to the devices, and starts to compile the programs.

    Args:
      config: The resolved config.
      dataset: The dataset for training and evaluation.
      mesh: The device mesh.

    Raises:
      UserError: If a name in the config is unknown, or if a value does not fit.
    """
    self._config = config
    self._mesh = mesh
    self.max_steps = max(
      1,
      min(
        config['num_steps'], _MAX_STEPS, _MAX_INDICES // config['batch_size']
      ),
    )
    self._data = feeding.Memory(config, dataset, mesh)
    self._compiler = compiling.Compiler(mesh)
    self._compile(dataset)
    self._compiler.close()

  def wait(self) -> None:
    """Waits until all programs are compiled."""
    self._compiler.wait()

  def init(self) -> state.TrainState:
    """Returns the training state before the first step."""
    train_state = self._init(self._data.key)[1]
    return train_state if self._fit is None else self._fit(train_state)

  def train(
    self, train_state: state.TrainState, start: int, stop: int
  ) -> state.TrainState:
    """Takes the training steps from `start` to `stop` - 1.

    Args:
      train_state: The training state after `start` steps. The buffers are
        donated: a later use of this state is an error.
      start: The first step.
      stop: The step after the last step, at most `start + max_steps`.

    Returns:
      The training state after the last step, or after the first step with a
      non-finite loss.
    """
    # The program has fixed shapes, and does not read the rows after the last
    # step.
    padded = np.zeros((self.max_steps, self._config['batch_size']), np.int32)
    padded[: stop - start] = self._data.indices(start, stop)
    return self._train(
      train_state, self._data.train, padded, np.int32(stop - start)
    )

  def scalars(
    self, train_state: state.TrainState, start: int
  ) -> dict[str, jax.Array]:
    """Returns the norms of gradient, updates and parameters of the next step.

    Args:
      train_state: The training state after `start` steps.
      start: The number of completed steps.

    Returns:
      The result of `step.norms_of`. If the state contains sums of the norms, an
      empty dict.
    """
    if self._scalars is None:
      return {}
    batch = self._data.indices(start, start + 1)[0]
    return self._scalars(train_state, self._data.train, batch)

  def evaluate(
    self, train_state: state.TrainState
  ) -> dict[str, dict[str, float]]:
    """Returns `'accuracy'` and `'loss'` on each split of `config.eval`."""
    if self._config['eval']['weights'] == 'average':
      train_state = evaluation.averaged(train_state)
    if self._reestimate is not None:
      # Only this evaluation uses the measured moments: training continues with
      # the running moments.
      rest = self._reestimate(train_state, self._data.train, *self._data.stacks)
      train_state = train_state._replace(rest=rest)
    results = {
      split: evaluate(train_state, *self._data.splits[split])
      for split, evaluate in self._evaluate.items()
    }
    return jax.tree.map(float, jax.device_get(results))

  def probe(
    self, key: str, train_state: state.TrainState
  ) -> dict[str, np.ndarray]:
    """Returns the arrays that the probe `config.probes[key]` measures."""
    found = self._probe[key](train_state, self._data.probes[key])
    return jax.device_get(found)

  def restart_sums(self, train_state: state.TrainState) -> state.TrainState:
    """Returns the state with sums of zero, for the steps up to the next row."""
    # Every sum is a new array, because a buffer cannot be donated twice.
    zero = lambda: mesh_lib.replicate(np.zeros((), np.float32), self._mesh)
    sums = {name: zero() for name in train_state.sums}
    return train_state._replace(loss_sum=zero(), sums=sums)

  def _compile(self, dataset: data.Dataset) -> None:
    config = self._config
    self.probes = {
      key: probes.create(key, section)
      for key, section in configuration.probe_sections(self._config).items()
    }
    optimizer = optim.of_run(config, len(dataset.train.images))
    create = state.creator(
      config, dataset.train.images.shape[1:], dataset.num_classes, optimizer
    )
    # `init` runs only once: full optimization takes more time than a faster
    # `init` saves.
    quickly = {'xla_backend_optimization_level': 1}
    self._init = self._compiler.ahead(create, self._data.key, options=quickly)
    graphdef, shapes = jax.eval_shape(create, self._data.key)
    self.abstract = jax.tree.map(self._compiler.like, shapes)
    parts = {
      'graphdef': graphdef,
      'to_input': data.input_function(config['data'], dataset.train.images),
    }
    self._compile_fit(parts)
    # Evaluation and probes measure the network on the images as stored.
    augment = data.augmentation.create(config['data'], dataset.train.images)
    rule = self._compile_steps(optimizer, {**parts, 'augment': augment})
    self._compile_evaluation(dataset.num_classes, parts)
    self._compile_probes(optimizer, {**parts, 'rule': rule})

  def _abstract_model(self, parts: Mapping[str, Any]) -> nnx.Module:
    """Returns the model, with shapes in the place of arrays."""
    return nnx.merge(
      parts['graphdef'], self.abstract.params, self.abstract.rest
    )

  def _compile_fit(self, parts: dict[str, Any]) -> None:
    """Compiles the fit of layers to training images, if a layer has a fit."""
    self._fit: Callable[..., Any] | None = None
    model = self._abstract_model(parts)
    count = fitting.num_examples(model)
    if not count:
      return
    images = self._data.sample(count)
    compiled = self._compiler.ahead(
      functools.partial(state.fitted, **parts),
      self.abstract,
      self._compiler.like(jax.ShapeDtypeStruct(images.shape, images.dtype)),
    )
    # The images leave the devices after the call.
    self._fit = lambda train_state: compiled(
      train_state, mesh_lib.replicate(images, self._mesh)
    )

  def _compile_steps(
    self, optimizer: Any, parts: dict[str, Any]
  ) -> gradients.Rule:
    given = self.abstract, self._data.train
    size = self._config['batch_size']
    rule = gradients.rule_of(self._config)
    gradients.check_populations(rule, self._abstract_model(parts))
    parts = {**parts, 'rule': rule}
    self._train: Callable[..., Any]
    # The donation lets XLA write the new parameters over the old parameters.
    trace = functools.partial(self._compiler.trace, donate_argnums=0)
    steps = trace(
      functools.partial(step.train_steps, optimizer=optimizer, **parts),
      *given,
      self._compiler.int32(self.max_steps, size),
      self._compiler.int32(),
    )
    if loops.is_slow_on_device(steps.jaxpr, self._compiler.platform):
      rule = parts['rule'] = rule._replace(unroll=True)
      one = trace(
        functools.partial(step.next_step, optimizer=optimizer, **parts),
        *given,
        self._compiler.int32(size),
      )
      self._train = functools.partial(
        loops.call_each, self._compiler.compiled(one)
      )
    else:
      self._train = self._compiler.compiled(steps)
    # With sums in the state, every step computes the norms already.
    self._scalars = None
    if not self.abstract.sums:
      self._scalars = self._compiler.ahead(
        functools.partial(step.scalars, optimizer=optimizer, **parts),
        *given,
        self._compiler.int32(size),
      )
    return rule

  def _compile_evaluation(
    self, num_classes: int, parts: dict[str, Any]
  ) -> None:
    evaluation.check_weights(self._config, self._abstract_model(parts))
    self._evaluate = {
      split: self._compiler.ahead(
        functools.partial(
          evaluation.evaluate, num_classes=num_classes, **parts
        ),
        self.abstract,
        *split_data,
      )
      for split, split_data in self._data.splits.items()
    }
    self._reestimate = None
    if self._data.stacks:
      self._reestimate = self._compiler.ahead(
        functools.partial(evaluation.reestimate, **parts),
        self.abstract,
        self._data.train,
        *self._data.stacks,
        where='config.eval.population',
      )

  def _compile_probes(self, optimizer: Any, parts: dict[str, Any]) -> None:
    self._probe = {
      key: self._compiler.ahead(
        functools.partial(
          evaluation.probe, measure=probe, optimizer=optimizer, **parts
        ),
        self.abstract,
        self._data.probes[key],
        where=f'config.probes.{key}',
      )
      for key, probe in self.probes.items()
    }
