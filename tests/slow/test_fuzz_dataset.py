"""Datasets with damaged or hostile files: what is read is what was written, or a DatasetError names the file.

  bash launch/test.sh -m slow tests/slow/test_fuzz_dataset.py

WAM_FUZZ_CASES sets the number of cases per test, 2000 otherwise.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib

import numpy as np
import pytest
from fuzzing import FUZZ, damaged, guarded
from harmful_pickles import HARMFUL
from hypothesis import given
from hypothesis import strategies as st

from wam_jax.data import (
  calvin,
  calvin_writer,
  convert,
  converted,
  examples,
  files,
  frames_cache,
  inspect,
  statistics,
)
from wam_jax.data.files import DatasetError
from wam_jax.data.frames import frame_path, vector_keys
from wam_jax.embodiment import CALVIN

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SIZE = 8  # pixels of the pictures that are read
SECONDS = 3.0  # processor time of a case
LENGTHS = (4, 3)
WINDOWS = [("open_drawer", 0, 3), ("turn_on_led", 4, 7)]
TASKS = ("open_drawer", "turn_on_led")
BOMB = 5 * 2**28  # bytes, more than a case may take


def _frames(n, size, rng):
  return {
    "actions": rng.normal(size=(n, 7)),
    "rel_actions": np.append(rng.uniform(-1, 1, (n, 6)), rng.choice([-1.0, 1.0], (n, 1)), 1),
    "robot_obs": rng.normal(size=(n, 15)),
    "scene_obs": rng.normal(size=(n, 24)),
    "rgb_static": rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8),
    "rgb_gripper": rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8),
  }


def _write_dataset(root, size, compressed):
  rng, first = np.random.default_rng(size), 0
  for split in ("training", "validation"):
    frames = _frames(sum(LENGTHS), size, rng)
    starts = {
      "task": np.array(TASKS),
      "robot_obs": frames["robot_obs"][:2],
      "scene_obs": frames["scene_obs"][:2],
    }
    extra = {calvin.START_STATES_FILE: starts} if split == "validation" and not compressed else None
    with calvin_writer.FrameWriter(root / split, first, workers=1) as writer:
      writer.write(**frames)
      writer.commit(LENGTHS, WINDOWS, "table", extra)
    for row in range(sum(LENGTHS) if compressed else 0):
      arrays = {key: array[row] for key, array in frames.items()}
      np.savez_compressed(
        frame_path(root / split, first + row), **arrays, depth_static=np.ones((size, size), "f4")
      )
    first += sum(LENGTHS)
  return root


class _Sound:
  """Two sound datasets: as `calvin_writer` writes them, and compressed with larger pictures, as CALVIN's.

  A class of its own, because Hypothesis prints the arguments of a case that fails: here they would be long.
  """

  def __init__(self, place):
    self.place = place
    self.sources = [
      _write_dataset(place / "plain", SIZE, False),
      _write_dataset(place / "packed", SIZE + 5, True),
    ]
    self.known = {source: _known(source) for source in self.sources}
    packer, block = zlib.compressobj(9, zlib.DEFLATED, -15), bytes(2**22)
    self.bomb = b"".join([packer.compress(block) for _ in range(BOMB // len(block))]) + packer.flush()


@pytest.fixture(name="sound", scope="module")
def _sound(tmp_path_factory):
  return _Sound(tmp_path_factory.mktemp("sound"))


# ---------------------------------------------------------------------------------------------
# Reading all that training reads.


def _digest(*arrays):
  return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).digest()


def _rows(frames):
  """A digest of each frame. A row of numbers or pictures that came from elsewhere shows in it."""
  columns = (
    frames.pictures["rgb_static"],
    frames.pictures["rgb_gripper"],
    frames.action,
    frames.robot_obs,
    frames.scene_obs,  # which frames need not have
  )
  present = [column for column in columns if column is not None]
  return [_digest(*row) for row in zip(*present, strict=True)]


def _read_everything(root, cache=None):
  """name -> result or DatasetError of each reader that stages use."""
  training, validation = root / "training", root / "validation"

  def windows():
    ids = calvin.read_episode_ids(validation)
    calvin.read_annotations(validation, ids, TASKS)
    return calvin.read_windows(validation, ids, SIZE, 1)

  def robot():
    found = calvin.read_vectors(training, "robot_obs", 1)
    return found, statistics.robot_statistics(training, found)

  readers = {
    "count": lambda: calvin.count_frames(training),
    "frames": lambda: calvin.read_frames(training, SIZE, 1),
    "demos": lambda: calvin.read_demos(training, TASKS, 5, SIZE, 1),
    "heldout": lambda: calvin.read_demos(validation, TASKS, 5, SIZE, 1),
    "windows": windows,
    "robot": robot,
    "starts": lambda: calvin.read_start_states(root, TASKS, 5),
    "check": lambda: calvin.check_dataset(root, TASKS, SIZE),
  }
  if cache is not None:
    readers["cache"] = lambda: frames_cache.open_cache(cache, training, SIZE, 1).load()
  found = {}
  for name, read in readers.items():
    try:
      found[name] = read()
    except DatasetError as error:
      found[name] = error
  return found


def _known(root):
  """Digests of whatever a sound dataset holds."""
  found = _read_everything(root)
  whole = [found["frames"], found["windows"]]
  whole += [dataclasses.replace(frames, scene_obs=None) for frames in whole]
  rows = {digest for frames in whole for digest in _rows(frames)}
  states = {
    _digest(*pair)
    for frames in (found["frames"], found["windows"])
    for pair in zip(frames.robot_obs, frames.scene_obs, strict=True)
  }
  return rows, states


def _check_frames(frames, rows, crafted):
  assert frames.num_frames == int((frames.ends - frames.starts).sum())
  for array in (frames.action, frames.robot_obs, frames.scene_obs):
    assert array is None or np.isfinite(array).all()
  assert (np.abs(frames.action) <= 1).all() and (np.abs(frames.action[:, 6]) == 1).all()
  if not crafted:
    assert set(_rows(frames)) <= rows


def _check(root, found, rows, states, crafted, cache=None):
  """Every result is of the dataset's own frames, every error names a file of the dataset."""
  for name, result in found.items():
    if isinstance(result, DatasetError):
      own = result.file.is_relative_to(root) or (cache is not None and result.file.is_relative_to(cache))
      assert own and result.rule and len(str(result)) < 100_000, (name, result)
    elif name in ("frames", "windows", "cache"):
      _check_frames(result, rows, crafted)
    elif name in ("demos", "heldout"):
      _check_frames(result.frames, rows, crafted)
      assert all(a.task in TASKS and a.start < a.end for a in result.annotations)
    elif name == "robot":
      assert all(np.isfinite(array).all() for array in (result[0], *result[1]))
    elif name == "starts":
      for starts in result.values():
        assert 0 < len(starts) <= 5 and np.isfinite(starts).all()
        for start in starts.astype(np.float32):
          assert crafted or _digest(*np.split(start, [CALVIN.state_size])) in states
  ok = {name for name, result in found.items() if not isinstance(result, DatasetError)}
  if {"count", "frames"} <= ok:
    assert found["count"] == found["frames"].num_frames
  if "frames" in ok:
    assert "count" in ok


