"""Keeps the house: imports go down, no circle of files, packages where they belong."""

from __future__ import annotations

import ast
import functools
import pathlib

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "wam_jax"
# From the ground up: a room imports only rooms named before it, and itself.
ROOMS = (
  "embodiment",
  "types",
  "core",
  "host",
  "nn",
  "envs",
  "config",
  "training",
  "storage",
  "data",
  "foreign",
  "acting",
  "reporting",
  "running",
  "stages",
  "commands",
  "experiments",
  "main",
)
PROGRAMS = (
  "__main__",
  "aot",
  "doctor",
  "export",
  "pack",
  "play",
  "report",
  "seeds",
)  # `python -m wam_jax.NAME`
# Rooms that never import JAX: they run where it may be missing, or must start at once.
WITHOUT_JAX = ("config", "host", "experiments")


parse = functools.cache(ast.parse)


def sources():
  """Module -> its source."""
  modules = {}
  for path in sorted(PACKAGE.rglob("*.py")):
    parts = path.relative_to(ROOT).with_suffix("").parts
    modules[".".join(parts).removesuffix(".__init__")] = path.read_text(encoding="utf-8")
  return modules


def imports(source, modules, top_level_only=False):
  """Modules of the package, and tops of other packages, that a source imports."""
  tree = parse(source)
  found = set()
  for node in tree.body if top_level_only else ast.walk(tree):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, "relative import"
      dotted = {f"{node.module}.{alias.name}" for alias in node.names}
      found |= {name if name in modules else str(node.module) for name in dotted}
  return {name if name.split(".")[0] == "wam_jax" else name.split(".")[0] for name in found}


def room(module):
  """The room of a module; None of the package's face and of the programs' rows."""
  parts = module.split(".")
  return parts[1] if len(parts) > 1 and parts[1] not in PROGRAMS else None


def upward(modules):
  """Imports that go up, as 'module -> module'."""
  floor = {name: height for height, name in enumerate(ROOMS)}
  return [
    f"{module} -> {other}"
    for module, source in modules.items()
    for other in sorted(imports(source, modules))
    if room(module) and other.startswith("wam_jax.") and floor[room(other)] > floor[room(module)]
  ]


def circles(modules):
  """Groups of modules that import each other, also by imports inside functions (Tarjan)."""
  graph = {module: imports(source, modules) & set(modules) for module, source in modules.items()}
  index, low, stack, found = {}, {}, [], []

  def visit(module):
    index[module] = low[module] = len(index)
    stack.append(module)
    for other in graph[module]:
      if other not in index:
        visit(other)
      if other in stack:
        low[module] = min(low[module], low[other])
    if low[module] == index[module]:
      group = stack[stack.index(module) :]
      del stack[stack.index(module) :]
      if len(group) > 1:
        found.append(sorted(group))

  for module in graph:
    if module not in index:
      visit(module)
  return found


def test_imports_go_down():
  modules = sources()
  assert {room(module) for module in modules} <= {None, *ROOMS}
  assert not upward(modules)


def test_no_circle_of_files():
  assert not circles(sources())


def test_the_checks_see_a_violation():
  modules = {
    "wam_jax.core.a": "def f():\n  from wam_jax.core import b",
    "wam_jax.core.b": "from wam_jax.core.a import f",
    "wam_jax.host.c": "import wam_jax.nn.d",
    "wam_jax.nn.d": "from wam_jax.host import c",
  }
  assert upward(modules) == ["wam_jax.host.c -> wam_jax.nn.d"]
  assert circles(modules) == [
    ["wam_jax.core.a", "wam_jax.core.b"],
    ["wam_jax.host.c", "wam_jax.nn.d"],
  ]


def test_packages_are_imported_where_they_belong():
  modules = sources()
  for module, source in modules.items():
    tops = imports(source, modules)
    assert not tops & {"tensorflow", "torch", "clu"}, module
    assert module == "wam_jax.core.distributions" or not tops & {"distrax", "tensorflow_probability"}, module
    assert module == "wam_jax.envs.physics" or "mujoco" not in tops, module
    assert module.startswith("wam_jax.envs.metaworld.") or "metaworld" not in tops, module
    assert module.startswith("wam_jax.data.lerobot") or "pyarrow" not in tops, module
    assert room(module) not in WITHOUT_JAX or not imports(source, modules, True) & {"jax", "flax"}, module


def test_stages_hold_stages():
  from wam_jax.config import STAGES
  from wam_jax.config.chain import EXTRA_STAGES

  files = {path.stem for path in (PACKAGE / "stages").glob("*.py")} - {"__init__"}
  assert files == {*STAGES, *EXTRA_STAGES}


def test_no_drawer_for_everything():
  names = {path.stem for path in PACKAGE.rglob("*.py")}
  assert not names & {"utils", "util", "helpers", "misc", "common"}


def test_main_is_short():
  assert len((PACKAGE / "main.py").read_text().splitlines()) < 100


def test_simulators_are_not_imported_by_stages():
  """Follows top-level imports from every stage: none may reach MuJoCo."""
  modules = sources()
  seen, queue = set(), [module for module in modules if room(module) == "stages"]
  assert len(queue) > 10
  while queue:
    module = queue.pop()
    seen.add(module)
    reached = imports(modules[module], modules, top_level_only=True)
    assert "mujoco" not in reached, f"{module} imports mujoco when it is imported"
    queue += sorted(reached & set(modules) - seen)
  assert "wam_jax.training.world_model" in seen
