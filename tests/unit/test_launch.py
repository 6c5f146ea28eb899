"""Launching on several hosts: with stand-ins for the program, for gcloud, kubectl and SLURM."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

LAUNCH = pathlib.Path(__file__).parents[2] / "launch"
NASTY = """a b "c" 'd' $HOME $(id) `id` \\ * ; & ü"""

PROGRAM = """
import json, os, signal, subprocess, sys, time
flags = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:] if "=" in word)
me, mode = int(flags["process_id"]), flags["mode"]
starts = os.environ["STAND_IN"] + f".starts{me}"
with open(starts, "a") as file:
  cores = sorted(os.sched_getaffinity(0))
  print(json.dumps({"flags": flags, "cores": cores, "argv": sys.argv[1:]}), file=file)
start = len(open(starts).readlines())
seen = []
def on_signal(number, _):
  seen.append(number)
  os.write(1, f"signal {number}\\n".encode())  # print is not to be called from a handler while it prints
  if len(seen) == int(flags["patience"]):
    sys.exit(128 + number)
if "patience" in flags:
  signal.signal(signal.SIGTERM, on_signal)
  signal.signal(signal.SIGINT, on_signal)
print(f"hello from {me}")
print("bar 1\\rbar 2", file=sys.stderr)
if mode == "fail" and me == 1:
  worker = subprocess.Popen(["sleep", "30"])
  open(os.environ["STAND_IN"] + ".worker", "w").write(str(worker.pid))
  os._exit(3)
if mode == "kill" and me == 1 and start == 1:
  time.sleep(0.2)
  os.kill(os.getpid(), signal.SIGKILL)
if mode == "kill" and start == 1:
  time.sleep(0.4)
  sys.exit(75)
if mode == "lost" and start < 3:
  sys.exit(75)
if mode in ("fail", "wait"):
  time.sleep(30)
