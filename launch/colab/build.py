"""Makes wam_calvin.ipynb of wam_calvin.py. Needs nbformat, which the test extras bring.

python launch/colab/build.py
python launch/colab/build.py --repository=OWNER/NAME   # also the address, and the README's badge
"""

from __future__ import annotations

import argparse
import pathlib
import re
from collections.abc import Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = pathlib.Path("launch/colab/wam_calvin.py")
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
OPEN = "https://colab.research.google.com/github/{repository}/blob/{branch}/{notebook}"
_MARK = re.compile(r"^# %% ([a-z-]+)( \[markdown\])?\n", re.MULTILINE)


def notebook(script: str, name: str) -> Any:
  """The notebook of a script, always the same: fixed cell ids, no outputs.

  Args:
    script: cells that begin with `# %% NAME` or `# %% NAME [markdown]`; what stands before them is left out.
    name: of the file, which Colab shows.

  Returns:
    An nbformat notebook.

  Raises:
    ValueError: no cells, a name that is used twice, or text that is not commented out.
  """
  import nbformat  # not at the top: --help does without

  _, *parts = _MARK.split(script)
  cells = []
  for cell_id, markdown, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
    text = text.strip()
    if markdown:
      lines = text.splitlines()
      wrong = [line for line in lines if line != "#" and not line.startswith("# ")]
      if wrong:
        raise ValueError(f"cell {cell_id}: not a comment: {wrong[0]}")
      text = "\n".join(line[2:] for line in lines)
      cells.append(nbformat.v4.new_markdown_cell(text, id=cell_id))
    else:
      form = {"cellView": "form"} if text.startswith("# @title") else {}
      cells.append(nbformat.v4.new_code_cell(text, id=cell_id, metadata=form))
  ids = [cell.id for cell in cells]
  if not ids or len(set(ids)) < len(ids):
    raise ValueError(f"cells must be there and have names of their own, got {', '.join(ids) or 'none'}")
  metadata = {
    "colab": {"name": name, "provenance": [], "toc_visible": True},
    "kernelspec": {"display_name": "Python 3", "name": "python3"},
    "language_info": {"name": "python"},
  }
  made = nbformat.v4.new_notebook(cells=cells, metadata=metadata)
  nbformat.validate(made)
  return made


def write_address(root: pathlib.Path, repository: str, branch: str) -> None:
  """Writes where the repository is into the script's install cell, and a badge under the README's title."""
  address = OPEN.format(repository=repository, branch=branch, notebook=SCRIPT.with_suffix(".ipynb"))
  for path, pattern, new in (
    (root / SCRIPT, r'^(REPOSITORY = )"[^"]*"', rf'\1"{repository}"'),
    (
      root / "README.md",
      rf"\A(# .*\n\n)(?:.*{re.escape(BADGE)}.*\n\n)?",
      rf"\1[![Open in Colab]({BADGE})]({address})\n\n",
    ),
  ):
    text, count = re.subn(pattern, new, path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    if count != 1:
      raise ValueError(f"{path}: expected one place for the address, found {count}")
    path.write_text(text, encoding="utf-8")


def main(argv: Sequence[str] | None = None, root: pathlib.Path = ROOT) -> int:
  """The command line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument("--repository", metavar="OWNER/NAME", help="on GitHub; default: what is written there")
  parser.add_argument("--branch", default="main", help="that the badge opens")
  arguments = parser.parse_args(argv)
  if arguments.repository is not None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", arguments.repository):
      parser.error(f"--repository: expected OWNER/NAME, got {arguments.repository}")
    write_address(root, arguments.repository, arguments.branch)
  import nbformat

  out = (root / SCRIPT).with_suffix(".ipynb")
  text = nbformat.writes(notebook((root / SCRIPT).read_text(encoding="utf-8"), out.name))
  out.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
  print(out)
  return 0


if __name__ == "__main__":
  raise SystemExit(main())
