"""What is shown of work under way."""

from __future__ import annotations

import pytest

from wam_jax.host import progress


def test_speed_leaves_out_the_first_update_which_compiles(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
  pace = progress.Pace(10)
  assert pace.speed() == 0
  now[0] = 60.0
  pace.update(12)
  assert pace.speed() == 0  # no estimate is better than a wrong one
  for i in range(100):
    now[0] += 0.5 if i < 60 else 2.0
    pace.update(13 + i)
    if i < 60:
      assert pace.speed() == pytest.approx(2)
  assert pace.speed() == pytest.approx(0.5)  # lately


def test_chosen_metrics():
  found = progress.chosen(
    {
      "ppo/time/update": 1.0,
      "ppo/imagined_success": 0.5,
      "ppo/policy_loss": 2.0,
      "ppo/total/loss/total": 9.0,
      "ppo/open_drawer/policy_loss": 3.0,
      **{f"ppo/m{i}": 0.0 for i in range(4)},
    },
    6,
  )
  assert list(found.items())[:3] == [("total", 9.0), ("policy_loss", 2.0), ("imagined_success", 0.5)]
  assert list(found)[3:] == ["m0", "m1", "m2"]
