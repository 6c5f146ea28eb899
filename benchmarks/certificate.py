"""Whether certificates are true: predicted against real success of finished policies.

python benchmarks/certificate.py --measure=RUN,RUN --out=FOLDER   # dreams of finished runs, and real success
python benchmarks/certificate.py --fit=FOLDER                     # numbers of core/certificate.CALIBRATION
python benchmarks/certificate.py --prove=FOLDER                   # how often intervals hold, ranks, choices

A run is a work folder with stage evaluate or evaluate_cloned. Settle on some runs (--fit), prove on others.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from ml_collections import ConfigDict

from wam_jax.core import bootstrap, certificate

STAGES = ("world_model", "featurize", "classifier", "behaviour_cloning", "ppo")


def measure(workdir: pathlib.Path) -> dict[str, Any]:
  """Certificate of the policies that a run trained, with what the simulator said of them.

  Args:
    workdir: of the run.
  """
  from wam_jax.acting import models
  from wam_jax.acting.policy_table import POLICIES
  from wam_jax.host.logger import Logger
  from wam_jax.running import ppo_setup
  from wam_jax.running.stage_run import StageRun
  from wam_jax.stages import certify
  from wam_jax.storage.artifact import load_artifact

  evaluated = next(
    load_artifact(workdir / stage) for stage in ("evaluate", "evaluate_cloned") if (workdir / stage).exists()
  )
  config = ConfigDict(evaluated.config)
  folders = {name: config.inputs.get(name) or workdir / name for name in STAGES}
  folders["classifier"] = config.inputs.get("classifier") or pathlib.Path(folders["featurize"])
  if (workdir / "classifier").exists():
    folders["classifier"] = workdir / "classifier"
  needed = [name for name in STAGES if name != "ppo" or evaluated.stage == "evaluate"]
  inputs = {name: load_artifact(folders[name], name) for name in needed}
  config = ConfigDict(inputs["behaviour_cloning"].config)
  config.env, config.seed = ConfigDict(evaluated.config["env"]), evaluated.config["seed"]
  networks = ppo_setup.load_networks(StageRun(config, inputs, workdir, cast(Any, Logger)))
  results = json.loads((evaluated.path / "results.json").read_text(encoding="utf-8"))["policies"]
  policies = {}
  for name in results:
    row = POLICIES[name]
    if row.stage and (workdir / row.stage).exists():  # others belong to another run
      policies[name] = models.load_policy(inputs[row.stage], row.selected)[1]
  quality = json.loads((inputs["classifier"].path / "quality.json").read_text(encoding="utf-8"))
  dreams = certify.Dreams(config, inputs["featurize"].path, networks)
  content = certify.certify(dreams, quality, policies, 0.8)
  measured: dict[str, Any] = {"run": "/".join(workdir.parts[-2:]), "tasks": content["tasks"], "policies": {}}
  for name, entry in content["policies"].items():
    measured["policies"][name] = {
      task: {
        "called": row["called"],
        "rogan_gladen": (row["rogan_gladen"] or {}).get("value"),
        "numbers": {rule: cell["value"] for rule, cell in row["numbers"].items()},
        "successes": results[name]["per_task"][task]["successes"],
        "n": results[name]["per_task"][task]["n"],
      }
      for task, row in entry["per_task"].items()
    }
  return measured


def cases(folder: pathlib.Path) -> list[dict[str, Any]]:
  """One entry per policy of the files that `measure` made: its tasks' numbers as arrays over tasks."""
  out = []
  for path in sorted(folder.glob("*.json")):
    content = json.loads(path.read_text(encoding="utf-8"))
    for name, entry in content["policies"].items():
      rows = list(entry.values())
      out.append(
        {
          "run": content["run"],
          "policy": name,
          "tasks": content["tasks"],
          "called": [np.array(row["called"]) for row in rows],
          "told_apart": [row["numbers"]["told_apart"] for row in rows],
          "corrected": [row["rogan_gladen"] for row in rows],
          "numbers": [row["numbers"] for row in rows],
          "successes": np.array([row["successes"] for row in rows]),
          "n": np.array([row["n"] for row in rows]),
        }
      )
  return out


