"""A tiny random mixture-of-experts model, and what the `transformers` package (f32, CPU) computes with it.

Writes qwen3_moe/{config.json,model.safetensors,expected.json} beside this file.
"""

import json
from pathlib import Path

import torch
import transformers
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

FOLDER = Path(__file__).parent / "qwen3_moe"
PROMPT = 6
NEW_TOKENS = 18

config = Qwen3MoeConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=20,
    moe_intermediate_size=8,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    num_experts=6,
    num_experts_per_tok=2,
    norm_topk_prob=True,
    decoder_sparse_step=1,
    mlp_only_layers=[2],
    max_position_embeddings=256,
    tie_word_embeddings=False,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
)


def randomise(model):
    generator = torch.Generator().manual_seed(19)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if parameter.dim() == 1:
                parameter.uniform_(0.6, 1.5, generator=generator)
            else:
                std = 1.0 if "gate.weight" in name or "embed" in name else 0.4
                parameter.normal_(0.0, std, generator=generator)


def run(model, ids):
    """Logits, and how far the router prefers the last expert it takes to the first it leaves."""
    margins = []
    hooks = [
        layer.mlp.gate.register_forward_hook(lambda _, __, out: margins.append(out[0].float().softmax(-1)))
        for layer in model.model.layers
        if hasattr(layer.mlp, "gate")
    ]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    for hook in hooks:
        hook.remove()
    top = torch.cat(margins).topk(config.num_experts_per_tok + 1).values
    return logits, (top[:, -2] - top[:, -1]).min().item()


torch.set_num_threads(1)
model = Qwen3MoeForCausalLM(config).eval().float()
randomise(model)
model.save_pretrained(FOLDER)

cases = []
for normalised in (True, False):
    for layer in model.model.layers:
        if hasattr(layer.mlp, "gate"):
            layer.mlp.gate.norm_topk_prob = normalised
    ids = [3, 17, 29, 8, 31, 5]
    least = float("inf")
    for _ in range(NEW_TOKENS):
        logits, _ = run(model, ids)
        top = logits[-1].topk(2)
        least = min(least, (top.values[0] - top.values[1]).item())
        ids.append(top.indices[0].item())
    logits, router = run(model, ids)
    cases.append(
        {
            "norm_topk_prob": normalised,
            "prompt": PROMPT,
            "ids": ids,
            "logits": [[round(x, 6) for x in row] for row in logits.tolist()],
            "least_margin": round(least, 6),
            "least_router_margin": round(router, 6),
        }
    )
    print(normalised, ids, least, router)
record = {"transformers": transformers.__version__, "torch": torch.__version__, "cases": cases}
(FOLDER / "expected.json").write_text(json.dumps(record) + "\n")
for unused in FOLDER.glob("generation_config.json"):
    unused.unlink()