"""


class Launched:
  """The launcher as a process, on the stand-in program, and what it wrote."""

  def __init__(self, folder, options, flags):
    self.files = [folder / "stdout", folder / "stderr"]
    arguments = [f"--{name}={value}" for name, value in flags.items()]
    with self.files[0].open("w") as out, self.files[1].open("w") as err:
      self.process = subprocess.Popen(
        [sys.executable, LAUNCH / "local_multiprocess.py", "--module=stand_in", *options, "--", *arguments],
        cwd=folder,
        env=os.environ | {"STAND_IN": str(folder / "out")},
        stdout=out,
        stderr=err,
      )

  def wait(self):
    """Exit code, stdout, stderr."""
    code = self.process.wait(20)
    return code, *(path.read_text() for path in self.files)

  def wait_for(self, text, count):
    limit = time.monotonic() + 15
    while self.files[0].read_text().count(text) < count:
      assert time.monotonic() < limit, f"{text!r} never came: {self.files[0].read_text()}"
      time.sleep(0.02)


@pytest.fixture
def launch(tmp_path):
  """launch(*options, mode=…, **flags): Launched. launch.starts(i): what each start of process i was given."""
  (tmp_path / "stand_in.py").write_text(PROGRAM)
  launched = []

  def start(*options, **flags):
    launched.append(Launched(tmp_path, options, flags))
    return launched[-1]

  def starts(i):
    path = tmp_path / f"out.starts{i}"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

  start.starts = starts
  yield start
  for each in launched:
    if each.process.poll() is None:
      each.process.send_signal(signal.SIGTERM)
      each.process.send_signal(signal.SIGKILL)


def test_every_process_gets_its_flags_and_the_others_lines_a_prefix(launch):
  code, out, err = launch("--processes=2", mode="end", tasks=NASTY).wait()
  assert code == 0
  assert sorted(out.splitlines()) == ["[1] hello from 1", "hello from 0"]
  assert "[1] bar 1\n[1] bar 2\n" in err  # cut into lines; process 0's progress bar is left alone
  assert err.replace("[1] bar 1\n[1] bar 2\n", "").splitlines() == ["bar 1", "bar 2"]
  flags = [launch.starts(i)[0]["flags"] for i in range(2)]
  assert [each["process_id"] for each in flags] == ["0", "1"]
  assert {each["num_processes"] for each in flags} == {"2"}
  assert len({each["coordinator"] for each in flags}) == 1
  assert re.fullmatch(r"127\.0\.0\.1:\d+", flags[0]["coordinator"])
  assert launch.starts(1)[0]["argv"][:2] == ["--mode=end", f"--tasks={NASTY}"]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_each_process_has_cores_of_its_own(launch):
  assert launch("--processes=2", "--cores_each=1", mode="end").wait()[0] == 0
  cores = [launch.starts(i)[0]["cores"] for i in range(2)]
  assert [len(each) for each in cores] == [1, 1] and cores[0] != cores[1]


def test_one_that_fails_ends_the_others_and_passes_its_code_on(launch, tmp_path):
  begin = time.monotonic()
  code, _, err = launch("--processes=3", "--grace=0.3", "--restarts=2", mode="fail").wait()
  assert code == 3 and time.monotonic() - begin < 10
  assert "process 1 ended with 3" in err and "process 0 has not ended; killing it" in err
  assert len(launch.starts(0)) == 1  # an error is not tried again
  status = pathlib.Path("/proc", (tmp_path / "out.worker").read_text(), "stat")
  assert not status.exists() or status.read_text().split()[2] == "Z"  # what it started has ended too


def test_a_lost_process_starts_all_again(launch):
  code, _, err = launch("--processes=2", "--restarts=3", mode="lost").wait()
  assert code == 0 and err.count("starting all again") == 2
  assert [len(launch.starts(i)) for i in range(2)] == [3, 3]
  ports = [[start["flags"]["coordinator"] for start in launch.starts(i)] for i in range(2)]
  assert ports[0] == ports[1]


def test_a_killed_process_is_a_lost_one(launch):
  assert launch("--processes=2", "--restarts=1", mode="kill").wait()[0] == 0
  assert [len(launch.starts(i)) for i in range(2)] == [2, 2]


def test_without_restarts_left_the_code_passes(launch):
  assert launch("--processes=2", "--restarts=1", mode="lost").wait()[0] == 75
  assert len(launch.starts(0)) == 2


@pytest.mark.parametrize(
  ("number", "patience"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGTERM, 2)]
)
def test_signals_go_to_all_each_time_and_nothing_is_started_again(launch, number, patience):
  run = launch("--processes=2", "--restarts=2", mode="wait", patience=patience)
  run.wait_for("hello", 2)
  for count in range(patience):
    assert run.process.poll() is None
    run.process.send_signal(number)
    run.wait_for("signal", 2 * (count + 1))
  code, out, err = run.wait()
  assert code == 128 + number and "again" not in err
  assert out.count(f"[1] signal {int(number)}\n") == patience and out.count("signal") == 2 * patience
  assert len(launch.starts(0)) == 1


def test_a_closed_terminal_counts_once(launch):
  before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup would have set otherwise
  try:
    run = launch("--processes=2", mode="wait", patience=2)
  finally:
    signal.signal(signal.SIGHUP, before)
  run.wait_for("hello", 2)
  run.process.send_signal(signal.SIGHUP)
  run.wait_for("signal", 2)
  run.process.send_signal(signal.SIGHUP)
  time.sleep(0.5)
  assert run.process.poll() is None
  run.process.send_signal(signal.SIGTERM)
  code, out, _ = run.wait()
  assert code == 143 and out.count("signal 15") == 4


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ([], "--processes"),
    (["--processes=0"], "at least 1"),
    (["--processes=2", "--config=x"], "come after --"),
    (["--processes=2", "--cores_each=10000"], "needs 20000 cores"),
    (["--processes=2", "--restarts=-1"], "negative"),
    (["--processes=2", "--", "--process_id=1"], "set by this launcher"),
  ],
)
def test_wrong_arguments_are_explained(arguments, message):
  command = [sys.executable, LAUNCH / "local_multiprocess.py", *arguments]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 2 and message in done.stderr


def test_an_installation_that_is_not_known_installs_nothing(tmp_path):
  env = os.environ | {"VENV": str(tmp_path / "environment")}
  done = subprocess.run(["bash", LAUNCH / "install.sh", "gpu"], env=env, capture_output=True, text=True)
  assert done.returncode == 1 and "gpu" in done.stderr and "[cuda|tpu]" in done.stderr
  assert not list(tmp_path.iterdir())


# Scripts. Their PATH holds the basic tools, and stand-ins that record their arguments.


@pytest.fixture
def tools(tmp_path):
  """tools(name, body): a stand-in on `tools.path`; tools.calls(name): the arguments it was called with."""
  folder = tmp_path / "bin"
  folder.mkdir()
  for name in (
    "bash",
    "cat",
    "date",
    "env",
    "git",
    "grep",
    "id",
    "mkdir",
    "mv",
    "rm",
    "sed",
    "setsid",
    "sleep",
  ):
    (folder / name).symlink_to(shutil.which(name))
  (folder / "tail").symlink_to(shutil.which("tail"))
  (folder / "python3").symlink_to(sys.executable)

  def stand_in(name, body=""):
    record = "import json, sys; print(json.dumps(sys.argv[2:]), file=open(sys.argv[1], 'a'))"
    script = (
      f'#!{folder}/bash\n{folder}/python3 -c {shlex.quote(record)} {tmp_path}/{name}.calls "$@"\n{body}\n'
    )
    (folder / name).write_text(script)
    (folder / name).chmod(0o755)

  def calls(name):
    path = tmp_path / f"{name}.calls"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

  stand_in.path, stand_in.calls = str(folder), calls
  return stand_in


def _script(tools, name, *arguments, **env):
  return subprocess.run(
    ["bash", LAUNCH / name, *arguments],
    env={"PATH": tools.path, "HOME": os.environ["HOME"]} | env,
    capture_output=True,
    text=True,
    timeout=60,
  )


def _commands(done):
  """The printed commands of a dry run, without their arguments after the name of the slice."""
  lines = [shlex.split(line) for line in done.stdout.splitlines()]
  return [" ".join(words[:5]) if words[0] == "gcloud" else words[0] for words in lines]


TPU = "gcloud compute tpus tpu-vm"


@pytest.mark.parametrize(
  ("command", "expected"),
  [
    ("create", [f"{TPU} create"]),
    ("delete", [f"{TPU} delete"]),
    ("stop", [f"{TPU} ssh"]),
    ("install", ["git", f"{TPU} scp", f"{TPU} ssh", f"{TPU} ssh"]),
    ("run", [f"{TPU} ssh"]),
    (
      "resume",
      [f"{TPU} {each}" for each in ("describe", "delete", "create")]
      + ["git"]
      + [f"{TPU} {each}" for each in ("scp", "ssh", "ssh", "ssh")],
    ),
  ],
)
def test_tpu_dry_run_prints_the_commands_and_needs_no_gcloud(tools, command, expected):
  done = _script(tools, "tpu_pod.sh", command, "--dry-run", "--bucket=gs://b/", "--", "--config=x:paper")
  assert done.returncode == 0, done.stderr
  assert _commands(done) == expected
  assert "# ACCELERATOR=v5litepod-16" in done.stderr and "# BUCKET=b\n" in done.stderr
  if command == "resume":
    watch = _script(tools, "tpu_pod.sh", "watch", "--bucket=b", "--", "--config=x:paper", DRY_RUN="1")
    assert watch.stdout == done.stdout


def test_tpu_settings_reach_gcloud(tools):
  flags = [
    "--name=n1",
    "--zone=z",
    "--project=p",
    "--accelerator=v6e-32",
    "--create-flags=--network=a --labels=b=c",
  ]
  done = _script(tools, "tpu_pod.sh", "create", "--dry-run", "--spot=0", *flags)
  assert shlex.split(done.stdout) == [
    *f"{TPU} create n1 --zone=z --project=p --accelerator-type=v6e-32 --network=a --labels=b=c".split(),
    "--version=v2-alpha-tpuv6e",
  ]
  queued = _script(tools, "tpu_pod.sh", "create", "--dry-run", "--queued", *flags).stdout.splitlines()
  assert queued[0].startswith("gcloud compute tpus queued-resources create n1 ") and "--spot" in queued[0]
  assert "--node-id=n1" in queued[0] and queued[1].startswith(
    "gcloud compute tpus queued-resources describe n1"
  )


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["fly"], "no command fly"),
    (["run", "--colour=red"], "no setting --colour=red"),
    (["run", "--config"], "not understood"),
    (["run", "--dry-run"], "all hosts must see"),
    (["run", "--dry-run", "--bucket=b", "--", "--config.workdir=x"], "--workdir=FOLDER before --"),
    (["create", "--dry-run", "--accelerator=v99-8"], "--version=IMAGE is needed"),
    (["create", "--dry-run", "--name=A b"], "small letters"),
    (["create"], "gcloud is needed"),
  ],
)
def test_tpu_mistakes_are_explained(tools, arguments, message):
  done = _script(tools, "tpu_pod.sh", *arguments)
  assert done.returncode == 2 and message in done.stderr and not done.stdout


@pytest.fixture
def host(tools, tmp_path):
  """A home folder as on a TPU host, with this script installed and a stand-in for the program."""
  home = tmp_path / "home"
  (home / "wam_jax/launch").mkdir(parents=True)
  for name in ("tpu_pod.sh", "settings.sh"):
    shutil.copy(LAUNCH / name, home / "wam_jax/launch")
  # The words after the ID, one a line, once; the code is in a file.
  program = f"""#!{tools.path}/bash
