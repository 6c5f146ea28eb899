"""The arms of a study: what each changes, and which finished stages it takes from another arm.

Each experiment names those that it runs, as `REPRODUCTION` and `DIAL` do. One of your own is one more entry.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

POLICY_STAGES = ("featurize", "behaviour_cloning", "classifier", "ppo", "evaluate")
MODEL_STAGES = ("world_model", "judge_world_model")
CLONING_STAGES = ("featurize", "behaviour_cloning", "evaluate_cloned")


@dataclasses.dataclass(frozen=True)
class Arm:
  """One way to run the chain.

  Attributes:
    title: in tables.
    changes: dotted path -> value, on top of the study's own settings.
    stages: that it runs itself, in order; frames are shared by all arms of a seed with the same `frames`.
    base: arm whose finished stages it takes for all that it does not run.
    snapshots: whether policies are also cloned on the world models of `world_model.snapshots`.
  """

  title: str
  changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  stages: tuple[str, ...] = (*MODEL_STAGES, *POLICY_STAGES)
  base: str = ""
  snapshots: bool = False

  @property
  def frames(self) -> dict[str, Any]:
    """Those of its changes that the frames depend on: dotted path -> value."""
    return {path: value for path, value in self.changes.items() if path.startswith("env.")}


_WEIGHT = "world_model.inverse_dynamics_weight"
_ROBOT = "world_model.robot_obs_weight"
PLAIN: dict[str, Any] = {_WEIGHT: 0.0}  # DreamerV2
_TRAINED = (*MODEL_STAGES, *CLONING_STAGES)  # ablations of the world model end with cloning

ARMS: dict[str, Arm] = {
  "wam": Arm("WAM", snapshots=True),
  "dreamerv2": Arm("DreamerV2", PLAIN, snapshots=True),
  "weight_10": Arm("WAM, λ_act 10", {_WEIGHT: 10.0}, _TRAINED),
  "weight_100": Arm("WAM, λ_act 100", {_WEIGHT: 100.0}, _TRAINED),
  "weight_10000": Arm("WAM, λ_act 10,000", {_WEIGHT: 10_000.0}, _TRAINED),
  "on_features": Arm(
    "WAM, inverse dynamics on features", {"world_model.inverse_dynamics_input": "feature"}, _TRAINED
  ),
  "proprio": Arm("WAM with proprioception", {"world_model.proprio": "sincos"}, _TRAINED),
  "dreamerv2_proprio": Arm(
    "DreamerV2 with proprioception", PLAIN | {"world_model.proprio": "sincos"}, _TRAINED
  ),
  "robot_state": Arm("WAM, robot state reconstructed", {_ROBOT: 1000.0}),
  "dreamerv2_robot_state": Arm("DreamerV2, robot state reconstructed", PLAIN | {_ROBOT: 1000.0}),
  "no_regulariser": Arm(
    "WAM, PPO without BC regulariser", {"ppo.bc_weight": 0.0}, ("ppo", "evaluate"), "wam"
  ),
  "demos_10": Arm("WAM, 10 demos", {"data.demos_per_task": 10}, POLICY_STAGES, "wam"),
  "demos_25": Arm("WAM, 25 demos", {"data.demos_per_task": 25}, POLICY_STAGES, "wam"),
  "dreamerv2_demos_10": Arm(
    "DreamerV2, 10 demos", PLAIN | {"data.demos_per_task": 10}, POLICY_STAGES, "dreamerv2"
  ),
  "dreamerv2_demos_25": Arm(
    "DreamerV2, 25 demos", PLAIN | {"data.demos_per_task": 25}, POLICY_STAGES, "dreamerv2"
  ),
}
MAIN = ("wam", "dreamerv2")  # the comparison
REPRODUCTION = tuple(ARMS)

# Both world models under more and more distractors, cloned alone: experiments/distractors.py.
DIAL_LEVELS = (0, 1, 2, 3)
for _level in DIAL_LEVELS:
  _dial: dict[str, Any] = {"env.distractors": _level} if _level else {}
  ARMS[f"dial_{_level}"] = Arm(f"WAM, dial {_level}", _dial, _TRAINED, snapshots=True)
  ARMS[f"dreamerv2_dial_{_level}"] = Arm(f"DreamerV2, dial {_level}", PLAIN | _dial, _TRAINED, snapshots=True)
DIAL = tuple(name for name in ARMS if name not in REPRODUCTION)

# An arm with inverse dynamics -> the same without.
PAIRS = dict([MAIN]) | {arm: f"dreamerv2_{arm}" for arm in ARMS if f"dreamerv2_{arm}" in ARMS}
