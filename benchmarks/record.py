#!/usr/bin/env python3
"""Write what benchmarks/measure.sh measured into benchmarks/results/*.json.

    record.py --results DIR --out DIR --date DATE --commit COMMIT --load LOAD --repeats N --samples N --journal FILE

DIR of --out has the reports of the steps (NAME.json), their commands (NAME.command) and seconds (NAME.seconds). Entries of a step
that was left out stay as they are. Prints the machine's name. Needs Python alone.
"""

import argparse
import json
import os
from pathlib import Path


def machine() -> str:
    """Cores, processor, instruction sets and memory of this machine."""
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8")

    def field(name: str) -> str:
        return next((line.split(":", 1)[1].strip() for line in cpu.splitlines() if line.startswith(name)), "unknown")

    flags = set(field("flags").split())
    sets = ["AVX-512" if "avx512f" in flags else "AVX2" if "avx2" in flags else "no AVX2"]
    sets += ["VNNI"] if "avx512_vnni" in flags else []
    sets += ["bf16"] if "avx512_bf16" in flags else []
    memory = int(Path("/proc/meminfo").read_text(encoding="utf-8").split()[1]) / 2**20
    virtual = ", virtual" if "hypervisor" in flags else ""
    return f"{len(os.sched_getaffinity(0))} cores of an {field('model name')} ({', '.join(sets)}), {memory:.0f} GiB{virtual}"


class Results:
    """The entries of the result files, changed by id."""

    def __init__(self, folder: Path, common: dict) -> None:
        self.common = common
        self.topics = {path: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}

    def set(self, entry_id: str, command: str, values: list, **changes) -> None:
        """Replace the values of an entry and all that depends on this measurement."""
        for topic in self.topics.values():
            for entry in topic["entries"]:
                if entry["id"] == entry_id:
                    for old in ("stale", "stale_reason", "note"):
                        entry.pop(old, None)
                    entry.update(self.common, values=values, command=[command], **changes)
                    return
        raise SystemExit(f"no entry `{entry_id}` in the results")

    def write(self) -> None:
        for path, topic in self.topics.items():
            path.write_text(json.dumps(topic, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def rounded(value: float) -> float:
    return round(value, 4)


def quickstart(results: Results, out: Path, command: str) -> None:
    evaluation = json.loads((out / "quickstart.json").read_text(encoding="utf-8"))["evaluation"]
    tasks = evaluation["tasks"]
    mode = f"in `{evaluation['mode']}`" if "mode" in evaluation else "whole blocks verified"
    values = [{"at": task["name"], "value": rounded(task["accepted_length"])} for task in tasks]
    results.set("quickstart-accepted-length", command, values)
    values = [{"at": task["name"], "value": rounded(task["tokens_per_second"] / task["plain_tokens_per_second"])} for task in tasks]
    results.set("quickstart-speed", command, values, measures=f"Speed with the draft, {mode}")
    seconds = float((out / "quickstart.seconds").read_text(encoding="utf-8"))
    results.set("quickstart-seconds", command, [{"value": seconds}], digits=0)


def accepted(results: Results, out: Path, commands: dict[str, str], samples: int) -> None:
    length = {}
    for name in ("accepted-0", "accepted-1", "accepted-coupled"):
        report = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
        length[name] = rounded(report["tasks"][0]["accepted_length"])
    values = [{"at": "temperature 0", "value": length["accepted-0"]}, {"at": "temperature 1", "value": length["accepted-1"]}]
    measures = f"SmolLM2-135M with the shipped draft, {samples} gsm8k prompts, as served"
    results.set("smollm2-gsm8k", commands["accepted-0"], values, measures=measures)
    control = f"{length['accepted-1']:.3f} with rejection sampling"
    results.set("smollm2-coupled", commands["accepted-coupled"], [{"value": length["accepted-coupled"]}], control=control)


def bench(results: Results, out: Path, command: str, repeats: int) -> None:
    report = json.loads((out / "bench.json").read_text(encoding="utf-8"))
    runs = {(run["mode"], run["concurrency"]): run for run in report["runs"]}
    loads = sorted({clients for _, clients in runs})
    name = {clients: "1 client" if clients == 1 else f"{clients} clients" for clients in loads}
    for entry_id, mode in (("serving-scheduled", "scheduled"), ("serving-whole-blocks", "fixed:7")):
        values = [{"at": name[clients]} | dict(zip(("value", "low", "high"), map(rounded, ratio(runs[mode, clients])))) for clients in loads]
        measures = f"Throughput in `{mode}`, prompts included: medians of {repeats} pairs (95 % interval)"
        results.set(entry_id, command, values, measures=measures, control="`off`, alternating in the same process")
    modes = ("off", "fixed:7", "scheduled")
    values = [{"at": f"{name[c]}, `{mode}`", "value": rounded(runs[mode, c]["tokens_per_second"])} for c in loads for mode in modes]
    results.set("serving-tokens", command, values)
    steady = "steady_tokens_per_second"
    timed = [c for c in loads if runs["scheduled", c][steady] and runs["off", c][steady]]
    values = [{"at": name[c], "value": rounded(runs["scheduled", c][steady] / runs["off", c][steady])} for c in timed]
    results.set("serving-steady", command, values)
    if report.get("ceiling"):
        user = "tokens_per_second_per_user"
        values = [{"at": "reached", "value": rounded(runs["scheduled", 1][user] / runs["off", 1][user])}]
        results.set("serving-ceiling", command, values + [{"at": "ceiling", "value": rounded(report["ceiling"]["speedup"])}])
    most = loads[-1]
    values = [{"at": f"`{mode}`", "value": rounded(100 * runs[mode, most]["host_share"])} for mode in ("off", "scheduled")]
    results.set("serving-host", command, values, measures=f"Share of a step in which no tensor is computed, {name[most]}")


def fresh(results: Results, out: Path, command: str) -> None:
    build, run = (float((out / f"fresh-{name}.seconds").read_text(encoding="utf-8")) for name in ("build", "run"))
    values = [("in all", build + run), ("of it building", build)]
    values = [{"at": at, "value": f"{round(seconds) // 60}:{round(seconds) % 60:02}"} for at, seconds in values]
    results.set("clone-to-table", command, values)


def ratio(run: dict) -> tuple[float, float, float]:
    return run["to_off"]["median"], run["to_off"]["low"], run["to_off"]["high"]


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("results", "out"):
        cli.add_argument(f"--{name}", type=Path, required=True)
    for name in ("date", "commit", "load", "journal"):
        cli.add_argument(f"--{name}", required=True)
    for name in ("repeats", "samples"):
        cli.add_argument(f"--{name}", type=int, required=True)
    options = cli.parse_args()
    common = {"machine": machine(), "date": options.date, "commit": options.commit, "journal": options.journal}
    common["note"] = f"load average at the start: {options.load}"
    results = Results(options.results, common)
    commands = {path.stem: path.read_text(encoding="utf-8").strip() for path in options.out.glob("*.command")}
    quickstart(results, options.out, commands["quickstart"])
    if (options.out / "bench.json").is_file():
        accepted(results, options.out, commands, options.samples)
        bench(results, options.out, commands["bench"], options.repeats)
    if "fresh-run" in commands:
        fresh(results, options.out, commands["fresh-run"])
    results.write()
    print(common["machine"])


main()
