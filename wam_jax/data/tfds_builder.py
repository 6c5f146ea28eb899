"""`calvin_play` for TensorFlow Datasets: CALVIN's play as examples of consecutive frames, without TensorFlow.

`python -m wam_jax.data.convert` writes the same dataset, in parallel and so that it can be interrupted; then

  tfds.builder_from_directory(f"{out}/calvin_play/1.0.0").as_data_source("train")

opens it without this module.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from wam_jax.data import converted, examples

DESCRIPTION = """\
Task-free play of a Franka Panda robot at a table with a drawer, a sliding door, a switch with a light bulb, a
button with an LED and three blocks, recorded at 30 Hz. An example holds up to 64 consecutive frames of one
episode: two cameras, the robot's and the scene's state, the relative action taken at each frame and the
absolute one, the frames' numbers, and the windows with a known task (first frame, one past the last) that it
takes part in."""
HOMEPAGE = "http://calvin.cs.uni-freiburg.de"
CITATION = """\
@article{mees2022calvin,
  author = {Oier Mees and Lukas Hermann and Erick Rosete-Beas and Wolfram Burgard},
  title = {CALVIN: A Benchmark for Language-Conditioned Policy Learning for Long-Horizon Robot
    Manipulation Tasks},
  journal = {IEEE Robotics and Automation Letters},
  volume = {7},
  number = {3},
  pages = {7327--7334},
  year = {2022},
}"""


class CalvinPlay(tfds.core.GeneratorBasedBuilder):
  """Builds from CALVIN's own folders.

  `tfds.builder("calvin_play", source="task_D_D", file_format="array_record").download_and_prepare()`
  """

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}
  MANUAL_DOWNLOAD_INSTRUCTIONS = "Download a split of CALVIN with dataset/download_data.sh of mees/calvin."

  def __init__(self, *, source: str = "", image_size: int = 64, **kwargs: Any) -> None:
    """Takes the folder to build from, unless it is only read.

    Args:
      source: folder that holds training/ and validation/; empty: the manual_dir of download_config.
      image_size: side that pictures are shrunk to, in pixels.
      **kwargs: of `tfds.core.GeneratorBasedBuilder`.
    """
    self._source, self._image_size = source, image_size
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=DESCRIPTION,
      features=converted.example_features(),
      homepage=HOMEPAGE,
      citation=CITATION,
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
    root = pathlib.Path(self._source or dl_manager.manual_dir)
    return {
      name: self._generate_examples(root / folder)
      for folder, name in converted.TFDS_SPLITS.items()
      if (root / folder).is_dir()
    }

  def _generate_examples(self, folder: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    split = examples.plan_split(folder, self._image_size)
    for chunk in split.chunks:
      for example in split.load(chunk):
        yield int(example["frame_id"][0]), example
