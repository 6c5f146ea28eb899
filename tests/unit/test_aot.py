"""Programs compiled for TPUs that are not there, and what is read off them."""

from __future__ import annotations

import importlib.util
import os

import jax
import jax.numpy as jnp
import pytest

from wam_jax import config as config_lib
from wam_jax.commands import aot, aot_reading
from wam_jax.core.backend import backend, compiling_for
from wam_jax.core.convolution import conv_stack
from wam_jax.nn.world_model import compute_dtype
from wam_jax.training import sharding

TPU = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None, reason="no compiler for TPUs: pip install 'wam_jax[aot]'"
)
LATENCY_BYTES = 1000  # exchanges below are counts and keys: their size costs nothing


def small_config(**changes):
  """`paper` with narrow networks and short loops."""
  config = config_lib.preset_config("paper")
  config.update_from_flattened_dict(
    {
      "tasks": ("open_drawer", "close_drawer"),
      "data.demos_per_task": 4,
      "training.log_every": 3,
      "world_model.depth": 8,
      "world_model.embed": 128,
      "world_model.deter": 128,
      "world_model.stoch": 8,
      "world_model.classes": 8,
      "world_model.hidden": 128,
      "world_model.inverse_dynamics_hidden": 64,
      "world_model.batch_size": 6,  # 4 devices do not share them evenly
      "world_model.sequence_length": 6,
      "behaviour_cloning.hidden": 64,
      "behaviour_cloning.denoising_steps": 4,
      "classifier.embed": (64, 32),
      "classifier.hidden": 64,
      "ppo.value_hidden": (64, 64, 64),
      "ppo.dreams": 16,
      "ppo.fine_tuned_steps": 2,
      "ppo.epochs": 5,
      "ppo.chunks_per_iteration": 6,
      **changes,
    }
  )
  return config


def small_cost(name):
  (cost,) = aot.costs(small_config(), "v5e:2x2", (name,), 500)
  return cost


@TPU
@pytest.mark.parametrize(
  ("name", "kinds"),
  # The classifier compares each frame of a batch with all others.
  [("acting", set()), ("cloning", {"all-reduce"}), ("classifier", {"all-reduce", "all-gather"})],
)
def test_small_programs_compile_for_a_tpu(name, kinds):
  cost = small_cost(name)
  assert cost.steps == 1 and 0 < cost.peak_bytes < 1e8 and cost.seconds_compiler > 0
  assert sum(cost.flops.values()) > 1e5 and cost.memory_bytes > 0
  large = [kind for kind, size, *_ in cost.collectives if size > LATENCY_BYTES]
  assert set(large) == kinds and (name != "cloning" or len(large) == 1)
  assert not any(inside for *_, inside in cost.collectives)
  assert name in aot.describe(cost)


@TPU
@pytest.mark.slow
def test_an_update_of_the_world_model_exchanges_once_in_bfloat16():
  cost = small_cost("world model")
  large = [(kind, times, inside) for kind, size, times, inside in cost.collectives if size > LATENCY_BYTES]
  assert large == [("all-reduce", 1.0, False)]
  assert not any(inside for *_, inside in cost.collectives)
  assert set(cost.flops) == {"bfloat16"} and not cost.float32
  assert cost.steps == 1 and cost.peak_bytes < 3e8


@TPU
@pytest.mark.slow
def test_a_gradient_step_of_ppo_exchanges_once_and_dreams_never():
  cost = small_cost("PPO")
  assert cost.steps == 5
  repeated = [(kind, times, inside) for kind, _, times, inside in cost.collectives if times > 1]
  assert repeated == [("all-reduce", 5.0, False)]
  assert cost.peak_bytes < 1e8


def test_flops_count_trips_devices_and_only_numbers_that_are_there():
  def loop(x, w):
    return jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=7)[0]

  trace = lambda f, *shapes: jax.jit(f).trace(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).jaxpr
  (product,) = aot_reading.products(trace(loop, (3, 4), (4, 4)))
  assert (product.dtype, product.flops) == ("float32", 7 * 2 * 3 * 4 * 4)
  # Each of 5 x 5 numbers meets each number of the kernel once, spread out by the stride or not.
  spread = lambda x, kernel: conv_stack(x, [(kernel, None)], transposed=True, stride=2, form="native")
  (product,) = aot_reading.products(trace(spread, (2, 5, 5, 3), (4, 4, 3, 6)))
  assert product.flops == 2 * (2 * 5 * 5) * (4 * 4) * 3 * 6


TEXT = """HloModule m

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inside (p: (s32[], f32[8], f32[5,8])) -> (s32[], f32[8], f32[5,8]) {
  %p = (s32[], f32[8]{0}, f32[5,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %rows = f32[5,8]{1,0} get-tuple-element(%p), index=2
  %row = f32[1,8]{1,0} dynamic-slice(%rows, %i, %i), dynamic_slice_sizes={1,8}
  %near = f32[8]{0:T(8)S(1)} copy(%x), backend_config={"estimated_cycles":"10"}
  %reduced = f32[8]{0} all-reduce(%x), channel_id=1, to_apply=%add
  ROOT %t = (s32[], f32[8]{0}, f32[5,8]{1,0}) tuple(%i, %reduced, %rows)
}

%go_on (q: (s32[], f32[8], f32[5,8])) -> pred[] {
  %q = (s32[], f32[8]{0}, f32[5,8]{1,0}) parameter(0)
  %most = s32[] constant(5)
  %j = s32[] get-tuple-element(%q), index=0
  ROOT %less = pred[] compare(%j, %most), direction=LT
}

ENTRY %main (z: (s32[], f32[8], f32[5,8])) -> (s32[], f32[8], f32[5,8]) {
  %z = (s32[], f32[8]{0}, f32[5,8]{1,0}) parameter(0)
  ROOT %loop = (s32[], f32[8]{0}, f32[5,8]{1,0}) while(%z), condition=%go_on, body=%inside
}
"""


def test_compiled_text_is_counted_with_its_loops():
  text = aot_reading.CompiledText(TEXT)
  assert text.trips == [5] and text.cycles == 50
  assert [(c.kind, c.bytes, c.times) for c in text.collectives] == [("all-reduce", 32, 5)]
  # A trip reads a row and writes it (8 for i), copies x to scratch memory, and reads and writes x.
  assert text.bytes == 5 * (32 + 8 + 32 + 32 + 64)


def test_the_backend_can_be_told_otherwise():
  assert backend() == "cpu" and compute_dtype("auto") is None
  with compiling_for("tpu"):
    assert backend() == "tpu" and compute_dtype("auto") == jnp.bfloat16
  assert backend() == "cpu"


def test_a_mesh_of_given_devices(monkeypatch):
  assert sharding.make_mesh(0, jax.devices()[:1]) is None
  with pytest.raises(ValueError, match="num_devices"):
    sharding.make_mesh(2, jax.devices()[:1])


@pytest.mark.parametrize(
  ("arguments", "code", "named"),
  [
    (["--topology=h100"], 1, "--topology=h100"),
    (["--topology=v5e:2x2", "--config.sede=1"], 2, "did you mean seed"),
  ],
)
def test_mistakes_are_explained(arguments, code, named, capsys, monkeypatch):
  monkeypatch.setattr(os, "environ", dict(os.environ))
  assert aot.main(arguments) == code
  assert named in capsys.readouterr().err


@pytest.mark.parametrize("devices", [1, 2, 4, 8, 16])
def test_paper_runs_on_any_number_of_devices(devices):
  assert config_lib.device_problems(config_lib.preset_config("paper"), devices) == []