# ---------------------------------------------------------------------------------------------
# Damage at random.


def _replace(path, content):
  """Writes anew, so that the source of a hard link stays what it is."""
  path.unlink()
  path.write_bytes(content)


# ---------------------------------------------------------------------------------------------
# Hostile arrays, archives, pickles and texts.

_sizes = st.sampled_from(
  [
    "0",
    "1",
    "7",
    "8",
    "15",
    "24",
    "-1",
    "-7",
    "-2**3",
    "2**40",
    "10**12",
    "1.0",
    "True",
    "'a'",
    "None",
    "()",
    "9" * 30,
    "0x7fffffffffffffff",
    "9223372036854775807",
    "4294967296",
    "1e5",
    "9" * 5000,
  ]
)
_dtypes = st.sampled_from(
  [
    "<f8",
    "<f4",
    "<f2",
    ">f8",
    "|u1",
    "<i8",
    ">i4",
    "<u8",
    "|b1",
    "<c16",
    "|O",
    "|V8",
    "|V0",
    "|S0",
    "|S8",
    "<U0",
    "<U3",
    "<M8[s]",
    "<m8",
    "<f16",
    "<g",
    "f",
    "",
    "x",
    "f8,f8",
    "(2,)f8",
    "<U999999999999",
    "|V2147483647",
    "|S4294967296",
    "a",
    "?",
  ]
)
_dtype_texts = st.one_of(
  _dtypes.map(repr),
  st.sampled_from(
    [
      "[('a','<f8')]",
      "[('a','O')]",
      "('<f8',(2,))",
      "('<f8',(10**9,))",
      "('V8',{'a':('O',0)})",
      "None",
      "3",
      "{}",
      "[]",
      "{'names':['a'],'formats':['O'],'offsets':[-8]}",
      "{'names':['a'],'formats':['f8'],'offsets':[10**9]}",
    ]
  ),
)


