import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bn_research.training import digests, mesh
from tests.quick import some

RNG = np.random.default_rng(0)
ARRAYS = {
  'float32': RNG.normal(size=(6, 8)).astype(np.float32),
  'float16': RNG.normal(size=(5,)).astype(np.float16),
  'bfloat16': RNG.normal(size=(2, 3, 4)).astype(jnp.bfloat16),
  'int32': RNG.integers(-5, 5, (7,), np.int32),
  'uint8': RNG.integers(0, 9, (3, 3), np.uint8),
  'bool': RNG.integers(0, 2, (9,)).astype(bool),
  'complex64': RNG.normal(size=(4,)).astype(np.complex64),
  'scalar': np.float32(3),
  'empty': np.zeros((0, 3), np.float32),
}


def by_hand(array):
  """The formula of the docstring, in NumPy, for elements of 4 bytes."""

  def mix(word):
    word = word ^ (word >> 16)
    word = word * 0x85EBCA6B % 2**32
    word = word ^ (word >> 13)
    word = word * 0xC2B2AE35 % 2**32
    return word ^ (word >> 16)

  words = [int(word) for word in array.view(np.uint32).ravel()]
  mixed = [mix((w + 0x9E3779B1 * i) % 2**32) for i, w in enumerate(words)]
  sums = sum(mixed), sum((2 * i + 1) * m for i, m in enumerate(mixed))
  return ''.join(f'{word % 2**32:08x}' for word in sums)


def digest(array):
  (found,) = digests.of_arrays([array]).values()
  return found


def test_it_is_the_formula():
  assert digest(ARRAYS['float32']) == by_hand(ARRAYS['float32'])
  assert digest(ARRAYS['int32']) == by_hand(ARRAYS['int32'])


def test_each_array_has_its_own_by_its_path():
  found = digests.of_arrays({'a': [ARRAYS['int32']], 'b': ARRAYS['bool']})
  assert found == {
    "['a'][0]": digest(ARRAYS['int32']),
    "['b']": digest(ARRAYS['bool']),
  }


@pytest.mark.parametrize('name', ARRAYS)
def test_no_flipped_bit_is_missed(name):
  array = ARRAYS[name]
  before = digest(array)
  for bit in RNG.choice(8 * array.nbytes, min(8 * array.nbytes, 40), False):
    if array.dtype == bool and bit % 8:
      continue  # A bool has one bit of eight.
    content = bytearray(np.ascontiguousarray(array).tobytes())
    content[bit // 8] ^= 1 << (bit % 8)
    changed = np.frombuffer(bytes(content), array.dtype).reshape(array.shape)
    assert digest(changed) != before


def test_elements_that_change_places_are_noticed():
  array = ARRAYS['float32']
  assert digest(array[::-1]) != digest(array)
  assert digest(array.T) != digest(array)
  assert digest(np.zeros(3, np.float32)) != digest(np.zeros(4, np.float32))


@pytest.mark.parametrize('axis', some([0], [1]))
def test_it_is_the_same_on_any_number_of_devices(axis):
  array = RNG.normal(size=(8, 16)).astype(np.float32)
  spec = (
    PartitionSpec('data', None) if axis == 0 else PartitionSpec(None, 'data')
  )
  sharded = jax.device_put(array, NamedSharding(mesh.create(8, 8), spec))
  assert digest(sharded) == digest(array)
  program = digests._of_leaves.lower([sharded]).compile().as_text()
  # The shards stay where they are: what travels are sums.
  assert 'u32[8,16]' not in program
  assert 'f32[8,16]' not in program


def test_keys_have_a_digest():
  assert digest(jax.random.key(0)) != digest(jax.random.key(1))


def test_wide_elements_have_two_words():
  with jax.enable_x64(True):
    array = RNG.normal(size=(5,))
    changed = array.copy()
    changed.view(np.uint64)[2] ^= 1 << 40
    assert digest(array) != digest(changed)
