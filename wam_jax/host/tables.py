"""Numbers as rows of text, header first: the same rows become Markdown, HTML, and lines in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Rows = list[list[str]]
Value = float | str | None  # a score, a word such as 'constant', or nothing measured

CAMERA_NAMES = {"rgb_static": "static", "rgb_gripper": "wrist"}
MISSING = "missing"  # no window is long enough
NOTHING = "-"  # does not apply


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
  """Rows, header first, as a Markdown table whose columns line up in a terminal too."""
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

  def align(row: Sequence[str]) -> str:
    cells = [
      c.rjust(width) if i else c.ljust(width) for i, (c, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "| " + " | ".join(cells) + " |"

  rule = "|".join("-" * (width + 1) + ("-" if i == 0 else ":") for i, width in enumerate(widths))
  return "\n".join([align(rows[0]), f"|{rule}|", *(align(row) for row in rows[1:])])


def number(value: Value, digits: int, sign: bool = False) -> str:
  """A measured value as text: None is MISSING, words such as 'constant' stay what they are."""
  if value is None:
    return MISSING
  return value if isinstance(value, str) else f"{value:{'+' if sign else ''}.{digits}f}"


def open_loop_rows(judge: Mapping[str, Any]) -> Rows:
  """PSNR and SSIM by frames imagined, of the first model and of repeating the last frame seen.

  Args:
    judge: content of `judge.json`.
  """
  horizons, model = judge["horizons"], judge["models"][0]
  rows = [["Frames imagined", "0 (seen)", *map(str, horizons)]]
  for camera, scores in model["open_loop"].items():
    name, repeated = CAMERA_NAMES.get(camera, camera), model["repeated"][camera]
    for label, key, digits in (("PSNR, dB", "psnr", 2), ("SSIM", "ssim", 3)):
      values = [number(scores[f"reconstruction_{key}"], digits), *(number(v, digits) for v in scores[key])]
      rows.append([f"{name}: {label}", *values])
      rows.append(["  last frame seen, repeated", NOTHING, *(number(v, digits) for v in repeated[key])])
  return rows


def probe_rows(judge: Mapping[str, Any], group: str = "probes") -> Rows:
  """Scores of the linear probes on posterior and imagined features of the first model.

  Args:
    judge: content of `judge.json`.
    group: probes (on held-out play), or takes (on held-out takes of the skills).
  """
  head = "Read off linearly" if group == "probes" else "Read off linearly, held-out takes"
  rows = [[head, "Score", "Posterior", *(f"imagined {h}" for h in judge["horizons"])]]
  for name, probe in judge["models"][0].get(group, {}).items():
    score = judge["targets"][name]["score"]
    rows.append([name, score, number(probe["posterior"], 3), *(number(v, 3) for v in probe["imagined"])])
    rows.append(["  last reading kept", "", NOTHING, *(number(v, 3) for v in probe["kept"])])
  return rows


def hand_rows(judge: Mapping[str, Any]) -> Rows:
  """Error of the hand's position in millimetres, of the first model and of a linear recursion."""
  rows = [["Error of the hand, mm", "Posterior", *(f"imagined {h}" for h in judge["horizons"])]]
  if judge["models"][0].get("hand") is None:  # judged by an older version
    return rows
  millimetres = lambda entry, kind: number(None if entry is None else 1000 * entry[kind], 1)
  for name, hand in judge["models"][0]["hand"].items():
    recursion = (judge.get("recursion") or {}).get(name)
    for kind, label in (("rms", "root mean square"), ("median", "median")):
      cells = [millimetres(entry, kind) for entry in (hand["posterior"], *hand["imagined"])]
      rows.append([f"{name}: {label}", *cells])
      if recursion is not None:
        cells = [millimetres(entry, kind) for entry in recursion]
        rows.append(["  linear recursion of 10 coefficients an axis", NOTHING, *cells])
  return rows


