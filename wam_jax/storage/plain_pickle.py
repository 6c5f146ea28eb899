"""Pickles read as data: nothing in them is run, and memory and time are bounded by what the file holds.

Python's own unpickler in C takes the memory that a few bytes ask for (LONG_BINPUT, BYTEARRAY8), hashes
whatever is a key, and NumPy's arrays and dtypes believe the state that they are given. So this is the one in
Python, which signals can stop, with each step that makes or fills an object looked at.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

MAX_DEPTH = 32  # of containers in containers
MAX_ITEMS = 10_000_000  # of all containers together, what is shared counted wherever it occurs
MAX_AXES = 32  # NumPy 1's limit
_COPIES = 2**20  # bytes or items that may be copied, beyond the length of the pickle
_CODE = re.compile(r"[<>|=]?(b1|[?]|[iu][1248]|f[248]|c8|c16|O8?|[SU][0-9]{0,6})")


class RefusedError(pickle.UnpicklingError):
  """A pickle asks for a function or class that is not admitted; `name` is the one."""

  def __init__(self, name: str):
    self.name = name
    super().__init__(f"asks for {name}")


def is_plain_key(key: Any) -> bool:
  """Whether a key's hash is quickly made: text, or an integer of 64 bits, many of which cannot collide."""
  return isinstance(key, str | np.integer) or (isinstance(key, int) and -(2**63) <= key < 2**64)


def check_shape(shape: Any, *, itemsize: int = 1) -> int:
  """Number of items of an array of this shape.

  Raises:
    UnpicklingError: not a shape, or one that no machine can hold, even if one of its sizes is 0.
  """
  if type(shape) not in (tuple, list) or len(shape) > MAX_AXES:
    raise pickle.UnpicklingError("an array without a shape")
  if not all(type(size) is int and 0 <= size < 2**63 for size in shape):
    raise pickle.UnpicklingError("an array whose sizes are no whole numbers from 0 on")
  if math.prod(max(size, 1) for size in shape) * max(itemsize, 1) >= 2**63:
    raise pickle.UnpicklingError("an array too large for any machine")
  return math.prod(shape)


def _dtype(code: Any, *_: Any) -> np.dtype[Any]:
  text = code.decode("latin1") if type(code) is bytes else code
  if type(text) is not str or not _CODE.fullmatch(text):
    raise pickle.UnpicklingError("a dtype other than of numbers, texts and objects")
  return np.dtype(text, align=False, copy=True)


def _empty_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
  """An array that the pickle fills afterwards."""
  if kind is not _NDARRAY or shape != (0,) or code not in (b"b", "b"):
    raise pickle.UnpicklingError("an array that does not begin empty")
  return np.empty(0, np.int8)


def _scalar(dtype: Any, content: Any = b"") -> Any:
  if not isinstance(dtype, np.dtype) or dtype.hasobject or type(content) is not bytes:
    raise pickle.UnpicklingError("a scalar that is no plain number or text")
  if len(content) != dtype.itemsize or not content:
    raise pickle.UnpicklingError("a scalar of another size")
  return np.frombuffer(content, dtype)[0]


def _array_of_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
  if not isinstance(dtype, np.dtype) or dtype.hasobject or type(content) not in (bytes, bytearray):
    raise pickle.UnpicklingError("an array that is not made of bytes")
  if order not in ("C", "F") or check_shape(shape, itemsize=dtype.itemsize) * dtype.itemsize != len(content):
    raise pickle.UnpicklingError("an array of another size than its bytes")
  return np.frombuffer(content, dtype).reshape(shape, order=order)


def _set(items: Any = ()) -> set[Any]:
  if type(items) not in (list, tuple) or not all(map(is_plain_key, items)):
    raise pickle.UnpicklingError("a set of other things than texts and integers")
  return set(items)


def _frozenset(items: Any = ()) -> frozenset[Any]:
  return frozenset(_set(items))


_NDARRAY = object()  # stands for np.ndarray, which must not be called: it takes memory by its arguments alone

