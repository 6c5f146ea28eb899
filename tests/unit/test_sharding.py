from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

TESTS = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize(
  "which", ["latent or current_chains or rows_of", pytest.param("", marks=pytest.mark.slow)]
)
def test_eight_devices_equal_one(which):
  """In a process of its own: the number of virtual devices is fixed when JAX starts."""
  environ = os.environ | {
    "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8",
    "NPROC": "32",  # many virtual devices on few threads wait for each other for ever
  }
  command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest"]
  done = subprocess.run(
    [*command, "-k", which, str(TESTS / "eight_devices.py")],
    env=environ,
    capture_output=True,
    text=True,
    timeout=500,
  )
  assert done.returncode == 0, done.stdout[-5000:]
  assert "passed" in done.stdout and "skipped" not in done.stdout
