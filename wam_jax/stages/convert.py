"""Converts the collected dataset to a TFDS dataset, which is read many times as fast and stands for it."""

from __future__ import annotations

from wam_jax.data import convert
from wam_jax.data.calvin import dataset_path
from wam_jax.running.stage_run import StageRun


def run(stage: StageRun) -> None:
  """Writes dataset/, for `--config.data.source=calvin --config.data.calvin_path=<workdir>/convert/dataset`.

  Raises:
    DatasetError: see `data.convert.convert`.
  """
  convert.convert(
    dataset_path(stage.inputs["collect"]),
    stage.workdir / "dataset",
    image_size=stage.config.env.image_size,
    skip_broken=stage.config.data.skip_broken,
    workers=stage.config.env.workers,
    progress=stage.logger.progress,
    log=stage.logger.info,
  )
