"""Runs and claims as files for other programs."""

import csv
import json

import pytest

from bn_research.reports import claims, export

CLAIM = claims.Claim(
  claim='norms | help_a lot, 5 % & more',
  source='paper',
  published='a plot',
  measured='accuracy',
  measure={'name': 'final', 'metric': 'test_accuracy'},
  this={'model.norm.name': 'batch_norm'},
  that={'model.norm.name': 'none'},
  expected='higher',
)


@pytest.fixture
def write(five_seeds, tmp_path):
  findings = [claims.check(CLAIM, five_seeds)]
  return lambda kind: export.write(
    kind, five_seeds, findings, tmp_path / 'report'
  )


def test_csv(write, five_seeds):
  runs, of_claims = write('csv')
  rows = list(csv.DictReader(runs.read_text().splitlines()))
  assert len(rows) == len(five_seeds) == 10
  assert {row['model.norm.name'] for row in rows} == {'none', 'batch_norm'}
  last = five_seeds[0].metrics['test_accuracy'][-1]
  assert float(rows[0]['test_accuracy']) == last
  (row,) = csv.DictReader(of_claims.read_text().splitlines())
  assert row['claim'] == CLAIM.claim
  assert row['verdict'] == 'holds'


def test_json_has_no_nan(write):
  runs, of_claims = write('json')
  assert len(json.loads(runs.read_text())) == 10
  (row,) = json.loads(of_claims.read_text())
  assert row['seeds'] == 5
  assert 'NaN' not in runs.read_text() + of_claims.read_text()


def test_json_has_no_infinity():
  rows = [{'grad_norm': float('inf'), 'x': float('nan'), 'y': 1.5}]
  _, as_json = export.KINDS['json']
  assert json.loads(as_json(rows)) == [{'grad_norm': None, 'x': None, 'y': 1.5}]


def test_markdown_and_latex_are_escaped(write):
  _, markdown = write('markdown')
  header, _, row = markdown.read_text().splitlines()
  assert header.startswith('| claim | source |')
  assert r'norms \| help_a lot' in row
  _, latex = write('latex')
  text = latex.read_text()
  assert r'help\_a lot, 5 \% \& more' in text
  assert text.count(r'\\') == 2
