"""Makes requests from what a server says of its models: case ``n`` of a seed is always the same."""

from __future__ import annotations

import math
from collections.abc import Mapping
from random import Random
from typing import Any

from tests.fuzz import values
from tests.fuzz.case import Case, Field, Value
from tests.fuzz.oracle import HTTP_GENERATE, TEXT_MODELS, canonical
from tests.fuzz.schema import Input, Model

WEIGHTS = {
    "tensorrt_llm_bls": 30,
    "ensemble": 22,
    "tensorrt_llm": 22,
    "tensorrt_llm_bls_unary": 12,
    "preprocessing": 8,
    "postprocessing": 6,
}
RIGHT_SHARE = 0.55
"""Of the requests, those in which nothing is made wrong on purpose."""

CANCELLED_SHARE = 0.06
MOST_OF_JSON = 1_000_000
"""Elements that the shape of a JSON tensor may say. Triton 2.51 makes room for all of them before
it has seen one: 2^31 take 8 GB and a minute, and 2^61 end it (SECURITY.md)."""
VOCABULARY = 1024
OTHER_TYPES = ("INT32", "INT64", "UINT64", "FP32", "FP16", "BOOL", "BYTES", "UINT8", "FP64", "INT8")
_GRPC_FAULTS = (
    "raw_short",
    "raw_long",
    "raw_missing",
    "raw_extra",
    "raw_and_contents",
    "prefix_huge",
    "prefix_short",
    "no_model",
    "garbage",
    "id_bytes",
    "nul_name",
)
_HTTP_FAULTS = (
    "json_cut",
    "json_comma",
    "json_garbage",
    "json_empty",
    "json_array",
    "json_deep",
    "json_duplicate",
    "json_surrogate",
    "chunked",
    "chunked_cut",
    "length_short",
    "length_long",
    "gzip_wrong",
    "encoding_unknown",
    "method_get",
    "method_put",
    "path_unknown",
    "no_model",
)
_BINARY_FAULTS = (
    "binary_size_huge",
    "binary_size_text",
    "header_length_huge",
    "header_length_text",
    "header_length_short",
)
# Asked for together they would contradict each other, or make the answer too long to wait for.
_NEVER_BY_CHANCE = frozenset(("stop",))


