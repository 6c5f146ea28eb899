"""`python -m wam_jax.export`; the program is `wam_jax.commands.export`."""

from wam_jax.commands.export import main
from wam_jax.host.console import run_program

if __name__ == "__main__":
  run_program(main)
