"""Files that were damaged: the command ends well with finite figures, or says what is wrong in a line of ours."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_process import SMALL, fresh, run

from attempts import judge, mutate_bytes, mutations, readers

QUICK = ("dataset", "teacher", "evaluate", "arch", "results", "report", "proxies", "unreal", "quantize", "noise")
READERS = [
    reader
    for reader in readers.READERS
    if reader.words.split()[0] in QUICK and reader.of.split("/")[0] in (*SMALL, "files")
]


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: f"{reader.words.split()[0]} {reader.of}")
def test_a_sound_file_is_read(reader: readers.Reader, place: Path) -> None:
    """What is damaged below was sound before: else no damage could be told from it."""
    with fresh(place):
        words, _ = prepared(reader, place)
        end = run(words)
    assert end.status == 0, end


@settings(max_examples=500, deadline=None, derandomize=True)
@given(reader=st.sampled_from(READERS), seed=st.integers(0, 2**32))
def test_damaged_files(reader: readers.Reader, seed: int, place: Path) -> None:
    random = Random(seed)
    with fresh(place) as here:
        words, subject = prepared(reader, place)
        file = random.choice(readers.files(subject))
        done = mutations.damage(file, random)
        end = run(words)
        told = f"{shlex.join(words)}: {file.name} {done}: {end}"
        assert end.error is None and end.status in (0, 1, 2), told
        assert not re.search(r"\b(NaN|Infinity)\b", end.output.splitlines()[-1] if end.status == 0 else ""), told
        assert not judge.undefined(here / "out"), told
        assert not (here / "ESCAPED").exists(), told


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    reader=st.sampled_from(
        [reader for reader in READERS if reader.words.split()[0] in ("evaluate", "unreal", "quantize")]
    ),
    seed=st.integers(0, 2**32),
)
def test_a_flipped_bit_of_an_artifact_is_noticed(reader: readers.Reader, seed: int, place: Path) -> None:
    """One bit of weights or images: the run that reads them is refused."""
    random = Random(seed)
    with fresh(place):
        words, subject = prepared(reader, place)
        files = [file for file in readers.files(subject) if file.suffix in (".npy", ".safetensors")]
        if files:
            file = random.choice(files)
            file.write_bytes(mutate_bytes.flip(file.read_bytes(), random))
            end = run(words)
            assert end.status == 2, f"{shlex.join(words)}: {file.name}: {end}"


def prepared(reader: readers.Reader, place: Path) -> tuple[list[str], Path]:
    """The words with a copy of what the reader reads."""
    source = place / "stock" / reader.of
    subject = Path("subject" + "".join(source.suffixes))
    shutil.copytree(source, subject) if source.is_dir() else shutil.copy(source, subject)
    return shlex.split(reader.words.replace("subject", str(subject))), subject
