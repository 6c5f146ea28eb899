"""A LeRobot dataset written by hand, in each of the layouts that the package has had, and its faults."""

from __future__ import annotations

import io
import json
from fractions import Fraction

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from PIL import Image

FPS = 10
LENGTHS = (9, 7, 8, 6)
TASKS = ("Stack the cups.", "play")
OF_EPISODE = (0, 1, 0, 1)  # their tasks
DONE_FROM = 5  # frames of a demo until it succeeds
SIZE = {"front": (24, 32), "wrist": (16, 16)}
NAMES = ["shoulder", "elbow", "grip"]


def picture(camera, number, frame):
  """[H, W, 3] uint8: grey that says which frame it is, half of it brighter."""
  grey = np.full((*SIZE[camera], 3), 20 + 40 * number + 4 * frame, np.uint8)
  grey[: SIZE[camera][0] // 2] += 30
  return grey


def film(path, pictures, numbers=None, **options):
  """Writes pictures as a video; `numbers` of their times in frames, 0, 1, ... where not given."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with av.open(str(path), "w") as container:
    stream = container.add_stream("libx264", rate=FPS, options={"crf": "1", **options})
    stream.height, stream.width, stream.pix_fmt = *pictures[0].shape[:2], "yuv420p"
    for number, picture in zip(numbers or range(len(pictures)), pictures, strict=True):
      frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
      frame.pts, frame.time_base = number, Fraction(1, FPS)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


def png(frame):
  buffer = io.BytesIO()
  Image.fromarray(frame).save(buffer, "png")
  return {"bytes": buffer.getvalue(), "path": None}


def columns(seed=0):
  """Column of the frames -> array [N, ...]."""
  rng, total = np.random.default_rng(seed), sum(LENGTHS)
  frame = np.concatenate([np.arange(length) for length in LENGTHS])
  episode = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
  task = np.take(OF_EPISODE, episode)
  return {
    "action": rng.uniform(-50, 90, (total, 3)).astype(np.float32),
    "observation.state": rng.normal(3, 2, (total, 2)).astype(np.float32),
    "next.success": (task == 0) & (frame >= DONE_FROM),
    "timestamp": (frame / FPS).astype(np.float32),
    "frame_index": frame,
    "episode_index": episode,
    "index": np.arange(total),
    "task_index": task,
  }


def statistics(array):
  array = np.asarray(array, float).reshape(len(array), -1)
  rows = {"min": array.min(0), "max": array.max(0), "mean": array.mean(0), "std": array.std(0)}
  return {name: row.tolist() for name, row in rows.items()} | {"count": [len(array)]}


def table(rows, pictures=None, fixed=True):
  """Rows as a table of pyarrow, vectors as lists of fixed or free size, pictures as files in its cells."""
  arrays = {}
  for key, array in rows.items():
    if array.ndim == 1:
      arrays[key] = pa.array(array)
    else:
      kind = pa.list_(pa.float32(), array.shape[1] if fixed else -1)
      arrays[key] = pa.array(array.tolist(), kind)
  for key, cells in (pictures or {}).items():
    arrays[key] = pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
  return pa.table(arrays)


def features(kind):
  numbers = lambda size, names: {"dtype": "float32", "shape": [size], "names": names}
  single = lambda dtype: {"dtype": dtype, "shape": [1], "names": None}
  out = {"action": numbers(3, NAMES), "observation.state": numbers(2, {"motors": ["a", "b"]})}
  out["next.success"] = single("bool")
  for name, size in SIZE.items():
    names = ["height", "width", "channels"]
    out[f"observation.images.{name}"] = {"dtype": kind, "shape": [*size, 3], "names": names}
  out |= {"timestamp": single("float32")}
  return out | {key: single("int64") for key in ("frame_index", "episode_index", "index", "task_index")}


def cut(rows, number):
  return {key: array[rows["episode_index"] == number] for key, array in rows.items()}


def write(root, layout="v3", rows=None, **film_options):
  """Writes the dataset as `layout`.

  v3: tables of fixed lists, two files of two episodes each; a film a camera and file, every third picture of
  which is readable by itself. v3_images: one table with a group of rows an episode, pictures in its cells.
  v2.1: a table and a film for each episode, lists of free size.
  """
  rows = columns() if rows is None else rows
  kind = "image" if layout == "v3_images" else "video"
  (root / "meta").mkdir(parents=True)
  info = {
    "codebase_version": "v2.1" if layout == "v2.1" else "v3.0",
    "total_episodes": len(LENGTHS),
    "total_frames": sum(LENGTHS),
    "chunks_size": 3,
    "fps": FPS,
    "splits": {"train": f"0:{len(LENGTHS)}"},
    "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    "features": features(kind),
  }
  films = {f"observation.images.{name}": name for name in SIZE}
  options = {"g": "3", **film_options}
  shown = lambda name, number: [picture(name, number, i) for i in range(LENGTHS[number])]
  if layout == "v2.1":
    info["data_path"] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    info["video_path"] = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    for number in range(len(LENGTHS)):
      place = {"episode_chunk": number // 3, "episode_index": number}
      path = root / info["data_path"].format(**place)
      path.parent.mkdir(parents=True, exist_ok=True)
      parquet.write_table(table(cut(rows, number), fixed=False), path)
      for key, name in films.items():
        film(root / info["video_path"].format(video_key=key, **place), shown(name, number), **options)
    lines = {
      "episodes": [
        {"episode_index": i, "tasks": [TASKS[OF_EPISODE[i]]], "length": n} for i, n in enumerate(LENGTHS)
      ],
      "tasks": [{"task_index": i, "task": text} for i, text in enumerate(TASKS)],
      "episodes_stats": [
        {
          "episode_index": i,
          "stats": {key: statistics(cut(rows, i)[key]) for key in ("action", "observation.state")},
        }
        for i in range(len(LENGTHS))
      ],
    }
    for name, items in lines.items():
      (root / f"meta/{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
  else:
    files = [(0, 1), (2, 3)] if layout == "v3" else [(0, 1, 2, 3)]
    episodes = []
    for number, part in enumerate(files):
      path = root / info["data_path"].format(chunk_index=0, file_index=number)
      path.parent.mkdir(parents=True, exist_ok=True)
      pictures = lambda i: {key: list(map(png, shown(name, i))) for key, name in films.items()}
      tables = [table(cut(rows, i), pictures(i) if kind == "image" else None) for i in part]
      with parquet.ParquetWriter(path, tables[0].schema) as writer:
        for piece in tables:
          writer.write_table(piece)
      begin = 0.0
      for i in part:
        row = {"episode_index": i, "tasks": [TASKS[OF_EPISODE[i]]], "length": LENGTHS[i]}
        row |= {"data/chunk_index": 0, "data/file_index": number}
        for key in films if kind == "video" else ():
          row |= {f"videos/{key}/chunk_index": 0, f"videos/{key}/file_index": number}
          row |= {f"videos/{key}/from_timestamp": begin}
        begin += LENGTHS[i] / FPS
        episodes.append(row)
      for key, name in films.items() if kind == "video" else ():
        path = root / info["video_path"].format(video_key=key, chunk_index=0, file_index=number)
        film(path, [frame for i in part for frame in shown(name, i)], **options)
    (root / "meta/episodes/chunk-000").mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist(episodes), root / "meta/episodes/chunk-000/file-000.parquet")
    tasks = pa.table({"task_index": range(len(TASKS)), "__index_level_0__": list(TASKS)})
    parquet.write_table(tasks, root / "meta/tasks.parquet")
    stats = {key: statistics(rows[key]) for key in ("action", "observation.state")}
    (root / "meta/stats.json").write_text(json.dumps(stats))
  (root / "meta/info.json").write_text(json.dumps(info, indent=2))
  return root


def change(path, edit):
  """Lets `edit` change what a JSON file, or the columns of a table, hold."""
  if path.suffix == ".json":
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    return
  content = parquet.read_table(path).to_pylist()
  edit(content)
  parquet.write_table(pa.Table.from_pylist(content), path)
