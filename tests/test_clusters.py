"""The files of docs/cluster against the commands and the image."""

import pathlib
import re
import subprocess
import sys

import yaml

ROOT = pathlib.Path(__file__).parents[1]
CLUSTER = ROOT / 'docs' / 'cluster'


def read(name):
  return yaml.safe_load((CLUSTER / name).read_text())


def test_the_job_has_a_share_for_each_index():
  spec = read('job.yaml')['spec']
  (container,) = spec['template']['spec']['containers']
  arguments = [
    argument.replace('$(JOB_COMPLETION_INDEX)', '0')
    for argument in container['args']
  ]
  assert f'--shard=0/{spec["completions"]}' in arguments
  assert f'--jobs={container["resources"]["limits"]["nvidia.com/gpu"]}' in (
    arguments
  )
  done = subprocess.run(
    [sys.executable, *arguments, '--dry_run'],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert (done.returncode, done.stderr) == (0, '')
  assert len(done.stdout.splitlines()) == 3


def test_the_files_name_the_folder_and_the_user_of_the_image():
  image = (ROOT / 'Dockerfile').read_text()
  (folder,) = re.findall(r'^WORKDIR (.*)$', image, re.M)
  assert f'cd {folder}\n' in read('sky.yaml')['run']
  (user,) = re.findall(r'--uid (\d+)', image)
  pod = read('job.yaml')['spec']['template']['spec']
  assert pod['securityContext']['fsGroup'] == int(user)


def test_the_template_of_skypilot_fills_a_variable_of_its_file():
  page = (ROOT / 'docs' / 'clusters.md').read_text()
  for name in re.findall(r'--env "(\w+)=\{arguments\}"', page):
    assert name in read('sky.yaml')['envs']
    assert f'${name}' in read('sky.yaml')['run']
