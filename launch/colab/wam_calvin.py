"""The notebook wam_calvin.ipynb as a plain script: edit this file, then `python launch/colab/build.py`.

`# %% NAME` begins a code cell, `# %% NAME [markdown]` a text cell; the names become the cells' ids.
"""

# %% title [markdown]
# # Robot skills learned inside a world model
#
# A robot arm at a table with a drawer, a slider and two lamps. Here you train, without a robot:
#
# 1. a **world model**, on recorded play: it imagines what the cameras will see after any sequence of actions;
# 2. a **policy** for each skill, cloned from 50 demonstrations;
# 3. better policies, by reinforcement learning (PPO) **in the world model's imagination** only.
#
# Then the policies are measured in a simulator that they have never practised in, and you play with them.
# This is the method of WAM ([arXiv 2603.28955](https://arxiv.org/abs/2603.28955)) in JAX, at toy size.
#
# Run the cells from the top. A CPU runtime is enough; a GPU (*Runtime > Change runtime type*) trains faster.
# In a hurry? After *Install* and *Size* go on at *Play with a policy*: trained ones come with the package.

# %% install-text [markdown]
# ## Install
#
# Fill in REPOSITORY, OWNER/NAME of this project on GitHub, first. A few minutes on a new runtime.
# Where JAX is too old, a newer one is installed, for the GPU if there is one. pip may remark that
# preinstalled packages would like other versions; those are not used here.

# %% install
# @title Install
REPOSITORY = ""  # @param {type:"string"}

import importlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from importlib import metadata


def call(*command):
  """Runs a command and shows its lines as they come.

  Returns:
    Its exit code. Interrupting the cell lets the command save first.
  """
  environ = os.environ | {"PYTHONUNBUFFERED": "1"}
  pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
  # In a session of its own the interrupt reaches it once, from here: a second one would end it unsaved.
  process = subprocess.Popen(command, env=environ, start_new_session=True, **pipes)
  while True:
    try:
      for line in process.stdout:
        print(line, end="")
      return process.wait()
    except KeyboardInterrupt:
      process.send_signal(signal.SIGINT)


def installed():
  """Version of wam_jax; empty if it is not installed."""
  importlib.invalidate_caches()
  try:
    return metadata.version("wam_jax")
  except metadata.PackageNotFoundError:
    return ""


def find_source(extra):
  """What pip is to install: the checkout that this notebook lies in, else the repository on GitHub."""
  here = pathlib.Path.cwd()
  for folder in (here, *here.parents):
    if (folder / "wam_jax" / "__init__.py").is_file() and (folder / "pyproject.toml").is_file():
      return f"{folder}{extra}"
  if not REPOSITORY:
    raise ValueError("REPOSITORY is empty: fill in OWNER/NAME of wam_jax on GitHub, and run this cell again")
  return f"wam_jax{extra} @ git+https://github.com/{REPOSITORY}"


if not installed():
  gpu = shutil.which("nvidia-smi") and subprocess.run(["nvidia-smi"], capture_output=True).returncode == 0
  loaded = {name: sys.modules[name].__version__ for name in ("jax", "numpy", "PIL") if name in sys.modules}
  if call(sys.executable, "-m", "pip", "install", "--quiet", find_source("[cuda]" if gpu else "")):
    raise RuntimeError("wam_jax could not be installed; pip's last lines say why")
  old = [
    name for name, version in loaded.items() if metadata.version(name.replace("PIL", "pillow")) != version
  ]
  if old:
    raise RuntimeError(
      f"Installed, but this session still has the old {' and '.join(old)}: choose Runtime > Restart session, "
      "then run the cells from the top"
    )
print(f"wam_jax {installed()}")

# %% size-text [markdown]
# ## Size
#
# | SIZE | what it trains | free CPU runtime |
# |---|---|---|
# | `short` | 4 skills, world model of 1,200 updates: half the demo | 15 minutes |
# | `demo` | 8 skills, 1,500 updates: the package's `demo` preset | 25 minutes |
# | `small` | the same with 10 demonstrations per skill instead of 50 | 30 minutes |
# | `smallest` | one skill, a dozen updates: shows that everything runs, learns nothing | 3 minutes |
#
# The times are estimates: measured on a server, taking the two cores of a free runtime to be half as fast.

