"""Runs of two processes, as on two hosts: they compute what one does, stop together, and notice a loss."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from integration.test_pipeline import ROOT, command, environment

from wam_jax.host.logger import read_metrics
from wam_jax.storage.saved_params import load_params

pytestmark = pytest.mark.timeout(1800)  # on one core `both` takes ten minutes
# The small run of test_pipeline, a little smaller, with episodes enough to share.
SMALLER = {
  "data__heldout_starts_per_task": 3,
  "data__heldout_play_frames": 60,
  "judge__horizons": "1,5",
  "judge__probe_frames": 100,
  "ppo__iterations": 2,
  "ppo__critic_warmup_iterations": 1,
  "ppo__failed_starts": 0,
  "ppo__eval_every": 0,
  "evaluate__episodes": 3,
  "evaluate__random_policy": "false",
  "evaluate__expert": "false",
}


def flags(workdir, **changes):
  return command(workdir, **SMALLER | changes)[3:]  # after python -m wam_jax.main


def launcher(workdir, *options, processes=2, **changes):
  command = [sys.executable, "launch/local_multiprocess.py", f"--processes={processes}", *options, "--"]
  return [*command, *flags(workdir, **changes)]


def run(command, timeout=900):
  return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
  """Work folders of the same run by one process and by two."""
  folders = [tmp_path_factory.mktemp(name) / "run" for name in ("one", "two")]
  one = run([sys.executable, "-m", "wam_jax.main", *flags(folders[0])])
  assert one.returncode == 0, one.stderr[-3000:]
  two = run(launcher(folders[1]))
  assert two.returncode == 0, two.stdout[-3000:] + two.stderr[-3000:]
  return (*folders, two.stdout)


@pytest.mark.slow
def test_two_processes_train_what_one_does(both):
  one, two, out = both
  for stage in ("world_model", "behaviour_cloning", "classifier", "ppo"):
    a, b = (load_params(folder / stage / "params") for folder in (one, two))
    for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
      where = stage + jax.tree_util.keystr(path)
      np.testing.assert_allclose(y, x, atol=1e-3, err_msg=where)
      # Sums in another order round otherwise, and may change the code that is sampled in a frame of a dream.
      other = ~np.isclose(y, x, rtol=1e-4, atol=1e-5)
      assert other.mean() < 0.02, f"{where}: {other.sum()} of {other.size} numbers differ"
    steps = [[line["step"] for line in read_metrics(folder / stage)] for folder in (one, two)]
    assert steps[0] == steps[1]  # only the first process writes them
  assert "2 processes read their own windows" in out
  assert out.count("Time per stage") == 1 and "[1] [" not in out.replace("[1] [Gloo]", "")
  assert not list(two.glob("evaluate/*.part*")) and not list(two.glob(".seen*"))
  with np.load(two / "evaluate" / "cloned.npz") as file:
    assert file["success"].shape == (2, 3) and file["robot_obs"].shape[:2] == (2, 3)
    starts = file["robot_obs"][:, :, 0]
    np.testing.assert_allclose(starts[..., :3], file["start"][..., :3], atol=1e-3)
  assert (two / "report" / "report.html").exists()


@pytest.mark.slow
def test_the_number_of_processes_may_change(both, tmp_path):
  """Stopped with two processes, continued with one, and the other way round."""
  one, _, _ = both
  changes = {"stage": "world_model", "inputs__collect": one, "world_model__updates": 40}
  changes |= {"training__checkpoint_minutes": 0, "training__log_every": 2}
  whole = tmp_path / "whole"
  assert run([sys.executable, "-m", "wam_jax.main", *flags(whole, **changes)]).returncode == 0
  parts = tmp_path / "parts"
  stopped = stop_after(launcher(parts, **changes), parts / "world_model", signal.SIGTERM)
  assert stopped.returncode == 143
  assert not (parts / "world_model" / "DONE").exists()
  last = read_metrics(parts / "world_model")[-1]["step"]
  again = run([sys.executable, "-m", "wam_jax.main", *flags(parts, **changes)])
  assert again.returncode == 0 and f"resumed at update {last} of 40" in again.stdout, again.stdout
  a, b = (load_params(folder / "world_model" / "params") for folder in (whole, parts))
  jax.tree.map(lambda x, y: np.testing.assert_allclose(y, x, rtol=1e-3, atol=1e-4), a, b)
  lines = [line["step"] for line in read_metrics(parts / "world_model")]
  assert lines == list(range(2, 41, 2))


def stop_after(command, stage, signum, lines=3, only=None):
  """Starts, and after some metric lines signals the launcher, or the process `only`."""
  process = subprocess.Popen(
    command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
  )
  deadline, before = time.monotonic() + 200, len(read_metrics(stage))
  while len(read_metrics(stage)) < before + lines:
    assert process.poll() is None and time.monotonic() < deadline, process.communicate()
    time.sleep(0.02)
  os.kill(process.pid if only is None else child(process.pid, only), signum)
  out, error = process.communicate(timeout=90)
  return subprocess.CompletedProcess(command, process.returncode, out, error)


def child(launcher_pid, index):
  """Process number of a child of the launcher by its --process_id."""
  for pid in map(int, pathlib.Path(f"/proc/{launcher_pid}/task/{launcher_pid}/children").read_text().split()):
    if f"--process_id={index}" in pathlib.Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
      return pid
  raise AssertionError(f"no process {index}")


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_process_ends_the_other_which_says_so(both, tmp_path, lost):
  changes = {"stage": "world_model", "inputs__collect": both[0], "world_model__updates": 3000}
  changes |= {"training__checkpoint_minutes": 0, "training__log_every": 2}
  began = time.monotonic()
  command = launcher(tmp_path / "run", "--grace=60", **changes)
  stopped = stop_after(command, tmp_path / "run" / "world_model", signal.SIGKILL, only=lost)
  assert stopped.returncode in (75, 137) and time.monotonic() - began < 150
  text = stopped.stdout + stopped.stderr
  assert f"process {lost} is gone; the same command in all processes goes on" in text, text[-3000:]
  changes["world_model__updates"] = 3000  # the same command: it goes on from a checkpoint
  again = stop_after(launcher(tmp_path / "run", **changes), tmp_path / "run" / "world_model", signal.SIGINT)
  assert again.returncode == 130 and "resumed at update" in again.stdout


@pytest.mark.slow
def test_one_process_signalled_stops_both(both, tmp_path):
  changes = {"stage": "world_model", "inputs__collect": both[0], "world_model__updates": 3000}
  command = launcher(tmp_path / "run", **(changes | {"training__log_every": 2}))
  stopped = stop_after(command, tmp_path / "run" / "world_model", signal.SIGTERM, only=1)
  assert stopped.returncode == 143, stopped
  last = read_metrics(tmp_path / "run" / "world_model")[-1]["step"]
  assert [int(path.name) for path in (tmp_path / "run/world_model/ckpt").glob("[0-9]*")] == [last]


def test_mistakes_are_said_at_once(tmp_path):
  wrong = run(launcher(tmp_path, world_model__updates=0, ppo__dreams=0))
  assert wrong.returncode == 2, wrong
  assert "world_model.updates = 0" in wrong.stderr and "ppo.dreams = 0" in wrong.stderr
  assert not list(tmp_path.iterdir())
  alone = [
    sys.executable,
    "-m",
    "wam_jax.main",
    *flags(tmp_path),
    "--coordinator=localhost:1",
    "--num_processes=2",
  ]
  half = run(alone)
  assert half.returncode == 1 and "--process_id=I, from 0 to N - 1" in half.stderr
  port = free_port()
  different = [
    subprocess.Popen(
      [
        *(sys.executable, "-m", "wam_jax.main", *flags(tmp_path / "run", seed=i)),
        *(f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={i}"),
      ],
      cwd=ROOT,
      env=environment(),
      stderr=subprocess.PIPE,
      stdout=subprocess.DEVNULL,
      text=True,
    )
    for i in (0, 1)
  ]
  texts = [process.communicate(timeout=100)[1] for process in different]
  assert [process.returncode for process in different] == [1, 1]
  assert "different settings: seed of process 1 (1) and of process 0 (0)" in "".join(texts)
  apart = run_apart(tmp_path)
  assert "do not see what process 0 writes" in apart


def free_port():
  import socket

  with socket.socket() as sock:
    sock.bind(("127.0.0.1", 0))
    return sock.getsockname()[1]


def run_apart(tmp_path):
  """Two processes whose work folder has the same name but is not the same: a relative one elsewhere."""
  port = free_port()
  processes = []
  for i in (0, 1):
    place = tmp_path / f"host{i}"
    place.mkdir()
    (place / "experiments").symlink_to(ROOT / "experiments")
    command = [sys.executable, "-m", "wam_jax.main", *flags("run")]
    command += [f"--coordinator=127.0.0.1:{port}", "--num_processes=2", f"--process_id={i}"]
    here = environment() | {"PYTHONPATH": str(ROOT)}
    processes.append(
      subprocess.Popen(
        command, cwd=place, env=here, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
      )
    )
  text = "".join(process.communicate(timeout=100)[1] for process in processes)
  assert [process.returncode for process in processes] == [1, 1], text
  return text
