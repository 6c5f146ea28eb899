"""Results of a study: what is run for a piece, what is read back, and the page that is made from it."""

from __future__ import annotations

import json
import pathlib
import re
import types
import xml.etree.ElementTree

import numpy as np
import pytest
from ml_collections import ConfigDict

from wam_jax import config as config_lib
from wam_jax.config import ConfigError, chain
from wam_jax.config.arms import ARMS, DIAL, MAIN, PAIRS, REPRODUCTION
from wam_jax.core import bootstrap
from wam_jax.experiments import distractors, reproduction
from wam_jax.reporting import study_page, study_results, study_sections
from wam_jax.running import study
from wam_jax.running.plan import StageError

TASKS = ("open_drawer", "turn_on_led")
UPDATES = (10, 20, 40)
EPISODES = 40


@pytest.fixture
def config(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  c = config_lib.preset_config("demo", experiment="reproduction")
  c.study.seeds, c.study.arms = (3, 4), MAIN
  c.study.results, c.study.page = "docs/results", "docs/RESULTS.md"
  c.world_model.snapshots = (500, 1000)
  # The published recipe, as experiments/reproduction.py.
  c.world_model.robot_obs_weight, c.world_model.proprio = 0.0, "none"
  return config_lib.finalize(c)


def digits(rng, rate):
  return "".join("01"[int(x)] for x in rng.random(EPISODES) < rate)


def make_piece(arm, seed, rate, settings=None):
  """A result as `study.gather` makes it, of policies that succeed at `rate`, 0.1 more after PPO."""
  rng = np.random.default_rng(seed * 100 + list(ARMS).index(arm))
  policy = lambda r: {
    "success": {task: digits(rng, r) for task in TASKS},
    "imagined": dict.fromkeys(TASKS, 0.9),
  }
  piece = {
    "format": study_results.FORMAT,
    "experiment": "reproduction",
    "preset": "demo",
    "arm": arm,
    "title": ARMS[arm].title,
    "base": ARMS[arm].base,
    "changes": dict(ARMS[arm].changes),
    "seed": seed,
    "tasks": list(TASKS),
    "simulator": {"name": "play_table"},
    "start_states": f"states of seed {seed}",
    "episodes": EPISODES,
    "policies": {"cloned": policy(rate), "ppo": policy(rate + 0.1)},
    "seconds": {"collect": 10.0, "world_model": 100.0},
    "peak_bytes": 2**30,
    "settings": settings or {},
    "commits": ["0123456789abcdef"],
    "provenance": {"cpu": "a CPU", "cores": 2, "devices": ["cpu"], "commit": "0123456789abcdef"},
  }
  if ARMS[arm].snapshots:
    early = {str(u): {task: digits(rng, rate / 2) for task in TASKS} for u in UPDATES[:-1]}
    piece["by_update"] = early | {str(UPDATES[-1]): piece["policies"]["cloned"]["success"]}
    piece["ppo"] = {"imagined": [[0, 0.8], [5, 0.9]], "real": [[0, 0.5], [5, 0.6]]}
  return piece


def write(folder, piece):
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / f"{piece['arm']}_seed{piece['seed']}.json"
  path.write_text(json.dumps(piece), encoding="utf-8")
  return path


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
  monkeypatch.setattr(bootstrap, "RESAMPLES", 200)


@pytest.fixture
def results(tmp_path):
  folder = tmp_path / "docs" / "results" / "reproduction_demo"
  for seed in (3, 4, 5):
    write(folder, make_piece("wam", seed, 0.7))
    write(folder, make_piece("dreamerv2", seed, 0.4))
  write(folder, make_piece("demos_10", 3, 0.3))
  return folder


# --- the page -------------------------------------------------------------------------------------


def cells(page, row):
  line = next(line for line in page.splitlines() if line.startswith(f"| {row} "))
  return [cell.strip() for cell in line.strip("|").split("|")]


def test_page_says_what_the_files_say(results, tmp_path):
  page = study_page.write_page(tmp_path / "docs" / "RESULTS.md", results, (3, 4, 5)).read_text()
  for arm in MAIN:
    pieces = [json.loads((results / f"{arm}_seed{seed}.json").read_text()) for seed in (3, 4, 5)]
    ones = sum(
      text.count("1") for piece in pieces for text in piece["policies"]["cloned"]["success"].values()
    )
    rate = 100 * ones / (3 * len(TASKS) * EPISODES)
    assert cells(page, f"{ARMS[arm].title}, cloned")[2] == f"{rate:.1f}"
  got = cells(page, "WAM minus DreamerV2, cloned")
  rates = [float(cells(page, f"{ARMS[arm].title}, cloned")[2]) for arm in MAIN]
  assert float(got[2]) == pytest.approx(rates[0] - rates[1], abs=0.11)
  low, high = map(float, got[3].split(" to "))
  assert low < float(got[2]) < high and low > 0  # 30 points are no chance in 240 episodes
  assert got[1] == "+11.8"
  assert "WAM, 10 demos" in page and "`demos_10`): seeds 4, 5" in page  # run for one seed of three
  assert "`weight_100`): none of the seeds" in page
  assert "times fewer updates" in page


def test_pictures_and_charts_of_the_page_exist(results, tmp_path):
  (results / "wam_seed4_policies.webp").write_bytes(b"")
  (results / "dreamerv2_seed3_policies.webp").write_bytes(b"")
  page = study_page.write_page(tmp_path / "docs" / "RESULTS.md", results)
  links = re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text())
  assert len(links) == 5
  for link in links:
    assert (page.parent / link).exists(), link
    if link.endswith(".svg"):
      xml.etree.ElementTree.parse(page.parent / link)


