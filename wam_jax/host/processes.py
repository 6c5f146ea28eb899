"""The processes of a run: usually one; on several hosts, or by launch/local_multiprocess.py, several.

JAX connects the devices. In addition every process holds a connection to the first one, by which they wait
for each other and agree, answering signals meanwhile, and by which a process that is gone is noticed: at once
when the system closes its connection, otherwise when it has been silent for SILENCE_SECONDS. JAX notices
too, later, and aborts with a stack dump.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import secrets
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from wam_jax.host.meeting import (
  CONNECT_SECONDS,
  HELLO_SECONDS,
  LOST,
  MOST_STRANGERS,
  MissingProcessError,
  ProcessesError,
  address_to_bind,
  address_to_listen_at,
  meet,
  open_port,
  split_address,
)

__all__ = ["LOST", "MissingProcessError", "ProcessesError"]

BEAT_SECONDS = 3.0
SILENCE_SECONDS = 30.0
START_SECONDS = 90.0  # that JAX may take to connect processes that are all there
STOP_SECONDS = 10.0  # between a stopped process's end and that of the others
MOST_BYTES = 1 << 24  # of a line


class _Connection:
  """Lines of JSON over a socket; may be written to by several threads."""

  def __init__(self, sock: socket.socket):
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.settimeout(SILENCE_SECONDS)
    self._socket, self._lock = sock, threading.Lock()
    self._lines = sock.makefile("rb")

  def send(self, kind: str, *content: Any) -> None:
    message = json.dumps([kind, *content]).encode() + b"\n"
    with self._lock, contextlib.suppress(OSError):  # the reader notices that the other side is gone
      self._socket.sendall(message)

  def receive(self) -> list[Any] | None:
    """The next line but heartbeats; None when the other side is gone or has been silent for too long."""
    try:
      while True:
        line = self._lines.readline(MOST_BYTES)
        message: Any = json.loads(line) if line else None
        if not (isinstance(message, list) and message):
          return None
        if message[0] != "beat":
          return message
    except (OSError, ValueError, RecursionError):
      return None

  def greet(self, hello: bytes) -> None:
    """Sends what the first process admits this one by."""
    with contextlib.suppress(OSError):  # as in `send`
      self._socket.sendall(hello)


def _hello(token: str, process: int) -> bytes:
  """The first bytes of a connection to the first process; always as many."""
  return f"{token} {process:08d}\n".encode()


class _Door:
  """The open port of the first process: anything may knock, who does not say the token in time is sent away.

  Reads no byte behind the hello.

  Args:
    server: bound and listening; closed with this.
    token: that the other processes know.
    count: processes of the run.
  """

  def __init__(self, server: socket.socket, token: str, count: int):
    self._server = server
    self._expected = {_hello(token, process): process for process in range(1, count)}
    self._length = len(_hello(token, 0))
    self._strangers: dict[socket.socket, tuple[float, bytes]] = {}  # deadline and what came, oldest first

  def __enter__(self) -> _Door:
    return self

  def __exit__(self, *_: object) -> None:
    for sock in (self._server, *self._strangers):
      sock.close()

  def admit(self, until: float) -> Iterator[tuple[int, socket.socket]]:
    """Waits for one thing to happen at the port, until that time at the latest.

    Yields:
      Processes that have said the token, with their connections.
    """
    now = time.monotonic()
    for sock in [sock for sock, (deadline, _) in self._strangers.items() if deadline <= now]:
      self._turn_away(sock)
    first = min([until, *(deadline for deadline, _ in self._strangers.values())])
    ready, _, _ = select.select([self._server, *self._strangers], [], [], max(first - now, 0.0))
    for sock in ready:
      if sock is self._server:
        self._let_in()
      elif sock in self._strangers:
        process = self._listen_to(sock)
        if process is not None:
          del self._strangers[sock]
          yield process, sock

  def _let_in(self) -> None:
    while len(self._strangers) >= MOST_STRANGERS:
      self._turn_away(next(iter(self._strangers)))
    with contextlib.suppress(OSError):  # gone again before it was let in
      sock = self._server.accept()[0]
      sock.setblocking(False)
      self._strangers[sock] = (time.monotonic() + HELLO_SECONDS, b"")

  def _listen_to(self, sock: socket.socket) -> int | None:
    """Which process a connection is, once it has said so; one that says anything else is sent away."""
    deadline, said = self._strangers[sock]
    try:
      more = sock.recv(self._length - len(said))
    except BlockingIOError:
      return None
    except OSError:
      more = b""
    said += more
    self._strangers[sock] = deadline, said
    if more and len(said) < self._length:
      return None
    # All are compared: how long it takes tells nothing.
    processes = [process for hello, process in self._expected.items() if hmac.compare_digest(hello, said)]
    if not processes:
      self._turn_away(sock)
    return processes[0] if processes else None

  def _turn_away(self, sock: socket.socket) -> None:
    del self._strangers[sock]
    sock.close()


class _Group:
  """The connections between the processes, and what they have told each other."""

  def __init__(self, index: int, count: int, lost: Callable[[int, int | None], None]):
    self.index, self.count = index, count
    self._lost = lost
    self._ending = False
    self._round = 0
    self._answers: dict[int, dict[int, Any]] = {}  # round -> process -> value (first process only)
    self._agreed: dict[int, list[Any]] = {}  # round -> values of all
    self._change = threading.Condition()
    self._connections: dict[int, _Connection] = {}

  def serve(self, server: socket.socket, token: str) -> None:
    """First process: takes the others' connections.

    Raises:
      ProcessesError: some did not come.
    """
    deadline = time.monotonic() + CONNECT_SECONDS
    threading.Thread(target=self._beat, daemon=True).start()
    with _Door(server, token, self.count) as door:
      while len(self._connections) < self.count - 1:
        if time.monotonic() > deadline:
          missing = sorted(set(range(1, self.count)) - set(self._connections))
          raise ProcessesError(
            f"processes {missing} did not connect to process 0 within {CONNECT_SECONDS} s: the hosts must be "
            f"able to reach port {server.getsockname()[1]} of this one"
          )
        for process, sock in door.admit(until=deadline):
          self._connections.setdefault(process, _Connection(sock))
    self._start()

  def connect(self, address: tuple[str, int], token: str) -> None:
    """Other processes: connects to the first.

    Raises:
      ProcessesError: it cannot be reached.
    """
    try:
      connection = _Connection(socket.create_connection(address, CONNECT_SECONDS))
    except OSError as error:
      raise ProcessesError(f"process 0 cannot be reached at {address[0]}:{address[1]}: {error}") from error
    connection.greet(_hello(token, self.index))
    self._connections[0] = connection
    threading.Thread(target=self._beat, daemon=True).start()
    self._start()

  def _start(self) -> None:
    for process in self._connections:
      threading.Thread(target=self._listen, args=(process,), daemon=True).start()

  def _beat(self) -> None:
    while True:
      for connection in list(self._connections.values()):
        connection.send("beat")
      time.sleep(BEAT_SECONDS)

  def _listen(self, process: int) -> None:
    connection, code = self._connections[process], None
    while (message := connection.receive()) is not None:
      kind, *content = message
      with self._change:
        if kind == "value":
          self._answers.setdefault(content[0], {})[process] = content[1]
        elif kind == "agreed":
          self._agreed[content[0]] = content[1]
        elif kind == "end":  # of a process, and its exit code
          process, code = content
          break
        self._change.notify_all()
    if self._ending or code == 0:
      return
    for connection in self._connections.values() if self.index == 0 else ():
      connection.send("end", process, LOST if code is None else code)
    self._lost(process, code)

  def gather(self, value: Any) -> list[Any]:
    """Values of all processes, by their index; all must call this in the same order."""
    self._round += 1
    with self._change:
      if self.index == 0:
        answers = self._answers.setdefault(self._round, {})
        while len(answers) < self.count - 1:
          self._change.wait(0.5)  # shortly, so that Python answers signals
        values = [value, *(answers[i] for i in range(1, self.count))]
        del self._answers[self._round]
      else:
        self._connections[0].send("value", self._round, value)
        while self._round not in self._agreed:
          self._change.wait(0.5)
        values = self._agreed.pop(self._round)
    if self.index == 0:
      for connection in self._connections.values():
        connection.send("agreed", self._round, values)
    return values

  def end(self, code: int) -> None:
    """Tells the others that this process ends."""
    self._ending = True
    for connection in self._connections.values():
      connection.send("end", self.index, code)


_group: _Group | None = None


def index() -> int:
  """Of this process, from 0."""
  return _group.index if _group else 0


def count() -> int:
  """Processes of this run."""
  return _group.count if _group else 1


def is_first() -> bool:
  """Whether this process writes what the run writes once."""
  return index() == 0


def gather(value: Any) -> list[Any]:
  """The value of each process, by index; waits for all. All processes must call this in the same order.

  Args:
    value: anything that JSON takes.
  """
  return _group.gather(value) if _group else [value]


@contextlib.contextmanager
def first_goes_first() -> Iterator[None]:
  """Lets the first process go through a block alone; the others follow when it has."""
  if not is_first():
    gather(None)
  yield
  if is_first():
    gather(None)


def wanted(coordinator: str, environ: Mapping[str, str] = os.environ) -> bool:
  """Whether this process may be one of several, by the flags or by what SLURM, Open MPI or a TPU pod tell.

  Args:
    coordinator: the flag, may be empty.
    environ: environment variables.
  """
  return bool(coordinator) or _launched_in_group(environ) or _on_tpu(environ)


def _launched_in_group(environ: Mapping[str, str]) -> bool:
  def number(name: str) -> int:
    text = environ.get(name, "")
    return int(text) if text.isdigit() else 0

  # Inside a batch script, next to the steps that srun starts, SLURM_STEP_NUM_TASKS is unset or 1.
  several = max(number("SLURM_STEP_NUM_TASKS"), number("OMPI_COMM_WORLD_SIZE")) > 1
  hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES") or ""
  return several or "," in hosts


def _on_tpu(environ: Mapping[str, str]) -> bool:
  """A Cloud TPU machine: whether its slice has more hosts only JAX can ask."""
  platforms = environ.get("JAX_PLATFORMS") or "tpu"
  return "tpu" in platforms and any(os.path.exists(path) for path in ("/dev/accel0", "/dev/vfio/0"))


def start(coordinator: str = "", num_processes: int = 0, process_id: int = -1) -> None:
  """Connects this process to the others, before JAX is used.

  Args:
    coordinator: host:port of the first process; empty: as SLURM, Open MPI or the TPU pod say.
    num_processes: of the run, with `coordinator`.
    process_id: of this one, from 0, with `coordinator`.

  Raises:
    MissingProcessError: other processes did not come.
    ProcessesError: the arguments are not complete, or the processes do not belong together.
  """
  global _group
  if coordinator and not (num_processes >= 1 and 0 <= process_id < num_processes):
    raise ProcessesError(
      "--coordinator=HOST:PORT needs --num_processes=N and --process_id=I, from 0 to N - 1, "
      f"not N={num_processes}, I={process_id}"
    )
  if coordinator:
    split_address(coordinator)
  import jax
  import numpy as np

  try:
    place = (coordinator, num_processes, process_id) if coordinator else _place_in_cluster()
    if place is None:
      return  # a TPU or the like that belongs to no pod
    address, count, index = place
    if count > 1:
      meet(address, count, index)
    gone = f"the processes of this run met at {address}, but one has gone since; try the same command again"
    timer = threading.Timer(START_SECONDS, _exit, (LOST, gone))  # JAX itself would abort with a stack dump
    timer.daemon = True
    timer.start()
    bind = address_to_bind(address) if index == 0 else None
    try:
      if coordinator:
        jax.distributed.initialize(*place, coordinator_bind_address=bind)
      else:
        jax.distributed.initialize(coordinator_bind_address=bind)
    finally:
      timer.cancel()
    if jax.process_count() == 1:
      return
    from jax._src.distributed import global_state  # nothing public says where the first process is
    from jax.experimental import multihost_utils

    host = str(global_state.coordinator_address).rsplit(":", 1)[0].strip("[]")
    token = np.frombuffer(secrets.token_bytes(16), np.uint8).astype(np.int32)
    server = open_port(address=address_to_listen_at(host)) if jax.process_index() == 0 else None
    port = server.getsockname()[1] if server else 0
    # Also the first exchange between devices: JAX sets it up within 30 seconds or fails, and the processes
    # are never again as close together.
    port, *token = multihost_utils.broadcast_one_to_all(np.array([port, *token], np.int32)).tolist()
  except ProcessesError:
    raise
  except Exception as error:  # JAX's search for SLURM, Open MPI and others fails in many ways
    what = f"{type(error).__name__}: {error}"  # of a KeyError the text alone is a variable's name
    raise ProcessesError(f"the processes of this run do not find each other: {what}") from error
  group = _Group(jax.process_index(), jax.process_count(), _end_with)
  secret = bytes(token).hex()
  if server:
    group.serve(server, secret)
  else:
    group.connect((host, port), secret)
  _group = group


def _place_in_cluster() -> tuple[str, int, int] | None:
  """Address of the first process, how many there are and which one this is, as JAX finds it out.

  Returns:
    None if this process is alone.

  Raises:
    Exception: of any kind, where a launcher's variables do not fit together.
  """
  from jax._src.clusters import ClusterEnv  # `jax.distributed.initialize` says it only when it has connected

  try:
    address, count, index, _ = ClusterEnv.auto_detect_unset_distributed_params(
      os.environ.get("JAX_COORDINATOR_ADDRESS"), None, None, None, None, int(CONNECT_SECONDS)
    )
    if address is None or count is None or index is None:
      raise ValueError("JAX knows no such launcher; give --coordinator, --num_processes and --process_id")
  except (ValueError, OSError):  # a machine that only has a TPU, `wanted` by that alone, is in no pod
    if _launched_in_group(os.environ):
      raise
    return None
  return address, count, index


def _end_with(process: int, code: int | None) -> None:
  """Ends this process because another one did: what is computed together cannot go on."""
  if code is None or code == LOST:
    text = f"process {process} is gone; the same command in all processes goes on from the last checkpoint"
    code = LOST
  elif code > 128:
    time.sleep(STOP_SECONDS)  # this one may have been stopped too, and ends in its own way
    text = f"process {process} was stopped; the same command in all processes goes on from what is saved"
  else:
    text = f"process {process} ended with code {code}; its own message says why"
  _exit(code, text)


def _exit(code: int, text: str = "") -> NoReturn:
  """Without JAX's own end, which waits for all processes."""
  with contextlib.suppress(Exception):
    if text:
      print(f"\n{text}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
  os._exit(code)


def finish(code: int) -> int:
  """Ends this process's part in the run, before it exits.

  Args:
    code: its exit code. If that is not 0 and there are other processes, this one ends here.

  Returns:
    The code.
  """
  global _group
  if _group is None:
    return code
  if code:
    _group.end(code)
    _exit(code)
  gather(None)
  _group.end(0)
  _group = None
  import jax

  jax.distributed.shutdown()
  return code


def failed(error: BaseException) -> None:
  """To be called when JAX raised: if that was because another process is gone, this does not return."""
  if _group is not None and type(error).__module__.startswith("jax"):
    time.sleep(
      SILENCE_SECONDS + 5
    )  # the thread that listens to the others ends this process with its message
