"""From a config to an exit code: connects the processes of a run, answers signals, reports what went wrong.

Exit codes: 0 done; 1 an error whose text says what to do; 2 the config has problems; 129, 130 and 143 stopped
by SIGHUP, SIGINT and SIGTERM, and saved; 75 another process of the run is gone or did not come. After the
last four the same command goes on.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable

from ml_collections import ConfigDict

from wam_jax.config import ConfigError
from wam_jax.host import processes, stopping, surroundings
from wam_jax.host.machine import disk_full
from wam_jax.host.words import printable
from wam_jax.running import runner, study


def run(
  make_config: Callable[[], ConfigDict], coordinator: str = "", num_processes: int = 0, process_id: int = -1
) -> int:
  """Carries a config out.

  Args:
    make_config: gives the finished config, or raises ConfigError.
    coordinator: as for `processes.start`.
    num_processes: likewise.
    process_id: likewise.

  Returns:
    Exit code. A process that was stopped exits here, and in a run of several every one that failed.
  """
  code = _run(make_config, coordinator, num_processes, process_id)
  with contextlib.suppress(stopping.Stopped), stopping.deferred():  # a signal now changes nothing any more
    code = processes.finish(code)
  if code > 128:
    # JAX, stopped while it traced or compiled, may crash when Python takes it down.
    for stream in (sys.stdout, sys.stderr):
      with contextlib.suppress(OSError):
        stream.flush()
    os._exit(code)
  return code


def _run(make_config: Callable[[], ConfigDict], coordinator: str, num_processes: int, process_id: int) -> int:
  config: ConfigDict | None = None
  try:
    stopping.install()
    config = make_config()
    if config.stage != "plan" and processes.wanted(coordinator):
      surroundings.prepare_jax()
      processes.start(coordinator, num_processes, process_id)
      stopping.install()  # JAX has taken SIGTERM
    _carry_out(config)
  except ConfigError as error:
    if error.config is not None and error.config.stage == "plan":
      with contextlib.suppress(Exception):  # of what is missing, which is said next
        _carry_out(error.config)  # what it would cost
    return report(error, 2)
  except stopping.Stopped as stop:
    return report(stop, stop.code)
  except KeyboardInterrupt:
    return report("interrupted; the same command goes on from here", 130)
  except Exception as error:
    processes.failed(error)
    if type(error).__module__.startswith("wam_jax."):  # they say what to do; a traceback would hide it
      return report(error, getattr(error, "code", 1))
    full = disk_full(error)
    if full is not None:
      where = (
        getattr(error, "filename2", None)
        or getattr(error, "filename", None)
        or (config.workdir if config is not None else "")
      )
      return report(
        f"{where}: could not be written: the disk is full ({full}). Free space and run the same command "
        "again: it goes on from what is saved.",
        1,
      )
    if processes.count() == 1:
      raise
    traceback.print_exc()
    return 1
  return 0


def _carry_out(config: ConfigDict) -> None:
  study.run(config) if config.study.seeds else runner.run(config)


def report(error: object, code: int) -> int:
  """Prints what went wrong; returns the code."""
  with contextlib.suppress(OSError):  # the terminal may have been closed
    print(f"\n{printable(str(error))}", file=sys.stderr)
  return code
