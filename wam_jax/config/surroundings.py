"""What a config takes from the machine it runs on, and what is checked there: paths, data, packages.

No JAX here.
"""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from wam_jax import embodiment
from wam_jax.config.chain import GIVEN
from wam_jax.config.checks import Problem, did_you_mean, suggest
from wam_jax.embodiment import CALVIN, CAMERAS, Embodiment
from wam_jax.envs import registry
from wam_jax.envs.base import NotOffered, Simulator
from wam_jax.envs.calvin.simulator import CalvinMissingError, find_checkout
from wam_jax.envs.tasks import TASKS
from wam_jax.host import file_kinds, lerobot_info
from wam_jax.host.dataset_files import DatasetError, read_description
from wam_jax.host.machine import available_cores
from wam_jax.host.regular_files import check_file, read_text
from wam_jax.host.trackers import TRACKERS
from wam_jax.host.words import task_name


def _place_workdir(config: ConfigDict) -> list[Problem]:
  config.workdir = _expand(config.workdir) or f"runs/{config.experiment}_{config.preset}"
  workdir = pathlib.Path(config.workdir).absolute()
  why = _impossible(workdir)
  if why:
    fix = f"{why}: name another place"
    return [Problem("workdir", config.workdir, "a path that this system can have", fix)]
  parent = next(path for path in (workdir, *workdir.parents) if os.path.exists(path))
  if not os.path.isdir(parent):
    return [Problem("workdir", config.workdir, "a folder", f"{parent} is a file: name another place")]
  if not os.access(parent, os.W_OK | os.X_OK):
    return [Problem("workdir", config.workdir, "a writable place", f"you may not write in {parent}")]
  return []


def _expand(path: str) -> str:
  """`path` with ~ replaced. Text that no path can hold (null characters) is left for the checks."""
  try:
    return os.path.expanduser(path)
  except ValueError:
    return path


def _impossible(path: pathlib.Path) -> str:
  """Why the system cannot have this path, whatever is on the disk; '' if it can."""
  try:
    os.lstat(path)
  except ValueError:  # also what cannot be encoded
    return "it holds a null character or another that no name of a file can hold"
  except OSError as error:
    if error.errno in (errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP):
      return os.strerror(error.errno)
  long = any(len(os.fsencode(part)) > 255 for part in path.parts)  # also below folders that do not exist yet
  return os.strerror(errno.ENAMETOOLONG) if long else ""


def _exists(*parts: str | os.PathLike[str]) -> bool:
  """Whether there is such a file; False where pathlib raises (too long, may not be looked at)."""
  return os.path.exists(os.path.join(*parts))


def _check_inputs(config: ConfigDict) -> list[Problem]:
  problems = []
  for stage in GIVEN:
    text = config.inputs[stage]
    path = config.inputs[stage] = _expand(text)
    if text and not (_exists(path, "DONE") or _exists(path, stage, "DONE")):
      rule = f"a finished artifact of {stage}: a folder holding DONE, or the work folder above it"
      fix = "that run has not finished" if os.path.isdir(path) else "check the path: there is no such folder"
      problems.append(Problem(f"inputs.{stage}", text, rule, fix))
  return problems


def _check_lumos(config: ConfigDict) -> list[Problem]:
  """A world model of LUMOS: the file exists, and the networks are of its kind."""
  path = config.inputs.lumos_checkpoint = _expand(config.inputs.lumos_checkpoint)
  if not path:
    return []
  w = config.world_model
  w.learned_initial_state = True  # LUMOS's weights hold one
  problems = []
  what, fix = file_kinds.describe_file(path)
  if not os.path.isfile(path):
    fix = "give the path of a .ckpt of LUMOS or DiWA, or of a safetensors or npz of its state dict"
    problems.append(Problem("inputs.lumos_checkpoint", path, "a file", fix))
  elif what:
    problems.append(Problem("inputs.lumos_checkpoint", path, f"{_WEIGHTS}; this is {what}", fix))
  if w.vision != "conv":
    rule = "conv with inputs.lumos_checkpoint: LUMOS has convolutions"
    problems.append(Problem("world_model.vision", w.vision, rule, "--config.world_model.vision=conv"))
  if tuple(w.cameras) != CAMERAS:
    rule = f"{', '.join(CAMERAS)} with inputs.lumos_checkpoint"
    problems.append(Problem("world_model.cameras", w.cameras, rule, "leave world_model.cameras out"))
  return problems


_WEIGHTS = "a file of torch.save, safetensors or an npz"


def dppo_file(config: Any, task: str) -> str:
  """File of a task's policy by `inputs.dppo_checkpoint`, which must be set."""
  return config.inputs.dppo_checkpoint.replace("{task}", task)


