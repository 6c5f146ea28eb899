"""Gymnasium environments as simulators: the guide's, and those that lack something."""

from __future__ import annotations

import importlib.metadata
import pathlib
import re

import gymnasium
import numpy as np
import pytest

from wam_jax import config as config_lib
from wam_jax.acting.episodes import draw_episodes
from wam_jax.embodiment import CALVIN
from wam_jax.envs import base, recording, registry
from wam_jax.envs.gymnasium_env import GymnasiumSimulator
from wam_jax.envs.vector import make_vector

GUIDE = pathlib.Path(__file__).parents[2] / "docs" / "guides" / "own_simulator.md"
Box, Dict, Discrete = gymnasium.spaces.Box, gymnasium.spaces.Dict, gymnasium.spaces.Discrete


def guides_code():
  """The environment of the guide, as a user saves it."""
  return re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)[0]


@pytest.fixture
def reacher(tmp_path, monkeypatch):
  (tmp_path / "reacher.py").write_text(guides_code())
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  return registry.load("reacher:Reacher")


SETTINGS = {"max_steps": 40, "play_episode_frames": 50, "play_frames": 90, "action_noise": 0.3}
SETTINGS |= {"failed_attempt_rate": 0.25, "image_size": 16}


def settings(**changes):
  return recording.Settings(3, {}, **SETTINGS | changes)


def test_the_guides_environment(reacher):
  robot = reacher.embodiment
  assert reacher.tasks == reacher.experts == ("Reacher",)
  assert robot.camera_names == ("camera",) and [d.name for d in robot.state] == ["hand 0", "hand 1"]
  assert robot.action[1].range == (-0.1, 0.1) and robot.control_hz == 10
  env = reacher.make()
  start = env.sample_start("Reacher", np.random.default_rng(0))
  env.reset(start, "Reacher")
  before = env.state()
  env.step(np.array([1.0, -0.5]))
  np.testing.assert_allclose(env.state() - before, [0.1, -0.05], atol=1e-6)
  act, steps = env.expert("Reacher", np.random.default_rng(0)), 0
  while not env.success():
    env.step(act())
    steps += 1
  assert 0 < steps < 30 and env.pictures()["camera"].shape == (64, 64, 3)
  assert env.possible() == []  # it is done
  with pytest.raises(ValueError, match="unknown task 'push'"):
    env.reset(start, "push")
  with pytest.raises(ValueError, match="one seed"):
    env.reset(np.zeros(39), "Reacher")


def test_recordings_of_it(reacher):
  env, robot = reacher.make(), reacher.embodiment
  record = lambda kind, task="", **changes: recording.record(
    reacher, env, recording.Job(kind, task, 0), settings(**changes)
  )
  demo = record("demo", "Reacher")
  first = int(np.flatnonzero(demo["success"])[0])
  assert first == len(demo["success"]) - recording.SUCCESS_FRAMES and demo["success"][first:].all()
  assert demo["camera"].shape == (len(demo["success"]), 16, 16, 3) and np.abs(demo["rel_actions"]).max() <= 1
  env.reset(demo["start"], "Reacher")
  for action, state in zip(demo["rel_actions"], demo["robot_obs"], strict=True):
    np.testing.assert_array_equal(env.state(), state)  # so a demo can be shown again
    env.step(action)
  play = record("play")
  assert play["lengths"].tolist() == [50] and play["rel_actions"].shape == (50, robot.action_size)
  failed = record("failed", "Reacher", aim_error=2.0)
  assert not failed["success"].any() and failed["camera"].any()
  with pytest.raises(RuntimeError, match="aim_error"):
    record("failed", "Reacher", aim_error=0.0)