@st.composite
def _npy(draw):
  """An npy file with any header and any number of bytes after it."""
  how = draw(st.integers(0, 9))
  if how == 0:
    return draw(st.binary(max_size=40))
  if how == 1:
    text = draw(
      st.sampled_from(
        [
          "(" * 5000,
          "{" * 9000,
          "-" * 60000,
          "[" * 60000,
          "9" * 60000,
          "{'descr':" * 900,
          "",
          "\0",
          "None",
          "'a'*99",
          "{'descr': '<f8'}",
          "0x" + "f" * 9000,
        ]
      )
    )
  else:
    shape = ", ".join(draw(st.lists(_sizes, max_size=draw(st.sampled_from([1, 2, 3, 40])))))
    shape = (
      draw(st.sampled_from([f"({shape},)", f"({shape})", f"[{shape}]", shape, "'abc'"])) if shape else "()"
    )
    order = draw(st.sampled_from(["False", "False", "True", "None", "1", "'x'"]))
    text = f"{{'descr': {draw(_dtype_texts)}, 'fortran_order': {order}, 'shape': {shape}, }}"
  head = text.encode()
  if draw(st.booleans()) and len(head) < 60_000:
    start = b"\x93NUMPY\x01\0" + struct.pack(
      "<H", len(head) + draw(st.sampled_from([0, 0, 0, 1, -len(head)]))
    )
  else:
    claimed = draw(st.sampled_from([len(head), len(head), 0, 2**32 - 1]))
    start = b"\x93NUMPY" + bytes([draw(st.sampled_from([2, 3, 255])), 0]) + struct.pack("<I", claimed)
  return start + head + bytes(draw(st.sampled_from([0, 1, 8, 56, 64, 120, 192, 4096])))


_values = st.sampled_from(
  [0.0, 1.0, -1.0, 1.00001, 2.0, -0.0, 1e-320, 1e30, 1e39, 1.7e308, np.nan, np.inf, -np.inf]
)


@st.composite
def _array(draw, width):
  """A sound npy file of some dtype, often of this width."""
  dtype = draw(
    st.sampled_from(
      ["f8", "f8", "f8", "f4", "f2", ">f8", "g", "i8", "u1", "?", "c16", "U3", "S3", "M8[s]", "m8[s]", "V4"]
    )
  )
  shape = draw(
    st.sampled_from(
      [
        (width,),
        (width,),
        (width,),
        (width, 1),
        (1, width),
        (width + 1,),
        (0,),
        (),
        (3, width),
        (SIZE, SIZE, 3),
        (SIZE + 5, SIZE + 5, 3),
        (300, 200, 3),
      ]
    )
  )
  with np.errstate(all="ignore"):
    array = np.full(shape, 1.0) if draw(st.booleans()) else np.zeros(shape)
    if array.size:
      array.flat[draw(st.integers(0, array.size - 1))] = draw(_values)
    array = (
      array.astype(np.int64).view("V4")
      if dtype == "V4" and array.ndim
      else array.astype("U3" if dtype == "V4" else dtype, copy=True)
    )
  file = io.BytesIO()
  np.lib.format.write_array(file, np.asfortranarray(array) if draw(st.booleans()) else array)
  return file.getvalue()


def _archive(members, bomb_key=None, bomb=b"", declared=0):
  """A zip of stored members, one of them perhaps a bomb that declares this size."""
  body, directory = bytearray(), bytearray()
  for key, content in members.items():
    name, method, size, crc = f"{key}.npy".encode(), 0, len(content), zlib.crc32(content)
    if key == bomb_key:
      content, method, size, crc = bomb, 8, declared, zlib.crc32(bytes(64))
    common = struct.pack("<HHHHHIIIHH", 20, 0, method, 0, 33, crc, len(content), size, len(name), 0)
    offset = len(body)
    body += b"PK\x03\x04" + common + name + content
    directory += (
      b"PK\x01\x02" + struct.pack("<H", 20) + common + struct.pack("<HHHII", 0, 0, 0, 0, offset) + name
    )
  count = len(members)
  return bytes(
    body
    + directory
    + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, count, count, len(directory), len(body), 0)
  )


