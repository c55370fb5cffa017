#!/usr/bin/env python3
"""Write benchmarks/README.md and the README's figure from benchmarks/results/*.json and the titles of the journal.

    report.py [--results DIR] [--page FILE] [--pictures DIR] [--check]

With --check it writes nothing and exits with 1 when a file is not what the results give. Needs Python alone.
"""

import argparse
import json
import sys
from pathlib import Path
from xml.sax.saxutils import escape

HERE = Path(__file__).resolve().parent
TOPICS = ["quickstart", "speed", "accepted-length", "training", "engines", "memory", "robustness", "simulator", "build"]
FIELDS = {"id", "measures", "unit", "values", "digits", "control", "machine", "date", "commit", "command", "journal", "note", "stale", "stale_reason"}
REQUIRED = {"id", "measures", "unit", "values", "machine", "date", "command", "journal"}

INTRO = """# Benchmarks

Current figures of this project, each with its control, machine, date and command. `x` is a ratio to the control named next to it: below 1 is slower for
throughput and better for time and memory. The measurements, with all their numbers, are in the [journal](journal/), one file per day and subject.
Unfavourable figures are included. A figure is listed under *Older code* when the code that it measures has changed since.

**Nothing has run on a GPU.** [`gpu.md`](gpu.md) lists what has to be checked there first, and `gpu.sh` checks it.

<picture>
  <source media="(prefers-color-scheme: dark)" srcset="../docs/pictures/speed-dark.svg">
  <img src="../docs/pictures/speed-light.svg" width="700" alt="Decoding speed with a draft, relative to decoding without, by number of concurrent clients">
</picture>

## Measure again

Run this on a machine on which nothing else runs. It is sized to take less than 12 minutes on two cores, the build excluded:

```sh manual
cargo build --release --workspace
PROMPTS=gsm8k.jsonl benchmarks/measure.sh
```

`measure.sh` runs the quickstart and, if it finds SmolLM2-135M in `DSPARK_MODELS` (default `~/.cache/dspark-models`) and prompts in `PROMPTS`, `deepspec evaluate` and
`dspark bench` with the draft in `checkpoints/`. It adds a file to `journal/`, updates `results/`, this page and the README's figure, and names what it left out. `FRESH=1` also
times the build and the quickstart in an empty clone.
`SMALL=1` tries it out in a minute or two with tiny settings and leaves the repository unchanged. `datasets/gsm8k.toml` says how to get the prompts.

After editing `results/*.json`, write the page and the figure; `--check` compares them instead:

```sh manual
python3 benchmarks/report.py
python3 benchmarks/report.py --check
```
"""


def load(folder: Path) -> dict[str, dict]:
    """The topics by name; a mistake in a file ends the program with its path and field."""
    topics, seen = {}, set()
    for name in TOPICS:
        topic = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for entry in topic["entries"]:
            where = f"{folder / name}.json: entry `{entry.get('id')}`"
            if missing := REQUIRED - entry.keys():
                sys.exit(f"{where}: lacks {', '.join(sorted(missing))}")
            if unknown := entry.keys() - FIELDS:
                sys.exit(f"{where}: unknown field {', '.join(sorted(unknown))}")
            if entry["id"] in seen:
                sys.exit(f"{where}: the id occurs twice")
            if entry.get("stale") and not entry.get("stale_reason"):
                sys.exit(f"{where}: `stale` needs `stale_reason`")
            seen.add(entry["id"])
        topics[name] = topic
    if others := {path.stem for path in folder.glob("*.json")} - set(TOPICS):
        sys.exit(f"{folder}: {', '.join(sorted(others))}.json is not among the topics of {Path(__file__).name}")
    return topics


def figure(entry: dict) -> str:
    """The values of an entry as the page shows them."""
    unit, digits = entry["unit"], entry.get("digits")
    signed = unit == "%" and any(isinstance(v["value"], (int, float)) and v["value"] < 0 for v in entry["values"])

    def number(value) -> str:
        if isinstance(value, str):
            return value
        return f"{value:{'+' if signed else ''},{f'.{digits}f' if digits is not None else ''}}"

    parts = []
    for value in entry["values"]:
        text = number(value["value"]) + {"x": "x", "%": " %"}.get(unit, "")
        if "of" in value:
            text += f" of {number(value['of'])}"
        if "low" in value:
            text += f" ({number(value['low'])} to {number(value['high'])})"
        parts.append(f"{value['at']}: {text}" if "at" in value else text)
    return "; ".join(parts) + (f" {unit}" if unit not in ("", "x", "%") else "")


def page(topics: dict[str, dict]) -> str:
    entries = [entry for topic in topics.values() for entry in topic["entries"]]
    machines = list(dict.fromkeys(entry["machine"] for entry in entries))
    letter = {machine: chr(ord("A") + index) for index, machine in enumerate(machines)}
    lines = [INTRO, "## Machines", ""]
    lines += [f"* **{letter[machine]}**: {machine}" for machine in machines]
    lines += ["", "Two letters may be the same machine: older files name it less exactly.", ""]
    row = 0
    for topic in topics.values():
        lines += [f"## {topic['title']}", "", topic["intro"], ""]
        commands: dict[str, list[int]] = {}
        for stale in (False, True):
            shown = [entry for entry in topic["entries"] if bool(entry.get("stale")) == stale]
            if not shown:
                continue
            if stale:
                lines += ["### Older code", ""] if len(shown) < len(topic["entries"]) else []
            last = "changed since" if stale else "note"
            lines += [f"| # | what | figure | against | machine, date | {last} |", "|---|---|---|---|---|---|"]
            for entry in shown:
                row += 1
                if entry["command"]:
                    commands.setdefault("\n".join(entry["command"]), []).append(row)
                notes = "; ".join(filter(None, (entry.get("note"), entry.get("stale_reason"))))
                day = f"{letter[entry['machine']]}, [{entry['date']}]({entry['journal']})"
                cells = (str(row), entry["measures"], figure(entry), entry.get("control") or "", day, notes)
                lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
            lines.append("")
        lines += ["```sh manual"]
        for command, rows in commands.items():
            lines += [f"# {', '.join(map(str, rows))}", command]
        lines += ["```", ""]
    lines += ["## Journal", ""]
    for path in sorted((HERE / "journal").glob("*.md")):
        title = path.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ")
        lines.append(f"* [{title}](journal/{path.name})")
    return "\n".join(lines) + "\n"


