"""The tables of skills: goals on numbers chosen by hand, and a new skill as one row."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from wam_jax import config
from wam_jax.envs import goals, registry, table, tasks

ROOT = pathlib.Path(__file__).parents[2]
CASES = [  # task, index into scene_obs, start, now that just succeeds, now that just fails
  ("open_drawer", tasks.DRAWER, 0.03, 0.1501, 0.1499),
  ("close_drawer", tasks.DRAWER, 0.20, 0.0799, 0.0801),
  ("move_slider_left", tasks.SLIDER, 0.05, 0.2001, 0.1999),
  ("move_slider_right", tasks.SLIDER, 0.25, 0.0999, 0.1001),
  ("turn_on_lightbulb", tasks.BULB, 0, 1, 0),
  ("turn_off_lightbulb", tasks.BULB, 1, 0, 1),
  ("turn_on_led", tasks.LED, 0, 1, 0),
  ("turn_off_led", tasks.LED, 1, 0, 1),
]
NAMES = tuple(case[0] for case in CASES)
ROWS = [
  pytest.param(simulator, skill, id=f"{simulator}-{name}")
  for simulator in registry.TAUGHT
  for name, skill in registry.load_skills(simulator).SKILLS.items()
]


def test_the_first_tasks_keep_their_places_which_are_part_of_seeds():
  assert config.TASKS == tasks.TASKS and tasks.TASKS[: len(NAMES)] == NAMES
  for simulator in registry.TAUGHT:
    assert tuple(registry.load_skills(simulator).SKILLS)[: len(NAMES)] == NAMES


@pytest.mark.parametrize(("task", "index", "start", "good", "bad"), CASES)
def test_predicate(task, index, start, good, bad):
  before = np.random.default_rng(0).uniform(0, 1, 24)
  before[index] = start
  now = np.random.default_rng(1).uniform(0, 1, (2, 3, 24))
  now[0, :, index], now[1, :, index] = good, bad
  assert tasks.success(task, before, now).tolist() == [[True] * 3, [False] * 3]


@pytest.mark.parametrize(("task", "index"), [("turn_on_led", tasks.LED), ("turn_off_lightbulb", tasks.BULB)])
def test_a_lamp_that_was_right_from_the_start_is_no_success(task, index):
  scene = np.random.default_rng(0).uniform(0, 1, 24)
  scene[index] = float(task == "turn_on_led")
  assert not tasks.success(task, scene, scene)


@pytest.mark.parametrize(("simulator", "skill"), ROWS)
def test_every_row_starts_where_its_goal_is_ahead(simulator, skill):
  rng = np.random.default_rng(0)
  for _ in range(50):
    scene_obs = goals.sample_furniture(skill.task, rng)
    assert not skill.task.goal(scene_obs, scene_obs) and skill.task.goal.possible(scene_obs)
    assert scene_obs[tasks.BULB] == (scene_obs[tasks.SWITCH] > tasks.BULB_THRESHOLD)
    if skill.route is not None:
      route = skill.route(scene_obs, rng)
      assert all(np.shape(place) == (3,) for place in route.waypoints) and len(route.euler) == 3


def test_bad_input():
  with pytest.raises(ValueError, match="unknown task 'fly'.*open_drawer"):
    tasks.success("fly", np.ones(24), np.ones(24))
  with pytest.raises(ValueError, match=r"scene_obs: expected \[..., 24\]"):
    tasks.success("open_drawer", np.ones(24), np.ones(23))
  row = table.Skill(goals.CALVIN["open_drawer"])
  with pytest.raises(ValueError, match="a task has two rows: open_drawer, open_drawer"):
    table.skill_table(row, row)
  with pytest.raises(ValueError, match="unknown task 'fly'; known: open_drawer"):
    table.find_skill(table.skill_table(row), "fly")


def test_the_config_brings_neither_jax_nor_a_simulator():
  code = "import sys, wam_jax.config; print(sorted({'jax', 'flax', 'mujoco', 'pybullet'} & set(sys.modules)))"
  assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


SEES = """
import json, sys
import numpy as np
from wam_jax import config
from wam_jax.envs import experts, recording, registry, tasks
chosen = config.default_config()
known = config.TASKS[-1], chosen.tasks[-1], not {"jax", "mujoco"} & set(sys.modules)
chosen.tasks = ("ajar_door",)
try:
  config.finalize(chosen)