def _check_dppo(config: ConfigDict) -> list[Problem]:
  """Policies of DPPO: a file for each task, and the policy is of their kind."""
  path = config.inputs.dppo_checkpoint = _expand(config.inputs.dppo_checkpoint)
  if not path:
    return []
  problems = []
  files = [dppo_file(config, task) for task in config.tasks]
  missing = [file for file in files if not os.path.isfile(file)]
  if len(config.tasks) > 1 and "{task}" not in path:
    rule = f"a path with {{task}} in it: there are {len(config.tasks)} tasks, each with a policy of its own"
    problems.append(Problem("inputs.dppo_checkpoint", path, rule, "for instance policies/{task}.pt"))
  elif missing:
    fix = f"there is no {', no '.join(missing)}: copy them there, or set --config.tasks to those you have"
    problems.append(Problem("inputs.dppo_checkpoint", path, "a file for each task", fix))
  for file in dict.fromkeys(files):
    what, fix = file_kinds.describe_file(file)
    if what:
      problems.append(Problem("inputs.dppo_checkpoint", file, f"{_WEIGHTS}; this is {what}", fix))
  if config.behaviour_cloning.policy != "diffusion":
    rule = "diffusion with inputs.dppo_checkpoint"
    fix = "leave behaviour_cloning.policy out"
    problems.append(Problem("behaviour_cloning.policy", config.behaviour_cloning.policy, rule, fix))
  return problems


def _check_compare(config: ConfigDict) -> list[Problem]:
  paths = config.judge.compare = tuple(_expand(text) for text in config.judge.compare)
  missing = [p for p in paths if not (_exists(p, "DONE") or _exists(p, "world_model", "DONE"))]
  if not missing:
    return []
  rule = "finished artifacts of world_model: folders holding DONE, or the work folders above them"
  return [Problem("judge.compare", config.judge.compare, rule, f"not so: {', '.join(missing)}")]


def _find_calvin(config: ConfigDict) -> list[Problem]:
  if config.data.source != "calvin":
    return []
  path = _expand(config.data.calvin_path or os.environ.get("CALVIN_DATA", ""))
  config.data.calvin_path = path
  if config.inputs.collect:
    return []
  rule = "a dataset in CALVIN's format: a folder with training/ and validation/"
  if not path:
    fix = "set it or $CALVIN_DATA, or use the embedded simulator: --config.data.source=embedded"
    return [Problem("data.calvin_path", path, rule, fix)]
  missing = [f"{path}/{name}" for name in ("training", "validation") if not os.path.isdir(f"{path}/{name}")]
  if missing and lerobot_info.is_lerobot(path):
    fix = f"this is LeRobot's: --config.data.source=lerobot --config.data.path={path}"
    return [Problem("data.calvin_path", path, rule, fix)]
  if missing:
    return [Problem("data.calvin_path", path, rule, f"missing: {', '.join(missing)}")]
  takes = config.data.failed_takes_per_task
  if takes and not os.path.isdir(f"{path}/failed"):
    rule = f"0, or {path}/failed with annotated takes that failed, beside training/ and validation/"
    fix = "--config.data.failed_takes_per_task=0 --config.ppo.failed_starts=0"
    return [Problem("data.failed_takes_per_task", takes, rule, fix)]
  return []


def _find_lerobot(config: ConfigDict) -> list[Problem]:
  if config.data.source != "lerobot":
    return []
  config.data.path = tuple(map(_expand, config.data.path))
  config.data.embodiment = _expand(config.data.embodiment)
  config.tasks = tuple(dict.fromkeys(map(task_name, config.tasks)))  # they may be given in words
  if config.inputs.collect:
    return []
  problems = []
  rule = "one or more LeRobot datasets: folders with meta/info.json"
  if not config.data.path:
    problems.append(Problem("data.path", config.data.path, rule, "--config.data.path=FOLDER"))
  for path in config.data.path:
    if not lerobot_info.is_lerobot(path):
      problems.append(Problem("data.path", path, rule, f"missing: {os.path.join(path, lerobot_info.INFO)}"))
  missing = [name for name in ("av", "pyarrow") if importlib.util.find_spec(name) is None]
  if missing:
    rule = f"lerobot only where the packages {', '.join(missing)} are installed"
    problems.append(Problem("data.source", "lerobot", rule, "pip install 'wam_jax[lerobot]'"))
  return problems


def _find_calvin_env(config: ConfigDict) -> list[Problem]:
  if config.env.name != "calvin":
    return []
  path = _expand(config.env.calvin_root or os.environ.get("CALVIN_ROOT", ""))
  try:
    config.env.calvin_root = str(find_checkout(path))
  except CalvinMissingError as error:
    rule = "a checkout of CALVIN's simulator, or of mees/calvin with it inside, with env.name=calvin"
    fix = "git clone https://github.com/mees/calvin_env and name its folder, here or in $CALVIN_ROOT"
    config.env.calvin_root = path
    return [Problem("env.calvin_root", path, rule, f"{error.missing} {fix}")]
  return []


