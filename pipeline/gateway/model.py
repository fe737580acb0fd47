"""The model that is served, as far as the gateway knows it: tokenizer, template and limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pipeline.dependencies import require
from pipeline.errors import UsageError
from pipeline.gateway.engine import Input
from pipeline.gateway.errors import refused
from pipeline.gateway.tools.choice import Offers
from pipeline.gateway.tools.forms import FORMS, form_of
from pipeline.store.artifact import MANIFEST, read_manifest
from pipeline.store.deployed import build_folder, find_repository
from pipeline.triton.checks import read_config
from pipeline.triton.contract import ADD_SPECIAL_TOKENS, ENGINE, PREPROCESSING
from pipeline.triton.parameters import ENGINE_DIR, TOKENIZER_DIR
from pipeline.triton.sources import load_module, model_sources
from trtllm_client import ChatTemplate, InvalidRequest

TOKENIZER = "tokenizer.json"
GUIDED = "guided_decoding_backend"
"""The parameter of ``tensorrt_llm`` that is empty where it does not guide decoding."""
TOO_LONG = "context_length_exceeded"
_RENDERED = ("self", "messages", "tools", "add_generation_prompt")
"""What a template is rendered with, whatever a request has among its variables."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Limits:
    """What the engine takes.

    Attributes:
        sequence: Tokens of a prompt and its answer together.
        prompt: Tokens of a prompt.
        requests: Requests in one batch; 0 where that is not known.
        answer: Tokens of an answer where a request does not say; None is all that the context
            leaves.
        block: Tokens of a KV block, where prompts may find theirs in the engine's cache; None where
            they do not, or that is not known.
    """

    sequence: int
    prompt: int
    requests: int = 0
    answer: int | None = None
    block: int | None = None


