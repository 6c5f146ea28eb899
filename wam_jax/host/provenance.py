"""Where a result came from: code, packages, machine, command."""

from __future__ import annotations

import datetime
import pathlib
import platform
import re
import shlex
import subprocess
import sys
from importlib import metadata
from typing import Any

import wam_jax
from wam_jax.host import machine

PACKAGES = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "numpy",
  "mujoco",
  "pillow",
  "ml_collections",
)


def _git_commit() -> str | None:
  """Commit of the checkout the package runs from, '+' appended if it has changes; None outside of git."""
  root = pathlib.Path(wam_jax.__file__).resolve().parent.parent
  if not (root / ".git").exists():
    return None

  def git(*arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

  try:
    return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain") else "")
  except (OSError, subprocess.SubprocessError):
    return None


def _cpu_name() -> str:
  try:
    for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
      if line.startswith("model name"):
        return line.split(":", 1)[1].strip()
  except OSError:
    pass
  return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return None


def without_folders(text: str) -> str:
  """A command whose absolute paths have lost all but their last part: the others may name a user."""
  return re.sub(r"(^|[=,\s'])/(?:[^,/\s]*/)*([^,/\s]*)", r"\1…/\2", text)


def provenance() -> dict[str, Any]:
  """Facts to repeat a result by; plain values, fit for JSON. Holds no user or machine name."""
  import jax

  program = pathlib.Path(sys.argv[0]).name if sys.argv else ""
  start = ["python", "-m", "wam_jax.main"] if program in ("main.py", "__main__.py") else [program]
  return {
    "wam_jax": wam_jax.__version__,
    "commit": _git_commit(),
    "python": platform.python_version(),
    "packages": {name: version for name in PACKAGES if (version := _version(name))},
    "platform": platform.platform(),
    "cpu": _cpu_name(),
    "cores": machine.available_cores(),
    "devices": [device.device_kind for device in jax.devices()],
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "command": without_folders(shlex.join([*start, *sys.argv[1:]])),
  }
