from __future__ import annotations

import importlib.util
import io
import pathlib
import sys

import numpy as np
import pytest
from ml_collections import ConfigDict

from wam_jax import config as config_lib
from wam_jax.config import ConfigError
from wam_jax.config import rules as config_rules
from wam_jax.main import split_overrides

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def config(monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  monkeypatch.delenv("CALVIN_DATA", raising=False)
  return config_lib.preset_config("demo")


def problems_of(config, *overrides):
  found = config_lib.apply_overrides(config, overrides)
  with pytest.raises(ConfigError) as error:
    config_lib.finalize(config, found)
  return {problem.path: problem for problem in error.value.problems}


def test_every_field_has_a_check_and_every_check_a_field():
  assert set(config_lib.flatten(config_lib.default_config())) == set(config_rules.CHECKS)


@pytest.mark.parametrize("preset", config_rules.PRESETS)
def test_presets_are_right_by_themselves(preset, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  for split in ("training", "validation"):
    (tmp_path / "calvin" / split).mkdir(parents=True)
  monkeypatch.setenv("CALVIN_DATA", str(tmp_path / "calvin"))
  config = config_lib.finalize(config_lib.preset_config(preset))
  assert config.preset == preset and config.workdir == f"runs/calvin_wam_{preset}"
  assert config.data.calvin_path == (str(tmp_path / "calvin") if preset == "paper" else "")
  assert config.env.workers >= 1
  assert config_lib.flatten(config_lib.finalize(config)) == config_lib.flatten(
    config
  )  # changes nothing twice


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


@pytest.mark.parametrize(
  ("path", "text"),
  [
    ("ppo.minibatches", "1801"),  # 100 dreams of 18 chunks
    ("ppo.minibatches", "7"),
    ("ppo.horizon_steps", "76"),  # longer than an episode
    ("env.max_steps", "71"),
    ("ppo.fine_tuned_steps", "21"),
    ("behaviour_cloning.ddim_steps", "21"),
    ("behaviour_cloning.ddim_steps", "-1"),
    ("behaviour_cloning.policy", "transformer"),
    ("ppo.critic_warmup_iterations", "1000"),
    ("ppo.log_prob_min", "2"),
    ("ppo.clip_min", "0.5"),
    ("behaviour_cloning.batch_size", "3601"),  # 50 demos of 72 frames
    ("behaviour_cloning.time_dim", "15"),
    ("behaviour_cloning.final_learning_rate", "1"),
    ("classifier.batch_size", "3601"),
    ("classifier.embed", ""),
    ("data.play_episode_frames", "8"),
    ("data.play_episode_frames", "30000"),
    ("world_model.batch_size", "1001"),
    ("world_model.warmup_updates", "50000"),
    ("world_model.decode_fraction", "0"),
    ("evaluate.episodes", "51"),
    ("env.image_size", "60"),
    ("world_model.learning_rate", "nan"),
    ("judge.horizons", "5,1"),
    ("judge.compare", "nowhere"),
    ("inputs.collect", "nowhere"),
    ("data.source", "calvin"),
  ],
)
def test_impossible_values_stop_before_anything_runs(config, path, text):
  config_lib.finalize(config)  # right without the override
  found = problems_of(config, (path, text))
  named = "data.calvin_path" if path == "data.source" else path
  assert named in found and "{" not in found[named].rule + found[named].fix


def test_ddim_is_for_policies_that_denoise(config):
  gaussian = ("behaviour_cloning.policy", "gaussian")
  assert config_lib.apply_overrides(config, [gaussian]) == []
  config_lib.finalize(config)
  found = problems_of(config, ("behaviour_cloning.ddim_steps", "5"))
  assert set(found) == {"behaviour_cloning.ddim_steps"}
  assert "gaussian" in found["behaviour_cloning.ddim_steps"].rule


def test_calvins_experts_know_scene_d_only(config, tmp_path, monkeypatch):
  monkeypatch.delenv("CALVIN_ROOT", raising=False)
  assert set(problems_of(config, ("env.name", "calvin"))) == {"env.calvin_root"}
  (tmp_path / "calvin_env/envs").mkdir(parents=True)
  (tmp_path / "calvin_env/envs/play_table_env.py").touch()
  monkeypatch.setenv("CALVIN_ROOT", str(tmp_path))
  assert config_lib.finalize(config).env.calvin_root == str(tmp_path)
  found = problems_of(config, ("env.calvin_scene", "A"))
  assert set(found) == {"data.source", "evaluate.expert"} and "scene D" in found["data.source"].rule


def test_failed_starts_need_failed_takes(config):
  config.data.failed_takes_per_task = 0
  found = problems_of(config, ("ppo.failed_starts", "0.3"))
  assert set(found) == {"ppo.failed_starts"} and "failed_takes_per_task" in found["ppo.failed_starts"].rule
  config.data.failed_takes_per_task = 5
  assert config_lib.finalize(config).ppo.failed_starts == 0.3


def test_failed_takes_are_held_out_too(config):
  found = problems_of(config, ("data.heldout_failed_takes_per_task", "0"))
  assert set(found) == {"data.heldout_failed_takes_per_task"}


def test_a_robot_in_the_latent_is_trained_to_be_predicted(config):
  config.world_model.robot_obs_weight = 0.0
  found = problems_of(config, ("world_model.proprio", "latent"))
  assert set(found) == {"world_model.robot_obs_weight"}
  assert "proprio=latent" in found["world_model.robot_obs_weight"].rule
  config.world_model.robot_obs_weight = 2.0
  assert config_lib.finalize(config).world_model.proprio == "latent"
  config.world_model.proprio, config.world_model.robot_obs_weight = "none", 0.0
  config_lib.finalize(config)


def test_no_window_goes_on_from_an_imagined_state(config):
  config.world_model.open_loop_share, config.world_model.carry_state = 0.4, False
  assert config_lib.finalize(config).world_model.open_loop_share == 0.4
  found = problems_of(config, ("world_model.carry_state", "true"))
  assert set(found) == {"world_model.open_loop_share"}
  assert "carry_state" in found["world_model.open_loop_share"].rule
  config.world_model.open_loop_share = 0.0
  assert config_lib.finalize(config).world_model.carry_state
  assert set(problems_of(config, ("world_model.open_loop_share", "1.1"))) == {"world_model.open_loop_share"}


def test_data_smaller_than_a_batch(config, tmp_path):
  for split in ("training", "validation"):
    (tmp_path / "calvin" / split).mkdir(parents=True)
  episodes = np.array([[100, 199], [300, 382]])  # ends inclusive: 183 frames
  np.save(tmp_path / "calvin" / "training" / "ep_start_end_ids.npy", episodes)
  found = problems_of(config, ("data.source", "calvin"), ("data.calvin_path", str(tmp_path / "calvin")))
  assert "183" in found["world_model.batch_size"].rule


def test_folders(config, tmp_path):
  (tmp_path / "file").write_text("")
  (tmp_path / "other" / "collect").mkdir(parents=True)
  (tmp_path / "calvin" / "training").mkdir(parents=True)
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
  assert detect({}, tmp_path)[0] == "small"
  assert detect({"JAX_PLATFORMS": "cpu"}, tmp_path)[0] == "demo"
  assert detect({"CUDA_VISIBLE_DEVICES": ""}, tmp_path)[0] == "demo"
  (tmp_path / "calvin" / "training").mkdir(parents=True)
  assert detect({"CALVIN_DATA": str(tmp_path / "calvin")}, tmp_path)[0] == "paper"
  assert detect({"CALVIN_DATA": str(tmp_path)}, tmp_path)[0] == "small"


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
  assert set(own) == {"calvin_wam", "calvin_dreamerv2", "reproduction"}
  wam = str(own["calvin_wam"])
  assert find("experiments/calvin_wam.py:demo") == find("calvin_wam:demo") == f"{wam}:demo"
  assert find("calvin_wam.py") == find("experiments/calvin_wam.py") == wam
  for other in (
    "elsewhere/calvin_wam.py:demo",
    "calvin_wm:demo",
    "",
    "/experiments/calvin_wam.py",
    "a.py:b:c",
  ):
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
  argv = [
    "main",
    "--config=a.py:demo",
    "--config.seed",
    "3",
    "-config.workdir=x=y",
    "--noconfig.evaluate.expert",
  ]
  rest, overrides = split_overrides([*argv, "--config.evaluate.random_policy", "--verbosity=1"])
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
  assert config_rules._divisor(900, 7) == 6 and config_rules._divisor(2**61 - 1, 10**9) == 1


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
  config_lib.apply_overrides(config, [("training.wandb_project", ""), ("seed", "0")])
  config_lib.finalize(config)


def test_empty_lists_know_what_they_hold(config):
  assert config_lib.apply_overrides(config, [("world_model.snapshots", "[10, 1e2]")]) == []
  assert config.world_model.snapshots == (10, 100)
  assert "world_model.snapshots" in problems_of(config, ("world_model.snapshots", "ten"))
  assert {
    path for path, value in config_lib.flatten(config_lib.default_config()).items() if value == ()
  } == set(config_rules.EMPTY_LISTS)


def test_values_of_an_experiment_file_that_no_check_expects(config):
  config.seed, config.tasks = 10**400, (["open_drawer"],)
  assert set(problems_of(config)) == {"seed", "tasks"}


def test_long_values_are_cut_in_the_message(config):
  with pytest.raises(ConfigError) as error:
    config_lib.finalize(config, config_lib.apply_overrides(config, [("x" * 10**5, "y" * 10**6)]))
  assert len(str(error.value)) < 2000 and "characters)" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY\x01\0", "huge"])
def test_damaged_ids_are_left_to_the_reader(config, tmp_path, content):
  for split in ("training", "validation", "failed"):
    (tmp_path / split).mkdir()
  if content == "huge":
    file = io.BytesIO()
    header = {"descr": "<i8", "fortran_order": False, "shape": (2**50, 2)}
    np.lib.format.write_array_header_1_0(file, header)
    content = file.getvalue()
  (tmp_path / "training" / "ep_start_end_ids.npy").write_bytes(content)
  config.data.source, config.data.calvin_path = "calvin", str(tmp_path)
  config_lib.finalize(config)
