"""A page opened in headless Chromium, and what is wrong with it. Standard library only.

The page is framed: a phone's width in light and dark, and a desk's. A script that only the framed copies have
measures them; what the page asked the network for is in Chromium's own log.
"""

import dataclasses
import html
import json
import re
import shutil
import subprocess

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--hide-scrollbars",  # a phone's lie over the page
  "--host-resolver-rules=MAP * ~NOTFOUND",
  "--enable-logging=stderr",
  "--v=0",
)
FRAMES = (("phone", 360, "light"), ("dark phone", 360, "dark"), ("desk", 1280, "light"))
CONTRAST = 4.5  # of small text, WCAG AA
MEASURE = """<script>
addEventListener("load", () => {
  document.querySelectorAll("details").forEach(one => one.open = true);
  const luminance = colour => colour.match(/[\\d.]+/g).slice(0, 3).map(x => x / 255)
    .map(x => x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4)
    .reduce((sum, x, i) => sum + x * [.2126, .7152, .0722][i], 0);
  const page = luminance(getComputedStyle(document.body).backgroundColor);
  const texts = [document.body, ...document.querySelectorAll(".soft, .chip")]
    .map(one => luminance(getComputedStyle(one).color))
    .map(x => (Math.max(x, page) + .05) / (Math.min(x, page) + .05));
  const found = {
    width: document.documentElement.clientWidth, scroll: document.documentElement.scrollWidth,
    images: document.images.length,
    broken: [...document.images].filter(one => !one.naturalWidth).map(one => one.alt || one.src.slice(0, 60)),
    background: page, contrast: Math.min(...texts),
  };
  const out = parent.document.createElement("pre");
  out.className = "measured";
  out.textContent = JSON.stringify({ [frameElement.name]: found });
  parent.document.body.append(out);
});
</script>"""


@dataclasses.dataclass
class Visit:
  """What was seen.

  Attributes:
    frames: name -> width, scroll (the width of what is in it), images (how many), broken (their names),
      background (luminance), contrast (the lowest of the texts).
    console: what the page wrote there; an error of a script is written too.
    requests: addresses that the page, not the browser for itself, asked for over the network.
  """

  frames: dict
  console: list
  requests: list

  def faults(self):
    """Everything wrong, in words."""
    out = [f"console: {line}" for line in self.console] + [f"request: {url}" for url in self.requests]
    for name, _, _ in FRAMES:
      found = self.frames.get(name)
      if found is None:
        out.append(f"{name}: not measured")
        continue
      out += [f"{name}: image not shown: {image}" for image in found["broken"]]
      if found["scroll"] > found["width"]:
        out.append(f"{name}: {found['scroll']} pixels wide where there are {found['width']}")
      if found["contrast"] < CONTRAST:
        out.append(f"{name}: text with a contrast of {found['contrast']:.2f}")
    return out


def find():
  """Path of a Chromium; None if there is none."""
  return next((path for name in NAMES if (path := shutil.which(name))), None)


def visit(page, folder):
  """Opens a page.

  Args:
    page: its HTML.
    folder: for what Chromium writes; new.

  Returns:
    A `Visit`.
  """
  frame = '<iframe name="{}" style="width:{}px;height:900px;border:0;color-scheme:{}" srcdoc="{}"></iframe>'
  framed = "".join(frame.format(*one, html.escape(page + MEASURE)) for one in FRAMES)
  folder.mkdir()
  (folder / "framed.html").write_text(f"<!doctype html><meta charset=utf-8><body>{framed}", encoding="utf-8")
  log = folder / "net.json"
  process = subprocess.run(
    [
      find(),
      *FLAGS,
      f"--user-data-dir={folder / 'profile'}",
      f"--log-net-log={log}",
      "--dump-dom",
      (folder / "framed.html").as_uri(),
    ],
    capture_output=True,
    text=True,
    timeout=120,
    check=True,
  )
  frames = {}
  for text in re.findall(r'<pre class="measured">(.*?)</pre>', process.stdout):
    frames |= json.loads(html.unescape(text))
  console = re.findall(r"CONSOLE[^\]]*\] (.*)", process.stderr)
  return Visit(frames, console, _requests(json.loads(log.read_text(encoding="utf-8"))))


def _requests(log):
  """Addresses on the network that a page asked for. Chromium's own requests have no origin as initiator."""
  start = log["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
  found = [event.get("params", {}) for event in log["events"] if event["type"] == start]
  assert any("initiator" in one for one in found) or not found, "the format of Chromium's log is another one"
  return [
    one["url"]
    for one in found
    if one.get("initiator", "not an origin") != "not an origin"
    and one["url"].startswith(("http:", "https:", "ws:", "wss:"))
  ]
