"""How much GPU memory an engine takes and how many sequences fit beside it.

All figures are bytes of one rank, the fullest one. Weights and KV cache are exact sums over the
tensors of the checkpoint's layout; activations are a bound, and the runtime is an allowance.

**Activations.** TensorRT reserves the largest step ahead of time. The bound takes every tensor of
one decoder layer as alive at once, for each of ``max_num_tokens`` packed tokens:
``4 hidden + (qkv + 3 intermediate) / tp`` values of the model's dtype (the residual, the norm's
output, the attention's output, the layer's output; q, k and v; gate, up and their product), plus
the logits in float32. It is an estimate: NVIDIA's memory guide logs 1134 MiB for an engine of
6695 MiB, the size of a Llama-2-7B in FP8, where the bound for 8192 tokens and 2048 sequences is
1214 MiB; the guide also says that FP8 engines may need more than they ideally would.

**Runtime.** The same log leaves about 1 GiB beside weights, activations and KV cache: the CUDA
context, library handles, decoder and runtime buffers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.models.facts import ModelFacts
from pipeline.models.sizes import linear_bytes
from pipeline.recipe.schema import ServeSection
from pipeline.recipe.tensorrt import LoraModule, LoraSection
from pipeline.targets.tensorrt.gpus import GIB, Gpu
from pipeline.targets.tensorrt.lora.adapter import MODULES
from pipeline.targets.tensorrt.lora.size import adapter_bytes
from pipeline.targets.tensorrt.plan.build_config import BuildConfig
from pipeline.targets.tensorrt.plan.facts import CheckpointFacts

RUNTIME_BYTES = GIB
COMMUNICATION_BYTES = GIB // 2
"""Allowance for NCCL and all-reduce buffers where there is more than one rank."""
LORA_GPU_FRACTION = 0.05
"""``lora_cache_gpu_memory_fraction``: of what is free before the KV cache is made."""
CUDA_GRAPH_BYTES = 10 * 10**6
"""The largest graph by upstream's remark, "one graph is 4-10MB of GPU memory"."""


@dataclass(frozen=True)
class MemoryPlan:
    """Memory of the fullest rank, in bytes.

    Attributes:
        weights: The engine's constants.
        activations: Upper bound of the execution context.
        runtime: Allowance for everything that is neither of these nor KV cache.
        kv_bytes_per_token: Keys and values of one token.
        kv_bytes_per_sequence: Those of one sequence of max_seq_len, in whole blocks.
        gpu_memory: What the GPU holds; None when it is not known.
        kv_pool: What is left for the KV cache at the free fraction; None without a GPU.
        kv_tokens: Tokens in the pool, in whole blocks.
        sequences: Sequences of max_seq_len that run together, at most max_batch_size.
        cuda_graphs: Upper bound of the CUDA graphs that are kept.
        lora_cache: What the runtime takes of the free memory for adapters in use; 0 without.
        lora_adapter: One adapter of the largest rank in it.
        draft: What the draft model's engine takes of the same GPU, with its KV cache; 0 without.
        host_kv_cache: Memory of the host for KV blocks, in whole blocks.
        host_kv_tokens: Tokens in it.
    """

    weights: int
    activations: int
    runtime: int
    kv_bytes_per_token: int
    kv_bytes_per_sequence: int
    gpu_memory: int | None = None
    kv_pool: int | None = None
    kv_tokens: int | None = None
    sequences: int | None = None
    cuda_graphs: int = 0
    lora_cache: int = 0
    lora_adapter: int = 0
    draft: int = 0
    host_kv_cache: int = 0
    host_kv_tokens: int = 0

    @property
    def fixed(self) -> int:
        """What is taken before the KV cache is sized."""
        return self.weights + self.activations + self.runtime + self.cuda_graphs + self.draft


