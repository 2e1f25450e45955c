"""safetensors: the tensors alone, and a JSON description of them, for other programs to build on.

In int8 the file has codes, scales and zero points of weights and of layers' inputs, as `phosphene quantize` has them.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import nn

from ...errors import SettingsError
from ...storage.typed import read_json, write_json
from ..quantize.network import Quantized, load_quantized, quantize_network
from ..quantize.ranges import observe
from .check import check_eight_bits, refuse_float_layers
from .graph import ExportedFile, Job, predictor


def make(job: Job) -> ExportedFile:
    """The file and its description; predictions are those of a network with the file's tensors.

    Raises:
        SettingsError: --with-preprocessing, which needs a graph.
        ExportError: weights would stay float in an int8 file.
    """
    if job.preprocessing:
        raise SettingsError("--with-preprocessing needs a graph; use --to onnx or torch, or leave it out")
    if job.int8:
        return _integers(job)
    state = {name: tensor.detach().contiguous().clone() for name, tensor in job.teacher.net.state_dict().items()}
    content = save(state)
    tensors = {name: {"shape": list(t.shape), "dtype": str(t.dtype)} for name, t in state.items()}
    net = copy.deepcopy(job.teacher.net)
    net.load_state_dict(load(content))
    return ExportedFile("safetensors", content, predictor(net), description={**_metadata(job), "tensors": tensors})


def _integers(job: Job) -> ExportedFile:
    quantized = job.quantized if job.quantized is not None else _calibrated(job)
    check_eight_bits(quantized)
    weights = [name for name in quantized.left if name.endswith("weight")]
    refuse_float_layers(weights, "use --to onnx, or leave --int8 out")
    with tempfile.TemporaryDirectory(prefix="phosphene-") as folder:
        quantized.save(folder)
        content = (Path(folder) / "quantized.safetensors").read_bytes()
        about = read_json(Path(folder) / "quantized.json")
        net = load_quantized(folder, job.teacher.net).net
    meaning = {
        "NAME.weight": "uint8 codes q of the layer NAME; its weight is (q - weight.zero_point) * weight.scale",
        "NAME.input": "its input is x -> (clamp(round(x / scale) + zero_point, 0, 255) - zero_point) * scale",
    }
    size = len(save({name: tensor.contiguous() for name, tensor in job.teacher.net.state_dict().items()}))
    notes: dict[str, Any] = {"int8_layers": len(quantized.layers)}
    tables = [name for name in quantized.left if name not in weights]
    return ExportedFile(
        "safetensors",
        content,
        predictor(net),
        float_size=size,
        notes={**notes, **({"float_tables": tables} if tables else {})},
        description={**_metadata(job), "meaning": meaning, **about},
    )


def _calibrated(job: Job) -> Quantized:
    """Weights rounded to the nearest; input ranges from the minimum to the maximum over the calibration images."""
    quantized = quantize_network(job.teacher.net, job.teacher.shape, 8, 8)
    for name, seen in observe(job.teacher.net, quantized.layers, job.calibration()).items():
        quantized.input_quantizer(name).set_range(seen.low, seen.high)
    return quantized


def read(folder: Path, content: bytes, job: Job) -> nn.Module:
    """The job's network with the tensors of a file; `folder` has the file's network.json."""
    net = copy.deepcopy(job.teacher.net)
    if not job.int8:
        net.load_state_dict(load(content))
        return net
    with tempfile.TemporaryDirectory(prefix="phosphene-") as inside:
        (Path(inside) / "quantized.safetensors").write_bytes(content)
        write_json(Path(inside) / "quantized.json", read_json(folder / "network.json"))
        return load_quantized(inside, net).net


def _metadata(job: Job) -> dict[str, Any]:
    teacher = job.teacher
    return {**job.metadata(), "mean": list(teacher.mean), "std": list(teacher.std), "class_names": teacher.class_names}
