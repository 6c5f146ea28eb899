"""Runs the documents: parses commands, compiles code and executes some of it, follows links, looks names up.

What a command needs (a dataset, a checkpoint, a finished run) lies in a temporary folder as an empty file of
the right name. All problems of all pages are reported at once, as PAGE:LINE.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.util
import io
import pathlib
import re
import subprocess

import made_up_lerobot
import numpy as np
import pytest
from absl.testing import flagsaver

from wam_jax import main
from wam_jax.config import STAGES, TASKS, ConfigError, default_config, flatten, split_overrides
from wam_jax.config import reference as config_reference
from wam_jax.config.surroundings import dppo_file
from wam_jax.data import inspect
from wam_jax.envs import tasks as task_rules
from wam_jax.envs.metaworld.simulator import MetaWorldSimulator

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "BUILD.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
GUIDES = ROOT / "docs" / "guides"

# Commands of other programs, by how they begin.
OTHERS = (
  "pip install -e",
  "git clone https://github.com/mees/calvin_env",
  "xpk workload create",
  "hf ",  # the program of huggingface_hub
  "python exported/run_policy.py",  # written by the command before it
)
OURS = ("python -m", "python benchmarks/", "python launch/", "bash launch/")  # in the text, between backticks
LAUNCHERS = ("launch/tpu_pod.sh", "launch/gke.sh")  # COMMAND --SETTING=VALUE -- ARGUMENTS OF wam_jax.main
FILES = (".md", ".py", ".json", ".jsonl", ".png", ".npz", ".html")  # endings of what looks like GROUP.FIELD
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def line_of(text, position):
  return text.count("\n", 0, position) + 1


def blocks(text, language):
  """(line, code) of each fenced block."""
  return [(line_of(text, m.start(2)), m[2]) for m in BLOCK.finditer(text) if m[1] == language]


def blanked(pattern, text):
  """The text without what matches, its lines numbered as before."""
  return re.sub(pattern, lambda match: "\n" * match[0].count("\n"), text)


# Bash reads the commands and runs none: it finds no program, and a restricted shell takes no path for one.
SHELL = """PATH=/none; command_not_found_handle() { printf '%s\\0' "${BASH_LINENO[0]}" $# "$@"; }; \
source() { :; }; set -r
"""


def commands(code, first_line=1):
  """(line, words) of each command, with variables and loops filled in; what Bash reports, if it cannot."""
  script = SHELL + re.sub(r" > [\w/.]+", "", code)
  run = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env={})
  items, found = iter(run.stdout.split("\0")[:-1]), []
  for line in items:
    found.append(
      (int(line) - SHELL.count("\n") - 1 + first_line, [next(items) for _ in range(int(next(items)))])
    )
  return found + ([(first_line, [run.stderr.strip()])] if run.stderr else [])


@functools.cache
def flags_of(path):
  """Flags that a program defines: its source, its parser's, or that of the module whose `main` it calls."""
  tree = ast.parse(path.read_text(encoding="utf-8"))
  calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
  named = [call.args[0] for call in calls if call.func.attr == "add_argument"]
  flags = frozenset(name.value for name in named if isinstance(name, ast.Constant))
  if any(call.func.attr == "source_parser" for call in calls):
    flags |= flags_of(ROOT / "wam_jax/data/lerobot.py")
  for node in tree.body:
    if isinstance(node, ast.ImportFrom) and any(alias.name == "main" for alias in node.names):
      flags |= flags_of(ROOT / f"{node.module.replace('.', '/')}.py")
  return flags


def program_problems(path, arguments):
  known = flags_of(path)
  name = path.relative_to(ROOT)
  return [f"{name}: no flag {word}" for word in arguments if word.partition("=")[0] not in known]


class Checker:
  """Says what is wrong with a page; `folder` takes what commands need."""

  def __init__(self, folder):
    self.folder = folder
    (folder / "experiments").symlink_to(ROOT / "experiments")

  def page(self, path, text):
    """PAGE:LINE: problem, for each."""
    found = []
    prose = blanked(BLOCK, text)
    for line, code in blocks(text, "bash"):
      found += [(n, problem) for n, words in commands(code, line) for problem in self.command(words)]
    for match in re.finditer(r"`([^`]+)`", prose):
      line, code = line_of(prose, match.start()), " ".join(match[1].split())
      found += [(line, f"no field {field}") for field in wrong_fields(code)]
      code = f"python {code}" if code.startswith("benchmarks/") else code
      if code.startswith(OURS) and not re.search("[…<]", code):
        found += [(line, problem) for _, words in commands(code) for problem in self.command(words)]
    for line, code in blocks(text, "python"):
      try:
        compile(code, str(path), "exec")
      except SyntaxError as error:
        found.append((line + (error.lineno or 1) - 1, f"does not compile: {error.msg}"))
    found += dead_links(path, blanked(r"`[^`]*`", prose)) + wrong_equations(path, prose)
    return [f"{path.relative_to(ROOT)}:{line}: {problem}" for line, problem in sorted(found)]

  def command(self, words):
    text = " ".join(words)
    if text.startswith(OTHERS):
      inside = [word.removeprefix("--command=exec ") for word in words if word.startswith("--command=")]
      return [p for code in inside for _, words in commands(code) for p in self.command(words)]
    program, *rest = words
    if program == "python" and rest[:1] == ["-m"]:
      if rest[1] == "wam_jax.main":
        return self.main(rest[2:])
      with contextlib.suppress(ModuleNotFoundError):
        if module := importlib.util.find_spec(rest[1]):
          return program_problems(pathlib.Path(module.origin).resolve(), rest[2:])
      return [f"{text}: no such module"]
    if program not in ("python", "bash", "sbatch"):
      return [f"{text}: neither ours nor in OTHERS of tests/unit/test_docs.py"]
    at = next((i for i, word in enumerate(rest) if not word.startswith("-")), None)
    if at is None or not (ROOT / rest[at]).is_file():
      return [f"{text}: no such script"]
    path, arguments, main_arguments = rest[at], rest[at + 1 :], []
    if "--" in arguments:
      end = arguments.index("--")
      arguments, main_arguments = arguments[:end], arguments[end + 1 :]
    if path.endswith(".py"):
      problems = program_problems(ROOT / path, arguments)
    elif path in LAUNCHERS:
      problems = launcher_problems(path, arguments)
    elif path in ("launch/quickstart.sh", "launch/slurm.sbatch"):
      preset = ["--config=experiments/calvin_wam.py:demo"] if path.endswith(".sh") else []
      problems, main_arguments = [], preset + arguments
    else:  # test.sh also takes tests to run
      known = {"launch/test.sh": {"--all"}, "launch/install.sh": {"cuda", "tpu"}}.get(path, set())
      problems = [
        f"{path}: no {word}" for word in arguments if word not in known and not (ROOT / word).exists()
      ]
    return problems + (self.main(main_arguments) if main_arguments else [])

  def main(self, arguments):
    """Parses and finalizes as `wam_jax.main` does, in the folder, without starting anything."""
    text, errors = f"wam_jax.main {' '.join(arguments)}", io.StringIO()
    self.provide(arguments)
    with (
      contextlib.chdir(self.folder),
      pytest.MonkeyPatch.context() as patch,
      flagsaver.flagsaver(),
      contextlib.redirect_stderr(errors),
    ):
      patch.delenv("CALVIN_DATA", raising=False)
      patch.delenv("CALVIN_ROOT", raising=False)
      patch.setattr(MetaWorldSimulator, "missing", lambda self: "")  # an extra
      patch.syspath_prepend(str(self.folder))
      try:
        unparsed = main.parse(["main", *arguments])[1:]
        main._config()
      except SystemExit:
        return [f"{text}: {errors.getvalue()}"]
      except ConfigError as error:
        return [f"{text}: {error}"]
    return [f"{text}: not understood: {unparsed}"] if unparsed else []

  def provide(self, arguments):
    """Makes what the arguments name: datasets, checkpoints, checkouts, finished stages."""
    given = dict(split_overrides(arguments)[1])
    wanted = [f"{given[f'inputs.{stage}']}/DONE" for stage in STAGES if given.get(f"inputs.{stage}")]
    wanted += [f"{path}/DONE" for path in given.get("judge.compare", "").split(",") if path]
    wanted += [given["inputs.lumos_checkpoint"]] if "inputs.lumos_checkpoint" in given else []
    if "inputs.dppo_checkpoint" in given:
      config = default_config()
      config.inputs.dppo_checkpoint = given["inputs.dppo_checkpoint"]
      wanted += [dppo_file(config, task) for task in given.get("tasks", ",".join(TASKS)).split(",")]
    root = given.get("env.calvin_root")
    wanted += [f"{root}/calvin_env/envs/play_table_env.py"] if root else []
    data = given.get("data.calvin_path")
    wanted += [f"{data}/{split}/any" for split in ("training", "validation", "failed")] if data else []
    if given.get("env.name", "").startswith("reacher:"):
      page = (GUIDES / "own_simulator.md").read_text(encoding="utf-8")
      (self.folder / "reacher.py").write_text(blocks(page, "python")[0][1])
    for path in filter(None, given.get("data.path", "").split(",")):
      if not (self.folder / path).exists():
        info = made_up_lerobot.write(self.folder / path) / "meta/info.json"
        made_up_lerobot.change(info, lambda content: content.update(total_frames=10_000))
    for path in wanted:
      (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
      (self.folder / path).touch()


def launcher_problems(path, arguments):
  script = (ROOT / path).read_text(encoding="utf-8")
  labels = re.findall(r"^  ([a-z][a-z |-]*)\)", script[script.rindex("\ncommand=${1:-") :], re.MULTILINE)
  settings = re.search(r'^SETTINGS="(.*?)"', script, re.MULTILINE | re.DOTALL)[1].split()
  command, *words = arguments
  known = " ".join(labels).replace("|", " ").split()
  problems = [] if command in known else [f"{path}: no command {command}"]
  names = [word.lstrip("-").partition("=")[0].replace("-", "_").upper() for word in words]
  return problems + [f"{path}: no setting {name}" for name in names if name not in settings]


@functools.cache
def fields_and_groups():
  fields = set(flatten(default_config()))
  return fields, {path.split(".")[0] for path in fields if "." in path}


def wrong_fields(code):
  """Fields that code names as --config.FIELD or GROUP.FIELD, with or without =VALUE, and nothing has."""
  fields, groups = fields_and_groups()
  for word in code.split():
    if match := re.fullmatch(r"(--config\.)?([a-z_0-9]+(?:\.[a-z_0-9]+)*)(?:=.*)?", word):
      flag, path = match.groups()
      looks_like_one = path.split(".")[0] in groups and path.count(".") == 1 and not path.endswith(FILES)
      if (flag or looks_like_one) and path not in fields:
        yield path


def dead_links(path, prose):
  """(line, problem) of relative links and images that lead nowhere."""
  found = []
  for match in re.finditer(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", prose):
    target = (match[1] or match[2]).partition("#")[0]
    file = (path.parent / target).resolve()
    if not re.match(r"[a-z]+:", target) and not (file.is_relative_to(ROOT.resolve()) and file.exists()):
      found.append((line_of(prose, match.start()), f"dead link {target}"))
  return found


@functools.cache
def defined(path):
  """Dotted names of functions, classes and methods of a Python file."""
  nodes = ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else []
  inside = [(f"{n.name}.", n.body) for n in nodes if isinstance(n, ast.ClassDef)]
  kinds = ast.FunctionDef | ast.ClassDef
  return {f"{name}{n.name}" for name, body in [("", nodes), *inside] for n in body if isinstance(n, kinds)}


def wrong_equations(path, prose):
  """(line, problem) of rows `| equation | function | FILE::TEST |` whose function or test does not exist."""
  found = []
  for line, row in enumerate(prose.splitlines(), 1):
    if match := re.fullmatch(r"\| .* \| `([^`]+)` \| `([^`]+)::([^`]+)` \|", row):
      function, file, test = match.groups()
      module, _, name = function.partition(".")
      if name not in defined(ROOT / "wam_jax" / f"{module}.py"):
        found.append((line, f"no function {function}"))
      if test not in defined(ROOT / "tests" / file):
        found.append((line, f"no test {file}::{test}"))
    elif path.name == "EQUATIONS.md" and row.startswith("| ") and not row.startswith("| equation"):
      found.append((line, "a row without function and test"))
  return found


def test_pages(tmp_path):
  checker = Checker(tmp_path)
  problems = [p for page in PAGES for p in checker.page(page, page.read_text(encoding="utf-8"))]
  seen, queue = set(), [ROOT / "README.md"]
  while queue:
    page = queue.pop().resolve()
    if page not in seen and page.suffix == ".md" and page.exists():
      seen.add(page)
      targets = re.findall(r"\]\(([^)#\s:]+)\)", page.read_text(encoding="utf-8"))
      queue += [page.parent / target for target in targets]
  hidden = [page for page in PAGES if page.resolve() not in seen and "results" not in page.parts]
  problems += [f"{page.relative_to(ROOT)}:1: no link leads here from the README" for page in hidden]
  assert not problems, "\n".join(problems)


MISTAKES = """\
```bash
for s in collect fly; do
  python -m wam_jax.main --config=experiments/calvin_wam.py:demo --config.sede=1 \\
    --config.stage=$s || break
done
python -m wam_jax.play --tsak=open_drawer; python -m wam_jax.nothing
bash launch/tpu_pod.sh wtach --nmae=x -- --config=experiments/calvin_wam.py:dmo
rm -r runs
```
`ppo.bc_weigth`, `judge.md`, [a](docs/NOTHING.md) [b](LICENSE#x), `benchmarks/acting.py --frame=3`
```python
x = (
```
| x | `core/ppo.nothing` | `unit/test_ppo.py::test_nothing` |
"""
SEEN = """\
3: wam_jax.main .* did you mean seed
3: wam_jax.main .* stage = 'fly'
6: .*no flag --tsak=open_drawer
6: python -m wam_jax.nothing: no such module
7: launch/tpu_pod.sh: no command wtach
7: launch/tpu_pod.sh: no setting NMAE
7: wam_jax.main .*'dmo'
8: rm -r runs: neither ours
10: benchmarks/acting.py: no flag --frame=3
10: dead link docs/NOTHING.md
10: no field ppo.bc_weigth
12: does not compile
14: no function core/ppo.nothing
14: no test unit/test_ppo.py::test_nothing"""


def test_mistakes_are_seen(tmp_path):
  problems = "\n".join(Checker(tmp_path).page(ROOT / "README.md", MISTAKES))
  assert not [line for line in SEEN.splitlines() if not re.search(f"README.md:{line}", problems, re.DOTALL)]
  assert problems.count("README.md:") == len(SEEN.splitlines()), problems


@pytest.mark.parametrize(
  ("page", "words"),
  [
    ("README.md", "load_policy"),
    ("docs/guides/datasets_and_simulators.md", "action_space.sample()"),
    ("docs/guides/own_data.md", "FrameWriter"),
    ("docs/guides/own_simulator.md", "import load"),
  ],
)
def test_code_runs(page, words, tmp_path, monkeypatch):
  (code,) = [code for _, code in blocks((ROOT / page).read_text(encoding="utf-8"), "python") if words in code]
  monkeypatch.chdir(tmp_path)
  names = {}
  exec(compile(code, page, "exec"), names)
  if page == "README.md":
    assert names["info"]["success"]
  if words == "FrameWriter":
    assert inspect.main(["--source=mine", "--tasks=stack_cups", "--frames=0"]) == 0


def test_a_predicate_of_the_guide():
  ((_, code),) = blocks((GUIDES / "add_a_skill.md").read_text(encoding="utf-8"), "python")
  names = vars(task_rules) | {"PREDICATES": {}}
  exec(code, names)
  start, ajar = np.zeros(24), np.zeros(24)
  ajar[task_rules.DRAWER] = 0.07
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
  exec(blocks((GUIDES / "deploy.md").read_text(encoding="utf-8"), "python")[0][1], names)
  names["control"](lambda: "frame", actions.append, frames=3, period=0.0)
  assert calls == ["frame", "reset", "frame", "frame", "frame"] and len(actions) == 3


def test_the_config_reference_is_what_the_code_says():
  """If not: python -m wam_jax.config.reference > docs/CONFIG.md"""
  page = config_reference.reference()
  assert (ROOT / "docs" / "CONFIG.md").read_text(encoding="utf-8") == page
  rows = re.findall(r"^\| `([a-z_.0-9]+)` \|", page, re.MULTILINE)
  assert sorted(rows) == sorted(flatten(default_config()))
