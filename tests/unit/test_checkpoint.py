from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from wam_jax.host import regular_files
from wam_jax.storage import checksums
from wam_jax.storage.checkpoint import Checkpointer, CheckpointError
from wam_jax.storage.saved_params import load_params, save_params
from wam_jax.types import TrainState

ROOT = pathlib.Path(__file__).parents[2]


def make_state(seed, width=3):
  params = {"layer": {"kernel": jax.random.normal(jax.random.key(seed), (2, width)), "bias": jnp.arange(3.0)}}
  return TrainState(step=jnp.int32(seed), params=params, opt_state=optax.adam(1e-3).init(params))


def test_params_round_trip(tmp_path):
  tree = {"a": {"w": jax.random.normal(jax.random.key(0), (3, 2)), "n": np.arange(4)}, "b": jnp.bfloat16(1.5)}
  save_params(tmp_path / "params", tree)
  save_params(tmp_path / "params", tree)  # replaces
  loaded = load_params(tmp_path / "params")
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(loaded))
  jax.tree.map(np.testing.assert_array_equal, tree, loaded)
  assert loaded["b"].dtype == jnp.bfloat16


def test_state_round_trip_keeps_two(tmp_path):
  with Checkpointer(tmp_path / "ckpt") as checkpointer:
    assert checkpointer.latest_step() is None
    for step in (1, 2, 3):
      checkpointer.save(step, make_state(step))
  with Checkpointer(tmp_path / "ckpt") as checkpointer:
    assert checkpointer.latest_step() == 3
    restored = checkpointer.restore(make_state(0))
    jax.tree.map(np.testing.assert_array_equal, restored, make_state(3))
    assert type(restored.opt_state[0]) is type(make_state(0).opt_state[0])
    jax.tree.map(np.testing.assert_array_equal, checkpointer.restore(make_state(0), step=2), make_state(2))
    with pytest.raises(CheckpointError):
      checkpointer.restore(make_state(0), step=1)


def test_missing_and_wrong_structure(tmp_path):
  with pytest.raises(CheckpointError, match="no parameters"):
    load_params(tmp_path / "nothing")
  with Checkpointer(tmp_path / "ckpt") as checkpointer:
    with pytest.raises(CheckpointError, match="no checkpoint"):
      checkpointer.restore(make_state(0))
    checkpointer.save(1, make_state(1))
    with pytest.raises(CheckpointError, match="does not fit"):
      checkpointer.restore(make_state(0, width=4))
    with pytest.raises(CheckpointError, match="ema_params"):
      checkpointer.restore(make_state(0).replace(ema_params={"w": jnp.ones(2)}))


