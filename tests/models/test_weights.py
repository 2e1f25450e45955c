"""Weights files: whatever is in them, one line says what is wrong; nothing hangs or is taken for what it is not."""

from __future__ import annotations

import io
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from phosphene import models
from phosphene.errors import TeacherError
from phosphene.models import weights


def zipped() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("notes.txt", "no weights")
    return content.getvalue()


NOT_WEIGHTS = {
    "nothing": (b"", "empty file"),
    "text": (b"no weights\n", "is text"),
    "JSON": (b'{"loss": 1.0}', "is text"),
    "HTML": (b"\n<!DOCTYPE html>\n<html>", "HTML"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "is a git LFS pointer, not the"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(40), "is a picture"),
    "zip": (zipped(), "is a zip archive"),
    "noise": (bytes(range(256)), "is it complete"),
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("what", NOT_WEIGHTS)
def test_other_files_are_told_by_name(tmp_path, what, suffix):
    content, message = NOT_WEIGHTS[what]
    (tmp_path / f"w{suffix}").write_bytes(content)
    with pytest.raises(TeacherError, match=message) as caught:
        weights.read(tmp_path / f"w{suffix}")
    assert len(str(caught.value).splitlines()) == 1 and f"w{suffix}" in str(caught.value)


def test_formats_under_the_name_of_the_other(tmp_path):
    torch.save({"w": torch.zeros(2)}, tmp_path / "w.safetensors")
    save_file({"w": torch.zeros(2)}, tmp_path / "w.pt")
    with pytest.raises(TeacherError, match=r"name it \.pt"):
        weights.read(tmp_path / "w.safetensors")
    with pytest.raises(TeacherError, match=r"name it \.safetensors"):
        weights.read(tmp_path / "w.pt")


@pytest.mark.parametrize(("name", "message"), [(".", "is a folder"), ("n" * 400, "too long"), ("none", "no such file")])
def test_paths_that_name_no_file(tmp_path, name, message):
    with pytest.raises(TeacherError, match=message):
        weights.read(tmp_path / name)


def test_lack_of_memory_is_no_damage(tmp_path, monkeypatch):
    save_file({"w": torch.zeros(2)}, tmp_path / "w.safetensors")

    def full(path):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(weights, "load_file", full)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        weights.read(tmp_path / "w.safetensors")


def endless() -> dict:
    content: dict = {"w": torch.zeros(2)}
    content["model"] = {"state_dict": content}
    return content


def nested() -> dict:
    content: dict = {"w": torch.zeros(2)}
    for _ in range(200):
        content = {"model": content}
    return content


@pytest.mark.parametrize("content", [endless(), nested()])
def test_a_checkpoint_that_contains_itself(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(TeacherError, match="without end"):
        weights.read(tmp_path / "w.pt")


def test_prefixes_without_end_are_not_followed(tmp_path):
    torch.save({"module." * 200_000 + "w": torch.zeros(2)}, tmp_path / "w.pt")
    assert len(weights.read(tmp_path / "w.pt")) == 1


def test_a_million_entries_and_names_of_any_kind(tmp_path):
    one = torch.zeros(1)
    torch.save({**{f"w{k}": one for k in range(100_000)}, 3: one, ("a", "b"): one}, tmp_path / "w.pt")
    read = weights.read(tmp_path / "w.pt")
    assert len(read) == 100_000
    with pytest.raises(TeacherError, match="100000 unexpected") as caught:
        weights.fit(models.build("cifar-resnet8"), read, "w.pt")
    assert len(str(caught.value)) < 2000


ODD = {
    "sparse": torch.eye(3).to_sparse(),
    "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "meta": torch.zeros(3, device="meta"),
    "share the memory": torch.zeros(1).expand(1 << 40),
}


@pytest.mark.parametrize("kind", ODD)
def test_tensors_that_are_no_plain_ones(tmp_path, kind):
    torch.save({"good": torch.zeros(3), "odd\n": ODD[kind]}, tmp_path / "w.pt")
    with pytest.raises(TeacherError, match=rf"odd\\n is .*{kind}"):
        weights.read(tmp_path / "w.pt")


def test_strides_and_shared_memory_are_the_same_weights(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    negative = torch.complex(torch.zeros(3), torch.ones(3)).conj().imag
    torch.save({"a": whole.T, "b": whole, "c": negative}, tmp_path / "w.pt")
    plain = {"a": whole.T.contiguous(), "b": whole, "c": -torch.ones(3)}
    assert weights.digest(weights.read(tmp_path / "w.pt")) == weights.digest(plain)


def spoilt(name: str, value: object) -> dict[str, torch.Tensor]:
    state = models.build("cifar-resnet8").state_dict()
    state[name].view(-1)[:2] = value
    return state


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(value):
    with pytest.raises(TeacherError, match=r"f\.pt: bn1\.running_var has 2 values that are NaN or infinite"):
        weights.fit(models.build("cifar-resnet8"), spoilt("bn1.running_var", value), "f.pt")


def test_values_too_large_for_the_networks_precision():
    state = {name: tensor.double() * 1e300 for name, tensor in spoilt("bn1.running_var", 1.0).items()}
    state["bn1.num_batches_tracked"] = torch.tensor(3)
    with pytest.raises(TeacherError, match="NaN or infinite, and"):
        weights.fit(models.build("cifar-resnet8"), state, "f.pt")


def test_other_precisions_fit_and_other_kinds_do_not():
    net, state = models.build("cifar-resnet8"), spoilt("bn1.running_var", 1.0)
    weights.fit(net, {name: tensor.double() for name, tensor in state.items()}, "f.pt")
    assert weights.digest(net) == weights.digest(state)
    state["conv1.weight"] = (state["conv1.weight"] * 100).to(torch.int8)
    with pytest.raises(TeacherError, match=r"1 of another type: conv1\.weight is int8, not float32"):
        weights.fit(net, state, "f.pt")


def test_small_floats_are_checked_too():
    with pytest.raises(TeacherError, match="has 1 value that is NaN"):
        weights.check({"w": torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn)}, "f.pt")


def test_weights_without_values_have_no_digest():
    with pytest.raises(TeacherError, match=r"0\.bias is on the device meta, without values"):
        weights.digest(torch.nn.Sequential(torch.nn.Linear(2, 2, device="meta")))
    with pytest.raises(TeacherError, match=r"0\.\w+ is without a shape yet"):
        weights.digest(torch.nn.Sequential(torch.nn.LazyLinear(2)))
