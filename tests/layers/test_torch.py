"""State dicts of PyTorch: any tensor is copied, other layers are refused.

Most rows use a stand-in with the manners of a tensor, so that they run without
PyTorch; the last ones use PyTorch where it is installed.
"""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bn_research import norms
from bn_research.layers import torch as conventions

BFLOAT16 = np.dtype(jnp.bfloat16)


class Tensor:
  """What PyTorch lets one do with a tensor, and what PyTorch refuses."""

  def __init__(self, values, requires_grad=False, device='cpu', meta=False):
    self.values = np.asarray(values)
    self.requires_grad = requires_grad
    self.device = device
    self.meta = meta

  @property
  def dtype(self):
    return f'torch.{self.values.dtype}'

  def _with(self, values=None, **changes):
    same = {
      'requires_grad': self.requires_grad,
      'device': self.device,
      'meta': self.meta,
    }
    values = self.values if values is None else values
    return Tensor(values, **(same | changes))

  def detach(self):
    return self._with(requires_grad=False)

  def cpu(self):
    if self.meta:
      raise NotImplementedError('Cannot copy out of meta tensor; no data!')
    return self._with(device='cpu')

  def float(self):
    return self._with(self.values.astype(np.float32))

  def numpy(self):
    if self.requires_grad:
      raise RuntimeError("Can't call numpy() on Tensor that requires grad.")
    if self.device != 'cpu':
      raise TypeError("can't convert cuda:0 device type tensor to numpy.")
    if self.values.dtype == BFLOAT16:
      raise TypeError('Got unsupported ScalarType BFloat16')
    return self.values

  def __array__(self, dtype=None, copy=None):
    return self.numpy()


def batch_norm(dtype=np.float32, wrap=Tensor, shape=(3,)):
  size = int(np.prod(shape))
  values = np.linspace(0.1, 2, 4 * size).reshape(4, *shape).astype(dtype)
  names = ('weight', 'bias', 'running_mean', 'running_var')
  entries = {name: wrap(row) for name, row in zip(names, values, strict=True)}
  return {**entries, 'num_batches_tracked': wrap(np.array(7))}


NAMES = {
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}

WRAPS = {
  'array': lambda values: values,
  'tensor': Tensor,
  'parameter': lambda values: Tensor(values, requires_grad=True),
  'device': lambda values: Tensor(values, True, device='cuda:0'),
  'jax': jnp.asarray,
}


@pytest.mark.parametrize('dtype', [np.float16, BFLOAT16, np.float32])
@pytest.mark.parametrize('wrap', WRAPS.values(), ids=WRAPS)
def test_tensors_are_read_exactly(wrap, dtype):
  layer = conventions.from_torch(batch_norm(dtype, wrap))
  plain = batch_norm(dtype, lambda values: values)
  for ours, theirs in NAMES.items():
    assert layer[ours].dtype == dtype
    np.testing.assert_array_equal(layer[ours], plain[theirs])
  assert layer['steps'].dtype == np.int32
  assert layer['steps'].shape == ()
  assert layer['steps'] == 7


def test_every_bfloat16_keeps_its_bits():
  bits = np.arange(2**16, dtype=np.uint16)
  values = bits.view(BFLOAT16)
  read = conventions.from_torch({'bias': Tensor(values)})['bias']
  # A cast to float32, also in a tensor, makes every NaN a quiet NaN.
  quiet = np.where(np.isnan(values.astype(np.float32)), 0x40, 0)
  np.testing.assert_array_equal(read.view(np.uint16) | quiet, bits | quiet)


@pytest.mark.parametrize('wrap', [WRAPS['array'], Tensor])
@pytest.mark.parametrize('count', [None, 8])
def test_later_training_changes_no_copy(wrap, count):
  state_dict = batch_norm(wrap=wrap)
  layer = conventions.from_torch(state_dict, count=count)
  before = {name: array.copy() for name, array in layer.items()}
  entries = conventions.to_torch(layer, count=count)
  for value in state_dict.values():
    getattr(value, 'values', value)[...] = 0
  for name, array in layer.items():
    np.testing.assert_array_equal(array, before[name])
    array[...] = 0  # the copies are writable
  assert all((array > 0).all() for array in entries.values())


