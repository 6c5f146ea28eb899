"""Speed of one world-model update, beside the same arithmetic in plain PyTorch.

python benchmarks/world_model.py                        # both sizes, one thread, a few minutes
python benchmarks/world_model.py --sizes=wide --updates=2  # the published batch size, 50 windows, of 8 frames
python benchmarks/world_model.py --sizes= --start       # only compile time and start of a second process
python benchmarks/world_model.py --device=gpu           # batch 50 x 50, ours in float32 and bfloat16

On a CPU everything runs in one thread on one core, the two alternate, and times are medians of
CPU-seconds (wall in brackets). Ours draws its batch from device-resident frames inside the update; the
reference gets its batch for nothing. Without PyTorch only ours is measured.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
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
from wam_jax.data import windows  # noqa: E402
from wam_jax.embodiment import ROBOT_OBS  # noqa: E402
from wam_jax.nn.world_model import make_world_model  # noqa: E402
from wam_jax.training import state as train_state  # noqa: E402
from wam_jax.training import world_model as wm  # noqa: E402
from wam_jax.training import world_model_training as wm_training  # noqa: E402

try:
  import torch
  import torch.nn.functional as F
except ImportError:
  torch = None

SIZES = {
  "full": {"batch_size": 4, "sequence_length": 16},
  "wide": {"batch_size": 50, "sequence_length": 8},
  "small": {
    "batch_size": 16,
    "sequence_length": 32,
    "depth": 16,
    "embed": 512,
    "deter": 256,
    "stoch": 16,
    "classes": 16,
    "hidden": 256,
  },
}
FRAMES = 2000
CAMERAS = 2


def make_config(size: str, **changes: Any) -> Any:
  """`config.world_model` of the published model, with few or many windows, or of a small one."""
  config = default_config().world_model
  config.update(SIZES[size])
  config.update(compute_dtype="float32", updates=1000)
  config.update(changes)
  return config


def make_store(frames: int) -> windows.FrameStore:
  """Random frames in episodes of 500."""
  rng = np.random.default_rng(0)
  picture = lambda: jnp.asarray(rng.integers(0, 256, (frames, 64 * 64 * 3), np.uint8))
  action = jnp.asarray(rng.uniform(-1, 1, (frames, 7)), jnp.float32)
  return windows.FrameStore(
    pictures={"rgb_static": picture(), "rgb_gripper": picture()},
    robot_obs=jnp.zeros((frames, ROBOT_OBS)),
    action=action,
    prev_action=jnp.roll(action, 1, 0),
    is_first=jnp.arange(frames) % 500 == 0,
  )


class Ours:
  """Our update with its state; calling it makes `num` updates."""

  def __init__(self, config: Any, num: int, frames: int = FRAMES):
    self.num, self.store, self.key = num, make_store(frames), jax.random.key(0)
    model = make_world_model(config)
    params = wm.init_params(model, jax.random.key(1))
    self.parameters = sum(x.size for x in jax.tree.leaves(params))
    optimizer = wm_training.make_optimizer(config, params)
    sampler = windows.Sampler(frames, config.batch_size, config.sequence_length)
    self.sample = lambda store, key, step, i: sampler.sample(store, key, step)
    self.update = wm_training.make_update(model, config, optimizer, self.sample)
    self.state = train_state.make_train_state(params, optimizer)

  def __call__(self) -> None:
    self.key, key = jax.random.split(self.key)
    self.state, metrics = self.update(self.state, self.store, key, self.num)
    jax.block_until_ready((self.state, metrics))
    assert np.isfinite(metrics["loss/total"]).all()

  def only_sample(self) -> Callable[[], None]:
    """The drawing of `num` batches alone, in one program like the updates."""

    def draw(store: windows.FrameStore, key: jax.Array) -> Any:
      first = self.sample(store, key, 0, 0)
      keys = jax.random.split(key, self.num)
      return jax.lax.scan(lambda _, k: (self.sample(store, k, 0, 0), None), first, keys)[0]

    compiled = jax.jit(draw)
    return lambda: jax.block_until_ready(compiled(self.store, self.key))


def torch_reference(
  config: Any, device: str = "cpu", compiled: bool = False
) -> tuple[Callable[[], None], int]:
  """The same update in PyTorch, written from the formulas: one call is one update; its parameters.

  Args:
    config: `config.world_model`; with bfloat16 the products are in it too (`torch.autocast`).
    device: of PyTorch.
    compiled: the loss by `torch.compile`, else eager.
  """
  with torch.device(device):
    update, parameters = _torch_update(config, device, compiled)

  def on_device() -> None:
    with torch.device(device):
      update()
    if device != "cpu":
      torch.cuda.synchronize()

  return on_device, parameters


def _torch_update(config: Any, device: str, compiled: bool) -> tuple[Callable[[], None], int]:
  nn = torch.nn
  d, deter, hidden = config.depth, config.deter, config.hidden
  stoch, classes, embed = config.stoch, config.classes, config.embed
  widths = [3, d, 2 * d, 4 * d, 8 * d]

  def norm(size: int) -> Any:
    return nn.Sequential(nn.LayerNorm(size, eps=config.norm_eps), nn.ELU())

  def encoder() -> Any:
    layers = [[nn.Conv2d(a, b, 4, 2), nn.ELU()] for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*itertools.chain(*layers), nn.Flatten())

  def decoder() -> Any:
    sizes = zip([32 * d, 4 * d, 2 * d, d], [4 * d, 2 * d, d, 3], [5, 5, 6, 6], strict=True)
    layers = [[nn.ConvTranspose2d(a, b, k, 2), nn.ELU()] for a, b, k in sizes]
    return nn.Sequential(*list(itertools.chain(*layers))[:-1])

  head = config.inverse_dynamics_hidden
  net = nn.ModuleDict(
    {
      "encoders": nn.ModuleList([encoder() for _ in range(CAMERAS)]),
      "fuse": nn.Sequential(nn.Linear(CAMERAS * 32 * d, embed), norm(embed)),
      "from_stoch": nn.Linear(stoch * classes, hidden),
      "from_action": nn.Linear(7, hidden, bias=False),
      "input_norm": norm(hidden),
      "gru": nn.GRUCell(hidden, deter),
      "prior": nn.Sequential(nn.Linear(deter, hidden), norm(hidden), nn.Linear(hidden, stoch * classes)),
      "posterior_deter": nn.Linear(deter, hidden),
      "posterior_embed": nn.Linear(embed, hidden, bias=False),
      "posterior": nn.Sequential(norm(hidden), nn.Linear(hidden, stoch * classes)),
      "shared": nn.Linear(deter + stoch * classes, 32 * d),
      "decoders": nn.ModuleList([decoder() for _ in range(CAMERAS)]),
      "inverse_dynamics": nn.Sequential(
        *(nn.Linear(2 * embed, head), nn.ELU(), nn.Linear(head, head), nn.ELU(), nn.Linear(head, 7))
      ),
    }
  )
  optimizer = torch.optim.AdamW(
    net.parameters(), config.learning_rate, eps=config.adam_eps, weight_decay=config.weight_decay
  )
  batch, length = config.batch_size, config.sequence_length
  torch.manual_seed(0)
  pictures = torch.randint(0, 256, (CAMERAS, batch * length, 3, 64, 64), dtype=torch.uint8)
  action = torch.rand(batch, length, 7) * 2 - 1
  previous = action.roll(1, 1)
  keep = torch.ones(length, batch, 1)
  keep[0] = 0

  def kl(p: Any, q: Any) -> Any:
    return (p.exp() * (p - q)).sum((-1, -2)).mean()

  def loss() -> Any:
    target = pictures.float() / 127.5 - 1
    parts = [encode(x) for encode, x in zip(net["encoders"], target, strict=True)]
    e = net["fuse"](torch.cat(parts, -1)).view(batch, length, embed)
    from_embed, from_action = net["posterior_embed"](e), net["from_action"](previous)
    h, z = torch.zeros(batch, deter), torch.zeros(batch, stoch * classes)
    features, posterior = [], []
    for t in range(length):
      h, z = h * keep[t], z * keep[t]
      h = net["gru"](net["input_norm"](net["from_stoch"](z) + from_action[:, t]), h)
      logits = net["posterior"](net["posterior_deter"](h) + from_embed[:, t]).view(batch, stoch, classes)
      log_probs = logits.log_softmax(-1)
      noise = -torch.log(-torch.log(torch.rand_like(logits).clamp(1e-20, 1 - 1e-7)))
      sample = F.one_hot((logits + noise).argmax(-1), classes).float()
      probs = log_probs.exp()
      z = (sample + probs - probs.detach()).flatten(1)
      features.append(torch.cat([h, z], -1))
      posterior.append(log_probs)
    feature, q = torch.stack(features, 1), torch.stack(posterior, 1)
    p = net["prior"](feature[..., :deter]).view(q.shape).log_softmax(-1)
    balance = config.kl_balance
    kl_loss = (1 - balance) * kl(q, p.detach()) + balance * kl(q.detach(), p)
    shared = net["shared"](feature.flatten(0, 1))[:, :, None, None]
    decoded = [decode(shared) for decode in net["decoders"]]
    errors = [(x - y).square().sum() for x, y in zip(decoded, target, strict=True)]
    image_loss = 0.5 * sum(errors) / (batch * length)
    predicted = net["inverse_dynamics"](torch.cat([e[:, :-1], e[:, 1:]], -1))
    action_loss = (predicted - action[:, :-1]).square().mean()
    weights = config.image_weight, config.kl_weight, config.inverse_dynamics_weight
    return sum(w * x for w, x in zip(weights, (image_loss, kl_loss, action_loss), strict=True))

  of_batch = torch.compile(loss) if compiled else loss
  narrow = torch.autocast(device, torch.bfloat16, enabled=config.compute_dtype == "bfloat16")

  def update() -> None:
    optimizer.zero_grad(set_to_none=True)
    with narrow:
      total = of_batch()
    total.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), config.grad_clip)
    optimizer.step()

  return update, sum(x.numel() for x in net.parameters())


def timed(function: Callable[[], None]) -> tuple[float, float]:
  """CPU-seconds and wall seconds of one call."""
  wall, cpu = time.perf_counter(), time.process_time()
  function()
  return time.process_time() - cpu, time.perf_counter() - wall


def median(times: list[tuple[float, float]], share: int = 1) -> tuple[float, float]:
  """Medians of CPU and wall seconds, divided by the updates of a call."""
  cpu, wall = (statistics.median(x) / share for x in zip(*times, strict=True))
  return cpu, wall


def compare(size: str, repeats: int, num: int) -> None:
  """Prints the medians of one size on a CPU, the two side by side."""
  config = make_config(size)
  frames = config.batch_size * config.sequence_length
  ours = Ours(config, num)
  begin = time.perf_counter()
  ours()
  print(f"{size}: {ours.parameters / 1e6:.1f} M parameters, batch {config.batch_size} x", end=" ")
  print(
    f"{config.sequence_length}; first call {time.perf_counter() - begin:.1f} s, compilation and {num} updates"
  )
  theirs, parameters = torch_reference(config) if torch else (None, 0)
  if theirs:
    theirs()
  ours_times, theirs_times, rates = [], [], []
  for _ in range(repeats):
    rates.append(matmul_rate(jnp.float32, 2048, clock=0))
    ours_times.append(timed(ours))
    theirs_times += [timed(theirs) for _ in range(2)] if theirs else []
  cpu, wall = median(ours_times, num)
  print(f"  wam_jax  {cpu:6.3f} CPU-s ({wall:.3f}) per update, {frames / cpu:.0f} frames per CPU-second")
  rate, reached = statistics.median(rates), flops(config) / cpu
  print(
    f"  {reached / 1e9:.0f} GFLOP per CPU-second, {reached / rate:.0%} of this core's product of large "
    f"matrices ({rate / 1e9:.0f})"
  )
  if theirs:
    other, wall = median(theirs_times)
    print(
      f"  PyTorch  {other:6.3f} CPU-s ({wall:.3f}) per update, {frames / other:.0f} frames per CPU-second"
    )
    print(f"  wam_jax is {other / cpu:.2f} times as fast; PyTorch has {parameters / 1e6:.1f} M parameters")
  draw = ours.only_sample()
  draw()
  share = median([timed(draw) for _ in range(repeats)], num + 1)[0] / cpu
  print(f"  drawing the batch is {share:.2%} of our update", flush=True)


def multiplications(config: Any) -> int:
  """Multiplications of one frame's forward pass, matrix products and convolutions alone."""
  d, code = config.depth, config.stoch * config.classes
  sides = [31, 14, 6, 2]
  widths = [3, d, 2 * d, 4 * d, 8 * d]
  encoder = sum(s * s * 16 * a * b for s, a, b in zip(sides, widths, widths[1:], strict=False))
  layers = [(1, 5, 32 * d, 4 * d), (5, 5, 4 * d, 2 * d), (13, 6, 2 * d, d), (30, 6, d, 3)]
  decoder = sum(s * s * k * k * a * b for s, k, a, b in layers)
  rssm = code * config.hidden + 3 * config.deter * (config.hidden + config.deter)
  rssm += 2 * config.hidden * (config.deter + code) + config.embed * config.hidden
  head = config.inverse_dynamics_hidden
  dense = CAMERAS * 32 * d * config.embed + (config.deter + code) * 32 * d + 2 * config.embed * head + head**2
  return CAMERAS * (encoder + decoder) + rssm + dense


