"""The play table's physics: MuJoCo in C behind CALVIN's actions and observations."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from wam_jax.embodiment import ACTION, CONTROL_HZ, ROBOT_OBS, SCENE_OBS
from wam_jax.envs import goals, table
from wam_jax.envs.physics import mujoco
from wam_jax.envs.play_table import scene
from wam_jax.host.numbers import real

TARGET_LEASH = 0.12  # m by which the target may run ahead of the gripper, so that pushing against a stop ends
RESTING_ACTION = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])

_IK_ITERATIONS = 2
_IK_DAMPING = 0.02
_IK_MAX_STEP = 0.2  # rad per iteration
_IK_HOMING = 0.05  # pull of the redundant joint towards the home posture
_JOINT_MARGIN = 0.02  # rad that inverse kinematics keeps from the joints' limits
# Soft limits give way a little under load, so a state that physics produced may lie just outside.
_RANGE_TOLERANCE = {"arm": 0.1, "width": 0.02, "furniture": 0.02}
# What `PlayTable` holds beside MuJoCo's own state.
_CARRIED = (
  "_joint_target",
  "_target_position",
  "_target_euler",
  "_gripper",
  "_bulb",
  "_led",
  "_pressed",
)
_PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION  # all that the next steps depend on
_POSE_TOLERANCE = 0.01  # m between robot_obs's tcp and the one its joints give


def euler_to_matrix(euler: np.ndarray) -> np.ndarray:
  """Rotation of extrinsic xyz Euler angles, R = Rz Ry Rx, PyBullet's convention.

  Args:
    euler: [3] rad.

  Returns:
    [3, 3].
  """
  x, y, z = (float(angle) for angle in euler)
  cx, cy, cz, sx, sy, sz = math.cos(x), math.cos(y), math.cos(z), math.sin(x), math.sin(y), math.sin(z)
  return np.array(
    [
      [cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx],
      [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx],
      [-sy, cy * sx, cy * cx],
    ]
  )


def matrix_to_euler(matrix: np.ndarray) -> tuple[float, float, float]:
  """Inverse of `euler_to_matrix`; at gimbal lock the first angle is 0.

  Args:
    matrix: 9 numbers, row by row, of any shape.

  Returns:
    x, y, z in rad.
  """
  m = np.asarray(matrix).ravel().tolist()
  cosine = math.hypot(m[0], m[3])
  pitch = math.atan2(-m[6], cosine)
  if cosine < 1e-9:
    return 0.0, pitch, math.atan2(-m[1], m[4])
  return math.atan2(m[7], m[8]), pitch, math.atan2(m[3], m[0])


def euler_to_quaternion(euler: np.ndarray) -> np.ndarray:
  """Quaternion [4], w first, of extrinsic xyz Euler angles [3] in rad."""
  x, y, z = (0.5 * float(angle) for angle in euler)
  cx, cy, cz, sx, sy, sz = math.cos(x), math.cos(y), math.cos(z), math.sin(x), math.sin(y), math.sin(z)
  return np.array(
    [
      cx * cy * cz + sx * sy * sz,
      sx * cy * cz - cx * sy * sz,
      cx * sy * cz + sx * cy * sz,
      cx * cy * sz - sx * sy * cz,
    ]
  )


@functools.cache
def _arm_model() -> mujoco.MjModel:
  """Models are only read, so everyone shares one."""
  return mujoco.MjModel.from_xml_string(scene.arm_xml())


@functools.cache
def _scene_model() -> mujoco.MjModel:
  return mujoco.MjModel.from_xml_string(scene.scene_xml())


class ArmKinematics:
  """Forward and damped-least-squares inverse kinematics of the arm alone."""

  def __init__(self) -> None:
    self._model = _arm_model()
    self._data = mujoco.MjData(self._model)
    self._tcp = self._model.site("tcp").id
    self._jacobian = np.zeros((6, self._model.nv))
    limits = np.array(scene.ARM_RANGE)
    self._low, self._high = limits[:, 0] + _JOINT_MARGIN, limits[:, 1] - _JOINT_MARGIN
    self._home = np.array(scene.ARM_HOME)
    self._damping = _IK_DAMPING**2 * np.eye(6)
    self._position = self._data.site_xpos[self._tcp]  # views into MuJoCo's arrays
    self._rotation = self._data.site_xmat[self._tcp].reshape(3, 3)

  def forward(self, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Joints [7] in rad -> tcp position [3] in m and Euler angles [3] in rad."""
    self._data.qpos[:7] = joints
    mujoco.mj_kinematics(self._model, self._data)
    return self._position.copy(), np.array(matrix_to_euler(self._rotation))

  def inverse(
    self, joints: np.ndarray, position: np.ndarray, euler: np.ndarray, iterations: int = _IK_ITERATIONS
  ) -> np.ndarray:
    """Moves joints towards a pose of the tcp.

    Args:
      joints: [7] rad to start from.
      position: [3] m wanted.
      euler: [3] rad wanted.
      iterations: damped least-squares steps.

    Returns:
      [7] rad, inside the joints' limits; an unreachable pose is approached only.
    """
    joints, target, error = joints.copy(), euler_to_matrix(euler), np.empty(6)
    solution = np.empty(6)
    for _ in range(iterations):
      self._data.qpos[:7] = joints
      mujoco.mj_kinematics(self._model, self._data)
      mujoco.mj_comPos(self._model, self._data)
      mujoco.mj_jacSite(self._model, self._data, self._jacobian[:3], self._jacobian[3:], self._tcp)
      turn = target @ self._rotation.T
      error[:3] = position - self._position
      error[3] = 0.5 * (turn[2, 1] - turn[1, 2])
      error[4] = 0.5 * (turn[0, 2] - turn[2, 0])
      error[5] = 0.5 * (turn[1, 0] - turn[0, 1])
      jacobian = np.ascontiguousarray(self._jacobian[:, :7])
      # change = homing + J^T (J J^T + damping)^-1 (error - J homing): homing acts in the null space only.
      homing = _IK_HOMING * (self._home - joints)
      factor = jacobian @ jacobian.T + self._damping
      mujoco.mju_cholFactor(factor, 0.0)
      mujoco.mju_cholSolve(solution, factor, error - jacobian @ homing)
      change = homing + jacobian.T @ solution
      joints += np.minimum(np.maximum(change, -_IK_MAX_STEP), _IK_MAX_STEP)
      joints = np.minimum(np.maximum(joints, self._low), self._high)
    return joints


