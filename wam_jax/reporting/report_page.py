"""The report of a run as one HTML page that needs nothing else: no script, no font, no request.

Everything shown comes from the report's plain values (`run_report`) and from pictures given as bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from wam_jax.acting.policy_table import COMPARED, POLICIES
from wam_jax.core.certificate import RULES
from wam_jax.host import tables
from wam_jax.host.words import count, duration
from wam_jax.reporting import certificate_page, charts, diagnosis, media, unsimulated
from wam_jax.reporting import page_parts as parts
from wam_jax.reporting.page_parts import escape, percent, points, title_of

# The order of the columns: on a narrow screen the first are seen first, and others than these two are narrow.
HEADS = {name: POLICIES[name].heading for name in COMPARED} | {
  name: "<br>".join(row.heading.rsplit(" ", 1)) for name, row in POLICIES.items() if name not in COMPARED
}

RANDOM_DREAMS = "random dreams called a success"  # column of `classifier`
PPO_CURVES = (
  "Exploring: the dreams that PPO learns from. Held-out starts and monitored: measured on the way, from "
  "held-out demos, and from start states that the evaluation (the dots) leaves; few episodes. "
)


def _headline(report: Mapping[str, Any]) -> str:
  policies = report["results"]["policies"]
  cards = []
  for name in ("ppo", "cloned", "random", "expert"):
    if name in policies:
      mean = policies[name]["mean"]
      below = f"{parts.span_of(mean['low'], mean['high'])} %, n = {mean['n']}"
      cards.append(parts.number_card(policies[name]["label"], percent(mean["rate"]), below, name))
  if not policies:
    for name, entry in reversed(report["results"]["imagined"].items()):
      cards.append(parts.number_card(entry["label"], percent(entry["mean"]), "imagined", name))
  facts = report["provenance"]
  devices = [name for name in dict.fromkeys(facts["devices"]) if name != "cpu"]
  cores = f"{facts['cores']} CPU core{'s' if facts['cores'] != 1 else ''}"
  machine = escape(", ".join([*devices, cores]))
  cards.append(parts.number_card("Whole run", duration(report["total_seconds"]), machine))
  return f'<div class="numbers">{"".join(cards)}</div>'


def _summary(report: Mapping[str, Any]) -> str:
  """What the numbers say, in two sentences."""
  results, sentences = report["results"], []
  if not results["policies"]:
    sentences.append("No simulator has measured these policies; what follows is of recordings and dreams.")
    if report["certificate"]:
      predicted = report["certificate"]["policies"]["ppo"]["mean"]
      sentences.append(
        f"The certificate predicts a real success of <b>{percent(predicted['value'])}</b> "
        f"({parts.span_of(predicted['low'], predicted['high'])} %) after PPO."
      )
  change = results.get("ppo_minus_cloned")
  if change is not None:
    low, high = change["low"], change["high"]
    difference = parts.marked(points(change["difference"]), _Marks(report)("gain"))
    verdict = "a gain" if low > 0 else "a loss" if high < 0 else "no difference can be told"
    sentences.append(
      f"PPO in imagination changed the mean success by <b>{difference} points</b> "
      f"(95 % interval {points(low)} to {points(high)}, paired over the same start states): {verdict}."
    )
  mean = results["policies"].get("ppo", {}).get("mean", {})
  if "imagined" in mean:
    gap = mean["gap"]
    gap_text = f"{abs(100 * gap):.1f} points {'above' if gap > 0 else 'below'} the simulator"
    sentences.append(
      f"In its dreams from the same start frames the final policy succeeds in {percent(mean['imagined'])}, "
      f"{gap_text if round(1000 * gap) else 'as in the simulator'}."
    )
  return f'<p class="lead">{" ".join(sentences)}</p>' if sentences else ""


class _Marks:
  """Colours of a report's numbers, by rule and place (`diagnosis.diagnose`)."""

  def __init__(self, report: Mapping[str, Any]):
    self._colours = {(x["rule"], *x["where"]): x["colour"] for x in report["diagnosis"]}

  def __call__(self, rule: str, *where: str | int) -> parts.Mark | None:
    colour = self._colours.get((rule, *where))
    return None if colour is None else mark(rule, colour)