trap 'echo saved; exit 143' TERM
printf '%s\\n' "$@" > {home}/arguments; echo start >> {home}/starts; echo working
until [ -s {home}/end ]; do sleep 0.05; done
exit $(cat {home}/end)
"""
  (home / "program").write_text(program)
  (home / "program").chmod(0o755)
  return home


def test_what_is_installed_as_root_is_signed_or_nothing_is(tools, host):
  tools("curl", "echo KEY; exit ${CURL_CODE:-0}")
  tools("sudo", 'if [ "$1" = tee ]; then cat > /dev/null; fi')
  tools("lsb_release", "echo jammy")
  tools("uv")
  script = host / "wam_jax/launch/tpu_pod.sh"
  install = lambda **env: _script(tools, script, "_install", HOME=str(host), **env)
  assert install(BUCKET="b", GCSFUSE_VERSION="9.8.7").returncode == 0
  urls = [word for words in tools.calls("curl") for word in words if "://" in word]
  assert urls and all(url.startswith("https://packages.cloud.google.com/") for url in urls)
  installed = [words for words in tools.calls("sudo") if "install" in words]
  assert [words[-1] for words in installed] == ["gcsfuse=9.8.7"]
  assert install(BUCKET="b", CURL_CODE="22").returncode != 0
  assert [words for words in tools.calls("sudo") if "install" in words] == installed


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_every_locked_package_has_its_hashes(name):
  lines = (LAUNCH.parent / name).read_text().replace("\\\n", " ").splitlines()
  packages = [line for line in lines if line and not line.startswith("#")]
  assert len(packages) > 50 and not [line for line in packages if "--hash=sha256:" not in line]


def test_words_survive_gcloud_and_the_shell_on_the_host(tools, host):
  (host / "end").write_text("0")
  printed = _script(
    tools, "tpu_pod.sh", "run", "--dry-run", "--bucket=", "--workdir=/w d", "--", f"--config.tasks={NASTY}"
  )
  tools("gcloud")
  env = {"PATH": tools.path, "HOME": str(host), "WAM_PYTHON": str(host / "program")}
  assert subprocess.run(["bash", "-c", printed.stdout], env=env).returncode == 0  # as if pasted
  [call] = tools.calls("gcloud")
  assert call[:4] == ["compute", "tpus", "tpu-vm", "ssh"] and "--worker=all" in call
  [command] = [word.partition("=")[2] for word in call if word.startswith("--command=")]
  done = subprocess.run(
    ["bash", "-c", command], env=env, cwd=host, capture_output=True, text=True
  )  # as sshd does
  assert done.returncode == 0 and done.stdout == "working\n", done.stderr
  words = (host / "arguments").read_text().splitlines()
  assert words == ["-m", "wam_jax.main", f"--config.tasks={NASTY}", "--config.workdir=/w d"]


def test_a_broken_connection_finds_the_run_and_a_new_start_ends_it_first(tools, host):
  env = {"PATH": tools.path, "HOME": str(host), "WAM_PYTHON": str(host / "program")}
  command = ["bash", host / "wam_jax/launch/tpu_pod.sh", "_run"]
  lost = subprocess.Popen([*command, "id1", "a"], env=env, stdout=subprocess.PIPE, text=True)
  assert lost.stdout.readline() == "working\n"
  lost.kill()
  again = subprocess.Popen([*command, "id1", "a"], env=env, stdout=subprocess.PIPE, text=True)
  assert again.stdout.readline() == "working\n"
  assert (host / "starts").read_text() == "start\n"
  other = subprocess.Popen([*command, "id2", "b"], env=env, stdout=subprocess.PIPE, text=True)
  assert again.communicate(timeout=10)[0] == "saved\n"
  assert again.returncode in (75, 143)  # its code is gone when the other start is quicker
  assert other.stdout.readline() == "working\n"
  (host / "end").write_text("7")
  assert other.wait(10) == 7
  assert subprocess.run([*command, "id2", "b"], env=env, stdout=subprocess.DEVNULL).returncode == 7
  assert (host / "starts").read_text() == "start\nstart\n"
  lost.stdout.close(), again.stdout.close(), other.stdout.close()


def test_tpu_stop_ends_the_run(tools, host):
  env = {"PATH": tools.path, "HOME": str(host), "WAM_PYTHON": str(host / "program")}
  script = host / "wam_jax/launch/tpu_pod.sh"
  assert subprocess.run(["bash", script, "_stop"], env=env).returncode == 0  # nothing runs
  run = subprocess.Popen(["bash", script, "_run", "id"], env=env, stdout=subprocess.PIPE, text=True)
  assert run.stdout.readline() == "working\n"
  assert subprocess.run(["bash", script, "_stop"], env=env).returncode == 0
  assert run.communicate(timeout=10)[0] == "saved\n" and run.returncode == 143


WATCHED = """
read -r step < "$PLAN"
next() { sed 1d "$PLAN" > "$PLAN.new"; mv "$PLAN.new" "$PLAN"; }
case "$*" in
  *queued-resources*describe*) echo ACTIVE ;;
  *describe*)
    case $step in
      ERROR*) next; echo "${step#* }" >&2; exit 1 ;;
      *) echo "${step%% *}" ;;
    esac ;;
  *_run*) next; exit "${step##* }" ;;
