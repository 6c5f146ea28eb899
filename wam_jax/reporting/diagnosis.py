"""What is wrong with a run: one table of rules, from which all colours of its report are made.

A row names a number by its path in `report.json`, its limits, the sentence that belongs to it, and its
section in docs/guides/when_success_is_low.md. Rules of `core.certificate` are rows too.
"""

from __future__ import annotations

import collections
import dataclasses
import operator
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from wam_jax.core.certificate import RULES, Rule
from wam_jax.host import tables
from wam_jax.host.words import count

GUIDE = "docs/guides/when_success_is_low.md"
SECTIONS = (
  "1. The data",
  "2. The world model: can it be read off?",
  "3. Cloning",
  "4. The classifier: is the reward true?",
  "5. Dreams and PPO: the gap",
)

Where = tuple[str | int, ...]


@dataclasses.dataclass(frozen=True)
class Row:
  """One number that has a rule.

  Attributes:
    rule: its limits and what they mean.
    section: index into SECTIONS.
    paths: where it stands in `report.json`: keys and indices with dots between; `*` is any of them, `a|b` one
      of two.
    against: path of a second number, which goes with the first of paths; its wildcards take the same values.
    value: of the number, and of the second one -> what the limits are of.
    percent: shown as percent.
  """

  rule: Rule
  section: int
  paths: tuple[str, ...]
  against: str = ""
  value: Callable[..., float] = float
  percent: bool = False

  def shown(self, value: float) -> str:
    """A value or a limit as text."""
    return f"{100 * value:.0f} %" if self.percent else f"{value:.2f}".removesuffix(".00")


def _of_quality(name: str, path: str, section: int = 3) -> Row:
  return Row(RULES[name], section, (f"quality.tasks.*.{path}", f"quality.{path}"), percent=True)


def _of_certificate(name: str, section: int) -> Row:
  return Row(RULES[name], section, (f"certificate.policies.*.per_task.*.numbers.{name}.value",))


