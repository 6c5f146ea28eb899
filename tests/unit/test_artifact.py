from __future__ import annotations

import dataclasses

import pytest

from wam_jax.storage.artifact import (
  Artifact,
  ArtifactError,
  fingerprint,
  flatten,
  load_artifact,
  read_artifact,
  write_artifact,
)

PART = {"seed": 3, "world_model": {"depth": 48, "layers": (1, 2)}}


def make(tmp_path, stage="world_model"):
  return Artifact(
    stage=stage,
    path=tmp_path / stage,
    fingerprint=fingerprint(PART, {"collect": "ab"}),
    config=PART,
    part=flatten(PART),
    inputs={"collect": "ab"},
    seconds=1.5,
  )


def test_fingerprint_depends_on_everything_and_on_nothing_else():
  base = fingerprint(PART, {"collect": "ab"})
  assert base == fingerprint(dict(reversed(PART.items())), {"collect": "ab"})
  assert base == fingerprint(flatten(PART), {"collect": "ab"})
  others = [
    fingerprint(PART | {"seed": 4}, {"collect": "ab"}),
    fingerprint(PART, {"collect": "ac"}),
    fingerprint(PART, {}),
    fingerprint(PART, {"collect": "ab"}, schema=2),
  ]
  assert len({base, *others}) == 5


def test_round_trip_from_stage_folder_and_from_workdir(tmp_path):
  written = make(tmp_path)
  write_artifact(written, done=True)
  assert load_artifact(tmp_path / "world_model") == dataclasses.replace(written, part=flatten(PART))
  loaded = load_artifact(tmp_path, "world_model")
  assert loaded.config == PART and loaded.fingerprint == written.fingerprint


def test_unfinished_missing_foreign_and_broken(tmp_path):
  with pytest.raises(ArtifactError, match="no artifact"):
    load_artifact(tmp_path, "world_model")
  assert read_artifact(tmp_path) is None
  write_artifact(make(tmp_path), done=False)
  with pytest.raises(ArtifactError, match="not finished"):
    load_artifact(tmp_path, "world_model")
  write_artifact(make(tmp_path, "ppo"), done=True)
  with pytest.raises(ArtifactError, match="artifact of ppo"):
    load_artifact(tmp_path / "ppo", "world_model")
  (tmp_path / "ppo" / "artifact.json").write_text('{"format": 99}')
  with pytest.raises(ArtifactError, match="format 99"):
    load_artifact(tmp_path / "ppo")
  (tmp_path / "ppo" / "artifact.json").write_text("{")
  with pytest.raises(ArtifactError, match="cannot be read"):
    load_artifact(tmp_path / "ppo")
