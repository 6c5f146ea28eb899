"""Weights out of files of torch.save, safetensors, and npz files of a state dict.

Torch is not needed: such a file is a zip archive of raw numbers and one pickle, and the pickle is read here
with every name in it that is not a tensor replaced by an inert object. Nothing in a file is run.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import pickle
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import numpy as np

from wam_jax.data.files import DatasetError, read_npz
from wam_jax.foreign import safetensors_file
from wam_jax.host import file_kinds
from wam_jax.host.regular_files import check_file, most_inflated
from wam_jax.storage.checksums import CheckpointError
from wam_jax.storage.plain_pickle import PlainUnpickler, check_shape, is_plain_key

StateDict = dict[str, np.ndarray]
Shape = tuple[int, ...]
# From what a file holds to its wanted entries: name -> a tensor or array that is not read yet.
Select = Callable[[dict[Any, Any]], Mapping[str, Any]]

COPY_AGAIN = "copy or download this file again."


class WeightsError(CheckpointError):
  """Weights that cannot be used: says where, what is wrong and what to do."""

  def __init__(self, where: str | os.PathLike[str], rule: str, *, fix: str = ""):
    self.where, self.rule, self.fix = str(where), rule, fix
    super().__init__(f"{self.where}: {rule}" + (f" What to do: {fix}" if fix else ""))


@dataclasses.dataclass(frozen=True)
class Differences:
  """How weights differ from those that a network needs.

  Attributes:
    missing: torch name -> shape, expected and not there.
    unexpected: torch name -> shape, there and not expected.
    different: torch name -> (shape there, shape expected).
  """

  missing: dict[str, Shape]
  unexpected: dict[str, Shape]
  different: dict[str, tuple[Shape, Shape]]

  def lines(self, fields: Callable[[str], str]) -> list[str]:
    """All of them for an error, each with the config fields that speak for it; empty without any."""
    return [
      *titled("missing", [f"{n} {list(s)} ({fields(n)})" for n, s in self.missing.items()]),
      *titled("not expected", [f"{n} {list(s)} ({fields(n)})" for n, s in self.unexpected.items()]),
      *titled(
        "of another shape",
        [f"{n}: is {list(a)}, expected {list(b)} ({fields(n)})" for n, (a, b) in self.different.items()],
      ),
    ]


def differences(state: Mapping[str, np.ndarray], wanted: Mapping[str, Shape]) -> Differences:
  """What is wrong with the names and shapes of weights."""
  present = {name: tuple(x.shape) for name, x in state.items()}
  return Differences(
    missing={name: shape for name, shape in wanted.items() if name not in present},
    unexpected={name: shape for name, shape in present.items() if name not in wanted},
    different={n: (present[n], s) for n, s in wanted.items() if n in present and present[n] != s},
  )


def titled(title: str, rows: list[str]) -> list[str]:
  """Rows under a title, indented; nothing without rows."""
  return [f"  {title}:", *(f"    {row}" for row in rows)] if rows else []


def readings(state: Mapping[str, np.ndarray], places: Mapping[str, tuple[str, int]]) -> dict[str, int]:
  """Sizes that shapes tell, as far as the weights are there; `places`: size -> (torch name, axis)."""
  return {
    size: state[name].shape[axis]
    for size, (name, axis) in places.items()
    if name in state and axis < state[name].ndim
  }


# A torch file holds `<name>/data.pkl` and one member `<name>/data/<key>` per storage; the
# pickle refers to storages by persistent ids and rebuilds each tensor from one by offset, size, stride.


@dataclasses.dataclass(frozen=True)
class _Storage:
  kind: str  # torch's name of its type
  key: str


@dataclasses.dataclass(frozen=True)
class _Tensor:
  storage: _Storage
  offset: int
  size: Shape
  stride: Shape


@dataclasses.dataclass(frozen=True)
class _Inert:
  """Stands for any object that is not a tensor, and for its class. State that it is given is lost."""

  origin: str


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *unused: Any) -> _Tensor:
  if not isinstance(storage, _Storage) or type(offset) is not int or offset < 0:
    raise pickle.UnpicklingError("a tensor without storage")
  check_shape(size)
  if type(stride) not in (tuple, list) or not all(type(n) is int and 0 <= n < 2**63 for n in stride):
    raise pickle.UnpicklingError("a tensor whose strides are no whole numbers from 0 on")
  if len(size) != len(stride):
    raise pickle.UnpicklingError("a tensor with more sizes than strides, or fewer")
  return _Tensor(storage, offset, tuple(size), tuple(stride))


def _rebuild_parameter(data: Any, *unused: Any) -> Any:
  return data


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
  if type(pairs) not in (list, tuple) or not all(type(pair) in (list, tuple) for pair in pairs):
    raise pickle.UnpicklingError("a dict of other things than pairs")
  return {key: value for key, value in pairs if is_plain_key(key)}


class _WeightsUnpickler(PlainUnpickler):
  """Admits tensors and plain containers; all else becomes `_Inert`, on which everything is lost."""

  functions: ClassVar[Mapping[tuple[str, str], Any]] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
  }

  def find_class(self, module: str, name: str) -> Any:
    return self.functions.get((module, name)) or _Inert(f"{module}.{name}")

  def call(self, function: Any, arguments: Any) -> Any:
    return function if isinstance(function, _Inert) else super().call(function, arguments)

  def fill(self, target: Any, state: Any) -> None:
    if type(target) not in (_Inert, dict):  # a dict: attributes, which torch gives to state dicts
      super().fill(target, state)

  def put(self, target: Any, items: Iterable[tuple[Any, Any]]) -> None:
    """Leaves out entries whose keys are no names or numbers: they are no weights."""
    if not isinstance(target, _Inert):
      super().put(target, ((key, value) for key, value in items if is_plain_key(key)))

  def extend(self, target: Any, items: list[Any]) -> None:
    """As above, for the members of sets."""
    if not isinstance(target, _Inert):
      super().extend(target, list(filter(is_plain_key, items)) if type(target) is set else items)

  def persistent_load(self, pid: Any) -> Any:
    if type(pid) is not tuple or len(pid) != 5 or pid[0] != "storage" or type(pid[2]) is not str:
      raise pickle.UnpicklingError("a persistent id that is no storage's")
    return _Storage(getattr(pid[1], "origin", type(pid[1]).__name__), pid[2])


_DTYPES = {
  f"torch.{name}Storage": np.dtype(dtype)
  for name, dtype in {
    "Float": np.float32,
    "Double": np.float64,
    "Half": np.float16,
    "BFloat16": np.uint16,  # NumPy has none: read as its bits, which are the upper half of a float32
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
  }.items()
}


class _TorchArchive:
  """One open file of torch.save. Storages are read when a tensor of theirs is asked for.

  Args:
    archive: the file.
    index: name of the pickle in it.
    size: of the file in bytes.
  """

  def __init__(self, archive: zipfile.ZipFile, index: str, size: int):
    self._archive, self._size = archive, size
    self._allowance = most_inflated(size)  # of all members that are read
    self._root = index.removesuffix("data.pkl")
    self._storages: dict[str, np.ndarray] = {}
    order = f"{self._root}byteorder"
    self._big_endian = order in archive.namelist() and self._member(order) == b"big"

  def load(self) -> Any:
    """The object saved, tensors as `_Tensor`."""
    return _WeightsUnpickler(self._member(f"{self._root}data.pkl")).load()

  def _member(self, name: str) -> bytes:
    """A file of the archive, in the memory that the archive's size allows and not what it claims."""
    info = self._archive.getinfo(name)
    self._allowance -= info.file_size
    stored = info.compress_type == zipfile.ZIP_STORED
    if info.compress_size > self._size or (stored and info.file_size != info.compress_size):
      raise zipfile.BadZipFile(f"{name} claims another size than it has")
    if self._allowance < 0 or (not stored and info.compress_type != zipfile.ZIP_DEFLATED):
      raise zipfile.BadZipFile(f"{name} would unpack to {info.file_size:,} bytes")
    with self._archive.open(info) as file:
      return file.read(info.file_size)

  def array(self, tensor: _Tensor) -> np.ndarray:
    """Read-only view on the tensor's storage; bfloat16 is widened to float32."""
    storage, size = tensor.storage, tensor.size
    if storage.kind not in _DTYPES:
      raise ValueError(f"numbers of type {storage.kind} are not read")
    if storage.key not in self._storages:
      dtype = _DTYPES[storage.kind].newbyteorder(">" if self._big_endian else "<")
      flat = np.frombuffer(self._member(f"{self._root}data/{storage.key}"), dtype)
      if storage.kind == "torch.BFloat16Storage":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
      self._storages[storage.key] = flat
    flat = self._storages[storage.key]
    # Here and not only where the tensor was named: this is where memory is looked into.
    numbers = (tensor.offset, *size, *tensor.stride)
    if len(size) != len(tensor.stride) or not all(type(n) is int and 0 <= n < 2**63 for n in numbers):
      raise ValueError("sizes or strides are no whole numbers from 0 on")
    if 0 in size:
      return np.zeros(size, flat.dtype)
    last = tensor.offset + sum((n - 1) * s for n, s in zip(size, tensor.stride, strict=True))
    if last >= flat.size:
      raise ValueError(f"reaches number {last} of a storage of {flat.size}")
    if math.prod(size) > flat.size:  # each number many times over, which costs nothing to claim
      raise ValueError(f"claims {math.prod(size)} numbers of a storage of {flat.size}")
    strides = [s * flat.itemsize for s in tensor.stride]
    return np.lib.stride_tricks.as_strided(flat[tensor.offset :], size, strides, writeable=False)


