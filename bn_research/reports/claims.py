"""Checks published statements against runs."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rich.table
import rich.text
from scipy import special

from bn_research import errors
from bn_research.reports import measures
from bn_research.reports.runs import Absent
from bn_research.results import Run, Runs, matches

HOLDS = 'holds'
DOES_NOT_HOLD = 'does not hold'
TOO_FEW = 'too few seeds'
UNDECIDED = 'undecided'
NOTHING = 'no seed is done on both sides'

_FEWEST = 5  # seeds for a verdict
_CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Claim:
  """A statement: a measure is higher, or lower, in `this` than in `that`.

  Attributes:
    claim: The statement, as text.
    source: The publication of the statement, as text.
    published: The published number, as text, and in brackets the origin of the
      number, for example `paper` or `recalled`.
    measured: A description of the measure, as text.
    measure: A dict with the `name` of a measure, and the options of the
      measure.
    this: Values by dotted key. A run whose config has these values is on the
      first side of the comparison.
    that: Values by dotted key, for the second side of the comparison.
    expected: `higher` or `lower`: the claimed result of `this`, compared with
      `that`.

  Raises:
    UserError: If `expected` is neither `higher` nor `lower`, or if `measure`,
      `this` or `that` is no dict.
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
    for name in ('measure', 'this', 'that'):
      value = getattr(self, name)
      if not isinstance(value, Mapping):
        raise errors.UserError(
          f'report(): {name}={value!r} in a claim is no dict'
        )


@dataclasses.dataclass(frozen=True)
class Finding:
  """The result of the check of a claim.

  Attributes:
    claim: The claim.
    this: The mean of the measure over seeds, for the first side of the claim.
    that: The mean over the same seeds, for the second side of the claim.
    differences: (n,) float64, the number of the first side minus the number of
      the second side, for each of n seeds.
    interval: The lower and the upper end of the 95 % confidence interval of the
      mean difference. Both ends are NaN for a single seed.
    verdict: `HOLDS`, `DOES_NOT_HOLD`, `UNDECIDED`, `TOO_FEW` or `NOTHING`.
    left_out: The runs that the comparison lacks, as text: runs that diverged,
      are missing, cannot be read, have no finite number or no run of the same
      seed on the other side. '' if no run is left out.
  """

  claim: Claim
  this: float
  that: float
  differences: np.ndarray
  interval: tuple[float, float]
  verdict: str
  left_out: str = ''


def check(
  claim: Claim,
  runs: Sequence[Run],
  absent: Sequence[Absent] = (),
) -> Finding:
  """Checks a claim, by a comparison of two runs for each seed.

  Args:
    claim: The claim.
    runs: Runs with any config, done or diverged. Only the runs that are done
      have a number; the result counts the runs that diverged.
    absent: The planned runs without numbers.

  Returns:
    The measured means, the differences, and the verdict. All numbers are NaN if
    no seed has finished runs of both sides.

  Raises:
    UserError: If a side has neither a run nor a planned run, if a side has two
      finished runs of a seed, or if a run lacks the measured quantity.
  """
  # Two runs with the same seed share a part of the spread over seeds. The
  # difference within a seed removes this part.
  this, that = (
    {
      seed: measures.measure(claim.measure, run)
      for seed, run in _by_seed(side, runs).items()
    }
    for side in (claim.this, claim.that)
  )
  texts = (
    _left_out(claim, runs, absent),
    _unpaired(claim, this, that, runs, absent),
  )
  left_out = '; '.join(filter(None, texts))
  seeds = sorted(_finite(this) & _finite(that))
  if not seeds:
    nan = float('nan')
    return Finding(
      claim, nan, nan, np.full(0, nan), (nan, nan), NOTHING, left_out
    )
  x, y = (np.asarray([side[seed] for seed in seeds]) for side in (this, that))
  interval = mean_interval(x - y)
  return Finding(
    claim,
    float(x.mean()),
    float(y.mean()),
    x - y,
    interval,
    _verdict(interval, len(seeds), claim.expected),
    left_out,
  )


def _finite(numbers: Mapping[int, float]) -> set[int]:
  """Returns the seeds whose number is finite."""
  return {seed for seed, number in numbers.items() if np.isfinite(number)}


