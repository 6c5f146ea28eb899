"""What a file is by its first bytes, where it is not what its name says."""

from __future__ import annotations

import os

from wam_jax.host.regular_files import open_file

HEAD = 512  # bytes to look at
_UNPACK = "unpack it, and name the file inside."
_SAVE = "load it with torch and save its state_dict() again, or save the weights as npz."
_DOWNLOAD = (
  "open its address in a browser to see why (a login, a warning, a file that moved), then download it again."
)
_KINDS: tuple[tuple[bytes, str, str], ...] = (
  (
    b"version https://git-lfs",
    "a Git LFS pointer, not the file itself",
    "run git lfs pull where it was cloned.",
  ),
  (b"/annex/objects/", "a git-annex pointer, not the file itself", "run git annex get where it was cloned."),
  (b"outs:", "a pointer of DVC, not the file itself", "run dvc pull where it was cloned."),
  (b"<?xml", "an answer of a server in XML: the download did not work", _DOWNLOAD),
  (b"<", "a web page: the download did not work", _DOWNLOAD),
  (
    b"{",
    "JSON text: a server's answer, or the index of several files",
    "give the file with the numbers themselves.",
  ),
  (b"\x1f\x8b", "compressed with gzip", _UNPACK),
  (b"BZh", "compressed with bzip2", _UNPACK),
  (b"\xfd7zXZ\0", "compressed with xz", _UNPACK),
  (b"\x28\xb5\x2f\xfd", "compressed with zstd", _UNPACK),
  (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
  (b"Rar!", "a rar archive", _UNPACK),
  (b"\x89HDF\r\n", "an HDF5 file", "save the arrays in it as npz."),
  (b"\x93NUMPY", "a single NumPy array (npy)", "save all arrays by their names with np.savez."),
  (b"GGUF", "a GGUF file", "save the weights as safetensors or npz."),
  (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19", "in the format of before torch 1.6", _SAVE),
  (b"\x80", "a pickle of Python objects, which is never run", _SAVE),
)


def describe_file(path: str | os.PathLike[str]) -> tuple[str, str]:
  """`describe` of a file; ('', '') where there is none that can be read."""
  try:
    with open_file(path) as file:
      return describe(file.read(HEAD))
  except OSError:
    return "", ""


def describe(head: bytes) -> tuple[str, str]:
  """What a file is, and what to do to get the one that was meant.

  Args:
    head: its first HEAD bytes, or all if it has fewer.

  Returns:
    (what it is, what to do), both '' for bytes of no kind that is known here.
  """
  if head[4:9] == b"\0\0\0\0{":  # safetensors, whose first bytes are a length and may be anything
    return "", ""
  if head[257:262] == b"ustar":
    return "a tar archive", _UNPACK
  text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
  for magic, what, fix in _KINDS:
    if head.startswith(magic) or text.startswith(magic.lower() if magic[0] < 0x80 else magic):
      return what, fix
  return "", ""
