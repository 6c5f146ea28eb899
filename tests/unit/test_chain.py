"""The rows of the chain, and that a new stage is one row and one file."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys

from wam_jax import config as config_lib
from wam_jax.config import chain
from wam_jax.config.fields import FIELDS

PACKAGE = pathlib.Path(__file__).parents[2] / "wam_jax"
STAGE = """
def run(stage):
  (stage.workdir / "seed.txt").write_text(str(stage.config.seed))
"""
ROW = '  Stage("write_seed", (), ("seed",), size=lambda c: f"the number {c.seed}", on_request=True),\n'


def test_what_a_stage_requires_runs_before_it():
  before = set()
  for stage in chain.CHAIN:
    assert set(stage.requires) <= before, stage.name
    before.add(stage.name)


def test_a_stage_on_request_is_part_of_a_run_whose_settings_ask_for_it():
  config = config_lib.preset_config("small")
  assert chain.stages_of_run(config) == chain.STAGES
  assert chain.required("behaviour_cloning", config) == ("featurize",)
  config.data.play_successes_by = "classifier"
  order = chain.stages_of_run(config)
  assert set(order) == {*chain.STAGES, "label_play"}
  assert order.index("classifier") < order.index("label_play") < order.index("behaviour_cloning")
  assert chain.required("behaviour_cloning", config) == ("featurize", "label_play")
  config.data.play_successes_per_task = 0
  assert chain.stages_of_run(config) == chain.STAGES


def test_work_is_positive_for_every_preset():
  for preset in config_lib.PRESET_CHANGES:
    config = config_lib.preset_config(preset)
    for stage in chain.CHAIN:
      assert stage.work(config) > 0 and stage.size(config), (preset, stage.name)


def test_a_field_at_its_silent_value_is_no_part_of_a_fingerprint():
  silent = {path: field.silent for path, field in FIELDS.items() if field.silent is not None}
  config = config_lib.preset_config("demo")
  read = lambda: config_lib.settings_read(config, [name for stage in chain.CHAIN for name in stage.reads])
  assert silent and not set(silent) & set(read())
  others = {float: lambda value: value / 2 or 0.05, int: lambda value: value + 3}
  others |= {str: lambda _: "another", tuple: lambda _: ("another",)}
  for path, value in silent.items():
    another = others[type(value)](value)
    config.update_from_flattened_dict({path: another})
    assert read()[path] == another


def test_larger_pictures_take_longer():
  demo, large = (config_lib.preset_config("demo") for _ in range(2))
  large.env.image_size = 128
  for stage in ("collect", "world_model", "judge_world_model", "featurize", "evaluate", "evaluate_cloned"):
    assert chain.ROWS[stage].work(large) > 1.5 * chain.ROWS[stage].work(demo), stage
  one_camera = config_lib.preset_config("demo")
  one_camera.world_model.cameras = ("rgb_static",)
  assert chain.ROWS["featurize"].work(one_camera) < chain.ROWS["featurize"].work(demo)


def test_a_new_stage_is_one_row_and_one_file(tmp_path):
  package = tmp_path / "wam_jax"
  shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "pretrained"))
  (package / "stages" / "write_seed.py").write_text(STAGE)
  file = package / "config" / "chain.py"
  head, tail = file.read_text().split("CHAIN: tuple[Stage, ...] = (\n")
  file.write_text(f"{head}CHAIN: tuple[Stage, ...] = (\n{ROW}{tail}")
  run = tmp_path / "run"
  command = [sys.executable, "-m", "wam_jax.main", "--config=calvin_wam:demo", "--config.seed=7"]
  command += ["--config.stage=write_seed", f"--config.workdir={run}"]
  environment = os.environ | {"PYTHONPATH": str(tmp_path), "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert "the number 7" in done.stdout  # the plan knows it
  assert (run / "write_seed" / "seed.txt").read_text() == "7"
  assert (run / "write_seed" / "DONE").exists()
