"""The stage: both kinds of policy, DPPO's weights, and how the evaluation samples."""

from __future__ import annotations

import json
import os
import pathlib

import jax
import numpy as np
import pytest
from made_up_run import make_artifact

from wam_jax import config as config_lib
from wam_jax.acting import models
from wam_jax.config import chain
from wam_jax.data.features import DemoFeatures, save_features
from wam_jax.foreign import dppo
from wam_jax.host.logger import Logger
from wam_jax.nn.policies.diffusion import DiffusionPolicy
from wam_jax.nn.policies.gaussian import GaussianPolicy
from wam_jax.running import plan
from wam_jax.running.stage_run import StageRun
from wam_jax.stages import behaviour_cloning as cloning_stage
from wam_jax.stages import evaluate
from wam_jax.storage import artifact as artifact_lib
from wam_jax.storage.artifact import Artifact, load_artifact
from wam_jax.storage.checksums import CheckpointError
from wam_jax.storage.saved_params import check_params, save_params

FIXTURES = pathlib.Path(os.environ.get("WAM_FIXTURES", pathlib.Path(__file__).parents[1] / "golden/fixtures"))
TASKS, F = ("open_drawer", "turn_on_led"), 20


@pytest.fixture(scope="module", name="featurized")
def _featurized(tmp_path_factory) -> Artifact:
  path = tmp_path_factory.mktemp("featurize")
  rng = np.random.default_rng(0)
  for split in ("train", "heldout"):
    shape = (len(TASKS), 3, 12)
    demos = DemoFeatures(
      feature=rng.normal(size=(*shape, F)).astype(np.float32),
      action=rng.uniform(-1, 1, size=(*shape, 7)).astype(np.float32),
      success=np.zeros(shape, bool),
      mask=np.ones(shape, bool),
      tasks=TASKS,
    )
    save_features(path / f"{split}.npz", demos)
  return Artifact(stage="featurize", path=path, fingerprint="0", config={})


def make_config(**changes):
  config = config_lib.preset_config("demo")
  config.tasks = TASKS
  config.training.log_every = 3
  small = {"hidden": 8, "batch_size": 4, "updates": 4, "warmup_updates": 1, "denoising_steps": 5}
  config.behaviour_cloning.update(small)
  config.ppo.fine_tuned_steps = 2
  config.update_from_flattened_dict({key.replace("__", "."): value for key, value in changes.items()})
  return config_lib.finalize(config)


def clone(featurized, path, **changes) -> tuple[Artifact, list[str]]:
  """Runs the stage as the runner does."""
  config = make_config(**changes)
  artifact = make_artifact("behaviour_cloning", path, config.to_dict())
  artifact_lib.write_artifact(artifact, done=False)
  logger = Logger(path, "behaviour_cloning")
  lines: list[str] = []
  logger.info = lines.append
  try:
    cloning_stage.run(StageRun(config, {"featurize": featurized}, path, logger))
  finally:
    logger.close()
  artifact_lib.write_artifact(artifact, done=True)
  return load_artifact(path), lines


@pytest.mark.parametrize(("kind", "cls"), [("diffusion", DiffusionPolicy), ("gaussian", GaussianPolicy)])
def test_an_artifact_loads_back_as_what_it_is(featurized, tmp_path, kind, cls):
  artifact, _ = clone(featurized, tmp_path / kind, behaviour_cloning__policy=kind)
  policy, params = models.load_policy(artifact)
  assert type(policy) is cls and policy.feature_size == F and policy.chunk == 4 and policy.hidden == 8
  shapes = jax.eval_shape(jax.vmap(policy.init), jax.random.split(jax.random.key(0), len(TASKS)))
  check_params(params["base"], shapes, artifact.path)
  sample = lambda p: policy.sample(p, np.ones((3, F), np.float32), jax.random.key(0), True)
  chunk = jax.jit(jax.vmap(sample))(params)
  assert chunk.shape == (len(TASKS), 3, 4, 7) and np.isfinite(chunk).all()
  assert not np.allclose(chunk[0], chunk[1])  # each task has its own
  result = json.loads((artifact.path / "result.json").read_text())
  assert set(result["loss_train"]) == set(result["loss_heldout"]) == set(TASKS)
  # An artifact of PPO holds the same trees and a critic.
  save_params(tmp_path / "ppo" / "params", params | {"critic": {"w": np.ones(2)}})
  made = Artifact(stage="ppo", path=tmp_path / "ppo", fingerprint="2", config=artifact.config)
  assert models.load_policy(made)[0] == policy
  # The evaluation samples a policy that denoises in fewer steps, if told.
  runner = evaluate.PolicyRunner(
    make_config(behaviour_cloning__ddim_steps=3),
    {"behaviour_cloning": artifact, "ppo": made},
    TASKS,
    np.zeros((2, 1, 39)),
    None,
  )
  for name in ("cloned", "random", "ppo"):
    acting, _ = runner._policy(name)
    assert type(acting) is cls and getattr(acting, "ddim_steps", 3) == 3
  assert getattr(policy, "ddim_steps", 0) == 0
  # A config of the time before there were two kinds.
  del artifact.config["behaviour_cloning"]["policy"]
  with pytest.raises(CheckpointError, match="another version"):
    models.load_policy(artifact)


