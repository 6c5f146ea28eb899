"""`python -m wam_jax.seeds`: numbers of finished runs kept as JSON, and one table of several seeds."""

import json

import made_up_run
import numpy as np
import pytest

from wam_jax.commands import report as report_command
from wam_jax.commands import seeds as seeds_command
from wam_jax.core import intervals
from wam_jax.reporting import seeds
from wam_jax.reporting.finished_run import RunError, read_run

TASKS = made_up_run.TASKS
EPISODES = 10


@pytest.fixture
def make_run(tmp_path):
  def make(seed, **settings):
    rng = np.random.default_rng(seed)
    folder = tmp_path / "runs" / "_".join(map(str, (seed, *settings.values())))
    made_up_run.write_run(folder, rng, TASKS, EPISODES, start=seed, seed=seed, **settings)
    for policy in ("cloned", "ppo"):
      path = folder / "evaluate" / f"{policy}.npz"
      with np.load(path) as file:
        np.savez(path, **file, imagined=rng.integers(0, 101, len(TASKS)) / 100)
    path = folder / "evaluate" / "results.json"
    results = json.loads(path.read_text()) | {"seed": seed, "provenance": {"cpu": f"cpu of {seed}"}}
    path.write_text(json.dumps(results))
    return folder

  return make


def successes(folder, policy):
  with np.load(folder / "evaluate" / f"{policy}.npz") as file:
    return file["success"], file["imagined"]


def numbers(text):
  """Cells of the Markdown tables in a text, by the first cell of a row."""
  rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line]
  return {row[0] + ("" if row[0] != "**Mean**" else str(len(row))): row[1:] for row in rows}


def test_given_frames_keep_the_seed_of_their_recording(make_run):
  """Runs on them differ from each other only in what `seed` and its stages say."""
  settings = []
  for seed in (4, 5):
    run = read_run(make_run(seed))
    for stage, artifact in run.inputs.items():
      artifact.part["seed"] = 7 if stage == "collect" else seed
    settings.append({"settings": {name: v for name, v in run.settings().items() if seeds._matters(name)}})
    assert len({name for name in run.settings() if name.startswith("seed")}) > 1
  assert seeds.differing(*settings) == {}


def test_two_seeds_in_one_table(make_run, tmp_path, capsys):
  runs, results = [make_run(seed) for seed in (4, 5)], tmp_path / "kept"
  assert seeds_command.main([f"--results={results}", f"--runs={runs[0]},{runs[1]}"]) == 0
  assert sorted(path.name for path in results.iterdir()) == ["seed4.json", "seed5.json"]
  first = capsys.readouterr().out
  assert seeds_command.main([f"--results={results}"]) == 0
  text = capsys.readouterr().out
  assert text.strip() in first  # the same table, now of the files alone
  table = numbers(text)
  for k, task in enumerate(TASKS):
    done = [np.concatenate([successes(run, policy)[0][k] for run in runs]) for policy in ("cloned", "ppo")]
    imagined = np.mean([successes(run, "ppo")[1][k] for run in runs])
    for cell, own in zip(table[task], done, strict=False):
      low, high = intervals.wilson_interval(int(own.sum()), 2 * EPISODES)
      assert cell == f"{100 * own.mean():.1f} ({100 * low:.0f}-{100 * high:.0f})"
    assert table[task][2:] == [f"{100 * imagined:.1f}", f"{100 * (imagined - done[1].mean()):+.1f}"]
  gains = []
  for seed, run in zip(("4", "5"), runs, strict=True):
    cloned, (improved, imagined) = successes(run, "cloned")[0], successes(run, "ppo")
    gains.append(improved.mean() - cloned.mean())
    row = table[seed]
    assert row[:2] == [f"{100 * cloned.mean():.1f}", f"{100 * improved.mean():.1f}"]
    assert row[2].startswith(f"{100 * gains[-1]:+.1f} (")
    assert row[3] == f"{100 * (imagined.mean() - improved.mean()):+.1f}"
    told = json.loads((run / "classifier" / "quality.json").read_text())["discrimination"]
    assert row[4:6] == [f"{100 * told[kind]['difference']['value']:.0f}" for kind in ("real", "dreamt")]
    assert row[-1] == f"cpu of {seed}"
  mean, half = (
    np.mean(gains),
    12.706 * np.std(gains, ddof=1) / np.sqrt(2),
  )  # Student's t, one degree of freedom
  cells = table[f"**Mean**{len(row) + 1}"]
  assert cells[2] == f"{100 * mean:+.1f} ({100 * (mean - half):+.1f} to {100 * (mean + half):+.1f})"


