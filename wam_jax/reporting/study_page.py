"""The page of a study's results: Markdown and charts, made from the JSON files of its pieces alone.

Two texts are taken in as they are, next to the results: `reading.md`, what people make of the numbers, and
`design.md`, what was decided before the runs. The study of distractors has a page of its own kind. On that of
the reproduction, studies on another simulator, in folders next to it, have a section each. In the folder
`calvin` there: results.json of stage evaluate, of runs on CALVIN's simulator, as `<arm>_seed<n>.json`.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wam_jax import config as config_lib
from wam_jax.config.arms import ARMS, DIAL, MAIN, PAIRS, REPRODUCTION
from wam_jax.host.regular_files import read_text
from wam_jax.host.tables import NOTHING, markdown_table
from wam_jax.host.words import duration
from wam_jax.reporting import charts
from wam_jax.reporting.study_lead import cells_beside, dial, draw_cells, explanation
from wam_jax.reporting.study_results import (
  Cell,
  Result,
  Results,
  common_seeds,
  curves,
  page_of,
  read_results,
)
from wam_jax.reporting.study_sections import (
  ablations,
  by_update,
  calvin,
  headline,
  models,
  per_task,
  power,
  ppo,
  seed_names,
)
from wam_jax.storage.artifact import write_text

COLOURS = {"wam": "#0a9568", "dreamerv2": "#2f6fde"}
SIMULATORS = {
  "play_table": "the embedded simulator",
  "calvin": "CALVIN's own simulator",
  "metaworld": "Meta-World",
}


def write_page(
  page: pathlib.Path, folder: pathlib.Path, seeds: Sequence[int] = (), arms: Sequence[str] = ()
) -> pathlib.Path:
  """Makes the page and its charts.

  Args:
    page: file to write; `<stem>_<chart>.svg` go into `folder`.
    folder: with the results.
    seeds: that were planned; those without a result are listed.
    arms: that were planned; the page is about the experiment that they, or the results, are of.

  Returns:
    `page`.
  """
  results = read_results(folder)
  folder.mkdir(parents=True, exist_ok=True)
  cells = cells_beside(folder) if is_of_dial(results, arms) else []
  for name, svg in (draw_charts(results) | draw_cells(cells)).items():
    write_text(folder / name, svg)
  page.parent.mkdir(parents=True, exist_ok=True)
  write_text(page, markdown(results, cells, folder, page, seeds, arms))
  return page


def _relative(path: pathlib.Path, start: pathlib.Path) -> str:
  return pathlib.Path(os.path.relpath(path, start)).as_posix()


# --- charts ---------------------------------------------------------------------------------------


def draw_charts(results: Results) -> dict[str, str]:
  """File name -> SVG."""
  out = {}
  legend = [(ARMS[arm].title, arm, COLOURS[arm]) for arm in MAIN]
  success_curves = curves(results)
  if success_curves:
    updates, _, arrays = success_curves
    rates = np.stack([x.mean((-1, -2)) for x in arrays])  # [seeds, arms, U]
    series = []
    for i, arm in enumerate(MAIN):
      series += [charts.Series(ARMS[arm].title, updates, rate[i], arm, dots=True) for rate in rates]
      series.append(charts.Series(ARMS[arm].title, updates, rates[:, i].mean(0), arm))
    svg = charts.line_chart(
      series, x_label="updates of the world model", title="", percent=True, x_ticks=updates
    )
    title = "Cloned success: mean and each seed"
    out["by_update.svg"] = charts.standalone(svg, title, legend)
  for arm in MAIN:
    pieces = [piece for piece in results.get(arm, {}).values() if piece.get("ppo", {}).get("real")]
    if not pieces:
      continue
    series = []
    for name, style in (("imagined", "imagined"), ("real", arm)):
      lines = [piece["ppo"][name] for piece in pieces]
      series += [
        charts.Series(name, [x for x, _ in line], [y for _, y in line], style, dots=True) for line in lines
      ]
      x = [point[0] for point in lines[0]]
      if all([point[0] for point in line] == x for line in lines):
        mean = np.mean([[y for _, y in line] for line in lines], axis=0)
        series.append(charts.Series(name, x, mean.tolist(), style))
    svg = charts.line_chart(series, x_label="PPO iteration", title="", percent=True)
    names = [("in dreams of held-out demos", "imagined", "#e0760f"), ("in the simulator", arm, COLOURS[arm])]
    title = f"PPO on {ARMS[arm].title}: mean and each seed"
    out[f"ppo_{arm}.svg"] = charts.standalone(svg, title, names)
  return out


# --- the page -------------------------------------------------------------------------------------


def markdown(
  results: Results,
  cells: Sequence[Cell],
  folder: pathlib.Path,
  page: pathlib.Path,
  seeds: Sequence[int] = (),
  arms: Sequence[str] = (),
) -> str:
  """The whole page.

  Args:
    results: arm -> seed -> piece.
    cells: of all studies next to it, for the page on distractors.
    folder: with the results, and the texts that are taken in.
    page: file that it is for, which its links and commands name.
    seeds: that were planned.
    arms: that were planned.
  """
  compared, relative = _compared(results), pathlib.Path(_relative(folder, page.parent))
  of_dial = is_of_dial(results, arms)
  title = "# Where does inverse dynamics help?" if of_dial else "# Does WAM do what the paper says?"
  sections = [[title, "", *_introduction(results, relative)], _text(folder / "reading.md")]
  if of_dial:
    sections += [dial(results), explanation(cells, relative), _text(folder / "design.md"), _cost(results)]
  else:
    sections += [
      headline(compared),
      per_task(compared),
      by_update(results, relative),
      ppo(compared, folder, relative),
      models(compared, folder, relative),
      ablations(results),
      *(_elsewhere(results, folder, relative) if _group(results) == REPRODUCTION else ()),
      _text(folder / "design.md"),
      power(results),
      _cost(compared),
    ]
  sections += [_not_run(results, seeds), _commands(results, page)]
  return "\n".join("\n".join(section) + "\n" for section in sections if section)


def is_of_dial(results: Results, arms: Sequence[str]) -> bool:
  """Whether a study asks where inverse dynamics helps, by its results or the arms that were planned."""
  return bool({*results, *arms} & set(DIAL))


def _elsewhere(results: Results, folder: pathlib.Path, relative: pathlib.Path) -> list[list[str]]:
  """A section for each study next to this one that ran on another simulator, and for runs on CALVIN's."""
  sections = []
  for path in sorted(folder.parent.iterdir()):
    is_study = path.name != "calvin" and any(list(path.glob(f"{arm}_seed*.json")) for arm in MAIN)
    other = read_results(path) if is_study and path != folder else {}
    if not other or _simulator(other) == _simulator(results):
      continue
    compared, place = _compared(other), pathlib.Path(os.path.normpath(relative / ".." / path.name))
    parts = [
      _introduction(other, place),
      _text(path / "reading.md"),
      headline(compared),
      per_task(compared),
      ppo(compared, path, place),
      models(compared, path, place),
      _text(path / "design.md"),
      power(compared),
    ]
    lines = [f"## The same on {_simulator(other)}: {path.name}"]
    for part in parts:
      lines += ["", *(f"#{line}" if line.startswith("## ") else line for line in part)] if part else []
    sections.append(lines)
  return [*sections, calvin(folder.parent / "calvin")]


