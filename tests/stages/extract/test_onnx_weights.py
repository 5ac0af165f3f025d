"""The converter, on small graphs laid out as the exporter of torch lays them out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from pipeline.errors import WeightsError
from stages.extract.onnx_weights import convert_dinov2_onnx

CHANNELS, GRID, BLOCKS = 4, 9, 2
LINEAR = {
    "attn/qkv": (CHANNELS, 3 * CHANNELS),
    "attn/proj": (CHANNELS, CHANNELS),
    "mlp/fc1": (CHANNELS, 4 * CHANNELS),
    "mlp/fc2": (4 * CHANNELS, CHANNELS),
}


def build_export(
    *, class_part: str = "identity", leave_out: str = "", extra: bool = False
) -> tuple[bytes, dict[str, np.ndarray]]:
    """Give an ONNX export in little, and the state dict that it was made from."""
    random = np.random.default_rng(0)

    def draw(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    state = {
        "cls_token": draw(1, 1, CHANNELS),
        "patch_embed.proj.weight": draw(CHANNELS, 3, 2, 2),
        "patch_embed.proj.bias": draw(CHANNELS),
        "norm.weight": draw(CHANNELS),
        "norm.bias": draw(CHANNELS),
    }
    grid_part = draw(1, GRID, CHANNELS)
    initialisers = {"onnx::Reshape_7": grid_part}
    nodes = [helper.make_node("Concat", ["expanded", "patches"], ["tokens"], "/Concat_1", axis=1)]
    first = state["cls_token"] if class_part == "identity" else draw(1, 1, CHANNELS)
    if class_part == "identity":
        nodes.append(helper.make_node("Identity", ["model.cls_token"], ["first"]))
    elif class_part == "constant":
        value = numpy_helper.from_array(first, "first")
        nodes.append(helper.make_node("Constant", [], ["first"], value=value))
    else:
        initialisers["first"] = first
    nodes.append(
        helper.make_node("Concat", ["first", "resized"], ["position"], "/Concat_4", axis=1)
    )
    state["pos_embed"] = np.concatenate([first, grid_part], axis=1)
    for block in range(BLOCKS):
        for layer in ("norm1", "norm2"):
            state[f"blocks.{block}.{layer}.weight"] = draw(CHANNELS)
            state[f"blocks.{block}.{layer}.bias"] = draw(CHANNELS)
        for gamma in ("ls1", "ls2"):
            state[f"blocks.{block}.{gamma}.gamma"] = draw(CHANNELS)
        for number, (layer, (inputs, outputs)) in enumerate(LINEAR.items()):
            stored = f"onnx::MatMul_{10 * block + number}"
            initialisers[stored] = draw(inputs, outputs)
            key = f"blocks.{block}.{layer.replace('/', '.')}"
            state[f"{key}.weight"] = initialisers[stored].T
            state[f"{key}.bias"] = draw(outputs)
            name = f"/blocks.{block}/{layer}/MatMul"
            nodes.append(helper.make_node("MatMul", ["x", stored], [f"{stored}.out"], name))
        attention = f"/blocks.{block}/attn/MatMul"
        nodes.append(helper.make_node("MatMul", ["query", "key"], [f"a{block}"], attention))
    named = {
        f"model.{key}": value
        for key, value in state.items()
        if key != "pos_embed" and not key.endswith(tuple(f"{k}.weight" for k in _linear_names()))
    }
    named.pop(f"model.{leave_out}", None)
    if extra:
        initialisers["onnx::Other"] = draw(1, GRID, CHANNELS)
    tensors = [numpy_helper.from_array(v, k) for k, v in {**named, **initialisers}.items()]
    graph = helper.make_graph(nodes, "export", [], [], tensors)
    return helper.make_model(graph).SerializeToString(), state


def _linear_names() -> list[str]:
    return [layer.replace("/", ".") for layer in LINEAR]


@pytest.mark.parametrize("class_part", ["identity", "constant", "initialiser"])
def test_every_parameter_comes_back(class_part: str) -> None:
    content, state = build_export(class_part=class_part)
    converted = convert_dinov2_onnx(content)
    assert converted.keys() == state.keys()
    for key, value in state.items():
        assert converted[key].dtype == np.float32
        assert converted[key].flags.c_contiguous, key
        np.testing.assert_array_equal(converted[key], value, err_msg=key)


def test_a_file_and_its_bytes_are_one(tmp_path: Path) -> None:
    content, _ = build_export()
    (tmp_path / "model.onnx").write_bytes(content)
    from_file = convert_dinov2_onnx(tmp_path / "model.onnx")
    from_bytes = convert_dinov2_onnx(content)
    assert all(np.array_equal(from_file[key], from_bytes[key]) for key in from_bytes)


@pytest.mark.parametrize("content", [b"\xff\xffnot a model", b"", b"PK\x03\x04 something else"])
def test_what_is_no_model_is_refused(content: bytes) -> None:
    with pytest.raises(WeightsError, match="ONNX"):
        convert_dinov2_onnx(content)


def test_a_missing_parameter_is_named() -> None:
    content, _ = build_export(leave_out="blocks.1.norm2.bias")
    with pytest.raises(WeightsError, match=r"blocks\.1\.norm2\.bias"):
        convert_dinov2_onnx(content)


def test_two_candidates_for_the_position_embedding_are_refused() -> None:
    content, _ = build_export(extra=True)
    with pytest.raises(WeightsError, match="2 for the grid"):
        convert_dinov2_onnx(content)


def test_a_linear_layer_without_a_constant_weight_is_refused() -> None:
    content, _ = build_export()
    model = onnx.load_model_from_string(content)
    node = next(n for n in model.graph.node if n.name == "/blocks.1/mlp/fc1/MatMul")
    node.input[1] = "computed"
    with pytest.raises(WeightsError, match=r"/blocks\.1/mlp/fc1/MatMul"):
        convert_dinov2_onnx(model.SerializeToString())


@pytest.mark.parametrize("where", ["../../etc/passwd", "/etc/passwd", "weights.bin"])
@pytest.mark.parametrize("constant", [False, True])
def test_values_in_other_files_are_not_read(
    where: str, constant: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnx.load_model_from_string(build_export(class_part="constant")[0])
    nodes = [node for node in model.graph.node if node.op_type == "Constant"]
    tensor = nodes[0].attribute[0].t if constant else model.graph.initializer[0]
    # the file is there, and long enough to be taken for the values
    (tmp_path / "weights.bin").write_bytes(tensor.raw_data)
    monkeypatch.chdir(tmp_path)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", where
    with pytest.raises(WeightsError, match=f"in another file \\('{where}'\\)"):
        convert_dinov2_onnx(model.SerializeToString())


def test_values_that_do_not_fit_their_shape_are_refused() -> None:
    model = onnx.load_model_from_string(build_export()[0])
    model.graph.initializer[0].dims[0] = 2**40
    with pytest.raises(WeightsError, match="is damaged"):
        convert_dinov2_onnx(model.SerializeToString())
