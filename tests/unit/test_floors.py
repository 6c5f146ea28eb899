"""Keeps the floors of the house: which room may import which."""

from __future__ import annotations

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "wam_jax"
BASE = {"types", "machine", "config", "config_rules", "config_study", "config_surroundings"}
# room -> rooms it may import, besides itself
ALLOWED = {
  "types": set(),
  "machine": set(),
  "config_study": set(),
  "config_reference": {"config", "config_rules"},
  "config_rules": {"config_study"},
  "config_surroundings": {"machine", "config_rules"},
  "config": {"machine", "config_rules", "config_study", "config_surroundings"},
  "core": BASE,
  "nn": BASE | {"core"},
  "train": BASE | {"core", "nn"},
  "data": BASE | {"core"},
  "envs": BASE | {"core"},
  "io": BASE | {"core"},
  "stages": BASE | {"core", "nn", "train", "data", "envs", "io"},
  "experiments": {"config", "config_study"},
  "main": BASE | {"stages"},
  "export": BASE | {"nn", "io", "stages"},
  "pack": BASE | {"io", "stages"},
  "play": BASE | {"envs", "io", "stages"},
  "report": {"io", "stages"},
  "seeds": {"io", "stages"},
  "run_exported": set(),
  "doctor": {"machine", "doctor_jobs"},
  "doctor_jobs": {"envs"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(source, top_level_only=False):
  """Dotted names of all that a source imports, relative imports not resolved (there are none)."""
  tree = ast.parse(source)
  nodes = tree.body if top_level_only else ast.walk(tree)
  names = set()
  for node in nodes:
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, "relative import"
      names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
  return names


def room(path):
  return path.relative_to(PACKAGE).with_suffix("").parts[0]


def violations(name, source):
  """Rooms that a file of room `name` imports although it may not."""
  found = {part.split(".")[1] for part in imports(source) if part.startswith("wam_jax.")}
  return found - ALLOWED[name] - {name, "__version__"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_floors(path):
  source = path.read_text(encoding="utf-8")
  if path != PACKAGE / "__init__.py":
    assert not violations(room(path), source)
  tops = {name.split(".")[0] for name in imports(source)}
  assert not tops & {"tensorflow", "torch", "clu"}
  if path != PACKAGE / "core" / "distributions.py":
    assert not tops & {"distrax", "tensorflow_probability"}
  if "play_table" not in path.parts:
    assert "mujoco" not in tops
  if path.parent == PACKAGE and path.name.startswith("config"):
    assert not tops & {"jax", "flax", "optax"}


def test_the_check_sees_a_violation():
  assert violations("train", "from wam_jax.io import logger") == {"io"}
  assert violations("core", "def f():\n  import wam_jax.nn.rssm") == {"nn"}
  assert not violations("stages", "from wam_jax.host.logger import Logger\nfrom wam_jax import types")


def test_no_drawer_for_everything():
  assert not [path for path in FILES if path.stem in ("utils", "util", "helpers", "misc", "common")]


def test_main_is_short():
  assert len((PACKAGE / "main.py").read_text().splitlines()) < 100


def test_simulators_are_not_imported_by_stages():
  """Follows top-level imports from every stage: none may reach MuJoCo."""
  seen, queue = set(), list((PACKAGE / "stages").glob("*.py"))
  while queue:
    path = queue.pop()
    if path in seen:
      continue
    seen.add(path)
    for name in imports(path.read_text(encoding="utf-8"), top_level_only=True):
      assert name.split(".")[0] != "mujoco", f"{path} imports mujoco when it is imported"
      file = ROOT / pathlib.Path(*name.split("."))
      queue += [each for each in (file.with_suffix(".py"), file / "__init__.py") if each.is_file()]
  assert len(seen) > len(list((PACKAGE / "stages").glob("*.py")))
