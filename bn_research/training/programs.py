"""The compiled programs of a run."""

import copy
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
  evaluated,
  evaluation,
  feeding,
  gradients,
  probing,
  state,
  stepping,
  streaming,
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
    self,
    config: Mapping[str, Any],
    dataset: feeding.Dataset,
    mesh: Mesh,
    feed: feeding.Memory | None = None,
    compiler: Any = None,
    width: int = 1,
  ):
    """Brings the data, and starts to compile the programs.

    Args:
      config: The resolved config.
      dataset: The dataset for training and evaluation.
      mesh: The device mesh.
      feed: The data, if these are on the devices already.
      compiler: A compiler or tracer with the methods of `compiling.Compiler`;
        None for a compiler of this mesh.
      width: The number of runs that a call of `train` trains together.

    Raises:
      UserError: If a name in the config is unknown, or if a value does not fit.
    """
    self._config = config
    self._mesh = mesh
    self.max_steps = max(
      1,
      min(
        config['num_steps'],
        _MAX_STEPS // width,
        _MAX_INDICES // config['batch_size'] // width,
      ),
    )
    self._data: feeding.Memory | streaming.Streamed
    if isinstance(dataset, data.Stream):
      self._data = streaming.Streamed(config, dataset, mesh)
    else:
      self._data = feed or feeding.Memory(config, dataset, mesh)
    self._compiler = compiler or compiling.Compiler(mesh)
    self._compile(dataset)
    self._compiler.close()

  @property
  def form(self) -> type:
    """The form of the loop, `stepping.OnDevice` or `stepping.OneByOne`."""
    return type(self._steps)

  def with_seed(self, seed: int) -> 'Programs':
    """Returns the same programs on the data of another seed.

    No program depends on the seed, but for the keys and the order of the data,
    which are arguments. The dataset must be in memory.
    """
    other = copy.copy(self)
    assert isinstance(self._data, feeding.Memory)
    other._data = self._data.with_seed(seed)
    other._steps = self._steps.with_feed(other._data)
    return other

  def wait(self) -> None:
    """Waits until all programs are compiled."""
    self._compiler.wait()

  def as_arrays(self, train_state: state.TrainState) -> state.TrainState:
    """Returns a training state for a checkpoint, as whole arrays."""
    return self._compiler.as_arrays(train_state)

  def close(self) -> None:
    """Ends the reading of data."""
    self._data.close()

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
    return self._steps.train(train_state, start, stop)

  def train_to_row(
    self, train_state: state.TrainState, start: int, stop: int
  ) -> tuple[state.TrainState, dict[str, jax.Array]]:
    """Takes the training steps before a row of metrics.

    Args:
      train_state: The training state, as for `train`.
      start: The first step.
      stop: The step after the last step, as for `train`.

    Returns:
      The result of `train`, and the norms of gradient, updates and parameters
      of the last step from `step.norms_of`. If the state contains sums of the
      norms, the dict is empty.
    """
    if start < stop - 1:
      train_state = self.train(train_state, start, stop - 1)
    before = self._steps.norms_of_next(train_state, stop - 1)
    train_state = self.train(train_state, stop - 1, stop)
    return train_state, before or self._steps.norms

  def evaluate(
    self, train_state: state.TrainState
  ) -> dict[str, dict[str, float]]:
    """Returns `'accuracy'` and `'loss'` on each split of `config.eval`."""
    if self._reestimate is not None:
      # Only this evaluation uses the measured moments: training continues with
      # the running moments.
      rest = self._reestimate(train_state, self._data.train, *self._data.stacks)
      train_state = train_state._replace(rest=rest)
    results = {
      split: evaluate(train_state) for split, evaluate in self._evaluate.items()
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

  def _compile(self, dataset: feeding.Dataset) -> None:
    config = self._config
    self.probes = {
      key: probes.create(key, section)
      for key, section in configuration.probe_sections(self._config).items()
    }
    optimizer = optim.of_run(config, dataset.num_examples['train'])
    create = state.creator(
      config, dataset.input_shape, dataset.num_classes, optimizer
    )
    # `init` runs only once: full optimization takes more time than a faster
    # `init` saves.
    quickly = {'xla_backend_optimization_level': 1}
    self._init = self._compiler.ahead(create, self._data.key, options=quickly)
    graphdef, shapes = jax.eval_shape(create, self._data.key)
    self.abstract = jax.tree.map(self._compiler.like_state, shapes)
    images = self._data.images
    parts = {
      'graphdef': graphdef,
      'to_input': data.input_function(config['data'], images),
    }
    self._compile_fit(parts)
    # Evaluation and probes measure the network on the images as stored.
    augment = data.augmentation.create(config['data'], images)
    rule = gradients.rule_of(config)
    gradients.check_populations(rule, self._abstract_model(parts))
    self._steps = stepping.create(
      self._compiler,
      self._data,
      self.abstract,
      self.max_steps,
      {**parts, 'optimizer': optimizer, 'augment': augment, 'rule': rule},
    )
    self._compile_evaluation(dataset.num_classes, parts)
    # The examples of a probe need not divide among devices.
    rule = self._steps.rule._replace(form='jit')
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

  def _compile_evaluation(
    self, num_classes: int, parts: dict[str, Any]
  ) -> None:
    evaluated.check_weights(self._config, self._abstract_model(parts))
    parts_of = {'num_classes': num_classes, **parts}
    self._evaluate = {
      split: self._evaluation_of(split, parts_of)
      for split in self._config['eval']['splits']
    }
    self._reestimate = None
    if self._data.stacks:
      self._reestimate = self._compiler.ahead(
        functools.partial(self._of_weights(evaluated.reestimate), **parts),
        self.abstract,
        self._data.train,
        *self._data.stacks,
        where='config.eval.population',
      )

  def _evaluation_of(
    self, split: str, parts: dict[str, Any]
  ) -> Callable[[state.TrainState], Any]:
    """Compiles the evaluation of a split."""
    feed, compiler = self._data, self._compiler
    if isinstance(feed, feeding.Memory):
      given = feed.splits[split]
      whole = compiler.ahead(
        functools.partial(self._of_weights(evaluation.evaluate), **parts),
        self.abstract,
        *given,
      )
      return lambda train_state: whole(train_state, *given)
    one = compiler.ahead(
      functools.partial(self._of_weights(evaluation.evaluate_batch), **parts),
      self.abstract,
      feed.abstract_evaluation(compiler, split),
    )
    return lambda train_state: evaluation.means(
      one(train_state, batch) for batch in feed.evaluation(split)
    )

  def _of_weights(self, function: Callable[..., Any]) -> Callable[..., Any]:
    return evaluated.of_weights(self._config['eval']['weights'], function)

  def _compile_probes(self, optimizer: Any, parts: dict[str, Any]) -> None:
    self._probe = {
      key: self._compiler.ahead(
        functools.partial(
          probing.probe, measure=probe, optimizer=optimizer, **parts
        ),
        self.abstract,
        self._data.probes[key],
        where=f'config.probes.{key}',
      )
      for key, probe in self.probes.items()
    }
