"""CITATION.cff: valid, and of this version."""

from __future__ import annotations

import pathlib
import tomllib

import pytest
import yaml

import wam_jax

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def citation():
  return yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_one_version_everywhere(citation):
  project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
  assert citation["version"] == project["version"] == wam_jax.__version__
  assert citation["license"] == project["license"]


def test_what_the_format_asks_for(citation):
  """Required keys of schema 1.2.0 for the file, its authors and its references."""
  assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
  assert citation["message"] and citation["title"]
  for one in [citation, *citation["references"]]:
    assert isinstance(one["title"], str) and one["type"] in ("software", "article")
    assert one["authors"] and all({"name"} == set(a) or {"family-names"} <= set(a) for a in one["authors"])


def test_the_papers(citation):
  values = {entry["identifiers"][0]["value"]: entry for entry in citation["references"]}
  papers = ("2603.28955", "2508.03645", "2010.02193", "2409.00588", "2112.03227")
  assert set(values) == {f"arXiv:{paper}" for paper in papers}
  for value, entry in values.items():
    assert entry["url"].endswith(value.removeprefix("arXiv:"))
    year = int(value.removeprefix("arXiv:")[:2]) + 2000
    assert entry["year"] == year
