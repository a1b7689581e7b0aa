"""Published statements, held against our runs."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rich.table
from scipy import special

from bn_research import errors
from bn_research.reports import measures
from bn_research.results import Run, Runs

HOLDS = 'holds'
DOES_NOT_HOLD = 'does not hold'
TOO_FEW = 'too few seeds'

_FEWEST = 5
_CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Claim:
  """A statement of the kind `this` is higher, or lower, than `that`.

  Attributes:
    claim: The statement.
    source: Where it was published.
    published: The published number and the word for how it was read, as text.
    measured: What is measured, in words.
    measure: Dict with `name`, a measure, and its options.
    this: Values by dotted key of the configs of the runs that it is about.
    that: The same, of the runs to compare with.
    expected: `higher` or `lower`.
  """

  claim: str
  source: str
  published: str
  measured: str
  measure: Mapping[str, Any]
  this: Mapping[str, Any]
  that: Mapping[str, Any]
  expected: str

  def __post_init__(self):
    if self.expected not in ('higher', 'lower'):
      raise errors.UserError(
        f'a claim expects {self.expected!r}; choose higher or lower'
      )


@dataclasses.dataclass(frozen=True)
class Finding:
  """What our runs say of a claim.

  Attributes:
    claim: The claim.
    this: Mean over seeds.
    that: Mean over the same seeds.
    differences: (n,) `this` minus `that`, seed by seed.
    interval: Ends of the 95 % interval of the mean difference; NaN with one
      seed.
    verdict: `HOLDS`, `DOES_NOT_HOLD` or `TOO_FEW`.
  """

  claim: Claim
  this: float
  that: float
  differences: np.ndarray
  interval: tuple[float, float]
  verdict: str


def check(claim: Claim, runs: Sequence[Run]) -> Finding:
  """Holds a claim against runs, those of one seed compared with each other.

  Args:
    claim: The claim.
    runs: Runs of all kinds; those that diverged have no part in it.

  Raises:
    UserError: If no seed has both kinds of runs, or they lack what is measured.
  """

  this = _by_seed(claim.this, runs)
  that = _by_seed(claim.that, runs)
  seeds = sorted(this.keys() & that.keys())
  if not seeds:
    raise errors.UserError(
      f'no seed has finished runs of both sides of the claim {claim.claim!r}'
    )
  x = np.asarray(
    [measures.measure(claim.measure, this[seed]) for seed in seeds]
  )
  y = np.asarray(
    [measures.measure(claim.measure, that[seed]) for seed in seeds]
  )
  interval = mean_interval(x - y)
  return Finding(
    claim,
    float(x.mean()),
    float(y.mean()),
    x - y,
    interval,
    _verdict(interval, len(seeds), claim.expected),
  )


def mean_interval(values: np.ndarray) -> tuple[float, float]:
  """The 95 % confidence interval of a mean, by Student's t.

    m ± t(0.975; n - 1) s / √n

  A percentile bootstrap would be too narrow for the few seeds at hand.

  Args:
    values: (n,) independent values.

  Returns:
    Both ends; NaN where n is 1.
  """
  n = len(values)
  if n == 1:
    return float('nan'), float('nan')
  t = special.stdtrit(n - 1, (1 + _CONFIDENCE) / 2)
  half = t * values.std(ddof=1) / n**0.5
  return float(values.mean() - half), float(values.mean() + half)


def table(findings: Sequence[Finding]) -> rich.table.Table:
  """Lays findings out for a terminal."""
  result = rich.table.Table(
    'claim', 'measured', 'published', 'ours', 'verdict', show_lines=True
  )
  for finding in findings:
    low, high = finding.interval
    result.add_row(
      f'{finding.claim.claim} ({finding.claim.source})',
      finding.claim.measured,
      finding.claim.published,
      f'{finding.this:.4f} against {finding.that:.4f}: difference'
      f' {finding.differences.mean():+.4f} [{low:+.4f}, {high:+.4f}],'
      f' {len(finding.differences)} seeds',
      finding.verdict,
    )
  return result


def _by_seed(where: Mapping[str, Any], runs: Sequence[Run]) -> dict[int, Run]:
  found: dict[int, Run] = {}
  for run in Runs(runs).select(where):
    if run.is_done:
      other = found.setdefault(run.config['seed'], run)
      if other is not run:
        raise errors.UserError(
          f'{other.path} and {run.path} are of one seed and both match {where};'
          ' name in the claim what they differ in'
        )
  return found


def _verdict(
  interval: tuple[float, float], num_seeds: int, expected: str
) -> str:
  low, high = interval if expected == 'higher' else (-interval[1], -interval[0])
  if num_seeds < _FEWEST or low < 0 < high:
    return TOO_FEW
  return HOLDS if low > 0 else DOES_NOT_HOLD
