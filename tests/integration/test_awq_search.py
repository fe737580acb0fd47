"""AWQ's search on few rows decides as ModelOpt does on the whole text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("modelopt")

import torch

from pipeline.layers.one_layer import one_layer
from pipeline.layers.weights import SnapshotWeights
from pipeline.quantize import awq_search, calibrate
from pipeline.quantize.awq_search import AwqSearch, _Inputs
from pipeline.quantize.calibrate import calibrate_on
from pipeline.quantize.formats import modelopt_config
from pipeline.quantize.walk import Walk
from pipeline.source.loading import load_config
from tests.integration.quantize_support import recipe, run_stage, write_source

# The stage itself keeps back what ModelOpt and torch warn of.
pytestmark = pytest.mark.filterwarnings("ignore")

# Tokens of each batch; together many more than any linear has features.
LENGTHS = (37, 450, 450)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source("Llama", tmp_path_factory.mktemp("source") / "model")


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """ModelOpt leaves what it measured where it is."""

    def config(section: Any) -> dict[str, Any]:
        return modelopt_config(section) | {"algorithm": {"method": "awq_lite", "debug": True}}

    monkeypatch.setattr(calibrate, "modelopt_config", config)


def layer(source: Path) -> Any:
    with SnapshotWeights(source) as weights:
        model = one_layer(load_config(source), 0, weights, torch.float32)
        # As in the whole walk, in which another layer follows.
        model.model.norm = torch.nn.Identity()
        return model


def states(hidden: int, *lengths: int) -> list[torch.Tensor]:
    """Loud and quiet features that depend on each other, some of them dead."""
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(hidden, hidden, generator=generator) / hidden**0.5
    sizes = torch.logspace(-2, 1.5, hidden)
    sizes[::31] = 0
    return [
        torch.randn(1, length, hidden, generator=generator) @ mixing * sizes for length in lengths
    ]


def calibrated(source: Path, condensed: bool, *lengths: int, **changes: Any) -> tuple[Any, Walk]:
    """A layer behind the calibration, and the text behind the layer."""
    model, asked = layer(source), recipe(source, format="int4_awq", **changes).quantize
    walk = Walk(states(model.config.hidden_size, *lengths), (0, 0), torch.device("cpu"))
    search = (
        AwqSearch(walk.look, walk.tokens, live=asked.kv_cache is not None) if condensed else None
    )
    calibrate_on(model, asked, walk, search=search)
    walk.leave()
    return model, walk


def losses(model: Any) -> dict[str, Any]:
    """Of each linear the losses of all exponents, in units of their sum."""
    found = {
        name: np.array(list(module.awq_lite.loss.values()))
        for name, module in model.named_modules()
        if hasattr(module, "awq_lite")
    }
    assert len(found) == 7
    return {name: values / values.sum() for name, values in found.items()}


@contextmanager
def rows_that_are_tried(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The rows of each product with a rounded weight."""
    seen: list[int] = []
    linear = torch.nn.functional.linear

    def watched(given: Any, weight: Any, bias: Any = None) -> Any:
        # A weight that was rounded is no parameter.
        if not isinstance(weight, torch.nn.Parameter):
            seen.append(given.numel() // given.shape[-1])
        return linear(given, weight, bias)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", watched)
        yield seen


@pytest.mark.usefixtures("kept")
def test_the_losses_are_those_of_the_text(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with rows_that_are_tried(monkeypatch) as tried:
        own, behind = calibrated(source, True, *LENGTHS)
    assert set(tried) == {own.config.hidden_size}
    with rows_that_are_tried(monkeypatch) as tried:
        whole, wanted_behind = calibrated(source, False, *LENGTHS)
    assert set(tried) == set(LENGTHS)
    for name, wanted in losses(whole).items():
        assert losses(own)[name] == pytest.approx(wanted, rel=1e-5), name
    for states_behind, wanted_states in zip(behind.states(), wanted_behind.states(), strict=True):
        assert torch.equal(states_behind, wanted_states)


@pytest.mark.parametrize("changes", [{}, {"kv_cache": "int8"}], ids=["", "kv"])
@pytest.mark.parametrize(
    "lengths", [LENGTHS, (90, 40), (100,)], ids=["long", "batches", "one batch"]
)
def test_the_scales_are_modelopts(
    source: Path, lengths: tuple[int, ...], changes: dict[str, Any]
) -> None:
    (own, _), (whole, _) = (calibrated(source, way, *lengths, **changes) for way in (True, False))
    found = own.state_dict()
    assert sum("pre_quant_scale" in name for name in found) == 7
    for name, wanted in whole.state_dict().items():
        assert torch.equal(found[name], wanted), name


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("reason", ["close", "no factor", "wide"])
def test_what_few_rows_cannot_decide_is_tried_on_the_text(
    source: Path, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason == "close":
        monkeypatch.setattr(awq_search, "_APART", 1e9)
    elif reason == "wide":
        monkeypatch.setattr(awq_search, "is_condensed", lambda *_: False)
    else:
        monkeypatch.setattr(
            torch.linalg, "cholesky_ex", lambda values, **_: (values, torch.tensor(1))
        )
    with rows_that_are_tried(monkeypatch) as tried:
        own, _ = calibrated(source, True, *LENGTHS)
    assert set(LENGTHS) <= set(tried)
    whole, _ = calibrated(source, False, *LENGTHS)
    for name, wanted in losses(whole).items():
        assert np.array_equal(losses(own)[name], wanted), name


def test_losses_that_rounding_could_exchange_are_close() -> None:
    assert awq_search._is_clear([3.0, 1.0, 1.001])
    assert not awq_search._is_clear([3.0, 1.0, 1.0001])
    assert not awq_search._is_clear([0.0, 0.0, 1.0])
    for odd in (float("nan"), float("inf")):
        assert not awq_search._is_clear([odd, 1.0, 2.0])
        assert not awq_search._is_clear([1.0, 2.0, odd])


@pytest.mark.parametrize("lengths", [(30, 30), (30, 7), (900, 40, 3)])
def test_few_rows_have_the_second_moments_of_the_batches(lengths: tuple[int, ...]) -> None:
    batches, inputs = states(64, *lengths), _Inputs(64, torch.device("cpu"))
    for batch in batches:
        inputs.add(batch)
    rows = inputs.rows()
    assert rows is not None
    assert rows.shape == (64, 64)
    wanted = sum((each := batch[0].double().numpy()).T @ each / len(each) for batch in batches)
    found = rows.double().numpy().T @ rows.double().numpy()
    at = np.unravel_index(np.argmax(wanted), wanted.shape)
    # A factor that is the same for all losses decides nothing.
    scale = found[at] / wanted[at]
    bound = 1e-6 * np.sqrt(np.outer(np.diag(wanted), np.diag(wanted)))
    assert (np.abs(found / scale - wanted) <= bound).all()


def test_only_linears_that_were_given_all_batches_once_are_searched_for() -> None:
    x, y, z = states(8, 2, 2, 2)
    for calls, wanted in (
        ("px qx rx py qy ry", "p q r"),
        ("px qx py", "p"),
        ("px qx qy py", "p"),
        ("px px", ""),
        ("px qx rz py qy", "p q"),
    ):
        inputs = _Inputs(8, torch.device("cpu"))
        for linear, given in map(tuple, calls.split()):
            inputs.take(linear, {"x": x, "y": y, "z": z}[given])
        assert inputs.readers() == wanted.split(), calls


def test_what_16_bit_rounds_is_searched_for_on_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a large bias other products are rounded than those of the text."""
    from safetensors.torch import load_file, save_file

    monkeypatch.setattr("pipeline.quantize.loading.FLOAT32_LIMIT_BYTES", 0)
    source = write_source("Qwen2", tmp_path / "model")
    tensors = load_file(source / "model.safetensors")
    for name in tensors:
        if name.endswith("k_proj.bias"):
            tensors[name] *= 200
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    asked = recipe(source, format="int4_awq", dtype="bfloat16", samples=32)
    whole = asked.model_copy(update={"model": asked.model.model_copy(update={"at_once": "model"})})
    for way, one in (("layer", asked), ("whole", whole)):
        run_stage(one, source, tmp_path / way)
    own, wanted = (load_file(tmp_path / way / "rank0.safetensors") for way in ("layer", "whole"))
    assert own.keys() == wanted.keys()
    assert [name for name in own if not torch.equal(own[name], wanted[name])] == []
