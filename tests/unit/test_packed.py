"""The policies that come with the package."""

from __future__ import annotations

import json
import subprocess
import types

import made_up_run
import numpy as np
import pytest
import yaml

import wam_jax
from wam_jax.acting import packed
from wam_jax.acting.policy import PolicyError
from wam_jax.commands import play
from wam_jax.config import TASKS
from wam_jax.embodiment import CAMERAS
from wam_jax.envs import registry
from wam_jax.envs.base import NotOffered
from wam_jax.envs.distractors import DistractedSimulator
from wam_jax.foreign import safetensors_file
from wam_jax.foreign.torch_file import WeightsError
from wam_jax.host.provenance import provenance
from wam_jax.reporting.model_card import card
from wam_jax.storage import checksums, records

MOST = 15e6  # bytes


def test_the_shipped_file_is_small_and_says_what_it_is():
  assert packed.SHIPPED.stat().st_size < MOST
  card = packed.SHIPPED.with_suffix(".md").read_text(encoding="utf-8")
  for task in TASKS:
    assert f"| {task} " in card
  assert "Command: `python -m wam_jax.main" in card and "/tmp" not in card


def test_hubs_read_the_card_of_a_folder(tmp_path):
  """What the hub's own ModelCard reads: a block of YAML, and an interval with each success."""
  evaluated = made_up_run.write_run(tmp_path / "run", np.random.default_rng(0))[1]["evaluate"]
  results = records.read_record(evaluated.path, "results.json")
  results |= {"start_states": {"per_task": 10}, "provenance": provenance()}
  records.write_record(evaluated.path, "results.json", results)
  plain = card(evaluated, "ppo", tmp_path / "v1.0.npz")
  opening, front, text = card(evaluated, "ppo", tmp_path / "v1.0").split("---\n", 2)
  assert not opening and text.strip().startswith(plain.strip())
  facts = yaml.safe_load(front)
  assert facts["license"] == "apache-2.0" and facts["library_name"] == "wam_jax"
  (model,) = facts["model-index"]
  assert model["name"] == "v1.0"
  for result, (task, row) in zip(
    model["results"], results["policies"]["ppo"]["per_task"].items(), strict=True
  ):
    (metric,) = result["metrics"]
    assert result["task"]["name"] == result["dataset"]["config"] == task
    assert metric["value"] == pytest.approx(100 * row["rate"], abs=0.05)
    assert metric["args"]["low"] < metric["value"] < metric["args"]["high"] <= 100


def test_the_packed_policy_is_the_only_large_file():
  """Each version of a large file stays in the history for ever (BUILD.md)."""
  root = packed.SHIPPED.parents[2]
  listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=False)
  if listed.returncode:
    pytest.skip("not a git clone")
  files = [root / name for name in listed.stdout.split("\0") if name]
  large = [file for file in files if file.is_file() and file.stat().st_size > 4e6]
  assert large == [packed.SHIPPED]


def test_shipped_policies_open_the_drawer():
  """From a single start they may fail (success is 98 %), not from all of five."""
  policy = wam_jax.load_policy(task="open_drawer")
  assert any(play.play(policy, seed, 72)["success"] for seed in range(5))


def test_actions_are_executable():
  policy = wam_jax.load_policy(task="turn_on_led")
  rng = np.random.default_rng(0)
  for _ in range(5):
    seen = {c: rng.integers(0, 256, (64, 64, 3), np.uint8) for c in policy.cameras}
    action = policy.act(seen | {"robot_obs": rng.normal(size=15)})
    assert np.abs(action[:6]).max() <= 1 and action[6] in (-1.0, 1.0)


@pytest.mark.parametrize(
  ("env", "name"), [({}, "play_table"), ({"name": "calvin"}, "calvin"), ({"distractors": 2}, "play_table")]
)
def test_packed_policies_act_where_they_were_trained(tmp_path, env, name):
  meta, arrays = packed._read(packed.SHIPPED)
  meta["world_model"]["env"] |= env
  meta = checksums.seal(meta, arrays)
  np.savez(tmp_path / "p.npz", **{packed.META: np.asarray(json.dumps(meta))}, **arrays)
  simulator = play.simulator_of(tmp_path / "p.npz")
  assert simulator.name == name and isinstance(simulator, DistractedSimulator) == ("distractors" in env)
  assert play.simulator_of(tmp_path / "p.npz", "metaworld").name == "metaworld"