# %% size
# @title Size
SIZE = "short"  # @param ["short", "demo", "small", "smallest"]

from IPython.display import HTML, Markdown, display

from wam_jax.host import machine, surroundings
from wam_jax.reporting import media

# Settings that differ from the preset: any field of the config.
SIZES = {
  "short": """
    tasks=open_drawer,move_slider_left,turn_on_lightbulb,turn_on_led
    data.play_frames=16000 data.heldout_play_frames=2000
    world_model.updates=1200 behaviour_cloning.updates=2000 ppo.iterations=12""",
  "demo": "",
  "small": "",
  "smallest": """
    tasks=turn_on_led env.max_steps=40 env.workers=1
    data.play_frames=256 data.play_episode_frames=64 data.heldout_play_frames=40 data.demos_per_task=3
    data.heldout_demos_per_task=1 data.heldout_starts_per_task=1 data.failed_takes_per_task=0
    world_model.depth=8 world_model.embed=32 world_model.deter=16 world_model.stoch=4 world_model.classes=4
    world_model.hidden=16 world_model.inverse_dynamics_hidden=16 world_model.batch_size=4
    world_model.sequence_length=8 world_model.updates=12 world_model.warmup_updates=2
    world_model.embedding_image_weight=0 world_model.proprio=none world_model.robot_obs_weight=0
    world_model.cameras=rgb_static
    judge.horizons=1,5,20 judge.windows=3 judge.probe_frames=200
    behaviour_cloning.hidden=32 behaviour_cloning.batch_size=16 behaviour_cloning.updates=8
    behaviour_cloning.warmup_updates=1 behaviour_cloning.denoising_steps=4
    classifier.embed=16,8 classifier.hidden=16 classifier.batch_size=16 classifier.updates=8
    classifier.enforce_gate=false ppo.iterations=3 ppo.dreams=4 ppo.epochs=1 ppo.value_hidden=16
    ppo.failed_starts=0 ppo.horizon_steps=40 ppo.chunks_per_iteration=10 ppo.fine_tuned_steps=2
    evaluate.episodes=1 evaluate.imagined_episodes=4 evaluate.random_policy=false evaluate.expert=false
    report.animation_size=48 training.log_every=4""",
}
SIZE = os.environ.get("WAM_JAX_COLAB_SIZE", SIZE)
RUN = pathlib.Path("runs", f"colab_{SIZE}")  # the folder that takes everything


def picture(content, kind, alt):
  """A picture or an animation as HTML.

  Args:
    content: bytes of the file.
    kind: png, gif, webp or svg+xml.
    alt: what it shows, in words.
  """
  return f'<img src="{media.data_uri(content, kind)}" alt="{alt}" style="max-width:100%">'


surroundings.prepare_jax()
os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # this notebook and the training share a GPU
found = machine.find_accelerator()
print(f"Accelerator: {found.device or found.why_not}. CPU cores: {machine.available_cores()}.")
print(f"Free memory: {machine.host_bytes() / 1e9:.1f} GB, of which 3.4 GB are needed.")
print(f"Size: {SIZE}, in {RUN.absolute()}")

# %% train-text [markdown]
# ## Train
#
# First the plan, then its stages, from recording play to the report. Stop the cell whenever you like and run
# it again: finished stages are skipped, the interrupted one continues.

# %% train
preset = "small" if SIZE == "small" else "demo"
settings = [f"--config.{setting}" for setting in SIZES[SIZE].split()]
code = call(
  *(sys.executable, "-m", "wam_jax.main", f"--config=experiments/calvin_wam.py:{preset}"),
  *(*settings, f"--config.workdir={RUN}"),
)
if code:
  raise RuntimeError(f"ended with {code}; the last lines say why. Running this cell again goes on from there")

# %% results-text [markdown]
# ## Success in the simulator
#
# All policies start from the same states, which no training has seen. *Imagined* is the success of the final
# policy in its dreams; a large *gap* means that dreams are easier than the simulator: a briefly trained
# world model is too optimistic. One run at size `short` gave 87 % cloned and 95 % after PPO, 96 % in dreams.

# %% results
results, *sections = (RUN / "report" / "report.md").read_text(encoding="utf-8").split("\n## ")
display(Markdown(results))

