"""The compiled programs of a run, and the data that they read."""

import functools
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bn_research import data, errors, optim, probes, registry
from bn_research.training import configuration, evaluation, state, step
from bn_research.training import mesh as mesh_lib

# Longer chunks gain nothing, and their indices take memory.
_MAX_STEPS = 4096
_MAX_INDICES = 1 << 20


class Programs:
  """What a run computes, compiled side by side; use in the mesh's context.

  Attributes:
    max_steps: The most steps that `train` takes at once.
    abstract: Shapes, dtypes and shardings of the state.
    probes: The probes by their keys in `config.probes`.
  """

  def __init__(
    self, config: Mapping[str, Any], dataset: data.Dataset, mesh: Mesh
  ):
    """Puts the data on the devices and begins to compile.

    Args:
      config: The resolved config.
      dataset: What to train and to test on.
      mesh: The devices.

    Raises:
      UserError: If the config names what does not exist or does not fit.
    """
    self._config = config
    self._mesh = mesh
    self._whole = mesh_lib.replicated(mesh)
    self.max_steps = max(
      1,
      min(
        config['num_steps'], _MAX_STEPS, _MAX_INDICES // config['batch_size']
      ),
    )
    self._sections = configuration.probe_sections(config)
    self._put(dataset)
    self._pool = futures.ThreadPoolExecutor()
    self._compile(dataset)
    self._pool.shutdown(wait=False)

  def wait(self) -> None:
    """Waits until everything is compiled."""
    self._pool.shutdown()

  def init(self) -> state.TrainState:
    """Returns the state before the first step."""
    return self._init(self._key)[1]

  def train(
    self, train_state: state.TrainState, start: int, stop: int
  ) -> state.TrainState:
    """Takes the steps from `start` up to `stop`; `train_state` is used up.

    Args:
      train_state: The state after `start` steps.
      start: The first step.
      stop: One past the last; at most `max_steps` steps are taken.

    Returns:
      The state after the last step, or after the first with a non-finite loss.
    """
    padded = np.zeros((self.max_steps, self._config['batch_size']), np.int32)
    padded[: stop - start] = self._indices(start, stop)
    return self._train(
      train_state, self._train_data, padded, np.int32(stop - start)
    )

  def scalars(
    self, train_state: state.TrainState, start: int
  ) -> dict[str, jax.Array]:
    """Returns the norms of the step after `start` steps.

    Args:
      train_state: The state after `start` steps.
      start: The number of steps.

    Returns:
      See `step.norms_of`; nothing where the state has their sums.
    """
    if self._scalars is None:
      return {}
    batch = self._indices(start, start + 1)[0]
    return self._scalars(train_state, self._train_data, batch)

  def evaluate(
    self, train_state: state.TrainState
  ) -> dict[str, dict[str, float]]:
    """Returns `'accuracy'` and `'loss'` on each split of `config.eval`."""
    if self._reestimate is not None:
      rest = self._reestimate(train_state, self._train_data, *self._stacks)
      train_state = train_state._replace(rest=rest)
    results = {
      split: evaluate(train_state, *self._evaluated[split])
      for split, evaluate in self._evaluate.items()
    }
    return jax.tree.map(float, jax.device_get(results))

  def probe(
    self, key: str, train_state: state.TrainState
  ) -> dict[str, np.ndarray]:
    """Returns what the probe of `config.probes[key]` finds."""
    found = self._probe[key](train_state, self._probe_examples[key])
    return jax.device_get(found)

  def zero(self) -> jax.Array:
    """Returns a new float32 zero on the devices."""
    return mesh_lib.replicate(np.zeros((), np.float32), self._mesh)

  def _indices(self, start: int, stop: int) -> np.ndarray:
    """Returns the examples of the steps from `start` up to `stop`."""
    size, seed = self._config['batch_size'], self._config['seed']
    return data.batch_indices(self._num_examples, size, seed, start, stop)

  def _put(self, dataset: data.Dataset) -> None:
    train = dataset.train
    self._num_examples = len(train.images)
    data.batch_indices(  # Raises now where a batch does not fit.
      self._num_examples, self._config['batch_size'], 0, 0, 1
    )
    put = functools.partial(mesh_lib.replicate, mesh=self._mesh)
    self._train_data = step.Examples(*put(tuple(train)))
    self._probe_examples = {
      key: step.Examples(*put(_spread(key, train, section['num_examples'])))
      for key, section in self._sections.items()
    }
    self._evaluated = {
      name: self._put_split(dataset, name)
      for name in self._config['eval']['splits']
    }
    self._stacks: list[jax.Array] = []
    if self._config['eval']['population'] == 'reestimated':
      self._stacks = put(evaluation.stacks(len(train.images), self._mesh.size))
    self._key = put(jax.random.key(self._config['seed']))

  def _put_split(
    self, dataset: data.Dataset, name: str
  ) -> tuple[step.Examples, jax.Array]:
    """Returns a split, and its batches, on the devices."""
    split = dataset.split(name)
    batches = evaluation.batches(len(split.images), self._mesh.size)
    put = functools.partial(mesh_lib.replicate, mesh=self._mesh)
    if name == 'train':
      return self._train_data, put(batches)
    return step.Examples(*put(tuple(split))), put(batches)

  def _compile(self, dataset: data.Dataset) -> None:
    config = self._config
    self.probes = {
      key: probes.create(key, section)
      for key, section in self._sections.items()
    }
    optimizer = optim.create(config['optimizer'], config['num_steps'])
    create = state.creator(
      config, dataset.train.images.shape[1:], dataset.num_classes, optimizer
    )
    # One use is not worth the time of full optimization.
    quickly = {'xla_backend_optimization_level': 1}
    self._init = self._ahead(create, self._key, options=quickly)
    graphdef, shapes = jax.eval_shape(create, self._key)
    self.abstract = jax.tree.map(self._like, shapes)
    parts = {
      'graphdef': graphdef,
      'to_input': data.input_function(config['data'], dataset.train.images),
    }
    given = self.abstract, self._train_data
    size = config['batch_size']
    self._train = self._ahead(
      functools.partial(step.train_steps, optimizer=optimizer, **parts),
      *given,
      self._int32(self.max_steps, size),
      self._int32(),
      donate_argnums=0,
    )
    self._scalars = None
    if not self.abstract.sums:
      self._scalars = self._ahead(
        functools.partial(step.scalars, optimizer=optimizer, **parts),
        *given,
        self._int32(size),
      )
    self._evaluate = {
      split: self._ahead(
        functools.partial(
          evaluation.evaluate, num_classes=dataset.num_classes, **parts
        ),
        self.abstract,
        *split_data,
      )
      for split, split_data in self._evaluated.items()
    }
    self._reestimate = None
    if self._stacks:
      self._reestimate = self._ahead(
        functools.partial(evaluation.reestimate, **parts),
        *given,
        *self._stacks,
        where='config.eval.population',
      )
    self._probe = {
      key: self._ahead(
        functools.partial(
          evaluation.probe, measure=probe, optimizer=optimizer, **parts
        ),
        self.abstract,
        self._probe_examples[key],
        where=f'config.probes.{key}',
      )
      for key, probe in self.probes.items()
    }

  def _like(self, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self._whole)

  def _int32(self, *shape: int) -> jax.ShapeDtypeStruct:
    return self._like(jax.ShapeDtypeStruct(shape, np.int32))

  def _ahead(
    self,
    function: Callable[..., Any],
    *args: Any,
    options: dict[str, Any] | None = None,
    where: str = 'config.model',
    **jit_options: Any,
  ) -> Callable[..., Any]:
    """Traces now, compiles in the background, waits for it when called."""
    jitted = jax.jit(function, out_shardings=self._whole, **jit_options)
    with registry.mistakes_in(where):
      lowered = jitted.lower(*args)
    compiled = self._pool.submit(lowered.compile, options)
    return lambda *args: compiled.result()(*args)


def _spread(key: str, split: data.Split, count: int) -> tuple[np.ndarray, ...]:
  """Returns examples that are spread evenly over a split.

  A split that is sorted by class is then covered, too.
  """
  if count > len(split.images):
    raise errors.UserError(
      f'config.probes.{key}.num_examples={count}, but there are'
      f' {len(split.images)} training examples'
    )
  chosen = np.arange(count) * len(split.images) // count
  return split.images[chosen], split.labels[chosen]
