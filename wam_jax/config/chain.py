"""The chain of stages: one row each. No JAX, no files: the plan and the config are made of these rows.

A new stage is a module `wam_jax/stages/NAME.py` with `run(stage: StageRun)`, and a row here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from wam_jax.embodiment import CAMERAS, ROBOT_FEATURES
from wam_jax.host.words import count

# Time of making and drawing a frame, in units of the embedded simulator's at 64 pixels.
SLOWER = {"play_table": 1.0, "calvin": 10.0, "metaworld": 7.0}
_ELSE_SLOWER = 3.0  # of a simulator that nothing is known of
_SIMULATOR = (
  "env.name",
  "env.calvin_scene",
  "env.tasks",
  "env.pictures",
  "env.state",
  "env.success",
  "env.expert",
  "env.renderer",
  "env.distractors",
  "env.image_size",
  "env.max_steps",
)


def _constant_work(_: Any) -> float:
  return 1.0


def _never(_: Any) -> bool:
  return False


@dataclasses.dataclass(frozen=True)
class Stage:
  """One step of a run.

  Attributes:
    name: of its module in `wam_jax/stages`.
    requires: stages whose artifacts it reads.
    reads: config fields, or groups of them, that its result depends on; they make its fingerprint.
    size: of a config -> how much it is, in words, for the plan.
    seconds: that it takes at the size of preset `demo` on 2 cores of an AMD EPYC with nothing else to do.
    work: of a config -> work in any unit; other sizes are estimated by its ratio to that of `demo`.
    adds: fields that, when set, ask for more from a finished stage; they change nothing that exists.
    shows: stages whose artifacts it takes too where they are finished; they are not in its fingerprint.
    schema: of its files; another one makes older artifacts differ.
    together: whether all processes of a run work on it; otherwise the first one does.
    on_request: it runs only when it is asked for, by --config.stage or as `asked` says.
    asked: of a config -> whether its settings ask for a stage on request. Stages that require one are made
      without it where they do not.
    simulates: it acts in a simulator; a run of all stages leaves it out where there is none for the data.
  """

  name: str
  requires: tuple[str, ...]
  reads: tuple[str, ...]
  size: Callable[[Any], str] = lambda _: ""
  seconds: float = 10.0
  work: Callable[[Any], float] = _constant_work
  adds: tuple[str, ...] = ()
  shows: tuple[str, ...] = ()
  schema: int = 1
  together: bool = False
  on_request: bool = False
  asked: Callable[[Any], bool] = _never
  simulates: bool = False


# --- how much work a stage is ------------------------------------------------------------------------


def _takes(c: Any) -> int:
  return (
    c.data.failed_takes_per_task + c.data.heldout_failed_takes_per_task if c.data.failed_takes_per_task else 0
  )


def _takes_in_words(c: Any) -> str:
  text = count(c.data.demos_per_task + c.data.heldout_demos_per_task, "demo")
  return text + (f" + {count(_takes(c), 'failed take')}" if _takes(c) else "")


def _features_in_words(c: Any) -> str:
  most = c.data.play_successes_per_task
  play = f" + at most {count(most, 'window')} of play" if most and not _labels_play(c) else ""
  return f"{len(c.tasks)} x ({_takes_in_words(c)}{play})"


def _labels_play(c: Any) -> bool:
  return c.data.play_successes_per_task > 0 and c.data.play_successes_by == "classifier"


def _demo_frames(c: Any) -> float:
  """Frames of demos and failed takes; these last longer than what succeeds."""
  demos = c.data.demos_per_task + c.data.heldout_demos_per_task
  return len(c.tasks) * c.env.max_steps * (demos / 3 + 0.8 * _takes(c))


def _frames(c: Any) -> float:
  return c.data.play_frames + c.data.heldout_play_frames + _demo_frames(c)


def _recurrent(c: Any) -> float:
  """Multiplications of the recurrent part, per frame."""
  w = c.world_model
  stoch = w.stoch * w.classes
  return 3 * w.deter * (w.deter + w.hidden) + w.hidden * (3 * stoch + 2 * w.deter + w.embed)


def _feature(c: Any) -> int:
  w = c.world_model
  return w.deter + w.stoch * w.classes + (2 * ROBOT_FEATURES if w.proprio == "latent" else 0)


def _pixels(c: Any) -> float:
  """Of a picture, in units of one of 64 x 64."""
  return float((c.env.image_size / 64) ** 2)


def _vision(c: Any) -> float:
  """Multiplications of encoder and decoder, per frame."""
  w = c.world_model
  pictures = _pixels(c) * len(w.cameras) / len(CAMERAS)
  return 64 * w.depth * (w.embed + _feature(c)) * (6 if w.vision == "conv" else 1) * pictures


def _simulating(c: Any) -> float:
  """Time of making and drawing a frame. Where rays draw, four fifths or more are drawing."""
  drawn_by_rays = c.env.name in ("play_table", "metaworld")
  return SLOWER.get(c.env.name, _ELSE_SLOWER) * (0.2 + 0.8 * _pixels(c) if drawn_by_rays else 1)


def _policy(c: Any) -> float:
  b = c.behaviour_cloning
  return b.hidden * (_feature(c) + (2 * b.blocks + 1) * b.hidden)


def _collecting(c: Any) -> float:
  return _frames(c) * _simulating(c) if c.data.source == "embedded" else 1.0


def _training(c: Any) -> float:
  w = c.world_model
  per_frame = _recurrent(c) + w.decode_fraction * _vision(c)
  return 1.0 if c.inputs.lumos_checkpoint else w.updates * w.batch_size * w.sequence_length * per_frame


def _judging(c: Any) -> float:
  j = c.judge
  frames = j.windows * (j.context + j.horizons[-1]) + j.probe_frames
  return (1 + len(j.compare)) * frames * (_recurrent(c) + _vision(c))


def _filtering(c: Any) -> float:
  play = 0.0 if _labels_play(c) else _frames_of_successes(c)
  return (_demo_frames(c) + play) * (_recurrent(c) + _vision(c))


def _frames_of_successes(c: Any) -> float:
  return len(c.tasks) * c.data.play_successes_per_task * c.env.max_steps * 2 / 3


def _labelling(c: Any) -> float:
  return (c.data.play_frames + _frames_of_successes(c)) * (_recurrent(c) + _vision(c))


def _classifying(c: Any) -> float:
  k = c.classifier
  judging = k.ensemble * (_feature(c) * k.embed[0] + k.embed[0] * k.embed[-1])
  return len(c.tasks) * k.updates * k.batch_size * judging


def _cloning(c: Any) -> float:
  b = c.behaviour_cloning
  return 1.0 if c.inputs.dppo_checkpoint else len(c.tasks) * b.updates * b.batch_size * _policy(c)


def _improving(c: Any) -> float:
  """Multiplications of PPO in dreams, without the measurements on its way (`monitoring`)."""
  p = c.ppo
  gaussian = c.behaviour_cloning.policy == "gaussian"
  denoised, tuned = (1, 1) if gaussian else (c.behaviour_cloning.denoising_steps, p.fine_tuned_steps)
  chunks = p.dreams * p.chunks_per_iteration
  dreaming = chunks * (4 * _recurrent(c) + denoised * _policy(c))
  return len(c.tasks) * p.iterations * (dreaming + p.epochs * chunks * tuned * 3 * _policy(c))


def _improving_in_the_simulator(c: Any) -> float:
  chunks = c.ppo.dreams * c.ppo.chunks_per_iteration
  return len(c.tasks) * c.online.iterations * chunks * _simulating(c)


def _certifying(c: Any) -> float:
  """Multiplications of the dreams of both policies from all held-out takes."""
  takes = (
    c.data.heldout_demos_per_task + (c.data.failed_takes_per_task > 0) * c.data.heldout_failed_takes_per_task
  )
  denoised = 1 if c.behaviour_cloning.policy == "gaussian" else c.behaviour_cloning.denoising_steps
  return len(c.tasks) * takes * c.env.max_steps * (4 * _recurrent(c) + denoised * _policy(c))


def _evaluating(c: Any) -> float:
  # Cloned, after PPO, and of each task the best by dreams and by episodes; experts draw no pictures.
  policies = 2 + c.evaluate.random_policy + 0.2 * c.evaluate.expert + 2 * bool(c.ppo.eval_every)
  return policies * _evaluating_cloned(c)


def _evaluating_cloned(c: Any) -> float:
  return len(c.tasks) * c.evaluate.episodes * c.env.max_steps * _simulating(c)


def monitoring(c: Any, stage: str) -> float:
  """Real episodes of a PPO stage's measurements, in the unit of work of `evaluate`."""
  iterations, every = {
    "ppo": (c.ppo.iterations, c.ppo.eval_every),
    "online_ppo": (c.online.iterations, c.online.eval_every),
  }.get(stage, (0, 0))
  measured = 1 + math.ceil(iterations / every) if every else 0  # the cloned policies first
  return len(c.tasks) * c.ppo.eval_episodes * measured * c.env.max_steps * _simulating(c)