@pytest.mark.parametrize('count', [None, 8])
@pytest.mark.parametrize(
  ('given', 'written'),
  [
    (np.float16, np.float16),
    (BFLOAT16, np.float32),
    (jnp.float8_e5m2, np.float32),
    (np.float32, np.float32),
    (np.dtype('>f4'), np.float32),
    (np.float64, np.float64),
    (np.longdouble, np.float64),
  ],
)
def test_entries_have_types_of_pytorch(given, written, count):
  arrays = {'scale': np.linspace(1, 2, 3).astype(given)[::-1]}
  arrays['var'] = arrays['scale']
  entries = conventions.to_torch(arrays | {'steps': 5}, 'a.', count=count)
  assert entries.keys() == {
    'a.weight',
    'a.running_var',
    'a.num_batches_tracked',
  }
  for name in ('a.weight', 'a.running_var'):
    assert entries[name].dtype == written
    assert entries[name].dtype.isnative
    assert entries[name].flags.c_contiguous
    assert entries[name].flags.writeable
  np.testing.assert_array_equal(entries['a.weight'], arrays['scale'])
  tracked = entries['a.num_batches_tracked']
  assert isinstance(tracked, np.ndarray)
  assert tracked.dtype == np.int64
  assert tracked.shape == ()


def test_bfloat16_variance_is_rounded_once():
  """A factor of 1023 / 1024 would be 1 in bfloat16."""
  values = np.linspace(1, 2, 100).astype(BFLOAT16)
  layer = conventions.from_torch({'running_var': Tensor(values)}, count=100)
  expected = (values.astype(np.float64) * 99 / 100).astype(BFLOAT16)
  np.testing.assert_array_equal(layer['var'], expected)
  assert (layer['var'] != values).any()


def test_states_and_variables_of_jax_are_written():
  state = norms.batch_norm().init(3)
  entries = conventions.to_torch(state._asdict(), 'bn.')
  assert entries.keys() == {
    'bn.running_mean',
    'bn.running_var',
    'bn.num_batches_tracked',
  }
  layer = nnx.BatchNorm(3, rngs=nnx.Rngs(0))
  held = {name: getattr(layer, name) for name in NAMES}
  entries = conventions.to_torch(held)
  np.testing.assert_array_equal(entries['running_var'], np.ones(3))
  entries['running_var'][...] = 0
  np.testing.assert_array_equal(layer.var[...], np.ones(3))


@pytest.mark.parametrize(
  'shapes',
  [
    {'weight': (3,)},
    {'bias': (3,)},
    {'weight': (3,), 'bias': (3,)},
    {'weight': (2, 3), 'bias': (2, 3)},
    {'running_mean': (3,), 'running_var': (3,)},
    {'weight': (1,), 'bias': (1,)},
  ],
)
def test_normalizations_of_any_kind_are_accepted(shapes):
  state_dict = {name: Tensor(np.ones(shape)) for name, shape in shapes.items()}
  layer = conventions.from_torch(state_dict)
  assert {NAMES[name]: array.shape for name, array in layer.items()} == shapes
  back = conventions.to_torch(layer)
  assert {name: array.shape for name, array in back.items()} == shapes


OTHERS = {
  'conv2d': {'weight': (8, 3, 3, 3), 'bias': (8,)},
  'conv2d without bias': {'weight': (8, 3, 3, 3)},
  'linear': {'weight': (8, 8), 'bias': (8,)},
  'linear to 1': {'weight': (1, 1), 'bias': (1,)},
  'linear without bias': {'weight': (8, 3)},
  'embedding': {'weight': (100, 8)},
  'scalar': {'weight': ()},
}


@pytest.mark.parametrize('shapes', OTHERS.values(), ids=OTHERS)
def test_other_layers_are_refused(shapes):
  state_dict = {
    f'net.0.{name}': Tensor(np.ones(shape)) for name, shape in shapes.items()
  }
  with pytest.raises(
    ValueError, match=r'give (the prefix of )?a norm'
  ) as error:
    conventions.from_torch(state_dict, 'net.0.')
  message = str(error.value)
  assert "prefix='net.0.'" in message
  assert str(shapes['weight']) in message
  assert '\n' not in message


ONES = np.ones(3, np.float32)
NET = {f'net.{k}.weight': ONES for k in range(20)} | {'step': 3}

