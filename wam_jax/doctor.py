"""`python -m wam_jax.doctor`; the program is `wam_jax.commands.doctor`."""

from wam_jax.commands.doctor import main
from wam_jax.host.console import run_program

if __name__ == "__main__":
  run_program(main)