@st.composite
def _hostile_npz(draw, path, bomb):
  """An archive like this one, with foreign members, directory or compression."""
  with np.load(path) as file:
    members = {}
    for key in file.files:
      buffer = io.BytesIO()
      np.lib.format.write_array(buffer, file[key])
      members[key] = buffer.getvalue()
  key = draw(st.sampled_from(sorted(members)))
  how = draw(st.integers(0, 6))
  if how <= 1:
    members[key] = draw(_npy())
  elif how <= 3:
    members[key] = draw(_array({**vector_keys(CALVIN), "actions": 7}.get(key, 3)))
  elif how == 4:
    declared = draw(st.sampled_from([0, 1, 100, 2**20, 2**26, 2**26 + 1, BOMB, 2**32 - 2, 2**32 - 1]))
    return _archive(members, key, bomb, declared)
  elif how == 5:
    other = draw(st.sampled_from(sorted(members)))
    members[key], members[other] = members[other], members[key]
    if draw(st.booleans()):
      del members[key]
  data = bytearray(_archive(members))
  if how == 6:  # one number of the directory or of its end
    begin = data.rfind(b"PK\x05\x06") if draw(st.booleans()) else data.find(b"PK\x01\x02")
    at = begin + draw(st.integers(0, min(60, len(data) - begin - 4)))
    number = draw(st.sampled_from([0, 1, 2**16 - 1, 2**31, 2**32 - 1, len(data), len(data) - 22, 70]))
    data[at : at + 4] = struct.pack("<I", number)
  return bytes(data)


class _Calls:
  """Pickled as a call of a function."""

  def __init__(self, function, *args):
    self._call = function, args

  def __reduce__(self):
    return self._call


def _opcodes(draw):
  """A pickle written by hand: what asks for memory or time with a few bytes, or fills objects as it likes."""
  array = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
  size = draw(st.sampled_from([0, 1, 5, 10**6, 2**31 - 1]))
  dtype = b"cnumpy\ndtype\n(Vf8\nI00\nI01\ntR"
  return draw(
    st.sampled_from(
      [
        *HARMFUL.values(),
        b"\x80\x04Nr\xff\xff\xff\x7f.",  # LONG_BINPUT
        b"\x80\x04Np2147483647\n.",
        b"\x80\x05\x96" + struct.pack("<Q", 2**34) + b"x.",  # BYTEARRAY8
        b"\x80\x04\x8e" + struct.pack("<Q", 2**34) + b"x.",  # BINBYTES8
        b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N.",  # FRAME
        b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"1.",  # LONG4
        b"cnumpy\nndarray\n(I10000000000\ntR.",
        b"cnumpy\nndarray\n(I10000000000\nt\x81.",
        array + b"(I10000000000\ntVb\ntR.",
        array + b"(I0\ntVb\ntR(I1\n(I1000000000000\nt" + dtype + b"I00\nVx\ntb.",
        array + b"(I0\ntVb\ntR(I1\n(I1000000000000\ntcnumpy\ndtype\n(VS0\nI00\nI01\ntRI00\nC\0tb.",
        b"cnumpy\ndtype\n(VV8\nI00\nI01\ntR(I3\nV|\nN(Va\nt}Va\n("
        + dtype
        + f"I{size}\ntsI8\nI1\nI0\ntb.".encode(),
        b"cnumpy\ndtype\n(VS8\nI00\nI01\ntR(I3\nV|\nNNNI" + str(size).encode() + b"\nI1\nI0\ntb.",
        b"cnumpy._core.multiarray\nscalar\n(cnumpy\ndtype\n(VO8\nI00\nI01\ntRC\x08AAAAAAAAtR.",
        b"cos\nsystem\n(Vtouch hostile\ntR.",
        b"(Vtouch hostile\nios\nsystem\n.",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x01x\x85R.",
        b"cbuiltins\nset\n}Va\n(I1\nI2\nlsb.",
        b"\x82\x01.",
        b"Ppersistent\n.",
        b"(" * 100_000 + b"t.",
        b"]" + b"]a" * 10 + b"h\0a" * 3 + b".",
        b"" if size else b".",
      ]
    )
  )


