"""Defaults, presets and checks of the experiment configuration. No JAX here.

A config is made by an experiment file (`wam_jax/experiments/*.py`), changed on the command line
(`--config.world_model.updates=500`), and then checked and completed once by `finalize`.
Values of `paper` are published ones: WAM (arXiv 2603.28955), DiWA (2508.03645),
DPPO (2409.00588), LUMOS.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, FrozenConfigDict

from wam_jax.config_rules import (
  CHECKS,
  EMPTY_LISTS,
  PRESETS,
  RULES,
  STAGES,
  TASKS,
  ConfigError,
  Problem,
  check_field,
  check_rule,
  did_you_mean,
  shown,
)
from wam_jax.config_surroundings import DERIVED
from wam_jax.machine import available_cores, find_accelerator


def default_config() -> ConfigDict:
  """The `paper` preset: published sizes. The other presets are differences from it."""
  c = ConfigDict()
  c.experiment = "calvin_wam"  # name of the run, part of the default workdir
  c.preset = "paper"  # set by the experiment file: experiments/NAME.py:PRESET
  c.preset_reason = ""  # why this preset was chosen; printed in the plan
  c.stage = "all"  # all, plan, or one of STAGES and EXTRA_STAGES
  c.workdir = ""  # empty: runs/<experiment>_<preset>
  c.seed = 0  # of all that is random
  c.tasks = TASKS  # skills, one policy each
  c.profile = False  # record a jax.profiler trace of two calls of each training stage

  # Finished artifacts of other runs to use instead of running the stage: folders holding DONE.
  c.inputs = ConfigDict({stage: "" for stage in STAGES if stage != "report"})
  # A world model trained with LUMOS or DiWA (.ckpt, or .npz of its state dict), taken instead of training.
  c.inputs.lumos_checkpoint = ""
  # Diffusion policies trained with DPPO or DiWA (.pt, or .npz of a state dict), taken instead of cloning: a
  # path with {task} for the task's name, one file per task; without it where there is one task.
  c.inputs.dppo_checkpoint = ""

  c.env = ConfigDict()
  c.env.name = "play_table"  # play_table (embedded simulator), calvin (CALVIN's own)
  c.env.calvin_root = ""  # checkout of mees/calvin_env, for calvin; empty: $CALVIN_ROOT
  c.env.calvin_scene = "D"  # A, B, C or D; scripted experts know D only
  c.env.image_size = 64  # side of the pictures, in pixels, as models see them
  c.env.max_steps = 72  # control steps of an episode, at 30 Hz
  c.env.workers = 0  # threads for physics and pictures; 0: one per core

  c.data = ConfigDict()
  c.data.source = "calvin"  # embedded: scripted experts in env.name; calvin: a dataset on disk
  c.data.calvin_path = ""  # folder with training/ and validation/, CALVIN's or converted; empty: $CALVIN_DATA
  c.data.play_frames = 512_000  # task-free frames to collect (embedded)
  c.data.play_episode_frames = 512  # frames per play episode (embedded)
  c.data.demos_per_task = 50  # the first so many annotated windows of training/
  c.data.heldout_demos_per_task = 10  # of validation/; no training sees them
  c.data.failed_takes_per_task = (
    0  # labelled failures beside the demos, for the classifier and as starts of dreams
  )
  c.data.heldout_failed_takes_per_task = 10  # more of them that no training sees, where there are any
  c.data.heldout_play_frames = 20_000  # of play for validation, on which world models are judged (embedded)
  c.data.heldout_starts_per_task = 50  # start states kept for evaluation
  c.data.action_noise = 0.3  # std of Gaussian noise on the experts' motion, in action units
  c.data.failed_attempt_rate = 0.25  # share of play skills broken off half-way (embedded)
  c.data.clumsy_attempt_rate = 0.5  # share of play skills aimed beside their target (embedded)
  c.data.aim_error = 0.02  # m, standard deviation of these along each axis
  # rad, standard deviation about each axis of how the hand is turned in the skills of play and in failed
  # takes: where it always is straight, the world model cannot see that it is not.
  c.data.wrist_error = 0.0
  c.data.residency = "auto"  # of training frames: device, stream (from disk), auto: stream what does not fit
  c.data.memory_limit_gb = 0.0  # for frames and training, on the device that trains; 0: what is free there
  c.data.skip_broken = False  # convert: leave out frames that cannot be read
  c.data.cache = ""  # folder for shrunk frames to stream from; empty: <workdir>/world_model/frames_cache

  w = c.world_model = ConfigDict()
  w.vision = "conv"  # conv: LUMOS's strided convolutions; patch: non-overlapping patches, fast on a CPU
  w.cameras = ("rgb_static", "rgb_gripper")
  w.depth = 48  # first width of the vision networks; doubled per layer
  w.embed = 1536  # E, width of the encoder embedding e_t
  w.deter = 1024  # D
  w.stoch = 32  # S
  w.classes = 32  # C
  w.hidden = 1000  # width of the layers around the recurrent unit
  # Robot state. sincos: 18 numbers next to the embedding, angles as sine and cosine; zscore: LUMOS's 15
  # numbers by the data's mean and deviation, for its checkpoints (the roll jumps at +-pi); latent: the 18
  # numbers are a part of the latent, as reported where they are seen, predicted in dreams (not in the paper).
  w.proprio = "none"
  w.learned_initial_state = False  # LUMOS: learn the state before the first frame; else zero
  # Frames that the units of the recurrent state remember up to when training starts; 0: about 2, as LUMOS's.
  w.memory_frames = 0
  w.norm_eps = 1e-3  # of the layer norms
  w.inverse_dynamics_input = "embedding"  # feature: to show why not; h_{t+1} holds a_t already
  w.inverse_dynamics_hidden = 512  # width of its layers
  w.image_weight = 1.0  # of the pictures' error in the loss
  w.kl_weight = 3.0  # WAM; LUMOS has 0.3
  w.kl_balance = 0.8  # share of the KL that trains the prior
  w.inverse_dynamics_weight = 1000.0  # 0: plain DreamerV2
  w.embedding_image_weight = 0.0  # also reconstruct the pictures straight from e_t (not in the paper)
  # Of the robot state's error: of its prediction with proprio=latent, else of rebuilding it from the features
  # (neither is in the paper).
  w.robot_obs_weight = 0.0
  w.failed_takes = False  # also train on the failed takes that are not held out, if any (not in the paper)
  # Share of an update's windows that are seen up to a random frame only and imagined from there on, so that
  # dreams of many frames are trained, not of one (not in the paper).
  w.open_loop_share = 0.0
  w.decode_fraction = 1.0  # share of frames decoded per update
  w.batch_size = 50  # windows per update
  w.sequence_length = 50  # frames of a window
  w.carry_state = False  # true: each window goes on from the state of the one before it (LUMOS)
  w.reset_probability = 0.01  # with carry_state: of a zero state before a frame
  w.updates = 230_000
  w.snapshots = ()  # updates after which the model is also kept as an artifact, in snapshots/<update>
  w.learning_rate = 3e-4
  w.adam_betas = (0.9, 0.999)
  w.adam_eps = 1e-5
  w.weight_decay = 0.05
  w.grad_clip = 100.0  # global norm
  w.warmup_updates = 0  # of linear warm-up
  w.final_learning_rate_scale = 1.0  # cosine decay to this share of learning_rate by the last update
  w.compute_dtype = "auto"  # float32, bfloat16 (parameters and loss stay float32), auto: by the device
  w.accumulate = 1  # parts that a batch is worked through in, for small memories
  w.remat = False  # compute activations again in the backward pass, for small memories

  j = c.judge = ConfigDict()
  j.context = 5  # frames seen before the open-loop prediction
  j.horizons = (1, 5, 10, 20, 50)  # frames imagined after them, at which everything is measured
  j.windows = 256  # held-out windows of context + max(horizons) frames
  j.probe_frames = 20_000  # of training play, to fit the linear probes on
  # Other world models to judge on the same data: folders of finished world_model artifacts, or the work
  # folders above them.
  j.compare = ()

  b = c.behaviour_cloning = ConfigDict()
  b.policy = "diffusion"  # diffusion, or gaussian: one Gaussian around the output of a network, no denoising
  b.chunk = 4  # H, actions per chunk, all executed
  b.hidden = 512  # width of the network
  b.blocks = 1  # residual blocks of two layers
  b.time_dim = 16  # width of the embedding of the denoising step
  b.denoising_steps = 20  # K
  b.ddim_steps = (
    0  # denoising steps when evaluated, by DDIM without noise; 0: all K of DDPM. PPO dreams with all K
  )
  b.batch_size = 256
  b.updates = 50_000  # about 5000 epochs over 50 demos
  b.learning_rate = 1e-4
  b.final_learning_rate = 1e-5
  b.warmup_updates = 100
  b.weight_decay = 1e-6
  b.ema_decay = 0.995  # of the averaged weights, which are the ones that act

  k = c.classifier = ConfigDict()
  k.embed = (1024, 256)  # layers of the embedding, the last one its size
  k.hidden = 1024  # width of the head behind the embedding
  k.temperature = 0.5  # of NT-Xent
  k.contrastive_weight = 1.0  # of NT-Xent in the loss
  k.cross_entropy_weight = 0.5  # of the cross-entropy in the loss
  k.batch_size = 256
  k.updates = 5_000
  k.learning_rate = 3e-4
  k.weight_decay = 1e-2
  k.ensemble = 1  # networks; success is what all of them call so
  k.threshold = 0.5  # probability above which a feature counts as success
  k.max_false_positives = 0.05  # in random-action dreams; above it PPO refuses to start
  k.enforce_gate = True  # false: PPO starts also above max_false_positives

  p = c.ppo = ConfigDict()
  p.iterations = 800
  p.dreams = 50  # E
  p.chunks_per_iteration = 18  # N
  p.horizon_steps = 72  # actions until a dream is cut
  p.horizon = (
    "bootstrap"  # bootstrap: value of the last feature; terminal: the end, with the time left as input;
    # diwa: value of the next dream's first feature, their leak
  )
  p.fine_tuned_steps = 10  # K'; a gaussian policy has one step
  p.min_sampling_std = 0.1  # of each denoising step; of a gaussian policy the standard deviation itself
  p.min_log_prob_std = 0.1  # the same, in log-probabilities
  p.log_prob_min = -5.0  # clamp of the log-probability of each number of a chunk
  p.log_prob_max = 2.0  # the same, above
  p.clip_min = 0.001  # clip range of the noisiest fine-tuned step
  p.clip_max = 0.01  # of the last step
  p.clip_rate = 3.0  # how strongly the range bends between them
  p.denoising_discount = 0.99  # of the advantage, per denoising step before the last
  p.gamma = 0.999  # discount per chunk
  p.gae_lambda = 0.95
  p.value_hidden = (256, 256, 256)  # an odd number of equal widths
  p.value_weight = 0.5
  p.reward_clip = 10.0  # bound of rewards after scaling
  p.actor_learning_rate = 1e-5
  p.critic_learning_rate = 1e-3
  p.weight_decay = 0.0
  p.grad_clip = 0.0  # 0: none
  p.critic_warmup_iterations = 2  # first iterations in which only the critic learns
  p.epochs = 10  # over the chunks of an iteration
  p.minibatches = 1  # per epoch; each holds dreams * chunks_per_iteration / minibatches chunks
  p.target_kl = 1.0  # above it the actor rests for the remainder of the iteration
  p.start_frames = 4  # first frames of a demo that dreams start from; 0: all before success
  # Divides the prior's logits in the dreams that PPO learns from: above 1 they are less sure of what an
  # action does than the world model is. Where imagined success is measured it is 1.
  p.prior_temperature = 1.0
  p.failed_starts = 0.0  # share of dreams that start anywhere in failed takes, beside the handle
  p.bc_weight = 0.025  # alpha of the behaviour-cloning regulariser
  # Chains that it looks at: frozen_chains: the cloned policy's, under the one being trained;
  # current_chains: the other way round.
  p.bc_form = "frozen_chains"
  # Reward taken off a chunk per nat that the prior's entropy exceeds that on 95 % of demo frames.
  p.entropy_penalty = 0.0
  p.eval_every = 25  # iterations between measurements of the policies, imagined and real; 0: none
  p.eval_episodes = 20  # real ones per task, from held-out starts that evaluate leaves; 0: imagined only

  o = c.online = ConfigDict()  # stage online_ppo: PPO in the simulator, with the settings of `ppo`
  o.iterations = 50  # of ppo.dreams * ppo.chunks_per_iteration real chunks per task
  o.eval_every = 5  # iterations between measurements in the simulator

  e = c.evaluate = ConfigDict()
  e.episodes = 50  # per task and policy
  e.random_policy = True  # also measure a policy with random weights
  e.expert = True  # also measure the scripted expert
  e.imagined_episodes = 200  # dreams per task for the imagined success

  r = c.report = ConfigDict()
  r.animation_size = 160  # side of the animations, in pixels

  s = c.study = ConfigDict()
  s.seeds = ()  # with seeds, the run is a study: stage all runs its pieces, report makes its page
  s.arms = ()  # of config_study.ARMS
  s.results = "docs/results"  # folder that takes a file for each finished piece
  s.page = "docs/RESULTS.md"  # file that report writes

  t = c.training = ConfigDict()
  t.log_every = 50  # updates between metric lines
  t.checkpoint_minutes = 2.0  # between checkpoints of a running stage
  t.keep_checkpoints = 2  # of a running stage, the newest; and the one with the best loss or imagined success
  t.restore = "newest"  # checkpoint that a stage goes on from: newest; best: goes back to the best one, once
  t.devices = 0  # that batches and dreams are divided over; 0: all there are, on all hosts
  t.wandb_project = ""  # of Weights & Biases, that metrics are sent to as well; empty: nothing is sent
  return c


# Differences of each preset from `default_config`.
_DEMO: dict[str, Any] = {
  "data.source": "embedded",
  "data.play_frames": 24_000,
  "data.play_episode_frames": 512,
  "data.heldout_demos_per_task": 30,
  "data.failed_takes_per_task": 60,
  "data.heldout_failed_takes_per_task": 30,
  "data.wrist_error": 0.1,
  "data.heldout_play_frames": 4_000,
  "judge.horizons": (1, 5, 10, 20, 40),
  "judge.windows": 64,
  "judge.probe_frames": 6_000,
  "data.heldout_starts_per_task": 50,
  "world_model.vision": "patch",
  "world_model.depth": 16,
  "world_model.embed": 384,
  "world_model.deter": 256,
  "world_model.stoch": 16,
  "world_model.classes": 16,
  "world_model.hidden": 256,
  "world_model.inverse_dynamics_hidden": 256,
  "world_model.embedding_image_weight": 1.0,
  "world_model.proprio": "latent",
  "world_model.robot_obs_weight": 1000.0,
  "world_model.failed_takes": True,
  "world_model.memory_frames": 64,
  "world_model.open_loop_share": 0.5,
  "world_model.decode_fraction": 0.125,
  "world_model.batch_size": 16,
  "world_model.sequence_length": 24,
  "world_model.updates": 1_100,
  "world_model.learning_rate": 6e-4,
  "world_model.warmup_updates": 50,
  "world_model.final_learning_rate_scale": 0.1,
  "behaviour_cloning.hidden": 256,
  "behaviour_cloning.batch_size": 128,
  "behaviour_cloning.updates": 2_000,
  "behaviour_cloning.learning_rate": 1e-3,
  "behaviour_cloning.final_learning_rate": 1e-5,
  "classifier.embed": (256, 128),
  "classifier.hidden": 256,
  "classifier.updates": 800,
  "ppo.iterations": 14,
  "ppo.dreams": 50,
  "ppo.horizon": "terminal",
  "ppo.epochs": 4,
  "ppo.minibatches": 2,
  "ppo.start_frames": 0,
  "ppo.gamma": 0.97,
  "ppo.eval_every": 0,
  "ppo.actor_learning_rate": 1e-4,
  "evaluate.episodes": 50,
  "evaluate.random_policy": False,
  "evaluate.imagined_episodes": 100,
  "training.log_every": 10,
}
PRESET_CHANGES: dict[str, dict[str, Any]] = {
  "demo": _DEMO,
  # The demo trained longer: one seed of all tasks in half an hour on one core.
  "small": {
    **_DEMO,
    "data.heldout_starts_per_task": 70,
    "judge.windows": 128,
    "judge.probe_frames": 12_000,
    "world_model.updates": 2_400,
    "world_model.learning_rate": 4e-4,
    "behaviour_cloning.updates": 3_000,
    "ppo.iterations": 32,
    "evaluate.imagined_episodes": 200,
  },
  "paper": {},
}


def own_experiments() -> dict[str, pathlib.Path]:
  """The files of `wam_jax/experiments`, by name."""
  files = sorted((pathlib.Path(__file__).parent / "experiments").glob("[!_]*.py"))
  return {file.stem: file for file in files}


def experiment_file(value: str) -> str:
  """The value of --config, with the path of one of our own experiments where only its name was given.

  Args:
    value: PATH[:preset]. Where there is no such file, experiments/NAME.py or NAME is the experiment that is
      installed with the package, so that commands work outside of a checkout too.
  """
  path, colon, preset = value.partition(":")
  name = path.removeprefix("experiments/").removesuffix(".py")
  found = None if os.path.exists(path) else own_experiments().get(name)
  return f"{found}{colon}{preset}" if found else value


def preset_config(preset: str = "auto", experiment: str = "calvin_wam") -> ConfigDict:
  """The config of a preset, before overrides.

  Args:
    preset: auto, or one of PRESETS.
    experiment: name of the experiment, part of the default work folder.

  Raises:
    ConfigError: unknown preset.
  """
  reason = "asked for"
  if preset == "auto":
    preset, reason = detect_preset()
  if preset not in PRESETS:
    fix = did_you_mean(preset, PRESETS) or f"experiments/{experiment}.py:demo"
    raise ConfigError([Problem("preset", preset, f"one of auto, {', '.join(PRESETS)}", fix)])
  config = default_config()
  config.experiment, config.preset, config.preset_reason = experiment, preset, reason
  config.update_from_flattened_dict(PRESET_CHANGES[preset])
  return config


def detect_preset(
  environ: Mapping[str, str] = os.environ, root: str | os.PathLike[str] = "/"
) -> tuple[str, str]:
  """Chooses a preset from hardware and data, without importing JAX.

  Args:
    environ: environment variables.
    root: where to look for device nodes; for tests.

  Returns:
    (preset, why).
  """
  device, why_not, fix = find_accelerator(environ, root)
  cores = available_cores()
  if not device:
    note = f"{why_not} ({fix})" if fix else why_not
    return "demo", f"{note}; {cores} CPU core{'s' if cores > 1 else ''}"
  data = environ.get("CALVIN_DATA", "")
  if data and (pathlib.Path(data) / "training").is_dir():
    return "paper", f"{device} and CALVIN's data in {data}"
  return "small", f"{device}, and no CALVIN data ($CALVIN_DATA names no folder with training/)"


def apply_overrides(config: ConfigDict, overrides: Iterable[tuple[str, str]]) -> list[Problem]:
  """Sets fields from command-line text, in place, as far as possible.

  Args:
    config: changed.
    overrides: (dotted path, text) pairs.

  Returns:
    What could not be set: unknown keys with the likely right one, texts that are not of the field's type.
  """
  fields = flatten(config)
  problems = []
  for path, text in overrides:
    if path not in fields:
      inside = [name for name in fields if name.startswith(path + ".")]
      known = f"a group, with {', '.join(name[len(path) + 1 :] for name in inside)}" if inside else ""
      better = did_you_mean(path, fields) or "see wam_jax/config.py for all fields"
      problems.append(Problem(path, text, "a field of the config", known or better))
      continue
    try:
      # An empty list does not show what belongs in it; its check does.
      example = fields[path] if fields[path] != () else EMPTY_LISTS.get(path, ())
      config.update_from_flattened_dict({path: _parse(text, example)})
    except (ValueError, SyntaxError, TypeError):
      kind = _type_name(fields[path])
      problems.append(Problem(path, text, kind, f"--config.{path}={shown(fields[path])} is the value it had"))
  return problems


def _parse(text: str, example: Any) -> Any:
  """Reads `text` as the type of `example`. Raises ValueError."""
  if isinstance(example, bool):
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if text.lower() not in words:
      raise ValueError(text)
    return words[text.lower()]
  if isinstance(example, int):
    number = float(text.replace("_", ""))  # 1e5 is an integer too
    if not number.is_integer():
      raise ValueError(text)
    return int(text) if text.replace("_", "").lstrip("+-").isdigit() else int(number)
  if isinstance(example, float):
    return float(text)
  if isinstance(example, tuple):
    text = text.strip()
    if text[:1] + text[-1:] in ("()", "[]"):  # only both: a folder's name may end with a bracket
      text = text[1:-1]
    items = [item.strip().strip("'\"") for item in text.split(",")]
    return tuple(_parse(item, example[0] if example else "") for item in items if item)
  return text


def _type_name(value: Any) -> str:
  if isinstance(value, tuple):
    return f"a comma-separated list, each {_type_name(value[0]) if value else 'a word'}"
  names = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
  return names[type(value)]


def finalize(config: ConfigDict, problems: Sequence[Problem] = ()) -> ConfigDict:
  """Checks and completes a config: the only place where values are derived.

  Args:
    config: from an experiment file, after overrides; not changed.
    problems: what is already known to be wrong, reported together with the rest.

  Returns:
    A frozen copy. Derived: `workdir`, `data.calvin_path` from $CALVIN_DATA, `env.workers`.

  Raises:
    ConfigError: listing every problem.
  """
  c = ConfigDict(config.copy_and_resolve_references().to_dict())
  problems = [*problems, *_check_structure(c)]
  values, defaults = flatten(c), flatten(default_config())
  wrong = {problem.path for problem in problems}
  for path in sorted((set(CHECKS) & set(values)) - wrong, key=list(CHECKS).index):
    problems += check_field(path, values[path], defaults[path])
  wrong = {problem.path for problem in problems} | (set(CHECKS) - set(values))
  for rule in RULES:
    if not wrong & {rule.path, *rule.needs}:
      problems += check_rule(rule, [values[path] for path in (rule.path, *rule.needs)])

  for needs, derive in DERIVED:
    if not wrong & set(needs):
      problems += derive(c) or ()
  if problems:
    raise ConfigError(problems)
  return FrozenConfigDict(c)


def _check_structure(config: ConfigDict) -> list[Problem]:
  """Fields that an experiment file added or removed."""
  fields = flatten(config)
  problems = []
  for path in fields:
    if path not in CHECKS:
      fix = did_you_mean(path, CHECKS) or "remove it, or add a check to wam_jax/config.py"
      problems.append(Problem(path, fields[path], "a field of the config", fix))
  for path in CHECKS:
    if path not in fields:
      problems.append(Problem(path, None, "must be there", "start from wam_jax.config.preset_config"))
  return problems


# What is divided over the devices, by the stage that divides it, and what else must divide it.
_DIVIDED = (
  ("world_model.batch_size", "world_model.accumulate"),
  ("behaviour_cloning.batch_size", ""),
  ("classifier.batch_size", ""),
  ("ppo.dreams", ""),
)


def device_problems(config: Any, num_devices: int, num_processes: int = 1) -> list[Problem]:
  """Batches that the devices of a run cannot share evenly.

  Args:
    config: from `finalize`.
    num_devices: that there are, of all processes.
    num_processes: of the run.
  """
  wanted = config.training.devices
  if wanted > num_devices:
    rule = f"at most the {num_devices} devices that there are"
    return [Problem("training.devices", wanted, rule, "leave it at 0 to use all of them")]
  if num_processes > 1 and wanted not in (0, num_devices):
    rule = f"0 or all {num_devices} devices, with {num_processes} processes"
    return [Problem("training.devices", wanted, rule, "leave it at 0, or start fewer processes")]
  devices = wanted or num_devices
  fields = flatten(config)
  problems = []
  if num_processes > 1 and config.stage == "online_ppo":
    rule = "not online_ppo with several processes: its simulators are one machine's"
    problems.append(Problem("stage", config.stage, rule, "start one process"))
  for path, other in _DIVIDED:
    size, unit = fields[path], devices * (fields[other] if other else 1)
    if size % unit:
      low, high = size // unit * unit, (size // unit + 1) * unit
      nearest = " or ".join(str(one) for one in (low, high) if one)
      what = f"{devices} devices" + (f" times {other}" if other and fields[other] > 1 else "")
      fix = f"--config.{path}={nearest}"
      fewer = max(n for n in range(1, devices + 1) if size % (n * unit // devices) == 0)
      if num_processes == 1:
        fix += f", or --config.training.devices={fewer}"
      problems.append(Problem(path, size, f"a multiple of {unit} ({what})", fix))
  return problems


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
  """Config -> {dotted path: value}."""
  flat: dict[str, Any] = {}
  for key in config:
    value = config[key]
    if isinstance(value, ConfigDict | FrozenConfigDict):
      flat |= flatten(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = value
  return flat
