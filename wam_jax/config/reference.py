"""Prints the reference of all config fields, docs/CONFIG.md, from the code.

python -m wam_jax.config.reference > docs/CONFIG.md

Values are those of the presets, rules those that `config.finalize` checks, and what a field means is the
comment beside it in `config.default_config`: change these, and print again.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import textwrap
import tokenize

from wam_jax import config as config_lib
from wam_jax.config.rules import CHECKS, MOST, PRESETS, RULES, shown

_HEAD = """\
# All config fields

Made by `python -m wam_jax.config.reference > docs/CONFIG.md`. Do not edit: the comments are in
[`config/__init__.py`](../wam_jax/config/__init__.py), the rules in
[`config/rules.py`](../wam_jax/config/rules.py).

Any field is set by `--config.GROUP.FIELD=VALUE`; lists are comma-separated. An empty cell of `demo` or
`small` means the value of `paper`, the default. Below some tables stand the rules that fields must obey
together, `…` for a value. All mistakes are reported at once, before anything starts.
"""


def comments(source: str) -> dict[str, str]:
  """Comments of a function that fills a config `c`, by dotted path of the field or group that they stand at.

  Args:
    source: of the function. Comments at the end of a statement's lines count, and those on lines of their own
      right above it.

  Returns:
    path -> text; paths without a comment are left out.
  """
  source = textwrap.dedent(source)
  tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT]
  lines = source.splitlines()
  text = {token.start[0]: token.string.lstrip("# ").strip() for token in tokens}
  alone = {number for number in text if lines[number - 1].lstrip().startswith("#")}
  groups = {"c": ""}
  found: dict[str, str] = {}
  function = ast.parse(source).body[0]
  assert isinstance(function, ast.FunctionDef)
  for node in function.body:
    if not isinstance(node, ast.Assign):
      continue
    paths = [path for path in (_path(target, groups) for target in node.targets) if path]
    if not paths:
      continue
    for target in node.targets:
      if isinstance(target, ast.Name):
        groups[target.id] = f"{paths[0]}."
    above = node.lineno - 1
    while above in alone:
      above -= 1
    end = node.end_lineno or node.lineno
    parts = [text[number] for number in range(above + 1, end + 1) if number in text]
    if parts:
      found[paths[0]] = " ".join(parts)
  return found


def _path(target: ast.expr, groups: dict[str, str]) -> str:
  """Dotted path of `w.field` or `c.group.field`; '' of anything else."""
  names: list[str] = []
  while isinstance(target, ast.Attribute):
    names.insert(0, target.attr)
    target = target.value
  if not names or not isinstance(target, ast.Name) or target.id not in groups:
    return ""
  return groups[target.id] + ".".join(names)


def _value(value: object) -> str:
  text = shown(value)
  return f"`{text}`" if text else "(empty)"


def _rule(path: str) -> str:
  """What one field must be; bounds that bound nothing are left out."""
  rule = CHECKS[path].rule.replace(f" and at most {MOST}", "")
  return "a number" if rule == "at least -inf" else rule


def _cell(text: str) -> str:
  return text.replace("|", "\\|")


def _together(path: str) -> list[str]:
  """Rules of a field with others, in words; values that they would show are left out."""
  words = [re.sub(r" \([^()]*\{\d\}[^()]*\)", "", rule.rule) for rule in RULES if rule.path == path]
  return [f"- `{path}`: {re.sub(r'{[0-9]}', '…', text)}" for text in words]


def reference() -> str:
  """The page as Markdown."""
  said = comments(inspect.getsource(config_lib.default_config))
  presets = {name: config_lib.flatten(config_lib.preset_config(name)) for name in PRESETS}
  paper = presets["paper"]
  groups: dict[str, list[str]] = {}
  for path in CHECKS:  # in the order of `default_config`
    groups.setdefault(path.rpartition(".")[0], []).append(path)
  lines = [_HEAD]
  for group in groups:
    lines += [f"## {group or 'Of the whole run'}", ""]
    if group in said:
      lines += [f"{said[group][0].upper()}{said[group][1:].rstrip('.')}.", ""]
    lines += ["| field | `paper` | `demo` | `small` | must be | what it is |", "|---|---|---|---|---|---|"]
    for path in groups[group]:
      values = [_value(paper[path])]
      values += [
        _value(presets[n][path]) if presets[n][path] != paper[path] else "" for n in ("demo", "small")
      ]
      cells = [f"`{path}`", *values, _rule(path), said.get(path, "")]
      lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    together = [line for path in groups[group] for line in _together(path)]
    lines += ["", *together, ""] if together else [""]
  return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
  print(reference(), end="")
