"""Speed and memory of the two sources of training windows: frames on the device, and streamed from disk.

python benchmarks/data.py --frames=512000 --folder=FOLDER
python benchmarks/data.py --convert=task_D_D --copies=100   # only conversion, of a dataset in CALVIN's format
"""

from __future__ import annotations

import argparse
import concurrent.futures
import multiprocessing
import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from wam_jax.data import calvin, calvin_writer, convert, frames_cache, stream, windows
from wam_jax.data.files import IDS_FILE, read_npz
from wam_jax.data.frames import frame_path, vector_keys
from wam_jax.data.frames_cache import FrameCache
from wam_jax.embodiment import CALVIN, CAMERAS

SIZE = 64
EPISODE = 512


def peak_bytes() -> int:
  """Largest resident memory of this process. Not ru_maxrss, which a child takes over from its parent."""
  return 1024 * int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def random_frames(n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
  """n frames of noise in CALVIN's keys."""
  action = rng.uniform(-1, 1, (n, 7))
  action[:, 6] = rng.choice([-1.0, 1.0], n)
  pictures = {key: rng.integers(0, 256, (n, SIZE, SIZE, 3), np.uint8) for key in CAMERAS}
  states = {"robot_obs": rng.normal(size=(n, 15)), "scene_obs": rng.normal(size=(n, 24))}
  return {"actions": rng.normal(size=(n, 7)), "rel_actions": action, **states, **pictures}


def write_split(folder: pathlib.Path, frames: int) -> None:
  """A split of our own files, one per frame."""
  rng = np.random.default_rng(0)
  with calvin_writer.FrameWriter(folder) as writer:
    for begin in range(0, frames, EPISODE):
      writer.write(**random_frames(min(EPISODE, frames - begin), rng))
    lengths = [min(EPISODE, frames - begin) for begin in range(0, frames, EPISODE)]
    writer.commit(lengths, [("open_drawer", 0, 2)], "noise")


def write_cache(path: pathlib.Path, frames: int) -> None:
  """The files of a cache, without the split that it would be made from."""
  rng = np.random.default_rng(0)
  path.mkdir(parents=True)
  block = rng.integers(0, 256, (1024, SIZE, SIZE, 3), np.uint8)
  for key in CAMERAS:
    with open(path / f"{key}.npy", "wb") as file:
      header = {"descr": "|u1", "fortran_order": False, "shape": (frames, SIZE, SIZE, 3)}
      np.lib.format.write_array_header_1_0(file, header)
      for begin in range(0, frames, len(block)):
        file.write(np.roll(block, begin // len(block), 0)[: frames - begin].data)
  starts = np.arange(0, frames, EPISODE)
  np.savez(
    path / "vectors.npz",
    action=rng.uniform(-1, 1, (frames, 7)).astype(np.float32),
    robot_obs=rng.normal(size=(frames, 15)).astype(np.float32),
    scene_obs=rng.normal(size=(frames, 24)).astype(np.float32),
    starts=starts,
    ends=np.minimum(starts + EPISODE, frames),
    ids=np.arange(frames),
  )


def open_cache(path: pathlib.Path) -> FrameCache:
  """A cache of `write_cache`."""
  with np.load(path / "vectors.npz") as vectors:
    return FrameCache(path=path, image_size=SIZE, **vectors)


def read_split(folder: pathlib.Path, size: int) -> dict[str, float]:
  """Reads a split into memory and puts it on the device."""
  before, cpu = peak_bytes(), time.process_time()
  frames = calvin.read_frames(folder, size)
  cpu = time.process_time() - cpu
  arrays = [*frames.pictures.values(), frames.action, frames.robot_obs, frames.scene_obs]
  data = sum(array.nbytes for array in arrays if array is not None)
  jax.block_until_ready(windows.make_store(frames))
  return {"frames_per_cpu_second": frames.num_frames / cpu, "data": data, "grown": peak_bytes() - before}


def make_cache(folder: pathlib.Path, root: pathlib.Path, size: int) -> dict[str, float]:
  """Makes the cache of a split, and looks whether it is up to date afterwards."""
  before, cpu = peak_bytes(), time.process_time()
  num = frames_cache.open_cache(root, folder, size).num_frames
  cpu, again = time.process_time() - cpu, time.perf_counter()
  frames_cache.open_cache(root, folder, size)
  again = time.perf_counter() - again
  return {"frames_per_cpu_second": num / cpu, "again": num / again, "grown": peak_bytes() - before}


def write_copies(root: pathlib.Path, folder: pathlib.Path, copies: int) -> None:
  """A dataset whose splits are those of `root` many times over, as links to their files."""
  first = 0
  for split in ("training", "validation"):
    spans = calvin.read_episode_ids(root / split)
    lengths = spans[:, 1] - spans[:, 0] + 1
    (folder / split / "lang_annotations").mkdir(parents=True)
    task, low, high = calvin.read_raw_annotations(root / split)[0]
    ids = np.concatenate([np.arange(a, b + 1) for a, b in spans])
    links = [frame_path(root / split, i).resolve() for i in ids]
    for number in range(copies * len(ids)):
      frame_path(folder / split, first + number).symlink_to(links[number % len(ids)])
    ends = first + np.cumsum(np.tile(lengths, copies))
    np.save(folder / split / IDS_FILE, np.stack([ends - np.tile(lengths, copies), ends - 1], 1))
    shift = first + int(np.searchsorted(ids, low)) - low
    content = {"language": {"task": [task], "ann": [task]}, "info": {"indx": [(low + shift, high + shift)]}}
    calvin_writer.save_pickled(folder / split / calvin.ANNOTATION_FILE, content)
    first += copies * len(ids)


def convert_dataset(root: pathlib.Path, out: pathlib.Path, size: int) -> dict[str, float]:
  """Converts a dataset."""
  before, cpu, wall = peak_bytes(), time.process_time(), time.perf_counter()
  manifest = convert.convert(root, out, image_size=size, log=lambda text: None)
  cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
  frames = sum(split["frames"] for split in manifest["splits"].values())
  return {"frames": frames, "cpu": frames / cpu, "wall": frames / wall, "grown": peak_bytes() - before}


def read_converted(folder: pathlib.Path, size: int) -> dict[str, float]:
  """Reads a converted split into memory, the second time, from the page cache."""
  calvin.read_frames(folder, size)
  cpu, wall = time.process_time(), time.perf_counter()
  num = calvin.read_frames(folder, size).num_frames
  return {"cpu": num / (time.process_time() - cpu), "wall": num / (time.perf_counter() - wall)}


def decompress(root: pathlib.Path) -> dict[str, float]:
  """Reads all that a frame needs of its file, and nothing more: the bound of a conversion."""
  ids = [i for low, high in calvin.read_episode_ids(root / "training") for i in range(low, high + 1)][:2000]
  cpu = time.process_time()
  for frame_id in ids:
    read_npz(
      frame_path(root / "training", frame_id), (*vector_keys(CALVIN, ()), "scene_obs", "actions", *CAMERAS)
    )
  return {"cpu": len(ids) / (time.process_time() - cpu)}


def fresh_starts(num_frames: int, batch: int, length: int) -> stream.Starts:
  """Uniform windows, as training draws them."""
  key_of = lambda step: jax.random.fold_in(jax.random.key(0), step)
  return stream.starts_on_host(windows.Sampler(num_frames, batch, length), key_of)


def device(path: pathlib.Path, batch: int, length: int, updates: int) -> dict[str, float]:
  """Loads a cache onto the device and gathers windows there."""
  before, begin = peak_bytes(), time.perf_counter()
  store = windows.make_store(open_cache(path).load())
  jax.block_until_ready(store)
  loading, loaded = time.perf_counter() - begin, peak_bytes() - before
  gather = jax.jit(windows.gather, static_argnums=2)
  starts = fresh_starts(store.action.shape[0], batch, length)
  jax.block_until_ready(gather(store, starts(0), length))
  begin = time.perf_counter()
  for update in range(updates):
    jax.block_until_ready(gather(store, starts(update), length))
  spent = (time.perf_counter() - begin) / updates
  data = sum(x.nbytes for x in jax.tree.leaves(store))
  return {
    "loading": loading,
    "loaded": loaded,
    "sampling": spent,
    "data": data,
    "grown": peak_bytes() - before,
  }


def streamed(path: pathlib.Path, batch: int, length: int, updates: int, pause: float) -> dict[str, float]:
  """Streams windows to a consumer that takes `pause` seconds for an update.

  Returns:
    Seconds waited per update, CPU-seconds per update, growth of the resident memory.
  """
  before = peak_bytes()
  cache = open_cache(path)
  starts = fresh_starts(cache.num_frames, batch, length)
  waited = 0.0
  with stream.WindowStream(cache, starts, length, first_update=0, total=updates, per_call=2) as source:
    cpu = time.process_time()
    for _ in range(updates // 2):
      begin = time.perf_counter()
      for piece in source.take(2):
        jax.block_until_ready(piece)
        waited += time.perf_counter() - begin
        time.sleep(pause * len(piece.action))
        begin = time.perf_counter()
    cpu = time.process_time() - cpu
  return {"waited": waited / updates, "cpu": cpu / updates, "grown": peak_bytes() - before}


def alone(function: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
  """Runs a measurement in a process of its own, for its memory."""
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
    pool.submit(_warm).result()
    return pool.submit(function, *arguments).result()


def _warm() -> None:
  import grain.python  # noqa: F401

  jax.block_until_ready(jax.jit(lambda x: x + 1)(jax.numpy.zeros(1)))


def main() -> None:
  """Prints everything."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--files", type=int, default=8000, help="frames of the split, one file each; 0: none")
  parser.add_argument("--frames", type=int, default=40_000, help="frames of the cache; 0: none")
  parser.add_argument("--batch", type=int, default=50, help="windows of an update")
  parser.add_argument("--length", type=int, default=50, help="frames of a window")
  parser.add_argument("--updates", type=int, default=100, help="updates to sample for")
  parser.add_argument("--pause", type=float, default=0.25, help="seconds that an update takes")
  parser.add_argument("--split", type=pathlib.Path, help="an existing split instead of one of noise")
  parser.add_argument("--folder", type=pathlib.Path, help="where temporary files go")
  parser.add_argument("--convert", type=pathlib.Path, help="a dataset to convert, instead of all else")
  parser.add_argument("--copies", type=int, default=1, help="how often to repeat it before")
  arguments = parser.parse_args()
  shape = (arguments.batch, arguments.length, arguments.updates)
  per_update = arguments.batch * arguments.length
  mb = lambda value: f"{value / 1e6:,.0f} MB"
  with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
    folder = pathlib.Path(name)
    if arguments.convert:
      write_copies(arguments.convert, folder / "many", arguments.copies)
      bound = alone(decompress, folder / "many")
      got = alone(read_split, folder / "many/training", SIZE)
      print(f"files to memory      {got['frames_per_cpu_second']:8,.0f} frames per CPU-second; ", end="")
      print(f"unpacking alone {bound['cpu']:,.0f}")
      got = alone(convert_dataset, folder / "many", folder / "out", SIZE)
      print(
        f"conversion           {got['cpu']:8,.0f} frames per CPU-second, {got['wall']:,.0f} per second, ",
        end="",
      )
      print(f"of {got['frames']:,} frames, memory {mb(got['grown'])}")
      got = alone(read_converted, folder / "out/training", SIZE)
      print(f"converted to memory  {got['wall']:8,.0f} frames per second, {got['cpu']:,.0f} per CPU-second")
      return
    if arguments.files or arguments.split:
      split = arguments.split or folder / "training"
      if not arguments.split:
        write_split(split, arguments.files)
      got = alone(read_split, split, SIZE)
      speed = got["frames_per_cpu_second"]
      print(f"files to memory      {speed:8,.0f} frames per CPU-second, ", end="")
      print(f"memory {mb(got['grown'])} for {mb(got['data'])} of frames")
      print(f"windows from files   {per_update / speed:8.3f} CPU-s per update at this speed")
      got = alone(make_cache, split, folder / "cache", SIZE)
      print(f"files to cache       {got['frames_per_cpu_second']:8,.0f} frames per CPU-second, ", end="")
      print(f"memory {mb(got['grown'])}")
      print(f"is it up to date     {got['again']:8,.0f} frames per second")
    if arguments.frames:
      write_cache(folder / "noise", arguments.frames)
      for pause in (0.0, arguments.pause):
        got = alone(streamed, folder / "noise", *shape, pause)
        total = got["waited"] + pause
        print(f"streamed             {per_update / total:8,.0f} frames per second, ", end="")
        print(f"waiting {got['waited'] / total:.1%} of {1000 * total:.0f} ms per update, ", end="")
        print(f"{1000 * got['cpu']:.0f} CPU-ms per update, memory {mb(got['grown'])}")
      got = alone(device, folder / "noise", *shape)
      print(f"on the device        {per_update / got['sampling']:8,.0f} frames per second, ", end="")
      share = got["sampling"] / (got["sampling"] + arguments.pause)
      print(f"sampling {share:.1%} of an update with {1000 * arguments.pause:.0f} ms of training, ", end="")
      print(f"memory {mb(got['grown'])}")
      print(f"loading it           {got['loading']:8.1f} s, ", end="")
      print(f"memory {mb(got['loaded'])} for {mb(got['data'])} of frames")


if __name__ == "__main__":
  main()
