"""Speed of PPO in imagination and of cloning, beside the same arithmetic in plain PyTorch.

python benchmarks/policy.py                # full size, one thread, about ten minutes
python benchmarks/policy.py --parts=rollout,cloning
python benchmarks/policy.py --device=gpu   # a whole iteration, for one task and for eight at once

On a CPU everything runs in one thread on one core, the sides alternate, and times are medians of
CPU-seconds (wall in brackets). Sizes are those of the `paper` preset: features of 2048 numbers, 50
dreams x 18 chunks x 4 actions, 20 denoising steps of which 10 are tuned, 10 epochs.

The reference works the way DiWA and DPPO do: both networks run at every denoising step, the feature is
multiplied again at each, the regulariser's frozen chains are drawn again in every epoch. `PyTorch
lean` is the same without that repeated work, eager all the same. An epoch of theirs is timed and
counted `epochs` times. Without PyTorch only ours is measured.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

ON_GPU = any(argument.replace(" ", "=").endswith("gpu") for argument in sys.argv[1:])
if __name__ == "__main__" and not ON_GPU:  # before JAX starts its threads
  os.environ["JAX_PLATFORMS"] = "cpu"
  os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from wam_jax.config import default_config  # noqa: E402
from wam_jax.core import ppo as ppo_loss  # noqa: E402
from wam_jax.nn.classifier import SuccessClassifier  # noqa: E402
from wam_jax.nn.policies.diffusion import DiffusionPolicy  # noqa: E402
from wam_jax.nn.world_model import make_world_model  # noqa: E402
from wam_jax.training import behaviour_cloning as bc  # noqa: E402
from wam_jax.training import imagination, ppo  # noqa: E402
from wam_jax.training import state as train_state  # noqa: E402
from wam_jax.training import world_model as wm  # noqa: E402
from wam_jax.types import Takes  # noqa: E402

try:
  if "--memory" in sys.argv:
    raise ImportError  # ours alone
  import torch
  import torch.nn.functional as F
except ImportError:
  torch = None

PARTS = ("rollout", "update", "iteration", "cloning", "memory")
STARTS, DEMO_FRAMES = 200, 3000
CLONING_STEPS = 20  # of ours per call


def random_parameters(model: Any, key: jax.Array) -> Any:
  """Parameters of the world model's shapes, without compiling its initialisation."""
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(lambda k: wm.init_params(model, k), key)

  def draw(path: Any, like: Any) -> jax.Array:
    if path[-1].key == "kernel":
      scale = np.float32(np.prod(like.shape[:-1]) ** -0.5)
      return jnp.asarray(scale * rng.standard_normal(like.shape, np.float32))
    return jnp.full(like.shape, float(path[-1].key == "scale"))

  return jax.tree_util.tree_map_with_path(draw, shapes)


