"""Success of cloned policies alone, where no PPO follows, for instance on snapshots of a world model.

Same starts, noise and files as stage evaluate.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from wam_jax.host.logger import Logger
from wam_jax.stages import evaluate
from wam_jax.storage.artifact import Artifact


def run(config: Any, inputs: Mapping[str, Artifact], workdir: pathlib.Path, logger: Logger) -> None:
  """Writes results.json and cloned.npz."""
  evaluate.measure(config, inputs, workdir, logger, ("cloned",))
