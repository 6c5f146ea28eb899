"""Pickles made to crash a process, to fill its memory, or never to end: by hand, Python writes none."""

from __future__ import annotations

import struct
import zipfile

NAME = "encoder.fuse.0.weight"


def number(n):
  return b"\x8a\x08" + struct.pack("<q", n)


def text(x):
  return b"X" + struct.pack("<I", len(x)) + x.encode()


def name(module, thing):
  return f"c{module}\n{thing}\n".encode()


EMPTY = name("numpy._core.multiarray", "_reconstruct") + name("numpy", "ndarray") + b"K\0\x85C\x01b\x87R"
OBJECT = name("numpy", "dtype") + text("O8") + b"\x89\x88\x87R"
FLOAT = name("numpy", "dtype") + text("f8") + b"\x89\x88\x87R"


def filled(shape, dtype, content, array=EMPTY):
  return array + b"(K\x01" + shape + dtype + b"\x89" + content + b"tb"


# What may be in any file, whoever reads it: keys and sizes that lie.
CONTAINERS = {
  "deep": b"N" + b"\x85" * 50_000,
  "holds itself": b"]q\0h\0h\0\x86a",
  "each other too often": b"]" + b"q\0]h\0h\0\x86a" * 28,
}
KEYS = {
  "deep": b"N" + b"\x85" * 50_000,
  "shared": b"N" + b"2\x86" * 64,
  "large": b"\x8a\xff" + b"\x01" * 255,
  "array": filled(b"K\x01\x85", FLOAT, b"C\x08" + bytes(8)),
}
HARMFUL = {
  **{f"value {kind}": b"\x80\x04" + steps + b"." for kind, steps in CONTAINERS.items()},
  **{f"key {kind}": b"\x80\x04}" + steps + b"Ns." for kind, steps in KEYS.items()},
  **{f"key of a dict at once {kind}": b"\x80\x04(" + steps + b"Nd." for kind, steps in KEYS.items()},
  **{f"member {kind}": b"\x80\x04\x8f(" + steps + b"\x90." for kind, steps in KEYS.items()},
  **{f"frozen member {kind}": b"\x80\x04(" + steps + b"\x91." for kind, steps in KEYS.items()},
  **{f"set of {kind}": name("builtins", "set") + b"]" + steps + b"a\x85R." for kind, steps in KEYS.items()},
  "short objects": b"\x80\x04" + filled(number(10**6) + b"\x85", OBJECT, b"]") + b".",
  "short numbers": b"\x80\x04" + filled(number(10**6) + b"\x85", FLOAT, b"C\x08" + bytes(8)) + b".",
  "short buffer": b"\x80\x04"
  + name("numpy._core.numeric", "_frombuffer")
  + b"(C\x08"
  + bytes(8)
  + FLOAT
  + number(10**6)
  + b"\x85"
  + text("C")
  + b"tR.",
  "sizes below 0": b"\x80\x04" + filled(number(-1) + number(-1) + b"\x86", FLOAT, b"C\x08" + bytes(8)) + b".",
  "sizes beyond any": b"\x80\x04" + filled(number(2**62) + b"K\0\x86", FLOAT, b"C\0") + b".",
  "arrays in arrays": b"\x80\x04"
  + filled(b"K\x01\x85", OBJECT, b"](" + filled(b"K\x01\x85", OBJECT, b"]Na") + b"e")
  + b".",
  "filled twice": b"\x80\x04" + filled(b"K\0\x85", OBJECT, b"]", filled(b"K\0\x85", OBJECT, b"]")) + b".",
  "filled later": b"\x80\x04" + EMPTY + b"q\0" + filled(b"K\x01\x85", OBJECT, b"]h\0a") + b".",
  "entries of an array": b"\x80\x04" + filled(b"K\x01\x85", OBJECT, b"]Na") + b"K\0Ns.",
  "entries of a list": b"\x80\x04]K\0Ns.",
  "items of bytes": b"\x80\x05\x96" + struct.pack("<Q", 1) + b"x" + b"K\0a.",
  "state of a list": b"\x80\x04]}" + text("a") + b"Nsb.",
  "state of a set": b"\x80\x04\x8f}b.",
  "the same over and over": b"\x80\x04]("
  + b"N" * 30_000
  + b"eq\0"
  + filled(number(30_000) + b"\x85", OBJECT, b"h\0") * 99,
}


# ---------------------------------------------------------------------------------------------
# The same for weights.


def tensor(size, stride, *more):
  storage = b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x04tQ"
  ordered = name("collections", "OrderedDict") + b")R"
  rebuild = name("torch._utils", "_rebuild_tensor_v2")
  return rebuild + b"(" + storage + b"K\0" + size + stride + b"\x89" + ordered + b"tR" + b"".join(more)


def checkpoint(path, steps, compression=zipfile.ZIP_STORED):
  with zipfile.ZipFile(path, "w", compression) as archive:
    archive.writestr("archive/data.pkl", b"\x80\x02" + steps + b".")
    archive.writestr("archive/data/0", bytes(16))
  return path


SOUND = tensor(b"K\x04\x85", b"K\x01\x85")

HARMFUL_WEIGHTS = (
  b"}"
  + text(NAME)
  + tensor(b"K\x04\x85", b"K\x01\x85", b"}" + text("stride") + number(-1) + b"\x85sb")
  + b"s",
  b"}"
  + text(NAME)
  + tensor(b"K\x04\x85", b"K\x01\x85", b"N}" + text("offset") + number(-9) + b"s\x86b")
  + b"s",
  b"}" + text(NAME) + tensor(number(2**40) + b"\x85", b"K\0\x85") + b"s",  # one number, 2^40 times
  b"}" + text(NAME) + tensor(b"K\x04\x85", number(-1) + b"\x85") + b"s",
  b"}" + text(NAME) + tensor(b"G" + bytes(8) + b"\x85", b"K\0\x85") + b"s",
  b"}" + text(NAME) + SOUND + b"s" + text("x") + CONTAINERS["deep"] + b"s",
  b"}" + text(NAME) + SOUND + b"s" + text("x") + CONTAINERS["holds itself"] + b"s",
  b"N" + b"2\x86" * 64 + b"Q",  # a persistent id whose text would never end
)
