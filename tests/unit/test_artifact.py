from __future__ import annotations

import dataclasses
import json
import os

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
  (tmp_path / "ppo" / "artifact.json").unlink()
  (tmp_path / "ppo" / "artifact.json").mkdir()
  with pytest.raises(ArtifactError, match="not a file"):
    load_artifact(tmp_path / "ppo")


def change(file, edit):
  content = json.loads(file.read_text())
  edit(content)
  file.write_text(json.dumps(content))


@pytest.mark.parametrize(
  ("name", "edit", "told"),
  [
    ("config.json", lambda c: c.update(seed=4), "seed"),
    ("config.json", lambda c: c["world_model"].update(other=1), "config.json"),  # no part of the fingerprint
    ("artifact.json", lambda c: c["part"].update(seed=4), "fingerprint"),
    ("artifact.json", lambda c: c["inputs"].update(collect="ac"), "fingerprint"),
    ("artifact.json", lambda c: c.update(schema=2), "fingerprint"),
    ("artifact.json", lambda c: c.update(seconds="x"), "seconds"),
    ("artifact.json", lambda c: c.update(inputs=[1]), "inputs"),
    ("artifact.json", lambda c: c.update(inputs={"collect": 1}), "inputs"),
    ("artifact.json", lambda c: c.update(more=1), "more"),
    ("artifact.json", lambda c: c.pop("part"), "fingerprint"),
    ("artifact.json", lambda c: c.pop("stage"), "stage"),
  ],
)
def test_what_was_changed_after_it_was_written_is_noticed(tmp_path, name, edit, told):
  write_artifact(make(tmp_path), done=True)
  change(tmp_path / "world_model" / name, edit)
  with pytest.raises(ArtifactError, match=told) as error:
    load_artifact(tmp_path, "world_model")
  assert f"{tmp_path / 'world_model' / name}" in str(error.value) and "rm -r" in str(error.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"x"', "[" * 10**5, "\udcff"])
@pytest.mark.parametrize("name", ["config.json", "artifact.json"])
def test_files_of_another_form(tmp_path, name, content):
  write_artifact(make(tmp_path), done=True)
  (tmp_path / "world_model" / name).write_bytes(content.encode("utf-8", "surrogateescape"))
  with pytest.raises(ArtifactError, match=name):
    load_artifact(tmp_path, "world_model")


def test_artifacts_of_before_have_no_digest_and_are_read(tmp_path):
  write_artifact(make(tmp_path), done=True)
  change(tmp_path / "world_model" / "config.json", lambda c: c.pop("sha256"))
  assert load_artifact(tmp_path, "world_model").config == PART


def test_a_crash_leaves_no_empty_mark(tmp_path, monkeypatch):
  """A file has its name when its content is on the disk, and DONE when that of all others is."""
  on_disk, named = [], []
  fsync, replace = os.fsync, os.replace

  def note_sync(handle):
    on_disk.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
    fsync(handle)

  def note_name(old, new):
    named.append(os.path.basename(new))
    assert os.path.basename(old) in on_disk
    assert named[-1] != "DONE" or {"config.json", "artifact.json", "result.json"} <= set(on_disk)
    replace(old, new)

  monkeypatch.setattr(os, "fsync", note_sync)
  monkeypatch.setattr(os, "replace", note_name)
  artifact = make(tmp_path)
  artifact.path.mkdir()
  (artifact.path / "result.json").write_text("{}")
  write_artifact(artifact, done=True)
  assert named == ["config.json", "artifact.json", "DONE"]
  (artifact.path / "DONE").write_text("")  # what a crash of an earlier version's run could leave
  with pytest.raises(ArtifactError, match="not finished"):
    load_artifact(artifact.path)
