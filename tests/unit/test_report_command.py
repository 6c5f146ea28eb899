"""`python -m wam_jax.report`: the page of a finished run made anew, and runs side by side."""

import json
import shutil

import made_up_run
import numpy as np
import pytest

from wam_jax.commands import report as report_command
from wam_jax.core import intervals
from wam_jax.reporting import comparison, page_parts
from wam_jax.reporting.finished_run import RunError, labels, read_run
from wam_jax.storage import artifact as artifact_lib


@pytest.fixture
def rng():
  return np.random.default_rng(11)


@pytest.fixture
def run(tmp_path, rng):
  made_up_run.write_run(tmp_path / "first", rng)
  return tmp_path / "first"


@pytest.fixture
def other(tmp_path, rng):
  """The same start states, one task more, and two settings of its own."""
  tasks = ("turn_on_led", "close_drawer", "open_drawer")
  made_up_run.write_run(
    tmp_path / "other",
    rng,
    tasks,
    start=1,
    world_model__inverse_dynamics_weight=0.0,
    ppo__iterations=7,
    workdir="elsewhere",
  )
  return tmp_path / "other"


def read(*folders):
  return [read_run(folder) for folder in folders]


def files(folder):
  return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_page_of_a_run_without_running_anything(run, capsys):
  before = files(run)
  assert report_command.main([f"--workdir={run}"]) == 0
  out = capsys.readouterr().out
  assert "no animations of episodes" in out and str(run / "report.html") in out  # there is no rollouts.npz
  after = files(run)
  assert after.pop(run / "report.html") and after == before
  text = (run / "report.html").read_text()
  assert "made again" in text and "no animations of episodes" in text and "Success in the simulator" in text


def test_a_page_made_before_is_replaced_and_its_time_kept(run, rng):
  made_up_run.write_report_stage(run, seconds=42.0)
  assert report_command.main([f"--workdir={run}"]) == 0
  assert not (run / "report.html").exists()
  assert "0:42" in (run / "report" / "report.html").read_text()


def test_the_page_tells_where_the_run_came_from_not_this_process(run, tmp_path):
  path = run / "evaluate" / "results.json"
  facts = {"wam_jax": "0.0.9", "commit": "abc", "python": "3.11.1", "packages": {}, "platform": "p"}
  facts |= {"cpu": "c", "cores": 3, "devices": ["cpu"], "date": "2020-02-03", "command": "that one"}
  path.write_text(json.dumps(json.loads(path.read_text()) | {"provenance": facts}))
  assert report_command.main([f"--workdir={run}", f"--out={tmp_path}/new/page.html"]) == 0
  text = (tmp_path / "new" / "page.html").read_text()
  assert "that one" in text and "2020-02-03" in text and "3 CPU cores" in text


def test_stages_that_were_taken_from_elsewhere_are_found(run, tmp_path):
  moved = tmp_path / "models" / "world_model"
  moved.parent.mkdir()
  shutil.move(run / "world_model", moved)
  with pytest.raises(RunError, match="world_model is not there"):
    read(run)
  evaluated = artifact_lib.load_artifact(run, "evaluate")
  evaluated.config["inputs"]["world_model"] = str(moved)
  artifact_lib.write_artifact(evaluated, done=True)
  assert read(run)[0].inputs["world_model"].path == moved


def test_only_the_time_of_collecting_may_be_missing(run):
  shutil.rmtree(run / "collect")
  found = read(run)[0]
  assert "collect" not in found.inputs and "time is not counted" in found.missing[0]


def test_time_of_stages_that_settings_asked_for_is_counted(tmp_path, rng, run):
  folder = tmp_path / "labelled"
  asked = {"data__play_successes_per_task": 5, "data__play_successes_by": "classifier"}
  made_up_run.write_run(folder, rng, **asked)
  plain, labelled = read(run, folder)
  assert set(labelled.inputs) - set(plain.inputs) == {"label_play"}
  assert list(labelled.inputs).index("label_play") < list(labelled.inputs).index("behaviour_cloning")
  shutil.rmtree(folder / "label_play")
  found = read(folder)[0]
  assert "label_play" not in found.inputs and "label_play is not where" in found.missing[0]


