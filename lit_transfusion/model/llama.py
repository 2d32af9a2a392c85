"""Llama's configuration and weights, as transformers names them, in terms of our net."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lit_transfusion.errors import InputError
from lit_transfusion.model.block import Block
from lit_transfusion.model.modality_block import ModalityBlock
from lit_transfusion.model.transfusion import Transfusion


def size_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `TransformerConfig` that a config.json of transformers sets, by its values and Llama's defaults.

    The other fields (`modality_weights`, `rope` of patches, `dropout`) do not change what the net computes of text.

    Raises:
        InputError: The net cannot compute what the config describes.
    """
    kind = config.get("model_type")
    if kind != "llama":
        raise InputError(f"model_type {kind!r} is not supported; use a model of type 'llama'")
    dim, heads = config["hidden_size"], config["num_attention_heads"]
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    only = {  # key: (the value in this model, the only one that is supported)
        "hidden_act": (config.get("hidden_act", "silu"), "silu"),
        "attention_bias": (config.get("attention_bias", False), False),
        "mlp_bias": (config.get("mlp_bias", False), False),
        "head_dim": (config.get("head_dim") or dim // heads, dim // heads),
        "rope_scaling": (rope.get("rope_type", rope.get("type", "default")), "default"),
    }
    for key, (value, supported) in only.items():
        if value != supported:
            raise InputError(f"{key} {value!r} is not supported; use a model with {key} {supported!r}")
    return {
        "dim": dim,
        "n_layers": config["num_hidden_layers"],
        "n_heads": heads,
        "n_kv_heads": config.get("num_key_value_heads") or heads,
        "hidden_dim": config["intermediate_size"],
        "norm_eps": config.get("rms_norm_eps", 1e-6),
        "norm_order": "pre",
        "qk_norm": False,
        "rope_theta": float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
        "tie_embeddings": config.get("tie_word_embeddings", False),
    }


def text_weights(net: Transfusion) -> dict[str, Tensor]:
    """The weights that text passes, by Llama's names.

    They share memory with those of the net. The embedding and the head have all rows, also those of the image markers.
    """
    weights = {"model.embed_tokens.weight": net.embedding.weight, "model.norm.weight": net.transformer.norm.weight}
    if not net.transformer.config.tie_embeddings:
        weights["lm_head.weight"] = net.head.weight
    for layer, block in enumerate(net.transformer.blocks):
        text = block.text if isinstance(block, ModalityBlock) else block
        assert isinstance(text, Block)
        layer_weights = _block_weights(text, net.transformer.config.head_dim)
        weights |= {f"model.layers.{layer}.{name}.weight": weight for name, weight in layer_weights.items()}
    return weights


def _block_weights(block: Block, head_dim: int) -> dict[str, Tensor]:
    q, k, v = block.attention.qkv.weight.split([heads * head_dim for heads in block.attention.heads])
    gate, up = block.feed_forward.gate_up.weight.chunk(2)
    return {
        "input_layernorm": block.attention_norm.weight,
        "self_attn.q_proj": q,
        "self_attn.k_proj": k,
        "self_attn.v_proj": v,
        "self_attn.o_proj": block.attention.out.weight,
        "post_attention_layernorm": block.feed_forward_norm.weight,
        "mlp.gate_proj": gate,
        "mlp.up_proj": up,
        "mlp.down_proj": block.feed_forward.down.weight,
    }


def copy_text_to_patches(net: Transfusion) -> None:
    """Make the weights that patches have of their own equal to those of the text."""
    for block in net.transformer.blocks:
        if isinstance(block, ModalityBlock):
            block.patches.load_state_dict(block.text.state_dict())
    if net.transformer.config.modality_weights == "all":
        net.transformer.patch_norm.load_state_dict(net.transformer.norm.state_dict())
