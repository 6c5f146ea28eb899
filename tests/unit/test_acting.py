"""Acting: equal to rollouts and to its own files, refusals, checks of observations."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from made_up_params import random_like
from made_up_run import make_artifact

import wam_jax
from wam_jax import config as config_lib
from wam_jax.acting import export, load, models, packed, rollout, run_exported
from wam_jax.acting.monitor import MonitorError
from wam_jax.acting.policy import PolicyError
from wam_jax.acting.policy_table import POLICIES
from wam_jax.commands import export as export_command
from wam_jax.core.image import area_resize
from wam_jax.nn.world_model import make_world_model, proprio_features
from wam_jax.storage import artifact as artifact_lib
from wam_jax.storage.artifact import ArtifactError
from wam_jax.storage.checksums import CheckpointError
from wam_jax.storage.saved_params import load_params, save_params
from wam_jax.training import world_model as wm
from wam_jax.types import Latent

SIZE, CHUNK = 16, 4
TASKS = ("turn_on_led", "open_drawer")  # not in the alphabet's order
ROOT = pathlib.Path(__file__).parents[2]


def make_config(**changes):
  config = config_lib.preset_config("demo")
  config.env.image_size, config.tasks = SIZE, TASKS
  small = {"depth": 4, "embed": 16, "deter": 12, "stoch": 3, "classes": 4, "hidden": 16}
  config.world_model.update(small | {"inverse_dynamics_hidden": 8, "proprio": "sincos"})
  config.behaviour_cloning.update({"hidden": 16, "chunk": CHUNK})
  config.update_from_flattened_dict(changes)
  return config


def write(artifact, params=None, result=None, done=True):
  artifact_lib.write_artifact(artifact, done=False)
  if params is not None:
    save_params(artifact.path / "params", params)
  if result is not None:
    (artifact.path / "result.json").write_text(json.dumps(result))
  artifact_lib.write_artifact(artifact, done=done)


def write_run(root, config):
  """Finished world_model, featurize, behaviour_cloning and ppo with random parameters."""
  inputs = {}

  def finish(stage, made_from, params=None, result=None):
    prints = {name: inputs[name] for name in made_from}
    artifact = make_artifact(stage, root / stage, config.to_dict(), {"of": stage}, prints)
    write(artifact, params, result)
    inputs[stage] = artifact.fingerprint

  model = make_world_model(config.world_model, config.env.image_size)
  params = random_like(lambda key: wm.init_params(model, key), 0)
  params["rssm"]["from_embed"]["kernel"] *= 5  # latents that depend on the frame more than on the noise
  params["rssm"]["posterior_output"]["kernel"] *= 10
  finish("world_model", (), params)
  finish("featurize", ("world_model",))
  policy = models.make_policy(config, model.feature_size)
  base, actor = (random_like(policy.init, seed, (len(TASKS),)) for seed in (1, 2))
  values = dict.fromkeys(TASKS, 0.5)
  finish("behaviour_cloning", ("featurize",), base, {"loss_train": values})
  finish(
    "ppo",
    ("world_model", "featurize", "behaviour_cloning"),
    {"base": base, "tuned": actor, "critic": {"x": np.zeros(1)}},
    {"imagined_success_cloned": values},
  )
  return root


@pytest.fixture(scope="module", name="run")
def _run(tmp_path_factory):
  return write_run(tmp_path_factory.mktemp("acting") / "run", make_config())


@pytest.fixture(scope="module", name="latent_run")
def _latent_run(tmp_path_factory):
  """The robot's state is a part of the latent."""
  config = make_config(**{"world_model.proprio": "latent"})
  return write_run(tmp_path_factory.mktemp("acting") / "latent_run", config)


def observations(steps, batch=None, size=SIZE, seed=0):
  rng = np.random.default_rng(seed)
  lead = (steps,) if batch is None else (steps, batch)
  # Frames differ in colour, not only in noise, which the networks would average out.
  colour = lambda: rng.integers(0, 256, (*lead, 1, 1, 3))
  picture = lambda: (0.7 * colour() + 0.3 * rng.integers(0, 256, (*lead, size, size, 3))).astype(np.uint8)
  seen = {"rgb_static": picture(), "rgb_gripper": picture(), "robot_obs": rng.normal(size=(*lead, 15))}
  return [{name: value[t] for name, value in seen.items()} for t in range(steps)]


def episode(policy, seen):
  return np.stack([policy.act(each) for each in seen])


