"""The compiled programs of a run, and the data on the devices."""

import functools
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bn_research import data, errors, optim, probes, registry
from bn_research.training import configuration, evaluation, loops, state, step
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
    self._whole = mesh_lib.replicated(mesh)
    self.max_steps = max(
      1,
      min(
        config['num_steps'], _MAX_STEPS, _MAX_INDICES // config['batch_size']
      ),
    )
    self._sections = configuration.probe_sections(config)
    self._put(dataset)
    # XLA compiles without the lock of the Python interpreter (GIL), hence
    # threads compile in parallel.
    self._pool = futures.ThreadPoolExecutor()
    self._compile(dataset)
    self._pool.shutdown(wait=False)

  def wait(self) -> None:
    """Waits until all programs are compiled."""
    self._pool.shutdown()

  def init(self) -> state.TrainState:
    """Returns the training state before the first step."""
    return self._init(self._key)[1]

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
    padded[: stop - start] = self._indices(start, stop)
    return self._train(
      train_state, self._train_data, padded, np.int32(stop - start)
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
    batch = self._indices(start, start + 1)[0]
    return self._scalars(train_state, self._train_data, batch)

  def evaluate(
    self, train_state: state.TrainState
  ) -> dict[str, dict[str, float]]:
    """Returns `'accuracy'` and `'loss'` on each split of `config.eval`."""
    if self._reestimate is not None:
      # Only this evaluation uses the measured moments: training continues with
      # the running moments.
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
    """Returns the arrays that the probe `config.probes[key]` measures."""
    found = self._probe[key](train_state, self._probe_examples[key])
    return jax.device_get(found)

  def restart_sums(self, train_state: state.TrainState) -> state.TrainState:
    """Returns the state with sums of zero, for the steps up to the next row."""
    # Every sum is a new array, because a buffer cannot be donated twice.
    zero = lambda: mesh_lib.replicate(np.zeros((), np.float32), self._mesh)
    sums = {name: zero() for name in train_state.sums}
    return train_state._replace(loss_sum=zero(), sums=sums)

  def _indices(self, start: int, stop: int) -> np.ndarray:
    """Returns indices of the examples of the steps `start` to `stop` - 1."""
    size, seed = self._config['batch_size'], self._config['seed']
    return data.batch_indices(self._num_examples, size, seed, start, stop)

  def _put(self, dataset: data.Dataset) -> None:
    train = dataset.train
    self._num_examples = len(train.images)
    data.batch_indices(  # Raises a UserError for a batch that does not fit.
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
    """Returns the examples and the batches of a split, on the devices."""
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
    # `init` runs only once: full optimization takes more time than a faster
    # `init` saves.
    quickly = {'xla_backend_optimization_level': 1}
    self._init = self._ahead(create, self._key, options=quickly)
    graphdef, shapes = jax.eval_shape(create, self._key)
    self.abstract = jax.tree.map(self._like, shapes)
    parts = {
      'graphdef': graphdef,
      'to_input': data.input_function(config['data'], dataset.train.images),
    }
    self._compile_steps(optimizer, parts)
    self._compile_evaluation(dataset.num_classes, parts)
    self._compile_probes(optimizer, parts)

  def _compile_steps(self, optimizer: Any, parts: dict[str, Any]) -> None:
    given = self.abstract, self._train_data
    size = self._config['batch_size']
    self._train: Callable[..., Any]
    # The donation lets XLA write the new parameters over the old parameters.
    trace = functools.partial(self._trace, donate_argnums=0)
    steps = trace(
      functools.partial(step.train_steps, optimizer=optimizer, **parts),
      *given,
      self._int32(self.max_steps, size),
      self._int32(),
    )
    platform = self._mesh.devices.flat[0].platform
    if loops.is_slow_on_device(steps.jaxpr, platform):
      one = trace(
        functools.partial(step.next_step, optimizer=optimizer, **parts),
        *given,
        self._int32(size),
      )
      self._train = functools.partial(loops.call_each, self._compiled(one))
    else:
      self._train = self._compiled(steps)
    # With sums in the state, every step computes the norms already.
    self._scalars = None
    if not self.abstract.sums:
      self._scalars = self._ahead(
        functools.partial(step.scalars, optimizer=optimizer, **parts),
        *given,
        self._int32(size),
      )

  def _compile_evaluation(
    self, num_classes: int, parts: dict[str, Any]
  ) -> None:
    self._evaluate = {
      split: self._ahead(
        functools.partial(
          evaluation.evaluate, num_classes=num_classes, **parts
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
        self.abstract,
        self._train_data,
        *self._stacks,
        where='config.eval.population',
      )

  def _compile_probes(self, optimizer: Any, parts: dict[str, Any]) -> None:
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
    """Traces a function now, and compiles the program in a thread.

    Args:
      function: A function of arrays.
      *args: Abstract or concrete arguments of the function.
      options: None, or compiler options of XLA.
      where: The place in the config that an error while tracing names.
      **jit_options: Further arguments of `jax.jit`.

    Returns:
      The compiled function. The first call waits for the compiler.
    """
    return self._compiled(
      self._trace(function, *args, where=where, **jit_options), options
    )

  def _trace(
    self,
    function: Callable[..., Any],
    *args: Any,
    where: str = 'config.model',
    **jit_options: Any,
  ) -> Any:
    """Traces a function; see `_ahead`."""
    # A program returns replicated arrays, because the next program expects
    # replicated arguments.
    jitted = jax.jit(function, out_shardings=self._whole, **jit_options)
    # Tracing calls the model and the probes, which raise the errors of a wrong
    # config.
    with registry.mistakes_in(where):
      return jitted.trace(*args)

  def _compiled(
    self, traced: Any, options: dict[str, Any] | None = None
  ) -> Callable[..., Any]:
    """Compiles a traced function in a thread; see `_ahead`."""
    lowered = traced.lower()
    compiled = self._pool.submit(lowered.compile, options)
    return lambda *args: compiled.result()(*args)


def _spread(key: str, split: data.Split, count: int) -> tuple[np.ndarray, ...]:
  """Returns examples at equal distances in a split.

  Equal distances cover all classes of a split that is sorted by class.
  """
  if count > len(split.images):
    raise errors.UserError(
      f'config.probes.{key}.num_examples={count}, but there are'
      f' {len(split.images)} training examples'
    )
  chosen = np.arange(count) * len(split.images) // count
  return split.images[chosen], split.labels[chosen]