def _folder(folder, change):
  """The package's policies as a folder, with other settings."""
  meta, arrays = packed._read(packed.SHIPPED)
  change(meta)
  folder.mkdir()
  safetensors_file.write_arrays(folder / packed.WEIGHTS, arrays)
  meta["weights"] = checksums.seal({}, arrays)
  checksums.write_json(folder / packed.CONFIG, checksums.seal(meta))
  return folder


@pytest.mark.parametrize(
  ("part", "name", "value"),
  [
    ("behaviour_cloning", "blocks", 10**9),
    ("behaviour_cloning", "chunk", 0),
    ("behaviour_cloning", "denoising_steps", 10**10),
    ("env", "image_size", 0),
    ("world_model", "stoch", -1),
  ],
)
def test_settings_that_no_config_has_are_refused_before_networks_are_made(tmp_path, part, name, value):
  def change(meta):
    (meta["policy"] | meta["world_model"])[part][name] = value

  with pytest.raises(PolicyError, match=rf"{part}.{name} = {value}: .*Copy or download it again"):
    wam_jax.load_policy(_folder(tmp_path / "packed", change), "open_drawer")


def test_a_folder_s_weights_are_safetensors(tmp_path):
  """Files of torch.save may hold many arrays of the same few numbers."""
  folder = _folder(tmp_path / "packed", lambda meta: None)
  assert wam_jax.load_policy(folder, "open_drawer").task == "open_drawer"
  np.savez(tmp_path / "w.npz", a=np.zeros(3))
  (tmp_path / "w.npz").replace(folder / packed.WEIGHTS)
  with pytest.raises(WeightsError, match="not in the format safetensors"):
    wam_jax.load_policy(folder, "open_drawer")


def test_code_that_packed_policies_name_is_not_run(tmp_path, monkeypatch):
  env = {"name": "module:attribute", "image_size": 64}
  monkeypatch.setattr(packed, "_read", lambda path: ({"world_model": {"env": env}}, {}))
  (tmp_path / "p.npz").touch()
  with pytest.raises(NotOffered, match="if you trust it: --simulator=module:attribute"):
    play.simulator_of(tmp_path / "p.npz")


def test_pictures_of_a_simulator_that_draws_itself_are_seen_as_they_are(monkeypatch):
  """One with snapshots too, as CALVIN's: pictures of a state that it is put into are not quite those."""
  simulator = registry.load("play_table")
  env = simulator.make()
  reset, begun = env.reset, []
  monkeypatch.setattr(env, "reset", lambda *args: begun.append(reset(*args)))

  def pictures():
    assert begun  # a gymnasium environment has none before
    return {camera: np.full((64, 64, 3), 7, np.uint8) for camera in CAMERAS}

  env.table.pictures = pictures
  monkeypatch.setattr(simulator, "make", lambda: env)
  monkeypatch.setattr(simulator, "make_renderer", None)
  seen = []
  policy = types.SimpleNamespace(image_size=64, task="open_drawer", reset=lambda seed: None)
  policy.act = lambda observation: seen.append(observation) or np.array([0, 0, 0, 0, 0, 0, 1.0])
  assert play.play(policy, 0, 3, simulator)["steps"] == 3
  assert all((observation[camera] == 7).all() for observation in seen for camera in CAMERAS)


def test_a_task_must_be_named():
  with pytest.raises(PolicyError, match="name the task"):
    wam_jax.load_policy()


def test_other_policies_than_those_packed_are_refused():
  with pytest.raises(PolicyError, match="holds the policies ppo, not cloned"):
    wam_jax.load_policy(task="open_drawer", which="cloned")
  with pytest.raises(PolicyError, match="bring their own"):
    wam_jax.load_policy(task="open_drawer", world_model="elsewhere")