def _unpaired(
  claim: Claim,
  this: Mapping[int, float],
  that: Mapping[int, float],
  runs: Sequence[Run],
  absent: Sequence[Absent],
) -> str:
  """Returns how many finished runs of each side are in no pair, as text."""
  texts = []
  for name, side, other, where in (
    ('first', this, that, claim.that),
    ('second', that, this, claim.this),
  ):
    # A partner that diverged or is missing is counted on the other side.
    configs = [
      *(run.config for run in Runs(runs).select(where)),
      *(run.config for run in absent if matches(run.config, where)),
    ]
    known = other.keys() | {config.get('seed') for config in configs}
    counts = {
      'without a number': len(side) - len(_finite(side)),
      'without a partner': len(_finite(side) - known),
    }
    texts += [
      f'{count} of {len(side)} {what} on the {name} side'
      for what, count in counts.items()
      if count
    ]
  return '; '.join(texts)


def _left_out(
  claim: Claim, runs: Sequence[Run], absent: Sequence[Absent]
) -> str:
  """Returns how many runs of each side have no number, as text."""
  texts = []
  for name, where in (('first', claim.this), ('second', claim.that)):
    matching = Runs(runs).select(where)
    planned = [run.reason for run in absent if matches(run.config, where)]
    if not matching and not planned:
      raise errors.UserError(
        f'no run is of the {name} side of the claim {claim.claim!r}'
      )
    diverged = sum(not run.is_done for run in matching)
    counts = {'diverged': diverged, **collections.Counter(planned)}
    total = len(matching) + len(planned)
    texts += [
      f'{count} of {total} {what} on the {name} side'
      for what, count in counts.items()
      if count
    ]
  return '; '.join(texts)


def mean_interval(values: np.ndarray) -> tuple[float, float]:
  """Returns the 95 % confidence interval of a mean, by Student's t.

    m ± t(0.975; n - 1) s / √n

  The interval of a percentile bootstrap would be too narrow for a few seeds.

  Args:
    values: (n,) floating, independent values.

  Returns:
    The lower and the upper end. Both ends are NaN if n is 1.
  """
  n = len(values)
  if n == 1:
    return float('nan'), float('nan')
  t = special.stdtrit(n - 1, (1 + _CONFIDENCE) / 2)
  half = t * values.std(ddof=1) / n**0.5
  return float(values.mean() - half), float(values.mean() + half)


def table(findings: Sequence[Finding]) -> rich.table.Table:
  """Returns a table of findings for a terminal, with a row for each finding.

  Args:
    findings: The results of `check`.
  """
  result = rich.table.Table(
    'claim', 'measured', 'published', 'ours', 'verdict', show_lines=True
  )
  for finding in findings:
    # No verdict stands alone if runs are left out of the comparison.
    verdict = '; but '.join(filter(None, (finding.verdict, finding.left_out)))
    texts = (
      f'{finding.claim.claim} ({finding.claim.source})',
      finding.claim.measured,
      finding.claim.published,
      _numbers(finding),
      verdict,
    )
    # Brackets in a text are no markup of rich.
    result.add_row(*(rich.text.Text(str(text)) for text in texts))
  return result


def _numbers(finding: Finding) -> str:
  """Returns the numbers of a finding as text."""
  if not len(finding.differences):
    return 'no number'
  low, high = finding.interval
  count = len(finding.differences)
  # A single seed has no interval.
  interval = f' [{low:+.4f}, {high:+.4f}]' if count > 1 else ''
  return (
    f'{count} {"seed" if count == 1 else "seeds"}: {finding.this:.4f} against'
    f' {finding.that:.4f}, difference {finding.differences.mean():+.4f}'
    f'{interval}'
  )


def _by_seed(where: Mapping[str, Any], runs: Sequence[Run]) -> dict[int, Run]:
  """Returns the finished runs of a side of a claim, by seed."""
  found: dict[int, Run] = {}
  for run in Runs(runs).select(where):
    if run.is_done:
      other = found.setdefault(run.config['seed'], run)
      # With two runs of a seed, the choice of a run would be arbitrary.
      if other is not run:
        raise errors.UserError(
          f'{other.path} and {run.path} are of one seed and both match {where};'
          ' name in the claim what they differ in'
        )
  return found


def _verdict(
  interval: tuple[float, float], num_seeds: int, expected: str
) -> str:
  """Returns the verdict on a claim from the interval of the mean difference.

  With fewer than five seeds, or with zero inside the interval, the runs do not
  decide the claim.
  """
  # A change of the sign turns a claim of `lower` into a claim of `higher`.
  low, high = interval if expected == 'higher' else (-interval[1], -interval[0])
  # The inequalities are strict. If all differences are exactly 0, the interval
  # is [0, 0]; zero is then not inside, and the claim does not hold.
  if num_seeds < _FEWEST:
    return TOO_FEW
  if low < 0 < high:
    return UNDECIDED
  return HOLDS if low > 0 else DOES_NOT_HOLD
