"""Config parsing under random overrides: a finished config or a list of problems, and nothing else.

  bash launch/test.sh -m slow tests/slow/test_fuzz_config.py

WAM_FUZZ_CASES sets the number of cases per test, 2000 otherwise.
"""

from __future__ import annotations

import math
import os
import re

import pytest
from fuzzing import FUZZ, guarded, listing
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import FrozenConfigDict

from wam_jax import config as config_lib
from wam_jax.config import STAGES, TASKS, ConfigError, split_overrides
from wam_jax.config.checks import shown
from wam_jax.config.fields import CAMERAS, PRESETS
from wam_jax.config.fields import FIELDS as ROWS
from wam_jax.config.rules import RULES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

FIELDS = config_lib.flatten(config_lib.default_config())
SECONDS = 1.0  # of a case
PATH_FIELDS = [
  *("workdir", "data.calvin_path", "data.cache", "env.calvin_root", "judge.compare"),
  *(path for path in FIELDS if path.startswith("inputs.")),
]

_any_text = st.text(st.characters(exclude_categories=()), max_size=30)  # surrogates and null characters too
_number_text = st.one_of(
  st.integers().map(str),
  st.integers(-(10**40), 10**40).map(str),
  st.sampled_from([-1, 0, 1, 2, 3, 4, 16, 50, 64, 72, 2**31 - 1, 2**31, 2**63, 2**64]).map(str),
  st.floats().map(repr),
  st.builds("{}e{}".format, st.integers(-9, 9), st.integers(-400, 400)),
  st.integers(1, 6000).map(lambda n: "9" * n),
  st.sampled_from(
    ["nan", "-inf", "inf", "infinity", "1_000", "_1", "1__0", "0x10", "²", "١٢", "½", " 5 ", "+3"]
  ),
  st.sampled_from(["1e400", "-0", "1e-400", "1.0", "1,5", "True", "None", "1j", "1e", "--1", "5%"]),
)
_list_text = st.recursive(
  st.one_of(_number_text.filter(lambda t: len(t) < 50), st.sampled_from(TASKS), _any_text),
  lambda inner: st.builds(
    lambda items, pair: pair[:1] + ",".join(items) + pair[1:],
    st.lists(inner, max_size=4),
    st.sampled_from(["()", "[]", "", "((", "{}", "(]", "''"]),
  ),
  max_leaves=8,
)
_path_text = st.one_of(
  st.sampled_from(
    ["", " ", ".", "..", "/", "//", "~", "~nobody", "~/x", "~\0", "~\ud800", "/root/x", "/dev/null"]
  ),
  st.sampled_from(
    ["/proc/self/mem", "/dev/null/x", "file", "file/x", "folder", "folder/run", "loop", "loop/x"]
  ),
  st.sampled_from(
    ["done", "done/ppo", "data", "broken", "data/training", "/etc/passwd", "a" * 300, "x/" + "a" * 300]
  ),
  st.builds(lambda n: "a/" * n, st.integers(1, 4000)),
  st.sampled_from(
    ["{task}", "{task}.pt", "{}", "{0}", "{task", "%s", "$HOME", "C:\\x", "a\nb", "a\0b", "*", "ä\u202e"]
  ),
  _any_text,
)
_words = sorted({word for row in ROWS.values() for word in re.split(r"[ ,]+", row.check.rule)})
_text = st.one_of(
  _any_text,
  _number_text,
  _list_text,
  _path_text,
  st.sampled_from(_words),
  st.sampled_from(sorted({shown(value) for value in FIELDS.values()})),
  st.builds(
    lambda unit, n: unit * n,
    st.sampled_from(["a", "(", "[", "9", "1,", "\0", ".", "_", "é", "{}"]),
    st.sampled_from([1, 999, 100_000]),
  ),
)


@st.composite
def _near_miss(draw):
  """A field's path with a letter lost, doubled, swapped or foreign, or with another group."""
  path = draw(st.sampled_from(sorted(FIELDS)))
  at = draw(st.integers(0, len(path) - 1))
  how = draw(st.integers(0, 6))
  extra = draw(st.sampled_from([".", "", "\0", "é", "_", "x", "=", "-", " ", "[0]"]))
  return (
    path[:at] + path[at + 1 :],
    path[:at] + extra + path[at:],
    path.upper(),
    path.split(".")[0],
    f"{draw(st.sampled_from(['model', 'ppo', 'data', '']))}.{path.rsplit('.', 1)[-1]}",
    path + "." + draw(st.sampled_from(["x", "", "y.z"])),
    path[::-1],
  )[how]


_paths = st.one_of(
  st.sampled_from(sorted(FIELDS)),
  st.sampled_from(sorted(FIELDS)),
  st.sampled_from(PATH_FIELDS),
  _near_miss(),
  _any_text,
)


def _plausible(path):
  """Texts that often pass the field's own check, so that the rules between fields are reached."""
  value = FIELDS[path]
  if path in PATH_FIELDS:
    return _path_text
  if isinstance(value, bool):
    return st.sampled_from(["true", "False", "1", "no", "YES"])
  if isinstance(value, int):
    return st.one_of(
      st.integers(0, 100).map(str),
      st.sampled_from([2**31 - 1, 2**31 - 2, 1_000_003, 2**30]).map(str),
      st.integers(1, 2**31 - 1).map(str),
    )
  if isinstance(value, float):
    return st.floats(0, 1).map(repr)
  if isinstance(value, tuple):
    return _list_text
  words = re.split(r"[ ,]+", ROWS[path].check.rule)
  return st.one_of(st.sampled_from(words), _any_text)


_pairs = st.one_of(
  st.tuples(_paths, _text),
  st.sampled_from(sorted(FIELDS)).flatmap(lambda path: st.tuples(st.just(path), _plausible(path))),
  st.sampled_from(PATH_FIELDS).flatmap(lambda path: st.tuples(st.just(path), _path_text)),
)


