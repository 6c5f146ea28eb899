"""A first look at WAM against DreamerV2: the same world model with and without inverse dynamics.

  python benchmarks/first_look.py --workdir=runs/first_look --out=docs/FIRST_LOOK.md

Trains both world models of the demo preset on the same frames, keeps each at five update counts, and at each
judges it (open-loop prediction, probes, inverse dynamics), clones three skills on it, and runs them in the
embedded simulator. One seed: it shows that the instruments work, and decides nothing. About an hour on 2 CPU
cores; interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from ml_collections import FrozenConfigDict

from wam_jax import config as config_lib
from wam_jax.core import intervals
from wam_jax.io.artifact import load_artifact, write_text
from wam_jax.io.tables import markdown_table, number
from wam_jax.stages import runner

ARMS = {"WAM": 1000.0, "DreamerV2": 0.0}  # weight of the inverse-dynamics loss
TASKS = ("open_drawer", "move_slider_left", "turn_on_lightbulb")
UPDATES = (220, 550, 1100, 1650, 2200)
HORIZONS = (1, 10, 50)


def make_config(
  workdir: pathlib.Path, arm: str, seed: int, stage: str, **inputs: pathlib.Path
) -> FrozenConfigDict:
  """The demo preset with the arm's weight."""
  config = config_lib.preset_config("demo", experiment=f"first_look_{arm.lower()}")
  config.seed, config.tasks, config.stage, config.workdir = seed, TASKS, stage, str(workdir)
  config.world_model.inverse_dynamics_weight = ARMS[arm]
  config.world_model.updates, config.world_model.snapshots = UPDATES[-1], UPDATES
  config.evaluate.episodes = config.data.heldout_starts_per_task
  for name, path in inputs.items():
    config.inputs[name] = str(path)
  return config_lib.finalize(config)


def cloned_successes(workdir: pathlib.Path, arm: str, seed: int, **inputs: pathlib.Path) -> dict[str, int]:
  """Clones the tasks on a world model and counts successes: task -> episodes of `evaluate.episodes`."""
  file = workdir / "cloned.json"
  if file.exists():
    return json.loads(file.read_text(encoding="utf-8"))
  for stage in ("featurize", "behaviour_cloning"):
    runner.run(make_config(workdir, arm, seed, stage, **inputs))
  from wam_jax.io.logger import Logger
  from wam_jax.stages import evaluate

  config = make_config(workdir, arm, seed, "evaluate", **inputs)
  artifacts = {name: load_artifact(path, name) for name, path in inputs.items()}
  artifacts["behaviour_cloning"] = load_artifact(workdir, "behaviour_cloning")
  starts = evaluate.start_states(artifacts["collect"], TASKS, config.evaluate.episodes)
  logger = Logger(workdir, "evaluate")
  episodes = evaluate.PolicyRunner(config, artifacts, TASKS, *starts, logger).run("cloned")
  counts = {task: int(n) for task, n in zip(TASKS, episodes["success"].sum(1), strict=True)}
  write_text(file, json.dumps(counts) + "\n")
  return counts


def measure(root: pathlib.Path, seed: int, arms: Sequence[str]) -> list[dict[str, Any]]:
  """Runs what is not there yet; one record per arm and update count."""
  data = root / "data"
  runner.run(make_config(data, "WAM", seed, "collect"))
  records = []
  for arm in arms:
    runner.run(make_config(root / arm, arm, seed, "world_model", collect=data / "collect"))
  for update in UPDATES:
    for arm in arms:
      workdir = root / arm / str(update)
      inputs = {
        "collect": data / "collect",
        "world_model": root / arm / "world_model" / "snapshots" / str(update),
      }
      runner.run(make_config(workdir, arm, seed, "judge_world_model", **inputs))
      judge = json.loads((workdir / "judge_world_model" / "judge.json").read_text(encoding="utf-8"))
      successes = cloned_successes(workdir, arm, seed, **inputs)
      records.append({"arm": arm, "update": update, "judge": judge, "successes": successes})
  return records


def table(records: Sequence[dict[str, Any]], episodes: int) -> list[list[str]]:
  """Header and one row per record."""
  first = records[0]["judge"]
  targets = list(first["models"][0]["probes"])
  joints, lamps = [t for t in targets if not t.startswith("tcp")], [t for t in targets if t.startswith("tcp")]
  rows = [
    [
      "Updates",
      "Model",
      *(f"PSNR {h}" for h in HORIZONS),
      "tcp",
      *joints,
      *(f"{t} at {HORIZONS[1]}" for t in ("drawer", "slider")),
      "action error",
      *TASKS,
      "cloned, mean (95 %)",
    ]
  ]
  for record in records:
    judge, counts = record["judge"], record["successes"]
    model, horizons = judge["models"][0], judge["horizons"]
    psnr = lambda h, model=model, horizons=horizons: [
      c["psnr"][horizons.index(h)] for c in model["open_loop"].values()
    ]
    probe = model["probes"]
    errors = [e["error"] for e in model["inverse_dynamics"].values()]
    rate, low, high = intervals.mean_interval(list(counts.values()), [episodes] * len(TASKS))
    rows.append(
      [
        str(record["update"]),
        record["arm"],
        *(number(sum(psnr(h)) / len(psnr(h)), 2) for h in HORIZONS),
        number(sum(probe[t]["posterior"] for t in lamps) / len(lamps), 3),
        *(number(probe[t]["posterior"], 3) for t in joints),
        *(number(probe[t]["imagined"][horizons.index(HORIZONS[1])], 3) for t in ("drawer", "slider")),
        number(sum(errors) / len(errors), 4),
        *(f"{100 * counts[task] / episodes:.0f}" for task in TASKS),
        f"{100 * rate:.1f} ({100 * low:.0f}-{100 * high:.0f})",
      ]
    )
  return rows


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/first_look"))
  parser.add_argument("--seed", type=int, default=3)
  parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="to share the work")
  parser.add_argument("--out", type=pathlib.Path, help="file that takes the table, as Markdown")
  arguments = parser.parse_args()
  records = measure(arguments.workdir, arguments.seed, arguments.arms)
  episodes = make_config(arguments.workdir, "WAM", arguments.seed, "plan").evaluate.episodes
  text = markdown_table(table(records, episodes)) + "\n"
  write_text(arguments.workdir / "records.json", json.dumps(records, indent=2) + "\n")
  print("\n" + text)
  if arguments.out:
    write_text(arguments.out, text)


if __name__ == "__main__":
  main()
