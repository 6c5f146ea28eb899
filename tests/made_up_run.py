"""A small finished run of random numbers, written as the stages write theirs, but the report."""

import dataclasses
import json

import numpy as np

from wam_jax import config as config_lib
from wam_jax.config import chain
from wam_jax.core import discrimination
from wam_jax.embodiment import CALVIN
from wam_jax.reporting import media
from wam_jax.stages import certify, evaluate, judge_world_model
from wam_jax.storage.artifact import Artifact, fingerprint, write_artifact

TASKS = ("open_drawer", "turn_on_led")
RATES = {"expert": 1.0, "random": 0.0, "cloned": 0.5, "ppo": 0.7}


def judged(rng):
  """What the judge stage writes, with random numbers; one horizon was too long for the data."""
  at = lambda: [rng.uniform(15, 25), rng.uniform(15, 25), None]
  pictures = lambda: {
    "psnr": at(),
    "ssim": at(),
    "psnr_curve": rng.uniform(15, 25, 12).tolist(),
    "mean_psnr": rng.uniform(15, 25),
  }
  cameras = ("rgb_static", "rgb_gripper")
  seen = {"reconstruction_psnr": 27.125, "reconstruction_ssim": 0.9}
  probe = lambda: {"posterior": 0.875, "imagined": [0.5, "constant", None], "kept": [0.25, 0.125, None]}
  far = lambda: {"rms": rng.uniform(0.01, 0.05), "median": 0.0078125}
  kinds = ("play", "takes")
  model = {
    "name": "calvin_wam (a)",
    "open_loop": {camera: pictures() | seen for camera in cameras},
    "repeated": {camera: pictures() for camera in cameras},
    "probes": {"drawer": probe(), "led": probe()},
    "takes": {"drawer": probe(), "led": probe() | {"posterior": 0.703125}},
    "hand": {kind: {"posterior": far(), "imagined": [far(), far(), None]} for kind in kinds},
    "inverse_dynamics": {
      name: {"error": 0.0625, "linear": 0.125, "mean_action": 0.5} for name in ("x", "gripper")
    },
  }
  return {
    "format": judge_world_model.FORMAT,
    "context": 5,
    "horizons": [1, 10, 50],
    "targets": {"drawer": {"score": "R²"}, "led": {"score": "balanced accuracy"}},
    "data": {
      "kind": "play",
      "windows": 40,
      "windows_asked": 64,
      "frames": 17,
      "probe_frames": 6000,
      "probe_kind": "play",
      "takes": 12,
    },
    "recursion": {kind: [far(), far(), None] for kind in kinds},
    "models": [model],
    "provenance": {"left": "out"},
  }


def write_run(folder, rng, tasks=TASKS, episodes=10, start=0, **settings):
  """Writes a run.

  Args:
    folder: to make.
    rng: numbers come from it.
    tasks: evaluated.
    episodes: of each task and policy.
    start: runs with the same one share their start states.
    **settings: of the config, with __ for dots.

  Returns:
    (config, stage -> artifact).
  """
  config = config_lib.default_config()
  config.tasks, config.preset, config.seed = tasks, "demo", 3
  for name, value in settings.items():
    config.update_from_flattened_dict({name.replace("__", "."): value})
  inputs = {}
  for i, stage in enumerate(chain.stages_of_run(config)[:-1]):
    spec = chain.ROWS[stage]
    part = {
      path: value
      for path, value in config_lib.flatten(config).items()
      if any(path == name or path.startswith(name + ".") for name in spec.reads)
    }
    made_from = chain.required(stage, config)
    prints = {name: inputs[name].fingerprint for name in made_from} or {"other": str(folder)}
    made = make_artifact(stage, folder / stage, config.to_dict(), part, prints)
    inputs[stage] = dataclasses.replace(made, seconds=10.0 + i, peak_bytes=2_000_000_000)
    write_artifact(inputs[stage], done=True)
  _write_metrics(folder, rng, tasks)
  _write_judge(folder, rng)
  _write_certificate(folder, rng, tasks)
  _write_episodes(folder, rng, tasks, episodes, start)
  return config, inputs


def make_artifact(stage, path, config=None, part=None, inputs=None):
  """An artifact with the fingerprint of its settings and inputs, as the runner makes it."""
  part, inputs = part or {}, inputs or {}
  return Artifact(stage, path, fingerprint(part, inputs), config or {}, part, inputs)