THEMES = {
    "light": {"text": "#1f2328", "quiet": "#59636e", "grid": "#d1d9e0", "draft": "#0969da", "whole": "#8c959f"},
    "dark": {"text": "#e6edf3", "quiet": "#9198a1", "grid": "#3d444d", "draft": "#4493f8", "whole": "#6e7681"},
}


def by_clients(entry: dict) -> dict[int, float]:
    """Values labelled `N clients`."""
    return {int(value["at"].split()[0]): value["value"] for value in entry["values"]}


def picture(topics: dict[str, dict], theme: dict[str, str]) -> str:
    """Bars of the speed-up by number of clients."""
    entries = {entry["id"]: entry for entry in topics["speed"]["entries"]}
    scheduled, whole = by_clients(entries["serving-scheduled"]), by_clients(entries["serving-whole-blocks"])
    tokens = {value["at"]: value["value"] for value in entries["serving-tokens"]["values"]}
    clients = [count for count in (1, 2, 4, 8) if count in scheduled]
    left, bar, top = 92, 17, 92
    unit = min(320, 425 / max([*scheduled.values(), *whole.values()]))  # pixels of 1x; labels need the rest
    out, y = [], top

    def text(x, y, words, color="text", size=14, anchor="start", weight="normal"):
        out.append(
            f'<text x="{x}" y="{y}" fill="{theme[color]}" font-size="{size}" text-anchor="{anchor}" font-weight="{weight}">{escape(words)}</text>'
        )

    def rect(x, y, width, height, color):
        out.append(f'<rect x="{x}" y="{y}" width="{width:.1f}" height="{height}" rx="2" fill="{theme[color]}"/>')

    text(4, 18, "Decoding speed with a draft, relative to decoding without", size=16, weight="bold")
    text(4, 39, "SmolLM2-135M on two CPU cores, greedy, by number of concurrent clients", "quiet", 13)
    rect(left, 53, 13, 13, "draft")
    text(left + 19, 64, "scheduled (default)", size=13)
    rect(left + 160, 53, 13, 13, "whole")
    text(left + 179, 64, "fixed:7 (whole blocks)", size=13)
    for count in clients:
        ratios = [("draft", scheduled[count])] + ([("whole", whole[count])] if count in whole else [])
        text(left - 10, y + bar * len(ratios) / 2 + 6, "1 client" if count == 1 else f"{count} clients", anchor="end")
        for color, ratio in ratios:
            rect(left, y, ratio * unit, bar - 2, color)
            label_at = left + 8 + unit * (max(ratio, 1) if ratio > 0.8 else ratio)
            text(label_at, y + 13, f"{ratio:.2f}x", size=13, weight="bold" if color == "draft" else "normal")
            name = "1 client" if count == 1 else f"{count} clients"
            pair = tokens.get(f"{name}, `off`"), tokens.get(f"{name}, `scheduled`")
            # The labels of short bars would cross the line.
            if color == "draft" and None not in pair:
                text(label_at + 45, y + 13, f"{pair[0]:.0f} → {pair[1]:.0f} tokens/s", "quiet", 13)
            y += bar
        y += 11
    one = left + unit
    out.append(f'<line x1="{one}" y1="{top - 6}" x2="{one}" y2="{y - 5}" stroke="{theme["text"]}" stroke-width="1.5" stroke-dasharray="4 3"/>')
    text(one, top - 12, "no draft", "quiet", 12, "middle")
    date = {entries[name]["date"] for name in ("serving-scheduled", "serving-whole-blocks")}
    text(4, y + 14, f"Prompts included. Measured on {' and '.join(sorted(date))}; see benchmarks/README.md.", "quiet", 12)
    body = "\n".join(out)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="700" height="{y + 24}" viewBox="0 0 700 {y + 24}" role="img" '
        f'font-family="-apple-system, Segoe UI, Helvetica, Arial, sans-serif">\n<title>Decoding speed with a draft by number of clients</title>\n{body}\n</svg>\n'
    )


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cli.add_argument("--results", type=Path, default=HERE / "results", help="folder of the results")
    cli.add_argument("--page", type=Path, default=HERE / "README.md", help="the page to write")
    cli.add_argument("--pictures", type=Path, default=HERE.parent / "docs/pictures", help="folder of the figure")
    cli.add_argument("--check", action="store_true", help="compare the files instead of writing them")
    options = cli.parse_args()
    topics = load(options.results)
    files = {options.page: page(topics)}
    for name, theme in THEMES.items():
        files[options.pictures / f"speed-{name}.svg"] = picture(topics, theme)
    journal = HERE / "journal"
    for entry in (entry for topic in topics.values() for entry in topic["entries"]):
        if options.check and not (HERE / entry["journal"]).is_file():
            sys.exit(f"{options.results}: entry `{entry['id']}`: {entry['journal']} does not exist in {journal.parent}")
    for path, content in files.items():
        if not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != content:
            sys.exit(f"{path} is not what {options.results} gives; run benchmarks/report.py")


main()