ROWS: dict[str, Row] = {  # in the order of the chain
  "expert": Row(
    Rule(
      "Expert",
      0.95,
      0.8,
      "the scripted expert fails: the simulator, `env.max_steps` or the start states are the problem",
      "`python -m wam_jax.data.inspect` on the dataset",
    ),
    0,
    ("results.policies.expert.per_task.*.rate", "results.policies.expert.mean.rate"),
    percent=True,
  ),
  "posterior": Row(
    Rule(
      "Read off what was seen (R² or balanced accuracy)",
      0.8,
      0.6,
      "the features hold too little of it: a policy on them works blind",
      "a world model trained longer; `world_model.embedding_image_weight=1`",
    ),
    1,
    ("judge.models.0.probes|takes.*.posterior",),
  ),
  "reading": Row(
    Rule(
      "Read off dreams, minus last reading kept",
      0.0,
      -0.1,
      "reading it off a dream is worse than keeping the last reading",
      "a world model trained longer; `world_model.open_loop_share`",
    ),
    1,
    ("judge.models.0.probes|takes.*.imagined.*",),
    "judge.models.0.probes|takes.*.kept.*",
    operator.sub,
  ),
  "psnr": Row(
    Rule(
      "PSNR of dreams, minus last frame repeated, dB",
      0.0,
      -1.0,
      "the pictures of a dream are worse than the last frame seen, repeated",
      "a world model trained longer; where seen frames come out no better, a larger decoder",
    ),
    1,
    ("judge.models.0.open_loop.*.psnr.*",),
    "judge.models.0.repeated.*.psnr.*",
    operator.sub,
  ),
  "ssim": Row(
    Rule(
      "SSIM of dreams, minus last frame repeated",
      0.0,
      -0.1,
      "the shapes in a dream are less true than in the last frame seen, repeated",
      "as for PSNR; SSIM punishes blur most",
    ),
    1,
    ("judge.models.0.open_loop.*.ssim.*",),
    "judge.models.0.repeated.*.ssim.*",
    operator.sub,
  ),
  "hand": Row(
    Rule(
      "Error of the hand in dreams, over that of a linear recursion",
      1.0,
      1.5,
      "dreams lose the hand faster than ten coefficients do: the model has been trained too little, or its "
      "`robot_obs` is not what the robot reports",
      "a world model trained longer; `world_model.proprio=latent`",
    ),
    1,
    ("judge.models.0.hand.*.imagined.*.rms|median",),
    "judge.recursion.*.*.rms|median",
    operator.truediv,
  ),
  "follows_actions": _of_certificate("follows_actions", 1),
  "cloned": Row(
    Rule(
      "Cloned",
      0.6,
      0.3,
      "the cloned policy seldom succeeds, so that PPO has little success to learn from",
      "more updates of the world model, more takes of this skill",
    ),
    2,
    ("results.policies.cloned.per_task.*.rate", "results.policies.cloned.mean.rate"),
    percent=True,
  ),
  "told_apart_seen": _of_quality("told_apart_seen", "discrimination.real.difference.value"),
  "told_apart": _of_quality("told_apart", "discrimination.dreamt.difference.value"),
  "auc": dataclasses.replace(_of_quality("auc", "discrimination.dreamt.auc.value"), percent=False),
  "failed_called": Row(
    Rule(
      "Failed takes called a success, in dreams",
      0.3,
      0.6,
      "dreams turn takes that failed into successes: imagined success says too much",
      "more failed takes and more play of this skill; `world_model.open_loop_share`",
    ),
    3,
    (
      "quality.tasks.*.discrimination.dreamt.specificity.value",
      "quality.discrimination.dreamt.specificity.value",
    ),
    value=lambda specificity: 1 - specificity,
    percent=True,
  ),
  "random_success": _of_quality("random_success", "random_dreams.false_positives"),
  "disagreement": _of_certificate("disagreement", 3),
  "unfamiliar": _of_certificate("unfamiliar", 4),
  "kl_to_cloned": _of_certificate("kl_to_cloned", 4),
  "gap": Row(
    Rule(
      "Gap, imagined minus real",
      0.1,
      0.25,
      "the policy succeeds in dreams where it fails in the simulator: it lives off the model's mistakes",
      "stop PPO earlier; `ppo.bc_weight`; `ppo.prior_temperature=1.4`; `classifier.ensemble=3`",
    ),
    4,
    ("results.policies.ppo.per_task.*.gap", "results.policies.ppo.mean.gap"),
    percent=True,
  ),
  "gain": Row(
    Rule(
      "After PPO minus cloned",
      0.0,
      -0.05,
      "fewer episodes succeed after PPO than before it",
      "smaller `ppo.actor_learning_rate`; what is coloured above",
    ),
    4,
    ("results.ppo_minus_cloned.difference",),
    percent=True,
  ),
  "ppo": Row(
    Rule(
      "After PPO",
      0.8,
      0.5,
      "the final policy fails often: what is coloured above comes first in the chain and says why",
      "the first coloured number's remedy",
    ),
    4,
    ("results.policies.ppo.per_task.*.rate", "results.policies.ppo.mean.rate"),
    percent=True,
  ),
}


def anchor(section: str) -> str:
  """Of a heading, as GitHub makes it."""
  return re.sub(r"[^\w\- ]", "", section.lower()).replace(" ", "-")


def link(folder: pathlib.Path) -> str:
  """The guide as seen from a page's folder inside of a checkout; "" elsewhere: pages tell no paths."""
  root = pathlib.Path(__file__).resolve().parents[2]
  guide, folder = root / GUIDE, folder.resolve()
  if not guide.exists() or not folder.is_relative_to(root):
    return ""
  return pathlib.PurePath(os.path.relpath(guide, folder)).as_posix()


