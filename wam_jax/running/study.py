"""A study of several arms and seeds: the runs of each piece, and a small JSON file of what came out of it.

A piece is one arm with one seed. It works in `<workdir>/seed<seed>/<arm>`, as a chain of ordinary stages, so
that it can be interrupted at any moment; pieces can run in several processes, and on different machines.
What it leaves in `study.results` is all that the page of results is made from.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from wam_jax import config as config_lib
from wam_jax.acting.episodes import read_episodes
from wam_jax.acting.policy_table import COMPARED
from wam_jax.config import chain
from wam_jax.config.arms import ARMS, CLONING_STAGES, MAIN, Arm
from wam_jax.config.chain import EXTRA_STAGES, STAGES
from wam_jax.envs import registry
from wam_jax.host import locks, processes
from wam_jax.host.logger import read_metrics
from wam_jax.host.provenance import provenance
from wam_jax.host.words import duration
from wam_jax.reporting import media, run_report, study_page, study_results
from wam_jax.reporting.study_results import PLACES, episodes_of
from wam_jax.running import plan as plan_lib
from wam_jax.running import runner
from wam_jax.running.plan import StageError
from wam_jax.storage.artifact import Artifact, load_artifact, write_text
from wam_jax.storage.records import read_record

DATA = "data"  # folder of the frames that arms of a seed share
SNAPSHOT_STAGES = ("judge_world_model", *CLONING_STAGES)
SNAPSHOT_HAS = ("collect", "world_model")  # what policies on a snapshot are made from, and is there
_KEEP_BOTH = "--config.study.results=ANOTHER_FOLDER --config.study.page=FILE --config.workdir=ANOTHER_FOLDER"
WAIT_SECONDS = 5.0  # between looks at a work folder that another process is in
# Of metrics.jsonl of stage ppo, means over tasks: name in the file -> name here.
PPO_CURVES = {
  "ppo/imagined_success": "imagined_exploring",
  "ppo/monitor/imagined_success": "imagined",
  "ppo/monitor/real_success": "real",
}


@dataclasses.dataclass(frozen=True)
class Piece:
  """One arm with one seed.

  Attributes:
    arm: name, of ARMS.
    seed: of data, networks and evaluation.
    root: the study's work folder.
  """

  arm: str
  seed: int
  root: pathlib.Path

  @property
  def name(self) -> str:
    """Of its files."""
    return f"{self.arm}_seed{self.seed}"

  @property
  def workdir(self) -> pathlib.Path:
    """Of its runs."""
    return self.root / f"seed{self.seed}" / self.arm

  @property
  def data(self) -> pathlib.Path:
    """Of the run that collects the frames, which it shares with other arms."""
    changed = [f"{path.rpartition('.')[2]}_{value}" for path, value in ARMS[self.arm].frames.items()]
    return self.root / f"seed{self.seed}" / "_".join([DATA, *changed])


def run(config: FrozenConfigDict) -> None:
  """Runs the pieces that have left no result yet, and makes the page from all results.

  Args:
    config: from `config.finalize`, with `study.seeds`.

  Raises:
    StageError: a result has other settings or frames, or cannot be read; given frames are of other settings.
  """
  results = study_results.folder_of(config)
  pieces = [
    Piece(arm, seed, pathlib.Path(config.workdir)) for seed in config.study.seeds for arm in config.study.arms
  ]
  first = processes.is_first()
  frames_of_seed = _check_frames(config)
  is_done = lambda piece: read_result(results, piece, settings_of(config, piece), frames_of_seed) is not None
  progress = {piece: is_done(piece) for piece in pieces}
  if first:
    print(plan_text(config, progress), flush=True)
  if config.stage == "plan":
    return
  for piece in pieces if config.stage == "all" else ():
    # Looked at again: another process may have finished it. What the first process sees, counts.
    if processes.gather(is_done(piece))[0]:
      continue
    if first:
      print(f"\n=== {piece.name}: {ARMS[piece.arm].title}, seed {piece.seed}", flush=True)
    run_piece(config, piece)
    if first:
      with _alone_in(results):
        write_result(config, results, piece)
      print(f"=== {piece.name}: {results / (piece.name + '.json')}", flush=True)
  if first:
    with _alone_in(results):
      page = study_page.write_page(
        study_results.page_of(config), results, config.study.seeds, config.study.arms
      )
    print(f"\nPage of results: {page.absolute()}")


def _check_frames(config: Any) -> int | None:
  """Which seed recorded the frames that `inputs.collect` gives all pieces; None: each seed records its own.

  Raises:
    ArtifactError: there are none.
    StageError: they were recorded with other settings than the config's, or an arm records others.
  """
  own = [arm for arm in config.study.arms if ARMS[arm].frames]
  if config.inputs.collect and own:
    raise StageError(
      f"inputs.collect={config.inputs.collect} gives the frames of all pieces, but study.arms="
      f"{','.join(own)} record others ({', '.join(ARMS[own[0]].frames)}). Leave one of the two out."
    )
  if not config.inputs.collect:
    return None
  recorded = load_artifact(config.inputs.collect, "collect").part
  settings = config_lib.settings_read(config, chain.ROWS["collect"].reads)
  different = [
    f"  {name}: {recorded.get(name, '(absent)')!r} there, {settings.get(name, '(absent)')!r} here"
    for name in sorted({*recorded, *settings} - {*PLACES, "seed", "embodiment"})
    if _plain(recorded.get(name)) != _plain(settings.get(name))
  ]
  if different:
    raise StageError(
      "\n".join(
        [
          f"inputs.collect={config.inputs.collect} was recorded with other settings than this study's:",
          *different,
          "Give the study the settings that they were recorded with, as flags: results are kept with them.",
        ]
      )
    )
  return int(recorded["seed"]) if "seed" in recorded else None


@contextlib.contextmanager
def _alone_in(folder: pathlib.Path) -> Iterator[None]:
  """Waits until no other process of this machine writes results or page."""
  folder.mkdir(parents=True, exist_ok=True)
  with locks.locked(folder / ".lock", wait=True):
    yield


def plan_text(config: Any, progress: Mapping[Piece, bool]) -> str:
  """What is done, and how long the rest will take."""
  lines = [f"Study {config.experiment}, preset {config.preset}, in {config.workdir}"]
  total = 0.0
  for piece, done in progress.items():
    seconds = sum(
      plan_lib.estimate(run_config(config, piece, stage, piece.workdir), stage) * times
      for stage, times in _stages_of(config, ARMS[piece.arm])
    )
    total += 0 if done else seconds
    state = "done" if done else f"about {duration(seconds)}"
    lines.append(f"  {piece.name:<28} {ARMS[piece.arm].title:<36} {state}")
  lines.append(f"  about {duration(total)} for what is not done, without collecting, on {plan_lib.REFERENCE}")
  return "\n".join(lines)


def _stages_of(config: Any, arm: Arm) -> list[tuple[str, int]]:
  """(stage, how often it runs) of an arm."""
  clonings = len(_clonings(config)) if arm.snapshots else 0
  times = dict.fromkeys(_split(config, arm)[1], 1)
  for stage in _needed(config, SNAPSHOT_STAGES, SNAPSHOT_HAS) if clonings else ():
    times[stage] = times.get(stage, 0) + clonings
  return list(times.items())


def _clonings(config: Any) -> tuple[int, ...]:
  """Snapshots that policies are cloned on, besides the finished world model."""
  return tuple(update for update in config.world_model.snapshots if update < config.world_model.updates)


def run_config(
  config: Any,
  piece: Piece,
  stage: str,
  workdir: pathlib.Path,
  inputs: Mapping[str, pathlib.Path] | None = None,
) -> FrozenConfigDict:
  """Config of one run of a piece.

  Args:
    config: the study's.
    piece: whose arm's settings are applied.
    stage: to run.
    workdir: of the run.
    inputs: stage -> folder of a finished artifact.
  """
  c = ConfigDict(config.to_dict())
  arm = ARMS[piece.arm]
  # An arm with fewer demos leaves out some of those that all share.
  c.update_from_flattened_dict(dict(arm.frames if stage == "collect" else arm.changes))
  c.seed, c.stage, c.workdir = piece.seed, stage, str(workdir)
  c.study.seeds, c.study.arms, c.judge.compare = (), (), ()
  for name, path in (inputs or {}).items():
    c.inputs[name] = str(path)
  return config_lib.finalize(c)


def settings_of(config: Any, piece: Piece) -> dict[str, Any]:
  """All settings that the result of a piece depends on: dotted path -> value."""
  names = {name for stage in (*STAGES, *EXTRA_STAGES) for name in chain.ROWS[stage].reads}
  settings = config_lib.settings_read(run_config(config, piece, "evaluate", piece.workdir), names)
  return {
    path: _plain(value)
    for path, value in settings.items()
    if path not in PLACES and not path.startswith(("online.", "report.", "certify."))
  }


def _plain(value: Any) -> Any:
  """As JSON has it."""
  return list(value) if isinstance(value, tuple) else value


# --- running --------------------------------------------------------------------------------------


def run_piece(config: Any, piece: Piece) -> None:
  """Runs the stages of a piece that are not done, and those of its base that it takes."""
  arm = ARMS[piece.arm]
  inputs = {} if config.inputs.collect else _run_stages(config, piece, ("collect",), piece.data, {})
  taken, own = _split(config, arm)
  if arm.base:
    base = dataclasses.replace(piece, arm=arm.base)
    inputs |= _run_stages(config, base, taken, base.workdir, inputs)
  _run_stages(config, piece, own, piece.workdir, inputs)
  for update in _clonings(config) if arm.snapshots else ():
    snapshot = piece.workdir / "world_model" / "snapshots" / str(update)
    snapshot_inputs = inputs | {"world_model": snapshot}
    stages = _needed(config, SNAPSHOT_STAGES, SNAPSHOT_HAS)
    _run_stages(config, piece, stages, piece.workdir / f"at_{update}", snapshot_inputs)


def _needed(config: Any, stages: Sequence[str], have: Sequence[str]) -> tuple[str, ...]:
  """Stages and all that they are made from but what there is, in order."""
  needed = set(stages)
  for stage in reversed(chain.ROWS):
    needed |= set(chain.required(stage, config)) - set(have) if stage in needed else set()
  return tuple(stage for stage in chain.ROWS if stage in needed)


def _split(config: Any, arm: Arm) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """(stages that an arm takes from its base, its own), in order; what is made from its own is its own too."""
  needed = _needed(config, arm.stages, ("collect",))
  own = set(arm.stages) if arm.base else set(needed)
  for stage in needed:
    own |= {stage} if own & set(chain.required(stage, config)) else set()
  return tuple(s for s in needed if s not in own), tuple(s for s in needed if s in own)


def _run_stages(
  config: Any,
  piece: Piece,
  stages: Sequence[str],
  workdir: pathlib.Path,
  inputs: Mapping[str, pathlib.Path],
) -> dict[str, pathlib.Path]:
  """Runs stages one after the other; returns their folders. Waits while another process is in them."""
  folders: dict[str, pathlib.Path] = {}
  for stage in stages:
    run = run_config(config, piece, stage, workdir, {**inputs, **folders})
    waited = False
    while processes.gather(plan_lib.make_plan(run)[stage].action)[0] != "skip":
      try:
        runner.run(run, quiet=True)
        break
      except runner.InUseError as error:
        if processes.count() > 1:
          raise  # the others are on their way into the stage
        if not waited:
          print(f"waits: {error}", flush=True)
        waited = True
        time.sleep(WAIT_SECONDS)
    folders[stage] = workdir / stage
  return folders


# --- what came out --------------------------------------------------------------------------------


_STARTS = {"per_task": int, "sha256": str}


def gather(config: Any, piece: Piece) -> dict[str, Any]:
  """The result of a finished piece, as plain values."""
  arm = ARMS[piece.arm]
  artifacts = {stage: load_artifact(piece.workdir, stage) for stage in _split(config, arm)[1]}
  last = artifacts["evaluate" if "evaluate" in artifacts else "evaluate_cloned"]
  evaluated = read_record(last.path, "results.json", start_states=_STARTS, simulator=dict, provenance=dict)
  tasks = tuple(evaluated["tasks"])
  seconds = {stage: artifact.seconds for stage, artifact in artifacts.items()}
  frames = load_artifact(config.inputs.collect or piece.data, "collect")
  seconds["collect"] = frames.seconds
  measured = [evaluated["provenance"], provenance()]
  result: dict[str, Any] = {
    "format": study_results.FORMAT,
    "experiment": config.experiment,
    "preset": config.preset,
    "arm": piece.arm,
    "title": arm.title,
    "base": arm.base,
    "changes": dict(arm.changes),
    "seed": piece.seed,
    "tasks": list(tasks),
    "simulator": evaluated["simulator"],
    "frames_of_seed": frames.part.get("seed", piece.seed),
    "start_states": evaluated["start_states"]["sha256"],
    "episodes": evaluated["start_states"]["per_task"],
    "policies": {name: episodes_of(last.path / f"{name}.npz", tasks) for name in evaluated["policies"]},
  }
  if arm.snapshots:
    by_update, inverse_dynamics = {}, {}
    for update in _clonings(config):
      folder = piece.workdir / f"at_{update}"
      by_update[str(update)] = episodes_of(folder / "evaluate_cloned" / "cloned.npz", tasks)["success"]
      judge = read_record(folder / "judge_world_model", "judge.json", models=list)
      inverse_dynamics[str(update)] = judge["models"][0]["inverse_dynamics"]
      for stage in _needed(config, SNAPSHOT_STAGES, SNAPSHOT_HAS):
        name = f"{stage} of snapshots"
        seconds[name] = seconds.get(name, 0.0) + load_artifact(folder, stage).seconds
    by_update[str(config.world_model.updates)] = result["policies"]["cloned"]["success"]
    result |= {"by_update": by_update, "inverse_dynamics_by_update": inverse_dynamics}
  if "judge_world_model" in artifacts:
    judge = read_record(artifacts["judge_world_model"].path, "judge.json", provenance=dict)
    measured.append(judge["provenance"])
    names = ("open_loop", "repeated", "probes", "inverse_dynamics")
    result["judge"] = {name: judge[name] for name in ("context", "horizons", "targets", "data")}
    result["judge"] |= {name: judge["models"][0][name] for name in names}
  if "ppo" in artifacts:
    result["ppo"] = ppo_curves(artifacts["ppo"])
  return result | {
    "seconds": seconds,
    "peak_bytes": max(artifact.peak_bytes for artifact in artifacts.values()),
    "settings": settings_of(config, piece),
    "provenance": measured[1],
    "commits": sorted({facts["commit"] for facts in measured if facts["commit"]}),
  }


def ppo_curves(ppo: Artifact) -> dict[str, list[list[float]]]:
  """Means over tasks by iteration: name -> [iteration, success] pairs."""
  lines = read_metrics(ppo.path)
  return {
    short: [[line["step"], round(line[name], 4)] for line in lines if line.get(name) is not None]
    for name, short in PPO_CURVES.items()
  }


def write_result(config: Any, results: pathlib.Path, piece: Piece) -> None:
  """Writes the JSON file of a finished piece and, of one seed of each arm compared, animations next to it."""
  results.mkdir(parents=True, exist_ok=True)
  if piece.arm in MAIN and not any(results.glob(f"{piece.arm}_seed*_policies.webp")):
    shutil.copyfile(piece.workdir / "judge_world_model" / "strip.webp", results / f"{piece.name}_dreams.webp")
    path = results / f"{piece.name}_policies.webp"
    film = draw_policies(config, piece.workdir / "evaluate")
    temporary = path.with_suffix(".tmp")
    frames_per_second = registry.load(config.env).embodiment.control_hz / media.FRAME_STEP
    temporary.write_bytes(media.animation_bytes(film, frames_per_second, kind="webp"))
    temporary.replace(path)
  write_text(results / f"{piece.name}.json", json.dumps(gather(config, piece), indent=1) + "\n")


def draw_policies(config: Any, evaluate: pathlib.Path) -> np.ndarray:
  """Animation [T, H, W, 3] of four tasks, a column each: cloned above, after PPO below, from the same start.

  Of each task the first start state that PPO made a success of a failure at, else the first that both differ
  at, else the first.
  """
  policies = []
  for name in COMPARED:
    policies.append(read_episodes(evaluate / f"{name}.npz"))
  before, after = (episodes["success"].astype(int) for episodes in policies)
  order = 2 * (after > before) + (after != before)  # the first of the largest
  gained = (after > before).any(1)
  tasks = np.argsort(~gained, kind="stable")[:4]
  chosen = [(k, int(order[k].argmax())) for k in tasks]
  pick = lambda key: [episodes[key][k, m] for episodes in policies for k, m in chosen]
  kept = [key for key in ("snapshot", "start", "action") if key in policies[0]]
  shown = {key: pick(key) for key in kept} | {"task": [config.tasks[k] for _ in policies for k, _ in chosen]}
  drawn = run_report.draw_episodes(config, shown, [int(n) for n in pick("steps")])
  return media.side_by_side(next(iter(drawn.values())), len(chosen))


def read_result(
  results: pathlib.Path, piece: Piece, settings: Mapping[str, Any], frames_of_seed: int | None = None
) -> dict[str, Any] | None:
  """The result of a piece, None if there is none.

  Args:
    results: folder.
    piece: whose.
    settings: that it must have.
    frames_of_seed: which recording it must have learned from; None: any.

  Raises:
    StageError: it is of other settings or frames, or cannot be read.
  """
  path = results / f"{piece.name}.json"
  if not path.exists():
    return None
  result = study_results.read_result(path)
  # A field that came after the result is off by default: what it was made with, then.
  recorded = {name: _plain(value) for name, value in config_lib.flatten(config_lib.default_config()).items()}
  recorded |= result["settings"]
  different = [
    f"  {name}: {recorded.get(name, '(absent)')!r} -> {settings.get(name, '(absent)')!r}"
    for name in sorted({*result["settings"], *settings} - set(PLACES))
    if recorded.get(name) != settings.get(name)
  ]
  if different:
    raise StageError(
      "\n".join(
        [
          f"{path} is a result of other settings; nothing was changed.",
          *different,
          (f"Put the old values back, or keep both: {_KEEP_BOTH}"),
        ]
      )
    )
  if frames_of_seed not in (None, found := result.get("frames_of_seed", piece.seed)):
    raise StageError(
      f"{path} is a result on frames recorded with seed {found}, but inputs.collect gives frames of seed "
      f"{frames_of_seed}; nothing was changed. Take seed {piece.seed} out of study.seeds, or keep both: "
      f"{_KEEP_BOTH}"
    )
  return result