class Recorded:
  """A simulator that shows given observations whatever is done."""

  def __init__(self, seen):
    self.num, self.seen, self.t = len(seen[0]["robot_obs"]), seen, 0

  def reset(self, starts, tasks):
    self.t = 0

  def step(self, actions, active):
    self.t += 1

  def state(self):
    return self.seen[min(self.t, len(self.seen) - 1)]["robot_obs"]

  def snapshot(self):
    return None

  def success(self):
    return np.zeros(self.num, bool)

  def observe(self, active):
    return self.seen[self.t]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
  ("made", "which", "ddim_steps"),
  [("run", "ppo", 0), ("run", "cloned", 0), ("run", "ppo", 2), ("latent_run", "ppo", 0)],
)
def test_the_actions_are_those_of_a_rollout(made, task, which, ddim_steps, request):
  run = request.getfixturevalue(made)
  steps, batch, seed = 10, 3, 7
  seen = observations(steps, batch)
  policy, params = models.load_policy(artifact_lib.load_artifact(run, POLICIES[which].stage))
  k = TASKS.index(task)
  model, model_params = models.load_world_model(artifact_lib.load_artifact(run, "world_model"))
  episodes = rollout.rollout_policies(
    model,
    model_params,
    models.for_acting(policy, ddim_steps),
    jax.tree.map(lambda x: x[k : k + 1], params),
    tasks=(task,),
    starts=np.zeros((1, batch, 1)),
    environment=Recorded(seen),
    key=jax.random.key(seed),
    max_steps=steps,
  )
  acted = wam_jax.load_policy(run, task, which, ddim_steps=ddim_steps)
  acted.reset(batch_size=batch, seed=seed)
  actions = episode(acted, seen)
  assert actions.shape == (steps, batch, 7) and actions.dtype == np.float32
  np.testing.assert_allclose(actions.swapaxes(0, 1), episodes.action[0], atol=1e-5)
  # The comparison means something: motion in the range, and differing over time and robots.
  assert np.abs(actions[..., :6]).max() <= 1 and set(np.unique(actions[..., 6])) <= {-1.0, 1.0}
  assert actions.std((0, 1))[:6].min() > 0.05
  other = wam_jax.load_policy(run, next(name for name in TASKS if name != task), which)
  other.reset(batch_size=batch, seed=seed)
  assert np.abs(episode(other, seen) - actions).max() > 0.1


def test_the_state_of_a_policy_holds_the_robots_if_the_latent_does(run, latent_run):
  assert "robot" not in wam_jax.load_policy(run, TASKS[0])._state
  policy = wam_jax.load_policy(latent_run, TASKS[0])
  seen = observations(3, 2)
  policy.reset(batch_size=2)
  shapes = jax.tree.map(np.shape, policy._state)
  assert shapes["robot"] == (2, 36) and not np.any(policy._state["robot"])
  episode(policy, seen)
  assert jax.tree.map(np.shape, policy._state) == shapes  # one program serves all steps
  states = [np.asarray(proprio_features(each["robot_obs"])) for each in seen]
  np.testing.assert_allclose(policy._state["robot"][:, :18], states[2], rtol=1e-5)
  np.testing.assert_allclose(
    policy._state["robot"][:, 18:], 5 * (states[2] - states[1]), rtol=1e-4, atol=1e-4
  )


def test_a_work_folder_gives_the_ppo_policy_if_finished_else_the_cloned_one(run, tmp_path):
  shutil.copytree(run, tmp_path / "run")
  made = lambda: wam_jax.load_policy(tmp_path / "run", TASKS[0]).made_from
  prints = lambda *stages: {stage: artifact_lib.read_artifact(run / stage).fingerprint for stage in stages}
  assert made() == prints("ppo", "world_model")
  (tmp_path / "run" / "ppo" / "DONE").unlink()
  assert made() == prints("behaviour_cloning", "world_model")
  with pytest.raises(PolicyError, match="ppo is not finished"):
    wam_jax.load_policy(tmp_path / "run", TASKS[0], "ppo")
  with pytest.raises(PolicyError, match="ppo is not finished"):
    wam_jax.load_policy(tmp_path / "run" / "ppo", TASKS[0])
  with pytest.raises(PolicyError, match="artifact of world_model, not of ppo or behaviour_cloning"):
    wam_jax.load_policy(tmp_path / "run" / "world_model", TASKS[0])
  with pytest.raises(PolicyError, match="no finished policy"):
    wam_jax.load_policy(tmp_path, TASKS[0])
  with pytest.raises(ValueError, match="which: expected one of ppo, cloned"):
    wam_jax.load_policy(run, TASKS[0], "best")
  with pytest.raises(PolicyError, match="there is no ppo_imagined"):
    wam_jax.load_policy(run, TASKS[0], "ppo_imagined")


