"""What a run costs on accelerators that are not there: compiles its programs for them and reads the result.

python -m wam_jax.aot --topology=v5e:4x4                               # preset paper on 16 TPU v5e chips
python -m wam_jax.aot --topology=v5e:2x2 --programs=cloning,acting --config=experiments/calvin_wam.py:demo

The compiler for TPUs is in the extra `aot`: pip install 'wam_jax[aot]'. docs/guides/compile_ahead.md says how
to read the result. --config and --config.GROUP.FIELD=VALUE are as for wam_jax.main.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from wam_jax import config as config_lib
from wam_jax.config import ConfigError
from wam_jax.host import console
from wam_jax.host.words import count, duration

PROGRAMS = ("acting", "cloning", "classifier", "PPO", "world model")  # the quick ones first
EXPERIMENT = "experiments/calvin_wam.py:paper"


class AotError(Exception):
  """Nothing can be compiled for this topology here; the text says what to do."""


@dataclasses.dataclass(frozen=True)
class Chip:
  """What one chip can do.

  Attributes:
    flops: products per second in bfloat16, two FLOPs each.
    bandwidth: bytes per second of its memory.
    memory: bytes.
    exchange: bytes per second to each neighbour, one way.
    clock: per second, of the cycles that the compiler expects; 0: not known.
  """

  flops: float
  bandwidth: float
  memory: float
  exchange: float
  clock: float = 0.0


# As published: cloud.google.com/tpu/docs and jax-ml.github.io/scaling-book (TPU).
CHIPS = {
  "v4": Chip(2.75e14, 1.2e12, 32e9, 4.5e10, 1.05e9),
  "v5e": Chip(1.97e14, 8.1e11, 16e9, 4.5e10, 1.5e9),
  "v5p": Chip(4.59e14, 2.8e12, 96e9, 9e10, 1.75e9),
  "v6e": Chip(9.2e14, 1.6e12, 32e9, 9e10),
}


@dataclasses.dataclass(frozen=True)
class Cost:
  """What the compiler's output says of one program.

  Attributes:
    name: of the program.
    unit: what it does again and again; all numbers but the memory are of one.
    units: how often a run does it; 0: as long as the robot moves.
    steps: gradient steps of a unit.
    peak_bytes: of memory on a chip.
    flops: of products, of all chips together, by dtype.
    float32: where the products in float32 come from, the largest first, at most five.
    memory_bytes: read and written in a chip's memory.
    collectives: exchanges, as (kind, bytes, times, inside of a loop over frames or chunks).
    seconds_roofline: by FLOPs, memory and exchange, whichever takes longest.
    seconds_compiler: that the compiler expects; 0: it does not say.
    compile_seconds: that it took.
  """

  name: str
  unit: str
  units: int
  steps: int
  peak_bytes: int
  flops: dict[str, float]
  float32: list[tuple[str, float]]
  memory_bytes: float
  collectives: list[tuple[str, int, float, bool]]
  seconds_roofline: float
  seconds_compiler: float
  compile_seconds: float

  @property
  def seconds(self) -> float:
    return self.seconds_compiler or self.seconds_roofline


def tpu_devices(topology: str) -> list[Any]:
  """Devices of a TPU topology that need not be there, as `v5e:4x4`.

  Raises:
    AotError: no compiler for TPUs here, or no such topology.
  """
  kind = topology.partition(":")[0]
  if kind not in CHIPS:
    kinds = ", ".join(f"{name}:2x2" for name in CHIPS)
    raise AotError(
      f"--topology={topology}: expected one of {kinds}, or of another shape. GPUs are not among them: "
      "without one their compiler chooses no algorithms, so that its estimates mean little."
    )
  # No device is looked for, and several processes may compile.
  for name, value in (
    ("TPU_SKIP_MDS_QUERY", "1"),
    ("TPU_ACCELERATOR_TYPE", "v5litepod-4"),
    ("TPU_WORKER_HOSTNAMES", "localhost"),
    ("TPU_WORKER_ID", "0"),
    ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
  ):
    os.environ.setdefault(name, value)
  from jax.experimental import topologies

  bounds = {"chips_per_host_bounds": (1, 1, 1)} if topology.endswith(":1x1") else {}
  try:
    found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **bounds)
  except Exception as error:  # the plugin raises several kinds
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise AotError(
      f"--topology={topology}: {reason}. The compiler for TPUs is libtpu: pip install 'wam_jax[aot]'"
    ) from error
  return list(found.devices)


def measure(name: str, program: Any, chip: Chip, num_devices: int) -> Cost:
  """Compiles a program of `aot_programs` and reads what it costs. Takes seconds to minutes."""
  from wam_jax.commands import aot_reading as reading

  begin = time.monotonic()
  traced = program.jitted.trace(*program.arguments)
  products = reading.products(traced.jaxpr)
  compiled = traced.lower().compile()
  text = reading.CompiledText(compiled.as_text())
  per_unit = lambda number: number / program.per_call
  flops = {dtype: per_unit(number) for dtype, number in reading.by_dtype(products).items()}
  memory_bytes = per_unit(text.bytes)
  inner = lambda trips: trips[1:] if program.steps > 1 and trips[:1] == (program.steps,) else trips
  collectives = [
    (exchange.kind, exchange.bytes, per_unit(exchange.times), bool(inner(exchange.trips)))
    for exchange in text.collectives
  ]
  float32: dict[str, float] = {}
  for product in products:
    if product.dtype == "float32":
      float32[product.where] = float32.get(product.where, 0.0) + per_unit(product.flops)
  exchanged = sum(2 * size * times for _, size, times, _ in collectives) * (num_devices - 1) / num_devices
  roofline = max(
    sum(flops.values()) / num_devices / chip.flops,
    memory_bytes / chip.bandwidth,
    exchanged / (2 * chip.exchange),  # both ways around a ring
  )
  return Cost(
    name=name,
    unit=program.unit,
    units=program.units,
    steps=program.steps // program.per_call,
    peak_bytes=int(compiled.memory_analysis().peak_memory_in_bytes),
    flops=flops,
    float32=sorted(float32.items(), key=lambda item: -item[1])[:5],
    memory_bytes=memory_bytes,
    collectives=collectives,
    seconds_roofline=roofline,
    seconds_compiler=per_unit(text.cycles) / chip.clock if chip.clock else 0.0,
    compile_seconds=time.monotonic() - begin,
  )


def costs(config: Any, topology: str, names: Sequence[str] = PROGRAMS, num_frames: int = 0) -> Iterator[Cost]:
  """Compiles the programs of a config, one after the other, for a topology.

  Args:
    config: from `config.finalize`, or with all of its fields.
    topology: as `v5e:4x4`.
    names: of PROGRAMS.
    num_frames: of the training split; 0: `data.play_frames`.

  Raises:
    AotError: nothing can be compiled for it here.
  """
  devices = tpu_devices(topology)
  chip = CHIPS[topology.partition(":")[0]]
  import jax

  from wam_jax.commands.aot_programs import Programs
  from wam_jax.core.backend import compiling_for

  cached = jax.config.values["jax_enable_compilation_cache"]
  jax.config.update("jax_enable_compilation_cache", False)  # programs for other machines are of no use there
  try:
    with compiling_for("tpu"):
      programs = Programs(config, devices, num_frames or config.data.play_frames, int(chip.memory))
      builders = programs.names()
      for name in names:
        yield measure(name, builders[name](), chip, len(devices))
  finally:
    jax.config.update("jax_enable_compilation_cache", cached)


def describe(cost: Cost) -> str:
  """A program's cost as text for people."""
  total = sum(cost.flops.values())
  share = cost.flops.get("float32", 0) / total if total else 0.0
  updates = cost.units and f", {cost.units:,} of them {duration(cost.units * cost.seconds)}"
  compiler = f"{1e3 * cost.seconds_compiler:.2f} ms by the compiler, " if cost.seconds_compiler else ""
  lines = [
    f"{cost.name}, of one {cost.unit}:",
    f"  time         {compiler}{1e3 * cost.seconds_roofline:.2f} ms by roofline{updates or ''}",
    f"  memory       {cost.peak_bytes / 1e9:.2f} GB at most on a chip",
    f"  traffic      {cost.memory_bytes / 1e9:.2f} GB read and written by a chip",
    f"  products     {total / 1e12:.4g} TFLOP on all chips, {share:.2%} of it in float32",
  ]
  lines += [
    f"    float32    {flops / 1e9:.3g} GFLOP in {where or '(no name)'}" for where, flops in cost.float32
  ]
  by_kind: dict[tuple[str, bool], list[float]] = {}
  for kind, size, times, inside in cost.collectives:
    entry = by_kind.setdefault((kind, inside), [0.0, 0.0])
    entry[0], entry[1] = entry[0] + times, entry[1] + size * times
  steps = f" (in {count(cost.steps, 'gradient step')})" if cost.steps > 1 else ""
  for (kind, inside), (repeats, moved) in sorted(by_kind.items()):
    where = "inside of loops" if inside else "outside of loops"
    lines.append(f"  exchange     {repeats:.3g} x {kind}{steps} {where}, {moved / 1e6:.3g} MB")
  if not by_kind:
    lines.append("  exchange     none")
  lines.append(f"  compiled in {duration(cost.compile_seconds)}")
  return "\n".join(lines)


