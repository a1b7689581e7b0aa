"""The commands that the README and the CI promise."""

import os
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()


def command(name):
  blocks = re.findall(
    rf'^<!-- command: {name} -->\n```\w*\n(.*?)^```', README, re.M | re.S
  )
  (block,) = blocks
  (line,) = block.splitlines()
  return line


@pytest.mark.parametrize('name', ['run', 'test'])
def test_a_command_is_one_line_that_starts_a_script(name):
  script = ROOT / command(name)
  assert script.is_file()
  assert os.access(script, os.X_OK)


def test_the_ci_runs_the_command_of_the_readme():
  lines = (ROOT / '.ci' / 'run').read_text().splitlines()
  assert lines[-1] == command('test')


def test_what_the_readme_links_to_is_there():
  for path in re.findall(r'\]\((?!https?:)([^)#]+)\)', README):
    assert (ROOT / path).exists(), path


def test_the_tour_names_folders_that_are_there():
  tour = README[README.index('## A tour') :]
  folders = re.findall(r'^\| `([^`]+/)` \|', tour, re.M)
  assert len(folders) > 8
  for folder in folders:
    assert (ROOT / folder).is_dir(), folder
