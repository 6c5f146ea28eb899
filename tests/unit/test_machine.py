from __future__ import annotations

import argparse
import mmap
import os
import pathlib

import numpy as np
import pytest

from wam_jax import config as config_lib
from wam_jax.commands import export as export_command
from wam_jax.commands import pack, play
from wam_jax.commands import report as report_command
from wam_jax.commands import seeds as seeds_command
from wam_jax.data import convert, inspect
from wam_jax.envs import registry
from wam_jax.envs.vector import make_vector
from wam_jax.host import machine

BUCKETS = ("gs://bucket/run", "s3://bucket/run", "hdfs://node:9000/run", "gs:/bucket/run")


@pytest.mark.parametrize("address", BUCKETS)
def test_addresses_of_buckets_are_no_paths(address):
  with pytest.raises(argparse.ArgumentTypeError, match="mount the bucket first"):
    machine.local_path(address)


@pytest.mark.parametrize("path", ["runs/a", "/mnt/gs/run", "./gs:bucket", "a:b", "../x"])
def test_paths_are_paths(path):
  assert machine.local_path(path) == pathlib.Path(path)


def test_every_place_of_the_config_refuses_a_bucket(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  fields = ["workdir", "data.cache", "data.calvin_path", "env.calvin_root", "study.results", "study.page"]
  fields += ["inputs.collect", "inputs.world_model", "inputs.lumos_checkpoint", "judge.compare"]
  config = config_lib.preset_config("demo")
  assert not config_lib.apply_overrides(config, [(field, "gs://bucket/run") for field in fields])
  with pytest.raises(config_lib.ConfigError) as error:
    config_lib.finalize(config)
  refused = {problem.path for problem in error.value.problems if "bucket" in problem.rule}
  assert refused == set(fields) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("main", "arguments"),
  [
    (export_command.main, ["--workdir=runs", "--out={}"]),
    (pack.main, ["--workdir=runs", "--out={}"]),
    (play.main, ["--task=open_drawer", "--policy={}"]),
    (report_command.main, ["--workdir={}"]),
    (seeds_command.main, ["--results={}"]),
    (convert.main, ["--source=data", "--out={}"]),
    (inspect.main, ["--source={}"]),
  ],
)
def test_programs_refuse_a_bucket(main, arguments, tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(SystemExit) as stop:
    main([argument.format("gs://bucket/run") for argument in arguments])
  assert stop.value.code == 2 and "mount the bucket first" in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


def test_cores_are_those_that_this_process_may_use(monkeypatch):
  monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {7}, raising=False)
  assert machine.available_cores() == 1


def test_what_only_linux_has_is_not_needed(monkeypatch):
  """As on macOS: no sched_getaffinity, no MADV_HUGEPAGE."""
  monkeypatch.delattr(os, "sched_getaffinity")
  monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
  assert machine.available_cores() == os.cpu_count()
  simulator = registry.load("play_table")
  vector = make_vector(simulator, 2, image_size=8)
  vector.reset(np.stack([simulator.make().snapshot()] * 2), [""] * 2)
  assert vector.observe()["rgb_static"].shape == (2, 8, 8, 3)