def test_many_side_by_side_and_drawn_again(reacher):
  vector = make_vector(reacher, 2, image_size=32)
  starts = np.array([[4.0], [9.0]])
  vector.reset(starts, ["Reacher"] * 2)
  seen, actions = [vector.observe()], np.random.default_rng(1).uniform(-1, 1, (3, 2, 2))
  for action in actions:
    vector.step(action, np.array([True, False]))
    seen.append(vector.observe(np.array([True, False])))
  assert vector.snapshot() is None and vector.success().shape == (2,)
  np.testing.assert_array_equal(seen[3]["camera"][1], seen[0]["camera"][1])
  episodes = {"task": ["Reacher"] * 2, "start": starts, "action": actions.swapaxes(0, 1)}
  drawn = draw_episodes(reacher, episodes, [[0, 2, 3], [0]], 32)["camera"]
  np.testing.assert_array_equal(drawn[0], np.stack([seen[t]["camera"][0] for t in (0, 2, 3)]))
  np.testing.assert_array_equal(drawn[1][0], seen[0]["camera"][1])
  assert draw_episodes(reacher, episodes, [[0], [0]], 500)["camera"][0].shape == (1, 64, 64, 3)


class Counter(gymnasium.Env):
  """Counts steps; its first number of state is the count. `over` steps end it."""

  action_space = Box(-np.ones(2, np.float32), np.full(2, 3, np.float32))
  tasks = ("up", "down")
  over, told = 4, {"is_success": False}

  def observation(self):
    rng = np.random.default_rng(self.count)
    views = {"left": rng.integers(0, 255, (20, 30, 3), np.uint8), "depth": np.zeros((20, 30), np.float32)}
    return {"views": views, "arm": {"count": np.array([self.count], np.float32), "grip": np.float32(0.5)}}

  def reset(self, seed=None, options=None):
    self.count, self.task = 0, (options or {}).get("task")
    return self.observation(), {}

  def step(self, action):
    self.count += 1
    return self.observation(), 0.0, self.count >= self.over, False, dict(self.told)


def make(cls=Counter, load=None, **env):
  return GymnasiumSimulator({"name": "mine:Counter", **env}, cls, load or (lambda place: None))


def test_nested_observations_tasks_and_an_end_that_is_success():
  simulator = make(
    success="terminated", load=lambda place: lambda env, seen: np.array([3, -1.0]), expert="a:b"
  )
  assert simulator.tasks == simulator.experts == ("up", "down")
  assert simulator.embodiment.camera_names == ("views_left",) and simulator.largest_picture == 20
  assert [d.name for d in simulator.embodiment.state] == ["arm.count 0", "arm.grip 0"]
  env = simulator.make()
  env.reset(np.array([1.0]))
  assert env.possible() == ["down"] and env._env.task == "down"
  demo = recording.record(simulator, env, recording.Job("demo", "up", 0), settings(action_noise=0.0))
  # It stands still after its end, and those frames are successes.
  assert demo["success"].tolist() == [False] * 4 + [True] * recording.SUCCESS_FRAMES
  assert demo["robot_obs"][:, 0].tolist() == [0, 1, 2, 3] + [4] * recording.SUCCESS_FRAMES
  np.testing.assert_allclose(demo["rel_actions"][:4], np.tile([1, -1], (4, 1)))
  assert (
    not demo["rel_actions"][4:].any() or (demo["rel_actions"][4:] == simulator.embodiment.rest_action).all()
  )
  play = recording.record(simulator, env, recording.Job("play", "", 0), settings(play_episode_frames=9))
  assert play["lengths"].tolist() == [4, 4, 1]  # an episode ends where the environment does
  assert make(state=["arm.count"], pictures=["views.left"]).embodiment.state_size == 1


class Drawn(Counter):
  """No picture in its observation; it draws itself."""

  def __init__(self, render_mode=None):
    self.render_mode = render_mode

  def observation(self):
    return np.array([self.count], np.float32)

  def render(self):
    return np.full((16, 16, 3), self.count, np.uint8) if self.render_mode == "rgb_array" else None


