"""Results that stages leave in their folders: read whole and of their form, or not at all."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from wam_jax.host.regular_files import most_inflated, open_file, read_text
from wam_jax.storage.artifact import ArtifactError, how_to_remake

_NUMBER = (int, float)
_MEASURED = (int, float, type(None))  # None: there was nothing to measure
_RATES = {"n": int, "successes": int, "rate": _NUMBER, "low": _NUMBER, "high": _NUMBER, "steps": _MEASURED}
_DEMOS = {"precision": _MEASURED, "recall": _MEASURED, "calibration_error": _MEASURED}
_PROBES = {str: {"posterior": object, "imagined": list}}  # a number, or why there is none

_JUDGED = {
  "context": int,
  "horizons": [int],
  "targets": {str: {"score": str}},
  "data": dict,
  "models": [{"name": str, "open_loop": {str: {"psnr": [_MEASURED]}}, "probes": _PROBES}],
}

# File -> what readers rely on: a type, [form of every item], {key: form}, or {str: form of every value}.
FORMS: Mapping[str, dict[Any, Any]] = MappingProxyType(
  {
    "result.json": {str: {str: _MEASURED}},
    "selection.json": {"first_start": int, "selected": {str: {str: {"iteration": int, "score": _NUMBER}}}},
    "statistics.json": {"mean": [_NUMBER], "std": [_NUMBER]},
    "quality.json": {
      "tasks": {
        str: {
          "random_dreams": {"false_positives": _NUMBER},
          "heldout_demos": _DEMOS,
          "heldout_demo_dreams": _DEMOS,
        }
      }
    },
    "judge.json": _JUDGED,
    "comparison.json": _JUDGED,
    "results.json": {
      "tasks": [str],
      "policies": {str: {"label": str, "per_task": {str: _RATES}, "mean": _RATES}},
      "seed": int,
      "max_steps": int,
    },
  }
)


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
  problem = misfit(content, {**FORMS[name], **also})
  if problem or not content:
    raise ArtifactError(f"{file}: {problem or 'is empty'}. {how_to_remake(folder)}")
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
  if isinstance(form, list):
    items = [(str(i), item, form[0]) for i, item in enumerate(content)]
  elif str in form:
    items = [(key, item, form[str]) for key, item in content.items()]
  else:
    missing = [below(key) for key in form if key not in content]
    if missing:
      return f"{', '.join(map(repr, missing))} missing"
    items = [(key, content[key], part) for key, part in form.items()]
  return next((problem for key, item, part in items if (problem := misfit(item, part, below(key)))), "")
