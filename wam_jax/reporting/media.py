"""Pictures and animations as files and data URIs. Pillow, PyAV for mp4, and nothing that needs a display."""

from __future__ import annotations

import base64
import fractions
import importlib.util
import io
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

CONTEXT_COLOUR: Colour = (37, 99, 235)  # border of frames the model has seen
IMAGINED_COLOUR: Colour = (234, 120, 20)  # border of frames the model imagines
BACKGROUND: Colour = (255, 255, 255)
FRAME_STEP = 2  # every second frame of an episode is shown
HOLD = 1000  # ms that the last frame stays before an animation starts over
INK: Colour = (40, 44, 52)


def _check_pictures(pictures: np.ndarray, ndim: int, name: str) -> np.ndarray:
  pictures = np.asarray(pictures)
  if pictures.ndim != ndim or pictures.shape[-1] != 3 or pictures.dtype != np.uint8:
    shape = "[" + "N, " * (ndim - 3) + "H, W, 3]"
    raise ValueError(f"{name}: expected {shape} uint8, got {list(pictures.shape)} {pictures.dtype}")
  return pictures


def upscale(pictures: np.ndarray, scale: int) -> np.ndarray:
  """Enlarges by repeating pixels.

  Args:
    pictures: [..., H, W, 3].
    scale: whole factor, at least 1.

  Returns:
    [..., H * scale, W * scale, 3].

  Raises:
    ValueError: scale below 1.
  """
  if scale < 1:
    raise ValueError(f"scale must be at least 1, got {scale}")
  return pictures.repeat(scale, -3).repeat(scale, -2)


def resize(pictures: np.ndarray, size: int) -> np.ndarray:
  """[T, H, W, 3] uint8 -> [T, size, size, 3], smoothly."""
  return np.stack([np.asarray(Image.fromarray(p).resize((size, size))) for p in pictures])


def add_border(picture: np.ndarray, colour: Colour, width: int = 2) -> np.ndarray:
  """Surrounds a picture with a coloured border.

  Args:
    picture: [H, W, 3] uint8.
    colour: red, green, blue in 0..255.
    width: pixels.

  Returns:
    [H + 2 width, W + 2 width, 3] uint8.
  """
  picture = _check_pictures(picture, 3, "picture")
  height, breadth = picture.shape[:2]
  framed = np.empty((height + 2 * width, breadth + 2 * width, 3), np.uint8)
  framed[:] = colour
  framed[width : width + height, width : width + breadth] = picture
  return framed