def test_what_one_run_may_look_like(make_run, tmp_path):
  runs = [make_run(seed) for seed in (7, 8, 9)]
  for run in runs:
    seeds.keep(read_run(run), tmp_path)
  after = [successes(run, "ppo")[0] for run in runs]
  text = seeds.spread(seeds.read(tmp_path))
  low, high = (100 * f([a.mean() for a in after]) for f in (min, max))
  assert f"{low:.1f} to {high:.1f} %" in text and "3 seeds, 10 episodes" in text
  worst = 100 * min(a.mean(1).min() for a in after)
  assert f"{worst:.1f} %" in text.rsplit("lowest", 1)[1]


def test_seeds_compared_give_the_same_table_and_their_spread(make_run, tmp_path, capsys):
  runs, page = [make_run(seed) for seed in (4, 5, 6)], tmp_path / "compared.html"
  assert seeds_command.main([f"--results={tmp_path / 'kept'}", f"--runs={','.join(map(str, runs))}"]) == 0
  table = capsys.readouterr().out.partition("\n| Success")[2]
  compare = [f"--workdir={runs[1]}", f"--compare={runs[0]},{runs[2]}", f"--out={page}"]
  assert report_command.main(compare) == 0
  assert capsys.readouterr().out.partition("| Success")[2].startswith(table.rstrip())
  html = page.read_text()
  section = html[html.index('<h2 id="seeds">') : html.index('<h2 id="success">')]
  assert section.count("<circle") == 2 * 3 * (len(TASKS) + 1)  # a dot per policy, seed and row


def test_runs_that_are_not_seeds_of_one_recipe_have_no_mean(make_run):
  runs = [read_run(make_run(4)), read_run(make_run(5, ppo__iterations=7))]
  assert not seeds.of_one_recipe(runs) and not seeds.of_one_recipe(runs[:1])
  assert not seeds.of_one_recipe([runs[0], runs[0]])


def test_the_interval_over_seeds_stays_within_what_rates_can_be(make_run, tmp_path):
  for seed in (4, 5):
    seeds.keep(read_run(make_run(seed)), tmp_path)
  results = seeds.read(tmp_path)
  for result, digits in zip(results, ("1" * EPISODES, "1" * (EPISODES - 1) + "0"), strict=True):
    for task in TASKS:
      result["policies"]["ppo"]["success"][task] = digits
  row = seeds.over_seeds(results)[-1]["ppo"]
  assert row["values"] == [1.0, 0.9] and row["mean"] == pytest.approx(0.95) and row["high"] == 1.0
  assert row["low"] == pytest.approx(0.95 - 12.7062047362 * 0.05)  # Student's t, one degree of freedom


def test_runs_of_other_settings_are_refused(make_run, tmp_path, capsys):
  results, one, other = tmp_path / "kept", make_run(4), make_run(5, ppo__iterations=7)
  assert seeds_command.main([f"--results={results}", f"--runs={one},{other}"]) == 1
  assert "ppo.iterations: 800 there, 7 in" in capsys.readouterr().err
  assert [path.name for path in results.iterdir()] == ["seed4.json"]


def test_a_kept_seed_is_not_replaced_by_other_episodes(make_run, tmp_path):
  one, other = read_run(make_run(4)), read_run(make_run(5))
  path = seeds.keep(one, tmp_path / "kept")
  before = path.read_bytes()
  assert seeds.keep(one, tmp_path / "kept").read_bytes() == before  # the same run again
  other.results["seed"] = 4
  with pytest.raises(RunError, match="another run of seed 4"):
    seeds.keep(other, tmp_path / "kept")
  assert path.read_bytes() == before


def test_files_that_are_none(make_run, tmp_path, capsys):
  assert seeds_command.main([f"--results={tmp_path}"]) == 1
  assert "no runs are kept here" in capsys.readouterr().err
  path = seeds.keep(read_run(make_run(4)), tmp_path)
  for text in ("", "{}", "[]", json.dumps(json.loads(path.read_text()) | {"format": 99})):
    path.write_text(text)
    assert seeds_command.main([f"--results={tmp_path}"]) == 1
    assert str(path) in capsys.readouterr().err
  assert seeds_command.main([f"--results={tmp_path}", f"--runs={tmp_path / 'nowhere'}"]) == 1
  assert "no such folder" in capsys.readouterr().err


def test_a_run_without_imagined_success_cannot_be_kept(make_run, tmp_path):
  run = make_run(4)
  path = run / "evaluate" / "ppo.npz"
  with np.load(path) as file:
    arrays = {name: file[name] for name in file.files if name != "imagined"}
  np.savez(path, **arrays)
  with pytest.raises(RunError, match="imagined"):
    seeds.keep(read_run(run), tmp_path / "kept")
  assert not (tmp_path / "kept").exists()