@st.composite
def _annotations(draw):
  """A pickled annotation file with contents of wrong kinds, or one that means harm."""
  if draw(st.integers(0, 2)) == 0:
    holder = np.empty((), object)
    file = io.BytesIO()
    np.lib.format.write_array(file, holder)
    return file.getvalue()[:128] + _opcodes(draw)
  laughs: object = "x"
  for _ in range(40):
    laughs = [laughs] * 2
  odd = st.sampled_from(
    [
      None,
      3,
      -1,
      2.5,
      np.inf,
      np.nan,
      10**30,
      -(10**30),
      2**63,
      "a",
      "5",
      b"a",
      (),
      [],
      {},
      laughs,
      True,
      np.zeros(3),
      np.array("x"),
      np.int64(3),
      np.float64(1),
      np.array([[0, 3], [4, 7]]),
      np.array([[0.0, 3.0], [4.0, np.inf]]),
      np.array(TASKS),
      np.array([None, 3], object),
      {1, 2},
      "open_drawer",
      _Calls(os.system, "touch hostile"),
      _Calls(eval, "1/0"),
      _Calls(bytearray, 10**11),
      _Calls(np.zeros, 10**11),
      _Calls(np.ndarray, (10**11,)),
      _Calls(np.dtype, "f8"),
      _Calls(frozenset, (1, 2)),
    ]
  )
  pair = st.one_of(st.tuples(st.integers(-2, 9), st.integers(-2, 9)), st.lists(odd, max_size=3), odd)
  tasks = draw(
    st.one_of(st.just(list(TASKS)), st.lists(st.one_of(st.sampled_from(TASKS), odd), max_size=4), odd)
  )
  indx = draw(st.one_of(st.just([(0, 3), (4, 7)]), st.lists(pair, max_size=4), odd))
  language = draw(
    st.one_of(
      st.just({"task": tasks, "ann": list(TASKS), "emb": np.zeros((2, 1, 4))}),
      st.just({"task": tasks, "ann": draw(odd)}),
      odd,
    )
  )
  info = draw(st.one_of(st.just({"indx": indx, "episodes": []}), odd))
  content = draw(st.one_of(st.just({"language": language, "info": info}), odd))
  holder = np.empty(draw(st.sampled_from([(), (), (), (1,), (2, 2)])), object)
  holder[...] = None
  holder[(0,) * holder.ndim] = content
  file = io.BytesIO()
  np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(holder))
  return file.getvalue() + pickle.dumps(holder, protocol=draw(st.sampled_from([0, 2, 3, 4, 5])))


_laughs = "a0: &a0 [1, 1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
_yaml = st.one_of(
  st.sampled_from(
    [
      "",
      "{}",
      "robot_obs: 3",
      "[" * 3000,
      "{a: " * 3000,
      "!!bool x",
      "!!int ''",
      "robot_obs:\n- mean: [1]\n  std: [1]\n",
      "!!python/object/apply:os.system ['touch hostile']",
      "\0",
      "? {}: 1",
      "&a [*a]",
      "!!timestamp x",
      "!!binary \xff",
      "%YAML 9.9\n---\n1",
    ]
  ),
  st.just(_laughs + "robot_obs:\n- mean: *a39\n  std: *a39\n"),
  st.sampled_from(
    [".nan", ".inf", "1" * 400, "0x" + "f" * 400, "1e999", "-1", "true", "a", "null", "[1]", "2001-01-01"]
  ).map(lambda x: f"robot_obs:\n- mean: [{', '.join([x] * 15)}]\n  std: [{', '.join(['1'] * 14 + [x])}]\n"),
  st.text(max_size=40),
)


