"""Acting with a trained policy on observations from anywhere: one frame in, one action out.

Every frame is filtered through the world model with the action executed before it; every H-th frame a
chunk is sampled at the frame's feature, and its actions are executed one by one. `rollout` runs
the same functions side by side for many episodes, `wam_jax.export` writes them to files.
"""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wam_jax.core.image import area_resize
from wam_jax.data.windows import REST_ACTION
from wam_jax.nn.policy import ACTION, executable
from wam_jax.nn.world_model import ROBOT_OBS
from wam_jax.storage import artifact as artifact_lib
from wam_jax.storage.artifact import Artifact, ArtifactError
from wam_jax.train import world_model as wm
from wam_jax.types import Latent, Params, features

# Name -> stage that made it; without a name the first that is there.
POLICIES = {"ppo": "ppo", "cloned": "behaviour_cloning", "ppo_imagined": "ppo", "ppo_real": "ppo"}
MAX_SEED = 2**31 - 1

State = dict[str, jax.Array]


class PolicyError(Exception):
  """There is no such policy, or its world model is not the one it was trained on."""


# --- the arithmetic ---------------------------------------------------------------------------------


def filter_frame(
  model: Any,
  params: Params,
  latent: Latent,
  observation: Mapping[str, jax.Array],
  prev_action: jax.Array,
  is_first: jax.Array,
  key: jax.Array | None,
) -> Latent:
  """Posterior after one frame.

  Args:
    model: world-model networks.
    params: their parameters.
    latent: [B, ...], before the frame.
    observation: the model's cameras uint8 [B, S, S, 3]; robot_obs [B, 15], if the model reads it.
    prev_action: [B, 7], the action that led to the frame.
    is_first: [B] bool.
    key: for a sample, or None for the mode.

  Returns:
    [B, ...].
  """
  seen: Any = {"robot_obs": jnp.zeros((len(prev_action), ROBOT_OBS))} | dict(observation)
  # A camera that is not there is one that the model does not read.
  embed = wm.encode_observation(
    model, params, seen.get("rgb_static"), seen.get("rgb_gripper"), seen["robot_obs"]
  )
  return wm.filter_step(model, params, latent, embed, prev_action, is_first, key)


def sample_chunks(
  policy: Any, params: Params, latent: Latent, key: jax.Array, num_tasks: int, deterministic: bool = True
) -> jax.Array:
  """Chunks as executed.

  Args:
    policy: `sample(params, feature [M, F], key, deterministic=...) -> [M, H, 7]`.
    params: stacked on a leading task axis K.
    latent: [K * M, ...], task-major.
    key: random key of all tasks.
    num_tasks: K.
    deterministic: the evaluation variant of sampling.

  Returns:
    [K * M, H, 7], motion in [-1, 1], gripper -1 or 1.
  """
  feature = features(latent)
  feature = feature.reshape(num_tasks, -1, feature.shape[-1])
  sample = functools.partial(policy.sample, deterministic=deterministic)
  chunk = jax.vmap(sample)(params, feature, jax.random.split(key, num_tasks))
  return executable(chunk.reshape(-1, *chunk.shape[2:]))


def frame_keys(key: jax.Array, t: jax.Array | int) -> tuple[jax.Array, jax.Array]:
  """Keys of control step t: of the posterior's sample, and of the chunk's noise."""
  frame_key, chunk_key = jax.random.split(jax.random.fold_in(key, t))
  return frame_key, chunk_key


def start_state(model: Any, params: Params, batch_size: int, chunk: int, seed: jax.Array | int) -> State:
  """State before the first frame, as plain arrays, so that any program can hold it.

  Args:
    model: world-model networks.
    params: their parameters.
    batch_size: B.
    chunk: H.
    seed: of all noise, 0 to 2**31 - 1.

  Returns:
    deter [B, D], stoch [B, S, C], robot [B, R] of a model that carries it, prev_action [B, 7], chunk
    [B, H, 7], step int32 (frames seen), key uint32.
  """
  latent = wm.initial_latent(model, params, batch_size)
  rest = jnp.broadcast_to(jnp.asarray(REST_ACTION, jnp.float32), (batch_size, ACTION))
  return _latent_arrays(latent) | {
    "prev_action": rest,
    "chunk": jnp.zeros((batch_size, chunk, ACTION)),
    "step": jnp.zeros((), jnp.int32),
    "key": jax.random.key_data(jax.random.key(seed)),
  }