# What data may name. NumPy 1 wrote numpy.core, NumPy 2 writes numpy._core: both become the installed one's.
NUMPY: Mapping[tuple[str, str], Any] = {
  ("numpy", "ndarray"): _NDARRAY,
  ("numpy", "dtype"): _dtype,
  ("builtins", "set"): _set,
  ("builtins", "frozenset"): _frozenset,
  **{
    (f"numpy.{core}.{module}", name): make
    for core in ("core", "_core")
    for module, name, make in (
      ("multiarray", "_reconstruct", _empty_array),
      ("multiarray", "scalar", _scalar),
      ("numeric", "_frombuffer", _array_of_buffer),
    )
  },
}


class PlainUnpickler(pickle._Unpickler):
  """Reads plain containers and what `functions` make; refuses all else by name.

  Args:
    content: the pickle.

  Raises (by `load`):
    RefusedError: it names another function or class.
    Exception: of any type; damaged, or made to do harm. Only the text of an UnpicklingError is safe to print:
      those of others may be endless.
  """

  functions: ClassVar[Mapping[tuple[str, str], Any]] = NUMPY
  stack: list[Any]
  read: Callable[[int], bytes]
  append: Callable[[Any], None]
  pop_mark: Callable[[], list[Any]]

  def __init__(self, content: bytes):
    super().__init__(io.BytesIO(content))
    self._copies = len(content) + _COPIES
    self._unfilled: dict[int, np.ndarray] = {}

  def load(self) -> Any:
    value = super().load()
    check_nesting(value)
    return value

  def find_class(self, module: str, name: str) -> Any:
    try:
      return self.functions[module, name]
    except KeyError:
      raise RefusedError(f"{module}.{name}") from None

  def call(self, function: Any, arguments: Any) -> Any:
    """What REDUCE and its likes make."""
    known = any(function is one for one in self.functions.values()) and function is not _NDARRAY
    if not known or type(arguments) is not tuple:
      raise pickle.UnpicklingError("a call of what is no function")
    self._charge(sum(len(x) for x in arguments if isinstance(x, list | tuple)))
    made = function(*arguments)
    if function is _empty_array:
      self._unfilled[id(made)] = made
    return made

  def fill(self, target: Any, state: Any) -> None:
    """What BUILD does."""
    if type(state) is not tuple:
      raise pickle.UnpicklingError("an object that is filled")
    if isinstance(target, np.ndarray) and len(state) == 5:
      self._fill_array(target, *state[1:])
    elif isinstance(target, np.dtype) and len(state) >= 7 and all(part is None for part in state[2:5]):
      order, size = state[1], state[5]
      if order not in ("<", ">", "|", "=") or size not in (-1, target.itemsize):
        raise pickle.UnpicklingError("a dtype of another size")
      size, alignment = (target.itemsize, target.alignment) if target.kind in "SU" else (-1, -1)
      make: Any = target
      make.__setstate__((3, order, None, None, None, size, alignment, target.flags))
    else:
      raise pickle.UnpicklingError("an object that is filled")

  def _fill_array(self, target: np.ndarray, shape: Any, dtype: Any, fortran: Any, content: Any) -> None:
    if self._unfilled.pop(id(target), None) is None:
      raise pickle.UnpicklingError("an array that is filled twice")
    if not isinstance(dtype, np.dtype) or not dtype.itemsize:  # sizes of nothing cost nothing to claim
      raise pickle.UnpicklingError("an array of nothing")
    if type(content) is not (list if dtype.hasobject else bytes):
      raise pickle.UnpicklingError("an array with another kind of content")
    count = check_shape(shape, itemsize=dtype.itemsize)
    if len(content) != count * (1 if dtype.hasobject else dtype.itemsize):
      raise pickle.UnpicklingError("an array of another size than its content")
    # Freed without end, one in the other, they would overflow the stack of the process.
    if dtype.hasobject and any(
      isinstance(item, np.ndarray) and (item.dtype.hasobject or id(item) in self._unfilled)
      for item in content
    ):
      raise pickle.UnpicklingError("an array of objects in another")
    self._charge(len(content))
    fill: Any = target.__setstate__
    fill((1, tuple(shape), dtype, bool(fortran), content))

  def put(self, target: Any, items: Iterable[tuple[Any, Any]]) -> None:
    """Puts entries into a dict."""
    if type(target) is not dict:
      raise pickle.UnpicklingError("entries of what is no dict")
    for key, value in items:
      if not is_plain_key(key):
        raise pickle.UnpicklingError(f"a key that is no text or integer, but a {type(key).__name__}")
      target[key] = value

  def extend(self, target: Any, items: list[Any]) -> None:
    """Adds items to a list or set."""
    if type(target) is set:
      target |= _set(items)
    elif type(target) is list:
      target.extend(items)
    else:
      raise pickle.UnpicklingError("items of what is no list or set")

  def _charge(self, amount: int) -> None:
    """A few bytes copy what was read before; this is how often they may."""
    self._copies -= amount
    if self._copies < 0:
      raise pickle.UnpicklingError("the same content over and over")

  def _reduce(self) -> None:
    arguments = self.stack.pop()
    self.stack[-1] = self.call(self.stack[-1], arguments)

  def _newobj_ex(self) -> None:
    self.stack.pop()  # arguments by keyword: no function here takes any
    self._reduce()

  def _instantiate(self, function: Any, arguments: list[Any]) -> None:
    self.append(self.call(function, tuple(arguments)))

  def _build(self) -> None:
    state = self.stack.pop()
    self.fill(self.stack[-1], state)

  def _setitem(self) -> None:
    value, key = self.stack.pop(), self.stack.pop()
    self.put(self.stack[-1], [(key, value)])

  def _setitems(self) -> None:
    items = self.pop_mark()  # which makes another stack the one to look at
    self.put(self.stack[-1], _pairs(items))

  def _dict(self) -> None:
    target: dict[Any, Any] = {}
    self.put(target, _pairs(self.pop_mark()))
    self.append(target)

  def _append(self) -> None:
    item = self.stack.pop()
    self.extend(self.stack[-1], [item])

  def _extend(self) -> None:
    items = self.pop_mark()
    self.extend(self.stack[-1], items)

  def _frozen(self) -> None:
    self.append(_frozenset(self.pop_mark()))

  def _bytearray(self) -> None:
    (size,) = struct.unpack("<Q", self.read(8))
    self.append(bytearray(self.read(size)))  # what there is, and not as much as is claimed

  dispatch: ClassVar[dict[int, Any]] = {
    **{
      code: step
      for code, step in pickle._Unpickler.dispatch.items()
      if bytes([code])
      not in (pickle.NEXT_BUFFER, pickle.READONLY_BUFFER, pickle.EXT1, pickle.EXT2, pickle.EXT4)
    },
    **{
      code[0]: step
      for codes, step in (
        ((pickle.REDUCE, pickle.NEWOBJ), _reduce),
        ((pickle.NEWOBJ_EX,), _newobj_ex),
        ((pickle.BUILD,), _build),
        ((pickle.SETITEM,), _setitem),
        ((pickle.SETITEMS,), _setitems),
        ((pickle.DICT,), _dict),
        ((pickle.APPEND,), _append),
        ((pickle.APPENDS, pickle.ADDITEMS), _extend),
        ((pickle.FROZENSET,), _frozen),
        ((pickle.BYTEARRAY8,), _bytearray),
      )
      for code in codes
    },
  }


