"""The play table as MJCF text, and the numbers that the other modules need to know about it.

The arm has the Panda's kinematics (modified Denavit-Hartenberg parameters of the data sheet). The desk
follows the sizes and joint ranges of CALVIN's table D. World frame: x right along the desk, y away
from the arm into the desk, z up; metres and radians. Only boxes, capsules and spheres are used, because
our ray-caster draws these three.
"""

from __future__ import annotations

import math

import numpy as np

from wam_jax.embodiment import CONTROL_HZ
from wam_jax.envs import goals

SUBSTEPS = 8  # physics steps per control step
TIMESTEP = 1 / (CONTROL_HZ * SUBSTEPS)

ARM_JOINTS = tuple(f"arm{i}" for i in range(1, 8))
FINGER_JOINTS = ("finger_left", "finger_right")
FURNITURE_JOINTS = ("slider", "drawer", "button", "switch")  # the order of scene_obs
FURNITURE_RANGE = {name: goals.FURNITURE_RANGE[i] for i, name in enumerate(FURNITURE_JOINTS)}
BLOCKS = ("red", "blue", "pink")
BLOCK_HALF_SIZE = {"red": (0.025, 0.025, 0.025), "blue": (0.035, 0.02, 0.02), "pink": (0.045, 0.02, 0.02)}
BLOCK_COLOUR = {"red": (0.9, 0.1, 0.1), "blue": (0.1, 0.2, 0.9), "pink": (0.95, 0.5, 0.7)}

FINGER_RANGE = (0.0, 0.04)
ARM_RANGE = (
  (-2.8973, 2.8973),
  (-1.7628, 1.7628),
  (-2.8973, 2.8973),
  (-3.0718, -0.0698),
  (-2.8973, 2.8973),
  (-0.0175, 3.7525),
  (-2.8973, 2.8973),
)
ARM_HOME = (-1.21779206, 1.03987646, 2.11978261, -2.34205014, -0.87015947, 1.64119353, 0.55344866)

BUTTON_THRESHOLD = 0.010  # m of the button above which it counts as pressed

DESK_TOP = 0.46  # height of the desk's surface
SLOPE = math.pi / 3  # inclination of the panel that carries door and switch
BUTTON_XY = (-0.12, -0.12)
SLIDER_ORIGIN = (0.04, 0.075, 0.535)  # of the door's frame when closed; the door moves towards -x
SWITCH_ORIGIN = (0.30, 0.0609, 0.4949)  # of the lever's frame when off; the lever moves up the slope
DRAWER_ORIGIN = (0.18, 0.0, 0.35)  # of the drawer's frame when closed; the drawer moves towards -y
SLOPE_UP = np.array([0.0, math.cos(SLOPE), math.sin(SLOPE)])
SLOPE_NORMAL = np.array([0.0, -math.sin(SLOPE), math.cos(SLOPE)])

CAMERAS = ("static", "gripper")  # MJCF cameras behind rgb_static and rgb_gripper
STATIC_CAMERA_POSITION = (2.2, -2.5, 2.75)
STATIC_CAMERA_TARGET = (0.01, -0.10, 0.47)
STATIC_CAMERA_FOVY = 13.5  # degrees

BULB_COLOURS = ((0.30, 0.30, 0.34), (1.0, 0.95, 0.10))  # off, on
LED_COLOURS = ((0.16, 0.20, 0.18), (0.10, 1.0, 0.25))

# Link lengths of the Panda: (a [m], d [m], alpha [rad]) of each joint.
_DH = (
  (0, 0.333, 0),
  (0, 0, -math.pi / 2),
  (0, 0.316, math.pi / 2),
  (0.0825, 0, math.pi / 2),
  (-0.0825, 0.384, -math.pi / 2),
  (0, 0, math.pi / 2),
  (0.088, 0, math.pi / 2),
)
_LINK_MASS = (3.0, 3.0, 3.0, 2.5, 2.5, 1.5, 0.6)
_ARM_STIFFNESS = (4500, 4500, 3500, 3500, 2000, 2000, 2000)
_ARM_DAMPING = (450, 450, 350, 350, 200, 200, 200)
_LINK_CAPSULES = (  # per link: (from, to, radius)
  (((0, 0, -0.20), (0, 0, 0), 0.06),),
  (((0, -0.06, 0), (0, 0.06, 0), 0.06), ((0, 0, 0), (0, -0.14, 0), 0.055)),
  (((0, 0, -0.14), (0, 0, 0), 0.055), ((0, 0, 0), (0.0825, 0, 0), 0.055)),
  (((0, -0.05, 0), (0, 0.05, 0), 0.055), ((0, 0, 0), (-0.0825, 0.10, 0), 0.05)),
  (((0, 0, -0.26), (0, 0, -0.10), 0.045), ((0, 0.05, -0.10), (0, 0.08, 0), 0.04)),
  (((0, -0.04, 0), (0, 0.04, 0), 0.05), ((0, 0, 0), (0.088, 0, 0), 0.045)),
  (((0, 0, 0.02), (0, 0, 0.09), 0.045),),
)
_FINGER_OFFSET = 0.0584  # from the hand's frame to the fingers'
_TCP_OFFSET = _FINGER_OFFSET + 0.085  # from the hand's frame to the tool centre point between the fingertips

