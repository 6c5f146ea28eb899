"""`python -m wam_jax.report`; the program is `wam_jax.commands.report`."""

from wam_jax.commands.report import main
from wam_jax.host.console import run_program

if __name__ == "__main__":
  run_program(main)