def test_truncated_file_raises(tmp_path):
  save_params(tmp_path / "params", {"w": jax.random.normal(jax.random.key(0), (64, 64))})
  largest = max((f for f in (tmp_path / "params").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
  largest.write_bytes(largest.read_bytes()[:100])
  with pytest.raises(CheckpointError, match="cannot be read"):
    load_params(tmp_path / "params")


def run_python(code, *arguments, devices=1):
  """Runs a program that must print OK last; many virtual devices want NPROC, or they may deadlock."""
  env = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "NPROC": "32",
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    "XLA_FLAGS": os.environ["XLA_FLAGS"] + f" --xla_force_host_platform_device_count={devices}",
  }
  command = ["timeout", "-s", "KILL", "240", sys.executable, "-c", code, *map(str, arguments)]
  return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def check_ok(process):
  output = process.communicate()[0]
  assert process.returncode == 0 and output.rstrip().endswith("OK"), output[-4000:]


def test_save_returns_before_it_is_written_and_lets_go_of_the_buffers(tmp_path):
  numbers = np.random.default_rng(0).normal(size=10_000_000).astype(np.float32)
  state = {"donated": jnp.asarray(numbers), "host": numbers.copy()}
  overwrite = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
  overwrite(jnp.asarray(numbers)).block_until_ready()  # compiled before the race
  with Checkpointer(tmp_path / "ckpt") as checkpointer:
    checkpointer.save(1, state)
    state["host"][:] = -1
    for _ in range(3):
      state["donated"] = overwrite(state["donated"])
    state["donated"].block_until_ready()
    assert checkpointer._pending.thread.is_alive()  # else nothing was proven
    assert not (tmp_path / "ckpt" / "1" / "manifest.json").exists()
    checkpointer.wait()
    assert (tmp_path / "ckpt" / "1" / "manifest.json").exists()
    restored = checkpointer.restore(state)
  np.testing.assert_array_equal(restored["donated"], numbers)
  np.testing.assert_array_equal(restored["host"], numbers)


def test_latest_step_and_close_wait(tmp_path):
  with Checkpointer(tmp_path / "ckpt") as checkpointer:
    checkpointer.save(7, make_state(7))
    assert checkpointer.latest_step() == 7
    checkpointer.save(8, make_state(8))
  assert (tmp_path / "ckpt" / "8" / "manifest.json").exists()
  assert json.loads((tmp_path / "ckpt" / "format.json").read_text()) == {"format": 2}


def test_a_saved_step_is_not_written_again(tmp_path):
  with Checkpointer(tmp_path / "ckpt") as checkpointer:
    checkpointer.save(1, make_state(1))
    checkpointer.save(np.int64(1), make_state(2))
    jax.tree.map(np.testing.assert_array_equal, checkpointer.restore(make_state(0)), make_state(1))


@pytest.mark.parametrize(("mode", "best"), [("max", 2), ("min", 3), (None, None)])
def test_keeps_the_newest_and_the_best(tmp_path, mode, best):
  scores = {1: 0.5, 2: 0.75, 3: -1.0, 4: float("nan"), 5: 0.5, 6: None}
  for step, score in scores.items():  # opened anew each time: the scores are on disk
    with Checkpointer(tmp_path / "ckpt", keep=2, best=mode) as checkpointer:
      checkpointer.save(step, make_state(step), score=score)
  with Checkpointer(tmp_path / "ckpt", keep=2, best=mode) as checkpointer:
    assert checkpointer.best_step() == best
    kept = {int(entry.name) for entry in (tmp_path / "ckpt").iterdir() if entry.is_dir()}
    assert kept == {5, 6} | ({best} - {None})
    if best is not None:
      restored = checkpointer.restore(make_state(0), step=best)
      jax.tree.map(np.testing.assert_array_equal, restored, make_state(best))


def test_the_newest_of_equal_scores_is_the_best(tmp_path):
  with Checkpointer(tmp_path / "ckpt", keep=1, best="max") as checkpointer:
    for step in (1, 2, 3):
      checkpointer.save(step, make_state(step), score=1.0)
    assert checkpointer.best_step() == 3


def test_nothing_is_pruned_before_the_newer_one_has_its_manifest(tmp_path, monkeypatch):
  seen = []
  write = checksums.write_manifest

  def watched(folder, *arguments):
    seen.append(sorted(entry.name for entry in folder.parent.iterdir() if entry.name.isdigit()))
    return write(folder, *arguments)

  with Checkpointer(tmp_path / "ckpt", keep=1) as checkpointer:
    monkeypatch.setattr(checksums, "write_manifest", watched)
    for step in (1, 2, 3):
      checkpointer.save(step, make_state(step))
  assert seen == [[], ["1"], ["2"]]


def test_a_save_that_orbax_refuses(tmp_path):
  with Checkpointer(tmp_path / "ckpt") as checkpointer:
    checkpointer.save(1, make_state(1))
    with pytest.raises(CheckpointError, match=r"step 2 could not be written: .*Valid checkpoints: 1;"):
      checkpointer.save(2, {"w": object()})
      checkpointer.wait()
    checkpointer.save(np.int64(3), make_state(3), score=np.float32(0.5))
    jax.tree.map(np.testing.assert_array_equal, checkpointer.restore(make_state(0)), make_state(3))
  assert {entry.name for entry in (tmp_path / "ckpt").iterdir()} == {"1", "3", "format.json"}


def test_arguments_are_checked(tmp_path):
  with pytest.raises(ValueError, match="keep is 0"):
    Checkpointer(tmp_path, keep=0)
  with pytest.raises(ValueError, match="best is 'most'"):
    Checkpointer(tmp_path, best="most")


def save_as_format_1(path, steps):
  """What wam_jax 0.1.0 wrote."""
  options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
  with ocp.CheckpointManager(path, options=options) as manager:
    for step in steps:
      manager.save(step, args=ocp.args.StandardSave(make_state(step)))
      manager.wait_until_finished()


def test_format_1_is_migrated_once(tmp_path):
  path, lines = tmp_path / "ckpt", []
  save_as_format_1(path, (3, 4))
  with Checkpointer(path, on_damage=lines.append) as checkpointer:
    assert checkpointer.latest_step() == 4
    jax.tree.map(np.testing.assert_array_equal, checkpointer.restore(make_state(0)), make_state(4))
  assert len(lines) == 1 and "format 1" in lines[0] and "3, 4" in lines[0]
  assert all(checksums.verify(path / str(step), step).step == step for step in (3, 4))
  with Checkpointer(path, on_damage=lines.append) as checkpointer:
    jax.tree.map(np.testing.assert_array_equal, checkpointer.restore(make_state(0), step=3), make_state(3))
  assert len(lines) == 1


def test_format_1_that_orbax_cannot_read_is_not_called_good(tmp_path):
  path, lines = tmp_path / "ckpt", []
  save_as_format_1(path, (3, 4))
  truncate_arrays(path / "4")
  with Checkpointer(path, on_damage=lines.append) as checkpointer:
    jax.tree.map(np.testing.assert_array_equal, checkpointer.restore(make_state(0)), make_state(3))
  assert "step 4 is damaged" in lines[0] and (path / "4.damaged").is_dir()


def test_format_1_of_which_nothing_can_be_read_is_left_alone(tmp_path):
  path = tmp_path / "ckpt"
  save_as_format_1(path, (3, 4))
  truncate_arrays(path / "3")
  truncate_arrays(path / "4")
  before = sorted(path.rglob("*"))
  with pytest.raises(CheckpointError, match=r"(?s)every checkpoint is damaged.*step 4.*step 3.*delete"):
    Checkpointer(path)
  assert sorted(path.rglob("*")) == before


def truncate_arrays(folder):
  for file in folder.rglob("d/*"):
    file.write_bytes(file.read_bytes()[:20])


def test_params_of_format_1_are_read(tmp_path):
  tree = {"w": np.random.default_rng(0).normal(size=(3, 2))}
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "params", tree)
  np.testing.assert_array_equal(load_params(tmp_path / "params")["w"], tree["w"])