def check_action(action: np.ndarray) -> np.ndarray:
  """Checks one relative action.

  Args:
    action: [7]; six motions in [-1, 1] and the gripper, exactly +1 (open) or -1 (closed).

  Returns:
    [7] float64.

  Raises:
    ValueError: no real numbers, wrong shape, NaN, a motion outside [-1, 1], a gripper other than +1 or -1.
  """
  action = real("action", action)
  if action.shape != (ACTION,):
    raise ValueError(f"action: expected shape [{ACTION}], got {list(action.shape)}")
  if not np.abs(action).max() <= 1.0:  # written so that NaN fails
    index = int(np.argmin(np.abs(action) <= 1.0))
    raise ValueError(f"action[{index}] = {action[index]:g}: must be finite and in [-1, 1]")
  if abs(action[6]) != 1.0:
    raise ValueError(f"action[6] = {action[6]:g}: the gripper must be exactly +1 (open) or -1 (closed)")
  return action


def _check_array(name: str, array: np.ndarray, size: int) -> np.ndarray:
  array = real(name, array)
  if array.shape != (size,):
    raise ValueError(f"{name}: expected shape [{size}], got {list(array.shape)}")
  if not np.isfinite(array).all():
    index = int(np.argmin(np.isfinite(array)))
    raise ValueError(f"{name}[{index}] = {array[index]}: must be finite")
  return array


def _check_range(name: str, index: int, quantity: str, value: float, limits, tolerance: float) -> None:
  low, high = limits
  if not low - tolerance <= value <= high + tolerance:
    raise ValueError(f"{name}[{index}] = {value:g}: {quantity} must be in [{low:g}, {high:g}]")


