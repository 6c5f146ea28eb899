"""The Colab notebook: made of its script, and run from top to bottom at its smallest size."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import pathlib
import re
import shutil
import sys
from importlib import metadata

import nbclient
import nbformat
import pytest

from wam_jax import config as config_lib
from wam_jax.running import plan

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "launch" / "colab"
SPEC = importlib.util.spec_from_file_location("colab_build", FOLDER / "build.py")
build = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(build)


def read_notebook():
  return nbformat.read(FOLDER / "wam_calvin.ipynb", 4)


# --- how it is made ---------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path):
  """A folder with all that the generator reads and writes."""
  for name in ("README.md", "launch/colab/wam_calvin.py", "launch/colab/wam_calvin.ipynb"):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / name, tmp_path / name)
  return tmp_path


def test_the_notebook_is_that_of_the_script(copy):
  before = (copy / "launch/colab/wam_calvin.ipynb").read_bytes()
  assert build.main([], copy) == 0
  made = (copy / "launch/colab/wam_calvin.ipynb").read_bytes()
  assert made == before, "python launch/colab/build.py was not run"
  assert (copy / "README.md").read_bytes() == (ROOT / "README.md").read_bytes()


def test_one_command_writes_the_address(copy):
  readme = (copy / "README.md").read_text(encoding="utf-8")
  assert build.BADGE not in readme  # a badge without an address opens nothing
  for repository in ("first/name", "some-one/wam.jax"):
    assert build.main([f"--repository={repository}", "--branch=dev"], copy) == 0
  cells = {
    cell["id"]: cell for cell in json.loads((copy / "launch/colab/wam_calvin.ipynb").read_text())["cells"]
  }
  assert 'REPOSITORY = "some-one/wam.jax"  # @param {type:"string"}\n' in cells["install"]["source"]
  address = "https://colab.research.google.com/github/some-one/wam.jax/blob/dev/launch/colab/wam_calvin.ipynb"
  title, _, badge, _, *rest = (copy / "README.md").read_text(encoding="utf-8").splitlines()
  assert badge.endswith(f"]({address})") and [title, "", *rest] == readme.splitlines()
  with pytest.raises(SystemExit):
    build.main(["--repository=https://github.com/some-one/wam.jax"], copy)
  (copy / "README.md").write_text("No title\n")
  with pytest.raises(ValueError, match=r"README\.md: expected one place"):
    build.main(["--repository=a/b"], copy)


def test_broken_scripts_are_refused():
  with pytest.raises(ValueError, match="cell a: not a comment: x = 1"):
    build.notebook("# %% a [markdown]\n# text\nx = 1\n", "x.ipynb")
  for script in ("x = 1\n", "# %% a\nx = 1\n# %% a\nx = 2\n"):
    with pytest.raises(ValueError, match="names of their own"):
      build.notebook(script, "x.ipynb")


# --- installing -------------------------------------------------------------------------------------


@pytest.fixture
def install(monkeypatch):
  """install(repository): runs the install cell on a machine without wam_jax; pip is only written down."""
  (source,) = [cell.source for cell in read_notebook().cells if cell.id == "install"]
  real, calls = metadata.version, []

  def version(name):
    if name == "wam_jax" and not calls:
      raise metadata.PackageNotFoundError(name)
    return "99" if name in install.newer and calls else real(name)

  class Pip:
    stdout = ()

    def __init__(self, command, **_):
      calls.append(command)

    def wait(self):
      return install.code

  def install(repository):
    monkeypatch.setattr("importlib.metadata.version", version)
    monkeypatch.setattr("subprocess.Popen", Pip)
    monkeypatch.setattr("shutil.which", lambda name: None)
    exec(re.sub(r'REPOSITORY = "[^"]*"', f'REPOSITORY = "{repository}"', source, count=1), {})
    return calls[-1]

  install.newer, install.code = (), 0
  return install


def test_it_installs_from_github_or_the_checkout_around_it(install, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(ValueError, match="REPOSITORY is empty"):
    install("")
  pip = [sys.executable, "-m", "pip", "install", "--quiet"]
  assert list(install("a/b")) == [*pip, "wam_jax @ git+https://github.com/a/b"]


def test_it_installs_the_checkout_around_it(install, monkeypatch):
  monkeypatch.chdir(FOLDER)
  assert install("a/b")[-1] == str(ROOT)


def test_a_session_with_older_packages_must_be_restarted(install, monkeypatch):
  monkeypatch.chdir(ROOT)
  install.newer = ("jax", "numpy")
  with pytest.raises(RuntimeError, match="the old jax and numpy: choose Runtime > Restart session"):
    install("")


def test_a_failed_installation_is_no_success(install, monkeypatch):
  monkeypatch.chdir(ROOT)
  install.code = 1
  with pytest.raises(RuntimeError, match="could not be installed"):
    install("")


# --- sizes ------------------------------------------------------------------------------------------


def test_the_short_size_fits_a_free_runtime():
  """By the plan's times on two cores of a server, if those of a free runtime are half as fast."""
  tree = ast.parse((FOLDER / "wam_calvin.py").read_text(encoding="utf-8"))
  (sizes,) = [
    ast.literal_eval(node.value)
    for node in tree.body
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SIZES"
  ]
  minutes = {}
  for size, settings in sizes.items():
    config = config_lib.preset_config("small" if size == "small" else "demo")
    pairs = [tuple(setting.split("=", 1)) for setting in settings.split()]
    config = config_lib.finalize(config, config_lib.apply_overrides(config, pairs))
    minutes[size] = 2 * sum(plan.estimate(config, stage) for stage in config_lib.STAGES) / 60
  assert 10 < minutes["short"] < 20  # as the notebook says; 25 is the most it may be
  assert 20 < minutes["demo"] < 30
  assert 25 < minutes["small"] < 40


# --- the whole --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
  """Nothing is downloaded: the package is there."""
  monkeypatch.setenv(
    "PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
  )
  monkeypatch.setenv("WAM_JAX_COLAB_SIZE", "smallest")
  for name in ("XDG_CACHE_HOME", "IPYTHONDIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
    monkeypatch.setenv(name, str(tmp_path / name.lower()))
  notebook = read_notebook()
  client = nbclient.NotebookClient(notebook, timeout=500, resources={"metadata": {"path": str(tmp_path)}})
  client.execute()
  outputs = {cell.id: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
  assert not [each for cell in outputs.values() for each in cell if each.output_type == "error"]
  shown = {name: [out.data for out in cell if "data" in out] for name, cell in outputs.items()}
  said = {name: "".join(out.get("text", "") for out in cell) for name, cell in outputs.items()}

  assert "Plan of calvin_wam" in said["train"] and "Result" in said["train"]
  assert (tmp_path / "runs" / "colab_smallest" / "report" / "DONE").exists()
  assert "| turn_on_led " in shown["results"][0]["text/markdown"]
  assert shown["curves"][0]["text/html"].count('<img src="data:image/svg+xml;base64,') == 5
  strip, rollouts, tables = shown["pictures"]
  assert "data:image/png" in strip["text/html"] and "data:image/gif" in rollouts["text/html"]
  assert "| drawer" in tables["text/markdown"] and "![" not in tables["text/markdown"]
  assert "turn_on_led, start 0, packaged: success after" in said["play"]
  assert "data:image/webp" in shown["play"][0]["text/html"]
  (widget,) = [data for data in shown["widgets"] if "application/vnd.jupyter.widget-view+json" in data]
  states = notebook.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"].values()
  labels = {each["state"].get("description") for each in states}
  assert widget and {"policy", "task", "start", "Play"} <= labels
