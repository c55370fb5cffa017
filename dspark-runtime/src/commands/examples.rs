//! Examples at the end of each verb's help. They run in the repository's folder after `deepspec run recipes/quickstart.toml`.

use super::help::Examples;

/// Examples by verb.
pub(super) const EXAMPLES: &[Examples] = &[
    (
        "generate",
        "
dspark generate --target checkpoints/quickstart-target --draft runs/quickstart/draft --prompt 'What is 347 + 86?'
# without a draft, sampled, repeatable
dspark generate --target checkpoints/quickstart-target --prompt 'Hello!' --temperature 0.8 --seed 1
",
    ),
    (
        "chat",
        "
dspark chat --target checkpoints/quickstart-target --draft runs/quickstart/draft
",
    ),
    (
        "serve",
        "
dspark serve --target checkpoints/quickstart-target --draft runs/quickstart/draft
# another port, and a name that clients call the model by
dspark serve --target checkpoints/quickstart-target --port 8001 --served-model-name quickstart
",
    ),
    (
        "profile",
        "
dspark profile --target checkpoints/quickstart-target --draft runs/quickstart/draft
# a smaller measurement, its table in a file for `deepspec simulate`
dspark profile --target checkpoints/quickstart-target --draft runs/quickstart/draft \\
    --max-batch-tokens 64 --max-requests 8 --contexts 128,512 --out runs/sps.json
",
    ),
    (
        "perplexity",
        "
dspark perplexity --target checkpoints/quickstart-target --text README.md
",
    ),
    (
        "bench",
        "
dspark bench --target checkpoints/quickstart-target --draft runs/quickstart/draft \\
    --prompts datasets/quickstart/sums.evaluate.jsonl --concurrency 1,4 --modes off,scheduled --repeats 1
",
    ),
    (
        "device",
        "
dspark device
# time matrix products of two sizes
dspark device --products --sizes 256x256x256,512x512x512
",
    ),
    (
        "doctor",
        "
dspark doctor
dspark doctor --json
",
    ),
    (
        "completions",
        "
dspark completions bash
",
    ),
    (
        "man",
        "
dspark man target/man
",
    ),
];
