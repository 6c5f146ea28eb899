"""Results of finished stages: read back as written, or refused with what makes them again."""

from __future__ import annotations

import json

import numpy as np
import pytest

from wam_jax.reporting.finished_run import Run
from wam_jax.storage.artifact import ArtifactError
from wam_jax.storage.records import misfit, read_arrays, read_record, write_record

SELECTION = {"first_start": 3, "selected": {"real": {"open_drawer": {"iteration": 2, "score": 0.5}}}}


def test_what_was_written_is_read_and_what_was_changed_is_not(tmp_path):
  write_record(tmp_path, "selection.json", SELECTION)
  assert read_record(tmp_path, "selection.json") == SELECTION
  file = tmp_path / "selection.json"
  file.write_text(file.read_text().replace("0.5", "0.6"))  # of the right form
  with pytest.raises(ArtifactError, match=r"selection.json: changed.*rm -r"):
    read_record(tmp_path, "selection.json")
  file.write_text(json.dumps(SELECTION))  # as earlier versions wrote it
  assert read_record(tmp_path, "selection.json") == SELECTION


@pytest.mark.parametrize(
  ("content", "told"),
  [
    (3, "its content is 3"),
    ({"a": 1}, "'b' missing"),
    ({"a": "x", "b": []}, "'a' is 'x'"),
    ({"a": 1, "b": {}}, "'b' is {}, not a list"),
    ({"a": 1, "b": []}, "'b' is empty"),
    ({"a": 1, "b": [{"c": 1}, {"c": None}]}, "'b.1.c' is None"),
    ({"a": 1, "b": [{}], "d": {"x": "y"}}, "'d.x' is 'y'"),
    ({"a": 1, "b": [{"c": 2}], "d": {}, "more": 1}, ""),
  ],
)
def test_where_content_differs_from_a_form(content, told):
  assert misfit(content, {"a": int, "b": [{str: int}], "d?": {str: float}}).startswith(told or "")
  assert bool(told) == bool(misfit(content, {"a": int, "b": [{str: int}], "d?": {str: float}}))


@pytest.mark.parametrize("damage", [None, b"", b"PK\x03\x04", "half", "other"])
def test_arrays_that_are_missing_or_damaged(tmp_path, damage):
  file = tmp_path / "ppo.npz"
  np.savez(file, success=np.ones((2, 3)), start_robot_obs=np.ones(3))
  content = file.read_bytes()
  if damage is None:
    file.unlink()
  elif damage != "other":
    file.write_bytes(content[: len(content) // 2] if damage == "half" else damage)
  with pytest.raises(ArtifactError, match=r"ppo.npz.*rm -r"):
    read_arrays(file, ("success", "steps"))
  evaluated = type("Artifact", (), {"path": tmp_path})
  assert Run(tmp_path, {}, {"evaluate": evaluated}, {}).episodes("ppo") is None