@pytest.mark.parametrize("newer", ["folder", "step", "params"])
def test_newer_format_is_no_damage(tmp_path, newer):
  path = tmp_path / "ckpt"
  with Checkpointer(path) as checkpointer:
    checkpointer.save(1, make_state(1))
    checkpointer.save(2, make_state(2))
  save_params(tmp_path / "params", {"w": jnp.ones(2)})
  file = {"folder": path / "format.json", "step": path / "2" / "manifest.json"}.get(
    newer, tmp_path / "params" / "manifest.json"
  )
  file.write_text(json.dumps({"format": 3, "what": "is in it is not known here"}))
  with pytest.raises(CheckpointError, match="newer wam_jax: format 3, this version reads up to 2; update"):
    if newer == "params":
      load_params(tmp_path / "params")
    else:
      with Checkpointer(path) as checkpointer:
        checkpointer.restore(make_state(0))
  assert sorted(entry.name for entry in path.iterdir()) == ["1", "2", "format.json"]


RESHARD = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from wam_jax.storage.checkpoint import Checkpointer

path, devices = sys.argv[1], int(sys.argv[2])
assert jax.device_count() == devices
numbers = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
mesh = Mesh(np.array(jax.devices()), ("data",))
sharded, replicated = (NamedSharding(mesh, spec) for spec in (PartitionSpec("data"), PartitionSpec()))
zeros = np.zeros_like(numbers)
example = {"sharded": jax.device_put(zeros, sharded), "replicated": jax.device_put(zeros, replicated)}
with Checkpointer(path) as checkpointer:
  if checkpointer.latest_step() is None:
    checkpointer.save(1, {"sharded": jnp.asarray(numbers), "replicated": jnp.asarray(-numbers)})
  else:
    state = checkpointer.restore(example)
    assert state["sharded"].sharding.is_equivalent_to(sharded, 2), state["sharded"].sharding
    assert state["replicated"].sharding.is_equivalent_to(replicated, 2), state["replicated"].sharding
    np.testing.assert_array_equal(state["sharded"], numbers)
    np.testing.assert_array_equal(state["replicated"], -numbers)
    checkpointer.save(checkpointer.latest_step() + 1, state)
print("OK")
"""


def test_restores_to_other_numbers_of_devices(tmp_path):
  for devices in (1, 4, 2, 1):
    check_ok(run_python(RESHARD, tmp_path / "ckpt", devices, devices=devices))


PROCESSES = """
import errno, pathlib, sys
import jax, numpy as np
index, port, path = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
from wam_jax.host import processes
processes.start(f"127.0.0.1:{port}", 2, index)
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from wam_jax.host import regular_files
from wam_jax.storage import checksums
from wam_jax.storage.checkpoint import Checkpointer, CheckpointError
from wam_jax.storage.saved_params import load_params, save_params

assert jax.process_count() == 2 and jax.device_count() == 4
mesh = Mesh(np.array(jax.devices()), ("data",))
numbers = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)


def make_state(step):
  def put(values, *spec):
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.make_array_from_callback(values.shape, sharding, lambda part: values[part])

  return {"sharded": put(numbers * step, "data"), "replicated": put(numbers + step)}


def check(state, step):
  for name, wanted in (("sharded", numbers * step), ("replicated", numbers + step)):
    for shard in state[name].addressable_shards:
      np.testing.assert_array_equal(shard.data, wanted[shard.index])


