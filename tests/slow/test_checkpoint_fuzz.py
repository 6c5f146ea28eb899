"""Manifests of arbitrary content: a `CheckpointError` or a valid result, and nothing outside the folder."""

from __future__ import annotations

import builtins
import hashlib
import json
import math
import os
import pathlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wam_jax.storage import checksums
from wam_jax.storage.checkpoint import Checkpointer, CheckpointError

pytestmark = pytest.mark.slow

FUZZ = settings(
  max_examples=2000,
  deadline=None,
  suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
CONTENT = {"a": b"first", "d/b": b"second", "d/e/c": b""}
OUTSIDE = (
  "../secret",
  "/etc/hostname",
  "d/../../secret",
  "link/secret",
  "linked",
  "d",
  ".",
  "",
  "a/",
  "a\0",
  "//a",
)
LINKS = ("link/secret", "linked", "d")  # names that only a look at the disk finds wrong

scalars = st.one_of(
  st.none(),
  st.booleans(),
  st.integers(),
  st.integers(min_value=10**400, max_value=10**401),
  st.floats(),
  st.text(max_size=8),
)
anything = st.recursive(
  scalars,
  lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
  max_leaves=8,
)
true_files = {
  name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
  for name, content in CONTENT.items()
}
names = st.sampled_from((*CONTENT, *OUTSIDE, "manifest.json", "x\\y", "c:a", "nul")) | st.text(max_size=8)
entries = (
  st.sampled_from(list(true_files.values()))
  | st.fixed_dictionaries(
    {}, optional={"bytes": anything, "sha256": anything | st.text("0123456789abcdef", min_size=64)}
  )
  | anything
)
# Most of a manifest right, some of it wrong: random JSON alone would never come past the first check.
records = st.fixed_dictionaries(
  {},
  optional={
    "format": st.just(2) | anything,
    "step": st.just(5) | anything,
    "score": st.none() | st.floats() | anything,
    "files": st.just(true_files) | st.dictionaries(names, entries, max_size=4) | anything,
    "sha256": anything,
  },
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A step's folder that all cases share: only its manifest changes."""
  parent = tmp_path_factory.mktemp("fuzz")
  (parent / "secret").write_bytes(b"secret")
  folder = parent / "ckpt" / "5"
  for name, content in CONTENT.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
  (folder / "link").symlink_to(parent)
  (folder / "linked").symlink_to(parent / "secret")
  (parent / "ckpt" / "format.json").write_text('{"format": 2}')
  return folder


@pytest.fixture
def opened(monkeypatch):
  """Real paths of the files opened for reading or writing."""
  seen = []
  functions = {(builtins, "open"): builtins.open, (os, "open"): os.open, (os, "replace"): os.replace}
  for (module, name), function in functions.items():

    def watched(file, *arguments, function=function, **options):
      seen.append(os.path.realpath(file))
      return function(file, *arguments, **options)

    monkeypatch.setattr(module, name, watched)
  monkeypatch.setattr("io.open", builtins.open)  # pathlib's
  return seen


def check(folder, opened, content):
  (folder / "manifest.json").write_bytes(content)
  opened.clear()
  try:
    manifest = checksums.verify(folder, step=5)
  except CheckpointError as error:
    assert "\n" not in str(error)
    manifest = None
  else:  # what is called good is so
    assert manifest.files and set(manifest.files) <= set(CONTENT)
    assert all(file == checksums.File(**true_files[name]) for name, file in manifest.files.items())
    assert manifest.step == 5 and (manifest.score is None or math.isfinite(manifest.score))
  root = os.path.realpath(folder)
  assert opened and all(pathlib.Path(file).is_relative_to(root) for file in opened), opened
  return manifest


def signed(record):
  try:
    return json.dumps(checksums.seal({k: v for k, v in record.items() if k != "sha256"}))
  except ValueError:  # lone surrogates and numbers of more digits than Python prints
    return json.dumps({})


@FUZZ
@given(record=records, sign=st.booleans())
def test_records(folder, opened, record, sign):
  text = signed(record) if sign else json.dumps(record)
  check(folder, opened, text.encode())


@FUZZ
@given(content=st.binary(max_size=200) | anything.map(lambda value: json.dumps(value).encode()))
def test_bytes(folder, opened, content):
  check(folder, opened, content)


@FUZZ
@given(data=st.data())
def test_a_good_manifest_with_changed_bytes(folder, opened, data):
  good = signed({"format": 2, "step": 5, "score": 0.5, "files": true_files}).encode()
  content = bytearray(good)
  for _ in range(data.draw(st.integers(1, 4))):
    content[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
  manifest = check(folder, opened, bytes(content))
  # White space may change, nothing else.
  assert manifest is None or json.loads(content) == json.loads(good)


@settings(FUZZ, max_examples=200)
@given(record=records)
def test_a_checkpointer_opens_it_and_says_what_is_wrong(folder, record):
  text = signed(record)
  (folder / "manifest.json").write_text(text)
  with Checkpointer(folder.parent) as checkpointer:
    assert checkpointer.latest_step() == 5
    with pytest.raises(CheckpointError):  # no case holds what Orbax wants
      checkpointer.restore({})
  assert (folder / "manifest.json").read_text() == text


@pytest.mark.parametrize(
  "content",
  [
    b"",
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"format": 1' + b"0" * 5000 + b"}",
    b'{"format": 2, "files": NaN}',
    b'"\\ud800"',
    b'{"format": 2, "\\ud800": 1}',
  ],
)
def test_known_traps(folder, opened, content):
  assert check(folder, opened, content) is None


@pytest.mark.parametrize("name", [*OUTSIDE, "manifest.json", "x\\y", "c:a"])
def test_paths_outside(folder, opened, name):
  record = {"format": 2, "step": 5, "files": true_files | {name: {"bytes": 6, "sha256": "0" * 64}}}
  assert check(folder, opened, signed(record).encode()) is None
  with pytest.raises(
    CheckpointError, match="not a file of this folder" if name not in LINKS else "is a link|not a file"
  ):
    checksums.verify(folder, step=5)


def test_the_prepared_folder_is_good(folder, opened):
  assert set(
    check(folder, opened, signed({"format": 2, "step": 5, "files": true_files}).encode()).files
  ) == set(CONTENT)