def _read_torch(
  path: pathlib.Path,
  archive: zipfile.ZipFile,
  index: str,
  select: Select,
  error_type: type[WeightsError],
  wanted: str,
) -> StateDict:
  contents = _TorchArchive(archive, index, path.stat().st_size)
  try:
    root = contents.load()
  except (zipfile.BadZipFile, zlib.error, OSError):
    raise
  except Exception as error:  # a damaged pickle can raise anything, with a text without end
    reason = str(error) if isinstance(error, pickle.UnpicklingError) else type(error).__name__
    raise error_type(path, f"damaged pickle ({reason}).", fix=COPY_AGAIN) from None
  if isinstance(root, _Inert):
    raise error_type(
      path, f"holds an object of class {root.origin}, not weights; nothing of it was run.", fix=wanted
    )
  if not isinstance(root, dict):
    raise error_type(path, f"holds a {type(root).__name__}, not a state dict.", fix=wanted)
  weights = {}
  for name, value in select(root).items():
    if not isinstance(value, _Tensor):
      what = getattr(value, "origin", "") or type(value).__name__
      raise error_type(path, f"'{name}' is no plain tensor but a {what}.", fix=wanted)
    try:
      weights[name] = contents.array(value)
    except (KeyError, ValueError) as error:
      raise error_type(
        path,
        f"'{name}' cannot be read: {error.args[0]}.",
        fix="save the weights as float32, or " + COPY_AGAIN,
      ) from None
  return weights


