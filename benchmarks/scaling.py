"""Updates per second of the world model by the number of processes, and what a model of it predicts.

python benchmarks/scaling.py --processes=1,2 [--preset=demo] [--batch_size=0] [--updates=100] [--repeats=3]

Each process has one core of its own. Runs of all numbers of processes take turns. The model: an update of N
processes takes 1/N of the work of one, what does not divide (the optimiser, measured alone), and the exchange
of gradients (measured alone; on other links 2 (N - 1) / N times their bytes over the bandwidth).
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
LOG_EVERY = 10


def launch(processes: int, *arguments: str, module: str = "wam_jax.main") -> str:
  """Output of a program in so many processes on a core each."""
  command = [sys.executable, "launch/local_multiprocess.py", f"--processes={processes}", "--cores_each=1"]
  command += [f"--module={module}", "--", *arguments]
  if processes == 1 and module == "wam_jax.main":
    command = ["taskset", "-c", "0", sys.executable, "-m", module, *arguments]
  done = subprocess.run(
    command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, stdout=subprocess.PIPE, text=True
  )
  if done.returncode:
    raise SystemExit(done.stdout[-3000:])
  return done.stdout


def train(
  processes: int, args: argparse.Namespace, collect: pathlib.Path, folder: pathlib.Path
) -> dict[str, float]:
  """Medians over the metric lines of one run, without the first two, which compile."""
  launch(
    processes,
    f"--config=experiments/calvin_wam.py:{args.preset}",
    f"--config.workdir={folder}",
    f"--config.inputs.collect={collect}",
    "--config.stage=world_model",
    f"--config.world_model.updates={args.updates}",
    f"--config.training.log_every={LOG_EVERY}",
    "--config.data.residency=stream",
    *([f"--config.world_model.batch_size={args.batch_size}"] if args.batch_size else []),
  )
  lines = [json.loads(line) for line in (folder / "world_model" / "metrics.jsonl").read_text().splitlines()][
    2:
  ]
  names = ("speed/updates_per_second", "time/update", "time/data")
  return {name: statistics.median(line[f"world_model/{name}"] for line in lines) for name in names}


def checkpoint_share(
  args: argparse.Namespace, collect: pathlib.Path, folder: pathlib.Path
) -> tuple[float, float]:
  """Seconds that a checkpoint keeps training waiting, and that it makes the updates beside it slower."""
  launch(
    1,
    f"--config=experiments/calvin_wam.py:{args.preset}",
    f"--config.workdir={folder}",
    f"--config.inputs.collect={collect}",
    "--config.stage=world_model",
    f"--config.world_model.updates={2 * args.updates}",
    f"--config.training.log_every={LOG_EVERY}",
    "--config.training.checkpoint_minutes=0.2",
  )
  lines = [json.loads(line) for line in (folder / "world_model" / "metrics.jsonl").read_text().splitlines()][
    2:
  ]
  waits = [LOG_EVERY * line["world_model/time/checkpoint"] for line in lines]
  saving = [wait > 0 for wait in waits]
  compute = [LOG_EVERY * line["world_model/time/compute"] for line in lines]
  beside = [
    c for c, before in zip(compute, saving, strict=True) if before
  ]  # the line after a save holds its wait
  alone = statistics.median(c for c, before in zip(compute, saving, strict=True) if not before)
  return statistics.median(w for w in waits if w), statistics.median(beside) - alone


def exchange() -> None:
  """In each of the processes: time of an exchange of gradients (`--exchange=BYTES`); printed by the first."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--coordinator")
  parser.add_argument("--num_processes", type=int)
  parser.add_argument("--process_id", type=int)
  parser.add_argument("--exchange", type=int)
  args = parser.parse_args()
  import jax
  import numpy as np

  from wam_jax.host import processes
  from wam_jax.training import sharding

  processes.start(args.coordinator, args.num_processes, args.process_id)
  mesh = sharding.make_mesh()
  assert mesh is not None
  mean = sharding.over_devices(lambda x, row: (sharding.mean_over_devices(x), row), mesh, split=(False, True))
  run = jax.jit(lambda x, row: sharding.whole(mean(x, row)[0], mesh))
  x = sharding.put(np.ones(args.exchange // 4, np.float32), mesh)
  row = sharding.put_rows(np.zeros(1, np.float32), mesh)
  times = []
  for _ in range(12):
    began = time.perf_counter()
    jax.block_until_ready(run(x, row))
    times.append(time.perf_counter() - began)
  if processes.is_first():
    print(json.dumps({"seconds": statistics.median(times[2:])}))
  processes.finish(0)


def alone(args: argparse.Namespace) -> tuple[int, float]:
  """Bytes of the gradients, and seconds of the optimiser: what every process does whole."""
  import jax
  import jax.numpy as jnp
  import optax

  from wam_jax import config as config_lib
  from wam_jax.nn.world_model import make_world_model
  from wam_jax.training import world_model as wm
  from wam_jax.training import world_model_training as wm_training

  w = config_lib.preset_config(args.preset).world_model
  model = make_world_model(w, 64)
  params = wm.init_params(model, jax.random.key(0))
  optimizer = wm_training.make_optimizer(w, params)

  @jax.jit
  def step(params: Any, opt_state: Any) -> Any:
    updates, opt_state = optimizer.update(jax.tree.map(jnp.ones_like, params), opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  state, times = (params, optimizer.init(params)), []
  for _ in range(12):
    began = time.perf_counter()
    state = jax.block_until_ready(step(*state))
    times.append(time.perf_counter() - began)
  return sum(4 * x.size for x in jax.tree.leaves(params)), statistics.median(times[2:])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--processes", default="1,2")
  parser.add_argument("--preset", default="demo")
  parser.add_argument("--batch_size", type=int, default=0, help="0: the preset's")
  parser.add_argument("--updates", type=int, default=100)
  parser.add_argument("--repeats", type=int, default=3)
  args = parser.parse_args()
  counts = [int(word) for word in args.processes.split(",")]
  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(scratch)
    settings = f"--config=experiments/calvin_wam.py:{args.preset}"
    launch(
      1, settings, f"--config.workdir={folder}", "--config.data.play_frames=4000", "--config.stage=collect"
    )
    found: dict[int, list[dict[str, float]]] = {n: [] for n in counts}
    for repeat in range(args.repeats):
      for n in counts:
        found[n].append(train(n, args, folder / "collect", folder / f"run{n}-{repeat}"))
    medians = {n: statistics.median(one["time/update"] for one in runs) for n, runs in found.items()}
    size, whole = alone(args)
    one = medians[1]
    print(f"{args.preset}: gradients of {size / 1e6:.1f} MB, optimiser {1000 * whole:.0f} ms of each process")
    for n in counts:
      speeds = ", ".join(f"{run['speed/updates_per_second']:.2f}" for run in found[n])
      text = (
        f"{n} processes: {1 / medians[n]:.2f} updates per second ({speeds}), {one / medians[n]:.2f} times one"
      )
      if n > 1:
        sent = json.loads(launch(n, f"--exchange={size}", module="benchmarks.scaling").splitlines()[-1])[
          "seconds"
        ]
        predicted = (one - whole) / n + whole + sent
        text += f"; exchange {1000 * sent:.0f} ms, predicted {one / predicted:.2f} times"
      print(text)
    waits, slower = checkpoint_share(args, folder / "collect", folder / "checkpoints")
    print(
      f"a checkpoint: {1000 * waits:.0f} ms of waiting, updates beside it {1000 * slower:+.0f} ms;", end=" "
    )
    print(f"every 2 minutes {100 * max(waits + max(slower, 0), 0) / 120:.2f} % of the time")


if __name__ == "__main__":
  exchange() if any(word.startswith("--exchange") for word in sys.argv) else main()
