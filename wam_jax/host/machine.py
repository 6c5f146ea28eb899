"""What this machine has: accelerator, cores, memory, a place for compiled programs. Standard library only.

So that it can be asked without JAX, and when packages are missing or broken.
"""

from __future__ import annotations

import argparse
import errno
import importlib.util
import os
import pathlib
import re
from collections.abc import Mapping
from typing import NamedTuple


class Accelerator(NamedTuple):
  """What `find_accelerator` found."""

  device: str  # NVIDIA GPU, TPU; empty: none that can be used
  why_not: str  # if it is empty
  fix: str  # a command, where there is a device that JAX cannot drive


def find_accelerator(
  environ: Mapping[str, str] = os.environ, root: str | os.PathLike[str] = "/"
) -> Accelerator:
  """The accelerator by the device nodes that exist. One that this JAX cannot drive does not count.

  Args:
    environ: environment variables.
    root: where /dev is; for tests.
  """
  platforms = environ.get("JAX_PLATFORMS", "")
  if platforms and not {"cuda", "gpu", "tpu"} & set(platforms.split(",")):
    return Accelerator("", f"JAX_PLATFORMS={platforms}", "")
  dev = pathlib.Path(root) / "dev"
  gpu = any(dev.glob("nvidia[0-9]*")) and environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")
  tpu = any(dev.glob("accel[0-9]*")) or any(name in environ for name in ("TPU_NAME", "TPU_WORKER_ID"))
  # Newer TPUs; other devices that are passed through have such a node too.
  tpu = tpu or (any(dev.glob("vfio/[0-9]*")) and importlib.util.find_spec("libtpu") is not None)
  for present, device, extra, plugins in (
    (gpu, "NVIDIA GPU", "cuda", ("jax_cuda12_plugin", "jax_cuda13_plugin")),
    (tpu, "TPU", "tpu", ("libtpu",)),
  ):
    if present and any(importlib.util.find_spec(plugin) for plugin in plugins):
      return Accelerator(device, "", "")
    if present:
      why_not = f"{device} found, but JAX's support for it is not installed"
      return Accelerator("", why_not, f"pip install 'wam_jax[{extra}]'")
  return Accelerator("", "no accelerator found", "")


def on_this_machine(path: str) -> bool:
  """Whether a path can be one of this machine, not an address such as gs://bucket/run."""
  return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:/", path) is None


def local_path(text: str) -> pathlib.Path:
  """A path from the command line; `~` is the home folder, also where the shell leaves it as in --out=~/x.

  Raises:
    argparse.ArgumentTypeError: it is an address of a bucket.
  """
  if not on_this_machine(text):
    raise argparse.ArgumentTypeError(
      f"{text}: must be on this machine; mount the bucket first (docs/CLUSTER.md)"
    )
  return pathlib.Path(os.path.expanduser(text))


def available_cores() -> int:
  """CPU cores this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def host_bytes(root: str | os.PathLike[str] = "/") -> int:
  """Free memory of the machine, or what the control group leaves if that is less.

  Args:
    root: where /proc and /sys are; for tests.
  """
  root = pathlib.Path(root)
  try:
    lines = (root / "proc/meminfo").read_text().splitlines()
    fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if ":" in line}
    free = fields["MemAvailable"]
  except (OSError, KeyError, ValueError, IndexError):
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  try:
    groups = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
  except OSError:
    groups = []
  for _, kinds, name in groups:
    if kinds == "memory":  # version 1 of control groups
      top, files = root / "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes")
    elif kinds == "":
      top, files = root / "sys/fs/cgroup", ("memory.max", "memory.current")
    else:
      continue
    cgroup = top / name.lstrip("/")
    for group in [cgroup, *cgroup.parents][: len(cgroup.parts) - len(top.parts) + 1]:
      try:
        most, used = (int((group / file).read_text()) for file in files)  # 'max', no limit, is no number
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
      except (OSError, ValueError):
        continue
      cached = int(stat.get("total_inactive_file", stat.get("inactive_file", 0)))  # given back on demand
      free = min(free, max(most - used + cached, 0))
  return free


def compilation_cache() -> str:
  """Folder in which JAX keeps compiled programs between processes; empty: switched off."""
  base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
  return os.environ.get("JAX_COMPILATION_CACHE_DIR", os.path.join(base, "wam_jax", "jax"))


def writable(folder: str) -> bool:
  """Whether this process may write in a folder, or create it if it is missing."""
  path = pathlib.Path(folder).absolute()
  above = next(place for place in (path, *path.parents) if os.path.exists(place))
  return os.path.isdir(above) and os.access(above, os.W_OK | os.X_OK)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def disk_full(error: BaseException | None) -> str | None:
  """The system's words if a full disk, quota or file-size limit is behind an error. Orbax has only them."""
  visited: set[int] = set()
  while error is not None and id(error) not in visited:
    visited.add(id(error))
    for number in _FULL:
      if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
        return os.strerror(number)
    if isinstance(error, OSError) and re.fullmatch(r"\d+ requested and \d+ written", str(error)):
      return f"{error} bytes"  # NumPy's words, without a number
    error = error.__cause__ or error.__context__
  return None
