"""What a stage gets from the runner."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from wam_jax.host.logger import Logger
from wam_jax.storage.artifact import Artifact


@dataclasses.dataclass(frozen=True)
class StageRun:
  """One stage of a run: its settings, what it reads, and where it writes.

  Attributes:
    config: the run's, frozen.
    inputs: stage -> finished artifact, of all that the stage's row in `config.chain` requires.
    workdir: the stage's folder.
    logger: of the stage.
  """

  config: Any
  inputs: Mapping[str, Artifact]
  workdir: pathlib.Path
  logger: Logger