def test_the_same_files_make_the_same_page(results, tmp_path):
  pages = [study_page.write_page(tmp_path / "docs" / "R.md", results).read_text() for _ in range(2)]
  assert pages[0] == pages[1]


def test_ties_are_rounded_alike():
  """Half of all shares of 400 episodes: 331 of them are 0.8274999 or 0.8275, by how the mean was taken."""
  assert study_sections.percent(0.8274999999999999) == study_sections.percent(0.8275) == "82.8"
  assert [study_sections.points(x) for x in (0.0025, -0.0275, -0.0001, 0.1)] == [
    "+0.3",
    "-2.8",
    "+0.0",
    "+10.0",
  ]


def test_page_of_one_seed_and_of_none(tmp_path):
  folder = tmp_path / "results"
  page = tmp_path / "RESULTS.md"
  assert "No result yet" in study_page.write_page(page, folder).read_text()
  write(folder, make_piece("wam", 3, 0.5))
  assert "one seed" in study_page.write_page(page, folder).read_text()
  write(folder, make_piece("dreamerv2", 3, 0.5))
  text = study_page.write_page(page, folder).read_text()
  assert "What this study can tell" not in text and "WAM minus DreamerV2, cloned" in text


def test_seeds_with_other_start_states_are_not_compared(results):
  piece = make_piece("dreamerv2", 4, 0.4) | {"start_states": "others"}
  write(results, piece)
  found = study_results.read_results(results)
  assert study_results.common_seeds(found, MAIN) == [3, 5]
  assert study_results.difference(found, ("wam", "cloned"), ("dreamerv2", "cloned"))["seeds"] == [3, 5]


def test_hand_written_parts_are_taken_in(results, tmp_path):
  (results / "reading.md").write_text("## What it means\n\nNothing.\n", encoding="utf-8")
  assert "## What it means" in study_page.write_page(tmp_path / "docs" / "R.md", results).read_text()


