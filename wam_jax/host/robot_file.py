"""The description of a robot in the root of its dataset: `embodiment.json`."""

from __future__ import annotations

import os
import pathlib

from wam_jax import embodiment
from wam_jax.embodiment import CALVIN, Embodiment
from wam_jax.host.regular_files import PathLike, read_text


def read_robot(root: PathLike) -> Embodiment:
  """The robot of a dataset; CALVIN's if there is no such file.

  Raises:
    EmbodimentError: the description breaks a rule.
    OSError, UnicodeDecodeError: it cannot be read.
  """
  path = pathlib.Path(root) / embodiment.FILE
  return embodiment.from_json(read_text(path)) if os.path.lexists(path) else CALVIN