def _simulator(results: Results) -> str:
  """Where a study ran, in words; empty without results."""
  piece = _any(results)
  name = piece["simulator"]["name"] if piece else ""
  return SIMULATORS.get(name, name)


def _text(path: pathlib.Path) -> list[str]:
  return read_text(path).rstrip().splitlines() if path.exists() else []


def _group(results: Results) -> Sequence[str]:
  """Arms of the experiment that the results are of."""
  piece = _any(results)
  if set(results) & set(DIAL):
    return DIAL
  return REPRODUCTION if piece and piece["experiment"] == "reproduction" else MAIN


def _any(results: Results) -> Result | None:
  return next((piece for pieces in results.values() for piece in pieces.values()), None)


def _compared(results: Results) -> dict[str, dict[int, Result]]:
  """The main arms with the seeds that all have; with all their seeds while they have none in common."""
  arms = [arm for arm in MAIN if results.get(arm)]
  common = common_seeds(results, MAIN) if len(arms) == len(MAIN) else []
  return {arm: {s: piece for s, piece in results[arm].items() if s in common or not common} for arm in arms}


def _introduction(results: Results, relative: pathlib.Path) -> list[str]:
  piece = _any(results)
  if piece is None:
    return ["No result yet."]
  of_dial = _group(results) == DIAL
  pairs = [pair for pair in PAIRS.items() if pair[0] in DIAL] if of_dial else [MAIN]
  seeds = sorted(set.intersection(*(set(common_seeds(results, pair)) for pair in pairs)))
  where = "at all levels" if of_dial else "of the main comparison"
  count = f"{_seeds(seeds)} {where}" if seeds else f"no seed {where} is complete yet"
  arms = "Both arms of a seed and level have" if of_dial else "All arms of a seed have"
  return [
    (
      "WAM and DreamerV2 world models, equal but for the inverse-dynamics loss, on the same frames; "
      f"preset `{piece['preset']}`, {_simulator(results)}, {len(piece['tasks'])} tasks, "
      f"{piece['episodes']} episodes per task, arm and seed; {count}. {arms} "
      f"the same frames, demos and start states{_shared(results)}; differences are paired by start state. "
      f"This page is made from [files of the pieces]({relative}); nothing in its tables is written by hand."
    ),
  ]


