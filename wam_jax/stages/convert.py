"""Converts the collected dataset to a TFDS dataset, which is read many times as fast and stands for it."""

from __future__ import annotations

import pathlib
from typing import Any

from wam_jax.data import convert
from wam_jax.data.calvin import dataset_path
from wam_jax.host.logger import Logger
from wam_jax.storage.artifact import Artifact


def run(config: Any, inputs: dict[str, Artifact], workdir: pathlib.Path, logger: Logger) -> None:
  """Writes dataset/, for `--config.data.source=calvin --config.data.calvin_path=<workdir>/convert/dataset`.

  Args:
    config: finalized.
    inputs: collect.
    workdir: gets dataset/.
    logger: shows progress.

  Raises:
    DatasetError: see `data.convert.convert`.
  """
  convert.convert(
    dataset_path(inputs["collect"]),
    workdir / "dataset",
    image_size=config.env.image_size,
    skip_broken=config.data.skip_broken,
    workers=config.env.workers,
    progress=logger.progress,
    log=logger.info,
  )