class Ours:
  """Everything of one task, with random parameters; at full size, or as a config has it."""

  def __init__(self, config: Any = None, **changes: Any):
    if config is None:
      config = default_config()
      config.world_model.update(compute_dtype="float32")
    self.config = config
    config.ppo.update(critic_warmup_iterations=0, target_kl=1e9, **changes)
    model = make_world_model(config.world_model)
    b = config.behaviour_cloning
    self.policy = DiffusionPolicy(
      feature_size=model.feature_size,
      chunk=b.chunk,
      hidden=b.hidden,
      blocks=b.blocks,
      time_dim=b.time_dim,
      denoising_steps=b.denoising_steps,
      fine_tuned_steps=config.ppo.fine_tuned_steps,
      min_sampling_std=config.ppo.min_sampling_std,
      min_log_prob_std=config.ppo.min_log_prob_std,
    )
    self.classifier = SuccessClassifier(
      model.feature_size, tuple(config.classifier.embed), config.classifier.hidden
    )
    chunks = config.ppo.horizon_steps // b.chunk
    world = imagination.make_world(model)
    self.dreamer = imagination.Dreamer(world, self.policy, self.classifier, chunks)
    keys = jax.random.split(jax.random.key(0), 6)
    self.world_params = random_parameters(model, keys[0])
    code = jax.random.randint(keys[1], (STARTS, model.stoch), 0, model.classes)
    deter = jax.random.normal(keys[2], (STARTS, model.deter)).clip(-1, 1)
    feature = jnp.concatenate([deter, jax.nn.one_hot(code, model.classes).reshape(STARTS, -1)], -1)
    network = self.classifier.init(keys[3])
    self.frozen = ppo.Frozen(
      base=self.policy.init(keys[4]),
      classifier={"network": network, "threshold": jnp.float32(0.5)},
      starts=imagination.StartFrames(feature, jnp.int32(STARTS)),
    )
    self.state = ppo.init_state(self.policy, config.ppo, self.frozen, keys[5])
    self.key = jax.random.key(1)

  def next_key(self) -> jax.Array:
    self.key, key = jax.random.split(self.key)
    return key

  def rollout(self) -> Callable[[], Any]:
    """The rollout, with values."""
    roll = jax.jit(ppo.make_rollout(self.dreamer, self.config.ppo))
    return lambda: jax.block_until_ready(roll(self.state, self.frozen, self.world_params, self.next_key()))

  def update(self, dreams: Any, rollout: Any) -> Callable[[], None]:
    """Advantages, frozen chains, and all epochs."""
    update = jax.jit(ppo.make_update(self.policy, self.config.ppo))

    def call() -> None:
      keys = self.next_key(), self.next_key()
      out = jax.block_until_ready(update(self.state, self.frozen, dreams, rollout, *keys))
      assert np.isfinite(out[1]["policy_loss"])

    return call

  def iteration(self) -> Callable[[], None]:
    """A whole iteration, as the stage compiles it."""
    iterate = ppo.make_iteration(self.dreamer, self.config.ppo)
    compiled = jax.jit(iterate)

    def call() -> None:
      self.state, metrics = compiled(self.state, self.frozen, self.world_params, self.next_key())
      jax.block_until_ready((self.state, metrics))

    return call

  def iteration_of_tasks(self, tasks: int) -> Callable[[], None]:
    """A whole iteration of several tasks in one program, as on an accelerator."""
    iterate = ppo.make_iteration(self.dreamer, self.config.ppo)
    mapped = jax.jit(jax.vmap(iterate, in_axes=(0, 0, None, 0)))
    stack = lambda tree: jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x)[None], tasks, 0), tree)
    state, frozen = stack(self.state), stack(self.frozen)
    keys = jax.random.split(self.next_key(), tasks)
    return lambda: jax.block_until_ready(mapped(state, frozen, self.world_params, keys))

  def cloning(self) -> Callable[[], None]:
    """CLONING_STEPS gradient steps with their batches, optimiser and average."""
    b = self.config.behaviour_cloning
    rng = np.random.default_rng(0)
    feature = rng.normal(size=(1, 50, DEMO_FRAMES // 50, self.policy.feature_size)).astype(np.float32)
    action = rng.uniform(-1, 1, (*feature.shape[:3], 7)).astype(np.float32)
    data = jax.tree.map(
      lambda x: x[0], bc.make_data(Takes(feature, action, None, np.ones(feature.shape[:3], bool)), b.chunk)
    )
    optimizer = train_state.make_optimizer(b.learning_rate, b.updates, weight_decay=b.weight_decay)
    state = train_state.make_train_state(self.frozen.base, optimizer, ema=True)
    update = jax.jit(bc.make_update(self.policy, optimizer, b.batch_size, b.ema_decay))
    return lambda: jax.block_until_ready(update(state, data, self.next_key(), jnp.int32(CLONING_STEPS)))


class Reference:
  """The same work in eager PyTorch, written from the formulas.

  Args:
    ours: sizes, and the parameters of the policy.
    lean: leave the repeated work out.
    compiled: the policy's network by `torch.compile`.
  """

  def __init__(self, ours: Ours, lean: bool, compiled: bool = False):
    torch.manual_seed(0)
    self.lean = lean
    self.c, self.b, self.w = ours.config.ppo, ours.config.behaviour_cloning, ours.config.world_model
    self.steps, self.tuned_steps = self.b.denoising_steps, self.c.fine_tuned_steps
    tables = ours.policy.schedule
    self.tables = {
      name: torch.tensor(np.array(getattr(tables, name))) for name in tables.__dataclass_fields__
    }
    self.base, self.tuned = (self._network(ours.frozen.base) for _ in range(2))
    for parameter in self.base.parameters():
      parameter.requires_grad_(False)
    self.critic = torch.nn.Sequential(
      torch.nn.Linear(ours.policy.feature_size, self.c.value_hidden[0]),
      _Residual(self.c.value_hidden[0]),
      torch.nn.Linear(self.c.value_hidden[0], 1),
    )
    self.actor_optimizer = torch.optim.AdamW(
      self.tuned.parameters(), self.c.actor_learning_rate, weight_decay=self.c.weight_decay
    )
    self.critic_optimizer = torch.optim.AdamW(
      self.critic.parameters(), self.c.critic_learning_rate, weight_decay=self.c.weight_decay
    )
    self.world = self._world()
    self.classifier = self._classifier(ours)
    self.starts = torch.tensor(np.array(ours.frozen.starts.feature))
    if compiled:
      self.eps = torch.compile(self.eps)  # type: ignore[method-assign]

  def iteration(self) -> None:
    """A rollout and all epochs of its regularised update."""
    self.begin_update(True, self.rollout())
    for _ in range(self.c.epochs):
      self.epoch(True)

  def _network(self, params: Any) -> Any:
    linear = torch.nn.Linear
    b, hidden = self.b, self.b.hidden
    size = b.chunk * 7
    net = torch.nn.ModuleDict(
      {
        "time": torch.nn.Sequential(
          linear(b.time_dim, 2 * b.time_dim), torch.nn.Mish(), linear(2 * b.time_dim, b.time_dim)
        ),
        "first": linear(size + b.time_dim + params["feature_in"]["kernel"].shape[0], hidden),
        "body": _Residual(hidden),
        "output": linear(hidden, size),
      }
    )
    kernels = [params[name]["kernel"] for name in ("chunk_in", "time_in", "feature_in")]
    body = params["body"]
    pairs = [
      (net["first"], {"kernel": np.concatenate(kernels), "bias": params["feature_in"]["bias"]}),
      (net["time"][0], params["time_first"]),
      (net["time"][2], params["time_second"]),
      (net["body"].first, body["block0_first"]),
      (net["body"].second, body["block0_second"]),
      (net["output"], body["output"]),
    ]
    with torch.no_grad():
      for layer, values in pairs:
        layer.weight.copy_(torch.tensor(np.array(values["kernel"]).T))
        layer.bias.copy_(torch.tensor(np.array(values["bias"])))
    return net

  def _world(self) -> Any:
    w, linear = self.w, torch.nn.Linear
    code = w.stoch * w.classes
    norm = lambda: torch.nn.Sequential(torch.nn.LayerNorm(w.hidden, eps=w.norm_eps), torch.nn.ELU())
    return torch.nn.ModuleDict(
      {
        "from_stoch": linear(code, w.hidden),
        "from_action": linear(7, w.hidden, bias=False),
        "norm": norm(),
        "gru": torch.nn.GRUCell(w.hidden, w.deter),
        "prior": torch.nn.Sequential(linear(w.deter, w.hidden), norm(), linear(w.hidden, code)),
      }
    )

  def _classifier(self, ours: Ours) -> Any:
    widths = [ours.policy.feature_size, *ours.classifier.embed, ours.classifier.hidden]
    layers: list[Any] = []
    for a, b in itertools.pairwise(widths):
      layers += [torch.nn.Linear(a, b), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(widths[-1], 2))

  def eps(self, net: Any, x: Any, t: Any, feature: Any) -> Any:
    """Noise of [R, 28] at steps t [R]. `feature` is [R, F], or with `lean` its product [R, hidden]."""
    half = self.b.time_dim // 2
    angle = t[:, None] * torch.exp(torch.arange(half) * -(np.log(1e4) / (half - 1)))
    time_part = net["time"](torch.cat([angle.sin(), angle.cos()], -1))
    if self.lean:
      inputs = torch.cat([x, time_part], -1)
      hidden = F.linear(inputs, net["first"].weight[:, : inputs.shape[-1]]) + feature
    else:
      hidden = net["first"](torch.cat([x, time_part, feature], -1))
    return net["output"](net["body"](hidden))

  def condition(self, net: Any, feature: Any) -> Any:
    if not self.lean:
      return feature
    return F.linear(feature, net["first"].weight[:, -feature.shape[-1] :], net["first"].bias)

  def both_eps(self, net: Any, x: Any, t: Any, feature: Any, frozen: Any) -> Any:
    """As DPPO: the frozen network for all rows, then `net` for those of tuned steps."""
    with torch.no_grad():
      noise = self.eps(self.base, x, t, frozen)
    rows = torch.nonzero(t < self.tuned_steps)[:, 0]
    if len(rows):
      noise = noise.clone()
      noise[rows] = self.eps(net, x[rows], t[rows], feature[rows])
    return noise

  def mean_std(self, net: Any, x: Any, t: Any, feature: Any, frozen: Any, floor: float) -> tuple[Any, Any]:
    if not self.lean:
      noise = self.both_eps(net, x, t, feature, frozen)
    elif int(t[0]) >= self.tuned_steps:
      noise = self.eps(self.base, x, t, frozen)
    else:
      noise = self.eps(net, x, t, feature)
    at = lambda name: self.tables[name][t][:, None]
    clean = (at("sqrt_recip_alpha_bar") * x - at("sqrt_recipm1_alpha_bar") * noise).clamp(-1, 1)
    mean = at("posterior_x0") * clean + at("posterior_xt") * x
    return mean, at("posterior_std").clamp(min=floor)

  @torch.no_grad() if torch else lambda f: f
  def sample(self, net: Any, feature: Any) -> tuple[Any, Any]:
    """Chunks [R, 28] and chains [R, K'+1, 28]."""
    frozen = self.condition(self.base, feature)
    own = frozen if net is self.base else self.condition(net, feature)
    x = torch.randn(len(feature), self.b.chunk * 7)
    chain = []
    for i in reversed(range(self.steps)):
      if i == self.tuned_steps - 1:
        chain.append(x)
      t = torch.full((len(x),), i)
      mean, std = self.mean_std(net, x, t, own, frozen, self.c.min_sampling_std)
      x = mean + std * torch.randn_like(x).clamp(-3, 3)
      if i < self.tuned_steps:
        chain.append(x)
    return x, torch.stack(chain, 1)

  def log_prob(self, feature: Any, chain: Any) -> Any:
    """[R, K'], clamped and averaged, under the network being tuned."""
    rows, steps = len(feature), self.tuned_steps
    t = torch.arange(steps - 1, -1, -1).repeat(rows)
    repeated = lambda x: x[:, None].expand(rows, steps, x.shape[-1]).reshape(rows * steps, -1)
    own = repeated(self.condition(self.tuned, feature))
    x, x_next = chain[:, :-1].flatten(0, 1), chain[:, 1:].flatten(0, 1)
    mean, std = self.mean_std(self.tuned, x, t, own, own, self.c.min_log_prob_std)
    value = -0.5 * ((x_next - mean) / std).square() - std.log() - 0.5 * np.log(2 * np.pi)
    return value.clamp(self.c.log_prob_min, self.c.log_prob_max).mean(-1).view(rows, steps)

  @torch.no_grad() if torch else lambda f: f
  def rollout(self) -> dict[str, Any]:
    """Dreams x chunks, prior steps in a loop."""
    c, w = self.c, self.w
    draw = lambda: self.starts[torch.randint(0, len(self.starts), (c.dreams,))]
    feature, count = draw(), np.zeros(c.dreams, int)
    out: dict[str, list[Any]] = {name: [] for name in ("feature", "chain", "reward", "done")}
    for _ in range(c.chunks_per_iteration):
      chunk, chain = self.sample(self.tuned, feature)
      actions = chunk.view(c.dreams, -1, 7).cpu().numpy().copy()  # over to an environment and back
      actions[..., :6] = actions[..., :6].clip(-1, 1)
      actions[..., 6] = np.where(actions[..., 6] < 0, -1, 1)
      h, z = feature[:, : w.deter], feature[:, w.deter :]
      for a in torch.as_tensor(actions).unbind(1):
        h = self.world["gru"](
          self.world["norm"](self.world["from_stoch"](z) + self.world["from_action"](a)), h
        )
        logits = self.world["prior"](h).view(c.dreams, w.stoch, w.classes)
        noise = -torch.log(-torch.log(torch.rand_like(logits).clamp(1e-20, 1 - 1e-7)))
        z = F.one_hot((logits + noise).argmax(-1), w.classes).float().flatten(1)
      new = torch.cat([h, z], -1)
      margin = self.classifier(new)
      success = (margin[:, 1] - margin[:, 0] > 0.5).cpu().numpy()
      count += 1
      done = success | (count >= c.horizon_steps // self.b.chunk)
      count[done] = 0
      for name, value in zip(out, (feature, chain, success, done), strict=True):
        out[name].append(value)
      feature = torch.where(torch.as_tensor(done)[:, None], draw(), new)
    return out

  @torch.no_grad() if torch else lambda f: f
  def begin_update(self, regularised: bool, rollout: dict[str, Any]) -> None:
    """Values, advantages, old log-probabilities; with `lean`, the frozen chains."""
    self.feature, self.chain = (torch.cat(rollout[name]) for name in ("feature", "chain"))
    value = self.critic(self.feature)[:, 0].view(self.c.chunks_per_iteration, -1)
    reward, done = (torch.as_tensor(np.stack(rollout[name])).float() for name in ("reward", "done"))
    advantage, carry = torch.zeros_like(value), torch.zeros(self.c.dreams)
    following = torch.cat([value[1:], value[-1:]])
    for i in reversed(range(len(value))):
      delta = reward[i] + self.c.gamma * following[i] * (1 - done[i]) - value[i]
      carry = delta + self.c.gamma * self.c.gae_lambda * (1 - done[i]) * carry
      advantage[i] = carry
    self.target = (advantage + value).flatten()
    self.advantage = ((advantage - advantage.mean()) / (advantage.std() + 1e-8)).flatten()
    self.old = self.log_prob(self.feature, self.chain)
    if self.lean and regularised:
      self.frozen_chain = self.sample(self.base, self.feature)[1]

  def epoch(self, regularised: bool) -> None:
    """One epoch of one minibatch."""
    c, k = self.c, torch.arange(self.tuned_steps)
    self.actor_optimizer.zero_grad(set_to_none=True)
    self.critic_optimizer.zero_grad(set_to_none=True)
    log_ratio = self.log_prob(self.feature, self.chain) - self.old
    ratio = log_ratio.exp()
    grown = torch.expm1(c.clip_rate * k / (self.tuned_steps - 1)) / np.expm1(c.clip_rate)
    clip = c.clip_min + (c.clip_max - c.clip_min) * grown
    advantage = self.advantage[:, None] * c.denoising_discount ** k.flip(0)
    clipped = torch.minimum(torch.maximum(ratio, 1 - clip), 1 + clip)
    loss = torch.maximum(-advantage * ratio, -advantage * clipped).mean()
    if regularised:
      chain = self.frozen_chain if self.lean else self.sample(self.base, self.feature)[1]
      loss = loss - c.bc_weight * self.log_prob(self.feature, chain).mean()
    value = self.critic(self.feature)[:, 0]
    (loss + c.value_weight * 0.5 * (value - self.target).square().mean()).backward()
    self.actor_optimizer.step()
    self.critic_optimizer.step()

  def cloning(self) -> Callable[[], None]:
    """One gradient step, with its batch, optimiser and average."""
    feature = torch.randn(DEMO_FRAMES, self.tuned["first"].in_features - 7 * self.b.chunk - self.b.time_dim)
    chunks = torch.rand(DEMO_FRAMES, 7 * self.b.chunk) * 2 - 1
    parameters = list(self.tuned.parameters())
    average = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, self.b.learning_rate, weight_decay=self.b.weight_decay)

    def step() -> None:
      pick = torch.randint(0, DEMO_FRAMES, (self.b.batch_size,))
      t, noise = torch.randint(0, self.steps, pick.shape), torch.randn(len(pick), chunks.shape[-1])
      at = lambda name: self.tables[name][t][:, None]
      x = at("sqrt_alpha_bar") * chunks[pick] + at("sqrt_one_minus_alpha_bar") * noise
      optimizer.zero_grad(set_to_none=True)
      predicted = self.eps(self.tuned, x, t, self.condition(self.tuned, feature[pick]))
      (predicted - noise).square().mean().backward()
      optimizer.step()
      with torch.no_grad():
        torch._foreach_lerp_(average, parameters, 1 - self.b.ema_decay)

    return step

  def check(self, ours: Ours) -> None:
    """The reference computes what ours does: log-probabilities of the same chains."""
    feature = self.starts[:8]
    chain = self.sample(self.tuned, feature)[1]
    with torch.no_grad():
      theirs = self.log_prob(feature, chain).cpu().numpy()
    shaped = jnp.asarray(chain.cpu().numpy()).reshape(*chain.shape[:2], self.b.chunk, 7)
    own = ours.policy.log_prob(ours.frozen.base, jnp.asarray(feature.cpu().numpy()), shaped)
    bounds = self.c.log_prob_min, self.c.log_prob_max
    np.testing.assert_allclose(theirs, ppo_loss.mean_log_prob(own, *bounds), atol=2e-3)


if torch:

  class _Residual(torch.nn.Module):
    """One pre-activation residual block of two layers."""

    def __init__(self, size: int):
      super().__init__()
      self.first, self.second = torch.nn.Linear(size, size), torch.nn.Linear(size, size)

    def forward(self, x: Any) -> Any:
      return x + self.second(F.mish(self.first(F.mish(x))))


def timed(function: Callable[[], Any]) -> tuple[float, float]:
  """CPU-seconds and wall seconds of one call."""
  wall, cpu = time.perf_counter(), time.process_time()
  function()
  return time.process_time() - cpu, time.perf_counter() - wall


Times = list[tuple[float, float]]


def alternate(sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, tuple[float, float]]:
  """Medians of CPU and wall seconds of each side, called in turns after one call that does not count."""
  times: dict[str, Times] = {name: [] for name in sides}
  for function in sides.values():
    function()
  for _ in range(repeats):
    for name, function in sides.items():
      times[name].append(timed(function))
  return {name: _median(t) for name, t in times.items()}


def _median(times: Times) -> tuple[float, float]:
  cpu, wall = (statistics.median(x) for x in zip(*times, strict=True))
  return cpu, wall


def show(what: str, medians: dict[str, tuple[float, float]], unit: float = 1.0) -> None:
  """Prints one line per side; the ratio is of ours."""
  name = "ms" if unit == 1e3 else "s"
  print(what)
  own = medians["wam_jax"][0]
  for side, (cpu, wall) in medians.items():
    ratio = "" if side == "wam_jax" else f"; wam_jax is {cpu / own:.2f} times as fast"
    print(f"  {side:13s} {cpu * unit:7.2f} CPU-{name} ({wall * unit:.2f}){ratio}", flush=True)


def on_cpu(parts: list[str], repeats: int) -> None:
  """Prints the medians of all parts, side by side."""
  ours = Ours()
  theirs: dict[str, Any] = {}
  if torch:
    theirs = {"PyTorch": Reference(ours, lean=False), "PyTorch lean": Reference(ours, lean=True)}
    for reference in theirs.values():
      reference.check(ours)
  if "rollout" in parts:
    sides = {"wam_jax": ours.rollout()} | {name: r.rollout for name, r in theirs.items()}
    show("imagined rollout with values, 50 dreams x 18 chunks x 4 actions", alternate(sides, repeats))
  if "update" in parts:
    for weight in (ours.config.ppo.bc_weight, 0.0):
      compare_updates(ours, weight, theirs, repeats)
  if "iteration" in parts:
    iteration = alternate({"wam_jax": ours.iteration()}, repeats)
    show("PPO iteration, rollout and regularised update in one program", iteration)
  if "cloning" in parts:
    step = ours.cloning()
    sides = {"wam_jax": step} | {name: _times(CLONING_STEPS, r.cloning()) for name, r in theirs.items()}
    medians = alternate(sides, repeats)
    show(
      "cloning step, batch 256",
      {name: (cpu / CLONING_STEPS, wall / CLONING_STEPS) for name, (cpu, wall) in medians.items()},
      1e3,
    )
  if "memory" in parts:
    command = [sys.executable, __file__, "--memory"]
    print(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


def compare_updates(ours: Ours, weight: float, theirs: dict[str, Any], repeats: int) -> None:
  """Prints the medians of one whole update."""
  full = Ours(bc_weight=weight)
  dreams, rollout, _ = ours.rollout()()
  sides = {"wam_jax": full.update(dreams, rollout)}
  regularised = weight > 0
  for name, r in theirs.items():
    sides[f"{name}/begin"] = functools.partial(r.begin_update, regularised, r.rollout())
    sides[f"{name}/epoch"] = functools.partial(r.epoch, regularised)
  medians = alternate(sides, repeats)
  total = {"wam_jax": medians["wam_jax"]}
  epochs = ours.config.ppo.epochs
  for name in theirs:
    begin, epoch = medians[f"{name}/begin"], medians[f"{name}/epoch"]
    total[name] = (begin[0] + epochs * epoch[0], begin[1] + epochs * epoch[1])
  with_or_without = "with" if regularised else "without"
  show(f"PPO update {with_or_without} regulariser, 900 chunks x 10 denoising steps, {epochs} epochs", total)


def _times(number: int, function: Callable[[], Any]) -> Callable[[], None]:
  def call() -> None:
    for _ in range(number):
      function()

  return call


def memory() -> None:
  """Prints the peak memory of a process that runs iterations and nothing else."""
  ours = Ours()
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  iterate = ours.iteration()
  for _ in range(2):
    iterate()
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  print(f"peak memory of PPO iterations: {peak / 2**20:.2f} GiB, {before / 2**20:.2f} GiB before the first")


def on_gpu(repeats: int) -> None:
  """Prints wall time per iteration, of one task and of eight in one program."""
  ours = Ours()
  for tasks in (1, 8):
    call = ours.iteration_of_tasks(tasks)
    _, first = timed(call)
    wall = _median([timed(call) for _ in range(repeats)])[1]
    print(f"PPO iteration, {tasks} tasks: {wall:.3f} s; first call {first:.0f} s", flush=True)
  iterations = ours.config.ppo.iterations
  print(f"{iterations} iterations of 8 tasks: {iterations * wall / 60:.1f} minutes")


def main() -> None:
  """Prints everything."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
  parser.add_argument("--parts", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
  parser.add_argument("--repeats", type=int, default=5, help="calls per median")
  parser.add_argument("--memory", action="store_true", help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  parts = arguments.parts.split(",")
  unknown = set(parts) - set(PARTS)
  if unknown:
    parser.error(f"unknown parts {sorted(unknown)}; there are {', '.join(PARTS)}")
  if arguments.memory:
    memory()
    return
  if arguments.device == "gpu":
    if jax.default_backend() != "gpu":
      parser.error(f"JAX finds no GPU here, only {jax.default_backend()}")
    on_gpu(arguments.repeats)
    return
  if torch:
    torch.set_num_threads(1)
  else:
    print("PyTorch is not installed (pip install torch): measuring wam_jax alone")
  on_cpu(parts, arguments.repeats)


if __name__ == "__main__":
  main()
