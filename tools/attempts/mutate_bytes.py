"""Mutators of any file: bits, ends, holes, and what stands in place of a file that was not there."""

from __future__ import annotations

from random import Random

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234567\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body>Not Found</body></html>\n"


def flip(content: bytes, random: Random) -> bytes:
    """One bit, anywhere."""
    if not content:
        return b"\x01"
    changed = bytearray(content)
    changed[random.randrange(len(changed))] ^= 1 << random.randrange(8)
    return bytes(changed)


def flip_start(content: bytes, random: Random) -> bytes:
    """One bit among the first 200 bytes, where headers are."""
    return flip(content[:200], random) + content[200:]


def flip_many(content: bytes, random: Random) -> bytes:
    """Twenty bits."""
    for _ in range(20):
        content = flip(content, random)
    return content


def cut(content: bytes, random: Random) -> bytes:
    """The file ends early."""
    return content[: random.randrange(len(content))] if content else b"x"


def empty(content: bytes, random: Random) -> bytes:
    """Nothing."""
    return b"" if content else b"\n"


def garbage(content: bytes, random: Random) -> bytes:
    """As many random bytes."""
    return random.randbytes(max(1, len(content)))


def zeros(content: bytes, random: Random) -> bytes:
    """As many NUL bytes, as after a crash of the machine."""
    return bytes(max(1, len(content)))


def longer(content: bytes, random: Random) -> bytes:
    """Random bytes after the end."""
    return content + random.randbytes(random.choice((1, 8, 1000)))


def hole(content: bytes, random: Random) -> bytes:
    """A page of NUL bytes in the midst."""
    at = random.randrange(len(content) + 1)
    return content[:at] + bytes(min(4096, len(content) - at)) + content[at + 4096 :]


def pointer(content: bytes, random: Random) -> bytes:
    """A pointer of git-LFS, or a page that says 404."""
    return random.choice((POINTER, PAGE, b"hello\n", "Grüße, 世界\n".encode(), "text".encode("utf-16")))
