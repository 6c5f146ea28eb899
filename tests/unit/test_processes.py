"""The connection between processes, by threads of this one; whole processes are in tests/integration."""

from __future__ import annotations

import socket
import threading
import time

import jax
import numpy as np
import pytest

from wam_jax.host import processes
from wam_jax.training import sharding


class Trio:
  """Three groups as in three processes; what each heard of losses."""

  def __init__(self, junk=()):
    self.lost = [[], [], []]
    note = lambda i: lambda other, code: self.lost[i].append((other, code))
    self.groups = [processes._Group(i, 3, note(i)) for i in range(3)]
    server = processes.open_port()
    port = server.getsockname()[1]
    serving = threading.Thread(target=self.groups[0].serve, args=(server, "secret"))
    serving.start()
    for data in junk:
      with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.sendall(data)
    self.groups[1].connect(("127.0.0.1", port), "secret")
    self.groups[2].connect(("::1" if socket.has_dualstack_ipv6() else "127.0.0.1", port), "secret")
    serving.join(20)
    assert not serving.is_alive()

  def gather(self, *values, which=(0, 1, 2)):
    out = {}
    threads = [
      threading.Thread(target=lambda i=i: out.update({i: self.groups[i].gather(values[i])})) for i in which
    ]
    [thread.start() for thread in threads]
    [thread.join(20) for thread in threads]
    assert len(out) == len(which)
    return out


def wait_for(check):
  deadline = time.monotonic() + 10
  while not check():
    assert time.monotonic() < deadline
    time.sleep(0.01)


def test_all_hear_what_each_says_whatever_knocks_at_the_port():
  junk = [b"5\n", b"{}\n", b"[]\n", b'["hello", "wrong", 1]\n', b"[" * 100_000 + b"\n", b""]
  junk += ['["hello", "é", 1]\n'.encode(), b"secret 00000003\n", b"secret 0000000\xff\n", b"\0" * 99]
  trio = Trio(junk)
  for i in range(3):
    values = [{"step": i}, [i, "two"], None]
    assert trio.gather(*values) == dict.fromkeys(range(3), values)
  assert trio.lost == [[], [], []]


@pytest.mark.parametrize("words", [b'["beat"]\n', b"s", b""])
def test_who_does_not_say_the_token_in_time_holds_up_nobody(monkeypatch, words):
  monkeypatch.setattr(processes, "CONNECT_SECONDS", 0.6)
  monkeypatch.setattr(processes, "HELLO_SECONDS", 0.3)
  monkeypatch.setattr(processes, "MOST_STRANGERS", 3)
  server = processes.open_port()
  port = server.getsockname()[1]
  group = processes._Group(0, 3, None)
  errors, ended = [], threading.Event()

  def serve():
    with pytest.raises(processes.ProcessesError) as error:
      group.serve(server, "secret")
    errors.append(str(error.value))
    ended.set()

  threading.Thread(target=serve).start()
  strangers = [socket.create_connection(("127.0.0.1", port)) for _ in range(5)]
  processes._Group(2, 3, lambda *_: None).connect(("127.0.0.1", port), "secret")
  dropped = set()
  while not ended.wait(0.05):  # they go on talking, each less than a hello
    for i, sock in enumerate(strangers):
      try:
        sock.sendall(words)
      except OSError:
        dropped.add(i)
  assert set(group._connections) == {2} and "[1]" in errors[0]
  assert not words or dropped == set(range(5))


@pytest.mark.parametrize(
  ("host", "address"),
  [("127.0.0.1", "127.0.0.1"), ("localhost", "127.0.0.1"), ("192.0.2.1", ""), ("no.such.host.invalid", "")],
)
def test_the_port_is_open_at_the_coordinators_address_only(host, address):
  assert processes.address_to_listen_at(host) == address
  with processes.open_port(address=address) as server:
    assert not address or server.getsockname()[0] == address


def test_an_end_is_told_to_all_and_a_broken_connection_is_a_loss():
  trio = Trio()
  trio.groups[2].end(1)  # an error there: the first passes it on
  wait_for(lambda: trio.lost[0] and trio.lost[1])
  assert trio.lost[0] == [(2, 1)] and trio.lost[1] == [(2, 1)]
  trio = Trio()
  trio.groups[1]._connections[0]._socket.shutdown(socket.SHUT_RDWR)  # as the system does for a killed process
  wait_for(lambda: trio.lost[0] and trio.lost[2])
  assert trio.lost[0] == [(1, None)] and trio.lost[2] == [(1, processes.LOST)]


def test_a_good_end_is_no_loss():
  trio = Trio()
  trio.gather(None, None, None)
  for group in trio.groups[::-1]:
    group.end(0)
  time.sleep(0.2)
  assert trio.lost == [[], [], []]


def test_silence_is_a_loss(monkeypatch):
  monkeypatch.setattr(processes, "SILENCE_SECONDS", 0.3)
  monkeypatch.setattr(processes, "BEAT_SECONDS", 60.0)
  trio = Trio()
  wait_for(lambda: all(trio.lost))
  assert trio.lost[0][0][1] is None


def test_one_process_alone():
  assert (processes.index(), processes.count(), processes.is_first()) == (0, 1, True)
  assert processes.gather("x") == ["x"]
  with processes.first_goes_first():
    pass
  assert processes.finish(3) == 3


@pytest.mark.parametrize(
  ("coordinator", "environ", "wanted"),
  [
    ("", {"JAX_PLATFORMS": "cpu"}, False),
    ("host:1", {"JAX_PLATFORMS": "cpu"}, True),
    # In a batch script beside srun's steps there is a job, but no step of several tasks.
    ("", {"JAX_PLATFORMS": "cpu", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, False),
    ("", {"JAX_PLATFORMS": "cpu", "SLURM_STEP_NUM_TASKS": "8"}, True),
    ("", {"JAX_PLATFORMS": "cpu", "SLURM_STEP_NUM_TASKS": "1"}, False),
    ("", {"JAX_PLATFORMS": "cpu", "OMPI_COMM_WORLD_SIZE": "2"}, True),
    ("", {"JAX_PLATFORMS": "cpu", "TPU_WORKER_HOSTNAMES": "a,b"}, True),
    ("", {"JAX_PLATFORMS": "cpu", "TPU_WORKER_HOSTNAMES": "a"}, False),
  ],
)
def test_whether_there_are_others(coordinator, environ, wanted):
  assert processes.wanted(coordinator, environ) == wanted


def test_half_an_address_is_refused():
  with pytest.raises(processes.ProcessesError, match="--process_id=I, from 0 to N - 1, not N=2, I=2"):
    processes.start("host:1", 2, 2)


def test_rows_of_a_process_are_consecutive_on_a_pod(monkeypatch):
  """A pod's devices, listed by its torus, and one process's share."""

  class Device:
    platform = "tpu"

    def __init__(self, index, process_index):
      self.id, self.process_index = index, process_index

  torus = [Device(i, p) for i, p in enumerate([0, 0, 1, 1, 1, 1, 0, 0])]
  monkeypatch.setattr(jax, "devices", lambda: torus)
  made = {}
  monkeypatch.setattr(sharding, "Mesh", lambda devices, *args, **kwargs: made.update(devices=devices))
  sharding.make_mesh()
  assert [d.process_index for d in np.ravel(made["devices"])] == [0] * 4 + [1] * 4
  with pytest.raises(ValueError, match="9 wanted, there are 8"):
    sharding.make_mesh(9)