def _find_tracker(config: ConfigDict) -> list[Problem]:
  named = [name for name in TRACKERS if config.training[f"{name}_project"]]
  if not named:
    return []
  name = named[-1]
  field, project = f"training.{name}_project", config.training[f"{name}_project"]
  if len(named) > 1:
    return [Problem(field, project, f"empty where training.{named[0]}_project is set", "set one of them")]
  spec = importlib.util.find_spec(name)
  if spec is not None and spec.origin is not None:  # a folder `wandb`, as W&B makes them, has no origin
    return []
  return [
    Problem(
      field, project, f"empty where the package {name} is not installed", f"pip install 'wam_jax[{name}]'"
    )
  ]


def robot_of_data(config: ConfigDict) -> Embodiment:
  """Embodiment of the data: of the artifact or the dataset that is named, else of the simulator.

  Raises:
    DatasetError: the dataset's description breaks a rule.
  """
  if config.inputs.collect:
    for folder in (config.inputs.collect, os.path.join(config.inputs.collect, "collect")):
      try:
        return embodiment.or_calvin(
          json.loads(read_text(os.path.join(folder, "artifact.json"))).get("embodiment")
        )
      except (OSError, ValueError, AttributeError, RecursionError):
        continue  # the plan says what is wrong with it
  elif config.data.source == "calvin" and _exists(config.data.calvin_path, embodiment.FILE):
    return read_description(os.path.join(config.data.calvin_path, embodiment.FILE))
  elif config.data.source == "lerobot" and all(map(lerobot_info.is_lerobot, config.data.path or ("",))):
    infos = [lerobot_info.read_info(folder) for folder in config.data.path]
    return lerobot_info.embodiment_of(infos, config.data.embodiment)
  elif config.data.source == "embedded" and (simulator := _simulator(config)) is not None:
    return simulator.embodiment
  return CALVIN


def _simulator(config: ConfigDict) -> Simulator | None:
  """The config's; None where it cannot be had, as `_check_simulator` says."""
  try:
    return registry.load(config.env)
  except (NotOffered, ValueError, TypeError):
    return None


def _check_robot(config: ConfigDict) -> list[Problem]:
  """Cameras must be the data's, tasks the simulator's or the data's; those left alone become so."""
  try:
    robot = robot_of_data(config)
  except DatasetError as error:
    path = "data.path" if config.data.source == "lerobot" else "data.calvin_path"
    path = "data.embodiment" if str(error.file) == config.data.embodiment else path
    key = f", key '{error.key}'" if error.key else ""
    rule = f"sound, but {error.file}{key}: {error.rule.rstrip('.')}"
    return [Problem(path, config.data[path[5:]], rule, error.fix.rstrip("."))]
  problems = []
  cameras = tuple(config.world_model.cameras)
  if cameras == CAMERAS != robot.camera_names:
    cameras = config.world_model.cameras = robot.camera_names
  if unknown := set(cameras) - set(robot.camera_names):
    rule = f"one or more of {', '.join(robot.camera_names)}, the cameras of the data"
    fix = did_you_mean(sorted(unknown)[0], robot.camera_names) or "leave world_model.cameras out"
    problems.append(Problem("world_model.cameras", cameras, rule, fix))
  proprio = config.world_model.proprio
  if not robot.state and proprio != "none":
    rule = "none: the robot in the data reports no state"
    problems.append(Problem("world_model.proprio", proprio, rule, "--config.world_model.proprio=none"))
  places = {"calvin": (config.data.calvin_path,), "lerobot": config.data.path}.get(config.data.source, ())
  recorded = config.inputs.collect or any(map(_exists, places))
  simulator = _simulator(config)
  if simulator is None and ":" in config.env.name:
    return problems  # its tasks are not known
  known = simulator.tasks if simulator is not None else TASKS
  if config.tasks == TASKS and not set(TASKS) & set(known) and not recorded:
    config.tasks = known
  unknown_tasks = [task for task in config.tasks if task not in known]
  if unknown_tasks and not recorded:  # recordings may have tasks of their own
    better = [f"{task}: {did_you_mean(task, known)}" for task in unknown_tasks if suggest(task, known)]
    fix = "; ".join(better) or f"for instance --config.tasks={known[0]}"
    problems.append(Problem("tasks", config.tasks, f"different tasks out of {', '.join(known)}", fix))
  return problems