def _seeds(seeds: Sequence[int]) -> str:
  """seed 4; seeds 4, 5; seeds 4 to 6."""
  return f"seed{'s' if len(seeds) > 1 else ''} {seed_names(seeds)}"


def _shared(results: Results) -> str:
  """Which seeds have their frames in common, in words."""
  by_frames = _by_frames(results)
  shared = [
    f"{_seeds(seeds)} those recorded with seed {frames}"
    for frames, seeds in by_frames.items()
    if seeds != [frames]
  ]
  missing = ": what another recording changes is in no interval" if len(by_frames) == 1 else ""
  return f" ({'; '.join(shared)}{missing})" if shared else ""


def _by_frames(results: Results) -> dict[int, list[int]]:
  """Seed that recorded frames -> seeds of the pieces that learned from them."""
  seeds: dict[int, set[int]] = {}
  for pieces in results.values():
    for seed, piece in pieces.items():
      seeds.setdefault(piece.get("frames_of_seed", seed), set()).add(seed)
  return {frames: sorted(of) for frames, of in sorted(seeds.items())}


def _cost(results: Results) -> list[str]:
  stages: dict[str, None] = {}
  for pieces in results.values():
    for piece in pieces.values():
      stages |= dict.fromkeys(piece["seconds"])
  arms = list(results)
  if not arms:
    return []
  rows = [["Time, mean over seeds", *(ARMS[arm].title for arm in arms)]]
  for stage in stages:
    cells = []
    for arm in arms:
      times = [piece["seconds"][stage] for piece in results[arm].values() if stage in piece["seconds"]]
      cells.append(duration(float(np.mean(times))) if times else NOTHING)
    if any(cell != NOTHING for cell in cells):
      rows.append([stage, *cells])
  totals = [np.mean([sum(piece["seconds"].values()) for piece in results[arm].values()]) for arm in arms]
  rows.append(["**together**", *(duration(float(total)) for total in totals)])
  machines = sorted(
    {
      f"{piece['provenance']['cpu']} ({piece['provenance']['cores']} "
      f"core{'s' if piece['provenance']['cores'] != 1 else ''} per piece), "
      f"{', '.join(piece['provenance']['devices'])}"
      for pieces in results.values()
      for piece in pieces.values()
    }
  )
  peak = max(piece["peak_bytes"] for pieces in results.values() for piece in pieces.values())
  return [
    "## What it cost",
    "",
    markdown_table(rows),
    "",
    (
      f"On {'; '.join(machines)}; memory up to {peak / 2**30:.1f} GiB. Frames are collected once per "
      f"{'recording' if _shared(results) else 'seed and level' if _group(results) == DIAL else 'seed'}."
    ),
  ]


