"""`python -m wam_jax.report`; the program is `wam_jax.commands.report`."""

from wam_jax.commands.report import main

if __name__ == "__main__":
  raise SystemExit(main())