def _episodes(c: Any) -> str:
  return (
    f"{len(c.tasks)} x {count(c.evaluate.episodes, 'episode')} of at most {count(c.env.max_steps, 'step')}"
  )


def _size_of_collect(c: Any) -> str:
  if c.data.source != "embedded":
    return f"read and check the data{', shrink pictures' if c.data.source == 'lerobot' else ''}"
  return f"{count(c.data.play_frames, 'frame')} of play, {len(c.tasks)} x ({_takes_in_words(c)})"


def _size_of_world_model(c: Any) -> str:
  w = c.world_model
  if c.inputs.lumos_checkpoint:
    return f"take LUMOS's weights from {c.inputs.lumos_checkpoint}"
  return f"{count(w.updates, 'update')} of {w.batch_size} x {w.sequence_length} frames"


def _size_of_judge(c: Any) -> str:
  windows, imagined = count(c.judge.windows, "window"), count(c.judge.horizons[-1], "frame")
  return f"{1 + len(c.judge.compare)} x {windows}, {imagined} imagined"


def _size_of_cloning(c: Any) -> str:
  b = c.behaviour_cloning
  if c.inputs.dppo_checkpoint:
    return f"take the policies of {c.inputs.dppo_checkpoint}"
  return f"{len(c.tasks)} x {count(b.updates, 'update')} of {count(b.batch_size, 'chunk')}"