def test_studies_on_other_simulators_have_a_section(results, tmp_path):
  elsewhere = results.parent / "metaworld_wam_demo"
  for arm, rate in zip(MAIN, (0.2, 0.6), strict=True):
    write(elsewhere, make_piece(arm, 1, rate) | {"simulator": {"name": "metaworld"}})
  (elsewhere / "reading.md").write_text("## What it means\n\nNothing.\n", encoding="utf-8")
  (results.parent / "seeds_of_a_recipe").mkdir()
  (results.parent / "seeds_of_a_recipe" / "seed0.json").write_text("{}", encoding="utf-8")
  write(results.parent / "another_small", make_piece("wam", 8, 0.5))  # the same simulator: a page of its own
  page = study_page.write_page(tmp_path / "docs" / "RESULTS.md", results).read_text()
  before, title, after = page.partition("## The same on Meta-World: metaworld_wam_demo\n")
  assert title and "## The same on" not in before + after
  assert "### What it means\n" in after and "Task by task" in before and "### Task by task" in after
  gaps = [float(cells(part, "WAM minus DreamerV2, cloned")[2]) for part in (before, after)]
  assert gaps[0] > 0 > gaps[1]
  own = elsewhere / "wam_seed1.json"
  own.write_text(json.dumps(json.loads(own.read_text()) | {"experiment": "metaworld_wam"}), encoding="utf-8")
  inside = study_page.write_page(elsewhere / "README.md", elsewhere).read_text()
  assert "## The same on" not in inside  # they are all on the page of the reproduction
  assert "seeds 3 to 5 of the main comparison" in before and "seed 1 of the main comparison" in after


def test_page_of_seeds_of_an_experiment_that_is_no_study(tmp_path):
  folder = tmp_path / "results" / "metaworld_wam_demo"
  settings = {"evaluate.expert": False, "evaluate.episodes": 20, "world_model.updates": 77, "seed": 1}
  for arm in MAIN:
    piece = make_piece(arm, 1, 0.5, settings) | {"experiment": "metaworld_wam"}
    piece["by_update"] = {"77": piece["by_update"][str(UPDATES[-1])]}  # no snapshots
    write(folder, piece)
  page = study_page.write_page(tmp_path / "page.md", folder, (1,)).read_text()
  flags = "--config.study.arms=wam,dreamerv2 --config.study.seeds=1 --config.evaluate.expert=False "
  flags += f"--config.world_model.updates=77 --config.study.page={tmp_path / 'page.md'}"
  assert f"metaworld_wam.py:demo {flags}    # all" in page
  assert "How many updates" not in page and not (folder / "by_update.svg").exists()
  assert "Not run" not in page  # arms of the other studies


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 99}', '{"format": 1, "arm": "wam"}'])
def test_broken_results_are_named(results, tmp_path, content):
  path = results / "wam_seed3.json"
  path.write_text(content, encoding="utf-8")
  with pytest.raises(study_results.ResultError, match="wam_seed3"):
    study_page.write_page(tmp_path / "docs" / "RESULTS.md", results)


def judged(linear):
  """Of two numbers of the action, with this mean error of the linear map."""
  of = lambda error: {"error": error / 2, "linear": error, "mean_action": 1.0}
  return {"inverse_dynamics": {"x": of(linear - 0.1), "y": of(linear + 0.1)}}


@pytest.fixture
def dialled(tmp_path):
  """WAM's lead grows with the dial, as does what the plain model lacks; seed 7 has no level 3."""
  folder = tmp_path / "docs" / "results" / "distractors_demo"
  for seed in (6, 7):
    for level in range(4):
      for arm, rate, linear in (
        (f"dial_{level}", 0.7, 0.2),
        (f"dreamerv2_dial_{level}", 0.7 - 0.15 * level, 0.2 + 0.1 * level),
      ):
        piece = make_piece(arm, seed, rate) | {"experiment": "distractors", "judge": judged(linear)}
        early = judged(linear + (0.05 if "dreamerv2" in arm else 0))["inverse_dynamics"]
        piece["inverse_dynamics_by_update"] = {str(UPDATES[0]): early}
        if (seed, level) != (7, 3):
          write(folder, piece)
  (folder / "design.md").write_text("## What was expected\n\nA lead.\n", encoding="utf-8")
  return folder


