"""Variables and settings that were meant for other work."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from wam_jax.envs.play_table import renderer, skills
from wam_jax.host import surroundings


@pytest.mark.parametrize(
  ("environ", "others"),
  [
    ({}, {}),
    ({"JAX_ENABLE_X64": "0", "JAX_NUMPY_RANK_PROMOTION": "allow", "JAX_TRANSFER_GUARD": ""}, {}),
    ({"JAX_ENABLE_X64": "True"}, {"JAX_ENABLE_X64": False}),
    ({"JAX_NUMPY_DTYPE_PROMOTION": "strict"}, {"JAX_NUMPY_DTYPE_PROMOTION": "standard"}),
  ],
)
def test_settings_that_are_not_ours(environ, others):
  assert surroundings.other_settings(environ) == others


def test_a_program_puts_its_own_settings_first(monkeypatch, capsys):
  monkeypatch.setenv("JAX_ENABLE_X64", "1")
  with jax.enable_x64(False):
    surroundings.prepare_jax()
    assert "JAX_ENABLE_X64" not in os.environ and not jax.config.jax_enable_x64
  assert "JAX_ENABLE_X64=1 is not used" in capsys.readouterr().err


@pytest.mark.parametrize("first", ["", "import jax; "])
@pytest.mark.parametrize("place", ["", "a file"])  # nothing can be kept under a file: no word of it
def test_programs_keep_what_they_compile_whether_jax_is_imported_or_not(first, place, tmp_path):
  code = f"{first}from wam_jax.host import surroundings; surroundings.prepare_jax(); import jax\n"
  code += "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
  code += "jax.block_until_ready(jax.jit(lambda x: x + 1)(1.0))"
  environ = {name: value for name, value in os.environ.items() if not name.startswith("JAX_COMPILATION")}
  (tmp_path / "a file").touch()
  environ |= {"XDG_CACHE_HOME": str(tmp_path / place), "JAX_PLATFORMS": "cpu"}
  done = subprocess.run([sys.executable, "-W", "error", "-c", code], env=environ, timeout=100)
  assert done.returncode == 0
  assert place or list((tmp_path / "wam_jax" / "jax").iterdir())


def test_pictures_do_not_depend_on_the_settings_around():
  states = [array[None] for array in skills.sample_start(None, np.random.default_rng(0))]
  expected = renderer.make_renderer(16, workers=1)(*states)
  renderer._program.cache_clear()
  with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
    pictures = renderer.make_renderer(16, workers=1)(*states)
  assert all(np.array_equal(pictures[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
  ("arguments", "environ", "code", "words"),
  [
    ([], {"MUJOCO_GL": "osmesa"}, "import wam_jax.envs.play_table.simulator", []),
    ([], {"MUJOCO_GL": "no such"}, "import wam_jax.envs.play_table.simulator", []),
    (["-OO"], {}, "import wam_jax.core.distributions", ["ImportError", "PYTHONOPTIMIZE"]),
    (
      [],
      {"JAX_PLATFORMS": "no such"},
      "from wam_jax.host import surroundings as s; s.open_devices()",
      ["SurroundingsError", "JAX_PLATFORMS=no such"],
    ),
  ],
)
def test_works_or_names_the_variable(arguments, environ, code, words):
  command = [sys.executable, *arguments, "-c", code]
  done = subprocess.run(command, env=os.environ | environ, capture_output=True, text=True, timeout=60)
  assert bool(done.returncode) == bool(words) and all(word in done.stderr for word in words), done.stderr
