"""Everything that an accelerator should be asked in one call of at most ten minutes.

python benchmarks/card.py                              # a GPU, size `paper`; card.json and card.md
python benchmarks/card.py --device=tpu --out=results
python benchmarks/card.py --device=cpu --size=tiny     # the script itself, on any machine

Runs without an installed package too, from the repository's root: PYTHONPATH=. python benchmarks/card.py.
Each part is a process of its own with a time limit of its own, the most valuable first, and a part that no
longer fits is left out. The results so far are written after each part: a kill loses one part at most.

agreement       losses and gradients of the world model, against the CPU's float32
world_model     an update in bfloat16, several in a call, frames on the device
ppo             an iteration of eight tasks
acting          one control step, from pictures to the action
command_buffer  the update again, loops in CUDA graphs (--xla_gpu_enable_command_buffer=+WHILE)
torch_…         the same arithmetic in PyTorch, eager and by torch.compile, if it is installed
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from wam_jax.config import preset_config
from wam_jax.host.surroundings import prepare_jax

TASKS = 8
UPDATES_A_CALL, FRAMES = 50, 100_000
ACTING_FRAMES = 200
MARGIN = 5.0  # s, to write the results
GRAPHS = "--xla_gpu_enable_command_buffer=+WHILE"
TINY: dict[str, Any] = {
  "world_model.depth": 4,
  "world_model.embed": 32,
  "world_model.deter": 32,
  "world_model.stoch": 4,
  "world_model.classes": 4,
  "world_model.hidden": 32,
  "world_model.inverse_dynamics_hidden": 16,
  "world_model.batch_size": 2,
  "world_model.sequence_length": 4,
  "behaviour_cloning.hidden": 16,
  "behaviour_cloning.denoising_steps": 4,
  "classifier.embed": (16, 8),
  "classifier.hidden": 16,
  "ppo.value_hidden": (16, 16, 16),
  "ppo.dreams": 4,
  "ppo.fine_tuned_steps": 2,
  "ppo.epochs": 2,
  "ppo.chunks_per_iteration": 3,
}
# dtype -> the largest error of a parameter group's gradient, as a share of its norm, and of a loss. float32
# means exact products: a card's own float32 (TF32, or bfloat16 on a TPU) is less exact than the arithmetic.
TOLERANCE = {"float32": (1e-3, 1e-4), "bfloat16": (0.1, 0.02)}
FIXED = 1e4  # noise of samples, times this: they follow from it alone, and rounding cannot flip them
WINDOWS = 4, 16  # compared, so that the CPU needs seconds

Report = Callable[..., None]


def make_config(size: str) -> ConfigDict:
  """The preset `paper`, or the same with networks and loops as small as they go."""
  config = preset_config("paper")
  if size == "tiny":
    config.update_from_flattened_dict(TINY)
  config.world_model.compute_dtype = "bfloat16"
  return config


def median_wall(function: Callable[[], Any], repeats: int) -> float:
  """Median of the wall seconds of calls that wait for their results."""
  times = []
  for _ in range(repeats):
    begin = time.perf_counter()
    function()
    times.append(time.perf_counter() - begin)
  return statistics.median(times)


def measure(function: Callable[[], Any], repeats: int, share: int = 1) -> dict[str, float]:
  """Seconds of the first call, which compiles, and of one of the `share` that a later call makes."""
  first = median_wall(function, 1)
  return {"first_call_s": first, "seconds": median_wall(function, repeats) / share}


def agreement(config: ConfigDict, report: Report) -> None:
  """Losses and gradients per parameter group: the device's against those of the CPU in float32."""
  import jax
  import numpy as np

  cpu = jax.devices("cpu")[0]
  batch, params = _batch_and_params(config, cpu)
  reference = _gradients(config, "float32", cpu, batch, params)
  for dtype, (gradient_tolerance, loss_tolerance) in TOLERANCE.items():
    losses, gradients = _gradients(config, dtype, jax.devices()[0], batch, params)
    loss_errors = {
      name: abs(losses[name] - value) / max(abs(value), 1e-6) for name, value in reference[0].items()
    }
    errors = {
      name: float(np.linalg.norm(gradients[name] - value) / max(float(np.linalg.norm(value)), 1e-12))
      for name, value in reference[1].items()
    }
    # Written so that NaN is not within.
    outside = [name for name, error in loss_errors.items() if not error <= loss_tolerance]
    outside += [name for name, error in errors.items() if not error <= gradient_tolerance]
    report(
      **{
        dtype: {
          "tolerance": {"gradient": gradient_tolerance, "loss": loss_tolerance},
          "loss_errors": loss_errors,
          "gradient_errors": errors,
          "outside": outside,
        }
      }
    )