def plan_memory(
    config: BuildConfig,
    checkpoint: CheckpointFacts,
    serve: ServeSection,
    gpu: Gpu | None,
    draft: int = 0,
) -> MemoryPlan:
    """Plans the memory of an effective build configuration.

    Args:
        config: The effective configuration, after upstream's overrides.
        checkpoint: What is compiled.
        serve: The KV cache's fraction of what is free, and its limit in tokens.
        gpu: Where it runs; None leaves capacity out.
        draft: Bytes of a draft model beside it.
    """
    per_token = kv_bytes_per_token(checkpoint)
    block = config.plugin_config.tokens_per_block
    blocks_per_sequence = -(-config.max_seq_len // block)
    host_blocks = host_kv_bytes(serve) // per_token // block
    plan = MemoryPlan(
        weights=weight_bytes(checkpoint),
        activations=activation_bytes(config, checkpoint),
        runtime=RUNTIME_BYTES + (COMMUNICATION_BYTES if checkpoint.world_size > 1 else 0),
        kv_bytes_per_token=per_token,
        kv_bytes_per_sequence=blocks_per_sequence * block * per_token,
        cuda_graphs=cuda_graph_bytes(config, checkpoint, serve),
        draft=draft,
        host_kv_cache=host_blocks * block * per_token,
        host_kv_tokens=host_blocks * block,
        lora_adapter=largest_adapter_bytes(config.lora, checkpoint.model) if config.lora else 0,
    )
    if gpu is None:
        return plan
    free = max(gpu.memory - plan.fixed, 0)
    adapters = int(free * LORA_GPU_FRACTION) if config.lora else 0
    blocks = int((free - adapters) * serve.kv_cache_free_gpu_mem_fraction) // (block * per_token)
    if serve.max_tokens_in_paged_kv_cache is not None:
        blocks = min(blocks, serve.max_tokens_in_paged_kv_cache // block)
    return replace(
        plan,
        lora_cache=adapters,
        gpu_memory=gpu.memory,
        kv_pool=blocks * block * per_token,
        kv_tokens=blocks * block,
        sequences=min(blocks // blocks_per_sequence, config.max_batch_size),
    )


def host_kv_bytes(serve: ServeSection) -> int:
    """Returns the bytes of the host's memory that the recipe gives to the KV cache of one rank."""
    return int((serve.kv_cache_host_memory or 0) * GIB)


def cuda_graph_bytes(config: BuildConfig, checkpoint: CheckpointFacts, serve: ServeSection) -> int:
    """Bounds the bytes of the CUDA graphs that one rank keeps, from above.

    The runtime keeps at most max_batch_size of them for each micro batch, of which pipeline
    parallelism has one a stage (batch_manager/trtGptModelInflightBatching.cpp).
    """
    kept = min(serve.cuda_graphs, config.max_batch_size) * checkpoint.pp_size
    return kept * CUDA_GRAPH_BYTES


def largest_adapter_bytes(lora: LoraSection, model: ModelFacts) -> int:
    """Bounds the bytes an adapter of the largest rank takes in the runtime's caches, from above."""
    features = module_features(model)
    widths = (sum(features[name]) for name in lora.target_modules)
    return adapter_bytes(widths, lora.max_rank, model.num_hidden_layers)


def module_features(model: ModelFacts) -> dict[LoraModule, tuple[int, int]]:
    """Returns the input and output features of the linears that adapters may change.

    They are those of the whole model, by TensorRT-LLM's name of the module.
    """
    linears = {
        source.rpartition(".")[2]: (linear.in_features, rows)
        for linear in model.linears
        for source, rows in linear.source
    }
    return {MODULES[source]: shape for source, shape in linears.items() if source in MODULES}


def weight_bytes(checkpoint: CheckpointFacts) -> int:
    """Sums the bytes of the weights of the fullest rank, as the engine holds them.

    TensorRT-LLM loads INT4 scales, which the checkpoint has in float32, in the model's dtype.
    """
    model, size = checkpoint.model, checkpoint.bytes_per_value
    layers = model.num_hidden_layers // checkpoint.pp_size * _layer_bytes(checkpoint)
    # Export shards the embedding over the tensor-parallel ranks; a tied head is a copy.
    table = checkpoint.share.vocabulary_rows * model.hidden_size * size
    head = table + model.hidden_size * size
    return layers + (table + head if checkpoint.pp_size == 1 else head)


def kv_bytes_per_token(checkpoint: CheckpointFacts) -> int:
    """Returns the bytes of the keys and values of one token on one rank."""
    model = checkpoint.model
    size = 1 if checkpoint.kv_cache_algo else checkpoint.bytes_per_value
    layers = model.num_hidden_layers // checkpoint.pp_size
    return 2 * layers * checkpoint.share.kv_heads * model.head_size * size


def activation_bytes(config: BuildConfig, checkpoint: CheckpointFacts) -> int:
    """Bounds the bytes of one rank's execution context from above; see the module's docstring."""
    model, share = checkpoint.model, checkpoint.share
    values = 4 * model.hidden_size + share.qkv_rows + 3 * share.inner_rows
    generated = config.max_batch_size * (config.max_draft_len + 1)
    logit_rows = config.max_num_tokens if config.gather_context_logits else generated
    logits = logit_rows * model.vocab_size * 4
    return config.max_num_tokens * values * checkpoint.bytes_per_value + logits


def _layer_bytes(checkpoint: CheckpointFacts) -> int:
    model, share = checkpoint.model, checkpoint.share
    size = checkpoint.bytes_per_value
    norms = sum(model.width(norm.over) for norm in model.family.norms)
    bias = share.qkv_rows if model.attention_bias else 0
    scale = 4 if checkpoint.kv_cache_algo else 0
    linears = sum(
        linear_bytes(checkpoint.format, *share.shape(linear), size, checkpoint.group_size)
        for linear in model.linears
    )
    return linears + (norms + bias) * size + scale