def test_only_the_evaluation_depends_on_ddim_steps():
  """A new field of behaviour_cloning belongs in the stage's row, or is named here as none of it."""
  fields = {name for name in config_lib.flatten(make_config()) if name.startswith("behaviour_cloning.")}
  listed = {name for name in chain.ROWS["behaviour_cloning"].reads if name in fields}
  assert fields - listed == {"behaviour_cloning.ddim_steps"}
  assert "behaviour_cloning.ddim_steps" in chain.ROWS["evaluate"].reads


def fixture_changes(tmp_path, **changes):
  """The config that the fixture's policy fits, and one file per task: its two networks."""
  with np.load(FIXTURES / "dppo_policy.npz") as file:
    for task, network in zip(TASKS, ("actor_base", "actor_ft"), strict=True):
      names = [name for name in file.files if name.startswith(f"param/{network}/")]
      weights = {f"network.{name.rsplit('/', 1)[1]}": file[name] for name in names}
      np.savez(tmp_path / f"{task}.npz", **weights)
  return {
    "inputs__dppo_checkpoint": str(tmp_path / "{task}.npz"),
    "behaviour_cloning__hidden": 64,
    "behaviour_cloning__denoising_steps": 20,
  } | changes


def test_dppo_policies_stand_for_cloning(featurized, tmp_path):
  changes = fixture_changes(tmp_path)
  artifact, said = clone(featurized, tmp_path / "taken", **changes)
  assert all(any(f"{task}: took the policy under network." in line for line in said) for task in TASKS)
  # Random weights: they were trained on no world model's features.
  assert all(
    any(f"{task}: the policy taken does not know the demos" in line for line in said) for task in TASKS
  )
  policy, params = models.load_policy(artifact)
  with np.load(FIXTURES / "dppo_policy.npz") as file:
    x, t, feature = file["input/eps_x"], file["input/eps_t"], file["input/state"][:, 0]
    for i, name in enumerate(("base", "ft")):
      network = jax.tree.map(lambda x, i=i: x[i], params["base"])
      eps = jax.jit(policy.eps)(network, x, t, feature)
      np.testing.assert_allclose(eps, file[f"eps/{name}"], atol=5e-6)
  result = json.loads((artifact.path / "result.json").read_text())
  assert set(result["loss_heldout"]) == set(TASKS)
  config = make_config(**changes)
  assert "take the policies of" in chain.ROWS["behaviour_cloning"].size(config)
  assert plan.estimate(config, "behaviour_cloning") < 1e-3


def test_dppo_policies_that_do_not_fit_are_refused(featurized, tmp_path):
  with pytest.raises(dppo.DppoError, match=r"open_drawer.npz: not the weights[^$]*hidden 64"):
    clone(featurized, tmp_path / "other", **fixture_changes(tmp_path, behaviour_cloning__hidden=32))

  def problems(**changes):
    with pytest.raises(config_lib.ConfigError) as error:
      make_config(**fixture_changes(tmp_path, **changes))
    return {problem.path: problem.rule + problem.fix for problem in error.value.problems}

  found = problems(behaviour_cloning__policy="gaussian", inputs__dppo_checkpoint=str(tmp_path / "a{task}"))
  assert set(found) == {"behaviour_cloning.policy", "inputs.dppo_checkpoint"}
  for task in TASKS:
    assert str(tmp_path / f"a{task}") in found["inputs.dppo_checkpoint"]
  one = str(tmp_path / "open_drawer.npz")
  assert "2 tasks" in problems(inputs__dppo_checkpoint=one)["inputs.dppo_checkpoint"]
  make_config(**fixture_changes(tmp_path, inputs__dppo_checkpoint=one, tasks=("open_drawer",)))
