"""Files of a dataset: fast checked npz, and pickles that may hold data only."""

from __future__ import annotations

import ast
import functools
import io
import os
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Sequence
from pickle import UnpicklingError
from typing import Any

import numpy as np

from wam_jax import embodiment
from wam_jax.embodiment import CALVIN, Embodiment
from wam_jax.host import file_kinds
from wam_jax.host.dataset_files import COPY_AGAIN, DatasetError, PathLike, read_description
from wam_jax.host.regular_files import most_inflated, read_bytes
from wam_jax.storage.plain_pickle import PlainUnpickler, RefusedError

IDS_FILE = "ep_start_end_ids.npy"


def read_embodiment(root: PathLike) -> Embodiment:
  """The robot of a dataset: what embodiment.json in its root says, CALVIN's if there is none.

  Raises:
    DatasetError: the file cannot be read, or breaks a rule.
  """
  path = pathlib.Path(root) / embodiment.FILE
  return read_description(path) if os.path.lexists(path) else CALVIN


# ---------------------------------------------------------------------------------------------
# Reading one file. np.load spends about a millisecond per frame on Python's zipfile; whole splits
# are read here by walking the archive's directory directly, which is ten times as fast.


_DIRECTORY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_END = struct.Struct("<4s4H2IH")
_TRUNCATED = "not a whole npz archive: the file is truncated or damaged."


_MAGIC = b"\x93NUMPY"
MAX_HEADER = 10_000  # bytes of an npy file's header, NumPy's own limit
MAX_FILE = 2**32 - 1  # bytes of a file that is read whole
MAX_ID = 9_999_999  # of a frame: its file is episode_%07d.npz