@pytest.mark.parametrize(
  "spoil, said",
  [
    (lambda run: shutil.rmtree(run), "there is no such folder"),
    (lambda run: shutil.rmtree(run / "evaluate"), "is no finished run"),
    (lambda run: (run / "evaluate" / "DONE").unlink(), "evaluate is not finished"),
    (lambda run: (run / "evaluate" / "results.json").write_text("{"), "is no finished run"),
    (lambda run: shutil.rmtree(run / "judge_world_model"), "judge_world_model is not there"),
    (lambda run: (run / "ppo" / "DONE").unlink(), "ppo is not there"),
  ],
)
def test_what_is_no_finished_run_is_said(run, capsys, spoil, said):
  spoil(run)
  assert report_command.main([f"--workdir={run}"]) == 1
  error = capsys.readouterr().err
  assert said in error and str(run) in error and "Traceback" not in error


def test_two_runs_side_by_side(run, other, capsys):
  before = files(other)
  assert report_command.main([f"--workdir={run}", f"--compare={other}"]) == 0
  assert "other: close_drawer left out, not in all runs" in capsys.readouterr().out
  text = (run / "comparison.html").read_text()
  assert 'src="data:image/png' in text and "http" not in text and "<script" not in text
  assert text.count("Mean of these") == 1 and "close_drawer left out" in text and "Not paired" in text
  assert files(other) == before


def test_common_tasks_alone_are_compared(run, other):
  first, second = read(run, other)
  found = comparison.build([first, second])
  assert found["tasks"] == ["open_drawer", "turn_on_led"]
  rows = second.results["policies"]["ppo"]["per_task"]
  own = found["runs"][1]["policies"]["ppo"]
  assert own["mean"]["rate"] == pytest.approx((rows["open_drawer"]["rate"] + rows["turn_on_led"]["rate"]) / 2)
  assert own["mean"]["n"] == 20
  drawn = found["differences"][0]["ppo"]["open_drawer"]
  ours = first.results["policies"]["ppo"]["per_task"]["open_drawer"]["rate"]
  assert drawn["difference"] == pytest.approx(rows["open_drawer"]["rate"] - ours) and not drawn["paired"]
  assert not any("Mean of all tasks" in chart["title"] for chart in found["curves"])  # of different tasks


def test_episodes_from_the_same_states_are_paired(run, tmp_path, rng):
  made_up_run.write_run(tmp_path / "second", rng, ("turn_on_led", "open_drawer"), start=0)
  path = tmp_path / "second" / "evaluate" / "ppo.npz"
  first, _ = read(run, tmp_path / "second")
  with np.load(path) as file:
    arrays = dict(file)
  arrays["start"] = arrays["start"][::-1].copy()  # the states belong to the tasks, not to their order
  np.savez(path, **arrays)
  second = read(tmp_path / "second")[0]
  found = comparison.difference(first, second, "ppo", ["open_drawer", "turn_on_led"])
  a, b = first.episodes("ppo")["success"], second.episodes("ppo")["success"][::-1]
  wanted = intervals.paired_difference(a.ravel().tolist(), b.ravel().tolist())
  assert tuple(found["mean"][name] for name in ("difference", "low", "high")) == pytest.approx(wanted)
  assert all(row["paired"] for row in found.values())
  # One state differs: that task is not paired, nor the mean.
  arrays["start"][0, 3, 5] += 0.5
  np.savez(path, **arrays)
  found = comparison.difference(first, read(tmp_path / "second")[0], "ppo", ["open_drawer", "turn_on_led"])
  assert {task: row["paired"] for task, row in found.items()} == {
    "open_drawer": True,
    "turn_on_led": False,
    "mean": False,
  }
  path.unlink()
  found = comparison.difference(first, read(tmp_path / "second")[0], "ppo", ["open_drawer"])
  assert not any(row["paired"] for row in found.values())