@st.composite
def _ids(draw):
  """A sound npy file of ids that are not."""
  edge = st.sampled_from(
    [-(2**63), -1, 0, 1, 3, 4, 6, 7, 9_999_999, 10_000_000, 10**9, 2**31, 2**62, 2**63 - 1]
  )
  pairs = draw(st.lists(st.tuples(edge, edge), max_size=4))
  array = np.array(pairs, np.int64).reshape(-1, 2)
  kind = draw(
    st.sampled_from(["<i8", "<i8", "<i8", ">i8", "<u8", "<i4", "<i2", "<f8", "?", "<m8[s]", "<U20", "<c16"])
  )
  with np.errstate(all="ignore"):
    array = array.astype(kind)
  array = draw(
    st.sampled_from([array, array, array, array.T, array.reshape(-1), array[None], np.repeat(array, 9, 0)])
  )
  file = io.BytesIO()
  np.lib.format.write_array(file, array)
  return file.getvalue()


def _mutate(draw, root, source, bomb):
  """Damages one or two files. Returns whether a file may now hold other sound values than were written."""
  crafted = False
  for _ in range(draw(st.integers(1, 2))):
    paths = sorted(p for p in root.rglob("*") if p.is_file() and not p.is_symlink())
    frames = [p for p in paths if p.name.startswith("episode_")]
    special = [p for p in paths if p not in frames and p.name not in ("ep_lens.npy", "scene_info.npy")]
    if not frames or not special:
      continue
    path = draw(st.sampled_from(frames if draw(st.booleans()) else special))
    how = draw(st.integers(0, 9))
    if how <= 3:
      _replace(path, draw(damaged(path.read_bytes())))
      # Checksums guard archives; annotations, ids and statistics have none.
      crafted |= path.name == statistics.STATISTICS_FILE
    elif how <= 7:
      if path.suffix == ".npz":
        if not zipfile.is_zipfile(source / path.relative_to(root)):
          continue
        content, crafted = draw(_hostile_npz(source / path.relative_to(root), bomb)), True
      elif path.name == files.IDS_FILE:
        content = draw(st.one_of(_ids(), _npy()))
      elif path.suffix == ".npy":
        content = draw(_annotations())
      else:
        content = draw(_yaml).encode(errors="replace")
      _replace(path, content)
    elif how == 8:
      other = draw(st.sampled_from(paths))
      mine, theirs = path.read_bytes(), other.read_bytes()
      _replace(path, theirs)
      _replace(other, mine)
    else:
      path.unlink()
      what = draw(st.integers(0, 5))
      if what == 1:
        path.write_bytes(b"")
      elif what == 2:
        path.mkdir()
      elif what == 3:
        path.symlink_to(
          draw(st.sampled_from(["nowhere", path.name, "/etc/passwd", "/dev/zero", ".", "../training"]))
        )
      elif what == 4:
        os.mkfifo(path)
  return crafted


def _link(source, root):
  shutil.rmtree(root, ignore_errors=True)
  shutil.copytree(source, root, copy_function=os.link)


@FUZZ
@given(st.data())
def test_damaged_datasets_are_read_rightly_or_named(sound, data):
  source = data.draw(st.sampled_from(sound.sources))
  rows, states = sound.known[source]
  root, cache = sound.place / "data", sound.place / "cache"
  _link(source, root)
  shutil.rmtree(cache, ignore_errors=True)
  cache.mkdir()
  crafted = _mutate(data.draw, root, source, sound.bomb)
  cached = data.draw(st.integers(0, 7)) == 0
  with guarded(SECONDS, writable=cache if cached else None):
    found = _read_everything(root, cache if cached else None)
    _check(root, found, rows, states, crafted, cache)
    report = inspect.inspect_dataset(root, tasks=TASKS, frames=0, image_size=SIZE, workers=1)
    json.dumps(report)
  if report["trainable"]:  # who was told that a dataset can be trained on is not disappointed
    bad = {
      name: result for name, result in found.items() if isinstance(result, DatasetError) and name != "robot"
    }
    assert not bad


# ---------------------------------------------------------------------------------------------
# The converted form.