def _batch_and_params(config: ConfigDict, cpu: Any) -> tuple[Any, Any]:
  """Random windows and initial parameters, on the CPU."""
  import jax
  import jax.numpy as jnp
  import world_model as benchmark

  from wam_jax.data import windows
  from wam_jax.nn.world_model import make_world_model
  from wam_jax.training import world_model as wm

  size, length = (min(a, b) for a, b in zip(WINDOWS, _batch_shape(config), strict=True))
  with jax.default_device(cpu):
    # Dark pictures, so that the errors of pixels have one sign and their sums are large: it then shows if
    # bfloat16 is added up in bfloat16.
    darker = lambda x: x // 2 if x.dtype == jnp.uint8 else x
    store = jax.tree.map(darker, benchmark.make_store(500))
    batch = windows.Sampler(500, size, length).sample(store, jax.random.key(2), jnp.int32(0))
    return batch, wm.init_params(make_world_model(config.world_model), jax.random.key(1))


def _batch_shape(config: ConfigDict) -> tuple[int, int]:
  return config.world_model.batch_size, config.world_model.sequence_length


def _gradients(
  config: ConfigDict, dtype: str, device: Any, batch: Any, params: Any
) -> tuple[dict[str, float], dict[str, Any]]:
  """Losses, and gradients of each parameter group [n], with products as exact as the dtype allows."""
  import jax
  import numpy as np

  from wam_jax.core.backend import compiling_for
  from wam_jax.nn.world_model import make_world_model
  from wam_jax.training import world_model_training as wm_training

  c = config.world_model.copy_and_resolve_references()
  c.compute_dtype = dtype
  with compiling_for(device.platform), jax.default_device(device), jax.default_matmul_precision("highest"):
    model = make_world_model(c)
    gradients = jax.jit(wm_training.make_gradients(model, c))
    draws = wm_training.draw(model, c, jax.random.key(3), *batch.is_first.shape)
    draws = wm_training.Draws(FIXED * draws.noise, draws.decoded, draws.hidden)
    grads, (metrics, _) = gradients(*jax.device_put((params, batch, draws, None), device))
  groups: dict[str, list[Any]] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(grads)):
    name = "/".join(key.key for key in path[: min(2, len(path) - 1)])
    name += "/bias" if path[-1].key == "bias" else ""  # sums over all frames, where rounding adds up
    groups.setdefault(name, []).append(np.asarray(leaf, np.float32).ravel())
  losses = {name: float(value) for name, value in metrics.items() if name.startswith("loss/")}
  return losses, {name: np.concatenate(parts) for name, parts in groups.items()}


def world_model(config: ConfigDict, report: Report) -> None:
  """Seconds of an update, and what share of the device's products of large matrices that is."""
  import jax.numpy as jnp
  import world_model as benchmark

  tiny = config.world_model.deter == TINY["world_model.deter"]
  num, frames = (2, 500) if tiny else (UPDATES_A_CALL, FRAMES)
  ours = benchmark.Ours(config.world_model, num, frames)
  report(updates_a_call=num, frames=frames, **measure(ours, 3, num))
  report(peak_bytes=_peak_bytes())
  c = config.world_model
  report(flops=benchmark.flops(c), matmul_flops=benchmark.matmul_rate(jnp.bfloat16, 256 if tiny else 8192))


def _peak_bytes() -> int | None:
  """Of the device's memory, where it counts."""
  import jax

  return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def ppo(config: ConfigDict, report: Report) -> None:
  """Seconds of an iteration of eight tasks in one program."""
  import policy as benchmark

  iterate = benchmark.Ours(config).iteration_of_tasks(TASKS)
  report(tasks=TASKS, **measure(iterate, 5))


def acting(config: ConfigDict, report: Report) -> None:
  """Milliseconds of a control step that filters only, and of one that also samples a chunk."""
  import acting as benchmark
  import numpy as np

  policy = benchmark.random_policy(config)
  wall = benchmark.latencies(policy, benchmark.SIDES["as CALVIN has them"], ACTING_FRAMES)[0]
  samples = np.arange(ACTING_FRAMES) % policy.chunk == 0
  for name, chosen in (("filters", ~samples), ("samples", samples)):
    half, late = np.percentile(wall[chosen], [50, 99])
    report(**{name: {"seconds": half / 1e3, "late_seconds": late / 1e3}})