def test_an_environment_that_draws_itself():
  env = make(Drawn).make()
  env.reset(np.array([0.0]), "up")
  env.step(np.zeros(2))
  assert env.pictures()["render"][0, 0, 0] == 1 and env.state().tolist() == [1.0]


class Pixels(Counter):
  """Nothing but a picture."""

  def observation(self):
    return np.zeros((16, 16, 3), np.uint8)


def test_a_wrapped_environment():
  """Its expert speaks of the wrapper's actions; a picture that is drawn into the same memory is kept."""

  class Taught(gymnasium.Wrapper):
    memory = np.zeros((16, 16, 3), np.uint8)

    def expert(self, observation):
      return np.array([0.25, 9.0])

    def render(self):
      self.memory[:] = self.unwrapped.count
      return self.memory

  def wrapped(render_mode=None):
    return Taught(gymnasium.wrappers.RescaleAction(Drawn(render_mode), 0, 1))

  simulator = make(wrapped)
  assert simulator.experts == ("up", "down") and simulator.embodiment.action[0].range == (0, 1)
  env = simulator.make()
  demo = recording.record(simulator, env, recording.Job("play", "", 0), settings(play_episode_frames=4))
  assert demo["render"][:, 0, 0, 0].tolist() == [0, 1, 2, 3]
  env.reset(np.array([0.0]), "up")
  np.testing.assert_allclose(env.expert("up", np.random.default_rng(0))(), [-0.5, 1.0])


SQUARE = np.zeros((16, 16, 3), np.uint8)


def fails(*arguments, **options):
  raise OSError("unplugged")


def unrepeatable(self):
  return {"a": SQUARE, "x": np.random.default_rng().random(2)}


def changed(cls=Counter, **attributes):
  return type(cls.__name__, (cls,), attributes)


@pytest.mark.parametrize(
  ("cls", "env", "error", "words"),
  [
    (changed(action_space=Discrete(3)), {}, base.NotOffered, r"actions must be a Box \[A\].*Discrete\(3\)"),
    (changed(action_space=Dict(a=Box(0, 1))), {}, base.NotOffered, "actions must be a Box"),
    (changed(action_space=Box(0, 1, (2, 2))), {}, base.NotOffered, "actions must be a Box"),
    (changed(action_space=Box(-np.inf, 1, (2,))), {}, base.NotOffered, "must be finite.*RescaleAction"),
    (changed(told={"score": 1}), {}, base.NotOffered, "its info has score.*env.success"),
    (changed(told={}), {"success": "won"}, base.NotOffered, "its info has nothing, not won"),
    (changed(Drawn, render=lambda self: None), {}, base.NotOffered, "render is None.*render_mode"),
    (changed(Pixels), {}, base.NotOffered, "no vector of floats.*all of it"),
    (
      changed(Drawn, render=gymnasium.Env.render),
      {},
      base.NotOffered,
      "draws none .*NotImplemented",
    ),
    (Counter, {"pictures": ["views.depth"]}, base.NotOffered, r"views_depth is float32 \[20, 30\]"),
    (
      Counter,
      {"pictures": ["wrist"]},
      ValueError,
      r"env.pictures: .*no wrist.*views.left uint8 \[20, 30, 3\]",
    ),
    (Counter, {"state": ["arm"]}, ValueError, "env.state: .*no arm in.*arm.count"),
    (lambda: Counter.tasks, {}, base.NotOffered, "is a tuple, not a gymnasium.Env"),
    (lambda robot: Counter(), {}, base.NotOffered, "without arguments.*'robot'"),
    (Counter(), {}, base.NotOffered, "is a Counter, not a class or function"),
    (changed(reset=fails), {}, base.NotOffered, r"reset.*raised OSError: unplugged \(.*test_own_simulator"),
    (changed(step=fails), {}, base.NotOffered, "step raised OSError"),
    (changed(__init__=fails), {}, base.NotOffered, "making it raised OSError"),
    (changed(metadata={"render_fps": "fast"}), {}, base.NotOffered, "metadata.*fast"),
    (changed(reset=lambda self, seed, options: {}), {}, base.NotOffered, "reset must return 2 things"),
    (changed(step=lambda self, action: (None,) * 5), {}, base.NotOffered, "step must return 5 things"),
    (changed(told={"success": "no"}), {}, base.NotOffered, "'success'. must be true or false, but is 'no'"),
    (changed(told={"success": np.zeros(2)}), {}, base.NotOffered, "must be true or false"),
    (changed(told={"success": np.nan}), {}, base.NotOffered, "must be true or false"),
    (changed(tasks="push"), {}, base.NotOffered, "tuple of names, not 'push'"),
    (changed(tasks=("put/down",)), {}, base.NotOffered, "letters, digits.*put/down"),
    (Counter, {"tasks": ["upp"]}, ValueError, "env.tasks: .*no task upp; it has up, down"),
    (
      changed(expert=lambda self, seen: np.zeros((2, 1))),
      {},
      base.NotOffered,
      r"(?s)2 finite.*shape \[2, 1\]",
    ),
    (changed(expert=lambda self, seen: np.array([0, np.nan])), {}, base.NotOffered, "2 finite numbers"),
    (Counter, {"state": ["arm.words"]}, ValueError, "env.state"),
    (changed(action_space=Box(0, 1, (0,))), {}, base.NotOffered, "actions must be a Box"),
    (changed(expert=3), {}, base.NotOffered, "its expert raised TypeError"),
    (
      changed(observation=lambda self: {"a": {"b": SQUARE}, "a_b": SQUARE, "x": 0.0}),
      {},
      base.NotOffered,
      "a_b",
    ),
    (changed(observation=lambda self: {"robot_obs": SQUARE, "x": 0.0}), {}, base.NotOffered, "'robot_obs'"),
    (
      changed(observation=lambda self: {"a": SQUARE, "x": np.nan}),
      {},
      base.NotOffered,
      "finite numbers.*nan",
    ),
    (changed(observation=unrepeatable), {}, base.NotOffered, "not the same the second time.*np_random"),
  ],
)
def test_what_is_missing_is_told(cls, env, error, words):
  with pytest.raises(error, match=words):
    make(cls, **env)