def of_section(section: int) -> list[str]:
  """Names of the rules of a section of the guide."""
  return [name for name, row in ROWS.items() if row.section == section]


def guide_rows(names: Sequence[str]) -> tables.Rows:
  """Some rules in words, header first; the guide shows this very table of each section."""
  rows = [["Number in the report", "Yellow", "Red", "It means", "Try"]]
  for name in names:
    row, rule = ROWS[name], ROWS[name].rule
    side = "above" if rule.red > rule.yellow else "below"
    limits = [f"{side} {row.shown(limit)}" for limit in (rule.yellow, rule.red)]
    rows.append([rule.label, *limits, rule.meaning, rule.remedy])
  return rows


def _at(tree: Any, path: Sequence[str], where: Where = ()) -> Iterator[tuple[Where, float]]:
  """Numbers at a path, with what its wildcards stand for."""
  if not path:
    if isinstance(tree, int | float) and not isinstance(tree, bool):
      yield where, float(tree)
    return
  keys = range(len(tree)) if isinstance(tree, list) else tree if isinstance(tree, Mapping) else ()
  name, free = path[0], path[0] == "*" or "|" in path[0]
  for key in keys:
    if name == "*" or str(key) in name.split("|"):
      yield from _at(tree[key], path[1:], (*where, key) if free else where)


def diagnose(report: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Every number that has a rule.

  Args:
    report: content of `report.json`, less what this returns.

  Returns:
    rule (of ROWS), where (what the wildcards of its path stand for: tasks, policies, cameras, and an index
    into the judge's horizons), value, colour.
  """
  found = []
  for name, row in ROWS.items():
    others = dict(_at(report, row.against.split("."))) if row.against else {}
    for path in row.paths:
      for where, number in _at(report, path.split(".")):
        numbers = (number, others[where]) if where in others else (number,)
        if row.against and (where not in others or (row.value is operator.truediv and not others[where])):
          continue
        value = row.value(*numbers)
        found.append({"rule": name, "where": list(where), "value": value, "colour": row.rule.colour(value)})
  return found


def messages(report: Mapping[str, Any]) -> list[dict[str, Any]]:
  """A message of each rule that has numbers which are not green: those with red ones first.

  Returns:
    rule, colour (of the worst number), label, numbers (how many are red and yellow, and where the worst
    stands), meaning, section, anchor.
  """
  out = []
  for name, row in ROWS.items():
    entries = [entry for entry in report["diagnosis"] if entry["rule"] == name]
    counts = collections.Counter(entry["colour"] for entry in entries)
    colours = [colour for colour in ("red", "yellow") if counts[colour]]
    if colours:
      pick = max if row.rule.red > row.rule.yellow else min
      worst = pick(entries, key=operator.itemgetter("value"))
      numbers = (
        f"{' and '.join(f'{counts[colour]} {colour}' for colour in colours)} of {len(entries)}; worst: "
      )
      numbers += f"{_place(report, worst['where'])}, {row.shown(worst['value'])}"
      out.append(
        {
          "rule": name,
          "colour": colours[0],
          "label": row.rule.label,
          "numbers": numbers,
          "meaning": row.rule.meaning[:1].upper() + row.rule.meaning[1:],
          "section": SECTIONS[row.section],
          "anchor": anchor(SECTIONS[row.section]),
        }
      )
  return sorted(out, key=lambda message: message["colour"] != "red")


_WORDS = {**tables.CAMERA_NAMES, "probes": "play", "psnr": "PSNR", "ssim": "SSIM", "rms": "root mean square"}


def _place(report: Mapping[str, Any], where: Sequence[str | int]) -> str:
  """Where a number stands, in words."""
  horizons = report["judge"]["horizons"]
  words = [
    _WORDS.get(key, key.replace("_", " "))
    if isinstance(key, str)
    else count(horizons[key], "frame") + " imagined"
    for key in where
  ]
  return ", ".join(words) or "mean"
