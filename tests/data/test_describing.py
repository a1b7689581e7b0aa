"""Facts of datasets without examples."""

import pytest
from PIL import Image

from bn_research import errors
from bn_research.data import describing


@pytest.fixture
def without_test(write):
  """Returns the data_dir of MNIST with a split `validation` and no `test`."""
  from tensorflow_datasets.image_classification import mnist

  image = Image.new('L', (28, 28))
  examples = [{'image': image, 'label': k} for k in range(4)]
  return write(mnist.MNIST, {'train': examples, 'validation': examples[:2]})


def test_train_and_test_of_the_evaluation_are_the_keys_of_the_config(
  without_test,
):
  config = {'name': 'mnist', 'train': 'train[:3]', 'test': 'validation'}
  names = ('train', 'test', 'train[3:]')
  found = describing.describe(config, without_test, names)
  assert found == ('mnist', (28, 28, 1), 10, 3)
  with pytest.raises(errors.UserError, match=r"eval\.splits names 'tset'"):
    describing.describe(config, without_test, ('tset',))


def test_a_dataset_of_the_user_is_asked_for_each_split(user_module):
  user_module(
    'my_set',
    'import numpy as np\nfrom bn_research import data\n'
    'def mine():\n'
    '  split = data.Split(np.zeros((4, 9, 9, 1), np.uint8),'
    ' np.zeros(4, np.int32))\n'
    '  return data.Dataset("mine", split, split, 2, others={"more": split})\n',
  )
  config = {'name': 'my_set:mine'}
  found = describing.describe(config, None, ('train', 'test', 'more'))
  assert found == ('mine', (9, 9, 1), 2, 4)
  with pytest.raises(errors.UserError, match=r"names 'mroe'.*test, more"):
    describing.describe(config, None, ('mroe',))