# Collision classes: the gripper meets furniture and blocks, blocks also meet each other and the floor.
_GRIPPER = 'contype="1" conaffinity="0"'
_FURNITURE = 'contype="0" conaffinity="3"'
_BLOCK = 'contype="2" conaffinity="3"'
_FLOOR = 'contype="0" conaffinity="2"'
_VISUAL = 'contype="0" conaffinity="0"'

_WOOD = (0.80, 0.68, 0.50)
_DARK_WOOD = (0.62, 0.48, 0.34)
_DRAWER = (0.55, 0.70, 0.78)
_DOOR = (0.88, 0.80, 0.62)
_HANDLE = (0.12, 0.10, 0.10)
_LEVER = (0.75, 0.10, 0.08)
_BUTTON = (0.05, 0.50, 0.22)
_WHITE = (0.93, 0.93, 0.95)
_RUBBER = (0.15, 0.15, 0.15)


def _text(*numbers: float) -> str:
  return " ".join(f"{number:.9g}" for number in numbers)


def _box(position, half_size, colour, collision=_FURNITURE, name="", extra="") -> str:
  label = f'name="{name}" ' if name else ""
  return (
    f'<geom {label}type="box" pos="{_text(*position)}" size="{_text(*half_size)}" '
    f'rgba="{_text(*colour, 1)}" {collision} {extra}/>\n'
  )


def _capsule(start, end, radius, colour) -> str:
  return (
    f'<geom type="capsule" fromto="{_text(*start, *end)}" size="{_text(radius)}" '
    f'rgba="{_text(*colour, 1)}" {_VISUAL}/>\n'
  )


def _slide(name: str, axis: str, damping: float, friction: float, armature: float, extra: str = "") -> str:
  return (
    f'<joint name="{name}" type="slide" axis="{axis}" range="{_text(*FURNITURE_RANGE[name])}" '
    f'damping="{damping}" frictionloss="{friction}" armature="{armature}" {extra}/>\n'
  )


def _inertial(mass: float, inertia: float, position=(0, 0, 0)) -> str:
  return (
    f'<inertial mass="{mass}" pos="{_text(*position)}" diaginertia="{_text(inertia, inertia, inertia)}"/>\n'
  )


def _camera_axes(position, target) -> str:
  back = np.asarray(position, float) - np.asarray(target, float)
  back /= np.linalg.norm(back)
  right = np.cross((0, 0, 1), back)
  right /= np.linalg.norm(right)
  return _text(*right, *np.cross(back, right))