def _latent_arrays(latent: Latent) -> State:
  """What a state holds of a latent."""
  arrays = {"deter": latent.deter, "stoch": latent.stoch}
  return arrays if latent.robot is None else arrays | {"robot": latent.robot}


def act_step(
  model: Any,
  policy: Any,
  model_params: Params,
  policy_params: Params,
  state: State,
  observation: Mapping[str, jax.Array],
) -> tuple[State, jax.Array]:
  """One control step: filters the frame and, every H steps, samples a chunk.

  Args:
    model: world-model networks.
    policy: of `sample_chunks`.
    model_params: the model's.
    policy_params: the policy's, on a leading axis of length 1.
    state: from `start_state` or the step before.
    observation: of `filter_frame`.

  Returns:
    (next state, action [B, 7]).
  """
  t, size = state["step"], state["chunk"].shape[1]
  stoch = state["stoch"]
  logits = jnp.zeros_like(stoch)  # no step reads them
  latent = Latent(deter=state["deter"], stoch=stoch, logits=logits, robot=state.get("robot"))
  frame_key, chunk_key = frame_keys(jax.random.wrap_key_data(state["key"]), t)
  is_first = jnp.broadcast_to(t == 0, stoch.shape[:1])
  latent = filter_frame(model, model_params, latent, observation, state["prev_action"], is_first, frame_key)
  chunk = jax.lax.cond(
    t % size == 0,
    lambda latent: sample_chunks(policy, policy_params, latent, chunk_key, 1),
    lambda _: state["chunk"],
    latent,
  )
  action = jax.lax.dynamic_index_in_dim(chunk, t % size, 1, keepdims=False)
  new = {"prev_action": action, "chunk": chunk, "step": t + 1}
  return state | _latent_arrays(latent) | new, action


@functools.lru_cache(maxsize=16)
def _compiled(model: Any, policy: Any) -> tuple[Callable, Callable]:
  """Compiled (start_state, act_step)."""
  start = functools.partial(start_state, model)
  return jax.jit(start, static_argnums=(1, 2)), jax.jit(functools.partial(act_step, model, policy))


# --- a policy that holds its state ------------------------------------------------------------------


