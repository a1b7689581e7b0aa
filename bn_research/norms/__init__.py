"""What a normalization is: x̂ = Norm(x, X), one choice on each of four axes."""

from bn_research.norms.axes import (
  Gradient,
  Map,
  Normalizer,
  Pair,
  Population,
  Scope,
)
from bn_research.norms.combine import Chain, Coloured, Mixture
from bn_research.norms.folding import affine_of, fold, fold_into_next
from bn_research.norms.gradients import (
  Ramp,
  Renormalized,
  frozen,
  mean_only,
  recalled,
  spread_only,
  stopped,
  through,
)
from bn_research.norms.maps.divide import Divide
from bn_research.norms.maps.standardize import Standardize, normalize
from bn_research.norms.maps.whiten import Whiten
from bn_research.norms.methods.batch import (
  batch_norm,
  batch_renorm,
  mean_only_batch_norm,
  none,
  power_norm,
  virtual_batch_norm,
)
from bn_research.norms.methods.evonorm import EvoNormB0, EvoNormS0
from bn_research.norms.methods.names import (
  AXES,
  COMBINATIONS,
  NAMES,
  SCHEDULES,
  create,
)
from bn_research.norms.methods.per_example import (
  absolute_scale,
  divisive_norm,
  filter_response_norm,
  group_norm,
  instance_norm,
  layer_norm,
  local_contrast_norm,
  local_response_norm,
  positional_norm,
  rms_norm,
)
from bn_research.norms.methods.squash import (
  Squash,
  dynamic_erf,
  dynamic_tanh,
  thresholded_linear_unit,
)
from bn_research.norms.methods.weights import (
  weight_norm,
  weight_standardization,
)
from bn_research.norms.methods.whitening import (
  batch_whitening,
  decorrelated_batch_norm,
  group_whitening,
  instance_whitening,
  iter_norm,
)
from bn_research.norms.normalization import Normalization
from bn_research.norms.populations import (
  Accumulated,
  Cumulative,
  Ema,
  Fixed,
  Interval,
  Pooled,
  Running,
)
from bn_research.norms.scopes import (
  Batch,
  Example,
  Neighbourhood,
  Patches,
  Reference,
)
from bn_research.norms.statistics.moments import Moments, estimate, joined
from bn_research.norms.statistics.views import View
from bn_research.norms.surgery import freeze, over_devices, sync

__all__ = [
  'AXES',
  'COMBINATIONS',
  'NAMES',
  'SCHEDULES',
  'Accumulated',
  'Batch',
  'Chain',
  'Coloured',
  'Cumulative',
  'Divide',
  'Ema',
  'EvoNormB0',
  'EvoNormS0',
  'Example',
  'Fixed',
  'Gradient',
  'Interval',
  'Map',
  'Mixture',
  'Moments',
  'Neighbourhood',
  'Normalization',
  'Normalizer',
  'Pair',
  'Patches',
  'Pooled',
  'Population',
  'Ramp',
  'Reference',
  'Renormalized',
  'Running',
  'Scope',
  'Squash',
  'Standardize',
  'View',
  'Whiten',
  'absolute_scale',
  'affine_of',
  'batch_norm',
  'batch_renorm',
  'batch_whitening',
  'create',
  'decorrelated_batch_norm',
  'divisive_norm',
  'dynamic_erf',
  'dynamic_tanh',
  'estimate',
  'filter_response_norm',
  'fold',
  'fold_into_next',
  'freeze',
  'frozen',
  'group_norm',
  'group_whitening',
  'instance_norm',
  'instance_whitening',
  'iter_norm',
  'joined',
  'layer_norm',
  'local_contrast_norm',
  'local_response_norm',
  'mean_only',
  'mean_only_batch_norm',
  'none',
  'normalize',
  'over_devices',
  'positional_norm',
  'power_norm',
  'recalled',
  'rms_norm',
  'spread_only',
  'stopped',
  'sync',
  'thresholded_linear_unit',
  'through',
  'virtual_batch_norm',
  'weight_norm',
  'weight_standardization',
]
