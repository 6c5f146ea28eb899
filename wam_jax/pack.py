"""`python -m wam_jax.pack`; the program is `wam_jax.commands.pack`."""

from wam_jax.commands.pack import main
from wam_jax.host.console import run_program

if __name__ == "__main__":
  run_program(main)