def test_an_artifacts_folder_will_do(run):
  seen = observations(3)
  for which in ("ppo", "cloned"):
    stage = POLICIES[which].stage
    by_run, by_folder = (wam_jax.load_policy(p, TASKS[1], which) for p in (run, run / stage))
    np.testing.assert_array_equal(episode(by_run, seen), episode(by_folder, seen))


@pytest.mark.parametrize("task", ["close_drawer", None])
def test_unknown_task_names_those_there_are(run, task):
  with pytest.raises(PolicyError, match="it has turn_on_led, open_drawer"):
    wam_jax.load_policy(run, task)


@pytest.mark.parametrize("which", ["ppo", "cloned"])
def test_another_world_model_is_refused(run, tmp_path, which):
  shutil.copytree(run, tmp_path / "run")
  folder = tmp_path / "run" / "world_model"
  right = artifact_lib.load_artifact(folder).fingerprint
  other = make_artifact("world_model", folder, make_config().to_dict(), {"of": "another"})
  artifact_lib.write_artifact(other, done=True)
  told = rf"trained on the world model with fingerprint {right[:12]}.*\n.*{other.fingerprint[:12]}"
  with pytest.raises(PolicyError, match=told):
    wam_jax.load_policy(tmp_path / "run", TASKS[0], which)
  # The right one, named, is taken; a wrong one, named, is not.
  policy = wam_jax.load_policy(tmp_path / "run", TASKS[0], which, world_model=run / "world_model")
  assert policy.made_from["world_model"] == right
  with pytest.raises(PolicyError, match=f"another one, fingerprint {other.fingerprint[:12]}"):
    wam_jax.load_policy(run, TASKS[0], which, world_model=folder)
  shutil.rmtree(folder)
  with pytest.raises(PolicyError, match="no artifact here"):
    wam_jax.load_policy(tmp_path / "run", TASKS[0], which)


def test_a_world_model_taken_from_elsewhere_is_found(run, tmp_path):
  """As after `--config.inputs.world_model=...`: it is not in the run's own folder."""
  shutil.copytree(run, tmp_path / "run")
  shutil.move(tmp_path / "run" / "world_model", tmp_path / "elsewhere")
  for stage in ("behaviour_cloning", "ppo"):
    artifact = artifact_lib.load_artifact(tmp_path / "run", stage)
    artifact.config["inputs"]["world_model"] = str(tmp_path / "elsewhere")
    artifact_lib.write_artifact(artifact, done=True)
  right = artifact_lib.load_artifact(run, "world_model").fingerprint
  for which in ("ppo", "cloned"):
    assert wam_jax.load_policy(tmp_path / "run", TASKS[0], which).made_from["world_model"] == right
  # A run that took the cloned policy from the first one.
  shutil.move(tmp_path / "run" / "behaviour_cloning", tmp_path / "run" / "moved")
  tuned = artifact_lib.load_artifact(tmp_path / "run", "ppo")
  tuned.config["inputs"]["behaviour_cloning"] = str(run / "behaviour_cloning")
  artifact_lib.write_artifact(tuned, done=True)
  assert "behaviour_cloning" in wam_jax.load_policy(tmp_path / "run", TASKS[0], "cloned").made_from


def test_another_feature_size_is_refused(run, tmp_path):
  """A world model of the right fingerprint whose files are of another size."""
  wide = write_run(tmp_path / "wide", make_config(**{"world_model.deter": 20}))
  with pytest.raises(PolicyError, match="features of size 24, the world model makes features of size 32"):
    wam_jax.load_policy(run, TASKS[0], world_model=wide / "world_model")


def test_one_robot_is_a_batch_of_one(run):
  policy = wam_jax.load_policy(run, TASKS[0])
  seen = observations(6)
  single = episode(policy, seen)
  assert single.shape == (6, 7)
  policy.reset(batch_size=1)
  batched = episode(policy, [{name: value[None] for name, value in each.items()} for each in seen])
  np.testing.assert_array_equal(batched[:, 0], single)


def test_seed_and_reset(run):
  policy = wam_jax.load_policy(run, TASKS[0])
  seen = observations(6)
  first = episode(policy, seen)
  goes_on = episode(policy, seen)
  policy.reset(seed=0)
  np.testing.assert_array_equal(episode(policy, seen), first)
  assert (goes_on != first).any()
  policy.reset(seed=1)
  assert (episode(policy, seen) != first).any()
  with pytest.raises(ValueError, match="ddim_steps"):
    wam_jax.load_policy(run, TASKS[0], ddim_steps=1000)
  for seed in (-1, 2**31):
    with pytest.raises(ValueError, match="seed"):
      policy.reset(seed=seed)
  with pytest.raises(ValueError, match="batch_size"):
    policy.reset(batch_size=0)


