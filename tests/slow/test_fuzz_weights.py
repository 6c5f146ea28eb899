"""Checkpoints with damaged or hostile content: what is read is what was written, or an error names the file.

  bash launch/test.sh -m slow tests/slow/test_fuzz_weights.py

WAM_FUZZ_CASES sets the number of cases, 2000 otherwise.
"""

from __future__ import annotations

import zipfile

import numpy as np
import pytest
from fuzzing import FUZZ, damaged, guarded
from harmful_pickles import HARMFUL, HARMFUL_WEIGHTS, NAME, number, tensor, text
from hypothesis import given
from hypothesis import strategies as st

from wam_jax.foreign import lumos

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SECONDS = 3.0
VALUE = np.float32(1.5)  # of all weights: another one comes from elsewhere
_sizes = st.sampled_from([0, 1, 2, 3, 4, 5, 63, 64, 65, -1, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63)])


def _tuple(numbers):
  return b"(" + b"".join(map(number, numbers)) + b"t"


@st.composite
def _tensors(draw):
  """A tensor of any size and stride, perhaps filled with other ones afterwards."""
  sizes, strides = (draw(st.lists(_sizes, max_size=3)) for _ in range(2))
  filled = b"}" + text("size") + _tuple(sizes) + b"s" + text("stride") + _tuple(strides) + b"sb"
  return tensor(_tuple(sizes), _tuple(strides), draw(st.sampled_from([b"", b"", b"", filled])))


@st.composite
def _pickles(draw):
  how = draw(st.integers(0, 3))
  if how == 0:
    return draw(st.sampled_from([*HARMFUL.values(), *HARMFUL_WEIGHTS]))
  harm = draw(st.sampled_from([steps[2:-1] for steps in HARMFUL.values()]))
  others = draw(st.sampled_from([b"", text("x") + harm + b"s", harm + b"Ns"]))
  weight = draw(_tensors()) if how == 1 else tensor(_tuple([8, 8]), _tuple([8, 1]))
  content = b"\x80\x02}" + others + text(NAME) + weight + b"s."
  return draw(damaged(content)) if how == 3 else content


@FUZZ
@given(st.data())
def test_weights_are_those_of_the_file_or_an_error_names_it(tmp_path_factory, data):
  path = tmp_path_factory.getbasetemp() / "fuzzed.ckpt"
  compression = data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2]))
  with zipfile.ZipFile(path, "w", compression) as archive:
    archive.writestr("archive/data.pkl", data.draw(_pickles()))
    archive.writestr("archive/data/0", np.full(64, VALUE).tobytes())
  if data.draw(st.integers(0, 3)) == 0:
    path.write_bytes(data.draw(damaged(path.read_bytes())))
  with guarded(SECONDS):
    try:
      weights = lumos.read_state_dict(path)
    except lumos.LumosError as error:
      assert str(path) in str(error) and len(str(error)) < 100_000
      return
  for array in weights.values():
    assert array.size <= 64 and (array == VALUE).all()