def fit(policies: Sequence[dict[str, Any]]) -> None:
  """Prints the most likely calibration: binomial counts, normal errors of policy and task in log-odds."""
  from scipy import optimize, stats

  nodes, weights = np.polynomial.hermite_e.hermegauss(15)
  weights = weights / weights.sum()

  def minus_log_likelihood_of(group: Sequence[dict[str, Any]], values: Sequence[float]) -> float:
    (intercept, slope), (of_task, of_policy) = values[:2], np.exp(values[2:])
    total = 0.0
    for case in group:
      imagined = np.array([certificate.log_odds(c.sum(), len(c)) for c in case["called"]])
      centre = intercept + slope * imagined + of_policy * nodes[:, None]
      p = 1 / (1 + np.exp(-(centre[..., None] + of_task * nodes)))
      chance = (stats.binom.pmf(case["successes"][:, None], case["n"][:, None], p) * weights).sum(-1)
      total -= math.log((weights * chance.prod(1)).sum() + 1e-300)
    return total

  options = {"maxiter": 2000, "xatol": 1e-3, "fatol": 1e-3}
  loss = lambda values: minus_log_likelihood_of(policies, values)
  best = optimize.minimize(loss, [0.0, 1.0, 0.0, -1.0], method="Nelder-Mead", options=options)
  least = min(apart for case in policies for apart in case["told_apart"] if apart is not None)
  values = [*best.x[:2], *np.exp(best.x[2:]), least]
  names = ("intercept", "slope", "of_task", "of_policy", "reference")
  print(f"{len(policies)} policies:", ", ".join(f"{n} {v:.2f}" for n, v in zip(names, values, strict=True)))
  offsets = np.linspace(-2, 3, 201)
  for case in policies:  # alike on one world model: how far these differ says what of_policy must be
    chance = [minus_log_likelihood_of([case], [x, *best.x[1:3], -9.0]) for x in offsets]
    weight = np.exp(min(chance) - np.array(chance))
    mean = float((weight * offsets).sum() / weight.sum())
    print(f"  {case['run']}, {case['policy']}: intercept {mean:.2f}")


