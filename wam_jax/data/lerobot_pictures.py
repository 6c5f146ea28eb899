"""Pictures of LeRobot datasets: frames of videos by PyAV, or files in the cells of a table."""

from __future__ import annotations

import io
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from wam_jax.data.lerobot_tables import EXTRA, LEAVE_OUT_ANY, Episode, guarded, parquet
from wam_jax.host.dataset_files import COPY_AGAIN, DatasetError
from wam_jax.host.lerobot_info import INFO, inside
from wam_jax.host.regular_files import read_bytes

_AHEAD = 2.0  # s that a video is read on before it is quicker to seek


def pyav() -> Any:
  """PyAV. Raises DatasetError: it is not installed."""
  try:
    import av
  except ImportError:
    raise DatasetError("av", "is not installed; it reads and writes videos.", fix=EXTRA) from None
  return av


class Video:
  """Frames of a video by their time; goes on where it stopped where that is near."""

  def __init__(self, path: pathlib.Path, feature: str, size: tuple[int, int]):
    av = pyav()
    self.path, self._feature = path, feature
    self._container = guarded(path, f"pictures of {feature}", lambda: av.open(str(path)), feature)
    streams = self._container.streams.video
    if not streams:
      raise DatasetError(path, "has no video in it.", key=feature, fix=COPY_AGAIN)
    self._stream = streams[0]
    self._stream.thread_type = "AUTO"
    found = (self._stream.height, self._stream.width)
    if found != size:
      rule = f"has pictures of {found[0]} x {found[1]}, where {INFO} says {size[0]} x {size[1]}."
      raise DatasetError(path, rule, key=feature, fix=COPY_AGAIN)
    self._frames: Iterator[Any] = iter(())
    self._frame: Any = None  # read last
    self._at = np.inf  # its time

  @property
  def end(self) -> float:
    """Time at which its last frame ends, by its header [s]; infinite where that does not say."""
    stream = self._stream
    if not stream.duration or stream.time_base is None:
      return np.inf
    return float(((stream.start_time or 0) + stream.duration) * stream.time_base)

  def at(self, time: float, half: float, what: str) -> np.ndarray:
    """[H, W, 3] uint8, the picture at a time, within half a frame [s]; errors name `what` needs it."""
    short = f"ends before {time:.4g} s, where {what} has a frame: it is shorter than its table."
    try:
      return self._find(time, half, what)
    except StopIteration:
      raise DatasetError(self.path, short, key=self._feature, fix=COPY_AGAIN) from None
    except DatasetError:
      raise
    except Exception as error:  # FFmpeg's
      rule = f"damaged near {time:.4g} s, in {what} ({str(error)[:200]})."
      raise DatasetError(self.path, rule, key=self._feature, fix=COPY_AGAIN) from None

  def close(self) -> None:
    """Ends its threads and frees its pictures, which would be left to the garbage collector."""
    self._frames, self._frame = iter(()), None
    self._container.close()

  def _find(self, time: float, half: float, what: str) -> np.ndarray:
    if not self._at - half <= time <= self._at + _AHEAD:
      self._container.seek(max(int((time - half) / self._stream.time_base), 0), stream=self._stream)
      self._frames, self._at = self._container.decode(self._stream), -np.inf
    while self._at < time - half:
      before, self._at = self._at, np.inf  # should reading fail
      self._frame = next(self._frames)
      self._at = float(self._frame.pts * self._stream.time_base)
    if self._at > time + half:
      near = f"those next to it are at {before:.4g} and {self._at:.4g} s"
      rule = f"has no frame within half a frame of {time:.4g} s, where {what} has one; {near}."
      raise DatasetError(self.path, rule, key=self._feature, fix=LEAVE_OUT_ANY)
    return self._frame.to_ndarray(format="rgb24")


class Cells:
  """Pictures in a table, as files in its cells; keeps the group of rows that was read last."""

  def __init__(self, episode: Episode, feature: str, size: tuple[int, int]):
    self.path, self._root, self._feature, self._size = episode.table, episode.info.root, feature, size
    self._file = guarded(self.path, "frames", lambda: parquet().ParquetFile(self.path))
    if feature not in self._file.schema_arrow.names:
      raise DatasetError(self.path, f"is absent in the table of {episode}.", key=feature, fix=COPY_AGAIN)
    groups = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
    self._ends, self._group = np.cumsum(groups), -1
    self._cells: list[Any] = []

  def at(self, row: int, what: str) -> np.ndarray:
    """[H, W, 3] uint8, the picture in a row; errors name `what` needs it."""
    group = int(np.searchsorted(self._ends, row, side="right"))
    if group != self._group:
      read = lambda: self._file.read_row_group(group, columns=[self._feature], use_threads=False)
      self._cells, self._group = guarded(self.path, "pictures", read).column(0).to_pylist(), group
    cell = self._cells[row - int(self._ends[group]) + len(self._cells)]
    content, name = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if content is None and name is None:
      rule = f"{what} has no picture."
      raise DatasetError(self.path, rule, key=self._feature, fix=LEAVE_OUT_ANY)
    decode = lambda: self._decode(content, name, what)
    return guarded(self.path, f"the picture of {what}", decode, self._feature)

  def close(self) -> None:
    """Closes the table."""
    self._file.close()

  def _decode(self, content: bytes | None, name: str | None, what: str) -> np.ndarray:
    from PIL import Image

    if content is None:
      content = read_bytes(inside(self._root, str(name)))
    picture = Image.open(io.BytesIO(content))
    if picture.size != self._size[::-1]:  # before it is unpacked
      rule = f"the picture of {what} has {picture.height} x {picture.width} pixels; {INFO} says "
      rule += f"{self._size[0]} x {self._size[1]}."
      raise DatasetError(self.path, rule, key=self._feature, fix=COPY_AGAIN)
    return np.asarray(picture.convert("RGB"))
