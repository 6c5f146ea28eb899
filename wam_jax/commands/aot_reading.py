"""What a compiled program does, by its jaxpr and the compiler's text: products, memory traffic, exchange."""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_ITEM_BITS = {"pred": 8, "bf16": 16}  # others carry theirs in the name
_SHAPE = re.compile(r"\b(pred|bf16|[suf]\d+)\[([\d,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_ON_CHIP = "S(1)"  # in a layout: a TPU's scratch memory
_FREE = {
  *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "iota"),
  *("partition-id", "after-all", "copy-done", "all-reduce-done", "all-gather-done", "async-done"),
}


# --- products, of the jaxpr ---------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Product:
  """A matrix product or convolution of a program.

  Attributes:
    dtype: of its first factor.
    flops: of all its executions, on all devices together.
    where: names of modules and functions that it comes from.
  """

  dtype: str
  flops: int
  where: str


def products(jaxpr: Any, times: int = 1) -> list[Product]:
  """Products of a jaxpr. Loops count with their trips, if unknown (`training.tasks.repeat`) as one,
  and of a condition the branch with more work. Zeros between the numbers of a dilated factor do not count.

  Args:
    jaxpr: of `jax.jit(f).trace(...)`.
    times: executions of it.
  """
  found: list[Product] = []
  for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
    name, params = equation.primitive.name, equation.params
    if name in ("dot_general", "conv_general_dilated"):
      flops = (_dot_flops if name == "dot_general" else _convolution_flops)(equation)
      where = str(equation.source_info.name_stack)
      found.append(Product(str(equation.invars[0].aval.dtype), times * flops, where))
    elif name == "cond":
      branches = [products(branch, times) for branch in params["branches"]]
      found += max(branches, key=lambda branch: sum(product.flops for product in branch))
    else:
      inner = times
      if name == "scan":
        inner *= params["length"]
      elif name == "shard_map":  # its body is what one device does
        inner *= params["mesh"].size
      for value in params.values():
        for part in value if isinstance(value, list | tuple) else [value]:
          if hasattr(part, "eqns") or hasattr(getattr(part, "jaxpr", None), "eqns"):
            found += products(part, inner)
  return found


def _dot_flops(equation: Any) -> int:
  (contracted, _), _ = equation.params["dimension_numbers"]
  left, out = equation.invars[0].aval, equation.outvars[0].aval
  return 2 * math.prod(out.shape) * math.prod(left.shape[i] for i in contracted)


def _convolution_flops(equation: Any) -> int:
  params = equation.params
  numbers, strides = params["dimension_numbers"], params["window_strides"]
  left, right, out = equation.invars[0].aval, equation.invars[1].aval, equation.outvars[0].aval
  flops = 2 * math.prod(out.shape[i] for i in numbers.out_spec[:2]) * right.shape[numbers.rhs_spec[1]]
  for i, (stride, (before, _)) in enumerate(zip(strides, params["padding"], strict=True)):
    size = lambda array, spec: array.shape[spec[2 + i]]
    # Pairs of a position of the result and one of the kernel that meet a number that is there.
    position = np.arange(size(out, numbers.out_spec))[:, None] * stride - before
    position = position + np.arange(size(right, numbers.rhs_spec)) * params["rhs_dilation"][i]
    dilation, length = params["lhs_dilation"][i], size(left, numbers.lhs_spec)
    inside = (position >= 0) & (position <= (length - 1) * dilation) & (position % dilation == 0)
    flops *= int(inside.sum())
  return flops


# --- the compiler's text ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Collective:
  """An exchange between devices.

  Attributes:
    kind: of COLLECTIVES.
    bytes: of its result.
    trips: of the loops of known length around it, from the outermost; empty outside of loops.
  """

  kind: str
  bytes: int
  trips: tuple[int, ...]

  @property
  def times(self) -> int:
    return math.prod(self.trips)


@dataclasses.dataclass(frozen=True)
class _Instruction:
  name: str
  op: str
  result: str
  text: str  # from the operation on

  @property
  def operands(self) -> list[str]:
    depth, end = 0, len(self.text)
    for i, sign in enumerate(self.text):
      depth += (sign == "(") - (sign == ")")
      if sign == ")" and depth == 0:
        end = i
        break
    return re.findall(r"%([\w.\-]+)", self.text[:end])

  def attribute(self, pattern: str) -> str:
    match = re.search(pattern, self.text)
    return match.group(1) if match else ""


