"""Shared by the tests of faults: a small run, ways to break it, and what must be equal afterwards."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
from integration.test_pipeline import ROOT, command, environment

from wam_jax.config import STAGES
from wam_jax.host.logger import read_metrics
from wam_jax.storage import checksums
from wam_jax.storage.saved_params import load_params

TRAINING = ("world_model", "behaviour_cloning", "classifier", "ppo")
# A checkpoint after each call, and enough calls for a fault to hit one.
SETTINGS = {"training__checkpoint_minutes": 0}
UPDATES = {"world_model": 120, "behaviour_cloning": 120, "classifier": 120, "ppo": 6}
LONG = SETTINGS | {
  **{f"{stage}__updates": UPDATES[stage] for stage in TRAINING[:3]},
  "ppo__iterations": UPDATES["ppo"],
}
# What says when, how long and where, and not what.
# A record's own digest is of all that is in it, of these too.
_ASIDE = {"provenance", "config", "stages", "total_seconds", "workdir", "path", "notes", "sha256"}
_MEASURED = re.compile(r"^time$|^seconds|_seconds$|(^|/)(time|speed|memory)/")
BROKEN = str(ROOT / "tests" / "broken_main.py")


class Process:
  """A run as a process of its own group, its words in files."""

  def __init__(self, folder, cache, workdir, broken="", **settings):
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.glob("*.out")))
    self._out, self._err = folder / f"{number}.out", folder / f"{number}.err"
    words = command(workdir, **settings)
    if broken:  # python -m wam_jax.main ... -> python broken_main.py FAULT ...
      words = [sys.executable, BROKEN, broken, *words[3:]]
    environ = environment(JAX_COMPILATION_CACHE_DIR=str(cache))
    with self._out.open("w") as out, self._err.open("w") as err:
      self.popen = subprocess.Popen(
        words, cwd=ROOT, env=environ, stdout=out, stderr=err, start_new_session=True
      )

  @property
  def out(self):
    return self._out.read_text()

  @property
  def err(self):
    return self._err.read_text()

  def said(self, text, seconds=180):
    """Waits until it has said something; False if it ended before."""
    deadline = time.monotonic() + seconds
    while not re.search(text, self.out + self.err):
      if self.popen.poll() is not None:
        return bool(re.search(text, self.out + self.err))
      assert time.monotonic() < deadline, self.words
      time.sleep(0.005)
    return True

  def wait(self, seconds=900):
    """Exit code; nothing it started may be left."""
    code = self.popen.wait(seconds)
    deadline = time.monotonic() + 15
    while _group_alive(self.popen.pid):
      assert time.monotonic() < deadline, "a process that it started is left"
      time.sleep(0.02)
    return code

  def ends_at_once(self, stage_folder):
    """Of a process that is stuck after the stage's first checkpoint: the second SIGTERM ends it."""
    self.until(lambda: steps(stage_folder))
    self.popen.terminate()
    assert self.said("SIGTERM: saving and ending"), self.words
    self.popen.terminate()
    began = time.monotonic()
    assert self.wait() == 143 and time.monotonic() - began < 20, self.words

  def until(self, true, seconds=180):
    """Waits until `true()`, which must come before it ends."""
    deadline = time.monotonic() + seconds
    while not true():
      assert self.popen.poll() is None and time.monotonic() < deadline, self.words
      time.sleep(0.02)

  @property
  def words(self):
    return self.out[-3000:] + self.err[-5000:]

  def resumed(self):
    """Update of the checkpoint that it went on from; 0: from the beginning."""
    found = re.findall(r"resumed at update (\d+) of", self.out)
    return int(found[0]) if found else 0


def _group_alive(group):
  for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
    with contextlib.suppress(OSError, ValueError, IndexError):
      fields = path.read_text().rpartition(")")[2].split()
      if int(fields[2]) == group and fields[0] != "Z":
        return True
  return False


def finish(folder, cache, workdir, **settings):
  """Runs to the end."""
  process = Process(folder, cache, workdir, **settings)
  code = process.wait()
  assert code == 0, process.words
  return process


def started_copy(whole, workdir, stage):
  """A work folder in which everything before a stage is done."""
  shutil.rmtree(workdir, ignore_errors=True)
  workdir.mkdir(parents=True)
  for name in STAGES[: STAGES.index(stage)]:
    if (whole / name).exists():
      shutil.copytree(whole / name, workdir / name)


# --- What must be equal ---------------------------------------------------------------------------