class ActingPolicy:
  """A policy for one robot or a batch of them.

  Args:
    model: world-model networks.
    model_params: their parameters.
    policy: networks of the policy.
    policy_params: {"base", "tuned"}, on a leading axis of length 1.
    task: the skill's name.
    made_from: stage -> fingerprint of the artifacts, kept for the record.

  Attributes:
    cameras: pictures that `act` needs.
    image_size: S, their side; larger ones are shrunk by area averaging.
    needs_robot_obs: whether `act` needs the robot state.
    chunk: H, frames from one chunk to the next.

  Raises:
    PolicyError: the policy and the world model have different feature sizes.
  """

  def __init__(
    self,
    model: Any,
    model_params: Params,
    policy: Any,
    policy_params: Params,
    task: str,
    made_from: Mapping[str, str] | None = None,
  ):
    if model.feature_size != policy.feature_size:
      raise PolicyError(
        f"the policy of {task} reads features of size {policy.feature_size}, "
        f"the world model makes features of size {model.feature_size}"
      )
    self.model, self.policy, self.task, self.made_from = model, policy, task, dict(made_from or {})
    self.params = jax.device_put((model_params, policy_params))
    self.cameras: tuple[str, ...] = tuple(model.cameras)
    self.image_size: int = model.image_size
    self.needs_robot_obs: bool = model.proprio != "none"
    self.chunk: int = policy.chunk
    self._start, self._step = _compiled(model, policy)
    self.reset()

  def reset(self, batch_size: int | None = None, seed: int = 0) -> None:
    """Begins new episodes.

    Args:
      batch_size: B robots side by side; None: one robot, without a batch axis.
      seed: of all noise, 0 to 2**31 - 1; the same seed and observations give the same actions.

    Raises:
      ValueError: batch_size below 1, or seed out of range.
    """
    if batch_size is not None and batch_size < 1:
      raise ValueError(f"batch_size: expected at least 1, or None for one robot, got {batch_size}")
    if not 0 <= seed <= MAX_SEED:
      raise ValueError(f"seed: expected 0 to {MAX_SEED}, got {seed}")
    self._batch_size = batch_size
    self._state: State = self._start(self.params[0], batch_size or 1, self.chunk, seed)

  def act(self, observation: Mapping[str, Any]) -> np.ndarray:
    """Action for the frame just seen. Every frame must be given, also those inside a chunk.

    Args:
      observation: 'rgb_static' and 'rgb_gripper' uint8 [S, S, 3], or larger, and 'robot_obs' [15], as
        far as the model reads them (`cameras`, `needs_robot_obs`); after `reset(batch_size=B)` each with
        a leading axis B. More keys are ignored.

    Returns:
      float32 [7], or [B, 7]: motion in [-1, 1], gripper -1 or 1.

    Raises:
      ValueError: a missing key, a wrong shape or dtype, or another batch size than that of `reset`; the
        state is then as before.
    """
    seen = self._read(observation)
    self._state, action = self._step(*self.params, self._state, seen)
    result = np.asarray(action)
    return result[0] if self._batch_size is None else result

  def _read(self, observation: Mapping[str, Any]) -> dict[str, Any]:
    """What the compiled step takes: pictures [B, S, S, 3] uint8, robot_obs [B, 15] float32."""
    if not isinstance(observation, Mapping):
      raise ValueError(f"observation: expected a dict of arrays, got {type(observation).__name__}")
    wanted = (*self.cameras, "robot_obs") if self.needs_robot_obs else self.cameras
    missing = [name for name in wanted if name not in observation]
    if missing:
      raise ValueError(
        f"observation: {', '.join(missing)} missing; this policy needs {', '.join(wanted)}, "
        f"got {', '.join(map(str, observation)) or 'nothing'}"
      )
    size, seen = self.image_size, {}
    for camera in self.cameras:
      picture = self._rows(camera, observation[camera], 3)
      if picture.dtype != np.uint8:
        raise ValueError(f"{camera}: expected uint8 in [0, 255], got {picture.dtype}")
      if picture.shape[-1] != 3 or min(picture.shape[1:3]) < size:
        raise ValueError(
          f"{camera}: expected {self._lead()}{size}, {size}, 3] or larger pictures, "
          f"got {list(observation[camera].shape)}"
        )
      seen[camera] = area_resize(picture, size, size)
    if self.needs_robot_obs:
      robot_obs = self._rows("robot_obs", observation["robot_obs"], 1)
      if robot_obs.shape[1] != ROBOT_OBS or robot_obs.dtype.kind not in "fiu":
        raise ValueError(
          f"robot_obs: expected {self._lead()}{ROBOT_OBS}] numbers, got {robot_obs.dtype} "
          f"{list(np.shape(observation['robot_obs']))}"
        )
      seen["robot_obs"] = robot_obs.astype(np.float32)
    return seen

  def _lead(self) -> str:
    return "[" if self._batch_size is None else f"[{self._batch_size}, "

  def _rows(self, name: str, value: Any, ndim: int) -> Any:
    """`value` with a batch axis before its `ndim` own ones."""
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    batched = self._batch_size is not None
    if array.ndim != ndim + batched:
      fix = "reset() is for one robot" if batched else "reset(batch_size=B) is for a batch"
      raise ValueError(
        f"{name}: expected {ndim + batched} axes, {self._lead()}...], got {list(array.shape)}; {fix}"
      )
    if batched and array.shape[0] != self._batch_size:
      raise ValueError(
        f"{name}: {array.shape[0]} rows, but reset(batch_size={self._batch_size}) was called; "
        "another batch size needs another reset"
      )
    return array if batched else array[None]


# --- finding policy and world model -----------------------------------------------------------------


def load_policy(
  path: Any = None,
  task: str | None = None,
  which: str | None = None,
  world_model: Any = None,
  ddim_steps: int = 0,
) -> ActingPolicy:
  """A trained policy, with the world model that it was trained on.

  Args:
    path: a run's work folder, the folder of a finished ppo or behaviour_cloning artifact, or a packed file;
      None: the policies that come with the package.
    task: one of the policy's; None: its only one.
    which: 'ppo', the last; 'ppo_imagined' or 'ppo_real', of each task the best by dreams or by simulator,
      where PPO was monitored; 'cloned'; None: 'ppo' if it is finished, else 'cloned'.
    world_model: folder of the world model, where it is neither beside the policy nor where the run had it.
    ddim_steps: of a diffusion policy, so many denoising steps by DDIM; 0: all that it was trained with.

  Raises:
    PolicyError: no finished policy there, no such task, or the world model that it was trained on is not
      to be found.
    ArtifactError, CheckpointError: files that cannot be read.
    ValueError: `which` or `ddim_steps` out of range.
  """
  from wam_jax.acting import packed
  from wam_jax.stages import behaviour_cloning
  from wam_jax.stages.world_model import load_world_model

  if path is None or pathlib.Path(path).is_file():
    if world_model is not None:
      raise PolicyError("world_model: packed policies bring their own")
    return packed.load(packed.SHIPPED if path is None else pathlib.Path(path), task, which, ddim_steps)
  artifact, policy, params, tasks = load_stacked(path, which)
  k = index_of(artifact.path, tasks, task)
  world = find_world_model(artifact, world_model)
  model, model_params = load_world_model(world)
  params = jax.tree.map(lambda x: x[k : k + 1], params)
  made_from = {artifact.stage: artifact.fingerprint, "world_model": world.fingerprint}
  policy = behaviour_cloning.for_acting(policy, ddim_steps)
  return ActingPolicy(model, model_params, policy, params, tasks[k], made_from)


