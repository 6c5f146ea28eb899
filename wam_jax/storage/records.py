"""Results that stages leave in their folders: read whole and of their form, or not at all."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from wam_jax.host.regular_files import most_inflated, open_file, read_text
from wam_jax.storage import checksums
from wam_jax.storage.artifact import ArtifactError, how_to_remake, write_text

_NUMBER = (int, float)
_MEASURED = (int, float, type(None))  # None: there was nothing to measure
_RANGE = {"value": _NUMBER, "low": _NUMBER, "high": _NUMBER}
_RATES = {"n": int, "successes": int, "rate": _NUMBER, "low": _NUMBER, "high": _NUMBER, "steps": _MEASURED}
_RATES |= {"imagined?": _MEASURED, "gap?": _MEASURED}
_DEMOS = {"precision": _MEASURED, "recall": _MEASURED, "calibration_error": _MEASURED}
_MEASURES = ("sensitivity", "specificity", "difference", "auc")
_TELLING = {kind: dict.fromkeys(_MEASURES, _RANGE) for kind in ("real", "dreamt")}
_READING = (int, float, str, type(None))  # a number, or why there is none
_PROBES = {str: {"posterior": _READING, "imagined": [_READING], "kept": [_READING]}}
_PICTURES = {str: {"psnr": [_MEASURED], "ssim": [_MEASURED], "psnr_curve": [_MEASURED]}}

_CERTIFIED = {"called": object, "predicted": _RANGE, "numbers": {str: {"value": _MEASURED, "colour": str}}}
_JUDGED = {
  "context": int,
  "horizons": [int],
  "targets": {str: {"score": str}},
  "data": dict,
  "models": [
    {"name": str, "open_loop": _PICTURES, "repeated": _PICTURES, "probes": _PROBES, "takes?": _PROBES}
  ],
}

# File -> what readers rely on: a type, [form of every item] of at least one, {key: form} where "key?" may be
# missing, or {str: form of every value}.
FORMS: Mapping[str, dict[Any, Any]] = MappingProxyType(
  {
    "dataset.json": {"root": str},
    "result.json": {str: {str: _MEASURED}},
    "selection.json": {"first_start": int, "selected": {str: {str: {"iteration": int, "score": _NUMBER}}}},
    "statistics.json": {"mean": [_NUMBER], "std": [_NUMBER]},
    "quality.json": {
      "tasks": {
        str: {
          "random_dreams": {"false_positives": _NUMBER},
          "heldout_demos": _DEMOS,
          "heldout_demo_dreams": _DEMOS,
          "takes?": {"good": int, "failed": int},
          "discrimination?": _TELLING,
        }
      },
      "discrimination?": _TELLING,
    },
    "judge.json": _JUDGED,
    "comparison.json": _JUDGED,
    "certificate.json": {
      "policies": {str: {"label": str, "mean": _RANGE, "per_task": {str: _CERTIFIED}}},
      "verdicts": {str: {"policy": str, "verdict": str, "reason": str, "takes": object}},
    },
    "monitor.json": {"window": int, "tasks": {str: {str: float}}},
    "results.json": {
      "tasks": [str],
      "policies": {str: {"label": str, "per_task": {str: _RATES}, "mean": _RATES}},
      "seed": int,
      "max_steps": int,
    },
  }
)


def write_record(folder: pathlib.Path, name: str, content: Mapping[str, Any]) -> None:
  """Writes a JSON file of an artifact, with a digest that `read_record` compares; as `write_text` does."""
  plain = json.loads(json.dumps(content))
  write_text(folder / name, json.dumps(checksums.seal(plain), indent=2) + "\n")


def read_record(folder: pathlib.Path, name: str, **also: Any) -> dict[str, Any]:
  """Content of a JSON file of an artifact.

  Args:
    folder: of the artifact.
    name: of the file, in FORMS.
    also: key -> form, of what only this reader needs.

  Raises:
    ArtifactError: missing, damaged, or not of its form; says where, and how to make it again.
  """
  file = folder / name
  try:
    content = json.loads(read_text(file))
  except FileNotFoundError as error:
    raise ArtifactError(f"{file}: missing. {how_to_remake(folder)}") from error
  except (OSError, ValueError, RecursionError) as error:
    raise ArtifactError(f"{file}: cannot be read ({error}). {how_to_remake(folder)}") from error
  intact = checksums.unseal(content) if isinstance(content, dict) else None  # earlier versions sealed none
  problem = misfit(content, {**FORMS[name], **also}) or ("" if content else "is empty")
  if not problem and intact is False:
    problem = "changed after it was written (sha256)"
  if problem:
    raise ArtifactError(f"{file}: {problem}. {how_to_remake(folder)}")
  return content


def read_arrays(file: pathlib.Path, names: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
  """Arrays of an npz file of an artifact.

  Args:
    file: in the artifact's folder.
    names: that must be there; empty: all that there are.

  Raises:
    ArtifactError: missing or damaged, or an array is missing.
  """
  try:
    with open_file(file) as opened, np.load(opened, allow_pickle=False) as arrays:
      if sum(member.file_size for member in arrays.zip.infolist()) > most_inflated(file.stat().st_size):
        raise ValueError("would unpack to more than its size allows")
      missing = [name for name in names if name not in arrays.files]
      if not missing:
        return {name: arrays[name] for name in names or arrays.files}
    problem = f"{', '.join(missing)} missing"
  except FileNotFoundError:
    problem = "missing"
  except Exception as error:  # a damaged archive can raise anything
    problem = f"cannot be read ({error})"
  raise ArtifactError(f"{file}: {problem}. {how_to_remake(file.parent)}")


def misfit(content: Any, form: Any, where: str = "") -> str:
  """Where a JSON file's content differs from a form, as `'tasks.open_drawer' is …`; empty: nowhere."""
  name = f"'{where}'" if where else "its content"
  if isinstance(form, type | tuple):
    return "" if isinstance(content, form) else f"{name} is {content!r:.40}"
  if not isinstance(content, type(form)):
    return f"{name} is {content!r:.40}, not {'an object' if isinstance(form, dict) else 'a list'}"
  below = lambda key: f"{where}.{key}" if where else str(key)
  if isinstance(form, list) and not content:
    return f"{name} is empty"
  if isinstance(form, list):
    items = [(str(i), item, form[0]) for i, item in enumerate(content)]
  elif str in form:
    items = [(key, item, form[str]) for key, item in content.items()]
  else:
    missing = [below(key) for key in form if not key.endswith("?") and key not in content]
    if missing:
      return f"{', '.join(map(repr, missing))} missing"
    parts = {key.removesuffix("?"): part for key, part in form.items()}
    items = [(key, content[key], part) for key, part in parts.items() if key in content]
  return next((problem for key, item, part in items if (problem := misfit(item, part, below(key)))), "")