def judge_tables(judge: Mapping[str, Any]) -> list[tuple[str, Rows]]:
  """All tables of a judged world model, by a short name; tables without a row are left out."""
  tables = [
    ("open loop", open_loop_rows(judge)),
    ("hand", hand_rows(judge)),
    ("probes", probe_rows(judge)),
    ("takes", probe_rows(judge, "takes")),
    ("inverse dynamics", inverse_dynamics_rows(judge)),
  ]
  return [(name, rows) for name, rows in tables if len(rows) > 1]


DISCRIMINATION = (
  "Held-out takes of each skill, good and failed, seen and dreamt: a dream begins at a take's first frame "
  "and follows its own actions. A policy can learn from dreams only what they tell apart. AUC: 1 is perfect, "
  "0.5 is chance; intervals are over takes."
)


def discrimination_rows(quality: Mapping[str, Any]) -> Rows:
  """What the classifier calls a success of held-out takes that succeeded and that failed, in percent.

  Args:
    quality: content of the classifier's `quality.json`, with `discrimination`.
  """
  rows = [
    [
      "Held-out takes",
      "good, failed",
      "Good called so",
      "Failed called a success",
      "Difference (95 %)",
      "AUC (95 %)",
    ]
  ]

  def row(label: str, takes: str, discrimination: Mapping[str, Any]) -> list[str]:
    difference, auc = discrimination["difference"], discrimination["auc"]
    return [
      label,
      takes,
      f"{100 * discrimination['sensitivity']['value']:.0f}",
      f"{100 * (1 - discrimination['specificity']['value']):.0f}",
      f"{100 * difference['value']:.0f} ({100 * difference['low']:.0f} to {100 * difference['high']:.0f})",
      f"{auc['value']:.2f} ({auc['low']:.2f} to {auc['high']:.2f})",
    ]

  for kind, label in (("real", "seen"), ("dreamt", "dreamt")):
    for task, task_quality in quality["tasks"].items():
      takes = f"{task_quality['takes']['good']}, {task_quality['takes']['failed']}"
      rows.append(row(f"{task}, {label}", takes, task_quality["discrimination"][kind]))
    rows.append(row(f"Mean, {label}", NOTHING, quality["discrimination"][kind]))
  return rows


CERTIFICATE = (
  "What held-out takes and dreams alone say, before any simulator. Predicted: real success with its 95 % "
  "interval, from dreams that begin at held-out takes, good and failed, by how far such dreams were off on "
  "finished runs. An evaluation starts elsewhere. "
  "Told apart: good takes called a success minus failed ones, in points."
)


def certificate_rows(certificate: Mapping[str, Any]) -> Rows:
  """Verdict and predicted success of each task, and the mean.

  Args:
    certificate: content of `certificate.json`.
  """
  policies = certificate["policies"]
  rows = [
    [
      "Certificate",
      "Verdict",
      *(f"{entry['label']}, predicted %" for entry in policies.values()),
      "Told apart",
    ]
  ]
  said = lambda row: f"{100 * row['value']:.0f} ({100 * row['low']:.0f} to {100 * row['high']:.0f})"
  for task, verdict in certificate["verdicts"].items():
    entries = [entry["per_task"][task] for entry in policies.values()]
    apart = entries[0]["numbers"]["told_apart"]["value"]
    cells = [said(entry["predicted"]) for entry in entries]
    cells.append(NOTHING if apart is None else f"{100 * apart:.0f}")
    rows.append([task, verdict["verdict"], *cells])
  rows.append(["Mean", NOTHING, *(said(entry["mean"]) for entry in policies.values()), NOTHING])
  return rows


def certificate_reasons(certificate: Mapping[str, Any]) -> dict[str, str]:
  """task -> why its verdict is what it is, of which policy, and what to collect; as `certificate_rows`."""
  reasons = {}
  for task, verdict in certificate["verdicts"].items():
    label = certificate["policies"][verdict["policy"]]["label"]
    takes = f" Collect {verdict['takes']}." if verdict["takes"] else ""
    reasons[task] = f"{label}: {verdict['reason']}.{takes}"
  return reasons