@pytest.mark.parametrize(
  "later",
  [
    {"a": SQUARE, "x": np.array([np.nan, 0])},
    {"a": SQUARE, "x": np.zeros(3)},
    {"a": SQUARE},
    {"x": np.zeros(2)},
    {"a": SQUARE[:8, :8], "x": np.zeros(2)},
    {"a": SQUARE.astype(float), "x": np.zeros(2)},
  ],
)
def test_an_observation_that_changes_later_is_told(later):
  first = {"a": SQUARE, "x": np.zeros(2)}
  simulator = make(
    changed(observation=lambda self: first if self.count < 2 else later, expert=lambda self, seen: [0, 0])
  )
  with pytest.raises(base.NotOffered, match="mine:Counter: (state x|picture)"):
    recording.record(simulator, simulator.make(), recording.Job("demo", "up", 0), settings())


def test_one_task_of_several_is_told_to_the_environment():
  env = make(tasks=["down"]).make()
  env.reset(np.array([0.0]))
  assert env._env.task == "down"


def test_a_tuple_and_arguments_by_keyword():
  space = changed(Drawn, observation=lambda self: (SQUARE, np.zeros(2)))
  simulator = make(lambda **options: space(**options))
  assert simulator.embodiment.camera_names == ("picture_0",) and simulator.embodiment.state_size == 2


