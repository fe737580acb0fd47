"""GGUF files of every family and format, run by llama.cpp itself against transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

gguf = pytest.importorskip("gguf", reason="gguf is in the extra llamacpp")
pytest.importorskip("xllamacpp", reason="xllamacpp is in the extra llamacpp")
from pipeline.errors import CompileError  # noqa: E402
from pipeline.progress import Silent  # noqa: E402
from pipeline.reference import load_reference, reference_model  # noqa: E402
from pipeline.targets.llamacpp.gguf_file import Written, write_gguf  # noqa: E402
from pipeline.targets.llamacpp.likeness import differences  # noqa: E402
from pipeline.targets.llamacpp.read_back import read_gguf  # noqa: E402
from pipeline.targets.llamacpp.source import read_tokens  # noqa: E402
from pipeline.targets.llamacpp.vocabulary import PATTERNS, Tokens  # noqa: E402
from tests.integration.quantize_support import LLAMA3_ROPE  # noqa: E402
from tests.llama_cpp import GREEDY, ask  # noqa: E402
from tests.unit.vllm.support import recipe, write_checkpoint  # noqa: E402

from ..conftest import DEMO_MODEL  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

VOCAB = 320
SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": VOCAB,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LINEAR = {"rope_type": "linear", "factor": 2.0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3": ("Llama", {"rope_scaling": LLAMA3_ROPE, "rope_theta": 5e5}),
    "llama tied": ("Llama", {"tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "llama linear": ("Llama", {"rope_scaling": LINEAR}),
    "mistral 48": ("Mistral", {"head_dim": 48, "rope_theta": 1e6, "sliding_window": None}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True, "rope_theta": 1e6}),
    "qwen3": ("Qwen3", {"rope_theta": 1e6}),
}
IDS = [int(number) for number in np.random.default_rng(1).integers(3, VOCAB, 40)]


def write_source(name: str, folder: Path) -> Path:
    """A config.json of the family, and a tokenizer whose every id is a word of ASCII.

    llama.cpp says nothing of a token that is half a character.
    """
    family, keys = CASES[name]
    config = getattr(transformers, f"{family}Config")(
        **{**SIZES, **keys}, architectures=[f"{family}ForCausalLM"]
    )
    config.save_pretrained(folder)
    words = {f"w{number}": number for number in range(VOCAB - 3)}
    words |= {text: VOCAB - 3 + place for place, text in enumerate(("a", "b", "ab"))}
    tokenizer = Tokenizer(models.BPE(words, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def written(
    source: Path, checkpoint: Path, wanted: str, path: Path, tokens: Tokens | None = None
) -> Written:
    tokens = tokens or read_tokens(source, Silent())
    return write_gguf(checkpoint, path, wanted, tokens, name="test")


def log_probs(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0, -1].float(), -1)


def greedy(model: Any, ids: list[int]) -> list[int]:
    ids = list(ids)
    for _ in range(GREEDY):
        ids.append(int(log_probs(model, ids).argmax()))
    return ids[-GREEDY:]


def test_every_family_computes_what_transformers_does(tmp_path: Path) -> None:
    references, questions = [], []
    for number, name in enumerate(CASES):
        source = write_source(name, tmp_path / f"source{number}")
        ranks = {"tensor_parallel": 2, "pipeline_parallel": 2} if name == "qwen3" else {}
        checkpoint = write_checkpoint(
            source, recipe(source, "float16", compile=ranks), tmp_path / f"checkpoint{number}"
        )
        file = tmp_path / f"{number}.gguf"
        assert not written(source, checkpoint, "f32", file).changes
        references.append(load_reference(checkpoint))
        questions.append({"file": str(file), "ids": IDS})
    for name, reference, answer in zip(CASES, references, ask(questions), strict=True):
        expected = log_probs(reference, IDS)
        said = {int(token): value for token, value in answer["next"].items()}
        assert len(said) == 20
        for token, value in said.items():
            assert value == pytest.approx(float(expected[token]), abs=2e-3), (name, token)
        assert max(said, key=said.__getitem__) == int(expected.argmax()), name
        assert answer["greedy"] == greedy(reference, IDS), name


def scales(low: float = 0.5) -> Any:
    return np.random.default_rng(3).uniform(low, 2.0, 256).astype(np.float16)


@pytest.mark.parametrize("group", [64, 128])
def test_int4_codes_without_prequant_scales_are_q4_0_as_they_are(
    tmp_path: Path, group: int
) -> None:
    source = write_source("llama tied", tmp_path / "source")
    wanted = recipe(source, "int4_awq", quantize={"group_size": group})
    checkpoint = write_checkpoint(source, wanted, tmp_path / "checkpoint")
    made = written(source, checkpoint, "stored", tmp_path / "model.gguf")
    assert made.changes == {}
    assert made.types["Q4_0"] == 14
    assert_same_weights(checkpoint, tmp_path / "model.gguf")


def test_awq_scales_move_and_what_cannot_is_said(tmp_path: Path) -> None:
    source = write_source("llama tied", tmp_path / "source")
    wanted = recipe(source, "int4_awq", quantize={"portable": False})
    checkpoint = write_checkpoint(
        source,
        wanted,
        tmp_path / "checkpoint",
        **{
            "qkv.prequant_scaling_factor": scales(),
            "fc.prequant_scaling_factor": scales(),
            "gate.prequant_scaling_factor": scales(),
            "dense.prequant_scaling_factor": scales(),
            "proj.prequant_scaling_factor": np.tile(scales(), 2),
        },
    )
    made = written(source, checkpoint, "stored", tmp_path / "model.gguf")
    # q, k, v, gate, up and down keep their codes; the rows of up take the scale of down.
    assert made.types["Q4_0"] == 12
    assert made.types["Q8_0"] == 2
    rounded, left = sorted(made.changes)
    assert "query heads" in rounded
    assert rounded.endswith("values as Q8_0")
    assert left == "Scales rounded to float16, by 2^-11 at most"
    assert made.changes == {rounded: 2, left: 2}
    reference = load_reference(checkpoint)
    (answer,) = ask([{"file": str(tmp_path / "model.gguf"), "ids": IDS}])
    expected = log_probs(reference, IDS)
    for token, value in answer["next"].items():
        # llama.cpp rounds activations to 8 bits beside Q4_0.
        assert value == pytest.approx(float(expected[int(token)]), abs=0.3)


def assert_same_weights(checkpoint: Path, file: Path) -> None:
    """Every number of the file is the checkpoint's, to the last bit."""
    ours, theirs = (
        dict(model.named_buffers()) | dict(model.named_parameters())
        for model in (
            load_reference(checkpoint),
            reference_model(*read_gguf(file, facts_of(checkpoint))),
        )
    )
    assert theirs.keys() <= ours.keys()
    assert all(name.endswith("prequant") for name in ours.keys() - theirs.keys())
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def facts_of(checkpoint: Path) -> Any:
    from pipeline.checkpoint import open_checkpoint

    return open_checkpoint(checkpoint).facts


