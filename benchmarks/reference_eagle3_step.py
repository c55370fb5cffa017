#!/usr/bin/env python3
"""One training step of the public PyTorch reference's Eagle3 on a CPU, as the control of `cargo bench --bench training_step`.

    DEEPSPEC_PATH=<checkout of deepseek-ai/DeepSpec> reference_eagle3_step.py [--threads N] [--reps N]

Shape `small`: d 256, 8 heads, 4 kv heads, head width 32, ffn 768, vocabulary 4096, 5 captured layers, one draft layer, 7
unrolled steps, one sequence of 512 tokens whose target hidden states are given, f32. A step is forward, loss, backward, global
clip and AdamW. Two of the reference's functions run on GPUs alone and are replaced: attention, by PyTorch's with a dense mask, and
the fused soft cross-entropy, by one that keeps as little (the logits and a number per row). Prints one line of JSON; memory is
the process's peak above what it had before the model was built.
"""

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time

cli = argparse.ArgumentParser()
cli.add_argument("--threads", type=int, default=2)
cli.add_argument("--reps", type=int, default=5)
args = cli.parse_args()
os.environ["OMP_NUM_THREADS"] = str(args.threads)
sys.path.insert(0, os.environ["DEEPSPEC_PATH"])

import torch
import torch.distributed as dist
from transformers import Qwen3Config

from deepspec.modeling.eagle3 import loss as eagle3_loss
from deepspec.modeling.eagle3.qwen3 import Qwen3Eagle3Model
from deepspec.modeling.eagle3.qwen3.config import build_draft_config
from deepspec.utils import metrics
from deepspec.utils.config import to_config_node
from deepspec.utils.optim import BF16Optimizer

TOKENS, HIDDEN, VOCABULARY, LAYERS, STEPS = 512, 256, 4096, [1, 2, 3, 5, 6], 7


class SoftCrossEntropy(torch.autograd.Function):
    """sum(-sum(q log p)) / normalizer over the rows that count."""

    @staticmethod
    def forward(ctx, logits, target, mask, normalizer):
        log_sums = torch.logsumexp(logits, dim=-1)
        losses = log_sums * target.sum(-1) - (target * logits).sum(-1)
        ctx.save_for_backward(logits.detach(), target, mask, log_sums)
        ctx.normalizer = normalizer
        return (losses * mask.squeeze(-1)).sum() / normalizer

    @staticmethod
    def backward(ctx, gradient):
        logits, target, mask, log_sums = ctx.saved_tensors
        slopes = torch.exp(logits - log_sums.unsqueeze(-1)).sub_(target)
        return slopes.mul_(mask * (gradient / ctx.normalizer)), None, None, None


def unrolled_mask(*, q_len, past_seen_tokens, **_):
    """Who sees what, dense: the first pass's tokens up to oneself, and of every later pass oneself alone."""
    causal = torch.ones(q_len, q_len, dtype=torch.bool).tril()
    return torch.cat([causal] + [torch.eye(q_len, dtype=torch.bool)] * (past_seen_tokens // q_len), dim=1)[None, None]


torch.set_num_threads(args.threads)
torch.manual_seed(0)
dist.init_process_group("gloo", init_method=f"file://{tempfile.mktemp()}", rank=0, world_size=1)
eagle3_loss.FusedLogSoftmaxLoss = SoftCrossEntropy
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

config = Qwen3Config(
    vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=768, num_hidden_layers=8, num_attention_heads=8,
    num_key_value_heads=4, head_dim=32, max_position_embeddings=8192, tie_word_embeddings=False,
)
draft_config = build_draft_config(
    target_config=config,
    model_args=to_config_node(
        dict(target_layer_ids=LAYERS, ttt_length=STEPS, step_loss_decay=0.8, draft_num_hidden_layers=1, target_model_name_or_path="none")
    ),
)
draft_config._attn_implementation = "sdpa"  # flex attention has no fast form on a CPU; this one takes the same mask, dense
draft = Qwen3Eagle3Model(draft_config).train()
draft._prepare_attention_mask = unrolled_mask
draft.set_embedding_head_trainable(False)
optimizer = BF16Optimizer(draft, lr=6e-4, total_steps=1000, warmup_ratio=0.04)
batch = dict(
    input_ids=torch.randint(0, VOCABULARY, (1, TOKENS)),
    loss_mask=torch.ones(1, TOKENS, dtype=torch.uint8),
    attention_mask=torch.ones(1, TOKENS, dtype=torch.uint8),
    target_hidden_states=torch.randn(1, TOKENS, len(LAYERS) * HIDDEN),
    target_last_hidden_states=torch.randn(1, TOKENS, HIDDEN),
)


def step():
    loss = eagle3_loss.compute_eagle3_loss(model=draft, batch=batch, ttt_length=STEPS, step_loss_decay=0.8)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(draft.parameters(), 1.0)
    optimizer.step()
    metrics.reset()


for _ in range(2):
    step()
times = []
for _ in range(args.reps):
    start = time.perf_counter()
    step()
    times.append(time.perf_counter() - start)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(
    json.dumps(
        {
            "shape": "small, eagle3",
            "threads": args.threads,
            "median_s": round(statistics.median(times), 4),
            "min_s": round(min(times), 4),
            "mib_above_before": (peak - before) // 1024,
            "torch": torch.__version__,
        }
    )
)