class Model:
    """The model.

    Args:
        name: What clients call it.
        tokenizer_dir: Holds ``tokenizer.json`` and what lies beside it.
        limits: What the engine takes.
        template: Its chat template; None where it has none.
        add_special_tokens: Whether a plain text gets what the tokenizer puts around it; None leaves
            out what is put in front where the text begins with it.
        vocab_size: Tokens of the engine; None where that is not known.
        aliases: Further names that clients may use.
        guided: Whether the engine guides decoding.
        tool_calls: The form in which the model writes calls (:data:`.tools.forms.FORMS`); None
            looks which one its template teaches.
        fingerprint: What tells this build from others, for ``system_fingerprint``.
        created: When it was built, in seconds since 1970.

    Attributes:
        adapters: Ids of the LoRA adapters that the server has loaded, by what clients call the
            model with them. The server says which there are.
    """

    def __init__(
        self,
        name: str,
        tokenizer_dir: Path,
        limits: Limits,
        *,
        template: ChatTemplate | None = None,
        add_special_tokens: bool | None = None,
        vocab_size: int | None = None,
        aliases: Sequence[str] = (),
        guided: bool = False,
        tool_calls: str | None = None,
        fingerprint: str | None = None,
        created: int = 0,
    ) -> None:
        require("tokenizers", "gateway")
        from tokenizers import Tokenizer

        models = model_sources()
        try:
            self.tokenizer: Any = Tokenizer.from_file(str(tokenizer_dir / TOKENIZER))
        except Exception as error:
            # The library raises no class of its own.
            raise UsageError(
                "the tokenizer cannot be read",
                where=str(tokenizer_dir / TOKENIZER),
                why=str(error),
                fix="Copy the folder again from where it was whole",
            ) from error
        prompt = load_module(models, PREPROCESSING, "prompt")
        engine_limits = load_module(models, PREPROCESSING, "engine_limits")
        self.name, self.aliases = name, tuple(aliases)
        self.adapters: Mapping[str, int] = {}
        self.limits, self.template, self.guided = limits, template, guided
        self._tool_calls = tool_calls
        self.fingerprint, self.created = fingerprint, created
        self._directory = tokenizer_dir
        self._prompt_error = prompt.PromptError
        self._encoder = prompt.PromptEncoder(
            tokenizer_dir,
            add_special_tokens=add_special_tokens,
            limits=engine_limits.EngineLimits(
                vocab_size=vocab_size,
                max_input_len=limits.prompt,
                max_seq_len=limits.sequence,
            ),
        )

    @property
    def offers(self) -> Offers:
        """What it can do about tools and formats of an answer."""
        if self._tool_calls is not None:
            return Offers(FORMS[self._tool_calls], self.guided)
        return Offers(form_of(self.template.source) if self.template else None, self.guided)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids that end a text, the one that ends a turn first."""
        return tuple(self._encoder.end_ids)

    @property
    def vocab_size(self) -> int:
        """Tokens of the engine."""
        return int(self._encoder.vocab_size)

    def answers_to(self, name: str) -> bool:
        """Says whether clients may call it so."""
        return name == self.name or name in self.aliases or name in self.adapters

    def takes_adapters(self, ids: Sequence[int]) -> None:
        """Notes which LoRA adapters there are; each is a model of its own, ``NAME:ID``."""
        self.adapters = {f"{self.name}:{id_}": id_ for id_ in ids}

    def adapter_inputs(self, name: str | None) -> dict[str, Input]:
        """Returns the inputs that choose the adapter of a request.

        Args:
            name: What it calls the model.
        """
        id_ = self.adapters.get(name) if name is not None else None
        return {} if id_ is None else {"lora_task_id": id_}

    def encode(self, text: str, param: str, *, add_special_tokens: bool | None = None) -> list[int]:
        """Returns the token ids of a text, as the served models encode it.

        Args:
            text: The text.
            param: The part of the request that it is of, for errors.
            add_special_tokens: What the request says; None is the model's setting.

        Raises:
            ApiError: It has no token, one that the engine lacks, or far too many.
        """
        try:
            ids: list[int] = self._encoder.encode(
                text.encode(), param, add_special_tokens=add_special_tokens
            )
        except UnicodeEncodeError as error:
            raise refused(f"{param} holds half a character (a lone surrogate).", param) from error
        except self._prompt_error as error:
            message = str(error)
            code = TOO_LONG if "too long" in message else None
            raise refused(f"{message[:1].upper()}{message[1:]}.", param, code) from error
        return ids

    def check_ids(self, ids: Sequence[int], param: str) -> None:
        """Refuses token ids of a request that the engine does not have.

        Raises:
            ApiError: There is one, or none at all.
        """
        if not ids:
            raise refused(f"{param} is empty: give at least one token.", param)
        worst = next((token for token in ids if not 0 <= token < self.vocab_size), None)
        if worst is not None:
            raise refused(
                f"{param} has the token id {worst}; this model's are 0 to {self.vocab_size - 1}.",
                param,
            )

    def room(self, prompt: int, max_tokens: int | None, param: str) -> int:
        """Returns how many tokens an answer may have.

        Args:
            prompt: Tokens of the prompt.
            max_tokens: What was asked for; None is all that the context leaves.
            param: The part of the request with the prompt.

        Raises:
            ApiError: The prompt, or both together, are too long.
        """
        longest = min(self.limits.prompt, self.limits.sequence - 1)
        if prompt > longest:
            raise refused(
                f"This model takes prompts of at most {longest} tokens, and {param} comes to "
                f"{prompt} tokens. Shorten it.",
                param,
                TOO_LONG,
            )
        left = self.limits.sequence - prompt
        if max_tokens is None:
            return min(left, self.limits.answer or left)
        if max_tokens > left:
            raise refused(
                f"This model's context is {self.limits.sequence} tokens, and the request comes to "
                f"{prompt + max_tokens}: {prompt} of the prompt and {max_tokens} of the answer. "
                "Shorten the prompt or ask for fewer tokens.",
                "max_tokens",
                TOO_LONG,
            )
        return max_tokens

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Returns the text of a conversation, with every special token it needs.

        Raises:
            ApiError: The model has no template, or it refuses the messages.
        """
        if self.template is None:
            raise refused(
                f"The model {self.name} has no chat template, so it takes no messages. Send a "
                "prompt to /v1/completions, or serve a chat model.",
                "messages",
                "no_chat_template",
            )
        for name in _RENDERED:
            if name in (variables or {}):
                param = f"chat_template_kwargs.{name}"
                raise refused(f"{param} is the gateway's to set: leave it out.", param)
        try:
            return self.template.render(
                messages,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                **(variables or {}),
            )
        except InvalidRequest as error:
            sentences = (error.what, error.why, error.fix)
            text = " ".join(
                f"{part[:1].upper()}{part[1:].rstrip('.')}." for part in sentences if part
            )
            raise refused(text, "messages") from error

    def token(self, id_: int) -> tuple[str, bytes]:
        """Returns the text of a token by itself, and its bytes.

        A token that is a part of a character has the replacement character for a text.
        """
        data = self._token_bytes[id_] if id_ < len(self._token_bytes) else b""
        if data:
            return data.decode(errors="replace"), data
        name = self.tokenizer.id_to_token(id_)
        text = "" if name is None else str(name)
        return text, text.encode()

    @cached_property
    def _token_bytes(self) -> list[bytes]:
        vocabulary = load_module(model_sources(), ENGINE, "vocabulary")
        try:
            texts: list[bytes] = vocabulary.token_texts(
                self._directory / TOKENIZER, self.vocab_size, ()
            )
        except ValueError:
            # Of a decoder that no rule is known for: what each token is alone.
            texts = [
                str(self.tokenizer.decode([id_], skip_special_tokens=False)).encode()
                for id_ in range(self.vocab_size)
            ]
        return texts


