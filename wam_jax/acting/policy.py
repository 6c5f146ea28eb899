"""Acting with a trained policy on observations from anywhere: one frame in, one action out.

Every frame is filtered through the world model with the action executed before it; every H-th frame a
chunk is sampled at the frame's feature, and its actions are executed one by one. `rollout` runs
the same functions side by side for many episodes, `wam_jax.export` writes them to files.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from wam_jax.acting.actor import Actor
from wam_jax.acting.monitor import Monitor, MonitorError
from wam_jax.acting.step import State, act_step, start_state
from wam_jax.host import surroundings
from wam_jax.host.words import PrintableError
from wam_jax.types import Params


class PolicyError(PrintableError):
  """There is no such policy, or its world model is not the one it was trained on."""


# --- the arithmetic ---------------------------------------------------------------------------------


def programs(model: Any, policy: Any) -> tuple[Any, Any]:
  """Jitted (start_state, act_step) of a world model's networks and a policy's."""
  start = functools.partial(start_state, model)
  return jax.jit(start, static_argnums=(1, 2)), jax.jit(functools.partial(act_step, model, policy))


_compiled = functools.lru_cache(maxsize=16)(programs)


# --- a policy that holds its state ------------------------------------------------------------------


class ActingPolicy(Actor):
  """A policy for one robot or a batch of them; `Actor` has `reset` and `act`.

  Args:
    model: world-model networks.
    model_params: their parameters.
    policy: networks of the policy.
    policy_params: {"base", "tuned"}, on a leading axis of length 1.
    task: the skill's name.
    made_from: stage -> fingerprint of the artifacts, kept for the record.
    open_monitor: makes the monitor; None: there is none.

  Raises:
    PolicyError: the policy and the world model have different feature sizes.
  """

  @surroundings.own_settings()
  def __init__(
    self,
    model: Any,
    model_params: Params,
    policy: Any,
    policy_params: Params,
    task: str,
    made_from: Mapping[str, str] | None = None,
    open_monitor: Callable[[], Monitor] | None = None,
  ):
    if model.feature_size != policy.feature_size:
      raise PolicyError(
        f"the policy of {task} reads features of size {policy.feature_size}, "
        f"the world model makes features of size {model.feature_size}"
      )
    self.model, self.policy, self.task, self.made_from = model, policy, task, dict(made_from or {})
    self.params = jax.device_put((model_params, policy_params))
    self.cameras, self.image_size = tuple(model.cameras), model.image_size
    self.embodiment = model.embodiment
    self.camera_sizes = {camera.name: camera.size for camera in self.embodiment.cameras if camera.size}
    self.state_size, self.action_ranges = self.embodiment.state_size, self.embodiment.action_ranges
    self.needs_robot_obs, self.chunk = model.proprio != "none", policy.chunk
    self._start, self._step = _compiled(model, policy)
    self._open_monitor = open_monitor
    self._monitor: Monitor | None = None
    self.reset()

  @property
  def monitor(self) -> Monitor:
    """Reads along with `act` from the first time it is asked for; ask before an episode begins.

    Raises:
      MonitorError: the policy's run was not certified, or it is a packed policy.
    """
    if self._monitor is None:
      if self._open_monitor is None:
        raise MonitorError(
          f"{self.task}: packed policies have no classifier to monitor by; load the run itself"
        )
      self._monitor = self._open_monitor()
    return self._monitor

  reset = surroundings.own_settings()(Actor.reset)
  act = surroundings.own_settings()(Actor.act)

  def _begin(self, batch_size: int, seed: int) -> State:
    if self._monitor is not None:
      self._monitor.reset()
    return self._start(self.params[0], batch_size, self.chunk, seed)

  def _advance(self, state: State, inputs: Mapping[str, Any]) -> tuple[State, jax.Array]:
    after, action = self._step(*self.params, state, inputs)
    if self._monitor is not None:
      self._monitor.see(state, after, single=self._batch_size is None)
    return after, action


# --- finding policy and world model -----------------------------------------------------------------


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
