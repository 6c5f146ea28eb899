"""Shared settings of the tests."""

from __future__ import annotations

import atexit
import importlib.machinery
import os
import shutil
import sys
import tempfile
import types

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("WAM_JAX_TRANSFER_GUARD", "disallow")
# Tests compile much and compute little. Less optimisation, XLA's older code for fused loops and one module a
# program for LLVM take a quarter off the CPU seconds of all tests, half off those of test_ppo.
os.environ.setdefault(
  "XLA_FLAGS",
  "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
  "--xla_cpu_parallel_codegen_split_count=1",
)
# Many tests compile the same programs: all processes of a run of tests, and those they start, share them.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="wam_jax_tests_")
  os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
  atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import numpy as np
import pytest

from wam_jax.data import calvin_writer


def pytest_ignore_collect(collection_path, config):
  """Spares a run without slow tests the imports of tests/slow: 5 s of CPU time in each process."""
  if collection_path.name == "slow" and config.option.markexpr == "not slow":
    return True
  return None


@pytest.fixture(autouse=True, scope="module")
def _free_compiled_programs():
  """Keeps the memory of a whole test run at that of its largest module."""
  yield
  jax.clear_caches()


class WandbOfTests(types.ModuleType):
  """Stands for the package wandb; keeps the runs that are opened. `broken` holds methods that raise."""

  def __init__(self):
    super().__init__("wandb")
    self.__spec__ = importlib.machinery.ModuleSpec("wandb", None, origin="tests/conftest.py")
    self.runs, self.broken = [], set()

  def init(self, **arguments):
    self.fail("init")
    self.runs.append(types.SimpleNamespace(arguments=arguments, defined={}, logged=[], exit_code=None))
    run = self.runs[-1]

    def define_metric(name, step_metric):
      run.defined[name] = step_metric

    def log(values):
      self.fail("log")
      run.logged.append(values)

    def finish(exit_code):
      self.fail("finish")
      run.exit_code = exit_code

    run.define_metric, run.log, run.finish = define_metric, log, finish
    return run

  def fail(self, name):
    if name in self.broken:
      raise RuntimeError(f"no {name}")


@pytest.fixture
def wandb(monkeypatch):
  """The package wandb, without network."""
  for name in [name for name in os.environ if name.startswith("WANDB_")]:
    monkeypatch.delenv(name)
  made = WandbOfTests()
  monkeypatch.setitem(sys.modules, "wandb", made)
  return made


@pytest.fixture(scope="session")
def write_split():
  """write_split(folder, lengths, size, seed=0): a split of random frames in episodes of these lengths."""

  def write(folder, lengths, size, seed=0):
    rng, n = np.random.default_rng(seed), sum(lengths)
    action = rng.uniform(-1, 1, (n, 7))
    action[:, 6] = rng.choice([-1.0, 1.0], n)
    with calvin_writer.FrameWriter(folder) as writer:
      writer.write(
        actions=rng.normal(size=(n, 7)),
        rel_actions=action,
        robot_obs=rng.normal(size=(n, 15)) * np.linspace(0.01, 2, 15) + np.linspace(-1, 1, 15),
        scene_obs=rng.normal(size=(n, 24)),
        rgb_static=rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8),
        rgb_gripper=rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8),
      )
      writer.commit(lengths, [("open_drawer", 0, 4)], "table")

  return write
