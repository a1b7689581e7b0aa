"""Estimates the cost of a run by abstract evaluation."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bn_research import data, models, optim, registry
from bn_research.data import describing
from bn_research.training import (
  checking,
  configuration,
  gradients,
  losses,
  state,
  step,
)
from bn_research.training.costs import collectives, flops, memory


class Cost(NamedTuple):
  """The cost of a run.

  Attributes:
    network: The name of the network.
    dataset: The description of the dataset.
    batch_size: Examples of a step, over all devices together.
    num_steps: Steps of the run.
    num_devices: The number of devices.
    num_parameters: The number of parameters.
    state_bytes: Bytes of parameters, statistics and optimizer on each device.
    example_flops: Operations of the forward pass of an example, at inference.
    step_flops: Operations of a training step, over all devices together.
    kept_bytes: Bytes between the forward and the backward pass of a step, over
      all devices together, without rematerialization.
    kept_with_remat: These bytes with rematerialization; None for a network
      without the option `remat`.
    collectives: The collectives of a step.
  """

  network: str
  dataset: describing.Description
  batch_size: int
  num_steps: int
  num_devices: int
  num_parameters: int
  state_bytes: int
  example_flops: float
  step_flops: float
  kept_bytes: int
  kept_with_remat: int | None
  collectives: collectives.Collectives


def estimate(config: Mapping[str, Any], data_dir: str | None = None) -> Cost:
  """Estimates the cost of a run, without data, devices or compilation.

  `config.data.normalize` needs the data, and does not count. Evaluation and
  probes do not count either.

  Args:
    config: The config; `experiment.KEYS` lists the keys.
    data_dir: The directory of the datasets; None for the default of TFDS.

  Returns:
    The cost.

  Raises:
    UserError: If the config is wrong.
  """
  config = configuration.resolve(config)
  splits = config['eval']['splits']
  dataset = describing.describe(config['data'], data_dir, splits)
  # Both only check the names and the options.
  data.normalizing.find(config['data'])
  checking.check_probes(config)
  mesh = collectives.mesh_of(config['num_devices'])
  with jax.sharding.use_abstract_mesh(mesh):
    return _estimate(config, dataset)


def _estimate(
  config: Mapping[str, Any], dataset: describing.Description
) -> Cost:
  section, size = _without_remat(config['model']), config['batch_size']
  network = _Network(section, dataset, size)
  # Only one micro-batch at a time keeps activations, and each micro-batch has
  # its own collectives.
  count = config['microbatches']
  part = _Network(section, dataset, size // count) if count > 1 else network
  optimizer = _optimizer(config, dataset)
  create = state.creator(config, dataset.shape, dataset.num_classes, optimizer)
  graphdef, start = jax.eval_shape(create, jax.random.key(0))
  return Cost(
    network=section['name'],
    dataset=dataset,
    batch_size=size,
    num_steps=config['num_steps'],
    num_devices=config['num_devices'],
    num_parameters=sum(leaf.size for leaf in jax.tree.leaves(start.params)),
    state_bytes=sum(
      leaf.size * leaf.dtype.itemsize
      for leaf in jax.tree.leaves((start.params, start.rest, start.opt_state))
    ),
    example_flops=network.inference() / size,
    step_flops=_of_step(config, dataset, graphdef, start, optimizer),
    kept_bytes=part.kept(),
    kept_with_remat=_Network(
      {**section, 'remat': True}, dataset, size // count
    ).kept()
    if 'remat' in section
    else None,
    collectives=collectives.of_step(
      part.loss, part.model, part.params, *part.given
    ).times(count),
  )


def _optimizer(
  config: Mapping[str, Any], dataset: describing.Description
) -> Any:
  if dataset.num_examples is not None:
    return optim.of_run(config, dataset.num_examples)
  # Without the number of examples, an epoch has no length. The cost does not
  # depend on the learning rate.
  section = {**config['optimizer'], 'schedule': None}
  return optim.create(section, config['num_steps'])


class _Network:
  """A network with abstract variables, and an abstract batch."""

  def __init__(
    self,
    section: Mapping[str, Any],
    dataset: describing.Description,
    size: int,
  ):
    shape, num_classes = dataset.shape, dataset.num_classes
    with registry.mistakes_in('config.model'):
      self.model = nnx.eval_shape(
        lambda: models.create(section, shape, num_classes, jax.random.key(0))
      )
      self._graphdef, *states = nnx.split(self.model, nnx.Param, ...)
      self.params, rest = map(nnx.as_pure, states)
      x = jax.ShapeDtypeStruct((size, *shape), jnp.float32)
      labels = jax.ShapeDtypeStruct((size,), jnp.int32)
      self.given = rest, x, labels
      jax.eval_shape(self.loss, self.params, *self.given)

  def loss(
    self, params: Any, rest: Any, x: jax.Array, labels: jax.Array
  ) -> tuple[jax.Array, Any]:
    """Returns the loss of a batch, and the further variables after the call."""
    model: Any = nnx.merge(self._graphdef, params, rest, copy=True)
    mean = losses.losses(model(x, train=True), labels).mean()
    return mean, nnx.as_pure(nnx.state(model, nnx.Not(nnx.Param)))

  def kept(self) -> int:
    """Returns the bytes between the forward and the backward pass."""
    return memory.kept(
      lambda *args: self.loss(*args)[0], self.params, *self.given
    )

  def inference(self) -> float:
    """Returns the operations of a batch at inference."""

    def infer(params: Any, rest: Any, x: jax.Array) -> jax.Array:
      model: Any = nnx.merge(self._graphdef, params, rest, copy=True)
      return model(x, train=False)

    return flops.count(jax.make_jaxpr(infer)(self.params, *self.given[:2]))


def _of_step(
  config: Mapping[str, Any],
  dataset: describing.Description,
  graphdef: nnx.GraphDef,
  start: state.TrainState,
  optimizer: Any,
) -> float:
  """Returns the operations of a training step, with augmentation and update."""
  size = config['batch_size']
  # The augmentation reads the shape of the images, and the mean colour.
  images = np.zeros((2, *dataset.shape), np.uint8)
  one_step = functools.partial(
    step.next_step,
    graphdef=graphdef,
    optimizer=optimizer,
    to_input=functools.partial(
      data.to_input, binarize=config['data'].get('binarize')
    ),
    augment=data.augmentation.create(config['data'], images),
    rule=gradients.rule_of(config),
  )
  abstract: Any = (
    jax.ShapeDtypeStruct((size, *dataset.shape), jnp.uint8),
    jax.ShapeDtypeStruct((size,), jnp.int32),
    jax.eval_shape(jax.random.key, 0),
  )
  examples = step.Examples(*abstract)
  batch = jax.ShapeDtypeStruct((size,), jnp.int32)
  return flops.count(jax.make_jaxpr(one_step)(start, examples, batch))


def _without_remat(section: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the section of a model; `remat` is False if there is the option."""
  name = section['name']
  factory = registry.find('config.model', models.MODELS, name)
  parameters = registry.parameters_of('config.model', factory, name)
  has_remat = registry.takes(parameters, 'remat')
  return {**section, **({'remat': False} if has_remat else {})}
