"""DINOv2 weights out of an ONNX export: its constants, under the names that timm gives them.

An export keeps the names of most parameters (`model.blocks.0.norm1.weight`, which are also timm's),
but not of all:

- the weight of a linear layer is stored transposed, as a nameless operand of a `MatMul` node; the
  node's own name, `/blocks.0/attn/qkv/MatMul`, says which layer it belongs to;
- the position embedding is split into the class token's row and the grid's rows, which a `Concat`
  node joins again (between them lies the resampling of the grid to the export's image size);
- equal constants are stored once, and reached through `Identity` nodes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import WeightsError

if TYPE_CHECKING:
    from onnx import GraphProto

Array = np.ndarray

PARAMETER_PREFIX = "model."
LINEAR_NODE = re.compile(r"^/(blocks\.\d+)/(attn/qkv|attn/proj|mlp/fc1|mlp/fc2)/MatMul$")


def convert_dinov2_onnx(model: bytes | Path) -> dict[str, Array]:
    """Give the parameters of an exported DINOv2 ViT under timm's names.

    Parameters
    ----------
    model : bytes or Path
        The ONNX file, or its content.

    Returns
    -------
    dict of str to float32 array
        The state dict of timm's `vit_*_patch14_dinov2` with `num_classes=0`: a linear layer's
        `weight` is [output, input], `pos_embed` is [1, 1 + row * column, channel] with the class
        token's row first.

    Raises
    ------
    WeightsError
        If the bytes are no ONNX model, or not the export of a DINOv2 ViT.

    Notes
    -----
    The architecture is that of Oquab et al., "DINOv2: Learning Robust Visual Features without
    Supervision", TMLR 2024 (arXiv 2304.07193).
    """
    graph = _read_graph(model)
    constants = _collect_constants(graph)
    parameters = {
        name.removeprefix(PARAMETER_PREFIX): value
        for name, value in constants.items()
        if name.startswith(PARAMETER_PREFIX)
    }
    parameters.update(_linear_weights(graph, constants))
    parameters["pos_embed"] = _position_embedding(graph, constants)
    _check_complete(parameters)
    return {name: np.ascontiguousarray(parameters[name], np.float32) for name in sorted(parameters)}


def _read_graph(model: bytes | Path) -> GraphProto:
    import onnx
    from google.protobuf.message import DecodeError

    content = model if isinstance(model, bytes) else model.read_bytes()
    where = "the ONNX bytes" if isinstance(model, bytes) else str(model)
    try:
        graph = onnx.load_model_from_string(content).graph
    except DecodeError as error:
        raise WeightsError(f"{where} cannot be read as an ONNX model ({error}).") from error
    if not graph.node:
        raise WeightsError(f"{where} holds no ONNX graph; it may be cut off or of another kind.")
    return graph


def _collect_constants(graph: GraphProto) -> dict[str, Array]:
    """Give every value of the graph that is known without an input: by name, [any shape]."""
    from onnx import TensorProto, numpy_helper

    def to_array(tensor: TensorProto) -> Array:
        # such a tensor names a file, by any path: none but this one is read
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            where = next((e.value for e in tensor.external_data if e.key == "location"), "?")
            raise WeightsError(
                f"The ONNX model keeps {tensor.name!r} in another file ({where!r}), which is not "
                "read: export it with its weights inside."
            )
        try:
            return numpy_helper.to_array(tensor)
        except (ValueError, TypeError, KeyError) as error:
            raise WeightsError(
                f"The ONNX model's {tensor.name!r} is damaged ({error}); fetch the file again."
            ) from error

    constants = {tensor.name: to_array(tensor) for tensor in graph.initializer}
    # ONNX keeps nodes in topological order, so one pass resolves chains of Identity too.
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.name == "value":
                    constants[node.output[0]] = to_array(attribute.t)
        elif node.op_type == "Identity" and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]]
    return constants


def _linear_weights(graph: GraphProto, constants: Mapping[str, Array]) -> dict[str, Array]:
    """Give the weights of the linear layers, [output, input], named after their `MatMul` nodes."""
    weights = {}
    for node in graph.node:
        match = LINEAR_NODE.match(node.name) if node.op_type == "MatMul" else None
        if match is None:
            continue
        stored = [constants[name] for name in node.input if name in constants]
        if len(stored) != 1 or stored[0].ndim != 2:
            raise WeightsError(
                f"The node {node.name} of the ONNX model has no constant matrix as its weight; "
                "it is not a plain float export of DINOv2."
            )
        weights[f"{match[1]}.{match[2].replace('/', '.')}.weight"] = stored[0].T
    return weights


def _position_embedding(graph: GraphProto, constants: Mapping[str, Array]) -> Array:
    """Join the two parts of the position embedding: [1, 1 + row * column, channel]."""
    class_parts = [
        constants[node.input[0]]
        for node in graph.node
        if node.op_type == "Concat"
        and node.input[0] in constants
        and constants[node.input[0]].ndim == 3
        and constants[node.input[0]].shape[:2] == (1, 1)
    ]
    grid_parts = [
        value
        for value in (constants[tensor.name] for tensor in graph.initializer)
        if value.ndim == 3 and value.shape[0] == 1 and value.shape[1] > 1
    ]
    if len(class_parts) != 1 or len(grid_parts) != 1:
        raise WeightsError(
            "The ONNX model does not hold one position embedding in two parts (found "
            f"{len(class_parts)} for the class token, {len(grid_parts)} for the grid); it is not "
            "an export of DINOv2 without registers."
        )
    return np.concatenate([class_parts[0], grid_parts[0]], axis=1)


def _check_complete(parameters: Mapping[str, Array]) -> None:
    """Refuse a graph in which a block lacks a weight or a bias."""
    blocks = {int(name.split(".")[1]) for name in parameters if name.startswith("blocks.")}
    needed = {"cls_token", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight"}
    for block in blocks or {0}:
        for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
            needed |= {f"blocks.{block}.{layer}.weight", f"blocks.{block}.{layer}.bias"}
    missing = sorted(needed - parameters.keys())
    if missing:
        raise WeightsError(
            f"The ONNX model lacks {len(missing)} parameters of DINOv2, among them "
            f"{', '.join(missing[:3])}."
        )
