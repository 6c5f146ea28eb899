"""Pickles made to crash the process, to fill its memory, or never to end."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from harmful_pickles import HARMFUL, HARMFUL_WEIGHTS, KEYS, NAME, SOUND, checkpoint, name, text

from wam_jax.data import files
from wam_jax.foreign import lumos
from wam_jax.storage.plain_pickle import PlainUnpickler


@pytest.mark.parametrize("kind", HARMFUL)
def test_harmful_pickles_are_refused(kind):
  with pytest.raises(Exception) as error:
    PlainUnpickler(HARMFUL[kind]).load()
  assert type(error.value).__name__ == "UnpicklingError", error.value


def test_annotations_in_a_harmful_pickle_name_their_file(tmp_path):
  np.save(tmp_path / "x.npy", None, allow_pickle=True)
  header = (tmp_path / "x.npy").read_bytes()[:128]
  (tmp_path / "x.npy").write_bytes(header + HARMFUL["key shared"])
  with pytest.raises(files.DatasetError, match=r"x\.npy: damaged pickle \(a key .* tuple"):
    files.load_pickled(tmp_path / "x.npy")


# ---------------------------------------------------------------------------------------------
# The same for weights.


@pytest.mark.parametrize("steps", HARMFUL_WEIGHTS)
def test_weights_of_harmful_pickles_are_refused(tmp_path, steps):
  with pytest.raises(lumos.LumosError, match=r"a\.ckpt"):
    lumos.read_state_dict(checkpoint(tmp_path / "a.ckpt", steps))


@pytest.mark.parametrize("kind", KEYS)
def test_what_is_no_weight_is_passed_over(tmp_path, kind):
  harm = KEYS[kind].replace(b"_reconstruct", b"_anything")
  inert = name("omegaconf", "X") + b")\x81}" + text("a") + b"Nsb"
  steps = (
    b"}" + harm + b"Ns" + text("y") + inert + b"s" + text("state_dict") + b"}" + text(NAME) + SOUND + b"ss"
  )
  weights = lumos.read_state_dict(checkpoint(tmp_path / "a.ckpt", steps))
  assert weights.keys() == {NAME} and weights[NAME].shape == (4,) and not weights[NAME].any()


@pytest.mark.parametrize("member", ["archive/data.pkl", "archive/data/0", "x.npy"])
def test_weights_take_the_memory_that_the_file_holds(tmp_path, member):
  with zipfile.ZipFile(tmp_path / "a.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
    if member != "archive/data.pkl" and member != "x.npy":
      archive.writestr("archive/data.pkl", b"\x80\x02}" + text(NAME) + SOUND + b"s.")
    with archive.open(member, "w") as file:
      for _ in range(72):
        file.write(bytes(2**20))
  with pytest.raises(lumos.LumosError, match="would unpack to 75,497,472 bytes"):
    lumos.read_state_dict(tmp_path / "a.ckpt")
