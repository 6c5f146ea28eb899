"""Prints the reference of all config fields, docs/CONFIG.md, from the code.

python -m wam_jax.config.reference > docs/CONFIG.md

It is made of the rows of fields.py, of rules.py and of presets.py: change these, and print again.
"""

from __future__ import annotations

import re

from wam_jax.config.checks import MOST, shown
from wam_jax.config.fields import FIELDS, GROUPS, PRESETS
from wam_jax.config.finalize import flatten
from wam_jax.config.presets import preset_config
from wam_jax.config.rules import RULES
from wam_jax.host import console

_HEAD = """\
# All config fields

Made by `python -m wam_jax.config.reference > docs/CONFIG.md`. Do not edit: fields are rows of
[wam_jax/config/fields.py](../wam_jax/config/fields.py), rules between them of
[wam_jax/config/rules.py](../wam_jax/config/rules.py).

Any field is set by `--config.GROUP.FIELD=VALUE`; lists are comma-separated. An empty cell of `demo` or
`small` means the value of `paper`, the default. Below some tables stand the rules that fields must obey
together, `…` for a value. All mistakes are reported at once, before anything starts.
"""


def _value(value: object) -> str:
  text = shown(value)
  return f"`{text}`" if text else "(empty)"


def _rule(path: str) -> str:
  """What one field must be; bounds that bound nothing are left out."""
  rule = FIELDS[path].check.rule.replace(f" and at most {MOST}", "")
  return "a number" if rule == "at least -inf" else rule


def _cell(text: str) -> str:
  return text.replace("|", "\\|")


def _together(path: str) -> list[str]:
  """Rules of a field with others, in words; values that they would show are left out."""
  words = [re.sub(r" \([^()]*\{\d\}[^()]*\)", "", rule.rule) for rule in RULES if rule.path == path]
  return [f"- `{path}`: {re.sub(r'{[0-9]}', '…', text)}" for text in words]


def reference() -> str:
  """The page as Markdown."""
  presets = {name: flatten(preset_config(name)) for name in PRESETS}
  paper = presets["paper"]
  groups: dict[str, list[str]] = {}
  for path in FIELDS:
    groups.setdefault(path.rpartition(".")[0], []).append(path)
  lines = [_HEAD]
  for group in groups:
    lines += [f"## {group or 'Of the whole run'}", ""]
    if group in GROUPS:
      lines += [GROUPS[group], ""]
    lines += ["| field | `paper` | `demo` | `small` | must be | what it is |", "|---|---|---|---|---|---|"]
    for path in groups[group]:
      values = [_value(paper[path])]
      values += [
        _value(presets[n][path]) if presets[n][path] != paper[path] else "" for n in ("demo", "small")
      ]
      cells = [f"`{path}`", *values, _rule(path), FIELDS[path].doc]
      lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    together = [line for path in groups[group] for line in _together(path)]
    lines += ["", *together, ""] if together else [""]
  return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
  console.run_program(lambda: print(reference(), end=""))
