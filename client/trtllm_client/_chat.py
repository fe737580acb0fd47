"""How messages become a request: the template they go through and the tokens around its text.

Nothing is sent from here. What has to be asked of the server is yielded as a call, so that both
clients make it in their own way.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from trtllm_client._chat_template import ChatTemplate
from trtllm_client._errors import InvalidRequest, ServerFailed
from trtllm_client._grpc import Message, messages
from trtllm_client._request import GenerateRequest
from trtllm_client._wire import add_input, decode_outputs, new_message

if TYPE_CHECKING:
    from trtllm_client._request import SamplingOptions

Result = TypeVar("Result")
Steps = Generator[tuple[str, Message], Message, Result]
"""Yields the name and the message of a call, takes its answer, and returns a result."""

# What NVIDIA's BLS model calls; an ensemble says itself which model takes its text.
_PREPROCESSING = "preprocessing"
_ADDS_TOKENS = "add_special_tokens"
# What upstream's preprocessing takes for false; anything else, and nothing, is true.
_FALSE = ("false", "0", "f", "n", "no")
_GIVE_ONE = "Give it: template=ChatTemplate.from_directory(the folder of the model)"


KEPT_S = 60.0
"""How long what a server said is believed: another one may answer at its address by then."""


@dataclasses.dataclass
class _Known:
    """What a server has said, by the name of the model."""

    since: float = dataclasses.field(default_factory=time.monotonic)
    takes_setting: dict[str, bool] = dataclasses.field(default_factory=dict)
    preprocessing: dict[str, str] = dataclasses.field(default_factory=dict)
    templates: dict[str, ChatTemplate] = dataclasses.field(default_factory=dict)
    added: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)


class Chats:
    """What a client knows of the chats of its server; filled by and by, and kept for a minute.

    Args:
        address: The server's address, for errors.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._known = _Known()

    def _fresh(self) -> _Known:
        # Never emptied, since another thread may be at it.
        if time.monotonic() - self._known.since > KEPT_S:
            self._known = _Known()
        return self._known

    def template(self, model: str) -> Steps[ChatTemplate]:
        """Finds the template of a model, as the server says it.

        Args:
            model: A Triton model that takes text.

        Raises:
            InvalidRequest: The server does not say, or its template is none.
        """
        known = self._fresh()
        if model not in known.templates:
            try:
                name = yield from self._preprocessing_of(model)
                config = yield _config_of(name)
            except (InvalidRequest, ServerFailed) as error:
                raise InvalidRequest(
                    "the server does not say the chat template of its model",
                    where=self._address,
                    why=error.what,
                    fix=_GIVE_ONE,
                ) from error
            known.templates[model] = self._read(name, _parameters(config))
        return known.templates[model]

    def request(
        self,
        chat: Sequence[Mapping[str, Any]],
        sampling: SamplingOptions,
        *,
        tools: Sequence[Any] | None,
        template: ChatTemplate | None,
        variables: Mapping[str, Any] | None,
        model: str,
    ) -> Steps[GenerateRequest]:
        """Renders messages, and makes the request whose prompt has the tokens of the template.

        Args:
            chat: The messages.
            sampling: Fields of the request.
            tools: The tools that the model may call, as the template wants them.
            template: Instead of the server's.
            variables: Further variables of the template.
            model: The Triton model that will take the request.

        Raises:
            InvalidRequest: The messages or the variables do not suit the template, or the server
                cannot encode its text as it is.
            ClientError: The server was asked and did not answer.
        """
        check_fields(sampling, template, variables)
        if template is None:
            template = yield from self.template(model)
        given = dict(variables or {})
        if tools is not None:
            given["tools"] = tools
        text = template.render(chat, **given)
        if (yield from self._can_be_told(model)):
            return dataclasses.replace(GenerateRequest(text, **sampling), add_special_tokens=False)
        return GenerateRequest((yield from self._as_it_is(text, template, model)), **sampling)

    def _read(self, preprocessing: str, parameters: Mapping[str, str]) -> ChatTemplate:
        try:
            template = ChatTemplate.from_parameters(parameters)
        except InvalidRequest as error:
            raise InvalidRequest(
                f"{error.what}, as {preprocessing} has it",
                where=self._address,
                why=error.why,
                fix=_GIVE_ONE,
            ) from error
        if template is None:
            raise InvalidRequest(
                "the server does not say the chat template of its model",
                where=self._address,
                why=f"config.pbtxt of {preprocessing} has no parameter chat_template, as of a "
                "model that has no template, or of NVIDIA's own repository",
                fix=_GIVE_ONE,
            )
        return template

    def _preprocessing_of(self, model: str) -> Steps[str]:
        known = self._known
        if model not in known.preprocessing:
            config = yield _config_of(model)
            steps = config.config.ensemble_scheduling.step
            found = [step.model_name for step in steps if "QUERY" in step.input_map]
            known.preprocessing[model] = found[0] if found else _PREPROCESSING
        return known.preprocessing[model]

    def _can_be_told(self, model: str) -> Steps[bool]:
        """Whether a request may say that nothing is to be put around its text."""
        known = self._fresh()
        if model not in known.takes_setting:
            metadata = yield "ModelMetadata", messages.ModelMetadataRequest(name=model)
            inputs = {tensor.name for tensor in metadata.inputs}
            known.takes_setting[model] = _ADDS_TOKENS in inputs
        return known.takes_setting[model]

    def _as_it_is(self, text: str, template: ChatTemplate, model: str) -> Steps[str]:
        """The text that such a server encodes as the template wants it.

        Where its tokenizer puts bos in front of every text, the template's own is left out. That
        the rest has the same tokens without it is looked at, since a tokenizer may see the first
        word of a text with other eyes than one behind a special token.
        """
        try:
            name = yield from self._preprocessing_of(model)
            config = yield _config_of(name)
            if _parameters(config).get(_ADDS_TOKENS, "").lower() in _FALSE:
                return text
            known = self._known
            if name not in known.added:
                known.added[name] = yield from _ids(name, "")
            added = known.added[name]
            if not added:
                return text
            bos = template.special_tokens.get("bos_token")
            if bos and len(added) == 1 and text.startswith(bos):
                wanted = yield from _ids(name, text)
                rest = text[len(bos) :]
                if wanted[:2] == added * 2 and (yield from _ids(name, rest)) == wanted[1:]:
                    return rest
            why = f"its {name} puts tokens of its own around every text, and no request can say no"
        except (InvalidRequest, ServerFailed) as error:
            why = f"it does not tell how it encodes a text: {error.what}"
        raise InvalidRequest(
            "this server would not give the model the tokens of the chat template",
            where=self._address,
            why=why,
            fix=f"Set the parameter {_ADDS_TOKENS} in config.pbtxt of its {_PREPROCESSING} to "
            "false, or serve a repository that was written by this version",
        )


