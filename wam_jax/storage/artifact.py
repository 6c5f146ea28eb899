"""What a finished stage leaves behind, and how it is recognised.

A stage's folder holds `config.json` (the whole resolved config), `artifact.json` (what identifies the
result) and, once finished, `DONE`. Everything is written by renaming a finished file into place.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import shlex
from collections.abc import Mapping
from typing import Any

from wam_jax import embodiment
from wam_jax.config.chain import STAGES
from wam_jax.embodiment import CALVIN, Embodiment, EmbodimentError
from wam_jax.host import processes
from wam_jax.host.regular_files import read_bytes
from wam_jax.host.words import PrintableError
from wam_jax.storage import checksums

FORMAT = 1  # of artifact.json
_KINDS: dict[str, Any] = {"stage": str, "fingerprint": str, "part": dict, "inputs": dict, "schema": int}
_KINDS |= {"seconds": int | float, "peak_bytes": int}
# What a process leaves that ends (killed, or the disk is full) before artifact.json exists.
BEGUN = ("config.json", "config.json.tmp", "artifact.json.tmp")


class ArtifactError(PrintableError):
  """A folder is not a finished artifact of the wanted stage."""


@dataclasses.dataclass(frozen=True)
class Artifact:
  """A stage's folder.

  Attributes:
    stage: name of the stage.
    path: its folder.
    fingerprint: sha256 over `part`, `inputs` and the schema version.
    config: the whole resolved config of the run that made it, nested plain dicts.
    part: dotted path -> value, the settings that the result depends on.
    inputs: stage -> fingerprint of what it was made from.
    schema: version of the stage's own files.
    seconds: wall time spent, over all resumed parts.
    peak_bytes: largest resident memory of a process that worked on it.
    embodiment: of the robot in the data that it was made from.
  """

  stage: str
  path: pathlib.Path
  fingerprint: str
  config: dict[str, Any]
  part: dict[str, Any] = dataclasses.field(default_factory=dict)
  inputs: dict[str, str] = dataclasses.field(default_factory=dict)
  schema: int = 1
  seconds: float = 0.0
  peak_bytes: int = 0
  embodiment: Embodiment = CALVIN

  @property
  def done(self) -> bool:
    """Whether DONE is there and names this result; one that a crash left empty does not count."""
    try:
      return read_bytes(self.path / "DONE").strip() == self.fingerprint.encode()
    except OSError:
      return False


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Nested dicts -> {dotted path: value}; tuples become lists, as JSON has them."""
  flat: dict[str, Any] = {}
  for key, value in tree.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f"{prefix}{key}.")
    else:
      flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
  return flat


