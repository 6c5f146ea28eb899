"""`python -m wam_jax.play`; the program is `wam_jax.commands.play`."""

from wam_jax.commands.play import main
from wam_jax.host.console import run_program

if __name__ == "__main__":
  run_program(main)