@pytest.mark.parametrize("wanted", ["f16", "bf16", "q8_0", "q5_1", "q4_1", "q4_0"])
def test_types_are_ggufs_own(tmp_path: Path, wanted: str) -> None:
    """gguf's reader turns each back, and its writer makes the same bytes of the values."""
    source = write_source("qwen2", tmp_path / "source")
    checkpoint = write_checkpoint(source, recipe(source, "float16"), tmp_path / "checkpoint")
    written(source, checkpoint, wanted, tmp_path / "model.gguf")
    plain = tmp_path / "plain.gguf"
    written(source, checkpoint, "f32", plain)
    values = {tensor.name: tensor.data for tensor in gguf.GGUFReader(plain).tensors}
    for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors:
        if tensor.name.startswith("blk.") and values[tensor.name].ndim > 1:
            assert tensor.tensor_type.name == wanted.upper()
            again = gguf.quants.quantize(values[tensor.name], tensor.tensor_type)
            assert np.array_equal(tensor.data.view(np.uint8), again.view(np.uint8)), tensor.name


def test_a_k_mixture_is_read_by_llama_cpp(tmp_path: Path) -> None:
    source = write_source("llama tied", tmp_path / "source")
    checkpoint = write_checkpoint(source, recipe(source, "float16"), tmp_path / "checkpoint")
    made = written(source, checkpoint, "q4_k_m", tmp_path / "model.gguf")
    # attn_v and ffn_down of the last layer have more bits, and the embedding that is the head.
    assert made.types == {"F32": 5, "Q4_K": 12, "Q6_K": 3}
    (answer,) = ask([{"file": str(tmp_path / "model.gguf"), "ids": IDS}])
    weights, facts = read_gguf(tmp_path / "model.gguf", facts_of(checkpoint))
    expected = log_probs(reference_model(weights, facts), IDS)
    for token, value in answer["next"].items():
        assert value == pytest.approx(float(expected[int(token)]), abs=0.3)


