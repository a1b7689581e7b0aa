"""The table of all normalizations: one row each, many tests.

To add a method, add a row: its name, a shape that shows it, an oracle in
`tests.oracles`, and the invariances of its paper. Every test marked `each`
then holds for it; those marked `each_name` do for one row of a name.
"""

from functools import partial

import numpy as np
import pytest

from bn_research import norms
from tests.oracles import (
  formulas,
  neighbours,
  populations,
  sets,
  whitening,
  windows,
)
from tests.oracles.populations import decaying
from tests.oracles.sets import by_rms, centred, over, standardized
from tests.own_statistics import Median
from tests.rows import EPSILON, Row

MOMENTUM = 0.8

_momentum = {'momentum': MOMENTUM}
_batch_norm = {
  'oracle': over(sets.batch, standardized),
  'remember': decaying(MOMENTUM),
  'invariances': 'scale feature_scale shift feature_shift',
  'equivariances': 'case_order feature_order',
}
_ghosts = lambda size: {
  **_batch_norm,
  'oracle': over(partial(sets.batch, group_size=size), standardized),
  'options': {**_momentum, 'group_size': size},
  'equivariances': 'feature_order',
}
_biased = decaying(MOMENTUM, populations.biased)
_of_reference = lambda x, mask: populations.unbiased(
  x[:3], np.broadcast_to(mask, x.shape)[:3]
)
_clips = {'r_max': 1.4, 'd_max': 0.8}
_of_example = 'scale case_scale shift case_shift'
_of_channel = f'{_of_example} feature_scale feature_shift'
_of_whitening = 'scale shift feature_shift'
_neighbours = lambda **options: {
  'oracle': windows.local_contrast(**options),
  'options': options,
  'invariances': _of_channel,
  'equivariances': 'case_order feature_order',
  'idempotent': False,
}

