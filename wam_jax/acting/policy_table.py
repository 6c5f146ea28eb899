"""The policies of a run: what they are called, and which stage made them. No JAX here."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Row:
  """One policy.

  Attributes:
    name: in files, results and --which.
    label: by itself, as in a legend.
    heading: of a column.
    stage: that made it; empty: none, it is only measured.
    selected: what stage ppo selected it by, on the way; empty: nothing, it is the last one.
    card: how the card of packed policies calls it.
  """

  name: str
  label: str
  heading: str
  stage: str = ""
  selected: str = ""
  card: str = ""

  @property
  def in_text(self) -> str:
    """The heading inside a sentence."""
    return self.heading[0].lower() + self.heading[1:]


# Trained ones in the order in which they are looked for when none was named.
POLICIES = {
  row.name: row
  for row in (
    Row("ppo", "After PPO in imagination", "After PPO", "ppo", card="after PPO in imagination"),
    Row("cloned", "Cloned", "Cloned", "behaviour_cloning", card="cloned"),
    Row(
      "ppo_imagined",
      "PPO, selected without a simulator",
      "Best imagined",
      "ppo",
      "imagined",
      "after PPO, of each task the best in dreams",
    ),
    Row(
      "ppo_real",
      "PPO, selected in the simulator",
      "Best in simulator",
      "ppo",
      "real",
      "after PPO, of each task the best in the simulator",
    ),
    Row("expert", "Scripted expert", "Expert"),
    Row("random", "Random weights", "Random weights"),
  )
}
TRAINED = tuple(name for name, row in POLICIES.items() if row.stage)
SELECTED = {row.selected: name for name, row in POLICIES.items() if row.selected}  # what by -> policy
COMPARED = ("cloned", "ppo")  # policies whose difference is reported, before and after