def check_fields(sampling: SamplingOptions, template: object, variables: object) -> None:
    """Refuses what a chat decides itself, and a template or variables that are none.

    Raises:
        InvalidRequest: Naming the field.
    """
    if template is not None and not isinstance(template, ChatTemplate):
        raise InvalidRequest(
            f"template must be a ChatTemplate, not {type(template).__name__}",
            fix="Read it: ChatTemplate.from_directory(the folder of the model), or ChatTemplate("
            "source) for Jinja text",
        )
    if variables is not None and not isinstance(variables, Mapping):
        raise InvalidRequest(
            f"template_variables must be a mapping, not {type(variables).__name__}",
            fix='Give them by name, such as {"enable_thinking": False}',
        )
    if sampling.get(_ADDS_TOKENS) is not None:
        raise InvalidRequest(
            "add_special_tokens does not go with a chat, whose template writes them all",
            fix="Leave it out",
        )
    if variables and not {"messages", "self"}.isdisjoint(variables):
        raise InvalidRequest(
            "template_variables may not have messages or self",
            why="they are given on their own, or mean something else to templates",
            fix="Leave them out",
        )


def placeholder(sampling: SamplingOptions, request_id: str) -> GenerateRequest:
    """Makes the request of a chat before its text is known, to check all other fields."""
    request = GenerateRequest("", **sampling)
    return dataclasses.replace(request, request_id=request.request_id or request_id)


def _config_of(model: str) -> tuple[str, Message]:
    return "ModelConfig", messages.ModelConfigRequest(name=model)


def _parameters(config: Message) -> dict[str, str]:
    return {name: value.string_value for name, value in config.config.parameters.items()}


def _ids(preprocessing: str, text: str) -> Steps[tuple[int, ...]]:
    """The token ids that the server gives its engine for a text."""
    message = new_message(preprocessing, outputs=("INPUT_ID",))
    add_input(message, "QUERY", [text], datatype="BYTES")
    add_input(message, "REQUEST_OUTPUT_LEN", [1], datatype="INT32")
    answer = yield "ModelInfer", message
    return tuple(int(token) for token in decode_outputs(answer)["INPUT_ID"])