class Generator:
    """Makes the requests of one seed.

    Args:
        models: What the server says of its models.
        guides: Whether it serves guides.
    """

    def __init__(self, models: Mapping[str, Model], seed: int, *, guides: bool) -> None:
        self._models, self._seed, self._guides = models, seed, guides

    def case(self, number: int) -> Case:
        """Request ``number``."""
        random = Random(f"{self._seed}-{number}")
        names = [name for name in WEIGHTS if name in self._models]
        name = random.choices(names, [WEIGHTS[one] for one in names])[0]
        model = self._models[name]
        case = self._right(random, model)
        if random.random() >= RIGHT_SHARE:
            for _ in range(random.choices((1, 2, 3), (8, 2, 1))[0]):
                case = self._worsened(random, case, model)
        if random.random() < CANCELLED_SHARE and case.way in ("stream", "generate_stream"):
            case = _endless(case).but(cancel_after=random.choice((0, 0, 1, 2, 5)))
        return case

    def _right(self, random: Random, model: Model) -> Case:
        way = self._way(random, model)
        batch = 1
        once = not model.decoupled and model.name not in ("preprocessing", "postprocessing")
        if way not in HTTP_GENERATE and not once:
            batch = random.choices((1, 2, 3, 5, model.max_batch_size), (80, 10, 5, 3, 1))[0]
        if model.name == "postprocessing":
            fields = self._tokens(random, batch)
        elif model.name == "tensorrt_llm":
            fields = self._engine(random, model, batch, way)
        else:
            fields = self._text(random, model, batch, way, once=once)
        random.shuffle(fields)
        outputs: tuple[str, ...] = ()
        known = [one for one in model.outputs if not one.endswith("_logits")]
        if way not in HTTP_GENERATE and random.random() < 0.3:
            outputs = tuple(random.sample(known, random.randrange(1, min(len(known), 5) + 1)))
            if model.name == "tensorrt_llm":
                outputs = tuple(dict.fromkeys(("output_ids", "sequence_length", *outputs)))
        parameters = ()
        if random.random() < 0.1 and model.name != "postprocessing":
            parameters = (random.choice(values.PARAMETERS[0]),)
        return Case(
            model.name,
            way,
            tuple(fields),
            parameters,
            outputs,
            random.choice(values.IDS) if random.random() < 0.4 else "",
            random.choice(("", "", "1")),
        )

    def _way(self, random: Random, model: Model) -> str:
        if model.decoupled:
            return random.choices(("stream", "generate", "generate_stream"), (60, 20, 20))[0]
        if model.name in TEXT_MODELS:
            ways = ("stream", "unary", "generate", "infer", "infer_binary", "generate_stream")
            return random.choices(ways, (15, 30, 25, 12, 12, 6))[0]
        return random.choices(("stream", "unary", "infer", "infer_binary"), (20, 40, 20, 20))[0]

    def _text(
        self, random: Random, model: Model, batch: int, way: str, *, once: bool
    ) -> list[Field]:
        chosen: dict[str, list[Any]] = {
            "text_input": [values.text(random, wrong=False) for _ in range(batch)],
            "max_tokens": [random.choice(values.MAX_TOKENS[0]) for _ in range(batch)],
        }
        lists: dict[str, list[tuple[Any, ...]]] = {}
        for declared in model.inputs.values():
            name = canonical(declared.name)
            if name in chosen or random.random() > 0.16:
                continue
            if name in values.SCALARS:
                chosen[name] = [random.choice(values.SCALARS[name][0]) for _ in range(batch)]
            elif name in ("bad_words", "stop_words"):
                pool = values.WORDS if name == "stop_words" or model.name == "preprocessing" else ()
                count = random.randrange(1, 4)
                lists[name] = [tuple(random.choices(pool or (b"",), k=count)) for _ in range(batch)]
        if once:
            chosen.pop("stream", None)
        if way == "generate":
            chosen["stream"] = [False]
        if chosen.get("temperature") and 0 in chosen["temperature"] and "top_p" in chosen:
            del chosen["top_p"]
        if model.name == "ensemble":
            chosen.pop("num_return_sequences", None)
        for row, most in enumerate(chosen["max_tokens"]):
            if "min_tokens" in chosen:
                chosen["min_tokens"][row] = min(chosen["min_tokens"][row], most)
        if self._guides and "guided_decoding_guide" in model.inputs and random.random() < 0.04:
            kind, guide = random.choice([one for one, good in values.GUIDES.items() if good])
            for name in ("end_id", "min_tokens"):
                chosen.pop(name, None)
            chosen["guided_decoding_guide_type"] = [kind.encode()] * batch
            chosen["guided_decoding_guide"] = [guide.encode()] * batch
        rows = {name: [(value,) for value in column] for name, column in chosen.items()} | lists
        return [
            _field(declared, rows[name])
            for declared in model.inputs.values()
            if (name := canonical(declared.name)) in rows
        ]

    def _engine(self, random: Random, model: Model, batch: int, way: str) -> list[Field]:
        lengths = [random.choice((1, 2, 5, 17, 31, 32, 33, 64, 100)) for _ in range(batch)]
        width = max(lengths)
        prompts = [
            tuple(random.randrange(3, VOCABULARY) for _ in range(width)) for _ in range(batch)
        ]
        if batch == 1 and random.random() < 0.05:
            # Exactly as many as the engine takes.
            lengths = [384]
            prompts = [tuple(random.randrange(3, VOCABULARY) for _ in range(384))]
        rows: dict[str, list[tuple[Any, ...]]] = {
            "input_ids": prompts,
            "input_lengths": [(length,) for length in lengths],
            "max_tokens": [(random.choice(values.MAX_TOKENS[0]),) for _ in range(batch)],
        }
        for declared in model.inputs.values():
            name = canonical(declared.name)
            if name in rows or name in _NEVER_BY_CHANCE or random.random() > 0.16:
                continue
            if name in values.SCALARS and name != "num_return_sequences":
                rows[name] = [(random.choice(values.SCALARS[name][0]),) for _ in range(batch)]
            elif name == "stop_words_list" and way not in HTTP_GENERATE:
                rows[name] = [(7, 300, 301, 9, 1, 3, 4, -1)] * batch
        if way == "generate":
            rows["stream"] = [(False,)]
        if any(row == (0,) for row in rows.get("temperature", ())):
            rows.pop("top_p", None)
        if "min_tokens" in rows:
            rows["min_tokens"] = [
                (min(one[0], most[0]),)
                for one, most in zip(rows["min_tokens"], rows["max_tokens"], strict=True)
            ]
        return [
            _field(declared, rows[name])
            for declared in model.inputs.values()
            if (name := canonical(declared.name)) in rows
        ]

    def _tokens(self, random: Random, batch: int) -> list[Field]:
        beams, width = random.choice((1, 1, 2)), random.choice((1, 4, 40))
        ids = tuple(random.randrange(VOCABULARY) for _ in range(batch * beams * width))
        lengths = tuple(random.randrange(width + 1) for _ in range(batch * beams))
        return [
            Field("TOKENS_BATCH", "INT32", (batch, beams, width), ids),
            Field("SEQUENCE_LENGTH", "INT32", (batch, beams), lengths),
        ]

    def _worsened(self, random: Random, case: Case, model: Model) -> Case:
        """The request with one more thing that may be wrong with it."""
        ways = (
            (_wrong_value, 30),
            (_shape, 12),
            (_type, 8),
            (_missing, 6),
            (_unknown_input, 4),
            (_twice, 3),
            (_batch, 4),
            (_output, 5),
            (_parameter, 8),
            (_open_parameter, 3),
            (_unsupported, 8),
            (_guide, 5),
            (_version, 1),
            (_fault, 14),
            (_stop, 3),
        )
        change = random.choices([one for one, _ in ways], [weight for _, weight in ways])[0]
        return change(random, case, model)