esac
"""


@pytest.mark.parametrize(
  ("plan", "code", "expected"),
  [
    # state before and code of each run, and the state afterwards
    (["READY 0", "READY -"], 0, "install run"),
    (["MISSING 0", "READY -"], 0, "create install run"),
    (["READY 255", "PREEMPTED 0", "READY -"], 0, "install run delete create install run"),
    (["READY 1", "TERMINATED 0", "READY -"], 0, "install run delete create install run"),
    (["READY 75", "READY 143", "READY 0", "READY -"], 0, "install run run run"),
    (["READY 1", "READY -"], 1, "install run"),
    (["READY 75", "READY 75", "READY 75", "READY -"], 75, "install run run run"),
    # gcloud is asked again for the reason
    (["ERROR NOT_FOUND: wam", "ERROR NOT_FOUND: wam", "READY 0", "READY -"], 0, "delete create install run"),
    (["ERROR no network", "ERROR no network", "READY 0", "READY -"], 0, "install run"),
  ],
)
def test_tpu_watch_goes_on_after_preemption_and_stops_at_errors(tools, tmp_path, plan, code, expected):
  path = tmp_path / "plan"
  path.write_text("\n".join(plan) + "\n")
  tools("gcloud", WATCHED)
  flags = ["--bucket=b", "--repository=https://example.com/r.git", "--retry-seconds=0", "--max-restarts=2"]
  flags += ["--queued=1"] if plan[0].startswith("ERROR") else []
  done = _script(tools, "tpu_pod.sh", "watch", *flags, "--", "--config=x", PLAN=str(path))
  assert done.returncode == code, done.stderr
  kinds = []
  for call in tools.calls("gcloud"):
    text = " ".join(call)
    kinds += [kind for kind in ("create", "delete") if call[3] == kind]
    kinds += ["install"] if "_install" in text else ["run"] if "_run" in text else []
  assert " ".join(kinds) == expected


# SLURM.

SLURM_ENV = {"SLURM_JOB_ID": "17", "PYTHON": "bash"}


def _slurm(tools, srun, state="RUNNING", **env):
  tools("srun", srun)
  tools("scontrol", f"[ $1 = requeue ] || echo '   JobState={state} Reason=None'")
  return _script(tools, "slurm.sbatch", "--config=x", f"--config.tasks={NASTY}", **(SLURM_ENV | env))


@pytest.mark.parametrize(
  ("code", "again"), [(0, False), (1, False), (2, False), (137, False), (143, True), (75, True)]
)
def test_slurm_queues_again_what_goes_on(tools, code, again):
  done = _slurm(tools, f"exit {code}")
  assert done.returncode == code, done.stderr
  assert tools.calls("scontrol") == ([["show", "job", "17"], ["requeue", "17"]] if again else [])
  [call] = tools.calls("srun")
  assert call[-5:] == ["bash", "-m", "wam_jax.main", "--config=x", f"--config.tasks={NASTY}"]


def test_slurm_does_not_queue_again_what_was_cancelled_or_for_ever(tools):
  assert _slurm(tools, "exit 143", state="CANCELLED").returncode == 143
  done = _slurm(tools, "exit 75", SLURM_RESTART_COUNT="3", MAX_REQUEUES="3")
  assert done.returncode == 75 and "3 times already" in done.stdout
  assert ["requeue", "17"] not in tools.calls("scontrol")
  assert _slurm(tools, "exit 75", SLURM_RESTART_COUNT="2", MAX_REQUEUES="3").returncode == 75
  assert ["requeue", "17"] in tools.calls("scontrol")
  missing = _script(tools, "slurm.sbatch", PYTHON="/nowhere/python")
  assert missing.returncode == 2 and "No Python at /nowhere/python" in missing.stderr


@pytest.mark.parametrize("code", [143, 1])
def test_slurm_waits_for_the_run_when_it_is_signalled_itself(tools, code):
  tools("srun", f"echo started; sleep 1.5; exit {code}")
  tools("scontrol", "[ $1 = requeue ] || echo JobState=RUNNING")
  process = subprocess.Popen(
    ["bash", LAUNCH / "slurm.sbatch"], env={"PATH": tools.path} | SLURM_ENV, stdout=subprocess.PIPE, text=True
  )
  assert process.stdout.readline() == "started\n"
  process.send_signal(signal.SIGTERM)
  out, _ = process.communicate(timeout=20)
  assert process.returncode == code and "waiting for the run to save" in out
  assert (["requeue", "17"] in tools.calls("scontrol")) == (code == 143)


def test_slurm_header():
  header = dict(
    re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", (LAUNCH / "slurm.sbatch").read_text(), re.MULTILINE)
  )
  assert (
    header["ntasks-per-node"] == header["gpus-per-node"]
  )  # JAX gives a process the GPU of its SLURM_LOCALID
  assert header["signal"].startswith("TERM@") and "requeue" in header and header["open-mode"] == "append"


# GKE.


def _jobset(tools, *arguments):
  done = _script(tools, "gke.sh", "show", "--image=i", *arguments)
  assert done.returncode == 0, done.stderr
  jobset = yaml.safe_load(done.stdout)
  job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
  return jobset, job, job["template"]["spec"]


def _expanded(text):
  """What Kubernetes makes of command and args: $$ is a $."""
  assert not re.search(r"(?<!\$)(\$\$)*\$\(", text)
  return text.replace("$$", "$")


def test_gke_asks_for_no_more_chips_than_a_slice_has(tools):
  _, job, pod = _jobset(tools, "--topology=1x1", "--bucket=gs://b")
  assert job["parallelism"] == 1
  assert pod["containers"][0]["resources"]["limits"]["google.com/tpu"] in (1, "1")


def test_gke_jobset_for_a_tpu_slice(tools, tmp_path):
  jobset, job, pod = _jobset(
    tools,
    "--name=n",
    "--topology=2x2x4",
    "--bucket=gs://b",
    "--spot",
    "--queue=q",
    "--",
    f"--config.tasks={NASTY}",
  )
  assert jobset["metadata"]["name"] == "n" and jobset["metadata"]["labels"] == {
    "kueue.x-k8s.io/queue-name": "q"
  }
  assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (4, 4, 0)
  rule = job["podFailurePolicy"]["rules"][0]
  assert rule["action"] == "FailJob" and rule["onExitCodes"]["operator"] == "NotIn"
  assert {75, 143} <= set(rule["onExitCodes"]["values"]) and not {1, 2, 130} & set(
    rule["onExitCodes"]["values"]
  )
  assert jobset["spec"]["failurePolicy"]["rules"] == [
    {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
  ]
  assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "2x2x4"
  assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
  assert pod["volumes"][0]["csi"]["volumeAttributes"]["bucketName"] == "b"
  [container] = pod["containers"]
  assert container["name"] == rule["onExitCodes"]["containerName"]
  assert container["resources"]["limits"] == {"google.com/tpu": 4}
  tools("python")
  command = [_expanded(word) for word in container["command"] + container["args"]]
  subprocess.run(command, env={"PATH": tools.path}, check=True)
  assert tools.calls("python") == [
    ["-m", "wam_jax.main", f"--config.tasks={NASTY}", "--config.workdir=/mnt/wam_jax/runs/n"]
  ]


def test_gke_jobset_for_gpu_nodes_says_where_process_0_is(tools):
  jobset, job, pod = _jobset(
    tools,
    "--name=n",
    "--gpus=8",
    "--hosts=2",
    "--accelerator=nvidia-h100-80gb",
    "--claim=c",
    "--",
    "--config=x",
  )
  assert job["parallelism"] == 2 and "annotations" not in jobset["metadata"]
  assert pod["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
  assert pod["volumes"] == [{"name": "runs", "persistentVolumeClaim": {"claimName": "c"}}]
  [container] = pod["containers"]
  assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
  tools("python")
  command = [_expanded(word) for word in container["command"] + container["args"]]
  subprocess.run(command, env={"PATH": tools.path, "JOB_COMPLETION_INDEX": "1"}, check=True)
  assert tools.calls("python")[0][2:] == [
    "--config=x",
    "--config.workdir=/mnt/wam_jax/runs/n",
    "--coordinator=n-host-0-0.n:8476",
    "--num_processes=2",
    "--process_id=1",
  ]


def test_gke_dry_run_and_submit(tools):
  flags = ["--image=i", "--bucket=b", "--", "--config=x"]
  for command, expected in (("status", 2), ("logs", 1), ("delete", 1)):
    done = _script(tools, "gke.sh", command, "--dry-run")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == expected
    assert all(line.startswith("kubectl --namespace=default ") for line in done.stdout.splitlines())
  printed = _script(tools, "gke.sh", "submit", "--dry-run", *flags)
  shown = _script(tools, "gke.sh", "show", *flags)
  assert printed.returncode == 0 and shown.stdout in printed.stdout
  tools("kubectl", '[ "$1" != apply ] || cat > "$APPLIED"; case "$*" in *" get "*) echo "$FOUND";; esac')
  for found, kinds in (("", ["get", "apply"]), ("wam Failed", ["get", "delete", "apply"]), ("wam ", ["get"])):
    before = len(tools.calls("kubectl"))
    applied = pathlib.Path(tools.path) / "applied"
    done = _script(tools, "gke.sh", "submit", *flags, FOUND=found, APPLIED=str(applied))
    calls = [" ".join(call) for call in tools.calls("kubectl")[before:]]
    assert len(calls) == len(kinds) and all(kind in call for kind, call in zip(kinds, calls, strict=True))
    assert done.returncode == (0 if "apply" in kinds else 2)
  assert applied.read_text() == shown.stdout


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (["show"], "--image=IMAGE is needed"),
    (["show", "--image=i"], "all hosts must see"),
    (["show", "--image=i", "--bucket=b", "--topology=4by4"], "as 4x4"),
    (["show", "--image=i", "--bucket=b", "--gpus=8"], "--hosts=N is needed"),
    (["submit", "--image=i", "--bucket=b"], "kubectl is needed"),
    (["sail"], "no command sail"),
  ],
)
def test_gke_mistakes_are_explained(tools, arguments, message):
  done = _script(tools, "gke.sh", *arguments)
  assert done.returncode == 2 and message in done.stderr and not done.stdout


@pytest.mark.parametrize("name", ["tpu_pod.sh", "slurm.sbatch", "gke.sh"])
def test_scripts_are_sound(name):
  assert subprocess.run(["bash", "-n", LAUNCH / name]).returncode == 0
