"""Files are whole, typed, unchanged, finite, and one writer's."""

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typing_extensions import TypedDict

from phosphene.errors import DatasetError, NotFinite, RunError, StorageError, is_memory
from phosphene.storage import arrays, checksums, finite, lock, tensors, typed, whole


class Facts(TypedDict):
    name: str
    sizes: list[int]


# -- whole -------------------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    whole.write(path, "one")
    with pytest.raises(ZeroDivisionError), whole.replacing(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "one" and os.listdir(tmp_path) == ["a.txt"]
    with whole.replacing(path) as temporary:
        assert temporary.suffix == ".txt" and whole.unfinished(temporary)
        temporary.write_text("two")
    assert path.read_text() == "two" and os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_names_the_file_and_the_bytes(tmp_path: Path) -> None:
    says = r"a\.bin cannot be written: No space left .*2\.0 MiB needed.*make room"
    with pytest.raises(StorageError, match=says), whole.replacing(tmp_path / "a.bin", 2 << 20):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(StorageError, match="No such file or directory; name another --out"):
        whole.write(tmp_path / "no" / "a.bin", b"")


def test_space_is_reserved_before_it_is_mapped(tmp_path: Path) -> None:
    code = (
        "import resource, pathlib, sys; from phosphene.storage import whole\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)); path = pathlib.Path(sys.argv[1])\n"
        "with open(path, 'w+b') as file: whole.reserve(file, path, 1 << 22)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "big.npy"], capture_output=True, text=True)
    assert "StorageError" in done.stderr and "4.0 MiB needed" in done.stderr, done.stderr
    with open(tmp_path / "small.npy", "w+b") as file:
        whole.reserve(file, tmp_path / "small.npy", 1 << 20)
    assert os.stat(tmp_path / "small.npy").st_blocks * 512 >= 1 << 20


# -- typed -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'{"name": 3, "sizes": []}', r"name should be a valid string \(got 3\); do this"),
        (b'{"name": "a", "sizes": [1, "2"]}', r"sizes\.1 should be a valid integer \(got '2'\)"),
        (b'{"name": "a"}', "sizes is missing"),
        (b"[1]", "the content should be an object"),
        (b'{"name": NaN}', "is damaged: expected value at line 1"),
        (b"", "is damaged: EOF"),
        (b'{"name": "\xff"}', "is damaged: invalid unicode"),
        (b'{"sizes":' * 100_000, "is damaged: recursion limit"),
        (b'{"name": 1' + b"0" * 10_000 + b"}", "is damaged: number out of range"),
    ],
)
def test_json_of_another_type_names_file_key_and_remedy(tmp_path: Path, text: bytes, says: str) -> None:
    path = tmp_path / "facts.json"
    path.write_bytes(text)
    with pytest.raises(DatasetError, match=says) as caught:
        typed.read(path, Facts, DatasetError, "do this")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_json_of_its_type_comes_back_with_all_its_keys(tmp_path: Path) -> None:
    typed.write_json(tmp_path / "facts.json", {"name": "a", "sizes": [1, 2], "more": float("nan")})
    assert typed.read(tmp_path / "facts.json", Facts) == {"name": "a", "sizes": [1, 2], "more": None}
    with pytest.raises(RunError, match=r"No such file or directory"):
        typed.read(tmp_path / "none.json", Facts)


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"name": "a", "sizes": []}\n{"name": "b", "si')
    assert [one["name"] for one in typed.lines(tmp_path / "log.jsonl", Facts)] == ["a"]
    (tmp_path / "log.jsonl").write_text('{"name": "a", "sizes": []}\n{"name": 1, "sizes": []}\n')
    with pytest.raises(RunError, match=r"line 2: name should be a valid string"):
        typed.lines(tmp_path / "log.jsonl", Facts)


# -- checksums ---------------------------------------------------------------------------------------------------------


def flip(path: Path, at: int = -1) -> None:
    """Change one bit, and nothing of the file's size."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_flipped_bit_is_noticed_unless_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.bin", "b.bin"):
        (tmp_path / name).write_bytes(b"x" * 100)
        checksums.record(tmp_path, name)
    checksums.verify(tmp_path, "a.bin", "b.bin", "absent.bin")
    time.sleep(0.01)
    flip(tmp_path / "b.bin")
    with pytest.raises(DatasetError, match=r"b\.bin was changed since it was written.*; make it again, or remove"):
        checksums.verify(tmp_path, "a.bin", "b.bin", error=DatasetError)
    monkeypatch.setenv("PHOSPHENE_CHECKSUMS", "off")
    checksums.verify(tmp_path, "a.bin", "b.bin")


def test_a_file_is_read_for_its_checksum_once_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.bin").write_bytes(b"x")
    checksums.record(tmp_path, "a.bin")
    checksums._verified.clear()
    checksums.verify(tmp_path, "a.bin")
    monkeypatch.setattr(checksums, "digest", lambda path: pytest.fail("read again"))
    checksums.verify(tmp_path, "a.bin")


def test_damaged_checksums_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"x")
    (tmp_path / "checksums.json").write_text('{"a.bin": 3}')
    with pytest.raises(RunError, match=r"checksums\.json: a\.bin should be a valid string"):
        checksums.verify(tmp_path, "a.bin")


# -- locks -------------------------------------------------------------------------------------------------------------

HOLD = (
    "import sys, time, pathlib; from phosphene.storage import lock; lock.take(pathlib.Path(sys.argv[1]))\n"
    "print('in', flush=True); time.sleep(60)"
)


def test_another_process_in_a_folder_is_named_and_a_dead_one_is_not(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "in\n"
        with pytest.raises(RunError, match=rf"another process is at work in .*\(process {other.pid} on .*, since 20"):
            lock.take(tmp_path)
    finally:
        other.kill()
        other.wait()
    assert (tmp_path / lock.LOCK).exists()  # left behind, and no hindrance
    with lock.alone_in(tmp_path), lock.alone_in(tmp_path):
        assert json.loads((tmp_path / lock.HOLDER).read_text())["process"] == os.getpid()
    assert not any(tmp_path.iterdir())


# -- tensors and arrays ------------------------------------------------------------------------------------------------


def test_weights_are_stored_finite_and_read_unchanged(tmp_path: Path) -> None:
    path, weights = tmp_path / "w.safetensors", {"a": torch.arange(6.0).view(2, 3).t(), "n": torch.tensor(3)}
    tensors.save(path, weights)
    assert torch.equal(tensors.load(path)["a"], weights["a"])
    with pytest.raises(NotFinite, match=r"a has 1 of 3 values that are NaN or infinite"):
        tensors.save(path, {"a": torch.tensor([1.0, float("nan"), 2.0])})
    assert set(load_file(path)) == {"a", "n"}
    time.sleep(0.01)
    flip(path)
    with pytest.raises(RunError, match="was changed since"):
        tensors.load(path)
    path.write_text("<html>")
    (tmp_path / "checksums.json").unlink()
    with pytest.raises(RunError, match="cannot be read"):
        tensors.load(path)


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\x06\x00{'a':\n", b"PK\x03\x04" + b"\0" * 40]
)
def test_damaged_arrays_are_one_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DatasetError, match="cannot be read as plain arrays"):
        arrays.mapped(tmp_path / "a.npy")
    with pytest.raises(DatasetError, match="cannot be read as plain arrays"), arrays.read_npz(tmp_path / "a.npy"):
        pass


def test_arrays_come_back(tmp_path: Path) -> None:
    arrays.save(tmp_path / "a.npy", np.arange(3))
    assert arrays.mapped(tmp_path / "a.npy").tolist() == [0, 1, 2]
    np.savez(tmp_path / "a.npz", x=np.arange(3))
    with arrays.read_npz(tmp_path / "a.npz") as found:
        assert found["x"].tolist() == [0, 1, 2]


# -- finite ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_value_that_is_not_finite_is_found(value: float, dtype: torch.dtype) -> None:
    tensor = torch.zeros(1000, dtype=dtype)
    assert finite.is_finite(tensor)
    tensor[700] = value
    assert not finite.is_finite(tensor)
    assert finite.first_bad({"a": torch.ones(2), "b": tensor}) == "b has 1 of 1,000 values that are NaN or infinite"
    if dtype != torch.bfloat16:
        assert finite.bad_values(tensor.numpy()) == (700, 1)


def test_large_finite_values_are_finite() -> None:
    assert finite.is_finite(torch.full((100,), 3e38)) and finite.is_finite(torch.full((100,), 6e4, dtype=torch.half))
    assert finite.is_finite(torch.zeros(0)) and finite.is_finite(torch.arange(3))
    assert finite.bad_values(np.array([[1.0], [np.nan], [np.inf]])) == (1, 2)
    assert finite.bad_values(np.array([[1.0], [np.nan]]), nan=True) is None


def test_states_are_those_of_modules_tensors_and_collections() -> None:
    net = nn.BatchNorm1d(2)
    states = {"net": net, "x": torch.ones(1), "more": {"a": [torch.ones(1)], "b": 3}}
    own = [f"net.{name}" for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
    assert [name for name, _ in finite.states(states)] == [*own, "x", "more.a.0"]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried …"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("could not execute a primitive"),
    ],
)
def test_a_lack_of_memory_is_known_in_every_form(error: BaseException) -> None:
    assert is_memory(error) and not is_memory(RuntimeError("shapes differ")) and not is_memory(OSError(2, "no file"))


def test_what_is_no_text_is_written_so_that_it_can_be_read_again(tmp_path):
    typed.write_json(tmp_path / "x.json", {"path": "a\udcff", "b\udcff": [1, "日"]})
    assert typed.read_json(tmp_path / "x.json") == {"path": r"a\udcff", r"b\udcff": [1, "日"]}
