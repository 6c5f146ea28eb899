"""What a run is going to do: which stages are done, which can go on, which do not fit any more.

Makes no JAX import and changes no file, so that `--config.stage=plan` answers at once.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.util
import math
import pathlib
from typing import Any

from ml_collections import ConfigDict

from wam_jax import config as config_lib
from wam_jax.config.rules import EXTRA_STAGES
from wam_jax.host.words import duration
from wam_jax.storage import artifact as artifact_lib
from wam_jax.storage.artifact import Artifact

STAGES = config_lib.STAGES

# Seconds of each stage of the demo preset on 2 CPU cores: those of its former sizes (docs/BENCHMARKS.md),
# scaled to today's by what was measured side by side; the estimates of other sizes are scaled from them.
DEMO_SECONDS: dict[str, float] = {
  "convert": 15,
  "collect": 160,
  "world_model": 260,
  "judge_world_model": 20,
  "featurize": 40,
  "behaviour_cloning": 70,
  "classifier": 110,
  "ppo": 190,
  "online_ppo": 3_000,
  "evaluate": 150,
  "evaluate_cloned": 60,
  "report": 20,
}


_SLOWER = {"play_table": 1.0, "calvin": 18.0}  # making and drawing a frame, to the embedded simulator's


class StageError(Exception):
  """A stage cannot run as asked; the text says what to do."""


@dataclasses.dataclass(frozen=True)
class StagePlan:
  """What will happen to one stage.

  Attributes:
    stage: its name.
    action: 'skip' (done), 'resume', 'run', 'use' (from `inputs`), or 'conflict'.
    artifact: what the stage will make; for 'skip' and 'use', what it has made.
    differences: for 'conflict', one line for each thing that changed.
    settings_changed: for 'conflict', whether the stage's own settings are among them.
  """

  stage: str
  action: str
  artifact: Artifact
  differences: tuple[str, ...] = ()
  settings_changed: bool = False


@dataclasses.dataclass(frozen=True)
class Spec:
  """What a stage module says about itself in its constants REQUIRES, CONFIG, SCHEMA, ADDS and TOGETHER.

  ADDS: config fields that, when set, ask for more from a stage that is finished; they change nothing of
  what is there already, and are no part of its fingerprint. TOGETHER: all processes of a run work on the
  stage; otherwise the first one does.
  """

  requires: tuple[str, ...]
  config: tuple[str, ...]
  schema: int = 1
  adds: tuple[str, ...] = ()
  together: bool = False


@functools.cache
def stage_spec(stage: str) -> Spec:
  """Reads a stage's constants from its source, because importing it would import JAX."""
  found = importlib.util.find_spec(f"wam_jax.stages.{stage}")
  if found is None or found.origin is None:
    raise StageError(f"wam_jax/stages/{stage}.py is missing")
  constants: dict[str, Any] = {"REQUIRES": (), "CONFIG": (), "SCHEMA": 1, "ADDS": (), "TOGETHER": False}
  for node in ast.parse(pathlib.Path(found.origin).read_text(encoding="utf-8")).body:
    if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
      target = node.targets[0] if isinstance(node, ast.Assign) else node.target
      if isinstance(target, ast.Name) and target.id in constants:
        constants[target.id] = ast.literal_eval(node.value)
  return Spec(
    tuple(constants["REQUIRES"]),
    tuple(constants["CONFIG"]),
    constants["SCHEMA"],
    tuple(constants["ADDS"]),
    constants["TOGETHER"],
  )


def wanted_stages(config: ConfigDict) -> tuple[str, ...]:
  """The stages that were asked for, in order."""
  return STAGES if config.stage in ("all", "plan") else (config.stage,)


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
        for required in stage_spec(stage).requires:
          need(required)

  for stage in wanted_stages(config):
    need(stage)
  plans: dict[str, StagePlan] = {}
  for stage in (*STAGES, *EXTRA_STAGES):
    if stage in needed:
      plans[stage] = _plan_stage(config, stage, plans)
  return plans