def test_the_lead_at_each_level_of_the_dial(dialled, tmp_path):
  page = study_page.write_page(tmp_path / "docs" / "D.md", dialled, (6, 7)).read_text()
  assert page.startswith("# Where does inverse dynamics help?\n") and "## What was expected" in page
  assert "seed 6 at all levels" in page and "Both arms of a seed and level have" in page
  assert "(`dial_3`): seed 7" in page and "`wam`" not in page
  found = study_results.read_results(dialled)
  leads = []
  for level in range(4):
    gap = study_results.difference(found, (f"dial_{level}", "cloned"), (f"dreamerv2_dial_{level}", "cloned"))
    row = cells(page, f"level {level}")
    assert row[1] == ("6" if level == 3 else "6, 7")
    assert float(row[4]) == pytest.approx(100 * gap["mean"], abs=0.0501)
    assert len(row[-1].split(", ")) == len(gap["seeds"])
    leads.append(100 * gap["per_seed"][0])
  early = cells(page, f"level 2, {UPDATES[0]} updates")
  rate = lambda piece: study_results.episodes(piece["by_update"][str(UPDATES[0])], piece["tasks"]).mean()
  lead = np.mean([rate(found["dial_2"][seed]) - rate(found["dreamerv2_dial_2"][seed]) for seed in (6, 7)])
  assert early[1] == "6, 7" and float(early[4]) == pytest.approx(100 * lead, abs=0.0501)
  assert float(cells(page, "mean lead of levels 1 to 3")[2]) == pytest.approx(np.mean(leads[1:]), abs=0.06)
  slope = np.polyfit(range(4), leads, 1)[0]
  assert float(cells(page, "slope over all levels, per level")[2]) == pytest.approx(slope, abs=0.06)
  ends = cells(page, "slope from level 0 to 3, per level")
  assert ends[1] == "6" and float(ends[2]) == pytest.approx((leads[3] - leads[0]) / 3, abs=0.06)
  assert "changes by **+0.300** (seed 6 alone)" in page


def test_levels_0_and_3_are_enough_for_a_slope(dialled, tmp_path):
  for level in (1, 2):
    (dialled / f"dial_{level}_seed6.json").unlink()
  write(dialled, make_piece("dial_3", 7, 0.6) | {"judge": judged(0.25)})
  write(dialled, make_piece("dreamerv2_dial_3", 7, 0.5) | {"judge": judged(0.4)})
  page = study_page.write_page(tmp_path / "docs" / "D.md", dialled, (6, 7)).read_text()
  assert cells(page, "slope from level 0 to 3, per level")[1] == "6, 7"
  assert cells(page, "slope over all levels, per level")[1] == "7"
  assert "changes by **+0.225** (seeds 6, 7: +0.300, +0.150; t 95 %: -0.728 to +1.178)" in page


def test_the_prediction_is_on_the_page_before_any_run(tmp_path):
  folder = tmp_path / "distractors_demo"
  folder.mkdir()
  (folder / "design.md").write_text("## What was expected\n", encoding="utf-8")
  page = study_page.write_page(tmp_path / "D.md", folder, (60,), DIAL).read_text()
  assert page.startswith("# Where does inverse dynamics help?\n\nNo result yet.\n\n## What was expected\n")


def test_the_lead_against_what_embeddings_lack_over_all_studies(dialled, results, tmp_path):
  measured = study_page.cells_beside(dialled)
  assert len(measured) == 8  # four levels, each after few updates too; the old study's models were not judged
  early = next(cell for cell in measured if cell.label == "WAM, dial 2, 10 updates")
  assert early.seeds == (6, 7) and early.errors == pytest.approx((0.2, 0.45))
  assert early.lacking == pytest.approx(0.25)
  for seed in (3, 4):
    for arm, linear in zip(MAIN, (0.3, 0.31), strict=True):
      piece = json.loads((results / f"{arm}_seed{seed}.json").read_text())
      write(results, piece | {"judge": judged(linear)})
  write(results, make_piece("dreamerv2_demos_10", 3, 0.1))  # on the world model of its base
  measured = study_page.cells_beside(dialled)
  old = {cell.label: cell for cell in measured if cell.study == "reproduction_demo"}
  assert set(old) == {"WAM", "WAM, 10 demos"}
  assert old["WAM"].seeds == (3, 4) and old["WAM, 10 demos"].seeds == (3,)
  assert old["WAM, 10 demos"].errors == pytest.approx((0.3, 0.31))
  page = study_page.write_page(tmp_path / "docs" / "D.md", dialled).read_text()
  rows = [line for line in page.splitlines() if re.match(r"\| (distractors|reproduction)_demo ", line)]
  assert len(rows) == 10 and "Rank correlation of lead and lacking over 10 cells: **+0." in page
  lacking = [float(row.split("|")[6]) for row in rows]
  assert lacking == sorted(lacking, reverse=True)
  chart = xml.etree.ElementTree.parse(dialled / "leads.svg")
  assert len(list(chart.iter("{http://www.w3.org/2000/svg}circle"))) == 10
  assert "](results/distractors_demo/leads.svg)" in page