def _arm() -> str:
  """The arm's bodies, nested from the base to the fingers."""
  xml = '<body name="base" pos="-0.34 -0.46 0.24">\n'
  xml += _capsule((0, 0, 0.06), (0, 0, 0.12), 0.08, _WHITE)
  xml += _capsule((-0.05, 0, -0.24), (-0.05, 0, -0.06), 0.10, (0.7, 0.7, 0.72))
  for i, (a, d, alpha) in enumerate(_DH):
    position = (a, -d * math.sin(alpha), d * math.cos(alpha))
    xml += f'<body name="link{i + 1}" pos="{_text(*position)}" euler="{_text(alpha, 0, 0)}" gravcomp="1">\n'
    xml += _inertial(_LINK_MASS[i], 0.03)
    limits = f'range="{_text(*ARM_RANGE[i])}"'
    xml += f'<joint name="{ARM_JOINTS[i]}" axis="0 0 1" {limits} armature="0.1" damping="1"/>\n'
    for start, end, radius in _LINK_CAPSULES[i]:
      xml += _capsule(start, end, radius, _WHITE)
  xml += f'<body name="hand" pos="0 0 0.107" euler="{_text(0, 0, -math.pi / 4)}" gravcomp="1">\n'
  xml += _inertial(0.7, 0.003, (0, 0, 0.04))
  xml += _box((0, 0, 0.035), (0.03, 0.1, 0.03), (0.80, 0.80, 0.82), _GRIPPER, "hand")
  xml += '<camera name="gripper" pos="0.08 0 0.03" xyaxes="0 1 0 0.955 0 0.296" fovy="75"/>\n'
  xml += f'<site name="tcp" pos="0 0 {_TCP_OFFSET:.9g}" size="0.005" rgba="1 0 0 0"/>\n'
  for name, side in zip(FINGER_JOINTS, (1, -1), strict=True):
    xml += f'<body name="{name}" pos="0 0 {_FINGER_OFFSET}" gravcomp="1">\n'
    xml += _inertial(0.1, 0.0001, (0, 0.01 * side, 0.04))
    xml += (
      f'<joint name="{name}" type="slide" axis="0 {side} 0" range="{_text(*FINGER_RANGE)}" '
      'armature="0.1" damping="5"/>\n'
    )
    xml += _box((0, 0.011 * side, 0.03), (0.009, 0.010, 0.03), (0.3, 0.3, 0.3), _VISUAL)
    xml += _box(
      (0, 0.008 * side, 0.0675), (0.010, 0.008, 0.0275), _RUBBER, _GRIPPER, name, 'friction="1.2 0.02 0.001"'
    )
    xml += "</body>\n"
  return xml + "</body>\n" + "</body>\n" * 8


def _desk() -> str:
  """The parts of the desk that do not move."""
  tilt = f'euler="{_text(SLOPE, 0, 0)}"'
  xml = _box((0, 0, 0.44), (0.44, 0.18, 0.02), _WOOD)
  xml += _box((-0.24, 0, 0.21), (0.20, 0.18, 0.21), _DARK_WOOD, _VISUAL)
  xml += _box((0.18, 0, 0.14), (0.22, 0.18, 0.14), _DARK_WOOD, _VISUAL)
  xml += _box((0.425, 0, 0.35), (0.015, 0.18, 0.07), _DARK_WOOD, _VISUAL)
  xml += _box((0.18, 0.12, 0.35), (0.22, 0.06, 0.07), _DARK_WOOD, _VISUAL)
  xml += _box((0, 0.17, 0.555), (0.44, 0.01, 0.095), _DARK_WOOD)
  xml += _box((0, 0.15, 0.64), (0.44, 0.03, 0.01), _WOOD)
  panel = np.array([0.305, 0.0809, 0.5299]) - 0.012 * SLOPE_NORMAL
  xml += _box(panel, (0.115, 0.11, 0.012), _DARK_WOOD, extra=tilt)
  xml += _box((-0.425, 0.125, 0.55), (0.015, 0.05, 0.09), _DARK_WOOD)
  xml += _box((0.195, 0.125, 0.55), (0.008, 0.05, 0.09), _DARK_WOOD)
  xml += _box((-0.14, 0.145, 0.672), (0.13, 0.025, 0.022), LED_COLOURS[0], _VISUAL, "led")
  xml += (
    f'<geom name="bulb" type="sphere" pos="0.27 0.15 0.695" size="0.05" '
    f'rgba="{_text(*BULB_COLOURS[0], 1)}" {_VISUAL}/>\n'
  )
  return xml


def _drawer() -> str:
  xml = f'<body name="drawer" pos="{_text(*DRAWER_ORIGIN)}">\n' + _slide("drawer", "0 -1 0", 3, 1.5, 0.05)
  xml += _box((0, -0.06, -0.045), (0.20, 0.12, 0.005), _DRAWER)
  xml += _box((0, -0.19, 0), (0.21, 0.01, 0.05), _DRAWER)
  xml += _box((0, 0.055, 0), (0.20, 0.005, 0.04), _DRAWER)
  for x in (-0.205, 0.205):
    xml += _box((x, -0.06, 0), (0.005, 0.12, 0.04), _DRAWER)
  xml += _box((0, -0.25, 0.005), (0.09, 0.008, 0.012), _HANDLE, name="drawer_handle")
  for x in (-0.08, 0.08):
    xml += _box((x, -0.22, 0.005), (0.008, 0.03, 0.008), _HANDLE, _VISUAL)
  return xml + "</body>\n"