class CompiledText:
  """Optimised HLO of one device, `compiled.as_text()`.

  Attributes:
    collectives: what is exchanged between devices.
    bytes: read from and written to the device's memory, loops counted with their trips.
    cycles: that the compiler expects (TPU); 0 where it says nothing.
    trips: of all loops of known length.
  """

  def __init__(self, text: str):
    self._computations: dict[str, list[_Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
      if (head := _COMPUTATION.match(line)) is not None:
        current = self._computations.setdefault(head.group(2), [])
        entry = head.group(2) if head.group(1) else entry
      elif line.startswith("}"):
        current = None
      elif current is not None and (match := _INSTRUCTION.match(line)):
        result, operation = _split_type(match.group(2))
        current.append(_Instruction(match.group(1), operation.partition("(")[0], result, operation))
    self.cycles = self.bytes = 0
    self.trips: list[int] = []
    exchanges: dict[str, Collective] = {}
    for instruction, computation, trips, fused in self._executed(entry, (), False):
      times = math.prod(trips)
      kind = instruction.op.removesuffix("-start")
      if kind in COLLECTIVES:
        size = shape_bytes(instruction.result) // (2 if instruction.op.endswith("-start") else 1)
        channel = instruction.attribute(r"channel_id=(\d+)") or instruction.name
        # An exchange that runs beside other work stands in several of its parts.
        if channel not in exchanges or times < exchanges[channel].times:
          exchanges[channel] = Collective(kind, size, trips)
      if not fused:
        self.cycles += times * int(instruction.attribute(r'"estimated_cycles":"(\d+)"') or 0)
        self.bytes += times * self._traffic(instruction, computation)
    self.collectives = list(exchanges.values())

  def _executed(
    self, name: str, trips: tuple[int, ...], fused: bool
  ) -> Iterator[tuple[_Instruction, dict[str, str], tuple[int, ...], bool]]:
    """Instructions that run, with the types in their computation and the loops around them."""
    types = {instruction.name: instruction.result for instruction in self._computations[name]}
    for instruction in self._computations[name]:
      yield instruction, types, trips, fused
      called = instruction.attribute(r"(?:calls|to_apply|called_computations=\{)=?%?([\w.\-]+)")
      if instruction.op == "while":
        body = instruction.attribute(r"body=%?([\w.\-]+)")
        count = self._trip_count(instruction)
        self.trips += [count] if count > 1 else []
        yield from self._executed(body, trips + ((count,) if count > 1 else ()), fused)
      elif instruction.op == "conditional":
        listed = instruction.attribute(r"branch_computations=\{([^}]*)\}")
        branches = re.findall(r"%?([\w.\-]+)", listed)
        branches += re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", instruction.text)
        for branch in branches:
          yield from self._executed(branch, trips, fused)
      elif instruction.op in ("fusion", "async-start") and called in self._computations:
        yield from self._executed(called, trips, True)
      elif instruction.op in ("call", "custom-call") and called in self._computations:
        yield from self._executed(called, trips, fused)

  def _trip_count(self, loop: _Instruction) -> int:
    """Of a `while`: what the compiler says, or the one number that its condition compares with; else 1."""
    known = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
    condition = self._computations.get(loop.attribute(r"condition=%?([\w.\-]+)"), [])
    bounds = [x.attribute(r"^constant\((\d+)\)") for x in condition if x.op == "constant"]
    return int(known or (bounds[0] if len(bounds) == 1 else "") or 1)

  def _traffic(self, instruction: _Instruction, types: dict[str, str]) -> int:
    """Bytes of device memory that an instruction reads and writes."""
    if instruction.op in _FREE:
      return 0
    called = instruction.attribute(r"calls=%?([\w.\-]+)")
    body = self._computations.get(called, []) if instruction.op == "fusion" else [instruction]
    operands = instruction.operands
    total, written = 0, shape_bytes(instruction.result, in_memory=True)
    for i, operand in enumerate(operands):
      size = shape_bytes(types.get(operand, ""), in_memory=True)
      name = operand
      if instruction.op == "fusion":
        name = next(
          (x.name for x in body if x.op == "parameter" and x.text.startswith(f"parameter({i})")), ""
        )
      users = [user for user in body if user.op != "parameter" and name in user.operands]
      if users and all(user.op in ("dynamic-slice", "gather") for user in users):
        size = min(size, sum(shape_bytes(user.result) for user in users))
      elif any(user.op == "dynamic-update-slice" and user.operands[0] == name for user in users):
        inner = {x.name: x.result for x in body} if instruction.op == "fusion" else types
        update = sum(
          shape_bytes(inner.get(user.operands[1], "")) for user in users if user.op == "dynamic-update-slice"
        )
        written -= max(size - update, 0)  # in place
        size = min(size, update)
      total += size
    return total + max(written, 0)


def shape_bytes(text: str, in_memory: bool = False) -> int:
  """Bytes of the arrays of an HLO type, or of those in the device's large memory."""
  total = 0
  for dtype, dims, layout in _SHAPE.findall(text):
    if not (in_memory and _ON_CHIP in layout):
      bits = _ITEM_BITS.get(dtype) or int(dtype[1:])
      total += math.prod(int(dim) for dim in dims.split(",") if dim) * bits // 8
  return total


def _split_type(text: str) -> tuple[str, str]:
  """'f32[2]{0} add(%a, %b)' -> ('f32[2]{0}', 'add(%a, %b)')."""
  depth = 0
  for i, sign in enumerate(text):
    depth += (sign in "({[") - (sign in ")}]")
    if sign == " " and depth == 0:
      return text[:i], text[i + 1 :]
  return text, ""


def by_dtype(found: list[Product]) -> dict[str, int]:
  """dtype -> FLOPs."""
  total: collections.Counter[str] = collections.Counter()
  for product in found:
    total[product.dtype] += product.flops
  return dict(total)
