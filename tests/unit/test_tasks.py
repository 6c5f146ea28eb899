"""The eight predicates, on numbers chosen by hand."""

from __future__ import annotations

import numpy as np
import pytest

from wam_jax import config
from wam_jax.envs import tasks

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


def test_every_task_is_covered_and_known_to_the_config():
  assert tuple(case[0] for case in CASES) == tasks.TASKS == config.TASKS


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


def test_bad_input():
  with pytest.raises(ValueError, match="unknown task 'fly'.*open_drawer"):
    tasks.success("fly", np.ones(24), np.ones(24))
  with pytest.raises(ValueError, match=r"scene_obs: expected \[..., 24\]"):
    tasks.success("open_drawer", np.ones(24), np.ones(23))