@st.composite
def _argv(draw, pairs):
  """Command line for these overrides, in one of the spellings, perhaps with foreign words among them."""
  words = ["main"]
  for path, text in draw(st.lists(pairs, max_size=4)):
    spelling = draw(st.integers(0, 7))
    dashes = draw(st.sampled_from(["--", "--", "-"]))
    if spelling < 5:
      words.append(f"{dashes}config.{path}={text}")
    elif spelling == 5:
      words += [f"{dashes}config.{path}", text]
    else:
      words.append(f"{dashes}{draw(st.sampled_from(['config.', 'noconfig.']))}{path}")
  if draw(st.integers(0, 9)) == 0:
    words.append(draw(_any_text))
  return words


@pytest.fixture(name="place", scope="module")
def _place(tmp_path_factory):
  """The working folder, holding what overrides may name."""
  place = tmp_path_factory.mktemp("place")
  (place / "file").write_text("x")
  (place / "folder").mkdir()
  (place / "loop").symlink_to("loop")
  for stage in (".", *STAGES):
    (place / "done" / stage).mkdir(parents=True, exist_ok=True)
    (place / "done" / stage / "DONE").touch()
  for name, ids in (("data", b"\x93NUMPY\x01\0"), ("broken", b"")):
    for split in ("training", "validation", "failed"):
      (place / name / split).mkdir(parents=True)
      (place / name / split / "ep_start_end_ids.npy").write_bytes(ids)
  here = os.getcwd()
  os.chdir(place)
  yield place
  os.chdir(here)


def _check_finished(config):
  assert isinstance(config, FrozenConfigDict)
  fields = config_lib.flatten(config)
  assert set(fields) == set(ROWS)
  for path, value in fields.items():
    assert ROWS[path].problems(value) == [], (path, value)
  for rule in RULES:
    assert rule.holds(*(fields[path] for path in (rule.path, *rule.needs))), rule
  os.fsencode(config.workdir)  # a path that can be made
  assert "\0" not in config.workdir
  assert config_lib.flatten(config_lib.finalize(config)) == fields  # nothing is left to be done


@FUZZ
@given(st.data())
def test_any_command_line_gives_a_config_or_problems(place, data):
  argv = data.draw(_argv(_pairs))
  preset = data.draw(st.sampled_from(PRESETS))
  before = listing(place)
  config = config_lib.preset_config(preset)
  if data.draw(st.booleans()):
    config.data.source = "embedded"  # most of the paper's own configs have no dataset here, which stops them
  with guarded(SECONDS):
    rest, overrides = split_overrides(argv)
    try:
      final = config_lib.finalize(config, config_lib.apply_overrides(config, overrides))
    except ConfigError as error:
      assert error.problems and all(p.rule and p.fix and p.path is not None for p in error.problems)
      assert len(str(error)) < 3000 * len(error.problems)
    else:
      _check_finished(final)
  assert all(isinstance(word, str) for word in rest) and rest[0] == "main"
  assert listing(place) == before


_whole = st.one_of(st.integers(0, 2**31 - 1), st.integers(0, 200))
_number = st.floats(allow_nan=False, allow_infinity=False)
_item = st.text(
  st.characters(exclude_characters=",", exclude_categories=("Cs",)), min_size=1, max_size=9
).filter(lambda t: t == t.strip().strip("'\"") and t.strip())


def _valid(path):
  """Values of the field's type that its check takes."""
  value, check = FIELDS[path], ROWS[path].check
  if isinstance(value, bool):
    values = st.booleans()
  elif isinstance(value, int):
    values = st.one_of(_whole, st.just(value))
  elif isinstance(value, float):
    values = st.one_of(_number, st.floats(0, 1), st.just(value))
  elif path == "tasks":
    values = st.permutations(TASKS).flatmap(lambda t: st.integers(1, len(t)).map(lambda n: tuple(t[:n])))
  elif path == "world_model.cameras":
    values = st.sampled_from([(c,) for c in CAMERAS] + [CAMERAS])
  elif path == "world_model.adam_betas":
    values = st.tuples(st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
  elif path == "judge.compare":
    values = (
      st.lists(_item, min_size=0, max_size=3)
      .map(tuple)
      .filter(lambda t: not t or t[0][0] + t[-1][-1] not in ("()", "[]"))
    )
  elif isinstance(value, tuple):
    values = st.sets(st.integers(1, 10**6), min_size=1, max_size=4).map(lambda s: tuple(sorted(s)))
  elif check.rule.startswith("one of "):
    values = st.sampled_from(re.split(r"[ ,]+", check.rule)[2:])
  else:
    values = _any_text
  return values.filter(check.holds)


@FUZZ
@given(st.data())
def test_the_text_of_a_value_gives_the_value(place, data):
  chosen = data.draw(st.lists(st.sampled_from(sorted(FIELDS)), min_size=1, max_size=4, unique=True))
  values = {path: data.draw(_valid(path)) for path in chosen}
  argv = [f"--config.{path}={shown(value)}" for path, value in values.items()]
  config = config_lib.preset_config("demo")
  with guarded(SECONDS):
    rest, overrides = split_overrides(argv)
    assert rest == [] and config_lib.apply_overrides(config, overrides) == []
  found = config_lib.flatten(config)
  for path, value in values.items():
    assert found[path] == value and type(found[path]) is type(value), path
    if isinstance(value, float):
      assert math.copysign(1, value) == math.copysign(1, found[path])
  assert {path: value for path, value in found.items() if path not in values} == {
    path: value
    for path, value in config_lib.flatten(config_lib.preset_config("demo")).items()
    if path not in values
  }