def _read_npz(path: pathlib.Path, select: Select, error_type: type[WeightsError]) -> StateDict:
  try:
    entries = read_npz(path)
  except DatasetError as error:
    name = f"'{error.key}' " if error.key else ""
    raise error_type(path, f"not an npz of plain arrays: {name}{error.rule}", fix=error.fix) from None
  weights = {name.removeprefix("param/"): x for name, x in entries.items() if name.startswith("param/")}
  return dict(select(weights or entries))


def _read_safetensors(path: pathlib.Path, select: Select, error_type: type[WeightsError]) -> StateDict:
  try:
    entries = safetensors_file.read_entries(path)
  except ValueError as error:
    raise error_type(path, f"not a whole safetensors file ({error}).", fix=COPY_AGAIN) from None
  weights = {}
  for name, entry in select(entries).items():
    try:
      weights[name] = safetensors_file.read_array(path, entry)
    except ValueError as error:
      fix = "save the weights as float32, or " + COPY_AGAIN
      raise error_type(path, f"'{name}' cannot be read: {error}.", fix=fix) from None
  return weights


def read_weights(
  path: str | os.PathLike[str], select: Select, *, error_type: type[WeightsError], wanted: str
) -> StateDict:
  """The weights of a file that `select` chooses.

  Nothing in the file is run, whatever it is: other objects beside the weights are passed over. Storages that
  no chosen weight refers to (an optimiser's) are not read.

  Args:
    path: what torch.save wrote (since torch 1.6), safetensors, or an npz of a state dict, its names plain or
      under "param/".
    select: from the dict that the file holds to the entries wanted, by the names they shall have.
    error_type: raised for whatever is wrong.
    wanted: what to use instead of a file of another kind, for the errors.

  Returns:
    name -> read-only array in torch's layout and the file's dtype (bfloat16 as float32).

  Raises:
    WeightsError: (of `error_type`) no such file, damaged, or of another format.
  """
  path = pathlib.Path(path)
  try:
    check_file(path)
    if safetensors_file.is_safetensors(path):
      return _read_safetensors(path, select, error_type)
    if not zipfile.is_zipfile(path):
      what, fix = file_kinds.describe_file(path)
      state = "damaged" if path.stat().st_size else "an empty file"
      raise error_type(
        path,
        f"neither a file of torch.save nor an npz nor safetensors: {what or state}.",
        fix=fix or COPY_AGAIN,
      )
    with zipfile.ZipFile(path) as archive:
      names = archive.namelist()
      index = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
      if any(name.endswith("constants.pkl") for name in names):
        raise error_type(path, "a TorchScript program, not a checkpoint.", fix=wanted)
      if len(index) == 1:
        return _read_torch(path, archive, index[0], select, error_type, wanted)
    if any(name.endswith(".npy") for name in names):
      return _read_npz(path, select, error_type)
    raise error_type(path, "a zip archive, but neither of torch.save nor an npz.", fix=wanted)
  except FileNotFoundError:
    raise error_type(path, "no such file.", fix=wanted) from None
  except MemoryError:
    raise error_type(path, "holds more than the memory of this machine.", fix=wanted) from None
  except OSError as error:
    raise error_type(path, f"cannot be read ({error.strerror or error}).", fix=COPY_AGAIN) from None
  except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
    raise error_type(path, f"damaged archive ({error}).", fix=COPY_AGAIN) from None
