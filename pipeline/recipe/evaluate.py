"""What a recipe says of quality: the text and the questions it is measured on, and its limits."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.recipe.section import FileName, Limit, Positive, Section, ShareLimit, Unit


class Gates(Section):
    """Limits that the written checkpoint and the compiled engine must keep.

    A limit is kept when the whole 95 % interval of what was measured keeps it. None does not check;
    ``auto`` takes the limit that published results and our own measurements give for a model of
    this size and these bits. ``run`` and ``plan`` print it beside what was measured.

    Attributes:
        perplexity_increase: The largest increase of perplexity over the source model; 0.02 is 2 %.
        top1_agreement: The smallest share of positions at which the most likely token is the source
            model's; 0.95 is 95 %.
        kl_divergence: The largest mean KL divergence from the source model.
        accuracy_loss: The largest loss of accuracy against the source model in each of
            ``evaluate.tasks``; 0.02 is two points of 100.
        source_perplexity: The largest perplexity of the source model itself, so that a wrong
            tokenizer, text or model is seen, which the checkpoint would follow. ``auto`` is twice
            the size of its vocabulary: worse than guessing.
        signal_to_noise: The least power of a source linear's output over the error of the written
            one. ``auto`` is what rounding to these bits leaves, so that what is below is damaged;
            norms and embeddings are held to 16 bits whenever this is checked.
        engine_perplexity_increase: The largest increase of the engine's perplexity over that of the
            checkpoint it was compiled from.
        engine_top1_agreement: The smallest share of positions at which the engine's most likely
            token is the checkpoint's.
        engine_kl_divergence: The largest mean KL divergence of the engine from the checkpoint.
        completions: Whether greedy completions that are empty, or fall into repeating themselves,
            where the source model's do not, close the gate. Models with random weights want false.
    """

    perplexity_increase: Annotated[Limit, Unit("share of the source's perplexity")] = "auto"
    top1_agreement: Annotated[ShareLimit, Unit("share")] = "auto"
    kl_divergence: Annotated[Limit, Unit("nats per token")] = "auto"
    accuracy_loss: Annotated[ShareLimit, Unit("share")] = "auto"
    source_perplexity: Annotated[Limit, Unit("perplexity")] = "auto"
    signal_to_noise: Annotated[Limit, Unit("dB")] = "auto"
    engine_perplexity_increase: Annotated[Limit, Unit("share of the checkpoint's perplexity")] = (
        "auto"
    )
    engine_top1_agreement: Annotated[ShareLimit, Unit("share")] = "auto"
    engine_kl_divergence: Annotated[Limit, Unit("nats per token")] = "auto"
    completions: bool = True


class TaskSection(Section):
    """Multiple-choice questions, answered by log-likelihood as EleutherAI's lm-eval does it.

    Attributes:
        name: What reports call it; letters, digits, ``.``, ``_`` and ``-``.
        file: A ``.jsonl`` file in the layout, relative to the recipe; for ``mmlu`` also
            one of hendrycks' ``.csv`` files, or a folder of them, one for each subject.
        layout: ``hellaswag`` is objects with ``ctx_a``, ``ctx_b``, ``activity_label``, ``endings``
            and ``label``, where the likelihood of an ending counts for each character of it.
            ``mmlu`` is objects with ``question``, ``choices``, ``answer`` and ``subject``, where
            the likelihoods of the letters count.
        rows: How many questions are asked, at most: the first ones, of a folder's files in turn.
            None asks all.
        shots: Examples with their answers in front of each question, of the same subject; ``mmlu``
            alone takes them.
        shots_file: Where the examples are from, a file or a folder as for ``file``; the first ones
            count.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    file: FileName
    layout: Literal["hellaswag", "mmlu"]
    rows: Annotated[Positive | None, Unit("questions")] = None
    shots: Annotated[int, Field(ge=0), Unit("examples")] = 0
    shots_file: FileName | None = None

    @model_validator(mode="after")
    def _examples(self) -> TaskSection:
        if self.shots and self.layout != "mmlu":
            msg = f"layout {self.layout} takes no examples; leave shots and shots_file out"
            raise ValueError(msg)
        if bool(self.shots) != (self.shots_file is not None):
            msg = "shots and shots_file need each other; give both, or neither"
            raise ValueError(msg)
        if self.shots_file == self.file:
            msg = "shots_file is file itself, which would tell the answers; name another"
            raise ValueError(msg)
        return self


class EvaluateSection(Section):
    """Held-out text and the quality gate. Without this section nothing is measured.

    Attributes:
        text: A file as for ``quantize.calibration.text``, with texts that are not used there.
        tokens: How much of the text is scored, at most.
        sequence_length: The longest window that is scored; the first token of a text is context
            only.
        stride: How many tokens each window of a text scores after its first window, which scores
            all it can. The rest of a window is context, so no later token has less of it than
            ``sequence_length`` - ``stride``. None is half of ``sequence_length``.
        engine_tokens: How much of that is also scored on the compiled engine, at most. Each such
            token is computed by the source model and the written one too.
        dtype: ``float32`` computes the checkpoint in it; ``model`` rounds every activation to the
            checkpoint's own dtype, as a GPU does.
        reference: The model in floating point that a quantized ``model.source`` was made from, a
            directory relative to the recipe. What is lost is then measured against it; None
            compares the checkpoint with the source's own quantized weights, which shows that they
            were taken over, and not what they lost.
        tasks: Multiple-choice questions that both models answer.
        gates: The limits.
    """

    text: FileName
    tokens: Annotated[Positive, Unit("tokens")] = 20000
    sequence_length: Annotated[int, Field(ge=2), Unit("tokens")] = 512
    stride: Annotated[Positive | None, Unit("tokens")] = None
    engine_tokens: Annotated[Positive, Unit("tokens")] = 4000
    dtype: Literal["float32", "model"] = "float32"
    reference: FileName | None = None
    tasks: list[TaskSection] = Field(default=[])
    gates: Gates = Gates()

    @model_validator(mode="after")
    def _names(self) -> EvaluateSection:
        names = [task.name for task in self.tasks]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            msg = f"two tasks have the name {twice}; give each a name of its own"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _overlapping(self) -> EvaluateSection:
        if self.stride is not None and self.stride >= self.sequence_length:
            msg = (
                f"stride {self.stride} leaves windows of {self.sequence_length} tokens no context; "
                "make it smaller than sequence_length, or leave it out for half of that"
            )
            raise ValueError(msg)
        return self