# --- pieces ---------------------------------------------------------------------------------------


def test_finished_pieces_are_skipped_and_others_refused(config, tmp_path):
  folder = study_results.folder_of(config)
  piece = study.Piece("wam", 3, pathlib.Path(config.workdir))
  settings = study.settings_of(config, piece)
  assert study.read_result(folder, piece, settings) is None
  write(folder, make_piece("wam", 3, 0.5, json.loads(json.dumps(settings))))
  assert study.read_result(folder, piece, settings)["seed"] == 3
  early = {name: value for name, value in settings.items() if name != "world_model.robot_obs_weight"}
  write(folder, make_piece("wam", 3, 0.5, json.loads(json.dumps(early))))
  assert study.read_result(folder, piece, settings) is not None  # a field that is off did not exist then
  changed = ConfigDict(config.to_dict())
  changed.world_model.robot_obs_weight = 1.0
  with pytest.raises(StageError, match="robot_obs_weight: 0.0 -> 1.0"):
    study.read_result(folder, piece, study.settings_of(changed, piece))
  changed = ConfigDict(config.to_dict())
  changed.ppo.gamma = 0.9
  with pytest.raises(StageError, match=r"ppo\.gamma: 0\.97 -> 0\.9"):
    study.read_result(folder, piece, study.settings_of(changed, piece))


def test_results_in_the_repository_are_of_the_settings_that_the_experiment_has():
  results = pathlib.Path(__file__).parents[2] / "docs" / "results" / "reproduction_small"
  files = sorted(results.glob("*_seed*.json"))
  assert files
  config = config_lib.finalize(reproduction.get_config("small"))
  for file in files:
    arm, seed = file.stem.split("_seed")
    piece = study.Piece(arm, int(seed), pathlib.Path(config.workdir))
    assert study.read_result(results, piece, study.settings_of(config, piece)), file.name


def test_settings_of_arms_differ_by_their_changes_alone(config):
  of = lambda arm: study.settings_of(config, study.Piece(arm, 3, pathlib.Path("x")))
  base = of("wam")
  for arm, spec in ARMS.items():
    other = of(arm)
    different = {path for path in {*base, *other} if base.get(path) != other.get(path)}
    assert different == set(spec.changes), arm
    assert {path: other[path] for path in different} == dict(spec.changes)


def test_arms_of_a_seed_share_frames(config):
  for arm in ARMS:
    piece = study.Piece(arm, 3, pathlib.Path("x"))
    c = study.run_config(config, piece, "collect", piece.data)
    assert c.data.demos_per_task == config.data.demos_per_task and c.seed == 3
    level = int(arm[-1]) if arm in DIAL else 0
    assert c.env.distractors == level
    assert piece.data == pathlib.Path(f"x/seed3/data_distractors_{level}" if level else "x/seed3/data")


def test_pairs_differ_by_inverse_dynamics_alone():
  assert dict([MAIN]).items() <= PAIRS.items() and set(DIAL) <= {*PAIRS, *PAIRS.values()}
  for ours, plain in PAIRS.items():
    assert dict(ARMS[plain].changes) == {**ARMS[ours].changes, "world_model.inverse_dynamics_weight": 0.0}
    assert PAIRS.get(ARMS[ours].base, "") == ARMS[plain].base and ARMS[ours].stages == ARMS[plain].stages


def test_the_study_of_distractors_ends_with_cloning():
  config = config_lib.finalize(distractors.get_config("demo"))
  assert config.study.arms == DIAL and not set(DIAL) & set(REPRODUCTION)
  for arm in DIAL:
    piece = study.Piece(arm, config.study.seeds[0], pathlib.Path("x"))
    assert [stage for stage, _ in study._stages_of(config, ARMS[arm])] == list(ARMS[arm].stages)
    assert study.run_config(config, piece, "world_model", piece.workdir).env.distractors == int(arm[-1])


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_and_its_base_make_all_that_its_stages_need(config, arm, labels):
  config = ConfigDict(config.to_dict())
  if labels:
    config.data.play_successes_per_task, config.data.play_successes_by = 5, "classifier"
  spec = ARMS[arm]
  taken_stages, own = study._split(config, spec)
  assert ("label_play" in (*taken_stages, *own)) == labels
  assert set(own) - {"label_play", "classifier"} == set(spec.stages) - {"label_play", "classifier"}
  have = {"collect", *taken_stages}
  for stage in own:
    assert set(chain.required(stage, config)) <= have, stage
    have.add(stage)
  if spec.base:
    taken = {path for stage in taken_stages for path in chain.ROWS[stage].reads}
    assert not [path for path in spec.changes if path in taken], "the base would have made something else"


