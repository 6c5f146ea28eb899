"""Rollouts with a fake simulator: alignment, chunk phase, book-keeping; summary and resuming."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from made_up_params import random_like

from wam_jax import config as config_lib
from wam_jax.acting import episodes as episodes_lib
from wam_jax.acting import rollout, step
from wam_jax.core import intervals
from wam_jax.core.actions import executable
from wam_jax.embodiment import CALVIN
from wam_jax.envs import table
from wam_jax.envs import tasks as task_rules
from wam_jax.nn.world_model import make_world_model
from wam_jax.stages import evaluate
from wam_jax.storage.artifact import ArtifactError
from wam_jax.training import world_model as wm
from wam_jax.types import Batch, features

SIZE, CHUNK = 16, 3
TASKS = ("open_drawer", "move_slider_right")
COLUMN = {"open_drawer": (task_rules.DRAWER, 1.0), "move_slider_right": (task_rules.SLIDER, -1.0)}


class FakeVector:
  """Each step adds the action to robot_obs; furniture moves by `speed` of its episode."""

  def __init__(self, num, speed):
    self.num, self.speed = num, np.asarray(speed, float)
    self.stepped, self.drawn, self.pictures = [], [], None

  def reset(self, starts, tasks):
    self.robot, self.scene = (np.array(x, float) for x in table.split(starts))
    self.tasks, self.origin = tasks, self.scene.copy()

  def step(self, actions, active):
    self.stepped.append(np.array(active))
    self.robot[active, :7] += 0.01 * actions[active]
    self.scene[active, task_rules.DRAWER] += self.speed[active]
    self.scene[active, task_rules.SLIDER] -= self.speed[active]

  def state(self):
    return self.robot.copy()

  def snapshot(self):
    return table.join(self.robot, self.scene)

  def success(self):
    return task_rules.successes(self.tasks, self.origin, self.scene)

  def observe(self, active):
    self.drawn.append(int(active.sum()))
    pictures = draw(self.robot, self.scene)
    if self.pictures is not None:
      keep = ~active
      for camera, picture in pictures.items():
        picture[keep] = self.pictures[camera][keep]
    self.pictures = pictures
    return pictures


def draw(robot_obs, scene_obs):
  """Pictures that depend on the state in every pixel."""
  weights = np.random.default_rng(0).normal(size=(39, SIZE * SIZE * 3))
  flat = np.concatenate([robot_obs, scene_obs], -1) @ weights
  picture = (127 + 120 * np.sin(flat)).astype(np.uint8).reshape(-1, SIZE, SIZE, 3)
  return {"rgb_static": picture, "rgb_gripper": picture[:, ::-1].copy()}


@dataclasses.dataclass(frozen=True)
class LinearPolicy:
  """Chunk = tanh of a linear map of the feature; no noise."""

  chunk = CHUNK

  def sample(self, params, feature, key, deterministic=False):
    assert deterministic
    return jnp.tanh(feature @ params["w"]).reshape(*feature.shape[:-1], CHUNK, 7) * 1.2


@pytest.fixture(scope="module")
def model():
  config = config_lib.default_config().world_model
  config.update(vision="patch", proprio="sincos", depth=4, embed=16, deter=12, stoch=3, classes=4, hidden=16)
  config.inverse_dynamics_hidden = 8
  model = make_world_model(config, SIZE)
  return model, random_like(lambda key: wm.init_params(model, key))


def _starts(episodes, seed=1):
  rng = np.random.default_rng(seed)
  return table.join(rng.normal(size=(2, episodes, 15)), rng.uniform(0.2, 0.3, size=(2, episodes, 24)))


def _run(model, speed, max_steps=8, key=5, **options):
  speed = np.asarray(speed)
  params = {"w": jnp.asarray(np.random.default_rng(2).normal(size=(2, model[0].feature_size, CHUNK * 7)))}
  environment = FakeVector(speed.size, speed.ravel())
  episodes = rollout.rollout_policies(
    *model,
    LinearPolicy(),
    params,
    tasks=TASKS,
    starts=_starts(speed.shape[1]),
    environment=environment,
    key=jax.random.key(key),
    max_steps=max_steps,
    **options,
  )
  return episodes, params, environment


def test_actions_follow_from_filtering_every_frame(model):
  """The executed actions equal those recomputed offline by `observe` over the recorded episode."""
  steps = 8
  episodes, params, _ = _run(model, np.zeros((2, 2)), steps)
  robot, scene, action = (
    x.reshape(4, -1, x.shape[-1]) for x in (*table.split(episodes.snapshot), episodes.action)
  )
  robot, scene = robot[:, :steps], scene[:, :steps]
  pictures = draw(robot.reshape(-1, 15), scene.reshape(-1, 24))
  rest = np.tile([0, 0, 0, 0, 0, 0, 1], (4, 1, 1)).astype(np.float32)
  batch = Batch(
    pictures={camera: picture.reshape(4, steps, *picture.shape[1:]) for camera, picture in pictures.items()},
    robot_obs=robot.astype(np.float32),
    action=action,
    prev_action=np.concatenate([rest, action[:, :-1]], 1),
    is_first=np.tile(np.arange(steps) == 0, (4, 1)),
    mask=np.ones((4, steps), bool),
  )
  keys = [step.frame_keys(jax.random.key(5), t)[0] for t in range(steps)]
  noise = jnp.stack([wm.latent_noise(model[0], key, (4,)) for key in keys], 1)

  @jax.jit
  def observe(params, batch, noise):
    embed = wm.encode(model[0], params, batch)
    return features(wm.observe(model[0], params, embed, batch.prev_action, batch.is_first, noise)[0])

  feature = np.asarray(observe(model[1], batch, noise))
  np.testing.assert_allclose(episodes.first_feature.reshape(4, -1), feature[:, 0], atol=1e-5)
  sampled_at = np.arange(steps) - np.arange(steps) % CHUNK
  for k in range(2):
    own = slice(2 * k, 2 * k + 2)
    task_params = jax.tree.map(lambda x, k=k: x[k], params)
    chunks = LinearPolicy().sample(task_params, feature[own, sampled_at], None, deterministic=True)
    expected = chunks[:, np.arange(steps), np.arange(steps) % CHUNK]
    np.testing.assert_allclose(action[own], executable(expected, CALVIN.binary), atol=1e-4)
  assert np.abs(episodes.action[..., :6]).max() <= 1
  assert set(np.unique(episodes.action[..., 6])) <= {-1.0, 1.0}
  assert np.ptp(episodes.action[..., :6], axis=(0, 1)).mean() > 0.1  # episodes and tasks do differ


def test_success_and_steps(model):
  # Drawer: 0.12 at 0.05 a step is reached after 3 steps; slider: 0.15 after 4 (0.04) or never (0.01).
  speed = np.array([[0.05, 0.0], [0.04, 0.01]])
  episodes, _, environment = _run(model, speed, max_steps=7)
  np.testing.assert_array_equal(episodes.success, [[True, False], [True, False]])
  np.testing.assert_array_equal(episodes.steps, [[3, 7], [4, 7]])
  assert episodes.robot_obs.shape == (2, 2, 8, 15) and episodes.snapshot.shape == (2, 2, 8, 39)
  scene_obs = table.split(episodes.snapshot)[1]
  # After the end: not stepped, not drawn, the last state repeated, no action.
  assert [int(active.sum()) for active in environment.stepped] == [4, 4, 4, 3, 2, 2, 2]
  assert environment.drawn == [4, 4, 4, 3, 2, 2, 2]
  np.testing.assert_array_equal(scene_obs[0, 0, 3:], np.tile(scene_obs[0, 0, 3], (5, 1)))
  assert not episodes.action[0, 0, 3:].any() and episodes.action[0, 0, :3].any()
  moved = scene_obs[1, 0, 4] - scene_obs[1, 0, 0]
  assert moved[task_rules.SLIDER] == pytest.approx(-0.16)


def test_stops_when_all_have_succeeded(model):
  done = []
  episodes, _, environment = _run(model, np.full((2, 1), 0.08), max_steps=9, progress=done.append)
  assert episodes.success.all() and (episodes.steps == 2).all()
  assert len(environment.stepped) == 2 and sum(done) == 9
  assert episodes.robot_obs.shape[2] == 10


def test_same_key_same_episodes(model):
  first, second, other = (_run(model, np.zeros((2, 1)), 5, key=key)[0] for key in (5, 5, 6))
  np.testing.assert_array_equal(first.action, second.action)
  np.testing.assert_array_equal(first.robot_obs, second.robot_obs)
  assert (first.action != other.action).any()  # posterior samples depend on the key


def test_wrong_number_of_environments(model):
  with pytest.raises(ValueError, match="need 4 environments"):
    rollout.rollout_policies(
      *model, LinearPolicy(), {}, tasks=TASKS, starts=_starts(2),
      environment=FakeVector(3, np.zeros(3)), key=jax.random.key(0), max_steps=2,
    )  # fmt: skip


class FakeSimulator(FakeVector):
  """One episode; its experts of move_slider_right give up after 2 steps."""

  def __init__(self):
    super().__init__(1, [0.05])

  def reset(self, start, task):
    super().reset(start[None], [task])

  def step(self, action):
    super().step(action[None], np.ones(1, bool))

  def state(self):
    return super().state()[0]

  def snapshot(self):
    return super().snapshot()[0]

  def success(self):
    return super().success()[0]

  def expert(self, task, rng):
    left = iter(range(2 if task == "move_slider_right" else 99))
    return lambda: np.append(rng.uniform(-1, 1, 6), 1.0) if next(left, None) is not None else None


def test_experts_end_on_success_on_giving_up_and_on_time():
  run = lambda steps: rollout.rollout_experts(
    tasks=TASKS, starts=_starts(3), environment=FakeSimulator(), action_size=7, seed=0, max_steps=steps
  )
  episodes = run(6)
  np.testing.assert_array_equal(episodes.success, [[True] * 3, [False] * 3])
  np.testing.assert_array_equal(episodes.steps, [[3] * 3, [2] * 3])  # the slider's expert gives up after 2
  assert episodes.snapshot.shape == (2, 3, 7, 39)
  assert not run(2).success.any()


def _episodes(rng, rate, tasks=2, episodes=10):
  success = rng.random((tasks, episodes)) < rate
  steps = np.where(success, rng.integers(10, 72, success.shape), 72)
  snapshot = rng.normal(size=(tasks, episodes, 4, 39))
  action = rng.uniform(-1, 1, size=(tasks, episodes, 3, 7)).astype(np.float32)
  arrays = {"success": success, "steps": steps, "robot_obs": snapshot[..., :15], "snapshot": snapshot}
  return arrays | {"action": action}


def test_summary_counts_and_gap():
  rng = np.random.default_rng(4)
  episodes = {"random": _episodes(rng, 0), "cloned": _episodes(rng, 0.5), "ppo": _episodes(rng, 0.8)}
  episodes["ppo"]["imagined"] = np.array([0.9, 0.7])
  summary = evaluate.summarise(TASKS, episodes)
  for name, arrays in episodes.items():
    for k, task in enumerate(TASKS):
      row = summary["policies"][name]["per_task"][task]
      assert row["successes"] == arrays["success"][k].sum() and row["n"] == 10
      assert row["rate"] == row["successes"] / 10
      assert (row["low"], row["high"]) == intervals.wilson_interval(row["successes"], 10)
    assert summary["policies"][name]["mean"]["rate"] == pytest.approx(arrays["success"].mean())
  assert summary["policies"]["random"]["mean"]["steps"] is None
  ppo = summary["policies"]["ppo"]
  assert ppo["per_task"][TASKS[1]]["gap"] == pytest.approx(0.7 - ppo["per_task"][TASKS[1]]["rate"])
  assert ppo["mean"]["imagined"] == pytest.approx(0.8)
  assert "imagined" not in summary["policies"]["cloned"]["mean"]
  expected = episodes["ppo"]["success"].mean() - episodes["cloned"]["success"].mean()
  assert summary["ppo_minus_cloned"]["difference"] == pytest.approx(expected)


def test_of_each_task_the_first_success_and_the_first_failure_are_shown():
  arrays = _episodes(np.random.default_rng(5), 0.5)
  arrays["success"][0], arrays["success"][1] = False, True
  arrays["success"][1, [0, 3]] = False
  shown = evaluate.shown_episodes(TASKS, arrays)
  assert shown["task"].tolist() == [TASKS[0], TASKS[1], TASKS[1]]
  assert shown["episode"].tolist() == [0, 1, 0] and shown["success"].tolist() == [False, True, False]
  for name in ("steps", "robot_obs", "snapshot", "action"):
    np.testing.assert_array_equal(shown[name], arrays[name][[0, 1, 1], [0, 1, 0]])


def test_the_last_action_is_held_to_the_end_of_a_chunk():
  action = np.arange(14.0).reshape(2, 7, 1)
  held = evaluate.held_to_chunk_ends(action, np.array([3, 7]), 4)
  assert held[..., 0].tolist() == [[0, 1, 2, 2, 2, 2, 2, 2], [7, 8, 9, 10, 11, 12, 13, 13]]


def test_stored_episodes_are_reused_only_from_the_same_starts(tmp_path):
  rng = np.random.default_rng(6)
  arrays, starts = _episodes(rng, 0.5), _starts(10)
  path = tmp_path / "cloned.npz"
  assert evaluate.load_episodes(path, starts) is None
  evaluate._save_npz(path, arrays | {"start": starts})
  stored = evaluate.load_episodes(path, starts)
  assert set(stored) == set(arrays)
  np.testing.assert_array_equal(stored["success"], arrays["success"])
  assert evaluate.load_episodes(path, starts + 1e-9) is None


def test_episodes_of_older_versions_are_read(tmp_path):
  """They hold the robot's and the scene's numbers separately."""
  arrays, starts = _episodes(np.random.default_rng(7), 0.5), _starts(10)
  older = {name: array for name, array in arrays.items() if name != "snapshot"}
  older["scene_obs"] = table.split(arrays["snapshot"])[1]
  older |= dict(zip(("start_robot_obs", "start_scene_obs"), table.split(starts), strict=True))
  evaluate._save_npz(tmp_path / "ppo.npz", older)
  read = episodes_lib.read_episodes(tmp_path / "ppo.npz")
  assert set(read) == {*arrays, "start"}
  np.testing.assert_array_equal(read["start"], starts)
  np.testing.assert_array_equal(read["snapshot"], arrays["snapshot"])
  with pytest.raises(ArtifactError, match="dream missing"):
    episodes_lib.read_episodes(tmp_path / "ppo.npz", ("dream",))