def _plain(value):
  if isinstance(value, dict):
    return {k: _plain(v) for k, v in value.items() if k not in _ASIDE and not _MEASURED.search(k)}
  return [_plain(item) for item in value] if isinstance(value, list) else value


def _digest(array):
  array = np.asarray(array)
  return f"{array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"


def _tree(tree):
  return {jax.tree_util.keystr(path): _digest(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}


def _state(folder):
  """A checkpoint as it is: parameters, their averages, the optimizer's state."""
  import orbax.checkpoint as ocp

  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    tree = checkpointer.metadata(folder / "default").item_metadata
    wanted = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    return checkpointer.restore(folder / "default", args=ocp.args.PyTreeRestore(restore_args=wanted))


def steps(stage_folder):
  """Checkpoints that are whole."""
  found = []
  for path in (stage_folder / "ckpt").glob("*"):
    if path.name.isdigit():
      with contextlib.suppress(checksums.CheckpointError):
        checksums.verify(path, int(path.name))
        found.append(int(path.name))
  return sorted(found)


def result(workdir, stage):
  """All that a finished stage holds, but times and places: name -> something that compares."""
  folder, out = workdir / stage, {}
  assert (folder / "DONE").exists()
  for path in sorted(folder.rglob("*")):
    name = str(path.relative_to(folder))
    if path.name == "params" and path.is_dir():
      out[name] = _tree(load_params(path))
      continue
    if path.is_dir() or "tensorboard" in name or "params/" in name or name.startswith("ckpt/"):
      continue
    if name in ("artifact.json", "config.json") or path.suffix in (".md", ".html", ".mp4"):
      out[name] = None  # x264 does not always make the same bytes of the same pictures
    elif name == "metrics.jsonl":
      lines = [json.loads(line) for line in path.read_text().splitlines()]
      out[name] = [_plain(line) for line in lines]
    elif path.suffix == ".json":
      out[name] = _plain(json.loads(path.read_text()))
    elif path.suffix == ".npz" and "dataset" not in name:
      with np.load(path) as file:
        out[name] = {key: _digest(file[key]) for key in file.files if not _MEASURED.search(key)}
    else:
      out[name] = hashlib.sha256(path.read_bytes()).hexdigest()
  if stage in TRAINING:
    last = steps(folder)[-1]
    out["state"] = {"step": last} | _tree(_state(folder / "ckpt" / str(last)))
  return out


def differences(one, two, where=""):
  """Where two results differ, and how."""
  if isinstance(one, dict) and isinstance(two, dict):
    return [
      line
      for key in sorted(one.keys() | two.keys())
      for line in differences(one.get(key, "absent"), two.get(key, "absent"), f"{where}/{key}")
    ]
  if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
    pairs = enumerate(zip(one, two, strict=True))
    return [line for i, (a, b) in pairs for line in differences(a, b, f"{where}[{i}]")]
  return [] if one == two else [f"{where}: {str(one)[:200]} | {str(two)[:200]}"]


def assert_equal(one, two, stages):
  """Both work folders must be called the same: judge_world_model names models after it."""
  for stage in stages:
    different = differences(result(one, stage), result(two, stage), stage)
    assert not different, "\n".join(different[:10])


# --- Faults ---------------------------------------------------------------------------------------


@dataclasses.dataclass
class Table:
  """Fault -> how often it was tried, how often the run survived it, most updates lost."""

  rows: dict = dataclasses.field(default_factory=dict)

  def tried(self, fault, times=1):
    self.rows.setdefault(fault, [0, 0, None])[0] += times

  def survived(self, fault, lost=None, times=1):
    row = self.rows[fault]
    row[1] += times
    if lost is not None:
      row[2] = max(lost, row[2] or 0)

  def markdown(self):
    lines = ["| fault | times tried | survived | most updates lost |", "|---|---:|---:|---:|"]
    for fault, (tried, survived, lost) in self.rows.items():
      lines.append(f"| {fault} | {tried} | {survived} | {'-' if lost is None else lost} |")
    return "\n".join(lines) + "\n"

  def publish(self):
    print("\n" + self.markdown())
    if not os.environ.get("WAM_FAULT_TABLE"):
      return
    path = pathlib.Path(os.environ["WAM_FAULT_TABLE"])
    path.parent.mkdir(parents=True, exist_ok=True)
    old = Table()
    for line in path.read_text().splitlines()[2:] if path.exists() else ():
      fault, *numbers = (cell.strip() for cell in line.strip("|").split("|"))
      old.rows[fault] = [None if number == "-" else int(number) for number in numbers]
    old.rows |= self.rows
    path.write_text(old.markdown())


def last_update(workdir, stage):
  """Of the newest metric line of training; 0 without one."""
  name = f"{stage}/time/update"
  return max((line["step"] for line in read_metrics(workdir / stage) if name in line), default=0)


KILL, TERM, INT = "kill -9", "SIGTERM", "SIGINT"
CODES = {KILL: -signal.SIGKILL, TERM: 143, INT: 130}


def send(process, fault, rng):
  """Sends it; returns the exit code once all is over."""
  if fault == KILL:
    process.popen.kill()
    return process.wait(15)
  number = signal.SIGTERM if fault == TERM else signal.SIGINT
  began = time.monotonic()
  if rng.random() < 0.5:  # as a terminal and SLURM do: to its workers too
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.popen.pid, number)
  else:
    process.popen.send_signal(number)
  code = process.wait(60)
  assert time.monotonic() - began < 30, process.words
  return code


