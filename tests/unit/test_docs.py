"""Runs the documentation: commands are parsed for real, code is compiled and partly executed, links followed.

What a command needs (a dataset, a checkpoint, a finished run) stands in a temporary folder as an empty file
of the right name.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import io
import os
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from absl.testing import flagsaver

from wam_jax import main
from wam_jax.config import STAGES, TASKS, ConfigError, default_config, flatten
from wam_jax.config import reference as config_reference
from wam_jax.config.surroundings import dppo_file
from wam_jax.data import inspect
from wam_jax.envs import tasks as task_oracle

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "BUILD.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))

# Commands that are not ours, by how they begin.
OTHERS = (
  "pip install -e",
  "git clone https://github.com/mees/calvin_env",
  "source .venv/bin/activate",
  "xpk workload create",
  "python exported/run_policy.py",  # made by the command before it
)
LAUNCHERS = {"launch/tpu_pod.sh", "launch/gke.sh"}  # COMMAND --SETTING=VALUE -- ARGUMENTS OF wam_jax.main
MAIN = "wam_jax.main"

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# (page, words of the block): these need nothing but this package.
EXECUTED = (
  ("README.md", "action_space.sample()"),
  ("docs/guides/own_data.md", "FrameWriter"),
  ("docs/guides/add_a_simulator.md", "make_environment"),
)


def name_of(path):
  return str(path.relative_to(ROOT))


def blocks(path, language):
  return [code for kind, code in BLOCK.findall(path.read_text(encoding="utf-8")) if kind == language]


# --- bash -------------------------------------------------------------------------------------------


def commands(block):
  """Simple commands of a block as (words, exported variables), with its variables and loops filled in."""
  lines = block.replace("\\\n", " ").splitlines()
  return _commands(lines, {}, {})


def _commands(lines, variables, exported):
  out = []
  i = 0
  while i < len(lines):
    line = re.sub(r"\$\{?(\w+)\}?", lambda m: variables.get(m[1], m[0]), lines[i]).strip()
    i += 1
    loop = re.fullmatch(r"for (\w+) in (.*); do", line)
    if loop:
      end = next(j for j in range(i, len(lines)) if lines[j].strip() == "done")
      for value in loop[2].split():
        out += _commands(lines[i:end], variables | {loop[1]: value}, exported)
      i = end + 1
      continue
    for words in _split(line):
      if words[0] == "export":
        words = words[1:]
        exported |= dict(word.split("=", 1) for word in words)
      while words and re.fullmatch(r"\w+=.*", words[0], re.DOTALL):
        name, value = words.pop(0).split("=", 1)
        variables[name] = value
      if words:
        out.append((words, dict(exported)))
  return out


def _split(line):
  """Words of each command of a line; redirections are left out."""
  lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
  lexer.whitespace_split = True
  found, skip = [[]], False
  for word in lexer:
    if skip:
      skip = False
    elif set(word) <= set("<>"):
      skip = True
    elif set(word) <= set(";&|()"):
      found.append([])
    else:
      found[-1].append(word)
  return [words for words in found if words and words != ["break"]]


class Checker:
  """Finds what is wrong with a command; `folder` takes what commands need."""

  def __init__(self, folder):
    self.folder = folder
    (folder / "experiments").symlink_to(ROOT / "experiments")

  def problems(self, words, exported):
    """Texts; none if the command is right."""
    text = " ".join(words)
    if any(text.startswith(each) for each in OTHERS):
      inside = [word.split("=", 1)[1] for word in words if word.startswith("--command=")]
      return [p for each in inside for p in self.problems(shlex.split(each.removeprefix("exec ")), exported)]
    first, *rest = words
    if first in ("python", ".venv/bin/python") and rest[:1] == ["-m"]:
      return self.module(rest[1], rest[2:], exported)
    if first in ("python", ".venv/bin/python", "bash", "sbatch"):
      at = next((i for i, word in enumerate(rest) if not word.startswith("-")), None)
      if at is None or not (ROOT / rest[at]).is_file():
        return [f"{text}: there is no such script"]
      check = self.python_script if first.endswith("python") else self.shell_script
      return check(rest[at], rest[at + 1 :], exported)
    return [f"{text}: neither ours nor on the list of other commands in tests/unit/test_docs.py"]

  def module(self, name, arguments, exported):
    if name == MAIN:
      return self.main(arguments, exported)
    try:
      found = importlib.import_module(name)
    except ImportError:
      return [f"python -m {name}: no such module"]
    if not hasattr(found, "main"):
      return [f"python -m {name} takes no arguments: {arguments}"] if arguments else []
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.raises(SystemExit):
      found.main(["--help"])
    return unknown_flags(f"python -m {name}", arguments, out.getvalue())

  def python_script(self, path, arguments, exported):
    rest = []
    if "--" in arguments:
      at = arguments.index("--")
      arguments, rest = arguments[:at], arguments[at + 1 :]
    return unknown_flags(path, arguments, help_of(path)) + (self.main(rest, exported) if rest else [])

  def shell_script(self, path, arguments, exported):
    script = (ROOT / path).read_text(encoding="utf-8")
    problems = []
    if path in LAUNCHERS:
      at = arguments.index("--") if "--" in arguments else len(arguments)
      command, *settings = arguments[:at]
      labels = re.findall(r"^  ([a-z][a-z |-]*)\)", script[script.rindex("\ncommand=${1:-") :], re.MULTILINE)
      if command not in " ".join(labels).replace("|", " ").split():
        problems.append(f"{path}: no command {command}")
      known = re.search(r'^SETTINGS="(.*?)"', script, re.MULTILINE | re.DOTALL)[1].split()
      for word in settings:
        if word.lstrip("-").partition("=")[0].replace("-", "_").upper() not in known:
          problems.append(f"{path}: no setting {word}")
      rest = arguments[at + 1 :]
    elif path == "launch/quickstart.sh":
      rest = ["--config=experiments/calvin_wam.py:demo", *arguments]
    elif path == "launch/slurm.sbatch":
      rest = arguments
    else:  # test.sh: tests to run; lock.sh: nothing
      rest = []
      problems = [f"{path}: no {word}" for word in arguments if not (ROOT / word).exists()]
    return problems + (self.main(rest, exported) if rest else [])

  def main(self, arguments, exported):
    """Parses and finalizes as `wam_jax.main` does, in the folder, without starting anything."""
    text, errors = f"{MAIN} {' '.join(arguments)}", io.StringIO()
    self.provide(arguments, exported)
    with (
      contextlib.chdir(self.folder),
      pytest.MonkeyPatch.context() as patch,
      flagsaver.flagsaver(),
      contextlib.redirect_stderr(errors),
    ):
      for name in ("CALVIN_DATA", "CALVIN_ROOT"):
        patch.delenv(name, raising=False)
      for name, value in ({"JAX_PLATFORMS": "cpu"} | exported).items():
        patch.setenv(name, value)
      try:
        unparsed = main.parse(["main", *arguments])[1:]
        main._config()
      except SystemExit:
        return [f"{text}: {errors.getvalue()}"]
      except ConfigError as error:
        return [f"{text}: {error}"]
    return [f"{text}: not understood: {unparsed}"] if unparsed else []

  def provide(self, arguments, exported):
    """Makes what the arguments name: datasets, checkpoints, checkouts, finished stages."""
    given = dict(main.split_overrides(arguments)[1])
    wanted = [f"{given[f'inputs.{stage}']}/DONE" for stage in STAGES if given.get(f"inputs.{stage}")]
    wanted += [f"{path}/DONE" for path in given.get("judge.compare", "").split(",") if path]
    wanted += [given[f] for f in ("inputs.lumos_checkpoint",) if f in given]
    if "inputs.dppo_checkpoint" in given:
      config = default_config()
      config.inputs.dppo_checkpoint = given["inputs.dppo_checkpoint"]
      wanted += [dppo_file(config, task) for task in given.get("tasks", ",".join(TASKS)).split(",")]
    root = given.get("env.calvin_root", exported.get("CALVIN_ROOT"))
    wanted += [f"{root}/calvin_env/envs/play_table_env.py"] if root else []
    data = given.get("data.calvin_path", exported.get("CALVIN_DATA"))
    wanted += [f"{data}/{split}/any" for split in ("training", "validation", "failed")] if data else []
    for path in wanted:
      (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
      (self.folder / path).touch()


@functools.cache
def help_of(path):
  """What a script of ours prints with --help."""
  run = subprocess.run(
    [sys.executable, path, "--help"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
  )
  assert run.returncode == 0, run.stderr
  return run.stdout


def unknown_flags(name, arguments, text):
  flags = [word.partition("=")[0] for word in arguments if word.startswith("-")]
  problems = [f"{name}: no flag {flag}" for flag in flags if not re.search(rf"{flag}\b", text)]
  return problems + [f"{name}: what is {word}?" for word in arguments if not word.startswith("-")]


@pytest.fixture
def checker(tmp_path):
  return Checker(tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_right(page, checker):
  found = [
    problem
    for block in blocks(page, "bash")
    for command in commands(block)
    for problem in checker.problems(*command)
  ]
  assert not found, "\n".join(found)


def test_commands_in_the_text_are_right(checker):
  """Those that begin with what runs them, in backticks; a wrapped line counts as one. … stands for more."""
  starts = ("python -m", "python benchmarks/", "python launch/", "bash launch/", "benchmarks/")
  found, count = [], 0
  for page in PAGES:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for code in re.findall(r"`([^`]+)`", text):
      code = " ".join(code.split())
      if not code.startswith(starts) or "…" in code:
        continue
      count += 1
      if code.startswith("benchmarks/") or code.split()[1].startswith("benchmarks/"):
        words = code.removeprefix("python ").split()
        found += [f"{name_of(page)}: {p}" for p in benchmark_problems(words)]
        continue
      for command in commands(code):
        found += [f"{name_of(page)}: {p}" for p in checker.problems(*command)]
  assert count > 20 and not found, "\n".join(found)


def benchmark_problems(words):
  """By the flags that stand in the source: starting each benchmark for its help would take a minute."""
  path = ROOT / words[0]
  if not path.is_file():
    return [f"there is no {words[0]}"]
  nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
  calls = [node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
  known = {call.args[0].value for call in calls if call.func.attr == "add_argument"}
  return [f"{words[0]}: no flag {word}" for word in words[1:] if word.partition("=")[0] not in known]


NOT_FIELDS = (".md", ".py", ".json", ".jsonl", ".png", ".npz", ".html")  # files that look like GROUP.FIELD


def config_fields(text):
  """Fields that stand in backticks as --config.FIELD or GROUP.FIELD, with or without =VALUE."""
  groups = {path.split(".")[0] for path in flatten(default_config()) if "." in path}
  for code in re.findall(r"`([^`\n]+)`", text):
    match = re.fullmatch(r"(--config\.)?([a-z_0-9]+(?:\.[a-z_0-9]+)*)(?:=.*)?", code)
    if not match:
      continue
    flag, path = match.groups()
    if flag or (path.split(".")[0] in groups and path.count(".") == 1 and not path.endswith(NOT_FIELDS)):
      yield path


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_fields_in_the_text_exist(page):
  text = BLOCK.sub("", page.read_text(encoding="utf-8"))
  assert not [path for path in config_fields(text) if path not in flatten(default_config())]


def test_scripts_of_bash_can_be_read():
  for path in sorted((ROOT / "launch").glob("*.s[hb]*")):
    run = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


DEMO = "python -m wam_jax.main --config=experiments/calvin_wam.py:demo"
WRONG = (
  (f"{DEMO} --config.world_model.update=3", "did you mean world_model.updates"),
  ("python -m wam_jax.main --config=experiments/calvin_wam.py:dmo", "one of auto, demo"),
  (f"{DEMO} --bogus=1", "bogus"),
  (f"{DEMO} bogus", "not understood"),
  ("python -m wam_jax.main --config=experiments/calvin_wam.py:paper", "data.calvin_path"),
  ("python -m wam_jax.main --config=experiments/nothing.py", "experiments/nothing.py"),
  (f"for s in collect fly; do\n  {DEMO} --config.stage=$s || break\ndone", "stage = 'fly'"),
  (f'x="--config.seed=no"\n{DEMO} $x > log', "a whole number"),
  ("python -m wam_jax.data.inspect --source=x --frame=3", "no flag --frame"),
  ("python -m wam_jax.nothing", "no such module"),
  ("python benchmarks/nothing.py", "no such script"),
  ("python benchmarks/simulator.py --nothing=3", "no flag --nothing"),
  ("python launch/local_multiprocess.py --processes=2 -- --config=experiments/calvin_wam.py:dmo", "'dmo'"),
  ("bash launch/nothing.sh", "no such script"),
  ("bash launch/tpu_pod.sh watch --nmae=x", "no setting --nmae=x"),
  ("bash launch/tpu_pod.sh wtach --name=x", "no command wtach"),
  ("bash launch/gke.sh submit --name=x -- --config=experiments/calvin_wam.py:dmo", "'dmo'"),
  ("bash launch/test.sh tests/nothing", "no tests/nothing"),
  ("bash launch/quickstart.sh --config.sed=1", "did you mean seed"),
  ("sbatch --nodes=2 launch/slurm.sbatch --config=experiments/none.py", "experiments/none.py"),
  ('xpk workload create --command="exec python -m wam_jax.main --config=experiments/x.py"', "/x.py"),
  ("rm -r runs", "neither ours"),
)


@pytest.mark.parametrize(("block", "said"), WRONG)
def test_wrong_commands_are_seen(block, said, checker):
  problems = [p for command in commands(block) for p in checker.problems(*command)]
  assert len(problems) == 1 and said in problems[0], problems


def test_wrong_fields_are_seen():
  text = "`--config.world_model.update=3`, `ppo.bc_weigth`, `ppo/nothing`, `judge.md`, `ppo`, `--config.sed`"
  assert list(config_fields(text)) == ["world_model.update", "ppo.bc_weigth", "sed"]
  wrong = benchmark_problems(["benchmarks/acting.py", "--frame=3", "--frames=3"])
  assert wrong == ["benchmarks/acting.py: no flag --frame=3"]


# --- python -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_code_compiles(page):
  for code in blocks(page, "python"):
    compile(code, name_of(page), "exec")


@pytest.mark.parametrize(("page", "words"), EXECUTED)
def test_code_runs(page, words, tmp_path, monkeypatch):
  (code,) = [code for code in blocks(ROOT / page, "python") if words in code]
  monkeypatch.chdir(tmp_path)
  exec(compile(code, page, "exec"), {})
  if "FrameWriter" in words:
    assert inspect.main(["--source=mine", "--tasks=open_drawer", "--frames=0"]) == 0


def test_a_predicate_of_the_guide():
  (code,) = blocks(ROOT / "docs" / "guides" / "add_a_skill.md", "python")
  names = vars(task_oracle) | {"PREDICATES": {}}
  exec(code, names)
  start, ajar = np.zeros(24), np.zeros(24)
  ajar[task_oracle.DRAWER] = 0.07
  (predicate,) = names["PREDICATES"].values()
  assert predicate(start, ajar) and not predicate(start, start)


def test_the_control_loop_of_the_guide(monkeypatch):
  calls, actions = [], []

  class Policy:
    def act(self, observation):
      calls.append(observation)
      return np.zeros(7)

    def reset(self, seed):
      calls.append("reset")

  monkeypatch.setattr("wam_jax.load_policy", lambda path, task: Policy())
  names = {}
  exec(blocks(ROOT / "docs" / "guides" / "deploy.md", "python")[0], names)
  names["control"](lambda: "frame", actions.append, frames=3, period=0.0)
  assert calls == ["frame", "reset", "frame", "frame", "frame"] and len(actions) == 3


# --- links ------------------------------------------------------------------------------------------


def dead_links(path, text):
  """Relative links and images that lead nowhere."""
  text = re.sub(r"`[^`]*`", "", BLOCK.sub("", text))
  targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
  dead = []
  for target in targets:
    if re.match(r"[a-z]+:", target):
      continue
    file = (path.parent / target.partition("#")[0]).resolve() if not target.startswith("#") else path
    inside = file.is_relative_to(ROOT.resolve())
    if not inside or not file.exists():
      dead.append(target)
  return dead


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
  assert not dead_links(page, page.read_text(encoding="utf-8"))


def test_dead_links_are_seen():
  text = "[a](docs/NOTHING.md) ![b](docs/images/none.png) [c](README.md#run) [d](https://x.org) [e](LICENSE)"
  assert dead_links(ROOT / "README.md", text) == ["docs/NOTHING.md", "docs/images/none.png"]
  assert dead_links(ROOT / "docs" / "x.md", "[a](../../outside.md) [b](CLUSTER.md)") == ["../../outside.md"]


def test_every_document_can_be_reached_from_the_readme():
  seen, queue = set(), [ROOT / "README.md"]
  while queue:
    page = queue.pop()
    if page in seen or page.suffix != ".md" or not page.exists():
      continue
    seen.add(page)
    targets = re.findall(r"\]\(([^)#\s:]+)\)", page.read_text(encoding="utf-8"))
    queue += [(page.parent / target).resolve() for target in targets]
  hidden = [page for page in PAGES if page.resolve() not in seen and "results" not in page.parts]
  assert not hidden


def test_guides_are_short_and_end_in_a_command():
  for page in GUIDES:
    text = page.read_text(encoding="utf-8")
    assert 30 <= len(text.splitlines()) <= 80, page
    assert text.endswith("```\n") and BLOCK.findall(text)[-1][0] == "bash", page


# --- references -------------------------------------------------------------------------------------


def defined(path):
  """Dotted names of functions, classes and methods of a Python file; None if there is none."""
  if not path.is_file():
    return None
  found = set()
  for node in ast.parse(path.read_text(encoding="utf-8")).body:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
      found.add(node.name)
    if isinstance(node, ast.ClassDef):
      found |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
  return found


def wrong_equations(text):
  """Rows whose function or test is not there, and the number of rows."""
  rows = re.findall(r"^\| (.*?) \| `([^`]+)` \| `([^`]+)` \|$", text, re.MULTILINE)
  wrong = []
  for _, function, test in rows:
    module, _, name = function.partition(".")
    if name not in (defined(ROOT / "wam_jax" / f"{module}.py") or ()):
      wrong.append(function)
    file, _, name = test.partition("::")
    if not name.startswith("test_") or name not in (defined(ROOT / "tests" / file) or ()):
      wrong.append(test)
  return wrong, len(rows)


def test_every_equation_has_its_function_and_its_test():
  text = (ROOT / "docs" / "EQUATIONS.md").read_text(encoding="utf-8")
  wrong, count = wrong_equations(text)
  assert not wrong
  tables = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| equation")]
  assert count == len(tables) > 50  # every row was read


def test_wrong_equations_are_seen():
  rows = "| x | `core/ppo.nothing` | `unit/test_ppo.py::test_nothing` |\n"
  wrong, count = wrong_equations(rows + "| y | `core/nix.f` | `unit/nix.py::test_f` |")
  assert count == 2
  assert wrong == ["core/ppo.nothing", "unit/test_ppo.py::test_nothing", "core/nix.f", "unit/nix.py::test_f"]


def test_the_config_reference_is_what_the_code_says():
  """If not: python -m wam_jax.config.reference > docs/CONFIG.md"""
  page = config_reference.reference()
  assert (ROOT / "docs" / "CONFIG.md").read_text(encoding="utf-8") == page
  rows = re.findall(r"^\| `([a-z_.0-9]+)` \|", page, re.MULTILINE)
  assert len(rows) == len(set(rows)) and set(rows) == set(flatten(default_config()))


def test_the_glossary_is_in_order():
  text = (ROOT / "docs" / "GLOSSARY.md").read_text(encoding="utf-8")
  words = re.findall(r"^\| (.+?) \| .+ \|$", text, re.MULTILINE)[1:]
  assert len(words) >= 25 and words == sorted(set(words), key=str.lower)