def check_state(robot_obs: np.ndarray, scene_obs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Checks a state to be restored.

  Args:
    robot_obs: [15] as in `envs.base`.
    scene_obs: [24] as in `envs.base`.

  Returns:
    Both as float64.

  Raises:
    ValueError: naming array, index and rule: shape, NaN, a joint out of range, a lamp or last gripper
      action that is not one of its two values.
  """
  robot = _check_array("robot_obs", robot_obs, ROBOT_OBS)
  scene_array = _check_array("scene_obs", scene_obs, SCENE_OBS)
  width = (2 * scene.FINGER_RANGE[0], 2 * scene.FINGER_RANGE[1])
  _check_range("robot_obs", 6, "the gripper's width", robot[6], width, _RANGE_TOLERANCE["width"])
  for i, limits in enumerate(scene.ARM_RANGE):
    _check_range("robot_obs", 7 + i, f"arm joint {i + 1}", robot[7 + i], limits, _RANGE_TOLERANCE["arm"])
  if abs(robot[14]) != 1.0:
    raise ValueError(f"robot_obs[14] = {robot[14]:g}: the last gripper action must be exactly +1 or -1")
  for i, joint in enumerate(scene.FURNITURE_JOINTS):
    limits = scene.FURNITURE_RANGE[joint]
    _check_range("scene_obs", i, f"the {joint}", scene_array[i], limits, _RANGE_TOLERANCE["furniture"])
  for i, lamp in ((4, "bulb"), (5, "LED")):
    if scene_array[i] not in (0.0, 1.0):
      raise ValueError(f"scene_obs[{i}] = {scene_array[i]:g}: the {lamp} must be 0 or 1")
  return robot, scene_array


class SceneState:
  """A MuJoCo model and data that can be set to (robot_obs, scene_obs); no physics."""

  def __init__(self) -> None:
    self.model = _scene_model()
    self.data = mujoco.MjData(self.model)
    joint = self.model.joint
    self.furniture = [int(joint(name).qposadr[0]) for name in scene.FURNITURE_JOINTS]
    self.blocks = [int(joint(f"block_{name}").qposadr[0]) for name in scene.BLOCKS]

  def set_state(self, robot_obs: np.ndarray, scene_obs: np.ndarray) -> None:
    """Writes the positions of robot_obs [15] and scene_obs [24] and updates all poses."""
    qpos = self.data.qpos
    qpos[:7] = robot_obs[7:14]
    qpos[7:9] = 0.5 * robot_obs[6]
    qpos[self.furniture] = scene_obs[:4]
    for address, block in zip(self.blocks, scene_obs[6:].reshape(3, 6), strict=True):
      qpos[address : address + 3] = block[:3]
      qpos[address + 3 : address + 7] = euler_to_quaternion(block[3:])
    mujoco.mj_kinematics(self.model, self.data)


class PlayTable:
  """One play table; a `table.TaughtTable`.

  Besides (robot_obs, scene_obs) and velocities, the state holds the target pose that actions move;
  `reset` puts it at the gripper and sets velocities to zero. The same reset and actions give results
  identical to the bit.
  """

  name = "play_table"
  control_hz = CONTROL_HZ

  def __init__(self) -> None:
    self._scene = SceneState()
    self._model, self._data = self._scene.model, self._scene.data
    self._arm = ArmKinematics()
    self._tcp = self._model.site("tcp").id
    self._block_bodies = [self._model.body(f"block_{name}").id for name in scene.BLOCKS]
    self._position = self._data.site_xpos[self._tcp]  # views into MuJoCo's arrays
    self._rotation = self._data.site_xmat[self._tcp]
    self._button, self._switch = self._scene.furniture[2], self._scene.furniture[3]
    self._neutral = self._neutral_state()
    self.reset()

  def __getstate__(self) -> dict[str, Any]:
    """What a copy goes on from, to the bit."""
    physics = np.empty(mujoco.mj_stateSize(self._model, _PHYSICS))
    mujoco.mj_getState(self._model, self._data, physics, _PHYSICS)
    return {"physics": physics} | {name: getattr(self, name) for name in _CARRIED}

  def __setstate__(self, state: dict[str, Any]) -> None:
    PlayTable.__init__(self)
    mujoco.mj_setState(self._model, self._data, state["physics"], _PHYSICS)
    mujoco.mj_kinematics(self._model, self._data)
    for name in _CARRIED:
      setattr(self, name, state[name])

  def _neutral_state(self) -> tuple[np.ndarray, np.ndarray]:
    robot_obs = np.zeros(ROBOT_OBS)
    robot_obs[6], robot_obs[7:14], robot_obs[14] = 2 * scene.FINGER_RANGE[1], scene.ARM_HOME, 1.0
    position, euler = self._arm.forward(robot_obs[7:14])
    robot_obs[:3], robot_obs[3:6] = position, euler
    scene_obs = np.zeros(SCENE_OBS)
    for block, address in zip(scene_obs[6:].reshape(3, 6), self._scene.blocks, strict=True):
      block[:3] = self._model.qpos0[address : address + 3]
    return robot_obs, scene_obs

  def reset(self, robot_obs: np.ndarray | None = None, scene_obs: np.ndarray | None = None) -> None:
    """Restores a state exactly, at rest and with the target pose at the gripper.

    Args:
      robot_obs: [15] as in `envs.base`, or None for the neutral posture. The joints decide; the tcp's
        pose follows from them.
      scene_obs: [24] as in `envs.base`, or None for everything closed and off.

    Raises:
      ValueError: see `check_state`; or the tcp is not where the joints put it (another robot's state).
    """
    robot_obs = self._neutral[0] if robot_obs is None else robot_obs
    scene_obs = self._neutral[1] if scene_obs is None else scene_obs
    robot_obs, scene_obs = check_state(robot_obs, scene_obs)
    position, euler = self._arm.forward(robot_obs[7:14])
    if np.abs(position - robot_obs[:3]).max() > _POSE_TOLERANCE:
      index = int(np.argmax(np.abs(position - robot_obs[:3])))
      raise ValueError(
        f"robot_obs[{index}] = {robot_obs[index]:g}: the joints robot_obs[7:14] put the tcp "
        f"at {position[index]:g}; is this a state of another robot?"
      )
    mujoco.mj_resetData(self._model, self._data)
    self._scene.set_state(robot_obs, scene_obs)
    self._joint_target = robot_obs[7:14].copy()
    self._target_position, self._target_euler = position, euler
    self._gripper = float(robot_obs[14])
    self._bulb, self._led = float(scene_obs[4]), float(scene_obs[5])
    self._pressed = bool(self._data.qpos[self._button] > scene.BUTTON_THRESHOLD)

  def step(self, action: np.ndarray) -> None:
    """Moves the target pose and follows it for 1/30 s.

    Args:
      action: [7], see `check_action`; translation x 0.02 m, rotation x 0.05 rad, gripper.

    Raises:
      ValueError: see `check_action`.
    """
    action = check_action(action)
    self._gripper = float(action[6])
    ahead = self._target_position + table.ACTION_TRANSLATION * action[:3] - self._position
    distance = math.sqrt(float(ahead @ ahead))
    if distance > TARGET_LEASH:
      ahead *= TARGET_LEASH / distance
    self._target_position = self._position + ahead
    self._target_euler = self._target_euler + table.ACTION_ROTATION * action[3:6]
    self._joint_target = self._arm.inverse(self._joint_target, self._target_position, self._target_euler)
    self._data.ctrl[:7] = self._joint_target
    self._data.ctrl[7:9] = scene.FINGER_RANGE[1] if self._gripper > 0 else scene.FINGER_RANGE[0]
    mujoco.mj_step(self._model, self._data, nstep=scene.SUBSTEPS)
    mujoco.mj_kinematics(
      self._model, self._data
    )  # poses of the new positions; mj_step leaves the former ones
    pressed = bool(self._data.qpos[self._button] > scene.BUTTON_THRESHOLD)
    if pressed and not self._pressed:
      self._led = 1.0 - self._led
    self._pressed = pressed
    self._bulb = float(self._data.qpos[self._switch] > goals.BULB_THRESHOLD)

  def state(self) -> tuple[np.ndarray, np.ndarray]:
    """robot_obs [15] and scene_obs [24], float64, of the present moment."""
    qpos = self._data.qpos
    robot_obs = np.empty(ROBOT_OBS)
    robot_obs[:3] = self._position
    robot_obs[3:6] = matrix_to_euler(self._rotation)
    robot_obs[6] = qpos[7] + qpos[8]
    robot_obs[7:14] = qpos[:7]
    robot_obs[14] = self._gripper
    scene_obs = np.empty(SCENE_OBS)
    scene_obs[:4] = qpos[self._scene.furniture]
    scene_obs[4], scene_obs[5] = self._bulb, self._led
    for i, body in enumerate(self._block_bodies):
      scene_obs[6 + 6 * i : 9 + 6 * i] = self._data.xpos[body]
      scene_obs[9 + 6 * i : 12 + 6 * i] = matrix_to_euler(self._data.xmat[body])
    return robot_obs, scene_obs

  def target_pose(self) -> tuple[np.ndarray, np.ndarray]:
    """Target position [3] in m and Euler angles [3] in rad, which actions are relative to."""
    return self._target_position.copy(), self._target_euler.copy()