BAD = {
  'count of 1': (
    lambda: conventions.from_torch({'weight': ONES}, count=1),
    ValueError,
    'count=1 must be at least 2: one activation has no unbiased variance.',
  ),
  'count of half': (
    lambda: conventions.to_torch({'var': ONES}, count=2.5),
    TypeError,
    'count=2.5 is not an integer; give the number of activations per feature '
    'in a batch.',
  ),
  'a model': (
    lambda: conventions.from_torch(Tensor(ONES)),
    TypeError,
    'state_dict is a Tensor, which is not a mapping; give model.state_dict().',
  ),
  'a state': (
    lambda: conventions.to_torch(norms.batch_norm().init(3)),
    TypeError,
    "layer is a Running, which is not a mapping; give {'scale': ...}.",
  ),
  'prefix of a number': (
    lambda: conventions.from_torch({'weight': ONES}, 1),
    TypeError,
    "prefix=1 is not a string; give one such as 'features.1.'.",
  ),
  'prefix without dot': (
    lambda: conventions.from_torch(NET, 'net.19'),
    ValueError,
    "no normalization with prefix 'net.19' in the state dict; it has: "
    "'net.19.', 'net.0.', 'net.1.', 'net.10.', 'net.11.', 'net.12.', "
    "'net.13.', 'net.14.' and 12 more.",
  ),
  'no parameters': (
    lambda: conventions.from_torch({'model': {}, 'epoch': 3}),
    ValueError,
    "no normalization with prefix '' in the state dict, which has no name that "
    'ends in weight, bias, running_mean, running_var; give the state dict of '
    'the whole model.',
  ),
  'no data': (
    lambda: conventions.from_torch({'weight': Tensor(ONES, meta=True)}),
    TypeError,
    "state_dict['weight'] is a Tensor that NumPy cannot read; give a dense "
    'float32 array, outside of jit.',
  ),
  'integers': (
    lambda: conventions.from_torch({'weight': Tensor(np.ones(3, np.int8))}),
    TypeError,
    "state_dict['weight'] is of type int8; give floating-point numbers.",
  ),
  'several counts of batches': (
    lambda: conventions.from_torch(
      {'weight': ONES, 'num_batches_tracked': np.array([1, 2])}
    ),
    ValueError,
    "state_dict['num_batches_tracked'] is of shape (2,) and type int64; give "
    'one integer of at least 0.',
  ),
  'negative steps': (
    lambda: conventions.to_torch({'var': ONES, 'steps': -1}),
    ValueError,
    "layer['steps']=-1 is below 0; give at least 0.",
  ),
  'names of PyTorch': (
    lambda: conventions.to_torch({'weight': ONES}),
    ValueError,
    "layer has the unknown name 'weight'; give only 'scale', 'bias', 'mean', "
    "'var' and 'steps'.",
  ),
  'nothing': (
    lambda: conventions.to_torch({'scale': None}),
    ValueError,
    "layer={'scale': None} has no array; give at least one of 'scale', "
    "'bias', 'mean', 'var'.",
  ),
  'whitening': (
    lambda: conventions.to_torch({'mean': ONES, 'var': np.ones((1, 3, 3))}),
    ValueError,
    'layer is not a normalization, whose arrays have one shape of at least one '
    'axis: mean (3,), var (1, 3, 3); give a normalization, not a convolution, '
    'a linear layer or a whitening.',
  ),
  'momentum as text': (
    lambda: conventions.momentum('high'),
    TypeError,
    "momentum='high' is not a number; give a number in [0, 1].",
  ),
  'momentum in percent': (
    lambda: conventions.momentum(10),
    ValueError,
    'momentum=10 is outside [0, 1]; give a number in [0, 1].',
  ),
}


@pytest.mark.parametrize(('call', 'kind', 'message'), BAD.values(), ids=BAD)
def test_errors_name_the_argument_the_value_and_the_fix(call, kind, message):
  with pytest.raises(kind) as error:
    call()
  assert type(error.value) is kind
  assert str(error.value) == message


def test_traced_arrays_are_refused_in_one_line():
  def write(scale):
    return conventions.to_torch({'scale': scale})['weight']

  with pytest.raises(TypeError, match=r"layer\['scale'\].*outside of jit"):
    jax.jit(write)(ONES)


def test_steps_stop_at_the_largest_int32():
  state_dict = {'weight': ONES, 'num_batches_tracked': np.array(2**40)}
  assert conventions.from_torch(state_dict)['steps'] == 2**31 - 1


def test_averaged_counts_of_batches_are_read():
  state_dict = {'weight': ONES, 'num_batches_tracked': np.float32(12)}
  assert conventions.from_torch(state_dict)['steps'] == 12


