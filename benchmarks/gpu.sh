#!/usr/bin/env bash
# Runs the checks of benchmarks/gpu.md and writes the results into one JSON file.
# shellcheck disable=SC2016,SC2317  # awk programs in single quotes; functions that are called by name
set -uo pipefail

usage() {
    cat <<'END'
usage: benchmarks/gpu.sh BINARY

BINARY is the program `deepspec` with `dspark` in the same folder, or that folder, built with `--features cuda`. If
`libdevice.10.bc` is in the folder and CUDA_PATH is not set, it is used. Settings are variables:

  DEVICE      cuda (default), cuda:INDEX, or cpu: smaller sizes, for trying the script out
  STEPS       names of the steps to run (default: all)
  BUDGET      seconds for all steps (default 560, on the CPU 1120); no step begins after that
  STEP_LIMIT  upper limit of the seconds of each step
  OUT         folder of the result, gpu.json (default: the current folder)
  KEEP        folder for runs, drafts and logs (default: a temporary one, removed at the end)
  DSPARK_MODELS  folder with stories15m and smollm2-135m, as the tests of dspark-runtime look for them

It exits with 0 if no step failed, 1 if one failed, ran out of time or could not run, and 2 if the usage is wrong.
END
}

# name, seconds, question; most wanted first.
steps() {
    cat <<'END'
device    30  What is the device, and are a product and a softmax right on it?
starts    90  Does a training of 5 steps run?
products  60  How fast are matrix products in f32 and bf16?
curve     90  Do 100 training steps have the losses of the CPU? How long is a step?
bf16      90  The same with train.compute = "bf16".
ids      120  Are greedy ids those of the CPU and of transformers, without and with a draft?
serving  150  How fast does an engine answer, and where does the time of a step go?
memory   150  Does memory grow over 500 training steps?
plan      30  How close is the estimate of deepspec train --plan to what that training took?
stored   100  The same as serving, with matrices kept in bf16.
END
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || exit 2
target=$root/checkpoints/quickstart-target
losses=$root/benchmarks/quickstart_losses.txt
golden=$root/dspark-runtime/tests/golden/greedy_ids.json

# ---- What steps are written with. A step runs in a shell of its own, in the folder $here. ----

# Adds a figure: a name, and JSON.
figure() { printf '"%s": %s\n' "$1" "${2:-null}" >>"$here/figures"; }
# The same for text.
text_figure() { figure "$1" "$(json_text "$2")"; }
cannot() { printf '%s' "$*" >"$here/cannot"; exit 3; }
fail() { echo "$*" >&2; exit 1; }
on_gpu() { [[ $DEVICE == cuda* ]]; }
# The first argument on a GPU, the second on the CPU.
either() { if on_gpu; then echo "$1"; else echo "$2"; fi; }

# JSON of a text; what is no printable ASCII is left out.
json_text() {
    printf '"'
    printf '%s' "$1" | LC_ALL=C tr '\t' ' ' | LC_ALL=C tr -cd '\n\040-\176' | sed 's/[\\"]/\\&/g' | awk 'NR > 1 { printf "\\n" } { printf "%s", $0 }'
    printf '"'
}

now() { date +%s.%N; }
lines() { if [[ -e $1 ]]; then wc -l <"$1"; else echo 0; fi; }
calculate() { awk "BEGIN { printf \"%.6g\", $1 }"; }
# A number of pretty-printed JSON on standard input, the first of its name.
number() { sed -n "s/^ *\"$1\": \([-0-9.eE+]*\),\{0,1\}\$/\1/p" | head -n 1; }
# The array of numbers of a name in JSON on standard input, on one line.
array() { tr -d '\n ' | sed -n "s/.*\"$1\":\[\([0-9,]*\)\].*/\1/p"; }

# MiB of the GPU that are in use.
gpu_memory=(nvidia-smi --id="$(cut -d: -f2 <<<"${DEVICE-}:0")" --query-gpu=memory.used "--format=csv,noheader,nounits")

# Trains the quickstart: a name, the number of steps, further settings. Leaves losses, samples and the report in $here/NAME.
# Ends the training when the step has run for $train_limit seconds.
train() {
    local name=$1 count=$2 run=$here/$1 pid sampler='' before='' code=0
    shift 2
    mkdir -p "$run"
    if on_gpu; then
        before=$("${gpu_memory[@]}" 2>/dev/null)
        "${gpu_memory[@]}" --loop-ms=500 >"$run/gpu_memory" 2>/dev/null &
        sampler=$!
    fi
    "$DEEPSPEC" train "$root/recipes/quickstart.toml" --device "$DEVICE" --json --set "output.dir=\"$run\"" \
        --set train.steps="$count" --set train.checkpoint_every="$count" --set train.validate_every=0 \
        --set train.log_every=1 "$@" >"$run/report.json" &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
        # Time, steps done, resident KiB.
        echo "$(now) $(lines "$run/metrics.jsonl") $(awk '/^VmRSS/ { print $2 }' "/proc/$pid/status" 2>/dev/null)"
        ((SECONDS < ${train_limit:-9999})) || kill "$pid"
        sleep 0.2
    done >"$run/samples"
    wait "$pid" || code=$?
    [[ -z $sampler ]] || kill "$sampler" 2>/dev/null
    [[ -s $run/metrics.jsonl ]] || return "$((code ? code : 1))"
    sed -n 's/^{"step":\([0-9]*\),"train\/loss":\([-0-9.eE]*\),.*/\1 \2/p' "$run/metrics.jsonl" >"$run/losses"
    figure "${name}_steps" "$(lines "$run/losses")"
    figure "${name}_seconds" "$(number seconds <"$run/report.json")"
    # Over the second half, in which little is compiled or tuned.
    figure "${name}_seconds_per_step_of_second_half" "$(awk -v half="$(($(lines "$run/losses") / 2))" '
        NF == 3 && $2 >= half { if (!begun) { begun = $1; first = $2 } if ($2 > last) { last = $2; ended = $1 } }
        END { if (last > first) printf "%.6g", (ended - begun) / (last - first) }' "$run/samples")"
    figure "${name}_last_loss" "$(tail -n 1 "$run/losses" | cut -d' ' -f2)"
    figure "${name}_peak_resident_bytes" "$(number peak_memory <"$run/report.json")"
    if [[ -s $run/gpu_memory ]]; then
        figure "${name}_device_mib_before" "$before"
        figure "${name}_device_mib_most" "$(sort -n "$run/gpu_memory" | tail -n 1)"
    fi
    return "$code"
}

# Trains like `train`, as many of the steps as there is time for.
train_in_time() {
    local train_limit=$((${step_seconds:?} - 10))
    train "$@" || ((SECONDS >= train_limit)) || fail "the training failed"
}

# Trains 100 steps and compares the losses with the CPU's; fails when means of 25 steps are more than 1 % apart.
compare_losses() {
    [[ -r $losses ]] || cannot "$losses is missing"
    train_in_time "$1" 100 "${@:2}"
    grep -v '^#' "$losses" | awk '
        NR == FNR { cpu[$1] = $2; next }
        ($1 in cpu) {
            n += 1
            off = ($2 > cpu[$1] ? $2 - cpu[$1] : cpu[$1] - $2) / cpu[$1]
            if (n == 1) first = off
            if (off > most) most = off
            own += $2; theirs += cpu[$1]
            if (n % 25 == 0) {
                apart = (own > theirs ? own - theirs : theirs - own) / theirs
                if (apart > means) means = apart
                own = 0; theirs = 0
            }
        }
        END { print n + 0, first + 0, most + 0, means + 0 }' - "$here/$1/losses" >"$here/compared"
    local n first most means
    read -r n first most means <"$here/compared"
    figure steps_compared "$n"
    figure first_step_apart "$first"
    figure largest_step_apart "$most"
    figure means_of_25_steps_apart "$means"
    ((n >= 25)) || cannot "only $n steps were done in time, and 25 are the fewest to compare"
    [[ $(calculate "$means <= 0.01") == 1 ]] || fail "means of 25 steps are $means apart, more than 0.01"
}

# The draft that an earlier step trained, else one of 20 steps.
draft() {
    local found
    found=$(find "$WORK/curve/curve/checkpoints" -mindepth 1 -maxdepth 1 -name 'step*' 2>/dev/null | sort | tail -n 1)
    if [[ -z $found ]]; then
        train draft 20 >&2 || fail "there is no draft: its training failed"
        found=$(find "$here/draft/checkpoints" -mindepth 1 -maxdepth 1 -name 'step*' | sort | tail -n 1)
    fi
    echo "$found"
}

# ---- The steps. ----

step_device() {
    "$DSPARK" device --device "$DEVICE" --json >"$here/report.json" || fail "dspark device failed"
    figure report "$(cat "$here/report.json")"
    if on_gpu; then
        text_figure nvidia_smi "$(nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv,noheader 2>&1)"
    fi
    ! grep -q '"passed": false' "$here/report.json" || fail "a result is off by more than its number type allows"
}

step_starts() { train starts 5; }

step_products() {
    "$DSPARK" device --device "$DEVICE" --products --json >"$here/report.json" || fail "dspark device --products failed"
    figure report "$(cat "$here/report.json")"
    ! grep -q '"error"' "$here/report.json" || fail "a product could not be timed"
}

step_curve() { compare_losses curve; }
step_bf16() {
    # On the CPU a step takes four times as long as in f32.
    step_seconds=$(either "${step_seconds:?}" 100)
    compare_losses bf16 --set 'train.compute="bf16"'
}

# Greedy ids of `dspark generate` with further arguments; the prompt is the first.
greedy() {
    local prompt=$1
    shift
    "$DSPARK" generate --prompt "$prompt" --temperature 0 --max-new-tokens 64 --ignore-stop --json "$@" | array ids
}

# Counts an answer: what is compared, the ids, those expected.
same_ids() {
    compared=$((compared + 1))
    if [[ -n $2 && $2 == "$3" ]]; then
        equal=$((equal + 1))
    else
        echo "$1: ids $2, expected $3" >&2
    fi
    printf '"ids_compared": %s\n"ids_equal": %s\n' "$compared" "$equal" >"$here/counts"
}

step_ids() {
    compared=0 equal=0
    local prompt ids own
    own=$(draft) || exit 1
    for prompt in "What is 47 + 38?" "Write a Python function that returns the larger of two numbers." "How was your day?"; do
        ids=$(greedy "$prompt" --target "$target" --device cpu)
        same_ids "quickstart, $prompt" "$(greedy "$prompt" --target "$target" --device "$DEVICE")" "$ids"
        same_ids "quickstart with a draft, $prompt" \
            "$(greedy "$prompt" --target "$target" --draft "$own" --device "$DEVICE")" "$ids"
    done
    # Those of transformers, for models that are here. One line per prompt: model, prompt as JSON has it, ids.
    local model folder checked='' models=${DSPARK_MODELS:-$HOME/.cache/dspark-models}
    while IFS=$'\t' read -r model prompt ids; do
        folder=$models/$model
        [[ -e $folder/model.safetensors ]] || continue
        [[ $checked == *$model* ]] || checked="$checked $model"
        printf -v prompt '%b' "${prompt//\\\"/\"}"
        same_ids "$model, $prompt" "$(greedy "$prompt" --raw --target "$folder" --device "$DEVICE")" "$ids"
    done < <(tr -d '\n' <"$golden" | sed 's/"model": /\n&/g; s/"prompt": /\n&/g' | awk '
        /^"model": / { split($0, part, "\""); model = part[4]; asked = 0 }
        /^"prompt": / && (model == "stories15m" || model == "smollm2-135m") && asked < 2 {
            asked += 1
            prompt = $0; sub(/^"prompt": "/, "", prompt); sub(/", *"prompt_ids":.*/, "", prompt)
            ids = $0; sub(/.*"ids": \[/, "", ids); sub(/\].*/, "", ids); gsub(/ /, "", ids)
            print model "\t" prompt "\t" ids
        }')
    text_figure models_of_golden_ids "${checked# }"
    [[ $compared == "$equal" ]] || fail "$((compared - equal)) of $compared answers have other ids"
}

# `dspark bench` with further arguments.
bench() {
    local own
    own=$(draft) || exit 1
    head -q -n 8 "$root"/datasets/quickstart/{sums,code,chat}.evaluate.jsonl >"$here/prompts.jsonl"
    "$DSPARK" bench --target "$target" --draft "$own" --prompts "$here/prompts.jsonl" --device "$DEVICE" \
        --concurrency 1,8 --modes off,fixed:7,scheduled --repeats "$(either 3 1)" --requests "$(either 4 2)" \
        --max-new-tokens "$(either 128 32)" --ignore-stop --json "$here/report.json" "$@" || fail "dspark bench failed"
    # Shares of phases by mode and clients, from the report's sums of seconds.
    figure phase_shares "$(awk '
        /"mode":/ { split($0, part, "\""); mode = part[4] }
        /"concurrency":/ { clients = $2 + 0 }
        /"phase_seconds":/ { inside = 1; n = 0; sum = 0; next }
        inside && /}/ {
            printf "%s\"%s, %d clients\": {", (entries++ ? ", " : "{"), mode, clients
            for (i = 1; i <= n; i++) printf "%s\"%s\": %.4f", (i > 1 ? ", " : ""), name[i], (sum > 0 ? value[i] / sum : 0)
            printf "}"; inside = 0
        }
        inside { split($0, part, "\""); n += 1; name[n] = part[2]; value[n] = $2 + 0; sum += value[n] }
        END { printf (entries ? "}" : "{}") }' "$here/report.json")"
    figure report "$(cat "$here/report.json")"
}

step_serving() { bench; }
step_stored() { bench --weights stored; }

step_memory() {
    train_in_time memory "$(either 500 40)"
    # The mean of the last fifth over that of the third, less 1.
    local grown='{ value[NR] = $1 }
        END {
            for (i = 1; i <= NR; i++) {
                if (i > NR * 0.4 && i <= NR * 0.6) { early += value[i]; a++ }
                if (i > NR * 0.8) { late += value[i]; b++ }
            }
            if (a && b && early) printf "%.4f", (late / b) / (early / a) - 1
        }'
    local resident device=0
    resident=$(awk 'NF == 3 && $2 > 0 { print $3 }' "$here/memory/samples" | awk "$grown")
    figure resident_growth "$resident"
    if [[ -s $here/memory/gpu_memory ]]; then
        device=$(awk "$grown" "$here/memory/gpu_memory")
        figure device_growth "$device"
    fi
    [[ $(calculate "${resident:-0} <= 0.05 && ${device:-0} <= 0.05") == 1 ]] || fail "memory grew by more than 5 %"
}

step_plan() {
    "$DEEPSPEC" train "$root/recipes/quickstart.toml" --device "$DEVICE" --plan --json \
        --set train.steps="$(either 500 40)" >"$here/report.json" ||
        fail "deepspec train --plan failed"
    figure plan "$(cat "$here/report.json")"
    local planned before most taken=$WORK/memory/figures
    planned=$(number peak <"$here/report.json")
    figure planned_peak_bytes "${planned:-null}"
    [[ -r $taken ]] || cannot "the step memory was not run, so there is nothing to compare with"
    if on_gpu; then
        before=$(sed -n 's/^"memory_device_mib_before": //p' "$taken")
        most=$(sed -n 's/^"memory_device_mib_most": //p' "$taken")
        [[ $before =~ ^[0-9]+$ && $most =~ ^[0-9]+$ ]] || cannot "nvidia-smi did not say how much memory was used"
        most=$(((most - before) << 20))
    else
        most=$(sed -n 's/^"memory_peak_resident_bytes": //p' "$taken")
        [[ $most =~ ^[0-9]+$ ]] || cannot "the training did not say how much memory it took"
    fi
    figure measured_peak_bytes "$most"
    figure planned_over_measured "$(calculate "$planned / $most")"
}

# ---- Running them. ----

if [[ ${1-} == --step ]]; then
    cd "$root" && here=$WORK/$2 || exit 1
    for program in "$DEEPSPEC" "$DSPARK"; do
        [[ -f $program && -x $program ]] || cannot "there is no program $program"
    done
    "step_$2"
    exit
fi

case ${1-} in
-h | --help) usage; exit 0 ;;
'' | -*) usage >&2; exit 2 ;;
esac
[[ $# == 1 ]] || { usage >&2; exit 2; }
for tool in awk sed tr sort find timeout; do
    command -v "$tool" >/dev/null || { echo "error: \`$tool\` is not installed" >&2; exit 2; }
done

binaries=$1
[[ -d $binaries ]] || binaries=$(dirname "$binaries")
binaries=$(cd "$binaries" 2>/dev/null && pwd || echo "$binaries")
export DEVICE=${DEVICE:-cuda} DEEPSPEC=$binaries/deepspec DSPARK=$binaries/dspark
[[ -d $1 ]] || DEEPSPEC=$binaries/$(basename "$1")
if [[ -n ${KEEP-} ]]; then
    mkdir -p "$KEEP" && WORK=$(cd "$KEEP" && pwd) || exit 2
else
    WORK=$(mktemp -d) || exit 2
    trap 'rm -rf "$WORK"' EXIT
fi
export WORK
if [[ -z ${CUDA_PATH-} && -f $binaries/libdevice.10.bc ]]; then
    mkdir -p "$WORK/cuda/nvvm/libdevice"
    cp "$binaries/libdevice.10.bc" "$WORK/cuda/nvvm/libdevice/"
    export CUDA_PATH=$WORK/cuda
fi
# Speed curves are measured anew: those of another device under the same name would be read as this one's.
export XDG_CACHE_HOME=$WORK/cache
result=${OUT:-.}/gpu.json
mkdir -p "$(dirname "$result")" || exit 2
budget=${BUDGET:-$(either 560 1120)}
began=$SECONDS
entries=''
commit=$(git -C "$root" rev-parse HEAD 2>/dev/null)
version=$(timeout 5 "$DEEPSPEC" --version 2>/dev/null </dev/null | head -n 1)

# The file is whole after every step.
write_result() {
    {
        printf '{\n"device": %s,\n"date": "%s",\n"commit": %s,\n' "$(json_text "$DEVICE")" "$(date -u +%FT%TZ)" "$(json_text "$commit")"
        printf '"program": %s,\n"processors": %s,\n' "$(json_text "$version")" "$(nproc)"
        printf '"sizes": "%s",\n' "$(either full 'smaller, for the CPU')"
        printf '"seconds": %s,\n"steps": [%s\n]\n}\n' "$((SECONDS - began))" "$entries"
    } >"$result.new" && mv "$result.new" "$result"
}

failed=0
while read -r name limit question; do
    [[ -z ${STEPS-} || " $STEPS " == *" $name "* ]] || continue
    here=$WORK/$name
    rm -rf "$here" && mkdir -p "$here"
    left=$((budget - (SECONDS - began)))
    on_gpu || limit=$((2 * limit))
    ((limit <= left)) || limit=$left
    ((limit <= ${STEP_LIMIT:-limit})) || limit=$STEP_LIMIT
    started=$(now)
    if ((limit > 0)); then
        step_seconds=$limit timeout -k 5 "$limit" bash "${BASH_SOURCE[0]}" --step "$name" >"$here/log" 2>&1 </dev/null
        code=$?
    else
        code=3
        echo "the budget of $budget s is spent" >"$here/cannot"
    fi
    seconds=$(calculate "$(now) - $started")
    case $code in
    0) status=passed ;;
    3) status="cannot: $(cat "$here/cannot" 2>/dev/null)" ;;
    124 | 137) status='timed out' ;;
    *) status=failed ;;
    esac
    [[ $code == 0 ]] || failed=1
    figures=$(cat "$here/figures" "$here/counts" 2>/dev/null | awk '/^"/ && NR > 1 { printf ",\n" } NR > 1 && !/^"/ { printf "\n" } { printf "%s", $0 }')
    last=''
    [[ $code == 0 ]] || last=$(tail -n 30 "$here/log" 2>/dev/null | cut -c 1-400)
    entries+=$(printf '%s\n{"name": "%s", "question": %s, "status": %s, "seconds": %s, "limit": %s,\n"figures": {%s},\n"last_lines": %s}' \
        "${entries:+,}" "$name" "$(json_text "$question")" "$(json_text "$status")" "$seconds" "$limit" "$figures" "$(json_text "$last")")
    printf '%-9s %8.1f s  %s\n' "$name" "$seconds" "$status"
    write_result
done < <(steps)
[[ -n $entries ]] || { echo "error: no step of STEPS is one of: $(steps | awk '{ printf "%s ", $1 }')" >&2; exit 2; }
echo "written: $result"
exit $failed
