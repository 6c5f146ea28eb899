from __future__ import annotations

import json

import jax
import numpy as np

from wam_jax.nn.policies.diffusion import DiffusionPolicy
from wam_jax.running import ppo_monitor
from wam_jax.storage.saved_params import load_params
from wam_jax.training import ppo_actor

TASKS = ("open_drawer", "turn_on_led", "close_drawer")


def actor(value):
  return {"layer": {"kernel": np.full((3, 2), value, np.float32)}}


def kept(folder, by="imagined"):
  return load_params(folder / "selected" / by / "params")["layer"]["kernel"][:, 0].tolist()


def test_selection_keeps_the_earliest_best_of_each_task(tmp_path):
  selection = ppo_monitor.Selection(tmp_path, TASKS, 20)
  selection.offer("imagined", 0, np.array([0.5, 0.5, 0.5]), actor(0))
  selection.offer("imagined", 5, np.array([0.6, 0.5, 0.4]), actor(5))
  assert kept(tmp_path) == [5, 0, 0]
  # Another process goes on where this one was killed, and offers the same again.
  again = ppo_monitor.Selection(tmp_path, TASKS, 20)
  again.offer("imagined", 5, np.array([0.6, 0.5, 0.4]), actor(-1))
  assert kept(tmp_path) == [5, 0, 0]
  again.offer("imagined", 10, np.array([0.1, 0.9, 0.6]), actor(10))
  again.offer("real", 10, np.array([0.1, 0.2, 0.3]), actor(10))
  assert kept(tmp_path) == [5, 10, 10] and kept(tmp_path, "real") == [10, 10, 10]
  content = json.loads((tmp_path / ppo_monitor.SELECTION).read_text())
  assert content["first_start"] == 20
  assert content["selected"]["imagined"]["open_drawer"] == {"iteration": 5, "score": 0.6}
  assert content["selected"]["real"]["close_drawer"] == {"iteration": 10, "score": 0.3}


def test_best_by_other_episodes_does_not_count(tmp_path):
  """The number of evaluation's episodes, after which those that select begin, was changed in between."""
  before = ppo_monitor.Selection(tmp_path, TASKS, 20)
  before.offer("real", 0, np.array([0.9, 0.9, 0.9]), actor(0))
  before.offer("imagined", 0, np.array([0.9, 0.9, 0.9]), actor(0))
  after = ppo_monitor.Selection(tmp_path, TASKS, 40)
  after.offer("real", 5, np.array([0.1, 0.2, 0.3]), actor(5))
  after.offer("imagined", 5, np.array([0.1, 0.2, 0.3]), actor(5))
  assert kept(tmp_path, "real") == [5, 5, 5] and kept(tmp_path) == [0, 0, 0]
  content = json.loads((tmp_path / ppo_monitor.SELECTION).read_text())
  assert content["first_start"] == 40 and content["selected"]["real"]["open_drawer"]["score"] == 0.1


def test_divergence_from_the_cloned_policy_is_that_of_its_gaussians():
  """Between Gaussians of one spread the divergence is half the squared distance of their means."""
  policy = DiffusionPolicy(6, chunk=2, hidden=8, time_dim=4, denoising_steps=4, fine_tuned_steps=2)
  base = jax.jit(policy.init)(jax.random.key(0))
  tuned = jax.tree.map(lambda x: x, base)
  tuned["body"]["output"]["bias"] = base["body"]["output"]["bias"] + 0.05
  feature = 0.1 * jax.random.normal(jax.random.key(1), (4000, 6))
  kl = jax.jit(lambda params: ppo_actor.kl_to_cloned(policy, params, feature, jax.random.key(2)))
  assert kl({"base": base, "tuned": base}) == 0
  params, noise = {"base": base, "tuned": tuned}, policy.draw_noise(jax.random.key(2), (4000,))
  chain = jax.jit(policy.sample_chain)(params, feature, *noise)[1]
  log_prob = jax.jit(policy.log_prob)
  distance = []
  for t, k in ((1, 0), (0, 1)):
    next_x = chain[:, k + 1]
    # Both means and the spread from log-densities at two points: log N(a) - log N(b) is linear in the mean.
    std = float(np.maximum(policy.schedule.posterior_std[t], policy.min_log_prob_std))
    means = []
    for network in (base, tuned):
      at = lambda y, network=network, k=k: log_prob(network, feature, chain.at[:, k + 1].set(y))[:, k]
      slope = (at(next_x + 0.5) - at(next_x - 0.5)) * std**2
      means.append(np.asarray(next_x + slope))
    distance.append(np.square(means[0] - means[1]).mean() / (2 * std**2))
  np.testing.assert_allclose(kl(params), np.mean(distance), rtol=0.1)