def _check_simulator(config: ConfigDict) -> list[Problem]:
  """There is such a simulator, and it offers what is asked of it."""
  env = config.env
  try:
    simulator = registry.load(env)
  except (NotOffered, ValueError) as error:
    return [Problem("env.name", env.name, f"a simulator that can be used; {error}", OWN_SIMULATOR)]
  largest = simulator.largest_picture
  problems = []
  if missing := simulator.missing():
    problems.append(Problem("env.name", env.name, "a simulator that works here", missing))
  if largest is not None and env.image_size > largest:
    rule = f"at most {largest} with env.name={env.name}: its pictures have no more"
    problems.append(Problem("env.image_size", env.image_size, rule, "take 64, or let it draw larger ones"))
  without = [task for task in config.tasks if task in simulator.tasks and task not in simulator.experts]
  if without and config.data.source == "embedded" and not config.inputs.collect:
    rule = f"not embedded, for {env.name} has no scripted expert of {', '.join(without)}"
    fix = f"write one ({OWN_SIMULATOR}), or take a dataset: --config.data.source=calvin"
    problems.append(Problem("data.source", config.data.source, rule, fix))
  elif without and config.evaluate.expert:
    rule = f"False, for {env.name} has no scripted expert of {', '.join(without)}"
    problems.append(Problem("evaluate.expert", True, rule, "--config.evaluate.expert=False"))
  return problems


OWN_SIMULATOR = "docs/guides/own_simulator.md says what it must offer"


_DATA = ("data.source", "data.calvin_path", "data.path", "data.embodiment", "inputs.collect")
_ENV = tuple(f"env.{name}" for name in registry.IDENTITY)
_AMOUNT = ("data.source", "data.calvin_path", "data.path", "data.play_frames")


def _check_amount(config: ConfigDict) -> list[Problem]:
  """A batch of the world model must not be larger than all the data available."""
  frames, where = config.data.play_frames, "data.play_frames"
  if config.data.source == "calvin":
    where = f"the frames in {config.data.calvin_path}/training"
    frames = _count_frames(pathlib.Path(config.data.calvin_path) / "training" / "ep_start_end_ids.npy")
    if not frames:
      return []  # reading the dataset reports what is wrong
  elif config.data.source == "lerobot":
    where = f"the frames in {', '.join(config.data.path)}"
    try:
      frames = sum(lerobot_info.read_info(path).num_frames for path in config.data.path)
    except DatasetError:
      return []  # reported with the robot
    if not frames or config.inputs.collect:
      return []
  w = config.world_model
  if w.batch_size * w.sequence_length <= frames:
    return []
  rule = f"batch_size * sequence_length ({w.batch_size} * {w.sequence_length}) at most {where} ({frames})"
  return [Problem("world_model.batch_size", w.batch_size, rule, f"at most {frames // w.sequence_length}")]


def _count_frames(file: pathlib.Path) -> int:
  """Frames by a split's table of episodes; 0 if it is missing or malformed."""
  try:
    check_file(file)
    # Mapped, not loaded: a damaged header may promise terabytes.
    ids: np.ndarray = np.lib.format.open_memmap(file, mode="r")
  except (OSError, ValueError, EOFError, SyntaxError, MemoryError, OverflowError):
    return 0
  if ids.ndim != 2 or ids.shape[1] != 2 or ids.dtype.kind not in "iu" or len(ids) == 0:
    return 0
  lengths = ids[:, 1].astype(np.float64) - ids[:, 0] + 1
  return int(lengths.sum()) if lengths.min() > 0 and lengths.sum() < 1e9 else 0


# Fields that are looked at, and what completes or checks them once each is right by itself: may change the
# config, returns problems or None.
DERIVED: tuple[tuple[tuple[str, ...], Callable[[ConfigDict], Sequence[Problem] | None]], ...] = (
  (("tasks",), lambda c: c.update(tasks=tuple(c.tasks))),
  (("env.workers",), lambda c: c.env.update(workers=c.env.workers or available_cores())),
  (("workdir", "experiment", "preset"), _place_workdir),
  (tuple(f"inputs.{stage}" for stage in GIVEN), _check_inputs),
  (("judge.compare",), _check_compare),
  (("inputs.lumos_checkpoint", "world_model.vision", "world_model.cameras"), _check_lumos),
  (("inputs.dppo_checkpoint", "tasks", "behaviour_cloning.policy"), _check_dppo),
  (("env.name", "env.calvin_root"), _find_calvin_env),
  (("data.source", "data.calvin_path", "data.failed_takes_per_task", "inputs.collect"), _find_calvin),
  (("tasks", "inputs.collect", "data.source", "data.path", "data.embodiment"), _find_lerobot),
  (("tasks", "world_model.cameras", "world_model.proprio", *_DATA), _check_robot),
  (("tasks", "env.image_size", "evaluate.expert", *_ENV, *_DATA), _check_simulator),
  (tuple(f"training.{name}_project" for name in TRACKERS), _find_tracker),
  (("world_model.batch_size", "world_model.sequence_length", *_AMOUNT), _check_amount),
)
