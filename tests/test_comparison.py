"""Two spellings of one config, and two configs."""

import pytest

from bn_research import comparison


@pytest.mark.parametrize(
  ('there', 'here', 'differing'),
  [
    ({'data': {}}, {'data': {'augment': None}}, set()),
    ({'data': {}}, {'data': {'augment': {}}}, set()),
    ({'data': {}}, {'data': {'augment': {'flip': None}}}, set()),
    ({}, {'probes': {}}, set()),
    (
      {'data': {'augment': {'flip': {}}}},
      {'data': {'augment': {'flip': 'flip'}}},
      set(),
    ),
    (
      {'data': {'augment': {'flip': {}}}},
      {'data': {'augment': {'flip': {'name': 'flip'}}}},
      set(),
    ),
    # A part without options is a part.
    (
      {'data': {}},
      {'data': {'augment': {'flip': {}}}},
      {'data.augment.flip.name'},
    ),
    (
      {'data': {'augment': {'flip': {}}}},
      {'data': {'augment': {'flip': {'name': 'cutout', 'size': 2}}}},
      {'data.augment.flip.name', 'data.augment.flip.size'},
    ),
    ({}, {'probes': {'gradients': {}}}, {'probes.gradients.name'}),
    (
      {'probes': {'p': {'num_points': 3}}},
      {'probes': {'p': {}}},
      {'probes.p.num_points'},
    ),
  ],
)
def test_what_differs(there, here, differing):
  assert comparison.differences(there, here).keys() == differing
  assert comparison.differences(here, there).keys() == differing
