"""Locks: held by one, and what is reported where there can be none."""

from __future__ import annotations

import errno
import fcntl
import os

import pytest

from wam_jax.data import frames_cache
from wam_jax.data.files import DatasetError
from wam_jax.host import locks
from wam_jax.running import runner
from wam_jax.running.plan import StageError


def fail_with(monkeypatch, number):
  def flock(*_):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(fcntl, "flock", flock)


def test_held_by_one(tmp_path):
  lock = lambda wait=False: locks.locked(tmp_path / "lock", wait)
  with lock(), pytest.raises(locks.TakenError), lock():
    pass
  with lock(wait=True):
    pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO])
def test_without_locks_nobody_is_said_to_be_there(tmp_path, monkeypatch, number):
  fail_with(monkeypatch, number)
  with (
    pytest.raises(StageError, match="cannot be locked.*--config.workdir") as error,
    runner.lock(tmp_path / "run"),
  ):
    pass
  assert not isinstance(error.value, runner.InUseError) and os.strerror(number) in str(error.value)
  lines = []
  with frames_cache._locked(tmp_path / "cache", lines.append):  # goes on, and says so
    pass
  assert len(lines) == 1 and "cannot be locked" in lines[0] and str(tmp_path) in lines[0]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink(path.name, path), os.mkdir])
def test_what_is_no_file_is_no_lock(tmp_path, make):
  make(tmp_path / ".lock")
  with pytest.raises(StageError, match=str(tmp_path)), runner.lock(tmp_path):
    pass
  make(tmp_path / ".cache.lock")
  with pytest.raises(DatasetError), frames_cache._locked(tmp_path / "cache", print):
    pass