def test_settings_that_differ_and_no_others(run, other):
  rows = comparison.settings(read(run, other), ["a", "b"])
  assert rows[0] == ["Setting", "a", "b"]
  assert {row[0] for row in rows[1:]} == {"tasks", "world_model.inverse_dynamics_weight", "ppo.iterations"}
  assert comparison.settings(read(run, run), ["a", "b"]) == [["Setting", "a", "b"]]


def test_folders_in_settings_lose_what_may_name_a_user(run, tmp_path, rng):
  made_up_run.write_run(tmp_path / "second", rng, data__calvin_path="/home/somebody/data/task_D_D")
  rows = comparison.settings(read(run, tmp_path / "second"), ["a", "b"])
  assert ["data.calvin_path", "(empty)", "…/task_D_D"] in rows


def test_world_models_with_other_horizons_keep_their_rows(run, other):
  path = other / "judge_world_model" / "judge.json"
  judge = json.loads(path.read_text())
  judge["horizons"] = [1, 20, 50]
  for errors in judge["models"][0]["inverse_dynamics"].values():
    del errors["linear"]  # as in runs of older versions
  path.write_text(json.dumps(judge))
  rows = {row[0]: row[1:] for row in comparison.build(read(run, other))["models"]}
  assert rows["action x: the same, linear"] == ["0.1250", "-", "-"]
  assert rows["static: PSNR, dB, 10 imagined"][1:] == ["-", "-"]
  assert rows["static: PSNR, dB, 20 imagined"][0] == "-" and rows["static: PSNR, dB, 20 imagined"][1] != "-"


def test_runs_that_cannot_be_compared(run, tmp_path, rng, capsys):
  made_up_run.write_run(tmp_path / "second", rng, ("close_drawer",))
  assert report_command.main([f"--workdir={run}", f"--compare={tmp_path / 'second'}"]) == 1
  error = capsys.readouterr().err
  assert "no task in common" in error and "first: open_drawer, turn_on_led" in error
  assert report_command.main([f"--workdir={run}", f"--compare={run}"]) == 1
  assert "with itself" in capsys.readouterr().err
  with pytest.raises(RunError, match="at most 8"):
    comparison.build(read(*[run] * 9))
  with pytest.raises(SystemExit):
    report_command.main([f"--workdir={run}", "--out=page.pdf"])


def test_names_are_as_short_as_tells_runs_apart(tmp_path, rng):
  for folder in ("seed1/wam", "seed2/wam", "seed2/base"):
    made_up_run.write_run(tmp_path / folder, rng)
  assert labels(read(tmp_path / "seed1/wam", tmp_path / "seed2/base")) == ["wam", "base"]
  assert labels(read(tmp_path / "seed1/wam", tmp_path / "seed2/wam")) == ["seed1/wam", "seed2/wam"]


def test_differences_as_text():
  assert page_parts.points(-0.0001) == "0.0" and page_parts.points(0.125) == "+12.5"
  assert page_parts.points(-0.02) == "&minus;2.0" and page_parts.points(None) == "&ndash;"
  assert page_parts.span_of(-0.004, 0.07, True) == "0 to +7"


def test_a_legend_that_charts_share_is_shown_once():
  chart = lambda title, names: {
    "title": title,
    "x_label": "update",
    "series": [{"name": name, "x": [0, 1], "y": [1.0, 2.0], "style": "s0"} for name in names],
  }
  charts = [chart(f"PPO: {i}", ("real", "imagined")) for i in range(3)] + [chart("PPO: 3", ("here", "there"))]
  text = page_parts.chart_groups(charts)
  assert text.count(">imagined</span>") == 1 and text.count(">there</span>") == 1
  assert text.count('<h3 class="group">PPO</h3>') == 1