PROBES = [
    "Hello world",
    " leading and trailing ",
    "I'm sure they'll say it's Lily's, we've DON'T",
    "1234567 and 12 3.14",
    "line\nbreak\r\nand\n\n\ttabs   spaces",
    "naïve café 北京 日本語 Привет",
    "emoji 🙂👍🏽 and symbols €∑≠",
    "code: for(i=0;i<10;++i){x[i]+=1;}",
    "a\u00a0b \u3000 c",
    "<|user|> hi <|assistant|>",
    "...!!!??? --- ___",
    "",
    " ",
    "don't",
    "Once upon a time, there was a little girl.",
    "cafe\u0301",
]
# Texts whose ids are others, which likeness.differences says.
OTHERS = {
    "metaspace": {" leading and trailing ", " "},
    "composing": {"cafe\u0301"},
    "tekken": {"cafe\u0301"},
}


def byte_level(pattern: str | None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    tokenizer.pre_tokenizer = whole
    if pattern is not None:
        from tokenizers import Regex

        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, whole])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(PROBES * 3, trainer)
    tokenizer.add_special_tokens(["<s>", "</s>", "<|user|>", "<|assistant|>"])
    return tokenizer


def sentencepiece() -> Tokenizer:
    """As Llama 2: spaces are a character of their own, what is unknown falls apart into bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([text for text in PROBES if text.isascii()] * 3, trainer)
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["id"] < 3]
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def metaspace() -> Tokenizer:
    """As newer conversions of Llama 2 and Mistral: a space in front, unless there is one."""
    spec = json.loads(sentencepiece().to_str()) | {"normalizer": None}
    spec["pre_tokenizer"] = {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "first",
        "split": False,
    }
    return Tokenizer.from_str(json.dumps(spec))


def composing() -> Tokenizer:
    """As Qwen2: characters are composed first."""
    pattern = next(text for text, name in PATTERNS.items() if name == "qwen2")
    tokenizer = byte_level(pattern)
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "metaspace": metaspace,
    "composing": composing,
    "gpt-2": lambda: byte_level(None),
    **{
        name: lambda pattern=pattern: byte_level(pattern)  # type: ignore[misc]
        for pattern, name in PATTERNS.items()
    },
    "sentencepiece": sentencepiece,
}


def test_texts_become_the_ids_of_tokenizers(tmp_path: Path) -> None:
    questions, expected = [], []
    for name, make in TOKENIZERS.items():
        tokenizer, folder = make(), tmp_path / name
        size = tokenizer.get_vocab_size()
        config = transformers.LlamaConfig(  # type: ignore[no-untyped-call]
            **{**SIZES, "vocab_size": size + 3, "num_hidden_layers": 1},
            architectures=["LlamaForCausalLM"],
        )
        config.save_pretrained(folder)
        tokenizer.save(str(folder / "tokenizer.json"))
        bos = tokenizer.token_to_id("<s>")
        checkpoint = write_checkpoint(folder, recipe(folder, "float16"), folder / "checkpoint")
        tokens = Tokens(json.loads(tokenizer.to_str()), bos, [2], None)
        written(folder, checkpoint, "f16", folder / "model.gguf", tokens)
        assert bool(differences(tokens.tokenizer)) == (name in OTHERS)
        questions.append({"file": str(folder / "model.gguf"), "ids": [bos, 5, 6], "texts": PROBES})
        expected.append([tokenizer.encode(text).ids for text in PROBES])
    for name, answer, ids in zip(TOKENIZERS, ask(questions), expected, strict=True):
        for text, said, wanted in zip(PROBES, answer["tokens"], ids, strict=True):
            assert (said == wanted) == (text not in OTHERS.get(name, ())), (name, text)


def test_the_demos_tokenizer_and_a_pattern_that_nobody_has(tmp_path: Path) -> None:
    tokens = read_tokens(DEMO_MODEL, Silent())
    spec = dict(tokens.tokenizer)
    split = {"type": "Split", "pattern": {"Regex": r"\w+"}, "behavior": "Isolated", "invert": False}
    plain = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, plain]}
    source = write_source("llama tied", tmp_path / "source")
    checkpoint = write_checkpoint(source, recipe(source, "float16"), tmp_path / "checkpoint")
    other = Tokens(spec, 1, [2], None)
    with pytest.raises(CompileError, match=r"no tokenizer like this model's.*its pre-tokenizer is"):
        written(source, checkpoint, "f16", tmp_path / "model.gguf", other)
    other = Tokens({"model": {"type": "Unigram", "vocab": []}}, 1, [2], None)
    with pytest.raises(CompileError, match="its model is Unigram, and only BPE is written"):
        written(source, checkpoint, "f16", tmp_path / "model.gguf", other)