def test_every_frame_counts_and_a_chunk_is_executed_whole(run):
  """Other frames inside a chunk leave its actions alone, and change the next chunk's."""
  policy = wam_jax.load_policy(run, TASKS[0])
  seen = observations(2 * CHUNK)
  first = episode(policy, seen)
  policy.reset()
  other = seen[:1] + observations(CHUNK - 1, seed=9) + seen[CHUNK:]
  second = episode(policy, other)
  np.testing.assert_array_equal(first[:CHUNK], second[:CHUNK])
  assert np.abs(first[CHUNK:] - second[CHUNK:]).max() > 1e-3


def test_larger_pictures_are_shrunk_as_data_is(run):
  policy = wam_jax.load_policy(run, TASKS[0])
  large = observations(5, size=37)
  small = [
    each | {camera: area_resize(each[camera], SIZE, SIZE) for camera in ("rgb_static", "rgb_gripper")}
    for each in large
  ]
  actions = episode(policy, large)
  policy.reset()
  np.testing.assert_array_equal(episode(policy, small), actions)


def test_wrong_observations(run):
  policy = wam_jax.load_policy(run, TASKS[0])
  good = observations(1)[0]
  before = policy.act(good)
  policy.reset()
  wrong = [
    ({"rgb_static": good["rgb_static"], "rgb_griper": 0}, r"rgb_gripper, robot_obs missing.*rgb_griper"),
    (good | {"rgb_static": good["rgb_static"].astype(np.float32)}, "rgb_static: expected uint8.*float32"),
    (good | {"rgb_gripper": good["rgb_gripper"][:-1]}, r"rgb_gripper: expected \[16, 16, 3\] or larger"),
    (good | {"rgb_gripper": good["rgb_gripper"][..., :2]}, "rgb_gripper: expected"),
    (good | {"rgb_static": good["rgb_static"][None]}, r"rgb_static: expected 3 axes.*reset\(batch_size"),
    (good | {"robot_obs": good["robot_obs"][:14]}, r"robot_obs: expected \[15\] numbers.*\[14\]"),
    (good | {"robot_obs": np.array(["a"] * 15)}, "robot_obs: expected"),
    ([good], "expected a dict"),
    (good | {"robot_obs": np.where(np.arange(15) == 3, np.nan, 0.1)}, r"robot_obs: NaN or infinity at \[3\]"),
    (good | {"robot_obs": np.full(15, 1e300)}, "robot_obs: NaN or infinity"),  # in single precision
  ]
  for observation, reason in wrong:
    with pytest.raises(ValueError, match=reason):
      policy.act(observation)
  np.testing.assert_array_equal(policy.act(good), before)  # refused frames leave no trace
  policy.reset(batch_size=2)
  with pytest.raises(ValueError, match=r"expected 4 axes.*reset\(\) is for one robot"):
    policy.act(good)
  with pytest.raises(ValueError, match=r"3 rows, but reset\(batch_size=2\)"):
    policy.act(observations(1, 3)[0])
  assert policy.act(observations(1, 2)[0] | {"scene_obs": np.zeros(24)}).shape == (2, 7)


def test_only_what_the_model_reads_is_needed(tmp_path):
  config = make_config(**{"world_model.cameras": ("rgb_gripper",), "world_model.proprio": "none"})
  policy = wam_jax.load_policy(write_run(tmp_path / "run", config), TASKS[0])
  seen = observations(5)
  expected = episode(policy, seen)
  policy.reset()
  np.testing.assert_array_equal(
    episode(policy, [{"rgb_gripper": each["rgb_gripper"]} for each in seen]), expected
  )
  folder = export.export_policy(policy, tmp_path / "exported")
  assert set(json.loads((folder / "policy.json").read_text())["observation"]) == {"rgb_gripper"}


def test_importing_the_package_imports_no_jax_and_no_other_package():
  code = "import sys, wam_jax\n"
  code += "sys.exit(bool({'jax', 'numpy', 'gymnasium', 'ml_collections', 'absl'} & set(sys.modules)))"
  assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


# --- written files ----------------------------------------------------------------------------------

