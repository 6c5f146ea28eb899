"""What a run is going to do: which stages are done, which can go on, which do not fit any more.

Makes no JAX import and changes no file, so that `--config.stage=plan` answers at once.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from wam_jax import config as config_lib
from wam_jax.config import chain
from wam_jax.config.checks import shown
from wam_jax.config.fields import FIELDS
from wam_jax.embodiment import CALVIN, Embodiment, EmbodimentError
from wam_jax.host.dataset_files import DatasetError
from wam_jax.host.machine import available_cores, find_accelerator
from wam_jax.host.words import count, duration
from wam_jax.running import simulator_fit
from wam_jax.storage import artifact as artifact_lib
from wam_jax.storage.artifact import Artifact

REFERENCE = "2 cores of an AMD EPYC with nothing else to do"  # on which `chain` has its seconds


# What parameters mean, of stages whose policies can be given: not all of it shows in their shapes.
_NETWORKS = {
  "behaviour_cloning": ("policy", "chunk", "hidden", "blocks", "time_dim", "denoising_steps"),
  "ppo": ("fine_tuned_steps",),
}


_DATASET = (
  "dataset"  # in the settings of stage collect, for data.calvin_path: `calvin.signature` of what it saw
)


class StageError(Exception):
  """A stage cannot run as asked; the text says what to do."""


@dataclasses.dataclass(frozen=True)
class StagePlan:
  """What will happen to one stage.

  Attributes:
    stage: its name.
    action: 'skip' (done), 'resume', 'run', 'use' (from `inputs`), 'conflict', or 'leave' (out: it acts in a
      simulator, and there is none for the run's data).
    artifact: what the stage will make; for 'skip' and 'use', what it has made.
    differences: for 'conflict', one line for each thing that changed, but for what it is made from and
      differs itself.
    old: for 'conflict', the fields that changed -> the values it was made with.
    obstacle: why it cannot act in the simulator, in words.
  """

  stage: str
  action: str
  artifact: Artifact
  differences: tuple[str, ...] = ()
  old: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  obstacle: str = ""


def wanted_stages(config: ConfigDict) -> tuple[str, ...]:
  """The stages that were asked for, in order."""
  if config.stage in ("all", "plan"):
    return chain.stages_of_run(config)
  return (config.stage,)


def make_plan(config: ConfigDict) -> dict[str, StagePlan]:
  """Compares every stage's folder with what the config asks for.

  Args:
    config: from `config.finalize`.

  Returns:
    stage -> its plan, in order: for `all` and `plan` every stage, else the one asked for and all that
    it is made from.

  Raises:
    ArtifactError: an artifact named in `inputs`, or one in the work folder, cannot be read.
  """
  needed: set[str] = set()

  def need(stage: str) -> None:
    if stage not in needed:
      needed.add(stage)
      if not config.inputs.get(stage):
        for required in chain.required(stage, config):
          need(required)

  for stage in wanted_stages(config):
    need(stage)
  plans: dict[str, StagePlan] = {}
  for stage in chain.ROWS:
    if stage in needed:
      plan = _plan_stage(config, stage, plans)
      if chain.ROWS[stage].simulates and plan.action in ("run", "resume"):
        plan = _without_simulator(config, plan, plans["collect"].artifact)
      plans[stage] = plan
  for extra in {name for stage in wanted_stages(config) for name in chain.ROWS[stage].shows} - needed:
    if plans.keys() >= set(chain.ROWS[extra].requires):
      plan = _plan_stage(config, extra, plans)
      if plan.action == "skip":  # finished, which is all that is asked of it
        plans[extra] = plan
  return {stage: plans[stage] for stage in chain.ROWS if stage in plans}


def _without_simulator(config: ConfigDict, plan: StagePlan, collect: Artifact) -> StagePlan:
  """The plan of a stage that simulates; left out if it cannot, unless it or its simulator was asked for."""
  why = simulator_fit.obstacle(config, collect)
  asked = config.stage == plan.stage or config.env.name != FIELDS["env.name"].default
  return dataclasses.replace(plan, obstacle=why, action="leave" if why and not asked else plan.action)


def simulator_problems(config: ConfigDict, plans: Mapping[str, StagePlan]) -> list[str]:
  """Lines on stages that were asked for and cannot act in their simulator."""
  stuck = [plan for plan in plans.values() if plan.obstacle and plan.action != "leave"]
  if not stuck:
    return []
  stages = ", ".join(plan.stage for plan in stuck)
  return [
    f"{stages} cannot run in the simulator {config.env.name}: {stuck[0].obstacle}",
    "  Run what needs no simulator: --config.stage=all without --config.env.name, or another stage by name.",
  ]


def _plan_stage(config: ConfigDict, stage: str, plans: dict[str, StagePlan]) -> StagePlan:
  if config.inputs.get(stage):
    return StagePlan(stage, "use", artifact_lib.load_artifact(config.inputs[stage], stage))
  row = chain.ROWS[stage]
  requires = [name for name in chain.required(stage, config) if plans[name].action != "leave"]
  values = config_lib.flatten(config)
  part = {
    path: list(value) if isinstance(value, tuple) else value
    for path, value in config_lib.settings_read(config, row.reads).items()
  }
  inputs = {required: plans[required].artifact.fingerprint for required in requires}
  robot = _robot(config, stage, plans)
  if stage == "collect" and robot != CALVIN:
    part["embodiment"] = json.dumps(robot.to_dict())
  path = pathlib.Path(config.workdir) / stage
  saved = artifact_lib.read_artifact(path)
  moved = False
  if stage == "collect" and config.data.source == "calvin" and (saved is None or _DATASET in saved.part):
    from wam_jax.data import calvin  # which takes JAX along

    place = str(part.pop("data.calvin_path"))
    part[_DATASET] = calvin.signature(place)  # what a dataset holds counts, not where it lies
    moved = saved is not None and saved.config["data"]["calvin_path"] != place
  fingerprint = artifact_lib.fingerprint(part, inputs, row.schema)
  artifact = Artifact(
    stage=stage,
    path=path,
    fingerprint=fingerprint,
    config=config.to_dict(),
    part=part,
    inputs=inputs,
    schema=row.schema,
    seconds=saved.seconds if saved else 0.0,
    peak_bytes=saved.peak_bytes if saved else 0,
    embodiment=robot,
  )
  if saved is None and path.is_dir() and any(file.name not in artifact_lib.BEGUN for file in path.iterdir()):
    note = "the folder holds files, but no artifact.json: not made by wam_jax, or by another version"
    return StagePlan(stage, "conflict", artifact, (note,))
  if saved is None:
    return StagePlan(stage, "run", artifact)
  if saved.fingerprint == fingerprint:
    extra = stage in wanted_stages(config) and any(values[name] for name in row.adds)
    extra = extra or moved or any(_changes(name, path, plans) for name in row.shows)
    return (
      StagePlan(stage, "skip", saved) if saved.done and not extra else StagePlan(stage, "resume", artifact)
    )
  changed = [
    path for path in sorted(saved.part.keys() | part.keys()) if _show(saved, path) != _show(artifact, path)
  ]
  named = [path for path in changed if path != _DATASET]
  lines = [f"{path}: {_show(saved, path)} -> {_show(artifact, path)}" for path in named]
  if _DATASET in changed and _DATASET in part:
    lines.append(f"{config.data.calvin_path} holds other episodes or takes than when stage {stage} saw it")
  if saved.schema != row.schema:
    lines.append(f"format of its files: {saved.schema} -> {row.schema} (another version of wam_jax)")
  lines += [
    f"made from another {required}"
    for required in requires
    if saved.inputs.get(required) != inputs[required] and plans[required].action != "conflict"
  ]
  old = {path: saved.part.get(path, FIELDS[path].silent) for path in changed if path in FIELDS}
  old = {path: value for path, value in old.items() if value is not None}  # what it was is not known
  return StagePlan(stage, "conflict", artifact, tuple(lines), old)


def _robot(config: ConfigDict, stage: str, plans: dict[str, StagePlan]) -> Embodiment:
  """Embodiment that a stage's result is of: that of what it is made from, or of the dataset.

  Raises:
    StageError: what it is made from is of different robots, the dataset's description breaks a rule, or
      there is no such simulator here.
  """
  of = {name: plans[name].artifact.embodiment for name in chain.ROWS[stage].requires if name in plans}
  if not of:
    try:
      return config_lib.robot_of_data(config)
    except DatasetError as error:
      raise StageError(str(error)) from None
  (first, robot), *others = of.items()
  for name, other in others:
    try:
      robot.check(first, other, name)
    except EmbodimentError as error:
      raise StageError(f"{stage} cannot be made: {error}") from None
  return robot


def _changes(shown: str, path: pathlib.Path, plans: dict[str, StagePlan]) -> bool:
  """Whether a stage next to `path`, which shows it, is made anew or has been since."""
  if shown in plans and plans[shown].action in ("run", "resume"):
    return True
  try:
    return (path.parent / shown / "DONE").stat().st_mtime > (path / "DONE").stat().st_mtime
  except OSError:
    return False  # one is not there


def _show(artifact: Artifact, path: str) -> str:
  if path not in artifact.part:
    return "(absent)"
  value = artifact.part[path]
  return shown(tuple(value) if isinstance(value, list) else value) or "(empty)"


def _first_differences(plans: dict[str, StagePlan]) -> dict[str, list[str]]:
  """Stages that differ -> their differences that no stage before them has."""
  lines: dict[str, list[str]] = {}
  for stage, plan in plans.items():
    if plan.action == "conflict":
      before = {line for others in lines.values() for line in others}
      lines[stage] = [line for line in plan.differences if line not in before]
  return lines


def check_lineage(config: ConfigDict, plans: dict[str, StagePlan]) -> None:
  """Refuses features, policies and classifiers given from elsewhere that do not belong to this run.

  Raises:
    StageError: they were made on another world model, or for other tasks or for these in another order; or
      policies are given of other networks, or after PPO that were not cloned here. Names them, and what they
      belong to.
  """
  _check_tasks(config, plans)
  _check_networks(config, plans)
  _check_cloned(plans)
  if "world_model" not in plans:
    return
  world_model = plans["world_model"].artifact
  lines = []
  for stage, plan in plans.items():
    if plan.action != "use" or stage in ("collect", "world_model"):
      continue
    basis = artifact_lib.world_model_of(plan.artifact)
    if basis is not None and basis != world_model.fingerprint:
      lines.append(f"  inputs.{stage}={plan.artifact.path}: made on {basis[:12]}")
  if lines:
    head = "features mean nothing in another world model. That of this run has the fingerprint "
    lines.insert(0, f"{head}{world_model.fingerprint[:12]} ({world_model.path}), but:")
    lines.append(
      "Give the one that they were made on (--config.inputs.world_model=FOLDER), or leave them out."
    )
    raise StageError("\n".join(lines))


def _check_tasks(config: ConfigDict, plans: dict[str, StagePlan]) -> None:
  """Parameters of all tasks are stacked in their order, without names."""
  lines = []
  for stage, plan in plans.items():
    of_tasks = plan.action == "use" and {"featurize", "classifier"} & {stage, *chain.ROWS[stage].requires}
    tasks = plan.artifact.config.get("tasks", config.tasks)
    if of_tasks and list(tasks) != list(config.tasks):
      lines.append(f"  inputs.{stage}={plan.artifact.path}: {','.join(tasks)}")
  if lines:
    lines.insert(0, f"The tasks of this run are {','.join(config.tasks)}, but of")
    lines.append("Give --config.tasks the same ones in the same order, or leave these inputs out.")
    raise StageError("\n".join(lines))


def _check_networks(config: ConfigDict, plans: dict[str, StagePlan]) -> None:
  """Given policies act and learn as the networks that they were trained as."""
  lines, flags = [], []
  for stage, names in _NETWORKS.items():
    plan = plans.get(stage)
    given = plan.artifact.config.get(stage, {}) if plan is not None and plan.action == "use" else {}
    for name in names:
      if name in given and given[name] != config[stage][name]:
        lines.append(f"  inputs.{stage}={plan.artifact.path}: {stage}.{name}={given[name]}")  # type: ignore[union-attr]
        flags.append(config_lib.flag(f"{stage}.{name}", given[name]))
  if lines:
    lines.insert(0, "Policies were given that other networks belong to than this config describes:")
    raise StageError("\n".join([*lines, f"Add what they were trained with: {' '.join(flags)}"]))


def _check_cloned(plans: dict[str, StagePlan]) -> None:
  """What PPO brought is told by the policies that it began with."""
  cloned, tuned = plans.get("behaviour_cloning"), plans.get("ppo")
  if cloned is None or tuned is None or tuned.action != "use":
    return
  own = cloned.artifact.fingerprint
  if (began_with := tuned.artifact.inputs.get("behaviour_cloning", own)) != own:
    lines = [
      f"inputs.ppo={tuned.artifact.path} began with other cloned policies than this run has:",
      f"  {began_with[:12]}, not {own[:12]} ({cloned.artifact.path})",
      "Give those too (--config.inputs.behaviour_cloning=FOLDER), or leave inputs.ppo out.",
    ]
    raise StageError("\n".join(lines))


def check_conflicts(config: ConfigDict, plans: dict[str, StagePlan]) -> None:
  """Refuses to mix results of different settings.

  Raises:
    StageError: with what changed since each stage was made, and the ways out.
  """
  conflicts = [plan for plan in plans.values() if plan.action == "conflict"]
  if not conflicts:
    return
  lines = [f"{config.workdir} holds results of other settings; nothing was changed."]
  first = _first_differences(plans)
  for stage, differences in first.items():
    lines += [f"  {line}   (from {stage} on)" for line in differences]
  follow = [stage for stage, differences in first.items() if not differences]
  if follow:
    lines.append(f"  made from another {next(iter(first))}: {', '.join(follow)}")
  lines.append("Choose one:")
  usable = {
    f"inputs__{stage}": plan.artifact.path
    for stage, plan in plans.items()
    if plan.action == "skip" and stage in chain.GIVEN
  }
  asked = {} if config.stage == "all" else {"stage": config.stage}
  keep = config_lib.command(config, **usable, **asked, workdir=_free_folder(config.workdir))
  lines.append(f"  keep both:            {keep}")
  old = {path: value for plan in conflicts for path, value in plan.old.items()}
  if old:
    flags = " ".join(config_lib.flag(path, value) for path, value in old.items())
    lines.append(f"  go on with the old:   {flags}")
  folders = shlex.join(str(plan.artifact.path) for plan in conflicts)
  lines.append(f"  make them again:      rm -r {folders}")
  raise StageError("\n".join(lines))


def _free_folder(workdir: str) -> str:
  """A work folder next to one, that does not exist."""
  return next(name for i in itertools.count(2) if not os.path.exists(name := f"{workdir.rstrip('/')}_{i}"))


# --- showing the plan -----------------------------------------------------------------------------


def format_plan(config: ConfigDict, plans: dict[str, StagePlan]) -> str:
  """The plan as text for people."""
  d = config.data
  frames = f"{d.play_frames:,} frames of play, " if d.source == "embedded" else ""
  folder = f" in {d.calvin_path}" if d.calvin_path else ", not found yet"
  source = {
    "calvin": f"CALVIN's data{folder}",
    "lerobot": f"LeRobot's data in {', '.join(d.path)}",
    "embedded": f"simulator {config.env.name}",
  }[d.source]
  tasks = config.tasks[0] if len(config.tasks) == 1 else f"each of {len(config.tasks)} tasks"
  experiment = f"experiments/{config.experiment}.py"
  words = {"skip": "done", "resume": "go on", "run": "run", "use": "given"}
  words |= {"conflict": "DIFFERS", "leave": "left out"}
  seconds = {stage: estimate(config, stage) for stage, plan in plans.items() if plan.action != "leave"}
  first = _first_differences(plans)
  lines = [
    f"Plan of {config.experiment}",
    f"  preset   {config.preset} ({config.preset_reason})",
    f"  data     {source}: {frames}{count(d.demos_per_task, 'demo')} of {tasks}",
    f"  folder   {config.workdir}",
    "  stages",
  ]
  for stage, plan in plans.items():
    work = plan.action in ("run", "resume", "conflict")
    time = f"about {duration(seconds[stage])}" if work else ""
    note = str(plan.artifact.path) if plan.action == "use" else chain.ROWS[stage].size(config)
    note = "" if plan.action == "leave" else note
    lines.append(f"    {stage:<18} {words[plan.action]:<8} {note:<58} {time}".rstrip())
    lines += [f"      {difference}" for difference in first.get(stage, ())]
    lines += [f"      {plan.obstacle}"] if plan.action == "leave" else []
  total = sum(seconds[stage] for stage, plan in plans.items() if plan.action in ("run", "resume", "conflict"))
  device = find_accelerator().device
  here = count(available_cores(), "CPU core") + (f" and {device}, a small part of that" if device else "")
  lines += [
    f"  time     about {duration(total)}, reckoned from {REFERENCE}; here: {here}",
    f"  choose   {experiment}:demo and :small (CPU, minutes), :paper (published)",
    "           --config.stage=NAME one stage, --config.stage=plan only this text, --config.workdir=FOLDER,",
    "           --config.data.source=embedded|calvin|lerobot; any other field as --config.GROUP.FIELD=VALUE",
  ]
  return "\n".join(lines)


def estimate(config: ConfigDict, stage: str) -> float:
  """Seconds a stage takes on REFERENCE: the demo preset's, scaled by how much more work it is."""
  demo = config_lib.preset_config("demo", config.experiment)
  row, monitoring = chain.ROWS[stage], chain.monitoring(config, stage)
  seconds = row.seconds * row.work(config) / row.work(demo)
  if monitoring:
    evaluate = chain.ROWS["evaluate"]
    seconds += evaluate.seconds * monitoring / evaluate.work(demo)
  return seconds