def shake(whole, workdir, cache, stage, faults, seconds, table, rng, settings=LONG):
  """Strikes a stage again and again at random moments, lets it finish, compares. Begins anew when it is done.

  Args:
    whole: an uninterrupted run.
    workdir: folder of this one.
    cache: of compiled programs.
    stage: the one to strike.
    faults: of CODES, one after the other.
    seconds: that the stage takes; faults come at a uniformly random moment of them.
    table: takes the counts.
    rng: random.Random.
    settings: of both runs.
  """
  logs, todo = workdir.parent / "logs" / stage, list(faults)
  pending = []  # (fault, update it had come to): what was lost is known when the run has gone on
  started_copy(whole, workdir, stage)
  while True:
    had = bool(steps(workdir / stage))
    process = Process(logs, cache, workdir, stage=stage, **settings)
    fault = todo[0] if todo else None
    if fault and process.said(rf"\[{stage}\] (starts|goes on)"):
      with contextlib.suppress(subprocess.TimeoutExpired):
        process.popen.wait(rng.uniform(0, seconds))
    struck = fault and process.popen.poll() is None
    if struck:
      table.tried(f"{fault} in {stage}")
      code = send(process, fault, rng)
    else:
      code = process.wait()
    if pending and (process.resumed() or code == 0 or not had):
      for before, update in pending:
        lost = None if update is None else max(update - process.resumed(), 0)
        assert before == KILL or not lost, (before, update, process.words)
        table.survived(f"{before} in {stage}", lost)
      pending = []
    assert "Traceback" not in process.err, process.words
    if struck and code != 0:  # 0: it was done before the signal came
      assert code == CODES[fault], process.words
      todo.pop(0)
      # Before it has gone on from its checkpoint, the lines are those of the process before.
      known = stage in TRAINING and (process.resumed() or not had)
      reached = last_update(workdir, stage) if known else None
      pending.append((fault, reached))
      if fault != KILL and reached:
        assert steps(workdir / stage)[-1] == reached, process.words
      continue
    if struck:
      table.rows[f"{fault} in {stage}"][0] -= 1
    assert code == 0, process.words
    assert_equal(whole, workdir, [stage])
    if not todo:
      return
    started_copy(whole, workdir, stage)


def damage(folder, rng):
  """Flips a byte of one of the files of a checkpoint; returns the file's name."""
  file = rng.choice([p for p in sorted(folder.rglob("*")) if p.is_file() and p.stat().st_size])
  data = bytearray(file.read_bytes())
  data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
  file.write_bytes(data)
  return file.name


@contextlib.contextmanager
def small_disk(folder, size):
  """A disk of `size` bytes at `folder`; skips the test where none can be made."""
  import pytest

  folder.mkdir(parents=True)
  made = subprocess.run(
    ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)],
    capture_output=True,
    text=True,
    check=False,
  )
  if made.returncode:
    pytest.skip(f"no small disk can be made here: {made.stderr.strip()}")
  try:
    yield folder
  finally:
    subprocess.run(["umount", str(folder)], check=True)


def fill(disk, leave):
  """Writes a file that leaves so many bytes free."""
  free = shutil.disk_usage(disk).free
  (disk / "ballast").write_bytes(bytes(max(free - leave, 0)))


def seconds_of(workdir):
  return {
    stage: json.loads((workdir / stage / "artifact.json").read_text())["seconds"]
    for stage in STAGES
    if (workdir / stage / "artifact.json").exists()
  }


def rng_of(name):
  return random.Random(name)  # a text seeds it the same in every process