STANDALONE = """
import sys
sys.path[:] = [p for p in sys.path if p not in ("", {root!r})]

class NoWamJax:
  def find_spec(self, name, path=None, target=None):
    if name.split(".")[0] in ("wam_jax", "flax"):
      raise ImportError(name + " is not to be used")

sys.meta_path.insert(0, NoWamJax())
try:
  import wam_jax
  sys.exit("wam_jax was found")
except ImportError:
  pass
sys.path.append({folder!r})
import numpy as np
from run_policy import Policy
policy = Policy({folder!r})
seen = np.load({seen!r})
assert (policy.task, policy.cameras, policy.chunk) == ({task!r}, ("rgb_static", "rgb_gripper"), 4)
policy.reset({batch}, seed=5)
frame = {{name: seen[name][0] for name in seen.files}}
for wrong, reason in (
  (lambda: policy.act(frame | {{"robot_obs": np.full_like(frame["robot_obs"], np.nan)}}), "robot_obs: NaN"),
  (lambda: policy.act({{"rgb_static": frame["rgb_static"]}}), "rgb_gripper, robot_obs missing"),
  (lambda: policy.reset(7), "batch_size: these files are for"),
  (lambda: policy.reset({batch}, seed=-1), "seed"),
):
  try:
    wrong()
    sys.exit("accepted, but: " + reason)
  except ValueError as error:  # which leaves no trace
    assert reason in str(error), error
actions = [policy.act({{name: seen[name][t] for name in seen.files}}) for t in range(len(seen["rgb_static"]))]
np.save({out!r}, np.stack(actions))
"""


