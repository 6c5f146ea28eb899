"""`python -m wam_jax.play`; the program is `wam_jax.commands.play`."""

from wam_jax.commands.play import main

if __name__ == "__main__":
  raise SystemExit(main())
