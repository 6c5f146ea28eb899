"""`python -m wam_jax.seeds`; the program is `wam_jax.commands.seeds`."""

from wam_jax.commands.seeds import main
from wam_jax.host.console import run_program

if __name__ == "__main__":
  run_program(main)
