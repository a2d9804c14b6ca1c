#!/usr/bin/env python3
"""Writes NAME.f32 for each case of synthetic/families.rs, and `deepseek3-fp8` of folder.rs: the logits that Hugging
Face transformers computes.

Run it with `torch` and `transformers` (CPU is enough; 2.6 and 5.24 made what is stored):
    python3 generate.py [NAME...]
Weights are a formula of the GGUF tensor's name, as in synthetic/families.rs. Here they are brought to where
transformers keeps them: rotated pairs of `llama` as halves, fused and stacked tensors put together or taken apart, FP8
dequantised.
A file holds, for each position of TOKENS, one little-endian f32 per token of the vocabulary; encoder.f32, for each
of ENCODED, the mean of a BERT's last states brought to length 1, then the first state as it is.
"""
import math
import pathlib
import sys

import numpy as np
import torch
import transformers as hf
from transformers.models.llama import modeling_llama

VOCABULARY, HIDDEN, LAYERS, HEADS, KV_HEADS, WIDE = 128, 64, 2, 4, 2, 96
EXPERTS, EXPERT_WIDE = 8, 32
QUERY_RANK, RANK, PLAIN, ROTATED, VALUE = 32, 32, 32, 16, 24
TOKENS = [(p * 37 + 11) % VOCABULARY for p in range(40)]

COMMON = dict(
    vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
    num_key_value_heads=KV_HEADS, intermediate_size=WIDE, max_position_embeddings=128, rms_norm_eps=1e-5,
    pad_token_id=None, bos_token_id=None, eos_token_id=None, tie_word_embeddings=False,
)


SIZES = dict(HIDDEN=HIDDEN, WIDE=WIDE, EXPERT_WIDE=EXPERT_WIDE, QUERY_RANK=QUERY_RANK, RANK=RANK)
SIZES_FP8 = dict(HIDDEN=192, WIDE=160, EXPERT_WIDE=144, QUERY_RANK=136, RANK=160)


def resize(case):
    globals().update(SIZES_FP8 if case == "deepseek3-fp8" else SIZES)
    COMMON.update(hidden_size=HIDDEN, intermediate_size=WIDE)


def rope(kind="default", **more):
    return dict(rope_type=kind, rope_theta=10000.0, **more)


def uniform(name, count):
    """SplitMix64 seeded with FNV-1a of the name; numbers from -1 to 1."""
    state = 0xCBF29CE484222325
    for byte in name.encode():
        state = (state ^ byte) * 0x100000001B3 % 2**64
    with np.errstate(over="ignore"):
        z = np.uint64(state) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        z = z ^ z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float32) / np.float32(2**23) - np.float32(1)


def matrix(name, *shape, gain=1.0):
    """`shape` has rows first, as numpy and torch do."""
    width = np.float32(math.sqrt(3.0 / shape[-1]) * gain)
    return (uniform(name, math.prod(shape)) * width).reshape(shape)


def norm(name, size):
    return np.float32(1) + uniform(name, size) / np.float32(4)