def mark(rule: str, colour: str) -> parts.Mark:
  """How a coloured number looks: one that is not green leads to its sentence."""
  meaning = diagnosis.ROWS[rule].rule.meaning
  return parts.Mark(certificate_page.STYLES[colour], f"rule-{rule}", meaning)


def _message(report: Mapping[str, Any]) -> str:
  """What is red and yellow, with the sentence of each and where it leads."""
  messages = diagnosis.messages(report)
  counted = Counter(entry["colour"] for entry in report["diagnosis"])
  numbers = ", ".join(f"{counted[colour]} {colour}" for colour in ("red", "yellow", "green"))
  lines = [
    f'<li><span class="chip {certificate_page.STYLES[m["colour"]]}">{m["colour"]}</span> '
    f'<a href="#rule-{m["rule"]}"><b>{escape(m["label"])}</b></a>: {escape(_plain(m["meaning"]))}. '
    f'<span class="soft">{escape(m["numbers"])}.</span></li>'
    for m in messages
  ]
  red = sum(m["colour"] == "red" for m in messages)
  text = f"<ul>{''.join(lines[:red])}</ul>" if red else ""
  if lines[red:]:
    text += f"<details><summary>What is yellow</summary><ul>{''.join(lines[red:])}</ul></details>"
  return f'<div class="card message"><b>Numbers that have a rule: {numbers}.</b>{text}</div>'


def _plain(text: str) -> str:
  """Without Markdown's marks of code."""
  return text.replace("`", "")


def _rules(report: Mapping[str, Any], guide: str) -> str:
  """The rules of this run's numbers, by section of the guide; where a coloured number leads to."""
  used = {entry["rule"] for entry in report["diagnosis"]} | set(RULES if report["certificate"] else ())
  out = []
  for k, section in enumerate(diagnosis.SECTIONS):
    names = [name for name in diagnosis.of_section(k) if name in used]
    if not names:
      continue
    _, *rows = diagnosis.guide_rows(names)
    lines = "".join(
      f'<li id="rule-{name}"><b>{escape(label)}</b>: yellow {yellow}, red {red}. It means: '
      f"{escape(_plain(meaning))}. Try: {escape(_plain(remedy))}.</li>"
      for name, (label, yellow, red, meaning, remedy) in zip(names, rows, strict=True)
    )
    where = f"{diagnosis.GUIDE}, {section}"
    title = (
      f'<a href="{escape(guide)}#{diagnosis.anchor(section)}">{escape(where)}</a>' if guide else escape(where)
    )
    out.append(f'<h3 class="group">{title}</h3><ul>{lines}</ul>')
  return (
    "<p class='soft'>These sentences stand in the guide, which says what to try, in the order of the chain: "
    "what fails early cannot be repaired later.</p>" + "".join(out)
  )


def _cell(row: Mapping[str, Any], interval: bool, mark: parts.Mark | None = None) -> str:
  span = f'<span class="ci">{parts.span_of(row["low"], row["high"])}</span>' if interval else ""
  return parts.cell(percent(row["rate"]), mark, span)