def torch_world_model(config: ConfigDict, report: Report, compiled: bool) -> None:
  """Seconds of the same update in PyTorch; on a CPU in float32."""
  import torch
  import world_model as benchmark

  device = _torch_device()
  if device == "cpu":
    config.world_model.compute_dtype = "float32"
  torch.set_float32_matmul_precision("high")
  update, _ = benchmark.torch_reference(config.world_model, device, compiled)
  report(
    torch_device=device, dtype=config.world_model.compute_dtype, torch=torch.__version__, **measure(update, 3)
  )


def torch_ppo(config: ConfigDict, report: Report, compiled: bool) -> None:
  """Seconds of an iteration in PyTorch without repeated work, one task after the other."""
  import policy as benchmark
  import torch

  device = _torch_device()
  torch.set_float32_matmul_precision("high")
  ours = benchmark.Ours(config)
  with torch.device(device):
    reference = benchmark.Reference(ours, lean=True, compiled=compiled)

    def iterate() -> None:
      reference.iteration()
      if device != "cpu":
        torch.cuda.synchronize()

    times = measure(iterate, 2)
  report(
    torch_device=device, torch=torch.__version__, tasks=TASKS, **times | {"seconds": TASKS * times["seconds"]}
  )


def _torch_device() -> str:
  import torch

  return "cuda" if torch.cuda.is_available() else "cpu"


@dataclasses.dataclass(frozen=True)
class Part:
  """One process.

  Attributes:
    run: (config, report) -> None; calls `report` with each number once it is known.
    limit: seconds after which it is ended.
    least: seconds under which it is not begun.
    flags: for XLA.
    platforms: on which it means something.
    torch: whether it needs PyTorch.
  """

  run: Callable[[ConfigDict, Report], None]
  limit: float
  least: float
  flags: str = ""
  platforms: tuple[str, ...] = ("cpu", "gpu", "tpu")
  torch: bool = False


_OfTorch = functools.partial(Part, platforms=("cpu", "gpu"), torch=True)
PARTS: dict[str, Part] = {  # the most valuable first
  "agreement": Part(agreement, 150, 45),
  "world_model": Part(world_model, 150, 45),
  "ppo": Part(ppo, 100, 30),
  "torch_world_model": _OfTorch(functools.partial(torch_world_model, compiled=False), 60, 20),
  "command_buffer": Part(world_model, 120, 45, GRAPHS, ("gpu",)),
  "acting": Part(acting, 60, 20),
  "torch_ppo": _OfTorch(functools.partial(torch_ppo, compiled=False), 60, 20),
  "torch_world_model_compiled": _OfTorch(functools.partial(torch_world_model, compiled=True), 150, 60),
  "torch_ppo_compiled": _OfTorch(functools.partial(torch_ppo, compiled=True), 100, 40),
}


def run_part(name: str, size: str, device: str, file: pathlib.Path) -> None:
  """In a process of its own: measures a part, and writes each number once it is known.

  Raises:
    RuntimeError: JAX does not compute on that device.
  """
  prepare_jax()
  import jax

  if jax.default_backend() != device:
    raise RuntimeError(f"JAX computes on {jax.default_backend()}, not on a {device}")
  numbers: dict[str, Any] = {}

  def report(**more: Any) -> None:
    numbers.update(more)
    _write(file, json.dumps(numbers))

  report(device=describe_device())
  try:
    if name in PARTS:
      PARTS[name].run(make_config(size), report)
  except Exception as error:
    report(problem=f"{type(error).__name__}: {error}")
    raise


def describe_device() -> dict[str, Any]:
  """Device, driver, versions."""
  import jax

  from wam_jax.host.provenance import provenance

  first = jax.devices()[0]
  facts = provenance()
  names = ("wam_jax", "commit", "python", "packages", "platform", "cpu", "cores", "devices", "date")
  driver = None
  if first.platform == "gpu" and shutil.which("nvidia-smi"):
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
      lines = subprocess.run(query, check=True, capture_output=True, text=True, timeout=20).stdout
      driver = lines.splitlines()[0].strip() if lines else None
  runtime = first.client.platform_version.strip()
  return {name: facts[name] for name in names} | {"driver": driver, "runtime": runtime}