def inverse_dynamics_rows(judge: Mapping[str, Any]) -> Rows:
  """Squared error of the action by dimension: inverse dynamics, a linear map, and the mean action."""
  errors = judge["models"][0]["inverse_dynamics"]
  rows = [["Squared error of the action", *errors]]
  for name, key in (
    ("inverse dynamics", "error"),
    ("  linear, from the embeddings", "linear"),
    ("  always the mean action", "mean_action"),
  ):
    if all(key in e for e in errors.values()):  # runs of older versions have no linear map
      rows.append([name, *(number(e[key], 4) for e in errors.values())])
  return rows


def measured(judge: Mapping[str, Any], model: Mapping[str, Any]) -> dict[str, tuple[Value, int]]:
  """Every number of one model: label -> (value, digits worth showing).

  Args:
    judge: content of `judge.json` or `comparison.json`.
    model: one of its models.
  """
  out: dict[str, tuple[Value, int]] = {}
  for camera, scores in model["open_loop"].items():
    name = CAMERA_NAMES.get(camera, camera)
    for label, key, digits in (("PSNR, dB", "psnr", 2), ("SSIM", "ssim", 3)):
      out[f"{name}: {label}, seen"] = (scores[f"reconstruction_{key}"], digits)
      for horizon, value in zip(judge["horizons"], scores[key], strict=True):
        out[f"{name}: {label}, {horizon} imagined"] = (value, digits)
      for horizon, value in zip(judge["horizons"], model["repeated"][camera][key], strict=True):
        out[f"{name}: {label}, last frame repeated, {horizon}"] = (value, digits)
  for target, probe in model["probes"].items():
    head = f"{target}: {judge['targets'][target]['score']}"
    out[f"{head}, posterior"] = (probe["posterior"], 3)
    for horizon, value in zip(judge["horizons"], probe["imagined"], strict=True):
      out[f"{head}, {horizon} imagined"] = (value, 3)
  for name, hand in model.get("hand", {}).items():
    for horizon, entry in zip(judge["horizons"], hand["imagined"], strict=True):
      value = None if entry is None else 1000 * entry["rms"]
      out[f"hand, {name}: mm, root mean square, {horizon} imagined"] = (value, 1)
  for dimension, errors in model["inverse_dynamics"].items():
    out[f"action {dimension}: squared error"] = (errors["error"], 4)
    if "linear" in errors:
      out[f"action {dimension}: the same, linear"] = (errors["linear"], 4)
  return out


def comparison_rows(comparison: Mapping[str, Any]) -> Rows:
  """Every number, a column for each model, and behind each other model its difference from the first.

  Args:
    comparison: content of `comparison.json`.
  """
  models = comparison["models"]
  columns = [measured(comparison, model) for model in models]
  return difference_rows([model["name"] for model in models], columns)


def difference_rows(names: Sequence[str], columns: Sequence[Mapping[str, tuple[Value, int]]]) -> Rows:
  """Numbers side by side, and behind each other column its difference from the first.

  Args:
    names: of the columns.
    columns: from `measured`; where one lacks a number, the cell says so.
  """
  rows = [["", names[0], *(text for name in names[1:] for text in (name, "difference"))]]
  for label in dict.fromkeys(label for column in columns for label in column):
    reference, cells = columns[0].get(label, (NOTHING, 0))[0], []
    for k, column in enumerate(columns):
      value, digits = column.get(label, (NOTHING, 0))
      cells.append(number(value, digits))
      if k and isinstance(reference, float) and isinstance(value, float):
        cells.append(number(value - reference, digits, sign=True))
      elif k:
        cells.append(NOTHING)
    rows.append([label, *cells])
  return rows


def described(judge: Mapping[str, Any]) -> str:
  """What the numbers were measured on, in one sentence."""
  data = judge["data"]
  requested = "" if data["windows"] == data["windows_asked"] else f" ({data['windows_asked']} were asked for)"
  return (
    f"Measured on {data['windows']} windows{requested} of {data['frames']} frames of the validation split "
    f"({data['kind']}), held out from training; {judge['context']} frames are seen, the others imagined "
    f"from the true actions. Probes are fitted on {data['probe_frames']:,} frames of the training split "
    f"({data['probe_kind']})."
  )
