"""What fields of a config must be together. What each must be by itself: fields.py."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from wam_jax.config.arms import MAIN
from wam_jax.config.chain import GIVEN
from wam_jax.config.checks import Problem
from wam_jax.envs.tasks import TASKS


@dataclasses.dataclass(frozen=True)
class Rule:
  """What fields must be together. Checked only when each field in `path` and `needs` is right by itself."""

  path: str  # the field that the problem is reported at
  needs: tuple[str, ...]
  holds: Callable[..., bool]  # of the values of path and needs, in this order
  rule: str
  fix: str


def _holds_scenes(source: str, simulator: str) -> bool:
  """Whether frames may have scene_obs."""
  return source == "calvin" or (source == "embedded" and simulator in ("play_table", "calvin"))


# {0} is the value of `path`, {1}, {2}, … those of `needs`.
RULES: tuple[Rule, ...] = (
  Rule(
    "data.source",
    ("env.name", "env.calvin_scene"),
    lambda source, env, scene: source != "embedded" or env != "calvin" or scene == "D",
    "calvin with env.calvin_scene={2}: scripted experts know scene D only",
    "--config.data.source=calvin --config.data.calvin_path=FOLDER, or --config.env.calvin_scene=D",
  ),
  Rule(
    "evaluate.expert",
    ("env.name", "env.calvin_scene"),
    lambda expert, env, scene: not expert or env != "calvin" or scene == "D",
    "False with env.calvin_scene={2}: scripted experts know scene D only",
    "--config.evaluate.expert=False",
  ),
  Rule(
    "env.distractors",
    ("env.name", "data.source"),
    lambda level, env, source: not level or (env == "play_table" and source == "embedded"),
    "0 with env.name={1}, data.source={2}: only the embedded table's pictures are drawn from recorded states "
    "that distractors can be part of",
    "--config.env.distractors=0, or --config.env.name=play_table --config.data.source=embedded",
  ),
  Rule(
    "env.max_steps",
    ("behaviour_cloning.chunk",),
    lambda steps, chunk: steps % chunk == 0,
    "a multiple of behaviour_cloning.chunk ({1}): an episode is made of whole chunks",
    "take {down} or {up}",
  ),
  Rule(
    "ppo.horizon_steps",
    ("behaviour_cloning.chunk",),
    lambda steps, chunk: steps % chunk == 0,
    "a multiple of behaviour_cloning.chunk ({1}): a dream is made of whole chunks",
    "take {down} or {up}",
  ),
  Rule(
    "ppo.horizon_steps",
    ("env.max_steps",),
    lambda horizon, steps: horizon <= steps,
    "no longer than an episode, env.max_steps ({1})",
    "lower it, or raise env.max_steps",
  ),
  Rule(
    "ppo.fine_tuned_steps",
    ("behaviour_cloning.denoising_steps",),
    lambda tuned, steps: tuned <= steps,
    "at most behaviour_cloning.denoising_steps ({1})",
    "lower it to {1} or less",
  ),
  Rule(
    "behaviour_cloning.ddim_steps",
    ("behaviour_cloning.denoising_steps",),
    lambda fewer, steps: fewer <= steps,
    "at most behaviour_cloning.denoising_steps ({1}); 0 takes all of them",
    "lower it to {1} or less",
  ),
  Rule(
    "behaviour_cloning.ddim_steps",
    ("behaviour_cloning.policy",),
    lambda fewer, policy: fewer == 0 or policy == "diffusion",
    "0 with behaviour_cloning.policy={1}, which does not denoise",
    "leave it out, or take --config.behaviour_cloning.policy=diffusion",
  ),
  Rule(
    "ppo.failed_starts",
    ("data.failed_takes_per_task",),
    lambda share, takes: share == 0 or takes > 0,
    "0 without failed takes to start from (data.failed_takes_per_task={1})",
    "--config.ppo.failed_starts=0, or --config.data.failed_takes_per_task=20",
  ),
  Rule(
    "data.play_successes_per_task",
    ("data.source", "env.name", "tasks", "data.play_successes_by"),
    lambda most, source, env, tasks, by: (
      not most or by == "classifier" or (_holds_scenes(source, env) and set(tasks) <= set(TASKS))
    ),
    "0 with data.source={1}, env.name={2}: predicates find successes in play by CALVIN's scene_obs and tasks",
    "--config.data.play_successes_per_task=0, or --config.data.play_successes_by=classifier",
  ),
  Rule(
    "stage",
    ("data.play_successes_per_task", "data.play_successes_by"),
    lambda stage, most, by: stage != "label_play" or (most > 0 and by == "classifier"),
    "another one with data.play_successes_per_task={1}, data.play_successes_by={2}: nothing to label",
    "--config.data.play_successes_per_task=50 --config.data.play_successes_by=classifier",
  ),
  Rule(
    "ppo.minibatches",
    ("ppo.dreams", "ppo.chunks_per_iteration"),
    lambda parts, dreams, chunks: parts <= dreams * chunks,
    "at most the chunks of an iteration, ppo.dreams * ppo.chunks_per_iteration ({1} * {2})",
    "lower it, or dream more",
  ),
  Rule(
    "ppo.minibatches",
    ("ppo.dreams", "ppo.chunks_per_iteration"),
    lambda parts, dreams, chunks: parts > dreams * chunks or dreams * chunks % parts == 0,
    "a divisor of ppo.dreams * ppo.chunks_per_iteration ({1} * {2})",
    "take a divisor, for instance {divisor}",
  ),
  Rule(
    "ppo.clip_min",
    ("ppo.clip_max",),
    lambda low, high: low <= high,
    "at most ppo.clip_max ({1})",
    "lower it, or raise ppo.clip_max",
  ),
  Rule(
    "ppo.log_prob_min",
    ("ppo.log_prob_max",),
    lambda low, high: low < high,
    "below ppo.log_prob_max ({1})",
    "lower it",
  ),
  Rule(
    "ppo.critic_warmup_iterations",
    ("ppo.iterations",),
    lambda warmup, total: warmup < total,
    "fewer than ppo.iterations ({1}): otherwise the policy is never changed",
    "lower it, or raise ppo.iterations",
  ),
  Rule(
    "online.iterations",
    ("ppo.critic_warmup_iterations",),
    lambda total, warmup: total > warmup,
    "more than ppo.critic_warmup_iterations ({1}): otherwise the policy is never changed",
    "raise it",
  ),
  Rule(
    "world_model.memory_frames",
    (),
    lambda frames: frames != 1,
    "0 or at least 2",
    "take 0 or 64",
  ),
  Rule(
    "world_model.robot_obs_weight",
    ("world_model.proprio",),
    lambda weight, proprio: weight > 0 or proprio != "latent",
    "above 0 with world_model.proprio=latent, whose prediction it trains",
    "--config.world_model.robot_obs_weight=1000, or --config.world_model.proprio=sincos",
  ),
  Rule(
    "world_model.open_loop_share",
    ("world_model.carry_state",),
    lambda share, carry: share == 0 or not carry,
    "0 with world_model.carry_state: the next window would go on from an imagined state",
    "take one of the two",
  ),
  Rule(
    "world_model.warmup_updates",
    ("world_model.updates",),
    lambda warmup, total: warmup < total,
    "fewer than world_model.updates ({1})",
    "lower it, or raise world_model.updates",
  ),
  Rule(
    "world_model.snapshots",
    ("world_model.updates",),
    lambda snapshots, total: not snapshots or max(snapshots) <= total,
    "none after world_model.updates ({1})",
    "leave out the later ones, or raise world_model.updates",
  ),
  Rule(
    "world_model.accumulate",
    ("world_model.batch_size",),
    lambda parts, batch: batch % parts == 0,
    "a divisor of world_model.batch_size ({1})",
    "take a divisor of it",
  ),
  Rule(
    "behaviour_cloning.warmup_updates",
    ("behaviour_cloning.updates",),
    lambda warmup, total: warmup < total,
    "fewer than behaviour_cloning.updates ({1})",
    "lower it, or raise behaviour_cloning.updates",
  ),
  Rule(
    "behaviour_cloning.final_learning_rate",
    ("behaviour_cloning.learning_rate",),
    lambda final, first: final <= first,
    "at most behaviour_cloning.learning_rate ({1})",
    "lower it",
  ),
  Rule(
    "behaviour_cloning.time_dim",
    (),
    lambda dim: dim % 2 == 0,
    "even: half sine, half cosine",
    "take {even}",
  ),
  *(
    Rule(
      f"{stage}.batch_size",
      ("data.demos_per_task", "env.max_steps", "data.source"),  # LeRobot's demos are of any length
      lambda batch, demos, steps, source: source == "lerobot" or batch <= demos * steps,
      "at most a task's frames of demos, data.demos_per_task * env.max_steps ({1} * {2}) as an upper bound",
      "lower it, or collect more demos",
    )
    for stage in ("behaviour_cloning", "classifier")
  ),
  Rule(
    "data.play_episode_frames",
    ("data.play_frames", "data.source"),
    lambda episode, frames, source: source != "embedded" or episode <= frames,
    "at most data.play_frames ({1})",
    "lower it, or collect more frames",
  ),
  Rule(
    "data.play_episode_frames",
    ("world_model.sequence_length", "data.source"),
    lambda episode, length, source: source != "embedded" or episode >= length,
    "at least world_model.sequence_length ({1})",
    "raise it to {1} or more",
  ),
  Rule(
    "evaluate.episodes",
    ("data.heldout_starts_per_task", "data.source"),
    lambda episodes, starts, source: source != "embedded" or episodes <= starts,
    "at most data.heldout_starts_per_task ({1}): every episode has a start of its own",
    "lower it to {1}, or raise data.heldout_starts_per_task",
  ),
  Rule(
    "evaluate.episodes",
    ("data.heldout_starts_per_task", "data.source", "ppo.eval_every", "stage", "ppo.eval_episodes"),
    lambda episodes, starts, source, every, stage, measured: (
      source != "embedded" or not measured or not (every or stage == "online_ppo") or episodes < starts
    ),
    "less than data.heldout_starts_per_task ({1}): real success during PPO is measured from what is left",
    "lower it (to 30, say), raise data.heldout_starts_per_task, or --config.ppo.eval_episodes=0",
  ),
  Rule(
    "study.arms",
    ("study.seeds",),
    lambda arms, seeds: bool(arms) or not seeds,
    "one arm or more, as there are study.seeds",
    f"for instance --config.study.arms={','.join(MAIN)}",
  ),
  Rule(
    "stage",
    ("study.seeds",),
    lambda stage, seeds: not seeds or stage in ("all", "plan", "report"),
    "all, plan or report in a study (study.seeds = {1})",
    "run a single stage with another experiment file",
  ),
  *(
    Rule(
      f"inputs.{stage}",
      ("study.seeds",),
      lambda given, seeds: not (given and seeds),
      "empty in a study (study.seeds = {1}): its pieces train their own; only frames can be given",
      "leave it out, or run a single stage with another experiment file",
    )
    for stage in GIVEN
    if stage != "collect"
  ),
  Rule(
    "env.image_size",
    ("world_model.vision",),
    lambda size, vision: size in (64, 128) if vision == "conv" else size in (16, 32, 64, 128, 256),
    "64 or 128 for world_model.vision=conv, 16, 32, 64, 128 or 256 for patch (it is {1})",
    "take 64",
  ),
)


def _divisor(total: int, limit: int) -> int:
  """A divisor of `total`, at most `limit` and close to it where the search is quick."""
  near = range(limit, max(limit - 10_000, 0), -1)
  return next((n for n in near if total % n == 0), math.gcd(total, limit))


def check_rule(rule: Rule, values: list[Any]) -> list[Problem]:
  """Problems of several fields together; values of `rule.path` and `rule.needs`, in this order."""
  if rule.holds(*values):
    return []
  hints: dict[str, Any] = {}
  if "{down}" in rule.fix:
    hints["down"] = max(values[0] // values[1], 1) * values[1]
    hints["up"] = (values[0] // values[1] + 1) * values[1]
  if "{divisor}" in rule.fix:
    hints["divisor"] = _divisor(values[1] * values[2], values[0])
  if "{even}" in rule.fix:
    hints["even"] = values[0] + 1
  text = [part.format(*values, **hints) for part in (rule.rule, rule.fix)]
  return [Problem(rule.path, values[0], *text)]