def test_stages_run_in_the_right_folders_from_the_right_inputs(config, monkeypatch):
  ran = []

  def make_plan(run):
    done = (run.workdir, run.stage) in [(one.workdir, one.stage) for one in ran]
    return {run.stage: types.SimpleNamespace(action="skip" if done else "run")}

  monkeypatch.setattr(study.plan_lib, "make_plan", make_plan)

  def run_stage(run, quiet):
    ran.append(run)
    folder = pathlib.Path(run.workdir) / run.stage
    folder.mkdir(parents=True)
    (folder / "DONE").touch()  # which the config of what comes after asks for

  monkeypatch.setattr(study.runner, "run", run_stage)
  root = pathlib.Path("study")
  study.run_piece(config, study.Piece("no_regulariser", 3, root))
  base, own = root / "seed3" / "wam", root / "seed3" / "no_regulariser"
  taken = ("world_model", "featurize", "classifier", "behaviour_cloning")
  expected = [(root / "seed3" / "data", "collect"), *((base, stage) for stage in taken)]
  expected += [(own, "ppo"), (own, "evaluate")]
  assert [(pathlib.Path(run.workdir), run.stage) for run in ran] == expected
  assert [run.ppo.bc_weight for run in ran[1:]] == [config.ppo.bc_weight] * 4 + [0, 0]
  for stage in taken:
    assert ran[-1].inputs[stage] == str(base / stage)
  assert ran[-1].inputs.ppo == str(own / "ppo")


def test_given_frames_are_those_of_every_piece(config, monkeypatch, tmp_path):
  ran = []
  plans = lambda run: {run.stage: types.SimpleNamespace(action="run")}
  monkeypatch.setattr(study.plan_lib, "make_plan", plans)

  def run_stage(run, quiet):
    ran.append((run.seed, run.stage, run.inputs.collect))
    pathlib.Path(run.workdir, run.stage).mkdir(parents=True)
    pathlib.Path(run.workdir, run.stage, "DONE").touch()

  monkeypatch.setattr(study.runner, "run", run_stage)
  frames = tmp_path / "frames" / "collect"
  frames.mkdir(parents=True)
  (frames / "DONE").touch()
  c = ConfigDict(config.to_dict())
  c.inputs.collect, c.world_model.snapshots = str(frames), ()
  c = config_lib.finalize(c)
  for seed in (3, 4):
    study.run_piece(c, study.Piece("dreamerv2", seed, tmp_path / "study"))
  assert {stage for _, stage, _ in ran} >= {"world_model", "ppo", "evaluate"}
  assert {seed for seed, _, _ in ran} == {3, 4}
  assert all(stage != "collect" and given == str(frames) for _, stage, given in ran)


def test_given_frames_and_arms_that_record_others(config):
  c = ConfigDict(config.to_dict())
  c.inputs.collect, c.study.arms = "frames", ("wam", "dial_1")
  with pytest.raises(StageError, match="study.arms=dial_1 record others .env.distractors.. Leave one"):
    study.run(c)