def flops(config: Any) -> int:
  """FLOPs of an update: a backward pass costs two forward passes, but pictures have no gradient."""
  first_layers = CAMERAS * 31**2 * 16 * 3 * config.depth
  return 2 * (3 * multiplications(config) - first_layers) * config.batch_size * config.sequence_length


def matmul_rate(dtype: Any, size: int = 8192, clock: int = 1) -> float:
  """FLOP/s of large square products on this device, by CPU time (clock 0) or wall time (1)."""
  a = jnp.ones((size, size), dtype)
  multiply = jax.jit(lambda a: jax.lax.fori_loop(0, 20, lambda _, x: (x @ a) / size, a))
  multiply(a).block_until_ready()
  seconds = median([timed(lambda: multiply(a).block_until_ready()) for _ in range(3)])[clock]
  return 20 * 2 * size**3 / seconds


def on_gpu(repeats: int, num: int) -> None:
  """Prints wall time per update, batch 50 x 50, and its share of what the card can do."""
  for name, dtype in (("float32", jnp.float32), ("bfloat16", jnp.bfloat16)):
    config = make_config("full", batch_size=50, sequence_length=50, compute_dtype=name)
    ours = Ours(config, num)
    _, first = timed(ours)
    wall = median([timed(ours) for _ in range(repeats)], num)[1]
    reached, rate = flops(config) / wall, matmul_rate(dtype)
    print(
      f"full, 50 x 50, {name}: {wall * 1e3:.0f} ms per update, {2500 / wall:.0f} frames per second; "
      f"{reached / 1e12:.1f} TFLOP/s, {reached / rate:.1%} of this card's product of large "
      f"matrices ({rate / 1e12:.0f}); first call {first:.0f} s",
      flush=True,
    )
    del ours
  if torch and torch.cuda.is_available():
    theirs, _ = torch_reference(make_config("full", batch_size=50, sequence_length=50), "cuda")
    theirs()
    other = median([timed(theirs) for _ in range(repeats)])[1]
    print(
      f"full, 50 x 50, PyTorch eager, float32: {other * 1e3:.0f} ms per update, ours at bfloat16 is", end=" "
    )
    print(f"{other / wall:.1f} times as fast")