ROWS = (
  Row('batch_norm', (10, 3), options=_momentum, **_batch_norm),
  Row('batch_norm/images', (4, 3, 2, 5), options=_momentum, **_batch_norm),
  Row('batch_norm/ghosts', (12, 3), **_ghosts(4)),
  Row('batch_norm/uneven_ghosts', (8, 2, 3), **_ghosts(3)),
  Row(
    'batch_norm/biased',
    (6, 3),
    options={**_momentum, 'unbiased': False},
    **{**_batch_norm, 'remember': _biased},
  ),
  Row(
    'batch_norm/median',
    (9, 3),
    over(sets.batch, sets.by_median),
    _momentum,
    invariances='scale feature_scale shift feature_shift',
    equivariances='case_order feature_order',
    remember=decaying(MOMENTUM, populations.medians),
    factory=lambda momentum, epsilon: norms.Normalization(
      norms.Batch(), Median(epsilon=epsilon), norms.Ema(momentum)
    ),
  ),
  Row(
    'mean_only_batch_norm',
    (7, 3),
    over(sets.batch, centred),
    _momentum,
    invariances='shift feature_shift',
    equivariances='scale feature_scale case_order feature_order '
    'feature_rotation',
    remember=decaying(MOMENTUM),
    running=sets.running_centred,
  ),
  Row(
    'power_norm',
    (4, 3, 3),
    over(sets.batch, by_rms),
    _momentum,
    invariances='scale feature_scale',
    equivariances='case_order feature_order',
    remember=decaying(MOMENTUM, populations.about_zero),
  ),
  Row(
    'batch_renorm',
    (4, 3, 4),
    sets.renormalized(**_clips),
    {**_momentum, **_clips},
    equivariances='case_order feature_order',
    remember=_biased,
    derivative=formulas.renormalized(**_clips),
  ),
  Row(
    'virtual_batch_norm',
    (7, 2, 3),
    sets.with_reference(3),
    {**_momentum, 'reference_size': 3},
    invariances='scale feature_scale shift feature_shift',
    equivariances='feature_order',
    idempotent=False,
    remember=decaying(MOMENTUM, _of_reference),
  ),
  Row(
    'layer_norm',
    (5, 2, 6),
    over(sets.features, standardized),
    invariances=_of_example,
    equivariances='case_order feature_order',
  ),
  Row(
    'layer_norm/images',
    (3, 3, 2, 4),
    over(sets.example, standardized),
    {'axes': 'all'},
    invariances=_of_example,
    equivariances='case_order feature_order',
  ),
  Row(
    'rms_norm',
    (5, 2, 6),
    over(sets.features, by_rms),
    invariances='scale case_scale',
    equivariances='case_order feature_order feature_rotation',
  ),
  Row(
    'instance_norm',
    (4, 3, 3, 2),
    over(sets.instance, standardized),
    invariances=_of_channel,
    equivariances='case_order feature_order',
  ),
  Row(
    'group_norm',
    (3, 3, 3, 6),
    over(partial(sets.group, num_groups=3), standardized),
    {'num_groups': 3},
    invariances=_of_example,
  ),
  Row(
    'group_norm/by_size',
    (4, 2, 6),
    over(partial(sets.group, num_groups=2), standardized),
    {'group_size': 3},
    invariances=_of_example,
  ),
  Row(
    'positional_norm',
    (3, 2, 2, 5),
    over(sets.features, standardized),
    invariances=_of_example,
    equivariances='case_order feature_order',
  ),
  Row(
    'filter_response_norm',
    (4, 3, 3, 2),
    over(sets.instance, by_rms),
    invariances='scale case_scale feature_scale',
    equivariances='case_order feature_order',
  ),
  Row(
    'local_response_norm',
    (4, 2, 6),
    windows.local_response(size=3, alpha=0.4, beta=0.75, offset=2.0),
    {'size': 3, 'alpha': 0.4},
    idempotent=False,
  ),
  Row(
    'local_contrast_norm',
    (3, 4, 5, 2),
    **_neighbours(size=3, sigma=0.8),
  ),
  Row('divisive_norm', (3, 4, 5, 2), **_neighbours(size=3)),
  Row(
    'batch_whitening',
    (12, 4),
    whitening.batch(),
    _momentum,
    invariances=_of_whitening,
    equivariances='case_order feature_order feature_rotation',
    remember=decaying(MOMENTUM, whitening.moments()),
    running=whitening.running(whitening.zca),
    joint=True,
  ),
  Row(
    'batch_whitening/cholesky',
    (7, 2, 3),
    whitening.batch(whitening.cholesky, relative=False),
    {**_momentum, 'method': 'cholesky', 'relative': False, 'unbiased': False},
    invariances=f'{_of_whitening} feature_scale',
    remember=decaying(MOMENTUM, whitening.moments(unbiased=False)),
    running=whitening.running(whitening.cholesky, relative=False),
    joint=True,
  ),
  Row(
    'batch_whitening/ghosts',
    (7, 3, 4),
    whitening.batch(block=2, ghost=4),
    {**_momentum, 'method': 'zca', 'group_size': 2, 'ghost_size': 4},
    invariances=_of_whitening,
    equivariances='',
    remember=decaying(MOMENTUM, whitening.moments(2)),
    running=whitening.running(whitening.zca, 2),
    joint=True,
  ),
  Row(
    'decorrelated_batch_norm',
    (10, 5),
    whitening.batch(relative=False, block=2),
    {**_momentum, 'group_size': 2},
    invariances=_of_whitening,
    remember=decaying(MOMENTUM, whitening.matrices(whitening.zca, EPSILON, 2)),
    running=whitening.running(block=2),
    joint=True,
  ),
  Row(
    'iter_norm',
    (10, 4),
    whitening.batch(whitening.iterated(5), relative=False),
    _momentum,
    invariances=_of_whitening,
    equivariances='case_order feature_order feature_rotation',
    idempotent=False,
    remember=decaying(
      MOMENTUM, whitening.matrices(whitening.iterated(5), EPSILON)
    ),
    running=whitening.running(),
    joint=True,
  ),
  Row(
    'instance_whitening',
    (3, 4, 3, 3),
    whitening.instance(),
    invariances=f'{_of_example} feature_shift',
    equivariances='case_order feature_order feature_rotation',
    joint=True,
  ),
  Row(
    'group_whitening',
    (3, 5, 4),
    whitening.group(2),
    {'num_groups': 2},
    invariances=_of_example,
    joint=True,
  ),
  Row(
    'dynamic_tanh',
    (4, 3),
    neighbours.dynamic_tanh,
    equivariances='case_order feature_order',
    idempotent=False,
  ),
  Row(
    'dynamic_erf',
    (4, 3),
    neighbours.dynamic_erf,
    equivariances='case_order feature_order',
    idempotent=False,
  ),
  Row(
    'evonorm_b0',
    (4, 3, 3, 2),
    neighbours.evonorm_b0,
    _momentum,
    invariances='scale feature_scale',
    idempotent=False,
    remember=decaying(MOMENTUM),
    running=neighbours.evonorm_b0_running,
  ),
  Row(
    'evonorm_s0',
    (4, 3, 3, 4),
    neighbours.evonorm_s0(num_groups=2),
    {'num_groups': 2},
    idempotent=False,
  ),
  Row('none', (4, 3), over(sets.none, sets.unchanged), equivariances='all'),
)


def _each(rows):
  return pytest.mark.parametrize('row', rows, ids=lambda row: row.name)


each = _each(ROWS)
each_name = _each([row for row in ROWS if '/' not in row.name])
each_that_remembers = _each([row for row in ROWS if row.remember])
each_that_forgets = _each([row for row in ROWS if not row.remember])