def _slider() -> str:
  xml = f'<body name="slider" pos="{_text(*SLIDER_ORIGIN)}" euler="{_text(SLOPE, 0, 0)}">\n'
  xml += _slide("slider", "-1 0 0", 3, 1, 0.05) + _inertial(1.2, 0.01)
  xml += _box((0, 0, 0.006), (0.14, 0.11, 0.006), _DOOR)
  xml += _box((0, 0, 0.06), (0.010, 0.05, 0.012), _HANDLE, name="slider_handle")
  for y in (-0.035, 0.035):
    xml += _box((0, y, 0.03), (0.008, 0.008, 0.03), _HANDLE, _VISUAL)
  return xml + "</body>\n"


def _switch() -> str:
  xml = f'<body name="switch" gravcomp="1" pos="{_text(*SWITCH_ORIGIN)}" euler="{_text(SLOPE, 0, 0)}">\n'
  xml += _slide("switch", "0 1 0", 3, 1, 0.02) + _inertial(0.2, 0.001)
  xml += _box((0, 0, 0.05), (0.05, 0.009, 0.012), _LEVER, name="switch_lever")
  xml += _box((0, 0, 0.02), (0.012, 0.008, 0.03), _HANDLE, _VISUAL)
  return xml + "</body>\n"


def _button() -> str:
  xml = f'<body name="button" pos="{_text(*BUTTON_XY, 0.484)}">\n'
  xml += _slide("button", "0 0 -1", 4, 0, 0.01, 'stiffness="150" springref="-0.005"') + _inertial(0.1, 0.0001)
  return xml + _box((0, 0, -0.010), (0.026, 0.026, 0.012), _BUTTON, name="button") + "</body>\n"


def _blocks() -> str:
  xml = ""
  for name, x in zip(BLOCKS, (0.0, 0.12, -0.28), strict=True):
    xml += f'<body name="block_{name}" pos="{_text(x, -0.06, DESK_TOP + BLOCK_HALF_SIZE[name][2])}">\n'
    xml += f'<freejoint name="block_{name}"/>\n'
    extra = 'density="400" friction="0.7 0.01 0.001"'
    xml += _box((0, 0, 0), BLOCK_HALF_SIZE[name], BLOCK_COLOUR[name], _BLOCK, extra=extra) + "</body>\n"
  return xml


_HEADER = (
  '<mujoco model="play_table">\n<compiler angle="radian" autolimits="true" eulerseq="xyz"/>\n'
  f'<option timestep="{TIMESTEP:.17g}" integrator="implicitfast" cone="pyramidal" '
  'iterations="20" ls_iterations="10"/>\n'
)


def scene_xml() -> str:
  """MJCF of the whole scene."""
  actuators = ""
  for name, stiffness, damping, limits in zip(
    ARM_JOINTS, _ARM_STIFFNESS, _ARM_DAMPING, ARM_RANGE, strict=True
  ):
    actuators += (
      f'<position name="{name}" joint="{name}" kp="{stiffness}" kv="{damping}" '
      f'ctrlrange="{_text(*limits)}" forcerange="-200 200"/>\n'
    )
  for name in FINGER_JOINTS:
    actuators += (
      f'<position name="{name}" joint="{name}" kp="800" kv="60" '
      f'ctrlrange="{_text(*FINGER_RANGE)}" forcerange="-20 20"/>\n'
    )
  return (
    f"{_HEADER}<worldbody>\n"
    f'<geom name="floor" type="plane" size="3 3 0.1" rgba="0.35 0.42 0.5 1" {_FLOOR}/>\n'
    f'<camera name="static" pos="{_text(*STATIC_CAMERA_POSITION)}" '
    f'xyaxes="{_camera_axes(STATIC_CAMERA_POSITION, STATIC_CAMERA_TARGET)}" fovy="{STATIC_CAMERA_FOVY}"/>\n'
    f"{_arm()}{_desk()}{_drawer()}{_slider()}{_switch()}{_button()}{_blocks()}"
    f"</worldbody>\n<actuator>\n{actuators}</actuator>\n</mujoco>\n"
  )


def arm_xml() -> str:
  """MJCF of the arm alone, for inverse kinematics."""
  return f"{_HEADER}<worldbody>\n{_arm()}</worldbody>\n</mujoco>\n"
