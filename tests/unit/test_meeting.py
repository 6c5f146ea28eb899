"""Processes that wait for each other, as threads of this one."""

from __future__ import annotations

import concurrent.futures
import os
import socket
import subprocess
import sys
import time

import pytest

from wam_jax.host import meeting


@pytest.fixture
def address(monkeypatch):
  monkeypatch.setattr(meeting, "_TICK_SECONDS", 0.05)
  monkeypatch.setattr(meeting, "NOTE_SECONDS", 0.1)
  with meeting.open_port() as server:
    port = server.getsockname()[1]
  return f"127.0.0.1:{port}"


def meet(address, *places):
  """meet(address, count, index) of each, side by side: what each raised, or None."""
  with concurrent.futures.ThreadPoolExecutor(len(places)) as pool:
    return [pool.submit(meeting.meet, address, *place) for place in places]


@pytest.mark.parametrize(
  "text",
  [
    "node1",
    "node1:",
    ":1234",
    "node1:x",
    "node1:0",
    "node1:70000",
    "http://node1:80",
    "::1:80",
    "a b:80",
    "",
  ],
)
def test_an_address_has_a_host_and_a_port(text):
  with pytest.raises(meeting.ProcessesError, match="HOST:PORT"):
    meeting.split_address(text)


def test_addresses():
  assert meeting.split_address("node-1.lan:12355") == ("node-1.lan", 12355)
  assert meeting.split_address("[fe80::1]:80") == ("fe80::1", 80)


def test_all_meet_whatever_knocks(address):
  host, port = meeting.split_address(address)
  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    first = pool.submit(meeting.meet, address, 4, 0)
    knocks = [
      b"",
      b"GET / HTTP/1.1\r\n",
      b"wam_jax 4 0\n",
      b"wam_jax 4 9\n",
      "wam_jax é".encode(),
      b"x" * 9999,
      b"wam",
    ]
    strangers = []
    for data in knocks:
      while True:
        try:
          strangers.append(socket.create_connection((host, port)))
          break
        except ConnectionRefusedError:
          time.sleep(0.01)
      strangers[-1].sendall(data)
    others = [pool.submit(meeting.meet, address, 4, i) for i in (3, 1, 2)]
    for future in (first, *others):
      assert future.result(20) is None
    for sock in strangers:
      sock.close()


def test_who_is_missing_is_told_and_at_the_limit_raised(address, monkeypatch, capsys):
  monkeypatch.setattr(meeting, "CONNECT_SECONDS", 0.7)
  futures = meet(address, (3, 0), (3, 2))
  for future in futures:
    with pytest.raises(meeting.MissingProcessError, match=f"process 1 of 3 at {address}"):
      future.result()
  assert f"waiting for process 1 of 3 at {address}" in capsys.readouterr().err
  assert meeting.MissingProcessError.code == meeting.LOST == 75


def test_the_first_is_missing(address, monkeypatch, capsys):
  monkeypatch.setattr(meeting, "CONNECT_SECONDS", 0.4)
  with pytest.raises(meeting.MissingProcessError, match=f"process 0 of 2 at {address}"):
    meeting.meet(address, 2, 1)


def test_processes_that_do_not_belong_together(address, monkeypatch):
  monkeypatch.setattr(meeting, "CONNECT_SECONDS", 1.0)
  first, other = meet(address, (3, 0), (2, 1))
  with pytest.raises(meeting.ProcessesError, match="counts 3 processes, this one 2"):
    other.result()
  assert isinstance(first.exception(), meeting.MissingProcessError)
  _, port = meeting.split_address(address)
  with meeting.open_port(port), pytest.raises(meeting.ProcessesError, match=f"cannot listen at port {port}"):
    meeting.meet(address, 2, 0)


def test_a_program_whose_others_do_not_come_ends_by_our_sentence(tmp_path):
  """Also by cluster variables, and without JAX's stack dump."""
  code = """
from absl import app
from wam_jax import main
from wam_jax.host import meeting
meeting.CONNECT_SECONDS, meeting.NOTE_SECONDS = 1.5, 0.5
app.run(main.main, flags_parser=main.parse)"""
  with meeting.open_port() as server:
    port = server.getsockname()[1]
  flags = ["--config=calvin_wam:demo", f"--config.workdir={tmp_path}", f"--coordinator=127.0.0.1:{port}"]
  command = [sys.executable, "-c", code, *flags, "--num_processes=2", "--process_id=0"]
  done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=100)
  assert done.returncode == meeting.LOST and "Traceback" not in done.stderr, done.stderr
  assert f"waiting for process 1 of 2 at 127.0.0.1:{port}" in done.stderr.splitlines()[0]