def first_update(cache: str) -> None:
  """One full-size update in a fresh process, with compiled programs kept in `cache`."""
  jax.config.update("jax_compilation_cache_dir", cache)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  begin = time.perf_counter()
  ours = Ours(make_config("full"), 1)
  made = time.perf_counter()
  ours()
  print(f"parameters and data {made - begin:.1f} s, first update {time.perf_counter() - made:.1f} s")


def start() -> None:
  """Prints how long a process takes to its first full-size update: compiling, then from the cache."""
  with tempfile.TemporaryDirectory() as cache:
    for name in ("empty cache", "second process"):
      begin = time.perf_counter()
      command = [sys.executable, __file__, f"--first-update={cache}"]
      out = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
      print(f"start, full, {name:14s} {time.perf_counter() - begin:5.1f} s in all; {out}", flush=True)


def main() -> None:
  """Prints everything."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
  parser.add_argument("--sizes", default="full,small", help=f"of {', '.join(SIZES)}")
  parser.add_argument("--repeats", type=int, default=5, help="calls per median")
  parser.add_argument("--updates", type=int, default=10, help="updates per call of ours, as in training")
  parser.add_argument("--start", action="store_true", help="also measure compiling and a second process")
  parser.add_argument("--first-update", metavar="CACHE", help=argparse.SUPPRESS)
  arguments = parser.parse_args()
  unknown = set(filter(None, arguments.sizes.split(","))) - set(SIZES)
  if unknown:
    parser.error(f"unknown sizes {sorted(unknown)}; there are {', '.join(SIZES)}")
  if arguments.first_update:
    first_update(arguments.first_update)
    return
  if arguments.device == "gpu":
    if jax.default_backend() != "gpu":
      parser.error(f"JAX finds no GPU here, only {jax.default_backend()}")
    on_gpu(arguments.repeats, arguments.updates)
    return
  if torch:
    torch.set_num_threads(1)
  else:
    print("PyTorch is not installed (pip install torch): measuring wam_jax alone")
  for size in filter(None, arguments.sizes.split(",")):
    compare(size, arguments.repeats, arguments.updates)
  if arguments.start:
    start()


if __name__ == "__main__":
  main()
