"""Files of a dataset: fast checked npz, and pickles that may hold data only."""

from __future__ import annotations

import ast
import errno
import functools
import os
import pathlib
import pickle
import struct
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

PathLike = str | os.PathLike[str]

IDS_FILE = "ep_start_end_ids.npy"


class DatasetError(ValueError):
  """Something on disk breaks a rule of the format: names the file, the key, the rule and what to do."""

  def __init__(self, file: PathLike, rule: str, *, key: str = "", fix: str = ""):
    self.file, self.key, self.rule, self.fix = pathlib.Path(file), key, rule, fix
    where = f"{self.file}" + (f", key '{key}'" if key else "")
    super().__init__(f"{where}: {rule}" + (f" What to do: {fix}" if fix else ""))


def disk_full(error: OSError) -> bool:
  """Whether something could not be written for want of room."""
  return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


# ---------------------------------------------------------------------------------------------
# Reading one file. np.load spends about a millisecond per frame on Python's zipfile; whole splits
# are read here by walking the archive's directory directly, which is ten times as fast.


_DIRECTORY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_END = struct.Struct("<4s4H2IH")
_TRUNCATED = "not a whole npz archive: the file is truncated or damaged."
COPY_AGAIN = "copy or download this file again."


@functools.lru_cache(maxsize=256)
def _npy_header(text: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
  fields = ast.literal_eval(text.decode("latin1"))
  return np.dtype(fields["descr"]), tuple(fields["shape"]), bool(fields["fortran_order"])


def _parse_npy(data: bytes | memoryview, path: PathLike, key: str) -> np.ndarray:
  """Array in the bytes of an npy file. Never unpickles."""
  if bytes(data[:6]) != b"\x93NUMPY":
    raise DatasetError(path, "not a NumPy array.", key=key, fix=COPY_AGAIN)
  wide = data[6] > 1
  start = 12 if wide else 10
  (length,) = struct.unpack_from("<I" if wide else "<H", data, 8)
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


def _directory(data: bytes, path: PathLike) -> dict[str, tuple[int, int, int, int, int]]:
  """name -> (method, crc, compressed size, size, offset of the data) of the archive's members."""
  end = len(data) - _END.size if data[-22:-18] == b"PK\x05\x06" else data.rfind(b"PK\x05\x06")
  if end < 0 or data[:2] != b"PK":
    raise DatasetError(path, _TRUNCATED, fix=COPY_AGAIN)
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


def read_npz(path: PathLike, keys: Sequence[str]) -> dict[str, np.ndarray]:
  """Named arrays of an npz file (up to 4 GB), each checked against its CRC; the others are not touched.

  Args:
    path: the file.
    keys: names of arrays.

  Returns:
    name -> read-only array.

  Raises:
    DatasetError: no such file, truncated or damaged, or a key that is not there.
  """
  try:
    with open(path, "rb", buffering=0) as file:
      data = file.read()
  except FileNotFoundError:
    raise DatasetError(
      path, "no such file.", fix=f"copy or download it, or take its episode out of {IDS_FILE}."
    ) from None
  except OSError as error:
    raise DatasetError(path, f"cannot be read ({error.strerror}).", fix=COPY_AGAIN) from None
  members, view, out = _directory(data, path), memoryview(data), {}
  for key in keys:
    if key not in members:
      raise DatasetError(
        path,
        f"is absent; the file has {', '.join(sorted(members)) or 'nothing'}.",
        key=key,
        fix="use a dataset in CALVIN's format (one npz per frame with this key).",
      )
    method, crc, packed, size, begin = members[key]
    content: bytes | memoryview = view[begin : begin + packed]
    try:
      if method == zipfile.ZIP_DEFLATED:
        content = zlib.decompress(content, wbits=-15, bufsize=size)
      elif method != zipfile.ZIP_STORED:
        raise zlib.error("unknown method")
      if len(content) != size or zlib.crc32(content) != crc:
        raise zlib.error("checksum")
    except zlib.error:
      raise DatasetError(
        path, "damaged: its content does not match its checksum.", key=key, fix=COPY_AGAIN
      ) from None
    try:
      out[key] = _parse_npy(content, path, key)
    except (ValueError, SyntaxError, TypeError, KeyError, struct.error, IndexError) as error:
      if isinstance(error, DatasetError):
        raise
      raise DatasetError(path, "not a NumPy array.", key=key, fix=COPY_AGAIN) from None
  return out


def read_npy(path: pathlib.Path) -> np.ndarray:
  try:
    return _parse_npy(path.read_bytes(), path, "")
  except DatasetError:
    raise
  except FileNotFoundError:
    raise DatasetError(path, "no such file.", fix=COPY_AGAIN) from None
  except (OSError, ValueError, SyntaxError, TypeError, KeyError, struct.error, IndexError):
    raise DatasetError(path, "not a whole npy file: truncated or damaged.", fix=COPY_AGAIN) from None


class _PlainUnpickler(pickle.Unpickler):
  """Admits NumPy arrays, dtypes and scalars and plain containers; refuses all else by name."""

  _ALLOWED = frozenset(
    {("numpy", "ndarray"), ("numpy", "dtype"), ("builtins", "set"), ("builtins", "frozenset")}
    | {
      (module, name)
      for module in ("numpy.core.multiarray", "numpy._core.multiarray")
      for name in ("_reconstruct", "scalar")
    }
    | {(module, "_frombuffer") for module in ("numpy.core.numeric", "numpy._core.numeric")}
  )

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in self._ALLOWED:
      raise pickle.UnpicklingError(f"refused: {module}.{name}")
    # NumPy 1 wrote numpy.core, NumPy 2 writes numpy._core: both are read with the installed one.
    return super().find_class(module.replace("numpy.core", "numpy._core"), name)


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
    with path.open("rb") as file:
      version = np.lib.format.read_magic(file)
      read_header = (
        np.lib.format.read_array_header_1_0 if version == (1, 0) else (np.lib.format.read_array_header_2_0)
      )
      _, _, dtype = read_header(file)
      if not dtype.hasobject:
        raise DatasetError(path, "expected a pickled dictionary, found a plain array.", fix=COPY_AGAIN)
      array = _PlainUnpickler(file).load()
  except DatasetError:
    raise
  except FileNotFoundError:
    raise DatasetError(path, "no such file.", fix="use a dataset with language annotations.") from None
  except pickle.UnpicklingError as error:
    if "refused" in str(error):
      raise DatasetError(
        path,
        f"its pickle asks for {str(error)[9:]}, which is neither a NumPy array nor a "
        "plain container; nothing was run.",
        fix="do not use this file: get it from CALVIN's own server.",
      ) from None
    raise DatasetError(path, f"damaged pickle ({error}).", fix=COPY_AGAIN) from None
  except Exception as error:  # a damaged pickle can raise anything
    raise DatasetError(path, f"damaged ({type(error).__name__}: {error}).", fix=COPY_AGAIN) from None
  return array.item() if isinstance(array, np.ndarray) and array.ndim == 0 else array