# %% curves-text [markdown]
# ## Learning curves
#
# The world model's losses on pictures and actions fall. Its KL rises while it learns to see more than it can
# foresee. Under *PPO*: success in dreams over the iterations; the dots are the simulator, before and after.

# %% curves
import json

from wam_jax.reporting import page_parts

report = json.loads((RUN / "report" / "report.json").read_text(encoding="utf-8"))
charts = ""
for chart in report["curves"]:
  if chart["title"].startswith("World model: ") or chart["title"] == "PPO: Mean of all tasks":
    charts += picture(page_parts.chart_file(chart).encode(), "svg+xml", chart["title"])
display(HTML(f'<div style="display:flex;flex-wrap:wrap">{charts}</div>'))

# %% pictures-text [markdown]
# ## What the world model imagines, and what the policies do
#
# The strip: five frames are seen (blue border), the rest is imagined from the actions alone (orange). A grey
# *error* picture: the dream is right. Below it one episode of each skill after PPO, in the simulator.

# %% pictures
for name, alt in (
  ("open_loop.png", "true, predicted and error pictures"),
  ("rollouts.gif", "one episode per skill"),
):
  path = RUN / "report" / name
  display(HTML(picture(path.read_bytes(), path.suffix[1:], alt)))
judged = next(section for section in sections if section.startswith("The world model by itself"))
display(Markdown(f"## {judged.partition('![')[0]}"))

# %% play-text [markdown]
# ## Play with a policy
#
# The *packaged* policies were trained for 30 minutes on all eight skills; the others are those of your run.
# Each start puts arm, drawer, slider and lamps elsewhere. The first episode takes half a minute: it compiles.

# %% play
import functools

import wam_jax
from wam_jax.acting.policy import PolicyError
from wam_jax.commands import play

POLICIES = {
  "packaged": (None, None),
  "this run, cloned": (RUN, "cloned"),
  "this run, after PPO": (RUN, "ppo"),
}
load = functools.cache(wam_jax.load_policy)


def play_once(policy, task, start):
  """Plays one episode, says whether it succeeded, and shows it.

  Args:
    policy: one of POLICIES.
    task: the skill.
    start: number of the start state.
  """
  path, which = POLICIES[policy]
  try:
    actor = load(path, task, which)
  except PolicyError as error:  # not trained yet, or not this skill
    print(error)
    return
  episode = play.play(actor, seed=start, max_steps=72)
  result = "success" if episode["success"] else "no success"
  print(f"{task}, start {start}, {policy}: {result} after {episode['steps'] / 30:.1f} s")
  display(HTML(picture(play.film([episode], size=240), "webp", f"robot, task {task}")))


play_once("packaged", "turn_on_led", start=0)

# %% widgets
# @title Choose policy, skill and start, then press Play
import ipywidgets

from wam_jax.config import TASKS

controls = ipywidgets.interact_manual.options(manual_name="Play")(
  play_once, policy=list(POLICIES), task=list(TASKS), start=ipywidgets.IntSlider(0, 0, 49)
)

# %% keep-text [markdown]
# ## Keep it
#
# A runtime forgets everything when it ends. This copies the run to your Google Drive; copied back to the same
# place in a new runtime, it can be looked at, and training goes on. `report/report.html` in it is the whole
# report as one page.

# %% keep
# @title Keep it
COPY_TO_DRIVE = False  # @param {type:"boolean"}

if COPY_TO_DRIVE:
  from google.colab import drive

  drive.mount("/content/drive")
  kept = pathlib.Path("/content/drive/MyDrive/wam_jax") / RUN.name
  print(shutil.copytree(RUN, kept, dirs_exist_ok=True))

# %% next [markdown]
# ## What next?
#
# - Another `SIZE`, or any other setting in that cell: `docs/CONFIG.md` in the repository explains them. Name
#   another folder (`RUN`) then: results of different settings are never mixed.
# - Does inverse dynamics help? Train the same with `experiments/calvin_dreamerv2.py`, which has none, and
#   compare: `python -m wam_jax.report --workdir=RUN --compare=OTHER`. Results so far: `docs/RESULTS.md`.
# - `paper` has the published sizes, for accelerators and CALVIN's data.
# - Your own play data, a new skill, a real robot: `docs/guides/`.
# - `python -m wam_jax.doctor` says what is wrong with an installation.