def _plan_stage(config: ConfigDict, stage: str, plans: dict[str, StagePlan]) -> StagePlan:
  if config.inputs.get(stage):
    return StagePlan(stage, "use", artifact_lib.load_artifact(config.inputs[stage], stage))
  spec = stage_spec(stage)
  values = config_lib.flatten(config)
  part = {
    path: list(value) if isinstance(value, tuple) else value
    for path, value in values.items()
    if any(path == name or path.startswith(name + ".") for name in spec.config)
  }
  inputs = {required: plans[required].artifact.fingerprint for required in spec.requires}
  path = pathlib.Path(config.workdir) / stage
  print_ = artifact_lib.fingerprint(part, inputs, spec.schema)
  made = artifact_lib.read_artifact(path)
  artifact = Artifact(
    stage=stage,
    path=path,
    fingerprint=print_,
    config=config.to_dict(),
    part=part,
    inputs=inputs,
    schema=spec.schema,
    seconds=made.seconds if made else 0.0,
    peak_bytes=made.peak_bytes if made else 0,
  )
  if made is None and path.is_dir() and any(file.name not in artifact_lib.BEGUN for file in path.iterdir()):
    note = "the folder holds files, but no artifact.json: not made by wam_jax, or by another version"
    return StagePlan(stage, "conflict", artifact, (note,), True)
  if made is None:
    return StagePlan(stage, "run", artifact)
  if made.fingerprint == print_:
    more = stage in wanted_stages(config) and any(values[name] for name in spec.adds)
    return StagePlan(stage, "skip", made) if made.done and not more else StagePlan(stage, "resume", artifact)
  settings, others = _differences(made, artifact)
  return StagePlan(stage, "conflict", artifact, (*settings, *others), bool(settings))


def _differences(made: Artifact, wanted: Artifact) -> tuple[list[str], list[str]]:
  settings = []
  for path in sorted(made.part.keys() | wanted.part.keys()):
    old, new = (_show(each.part, path) for each in (made, wanted))
    if old != new:
      settings.append(f"{path}: {old} -> {new}")
  if made.schema != wanted.schema:
    settings.append(f"format of its files: {made.schema} -> {wanted.schema} (another version of wam_jax)")
  others = [
    f"made from another {stage}" for stage in wanted.inputs if made.inputs.get(stage) != wanted.inputs[stage]
  ]
  return settings, others


def _show(part: dict[str, Any], path: str) -> str:
  return repr(part[path]) if path in part else "(absent)"


def check_lineage(plans: dict[str, StagePlan]) -> None:
  """Refuses features, policies and classifiers given from elsewhere that were made on another world model.

  Raises:
    StageError: naming them, and both fingerprints.
  """
  if "world_model" not in plans:
    return
  own = plans["world_model"].artifact
  lines = []
  for stage, plan in plans.items():
    if plan.action != "use" or stage in ("collect", "world_model"):
      continue
    other = artifact_lib.world_model_of(plan.artifact)
    if other is not None and other != own.fingerprint:
      lines.append(f"  inputs.{stage}={plan.artifact.path}: made on {other[:12]}")
  if lines:
    head = "features mean nothing in another world model. That of this run has the fingerprint "
    lines.insert(0, f"{head}{own.fingerprint[:12]} ({own.path}), but:")
    lines.append(
      "Give the one that they were made on (--config.inputs.world_model=FOLDER), or leave them out."
    )
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
  for plan in conflicts:
    lines.append(f"  {plan.artifact.path}")
    lines += [f"    {difference}" for difference in plan.differences]
  folders = " ".join(str(plan.artifact.path) for plan in conflicts)
  lines += [
    "Choose one:",
    "  put the old values back (the ones before ->), and the run goes on",
    "  keep both: --config.workdir=ANOTHER_FOLDER",
    f"  make them again: rm -r {folders}",
  ]
  usable = [plan for plan in plans.values() if plan.action == "skip"]
  if usable:
    flags = " ".join(f"--config.inputs.{plan.stage}={plan.artifact.path}" for plan in usable)
    lines.append(f"  (in another folder, what still fits can be used: {flags})")
  raise StageError("\n".join(lines))


# --- showing the plan -----------------------------------------------------------------------------


