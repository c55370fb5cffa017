"""Load an exported draft with the `speculators` package and compare its results with the draft's replay bundle.

    pip install speculators
    python benchmarks/speculators_peer.py DRAFT --target DIR [--tolerance 1e-4]

DRAFT is a folder written by `deepspec export --layout speculators`. The package's own model code computes the block: its attention
mask, its layers, its head, its Markov bias and its confidence head, in float32 on the CPU; of an Eagle3 draft its unrolled steps.
Its inputs are the bundle's features and tokens. Exits with 1 if a number is off by more than the tolerance, relative to its size and that of its row.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from speculators import SpeculatorModel, SpeculatorModelConfig


def load(draft: Path, target: str) -> SpeculatorModel:
    """The draft, its target's tables taken from a folder: the layout names the target for machines that have the hub."""
    config = SpeculatorModelConfig.from_pretrained(str(draft))
    if target:
        config.speculators_config.verifier.name_or_path = target
    # The default needs a compiler; this one is plain PyTorch.
    config.transformer_layer_config._attn_implementation = "eager"
    return SpeculatorModel.from_pretrained(str(draft), config=config, dtype=torch.float32).float().eval()


def block(model, features, token_ids, anchor_position, drafted):
    """What the package computes for the block whose anchor is at `anchor_position`."""
    size = model.block_size
    # The package draws anchors among supervised positions that leave room for a block: one is supervised here.
    length = anchor_position + size + 1
    hidden_states = torch.zeros(1, length, features.shape[1])
    hidden_states[0, : features.shape[0]] = features
    ids = torch.zeros(1, length, dtype=torch.long)
    ids[0, : anchor_position + 1] = torch.tensor(token_ids[: anchor_position + 1])
    mask = torch.zeros(1, length)
    mask[0, anchor_position] = 1
    width = model.config.transformer_layer_config.hidden_size
    with torch.no_grad():
        hidden, logits, *_ = model._backbone_forward(
            hidden_states,
            ids,
            mask,
            torch.zeros(1, length, width),
            torch.zeros(1, length, dtype=torch.long),
            max_anchors=1,
        )
        context = model.hidden_norm(model.fc(features))
        found = {"context": context, "hidden": hidden[0], "logits": logits[0]}
        before = torch.tensor([[token_ids[anchor_position], *drafted[:-1]]])
        factors = None
        if model.markov_head is not None:
            factors = model.markov_head.prev_embeddings(before)
            bias = model.markov_head.block_bias(prev_token_ids=before, hidden_states=hidden, prev_emb=factors)
            found["biased"] = (logits + bias)[0]
        if model.confidence_head is not None:
            parts = [hidden, factors] if model.config.confidence_head_with_markov else [hidden]
            found["confidence_logits"] = model.confidence_head(torch.cat(parts, dim=-1))[0]
    return found


def unrolled(model, features, token_ids, anchor_position, drafted):
    """The same of an Eagle3 draft: its row before the anchor, step by step."""
    row, steps = anchor_position - 1, len(drafted)
    # The token of a row is the one behind its feature's; step j of a row reads the token j further on.
    ids = token_ids[1 : anchor_position + 1] + drafted[:-1]
    length = len(ids)
    hidden_states = torch.zeros(1, length, features.shape[1])
    hidden_states[0, : features.shape[0]] = features
    seen = {"hidden": [], "logits": [], "layers": []}
    hooks = [
        model.norm.register_forward_hook(lambda _, __, out: seen["hidden"].append(out[0, row])),
        model.lm_head.register_forward_hook(lambda _, __, out: seen["logits"].append(out[0, row])),
        model.layers[0].register_forward_hook(
            lambda _, __, out: seen["layers"].append((out[0] if isinstance(out, tuple) else out)[0, row])
        ),
    ]
    with torch.no_grad():
        model(
            hidden_states,
            torch.tensor([ids]),
            torch.zeros(1, length, dtype=torch.long),
            ttt_steps=steps,
        )
        found = {name: torch.stack(rows) for name, rows in seen.items()}
        found["context"] = model.fc(features)
    for hook in hooks:
        hook.remove()
    found["layers"] = found["layers"].unsqueeze(0)
    return found


def off(expected, found):
    """The largest difference, of a number's size and that of its row."""
    expected, found = expected.double(), found.double()
    rows = expected if expected.dim() > 1 else expected.unsqueeze(-1)
    size = rows.square().mean(dim=-1, keepdim=True).sqrt()
    share = (rows - found.reshape(rows.shape)).abs() / (rows.abs() + size).clamp_min(1e-6)
    return share.max().item(), (expected - found).abs().max().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("draft", type=Path)
    parser.add_argument("--target", default="")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    arguments = parser.parse_args()

    bundle = json.loads((arguments.draft / "replay/replay.json").read_text())
    numbers = load_file(arguments.draft / "replay/replay.safetensors")
    model = load(arguments.draft, arguments.target)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{type(model).__name__}, {parameters} parameters, target layers {model.target_layer_ids} as the package counts")
    missing = [name for name, p in model.named_parameters() if p.isnan().any()]
    worst = 0.0 if not missing else float("inf")
    if missing:
        print(f"never loaded: {missing}")
    for index, prompt in enumerate(bundle["prompts"]):
        of = {name: numbers.get(f"{index}.{name}") for name in (
            "features", "context", "layers", "hidden", "columns", "base_logits", "base_logsumexp", "biased_logits",
            "confidence_logits",
        )}
        compute = unrolled if model.config.speculators_model_type == "eagle3" else block
        found = compute(model, of["features"], prompt["token_ids"], prompt["anchor_position"], prompt["drafted"])
        logits = found["logits"]
        pairs = {
            "context": found["context"],
            "hidden": found["hidden"],
            "base_logits": logits[:, of["columns"]],
            "base_logsumexp": logits.logsumexp(dim=-1),
        }
        if "layers" in found:
            pairs["layers"] = found["layers"]
        greedy = logits
        if "biased" in found:
            greedy = found["biased"]
            pairs["biased_logits"] = greedy[:, of["columns"]]
        if "confidence_logits" in found:
            pairs["confidence_logits"] = found["confidence_logits"]
        tokens = greedy.argmax(dim=-1)
        if model.use_draft_vocab:
            tokens = tokens + model.d2t[tokens]
        same = tokens.tolist() == prompt["drafted"]
        print(f"prompt {index}: context of {prompt['anchor_position']} tokens, greedy block {'the same' if same else tokens.tolist()}")
        worst = max(worst, 0.0 if same else float("inf"))
        for name, value in pairs.items():
            share, absolute = off(of[name], value)
            worst = max(worst, share if share == share else float("inf"))
            print(f"  {name:<18} {list(of[name].shape)!s:<14} largest difference {absolute:.2e}, as a share {share:.2e}")
    print(f"largest share {worst:.2e}, tolerance {arguments.tolerance:.0e}: {'the same' if worst <= arguments.tolerance else 'NOT THE SAME'}")
    sys.exit(worst > arguments.tolerance)


if __name__ == "__main__":
    main()