def _write(file: pathlib.Path, text: str) -> None:
  """Whole or not at all."""
  part = file.with_suffix(".part")
  part.write_text(text, encoding="utf-8")
  os.replace(part, file)


def call_part(name: str, size: str, device: str, flags: str, limit: float) -> dict[str, Any]:
  """Runs a part in a process of its own; returns its numbers, with "problem" if it failed or was ended.

  What it wrote to stderr is passed on if it failed.
  """
  platforms = {"cpu": "cpu", "gpu": "cuda,cpu", "tpu": "tpu,cpu"}[device]
  # Without preallocation, so that PyTorch finds memory next to JAX.
  environ = os.environ | {"JAX_PLATFORMS": platforms, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
  environ["XLA_FLAGS"] = f"{environ.get('XLA_FLAGS', '')} {flags}".strip()
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / "numbers.json"
    command = [sys.executable, __file__, f"--part={name}", f"--into={file}"]
    command += [f"--size={size}", f"--device={device}"]
    problem = None
    begin = time.perf_counter()
    try:
      done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=limit)
      if done.returncode:
        print(done.stderr, file=sys.stderr)
        lines = done.stderr.strip().splitlines()
        problem = f"ended with {done.returncode}: {lines[-1] if lines else 'no message'}"
    except subprocess.TimeoutExpired:
      problem = f"ended at its limit of {limit:.0f} s"
    numbers = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
  numbers["wall_s"] = time.perf_counter() - begin
  return {"problem": problem} | numbers if problem else numbers


def skip_reason(part: Part, device: str, left: float) -> str | None:
  """Why a part is not begun with `left` seconds to go."""
  if device not in part.platforms:
    return f"means nothing on a {device}"
  if part.torch and importlib.util.find_spec("torch") is None:
    return "PyTorch is not installed"
  if left < part.least:
    return f"needs {part.least:.0f} s, {max(left, 0):.0f} s were left"
  return None


def derived(config: ConfigDict, parts: dict[str, dict[str, Any]]) -> dict[str, float]:
  """What follows from the numbers: whole trainings, ratios, share of the device's peak."""
  out = {}
  seconds = {name: part["seconds"] for name, part in parts.items() if "seconds" in part}
  if "world_model" in seconds:
    out["world_model_hours"] = config.world_model.updates * seconds["world_model"] / 3600
    if "matmul_flops" in (part := parts["world_model"]):
      out["share_of_matmul"] = part["flops"] / part["seconds"] / part["matmul_flops"]
  if "ppo" in seconds:
    out["ppo_minutes"] = config.ppo.iterations * seconds["ppo"] / 60
  for base, others in {"world_model": ("torch_world_model", "command_buffer"), "ppo": ("torch_ppo",)}.items():
    for name in (n for other in others for n in (other, f"{other}_compiled")):
      if base in seconds and name in seconds:
        out[f"{name}_over_ours"] = seconds[name] / seconds[base]
  return out