def format_plan(config: ConfigDict, plans: dict[str, StagePlan]) -> str:
  """The plan as text for people."""
  d = config.data
  frames = "" if d.source == "calvin" else f"{d.play_frames:,} frames of play, "
  source = f"CALVIN's data in {d.calvin_path}" if d.source == "calvin" else f"simulator {config.env.name}"
  experiment = f"experiments/{config.experiment}.py"
  words = {"skip": "done", "resume": "go on", "run": "run", "use": "given", "conflict": "DIFFERS"}
  seconds = {stage: estimate(config, stage) for stage in plans}
  lines = [
    f"Plan of {config.experiment}",
    f"  preset   {config.preset} ({config.preset_reason})",
    f"  data     {source}: {frames}{d.demos_per_task} demos of each of {len(config.tasks)} tasks",
    f"  folder   {config.workdir}",
    "  stages",
  ]
  for stage, plan in plans.items():
    work = plan.action in ("run", "resume", "conflict")
    time = f"about {duration(seconds[stage])}" if work else ""
    note = str(plan.artifact.path) if plan.action == "use" else _size(config, stage)
    lines.append(f"    {stage:<18} {words[plan.action]:<8} {note:<58} {time}".rstrip())
    lines += [f"      {difference}" for difference in plan.differences]
  total = sum(seconds[stage] for stage, plan in plans.items() if plan.action in ("run", "resume", "conflict"))
  basis = "as measured" if config.preset == "demo" else "roughly"
  accelerated = "" if config.preset == "demo" else "; an accelerator takes a small part of that"
  lines += [
    f"  time     about {duration(total)} on 2 CPU cores, {basis}{accelerated}",
    f"  choose   {experiment}:demo (CPU, minutes), :small (CPU, an hour), :paper (published)",
    "           --config.stage=NAME one stage, --config.stage=plan only this text, --config.workdir=FOLDER,",
    "           --config.data.source=embedded|calvin, and any other field as --config.GROUP.FIELD=VALUE",
  ]
  return "\n".join(lines)


def _size(config: ConfigDict, stage: str) -> str:
  d, w, j, b, k, p, e = (
    config.data,
    config.world_model,
    config.judge,
    config.behaviour_cloning,
    config.classifier,
    config.ppo,
    config.evaluate,
  )
  tasks, demos = len(config.tasks), f"{d.demos_per_task + d.heldout_demos_per_task} demos"
  if d.failed_takes_per_task:
    demos += f" + {d.failed_takes_per_task + d.heldout_failed_takes_per_task} failed takes"
  networks = f", {k.ensemble} networks each" if k.ensemble > 1 else ""
  if stage == "collect" and d.source == "calvin":
    return "read and check the dataset"
  if stage == "world_model" and config.inputs.lumos_checkpoint:
    return f"take LUMOS's weights from {config.inputs.lumos_checkpoint}"
  if stage == "behaviour_cloning" and config.inputs.dppo_checkpoint:
    return f"take the policies of {config.inputs.dppo_checkpoint}"
  return {
    "collect": f"{d.play_frames:,} frames of play, {tasks} x ({demos})",
    "world_model": f"{w.updates:,} updates of {w.batch_size} x {w.sequence_length} frames",
    "convert": "all frames of the dataset, shrunk, as TFDS",
    "judge_world_model": f"{1 + len(j.compare)} x {j.windows} windows, {j.horizons[-1]} frames imagined",
    "featurize": f"{tasks} x ({demos})",
    "behaviour_cloning": f"{tasks} x {b.updates:,} updates of {b.batch_size} chunks",
    "classifier": f"{tasks} x {k.updates:,} updates of {k.batch_size} frames{networks}",
    "ppo": f"{tasks} x {p.iterations} iterations of {p.dreams} x {p.chunks_per_iteration} chunks",
    "online_ppo": f"{tasks} x {config.online.iterations} x {p.dreams} x {p.chunks_per_iteration} real chunks",
    "evaluate": f"{tasks} x {e.episodes} episodes of at most {config.env.max_steps} steps",
    "evaluate_cloned": f"{tasks} x {e.episodes} episodes of at most {config.env.max_steps} steps",
    "report": "tables, curves, animations",
  }[stage]


