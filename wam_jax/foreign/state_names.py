"""Names of weights in checkpoints as people have them: nested, wrapped, and averaged next to plain."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

# Of torch.compile; of DataParallel, DDP and AveragedModel, which counts its updates too.
_WRAPPERS = re.compile(r"(?:(?<=[./])|^)(?:_orig_mod|module)\.")
_COUNTER = "n_averaged"
_AVERAGED = re.compile(r"(?:^|[./_])(?:ema|swa|averaged?|avg|polyak)(?:[./_]|$)", re.IGNORECASE)
_DEPTH = 8  # of dicts in dicts that are looked into


def flat_entries(root: Mapping[Any, Any]) -> dict[str, Any]:
  """Entries of nested dicts by dotted names, without the names of wrappers.

  What is under `state_dict`, `model` or the like keeps that as a prefix. Each dict is looked into once: those
  that hold themselves, or each other many times, cost no more. Of two entries whose names differ in wrappers
  only, the first counts.
  """
  out: dict[str, Any] = {}
  seen: set[int] = set()

  def add(tree: Mapping[Any, Any], before: str, depth: int) -> None:
    seen.add(id(tree))
    for name, value in tree.items():
      if not isinstance(name, str) or name == _COUNTER:
        continue
      if not isinstance(value, Mapping):
        out.setdefault(_WRAPPERS.sub("", before + name), value)
      elif depth and id(value) not in seen:
        add(value, f"{before}{name}.", depth - 1)

  add(root, "", _DEPTH)
  return out


def averaged_first(prefixes: Iterable[str]) -> list[str]:
  """Those of several copies' prefixes that name averaged weights ('ema_model.'); all, if none does."""
  prefixes = sorted(prefixes)
  return [prefix for prefix in prefixes if _AVERAGED.search(prefix)] or prefixes