def prove(policies: Sequence[dict[str, Any]], required: float = 0.8) -> dict[str, Any]:
  """How true certificates were of policies that the simulator has measured."""
  rng, rows, of_tasks, verdicts = np.random.default_rng(0), [], [], []
  by_run: dict[str, dict[str, tuple[Any, dict[str, Any]]]] = {}
  for case in policies:
    draws = certificate.draw(case["called"], case["told_apart"])
    real = case["successes"] / case["n"]
    # What an evaluation of so many episodes may show, if the draws are right.
    shown = rng.binomial(case["n"][:, None], draws) / case["n"][:, None]
    mean, evaluated = certificate.interval(draws.mean(0)), certificate.interval(shown.mean(0))
    imagined = [float(c.mean()) for c in case["called"]]
    rows.append(
      {
        "run": case["run"],
        "policy": case["policy"],
        "n": int(case["n"].sum()),
        "real": float(real.mean()),
        "imagined": float(np.mean(imagined)),
        "predicted": mean,
        "evaluation": evaluated,
      }
    )
    for k, task in enumerate(case["tasks"]):
      of_tasks.append(
        {
          "task": task,
          "real": float(real[k]),
          "imagined": imagined[k],
          "rogan_gladen": case["corrected"][k],
          "predicted": certificate.interval(draws[k]),
          "evaluation": certificate.interval(shown[k]),
        }
      )
    by_run.setdefault(case["run"], {})[case["policy"]] = (real, case | {"draws": draws})
  choices = []
  for run, pair in by_run.items():
    for k in range(len(next(iter(pair.values()))[0])):
      predicted = {name: certificate.interval(case["draws"][k]) for name, (_, case) in pair.items()}
      numbers = {name: case["numbers"][k] for name, (_, case) in pair.items()}
      verdict = certificate.verdict(predicted, numbers, required)
      verdicts.append((verdict["verdict"], float(pair[verdict["policy"]][0][k])))
    if len(pair) > 1:
      means = {name: certificate.interval(case["draws"].mean(0))["value"] for name, (_, case) in pair.items()}
      best = max(real.mean() for real, _ in pair.values())
      choices.append((run, float(best - pair[max(means, key=lambda name: means[name])][0].mean())))
  inside = lambda row, kind: row[kind]["low"] - 1e-9 <= row["real"] <= row[kind]["high"] + 1e-9
  summary: dict[str, Any] = {}
  for level, entries in (("policies", rows), ("tasks", of_tasks)):
    real = [row["real"] for row in entries]
    expected = [row["predicted"]["value"] for row in entries]
    summary[level] = {
      "count": len(entries),
      "held": float(np.mean([inside(row, "predicted") for row in entries])),
      "held_with_noise_of_evaluation": float(np.mean([inside(row, "evaluation") for row in entries])),
      "width": float(np.mean([row["predicted"]["high"] - row["predicted"]["low"] for row in entries])),
      "rank_correlation": bootstrap.rank_correlation(real, expected),
      "error": float(np.abs(np.subtract(real, expected)).mean()),
      "error_imagined": float(np.abs(np.subtract(real, [row["imagined"] for row in entries])).mean()),
    }
  told = [row for row in of_tasks if row["rogan_gladen"] is not None]
  errors = [abs(row["real"] - row["rogan_gladen"]) for row in told]
  summary["tasks"]["error_rogan_gladen"] = float(np.mean(errors))
  losses = [loss for _, loss in choices]
  summary["choice"] = {"runs": len(choices), "mean_loss": float(np.mean(losses)), "largest": max(losses)}
  summary["verdicts"] = {
    word: {
      "tasks": len(group),
      "real": float(np.mean(group)) if group else None,
      "at_least_required": float(np.mean([x >= required for x in group])) if group else None,
    }
    for word in ("deploy", "collect", "do not trust")
    for group in [[real for verdict, real in verdicts if verdict == word]]
  }
  return {"summary": summary, "policies": rows}


def markdown(proof: dict[str, Any]) -> str:
  """The table of docs/EXPERIMENTS.md."""
  percent = lambda x: f"{100 * x:.1f}"
  lines = ["| policy | n | imagined | predicted (95 %) | real | held |", "|---|---:|---:|---:|---:|---|"]
  for row in proof["policies"]:
    p, held = row["predicted"], row["predicted"]["low"] <= row["real"] <= row["predicted"]["high"]
    span = f"{percent(p['value'])} ({percent(p['low'])} to {percent(p['high'])})"
    cells = [f"{row['run']}, {row['policy']}", str(row["n"]), percent(row["imagined"]), span]
    lines.append("| " + " | ".join([*cells, percent(row["real"]), "yes" if held else "no"]) + " |")
  return "\n".join(lines)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--measure", metavar="RUN,RUN", default="", help="work folders of finished runs")
  parser.add_argument("--out", type=pathlib.Path, help="folder for the cases of --measure, file for --prove")
  parser.add_argument("--fit", metavar="FOLDER", type=pathlib.Path, help="of cases")
  parser.add_argument("--prove", metavar="FOLDER", type=pathlib.Path, help="of cases")
  args = parser.parse_args()
  if args.measure:
    if args.out is None:
      parser.error("--measure needs --out=FOLDER")
    args.out.mkdir(parents=True, exist_ok=True)
    for workdir in map(pathlib.Path, args.measure.split(",")):
      content = measure(workdir.absolute())
      text = json.dumps(content, separators=(",", ":")) + "\n"
      (args.out / f"{content['run'].replace('/', '_')}.json").write_text(text, encoding="utf-8")
      print(workdir, flush=True)
  elif args.fit:
    fit(cases(args.fit))
  elif args.prove:
    proof = prove(cases(args.prove))
    print(markdown(proof))
    print(json.dumps(proof["summary"], indent=2))
    if args.out:
      args.out.write_text(json.dumps(proof, indent=1) + "\n", encoding="utf-8")
  else:
    parser.error("nothing to do: --measure, --fit or --prove")


if __name__ == "__main__":
  main()
