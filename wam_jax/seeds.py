"""`python -m wam_jax.seeds`; the program is `wam_jax.commands.seeds`."""

from wam_jax.commands.seeds import main

if __name__ == "__main__":
  raise SystemExit(main())
