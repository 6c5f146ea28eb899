"""`python -m wam_jax.export`; the program is `wam_jax.commands.export`."""

from wam_jax.commands.export import main

if __name__ == "__main__":
  raise SystemExit(main())
