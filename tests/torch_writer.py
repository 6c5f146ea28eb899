"""Torch-free writing of what torch.save writes, for tests: names of classes that need not exist."""

from __future__ import annotations

import collections
import io
import pickle
import types
import zipfile
from typing import ClassVar


class Call:
  """Pickles as `function(*args)` with `state` set after it, both of which a reader must not believe."""

  def __init__(self, path, *args, state=None):
    self.path, self.args, self.state = path, args, state

  def __reduce__(self):
    state = () if self.state is None else (self.state,)
    return (function(self.path), self.args, *state)


class Storage:
  def __init__(self, kind, key, count):
    self.pid = ("storage", function(f"torch.{kind}Storage"), key, "cuda:0", count)


def function(path):
  """A callable that pickles as the global `path`; its module is made up for the time of writing."""
  module, name = path.rsplit(".", 1)

  def stand_in(*_):
    raise AssertionError(f"{path} was run")

  stand_in.__module__, stand_in.__qualname__, stand_in.__name__ = module, name, name
  return stand_in


class _Pickler(pickle._Pickler):
  """Protocol 2, as torch.save; writes stand-ins by name without asking whether they exist."""

  dispatch: ClassVar[dict] = dict(pickle._Pickler.dispatch)

  def persistent_id(self, obj):
    return obj.pid if isinstance(obj, Storage) else None

  def save_function(self, obj):
    self.write(pickle.GLOBAL + f"{obj.__module__}\n{obj.__qualname__}\n".encode())
    self.memoize(obj)

  dispatch[types.FunctionType] = save_function


def write_archive(path, root, storages, byteorder="little"):
  """What torch.save would write: root object, and {key: bytes} of storages."""
  buffer = io.BytesIO()
  _Pickler(buffer, 2).dump(root)
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("last/data.pkl", buffer.getvalue())
    archive.writestr("last/byteorder", byteorder)
    for key, data in storages.items():
      archive.writestr(f"last/data/{key}", data)
    archive.writestr("last/version", "3\n")


def tensor(kind, key, count, size, stride, offset=0):
  return Call(
    "torch._utils._rebuild_tensor_v2",
    Storage(kind, key, count),
    offset,
    size,
    stride,
    False,
    collections.OrderedDict(),
  )