class _Dreams:
  """What stage certify measures, of random numbers."""

  def __init__(self, rng, tasks):
    self.rng, self.tasks = rng, tasks

  def follows_actions(self):
    return self.rng.uniform(0.8, 1, len(self.tasks))

  def of_policy(self, params):
    del params
    names = ("disagreement", "unfamiliar", "kl_to_cloned")
    numbers = {name: self.rng.uniform(size=len(self.tasks)) for name in names}
    return numbers | {"called": [self.rng.uniform(0.6, 1, 12) for _ in self.tasks]}


def _write_certificate(folder, rng, tasks):
  quality = json.loads((folder / "classifier" / "quality.json").read_text())
  content = certify.certify(_Dreams(rng, tasks), quality, {"cloned": None, "ppo": None}, 0.8)
  (folder / "certify" / "certificate.json").write_text(json.dumps(content))


def _write_metrics(folder, rng, tasks):
  def lines(stage, count, row):
    text = "".join(json.dumps({"step": i, "time": 0.0} | row(i)) + "\n" for i in range(count))
    (folder / stage / "metrics.jsonl").write_text(text)

  errors = [f"inverse_dynamics/error_{name}" for name in CALVIN.action_names]
  world = ("loss/image", "loss/kl", *errors, "image/psnr")
  lines("world_model", 30, lambda i: {f"world_model/{name}": rng.uniform(1, 9) for name in world})
  lines("behaviour_cloning", 5, lambda i: {f"behaviour_cloning/{task}/loss": rng.uniform() for task in tasks})
  lines("ppo", 7, lambda i: {f"ppo/{task}/imagined_success": rng.uniform() for task in tasks})
  shares = lambda: {"precision": rng.uniform(), "recall": None, "calibration_error": 0.0625}
  value = lambda: {
    "value": rng.uniform(0.4, 0.6),
    "low": rng.uniform(0.1, 0.4),
    "high": rng.uniform(0.6, 0.9),
  }
  told = lambda: {kind: {name: value() for name in discrimination.NUMBERS} for kind in ("real", "dreamt")}
  quality = {
    task: {
      "heldout_demos": shares(),
      "heldout_demo_dreams": shares(),
      "random_dreams": {"false_positives": 0.0123, "count": 9},
      "takes": {"good": 7, "failed": 11},
      "discrimination": told(),
    }
    for task in tasks
  }
  content = {"tasks": quality, "discrimination": told()}
  (folder / "classifier" / "quality.json").write_text(json.dumps(content))


def _write_judge(folder, rng):
  (folder / "judge_world_model" / "judge.json").write_text(json.dumps(judged(rng)))
  frames = rng.integers(0, 256, (3, 8, 16, 3), dtype=np.uint8)
  media.save_png(folder / "judge_world_model" / "strip.png", frames[0])
  media.save_animation(folder / "judge_world_model" / "strip.webp", frames, 10)


def _write_episodes(folder, rng, tasks, num, start):
  episodes = {}
  states = np.random.default_rng(start)
  starts = states.normal(size=(len(tasks), num, 39))
  for name, rate in RATES.items():
    success = rng.random((len(tasks), num)) < rate
    episodes[name] = {"success": success, "steps": np.where(success, 30, 72)}
    np.savez(folder / "evaluate" / f"{name}.npz", **episodes[name], start=starts)
  episodes["ppo"]["imagined"] = rng.uniform(size=len(tasks))
  results = evaluate.summarise(tasks, episodes) | {"max_steps": 72, "seed": 3, "config": {"left": "out"}}
  (folder / "evaluate" / "results.json").write_text(json.dumps(results))


def animations(rng, tasks=TASKS):
  """A small animated WebP of each episode that `shown` tells of."""
  frames = rng.integers(0, 256, (3, 8, 16, 3), dtype=np.uint8)
  return [{"webp": media.animation_bytes(frames, 15, kind="webp")} for _ in tasks]


def shown(tasks=TASKS):
  """What `run_report.draw_rollouts` says of the episodes."""
  facts = {"steps": 30, "dream_success": True, "shown": ["static", "dream", "wrist"]}
  return [{"task": task, "success": i == 0, "episode": i} | facts for i, task in enumerate(tasks)]


def write_report_stage(folder, seconds):
  """A finished stage report, without its files."""
  artifact = make_artifact("report", folder / "report")
  write_artifact(dataclasses.replace(artifact, seconds=seconds), done=True)