def _pairs(items: list[Any]) -> Iterator[tuple[Any, Any]]:
  return zip(items[::2], items[1::2], strict=True)


def check_nesting(value: Any) -> None:
  """Raises UnpicklingError for containers that hold themselves, nest too deep, or each other too often.

  What reads such a value by walking through it, as NumPy does, might never end.
  """
  measured: dict[int, tuple[int, int]] = {}  # id of a container -> (levels, items) in it

  def measure(container: Any, depth: int) -> tuple[int, int]:
    if depth > MAX_DEPTH:
      raise pickle.UnpicklingError("containers that nest too deep, or hold themselves")
    if id(container) in measured:
      levels, count = measured[id(container)]
      if depth + levels > MAX_DEPTH:
        raise pickle.UnpicklingError("containers that nest too deep")
      return levels, count
    levels, count = 0, 0
    items: Any = container.values() if isinstance(container, dict) else container
    for item in items.flat if isinstance(items, np.ndarray) else items:
      count += 1
      if isinstance(item, list | tuple | dict) or (isinstance(item, np.ndarray) and item.dtype.hasobject):
        below, more = measure(item, depth + 1)
        levels, count = max(levels, below + 1), count + more
    if count > MAX_ITEMS:
      raise pickle.UnpicklingError("containers that hold each other too often")
    measured[id(container)] = levels, count
    return levels, count

  measure([value], 0)
