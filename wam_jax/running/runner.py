"""Runs the stages in order: skips what is done, continues what was interrupted, mixes nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import importlib
import pathlib
import resource
import secrets
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from wam_jax import config as config_lib
from wam_jax.config import chain
from wam_jax.host import locks, processes, stopping, surroundings
from wam_jax.host.logger import Logger
from wam_jax.host.regular_files import read_text
from wam_jax.host.trackers import TRACKERS, WandbRun
from wam_jax.host.words import count, duration
from wam_jax.running import plan as plan_lib
from wam_jax.running.plan import StageError, StagePlan
from wam_jax.running.stage_run import StageRun
from wam_jax.storage import artifact as artifact_lib
from wam_jax.storage.artifact import Artifact

if TYPE_CHECKING:
  from wam_jax.host.live_view import LiveView


class InUseError(StageError):
  """Another process is running in the work folder."""


def run(config: ConfigDict, quiet: bool = False) -> dict[str, Artifact]:
  """Prints the plan and carries it out.

  Args:
    config: from `config.finalize`; `config.stage` says what to do.
    quiet: print neither the plan nor the closing text.

  Returns:
    The finished artifacts by stage; empty for `plan`.

  Raises:
    StageError: the work folder holds results of other settings, is in use, or a stage's inputs are missing.
    ArtifactError: an artifact cannot be read.
  """
  first = processes.is_first()
  plans = plan_lib.make_plan(config)
  if first and not quiet:
    print(plan_lib.format_plan(config, plans), flush=True)
  problems: list[str] = []
  warnings: list[str] = []
  if config.data.source != "embedded" or config.inputs.collect:
    from wam_jax.running.data_check import check_data  # its readers import JAX

    problems, warnings = check_data(config, plans)
  problems += plan_lib.simulator_problems(config, plans)
  for warning in warnings if first else ():
    print(f"Warning: {warning}", file=sys.stderr, flush=True)
  if config.stage == "plan":
    for problem in problems if first else ():
      print(problem, flush=True)
    return {}
  plan_lib.check_conflicts(config, plans)
  if problems:
    raise StageError("\n".join(problems))
  plan_lib.check_lineage(config, plans)
  stages = plan_lib.wanted_stages(config)
  _check_inputs(config, plans, stages)
  surroundings.prepare_jax()
  _check_devices(config, plans, stages)
  workdir = pathlib.Path(config.workdir)
  with lock(workdir) if first else contextlib.nullcontext():
    _check_processes(config, workdir)
    plans = plan_lib.make_plan(config)  # another process may have worked here until now
    plan_lib.check_conflicts(config, plans)
    # Shared storage may show the processes different things for a while: what the first sees, counts.
    actions = processes.gather({stage: plan.action for stage, plan in plans.items()})[0]
    artifacts: dict[str, Artifact] = {}
    plans = {stage: plan for stage, plan in plans.items() if actions[stage] != "leave"}
    work = any(actions[stage] not in ("skip", "use") for stage in plans if stage in stages)
    with _tracker_run(config, work) as wandb, _live_view(config, plans, actions, work, quiet) as view:
      for stage, plan in plans.items():
        artifacts[stage] = plan.artifact
        if actions[stage] not in ("skip", "use") and stage in stages:
          if first or chain.ROWS[stage].together:
            artifacts[stage] = run_stage(config, plan, artifacts, view, wandb)
          processes.gather(stage)
          if not _appears(plan.artifact.path / "DONE", 60.0):
            raise StageError(
              f"{plan.artifact.path}: what process 0 wrote has not come in a minute: shared storage?"
            )
  if first and not quiet:
    print(closing_text(config, artifacts), flush=True)
  return artifacts


def _check_devices(config: ConfigDict, plans: dict[str, StagePlan], stages: tuple[str, ...]) -> None:
  """The devices must be there, where a stage that is divided over them is to run.

  Raises:
    ConfigError: `training.devices` do not exist, or not all processes would have some.
    SurroundingsError: JAX cannot open them.
  """
  pending = [stage for stage in stages if plans[stage].action not in ("skip", "use", "leave")]
  if not pending:
    return  # opening the devices takes a moment
  surroundings.open_devices()
  if processes.count() == 1 and not any(chain.ROWS[stage].together for stage in pending):
    return
  import jax

  problems = config_lib.device_problems(config, jax.device_count(), processes.count())
  if problems:
    raise config_lib.ConfigError(problems)


def _check_processes(config: ConfigDict, workdir: pathlib.Path) -> None:
  """All processes must have the same settings and see the same work folder.

  Raises:
    StageError: they do not; says which.
  """
  if processes.count() == 1:
    return
  settings = processes.gather({path: str(value) for path, value in config_lib.flatten(config).items()})
  for values in settings:
    del values["env.workers"]  # of each host
  for i, process_settings in enumerate(settings):
    different = sorted(path for path in settings[0] if settings[0][path] != process_settings.get(path))
    if different:
      raise StageError(
        f"the processes of this run have different settings: {', '.join(different)} of process {i} "
        f"({', '.join(process_settings.get(path, '') for path in different)}) and of process 0 "
        f"({', '.join(settings[0][path] for path in different)}). Start all with the same command."
      )
  mark = workdir / f".seen-by-all-{secrets.token_hex(8) if processes.is_first() else ''}"
  mark = workdir / processes.gather(mark.name)[0]
  if processes.is_first():
    mark.touch()
  processes.gather(None)
  visible = processes.gather(_appears(mark))
  if processes.is_first():
    mark.unlink()
  blind = [i for i, sees in enumerate(visible) if not sees]
  if blind:
    raise StageError(
      f"processes {', '.join(map(str, blind))} do not see what process 0 writes in {workdir.absolute()}: the "
      "work folder must be on storage that all hosts share (NFS, Lustre, a mounted bucket): --config.workdir"
    )


def _appears(path: pathlib.Path, seconds: float = 10.0) -> bool:
  """Whether a file exists, or appears: shared storage may take a moment."""
  deadline = time.monotonic() + seconds
  while not path.exists():
    if time.monotonic() > deadline:
      return False
    time.sleep(0.2)
  return True


def _check_inputs(config: ConfigDict, plans: dict[str, StagePlan], stages: tuple[str, ...]) -> None:
  """Stages that were not asked for must exist already."""
  missing = [plan.stage for plan in plans.values() if plan.stage not in stages and plan.action != "skip"]
  missing = [stage for stage in missing if plans[stage].action not in ("use", "leave")]
  if missing:
    lines = [
      f"{config.stage} is made from {', '.join(missing)}, not finished in {config.workdir}. Run first:"
    ]
    for stage in missing:
      lines.append(f"  {config_lib.command(config, workdir=config.workdir, stage=stage)}")
    lines.append(f"or name finished ones: --config.inputs.{missing[0]}=FOLDER")
    raise StageError("\n".join(lines))


def _tracker_run(config: ConfigDict, work: bool) -> contextlib.AbstractContextManager[WandbRun | None]:
  """A run at W&B or trackio, if asked for and there is work to do; of all processes only the first sends."""
  name = next((name for name in TRACKERS if config.training[f"{name}_project"]), None)
  if name is None or not work or not processes.is_first():
    return contextlib.nullcontext()
  project, workdir = config.training[f"{name}_project"], pathlib.Path(config.workdir)
  return TRACKERS[name](project, workdir, config.to_dict(), lambda text: print(text, flush=True))


@contextlib.contextmanager
def _live_view(
  config: ConfigDict, plans: Mapping[str, StagePlan], actions: Mapping[str, str], work: bool, quiet: bool
) -> Iterator[LiveView | None]:
  """Where there is something to do and a terminal: a picture of the run, with its stages.

  A quiet run is a piece of a larger one, which prints what it consists of: only what it works on is shown.
  """
  from wam_jax.host import live_view

  # Of several processes on one terminal the others write into the picture.
  if not (work and processes.count() == 1 and live_view.suits(sys.stdout, sys.stderr)):
    yield None
    return
  words = {"skip": "done", "use": "given"}
  lines = [
    live_view.StageLine(
      stage,
      words.get(actions[stage], "waits"),
      plan.artifact.seconds,
      plan_lib.estimate(config, stage),
      f"from {plan.artifact.path}" if actions[stage] == "use" else "",
    )
    for stage, plan in plans.items()
    if not (quiet and actions[stage] in words)
  ]
  tasks = config.tasks[0] if len(config.tasks) == 1 else count(len(config.tasks), "task")
  title = "" if quiet else f"{config.experiment} {config.preset}, {tasks}"
  with live_view.LiveView(title, lines) as view, stopping.told_through(view.message):
    yield view


def run_stage(
  config: ConfigDict,
  plan: StagePlan,
  artifacts: dict[str, Artifact],
  view: LiveView | None = None,
  wandb: WandbRun | None = None,
) -> Artifact:
  """Runs one stage and marks it as done.

  Args:
    config: the run's config.
    plan: of this stage, with action 'run' or 'resume'.
    artifacts: finished artifacts by stage; holds at least what the stage requires.
    view: of the run, on a terminal.
    wandb: of the run, if asked for.

  Returns:
    The finished artifact, with the time and memory it took.
  """
  artifact = plan.artifact
  artifact_lib.write_artifact(artifact, done=False)
  logger = Logger(artifact.path, plan.stage, view, wandb)
  if view is not None:
    view.begin(plan.stage)
  logger.info("goes on" if plan.action == "resume" else "starts")
  row = chain.ROWS[plan.stage]
  shown = [name for name in row.shows if name in artifacts and artifacts[name].done]
  inputs = {name: artifacts[name] for name in (*row.requires, *shown) if name in artifacts}
  start, finished = time.monotonic(), False
  try:
    stage = StageRun(config, inputs, artifact.path, logger)
    importlib.import_module(f"wam_jax.stages.{plan.stage}").run(stage)
    finished = True
  finally:
    logger.close()
    artifact = dataclasses.replace(
      artifact,
      seconds=artifact.seconds + time.monotonic() - start,
      peak_bytes=max(artifact.peak_bytes, peak_bytes()),
    )
    # After an error the record of time is worth less than the error, which a full disk must not replace.
    with contextlib.nullcontext() if finished else contextlib.suppress(OSError):
      artifact_lib.write_artifact(artifact, done=finished)
  logger.info(f"done in {duration(artifact.seconds)}, memory up to {artifact.peak_bytes / 2**30:.1f} GiB")
  if view is not None:
    view.finish(plan.stage, artifact.seconds)
  _free_memory()
  return artifact


def peak_bytes() -> int:
  """Largest resident memory of this process so far."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == "darwin" else peak * 1024