def fingerprint(part: Mapping[str, Any], inputs: Mapping[str, str], schema: int = 1) -> str:
  """Names a result by what it depends on.

  Args:
    part: dotted config path -> resolved value.
    inputs: stage -> fingerprint of its artifact.
    schema: version of the stage's files; raise it when code changes make old results unusable.

  Returns:
    64 hexadecimal digits.
  """
  text = json.dumps({"config": flatten(part), "inputs": dict(inputs), "schema": schema}, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def write_artifact(artifact: Artifact, done: bool) -> None:
  """Writes config.json, artifact.json and, if `done`, last DONE, when the files beside it are on the disk."""
  artifact.path.mkdir(parents=True, exist_ok=True)
  record = dataclasses.asdict(artifact) | {"embodiment": artifact.embodiment.to_dict()}
  config = record.pop("config")
  del record["path"]
  write_text(artifact.path / "config.json", json.dumps(checksums.seal(config), indent=2) + "\n")
  write_text(artifact.path / "artifact.json", json.dumps({"format": FORMAT} | record, indent=2) + "\n")
  if done and processes.is_first():
    checksums.sync_files(artifact.path)
    write_text(artifact.path / "DONE", artifact.fingerprint + "\n")


def read_artifact(path: str | os.PathLike[str]) -> Artifact | None:
  """Reads a stage's folder, finished or not; None when it has no artifact.json.

  Raises:
    ArtifactError: artifact.json or config.json is missing, cannot be understood, or is not what was written.
  """
  path = pathlib.Path(path)
  file = path / "artifact.json"
  if not os.path.lexists(file):
    return None
  record = _read_json(file)
  version = record.pop("format", None)
  if version != FORMAT:
    raise ArtifactError(f"{file}: format {version!r:.40}, this version reads {FORMAT}")
  config_file = path / "config.json"
  config = _read_json(config_file)
  intact = checksums.unseal(config)  # None: earlier versions sealed none
  try:
    robot = embodiment.or_calvin(record.pop("embodiment", None))
    artifact = Artifact(path=path, config=_tuples(config), embodiment=robot, **record)
  except (TypeError, EmbodimentError) as error:
    raise ArtifactError(f"{file}: cannot be read ({error}). {how_to_remake(path)}") from error
  wrong = [name for name, kind in _KINDS.items() if not isinstance(getattr(artifact, name), kind)]
  if wrong or not all(isinstance(value, str) for value in artifact.inputs.values()):
    raise ArtifactError(f"{file}: {', '.join(wrong or ['inputs'])} of a wrong kind. {how_to_remake(path)}")
  if artifact.fingerprint != fingerprint(artifact.part, artifact.inputs, artifact.schema):
    raise ArtifactError(f"{file}: its fingerprint is not that of its settings. {_changed(path)}")
  settings = flatten(config)
  changed = [name for name, value in artifact.part.items() if settings.get(name, value) != value]
  if changed or intact is False:
    what = f"{', '.join(changed)} differ from artifact.json" if changed else "its content has another digest"
    raise ArtifactError(f"{config_file}: {what}. {_changed(path)}")
  return artifact


def how_to_remake(folder: pathlib.Path) -> str:
  """Sentence: the commands that make a stage's folder again."""
  made, workdir = (shlex.quote(str(path)) for path in (folder, folder.parent))
  return (
    f"Take it from a copy, or make it again: rm -r {made}, then the command of the run: "
    f"python -m wam_jax.main ... --config.workdir={workdir}"
  )


def _changed(folder: pathlib.Path) -> str:
  return f"It was changed after it was written. {how_to_remake(folder)}"


def _read_json(file: pathlib.Path) -> dict[str, Any]:
  try:
    return checksums.read_json(pathlib.Path(os.path.realpath(file)) if file.is_symlink() else file)
  except checksums.CheckpointError as error:
    raise ArtifactError(f"{error}. {how_to_remake(file.parent)}") from error


def load_artifact(path: str | os.PathLike[str], stage: str | None = None) -> Artifact:
  """Opens a finished artifact.

  Args:
    path: a stage's folder, or, when `stage` is given, the work folder above it.
    stage: which stage it must be of; None: any.

  Raises:
    ArtifactError: missing, not finished, or of another stage.
  """
  path = pathlib.Path(path)
  if stage is not None and not (path / "artifact.json").exists():
    path = path / stage
  artifact = read_artifact(path)
  if artifact is None:
    raise ArtifactError(f"{path}: no artifact here (artifact.json is missing)")
  if stage is not None and artifact.stage != stage:
    raise ArtifactError(f"{path}: this is an artifact of {artifact.stage}, not of {stage}")
  if not artifact.done:
    raise ArtifactError(f"{path}: {artifact.stage} is not finished (DONE is missing)")
  return artifact


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file whole or not at all, and onto the disk; only in the first process of a run."""
  if processes.is_first():
    checksums.write_text(path, text)


def _tuples(value: Any) -> Any:
  """Lists back to tuples, as the config has them."""
  if isinstance(value, dict):
    return {key: _tuples(item) for key, item in value.items()}
  return tuple(value) if isinstance(value, list) else value


def given_folders(workdir: pathlib.Path, stage: str) -> list[pathlib.Path]:
  """Folders that the run of a work folder took a stage from (`inputs.<stage>`), the last stage's first."""
  artifacts = [read_artifact(workdir / name) for name in reversed(STAGES)]
  folders = [artifact.config.get("inputs", {}).get(stage) for artifact in artifacts if artifact is not None]
  return [pathlib.Path(folder) for folder in dict.fromkeys(folders) if folder]


def search_input(
  of: Artifact, stage: str, fingerprint: str, path: str | os.PathLike[str] | None = None
) -> tuple[Artifact | None, list[str]]:
  """The artifact that another one was made from.

  Args:
    of: the artifact made from it.
    stage: of the artifact to find.
    fingerprint: of the artifact to find.
    path: where it is; None: where the run had it, or next to `of`.

  Returns:
    (the artifact or None, what was found instead).
  """
  workdir = of.path.parent
  if path is None:
    folders = [of.config.get("inputs", {}).get(stage), workdir / stage, *given_folders(workdir, stage)]
  else:
    folders = [pathlib.Path(path).expanduser()]
  reasons = []
  for folder in dict.fromkeys(pathlib.Path(folder) for folder in folders if folder):
    try:
      candidate = load_artifact(folder, stage)
    except ArtifactError as error:
      reasons.append(f"  {error}")
      continue
    if candidate.fingerprint == fingerprint:
      return candidate, []
    reasons.append(f"  {candidate.path}: another one, fingerprint {candidate.fingerprint[:12]}")
  return None, reasons


def world_model_of(artifact: Artifact) -> str | None:
  """Fingerprint of the world model that an artifact was made on; None if it has none, or none can be found.

  A cloned policy knows its demos' features only, and these the world model.
  """
  if "world_model" in artifact.inputs or "featurize" not in artifact.inputs:
    return artifact.inputs.get("world_model")
  featurized, _ = search_input(artifact, "featurize", artifact.inputs["featurize"])
  return None if featurized is None else featurized.inputs.get("world_model")
