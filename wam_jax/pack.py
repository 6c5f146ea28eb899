"""`python -m wam_jax.pack`; the program is `wam_jax.commands.pack`."""

from wam_jax.commands.pack import main

if __name__ == "__main__":
  raise SystemExit(main())
