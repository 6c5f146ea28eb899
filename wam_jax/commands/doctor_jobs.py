"""What `wam_jax.doctor` tries in processes of their own, because it may hang or crash; and their answers."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from importlib import metadata
from typing import Any

FIRST = ("numpy", "jaxlib", "jax")  # imported before what imports them, so that the right one is blamed
# Packages whose module is not called like them.
_MODULES = {
  "absl-py": "absl",
  "hydra-core": "hydra",
  "mujoco": "wam_jax.envs.physics",  # as we import it, whatever MUJOCO_GL names
  "orbax-checkpoint": "orbax.checkpoint",
  "pillow": "PIL",
  "pyyaml": "yaml",
  "tfp-nightly": "tensorflow_probability.substrates.jax",  # the rest of it needs TensorFlow
}
_ANSWER = "wam_jax.doctor answers "  # marks the lines that are not what packages print when imported


def first_line(error: BaseException) -> str:
  """Kind of an error and the first line of its text."""
  return f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": ")


def run(job: Callable[..., Iterator[Any]], seconds: float, *args: str) -> tuple[list[Any], str]:
  """Does a job of this module in a new process.

  Args:
    job: a generator function of this module.
    seconds: that it may take.
    *args: its arguments.

  Returns:
    What it yielded, and what ended it early; '' if nothing did.
  """
  code = (
    f"import sys; from wam_jax.commands import doctor_jobs as d; d.answer(d.{job.__name__}, *sys.argv[1:])"
  )
  environ = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ  # a GPU may be in use
  command, nothing = [sys.executable, "-c", code, *args], subprocess.DEVNULL
  with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as out:
    process = subprocess.Popen(command, stdin=nothing, stdout=out, stderr=nothing, env=environ)
    try:
      status, failure = process.wait(seconds), ""
    except subprocess.TimeoutExpired:
      process.kill()  # and not waited for: what hangs inside a driver may not even end by this
      status, failure = 0, f"no end after {seconds:g} s"
    out.seek(0)
    answers = [json.loads(line.partition(_ANSWER)[2]) for line in out if _ANSWER in line]
  if answers and isinstance(answers[-1], dict):
    failure = answers.pop()["error"]
  elif status:
    failure = f"the process ended by {signal.Signals(-status).name if status < 0 else f'exit code {status}'}"
  return answers, failure


def answer(job: Callable[..., Iterator[Any]], *args: str) -> None:
  """The other end of `run`."""
  try:
    for value in job(*args):
      print(f"\n{_ANSWER}{json.dumps(value)}", flush=True)
  except Exception as error:
    print(f"\n{_ANSWER}{json.dumps({'error': first_line(error)})}", flush=True)


def import_all(*modules: str) -> Iterator[str | list[str]]:
  """Imports modules; yields the name of each before, and [name, error or ''] after it."""
  for module in modules:
    yield module
    error = ""
    try:
      importlib.import_module(module)
    except (Exception, SystemExit) as caught:
      error = first_line(caught)
    yield [module, error]


def import_errors(versions: dict[str, str], seconds: float) -> dict[str, tuple[str, str]]:
  """Imports packages in a new process.

  Args:
    versions: {name that pip knows: version that is installed}.
    seconds: for all together.

  Returns:
    {package: (error, how to repair it)} of those that failed. One that hangs or crashes keeps those behind it
    from being tried.
  """
  if not versions:
    return {}
  order = sorted(versions, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))
  modules = {_MODULES.get(name, name.replace("-", "_")): name for name in order}
  answers, failure = run(import_all, seconds, *modules)
  errors = {modules[reply[0]]: reply[1] for reply in answers if isinstance(reply, list) and reply[1]}
  if failure:
    errors[modules[answers[-1]] if answers else order[0]] = failure
  return {name: (error, _mend(name, versions[name], error, errors)) for name, error in errors.items()}


def _mend(name: str, version: str, error: str, broken: Collection[str]) -> str:
  """How to repair a package that cannot be imported."""
  texts = [text for text in metadata.requires(name) or [] if "extra ==" not in text]
  requires = {re.split(r"[^\w.-]", text)[0].lower() for text in texts}
  causes = [package for package in broken if package.lower() in requires]
  if causes:
    return f"mend {', '.join(causes)} first"
  missing = error.startswith("ModuleNotFoundError")  # of what it needs: pip fetches that
  return f"pip install {'' if missing else '--force-reinstall --no-deps '}{name}=={version}"


def devices() -> Iterator[str]:
  """Platform and kind of every device that JAX finds."""
  import jax

  for device in jax.devices():
    yield f"{device.platform} ({device.device_kind})"


def step_table() -> Iterator[str]:
  """One step of the embedded simulator."""
  import numpy as np

  from wam_jax.envs.play_table import simulator, skills

  table = simulator.PlayTable()
  table.reset(*skills.sample_start(None, np.random.default_rng(0)))
  table.step(simulator.RESTING_ACTION)
  yield "MuJoCo made a step"


def step_gymnasium() -> Iterator[str]:
  """One step of the same with pictures, by its name in gymnasium."""
  import gymnasium

  from wam_jax.host.gymnasium_id import ENV_ID

  env = gymnasium.make(ENV_ID, image_size=16)
  env.reset(seed=0)
  env.step(env.action_space.sample())
  yield f"gymnasium's {ENV_ID} made a step and its pictures"


def step_calvin() -> Iterator[str]:
  """The checkout of CALVIN's simulator, and a step of it."""
  import numpy as np

  from wam_jax.envs.calvin import simulator as calvin_simulator

  folder = calvin_simulator.find_root()
  yield f"calvin_env in {folder}"
  table = calvin_simulator.CalvinTable(str(folder))
  table.reset()
  table.step(np.array([0.0] * 6 + [1.0]))
  yield "which made a step"
