//! Examples at the end of each verb's help. They run in the repository's folder, those that name `runs/quickstart` after
//! `deepspec run recipes/quickstart.toml`.

use dspark_runtime::commands::Examples;

/// Examples by verb.
pub(super) const EXAMPLES: &[Examples] = &[
    (
        "init",
        "
deepspec init --target checkpoints/quickstart-target --data datasets/quickstart/chat.train.jsonl \\
    --task datasets/quickstart/chat.evaluate.jsonl --out runs/chat.toml
# placeholders for data and tasks
deepspec init --target checkpoints/quickstart-target --algorithm eagle3 --out runs/mine.toml
",
    ),
    (
        "prepare",
        "
deepspec prepare datasets/quickstart/chat.train.jsonl --out runs/prepared --validation 0.02
# three parts of sums for each part of chats, without conversations that resemble each other
deepspec prepare chats=datasets/quickstart/chat.train.jsonl sums=datasets/quickstart/sums.train.jsonl \\
    --weight chats=1 --weight sums=3 --rows 400 --near-duplicates 0.8 --out runs/mixed
# a job of four, each of which writes a part
deepspec prepare datasets/quickstart/chat.train.jsonl --shard 0/4 --out runs/parts/0
# without conversations that are longer than the training takes
deepspec prepare datasets/quickstart/chat.train.jsonl --target checkpoints/quickstart-target --tokens ..192 \\
    --out runs/short
",
    ),
    (
        "run",
        "
deepspec run recipes/quickstart.toml
# other settings, in a folder of their own
deepspec run recipes/quickstart.toml --set train.steps=100 --set output.dir=runs/short
",
    ),
    (
        "sweep",
        "
deepspec sweep recipes/quickstart.toml --vary model.markov_rank=0,64 --set train.steps=100 --out runs/ranks
",
    ),
    (
        "regenerate",
        "
deepspec regenerate --target checkpoints/quickstart-target --prompts datasets/quickstart/chat.evaluate.jsonl \\
    --out runs/answers.jsonl --max-tokens 128
# with a draft, three different answers to every prompt
deepspec regenerate --target checkpoints/quickstart-target --draft runs/quickstart/draft \\
    --prompts datasets/quickstart/chat.evaluate.jsonl --out runs/samples.jsonl --samples 3 --max-tokens 128
# from two servers of the model
deepspec regenerate --endpoint http://127.0.0.1:8000/v1 http://127.0.0.1:8001/v1 --model quickstart-target \\
    --prompts datasets/quickstart/chat.evaluate.jsonl --out runs/served.jsonl --temperature 0.7
",
    ),
    (
        "train",
        "
# memory and time, without training
deepspec train recipes/quickstart.toml --plan
deepspec train recipes/quickstart.toml --set train.steps=100 --set output.dir=runs/trained
# continue from the newest checkpoint
deepspec train recipes/quickstart.toml --set train.steps=100 --set output.dir=runs/trained --resume
# hidden states from a cache instead of the target
deepspec train recipes/quickstart.toml --set data.cache=runs/states --set output.dir=runs/cached
# continue from a draft that exists
deepspec train recipes/quickstart.toml --from runs/quickstart/draft --set train.steps=50 --set output.dir=runs/longer
",
    ),
    (
        "cache",
        "
# size and time, without writing anything
deepspec cache plan recipes/quickstart.toml
deepspec cache build recipes/quickstart.toml --set data.cache=runs/states --codec bf16-lossless
# a job of eight; all build into the same folder
deepspec cache build recipes/quickstart.toml --set data.cache=runs/states --codec bf16-lossless --shard 0/8
deepspec cache verify runs/states
",
    ),
    (
        "evaluate",
        "
deepspec evaluate --target checkpoints/quickstart-target --draft runs/quickstart/draft \\
    --task datasets/quickstart/sums.evaluate.jsonl --temperature 0 --max-new-tokens 64
# keep every round for `deepspec simulate`
deepspec evaluate --target checkpoints/quickstart-target --draft runs/quickstart/draft \\
    --task datasets/quickstart/chat.evaluate.jsonl --samples 10 --trace runs/trace.jsonl
",
    ),
    (
        "calibrate",
        "
deepspec calibrate --target checkpoints/quickstart-target --draft runs/quickstart/draft \\
    --task datasets/quickstart/sums.evaluate.jsonl datasets/quickstart/code.evaluate.jsonl --max-new-tokens 64
",
    ),
    (
        "simulate",
        "
# the trace of `deepspec evaluate`, the tables of `deepspec calibrate` and `dspark profile`
deepspec simulate --trace runs/trace.jsonl --sts runs/quickstart/draft/sts.json --sps runs/sps.json --loads 1,8,64
",
    ),
    (
        "export",
        "
# for vLLM and the speculators package
deepspec export --target checkpoints/quickstart-target --draft runs/quickstart/draft \\
    --layout speculators --verifier owner/name --out runs/speculators
# for llama.cpp, the target too
deepspec export --target checkpoints/quickstart-target --draft runs/quickstart/draft \\
    --layout gguf --out runs/draft.gguf --target-out runs/target.gguf
",
    ),
    (
        "inspect",
        "
deepspec inspect checkpoints/smollm2-135m-dspark
deepspec inspect runs/quickstart/draft --target checkpoints/quickstart-target --replay
",
    ),
    (
        "doctor",
        "
deepspec doctor
deepspec doctor --json
",
    ),
    (
        "completions",
        "
deepspec completions zsh
",
    ),
    (
        "man",
        "
deepspec man target/man
",
    ),
];
