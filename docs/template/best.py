"""A measure: the best value of a metric in a run."""


def best(run, metric: str = 'test_accuracy'):
  """Returns a number of a finished run."""
  (values,) = run.columns(metric)
  return values.max()