def estimate(config: ConfigDict, stage: str) -> float:
  """Seconds a stage takes on 2 CPU cores: the demo preset's, scaled by how much more work it is."""
  demo = config_lib.preset_config("demo", config.experiment)
  seconds = DEMO_SECONDS[stage] * _work(config, stage) / _work(demo, stage)
  if stage in ("ppo", "online_ppo"):
    seconds += DEMO_SECONDS["evaluate"] * _monitoring(config, stage) / _work(demo, "evaluate")
  return seconds


def _monitoring(config: ConfigDict, stage: str) -> float:
  """Real episodes of a PPO stage's measurements, in the unit of work of `evaluate`."""
  iterations, every = {
    "ppo": (config.ppo.iterations, config.ppo.eval_every),
    "online_ppo": (config.online.iterations, config.online.eval_every),
  }[stage]
  measured = 1 + math.ceil(iterations / every) if every else 0  # the cloned policies first
  episodes = len(config.tasks) * config.ppo.eval_episodes * measured
  return episodes * config.env.max_steps * _SLOWER[config.env.name]


def _work(config: ConfigDict, stage: str) -> float:
  """Work of a stage, up to a constant: multiplications, frames, or control steps."""
  d, w, j, b, k, p, e = (
    config.data,
    config.world_model,
    config.judge,
    config.behaviour_cloning,
    config.classifier,
    config.ppo,
    config.evaluate,
  )
  tasks = len(config.tasks)
  demo_frames = tasks * (d.demos_per_task + d.heldout_demos_per_task) * config.env.max_steps / 3
  if d.failed_takes_per_task:  # they last longer than what succeeds
    demo_frames += (
      tasks * (d.failed_takes_per_task + d.heldout_failed_takes_per_task) * config.env.max_steps * 0.8
    )
  stoch = w.stoch * w.classes
  feature = w.deter + stoch + (36 if w.proprio == "latent" else 0)
  recurrent = 3 * w.deter * (w.deter + w.hidden) + w.hidden * (3 * stoch + 2 * w.deter + w.embed)
  vision = 64 * w.depth * (w.embed + feature) * (6 if w.vision == "conv" else 1)
  policy = b.hidden * (feature + (2 * b.blocks + 1) * b.hidden)
  judging = k.ensemble * (feature * k.embed[0] + k.embed[0] * k.embed[-1])
  denoised, tuned = (1, 1) if b.policy == "gaussian" else (b.denoising_steps, p.fine_tuned_steps)
  dreaming = p.dreams * p.chunks_per_iteration * (4 * recurrent + denoised * policy)
  tuning = p.epochs * p.dreams * p.chunks_per_iteration * tuned * 3 * policy
  policies = 2 + e.random_policy + 0.2 * e.expert + 2 * bool(p.eval_every)  # the best by dreams, by episodes
  frames = d.play_frames + d.heldout_play_frames + demo_frames
  slower = _SLOWER[config.env.name]
  return {
    "collect": frames * slower if d.source == "embedded" else 1.0,
    "convert": frames,
    "world_model": 1.0
    if config.inputs.lumos_checkpoint
    else w.updates * w.batch_size * w.sequence_length * (recurrent + w.decode_fraction * vision),
    "judge_world_model": (1 + len(j.compare))
    * (j.windows * (j.context + j.horizons[-1]) + j.probe_frames)
    * (recurrent + vision),
    "featurize": demo_frames * (recurrent + vision),
    "behaviour_cloning": 1.0 if config.inputs.dppo_checkpoint else tasks * b.updates * b.batch_size * policy,
    "classifier": tasks * k.updates * k.batch_size * judging,
    "ppo": tasks * p.iterations * (dreaming + tuning),
    "online_ppo": tasks * config.online.iterations * p.dreams * p.chunks_per_iteration * slower,
    "evaluate": tasks * e.episodes * config.env.max_steps * policies * slower,
    "evaluate_cloned": tasks * e.episodes * config.env.max_steps * slower,
    "report": 1.0,
  }[stage]
