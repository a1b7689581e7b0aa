"""Optimizers and the parts around them against formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bn_research import errors, optim
from bn_research.optim import averaging, decay
from tests.quick import some

NUM_STEPS, RATE = 6, 0.1
SHAPES = {
  'conv': {'kernel': (3, 3, 2, 4)},
  'norm': {'scale': (4,), 'learned': {'alpha': (4, 1)}},
  'heads': {'kernel': (4, 2, 3), 'bias': (2, 3)},
  'stacked': {'scale': (5, 4)},
  'dense': {'kernel': (4, 2), 'bias': (2,)},
  'own': {'matrix': (4, 2), 'gain': ()},
}
KERNELS = {'conv/kernel', 'heads/kernel', 'dense/kernel', 'own/matrix'}


def flat(tree, path=()):
  """Yields the leaves of nested dicts by path."""
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from flat(value, (*path, key))
    else:
      yield '/'.join((*path, key)), value


def draw(seed, scale=1.0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda shape: scale * rng.normal(size=shape),
    SHAPES,
    is_leaf=lambda node: isinstance(node, tuple),
  )


PARAMS = draw(0)
# The second gradient is large, and the fourth is small.
GRADS = [
  draw(step, scale)
  for step, scale in enumerate((1.0, 30.0, 1.0, 1e-3, 1.0, 1.0), 1)
]


def descend(**options):
  """Returns the parameters after each step by path, and the last state."""
  config = {'learning_rate': RATE, **options}
  optimizer = optim.create(config, NUM_STEPS)
  single = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, 'float32'), tree)
  params = single(PARAMS)
  state = optimizer.init(params)

  @jax.jit
  def step(params, state, grads):
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  found = []
  for grads in GRADS:
    params, state = step(params, state, single(grads))
    found.append(dict(flat(params)))
  return found, state


def expected(rule, change=lambda params, grads: grads):
  """Returns the parameters after each step in float64.

  Args:
    rule: A function of a path, a parameter, a gradient, a dict for the memory
      of the parameter, and the number of the step, with the new parameter.
    change: A function of all parameters and gradients, with new gradients.
  """
  params, memory, found = dict(flat(PARAMS)), {}, []
  for t, tree in enumerate(GRADS, 1):
    grads = change(params, dict(flat(tree)))
    params = {
      path: rule(path, w, grads[path], memory.setdefault(path, {}), t)
      for path, w in params.items()
    }
    found.append(params)
  return found


def same(found, wanted, rtol=1e-4):
  assert len(found) == len(wanted) == NUM_STEPS
  for t, (ours, others) in enumerate(zip(found, wanted, strict=True)):
    assert ours.keys() == others.keys()
    for path in others:
      assert np.isfinite(ours[path]).all(), (t, path)
      np.testing.assert_allclose(
        ours[path], others[path], rtol, atol=1e-5, err_msg=f'{t} {path}'
      )


def sgd(momentum=0.0, nesterov=False):
  def rule(path, w, g, memory, t):
    v = memory['v'] = momentum * memory.get('v', 0) + g
    return w - RATE * (g + momentum * v if nesterov else v)

  return rule


def adam(decays=lambda path: False, weight_decay=0.0):
  def rule(path, w, g, memory, t):
    m = memory['m'] = 0.9 * memory.get('m', 0) + 0.1 * g
    v = memory['v'] = 0.999 * memory.get('v', 0) + 0.001 * g**2
    step = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return w - RATE * (step + weight_decay * decays(path) * w)

  return rule


def lion(path, w, g, memory, t):
  m = memory.get('m', 0)
  memory['m'] = 0.99 * m + 0.01 * g
  step = np.sign(0.9 * m + 0.1 * g)
  return w - RATE * (step + 0.02 * (path in KERNELS) * w)


def l2(weight_decay, decays=lambda path: path in KERNELS):
  return lambda params, grads: {
    path: g + weight_decay * decays(path) * params[path]
    for path, g in grads.items()
  }


def shortened(max_norm):
  def change(params, grads):
    norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
    return {path: g * min(1, max_norm / norm) for path, g in grads.items()}

  return change


# The axes of a unit's weights, from the paper: all but the output.
UNITS = {'conv/kernel': (0, 1, 2), 'dense/kernel': 0, 'heads/kernel': 0}
UNITS |= {'heads/bias': 0, 'stacked/scale': 0, 'own/matrix': 0}


def adaptive(clipping=0.01, eps=1e-3, skip=()):
  def change(params, grads):
    changed = {}
    for path, g in grads.items():
      axes = UNITS.get(path)
      norm = lambda x, axes=axes: np.sqrt((x**2).sum(axes, keepdims=True))
      most = clipping * np.maximum(norm(params[path]), eps)
      changed[path] = g * np.minimum(1, most / norm(g))
    return changed | {path: grads[path] for path in skip}

  return change


def both(first, second):
  return lambda params, grads: second(params, first(params, grads))


CASES = {
  'momentum': (
    {'name': 'sgd', 'momentum': 0.9},
    expected(sgd(0.9)),
  ),
  'nesterov': (
    {'name': 'sgd', 'momentum': 0.9, 'nesterov': True},
    expected(sgd(0.9, nesterov=True)),
  ),
  'L2 is part of the momentum': (
    {'name': 'sgd', 'momentum': 0.9, 'weight_decay': 0.3},
    expected(sgd(0.9), l2(0.3)),
  ),
  'L2 of all': (
    {'name': 'sgd', 'weight_decay': 0.3, 'decay_mask': 'all'},
    expected(sgd(), l2(0.3, lambda path: True)),
  ),
  'L2 in Adam passes the quotient': (
    {'name': 'adam', 'weight_decay': 0.3},
    expected(adam(), l2(0.3)),
  ),
  'decoupled': (
    {'name': 'adamw', 'weight_decay': 0.3},
    expected(adam(lambda path: path in KERNELS, 0.3)),
  ),
  'decoupled, of all': (
    {'name': 'adamw', 'weight_decay': 0.3, 'decay_mask': 'all'},
    expected(adam(lambda path: True, 0.3)),
  ),
  'an optimizer of optax gets the mask': (
    {'name': 'lion', 'weight_decay': 0.02},
    expected(lion),
  ),
  'global norm': (
    {'name': 'sgd', 'momentum': 0.9, 'clip.name': 'global_norm', 'max': 4.0},
    expected(sgd(0.9), shortened(4.0)),
  ),
  'clipping comes before the decay': (
    {
      'name': 'sgd',
      'clip.name': 'global_norm',
      'max': 4.0,
      'weight_decay': 1.0,
    },
    expected(sgd(), both(shortened(4.0), l2(1.0))),
  ),
  'adaptive': (
    {'name': 'sgd', 'momentum': 0.9, 'clip': 'adaptive'},
    expected(sgd(0.9), adaptive()),
  ),
  'adaptive, but for the last layer': (
    {'name': 'sgd', 'clip.name': 'adaptive', 'skip': ('dense',)},
    expected(sgd(), adaptive(skip=('dense/kernel', 'dense/bias'))),
  ),
}


@pytest.mark.parametrize('case', CASES)
def test_every_step_is_the_formula(case):
  options, wanted = CASES[case]
  same(descend(**sections(options))[0], wanted)


def sections(options):
  """Returns options with a section `clip` made of its keys."""
  options = dict(options)
  if 'clip.name' in options:
    clip = {'name': options.pop('clip.name')}
    for key, name in (('max', 'max_norm'), ('skip', 'skip')):
      if key in options:
        clip[name] = options.pop(key)
    options['clip'] = clip
  return options


def test_weights_of_zero_can_leave_zero_under_adaptive_clipping():
  optimizer = optim.create(
    {'name': 'sgd', 'learning_rate': 1.0, 'clip': 'adaptive'}, 10
  )
  params = {'kernel': jnp.zeros((3, 2))}
  grads = {'kernel': jnp.array([[3.0, 0], [4.0, 0], [0, 0]])}
  updates, _ = optimizer.update(grads, optimizer.init(params), params)
  np.testing.assert_allclose(
    updates['kernel'], -1e-5 * grads['kernel'] / 5, rtol=1e-5
  )


def test_skip_leaves_out_everything_below_a_path():
  optimizer = optim.create(
    {
      'name': 'sgd',
      'learning_rate': 1.0,
      'clip': {'name': 'adaptive', 'skip': ('layers',)},
    },
    10,
  )
  kernel = jnp.ones((3, 2))
  params = {'layers': [{'kernel': kernel}] * 2, 'layers2': {'kernel': kernel}}
  grads = jax.tree.map(lambda leaf: 100 * leaf, params)
  updates, _ = optimizer.update(grads, optimizer.init(params), params)
  for layer in updates['layers']:
    np.testing.assert_array_equal(layer['kernel'], -100 * kernel)
  np.testing.assert_allclose(updates['layers2']['kernel'], -0.01 * kernel, 1e-5)


def test_a_kernel_with_a_single_input_is_one_unit():
  optimizer = optim.create(
    {'name': 'sgd', 'learning_rate': 1.0, 'clip': 'adaptive'}, 10
  )
  params = {'kernel': jnp.asarray([[3.0, 4.0]])}
  grads = {'kernel': jnp.asarray([[0.0, 10.0]])}
  updates, _ = optimizer.update(grads, optimizer.init(params), params)
  np.testing.assert_allclose(updates['kernel'], [[0, -0.05]], rtol=1e-5)


def test_the_average_gives_no_weight_to_the_initial_weights():
  options = {'name': 'sgd', 'momentum': 0.9}
  plain, _ = descend(**options)
  for decay_ in (0.0, 0.9):
    section = {'name': 'ema', 'decay': decay_}
    found, state = descend(**options, average=section)
    for ours, others in zip(found, plain, strict=True):
      jax.tree.map(np.testing.assert_array_equal, ours, others)
    weights = decay_ ** np.arange(NUM_STEPS - 1, -1, -1, dtype=float)
    for path, average in flat(averaging.find(state).average):
      steps = np.stack([np.float64(params[path]) for params in plain])
      mean = np.tensordot(weights / weights.sum(), steps, 1)
      np.testing.assert_allclose(average, mean, rtol=1e-5, atol=1e-6)


def test_the_average_of_narrow_weights_is_wide():
  params = {'kernel': jnp.ones((2, 2), jnp.bfloat16)}
  config = {'name': 'sgd', 'learning_rate': 1.0, 'average': 'ema'}
  optimizer = optim.create(config, 10)
  state = optimizer.init(params)
  np.testing.assert_array_equal(averaging.find(state).average['kernel'], 1)
  for _ in range(3):
    updates = jax.tree.map(lambda w: jnp.full_like(w, 0.01), params)
    updates, state = optimizer.update(updates, state, params)
  average = averaging.find(state).average['kernel']
  assert average.dtype == jnp.float32
  assert (
    averaging.find(optim.create({**config, 'average': None}, 9).init(params))
    is None
  )


def test_kernels_are_found_by_names_and_dimensions():
  found = {path for path, yes in flat(decay.kernels(draw(0))) if yes}
  assert found == KERNELS


@pytest.mark.parametrize(
  'name', some(['adagrad'], ['adagrad', 'lamb', 'lars', 'muon', 'radam'])
)
def test_optimizers_of_optax_go_downhill(name):
  found, _ = descend(name=name, clip={'name': 'global_norm', 'max_norm': 1.0})
  assert all(np.isfinite(w).all() for w in found[-1].values())
  change = found[0]['dense/kernel'] - PARAMS['dense']['kernel']
  assert (change * GRADS[0]['dense']['kernel']).sum() < 0


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (
      {'name': 'lionn'},
      r"='lionn' is unknown \(did you mean 'lion'\?\); there",
    ),
    (
      {'name': 'lion', 'b3': 0.9},
      r"'lion' has no option 'b3'.*; it has b1, b2",
    ),
    ({'name': 'lion', 'b1': 'a'}, r"optimizer\.b1='a' is not of type float"),
    ({'name': 'lion', 'b1': float('nan')}, r'b1=nan; choose a finite number'),
    ({'name': 'lion', 'mask': 'all'}, r"'lion' has no option 'mask'"),
    ({'name': 'lion', 'mu_dtype': 'x'}, r'lion of optax does not fit: '),
    ({'name': 'lbfgs'}, r"lbfgs of optax does not fit: .*missing.*'value'"),
    ({'weight_decay': -1.0}, r'weight_decay=-1\.0; choose'),
    ({'weight_decay': float('nan')}, r'weight_decay=nan; choose'),
    ({'weight_decay': 1.0, 'decay_mask': 'x'}, r"='x'; choose kernels or all"),
    ({'decay_mask': 'all'}, r"decay_mask='all' needs a weight_decay"),
    ({'wait_decay': 1.0}, r"did you mean 'weight_decay'.*clip, .*, average"),
    ({'clip': 'norm'}, r"optimizer\.clip='norm' is unknown"),
    ({'clip': 'global_norm'}, r"clip: 'global_norm' needs the option 'max_n"),
    (
      {'clip': {'name': 'global_norm', 'max_norm': 0.0}},
      r'optimizer\.clip: max_norm=0\.0; choose',
    ),
    (
      {'clip': {'name': 'adaptive', 'clipping': float('nan')}},
      r'clipping=nan; choose',
    ),
    ({'clip': {'name': 'adaptive', 'skip': 'a'}}, r"skip='a' is a text; give"),
    ({'average': {'name': 'ema', 'decay': 1.0}}, r'average: decay=1\.0; choo'),
  ],
)
def test_what_does_not_fit_is_one_line(options, message):
  config = {'name': 'sgd', 'learning_rate': 0.5, **options}
  with pytest.raises(errors.UserError, match=message) as caught:
    optim.create(config, 10)
  assert '\n' not in str(caught.value)


def test_a_path_to_skip_must_exist():
  clip = {'name': 'adaptive', 'skip': ('dence',)}
  config = {'name': 'sgd', 'learning_rate': 0.5, 'clip': clip}
  with pytest.raises(errors.UserError, match=r"'dence'.*did you mean 'dense'"):
    optim.create(config, 10).init(PARAMS)


def test_an_optimizer_of_the_user_gets_the_parts(user_module):
  user_module(
    'my_parts',
    'import optax\n'
    'def plain(learning_rate): return optax.sgd(learning_rate)\n'
    'def masked(learning_rate, weight_decay, mask=None):\n'
    '  decayed = optax.add_decayed_weights(weight_decay, mask)\n'
    '  return optax.chain(decayed, optax.sgd(learning_rate))\n'
    'def other(learning_rate, clip, **more):\n'
    '  assert not more\n'
    '  return optax.sgd(learning_rate * clip)\n',
  )
  wanted = expected(sgd(), l2(0.3))
  for name in ('plain', 'masked'):
    same(descend(name=f'my_parts:{name}', weight_decay=0.3)[0], wanted)
  # The own option of the optimizer, and no clipping.
  same(descend(name='my_parts:other', clip=1)[0], expected(sgd()))


def test_an_optimizer_that_decays_norms_too_says_so():
  section = {'name': 'novograd', 'learning_rate': 0.1, 'weight_decay': 0.5}
  with pytest.raises(errors.UserError, match="decay_mask='all'"):
    optim.create(section, 10)
  for accepted in ({'decay_mask': 'all'}, {'weight_decay': 0.0}):
    assert optim.create({**section, **accepted}, 10)


def test_a_path_to_skip_is_no_beginning_of_a_name():
  params = {'output': {'kernel': jnp.ones((2, 2))}}
  params['output2'] = params['output']
  clip = {'name': 'adaptive', 'clipping': 0.01, 'skip': ('output',)}
  config = {'name': 'sgd', 'learning_rate': 1.0, 'clip': clip}
  optimizer = optim.create(config, 10)
  grads = jax.tree.map(lambda leaf: 100 * leaf, params)
  updates, _ = optimizer.update(grads, optimizer.init(params), params)
  np.testing.assert_allclose(updates['output']['kernel'], -100)
  np.testing.assert_allclose(updates['output2']['kernel'], -0.01, rtol=1e-5)