def report(config: Any, topology: str, names: Sequence[str] = PROGRAMS, num_frames: int = 0) -> int:
  """Prints what each program costs, as soon as it is known, and the time of all; returns the exit code."""
  os.environ["JAX_PLATFORMS"] = "cpu"  # a device that is here is left alone
  print(f"preset {config.preset} on {topology}, compiled ahead of time; nothing was run", flush=True)
  total = 0.0
  try:
    for cost in costs(config, topology, names, num_frames):
      total += cost.units * cost.seconds
      print(describe(cost), flush=True)
  except AotError as error:
    print(f"\n{error}", file=sys.stderr)
    return 1
  print(f"training in all: {duration(total)}, without compiling, reading data and simulating")
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """The command line."""
  words, overrides = config_lib.split_overrides(sys.argv[1:] if argv is None else argv)
  parser = argparse.ArgumentParser(
    "python -m wam_jax.aot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--topology", required=True, help=f"KIND:SHAPE, of {', '.join(CHIPS)}; v5e:1x1 is one chip"
  )
  parser.add_argument(
    "--config", default=config_lib.experiment_file(EXPERIMENT), help="experiment file[:preset]"
  )
  parser.add_argument("--programs", default=",".join(PROGRAMS), help="some of %(default)s")
  parser.add_argument("--frames", type=int, default=0, help="of the training split; 0: data.play_frames")
  args = parser.parse_args(words)
  names = args.programs.split(",")
  unknown = [name for name in names if name not in PROGRAMS]
  if unknown:
    parser.error(f"--programs: no {', '.join(unknown)}; there are {','.join(PROGRAMS)}")
  try:
    config = config_lib.load_experiment(args.config)
    config = config_lib.finalize(config, config_lib.apply_overrides(config, overrides))
  except ConfigError as error:
    if error.config is None:
      print(f"\n{error}", file=sys.stderr)
      return 2
    config = error.config  # what this machine lacks is not needed to compile
  return report(config, args.topology, names, args.frames)


if __name__ == "__main__":
  console.run_program(main)
