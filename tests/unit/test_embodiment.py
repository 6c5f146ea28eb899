"""What a robot has: read, written, compared; and networks that are made for it."""

import dataclasses
import json

import numpy as np
import pytest
from made_up_robot import ARM

from wam_jax import embodiment
from wam_jax.embodiment import CALVIN, ActionDimension, Camera, EmbodimentError


@pytest.mark.parametrize("robot", [CALVIN, ARM])
def test_json_round_trip(robot):
  assert embodiment.from_json(robot.to_json()) == robot
  assert embodiment.or_calvin(robot.to_dict()) == robot and not robot.differences(robot)


def test_a_record_that_names_no_robot_is_of_calvins():
  assert embodiment.or_calvin(None) == CALVIN
  assert CALVIN.rest_action.tolist() == [0, 0, 0, 0, 0, 0, 1]
  assert (CALVIN.action_size, CALVIN.state_size, CALVIN.state_features) == (7, 15, 18)


def test_actions_in_the_robots_units():
  action = np.array([-90.0, 45.0, -22.5, 0.0, 0.25, -1.0], np.float32)
  unit = ARM.to_unit(action)
  np.testing.assert_allclose(unit, [-1, 1, 0, -1, 0.25, -1], atol=1e-6)
  np.testing.assert_allclose(ARM.rest_action, [0, 0, 0, 1, 0, 0], atol=1e-6)
  assert CALVIN.to_unit(action) is action


@pytest.mark.parametrize(
  ("changes", "named"),
  [
    ({"cameras": (Camera("top", (32, 32)), *ARM.cameras[1:])}, ("top", "3:4", "1:1")),
    ({"cameras": ARM.cameras[:2]}, ("top, side, wrist", "top, side")),
    ({"action": ARM.action[:-1]}, ("6 numbers of action", "5")),
    (
      {"action": (*ARM.action[:3], ActionDimension("grip", range=(0.0, 1.0), rest=1.0), *ARM.action[4:])},
      ("kind", "binary", "grip"),
    ),
    ({"state": ()}, ("9 numbers of state", "0")),
    ({"control_hz": 30.0}, ("15 actions per second", "30")),
  ],
)
def test_differences_are_named(changes, named):
  other = dataclasses.replace(ARM, **changes)
  with pytest.raises(EmbodimentError) as error:
    ARM.check("the data", other, "the world model")
  assert all(word in str(error.value) for word in (*named, "the data", "the world model"))


def test_pictures_of_another_size_but_the_same_shape_are_no_difference():
  larger = dataclasses.replace(ARM, cameras=(Camera("top", (480, 640)), *ARM.cameras[1:]))
  assert not ARM.differences(larger)


@pytest.mark.parametrize(
  ("path", "value", "named"),
  [
    (("cameras",), [], "cameras"),
    (("cameras", 0, "name"), "a/b", "cameras"),
    (("cameras", 1, "size"), [0, 4], "cameras.side.size"),
    (("cameras", 1, "name"), "top", "top occurs twice"),
    (("action", 2, "range"), [1, 1], "action.joint_2.range"),
    (("action", 3, "rest"), 0.5, "action.grip.rest"),
    (("action", 0, "kind"), "wobbly", "action.joint_0.kind"),
    (("action", 0, "rest"), float("nan"), r"action\[0\].rest"),
    (("state", 3, "kind"), None, r"state\[3\].kind"),
    (("state", 3, "scale"), 0, "state.joint_3.scale"),
    (("state", 3, "unit"), "rad", r"state\[3\].unit"),
    (("state",), {"x": 1}, "state"),
    (("control_hz",), True, "control_hz"),
    ((), [], "cameras"),
  ],
)
def test_what_is_wrong_in_a_file_is_named(path, value, named):
  content = ARM.to_dict()
  if not path:
    content = value
  else:
    place = content
    for key in path[:-1]:
      place = place[key]
    place[path[-1]] = value
  with pytest.raises(EmbodimentError, match=named):
    embodiment.from_json(json.dumps(content))


def test_a_missing_field_is_named():
  content = ARM.to_dict()
  del content["action"]
  with pytest.raises(EmbodimentError, match="action: missing"):
    embodiment.from_dict(content)