def _table(report: Mapping[str, Any]) -> str:
  results, marks = report["results"], _Marks(report)
  policies = results["policies"]
  if not policies:
    heads, *shares = unsimulated.rows(results)
    shares = [[title_of(task.strip("*")), *cells] for task, *cells in shares]
    return _message(report) + parts.rows_table([heads, *shares], total=True)
  compared = [name for name in reversed(COMPARED) if name in policies]  # the final one first
  uncompared = [name for name in HEADS if name in policies and name not in compared]
  dreamed = "imagined" in policies.get("ppo", {}).get("mean", {})
  head = '<th class="name">Task</th>' + "".join(f"<th>{HEADS[name]}</th>" for name in compared)
  head += '<th class="text">0 to 100 %</th>'
  head += "<th>Imagined<br>after PPO</th><th>Gap,<br>points</th>" if dreamed else ""
  head += "".join(f"<th>{HEADS[name]}</th>" for name in uncompared)
  lines = []
  for task in (None, *results["tasks"]):
    rows = {name: p["mean"] if task is None else p["per_task"][task] for name, p in policies.items()}
    where = () if task is None else (task,)
    cells = "".join(_cell(rows[name], True, marks(name, *where)) for name in compared)
    bars = [(name, rows[name]["rate"], rows[name]["low"], rows[name]["high"]) for name in compared]
    ticks = [(name, rows[name]["rate"]) for name in ("expert", "random") if name in rows]
    ticks += [("imagined", rows["ppo"]["imagined"])] if dreamed else []
    cells += f'<td class="plot">{charts.interval_chart(bars, ticks)}</td>'
    if dreamed:
      cells += f"<td>{percent(rows['ppo'].get('imagined'))}</td>"
      cells += parts.cell(points(rows["ppo"].get("gap")), marks("gap", *where))
    cells += "".join(_cell(rows[name], False, marks(name, *where)) for name in uncompared)
    label = "Mean of all tasks" if task is None else escape(title_of(task))
    label += '<br><span class="soft">left as cloned</span>' if task in report["left_as_cloned"] else ""
    style = ' class="mean"' if task is None else ""
    lines.append(f'<tr{style}><td class="name">{label}</td>{cells}</tr>')
  entries = [(policies[name]["label"], f"{name} dot") for name in compared]
  entries += [("Imagined after PPO", "imagined mark")] if dreamed else []
  entries += [(policies[name]["label"], f"{name} mark") for name in ("expert", "random") if name in policies]
  starts = f" {report['starts']['imagined']}" if dreamed else ""
  return (
    _message(report)
    + f'<p class="soft">Small numbers and bars: 95 % Wilson interval.{escape(starts)}</p>'
    + parts.table_card(f"<tr>{head}</tr>", lines, "Success in the simulator", "card wide first")
    + parts.legend(entries)
  )


def _chip(good: bool, text: str) -> str:
  return f'<span class="chip {"good" if good else "bad"}">{text}</span>'


def _rollouts(report: Mapping[str, Any], animations: Sequence[Mapping[str, bytes]]) -> str:
  cards = []
  for shown, animation in zip(report["rollouts"], animations, strict=True):
    seconds = shown["steps"] / report["control_hz"]
    chips = _chip(shown["success"], f"solved in {seconds:.1f} s" if shown["success"] else "not solved")
    if "dream_success" in shown:
      same = shown["dream_success"] == shown["success"]
      chips += " " + _chip(same, "dream: " + ("" if shown["dream_success"] else "not ") + "solved")
    source = media.data_uri(animation["webp"], "webp")
    alt = f"Robot, task: {title_of(shown['task'])}"
    cards.append(
      f'<figure class="card"><img src="{source}" alt="{escape(alt)}"><figcaption>'
      f"<span><b>{escape(title_of(shown['task']))}</b> "
      f'<span class="soft">episode {shown["episode"] + 1}: {escape(", ".join(shown["shown"]))}</span></span>'
      f"<span>{chips}</span></figcaption></figure>"
    )
  if not cards:
    return ""
  dreams = (
    " The dream begins at the same start frame and follows the same actions, with no look at the simulator "
    "after it; whether it is solved, the classifier says, at the ends of chunks, "
    "where PPO is rewarded; the last chunk goes on with the episode's last action. Red where the simulator "
    "says otherwise."
    if any("dream_success" in shown for shown in report["rollouts"])
    else ""
  )
  return (
    "<p class='soft'>The final policy. Of each task the first episode that succeeded, and the first that "
    f'failed, where one did and was kept.{dreams}</p><div class="grid big">{"".join(cards)}</div>'
  )


def _dreams(report: Mapping[str, Any], strips: Mapping[str, bytes]) -> str:
  """The world model's open loop: strip, animation, PSNR over the horizon, table."""
  judge = report["judge"]
  model = judge["models"][0]
  cards = []
  if "webp" in strips:
    cards.append(
      f'<figure class="card still"><h3>True, predicted, error</h3>'
      f'<img src="{media.data_uri(strips["webp"], "webp")}" alt="A dream as an animation"></figure>'
    )
  for camera, scores in model["open_loop"].items():
    lines = (
      ("world model", scores, "s0"),
      ("last frame seen, repeated", model["repeated"][camera], "random"),
    )
    series = [
      {
        "name": name,
        "x": list(range(1, len(values["psnr_curve"]) + 1)),
        "y": values["psnr_curve"],
        "style": style,
        "note": f": mean {values['mean_psnr']:.2f} dB",
      }
      for name, values, style in lines
    ]
    title = f"PSNR, dB, {tables.CAMERA_NAMES.get(camera, camera)} camera"
    cards.append(parts.chart_card({"title": title, "x_label": "frames imagined", "series": series}))
  strip = (
    f'<div class="card strip" role="region" tabindex="0" aria-label="A dream as a strip">'
    f'<img src="{media.data_uri(strips["png"], "png")}" alt="True, predicted and error pictures"></div>'
    if "png" in strips
    else ""
  )
  return (
    f"<p class='soft'>{escape(tables.described(judge))} Shown is the window in which most happens, "
    "the animation three times slower than it was. In the error pictures grey means equal.</p>"
    f'{strip}<div class="grid big gap">{"".join(cards)}</div>'
    f"{parts.rows_table(tables.open_loop_rows(judge), marks=_open_loop_marks(report))}"
  )


