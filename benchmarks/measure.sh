#!/usr/bin/env bash
# Measures the figures of benchmarks/README.md that change with the code, and writes them into benchmarks/results.
# shellcheck disable=SC2016  # Markdown in single quotes
set -euo pipefail

usage() {
    cat <<'END'
usage: benchmarks/measure.sh

Run it on a machine on which nothing else runs, after `cargo build --release --workspace`. Settings are variables:

  BIN            folder with `deepspec` and `dspark` (default: target/release)
  DSPARK_MODELS  folder with smollm2-135m (default: ~/.cache/dspark-models)
  PROMPTS        gsm8k's test prompts as JSON lines; without them only the quickstart is measured
  REPEATS        runs of every mode at every number of clients (default: 8)
  OUT            new or empty folder for reports and logs (default: a temporary one)
  FRESH          1: also clone the last commit, build it and time its quickstart; adds the time of a whole build
  SMALL          1: tiny settings to try the script; results go to OUT, the repository stays as it is

It needs Python 3. It exits with 1 when a step fails; results are then left as they were.
END
}
[[ $# == 0 ]] || { usage >&2; exit 2; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bin=$(cd "${BIN:-$root/target/release}" && pwd)
models=${DSPARK_MODELS:-$HOME/.cache/dspark-models}
prompts=${PROMPTS:+$(realpath "$PROMPTS")}
out=$(realpath "${OUT:-$(mktemp -d)}")
repeats=${REPEATS:-8}
benchmarks=$root/benchmarks
report=(--results "$benchmarks/results")
steps=() samples=40 tokens=96 bench_tokens=48 journal=$benchmarks/journal
mkdir -p "$out"
[[ -z $(ls -A "$out") ]] || { echo "OUT: $out is not empty; name a new folder" >&2; exit 2; }
cd "$root"

if [[ ${SMALL:-} == 1 ]]; then
    repeats=${REPEATS:-1} samples=2 tokens=8 bench_tokens=8 journal=$out/journal
    steps=(--set train.steps=20 --set train.validate_every=0 --set evaluate.samples=2)
    cp -r "$benchmarks/results" "$out/results"
    report=(--results "$out/results" --page "$out/README.md" --pictures "$out/pictures")
fi
mkdir -p "$journal"

[[ -x $bin/deepspec && -x $bin/dspark ]] || { echo "$bin: \`deepspec\` or \`dspark\` is missing; build them or set BIN" >&2; exit 2; }
[[ -z $prompts || -r $prompts ]] || { echo "PROMPTS: cannot read $prompts" >&2; exit 2; }

date=$(date +%F)
load=$(cut -d' ' -f1 /proc/loadavg)
commit=$(git rev-parse --short HEAD)
[[ -z $(git status --porcelain --untracked-files=no) ]] || commit="$commit, with changes"
name=$date-measure.md
log=$out/log.md
: >"$log"
awk "BEGIN { exit !($load > 0.5) }" && echo "load average $load: something else runs, so speeds will be too low" >&2

# Text without the paths of this machine.
public() {
    sed -e "s#$out/##g" -e "s#$bin/##g" -e "s#$models/##g" -e "s#${prompts:-no prompts}#gsm8k.jsonl#g" -e "s#$root/##g" -e "s#$HOME#~#g"
}

# Runs a step: a name, then the command. Keeps the command, its output and its seconds.
step() {
    local name=$1 begin end
    shift
    echo "$name" >&2
    printf '%s\n' "$*" | public >"$out/$name.command"
    begin=$(date +%s.%N)
    if ! "$@" >"$out/$name.txt" 2>"$out/$name.err"; then
        tail -n 20 "$out/$name.err" >&2
        echo "$name failed; its output is in $out" >&2
        exit 1
    fi
    end=$(date +%s.%N)
    awk "BEGIN { printf \"%.1f\n\", $end - $begin }" >"$out/$name.seconds"
    {
        printf '### %s, %s s\n\n```\n$ ' "$name" "$(cat "$out/$name.seconds")"
        cat "$out/$name.command"
        public <"$out/$name.txt"
        printf '```\n\n'
    } >>"$log"
}

step quickstart "$bin/deepspec" run recipes/quickstart.toml "${steps[@]}" --set "output.dir=$out/quickstart"
cp "$out/quickstart/report.json" "$out/quickstart.json"

target=$models/smollm2-135m
draft=checkpoints/smollm2-135m-dspark
if [[ -z $prompts ]]; then
    echo "left out: SmolLM2-135M, since PROMPTS is not set" >&2
elif [[ ! -d $target ]]; then
    echo "left out: SmolLM2-135M, since $target does not exist" >&2
else
    evaluate=("$bin/deepspec" evaluate --target "$target" --draft "$draft" --task "$prompts" --samples "$samples" --max-new-tokens "$tokens" --no-plain)
    step accepted-0 "${evaluate[@]}" --temperature 0 --json "$out/accepted-0.json"
    step accepted-1 "${evaluate[@]}" --temperature 1 --json "$out/accepted-1.json"
    step accepted-coupled "${evaluate[@]}" --temperature 1 --sampling coupled --json "$out/accepted-coupled.json"
    step bench "$bin/dspark" bench --target "$target" --draft "$draft" --prompts "$prompts" --concurrency 1,2,4,8 --modes off,fixed:7,scheduled \
        --repeats "$repeats" --requests 1 --max-new-tokens "$bench_tokens" --ignore-stop --weights stored --json "$out/bench.json"
fi

if [[ ${FRESH:-} == 1 ]]; then
    git clone --quiet "$root" "$out/clone"
    cd "$out/clone"
    export CARGO_TARGET_DIR=$out/clone/target
    step fresh-build cargo build --release -p deepspec
    step fresh-run cargo run --release -p deepspec -- run recipes/quickstart.toml "${steps[@]}"
    cd "$root"
fi

python3 "$benchmarks/record.py" --results "${report[1]}" --out "$out" --date "$date" --commit "$commit" --load "$load" --repeats "$repeats" \
    --samples "$samples" --journal "journal/$name" >"$out/machine"
{
    [[ -s $journal/$name ]] || printf '# %s: `benchmarks/measure.sh`\n\n' "$date"
    printf '## Commit %s, %s\n\nMachine: %s. Load average at the start: %s.\n\n' "$commit" "$(date +%H:%M)" "$(cat "$out/machine")" "$load"
    cat "$log"
} >>"$journal/$name"
python3 "$benchmarks/report.py" "${report[@]}"
echo "written: ${report[1]}, $journal/$name" >&2
