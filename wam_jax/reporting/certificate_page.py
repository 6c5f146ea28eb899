"""The certificate on a run's page: what was predicted, what came of it, and every number with its colour."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wam_jax.core.certificate import RULES
from wam_jax.host import tables
from wam_jax.reporting import page_parts as parts
from wam_jax.reporting.page_parts import escape, percent, title_of
from wam_jax.storage.artifact import Artifact
from wam_jax.storage.records import read_record

STYLES = {"green": "good", "yellow": "fair", "red": "bad", "none": "soft"}
VERDICTS = {"deploy": "good", "collect": "fair", "do not trust": "bad"}


def read_certificate(artifact: Artifact | None) -> dict[str, Any] | None:
  """Content of a certificate, less the dreams of single takes; None without one."""
  if artifact is None:
    return None
  content = read_record(artifact.path, "certificate.json")
  for entry in content["policies"].values():
    for row in entry["per_task"].values():
      del row["called"]
  return content


def left_as_cloned(ppo: Artifact) -> dict[str, float]:
  """Tasks whose policies PPO left as they were cloned -> what their dreams tell apart."""
  exists = (ppo.path / "result.json").exists()
  return read_record(ppo.path, "result.json").get("left_as_cloned", {}) if exists else {}


def left_sentence(task: str, difference: float) -> str:
  return (
    f"{title_of(task)}: PPO left the cloned policy as it is, because dreams tell success from failure by no "
    f"more than {100 * difference:.0f} points (ppo.min_discrimination)."
  )


def content(report: Mapping[str, Any]) -> str:
  """HTML of the section; empty where there is nothing to say."""
  left = "".join(f"<p class='soft'>{escape(left_sentence(*x))}</p>" for x in report["left_as_cloned"].items())
  certificate = report.get("certificate")
  if not certificate:
    return left
  return (
    left + f"<p class='soft'>{escape(tables.CERTIFICATE)}</p>" + _verdicts(report) + _numbers(certificate)
  )


def _verdicts(report: Mapping[str, Any]) -> str:
  certificate, measured = report["certificate"], report["results"]["policies"]
  policies = certificate["policies"]
  head = '<th class="name">Task</th><th class="text">Verdict</th>'
  for entry in policies.values():
    head += f"<th>{escape(entry['label'])},<br>predicted</th>" + ("<th>real</th>" if measured else "")
  lines = []
  for task, verdict in certificate["verdicts"].items():
    word = verdict["verdict"]
    cells = f'<td class="text"><span class="chip {VERDICTS[word]}">{word}</span></td>'
    for name, entry in policies.items():
      row = entry["per_task"][task]["predicted"]
      real = measured.get(name, {}).get("per_task", {}).get(task, {})
      span = f'<span class="ci">{parts.span_of(row["low"], row["high"])}</span>'
      cells += f"<td>{percent(row['value'])}{span}</td>"
      cells += f"<td>{percent(real.get('rate'))}</td>" if measured else ""
    lines.append(f'<tr><td class="name">{escape(title_of(task))}</td>{cells}</tr>')
  table = parts.table_card(f"<tr>{head}</tr>", lines, "Certificate")
  reasons = tables.certificate_reasons(certificate).items()
  items = "".join(f"<li><b>{escape(title_of(task))}</b>: {escape(reason)}</li>" for task, reason in reasons)
  return f"{table}<ul class='soft'>{items}</ul>"


def _numbers(certificate: Mapping[str, Any]) -> str:
  head = '<th class="name">Task</th>'
  head += "".join(f'<th class="wrap">{escape(rule.label)}</th>' for rule in RULES.values())
  lines = []
  for task, verdict in certificate["verdicts"].items():
    numbers = certificate["policies"][verdict["policy"]]["per_task"][task]["numbers"]
    cells = ""
    for name, rule in RULES.items():
      value, colour = numbers[name]["value"], numbers[name]["colour"]
      text = tables.NOTHING if value is None else f"{value:.2f}"
      cells += parts.cell(
        text, None if colour == "none" else parts.Mark(STYLES[colour], f"rule-{name}", rule.meaning)
      )
    lines.append(f'<tr><td class="name">{escape(title_of(task))}</td>{cells}</tr>')
  return parts.table_card(f"<tr>{head}</tr>", lines, "What the certificate rests on")
