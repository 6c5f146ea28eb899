"""CALVIN's robot in numbers, declared only here: sizes, cameras, control rate. Imports nothing."""

from __future__ import annotations

ACTION_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")

ACTION = 7  # relative motion of the tcp, xyz and Euler xyz, each in [-1, 1]; gripper, +1 opens, -1 closes
ROBOT_OBS = 15  # tcp xyz [m], tcp Euler xyz [rad], gripper width [m], 7 joints [rad], last gripper action
SCENE_OBS = 24  # slider, drawer, button, switch [m], bulb, led {0, 1}, 3 blocks x (xyz [m], Euler [rad])
ROBOT_FEATURES = 18  # ROBOT_OBS as networks read it: of each of the three angles its sine and its cosine
CAMERAS = ("rgb_static", "rgb_gripper")
CONTROL_HZ = 30  # actions per second
