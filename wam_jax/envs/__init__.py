"""Simulators. `load("play_table")` gives one; `base` says what each of them is."""

from wam_jax.envs.registry import NAMES, load, load_skills

__all__ = ["NAMES", "load", "load_skills"]