def test_pytorch_is_not_imported():
  code = (
    'import sys; sys.modules["torch"] = None; '
    'import bn_research.layers.torch as conventions; '
    'conventions.from_torch({"weight": [1.0]})'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


def _modules(torch):
  """Layers of PyTorch by name; True for those that are normalizations."""
  nn = torch.nn
  return {
    'batch': (nn.BatchNorm2d(3), True),
    'batch in bfloat16': (nn.BatchNorm2d(3).bfloat16(), True),
    'batch in half': (nn.BatchNorm2d(3).half(), True),
    'layer': (nn.LayerNorm((2, 3)), True),
    'layer without bias': (nn.LayerNorm(3, bias=False), True),
    'group': (nn.GroupNorm(3, 6), True),
    'instance': (
      nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
      True,
    ),
    'rms': (nn.RMSNorm(3), True),
    'convolution': (nn.Conv2d(3, 3, 3), False),
    'convolution without bias': (nn.Conv1d(3, 3, 1, bias=False), False),
    'linear': (nn.Linear(3, 3), False),
    'linear without bias': (nn.Linear(3, 3, bias=False), False),
    'embedding': (nn.Embedding(5, 3), False),
  }


MODULES = (
  'batch',
  'batch in bfloat16',
  'batch in half',
  'layer',
  'layer without bias',
  'group',
  'instance',
  'rms',
  'convolution',
  'convolution without bias',
  'linear',
  'linear without bias',
  'embedding',
)


@pytest.mark.parametrize('name', MODULES)
def test_layers_of_pytorch_go_there_and_back(name):
  torch = pytest.importorskip('torch')
  module, accepted = _modules(torch)[name]
  if not accepted:
    with pytest.raises(ValueError, match=r'give (the prefix of )?a norm'):
      conventions.from_torch(module.state_dict())
    return
  with torch.no_grad():
    for value in module.state_dict().values():
      value.add_(torch.rand(value.shape) if value.is_floating_point() else 3)
  expected = {k: v.clone() for k, v in module.state_dict().items()}
  # Parameters themselves, which require a gradient, are read as well.
  tensors = dict(module.named_parameters()) | dict(module.named_buffers())
  for state_dict in (module.state_dict(), tensors):
    layer = conventions.from_torch(state_dict, count=8)
    entries = conventions.to_torch(layer, count=8)
  with torch.no_grad():
    for value in module.state_dict().values():
      value.zero_()
  loaded = {k: torch.from_numpy(array) for k, array in entries.items()}
  module.load_state_dict(loaded)
  for key, value in module.state_dict().items():
    assert value.dtype == expected[key].dtype
    narrow = value.dtype in (torch.float16, torch.bfloat16)
    rtol = 8e-3 if narrow else 1e-6
    torch.testing.assert_close(value, expected[key], rtol=rtol, atol=0)


def test_training_in_pytorch_changes_no_copy():
  torch = pytest.importorskip('torch')
  module = torch.nn.BatchNorm1d(3)
  layer = conventions.from_torch(module.state_dict())
  before = {name: array.copy() for name, array in layer.items()}
  optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
  module(torch.randn(8, 3)).pow(3).sum().backward()
  optimizer.step()
  for name, array in layer.items():
    np.testing.assert_array_equal(array, before[name])


def test_trained_moments_of_pytorch_are_ours():
  torch = pytest.importorskip('torch')
  module = torch.nn.BatchNorm1d(3, momentum=0.1)
  x = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
  module(torch.from_numpy(x))
  layer = conventions.from_torch(module.state_dict())
  # PyTorch, unlike us, gives a weight to the values before the first batch.
  population = norms.Ema(conventions.momentum(0.1), debias=False)
  norm = dataclasses.replace(norms.batch_norm(), population=population)
  state = norm.apply(jnp.asarray(x), norm.init(3))[1]
  for name in ('mean', 'var'):
    np.testing.assert_allclose(layer[name], getattr(state, name), rtol=1e-5)
  assert layer['steps'] == state.steps


@pytest.mark.parametrize('case', ['meta', 'sparse', 'float8'])
def test_tensors_that_numpy_cannot_read_are_refused(case):
  torch = pytest.importorskip('torch')
  tensor = {
    'meta': lambda: torch.ones(3, device='meta'),
    'sparse': lambda: torch.ones(3).to_sparse(),
    'float8': lambda: torch.ones(3).to(torch.float8_e5m2),
  }[case]()
  with pytest.raises(TypeError, match=r"state_dict\['weight'\] is a Tensor"):
    conventions.from_torch({'weight': tensor})