except config.ConfigError as error:
  said = str(error)
simulator = registry.load("play_table")
env = simulator.make().table
steps, opened = [], []
for seed in range(3):
  rng = np.random.default_rng(seed)
  env.reset(*experts.sample_start("ajar_drawer", rng, env))
  start, act = env.state()[1], experts.make_expert("ajar_drawer", env, rng)
  while not tasks.success("ajar_drawer", start, env.state()[1]):
    env.step(act())
  opened.append([start[tasks.DRAWER], env.state()[1][tasks.DRAWER]])
settings = recording.Settings(0, {"name": "play_table"}, 72, 60, 60, 0.3, 0.0)
demo = recording.record(simulator, simulator.make(), recording.Job("demo", "ajar_drawer", 0), settings)
possible = experts.possible_tasks(registry.load_skills("play_table").SKILLS, np.zeros(24))
print(json.dumps([known, said, opened, len(demo["actions"]), possible, tasks.SENTENCES.get("ajar_drawer")]))
"""


def _copy_with_a_row(folder, simulator, change=("", "")):
  """Copies the package and puts the guide's row, with a text replaced, at the end of a simulator's table."""
  if not (folder / "wam_jax").exists():
    ignore = shutil.ignore_patterns("pretrained", "__pycache__")
    shutil.copytree(ROOT / "wam_jax", folder / "wam_jax", ignore=ignore)
  guide = (ROOT / "docs" / "guides" / "add_a_skill.md").read_text(encoding="utf-8")
  (block,) = re.findall(r"```diff\n(.*?)```", guide, re.S)
  before, row, end = block.splitlines()
  old, new = f"{before[1:]}\n{end[1:]}\n", f"{before[1:]}\n{row[1:].replace(*change)}\n{end[1:]}\n"
  file = folder / "wam_jax" / "envs" / simulator / "skills.py"
  source = file.read_text(encoding="utf-8")
  assert row.startswith("+") and source.count(old) == 1
  file.write_text(source.replace(old, new), encoding="utf-8")


def _python(folder, code):
  return subprocess.run(
    [sys.executable, "-c", code],
    cwd=folder,
    env={**os.environ, "PYTHONPATH": str(folder)},
    capture_output=True,
    text=True,
    check=False,
  )


def test_a_new_skill_is_one_row(tmp_path):
  """Puts the guide's row into a copy of the package, and asks there for all that follows from it."""
  _copy_with_a_row(tmp_path, "play_table")
  done = _python(tmp_path, SEES)
  assert done.returncode == 0, done.stderr
  known, said, opened, frames, possible, sentence = json.loads(done.stdout)
  assert known == ["ajar_drawer", "ajar_drawer", True]
  assert re.search(r"different tasks out of open_drawer.*, ajar_drawer", said) and "did you mean" in said
  assert all(0 <= start <= 0.15 and now - start >= 0.06 for start, now in opened)
  assert 10 < frames <= 72 and possible[-1] == "ajar_drawer" and sentence is None


def test_each_simulator_has_its_own_row_and_all_the_same_goal(tmp_path):
  _copy_with_a_row(tmp_path, "calvin")
  code = """
import numpy as np
from wam_jax.envs import registry, tasks
calvin, play_table = (registry.load_skills(name).SKILLS for name in ("calvin", "play_table"))
route = calvin["ajar_drawer"].route(np.zeros(24), np.random.default_rng(0))
print(tasks.TASKS[-1], len(route.waypoints), "ajar_drawer" in play_table)
"""
  assert _python(tmp_path, code).stdout.split() == ["ajar_drawer", "3", "False"]
  _copy_with_a_row(tmp_path, "play_table", ("0.06", "0.07"))
  assert "ajar_drawer: has another goal in calvin" in _python(tmp_path, "import wam_jax.config").stderr