def _open_loop_marks(report: Mapping[str, Any]) -> dict[tuple[str, int], parts.Mark | None]:
  """(row of the table, cell after its name) -> colour."""
  marks, horizons = _Marks(report), range(len(report["judge"]["horizons"]))
  return {
    (f"{tables.CAMERA_NAMES.get(camera, camera)}: {label}", i + 1): marks(key, camera, i)
    for camera in report["judge"]["models"][0]["open_loop"]
    for key, label in (("psnr", "PSNR, dB"), ("ssim", "SSIM"))
    for i in horizons
  }


def _discrimination(report: Mapping[str, Any]) -> str:
  rows = report.get("discrimination")
  if not rows:
    return ""
  marks, cells = _Marks(report), {}
  for row in rows[1:]:
    name, _, kind = row[0].rpartition(", ")
    where = () if name == "Mean" else (name,)
    if kind == "dreamt":
      cells[row[0], 2] = marks("failed_called", *where)
      cells[row[0], 3], cells[row[0], 4] = marks("told_apart", *where), marks("auc", *where)
    else:
      cells[row[0], 3] = marks("told_apart_seen", *where)
  return f"<p class='soft'>{escape(tables.DISCRIMINATION)}</p>" + parts.rows_table(rows, marks=cells)


def _probes(report: Mapping[str, Any]) -> str:
  judge, marks, horizons = report["judge"], _Marks(report), range(len(report["judge"]["horizons"]))

  def narrow(group: str) -> str:
    """The score below the name leaves room for the numbers."""
    head, *rows = tables.probe_rows(judge, group)
    if not rows:
      return ""
    cells = [
      [f"{parts.quantity_of(name)}\n{score}" if score else name, *cells] for name, score, *cells in rows
    ]
    places: dict[tuple[str, int], parts.Mark | None] = {}
    for name in judge["models"][0][group]:
      places[parts.quantity_of(name), 0] = marks("posterior", group, name)
      places |= {(parts.quantity_of(name), i + 1): marks("reading", group, name, i) for i in horizons}
    return parts.rows_table([[head[0], *head[2:]], *cells], marks=places)

  hand = tables.hand_rows(judge)
  of_hand = {
    (f"{kind}: {label}", i + 1): marks("hand", kind, i, key)
    for kind in judge["models"][0].get("hand") or {}
    for key, label in (("rms", "root mean square"), ("median", "median"))
    for i in horizons
  }
  return (
    "<p class='soft'>One linear map per quantity, fitted on the features of training frames. R\u00b2: 1 is "
    "perfect, 0 as good as the mean; balanced accuracy: 0.5 is chance. Imagined: the same maps on features "
    "that have not seen the frame. Kept: the reading of the last frame seen."
    + (" The hand is compared with a linear recursion, fitted on the same frames.</p>" if of_hand else "</p>")
    + (parts.rows_table(hand, marks=of_hand) if len(hand) > 1 else "")
    + narrow("probes")
    + narrow("takes")
    + parts.rows_table(tables.inverse_dynamics_rows(judge))
  )


def _classifier(report: Mapping[str, Any]) -> str:
  quality = report.get("classifier")
  if not quality:
    return ""
  names = list(dict.fromkeys(name for row in quality.values() for name in row))
  head = '<th class="name">Task</th>' + "".join(f'<th class="wrap">{escape(name)}</th>' for name in names)
  lines, marks = [], _Marks(report)
  for task, row in quality.items():
    cells = "".join(
      parts.cell(percent(row.get(name)), marks("random_success", task) if name == RANDOM_DREAMS else None)
      for name in names
    )
    lines.append(f'<tr><td class="name">{escape(title_of(task))}</td>{cells}</tr>')
  return (
    "<p class='soft'>The reward of PPO, on held-out demonstrations, on dreams of them, and on "
    "dreams of random actions, which should never be called a success. A dash: there was no such case.</p>"
  ) + parts.table_card(f"<tr>{head}</tr>", lines, "Success classifier")


