"""Section 2's two routes are one: whitened coordinates, or preconditioning."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

from bn_research import hooks, norms, preconditioning
from bn_research.preconditioning.refresh import Refresh
from bn_research.training import mesh as mesh_lib
from tests.quick import some

SIZES = (6, 5, 3)
EVERY, EPSILON, DECAY, RATE = 20, 1e-3, 0.9, 0.05
WHITENED = functools.partial(
  preconditioning.WhitenedDense,
  every=EVERY,
  whiten=norms.Whiten('zca', epsilon=EPSILON),
  population=norms.Ema(DECAY),
)


@pytest.fixture
def x64():
  with jax.enable_x64(True):
    yield


def batch(step):
  """Inputs that are far from white, and targets."""
  rng = np.random.default_rng([7, step])
  mix = np.random.default_rng(3).normal(size=(SIZES[0], SIZES[0]))
  x = rng.normal(size=(32, SIZES[0])) @ mix + 2
  return x, np.sin(x[:, : SIZES[-1]])


class Net(nnx.Module):
  """Dense, tanh, dense."""

  def __init__(self, dense, use_bias=True):
    first, last = (
      dense(
        *sizes,
        use_bias=use_bias,
        kernel_init=nnx.initializers.normal(0.4),
        param_dtype=jnp.zeros(()).dtype,
        rngs=nnx.Rngs(seed),
      )
      for seed, sizes in enumerate(itertools.pairwise(SIZES))
    )
    self.dense = nnx.List([first, last])

  def __call__(self, x):
    return self.dense[1](jnp.tanh(self.dense[0](x)))


def take_step(state, x, y, *, graphdef, optimizer):
  params, rest, opt_state = state
  brought = hooks.Brought(nnx.merge(graphdef, params, rest), opt_state)

  def loss_fn(params):
    model = nnx.merge(graphdef, params, rest, copy=True)
    noted = brought.listen(model)
    return ((model(x) - y) ** 2).mean(), noted

  (loss, noted), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
  new = brought.before_update(
    hooks.Descent(params, rest, grads, opt_state, {}),
    noted,
    graphdef=graphdef,
    optimizer=optimizer,
  )
  updates, opt_state = optimizer.update(
    new.grads, new.opt_state, new.params, **new.given
  )
  return (optax.apply_updates(new.params, updates), new.rest, opt_state), loss


def train(model, optimizer, num_devices=1):
  """Returns 200 losses, and the trained model."""
  optimizer = optax.with_extra_args_support(optimizer)
  graphdef, *states = nnx.split(model, nnx.Param, ...)
  params, rest = map(nnx.as_pure, states)
  mesh = mesh_lib.create(num_devices, num_devices)
  state = mesh_lib.replicate((params, rest, optimizer.init(params)), mesh)
  sharding = NamedSharding(mesh, PartitionSpec('data'))
  step = jax.jit(
    functools.partial(take_step, graphdef=graphdef, optimizer=optimizer),
    out_shardings=mesh_lib.replicated(mesh),
  )
  losses = []
  with jax.set_mesh(mesh):
    for t in range(200):
      x, y = jax.device_put(jax.tree.map(jnp.asarray, batch(t)), sharding)
      state, loss = step(state, x, y)
      losses.append(float(loss))
  assert step._cache_size() == 1
  return np.asarray(losses), nnx.merge(graphdef, *state[:2])


class Oracle:
  """One layer under preconditioned heavy ball, by hand, in NumPy."""

  def __init__(self, kernel, use_bias):
    self.kernel, self.bias = np.array(kernel), np.zeros(kernel.shape[1])
    self.use_bias = use_bias
    self.trace = [np.zeros_like(self.kernel), np.zeros_like(self.bias)]
    self.moments = []

  def __call__(self, x):
    return x @ self.kernel + self.bias

  def update(self, x, delta, momentum):
    self.moments.append((x.mean(0), np.cov(x.T)))
    if len(self.moments) % EVERY == 1:
      self.renew()
    gradient = x.T @ delta, delta.sum(0)
    self.trace = [
      momentum * m + g for m, g in zip(self.trace, gradient, strict=True)
    ]
    trace = self.trace[0] - np.outer(self.mean, self.trace[1])
    change = -RATE * self.inverse @ trace
    self.kernel = self.kernel + change
    if self.use_bias:
      self.bias = self.bias - RATE * self.trace[1] - self.mean @ change

  def renew(self):
    weights = DECAY ** np.arange(len(self.moments))[::-1]
    self.mean, cov = (
      np.average(part, 0, weights) for part in zip(*self.moments, strict=True)
    )
    if not self.use_bias:
      cov = cov + np.outer(self.mean, self.mean)
      self.mean = np.zeros_like(self.mean)
    level = EPSILON * np.trace(cov) / len(cov)
    self.inverse = np.linalg.inv(cov + level * np.eye(len(cov)))


@functools.cache
def expected(momentum, use_bias=True):
  """Returns 200 losses, and the trained layers."""
  first, last = (
    Oracle(np.asarray(dense.kernel[...]), use_bias)
    for dense in Net(nnx.Linear, use_bias).dense
  )
  losses = []
  for t in range(200):
    x, y = batch(t)
    h = np.tanh(first(x))
    z = last(h)
    losses.append(((z - y) ** 2).mean())
    delta = 2 * (z - y) / y.size
    below = (delta @ last.kernel.T) * (1 - h**2)
    last.update(h, delta, momentum)
    first.update(x, below, momentum)
  return np.asarray(losses), (first, last)


def canonical(dense):
  """K and b of a layer in any coordinates."""
  kernel = np.asarray(dense.kernel[...])
  bias = 0.0 if dense.bias is None else np.asarray(dense.bias[...])
  if not isinstance(dense, preconditioning.WhitenedDense):
    return kernel, bias
  kernel = np.asarray(dense.basis[...]) @ kernel
  return kernel, bias - np.asarray(dense.mean[...]) @ kernel


def deviation(result, oracle):
  """The largest difference in losses and in weights."""
  losses, model = result
  found = [np.abs(losses - oracle[0]).max()]
  for dense, layer in zip(model.dense, oracle[1], strict=True):
    kernel, bias = canonical(dense)
    found += [
      np.abs(kernel - layer.kernel).max(),
      np.abs(bias - layer.bias).max(),
    ]
  assert np.isfinite(found).all()
  return max(found)


@pytest.mark.parametrize(
  ('momentum', 'use_bias'), some([], [(0.9, True), (0.0, True), (0.9, False)])
)
def test_descent_in_whitened_coordinates_is_preconditioned_descent(
  x64, momentum, use_bias
):
  oracle = expected(momentum, use_bias)
  assert oracle[0][-20:].mean() < 0.9 * oracle[0][:20].mean()
  result = train(Net(WHITENED, use_bias), optax.sgd(RATE, momentum))
  assert deviation(result, oracle) <= 1e-10


@pytest.mark.parametrize('num_devices', some([8], [1]))
def test_the_optimizer_does_the_same(x64, num_devices):
  optimizer = optax.chain(
    optax.trace(0.9),
    preconditioning.precondition_by_input_covariance(
      EVERY, EPSILON, DECAY, relative=True
    ),
    optax.scale_by_learning_rate(RATE),
  )
  result = train(Net(nnx.Linear), optimizer, num_devices)
  assert deviation(result, expected(0.9)) <= 1e-10


@pytest.mark.slow
def test_on_many_devices(x64):
  result = train(Net(WHITENED), optax.sgd(RATE, 0.9), num_devices=8)
  assert deviation(result, expected(0.9)) <= 1e-10


def test_momentum_must_be_carried(x64, monkeypatch):
  before_update = Refresh.before_update

  def without(self, descent, noted, **parts):
    new = before_update(self, descent, noted, **parts)
    return new._replace(opt_state=descent.opt_state)

  monkeypatch.setattr(Refresh, 'before_update', without)
  result = train(Net(WHITENED), optax.sgd(RATE, 0.9))
  assert deviation(result, expected(0.9)) > 1e-2


@pytest.mark.slow
def test_adam_trains_too():
  losses, _ = train(Net(WHITENED), optax.adam(0.01))
  assert np.isfinite(losses).all()
  assert losses[-20:].mean() < 0.9 * losses[:20].mean()


def test_other_models_and_optimizers_bring_nothing_along():
  optimizer = optax.adam(RATE)
  model = Net(nnx.Linear)
  opt_state = optimizer.init(nnx.state(model, nnx.Param))
  brought = hooks.Brought(model, opt_state)
  descent = hooks.Descent({}, {}, {}, opt_state, {})
  assert brought.listen(model) == []
  assert brought.before_update(descent, []) is descent


def test_both_routes_at_once_are_refused():
  optimizer = preconditioning.precondition_by_input_covariance()
  with pytest.raises(
    ValueError, match='kernel of dense/0 has no input_moments'
  ):
    train(Net(WHITENED), optimizer)
