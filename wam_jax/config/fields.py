"""All fields of a config, one row each: defaults, checks and docs/CONFIG.md are made of them.

To add a field, add its row, and its path to what each stage that depends on it `reads` (chain.py); then
`python -m wam_jax.config.reference > docs/CONFIG.md`. Defaults are those of `paper`, published values: WAM
(arXiv 2603.28955), DiWA (2508.03645), DPPO (2409.00588), LUMOS. The other presets: presets.py.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from wam_jax.config.arms import ARMS
from wam_jax.config.chain import EXTRA_STAGES, GIVEN, STAGES
from wam_jax.config.checks import (
  BETAS,
  EPISODES,
  FLAG,
  FOLDERS,
  HORIZONS,
  NAME,
  NOT_NEGATIVE,
  PLACE,
  POSITIVE,
  PROJECT,
  RATE,
  RESIDUAL_WIDTHS,
  SEEDS,
  SIMULATOR,
  TEXT,
  UPDATES,
  WIDTHS,
  WORDS,
  Check,
  Problem,
  choice,
  count,
  did_you_mean,
  names,
  number,
  shown,
  subset,
)
from wam_jax.embodiment import CAMERAS
from wam_jax.envs.tasks import TASKS

PRESETS = ("demo", "small", "paper")


@dataclasses.dataclass(frozen=True)
class Field:
  """One field of the config.

  Attributes:
    path: dotted, as on the command line.
    default: its value in preset `paper`.
    check: what it must be by itself; what it must be together with others: rules.py.
    doc: what it is, where its name does not say that.
    silent: value at which fingerprints leave the field out, so that a field that is new leaves finished runs
      what they are; None: none.
  """

  path: str
  default: Any
  check: Check
  doc: str = ""
  silent: Any = None

  def problems(self, value: Any) -> list[Problem]:
    """What is wrong with `value` by itself; the default is shown as an example."""
    fits = self.check.takes(value)
    try:
      if fits and self.check.holds(value):
        return []
    except (TypeError, OverflowError):  # of an experiment file: [[]] among names, 10**400
      pass
    example = shown(self.default)
    fix = f"for instance --config.{self.path}={example}" if example else "see wam_jax/config/fields.py"
    if fits and isinstance(value, str):
      fix = did_you_mean(value, re.split(r"[ ,]+", self.check.rule)) or fix
    if fits and isinstance(value, tuple) and any(value.count(item) > 1 for item in value):
      fix = "remove the repeated one"
    return [Problem(self.path, value, self.check.rule, fix)]


# fmt: off
ROWS: tuple[Field, ...] = (
  Field("experiment", "calvin_wam", NAME, "name of the run, part of the default workdir"),
  Field("preset", "paper", choice(*PRESETS), "set by the experiment file: experiments/NAME.py:PRESET"),
  Field("preset_reason", "", TEXT, "why this preset was chosen; printed in the plan"),
  Field("stage", "all", choice("all", "plan", *STAGES, *EXTRA_STAGES),
    "all, plan, or one of STAGES and EXTRA_STAGES"),
  Field("workdir", "", PLACE, "empty: runs/<experiment>_<preset>"),
  Field("seed", 0, count(0), "of all that is random"),
  Field("tasks", TASKS, names("different tasks of the simulator, or of the data"),
    "skills, one policy each"),
  Field("profile", False, FLAG, "record a jax.profiler trace of two calls of each training stage"),

  *(Field(f"inputs.{stage}", "", PLACE) for stage in GIVEN),
  Field("inputs.lumos_checkpoint", "", PLACE,
    "A world model trained with LUMOS or DiWA (.ckpt, state dict, .safetensors or .npz), taken "
    "instead of training."),
  Field("inputs.dppo_checkpoint", "", PLACE,
    "Diffusion policies trained with DPPO or DiWA (.pt, state dict, .safetensors or .npz), taken instead of "
    "cloning: a path with {task} for the task's name, a file for each; without it where there is one task."),

  Field("env.name", "play_table", SIMULATOR,
    "play_table (embedded simulator), calvin (CALVIN's own), metaworld, gymnasium:ENV_ID, module:attribute "
    "of your own, or the name that an installed package gives its simulator: docs/guides/own_simulator.md"),
  Field("env.calvin_root", "", PLACE, "checkout of mees/calvin_env, for calvin; empty: $CALVIN_ROOT"),
  Field("env.calvin_scene", "D", choice("A", "B", "C", "D"), "A, B, C or D; scripted experts know D only"),
  Field("env.tasks", (), WORDS,
    "of a gymnasium environment, told it by reset(options={'task': ...}) if there are several; empty: its "
    "attribute tasks, or one that is called like it", silent=()),
  Field("env.pictures", (), WORDS,
    "dotted keys of pictures in a gymnasium observation; empty: all there are, or what it renders",
    silent=()),
  Field("env.state", (), WORDS,
    "dotted keys of the robot's numbers there; empty: all vectors of floats", silent=()),
  Field("env.success", "", TEXT,
    "key of a gymnasium info that says that the task is done, or 'terminated'; empty: success, is_success",
    silent=""),
  Field("env.expert", "", TEXT,
    "module:function(env, observation) -> action, a scripted policy of a gymnasium environment that has no "
    "method expert", silent=""),
  Field("env.renderer", "rays", choice("rays", "gl"),
    "of metaworld. rays: MuJoCo's rays, everywhere the same; gl: MuJoCo's own renderer, where OpenGL works",
    silent="rays"),
  Field("env.distractors", 0, count(0),
    "Patches that wander over the pictures of play_table, and flickering light; 0: none. 1, 2, 3: 2, 4, 6 "
    "patches for each camera, of 12, 14, 16 % of its side, which keep 95, 90, 85 % of their place in a step; "
    "brightness varies by 6, 12, 18 % (standard deviation). Episodes are the same with and without.",
    silent=0),
  Field("env.image_size", 64, count(16, 256), "side of the pictures, in pixels, as models see them"),
  Field("env.max_steps", 72, count(), "control steps of an episode; the embedded table makes 30 a second"),
  Field("env.workers", 0, count(0), "threads for physics and pictures; 0: one per core"),

  Field("data.source", "calvin", choice("embedded", "calvin", "lerobot"),
    "embedded: scripted experts in env.name; calvin: a dataset on disk; lerobot: LeRobot datasets on disk"),
  Field("data.calvin_path", "", PLACE,
    "folder with training/ and validation/, CALVIN's or converted; empty: $CALVIN_DATA"),
  Field("data.path", (), FOLDERS,
    "lerobot: folders of datasets of one robot; their episodes are counted on through all of them", ()),
  Field("data.episodes", (), EPISODES,
    "lerobot: episodes that are not what their tasks say, as NAME:NUMBER or NAME:FIRST-LAST. NAME is a task, "
    "play, heldout (validation), failed (takes of their task) or unused", ()),
  Field("data.task_column", "task_index", TEXT,
    "lerobot: column of the frames that names their task; runs of frames of one of `tasks` are demos, all "
    "else is play", "task_index"),
  Field("data.heldout_share", 0.2, RATE,
    "lerobot: share of the demos of each task, and of play, that are held out: the last ones, at least one. "
    "Not used where data.episodes or the dataset's splits say which.", 0.2),
  Field("data.success_reward", 1.0, number(-math.inf),
    "lerobot: next.reward from which on the task is done, without next.success", 1.0),
  Field("data.success_frames", 0, count(0),
    "lerobot: last frames of a demo in which its task is done, without next.success and next.reward", 0),
  Field("data.embodiment", "", PLACE,
    "lerobot: embodiment.json that describes the robot; empty: the dataset's own, or by its info.json, with "
    "ranges of actions from its statistics", ""),
  Field("data.play_frames", 512_000, count(), "task-free frames to collect (embedded)"),
  Field("data.play_episode_frames", 512, count(2), "frames per play episode (embedded)"),
  Field("data.demos_per_task", 50, count(), "the first so many annotated windows of training/"),
  Field("data.heldout_demos_per_task", 10, count(), "of validation/; no training sees them"),
  Field("data.play_successes_per_task", 0, count(0),
    "windows of play in which a task got done, at most so many: cloned like demos (not in the paper)",
    silent=0),
  Field("data.play_successes_by", "predicates", choice("predicates", "classifier"),
    "what finds them: the tasks' predicates, by CALVIN's scene_obs, or the success classifier",
    silent="predicates"),
  Field("data.failed_takes_per_task", 0, count(0),
    "labelled failures, next to the demos, for the classifier and as starts of dreams"),
  Field("data.heldout_failed_takes_per_task", 10, count(1),
    "more of them that no training sees, where there are any"),
  Field("data.heldout_play_frames", 20_000, count(0),
    "of play for validation, on which world models are judged (embedded)"),
  Field("data.heldout_starts_per_task", 50, count(), "start states kept for evaluation"),
  Field("data.action_noise", 0.3, number(0, 2),
    "std of Gaussian noise on the experts' motion, in action units"),
  Field("data.failed_attempt_rate", 0.25, RATE, "share of play skills broken off half-way (embedded)"),
  Field("data.clumsy_attempt_rate", 0.5, RATE, "share of play skills aimed off their target (embedded)"),
  Field("data.aim_error", 0.02, NOT_NEGATIVE,
    "m, standard deviation of these along each axis; to a gymnasium environment 0.02 is a unit of an action"),
  Field("data.wrist_error", 0.0, NOT_NEGATIVE,
    "rad, standard deviation about each axis of how the hand is turned in the skills of play and in failed "
    "takes: where it always is straight, the world model cannot see that it is not."),
  Field("data.residency", "auto", choice("auto", "device", "stream"),
    "of training frames: device, stream (from disk), auto: stream what does not fit"),
  Field("data.memory_limit_gb", 0.0, NOT_NEGATIVE,
    "for frames and training, on the device that trains; 0: what is free there"),
  Field("data.cache", "", PLACE,
    "folder for shrunk frames to stream from; empty: <workdir>/world_model/frames_cache"),
  Field("data.skip_broken", False, FLAG, "convert: leave out frames that cannot be read"),

  Field("world_model.vision", "conv", choice("conv", "patch"),
    "conv: LUMOS's strided convolutions; patch: non-overlapping patches, fast on a CPU"),
  Field("world_model.cameras", CAMERAS, names("different cameras of the data, one or more"),
    "where the data have others and this is as it was: all of theirs"),
  Field("world_model.depth", 48, count(), "first width of the vision networks; doubled per layer"),
  Field("world_model.embed", 1536, count(), "E, width of the encoder embedding e_t"),
  Field("world_model.deter", 1024, count(), "D"),
  Field("world_model.stoch", 32, count(), "S"),
  Field("world_model.classes", 32, count(2), "C"),
  Field("world_model.hidden", 1000, count(), "width of the layers around the recurrent unit"),
  Field("world_model.proprio", "none", choice("none", "sincos", "zscore", "latent"),
    "Robot state. sincos: 18 numbers next to the embedding, angles as sine and cosine; zscore: LUMOS's 15 "
    "numbers by the data's mean and deviation, for its checkpoints (the roll jumps at +-pi); latent: the 18"
    " numbers are a part of the latent, as reported where they are seen, predicted in dreams (not in the "
    "paper)."),
  Field("world_model.learned_initial_state", False, FLAG,
    "hold LUMOS's weights of the state before the first frame; nothing uses them: episodes begin from zero"),
  Field("world_model.memory_frames", 0, count(0),
    "Frames that the units of the recurrent state remember up to when training starts; 0: about 2, as "
    "LUMOS's."),
  Field("world_model.norm_eps", 1e-3, POSITIVE, "of the layer norms"),
  Field("world_model.inverse_dynamics_input", "embedding", choice("embedding", "feature"),
    "feature: to show why not; h_{t+1} holds a_t already"),
  Field("world_model.inverse_dynamics_hidden", 512, count(), "width of its layers"),
  Field("world_model.image_weight", 1.0, NOT_NEGATIVE, "of the pictures' error in the loss"),
  Field("world_model.kl_weight", 3.0, NOT_NEGATIVE, "WAM; LUMOS has 0.3"),
  Field("world_model.kl_balance", 0.8, RATE, "share of the KL that trains the prior"),
  Field("world_model.inverse_dynamics_weight", 1000.0, NOT_NEGATIVE, "0: plain DreamerV2"),
  Field("world_model.embedding_image_weight", 0.0, NOT_NEGATIVE,
    "also reconstruct the pictures straight from e_t (not in the paper)"),
  Field("world_model.robot_obs_weight", 0.0, NOT_NEGATIVE,
    "Of the robot state's error: of its prediction with proprio=latent, else of rebuilding it from the "
    "features (neither is in the paper)."),
  Field("world_model.failed_takes", False, FLAG,
    "also train on the failed takes that are not held out, if any (not in the paper)"),
  Field("world_model.open_loop_share", 0.0, RATE,
    "Share of an update's windows that are seen up to a random frame only and imagined from there on, so "
    "that dreams of many frames are trained, not of one (not in the paper)."),
  Field("world_model.decode_fraction", 1.0, number(0, 1, open_low=True),
    "share of frames decoded per update"),
  Field("world_model.batch_size", 50, count(), "windows per update"),
  Field("world_model.sequence_length", 50, count(2), "frames of a window"),
  Field("world_model.carry_state", False, FLAG,
    "true: each window goes on from the state of the one before it (LUMOS)"),
  Field("world_model.reset_probability", 0.01, RATE, "with carry_state: of a zero state before a frame"),
  Field("world_model.updates", 230_000, count()),
  Field("world_model.snapshots", (), UPDATES,
    "updates after which the model is also kept as an artifact, in snapshots/<update>"),
  Field("world_model.learning_rate", 3e-4, POSITIVE),
  Field("world_model.adam_betas", (0.9, 0.999), BETAS),
  Field("world_model.adam_eps", 1e-5, POSITIVE),
  Field("world_model.weight_decay", 0.05, NOT_NEGATIVE),
  Field("world_model.grad_clip", 100.0, POSITIVE, "global norm"),
  Field("world_model.warmup_updates", 0, count(0), "of linear warm-up"),
  Field("world_model.final_learning_rate_scale", 1.0, RATE,
    "cosine decay to this share of learning_rate by the last update"),
  Field("world_model.compute_dtype", "auto", choice("auto", "float32", "bfloat16"),
    "float32, bfloat16 (parameters and loss stay float32), auto: by the device"),
  Field("world_model.accumulate", 1, count(), "parts that a batch is worked through in, for small memories"),
  Field("world_model.remat", False, FLAG,
    "compute activations again in the backward pass, for small memories"),

  Field("judge.context", 5, count(), "frames seen before the open-loop prediction"),
  Field("judge.horizons", (1, 5, 10, 20, 50), HORIZONS,
    "frames imagined after them, at which everything is measured"),
  Field("judge.windows", 256, count(), "held-out windows of context + max(horizons) frames"),
  Field("judge.probe_frames", 20_000, count(2), "of training play, to fit the linear probes on"),
  Field("judge.compare", (), FOLDERS,
    "Other world models to judge on the same data: folders of finished world_model artifacts, or the work "
    "folders above them."),

  Field("behaviour_cloning.policy", "diffusion", choice("diffusion", "gaussian"),
    "diffusion, or gaussian: one Gaussian around the output of a network, no denoising"),
  Field("behaviour_cloning.chunk", 4, count(), "H, actions per chunk, all executed"),
  Field("behaviour_cloning.hidden", 512, count(), "width of the network"),
  Field("behaviour_cloning.blocks", 1, count(), "residual blocks of two layers"),
  Field("behaviour_cloning.time_dim", 16, count(4), "width of the embedding of the denoising step"),
  Field("behaviour_cloning.denoising_steps", 20, count(2, 1000), "K"),
  Field("behaviour_cloning.ddim_steps", 0, count(0, 1000),
    "denoising steps when evaluated, by DDIM without noise; 0: all K of DDPM. PPO dreams with all K"),
  Field("behaviour_cloning.batch_size", 256, count()),
  Field("behaviour_cloning.updates", 50_000, count(), "about 5000 epochs over 50 demos"),
  Field("behaviour_cloning.learning_rate", 1e-4, POSITIVE),
  Field("behaviour_cloning.final_learning_rate", 1e-5, NOT_NEGATIVE),
  Field("behaviour_cloning.warmup_updates", 100, count(0)),
  Field("behaviour_cloning.weight_decay", 1e-6, NOT_NEGATIVE),
  Field("behaviour_cloning.ema_decay", 0.995, RATE, "of the averaged weights, which are the ones that act"),

  Field("classifier.embed", (1024, 256), WIDTHS, "layers of the embedding, the last one its size"),
  Field("classifier.hidden", 1024, count(), "width of the head behind the embedding"),
  Field("classifier.temperature", 0.5, POSITIVE, "of NT-Xent"),
  Field("classifier.contrastive_weight", 1.0, NOT_NEGATIVE, "of NT-Xent in the loss"),
  Field("classifier.cross_entropy_weight", 0.5, NOT_NEGATIVE, "of the cross-entropy in the loss"),
  Field("classifier.batch_size", 256, count(2)),
  Field("classifier.updates", 5_000, count()),
  Field("classifier.learning_rate", 3e-4, POSITIVE),
  Field("classifier.weight_decay", 1e-2, NOT_NEGATIVE),
  Field("classifier.ensemble", 1, count(1, 16), "networks; success is what all of them call so"),
  Field("classifier.threshold", 0.5, RATE, "probability above which a feature counts as success"),
  Field("classifier.max_false_positives", 0.05, RATE,
    "in random-action dreams; above it PPO refuses to start"),
  Field("classifier.enforce_gate", True, FLAG, "false: PPO starts also above max_false_positives"),

  Field("ppo.iterations", 800, count()),
  Field("ppo.dreams", 50, count(), "E"),
  Field("ppo.chunks_per_iteration", 18, count(), "N"),
  Field("ppo.horizon_steps", 72, count(), "actions until a dream is cut"),
  Field("ppo.horizon", "bootstrap", choice("bootstrap", "terminal", "diwa"),
    "bootstrap: value of the last feature; terminal: the end, with the time left as input; diwa: value of "
    "the next dream's first feature, their leak"),
  Field("ppo.fine_tuned_steps", 10, count(), "K'; a gaussian policy has one step"),
  Field("ppo.min_sampling_std", 0.1, POSITIVE,
    "of each denoising step; of a gaussian policy the standard deviation itself"),
  Field("ppo.min_log_prob_std", 0.1, POSITIVE, "the same, in log-probabilities"),
  Field("ppo.log_prob_min", -5.0, number(-math.inf),
    "clamp of the log-probability of each number of a chunk"),
  Field("ppo.log_prob_max", 2.0, number(-math.inf), "the same, above"),
  Field("ppo.clip_min", 0.001, POSITIVE, "clip range of the noisiest fine-tuned step"),
  Field("ppo.clip_max", 0.01, number(0, 1, open_low=True), "of the last step"),
  Field("ppo.clip_rate", 3.0, POSITIVE, "how strongly the range bends between them"),
  Field("ppo.denoising_discount", 0.99, number(0, 1, open_low=True),
    "of the advantage, per denoising step before the last"),
  Field("ppo.gamma", 0.999, number(0, 1, open_low=True), "discount per chunk"),
  Field("ppo.gae_lambda", 0.95, RATE),
  Field("ppo.value_hidden", (256, 256, 256), RESIDUAL_WIDTHS),
  Field("ppo.value_weight", 0.5, NOT_NEGATIVE),
  Field("ppo.reward_clip", 10.0, POSITIVE, "bound of rewards after scaling"),
  Field("ppo.actor_learning_rate", 1e-5, POSITIVE),
  Field("ppo.critic_learning_rate", 1e-3, POSITIVE),
  Field("ppo.weight_decay", 0.0, NOT_NEGATIVE),
  Field("ppo.grad_clip", 0.0, NOT_NEGATIVE, "0: none"),
  Field("ppo.critic_warmup_iterations", 2, count(0), "first iterations in which only the critic learns"),
  Field("ppo.epochs", 10, count(), "over the chunks of an iteration"),
  Field("ppo.minibatches", 1, count(),
    "per epoch; each holds dreams * chunks_per_iteration / minibatches chunks"),
  Field("ppo.target_kl", 1.0, POSITIVE, "above it the actor rests for the remainder of the iteration"),
  Field("ppo.start_frames", 4, count(0),
    "first frames of a demo that dreams start from; 0: all before success"),
  Field("ppo.prior_temperature", 1.0, POSITIVE,
    "Divides the prior's logits in the dreams that PPO learns from: above 1 they are less sure of what an "
    "action does than the world model is. Where imagined success is measured it is 1."),
  Field("ppo.failed_starts", 0.0, RATE,
    "share of dreams that start anywhere in failed takes, beside the handle"),
  Field("ppo.bc_weight", 0.025, NOT_NEGATIVE, "alpha of the behaviour-cloning regulariser"),
  Field("ppo.bc_form", "frozen_chains", choice("frozen_chains", "current_chains"),
    "Chains that it looks at: frozen_chains: the cloned policy's, under the one being trained; "
    "current_chains: the other way round."),
  Field("ppo.entropy_penalty", 0.0, NOT_NEGATIVE,
    "Reward taken off a chunk per nat that the prior's entropy exceeds that on 95 % of demo frames."),
  Field("ppo.eval_every", 25, count(0),
    "iterations between measurements of the policies, imagined and real; 0: none"),
  Field("ppo.eval_episodes", 20, count(0),
    "real ones per task, from held-out starts that evaluate leaves; 0: imagined only"),

  Field("ppo.min_discrimination", 0.1, RATE,
    "PPO leaves a task's cloned policy as it is if dreams call good held-out takes a success by less than "
    "this margin over failed ones; 0: never. Not applied without failed takes.",
    silent=0.1),

  Field("certify.required_success", 0.8, RATE,
    "real success that a policy must have to be deployed: what the certificate says is held against it"),

  Field("online.iterations", 50, count(), "of ppo.dreams * ppo.chunks_per_iteration real chunks per task"),
  Field("online.eval_every", 5, count(), "iterations between measurements in the simulator"),

  Field("evaluate.episodes", 50, count(), "per task and policy"),
  Field("evaluate.random_policy", True, FLAG, "also measure a policy with random weights"),
  Field("evaluate.expert", True, FLAG, "also measure the scripted expert"),
  Field("evaluate.imagined_episodes", 200, count(), "dreams per task for the imagined success"),

  Field("report.animation_size", 160, count(32, 1024), "side of the animations, in pixels"),

  Field("study.seeds", (), SEEDS,
    "with seeds, the run is a study: stage all runs its pieces, report makes its page"),
  Field("study.arms", (), subset(ARMS, "different arms out of"), "of ARMS in wam_jax/config/arms.py"),
  Field("study.results", "docs/results", PLACE, "folder that takes a file for each finished piece"),
  Field("study.page", "", PLACE, "file that report writes; empty: README.md next to the results"),

  Field("training.log_every", 50, count(), "updates between metric lines"),
  Field("training.checkpoint_minutes", 2.0, NOT_NEGATIVE, "between checkpoints of a running stage"),
  Field("training.keep_checkpoints", 2, count(),
    "of a running stage, the newest; and the one with the best loss or imagined success"),
  Field("training.restore", "newest", choice("newest", "best"),
    "checkpoint that a stage goes on from: newest; best: goes back to the best one, once"),
  Field("training.devices", 0, count(0),
    "that batches and dreams are divided over; 0: all there are, on all hosts"),
  Field("training.wandb_project", "", PROJECT,
    "of Weights & Biases, that metrics are sent to as well; empty: nothing is sent"),
  Field("training.trackio_project", "", PROJECT, "the same of trackio, which keeps them on this machine"),
)
# fmt: on

FIELDS: dict[str, Field] = {row.path: row for row in ROWS}
GROUPS = {  # what a group is, where its name does not say that
  "inputs": "Finished artifacts of other runs to use instead of running the stage: folders holding DONE.",
  "online": "Stage online_ppo: PPO in the simulator, with the settings of `ppo`.",
}