def open_model(
    path: Path,
    *,
    names: Sequence[str] = (),
    context_length: int | None = None,
    default_max_tokens: int | None = None,
    tool_calls: str | None = None,
) -> Model:
    """Reads the model of a repository, or the tokenizer of a Hugging Face folder.

    Args:
        path: A repository, ``build/NAME``, or a folder with ``tokenizer.json``.
        names: What clients call the model; none is the build's name, or the folder's.
        context_length: Tokens of a prompt and its answer together, where the folder does not say.
        default_max_tokens: Tokens of an answer where a request does not say; None is all that the
            context leaves.
        tool_calls: The form in which the model writes calls; None looks at its template.

    Raises:
        UsageError: There is no tokenizer, or the engine's limits are not known.
        MissingDependencyError: tokenizers is not installed.
    """
    if tool_calls is not None and tool_calls not in FORMS:
        raise UsageError(
            f"there is no form {tool_calls!r} of tool calls",
            where="--tool-calls",
            fix=f"Give one of {', '.join(FORMS)}, or leave it out",
        )
    repository = find_repository(path)
    if (repository / TOKENIZER_DIR / TOKENIZER).is_file():
        return _of_repository(repository, names, context_length, default_max_tokens, tool_calls)
    if not (path / TOKENIZER).is_file():
        raise UsageError(
            f"this folder has no {TOKENIZER}",
            where=str(path),
            fix="Name build/NAME, a repository, or the folder of a model or tokenizer",
        )
    if context_length is None:
        raise UsageError(
            "a tokenizer's folder does not say how long a text the engine takes",
            where=str(path),
            fix="Give --context-length with max_seq_len of the engine, or name build/NAME in the "
            "place of the folder",
        )
    name, *aliases = names or (path.resolve().name,)
    return Model(
        name,
        path,
        Limits(context_length, context_length - 1, answer=default_max_tokens),
        template=_template(path),
        aliases=aliases,
        tool_calls=tool_calls,
    )


def _of_repository(
    repository: Path,
    names: Sequence[str],
    context_length: int | None,
    default_max_tokens: int | None,
    tool_calls: str | None,
) -> Model:
    from calendar import timegm
    from time import strptime

    from pipeline.reading.json_text import read_json

    folder = repository / TOKENIZER_DIR
    config, _ = read_config(repository / PREPROCESSING / "config.pbtxt")
    parameters = {} if config is None else {k: v.string_value for k, v in config.parameters.items()}
    try:
        engine = read_json(repository / ENGINE_DIR / "config.json")
        build, facts = engine["build_config"], engine.get("pretrained_config", {})
        longest = int(build["max_seq_len"]) - int(build.get("max_draft_len") or 0)
        limits = Limits(
            min(longest, context_length or longest),
            int(build.get("max_input_len") or longest),
            int(build.get("max_batch_size") or 0),
            default_max_tokens,
            _block(repository, build),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            "the engine's limits cannot be read",
            where=str(repository / ENGINE_DIR / "config.json"),
            why=str(error),
            fix="Build the repository again: trtllm-pipeline run RECIPE",
        ) from error
    build_dir = build_folder(repository)
    name, *aliases = names or ((build_dir or repository).resolve().name,)
    setting = parameters.get(ADD_SPECIAL_TOKENS, "auto").lower()
    created, fingerprint = 0, None
    if (repository / MANIFEST).is_file():
        manifest = read_manifest(repository)
        fingerprint = f"fp_{manifest['digest'][:12]}"
        created = timegm(strptime(manifest["created"], "%Y-%m-%dT%H:%M:%SZ"))
    return Model(
        name,
        folder,
        limits,
        template=ChatTemplate.from_parameters(parameters) or _template(folder),
        add_special_tokens=None if setting == "auto" else setting == "true",
        vocab_size=facts.get("vocab_size"),
        aliases=aliases,
        guided=bool(_parameters(repository, ENGINE).get(GUIDED)),
        tool_calls=tool_calls,
        fingerprint=fingerprint,
        created=created,
    )


def _block(repository: Path, build: Mapping[str, Any]) -> int | None:
    if _parameters(repository, ENGINE).get("enable_kv_cache_reuse") != "true":
        return None
    # TensorRT-LLM has it among its plugins' settings.
    return build.get("tokens_per_block") or (build.get("plugin_config") or {}).get(
        "tokens_per_block"
    )


def _parameters(repository: Path, model: str) -> dict[str, str]:
    config, _ = read_config(repository / model / "config.pbtxt")
    if config is None:
        return {}
    return {name: value.string_value for name, value in config.parameters.items()}


def _template(folder: Path) -> ChatTemplate | None:
    try:
        return ChatTemplate.find(folder)
    except InvalidRequest as error:
        raise UsageError(error.what, where=error.where, why=error.why, fix=error.fix) from error
