"""Converts a dataset in CALVIN's or LeRobot's format to a TFDS dataset that is read many times as fast.

python -m wam_jax.data.convert --source=task_D_D --out=task_D_D_64
python -m wam_jax.data.convert --source=task_D_D --out=task_D_D_64 --skip_broken  # leave broken frames out
python -m wam_jax.data.convert --source=my_lerobot_dataset --tasks=stack_cups --out=cups_64
python -m wam_jax.data.convert --source=task_D_D --out=task_D_D_lerobot --to=lerobot  # the way back

An interrupted conversion goes on where it was when the same command is given again. `--out` appears only when
everything is written and has been read back; then it can be given wherever a CALVIN folder can.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import json
import os
import pathlib
import shutil
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from wam_jax.data import calvin, converted, lerobot
from wam_jax.data.calvin_writer import annotation_content, save_pickled
from wam_jax.data.examples import Chunk, SplitPlan, plan_split
from wam_jax.data.files import DatasetError, PathLike, load_pickled
from wam_jax.data.frames import ProgressFactory, check_same_keys, num_workers
from wam_jax.data.lerobot_writer import write_lerobot
from wam_jax.embodiment import CALVIN, FILE, Embodiment
from wam_jax.host import console, machine
from wam_jax.host.dataset_files import foreign, only_writer, read_json
from wam_jax.host.lerobot_info import is_lerobot
from wam_jax.host.machine import disk_full
from wam_jax.host.regular_files import check_file, read_text
from wam_jax.storage import checksums

SHARD_EXAMPLES = 64  # 100 MB of pictures at 64 x 64; what an interruption can cost
_LISTED = 20  # broken frames that the summary names
_SETTINGS, _LOCK, _SHARDS = "settings.json", ".lock", "shards"
_FIRST = {_LOCK, f"{_SETTINGS}.tmp"}  # what is made before the settings
_OTHER_OUT = "choose another --out."
_AGAIN = "give the same command again."


# ---------------------------------------------------------------------------------------------
# Writing.


def convert(
  source: PathLike,
  out: PathLike,
  *,
  image_size: int = 64,
  skip_broken: bool = False,
  selection: lerobot.Selection | None = None,
  workers: int = 0,
  progress: ProgressFactory | None = None,
  log: Callable[[str], None] = print,
) -> dict[str, Any]:
  """Converts all splits of a dataset, or goes on with an interrupted conversion.

  Args:
    source: folder that holds training/ and validation/, perhaps failed/; or a LeRobot dataset.
    out: folder to be made; until everything is written and read back it is `out`.partial.
    image_size: side that pictures are shrunk to, by area averaging [pixels].
    skip_broken: leave out frames that are missing or cannot be read, and the annotated windows that hold
      one; without it the first of them is an error.
    selection: what the episodes of LeRobot datasets are; needed for them.
    workers: threads; 0 means one per core.
    progress: as in `calvin.read_frames`.
    log: called with lines of text.

  Returns:
    Manifest of the conversion (`convert.json`).

  Raises:
    DatasetError: the source breaks a rule, `out` or what is left of a conversion with other settings is in
      the way, another process is converting to it, the disk has no room, or what was written cannot be
      read back.
  """
  source, out = pathlib.Path(source).resolve(), pathlib.Path(os.path.abspath(out))
  if selection is not None:
    plans = lerobot.plan_splits(lerobot.open_data(selection), selection, image_size, skip_broken)
  else:
    calvin.check_root(source)
    if os.path.lexists(source / converted.MANIFEST):
      raise DatasetError(source, "is converted already.", fix="use it as it is.")
    folders = [source / name for name in converted.TFDS_SPLITS if (source / name).is_dir()]
    plans = {folder.name: plan_split(folder, image_size, skip_broken) for folder in folders}
  check_same_keys({plan.folder: plan.vector_keys for plan in plans.values()})
  robot = _first(plans).reader.embodiment
  settings = {
    "version": converted.VERSION,
    "source": str(source),
    "image_size": image_size,
    "skip_broken": skip_broken,
    "files": {name: plan.reader.signature() for name, plan in plans.items()},
  }
  if robot != CALVIN:
    settings["embodiment"] = robot.to_dict()
  if selection is not None:
    paths = [str(pathlib.Path(path).resolve()) for path in selection.path]
    settings["selection"] = json.loads(json.dumps(dataclasses.asdict(selection) | {"path": paths}))
  if os.path.lexists(out):
    return _already_there(out, settings)
  partial = out.with_name(f"{out.name}.partial")
  try:
    _check_own(partial)
    with only_writer(partial, _LOCK, log):
      _begin(partial, settings)
      _check_room(partial, plans)
      shards = {
        name: _write_split(partial, plan, num_workers(workers), progress) for name, plan in plans.items()
      }
      manifest = _finish(partial, settings, plans, shards, num_workers(workers), progress)
      shutil.rmtree(partial / _SHARDS)
      for name in (_SETTINGS, _LOCK):
        (partial / name).unlink()
      os.rename(partial, out)
  except OSError as error:
    raise _disk_error(partial, error) from None
  log(f"{out}: {format_summary(manifest)}")
  return manifest


def _first(plans: dict[str, SplitPlan]) -> SplitPlan:
  """Whose robot and keys are those of all."""
  return next(iter(plans.values()))


def _already_there(out: pathlib.Path, settings: dict[str, Any]) -> dict[str, Any]:
  if os.path.lexists(out / converted.MANIFEST):
    manifest = converted.read_manifest(out)
    if manifest.get("settings") == settings:
      return manifest
    raise DatasetError(out, "holds a conversion of other data or with other settings.", fix=_OTHER_OUT)
  raise DatasetError(out, "is there already, and is no converted dataset.", fix=_OTHER_OUT)


def _check_own(partial: pathlib.Path) -> None:
  """Raises DatasetError if something else than an unfinished conversion is there. Writes nothing."""
  if not os.path.lexists(partial):
    return
  stopped_at_once = partial.is_dir() and set(os.listdir(partial)) <= _FIRST
  if not stopped_at_once and not _read_settings(partial):
    raise foreign(partial)


def _read_settings(partial: pathlib.Path) -> dict[str, Any]:
  """Settings of an unfinished conversion; empty if there are none."""
  try:
    content = read_json(partial / _SETTINGS)
  except DatasetError:
    return {}
  return content if {"version", "source", "image_size", "skip_broken", "files"} <= set(content) else {}


def _begin(partial: pathlib.Path, settings: dict[str, Any]) -> None:
  """Makes the folders, or sees that what is there was begun in the same way."""
  begun = _read_settings(partial)
  other = [key for key in settings if begun.get(key) != settings[key]]
  if begun and other:
    raise DatasetError(
      partial,
      f"was begun with another {', '.join(other)}.",
      fix="delete this folder to begin again, or choose another --out.",
    )
  (partial / converted.TFDS_FOLDER).mkdir(parents=True, exist_ok=True)
  (partial / _SHARDS).mkdir(exist_ok=True)
  checksums.write_json(partial / _SETTINGS, settings)


def _frame_bytes(plan: SplitPlan) -> int:
  numbers = sum(1 if width is None else width for width in plan.vector_keys.values())
  return len(plan.reader.embodiment.cameras) * 3 * plan.image_size**2 + 8 * (numbers + 1)


def _check_room(partial: pathlib.Path, plans: dict[str, SplitPlan]) -> None:
  frames = sum(last - first + 1 for plan in plans.values() for _, first, last in plan.chunks)
  there = sum(file.stat().st_size for file in (partial / converted.TFDS_FOLDER).iterdir())
  needed = int(1.01 * frames * _frame_bytes(_first(plans))) + 2**20 - there
  free = shutil.disk_usage(partial).free
  if free < needed:
    raise DatasetError(
      partial,
      f"no room: {needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free.",
      fix="make room, or choose an --out on another disk; what is written already is kept.",
    )


def _disk_error(partial: pathlib.Path, error: OSError) -> DatasetError:
  if disk_full(error):
    rule, what = "no room left on the disk.", "make room"
  else:
    rule, what = f"cannot be written ({error.strerror or error}).", "mend that, or choose another --out,"
  fix = f"{what} and give the same command again: it goes on where it was."
  return DatasetError(error.filename or partial, rule, fix=fix)


def _checksum(examples: Iterable[dict[str, Any]], cameras: Sequence[str]) -> int:
  """CRC-32 of the content of examples, with the pictures of these cameras."""
  crc = 0
  for example in examples:
    # In this order since the first version; scene_obs, actions and success where there are any.
    vectors = [
      key for key in ("rel_actions", "robot_obs", "scene_obs", "actions", "success") if key in example
    ]
    for key in (*cameras, *vectors, "frame_id"):
      crc = zlib.crc32(np.ascontiguousarray(example[key]).view(np.uint8).data, crc)
  return crc


@functools.cache
def _serializer(robot: Embodiment, vectors: tuple[str, ...]) -> Callable[[dict[str, Any]], bytes]:
  from tensorflow_datasets.core.example_serializer import ExampleSerializer

  features = converted.example_features(robot, vectors)
  serializer = ExampleSerializer(features.get_serialized_info())
  return lambda example: serializer.serialize_example(
    features.encode_example({key: example[key] for key in features})
  )


def _write_split(
  partial: pathlib.Path, plan: SplitPlan, workers: int, progress: ProgressFactory | None
) -> list[dict[str, Any]]:
  """Writes the shards that are not there yet; what is known of each, in order."""
  name = plan.folder.name
  parts = [plan.chunks[i : i + SHARD_EXAMPLES] for i in range(0, len(plan.chunks), SHARD_EXAMPLES)]
  total = sum(last - first + 1 for _, first, last in plan.chunks)
  out = []
  bar = progress(total, f"converting {name}") if progress else contextlib.nullcontext()
  with bar as shown, ThreadPoolExecutor(workers) as pool:
    for number, part in enumerate(parts):
      split = converted.TFDS_SPLITS[name]
      file = f"calvin_play-{split}.array_record-{number:05d}-of-{len(parts):05d}"
      about = partial / _SHARDS / f"{file}.json"
      path = partial / converted.TFDS_FOLDER / file
      done = _read_shard_facts(about, path)
      if done is None:
        done = _write_shard(path, plan, part, pool)
        checksums.write_json(about, done)
      out.append(done)
      if shown is not None:
        shown.update(sum(last - first + 1 for _, first, last in part))
  return out


def _read_shard_facts(about: pathlib.Path, path: pathlib.Path) -> dict[str, Any] | None:
  """What was written down of a finished shard; None if it must be written (again)."""
  try:
    facts: dict[str, Any] = json.loads(read_text(about))
    return facts if path.stat().st_size == facts["bytes"] else None
  except (OSError, ValueError, KeyError, TypeError, RecursionError):
    return None


def _write_shard(
  path: pathlib.Path, plan: SplitPlan, chunks: Sequence[Chunk], pool: ThreadPoolExecutor
) -> dict[str, Any]:
  from array_record.python.array_record_module import ArrayRecordWriter

  broken: list[tuple[int, str]] = []
  spans, crc = [], 0
  beside = path.with_name(f".{path.name}.tmp")
  beside.unlink(missing_ok=True)
  robot = plan.reader.embodiment
  serialize = _serializer(robot, tuple(plan.vector_keys))
  writer = ArrayRecordWriter(str(beside), "group_size:1,uncompressed")
  futures = [pool.submit(plan.load, chunk, lambda i, rule: broken.append((i, rule))) for chunk in chunks]
  try:
    for future in futures:
      for example in future.result():
        writer.write(serialize(example))
        crc = zlib.crc32(_checksum([example], robot.camera_names).to_bytes(4, "little"), crc)
        spans.append([int(example["frame_id"][0]), int(example["frame_id"][-1])])
    writer.close()
  except BaseException as error:
    for future in futures:
      future.cancel()
    with contextlib.suppress(Exception):
      writer.close()
    beside.unlink(missing_ok=True)
    if isinstance(error, RuntimeError | ValueError) and not isinstance(error, DatasetError):
      raise OSError(_errno_of(str(error), path), str(error)) from None  # array_record's words for a full disk
    raise
  with open(beside, "rb") as file:
    os.fsync(file.fileno())
  os.replace(beside, path)
  return {
    "file": path.name,
    "examples": len(spans),
    "bytes": path.stat().st_size,
    "crc32": crc,
    "spans": spans,
    "broken": sorted(broken),
  }


def _errno_of(text: str, path: pathlib.Path) -> int:
  full = "space" in text.lower() or shutil.disk_usage(path.parent).free < 2**20
  return errno.ENOSPC if full else errno.EIO


def _finish(
  partial: pathlib.Path,
  settings: dict[str, Any],
  plans: dict[str, SplitPlan],
  shards: dict[str, list[dict[str, Any]]],
  workers: int,
  progress: ProgressFactory | None,
) -> dict[str, Any]:
  """Writes all that is no frame, and reads everything back."""
  manifest: dict[str, Any] = {
    "version": converted.VERSION,
    "image_size": settings["image_size"],
    "vectors": list(_first(plans).vector_keys),
    "settings": settings,
    "splits": {},
  }
  for name, plan in plans.items():
    folder = partial / name
    folder.mkdir(exist_ok=True)
    table = np.array([span for shard in shards[name] for span in shard["spans"]], np.int64).reshape(-1, 2)
    if not len(table):
      broken_id, rule = min(tuple(b) for shard in shards[name] for b in shard["broken"])
      raise DatasetError(
        plan.folder,
        f"none of its frames can be read; of frame {broken_id}: {rule}",
        fix="repair the data; if only the first frame has pictures of another size, remove it.",
      )
    np.save(folder / converted.EXAMPLES, table)
    spans = _join(table, plan.spans)
    np.save(folder / calvin.IDS_FILE, spans)
    np.save(folder / "ep_lens.npy", spans[:, 1] - spans[:, 0] + 1)
    windows = _write_annotations(plan, folder, spans)
    for extra in (calvin.START_STATES_FILE, "scene_info.npy", "statistics.yaml"):
      if os.path.lexists(plan.folder / extra):
        check_file(plan.folder / extra)
        shutil.copyfile(plan.folder / extra, folder / extra)
    broken = [(i, "missing") for i in plan.missing] + [tuple(b) for s in shards[name] for b in s["broken"]]
    manifest["splits"][name] = {
      "frames": int((spans[:, 1] - spans[:, 0] + 1).sum()),
      "episodes": len(spans),
      "windows": windows,
      "skipped": {
        "frames": len(broken),
        "windows": len(plan.windows) - windows,
        "listed": sorted(broken)[:_LISTED],
      },
      "shards": [
        {key: shard[key] for key in ("file", "examples", "bytes", "crc32")} for shard in shards[name]
      ],
    }
  robot, vectors = _first(plans).reader.embodiment, tuple(_first(plans).vector_keys)
  if robot != CALVIN:
    checksums.write_text(partial / FILE, robot.to_json())
  features = functools.partial(converted.example_features, robot, vectors)
  _write_tfds(partial, manifest, features())
  checksums.write_json(partial / converted.MANIFEST, manifest)
  try:
    _verify(partial, manifest, robot, features, workers, progress)
  except DatasetError:
    (partial / converted.MANIFEST).unlink()
    raise
  return manifest


def _join(table: np.ndarray, episodes: np.ndarray) -> np.ndarray:
  """Spans of examples as [E, 2] spans of episodes: joined where one follows the other in an episode."""
  new = np.ones(len(table), bool)
  if len(table) > 1:
    same = np.searchsorted(episodes[:, 0], table[1:, 0], "right") == np.searchsorted(
      episodes[:, 0], table[:-1, 0], "right"
    )
    new[1:] = (table[1:, 0] != table[:-1, 1] + 1) | ~same
  first = np.flatnonzero(new)
  return np.stack([table[first, 0], table[[*(first[1:] - 1), -1], 1]], 1)


def _write_annotations(plan: SplitPlan, folder: pathlib.Path, spans: np.ndarray) -> int:
  """Copies the annotated windows that lie in one episode still, if there are any. Returns how many."""
  if not plan.windows:
    return 0
  file = calvin.annotation_file(plan.folder)
  content = load_pickled(file) if os.path.lexists(file) else annotation_content(plan.windows, plan.texts)
  kept = []
  for row, (_, low, high) in enumerate(plan.windows):
    episode = int(np.searchsorted(spans[:, 0], low, side="right")) - 1
    if episode >= 0 and high - 1 <= spans[episode, 1]:
      kept.append(row)
  if not kept:
    raise DatasetError(plan.folder, "no annotated window is without a broken frame.", fix="repair the data.")
  language: dict[str, Any] = {"task": [plan.windows[row][0] for row in kept]}
  for key, values in content["language"].items():  # what has no value for each window is left out
    if isinstance(values, np.ndarray) and values.shape[:1] == (len(plan.windows),):
      language[key] = values[kept]
    elif isinstance(values, list | tuple) and len(values) == len(plan.windows):
      language[key] = [values[row] for row in kept]
  info = {**content["info"], "indx": [plan.windows[row][1:] for row in kept]}
  path = folder / calvin.ANNOTATION_FILE
  path.parent.mkdir(exist_ok=True)
  save_pickled(path, {**content, "language": language, "info": info})
  return len(kept)


def _write_tfds(partial: pathlib.Path, manifest: dict[str, Any], features: Any) -> None:
  """features.json and dataset_info.json."""
  import tensorflow_datasets as tfds

  from wam_jax.data import tfds_builder

  folder = partial / converted.TFDS_FOLDER
  infos = [
    tfds.core.SplitInfo(
      name=converted.TFDS_SPLITS[name],
      shard_lengths=[shard["examples"] for shard in split["shards"]],
      num_bytes=sum(shard["bytes"] for shard in split["shards"]),
      filename_template=tfds.core.ShardedFileTemplate(
        data_dir=folder,
        dataset_name="calvin_play",
        split=converted.TFDS_SPLITS[name],
        filetype_suffix="array_record",
      ),
    )
    for name, split in manifest["splits"].items()
  ]
  tfds.folder_dataset.write_metadata(
    data_dir=folder,
    features=features,
    split_infos=infos,
    version="1.0.0",
    check_data=False,  # would need TensorFlow; _verify does more
    description=tfds_builder.DESCRIPTION,
    homepage=tfds_builder.HOMEPAGE,
    citation=tfds_builder.CITATION,
  )


def _verify(
  partial: pathlib.Path,
  manifest: dict[str, Any],
  robot: Embodiment,
  features: Callable[[], Any],
  workers: int,
  progress: ProgressFactory | None,
) -> None:
  """Reads every example back and compares checksums and the number of frames."""
  for name, split in manifest["splits"].items():
    bar = progress(split["frames"], f"verifying {name}") if progress else contextlib.nullcontext()
    with bar as shown, ThreadPoolExecutor(workers) as pool:
      jobs = [
        pool.submit(_verify_shard, partial / converted.TFDS_FOLDER / shard["file"], shard, robot, features)
        for shard in split["shards"]
      ]
      frames = 0
      for job in jobs:
        frames += job.result()
        if shown is not None:
          shown.update(job.result())
    if frames != split["frames"]:
      raise DatasetError(partial / name, f"{frames} frames were written of {split['frames']}.", fix=_AGAIN)


def _verify_shard(
  path: pathlib.Path, facts: dict[str, Any], robot: Embodiment, features: Callable[[], Any]
) -> int:
  shard, frames, crc = converted.Shard(path, facts["examples"], facts["bytes"], features), 0, 0
  try:
    for index in range(facts["examples"]):
      example = shard.read(index)
      frames += len(example["frame_id"])
      crc = zlib.crc32(_checksum([example], robot.camera_names).to_bytes(4, "little"), crc)
    if crc != facts["crc32"]:
      raise DatasetError(path, "does not hold what was written.", fix=_AGAIN)
  except DatasetError:
    path.unlink(missing_ok=True)  # so that it is written again
    raise
  return frames


# ---------------------------------------------------------------------------------------------
# For people.


def format_summary(manifest: dict[str, Any]) -> str:
  """One line: what was converted, and what was left out."""
  parts = []
  for name, split in manifest["splits"].items():
    part = f"{name} {split['frames']:,} frames, {split['episodes']:,} episodes, {split['windows']:,} windows"
    skipped = split["skipped"]
    if skipped["frames"]:
      ids = ", ".join(str(i) for i, _ in skipped["listed"])
      more = ", ..." if skipped["frames"] > len(skipped["listed"]) else ""
      part += f" (left out: {skipped['frames']} frames, {skipped['windows']} windows; {ids}{more})"
    parts.append(part)
  return "; ".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
  """Converts. Returns the exit code."""
  import tqdm

  tasks = "of LeRobot's: tasks whose episodes are demos, comma-separated"
  parser = lerobot.source_parser("python -m wam_jax.data.convert", __doc__, tasks)
  parser.add_argument("--out", type=machine.local_path, required=True, help="folder to be made")
  parser.add_argument("--to", choices=("tfds", "lerobot"), default="tfds", help="form to be written")
  parser.add_argument(
    "--image_size",
    type=int,
    help="side that pictures are shrunk to; if not given 64, to LeRobot's as they are",
  )
  parser.add_argument("--workers", type=int, default=0, help="threads; 0: one per core")
  parser.add_argument("--skip_broken", action="store_true", help="leave out frames that cannot be read")
  options = parser.parse_args(arguments)
  if (options.image_size is not None and options.image_size < 1) or options.workers < 0:
    parser.error("--image_size must be 1 or more, --workers 0 or more")
  progress = lambda total, text: tqdm.tqdm(total=total, desc=text, unit="frame", unit_scale=True)
  selection = lerobot.selection_of(parser, options) if is_lerobot(options.source[0]) else None
  if selection is None:
    lerobot.one_source(parser, options)
  try:
    if options.to == "lerobot":
      info = write_lerobot(
        options.source[0], options.out, image_size=options.image_size or 0, progress=progress
      )
      print(f"{options.out}: {info['total_frames']:,} frames, {info['total_episodes']:,} episodes")
      return 0
    if selection is not None and selection.tasks:
      data = lerobot.open_data(selection)
      if problems := lerobot.task_problems(data, selection, lerobot.divide(data, selection)):
        print(*problems, sep="\n", file=sys.stderr)
        return 1
    convert(
      options.source[0],
      options.out,
      image_size=options.image_size or 64,
      skip_broken=options.skip_broken,
      selection=selection,
      workers=options.workers,
      progress=progress,
      log=print,
    )
  except DatasetError as error:
    print(error, file=sys.stderr)
    return 1
  except KeyboardInterrupt:
    goes_on = "begins again" if options.to == "lerobot" else "goes on where it was"
    print(f"interrupted; the same command {goes_on}", file=sys.stderr)
    return 130
  return 0


if __name__ == "__main__":
  console.run_program(main)