def error_picture(true: np.ndarray, predicted: np.ndarray) -> np.ndarray:
  """Signed difference around mid-grey: equal pixels are grey, a brighter prediction is brighter.

  Args:
    true: [...] uint8.
    predicted: [...] uint8, same shape.

  Returns:
    [...] uint8, 128 + (predicted - true) / 2.

  Raises:
    ValueError: shapes differ.
  """
  if true.shape != predicted.shape:
    raise ValueError(f"shapes differ: {list(true.shape)} and {list(predicted.shape)}")
  difference = predicted.astype(np.int16) - true.astype(np.int16)
  return np.clip(128 + difference // 2, 0, 255).astype(np.uint8)


def make_strip(
  rows: Sequence[tuple[str, np.ndarray]],
  num_context: int,
  labels: Sequence[str],
  scale: int,
) -> np.ndarray:
  """A grid of pictures: a row per kind, a column per frame, border colour by what the model has seen.

  Args:
    rows: (name, [T, H, W, 3] uint8) of equal shapes; for example true, predicted, error.
    num_context: the first columns, bordered in CONTEXT_COLOUR; the others in IMAGINED_COLOUR.
    labels: text above each column, T of them.
    scale: enlargement of the pictures.

  Returns:
    [H', W', 3] uint8, with a legend below.

  Raises:
    ValueError: no rows, shapes that differ, or labels that do not match the columns.
  """
  if not rows:
    raise ValueError("make_strip needs at least one row")
  names = [name for name, _ in rows]
  arrays = [_check_pictures(array, 4, name) for name, array in rows]
  if any(array.shape != arrays[0].shape for array in arrays):
    raise ValueError(f"rows differ in shape: {[list(array.shape) for array in arrays]}")
  frames = arrays[0].shape[0]
  if len(labels) != frames:
    raise ValueError(f"{len(labels)} labels for {frames} columns")

  size = 8 + 6 * scale
  font = ImageFont.load_default(size)
  border, gap = 3, 6
  height, width = (n * scale + 2 * border for n in arrays[0].shape[1:3])
  left = max(int(font.getlength(name)) for name in names) + 16
  top = size + 12
  total_width = left + frames * (width + gap)
  legend_top = top + len(rows) * (height + gap) + 6
  canvas = Image.new("RGB", (total_width, legend_top + size + 14), BACKGROUND)
  draw = ImageDraw.Draw(canvas)
  for column in range(frames):
    x = left + column * (width + gap)
    draw.text((x + width / 2, 5), labels[column], INK, font, anchor="ma")
    colour = CONTEXT_COLOUR if column < num_context else IMAGINED_COLOUR
    for row, array in enumerate(arrays):
      picture = add_border(upscale(array[column], scale), colour, border)
      canvas.paste(Image.fromarray(picture), (x, top + row * (height + gap)))
  for row, name in enumerate(names):
    draw.text((left - 10, top + row * (height + gap) + height / 2), name, INK, font, anchor="rm")
  x = left
  for text, colour in (("seen by the model", CONTEXT_COLOUR), ("imagined", IMAGINED_COLOUR)):
    draw.rectangle((x, legend_top + 4, x + size, legend_top + 4 + size), colour)
    draw.text((x + size + 8, legend_top + 4 + size / 2), text, INK, font, anchor="lm")
    x += size + 8 + int(font.getlength(text)) + 24
  return np.asarray(canvas)


def shown_times(steps: int) -> np.ndarray:
  """Which frames of an episode are shown: every `FRAME_STEP`-th from 0 on, and always the last, `steps`."""
  return np.unique(np.append(np.arange(0, steps + 1, FRAME_STEP), steps))


def tile(pictures: np.ndarray, columns: int, gap: int = 4) -> np.ndarray:
  """Lays pictures out in a grid, row by row.

  Args:
    pictures: [N, H, W, 3] uint8.
    columns: pictures per row.
    gap: white pixels between them.

  Returns:
    [rows * (H + gap) - gap, columns * (W + gap) - gap, 3] uint8; missing cells are white.
  """
  pictures = _check_pictures(pictures, 4, "pictures")
  num, height, width = pictures.shape[:3]
  rows = -(-num // columns)
  grid = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
  for i in range(num):
    y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
    grid[y : y + height, x : x + width] = pictures[i]
  return grid


def side_by_side(episodes: Sequence[np.ndarray], columns: int) -> np.ndarray:
  """One animation [T, H, W, 3] of several [T', h, w, 3]; those that end earlier keep their last frame."""
  longest = max(len(frames) for frames in episodes)
  padded = [np.concatenate([f, np.repeat(f[-1:], longest - len(f), 0)]) for f in episodes]
  return np.stack([tile(np.stack([f[t] for f in padded]), columns) for t in range(longest)])


def png_bytes(picture: np.ndarray) -> bytes:
  """PNG file of [H, W, 3] uint8."""
  buffer = io.BytesIO()
  Image.fromarray(_check_pictures(picture, 3, "picture")).save(buffer, "PNG", optimize=True)
  return buffer.getvalue()


def animation_bytes(frames: np.ndarray, fps: float, scale: int = 1, kind: str = "gif") -> bytes:
  """An endlessly repeating animation.

  Args:
    frames: [T, H, W, 3] uint8.
    fps: frames per second.
    scale: enlargement by repeating pixels.
    kind: 'gif' (shown everywhere), 'webp' (smaller), or 'mp4' (smallest; plays once, needs PyAV).

  Returns:
    The file's bytes.

  Raises:
    ValueError: wrong shape or kind, no frames, or fps not positive.
    ImportError: 'mp4' without PyAV.
  """
  frames = _check_pictures(frames, 4, "frames")
  if not len(frames):
    raise ValueError("an animation needs at least one frame")
  if not fps > 0:
    raise ValueError(f"fps must be positive, got {fps}")
  if kind == "mp4":
    return _mp4_bytes(upscale(frames, scale), fps)
  # GIF counts in 10 ms; Pillow merges equal neighbours and adds their durations.
  step = 10 if kind == "gif" else 1
  duration = max(step * 2, round(1000 / fps / step) * step)
  durations = [duration] * (len(frames) - 1) + [duration + HOLD]
  images = [Image.fromarray(frame) for frame in upscale(frames, scale)]
  buffer = io.BytesIO()
  if kind == "webp":
    images[0].save(
      buffer,
      "WEBP",
      save_all=True,
      append_images=images[1:],
      duration=durations,
      loop=0,
      quality=70,
      method=4,
    )
  elif kind == "gif":
    # One palette for all frames: smaller, and colours do not flicker.
    sample = [*images[:: max(1, len(images) // 8)], images[-1]]
    sheet = Image.new("RGB", (images[0].width, images[0].height * len(sample)))
    for i, image in enumerate(sample):
      sheet.paste(image, (0, i * image.height))
    palette = sheet.quantize(128, Image.Quantize.MEDIANCUT)
    coded = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    coded[0].save(
      buffer, "GIF", save_all=True, append_images=coded[1:], duration=durations, loop=0, optimize=False
    )
  else:
    raise ValueError(f"kind must be 'gif', 'webp' or 'mp4', got {kind!r}")
  return buffer.getvalue()


def has_mp4() -> bool:
  """Whether PyAV, which writes mp4, is installed."""
  return importlib.util.find_spec("av") is not None


def film(frames: np.ndarray, fps: float) -> dict[str, bytes]:
  """An animation as webp and, where it can be made, as mp4."""
  kinds = ("webp", "mp4") if has_mp4() else ("webp",)
  return {kind: animation_bytes(frames, fps, kind=kind) for kind in kinds}


def _mp4_bytes(frames: np.ndarray, fps: float) -> bytes:
  """H.264 in 4:2:0, which browsers, phones and slides play; it takes even sizes only."""
  import av

  height, width = (n + n % 2 for n in frames.shape[1:3])
  padded = np.full((len(frames), height, width, 3), BACKGROUND, np.uint8)
  padded[:, : frames.shape[1], : frames.shape[2]] = frames
  buffer = io.BytesIO()
  with av.open(buffer, "w", format="mp4") as container:
    stream = container.add_stream("libx264", rate=fractions.Fraction(fps).limit_denominator(1000))
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    for frame in padded:
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    container.mux(stream.encode())
  return buffer.getvalue()


def save_animation(path: pathlib.Path, frames: np.ndarray, fps: float, scale: int = 1) -> None:
  """Writes `frames` [T, H, W, 3] uint8 as .gif, .webp or .mp4, by the path's suffix: `animation_bytes`."""
  path.write_bytes(animation_bytes(frames, fps, scale, path.suffix.lstrip(".").lower()))


def save_png(path: pathlib.Path, picture: np.ndarray) -> None:
  """Writes `picture` [H, W, 3] uint8."""
  path.write_bytes(png_bytes(picture))


def data_uri(content: bytes, kind: str) -> str:
  """`data:image/<kind>;base64,...`, for a page without external files."""
  return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
