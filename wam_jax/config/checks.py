"""What a value must be, in code and in words; and how what is wrong is reported."""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from wam_jax.envs import registry
from wam_jax.host import machine

MOST = 2**31 - 1  # of whole numbers: more does not fit JAX's integers


@dataclasses.dataclass(frozen=True)
class Problem:
  """One thing wrong with a config.

  Attributes:
    path: dotted path of the field.
    value: what it is.
    rule: what it must be.
    fix: what to do.
  """

  path: str
  value: Any
  rule: str
  fix: str


def _shortened(text: str, most: int = 400) -> str:
  return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


class ConfigError(Exception):
  """The config cannot be used. Its text lists every problem found.

  Attributes:
    problems: all of them.
    config: what a plan can still be made of, where only things on this machine are missing; else None.
  """

  def __init__(self, problems: Sequence[Problem], config: Any = None):
    self.problems, self.config = tuple(problems), config
    count = len(self.problems)
    lines = [f"{count} problem{'s' if count > 1 else ''} in the configuration; nothing was started."]
    for problem in self.problems:
      shown = "" if problem.value is None else f" = {_shortened(repr(problem.value))}"
      lines += [f"  {_shortened(problem.path)}{shown}"]
      lines += [f"    rule: {_shortened(problem.rule, 1000)}", f"    fix:  {_shortened(problem.fix, 1000)}"]
    super().__init__("\n".join(lines))


def suggest(word: str, candidates: Iterable[str]) -> str:
  """The known word that `word` was most likely meant to be, or ''."""
  candidates = list(candidates)
  close = difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)
  if close:
    return close[0]
  # The right last part under a wrong group: world_model.update, model.updates.
  tails: dict[str, list[str]] = {}
  for path in candidates:
    tails.setdefault(path.rsplit(".", 1)[-1], []).append(path)
  tail = difflib.get_close_matches(word.rsplit(".", 1)[-1], list(tails), n=1, cutoff=0.75)
  return tails[tail[0]][0] if tail and len(tails[tail[0]]) == 1 else ""


def shown(value: Any) -> str:
  """A value as one writes it on the command line."""
  return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
  """A question naming the likely right word, or an empty string."""
  better = suggest(word, candidates)
  return f"did you mean {better}?" if better else ""


@dataclasses.dataclass(frozen=True)
class Check:
  """What one field must be.

  Attributes:
    holds: of a value of these types -> whether it is right.
    rule: the same in words.
    types: that a value may have.
    item: example of what a list holds, as an empty list does not show it.
  """

  holds: Callable[[Any], bool]
  rule: str
  types: tuple[type, ...]
  item: Any = ""

  def takes(self, value: Any) -> bool:
    """Whether `value` is of the right type; true and false are no numbers."""
    return isinstance(value, self.types) and (bool in self.types or not isinstance(value, bool))


def number(low: float, high: float = math.inf, *, open_low: bool = False, integer: bool = False) -> Check:
  """A number in [low, high], or (low, high] if `open_low`."""
  above = f"more than {low}" if open_low else f"at least {low}"
  rule = above if high == math.inf else f"{above} and at most {high}"
  return Check(
    lambda value: math.isfinite(value) and (low < value if open_low else low <= value) and value <= high,
    f"{'a whole number, ' if integer else ''}{rule}",
    (int,) if integer else (int, float),
  )


def count(low: int = 1, high: int = MOST) -> Check:
  """A whole number in [low, high]."""
  return number(low, high, integer=True)


def choice(*words: str) -> Check:
  """One of these words."""
  return Check(lambda value: value in words, f"one of {', '.join(words)}", (str,))


def several(holds: Callable[[Any], bool], rule: str, item: Any = "") -> Check:
  """A list; `item` is an example of what it holds: `holds` sees lists of texts only where it is a text."""
  kinds = (str,) if isinstance(item, str) else (int, float)
  return Check(
    lambda value: all(isinstance(part, kinds) for part in value) and holds(value), rule, (tuple, list), item
  )


def subset(words: Iterable[str], rule: str, least: int = 0) -> Check:
  """Different ones of these words, `least` or more; `rule` says so before the words are named."""
  words = tuple(words)
  return several(
    lambda value: least <= len(value) == len(set(value)) and set(value) <= set(words),
    f"{rule} {', '.join(words)}",
  )


def names(rule: str) -> Check:
  """Different words, at least one."""
  return several(lambda value: 0 < len(value) == len(set(value)) and all(value), rule)


def _ascending(value: Sequence[Any]) -> bool:
  return all(type(x) is int and x > 0 for x in value) and list(value) == sorted(set(value))


RATE = number(0, 1)
POSITIVE = number(0, open_low=True)
NOT_NEGATIVE = number(0)
TEXT = Check(lambda value: True, "a word", (str,))
PLACE = Check(
  machine.on_this_machine,
  "a place on this machine, not the address of a bucket: mount it first (docs/CLUSTER.md)",
  (str,),
)
NAME = Check(
  lambda value: bool(value) and value == value.strip() and "/" not in value, "a name without /", (str,)
)
PROJECT = Check(
  lambda value: len(value) <= 128 and value == value.strip() and not set(value) & set("/\\#?%:"),
  "a name of at most 128 letters without any of / \\ # ? % :",
  (str,),
)
FLAG = Check(lambda value: True, "true or false", (bool,))
SIMULATOR = Check(
  lambda value: value in registry.names() or all(value.partition(":")[::2]),
  f"one of {', '.join(registry.names())}, {registry.OTHERS}",
  (str,),
)
WORDS = several(
  lambda value: len(value) == len(set(value)) and all(isinstance(x, str) and x for x in value),
  "different words",
)
FOLDERS = several(
  lambda value: all(isinstance(x, str) and machine.on_this_machine(x) for x in value),
  "folders on this machine, not addresses of buckets: mount them first (docs/CLUSTER.md)",
)
WIDTHS = several(
  lambda value: len(value) > 0 and all(type(width) is int and width > 0 for width in value),
  "one or more layer widths, each at least 1",
  1,
)
RESIDUAL_WIDTHS = several(
  lambda value: len(value) % 2 == 1 and len(set(value)) == 1 and type(value[0]) is int and value[0] > 0,
  "an odd number of equal layer widths, each at least 1",
  1,
)
EPISODES = several(
  lambda value: all(isinstance(x, str) and re.fullmatch(r".+:\d{1,9}(-\d{1,9})?", x) for x in value),
  "NAME:NUMBER or NAME:FIRST-LAST, where NAME is a task, play, heldout, failed or unused",
)
UPDATES = several(_ascending, "updates, each at least 1, ascending", 1)
HORIZONS = several(
  lambda value: len(value) > 0 and _ascending(value), "one or more frames, each at least 1, ascending", 1
)
SEEDS = several(
  lambda value: all(type(x) is int and 0 <= x <= MOST for x in value) and len(set(value)) == len(value),
  "different seeds, each at least 0",
  1,
)
BETAS = several(
  lambda value: len(value) == 2 and all(isinstance(x, (int, float)) and 0 <= x < 1 for x in value),
  "two numbers, each at least 0 and below 1",
  0.9,
)