def meet(name):
  multihost_utils.sync_global_devices(name)


lines = []
with Checkpointer(path / "old", on_damage=lines.append) as checkpointer:  # of format 1
  assert checkpointer.latest_step() == 4 and "format 1" in lines.pop()
  assert checksums.verify(path / "old" / "4", 4)
with Checkpointer(path / "ckpt", keep=2, best="max", on_damage=lines.append) as checkpointer:
  for step, score in ((1, 3.0), (2, 1.0), (3, None), (4, None)):
    checkpointer.save(step, make_state(step), score=score)
  checkpointer.wait()
  assert (path / "ckpt" / "4" / "manifest.json").exists()
  assert checkpointer.latest_step() == 4 and checkpointer.best_step() == 1
  assert sorted(p.name for p in (path / "ckpt").iterdir()) == ["1", "3", "4", "format.json"]
  check(checkpointer.restore(make_state(0)), 4)
  check(checkpointer.restore(make_state(0), step=1), 1)

  # One process alone writes and reads parameters.
  if index == 0:
    save_params(path / "params", {"w": numbers})
    save_params(path / "params", {"w": numbers})
    np.testing.assert_array_equal(load_params(path / "params")["w"], numbers)
  meet("params")
  if index == 1:
    np.testing.assert_array_equal(load_params(path / "params")["w"], numbers)
    save_params(path / "params", {"w": 0 * numbers})  # writes nothing
    np.testing.assert_array_equal(load_params(path / "params")["w"], numbers)

  # What fails in one is raised in all, and the folder stays good.
  write = checksums.write_manifest
  if index == 0:
    def full(*arguments):
      raise OSError(errno.ENOSPC, "No space left on device")
    checksums.write_manifest = full
  checkpointer.save(5, make_state(5))
  try:
    checkpointer.wait()
    raise SystemExit("no error")
  except CheckpointError as error:
    assert "disk is full" in str(error) and "Valid checkpoints: 1, 3, 4" in str(error), error
  checksums.write_manifest = write
  checkpointer.save(5, make_state(5))
meet("closed")

if index == 0:
  largest = max((path / "ckpt" / "5").rglob("d/*"), key=lambda file: file.stat().st_size)
  content = bytearray(largest.read_bytes())
  content[-64:] = bytes(64)
  largest.write_bytes(content)
meet("damaged")
with Checkpointer(path / "ckpt", best="max", on_damage=lines.append) as checkpointer:
  check(checkpointer.restore(make_state(0)), 4)
  assert len(lines) == 1 and "step 5 is damaged" in lines[0] and "step 4 is used" in lines[0], lines
  assert checkpointer.latest_step() == 4
  meet("before")
  if index == 0:
    for file in (path / "ckpt").glob("*/manifest.json"):
      file.write_bytes(b"")
  meet("after")
  try:
    checkpointer.restore(make_state(0))
    raise SystemExit("no error")
  except CheckpointError as error:
    assert "every checkpoint is damaged" in str(error), error
  if index == 0:
    for step in (1, 4):
      checksums.write_manifest(path / "ckpt" / str(step), step)
print("OK")
"""


def test_many_processes(tmp_path):
  with socket.socket() as server:
    server.bind(("127.0.0.1", 0))
    port = server.getsockname()[1]
  save_as_format_1(tmp_path / "old", (3, 4))
  processes = [run_python(PROCESSES, index, port, tmp_path, devices=2) for index in range(2)]
  for process in processes:
    check_ok(process)
  numbers = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
  with Checkpointer(tmp_path / "ckpt") as checkpointer:  # one process and one device read it too
    example = {"sharded": jnp.zeros((8, 6)), "replicated": jnp.zeros((8, 6))}
    restored = checkpointer.restore(example)
    assert checkpointer.latest_step() == 4
  np.testing.assert_array_equal(restored["sharded"], numbers * 4)
  np.testing.assert_array_equal(restored["replicated"], numbers + 4)
  np.testing.assert_array_equal(load_params(tmp_path / "params")["w"], numbers)


def test_parameters_of_many_more_bytes_than_their_files_are_not_read(tmp_path, monkeypatch):
  """Zeros are compressed to almost nothing."""
  save_params(tmp_path / "params", {"layer": {"kernel": np.zeros((2048, 1024), np.float32)}})
  assert load_params(tmp_path / "params")["layer"]["kernel"].shape == (2048, 1024)
  monkeypatch.setattr(regular_files, "MAX_INFLATED", 2**20)
  with pytest.raises(CheckpointError, match=r"params: .* bytes that unpack to 8,388,608. Nothing was read"):
    load_params(tmp_path / "params")