def _stages(report: Mapping[str, Any]) -> str:
  peak = max((stage.get("peak_bytes") or 0 for stage in report["stages"]), default=0)
  memory = f", largest memory of a process {peak / 1e9:.1f} GB" if peak else ""
  return (
    f"<p class='soft'>{duration(report['total_seconds'])} in all{memory}.</p>"
    f"{parts.time_bars(report['stages'])}"
  )


def _provenance(report: Mapping[str, Any]) -> str:
  facts = report["provenance"]
  rows = {
    "Command": f"<code>{escape(facts['command'])}</code>",
    "wam_jax": escape(facts["wam_jax"]) + (f", commit {escape(facts['commit'])}" if facts["commit"] else ""),
    "Seed": escape(report["seed"]),
    "Date": escape(facts["date"]),
    "Machine": escape(
      f"{facts['cpu']}, {count(facts['cores'], 'core')}; {', '.join(facts['devices'])}; {facts['platform']}"
    ),
    "Python": escape(facts["python"]),
    "Packages": escape(", ".join(f"{name} {version}" for name, version in facts["packages"].items())),
  }
  entries = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows.items())
  prints = "".join(
    f"<dt>{escape(stage.replace('_', ' '))}</dt><dd><code>{escape(value)}</code></dd>"
    for stage, value in report["fingerprints"].items()
  )
  config = escape(json.dumps(report["config"], indent=2))
  return (
    parts.details("Command, machine and packages", f"<dl>{entries}</dl>")
    + parts.details("Full configuration", f"<pre>{config}</pre>")
    + parts.details("Fingerprints of the stages", f"<dl>{prints}</dl>")
  )


def render_page(
  report: Mapping[str, Any],
  strips: Mapping[str, bytes],
  animations: Sequence[Mapping[str, bytes]],
  guide: str = "",
) -> str:
  """The whole page.

  Args:
    report: what `run_report.build` returns.
    strips: png and webp -> the open-loop prediction as a strip and as an animation.
    animations: of each of the report's rollouts, webp -> animation; none: no rollouts are shown.
    guide: where when_success_is_low.md is as seen from the page; "" where it is not.

  Returns:
    HTML text.
  """
  notes = "".join(f"<li>{escape(note).replace('`', '')}</li>" for note in report["notes"])
  date = report["provenance"]["date"][:10]
  subtitle = f"{report['what']} · {date}"
  measured = report["results"]["policies"]
  words = {"PPO": (PPO_CURVES if measured else "") + report["starts"]["ppo"]}
  where = "the simulator" if measured else "dreams"
  sections: Sequence[tuple[str, str, str, str]] = (
    ("success", "Success", f"Success in {where}", _table(report)),
    ("certificate", "Certificate", "What is known without a simulator", certificate_page.content(report)),
    ("episodes", "Episodes", "Episodes in the simulator", _rollouts(report, animations)),
    ("dreams", "Dreams", "What the world model imagines", _dreams(report, strips)),
    ("telling", "Telling apart", "What dreams can tell apart", _discrimination(report)),
    ("features", "Features", "What can be read off its features", _probes(report)),
    ("curves", "Curves", "Learning curves", parts.chart_groups(report["curves"], words)),
    ("classifier", "Classifier", "Success classifier", _classifier(report)),
    ("time", "Time", "Time of each stage", _stages(report)),
    ("rules", "Colours", "What the colours mean", _rules(report, guide)),
    ("notes", "Notes", "Notes", f"<ul class='soft'>{notes}</ul>" if notes else ""),
    ("made", "How it was made", "How it was made", _provenance(report)),
  )
  body = (
    f"<h1>{escape(report['title'])}</h1><p class='soft'>{escape(subtitle)}</p>"
    + _headline(report)
    + _summary(report)
    + parts.navigation([(anchor, word, content) for anchor, word, _, content in sections])
    + "".join(parts.section(title, content, anchor) for anchor, _, title, content in sections)
  )
  return parts.page(report["title"], body)
