"""`python -m wam_jax.doctor`; the program is `wam_jax.commands.doctor`."""

from wam_jax.commands.doctor import main

if __name__ == "__main__":
  raise SystemExit(main())
