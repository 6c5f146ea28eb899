"""What is no file is refused at once wherever one is opened; texts of files do not reach a terminal raw."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax import config
from wam_jax.data import calvin, converted, files, frames_cache, statistics
from wam_jax.envs.play_table import simulator
from wam_jax.foreign import dppo, lumos
from wam_jax.host import locks, logger, numbers, regular_files, words
from wam_jax.storage import artifact, checksums, saved_params

pytestmark = pytest.mark.timeout(60)


def _socket(path):
  with socket.socket(socket.AF_UNIX) as made:
    made.bind(os.path.relpath(path))  # a longer one would not fit


KINDS = {
  "pipe": os.mkfifo,
  "device": lambda path: os.symlink("/dev/zero", path),
  "socket": _socket,
  "folder": os.mkdir,
  "link to itself": lambda path: os.symlink(path, path),
}


def _write(path):
  with regular_files.open_file(path, "w") as file:
    file.write("x")


def _lock(path):
  with locks.locked(path, wait=True):
    pass


def _artifact(path):
  (path.parent / "artifact.json").symlink_to(path)
  artifact.load_artifact(path.parent)


def _settings(path):
  (path.parent / "artifact.json").write_text(
    json.dumps({"format": 1, "stage": "ppo", "fingerprint": "a" * 64})
  )
  (path.parent / "config.json").symlink_to(path)
  artifact.load_artifact(path.parent)


def _under(name, read):
  def reads(path):
    (path.parent / name).parent.mkdir(exist_ok=True)
    (path.parent / name).symlink_to(path)
    read(path.parent)

  return reads


# What opens a file -> what it raises. The file that it is given is no file.
OPENED = {
  "frame": (files.read_npz, files.DatasetError),
  "ids": (files.read_npy, files.DatasetError),
  "annotations": (files.load_pickled, files.DatasetError),
  "episodes": (_under(files.IDS_FILE, calvin.read_episode_ids), files.DatasetError),
  "statistics": (_under("statistics.yaml", statistics.read_statistics), files.DatasetError),
  "own statistics": (
    _under("statistics.yaml", lambda folder: statistics.robot_statistics(folder, np.ones((2, 15)))),
    files.DatasetError,
  ),
  "manifest": (_under(converted.MANIFEST, converted.read_manifest), files.DatasetError),
  "cache": (lambda path: frames_cache.open_cache(path, path.parent, 8), files.DatasetError),
  "LUMOS": (lumos.read_state_dict, lumos.LumosError),
  "DPPO": (dppo.read_state_dict, dppo.DppoError),
  "artifact": (_artifact, artifact.ArtifactError),
  "settings": (_settings, artifact.ArtifactError),
  "JSON": (checksums.read_json, checksums.CheckpointError),
  "parameters": (
    _under("d/_METADATA", lambda folder: saved_params.load_params(folder / "d")),
    checksums.CheckpointError,
  ),
  "experiment": (lambda path: config.load_experiment(str(path)), config.ConfigError),
  "lock": (_lock, (locks.LockError, OSError)),
  "log": (_under("metrics.jsonl", logger.read_metrics), OSError),
  "written": (_write, OSError),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("opened", OPENED)
def test_what_is_no_file_is_refused_at_once(tmp_path, monkeypatch, opened, kind):
  monkeypatch.chdir(tmp_path)
  KINDS[kind](tmp_path / "x")
  read, error_type = OPENED[opened]
  with pytest.raises(error_type) as error:
    read(tmp_path / "x")
  assert str(tmp_path) in str(error.value)


def test_files_and_links_to_them_are_opened(tmp_path):
  _write(tmp_path / "x")
  (tmp_path / "y").symlink_to("x")
  assert regular_files.read_text(tmp_path / "y") == "x"
  os.truncate(tmp_path / "x", 2**40)  # takes no room on the disk
  with pytest.raises(files.DatasetError, match="1,099,511,627,776 bytes"):
    files.read_npz(tmp_path / "y")


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
@pytest.mark.parametrize("opens", [regular_files.open_file, regular_files.check_file])
def test_a_name_that_no_file_can_have_is_one_that_cannot_be_read(opens, name):
  with pytest.raises(OSError, match="no file can have such a name"):
    opens(name)


@pytest.mark.parametrize("program", ["print('x' * 10**6)", "[print(i) for i in range(9)]"])
def test_a_program_whose_output_nobody_reads_ends_quietly(program):
  code = f"import sys; from wam_jax.host.console import run_program; run_program(lambda: {program} and None)"
  reading, writing = os.pipe()
  os.close(reading)
  done = subprocess.run(
    [sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
  )
  os.close(writing)
  assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("value", [1.0, 1.5, "1", None, True, 1j, np.float32(1), np.array([1, 2]), 0, 11])
def test_numbers_that_are_not_whole_are_named(value):
  with pytest.raises(ValueError, match="seed: expected a whole number from 1 to 10"):
    numbers.whole("seed", value, 1, 10)


@pytest.mark.parametrize("value", [3, np.int64(3), np.array(3), jnp.int32(3)])
def test_whole_numbers_are_taken(value):
  assert type(numbers.whole("seed", value, 0)) is int


@pytest.mark.parametrize("action", [np.zeros(7) + 1j, ["0"] * 7, np.ones(7, bool), [[1], [1, 2]], [None] * 7])
def test_actions_that_are_no_numbers_are_named(action):
  with pytest.raises(ValueError, match="action"):
    simulator.check_action(action)


def test_texts_of_files_do_not_command_a_terminal(tmp_path):
  name = "\x1b]0;title\x07\x9b2J\u202e\r"
  assert words.printable(name + "\nä") == "\\x1b]0;title\\x07\\x9b2J\\u202e\\r\nä"
  np.savez(tmp_path / "x.npz", **{name.replace("\r", ""): 1})
  for error_type, read in (
    (files.DatasetError, lambda: files.read_npz(tmp_path / "x.npz", ("y",))),
    (lumos.LumosError, lambda: lumos.read_state_dict(tmp_path / "x.npz")),
  ):
    with pytest.raises(error_type) as error:
      read()
    assert str(error.value).isprintable() and "title" in str(error.value)
