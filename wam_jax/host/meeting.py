"""The processes of a run wait for each other at the address of the first one, before JAX connects them.

JAX waits in silence, and ends the process by a stack dump when its time is over. Here each process says who
is missing at what address. The first one listens at the port that JAX takes over afterwards; the others tell
it their index and how many they are.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import select
import socket
import sys
import time

LOST = 75  # exit code when another process is gone or did not come: the same command may go on
CONNECT_SECONDS = 300.0
HELLO_SECONDS = 5.0  # for who connects to say who it is
NOTE_SECONDS, AGAIN_SECONDS = 3.0, 60.0  # until the first line about who is missing, between equal ones
_TICK_SECONDS = 1.0
MOST_STRANGERS = 64  # connections at a time that have not said who they are; the oldest makes room
_HELLO = re.compile(rb"wam_jax (\d{1,6}) (\d{1,6})\n")


class ProcessesError(Exception):
  """The processes of a run do not find each other or do not belong together. `code` is for the exit."""

  code = 1


class MissingProcessError(ProcessesError):
  """Other processes did not come in time."""

  code = LOST


def split_address(address: str) -> tuple[str, int]:
  """HOST:PORT, with an IPv6 host in brackets -> (host, port).

  Raises:
    ProcessesError: it is not of that form.
  """
  match = re.fullmatch(r"(\[[0-9a-fA-F:.%\w]+\]|[^\s:/\[\]]+):(\d{1,5})", address)
  if not match or not 0 < int(match[2]) < 65536:
    raise ProcessesError(
      f"--coordinator={address} must be HOST:PORT: that of process 0, and a free port there, as node1:12355"
    )
  return match[1].strip("[]"), int(match[2])


def address_to_listen_at(host: str) -> str:
  """The one address of this machine that a coordinator's name means; empty: all of them.

  A name that means several, or none of this machine (behind a translating router), is listened for at all. So
  is a machine's name that means its loopback here (Debian), because elsewhere it means something else.
  """
  try:
    addresses = {str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    if host == "localhost":
      return "127.0.0.1" if "127.0.0.1" in addresses else "::1"
    address = addresses.pop()
    if addresses or (ipaddress.ip_address(address).is_loopback and address != host):
      return ""
    open_port(address=address).close()
  except (OSError, ValueError):
    return ""
  return address


def address_to_bind(address: str) -> str | None:
  """HOST:PORT of the first process -> where it listens, as JAX wants it; None: at all its addresses."""
  host, port = split_address(address)
  host = address_to_listen_at(host)
  return f"[{host}]:{port}" if ":" in host else f"{host}:{port}" if host else None


def open_port(port: int = 0, address: str = "") -> socket.socket:
  """A server at a port (0: any free one) of an address; empty: of all, of both kinds where there are both."""
  if address:
    return socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
  if socket.has_dualstack_ipv6():
    return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
  return socket.create_server(("", port))


def meet(address: str, count: int, index: int) -> None:
  """Returns when all processes of the run are there.

  Args:
    address: HOST:PORT of the first.
    count: of processes.
    index: of this one, from 0.

  Raises:
    MissingProcessError: not all came within CONNECT_SECONDS.
    ProcessesError: the address is none, its port is taken, or a process counts otherwise.
  """
  host, port = split_address(address)
  notes = _Notes()
  if index:
    _join(host, port, count, index, notes)
    return
  try:
    server = open_port(port, address_to_listen_at(host))
  except OSError as error:
    raise ProcessesError(
      f"process 0 cannot listen at port {port} of this machine ({error.strerror}): end what uses it, or "
      "choose another --coordinator=HOST:PORT in all processes"
    ) from error
  with server:
    _receive(server, address, count, notes)


class _Notes:
  """Lines about who is waited for: after a moment, when they change, and once a minute."""

  def __init__(self) -> None:
    self.text = ""
    self.deadline = time.monotonic() + CONNECT_SECONDS
    self._printed, self._due = "", time.monotonic() + NOTE_SECONDS

  def __call__(self, text: str) -> None:
    """Raises MissingProcessError when the time is over."""
    self.text, now = text, time.monotonic()
    if now > self.deadline:
      raise MissingProcessError(
        f"the processes of this run do not find each other: {CONNECT_SECONDS:.0f} s of {text}. Start all "
        "with the same command, --process_id aside, on hosts that reach that address; then try again"
      )
    if now >= self._due and (text != self._printed or now >= self._due + AGAIN_SECONDS):
      print(f"{text}, for up to {self.deadline - now:.0f} s more", file=sys.stderr, flush=True)
      self._printed, self._due = text, now


def _waiting(missing: list[int], count: int, address: str) -> str:
  shown = ", ".join(map(str, missing[:8])) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
  return f"waiting for process{'es' * (len(missing) > 1)} {shown} of {count} at {address}"


def _receive(server: socket.socket, address: str, count: int, notes: _Notes) -> None:
  """First process: waits for the others."""
  strangers: dict[socket.socket, tuple[float, bytes]] = {}
  present: dict[int, socket.socket] = {}

  def close(sock: socket.socket, answer: str = "") -> None:
    strangers.pop(sock, None)
    _send(sock, answer)
    sock.close()

  try:
    while missing := [i for i in range(1, count) if i not in present]:
      text = _waiting(missing, count, address)
      notes(text)
      ready, _, _ = select.select([server, *strangers, *present.values()], [], [], _TICK_SECONDS)
      for sock in ready:
        if sock is server:
          with contextlib.suppress(OSError):  # gone again before it was let in
            new = server.accept()[0]
            new.setblocking(False)
            strangers[new] = (time.monotonic() + HELLO_SECONDS, b"")
          continue
        try:
          data = sock.recv(64)
        except OSError:
          data = b""
        if sock not in strangers:
          for i in [i for i, other in present.items() if other is sock]:
            del present[i]  # its process has ended, or does what it should not
          close(sock)
          continue
        until, before = strangers[sock]
        hello = before + data
        match = _HELLO.fullmatch(hello)
        if match:
          told, i = map(int, match.groups())
          if told != count:
            close(
              sock, f"no process 0 counts {count} processes, this one {told}: start all with the same command"
            )
          elif not 0 < i < count or i in present:
            close(sock, f"no another process {i} is there already: give each its own --process_id")
          else:
            del strangers[sock]
            present[i] = sock
        elif not data or len(hello) > 64:
          close(sock)
        else:
          strangers[sock] = (until, hello)
      late = [sock for sock, (until, _) in strangers.items() if until < time.monotonic()]
      for sock in {*late, *list(strangers)[:-MOST_STRANGERS]}:
        close(sock)
      for sock in present.values():
        _send(sock, text)
    for sock in present.values():
      _send(sock, "go")
  finally:
    for sock in [*strangers, *present.values()]:
      sock.close()


def _send(sock: socket.socket, line: str) -> None:
  with contextlib.suppress(OSError):  # its end is noticed when it is read
    sock.sendall(f"{line}\n".encode() if line else b"")


def _join(host: str, port: int, count: int, index: int, notes: _Notes) -> None:
  """Other processes: waits for the first, and for its word that all are there."""
  place = f"waiting for process 0 of {count} at {host}:{port}"
  while True:
    problem = "something else answers there"
    try:
      with socket.create_connection((host, port), HELLO_SECONDS) as sock:
        sock.sendall(f"wam_jax {count} {index}\n".encode())
        lines = sock.makefile("rb")
        while line := lines.readline(1000).decode(errors="replace").strip():
          if line == "go":
            return
          if line.startswith("no "):
            raise ProcessesError(line[3:])
          if not line.startswith("waiting for process"):
            break
          notes(line)
    except OSError as error:
      problem = error.strerror or str(error)
    notes(f"{place} ({problem})")
    time.sleep(_TICK_SECONDS)