def run_standalone(folder, seen, tmp_path, batch):
  """Actions of the exported policy of TASKS[1], in a process that cannot import wam_jax."""
  np.savez(tmp_path / "seen.npz", **{name: np.stack([each[name] for each in seen]) for name in seen[0]})
  code = STANDALONE.format(
    root=str(ROOT),
    folder=str(folder),
    seen=str(tmp_path / "seen.npz"),
    out=str(tmp_path / "actions.npy"),
    task=TASKS[1],
    batch=batch,
  )
  paths = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != str(ROOT)]
  env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
  process = subprocess.run(
    [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
  )
  assert process.returncode == 0, process.stderr[-3000:]
  return np.load(tmp_path / "actions.npy")


@pytest.mark.parametrize(
  ("vision", "batch", "learned", "proprio"),
  [("patch", 2, False, "latent"), pytest.param("conv", None, True, "sincos", marks=pytest.mark.slow)],
  ids=["patch", "conv"],
)
def test_exported_files_act_alike_without_wam_jax(tmp_path, vision, batch, learned, proprio):
  changes = {"world_model.vision": vision, "world_model.learned_initial_state": learned}
  changes["world_model.proprio"] = proprio
  size = 64 if vision == "conv" else SIZE
  run = write_run(tmp_path / "run", make_config(**changes, **{"env.image_size": size}))
  out = tmp_path / "exported"
  arguments = [f"--workdir={run}", f"--task={TASKS[1]}", f"--out={out}", f"--batch={batch or 1}"]
  assert export_command.main(arguments) == 0
  seen = observations(2 * CHUNK + 1, batch, size + 21)  # larger pictures are shrunk
  actions = run_standalone(out, seen, tmp_path, batch)
  policy = wam_jax.load_policy(run, TASKS[1])
  policy.reset(batch_size=batch, seed=5)
  expected = episode(policy, seen)
  np.testing.assert_array_equal(actions, expected)
  assert expected.reshape(-1, 7).std(0)[:6].min() > 0.02
  with np.load(out / "params.npz") as file:  # what acting does not read is left out
    unread = ("decoder", "inverse", "prior_", "robot_dynamics")
    assert not [name for name in file.files if any(part in name for part in unread)]
    assert file["policy/tuned/chunk_in/kernel"].shape[0] == 1
  about = json.loads((out / "policy.json").read_text())
  assert about["task"] == TASKS[1] and about["observation"]["robot_obs"]["shape"] == [batch or 1, 15]


def test_every_platform_is_lowered(run, tmp_path):
  from jax import export as jax_export

  policy = wam_jax.load_policy(run, TASKS[0])
  folder = export.export_policy(policy, tmp_path / "all", ("cpu", "cuda", "tpu"))
  for name in ("start", "step"):
    exported = jax_export.deserialize(bytearray((folder / f"{name}.jaxexport").read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
  before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
  with pytest.raises(export.ExportError, match="there already"):
    export.export_policy(policy, folder)
  assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
  with pytest.raises(export.ExportError, match="unknown platform gpu"):
    export.export_policy(policy, tmp_path / "other", ("gpu",))
  assert sorted(path.name for path in tmp_path.iterdir()) == ["all"]


def test_the_command_says_what_is_wrong(run, tmp_path, capsys):
  assert export_command.main([f"--workdir={run}", "--task=fly", f"--out={tmp_path / 'x'}"]) == 1
  assert "no policy for 'fly'; it has turn_on_led, open_drawer" in capsys.readouterr().err
  assert export_command.main([f"--workdir={tmp_path}", f"--task={TASKS[0]}", f"--out={tmp_path / 'x'}"]) == 1
  assert "no finished policy here" in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module", name="exported")
def _exported(run, tmp_path_factory):
  return export.export_policy(wam_jax.load_policy(run, TASKS[0]), tmp_path_factory.mktemp("exported") / "x")


@pytest.mark.parametrize("name", [*run_exported.PARTS, "manifest.json"])
@pytest.mark.parametrize("damage", ["flipped", "short", "missing"])
def test_a_damaged_part_of_an_exported_policy_is_refused_before_it_is_used(exported, tmp_path, name, damage):
  folder = shutil.copytree(exported, tmp_path / "copy")
  content = bytearray((folder / name).read_bytes())
  content[len(content) // 2] ^= 4
  (folder / name).unlink()
  if damage != "missing":
    (folder / name).write_bytes(content[: len(content) // 2] if damage == "short" else content)
  with pytest.raises(ValueError, match="wam_jax.export") as error:
    run_exported.Policy(folder)
  assert str(folder) in str(error.value)


@pytest.fixture(scope="module", name="packed_file")
def _packed_file(run, tmp_path_factory):
  out = tmp_path_factory.mktemp("packed") / "policies.npz"
  artifact, policy, params, tasks = load.load_stacked(run)
  packed.write_packed(out, artifact, "ppo", tasks, policy, params, load.find_world_model(artifact))
  return out


@pytest.fixture(scope="module", name="packed_folder")
def _packed_folder(run, tmp_path_factory):
  out = tmp_path_factory.mktemp("packed") / "v1.0"
  artifact, policy, params, tasks = load.load_stacked(run)
  packed.write_packed(
    out, artifact, "ppo", tasks, policy, params, load.find_world_model(artifact), "# card\n"
  )
  return out


def test_a_folder_as_hubs_cache_it_acts_as_the_file_does(packed_folder, packed_file, tmp_path):
  """Links to blobs, and files of the hub's client next to them."""
  snapshot = tmp_path / "snapshots" / "a"
  snapshot.mkdir(parents=True)
  assert {file.name for file in packed_folder.iterdir()} == {packed.CONFIG, packed.WEIGHTS, packed.CARD}
  for file in packed_folder.iterdir():
    shutil.copy(file, tmp_path / file.name)
    (snapshot / file.name).symlink_to(f"../../{file.name}")
  (snapshot / ".gitattributes").write_text("*.safetensors filter=lfs")
  (snapshot / ".cache").mkdir()
  whole = packed._read(packed_file)[1]
  jax.tree.map(np.testing.assert_array_equal, packed._read(snapshot)[1], whole)
  for path in (snapshot, snapshot / packed.CONFIG, snapshot / packed.WEIGHTS):
    policy = wam_jax.load_policy(path, TASKS[1])
    assert policy.made_from == wam_jax.load_policy(packed_file, TASKS[1]).made_from
  assert policy.act(observations(1)[0]).shape == (7,)


def test_a_folder_is_not_packed_over(run, packed_folder):
  before = {file: file.read_bytes() for file in packed_folder.iterdir()}
  artifact, policy, params, tasks = load.load_stacked(run)
  world = load.find_world_model(artifact)
  with pytest.raises(PolicyError, match="there already"):
    packed.write_packed(packed_folder, artifact, "ppo", tasks, policy, params, world)
  assert {file: file.read_bytes() for file in packed_folder.iterdir()} == before
  assert list(packed_folder.parent.iterdir()) == [packed_folder]


def _flip(content):
  return content[:-9] + bytes([content[-9] ^ 4]) + content[-8:]


def _settings(**changes):
  return lambda content: json.dumps(json.loads(content) | changes).encode()


@pytest.mark.parametrize(
  ("name", "edit", "told"),
  [
    (packed.CONFIG, lambda _: None, "no such file"),
    (packed.CONFIG, lambda _: b"", "settings"),
    (packed.CONFIG, lambda _: b"[]", "not an object"),
    (packed.CONFIG, lambda content: content[:-9], "settings"),
    (packed.CONFIG, _settings(which="cloned"), "changed"),
    (packed.CONFIG, _settings(tasks=3), "tasks"),
    (packed.CONFIG, _settings(weights_sha256=None), "changed"),
    (packed.WEIGHTS, lambda _: None, "no such file"),
    (packed.WEIGHTS, lambda content: content[:-9], "safetensors"),
    (packed.WEIGHTS, _flip, "sha256"),
    (packed.WEIGHTS, lambda _: b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
  ],
)
def test_packed_folders_that_are_not_what_was_packed(packed_folder, tmp_path, name, edit, told):
  folder = shutil.copytree(packed_folder, tmp_path / "copy")
  content = edit((folder / name).read_bytes())
  (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
  with pytest.raises((PolicyError, CheckpointError), match=told) as error:
    wam_jax.load_policy(folder, TASKS[0])
  assert str(folder / name) in str(error.value)
  assert "again" in str(error.value) or told == "git lfs pull"


def _edit_meta(**changes):
  def edit(arrays):
    arrays[packed.META] = np.asarray(json.dumps(json.loads(str(arrays[packed.META])) | changes))

  return edit


def _without_digest(change):
  """The same in a file of an earlier version, which has no digest of all."""

  def edit(arrays):
    meta = json.loads(str(arrays[packed.META]))
    del meta["sha256"]
    arrays[packed.META] = np.asarray(json.dumps(meta))
    change(arrays)

  return edit


KERNEL = "policy/tuned/chunk_in/kernel"


@pytest.mark.parametrize(
  ("edit", "told"),
  [
    (lambda arrays: arrays[KERNEL].fill(0), "changed"),
    (_edit_meta(which="cloned"), "changed"),
    (_edit_meta(tasks=3), "tasks"),
    (_edit_meta(policy={}), "policy.behaviour_cloning"),
    (_edit_meta(format=9), "format 9"),
    (lambda arrays: arrays.pop(packed.META), "packed policies"),
    (_without_digest(lambda arrays: arrays.pop(KERNEL)), KERNEL),
    (_without_digest(lambda arrays: arrays[KERNEL].fill(np.nan)), f"NaN or infinity in {KERNEL}"),
    (_without_digest(lambda arrays: arrays.update({KERNEL: np.ones(3)})), KERNEL),
    (_without_digest(lambda arrays: arrays.update(more=np.ones(3))), "more"),
    (_without_digest(_edit_meta(tasks=[*TASKS, "c"])), KERNEL),
    (_without_digest(_edit_meta(feature_size=5)), "feature"),
    (_without_digest(_edit_meta(statistics=[[1.0]])), "settings"),
  ],
)
def test_packed_files_that_are_not_what_was_packed(packed_file, tmp_path, edit, told):
  assert wam_jax.load_policy(packed_file, TASKS[0]).task == TASKS[0]
  with np.load(packed_file) as file:
    arrays = {name: file[name].copy() for name in file.files}
  edit(arrays)
  np.savez(tmp_path / "edited.npz", **arrays)
  with pytest.raises((PolicyError, CheckpointError), match=told) as error:
    wam_jax.load_policy(tmp_path / "edited.npz", TASKS[0])
  assert "edited.npz" in str(error.value)


def test_a_flipped_bit_of_a_packed_file_is_noticed(packed_file, tmp_path):
  rng, content = np.random.default_rng(0), packed_file.read_bytes()
  whole = packed._read(packed_file)
  for place in [*rng.integers(0, len(content), 40), *range(len(content) - 60, len(content), 3)]:
    damaged = bytearray(content)
    damaged[place] ^= 1 << int(rng.integers(8))
    (tmp_path / "damaged.npz").write_bytes(damaged)
    try:
      meta, arrays = packed._read(tmp_path / "damaged.npz")
    except PolicyError:
      continue
    assert meta == whole[0]  # a bit that means nothing, as a time
    jax.tree.map(np.testing.assert_array_equal, arrays, whole[1])


@pytest.mark.parametrize(
  "content", [None, "", "{", "[]", "{}", '{"a": 3}', '{"a": {"x": "y"}}', '{"a": {"x": 1}}']
)
def test_a_result_of_another_form_is_told_with_what_makes_it_again(run, tmp_path, content):
  shutil.copytree(run, tmp_path / "run")
  file = tmp_path / "run" / "ppo" / "result.json"
  file.unlink() if content is None else file.write_text(content)
  with pytest.raises(ArtifactError, match=r"result.json.*rm -r .*/ppo.*--config.workdir=") as error:
    wam_jax.load_policy(tmp_path / "run", TASKS[0])
  assert len(str(error.value).splitlines()) == 1


def test_weights_that_are_no_numbers_are_refused(run, tmp_path):
  shutil.copytree(run, tmp_path / "run")
  folder = tmp_path / "run" / "world_model" / "params"
  params = load_params(folder)
  params["fuse"]["kernel"][0, 0] = np.inf
  save_params(folder, params)
  with pytest.raises(CheckpointError, match="NaN or infinity in fuse/kernel"):
    wam_jax.load_policy(tmp_path / "run", TASKS[0])


# --- monitoring -------------------------------------------------------------------------------------


def certify(root, config, limit):
  """Adds a classifier, and the part of a certificate that a monitor reads."""
  prints = {
    stage: artifact_lib.load_artifact(root, stage).fingerprint for stage in ("behaviour_cloning", "ppo")
  }
  plain, size = config.to_dict(), make_world_model(config.world_model, config.env.image_size).feature_size
  classifier = models.make_classifier(config, size)
  network = random_like(classifier.init, 4, (len(TASKS),))
  params = {"network": network, "threshold": np.zeros(len(TASKS), np.float32)}
  judge = make_artifact("classifier", root / "classifier", plain, {"of": "classifier"})
  write(judge, params)
  prints["classifier"] = judge.fingerprint
  certified = make_artifact("certify", root / "certify", plain, {"of": "certify"}, prints)
  write(certified)
  content = {"window": 2, "tasks": {task: {"p50": 1.0, "limit": limit} for task in TASKS}}
  (certified.path / "monitor.json").write_text(json.dumps(content))


@pytest.mark.parametrize("batch", [None, 3])
def test_monitor_reads_along_and_changes_no_action(batch, tmp_path):
  config = make_config(**{"world_model.proprio": "latent"})
  root = write_run(tmp_path / "run", config)
  certify(root, config, 1e9)
  seen = observations(5, batch)
  policy = wam_jax.load_policy(root, TASKS[1])
  policy.reset(batch)
  expected = episode(policy, seen)
  monitor = policy.monitor
  policy.reset(batch)
  np.testing.assert_array_equal(episode(policy, seen), expected)
  values = {name: np.array([r[name] for r in monitor.readings[1:]]) for name in monitor.readings[0]}
  assert monitor.readings[0]["surprise"] is None and (values["surprise"] >= 0).all()
  assert np.ptp(values["surprise"]) > 0 and np.ptp(values["success_probability"]) > 0
  assert ((values["success_probability"] > 0.5) == values["success"]).all()
  # The surprise of the last frame, by the world model's own step from the frame before.
  policy.reset(batch)
  actions = episode(policy, seen[:-1])
  before = policy._state
  policy.act(seen[-1])
  latent = Latent(before["deter"], before["stoch"], before["stoch"], before["robot"])
  action = np.asarray(actions[-1]).reshape(-1, 7)
  prior = wm.imagine_step(policy.model, policy.params[0], latent, action, jax.random.key(9))
  expected = -(jax.nn.log_softmax(prior.logits) * policy._state["stoch"]).sum((-2, -1))
  np.testing.assert_allclose(np.ravel(monitor.readings[-1]["surprise"]), expected, rtol=1e-4)
  # Of two frames in a row the mean counts, and the first frame surprises nobody.
  means = (values["surprise"][1:] + values["surprise"][:-1]) / 2
  for limit in (-1.0, float(np.median(means))):
    monitor.spread["limit"] = limit
    policy.reset(batch)
    episode(policy, seen)
    flags = np.array([reading["unfamiliar"] for reading in monitor.readings])
    assert not flags[:2].any()
    np.testing.assert_array_equal(flags[2:], means > limit)
  monitor.save(tmp_path / "episode.jsonl")
  assert [
    json.loads(line) for line in (tmp_path / "episode.jsonl").read_text().splitlines()
  ] == monitor.readings
  policy.reset(batch)
  assert monitor.readings == []


def test_monitor_says_what_it_lacks(tmp_path):
  config = make_config()
  root = write_run(tmp_path / "run", config)
  with pytest.raises(MonitorError, match="--config.stage=certify"):
    _ = wam_jax.load_policy(root, TASKS[0]).monitor
  certify(root, config, 1.0)
  assert wam_jax.load_policy(root, TASKS[0], "cloned").monitor.spread["limit"] == 1
  shutil.rmtree(root / "ppo")
  write_run(tmp_path / "other", config)
  policy = artifact_lib.load_artifact(tmp_path / "other" / "ppo")
  shutil.copytree(policy.path, root / "ppo")
  another = make_artifact("ppo", root / "ppo", policy.config, {"of": "another"}, policy.inputs)
  artifact_lib.write_artifact(another, done=True)
  with pytest.raises(MonitorError, match="the certificate of another ppo"):
    _ = wam_jax.load_policy(root, TASKS[0]).monitor
  with pytest.raises(MonitorError, match="packed"):
    _ = wam_jax.load_policy(task="open_drawer").monitor
