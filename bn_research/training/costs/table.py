"""The cost of a run as lines of text."""

from bn_research.training.costs.estimation import Cost

_PREFIXES = ('', 'k', 'M', 'G', 'T', 'P', 'E')


def lines(cost: Cost) -> list[str]:
  """Returns a table of the cost, a line for each quantity.

  Args:
    cost: The result of `estimate`.
  """
  shape = ' x '.join(map(str, cost.dataset.shape))
  per_device = cost.kept_bytes / cost.num_devices
  rows = [
    ('data', f'{cost.dataset.name}, {shape}, {_examples(cost)}'),
    ('network', f'{cost.network}, {cost.num_parameters:,} parameters'),
    ('a step', f'{cost.batch_size:,} examples on {_devices(cost.num_devices)}'),
    ('', f'{number(cost.step_flops)}FLOP'),
    ('the run', f'{cost.num_steps:,} steps, {_of_run(cost)}'),
    ('inference', f'{number(cost.example_flops)}FLOP an example'),
    ('memory', f'{number(cost.state_bytes)}B of state on each device'),
    ('', f'{number(per_device)}B a device kept for the backward pass'),
  ]
  if cost.kept_with_remat is not None:
    kept = number(cost.kept_with_remat / cost.num_devices)
    rows.append(('', f'{kept}B a device with model.remat=True'))
  rows += _of_collectives(cost)
  return [f'{name:12}{text}' for name, text in rows]


def _examples(cost: Cost) -> str:
  if cost.dataset.num_examples is None:
    return 'not prepared here'
  epochs = cost.num_steps * cost.batch_size / cost.dataset.num_examples
  return f'{cost.dataset.num_examples:,} examples, {epochs:,.3g} epochs'


def _of_run(cost: Cost) -> str:
  return f'{number(cost.num_steps * cost.step_flops)}FLOP of training'


def _of_collectives(cost: Cost) -> list[tuple[str, str]]:
  found = cost.collectives
  if not found.number:
    return [('collectives', 'none, on a single device')]
  return [
    ('collectives', f'{found.number} a step'),
    ('', f'{number(found.gathered)}B of statistics gathered on each device'),
    ('', f'{number(found.reduced)}B of gradients summed over the devices'),
  ]


def _devices(count: int) -> str:
  return f'{count} device' + 's' * (count > 1)


def number(value: float) -> str:
  """Returns a number with three digits and a prefix of the SI, then a blank.

  Args:
    value: A number, at least 0.
  """
  power = 0
  while value >= 999.5 and power < len(_PREFIXES) - 1:
    value, power = value / 1000, power + 1
  digits = f'{value:.0f}' if power == 0 else f'{value:.3g}'
  return f'{digits} {_PREFIXES[power]}'
