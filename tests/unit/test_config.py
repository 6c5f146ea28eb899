from __future__ import annotations

import importlib.util
import io
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

import wam_jax
from wam_jax import config as config_lib
from wam_jax.config import ConfigError, rules, split_overrides
from wam_jax.config.fields import FIELDS, GROUPS, PRESETS, ROWS

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def config(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  monkeypatch.delenv("CALVIN_DATA", raising=False)
  return config_lib.preset_config("demo")


def make_folders(root, *names):
  for name in names:
    (root / name).mkdir(parents=True)


def problems_of(config, *overrides):
  found = config_lib.apply_overrides(config, overrides)
  with pytest.raises(ConfigError) as error:
    config_lib.finalize(config, found)
  return {problem.path: problem for problem in error.value.problems}


def test_each_field_has_one_row():
  assert len(ROWS) == len(FIELDS)
  assert config_lib.flatten(config_lib.default_config()) == {row.path: row.default for row in ROWS}
  assert not [problem for row in ROWS for problem in row.problems(row.default)]
  assert set(GROUPS) < {row.path.split(".")[0] for row in ROWS}
  assert tuple(config_lib.PRESET_CHANGES) == PRESETS


def test_a_new_field_is_one_edit(tmp_path):
  package = pathlib.Path(config_lib.__file__).parents[1]
  hidden = shutil.ignore_patterns("__pycache__", "pretrained")
  shutil.copytree(package, tmp_path / "wam_jax", ignore=hidden)
  file = tmp_path / "wam_jax" / "config" / "fields.py"
  before, row, after = file.read_text(encoding="utf-8").partition('  Field("online.iterations"')
  new = '  Field("ppo.patience", 7, count(2, 9), "iterations without a better policy"),\n'
  assert row
  file.write_text(before + new + row + after, encoding="utf-8")
  code = """
from wam_jax import config
from wam_jax.config import reference

c = config.preset_config("demo")
print("default", c.ppo.patience)
print(config.apply_overrides(c, [("ppo.patience", "1e1"), ("ppo.patiense", "3")]))
try:
  config.finalize(c)
except config.ConfigError as error:
  print(error)
c.ppo.patience = 9
print("finished", config.finalize(c).ppo.patience)
print(reference.reference())
"""
  run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
  assert run.returncode == 0, run.stderr
  rule = "a whole number, at least 2 and at most 9"
  for line in (
    "default 7",
    "did you mean ppo.patience?",
    f"ppo.patience = 10\n    rule: {rule}\n    fix:  for instance --config.ppo.patience=7",
    "finished 9",
    f"| `ppo.patience` | `7` |  |  | {rule} | iterations without a better policy |",
  ):
    assert line in run.stdout, (line, run.stdout)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_right_by_themselves(preset, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  make_folders(tmp_path / "calvin", "training", "validation")
  monkeypatch.setenv("CALVIN_DATA", str(tmp_path / "calvin"))
  config = config_lib.finalize(config_lib.preset_config(preset))
  assert config.preset == preset and config.workdir == f"runs/calvin_wam_{preset}"
  assert config.data.calvin_path == (str(tmp_path / "calvin") if preset == "paper" else "")
  assert config.env.workers >= 1
  again = config_lib.finalize(config)
  assert config_lib.flatten(again) == config_lib.flatten(config)  # changes nothing twice


def test_finalize_freezes_a_copy(config):
  final = config_lib.finalize(config)
  with pytest.raises(AttributeError):
    final.seed = 3
  assert config.workdir == "" and config.env.workers == 0


def test_overrides_take_the_type_of_the_field(config):
  overrides = [
    ("seed", "1e3"),
    ("world_model.kl_weight", "2"),
    ("evaluate.expert", "no"),
    ("tasks", "open_drawer, turn_on_led"),
    ("classifier.embed", "(64, 32)"),
    ("workdir", "some where"),
  ]
  assert config_lib.apply_overrides(config, overrides) == []
  assert config.seed == 1000 and type(config.seed) is int
  assert config.world_model.kl_weight == 2.0 and type(config.world_model.kl_weight) is float
  assert config.evaluate.expert is False
  assert config.tasks == ("open_drawer", "turn_on_led") and config.classifier.embed == (64, 32)
  assert config.workdir == "some where"


def test_all_problems_come_at_once(config):
  found = problems_of(
    config,
    ("world_modle.updates", "5"),
    ("world_model.update", "5"),
    ("world_model.learning_rate", "fast"),
    ("seed", "1.5"),
    ("evaluate.expert", "maybe"),
    ("ppo.clip_max", "-0.1"),
    ("env.name", "playtable"),
    ("tasks", "open_drawr"),
    ("stage", "worldmodel"),
    ("ppo", "3"),
    ("ppo.horizon_steps", "70"),
  )
  assert next(iter(found)) == "world_modle.updates"
  assert "world_model.updates?" in found["world_modle.updates"].fix
  assert "world_model.updates?" in found["world_model.update"].fix
  assert "dreams" in found["ppo"].fix
  assert found["seed"].rule == "a whole number" and found["evaluate.expert"].rule == "true or false"
  assert "play_table" in found["env.name"].fix and "world_model" in found["stage"].fix
  assert "open_drawer" in found["tasks"].fix
  assert "68 or 72" in found["ppo.horizon_steps"].fix
  assert len(found) == 11 and all(problem.rule and problem.fix for problem in found.values())


IMPOSSIBLE = """
  ppo.minibatches=1801 ppo.minibatches=7 ppo.horizon_steps=76 ppo.fine_tuned_steps=21 ppo.clip_min=0.5
  ppo.critic_warmup_iterations=1000 ppo.log_prob_min=2 env.max_steps=71 env.image_size=60
  behaviour_cloning.ddim_steps=21 behaviour_cloning.ddim_steps=-1 behaviour_cloning.policy=transformer
  behaviour_cloning.batch_size=3601 behaviour_cloning.time_dim=15 behaviour_cloning.final_learning_rate=1
  classifier.batch_size=3601 classifier.embed= data.play_episode_frames=8 data.play_episode_frames=30000
  world_model.batch_size=1001 world_model.warmup_updates=50000 world_model.decode_fraction=0
  world_model.learning_rate=nan evaluate.episodes=51 judge.horizons=5,1 judge.compare=nowhere
  inputs.collect=nowhere
"""


@pytest.mark.parametrize("override", IMPOSSIBLE.split())
def test_impossible_values_stop_before_anything_runs(config, override):
  config_lib.finalize(config)  # right without the override
  path, _, text = override.partition("=")
  problem = problems_of(config, (path, text))[path]
  assert "{" not in problem.rule + problem.fix


def test_a_dataset_must_be_named(config):
  assert set(problems_of(config, ("data.source", "calvin"))) == {"data.calvin_path"}


W, B = "world_model", "behaviour_cloning"


@pytest.mark.parametrize(
  ("right", "path", "value", "named", "word"),
  [
    ({f"{B}.policy": "gaussian"}, f"{B}.ddim_steps", 5, f"{B}.ddim_steps", "gaussian"),
    ({"ppo.failed_starts": 0.3}, "data.failed_takes_per_task", 0, "ppo.failed_starts", "failed_takes"),
    ({}, "data.heldout_failed_takes_per_task", 0, "data.heldout_failed_takes_per_task", "at least 1"),
    ({f"{W}.proprio": "latent"}, f"{W}.robot_obs_weight", 0.0, f"{W}.robot_obs_weight", "proprio=latent"),
    (
      {f"{W}.proprio": "none", f"{W}.robot_obs_weight": 0.0},
      *(f"{W}.proprio", "latent", f"{W}.robot_obs_weight", "proprio=latent"),
    ),
    ({f"{W}.open_loop_share": 0.4}, f"{W}.carry_state", True, f"{W}.open_loop_share", "carry_state"),
    (
      {f"{W}.open_loop_share": 0.0, f"{W}.carry_state": True},
      *(f"{W}.open_loop_share", 1.1, f"{W}.open_loop_share", "at most 1"),
    ),
  ],
)
def test_fields_that_go_together(config, right, path, value, named, word):
  config.update_from_flattened_dict(right)
  config_lib.finalize(config)
  found = problems_of(config, (path, str(value)))
  assert set(found) == {named} and word in found[named].rule


@pytest.mark.parametrize("field", ["inputs.lumos_checkpoint", "inputs.dppo_checkpoint"])
def test_a_pointer_under_a_checkpoints_name_is_found_before_the_run(config, tmp_path, field):
  file = tmp_path / "a.ckpt"
  file.write_text("version https://git-lfs.github.com/spec/v1\n")
  config.tasks, config.world_model.vision = ("open_drawer",), "conv"
  (problem,) = problems_of(config, (field, str(file))).values()
  assert "Git LFS pointer" in problem.rule and "git lfs pull" in problem.fix
  file.write_bytes(b"{\0\0\0\0\0\0\0{")  # safetensors, whose first byte is any
  config.update_from_flattened_dict({field: str(file)})
  config_lib.finalize(config)


def test_calvins_experts_know_scene_d_only(config, tmp_path, monkeypatch):
  monkeypatch.delenv("CALVIN_ROOT", raising=False)
  assert set(problems_of(config, ("env.name", "calvin"))) == {"env.calvin_root"}
  (tmp_path / "calvin_env/envs").mkdir(parents=True)
  (tmp_path / "calvin_env/envs/play_table_env.py").touch()
  monkeypatch.setenv("CALVIN_ROOT", str(tmp_path))
  assert config_lib.finalize(config).env.calvin_root == str(tmp_path)
  found = problems_of(config, ("env.calvin_scene", "A"))
  assert set(found) == {"data.source", "evaluate.expert"} and "scene D" in found["data.source"].rule


def test_data_smaller_than_a_batch(config, tmp_path):
  make_folders(tmp_path / "calvin", "training", "validation")
  episodes = np.array([[100, 199], [300, 382]])  # ends inclusive: 183 frames
  np.save(tmp_path / "calvin" / "training" / "ep_start_end_ids.npy", episodes)
  found = problems_of(config, ("data.source", "calvin"), ("data.calvin_path", str(tmp_path / "calvin")))
  assert "183" in found["world_model.batch_size"].rule


def test_folders(config, tmp_path):
  (tmp_path / "file").write_text("")
  make_folders(tmp_path, "other/collect", "calvin/training")
  found = problems_of(
    config,
    ("workdir", str(tmp_path / "file" / "run")),
    ("inputs.collect", str(tmp_path / "other")),
    ("inputs.ppo", "~/no_such_folder_of_wam_jax"),
  )
  assert set(found) == {"workdir", "inputs.collect", "inputs.ppo"}
  (tmp_path / "other" / "collect" / "DONE").write_text("")
  config.workdir, config.inputs.ppo = "", ""
  config_lib.finalize(config)  # the work folder above a finished stage will do
  config.inputs.collect = ""
  found = problems_of(config, ("data.source", "calvin"), ("data.calvin_path", str(tmp_path / "calvin")))
  assert "calvin/validation" in found["data.calvin_path"].fix
  (tmp_path / "calvin" / "validation").mkdir()
  assert config.data.failed_takes_per_task  # the demo's
  found = problems_of(config)
  assert set(found) == {"data.failed_takes_per_task"} and "failed" in found["data.failed_takes_per_task"].rule
  (tmp_path / "calvin" / "failed").mkdir()
  config_lib.finalize(config)


def test_fields_added_or_lost_by_an_experiment_file(config):
  config.world_model.updatse = 3
  del config.ppo.epochs
  found = problems_of(config)
  assert "world_model.updates?" in found["world_model.updatse"].fix and "ppo.epochs" in found


def test_unknown_preset():
  with pytest.raises(ConfigError, match="did you mean demo"):
    config_lib.preset_config("dmo")


def test_preset_from_the_machine(tmp_path, monkeypatch):
  detect = config_lib.detect_preset
  assert detect({}, tmp_path)[0] == "demo"
  (tmp_path / "dev").mkdir()
  (tmp_path / "dev" / "nvidia0").touch()
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  preset, why = detect({}, tmp_path)
  assert preset == "demo" and "[cuda]" in why  # a GPU that this JAX cannot drive
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == "jax_cuda12_plugin" or None)
  assert detect({}, tmp_path)[0] == "demo"
  assert detect({"JAX_PLATFORMS": "cpu"}, tmp_path)[0] == "demo"
  assert detect({"CUDA_VISIBLE_DEVICES": ""}, tmp_path)[0] == "demo"
  (tmp_path / "calvin" / "training").mkdir(parents=True)
  assert detect({"CALVIN_DATA": str(tmp_path / "calvin")}, tmp_path)[0] == "paper"
  assert detect({"CALVIN_DATA": str(tmp_path)}, tmp_path)[0] == "demo"


def test_baseline_differs_in_one_field_only(monkeypatch):
  def flat(name):
    spec = importlib.util.spec_from_file_location(name, config_lib.own_experiments()[name])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return config_lib.flatten(module.get_config("demo"))

  ours, baseline = flat("calvin_wam"), flat("calvin_dreamerv2")
  different = {path for path in ours if ours[path] != baseline[path]}
  assert different == {"experiment", "world_model.inverse_dynamics_weight"}
  assert baseline["world_model.inverse_dynamics_weight"] == 0.0


def test_own_experiments_are_found_by_name_from_every_folder(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  find, own = config_lib.experiment_file, config_lib.own_experiments()
  ours = {
    "calvin_wam",
    "calvin_dreamerv2",
    "calvin_reproduction",
    "distractors",
    "lerobot_wam",
    "metaworld_wam",
    "reproduction",
  }
  assert set(own) == ours
  wam = str(own["calvin_wam"])
  assert find("experiments/calvin_wam.py:demo") == find("calvin_wam:demo") == f"{wam}:demo"
  assert find("calvin_wam.py") == find("experiments/calvin_wam.py") == wam
  others = ("elsewhere/calvin_wam.py:demo", "calvin_wm:demo", "", "/experiments/calvin_wam.py", "a.py:b:c")
  for other in others:
    assert find(other) == other
  (tmp_path / "experiments").mkdir()
  (tmp_path / "experiments" / "calvin_wam.py").touch()  # one's own comes first
  assert find("experiments/calvin_wam.py:demo") == "experiments/calvin_wam.py:demo"
  for words in (["--config", "calvin_wam:demo"], ["-config=calvin_wam:demo"], ["--config=calvin_wam:demo"]):
    assert split_overrides(["main", *words]) == (["main", f"--config={wam}:demo"], [])


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="archives of the source leave links out")
def test_the_folder_at_the_top_leads_to_the_packages_experiments():
  assert (ROOT / "experiments").resolve() == ROOT / "wam_jax" / "experiments"


def test_overrides_in_all_spellings():
  argv = ["main", "--config=a.py:demo", "--config.seed", "3", "-config.workdir=x=y"]
  argv += ["--noconfig.evaluate.expert", "--config.evaluate.random_policy", "--verbosity=1"]
  rest, overrides = split_overrides(argv)
  assert rest == ["main", "--config=a.py:demo", "--verbosity=1"]
  assert overrides == [
    ("seed", "3"),
    ("workdir", "x=y"),
    ("evaluate.expert", "False"),
    ("evaluate.random_policy", "True"),
  ]


def test_no_is_for_flags_without_a_value(config):
  words = ["--noconfig.seed", "3", "--noconfig.evaluate.expert=True", "--noconfig.evaluate.random_policy"]
  rest, overrides = split_overrides(words)
  assert rest == ["3"]
  found = problems_of(config, *overrides)
  assert set(found) == {"noconfig.seed", "noconfig.evaluate.expert"}
  assert "evaluate.expert?" in found["noconfig.evaluate.expert"].fix


def test_flatten_keeps_tuples():
  assert config_lib.flatten(ConfigDict({"a": {"b": (1, 2)}, "c": 3})) == {"a.b": (1, 2), "c": 3}


@pytest.mark.parametrize(
  ("path", "text"),
  [
    ("workdir", "a\0b"),
    ("workdir", "\ud800"),
    ("workdir", "a" * 300),
    ("workdir", "not/there/" + "a" * 300),
    ("workdir", "a/" * 3000),
    ("workdir", "loop/run"),
    ("experiment", "a" * 300),
    ("experiment", "a\0b"),
    *((f"inputs.{name}", "a" * 300) for name in ("collect", "lumos_checkpoint", "dppo_checkpoint")),
    ("inputs.collect", "~\0"),
    ("inputs.ppo", "~\ud800"),
    ("judge.compare", "a" * 300),
    ("world_model.updates", "1e300"),
    ("seed", str(2**31)),
  ],
)
def test_what_no_system_takes_is_a_problem(config, tmp_path, path, text):
  (tmp_path / "loop").symlink_to("loop")
  found = problems_of(config, (path, text))
  assert found.keys() & {path, "workdir"} and all(p.rule and p.fix for p in found.values())


def test_a_divisor_is_found_quickly(config):
  found = problems_of(config, ("ppo.dreams", str(2**31 - 1)), ("ppo.minibatches", "2147483646"))  # a prime
  assert "for instance" in found["ppo.minibatches"].fix
  assert rules._divisor(900, 7) == 6 and rules._divisor(2**61 - 1, 10**9) == 1


@pytest.mark.parametrize("folder", ["2024", "run(1)", "[a", "7", "a b"])
def test_folders_that_look_like_something_else(config, tmp_path, folder):
  (tmp_path / folder).mkdir()
  (tmp_path / folder / "DONE").touch()
  assert config_lib.apply_overrides(config, [("judge.compare", folder)]) == []
  assert config_lib.finalize(config).judge.compare == (folder,)
  assert config_lib.apply_overrides(config, [("judge.compare", f"({folder}, 3)")]) == []
  assert config.judge.compare == (folder, "3")


def test_wandb_must_be_there_to_be_used(config, wandb, monkeypatch, tmp_path):
  config_lib.apply_overrides(config, [("training.wandb_project", "robots")])
  assert config_lib.finalize(config).training.wandb_project == "robots"
  assert set(problems_of(config, ("training.wandb_project", "a/b"))) == {"training.wandb_project"}
  monkeypatch.delitem(sys.modules, "wandb")
  (tmp_path / "wandb" / "run-1").mkdir(parents=True)  # as W&B makes them where one works
  monkeypatch.setattr(sys, "path", [str(tmp_path)])
  found = problems_of(config, ("training.wandb_project", "robots"), ("seed", "-1"))
  assert set(found) == {"seed", "training.wandb_project"}
  assert found["training.wandb_project"].fix == "pip install 'wam_jax[wandb]'"
  both = problems_of(config, ("training.trackio_project", "robots"), ("seed", "0"))
  assert (
    set(both) == {"training.trackio_project"}
    and "wandb_project is set" in both["training.trackio_project"].rule
  )
  monkeypatch.setitem(sys.modules, "trackio", None)
  missing = problems_of(config, ("training.wandb_project", ""))
  assert missing["training.trackio_project"].fix == "pip install 'wam_jax[trackio]'"
  config_lib.apply_overrides(config, [("training.trackio_project", "")])
  config_lib.finalize(config)


def test_empty_lists_know_what_they_hold(config):
  assert config_lib.apply_overrides(config, [("world_model.snapshots", "[10, 1e2]")]) == []
  assert config.world_model.snapshots == (10, 100)
  config.world_model.snapshots = ()
  (problem,) = config_lib.apply_overrides(config, [("world_model.snapshots", "ten")])
  assert "whole number" in problem.rule
  assert "world_model.snapshots" in problems_of(config, ("world_model.snapshots", "ten"))
  for row in ROWS:
    if isinstance(row.default, tuple):
      assert {type(item) for item in row.default} <= {type(row.check.item)}, row.path


@pytest.mark.parametrize(
  ("text", "where"),
  [
    ("def get_config(preset='demo'):\n  pass\n", "line 1: get_config returns nothing"),
    ("x = 1\n\ndef get_config():\n  return {}\n", "line 3: get_config returns a dict"),
    ("x = 1\n", "get_config"),
    ("x = 1\nif True\n  pass\n", "line 2: SyntaxError"),
    ("def get_config():\n\treturn 1\n  return 2\n", "line 3: "),
    ("import nothing_of_that_name\n", "line 1: ModuleNotFoundError"),
    ("def get_config():\n  import json\n  return json.loads('{')\n", "line 3: JSONDecodeError"),
    ("open('not there')\n", "line 1: FileNotFoundError"),
    ("raise SystemExit\n", "line 1: SystemExit"),
    ("get_config = 3\n", "TypeError"),
    ("\0", "Error"),
    ("x = '\udcff'\n", "SyntaxError"),
    (None, "a folder, not a file"),
  ],
)
def test_an_experiment_file_that_gives_no_config_is_told_with_its_line(tmp_path, text, where):
  path = tmp_path / "mine.py"
  path.mkdir() if text is None else path.write_bytes(text.encode("utf-8", "surrogateescape"))
  with pytest.raises(ConfigError) as error:
    config_lib.load_experiment(str(path))
  assert f"{path}" in str(error.value) and where in str(error.value)
  assert len(str(error.value).splitlines()) == 4


def test_values_of_an_experiment_file_that_no_check_expects(config):
  config.seed, config.tasks = 10**400, (["open_drawer"],)
  assert set(problems_of(config)) == {"seed", "tasks"}


def test_long_values_are_cut_in_the_message(config):
  with pytest.raises(ConfigError) as error:
    config_lib.finalize(config, config_lib.apply_overrides(config, [("x" * 10**5, "y" * 10**6)]))
  assert len(str(error.value)) < 2000 and "characters)" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY\x01\0", "huge"])
def test_damaged_ids_are_left_to_the_reader(config, tmp_path, content):
  make_folders(tmp_path, "training", "validation", "failed")
  if content == "huge":
    file = io.BytesIO()
    header = {"descr": "<i8", "fortran_order": False, "shape": (2**50, 2)}
    np.lib.format.write_array_header_1_0(file, header)
    content = file.getvalue()
  (tmp_path / "training" / "ep_start_end_ids.npy").write_bytes(content)
  config.data.source, config.data.calvin_path = "calvin", str(tmp_path)
  config_lib.finalize(config)


@pytest.mark.parametrize(
  ("overrides", "paths"),
  [
    (["tasks=open_drawer"], ["overrides"]),
    ({3: 4, "sed": 1}, ["3", "sed"]),
    ({"tasks": [1, 2], "world_model.cameras": [["a"]]}, ["tasks", "world_model.cameras"]),
  ],
)
def test_what_python_takes_for_settings_is_named(overrides, paths):
  with pytest.raises(config_lib.ConfigError) as error:
    wam_jax.make_config("calvin_wam:demo", overrides)
  assert [problem.path for problem in error.value.problems] == paths


@pytest.mark.parametrize("config", ["calvin_wam:demo", {"seed": 1}, None])
def test_only_configs_are_trained(config):
  with pytest.raises(config_lib.ConfigError, match="make_config"):
    wam_jax.train(config)


def test_settings_from_python_may_be_paths_and_arrays():
  experiment = config_lib.own_experiments()["calvin_wam"]
  settings = {"tasks": np.array(["open_drawer"]), "data.path": experiment.parent}
  config = wam_jax.make_config(experiment, settings)
  assert config.tasks == ("open_drawer",) and config.data.path == (str(experiment.parent),)


@pytest.mark.parametrize("changes", [{"ppo.eval_every": 4}, {"stage": "online_ppo"}])
def test_real_success_during_ppo_needs_starts_that_evaluate_leaves(changes):
  config = config_lib.preset_config("demo")
  config.update_from_flattened_dict(changes)
  with pytest.raises(config_lib.ConfigError, match="real success during PPO is measured from what is left"):
    config_lib.finalize(config)
  for enough in ({"evaluate.episodes": 30}, {"ppo.eval_episodes": 0}):
    config = config_lib.preset_config("demo")
    config.update_from_flattened_dict(changes | enough)
    config_lib.finalize(config)
