"""Files in the format safetensors, read and written: a header in JSON, then raw numbers.

Source: https://github.com/huggingface/safetensors#format. As there, a header has at most 100 MB, and the
arrays fill the rest of the file without gaps or overlaps.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from wam_jax.host.regular_files import open_file

MAX_HEADER = 100_000_000
_BRAIN_FLOAT = "BF16"  # NumPy has none: read as its bits, which are the upper half of a float32
_DTYPES = {
  name: np.dtype(code)
  for name, code in {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    _BRAIN_FLOAT: "<u2",
    "BOOL": "?",
    **{f"I{8 * size}": f"<i{size}" for size in (1, 2, 4, 8)},
    **{f"U{8 * size}": f"<u{size}" for size in (1, 2, 4, 8)},
  }.items()
}


@dataclasses.dataclass(frozen=True)
class Entry:
  """One array: its type, shape, and first byte in the file."""

  kind: str
  shape: tuple[int, ...]
  begin: int


def _header_length(head: bytes, size: int) -> int:
  """Bytes of the header, 0 if this is no safetensors file."""
  if len(head) < 9 or head[8:9] != b"{":
    return 0
  (length,) = struct.unpack_from("<Q", head)
  return int(length) if length <= size - 8 else 0


def is_safetensors(path: pathlib.Path) -> bool:
  """Whether a file begins as one of this format. Raises OSError."""
  with open_file(path) as file:
    return _header_length(file.read(9), path.stat().st_size) > 0


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  if len(out := dict(pairs)) < len(pairs):
    raise ValueError("a name occurs twice")
  return out


def read_entries(path: pathlib.Path) -> dict[str, Entry]:
  """The arrays of a file by name; their numbers are not read.

  Raises:
    ValueError: the header breaks a rule of the format; says which.
    OSError: the file cannot be read.
  """
  size = path.stat().st_size
  with open_file(path) as file:
    length = _header_length(file.read(9), size)
    if not 0 < length <= MAX_HEADER:
      raise ValueError(f"a header of {length:,} bytes")
    file.seek(8)
    text = file.read(length)
  try:
    header = json.loads(text.decode(), object_pairs_hook=_unique)
  except RecursionError:
    raise ValueError("a header nested too deeply") from None
  header.pop("__metadata__", None)
  start, entries, spans = 8 + length, {}, []
  for name, entry in header.items():
    try:
      kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
      sizes = (*shape, begin, end)
      if type(kind) is not str or not all(type(n) is int and 0 <= n < 2**63 for n in sizes):
        raise TypeError
      if (
        len(shape) > 32 or math.prod(max(n, 1) for n in shape) >= 2**60
      ):  # more than NumPy takes, even if empty
        raise ValueError
    except (LookupError, TypeError, ValueError):
      raise ValueError(f"no dtype, shape and data_offsets of '{name}'") from None
    if kind in _DTYPES and end - begin != math.prod(shape) * _DTYPES[kind].itemsize:
      raise ValueError(f"'{name}' {shape} of {kind} in {end - begin} bytes")
    entries[name] = Entry(kind, tuple(shape), start + begin)
    spans.append((begin, end))
  end = 0
  for begin, stop in sorted(spans):
    if begin != end or stop < begin:
      raise ValueError(f"arrays that overlap or leave a gap at byte {begin}")
    end = stop
  if start + end != size:
    raise ValueError(f"{end:,} bytes of numbers, but {size - start:,} follow the header")
  return entries


def read_array(path: pathlib.Path, entry: Entry) -> np.ndarray:
  """One array, bfloat16 widened to float32. Raises ValueError for numbers that NumPy has not, and OSError."""
  if entry.kind not in _DTYPES:
    raise ValueError(f"numbers of type {entry.kind} are not read")
  flat = np.fromfile(path, _DTYPES[entry.kind], math.prod(entry.shape), offset=entry.begin)
  if entry.kind == _BRAIN_FLOAT:
    flat = (flat.astype(np.uint32) << 16).view(np.float32)
  flat.flags.writeable = False
  return flat.reshape(entry.shape)


def write_arrays(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes arrays of any type that NumPy shares with the format. Raises KeyError for others, and OSError."""
  kinds = {dtype: kind for kind, dtype in _DTYPES.items() if kind != _BRAIN_FLOAT}
  header, end = {}, 0
  # Wide numbers first: then each array begins at a multiple of its numbers' size, and can be mapped.
  order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
  for name in order:
    x = arrays[name]
    offsets = [end, end := end + x.nbytes]
    header[name] = {"dtype": kinds[x.dtype], "shape": list(x.shape), "data_offsets": offsets}
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)
  with open_file(path, "wb") as file:
    file.write(struct.pack("<Q", len(text)) + text)
    for name in order:
      file.write(arrays[name].tobytes())