@functools.lru_cache(maxsize=256)
def _npy_header(text: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
  """dtype, shape and order, as `ValueError` if they cannot be made out or belong to no array."""
  try:
    fields = ast.literal_eval(text.decode("latin1"))
    dtype, shape, fortran = np.dtype(fields["descr"]), tuple(fields["shape"]), fields["fortran_order"]
  except Exception as error:  # brackets without end are a MemoryError, and NumPy raises as it pleases
    raise ValueError("header") from error
  # NumPy multiplies sizes without looking: two negative ones would pass as an array.
  if any(type(size) is not int or not 0 <= size < 2**63 for size in shape) or type(fortran) is not bool:
    raise ValueError("shape")
  if dtype.subdtype is not None:
    raise ValueError("dtype")
  return dtype, shape, fortran


def parse_npy(data: bytes | memoryview, path: PathLike, key: str) -> np.ndarray:
  """Array in the bytes of an npy file. Never unpickles."""
  if bytes(data[:6]) != _MAGIC:
    raise DatasetError(path, "not a NumPy array.", key=key, fix=COPY_AGAIN)
  wide = data[6] > 1
  start = 12 if wide else 10
  (length,) = struct.unpack_from("<I" if wide else "<H", data, 8)
  if length > MAX_HEADER:
    raise ValueError("header")
  dtype, shape, fortran = _npy_header(bytes(data[start : start + length]))
  if dtype.hasobject:
    raise DatasetError(
      path,
      "holds Python objects, which are never unpickled.",
      key=key,
      fix="store it as a plain numeric array.",
    )
  count = 1
  for size in shape:
    count *= size
  if len(data) != start + length + count * dtype.itemsize:
    raise DatasetError(
      path, f"expected {count} values of {dtype}, found another number of bytes.", key=key, fix=COPY_AGAIN
    )
  array = np.frombuffer(data, dtype, count, start + length)
  return array.reshape(shape, order="F" if fortran else "C")


def _damaged(path: PathLike, data: bytes, wanted: str) -> DatasetError:
  """For a file that does not begin as it should: which kind it is instead, if it is no damaged one."""
  what, fix = file_kinds.describe(data[: file_kinds.HEAD])
  rule = f"not a whole {wanted}: {what or 'the file is truncated or damaged'}."
  return DatasetError(path, rule, fix=fix or COPY_AGAIN)


def _directory(data: bytes, path: PathLike) -> dict[str, tuple[int, int, int, int, int]]:
  """name -> (method, crc, compressed size, size, offset of the data) of the archive's members."""
  end = len(data) - _END.size if data[-22:-18] == b"PK\x05\x06" else data.rfind(b"PK\x05\x06")
  if end < 0 or data[:2] != b"PK":
    raise _damaged(path, data, "npz archive")
  try:
    _, _, _, _, count, _, cursor, _ = _END.unpack_from(data, end)
    members = {}
    for _ in range(count):
      fields = _DIRECTORY.unpack_from(data, cursor)
      signature, method, crc, packed, size = fields[0], fields[4], *fields[7:10]
      name_length, extra, comment, offset = fields[10], fields[11], fields[12], fields[16]
      local = _LOCAL.unpack_from(data, offset)
      if signature != b"PK\x01\x02" or local[0] != b"PK\x03\x04":
        raise DatasetError(path, _TRUNCATED, fix=COPY_AGAIN)
      name = data[cursor + 46 : cursor + 46 + name_length].decode()
      begin = offset + 30 + local[9] + local[10]
      if 0xFFFFFFFF in (packed, size, offset) or begin + packed > len(data):
        raise DatasetError(path, _TRUNCATED, fix=COPY_AGAIN)
      members[name.removesuffix(".npy")] = (method, crc, packed, size, begin)
      cursor += 46 + name_length + extra + comment
  except (struct.error, UnicodeDecodeError):
    raise DatasetError(path, _TRUNCATED, fix=COPY_AGAIN) from None
  return members


def read_npz(
  path: PathLike, keys: Sequence[str] | None = None, optional: Sequence[str] = ()
) -> dict[str, np.ndarray]:
  """Named arrays of an npz file (up to 4 GB), each checked against its CRC; the others are not touched.

  Args:
    path: the file.
    keys: names of arrays; None: all.
    optional: names of more arrays, which may be absent.

  Returns:
    name -> read-only array.

  Raises:
    DatasetError: no such file, truncated or damaged, or a key that is not there.
  """
  try:
    data = read_bytes(path, MAX_FILE)
  except FileNotFoundError:
    raise DatasetError(
      path, "no such file.", fix=f"copy or download it, or take its episode out of {IDS_FILE}."
    ) from None
  except OSError as error:
    raise DatasetError(path, f"cannot be read ({error.strerror}).", fix=COPY_AGAIN) from None
  members, view, out = _directory(data, path), memoryview(data), {}
  allowance = most_inflated(len(data))
  for key in members if keys is None else (*keys, *(key for key in optional if key in members)):
    if key not in members:
      raise DatasetError(
        path,
        f"is absent; the file has {', '.join(sorted(members)) or 'nothing'}.",
        key=key,
        fix=f"record it, or correct {embodiment.FILE} in the dataset's root, which says what frames have; "
        "without that file they are taken for CALVIN's.",
      )
    method, crc, packed, size, begin = members[key]
    content: bytes | memoryview = view[begin : begin + packed]
    try:
      if method == zipfile.ZIP_DEFLATED:
        allowance -= size
        if allowance < 0:
          rule = f"would unpack to {size:,} bytes: too many for arrays of a file of {len(data):,}."
          raise DatasetError(path, rule, key=key, fix="store smaller arrays, or do not use this file.")
        # A byte more than declared is enough to see that there are more, however many.
        content = zlib.decompressobj(-15).decompress(content, size + 1)
      elif method != zipfile.ZIP_STORED:
        raise zlib.error("unknown method")
      if len(content) != size or zlib.crc32(content) != crc:
        raise zlib.error("checksum")
    except zlib.error:
      raise DatasetError(
        path, "damaged: its content does not match its checksum.", key=key, fix=COPY_AGAIN
      ) from None
    try:
      out[key] = parse_npy(content, path, key)
    except (ValueError, SyntaxError, TypeError, KeyError, struct.error, IndexError) as error:
      if isinstance(error, DatasetError):
        raise
      raise DatasetError(path, "not a NumPy array.", key=key, fix=COPY_AGAIN) from None
  return out


def read_npy(path: pathlib.Path) -> np.ndarray:
  try:
    data = read_bytes(path, MAX_FILE)
    if not data.startswith(_MAGIC):
      raise _damaged(path, data, "npy file")
    return parse_npy(data, path, "")
  except DatasetError:
    raise
  except FileNotFoundError:
    raise DatasetError(path, "no such file.", fix=COPY_AGAIN) from None
  except (OSError, ValueError, SyntaxError, TypeError, KeyError, struct.error, IndexError):
    raise DatasetError(path, "not a whole npy file: truncated or damaged.", fix=COPY_AGAIN) from None


def read_ids(path: pathlib.Path) -> np.ndarray:
  """First and last frame id of each episode, out of a split's IDS_FILE.

  Returns:
    [E, 2] int64, both included, ascending and without overlap, none above MAX_ID.

  Raises:
    DatasetError: no such file, damaged, or ids of wrong shape, dtype or order.
  """
  ids = read_npy(path)
  if ids.ndim != 2 or ids.shape[1:] != (2,) or ids.dtype.kind not in "iu" or not len(ids):
    raise DatasetError(
      path, f"must be integers [episodes, 2], not {ids.dtype} {list(ids.shape)}.", fix=COPY_AGAIN
    )
  if (ids < 0).any() or (ids > MAX_ID).any():  # before any arithmetic: it could overflow
    raise DatasetError(path, f"frame ids must lie in [0, {MAX_ID}], seven digits.", fix=COPY_AGAIN)
  ids = ids.astype(np.int64)
  ids = ids[np.argsort(ids[:, 0], kind="stable")]
  if (ids[:, 1] < ids[:, 0]).any() or (ids[1:, 0] <= ids[:-1, 1]).any():
    raise DatasetError(path, "each episode must end after it starts, and no two may overlap.", fix=COPY_AGAIN)
  return ids


def load_pickled(path: PathLike) -> Any:
  """Reads an npy file that holds one pickled object, without running anything in it.

  Args:
    path: file written by `np.save(path, {...})`.

  Returns:
    The object, made of NumPy arrays and plain containers.

  Raises:
    DatasetError: no such file, damaged, or anything in it that is neither array nor container.
  """
  path = pathlib.Path(path)
  try:
    data = read_bytes(path, MAX_FILE)
    if not data.startswith(_MAGIC):
      raise _damaged(path, data, "npy file")
    with io.BytesIO(data) as file:
      version = np.lib.format.read_magic(file)
      read_header = (
        np.lib.format.read_array_header_1_0 if version == (1, 0) else (np.lib.format.read_array_header_2_0)
      )
      _, _, dtype = read_header(file)
      if not dtype.hasobject:
        raise DatasetError(path, "expected a pickled dictionary, found a plain array.", fix=COPY_AGAIN)
      array = PlainUnpickler(file.read()).load()
  except DatasetError:
    raise
  except FileNotFoundError:
    raise DatasetError(path, "no such file.", fix="use a dataset with language annotations.") from None
  except RefusedError as error:
    raise DatasetError(
      path,
      f"its pickle asks for {error.name}, which is neither a NumPy array nor a "
      "plain container; nothing was run.",
      fix="do not use this file: get it from CALVIN's own server.",
    ) from None
  except UnpicklingError as error:
    raise DatasetError(path, f"damaged pickle ({error}).", fix=COPY_AGAIN) from None
  except OSError as error:
    raise DatasetError(path, f"cannot be read ({error.strerror}).", fix=COPY_AGAIN) from None
  except Exception as error:  # a damaged pickle can raise anything, with a text without end
    raise DatasetError(path, f"damaged ({type(error).__name__}).", fix=COPY_AGAIN) from None
  return array.item() if isinstance(array, np.ndarray) and array.ndim == 0 else array
