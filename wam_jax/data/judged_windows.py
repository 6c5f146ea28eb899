"""Held-out windows of play and of takes that a world model is judged on, and what probes read from them."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from wam_jax.data import calvin, windows
from wam_jax.data.files import DatasetError
from wam_jax.data.frames import Frames
from wam_jax.embodiment import CALVIN
from wam_jax.envs import tasks
from wam_jax.host.logger import Logger
from wam_jax.types import Batch


@dataclasses.dataclass(frozen=True)
class Target:
  """What a probe reads: number `index` of `source` (robot_obs or scene_obs), or an on/off state."""

  name: str
  source: str
  index: int
  unit: str = "m"
  binary: bool = False


CALVIN_TARGETS = (
  Target("tcp_x", "robot_obs", 0),
  Target("tcp_y", "robot_obs", 1),
  Target("tcp_z", "robot_obs", 2),
  Target("gripper_width", "robot_obs", 6),
  Target("drawer", "scene_obs", tasks.DRAWER),
  Target("slider", "scene_obs", tasks.SLIDER),
  Target("switch", "scene_obs", tasks.SWITCH),
  Target("bulb", "scene_obs", tasks.BULB, "", True),
  Target("led", "scene_obs", tasks.LED, "", True),
)
HAND = slice(0, 3)  # of CALVIN_TARGETS: the position of the hand


def targets_of(frames: Frames) -> tuple[Target, ...]:
  """What probes read: of CALVIN's robot hand and recorded furniture; of others the state."""
  if frames.embodiment == CALVIN:
    return tuple(t for t in CALVIN_TARGETS if t.source == "robot_obs" or frames.scene_obs is not None)
  numbers = enumerate(frames.embodiment.state)
  return tuple(Target(d.name, "robot_obs", i, "", d.kind == "binary") for i, d in numbers)


def binary(targets: Sequence[Target]) -> np.ndarray:
  """[K] bool, those that are on or off."""
  return np.array([target.binary for target in targets], bool)


@dataclasses.dataclass(frozen=True)
class Windows:
  """Windows of frames, each an episode of its own.

  Attributes:
    frames: their frames.
    length: T, frames of the longest.
    kind: play, or what they are instead.
  """

  frames: Frames
  length: int
  kind: str

  def __len__(self) -> int:
    return len(self.frames.starts)

  @property
  def mask(self) -> np.ndarray:
    """[W, T] bool."""
    return np.arange(self.length) < (self.frames.ends - self.frames.starts)[:, None]

  @property
  def target(self) -> np.ndarray:
    """[W, T, K] float64, what the probes should read; zero in the padding."""
    targets = targets_of(self.frames)
    sources: dict[str, Any] = {"robot_obs": self.frames.robot_obs, "scene_obs": self.frames.scene_obs}
    columns = [sources[target.source][:, target.index] for target in targets]
    values = np.stack(columns, -1) if columns else self.frames.robot_obs[:, :0]
    values[:, binary(targets)] = np.round(values[:, binary(targets)])
    return self.padded(values)

  def padded(self, values: np.ndarray) -> np.ndarray:
    """Values of all frames [N, X] window by window: [W, T, X] float64, zero in the padding."""
    out = np.zeros((len(self), self.length, values.shape[1]))
    out[self.mask] = values  # windows lie one after the other, as the rows of the mask do
    return out

  def batch(self, rows: Sequence[int]) -> Batch:
    """Some windows side by side."""
    spans = [(int(self.frames.starts[row]), int(self.frames.ends[row])) for row in rows]
    return windows.episode_batch(self.frames, spans, self.length)


@dataclasses.dataclass(frozen=True)
class Data:
  """What models are judged on: `heldout` windows and `takes` of the skills, held out too (None without);
  probes are fitted on `fit`; `facts` for the report."""

  heldout: Windows
  takes: Windows | None
  fit: Windows
  facts: dict[str, Any]

  @property
  def targets(self) -> tuple[Target, ...]:
    """What the probes read."""
    return targets_of(self.heldout.frames)

  @property
  def has_hand(self) -> bool:
    """Whether the first targets are the position of a hand."""
    return self.heldout.frames.embodiment == CALVIN

  @property
  def judged(self) -> dict[str, Windows]:
    """What is imagined, by name: play, and takes where there are any."""
    return {"play": self.heldout} | ({} if self.takes is None else {"takes": self.takes})


def choose_windows(
  episodes: np.ndarray, is_demo: np.ndarray, length: int, count: int, least: int
) -> tuple[np.ndarray, str]:
  """Windows that do not overlap, spread evenly over the play of a split.

  Args:
    episodes: [E, 2] first and last id, both included.
    is_demo: [E] bool.
    length: frames of a window.
    count: windows at most.
    least: frames of a window at least, where no play is long enough.

  Returns:
    ([W, 2] first and last id, what they are). Without play of `length` frames these are the last frames,
    where things move, of all episodes that have `least`; W is 0 if none has.
  """
  lengths = episodes[:, 1] - episodes[:, 0] + 1
  found = [
    (low + i * length, low + (i + 1) * length - 1)
    for (low, _), frames, demo in zip(episodes.tolist(), lengths.tolist(), is_demo.tolist(), strict=True)
    if not demo
    for i in range(frames // length)
  ]
  kind = "play"
  if not found:
    found = [
      (max(low, high - length + 1), high) for low, high in episodes.tolist() if high - low + 1 >= least
    ]
    kind = f"ends of demonstrations and short episodes, as no play has {length} frames in a row"
  chosen = np.unique(np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int))
  return np.array([found[i] for i in chosen], np.int64).reshape(-1, 2), kind


def read_windows(
  folder: pathlib.Path, length: int, count: int, least: int, image_size: int, config: Any, logger: Logger
) -> Windows:
  """Chooses windows of a split and reads their frames.

  Raises:
    DatasetError: no episode has `least` frames.
  """
  episodes = calvin.read_episode_ids(folder)
  ends = np.cumsum(episodes[:, 1] - episodes[:, 0] + 1)
  spans = {(a.start, a.end) for a in calvin.read_annotations(folder, episodes)}
  is_demo = np.array([span in spans for span in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)])
  chosen, kind = choose_windows(episodes, is_demo, length, count, least)
  if not len(chosen):
    raise DatasetError(
      folder,
      f"no episode has the {least} frames that one imagined frame takes.",
      fix="lower judge.context, or collect data.heldout_play_frames.",
    )
  frames = calvin.read_windows(folder, chosen, image_size, config.env.workers, logger.progress)
  return Windows(frames, int((chosen[:, 1] - chosen[:, 0]).max()) + 1, kind)


def read_takes(
  folder: pathlib.Path, length: int, count: int, least: int, image_size: int, config: Any, logger: Logger
) -> Windows | None:
  """The beginnings of annotated takes of a split, spread evenly; None if none has `least` frames."""
  annotations = calvin.read_raw_annotations(folder)
  spans = [(first, min(end, first + length) - 1) for _, first, end in annotations if end - first >= least]
  if not spans:
    return None
  rows = np.unique(np.linspace(0, len(spans) - 1, min(count, len(spans))).round().astype(int))
  chosen = np.array([spans[row] for row in rows], np.int64)
  frames = calvin.read_windows(folder, chosen, image_size, config.env.workers, logger.progress)
  return Windows(frames, int((chosen[:, 1] - chosen[:, 0]).max()) + 1, "takes of the skills")