def _size_of_certify(c: Any) -> str:
  return f"2 x {len(c.tasks)} policies, by dreams from held-out takes"


def _size_of_classifier(c: Any) -> str:
  k = c.classifier
  networks = f", {k.ensemble} networks each" if k.ensemble > 1 else ""
  return f"{len(c.tasks)} x {count(k.updates, 'update')} of {count(k.batch_size, 'frame')}{networks}"


# --- the rows, in the order in which they run --------------------------------------------------------

CHAIN: tuple[Stage, ...] = (
  Stage(
    "collect",
    requires=(),
    reads=(
      "seed",
      "tasks",
      *_SIMULATOR,
      "data.source",
      "data.calvin_path",
      "data.path",
      "data.episodes",
      "data.task_column",
      "data.heldout_share",
      "data.success_reward",
      "data.success_frames",
      "data.embodiment",
      "data.play_frames",
      "data.play_episode_frames",
      "data.heldout_play_frames",
      "data.demos_per_task",
      "data.heldout_demos_per_task",
      "data.failed_takes_per_task",
      "data.heldout_failed_takes_per_task",
      "data.heldout_starts_per_task",
      "data.action_noise",
      "data.failed_attempt_rate",
      "data.clumsy_attempt_rate",
      "data.aim_error",
      "data.wrist_error",
    ),
    size=_size_of_collect,
    seconds=149,
    work=_collecting,
  ),
  Stage(
    "world_model",
    requires=("collect",),
    reads=(
      "seed",
      "world_model",
      "env.image_size",
      "inputs.lumos_checkpoint",
      "tasks",
      "data.failed_takes_per_task",
    ),
    size=_size_of_world_model,
    seconds=215,
    work=_training,
    together=True,
  ),
  Stage(
    "judge_world_model",
    requires=("collect", "world_model"),
    reads=("seed", "judge.context", "judge.horizons", "judge.windows", "judge.probe_frames"),
    size=_size_of_judge,
    seconds=13,
    work=_judging,
    adds=("judge.compare",),
    schema=3,
  ),
  Stage(
    "featurize",
    requires=("collect", "world_model"),
    reads=(
      "seed",
      "tasks",
      "data.demos_per_task",
      "data.heldout_demos_per_task",
      "data.failed_takes_per_task",
      "data.heldout_failed_takes_per_task",
      "data.play_successes_per_task",
      "data.play_successes_by",
    ),
    size=_features_in_words,
    seconds=28,
    work=_filtering,
  ),
  Stage(
    "classifier",
    requires=("world_model", "featurize"),
    reads=(
      "seed",
      "tasks",
      "classifier",
      "data.failed_takes_per_task",
      "behaviour_cloning.chunk",
      "ppo.horizon_steps",
    ),
    size=_size_of_classifier,
    seconds=70,
    work=_classifying,
    together=True,
  ),
  Stage(
    "label_play",
    requires=("collect", "world_model", "classifier"),
    reads=("seed", "tasks", "data.play_successes_per_task"),
    size=lambda c: f"successes in play, at most {c.data.play_successes_per_task} of each task",
    seconds=20,
    work=_labelling,
    on_request=True,
    asked=_labels_play,
  ),
  Stage(
    "behaviour_cloning",
    requires=("featurize", "label_play"),
    # All of behaviour_cloning but ddim_steps, which only says how the evaluation samples.
    reads=(
      "seed",
      "tasks",
      "inputs.dppo_checkpoint",
      "data.play_successes_per_task",
      "data.play_successes_by",
      "behaviour_cloning.policy",
      "behaviour_cloning.chunk",
      "behaviour_cloning.hidden",
      "behaviour_cloning.blocks",
      "behaviour_cloning.time_dim",
      "behaviour_cloning.denoising_steps",
      "behaviour_cloning.batch_size",
      "behaviour_cloning.updates",
      "behaviour_cloning.learning_rate",
      "behaviour_cloning.final_learning_rate",
      "behaviour_cloning.warmup_updates",
      "behaviour_cloning.weight_decay",
      "behaviour_cloning.ema_decay",
    ),
    size=_size_of_cloning,
    seconds=50,
    work=_cloning,
    together=True,
  ),
  Stage(
    "ppo",
    requires=("collect", "world_model", "featurize", "behaviour_cloning", "classifier"),
    reads=("seed", "tasks", "ppo", "classifier.enforce_gate", "classifier.max_false_positives"),
    size=lambda c: (
      f"{len(c.tasks)} x {count(c.ppo.iterations, 'iteration')} of {c.ppo.dreams} x "
      f"{count(c.ppo.chunks_per_iteration, 'chunk')}"
    ),
    seconds=139,
    work=_improving,
    together=True,
  ),
  Stage(
    "certify",
    requires=("world_model", "featurize", "behaviour_cloning", "classifier", "ppo"),
    reads=("seed", "tasks", "env.max_steps", "certify", "behaviour_cloning.ddim_steps"),
    size=_size_of_certify,
    seconds=20,
    work=_certifying,
  ),
  Stage(
    "evaluate",
    requires=("collect", "world_model", "featurize", "behaviour_cloning", "classifier", "ppo"),
    reads=("seed", "tasks", *_SIMULATOR, "evaluate", "behaviour_cloning.ddim_steps"),
    size=_episodes,
    seconds=75,
    work=_evaluating,
    together=True,
    simulates=True,
  ),
  Stage(
    "report",
    requires=(
      "collect",
      "world_model",
      "judge_world_model",
      "featurize",
      "label_play",
      "behaviour_cloning",
      "classifier",
      "ppo",
      "evaluate",
    ),
    reads=("seed", "tasks", "report"),
    shows=("certify",),
    size=lambda c: "tables, curves, animations",
    seconds=3,
  ),
  Stage(
    "convert",
    requires=("collect",),
    reads=("env.image_size", "data.skip_broken"),
    size=lambda c: "all frames of the dataset, shrunk, as TFDS",
    seconds=15,
    work=_frames,
    on_request=True,
  ),
  Stage(
    "online_ppo",
    requires=("collect", "world_model", "featurize", "behaviour_cloning", "classifier", "ppo"),
    reads=("seed", "tasks", *_SIMULATOR, "ppo", "online"),
    size=lambda c: (
      f"{len(c.tasks)} x {c.online.iterations} x {c.ppo.dreams} x {c.ppo.chunks_per_iteration} real chunks"
    ),
    seconds=3_000,
    work=_improving_in_the_simulator,
    on_request=True,
    simulates=True,
  ),
  Stage(
    "evaluate_cloned",
    requires=("collect", "world_model", "featurize", "behaviour_cloning"),
    reads=("seed", "tasks", *_SIMULATOR, "evaluate.episodes", "behaviour_cloning.ddim_steps"),
    size=_episodes,
    seconds=24,
    work=_evaluating_cloned,
    together=True,
    on_request=True,
    simulates=True,
  ),
)
ROWS: dict[str, Stage] = {stage.name: stage for stage in CHAIN}
STAGES = tuple(stage.name for stage in CHAIN if not stage.on_request)  # of a whole run
EXTRA_STAGES = tuple(stage.name for stage in CHAIN if stage.on_request)  # run only when asked for
_REQUIRED = {name for stage in CHAIN for name in stage.requires}
GIVEN = tuple(  # a run may be given the artifact of one that is finished: `inputs.NAME`
  stage.name
  for stage in CHAIN
  if stage.name != "report" and (not stage.on_request or stage.name in _REQUIRED)
)


def stages_of_run(config: Any) -> tuple[str, ...]:
  """The stages of a whole run, in order."""
  return tuple(name for name, stage in ROWS.items() if not stage.on_request or stage.asked(config))


def required(stage: str, config: Any) -> tuple[str, ...]:
  """What a stage is made from in a run of these settings."""
  whole = stages_of_run(config)
  return tuple(name for name in ROWS[stage].requires if name in whole)