@pytest.fixture(name="converted_sound", scope="module")
def _converted_sound(sound):
  """The plain dataset converted, in examples of 2 frames and files of 2 examples."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(examples, "EXAMPLE_FRAMES", 2)
    patch.setattr(convert, "SHARD_EXAMPLES", 2)
    out = sound.place / "converted"
    convert.convert(sound.sources[0], out, image_size=SIZE, workers=1, log=lambda text: None)
  rows, states = _known(out)
  assert rows == sound.known[sound.sources[0]][0]  # nothing was lost
  sound.known[out] = rows, states
  return sound, out


_odd_json = st.sampled_from(
  [
    None,
    True,
    0,
    1,
    -1,
    3,
    2.5,
    1e308,
    10**30,
    2**63,
    "",
    "4",
    "x",
    [],
    {},
    "../x",
    "/etc/passwd",
    ".",
    "a\0b",
    [[]],
  ]
)


@st.composite
def _manifest(draw, text):
  """The manifest with values of wrong kinds, or text that is hard to read."""
  if draw(st.integers(0, 5)) == 0:
    return draw(
      st.sampled_from(
        ["", "[" * 100_000, '{"a":' * 50_000, "null", "[]", "1" * 5000, "NaN", '"\\ud800"', "{}"]
      )
    )
  content = json.loads(text)
  for _ in range(draw(st.integers(1, 2))):
    node, path = content, []
    while isinstance(node, dict | list) and node and (not path or draw(st.integers(0, 5))):
      key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
      path.append((node, key))
      node = node[key]
    if not path:
      continue
    parent, key = path[-1]
    if draw(st.integers(0, 3)) == 0:
      del parent[key]
    else:
      parent[key] = draw(_odd_json)
  return json.dumps(content)


@FUZZ
@given(st.data())
def test_damaged_conversions_are_read_rightly_or_named(converted_sound, data):
  sound, source = converted_sound
  root, crafted = sound.place / "mutated", False
  _link(source, root)
  names = [
    "convert.json",
    "training/examples.npy",
    "validation/examples.npy",
    "training/ep_start_end_ids.npy",
  ]
  names += [f"validation/{calvin.ANNOTATION_FILE}", f"training/{calvin.ANNOTATION_FILE}"]
  shards = sorted(str(p.relative_to(root)) for p in (root / converted.TFDS_FOLDER).glob("*.array_record-*"))
  for _ in range(data.draw(st.integers(1, 2))):
    path = root / data.draw(st.sampled_from(shards if data.draw(st.booleans()) else names))
    if not path.is_file():
      continue
    how = data.draw(st.integers(0, 5))
    if how == 0:
      path.unlink()
      if data.draw(st.booleans()):
        path.mkdir()
    elif how == 1:
      other = root / data.draw(st.sampled_from(shards))
      if other.is_file():
        _replace(path, other.read_bytes())
    elif how == 2 and path.suffix == ".json":
      try:
        _replace(path, data.draw(_manifest(path.read_text())).encode())
      except ValueError:  # damaged already
        continue
    elif how == 2 and path.name in (converted.EXAMPLES, files.IDS_FILE):
      _replace(path, data.draw(st.one_of(_ids(), _npy())))
    elif how == 3 and path.name.startswith("calvin_play"):  # of the same length: nothing shows from outside
      content = bytearray(path.read_bytes())
      at = data.draw(st.integers(0, len(content) - 1))
      content[at] ^= data.draw(st.integers(1, 255))
      _replace(path, bytes(content))
    else:
      _replace(path, data.draw(damaged(path.read_bytes())))
  rows, states = sound.known[source]
  with guarded(SECONDS):
    found = _read_everything(root)
    _check(root, found, rows, states, crafted)
    json.dumps(inspect.inspect_dataset(root, tasks=TASKS, frames=0, image_size=SIZE, workers=1))


@FUZZ
@given(st.data())
def test_damaged_datasets_are_converted_rightly_or_named(sound, data):
  source = sound.sources[0]
  rows, states = sound.known[source]
  root, out = sound.place / "to_convert", sound.place / "out"
  _link(source, root)
  shutil.rmtree(out, ignore_errors=True)
  crafted = _mutate(data.draw, root, source, sound.bomb)
  skip = data.draw(st.booleans())
  # array_record's own threads wait for ever where they cannot have the memory for their stacks.
  with guarded(SECONDS, writable=out, memory=2**33):
    try:
      manifest = convert.convert(
        root, out / "made", image_size=SIZE, skip_broken=skip, workers=1, log=lambda text: None
      )
    except DatasetError as error:
      assert error.file.is_relative_to(root) or error.file.is_relative_to(out)
      return
  found = _read_everything(out / "made")
  _check(out / "made", found, rows, states, crafted)
  assert not isinstance(found["frames"], DatasetError)
  assert manifest["splits"]["training"]["frames"] == found["count"]