def _field(declared: Input, rows: list[tuple[Any, ...]]) -> Field:
    flat = tuple(value for row in rows for value in row)
    dims = tuple(size if size != -1 else 0 for size in declared.dims)
    if 0 in dims:
        rest = math.prod(size for size in dims if size)
        dims = tuple(size or len(rows[0]) // rest for size in dims)
    return Field(declared.name, declared.datatype, (len(rows), *dims), flat)


def _batch_of(case: Case) -> int:
    """The batch of the first input that has one that a request can have."""
    sizes = [one.shape[0] for one in case.fields if one.shape and 0 < one.shape[0] < 64]
    return sizes[0] if sizes else 1


def _replaced(case: Case, new: Field) -> Case:
    fields = [one for one in case.fields if one.name != new.name]
    return case.but(fields=(*fields, new))


def _endless(case: Case) -> Case:
    """With so many tokens that there is something to cancel."""
    fields = []
    for one in case.fields:
        if canonical(one.name) == "max_tokens" and all(
            isinstance(value, int) and value > 0 for value in one.values
        ):
            fields.append(Field(one.name, one.datatype, one.shape, (120,) * len(one.values)))
        else:
            fields.append(one)
    return case.but(fields=tuple(fields))


def _wrong_value(random: Random, case: Case, model: Model) -> Case:
    names = [
        declared
        for declared in model.inputs.values()
        if canonical(declared.name) in ("text_input", "max_tokens", "input_ids")
        or values.SCALARS.get(canonical(declared.name), ((), ()))[1]
    ]
    batch = _batch_of(case)
    if not names:
        return _wrong_tokens(random, case)
    declared = random.choice(names)
    name = canonical(declared.name)
    there = case.field(declared.name)
    if name == "text_input":
        bad: Value = values.text(random, wrong=True)
    elif name == "max_tokens":
        bad = random.choice(values.MAX_TOKENS[1])
    elif name == "input_ids":
        if there is None or not there.values:
            return case
        bad = random.choice((-1, VOCABULARY, values.INT32_MAX, values.INT32_MIN))
        place = random.randrange(len(there.values))
        return _replaced(
            case,
            Field(
                there.name,
                there.datatype,
                there.shape,
                (*there.values[:place], bad, *there.values[place + 1 :]),
            ),
        )
    else:
        bad = random.choice(values.SCALARS[name][1])
    fine = list(there.values) if there and len(there.values) == batch else [bad] * batch
    if fine:
        fine[random.randrange(len(fine))] = bad
    shape = (batch, *declared.dims)
    return _replaced(case, Field(declared.name, declared.datatype, shape, tuple(fine)))


def _wrong_tokens(random: Random, case: Case) -> Case:
    name, bad = random.choice(
        (
            ("TOKENS_BATCH", (-1, VOCABULARY, values.INT32_MAX, values.INT32_MIN)),
            ("SEQUENCE_LENGTH", (-1, 10_000, values.INT32_MIN, values.INT32_MAX)),
        )
    )
    there = case.field(name)
    if there is None or not there.values:
        return case
    place = random.randrange(len(there.values))
    new = (*there.values[:place], random.choice(bad), *there.values[place + 1 :])
    return _replaced(case, Field(name, there.datatype, there.shape, new))


def _shape(random: Random, case: Case, _: Model) -> Case:
    if not case.fields:
        return case
    one = random.choice(case.fields)
    shape = list(one.shape)
    kind = random.choice(("zero", "negative", "huge", "overflow", "more", "fewer", "none", "other"))
    place = random.randrange(len(shape)) if shape else 0
    if kind == "more":
        shape.insert(place, 1)
    elif kind == "fewer" and shape:
        shape.pop(place)
    elif kind == "none":
        shape = []
    elif kind == "overflow":
        shape = [2**32, 2**32] if len(shape) == 2 else [2**63 - 1]
    elif shape:
        shape[place] = {"zero": 0, "negative": random.choice((-1, -2)), "huge": 2**31}.get(
            kind, shape[place] + 1
        )
    kept = one.values
    if case.way == "infer" and math.prod(shape) > MOST_OF_JSON:
        return case
    if kind == "other" and kept and 0 < math.prod(shape) < 100_000:
        kept = (kept * math.prod(shape))[: math.prod(shape)]
    if kind == "zero":
        kept = ()
    return _replaced(case, Field(one.name, one.datatype, tuple(shape), kept))


def _type(random: Random, case: Case, _: Model) -> Case:
    if not case.fields:
        return case
    one = random.choice(case.fields)
    datatype = random.choice([name for name in OTHER_TYPES if name != one.datatype])
    if random.random() < 0.1:
        datatype = random.choice(("", "STRING", "int32", "TYPE_INT32", "BF16", "X" * 3000))
    new = _of_type(random, datatype)
    return _replaced(case, Field(one.name, datatype, one.shape, (new,) * len(one.values)))


def _of_type(random: Random, datatype: str) -> Value:
    if datatype in ("BYTES", "STRING"):
        return random.choice((b"five", b"", b"1"))
    if datatype == "BOOL":
        return random.random() < 0.5
    if datatype.startswith(("FP", "BF")):
        return random.choice((0.5, 1.0))
    return 1


def _missing(random: Random, case: Case, model: Model) -> Case:
    needed = [one for one in case.fields if one.name in model.inputs]
    needed = [one for one in needed if not model.inputs[one.name].optional] or needed
    if not needed:
        return case
    gone = random.choice(needed)
    return case.but(fields=tuple(one for one in case.fields if one is not gone))


def _unknown_input(random: Random, case: Case, _: Model) -> Case:
    name = random.choice(("text", "Text_input", "", "text_input ", "a\tb", "é", "y" * 2000, "../x"))
    if case.way in HTTP_GENERATE:
        return case.but(parameters=(*case.parameters, (name, 1)))
    return case.but(fields=(*case.fields, Field(name, "INT32", (1, 1), (1,))))


def _twice(random: Random, case: Case, _: Model) -> Case:
    if not case.fields:
        return case
    return case.but(fields=(*case.fields, random.choice(case.fields)))


def _batch(random: Random, case: Case, model: Model) -> Case:
    """All inputs with another batch: none at all, too many, or as many as there may be."""
    count = random.choice((0, model.max_batch_size + 1, model.max_batch_size, 300))
    fields = []
    for one in case.fields:
        if not one.shape or not 0 < one.shape[0] < 64:
            return case
        width = len(one.values) // one.shape[0]
        fields.append(
            Field(one.name, one.datatype, (count, *one.shape[1:]), one.values[:width] * count)
        )
    return case.but(fields=tuple(fields))


def _output(random: Random, case: Case, model: Model) -> Case:
    known = list(model.outputs)
    outputs = random.choice(
        (
            ["nothing"],
            [*case.outputs, "Text_output"],
            [""],
            ["z" * 3000],
            [random.choice(known)],
            [random.choice(known)] * 2,
            known,
        )
    )
    return case.but(outputs=tuple(outputs))


def _parameter(random: Random, case: Case, _: Model) -> Case:
    return case.but(parameters=(*case.parameters, random.choice(values.PARAMETERS[1])))


def _open_parameter(random: Random, case: Case, _: Model) -> Case:
    return case.but(parameters=(*case.parameters, random.choice(values.OPEN_PARAMETERS)))


def _unsupported(random: Random, case: Case, model: Model) -> Case:
    """An input that this server has no use for, with something in it."""
    batch = _batch_of(case)
    rest = [
        one
        for one in model.inputs.values()
        if case.field(one.name) is None
        and canonical(one.name) not in values.SCALARS
        and canonical(one.name) != "stop"
    ]
    if not rest:
        return case
    declared = random.choice(rest)
    width = random.choice((0, 1, 1, 2, 6))
    dims = tuple(width if size == -1 else size for size in declared.dims)
    value = _of_type(random, declared.datatype)
    count = batch * math.prod(dims)
    return _replaced(
        case, Field(declared.name, declared.datatype, (batch, *dims), (value,) * count)
    )


def _guide(random: Random, case: Case, model: Model) -> Case:
    if "guided_decoding_guide" not in model.inputs:
        return case
    batch = _batch_of(case)
    if random.random() < 0.1:
        kind, guide = random.choice((b"\xff", b"json_schema", b"")), random.choice((b"\xff", b"x"))
    else:
        pair = random.choice(list(values.GUIDES))
        kind, guide = pair[0].encode(), pair[1].encode()
    which = random.choice(("both", "both", "both", "kind", "guide"))
    for name, value in (("guided_decoding_guide_type", kind), ("guided_decoding_guide", guide)):
        if which == "both" or name.endswith("type") == (which == "kind"):
            case = _replaced(case, Field(name, "BYTES", (batch, 1), (value,) * batch))
    return case


def _version(random: Random, case: Case, _: Model) -> Case:
    return case.but(version=random.choice(("2", "0", "-1", "x", "1 ", "9" * 40)))


def _fault(random: Random, case: Case, _: Model) -> Case:
    if case.way in ("stream", "unary"):
        pool = _GRPC_FAULTS
    elif case.way == "infer_binary":
        pool = (*_HTTP_FAULTS, *_BINARY_FAULTS, *_BINARY_FAULTS)
    else:
        pool = _HTTP_FAULTS
    return case.but(faults=(random.choice(pool),))


def _stop(random: Random, case: Case, model: Model) -> Case:
    if "stop" not in model.inputs:
        return case
    batch = _batch_of(case)
    return _replaced(case, Field("stop", "BOOL", (batch, 1), (True,) * batch))
