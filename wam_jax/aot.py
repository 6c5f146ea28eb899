"""`python -m wam_jax.aot`; the program is `wam_jax.commands.aot`."""

from wam_jax.commands.aot import main
from wam_jax.host.console import run_program

if __name__ == "__main__":
  run_program(main)