def table(results: dict[str, Any]) -> str:
  """The results as Markdown, for docs/BENCHMARKS.md."""
  parts, more, config = results["parts"], results["derived"], make_config(results["size"])
  rows: list[tuple[str, str, str]] = []
  batch = " x ".join(map(str, _batch_shape(config)))

  def row(name: str, what: str, aim: str, text: Callable[[dict[str, Any]], str]) -> None:
    part = parts.get(name)
    if part is None:
      rows.append((what, "not begun", aim))
      return
    reason = part.get("skipped") or part.get("problem")
    reason = reason and " ".join(reason.replace("|", "/").split())[:200]  # fits into a cell
    try:
      value = text(part)
    except KeyError:  # it did not get so far
      value = "not measured"
    rows.append((what, f"{value} ({reason})" if reason else value, aim))

  def milliseconds(part: dict[str, Any], ratio: str | None = None) -> str:
    times = f", {more[ratio]:.2f} times ours" if ratio in more else ""
    return f"{1e3 * part['seconds']:.2f} ms{times}"

  def agree(part: dict[str, Any], dtype: str) -> str:
    errors, limits, outside = (part[dtype][name] for name in ("gradient_errors", "tolerance", "outside"))
    worst = max(errors, key=errors.get)
    verdict = f"NOT within: {', '.join(outside)}" if outside else "all within"
    bounds = f"{limits['gradient']:g} (losses {limits['loss']:g})"
    return f"{verdict}; bounds {bounds}; worst gradient {worst}, {errors[worst]:.1e}"

  for dtype in TOLERANCE:
    what = f"gradients and losses against the CPU's float32, {dtype}"
    row("agreement", what, "within tolerance", functools.partial(agree, dtype=dtype))
  row("world_model", f"world-model update, {batch}, bfloat16", "at most 25 ms", milliseconds)
  share = lambda _: f"{more['share_of_matmul']:.1%}"
  row("world_model", "its products, of the rate of large ones", "", share)
  updates, iterations = f"{config.world_model.updates:,}", config.ppo.iterations
  row("world_model", f"{updates} updates", "under 2 h", lambda _: f"{more['world_model_hours']:.2f} h")
  compared = lambda ratio: functools.partial(milliseconds, ratio=ratio)
  row("command_buffer", "the update with loops in CUDA graphs", "", compared("command_buffer_over_ours"))
  for name, how, aim in (
    ("torch_world_model", "eager", "at least 5 times ours"),
    ("torch_world_model_compiled", "compiled", ""),
  ):
    row(name, f"the update in PyTorch, {how}", aim, compared(f"{name}_over_ours"))
  row("ppo", f"PPO iteration, {TASKS} tasks", "", milliseconds)
  row("ppo", f"{iterations} iterations", "under 10 min", lambda _: f"{more['ppo_minutes']:.2f} min")
  for name, how in (("torch_ppo", "eager"), ("torch_ppo_compiled", "its network compiled")):
    what = f"the iteration in PyTorch, one task after the other, {how}"
    row(name, what, "", compared(f"{name}_over_ours"))
  for name, what in (("filters", "filters"), ("samples", "filters and samples a chunk")):
    late = lambda part, n=name: (
      f"{1e3 * part[n]['seconds']:.2f} ms (99 %: {1e3 * part[n]['late_seconds']:.2f})"
    )
    row("acting", f"control step, {what}", "", late)
  device = results["device"]
  versions = ", ".join(f"{name} {version}" for name, version in device["packages"].items() if "jax" in name)
  head = f"{', '.join(device['devices'])}, driver {device['driver']}, {versions}, size `{results['size']}`."
  lines = [head, "", "| what | measured | aim on an H100 |", "|---|---|---|"]
  return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in rows)]) + "\n"


def main() -> None:
  """Runs the parts; prints the table and where the results are."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--device", choices=("gpu", "tpu", "cpu"), default="gpu")
  parser.add_argument("--size", choices=("paper", "tiny"), default="paper")
  parser.add_argument("--parts", default=",".join(PARTS), help="those to run, in this order")
  parser.add_argument("--minutes", type=float, default=9.5, help="for everything")
  parser.add_argument(
    "--out", type=pathlib.Path, default=pathlib.Path("."), help="folder of card.json, card.md"
  )
  parser.add_argument("--part", help=argparse.SUPPRESS)
  parser.add_argument("--into", type=pathlib.Path, help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  if arguments.part:
    run_part(arguments.part, arguments.size, arguments.device, arguments.into)
    return
  names = arguments.parts.split(",")
  if unknown := set(names) - set(PARTS):
    parser.error(f"unknown parts {sorted(unknown)}; there are {', '.join(PARTS)}")
  end = time.perf_counter() + 60 * arguments.minutes - MARGIN
  arguments.out.mkdir(parents=True, exist_ok=True)
  first = call_part("device", arguments.size, arguments.device, "", end - time.perf_counter())
  if "problem" in first:
    parser.error(f"no {arguments.device} to measure: {first['problem']}")
  parts: dict[str, Any] = {}
  results = {"size": arguments.size, "device": first["device"], "parts": parts, "derived": {}}
  for name in names:
    part, left = PARTS[name], end - time.perf_counter()
    reason = skip_reason(part, arguments.device, left)
    if reason:
      parts[name] = {"skipped": reason}
    else:
      limit = min(part.limit, left)
      parts[name] = call_part(name, arguments.size, arguments.device, part.flags, limit)
      parts[name].pop("device", None)
    results["derived"] = derived(make_config(arguments.size), parts)
    _write(arguments.out / "card.json", json.dumps(results, indent=2) + "\n")
    _write(arguments.out / "card.md", table(results))
    state = parts[name].get("skipped") or parts[name].get("problem") or f"{parts[name]['wall_s']:.0f} s"
    print(f"{name}: {state}", flush=True)
  print(f"\n{table(results)}\nwritten: {arguments.out / 'card.json'}, {arguments.out / 'card.md'}")


if __name__ == "__main__":
  main()
