"""Which form the loop over steps takes, and that both forms are one run."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bn_research import training, workdir
from bn_research.training import loops, step
from tests.training.conftest import CONFIG

CONV_NET = """
import jax
from flax import nnx

class Net(nnx.Module):
  def __init__(self, *, input_shape, num_classes, norm, rngs):
    self.conv = nnx.Conv(input_shape[-1], 3, (3, 3), rngs=rngs)
    self.norm = norm('conv', 3, rngs=rngs)
    self.dropout = nnx.Dropout(0.1, rngs=rngs)
    self.output = nnx.Linear(3, num_classes, rngs=rngs)

  def __call__(self, x, *, train, tap=lambda name, value: value):
    h = self.norm(self.conv(x), use_running_average=not train)
    h = jax.nn.relu(tap('conv/input', h))
    return self.output(self.dropout(h.mean((1, 2)), deterministic=not train))
"""


def of(function, *args):
  return jax.jit(function).trace(*args).jaxpr


def convolve(x):
  return jax.lax.conv(x, jnp.ones((2, 2, 3, 3)), (1, 1), 'SAME')


def in_a_loop(body):
  return lambda x: jax.lax.while_loop(lambda h: h.sum() < 9, body, x)


X = jnp.ones((1, 2, 5, 5))


@pytest.mark.parametrize(
  'body',
  [
    convolve,
    jax.checkpoint(convolve),
    jax.jit(convolve),
    lambda x: jax.lax.cond(x.sum() > 0, convolve, lambda x: x, x),
    lambda x: jax.grad(lambda x: (convolve(x) ** 2).sum())(x),
    lambda x: jax.lax.scan(lambda h, _: (convolve(h), None), x, None, 2)[0],
  ],
)
def test_convolutions_are_found_at_any_depth(body):
  jaxpr = of(in_a_loop(body), X)
  assert loops.is_slow_on_device(jaxpr, 'cpu')
  assert not loops.is_slow_on_device(jaxpr, 'gpu')
  assert not loops.is_slow_on_device(jaxpr, 'tpu')


def test_a_perceptron_keeps_its_loop():
  jaxpr = of(in_a_loop(lambda x: jnp.tanh(x @ jnp.ones((5, 5)))), X)
  assert not loops.is_slow_on_device(jaxpr, 'cpu')


@pytest.fixture
def conv_config(user_module, loaded):
  del loaded
  user_module('my_conv_net', CONV_NET)
  config = copy.deepcopy(CONFIG)
  config['model'] = {'name': 'my_conv_net:Net', 'norm': {'name': 'batch_norm'}}
  return config


def test_both_forms_are_one_run(conv_config, tmp_path, monkeypatch, results):
  training.train(conv_config, tmp_path / 'each')
  monkeypatch.setattr(loops, 'is_slow_on_device', lambda *args: False)
  training.train(conv_config, tmp_path / 'loop')
  each, loop = results(tmp_path / 'each'), results(tmp_path / 'loop')
  assert [row['step'] for row in each[0]] == [row['step'] for row in loop[0]]
  for a, b in zip(each[0], loop[0], strict=True):
    for name, value in a.items():
      assert value == pytest.approx(b[name], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(
  'step_norms', ['last', pytest.param('mean', marks=pytest.mark.slow)]
)
def test_both_forms_diverge_at_one_step(
  step_norms, conv_config, tmp_path, monkeypatch, results
):
  conv_config['optimizer']['learning_rate'] = 1e25
  conv_config['eval']['step_norms'] = step_norms
  each = training.train(conv_config, tmp_path / 'each')
  monkeypatch.setattr(loops, 'is_slow_on_device', lambda *args: False)
  loop = training.train(conv_config, tmp_path / 'loop')
  assert each.status == workdir.DIVERGED
  assert 1 < each.step < conv_config['num_steps']
  assert each == loop
  metrics = [workdir.read_metrics(tmp_path / name) for name in ('each', 'loop')]
  assert [row['step'] for row in metrics[0]] == [
    row['step'] for row in metrics[1]
  ]


def test_a_run_goes_on_to_the_same_bits(
  conv_config, tmp_path, monkeypatch, results
):
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  training.train(conv_config, whole)
  call, steps = loops.call_each, []

  def stop_at_31(program, state, arguments):
    if steps and state.step > 30:
      raise KeyboardInterrupt
    steps.append(int(state.step))
    return call(program, state, arguments)

  with monkeypatch.context() as patch:
    patch.setattr(loops, 'call_each', stop_at_31)
    conv_config['checkpoint_seconds'] = 0.0
    with pytest.raises(KeyboardInterrupt):
      training.train(conv_config, cut)
  assert workdir.read_metrics(cut)[-1]['step'] < 60
  training.train(conv_config, cut)
  assert results(cut) == results(whole)


def test_the_first_loss_that_is_not_finite_ends_the_steps():
  class State(tuple):
    step = property(lambda self: self[0])
    loss = property(lambda self: self[1])

  def program(state, examples, batch):
    del examples
    after = state
    if np.isfinite(state.loss):
      after = State((state.step + 1, np.float32(batch)))
    return after, step.Measured(np.float32(batch), {'norm': batch})

  indices = np.asarray([1.0, 2.0, np.inf, 3.0])
  for num_steps, expected in ((1, 1), (2, 2), (3, 3), (4, 3)):
    state = State((0, np.float32(0)))
    arguments = ((None, index) for index in indices[:num_steps])
    state, norms = loops.call_each(program, state, arguments)
    assert state.step == expected
    assert norms == {'norm': indices[expected - 1]}


def test_a_step_starts_before_the_loss_of_the_step_before_is_known():
  order = []

  class Loss:
    def __init__(self, number):
      self.number = number

    def __array__(self, dtype=None, copy=None):
      order.append(f'loss {self.number}')
      return np.zeros((), dtype)

  def program(state, number):
    order.append(f'step {number}')
    return state, step.Measured(Loss(number), {})

  loops.call_each(program, None, ((k,) for k in range(3)))
  assert order == ['step 0', 'step 1', 'loss 0', 'step 2', 'loss 1']


@pytest.mark.parametrize('is_convolutional', [True, False])
def test_micro_batches_are_unrolled_where_a_loop_is_slow(
  is_convolutional, conv_config, tmp_path, created_steps
):
  if not is_convolutional:
    conv_config['model'] = CONFIG['model']
  conv_config |= {'microbatches': 2, 'num_steps': 1, 'probes': {}}
  training.train(conv_config, tmp_path)
  (steps,) = created_steps
  assert steps.rule.unroll is is_convolutional
  assert steps.rule.microbatches == 2


VIT = {'name': 'vit', 'depth': 1, 'width': 8, 'num_heads': 2, 'patch_size': 2}


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'eval': {**CONFIG['eval'], 'population': 'reestimated'}},
    pytest.param({'microbatches': 2}, marks=pytest.mark.slow),
  ],
)
def test_rematerialization_changes_no_row(changes, tmp_path, results, loaded):
  del loaded
  model = {**VIT, 'norm': {'name': 'batch_norm'}}
  found = []
  for remat in (False, True):
    path = tmp_path / str(remat)
    config = {**copy.deepcopy(CONFIG), **changes}
    config['model'] = {**model, 'remat': remat}
    # A larger rate would make roundings grow.
    config['optimizer']['learning_rate'] = 0.05
    training.train(config, path)
    found.append(results(path)[0])
  for plain, again in zip(*found, strict=True):
    assert plain == pytest.approx(again, rel=1e-4, abs=1e-4)
