"""What a config may hold: the words, the range of every field, and what fields must be together.

`config.finalize` applies these tables and reports every problem at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from wam_jax.config.arms import ARMS, MAIN
from wam_jax.config.chain import EXTRA_STAGES, STAGES
from wam_jax.embodiment import CAMERAS
from wam_jax.envs.tasks import TASKS

PRESETS = ("demo", "small", "paper")
MOST = 2**31 - 1  # of whole numbers: more does not fit JAX's integers


@dataclasses.dataclass(frozen=True)
class Problem:
  """One thing wrong with a config.

  Attributes:
    path: dotted path of the field.
    value: what it is.
    rule: what it must be.
    fix: what to do.
  """

  path: str
  value: Any
  rule: str
  fix: str


def _shortened(text: str, most: int = 400) -> str:
  return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


class ConfigError(Exception):
  """The config cannot be used. Its text lists every problem found."""

  def __init__(self, problems: Sequence[Problem]):
    self.problems = tuple(problems)
    count = len(self.problems)
    lines = [f"{count} problem{'s' if count > 1 else ''} in the configuration; nothing was started."]
    for problem in self.problems:
      shown = "" if problem.value is None else f" = {_shortened(repr(problem.value))}"
      lines += [f"  {_shortened(problem.path)}{shown}"]
      lines += [f"    rule: {_shortened(problem.rule, 1000)}", f"    fix:  {_shortened(problem.fix, 1000)}"]
    super().__init__("\n".join(lines))


def suggest(word: str, known: Iterable[str]) -> str:
  """The known word that `word` was most likely meant to be, or ''."""
  known = list(known)
  close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
  if close:
    return close[0]
  # The right last part under a wrong group: world_model.update, model.updates.
  tails: dict[str, list[str]] = {}
  for path in known:
    tails.setdefault(path.rsplit(".", 1)[-1], []).append(path)
  tail = difflib.get_close_matches(word.rsplit(".", 1)[-1], list(tails), n=1, cutoff=0.75)
  return tails[tail[0]][0] if tail and len(tails[tail[0]]) == 1 else ""


def shown(value: Any) -> str:
  """A value as one writes it on the command line."""
  return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def did_you_mean(word: str, known: Iterable[str]) -> str:
  """A question naming the likely right word, or an empty string."""
  better = suggest(word, known)
  return f"did you mean {better}?" if better else ""


@dataclasses.dataclass(frozen=True)
class Check:
  """What one field must be: `holds(value)`, said in words by `rule`."""

  holds: Callable[[Any], bool]
  rule: str
  types: tuple[type, ...]


def _number(low: float, high: float = math.inf, *, open_low: bool = False, whole: bool = False) -> Check:
  """A number in [low, high], or (low, high] if `open_low`."""
  above = f"more than {low}" if open_low else f"at least {low}"
  rule = above if high == math.inf else f"{above} and at most {high}"
  types = (int,) if whole else (int, float)
  return Check(
    lambda value: math.isfinite(value) and (low < value if open_low else low <= value) and value <= high,
    f"{'a whole number, ' if whole else ''}{rule}",
    types,
  )


def _count(low: int = 1, high: int = MOST) -> Check:
  return _number(low, high, whole=True)


def _choice(*words: str) -> Check:
  return Check(lambda value: value in words, f"one of {', '.join(words)}", (str,))


_RATE = _number(0, 1)
_POSITIVE = _number(0, open_low=True)
_NOT_NEGATIVE = _number(0)
_TEXT = Check(lambda value: True, "a word", (str,))
_NAME = Check(
  lambda value: bool(value) and value == value.strip() and "/" not in value, "a name without /", (str,)
)
_PROJECT = Check(
  lambda value: len(value) <= 128 and value == value.strip() and not set(value) & set("/\\#?%:"),
  "a name of at most 128 letters without any of / \\ # ? % :",
  (str,),
)
_FLAG = Check(lambda value: True, "true or false", (bool,))
_WIDTHS = Check(
  lambda value: len(value) > 0 and all(type(width) is int and width > 0 for width in value),
  "one or more layer widths, each at least 1",
  (tuple, list),
)
_UPDATES = Check(
  lambda value: all(type(x) is int and x > 0 for x in value) and list(value) == sorted(set(value)),
  "updates, each at least 1, ascending",
  (tuple, list),
)
_HORIZONS = Check(
  lambda value: len(value) > 0 and _UPDATES.holds(value),
  "one or more frames, each at least 1, ascending",
  (tuple, list),
)
_SEEDS = Check(
  lambda value: all(type(x) is int and 0 <= x <= MOST for x in value) and len(set(value)) == len(value),
  "different seeds, each at least 0",
  (tuple, list),
)
_ARMS = Check(
  lambda value: len(set(value)) == len(value) and set(value) <= set(ARMS),
  f"different arms out of {', '.join(ARMS)}",
  (tuple, list),
)
_FOLDERS = Check(lambda value: all(isinstance(x, str) for x in value), "folders", (tuple, list))
_BETAS = Check(
  lambda value: len(value) == 2 and all(isinstance(x, (int, float)) and 0 <= x < 1 for x in value),
  "two numbers, each at least 0 and below 1",
  (tuple, list),
)
_CAMERA_LIST = Check(
  lambda value: len(value) > 0 and len(set(value)) == len(value) and set(value) <= set(CAMERAS),
  f"one or both of {', '.join(CAMERAS)}",
  (tuple, list),
)
_TASK_LIST = Check(
  lambda value: len(value) > 0 and len(set(value)) == len(value) and set(value) <= set(TASKS),
  f"different tasks out of {', '.join(TASKS)}",
  (tuple, list),
)

# Lists that may be empty, with an example of what they hold.
EMPTY_LISTS: dict[str, tuple[Any, ...]] = {
  "judge.compare": ("",),
  "world_model.snapshots": (1,),
  "study.seeds": (1,),
  "study.arms": ("",),
}

# One line for every field there is.
CHECKS: dict[str, Check] = {
  "experiment": _NAME,
  "preset": _choice(*PRESETS),
  "preset_reason": _TEXT,
  "stage": _choice("all", "plan", *STAGES, *EXTRA_STAGES),
  "workdir": _TEXT,
  "seed": _count(0),
  "tasks": _TASK_LIST,
  "profile": _FLAG,
  **{f"inputs.{stage}": _TEXT for stage in STAGES if stage != "report"},
  "inputs.lumos_checkpoint": _TEXT,
  "inputs.dppo_checkpoint": _TEXT,
  "env.name": _choice("play_table", "calvin"),
  "env.calvin_root": _TEXT,
  "env.calvin_scene": _choice("A", "B", "C", "D"),
  "env.image_size": _count(16, 256),
  "env.max_steps": _count(),
  "env.workers": _count(0),
  "data.source": _choice("embedded", "calvin"),
  "data.calvin_path": _TEXT,
  "data.play_frames": _count(),
  "data.play_episode_frames": _count(2),
  "data.demos_per_task": _count(),
  "data.heldout_demos_per_task": _count(),
  "data.failed_takes_per_task": _count(0),
  "data.heldout_failed_takes_per_task": _count(1),
  "data.heldout_play_frames": _count(0),
  "data.heldout_starts_per_task": _count(),
  "data.action_noise": _number(0, 2),
  "data.failed_attempt_rate": _RATE,
  "data.clumsy_attempt_rate": _RATE,
  "data.aim_error": _NOT_NEGATIVE,
  "data.wrist_error": _NOT_NEGATIVE,
  "data.residency": _choice("auto", "device", "stream"),
  "data.memory_limit_gb": _NOT_NEGATIVE,
  "data.cache": _TEXT,
  "data.skip_broken": _FLAG,
  "world_model.vision": _choice("conv", "patch"),
  "world_model.cameras": _CAMERA_LIST,
  "world_model.depth": _count(),
  "world_model.embed": _count(),
  "world_model.deter": _count(),
  "world_model.stoch": _count(),
  "world_model.classes": _count(2),
  "world_model.hidden": _count(),
  "world_model.proprio": _choice("none", "sincos", "zscore", "latent"),
  "world_model.learned_initial_state": _FLAG,
  "world_model.memory_frames": _count(0),
  "world_model.norm_eps": _POSITIVE,
  "world_model.inverse_dynamics_input": _choice("embedding", "feature"),
  "world_model.inverse_dynamics_hidden": _count(),
  "world_model.image_weight": _NOT_NEGATIVE,
  "world_model.kl_weight": _NOT_NEGATIVE,
  "world_model.kl_balance": _RATE,
  "world_model.inverse_dynamics_weight": _NOT_NEGATIVE,
  "world_model.embedding_image_weight": _NOT_NEGATIVE,
  "world_model.robot_obs_weight": _NOT_NEGATIVE,
  "world_model.failed_takes": _FLAG,
  "world_model.open_loop_share": _RATE,
  "world_model.decode_fraction": _number(0, 1, open_low=True),
  "world_model.batch_size": _count(),
  "world_model.sequence_length": _count(2),
  "world_model.carry_state": _FLAG,
  "world_model.reset_probability": _RATE,
  "world_model.updates": _count(),
  "world_model.snapshots": _UPDATES,
  "world_model.learning_rate": _POSITIVE,
  "world_model.adam_betas": _BETAS,
  "world_model.adam_eps": _POSITIVE,
  "world_model.weight_decay": _NOT_NEGATIVE,
  "world_model.grad_clip": _POSITIVE,
  "world_model.warmup_updates": _count(0),
  "world_model.final_learning_rate_scale": _RATE,
  "world_model.compute_dtype": _choice("auto", "float32", "bfloat16"),
  "world_model.accumulate": _count(),
  "world_model.remat": _FLAG,
  "judge.context": _count(),
  "judge.horizons": _HORIZONS,
  "judge.windows": _count(),
  "judge.probe_frames": _count(2),
  "judge.compare": _FOLDERS,
  "behaviour_cloning.policy": _choice("diffusion", "gaussian"),
  "behaviour_cloning.chunk": _count(),
  "behaviour_cloning.hidden": _count(),
  "behaviour_cloning.blocks": _count(),
  "behaviour_cloning.time_dim": _count(4),
  "behaviour_cloning.denoising_steps": _count(2, 1000),
  "behaviour_cloning.ddim_steps": _count(0, 1000),
  "behaviour_cloning.batch_size": _count(),
  "behaviour_cloning.updates": _count(),
  "behaviour_cloning.learning_rate": _POSITIVE,
  "behaviour_cloning.final_learning_rate": _NOT_NEGATIVE,
  "behaviour_cloning.warmup_updates": _count(0),
  "behaviour_cloning.weight_decay": _NOT_NEGATIVE,
  "behaviour_cloning.ema_decay": _RATE,
  "classifier.embed": _WIDTHS,
  "classifier.hidden": _count(),
  "classifier.temperature": _POSITIVE,
  "classifier.contrastive_weight": _NOT_NEGATIVE,
  "classifier.cross_entropy_weight": _NOT_NEGATIVE,
  "classifier.batch_size": _count(2),
  "classifier.updates": _count(),
  "classifier.learning_rate": _POSITIVE,
  "classifier.weight_decay": _NOT_NEGATIVE,
  "classifier.ensemble": _count(1, 16),
  "classifier.threshold": _RATE,
  "classifier.max_false_positives": _RATE,
  "classifier.enforce_gate": _FLAG,
  "ppo.iterations": _count(),
  "ppo.dreams": _count(),
  "ppo.chunks_per_iteration": _count(),
  "ppo.horizon_steps": _count(),
  "ppo.horizon": _choice("bootstrap", "terminal", "diwa"),
  "ppo.fine_tuned_steps": _count(),
  "ppo.min_sampling_std": _POSITIVE,
  "ppo.min_log_prob_std": _POSITIVE,
  "ppo.log_prob_min": _number(-math.inf),
  "ppo.log_prob_max": _number(-math.inf),
  "ppo.clip_min": _POSITIVE,
  "ppo.clip_max": _number(0, 1, open_low=True),
  "ppo.clip_rate": _POSITIVE,
  "ppo.denoising_discount": _number(0, 1, open_low=True),
  "ppo.gamma": _number(0, 1, open_low=True),
  "ppo.gae_lambda": _RATE,
  "ppo.value_hidden": _WIDTHS,
  "ppo.value_weight": _NOT_NEGATIVE,
  "ppo.reward_clip": _POSITIVE,
  "ppo.actor_learning_rate": _POSITIVE,
  "ppo.critic_learning_rate": _POSITIVE,
  "ppo.weight_decay": _NOT_NEGATIVE,
  "ppo.grad_clip": _NOT_NEGATIVE,
  "ppo.critic_warmup_iterations": _count(0),
  "ppo.epochs": _count(),
  "ppo.minibatches": _count(),
  "ppo.target_kl": _POSITIVE,
  "ppo.start_frames": _count(0),
  "ppo.prior_temperature": _POSITIVE,
  "ppo.failed_starts": _RATE,
  "ppo.bc_weight": _NOT_NEGATIVE,
  "ppo.bc_form": _choice("frozen_chains", "current_chains"),
  "ppo.entropy_penalty": _NOT_NEGATIVE,
  "ppo.eval_every": _count(0),
  "ppo.eval_episodes": _count(0),
  "online.iterations": _count(),
  "online.eval_every": _count(),
  "evaluate.episodes": _count(),
  "evaluate.random_policy": _FLAG,
  "evaluate.expert": _FLAG,
  "evaluate.imagined_episodes": _count(),
  "report.animation_size": _count(32, 1024),
  "study.seeds": _SEEDS,
  "study.arms": _ARMS,
  "study.results": _TEXT,
  "study.page": _TEXT,
  "training.log_every": _count(),
  "training.checkpoint_minutes": _NOT_NEGATIVE,
  "training.keep_checkpoints": _count(),
  "training.restore": _choice("newest", "best"),
  "training.devices": _count(0),
  "training.wandb_project": _PROJECT,
}


@dataclasses.dataclass(frozen=True)
class Rule:
  """What fields must be together. Checked only when each field in `path` and `needs` is right by itself."""

  path: str  # the field that the problem is reported at
  needs: tuple[str, ...]
  holds: Callable[..., bool]  # of the values of path and needs, in this order
  rule: str
  fix: str


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
    "env.image_size",
    ("env.name",),
    lambda size, env: size <= 84 or env != "calvin",
    "at most 84 with env.name=calvin: its wrist camera has no more",
    "take 64",
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
  Rule(
    "behaviour_cloning.batch_size",
    ("data.demos_per_task", "env.max_steps"),
    lambda batch, demos, steps: batch <= demos * steps,
    "at most the frames of a task's demos, data.demos_per_task * env.max_steps ({1} * {2}) as an upper bound",
    "lower it, or collect more demos",
  ),
  Rule(
    "classifier.batch_size",
    ("data.demos_per_task", "env.max_steps"),
    lambda batch, demos, steps: batch <= demos * steps,
    "at most the frames of a task's demos, data.demos_per_task * env.max_steps ({1} * {2}) as an upper bound",
    "lower it, or collect more demos",
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
  Rule(
    "env.image_size",
    ("world_model.vision",),
    lambda size, vision: size in (64, 128) if vision == "conv" else size in (16, 32, 64, 128, 256),
    "64 or 128 for world_model.vision=conv, 16, 32, 64, 128 or 256 for patch (it is {1})",
    "take 64",
  ),
)


def check_field(path: str, value: Any, default: Any) -> list[Problem]:
  """Problems of one field by itself; `default` is shown as an example."""
  check = CHECKS[path]
  fits = isinstance(value, check.types) and (bool in check.types or not isinstance(value, bool))
  try:
    if fits and check.holds(value):
      return []
  except (TypeError, OverflowError):  # of an experiment file: [[]] among names, 10**400
    pass
  fix = f"for instance --config.{path}={shown(default)}" if shown(default) else "see wam_jax/config.py"
  if fits and isinstance(value, str):
    fix = did_you_mean(value, re.split(r"[ ,]+", check.rule)) or fix
  if fits and path == "tasks":
    unknown = [str(task) for task in value if task not in TASKS]
    better = [f"{task}: {did_you_mean(task, TASKS)}" for task in unknown if suggest(task, TASKS)]
    fix = "; ".join(better) or ("remove the repeated one" if value and not unknown else fix)
  return [Problem(path, value, check.rule, fix)]


def _divisor(whole: int, most: int) -> int:
  """A divisor of `whole`, at most `most` and close to it where one is found quickly."""
  near = range(most, max(most - 10_000, 0), -1)
  return next((n for n in near if whole % n == 0), math.gcd(whole, most))


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
