"""Records many episodes in processes, each into a separate file.

Run as a module it is a worker of the collect stage: jobs come in on stdin, one JSON object per line,
and each is answered by one line on stdout. No JAX here, so that a worker starts in a moment.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from wam_jax.envs import registry
from wam_jax.envs.recording import Job, RecordingError, Settings, record
from wam_jax.host.regular_files import open_file

_WORKER_ATTEMPTS = 3  # at one job, before giving up


def _save(path: pathlib.Path, recording: dict[str, Any]) -> None:
  # Of this process alone: the worker of a killed run may still be at the same job.
  partial = path.with_name(f".{path.name}.{os.getpid()}.partial.npz")
  np.savez(partial, **{**recording, "attempts": np.array(json.dumps(recording["attempts"]))})
  os.replace(partial, path)


def load(folder: pathlib.Path, job: Job, without: Sequence[str] = ()) -> dict[str, Any]:
  """Reads what a job left in `folder`, but those `without`, such as pictures."""
  with open_file(folder / f"{job.name}.npz") as opened, np.load(opened, allow_pickle=False) as file:
    recording: dict[str, Any] = {name: file[name] for name in file.files if name not in without}
  recording["attempts"] = json.loads(str(recording["attempts"]))
  return recording


def record_all(
  jobs: Sequence[Job], settings: Settings, folder: pathlib.Path, workers: int, done: Callable[[int], Any]
) -> int:
  """Does all jobs whose file does not exist yet, each into `folder`/<name>.npz.

  The simulator's Python holds the interpreter's lock, so workers are processes. They are started as
  modules rather than forked (JAX's threads do not survive that) or spawned (which would import the
  whole program again).

  Args:
    jobs: what to record.
    settings: how.
    folder: exists.
    workers: processes; with one the work is done here.
    done: called with 1 as each job is done, in this thread.

  Returns:
    How often a worker died and was replaced; it does its job once more.

  Raises:
    RecordingError: a worker failed, its own message is in it; or three died at the same job.
  """
  todo = []
  for job in jobs:
    if (folder / f"{job.name}.npz").exists():
      done(1)
    else:
      todo.append(job)
  if min(workers, len(todo)) <= 1:
    simulator = registry.load(settings.env)
    env = simulator.make() if todo else None
    for job in todo:
      assert env is not None
      _save(folder / f"{job.name}.npz", record(simulator, env, job, settings))
      done(1)
    return 0
  return _record_in_processes(todo, settings, folder, min(workers, len(todo)), done)


def _record_in_processes(
  todo: Sequence[Job], settings: Settings, folder: pathlib.Path, workers: int, done: Callable[[int], Any]
) -> int:
  """`record_all` in so many processes."""
  waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
  answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()
  for job in todo:
    waiting.put(job)
  root = str(pathlib.Path(__file__).parents[2])
  path = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH", "")) if p)
  environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
  command = [
    sys.executable,
    "-m",
    "wam_jax.envs.recording_workers",
    json.dumps(dataclasses.asdict(settings)),
    str(folder),
  ]
  processes: list[subprocess.Popen[str]] = []

  def start() -> subprocess.Popen[str]:
    process = subprocess.Popen(
      command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    processes.append(process)
    return process

  def ask(process: subprocess.Popen[str], job: Job) -> str:
    """Its answer to one job; empty: it has died."""
    assert process.stdin is not None and process.stdout is not None
    try:
      process.stdin.write(json.dumps(dataclasses.asdict(job)) + "\n")
      process.stdin.flush()
      return process.stdout.readline()
    except (BrokenPipeError, ValueError):
      return ""

  def feed() -> None:
    """Gives a worker one job after the other; None to `answers` when there is nothing left."""
    process = start()
    while not ended.is_set():
      try:
        job = waiting.get_nowait()
      except queue.Empty:
        break
      for attempt in range(1, _WORKER_ATTEMPTS + 1):
        line = ask(process, job)
        if line or ended.is_set():
          break
        code = process.wait()
        if attempt == _WORKER_ATTEMPTS:
          line = json.dumps({"error": f"a worker died {attempt} times at {job.name} (exit code {code})"})
        else:
          restarts.append(job.name)
          process = start()
      answers.put(line)
    answers.put(None)

  ended, restarts = threading.Event(), list[str]()
  threads = [threading.Thread(target=feed, daemon=True) for _ in range(workers)]
  try:
    for thread in threads:
      thread.start()
    running = len(threads)
    while running:
      answer = answers.get()
      if answer is None:
        running -= 1
        continue
      content = json.loads(answer)
      if "error" in content:
        raise RecordingError(f"recording failed: {content['error']}")
      done(1)
  finally:
    ended.set()
    for process in list(processes):
      if process.stdin is not None:
        with contextlib.suppress(OSError):
          process.stdin.close()
      process.terminate()
      process.wait()
  return len(restarts)


def main(argv: Sequence[str]) -> None:
  """A worker: settings as JSON and the folder as arguments, jobs on stdin."""
  settings, folder = Settings(**json.loads(argv[0])), pathlib.Path(argv[1])
  for signum in (signal.SIGINT, signal.SIGHUP):  # the parent's to handle: it ends its workers
    signal.signal(signum, signal.SIG_IGN)
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # whatever a library prints must not be taken for an answer
  env = None
  for line in sys.stdin:
    job = Job(**json.loads(line))
    try:
      if env is None:
        simulator = registry.load(settings.env)
        env = simulator.make()
      _save(folder / f"{job.name}.npz", record(simulator, env, job, settings))
      answer: dict[str, Any] = {"done": job.name}
    except Exception as error:  # told to the parent, which raises
      says_what_to_do = type(error).__module__.startswith("wam_jax.")
      answer = {"error": f"{job.name}: {error if says_what_to_do else traceback.format_exc()}"}
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
  main(sys.argv[1:])