def test_given_frames_are_of_the_settings_and_the_seed_that_results_are_kept_with(
  config, monkeypatch, tmp_path
):
  c = ConfigDict(config.to_dict())
  frames = tmp_path / "frames" / "collect"
  frames.mkdir(parents=True)
  (frames / "DONE").touch()
  c.inputs.collect, c.study.arms, c.study.seeds = str(frames), ("dreamerv2",), (3, 4)
  part = config_lib.settings_read(c, study.chain.ROWS["collect"].reads) | {"seed": 3, "tasks": list(c.tasks)}
  monkeypatch.setattr(study, "load_artifact", lambda path, stage: types.SimpleNamespace(part=part))
  folder = study_results.folder_of(c)
  for seed in (3, 4):
    settings = study.settings_of(c, study.Piece("dreamerv2", seed, tmp_path))
    write(folder, make_piece("dreamerv2", seed, 0.5, settings) | {"frames_of_seed": 3})
  study.run(c)  # nothing is left to do
  part["seed"] = 5
  with pytest.raises(
    StageError, match=r"seed3.json is .* recorded with seed 3, but .* gives frames of seed 5"
  ):
    study.run(c)
  part["data.demos_per_task"] += 1
  with pytest.raises(
    StageError, match=r"(?s)collect was recorded with other .*data.demos_per_task: \d+ there"
  ):
    study.run(c)


def test_page_says_how_the_published_numbers_were_made(tmp_path, results):
  page = lambda: study_page.write_page(tmp_path / "docs" / "RESULTS.md", results).read_text()
  assert "other simulator and sizes, so levels" in page()
  for path in results.glob("*.json"):
    path.write_text(json.dumps(json.loads(path.read_text()) | {"simulator": {"name": "calvin"}}))
  assert "play and demos by people, and larger, so levels" in page()
  assert "--config.env.calvin_root=calvin_env " in page()


def test_page_says_which_seeds_share_frames(tmp_path, results):
  page = lambda: study_page.write_page(tmp_path / "docs" / "RESULTS.md", results).read_text()
  assert "recorded with seed" not in page() and "inputs.collect" not in page()
  for seed in (4, 5):
    for arm in MAIN:
      write(results, make_piece(arm, seed, 0.5) | {"frames_of_seed": 5})
  text = " ".join(page().split())
  assert "(seeds 4, 5 those recorded with seed 5)" in text and "what another recording changes" not in text
  assert "study.seeds=3 --config.study.page=" in text  # it has frames of its own
  on_given, _, alone = text.partition(
    "--config.inputs.collect=FOLDER # what is not there; FOLDER: collect of seed 5"
  )
  assert "study.seeds=4,5 " in on_given and "inputs.collect" not in on_given + alone.partition("report")[2]
  for path in results.glob("*_seed3.json"):
    path.unlink()
  assert "(seeds 4, 5 those recorded with seed 5: what another recording changes is in no interval)" in page()


def test_waits_while_another_process_is_in_the_folder(config, monkeypatch, capsys):
  tries = []

  def make_plan(run):
    return {run.stage: types.SimpleNamespace(action="skip" if len(tries) > 2 else "run")}

  def busy(run, quiet):
    tries.append(run)
    raise study.runner.InUseError("another process is running there")

  monkeypatch.setattr(study.plan_lib, "make_plan", make_plan)
  monkeypatch.setattr(study.runner, "run", busy)
  monkeypatch.setattr(study, "WAIT_SECONDS", 0.0)
  study._run_stages(config, study.Piece("wam", 3, pathlib.Path("x")), ("collect",), pathlib.Path("x"), {})
  assert len(tries) == 3 and capsys.readouterr().out.count("waits") == 1


def test_plan_says_what_is_there(config, capsys, tmp_path):
  piece = study.Piece("wam", 4, pathlib.Path(config.workdir))
  settings = json.loads(json.dumps(study.settings_of(config, piece)))
  write(study_results.folder_of(config), make_piece("wam", 4, 0.5, settings))
  c = ConfigDict(config.to_dict())
  c.stage = "plan"
  study.run(config_lib.finalize(c))
  lines = capsys.readouterr().out.splitlines()
  assert [line.split()[-1] for line in lines if "_seed" in line].count("done") == 1
  assert not (tmp_path / "docs" / "RESULTS.md").exists()


def test_a_study_without_arms_or_with_a_single_stage_is_refused(config):
  c = ConfigDict(config.to_dict())
  c.study.arms, c.stage = (), "ppo"
  with pytest.raises(ConfigError) as error:
    config_lib.finalize(c)
  assert {problem.path for problem in error.value.problems} == {"study.arms", "stage"}
  c.study.arms = ("wam", "wan")
  with pytest.raises(ConfigError, match="wam"):
    config_lib.finalize(c)