def index_of(path: Any, tasks: Sequence[str], task: str | None) -> int:
  """Place of a task among those of a policy; of None the only one.

  Raises:
    PolicyError: there is no such task, or one must be named.
  """
  if task is None and len(tasks) == 1:
    return 0
  if task is None or task not in tasks:
    problem = "name the task" if task is None else f"no policy for {task!r}"
    raise PolicyError(f"{path}: {problem}; it has {', '.join(tasks)}")
  return list(tasks).index(task)


def load_stacked(path: Any, which: str | None = None) -> tuple[Artifact, Any, Params, tuple[str, ...]]:
  """(artifact, policy, parameters stacked over tasks, tasks in that order) of `load_policy`'s path."""
  from wam_jax.stages import behaviour_cloning, ppo

  artifact = find_policy(path, which)
  result = json.loads((artifact.path / "result.json").read_text(encoding="utf-8"))
  if artifact.stage == "ppo":
    selected = (which or "").removeprefix("ppo").removeprefix("_")
    if selected and not (artifact.path / "selected" / selected).is_dir():
      raise PolicyError(f"{artifact.path}: PPO was not monitored (ppo.eval_every): there is no {which}")
    policy, params = ppo.load_policy(artifact, selected)
  else:
    policy, params = behaviour_cloning.load_policy(artifact)
  return artifact, policy, params, tuple(next(iter(result.values())))


def find_policy(path: Any, which: str | None = None) -> Artifact:
  """The finished artifact of `load_policy`'s path.

  Raises:
    PolicyError: there is none.
    ValueError: `which` is not one of POLICIES.
  """
  path = pathlib.Path(path).expanduser()
  if which is not None and which not in POLICIES:
    raise ValueError(f"which: expected one of {', '.join(POLICIES)}, got {which!r}")
  wanted = list(dict.fromkeys(stage for name, stage in POLICIES.items() if which in (None, name)))
  artifact = artifact_lib.read_artifact(path)
  if artifact is not None:
    if artifact.stage not in wanted:
      raise PolicyError(f"{path}: this is an artifact of {artifact.stage}, not of {' or '.join(wanted)}")
    if not artifact.done:
      raise PolicyError(f"{path}: {artifact.stage} is not finished (DONE is missing)")
    return artifact
  reasons = []
  for stage in wanted:
    for folder in [path / stage, *artifact_lib.given_folders(path, stage)]:
      try:
        return artifact_lib.load_artifact(folder)
      except ArtifactError as error:
        reasons.append(f"  {error}")
  raise PolicyError("\n".join([f"{path}: no finished policy here", *reasons]))


def find_world_model(policy: Artifact, path: Any = None) -> Artifact:
  """The finished world model that a policy was trained on.

  Args:
    policy: artifact of ppo or behaviour_cloning.
    path: where it is; None: beside the policy, or where the run that made the policy had it.

  Raises:
    PolicyError: with what was found instead.
  """
  wanted = policy.inputs.get("world_model")
  if wanted is None:  # the cloned policy knows its demos' features, and these the world model
    wanted = _find(policy, "featurize", policy.inputs["featurize"]).inputs["world_model"]
  return _find(policy, "world_model", wanted, path)


def _find(policy: Artifact, stage: str, fingerprint: str, path: Any = None) -> Artifact:
  found, reasons = artifact_lib.search_input(policy, stage, fingerprint, path)
  if found is not None:
    return found
  name = stage.replace("_", " ")
  problem = f"{policy.path}: this policy was trained on the {name} with fingerprint {fingerprint[:12]}, "
  hint = "If the world model is elsewhere, name its folder: load_policy(..., world_model=FOLDER)."
  raise PolicyError("\n".join([problem + "which is not to be found:", *reasons, hint]))