def _not_run(results: Results, planned: Sequence[int]) -> list[str]:
  piece = _any(results)
  if piece is None:
    return []
  seeds = sorted({*planned, *(seed for pieces in results.values() for seed in pieces)})
  lines = []
  for arm in _group(results):
    missing = [seed for seed in seeds if seed not in results.get(arm, {})]
    if missing:
      lines.append(
        f"- {ARMS[arm].title} (`{arm}`): {_seeds(missing) if results.get(arm) else 'none of the seeds'}"
      )
  return ["## Not run yet", "", *lines] if lines else []


def _commands(results: Results, page: pathlib.Path) -> list[str]:
  example = _any(results)
  if example is None:
    return []
  given, own = _given(example, page)
  given += ["--config.env.calvin_root=calvin_env"] if example["simulator"]["name"] == "calvin" else []
  collect = "--config.inputs.collect=FOLDER"
  arms = {} if own else {"arms": ",".join(results)}

  def command(study: Mapping[str, Any], *flags: str) -> str:
    flags = (*(f"--config.study.{name}={value}" for name, value in study.items()), *given, *flags)
    name = f"experiments/{example['experiment']}.py:{example['preset']}"
    return " ".join(["python -m wam_jax.main", f"--config={name}", *flags])

  by_frames = _by_frames(results)
  alone = [seed for frames, seeds in by_frames.items() if seeds == [frames] for seed in seeds]
  shared = {frames: seeds for frames, seeds in by_frames.items() if seeds != [frames]}
  study = lambda seeds: arms | ({} if own and not shared else {"seeds": ",".join(map(str, seeds))})
  rest = "what" if shared else "all that"
  lines = [f"{command(study(alone))}    # {rest} is not there, and this page"] if alone else []
  for frames, seeds in shared.items():
    lines.append(f"{command(study(seeds), collect)}    # what is not there; FOLDER: collect of seed {frames}")
  flags = () if example["seed"] in alone else (collect,)
  one = command({"arms": example["arm"], "seeds": example["seed"]}, *flags)
  lines.append(f"{one}    # one piece")
  every = sorted({seed for pieces in results.values() for seed in pieces})
  lines.append(f"{command({} if own else study(every), '--config.stage=report')}    # this page alone")

  commits = sorted(
    {commit[:10] for pieces in results.values() for piece in pieces.values() for commit in piece["commits"]}
  )
  return [
    "## The commands",
    "",
    "```bash",
    *lines,
    "```",
    "",
    (
      f"Code: commit{'s' if len(commits) > 1 else ''} {', '.join(commits)}. Each file holds all settings "
      "of its piece."
    ),
  ]


def _given(piece: Result, page: pathlib.Path) -> tuple[list[str], bool]:
  """Flags for a piece's settings and page that its experiment does not have; whether that names its seeds."""
  experiment = config_lib.own_experiments().get(piece["experiment"])
  if experiment is None:
    return [], True
  loaded = config_lib.load_experiment(f"{experiment}:{piece['preset']}")
  own = config_lib.flatten(loaded)
  as_text = lambda value: ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
  flags = [
    f"--config.{path}={as_text(value)}"
    for path, value in piece["settings"].items()
    if path != "seed"
    and path in own.keys() - piece["changes"].keys()
    and as_text(own[path]) != as_text(value)
  ]
  if page != page_of(loaded):
    flags.append(f"--config.study.page={page}")
  return flags, bool(own["study.seeds"])