@pytest.mark.parametrize("text", ["def f(:", "import nothing_of_this_name", "1 / 0", "raise SystemExit(2)"])
def test_a_module_that_cannot_be_imported_is_told(text, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  name = f"broken_{abs(hash(text))}"
  pathlib.Path(f"{name}.py").write_text(text)
  with pytest.raises(base.NotOffered, match=f"{name}:Env: importing it raised"):
    registry.load(f"{name}:Env")


def test_a_module_that_changes_the_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  pathlib.Path("moves_away.py").write_text("import os\nos.chdir('/')\n" + guides_code())
  assert registry.load("moves_away:Reacher").tasks == ("Reacher",)
  assert pathlib.Path.cwd() == tmp_path


@pytest.mark.parametrize(
  ("changes", "path"),
  [
    ({"env.name": "gymnasium:No-v0"}, "env.name"),
    ({"env.name": "reacher:Nobody"}, "env.name"),
    ({"env.name": "atari"}, "env.name"),
    ({"env.expert": "reacher:nobody"}, "env.name"),
    ({"env.image_size": 128}, "env.image_size"),
    ({"tasks": ("push",)}, "tasks"),
    ({"env.name": "expertless:Reacher"}, "data.source"),
    (
      {"env.name": "expertless:Reacher", "tasks": ("Reacher",)}
      | {"data.source": "calvin", "data.calvin_path": "."},
      "evaluate.expert",
    ),
  ],
)
def test_the_config_says_what_does_not_fit(reacher, changes, path):
  source = guides_code().replace("def expert", "def _expert")
  pathlib.Path("expertless.py").write_text(source)
  for split in ("training", "validation"):
    pathlib.Path(split).mkdir()
  config = config_lib.preset_config("demo")
  sound = {"env.name": "reacher:Reacher", "data.failed_takes_per_task": 0, "ppo.failed_starts": 0.0}
  config.update_from_flattened_dict(sound | changes)
  with pytest.raises(config_lib.ConfigError) as error:
    config_lib.finalize(config)
  assert path in {problem.path for problem in error.value.problems}


def test_tasks_left_alone_are_the_simulators(reacher):
  config = config_lib.preset_config("demo")
  config.env.name = "reacher:Reacher"
  done = config_lib.finalize(config)
  assert done.tasks == ("Reacher",) and done.world_model.cameras == ("camera",)


@pytest.mark.parametrize(
  "env", [{"name": "os:abort"}, {"name": "gymnasium:os:X"}, {"name": "x:\x1b[2J", "expert": "os:abort"}]
)
def test_files_name_no_code(env):
  with pytest.raises(base.NotOffered, match="is not run") as error:
    registry.check_known(env)
  assert "\x1b" not in str(error.value)
  env = registry.without_code(
    {"name": "calvin", "calvin_root": "theirs", "expert": "theirs", "renderer": "gl"}
  )
  assert env == {"name": "calvin", "calvin_root": "", "expert": "", "renderer": "gl"}
  registry.check_known(env)


class Outside(base.Simulator):
  """A package's own, not of gymnasium."""

  name, tasks, embodiment = "outside", ("wave",), CALVIN

  def make(self):
    raise base.NotOffered("no")


def test_a_package_names_its_simulator(monkeypatch):
  point = importlib.metadata.EntryPoint("outside_of_a_test", f"{__name__}:Outside", registry.GROUP)
  points = importlib.metadata.EntryPoints([point])
  monkeypatch.setattr(importlib.metadata, "entry_points", lambda **chosen: points.select(**chosen))
  monkeypatch.setattr(importlib.metadata.EntryPoint, "load", lambda self: Outside)
  simulator = registry.load({"name": "outside_of_a_test", "tasks": (), "workers": 3})
  assert isinstance(simulator, Outside) and simulator.settings["name"] == "outside_of_a_test"
  assert "outside_of_a_test" in registry.names()


@pytest.mark.parametrize("found", [type("Bare", (Outside,), {"embodiment": property()}), base.Simulator])
def test_what_a_simulator_leaves_out_is_told(found, monkeypatch):
  monkeypatch.setattr(registry, "_import", lambda place: found)
  registry._load_once.cache_clear()
  with pytest.raises(base.NotOffered, match="embodiment|abstract"):
    registry.load("package:Bare")
