"""Simulators. `make_environment("play_table")` makes one; `registry` has their table."""

from wam_jax.envs.registry import NAMES, load_skills, make_environment, make_renderer, make_vector

__all__ = ["NAMES", "load_skills", "make_environment", "make_renderer", "make_vector"]