def _free_memory() -> None:
  """Lets go of compiled programs and arrays that the next stage does not use."""
  if "jax" in sys.modules:
    sys.modules["jax"].clear_caches()
  gc.collect()


@contextlib.contextmanager
def lock(workdir: pathlib.Path) -> Iterator[None]:
  """Keeps a second process out of a work folder; the lock goes when the process does.

  Raises:
    InUseError: another process holds it.
    StageError: the folder cannot be made, or its file system has no locks.
  """
  with contextlib.ExitStack() as stack:
    try:
      workdir.mkdir(parents=True, exist_ok=True)
      stack.enter_context(locks.locked(workdir / ".lock", wait=False))
    except locks.TakenError as error:
      raise InUseError(f"{error}, or choose another --config.workdir") from error
    except locks.LockError as error:
      raise StageError(f"{error} (--config.workdir)") from error
    except OSError as error:
      raise StageError(
        f"cannot write in {workdir}: {error.strerror}. Choose another --config.workdir"
      ) from error
    yield


def closing_text(config: ConfigDict, artifacts: dict[str, Artifact]) -> str:
  """What is printed last: time per stage, the result table, and where the report is."""
  lines = ["", "Time per stage"]
  lines += [f"  {stage:<18} {duration(artifact.seconds):>8}" for stage, artifact in artifacts.items()]
  lines.append(f"  {'together':<18} {duration(sum(a.seconds for a in artifacts.values())):>8}")
  if "report" in artifacts:
    folder = artifacts["report"].path
    table = first_table(read_text(folder / "report.md"))
    lines += ["", "Result", *table, "", f"Report: {(folder / 'report.html').absolute()}", "", "Next"]
    lines += [f"  {purpose:<28} {command}" for purpose, command in _next(config, "evaluate" in artifacts)]
  else:
    lines += ["", *(f"Finished: {artifacts[stage].path}" for stage in plan_lib.wanted_stages(config))]
  return "\n".join(lines)


def _next(config: ConfigDict, simulated: bool) -> list[tuple[str, str]]:
  """What one may do with a finished run, acting in its simulator or without one: (what, command)."""
  workdir = shlex.quote(config.workdir)
  steps = [
    (
      "another seed",
      config_lib.command(config, seed=config.seed + 1, workdir=f"{config.workdir}_seed{config.seed + 1}"),
    ),
    ("share the policies", f"python -m wam_jax.pack --workdir={workdir} --out=policies"),
  ]
  if simulated and config.env.name == "play_table":
    watch = f"python -m wam_jax.play --policy={workdir} --task={config.tasks[0]}"
    steps.insert(0, ("watch a policy", watch))
  return steps


def first_table(markdown: str) -> list[str]:
  """Lines of the first table of a Markdown text; empty if there is none."""
  table: list[str] = []
  for line in markdown.splitlines():
    if line.startswith("|"):
      table.append(line)
    elif table:
      break
  return table