def eighths(name, rows, columns):
    """An FP8 matrix times its scales, each of 128 rows and columns; torch's own idea of E4M3."""
    codes = ((uniform(name, rows * columns) + np.float32(1)) * np.float32(128)).astype(np.uint8)
    codes = np.where(codes & 0x7F == 0x7F, codes ^ 1, codes).reshape(rows, columns)
    weights = torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy()
    blocks = -(-rows // 128), -(-columns // 128)
    width = np.float32(1 / (108 * math.sqrt(columns)))
    scales = (np.float32(1) + uniform(f"{name}_scale_inv", math.prod(blocks)) / np.float32(2)) * width
    scales = scales.reshape(blocks).repeat(128, axis=0).repeat(128, axis=1)
    return weights * scales[:rows, :columns]


def scaled(name, value):
    """What `deepseek3-fp8` has in the place of `value`."""
    experts, _, part = name.partition(".experts.")
    if part:
        parts = ("gate", "up") if part == "gate_up_proj" else ("down",)
        shape = value.shape[1] // len(parts), value.shape[2]
        rows = [[eighths(f"{experts}.experts.{n}.{p}_proj.weight", *shape) for p in parts] for n in range(EXPERTS)]
        return np.stack([np.concatenate(expert) for expert in rows])
    return value if value.ndim != 2 or ".mlp.gate." in name else eighths(name, *value.shape)


def halves(weight, heads):
    """Undoes llama.cpp's permutation, which makes neighbours of pairs."""
    return weight.reshape(heads, -1, 2, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


def grouped(put, blk, permuted, biases=False, head_dim=16):
    for part, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
        weight = matrix(f"{blk}attn_{part}.weight", heads * head_dim, HIDDEN)
        put(f"self_attn.{part}_proj.weight", halves(weight, heads) if permuted and part != "v" else weight)
        if biases:
            put(f"self_attn.{part}_proj.bias", uniform(f"{blk}attn_{part}.bias", heads * head_dim) / np.float32(2))
    put("self_attn.o_proj.weight", matrix(f"{blk}attn_output.weight", HIDDEN, HEADS * head_dim))


def gated(put, blk, suffix="", at="mlp.", wide=None):
    wide = wide or WIDE
    put(f"{at}gate_proj.weight", matrix(f"{blk}ffn_gate{suffix}.weight", wide, HIDDEN))
    put(f"{at}up_proj.weight", matrix(f"{blk}ffn_up{suffix}.weight", wide, HIDDEN))
    put(f"{at}down_proj.weight", matrix(f"{blk}ffn_down{suffix}.weight", HIDDEN, wide))


def experts(put, blk, wide, bias=False):
    put("mlp.gate.weight", matrix(f"{blk}ffn_gate_inp.weight", EXPERTS, HIDDEN, gain=2.0))
    if bias:
        put("mlp.gate.e_score_correction_bias", uniform(f"{blk}exp_probs_b.bias", EXPERTS) / np.float32(2))
    gate, up = (matrix(f"{blk}ffn_{p}_exps.weight", EXPERTS, wide, HIDDEN) for p in ("gate", "up"))
    put("mlp.experts.gate_up_proj", np.concatenate([gate, up], axis=1))
    put("mlp.experts.down_proj", matrix(f"{blk}ffn_down_exps.weight", EXPERTS, HIDDEN, wide))


def latent(put, blk, lite):
    queries = HEADS * (PLAIN + ROTATED)
    if lite:
        put("self_attn.q_proj.weight", matrix(f"{blk}attn_q.weight", queries, HIDDEN))
    else:
        put("self_attn.q_a_proj.weight", matrix(f"{blk}attn_q_a.weight", QUERY_RANK, HIDDEN))
        put("self_attn.q_a_layernorm.weight", norm(f"{blk}attn_q_a_norm.weight", QUERY_RANK))
        put("self_attn.q_b_proj.weight", matrix(f"{blk}attn_q_b.weight", queries, QUERY_RANK))
    put("self_attn.kv_a_proj_with_mqa.weight", matrix(f"{blk}attn_kv_a_mqa.weight", RANK + ROTATED, HIDDEN))
    put("self_attn.kv_a_layernorm.weight", norm(f"{blk}attn_kv_a_norm.weight", RANK))
    # llama.cpp keeps the keys' part of each head transposed.
    keys = matrix(f"{blk}attn_k_b.weight", HEADS, RANK, PLAIN).swapaxes(1, 2)
    values = matrix(f"{blk}attn_v_b.weight", HEADS, VALUE, RANK)
    put("self_attn.kv_b_proj.weight", np.concatenate([keys, values], axis=1).reshape(-1, RANK))
    put("self_attn.o_proj.weight", matrix(f"{blk}attn_output.weight", HIDDEN, HEADS * VALUE))


def llama(put, blk, layer):
    grouped(put, blk, permuted=True)
    gated(put, blk)


def mistral(put, blk, layer):
    grouped(put, blk, permuted=True, head_dim=32)
    gated(put, blk)


def mixtral(put, blk, layer):
    grouped(put, blk, permuted=True)
    experts(put, blk, WIDE)


def qwen2(put, blk, layer):
    grouped(put, blk, permuted=False, biases=True)
    gated(put, blk)


def phi3(put, blk, layer):
    put("self_attn.qkv_proj.weight", matrix(f"{blk}attn_qkv.weight", (HEADS + 2 * KV_HEADS) * 16, HIDDEN))
    put("self_attn.o_proj.weight", matrix(f"{blk}attn_output.weight", HIDDEN, HEADS * 16))
    put("mlp.gate_up_proj.weight", matrix(f"{blk}ffn_up.weight", 2 * WIDE, HIDDEN))
    put("mlp.down_proj.weight", matrix(f"{blk}ffn_down.weight", HIDDEN, WIDE))


def deepseek(lite=False, third=False):
    def layer_of(put, blk, layer):
        latent(put, blk, lite)
        if layer == 0:
            gated(put, blk)
        else:
            experts(put, blk, EXPERT_WIDE, bias=third)
            gated(put, blk, "_shexp", "mlp.shared_experts.", 2 * EXPERT_WIDE)
    return layer_of


def phi3_config(original=None):
    if original is None:
        scaling = rope(partial_rotary_factor=0.75)
        return hf.Phi3Config(**COMMON, rope_parameters=scaling, sliding_window=9)
    short = (np.float32(1.5) + uniform("rope_factors_short.weight", 6) / np.float32(2)).tolist()
    long = (np.float32(5) + uniform("rope_factors_long.weight", 6) * np.float32(4)).tolist()
    scaling = rope("longrope", short_factor=short, long_factor=long, partial_rotary_factor=0.75,
                   attention_factor=1.25, original_max_position_embeddings=original)
    return hf.Phi3Config(**COMMON, rope_parameters=scaling, original_max_position_embeddings=original,
                         sliding_window=None)


def deepseek_config(kind, mscale, **more):
    scaling = rope("yarn", factor=4.0, original_max_position_embeddings=32, mscale=mscale, mscale_all_dim=mscale)
    common = dict(COMMON, num_key_value_heads=HEADS)
    return kind(**common, rope_parameters=scaling, kv_lora_rank=RANK, qk_nope_head_dim=PLAIN,
                qk_rope_head_dim=ROTATED, v_head_dim=VALUE, first_k_dense_replace=1, n_routed_experts=EXPERTS,
                num_experts_per_tok=3, n_shared_experts=2, moe_intermediate_size=EXPERT_WIDE, **more)


CASES = {
    "llama": (llama, lambda: hf.LlamaConfig(**dict(COMMON, tie_word_embeddings=True), rope_parameters=rope())),
    "llama3": (llama, lambda: hf.LlamaConfig(**COMMON, rope_parameters=rope(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64))),
    "linear": (llama, lambda: hf.LlamaConfig(**COMMON, rope_parameters=rope("linear", factor=4.0))),
    "mistral": (mistral, lambda: hf.MistralConfig(
        **COMMON, rope_parameters=rope(), head_dim=32, sliding_window=7)),
    "mixtral": (mixtral, lambda: hf.MixtralConfig(
        **COMMON, rope_parameters=rope(), num_local_experts=EXPERTS, num_experts_per_tok=2, sliding_window=None)),
    "qwen2": (qwen2, lambda: hf.Qwen2Config(**dict(COMMON, tie_word_embeddings=True), rope_parameters=rope())),
    "yarn": (qwen2, lambda: hf.Qwen2Config(**COMMON, rope_parameters=rope(
        "yarn", factor=4.0, original_max_position_embeddings=32))),
    "phi3": (phi3, phi3_config),
    "phi3-short": (phi3, lambda: phi3_config(256)),
    "phi3-long": (phi3, lambda: phi3_config(16)),
    "deepseek2-lite": (deepseek(lite=True), lambda: deepseek_config(
        hf.DeepseekV2Config, 0.707, q_lora_rank=None, topk_method="greedy", n_group=1, topk_group=1,
        routed_scaling_factor=1.5)),
    "deepseek2": (deepseek(), lambda: deepseek_config(
        hf.DeepseekV2Config, 0.707, q_lora_rank=QUERY_RANK, topk_method="group_limited_greedy", n_group=4,
        topk_group=2, routed_scaling_factor=1.5)),
    "deepseek3": (deepseek(third=True), lambda: deepseek_config(
        hf.DeepseekV3Config, 1.0, q_lora_rank=QUERY_RANK, n_group=4, topk_group=2, norm_topk_prob=True,
        routed_scaling_factor=2.5)),
}
CASES["deepseek3-fp8"] = CASES["deepseek3"]


def model(case):
    resize(case)
    layer_of, config = CASES[case]
    net = hf.AutoModelForCausalLM.from_config(config(), attn_implementation="eager").eval()
    state = net.state_dict()
    left = set(state)

    def put(name, value):
        assert state[name].shape == value.shape, (name, state[name].shape, value.shape)
        state[name].copy_(torch.from_numpy(np.ascontiguousarray(value)))
        left.discard(name)

    put("model.embed_tokens.weight", matrix("token_embd.weight", VOCABULARY, HIDDEN))
    left -= {"lm_head.weight"} if net.config.tie_word_embeddings else set()
    if not net.config.tie_word_embeddings:
        put("lm_head.weight", matrix("output.weight", VOCABULARY, HIDDEN))
    put("model.norm.weight", norm("output_norm.weight", HIDDEN))
    for layer in range(LAYERS):
        def put_here(name, value):
            name = f"model.layers.{layer}.{name}"
            put(name, scaled(name, value) if case == "deepseek3-fp8" else value)
        blk = f"blk.{layer}."
        put_here("input_layernorm.weight", norm(f"{blk}attn_norm.weight", HIDDEN))
        put_here("post_attention_layernorm.weight", norm(f"{blk}ffn_norm.weight", HIDDEN))
        layer_of(put_here, blk, layer)
    assert not left, f"weights that nobody set: {left}"
    return net


ENCODED = [[(p * 29 + 5 * n + 7) % VOCABULARY for p in range(n)] for n in (1, 7, 42)]


def encoder():
    """The BERT of synthetic/encoder.rs, whose tensors have transformers' names there, too."""
    net = hf.BertModel(hf.BertConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=WIDE, max_position_embeddings=48, layer_norm_eps=1e-12, hidden_act="gelu",
    ), add_pooling_layer=False).eval()
    for name, tensor in net.state_dict().items():
        size, kind = tensor.numel(), name.rsplit(".", 1)[1]
        if "LayerNorm" in name and kind == "weight":
            value = norm(name, size)
        elif kind == "bias":
            value = uniform(name, size) / np.float32(2)
        else:
            value = matrix(name, *tensor.shape)
        tensor.copy_(torch.from_numpy(value.reshape(tensor.shape)))
    out = []
    for tokens in ENCODED:
        states = net(torch.tensor([tokens])).last_hidden_state[0]
        out += [torch.nn.functional.normalize(states.mean(0), dim=0), states[0]]
    return torch.stack(out).numpy()


def half_attention(module, query, key, value, *args, **more):
    """Attention over keys and values in half precision, which is how the engine's cache holds them."""
    rounded = [tensor.half().float() for tensor in (key, value)]
    return modeling_llama.eager_attention_forward(module, query, *rounded, *args, **more)


def main():
    hf.AttentionInterface.register("half", half_attention)
    hf.AttentionMaskInterface.register("half", hf.masking_utils.eager_mask)
    for case in sys.argv[1:] or [*CASES, "encoder"]:
        if case == "encoder":
            with torch.no_grad():
                vectors = encoder()
            assert np.isfinite(vectors).all()
            (pathlib.Path(__file__).parent / "encoder.f32").write_bytes(vectors.astype("<f4").tobytes())
            print(f"encoder: {vectors.shape}")
            continue
        net, tokens = model(case), torch.tensor([TOKENS])
        with torch.no_grad():
            logits = net(tokens, use_cache=False).logits[0].numpy()
            net.set_attn_implementation("half")
            half = np.abs(net(tokens, use_cache=False).logits[0].numpy() - logits).max()
        assert np.isfinite(logits).all()
        path = pathlib.Path(__file__).parent / f"{case}.f32"
        path.write_bytes(logits.astype("<f4").tobytes())
        # DeepSeek's cache holds the latents that keys and values are made of, so `half` says less of it.
        print(f"{case}: {logits.shape}, deviation {logits.std():.3f}, largest {np.abs(logits).max():.3f}; "
              f"keys and values in half precision move them by {half:.1e}")


if __name__ == "__main__":
    main()
