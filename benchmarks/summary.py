"""The benchmark's results as JSON, tables and a figure, all from the same content."""

import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mae_core.report.figures import COLOURS, INK, new_figure, styled
from mae_core.study import results

TITLES = {"pretrain": "Pre-training (random masks, 75 %)", "finetune": "Fine-tuning", "evaluate": "Evaluation"}
OURS, PEER = COLOURS[0], "#c9c4bb"


def write(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` to ``path`` with the suffixes .json, .md and .svg."""
    results.write_json(path.with_suffix(".json"), content)
    with results.atomic_write(path.with_suffix(".md")) as temporary:
        temporary.write_text(markdown(content), encoding="utf-8")
    if any(task in content["parts"] for task in TITLES):
        with results.atomic_write(path.with_suffix(".svg")) as temporary:
            figure(content).savefig(temporary, format="svg", metadata={"Date": None})


def markdown(content: dict[str, Any]) -> str:
    """The tables as Markdown: an overview, then all measurements."""
    lines = [*overview(content), ""] if TITLES.keys() & content["parts"].keys() else []
    for task, title in TITLES.items():
        if task in content["parts"]:
            lines += [f"**{title}**", "", *comparison(content["parts"][task]), ""]
    if "tuned" in content["parts"]:
        lines += ["**Peers with settings of ours**", "", *tuned(content["parts"]["tuned"]), ""]
    if "ours" in content["parts"]:
        lines += ["**Ours in detail**", "", *details(content), ""]
    if "scaling" in content["parts"]:
        part = content["parts"]["scaling"]
        lines += [f"**How pre-training scales** ({mode(racers(part)[0])}, not compiled)", "", *scaling(part), ""]
    if "processes" in content["parts"]:
        lines += ["**One process or several**", "", *several(content["parts"]["processes"]), ""]
    return "\n".join(lines)


def racers(part: dict[str, Any]) -> list[dict[str, Any]]:
    return [timing for timing in part["timings"] if "label" in timing]


def limit(part: dict[str, Any], name: str) -> float:
    return next(timing["median"] for timing in part["timings"] if timing.get("limit") == name)


def share(timing: dict[str, Any], part: dict[str, Any]) -> float:
    """The model's FLOP rate as a share of the machine's matrix-product rate in the same precision."""
    return timing["flops_per_image"] * timing["median"] / limit(part, f"{timing['precision']} matrix product")


def copy_share(timing: dict[str, Any], part: dict[str, Any]) -> float:
    """The bytes that the model reads and writes a second, as a share of the machine's rate of copying."""
    return timing["bytes_per_image"] * timing["median"] / limit(part, "memory copy")


def spread(timing: dict[str, Any]) -> str:
    return f"{min(timing['rates']):,.1f} – {max(timing['rates']):,.1f}"


def block_by_block(ours: dict[str, Any], other: dict[str, Any]) -> str:
    """The median, minimum and maximum of the ratios between blocks of the same round."""
    ratios = [a / b for a, b in zip(ours["rates"], other["rates"], strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} – {max(ratios):.2f})"


def comparison(part: dict[str, Any]) -> list[str]:
    """One row per contestant, fastest first."""
    own = max((timing for timing in racers(part) if timing["name"] == "ours"), key=lambda timing: timing["median"])
    ours = own["median"]
    batch = racers(part)[0]["shape"]["batch_size"]
    counted = any("bytes_per_image" in timing for timing in racers(part))
    of_copy = " of copying |" * counted
    rows = [
        "| | images/s | least – most | s a step | ours ÷ it | block by block "
        f"| of the limit |{of_copy} peak memory | first step |",
        "|---|---|---|---|---|---|---|---|---|" + "---|" * counted,
    ]
    for timing in sorted(racers(part), key=lambda timing: -timing["median"]):
        cells = [timing["label"], f"{timing['median']:,.1f}", spread(timing), f"{batch / timing['median']:.2f}"]
        cells += [f"{ours / timing['median']:.2f}", block_by_block(own, timing), f"{share(timing, part):.0%}"]
        if counted:
            cells.append(f"{copy_share(timing, part):.0%}" if "bytes_per_image" in timing else "–")
        cells += [f"{timing['peak_bytes'] / 2**30:.1f} GiB", f"{timing['first_seconds']:.0f} s"]
        rows.append(f"| {' | '.join(cells)} |")
    precise = [t["median"] for t in racers(part) if (t["name"], t["precision"]) == ("transformers", "float32")]
    peers = [timing["median"] for timing in racers(part) if timing["name"] != "ours"]
    told = [f"{ours / max(peers):.2f} times as fast as the best peer"] if peers else []
    told += [f"{ours / precise[0]:.2f} times as fast as eager transformers in float32"] if precise else []
    sentences = [f"Ours is {', '.join(told)}."] if told else []
    if counted:
        sentences.append(
            "The share of copying counts what the compiler's kernels, or the eager operations, read and write, "
            "whatever a cache may spare."
        )
    sentences += [f"Left out: {name} ({why})." for name, why in part.get("left_out", {}).items()]
    return [*rows, "", " ".join([*sentences, limits_sentence(part)])]


def overview(content: dict[str, Any]) -> list[str]:
    """One row per comparison: our fastest mode, the fastest peer, and transformers in eager float32."""
    rows = [
        "| images/s | ours | of the limit | best peer | ours ÷ it | transformers, float32 | ours ÷ it |",
        "|---|---|---|---|---|---|---|",
    ]
    for task, title in TITLES.items():
        if task in content["parts"]:
            part = content["parts"][task]
            fastest = sorted(racers(part), key=lambda timing: -timing["median"])
            own = next(timing for timing in fastest if timing["name"] == "ours")
            peer = next((timing for timing in fastest if timing["name"] != "ours"), None)
            precise = next((timing for timing in fastest if timing["label"] == "transformers, float32"), None)
            cells = [title.split(" (")[0].lower(), f"{own['median']:,.1f} ({mode(own)})", f"{share(own, part):.0%}"]
            for other, label in ((peer, f" ({peer['label']})" if peer else ""), (precise, "")):
                if other:
                    cells += [f"{other['median']:,.1f}{label}", f"{own['median'] / other['median']:.2f}"]
                else:
                    cells += ["–"] * 2
            rows.append(f"| {' | '.join(cells)} |")
    return rows


def in_a_line(part: dict[str, Any]) -> str:
    """Ours in its fastest mode: rate, shares of the limits, memory, and how many times the fastest peer."""
    fastest = sorted(racers(part), key=lambda timing: -timing["median"])
    own = next(timing for timing in fastest if timing["name"] == "ours")
    cells = [f"{own['median']:,.0f} images/s ({mode(own)})", f"{share(own, part):.0%} of the matrix limit"]
    cells += [f"{copy_share(own, part):.0%} of copying"] if "bytes_per_image" in own else []
    cells.append(f"{own['peak_bytes'] / 2**30:.1f} GiB")
    peers = [timing for timing in fastest if timing["name"] != "ours"]
    cells += [f"{own['median'] / peers[0]['median']:.2f} times {peers[0]['label']}"] if peers else []
    return ", ".join(cells)


def mode(timing: dict[str, Any]) -> str:
    return timing["label"].split(", ", 1)[1]


def limits_sentence(part: dict[str, Any]) -> str:
    about, blocks = part["about"], len(part["timings"][0]["rates"])
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    products = {timing["limit"]: timing["median"] for timing in part["timings"] if "matrix" in timing.get("limit", "")}
    rates = " and ".join(f"{rate / 1e9:,.0f} in {name.split()[0]}" for name, rate in products.items())
    without = (
        ""
        if "bfloat16 matrix product" in products
        else " bfloat16 did not take part: `precision: auto` does not take it here."
    )
    processor = f" ({about['processor']})" if about.get("processor") else ""
    length = f" of about {part['seconds']:g} s, one step at least" if "seconds" in part else ""
    return (
        f"{about['device']}{processor}; {versions}; commit {str(about['commit'])[:7]}. "
        f"Median of {blocks} block{'s' * (blocks != 1)}{length}, in turns. Limits in the same run: matrix products {rates} "
        f"(GFLOP/s), memory copy {limit(part, 'memory copy') / 1e9:,.1f} GB/s.{without}"
    )


def tuned(part: dict[str, Any]) -> list[str]:
    """One row per comparison: ours, and each peer after ``tune``; a dash for a peer that was not timed."""
    peers = list(dict.fromkeys(timing["name"] for timing in racers(part) if timing["name"] != "ours"))
    heads = [f"{name}, tuned | ours ÷ it | by blocks" for name in peers]
    rows = [f"| images/s | ours | {' | '.join(heads)} |", "|---|---|" + "---|---|---|" * len(peers)]
    for task, title in TITLES.items():
        raced = {timing["name"]: timing for timing in racers(part) if timing["task"] == task}
        own = raced["ours"]
        cells = [title.split(" (")[0].lower(), f"{own['median']:,.1f}"]
        for name in peers:
            if name in raced:
                rate = raced[name]["median"]
                cells += [f"{rate:,.1f}", f"{own['median'] / rate:.2f}", block_by_block(own, raced[name])]
            else:
                cells += ["–"] * 3
        rows.append(f"| {' | '.join(cells)} |")
    settings = (
        "Tuned: the allocator keeps freed memory, attention that trains is explicit on a CPU, and a model that is "
        f"evaluated is as a whole in the precision of its products. All {mode(racers(part)[0])}, not compiled."
    )
    note = f" {part['note']}" if "note" in part else ""
    return [*rows, "", f"{settings}{note} {limits_sentence(part)}"]


def details(content: dict[str, Any]) -> list[str]:
    part = content["parts"]["ours"]
    rate = {timing["task"]: timing["median"] for timing in racers(part)}
    masks = part["masks"]
    rows = ["| | images/s | least – most | of the limit |", "|---|---|---|---|"]
    for timing in racers(part):
        rows.append(f"| {timing['task']} | {timing['median']:,.1f} | {spread(timing)} | {share(timing, part):.0%} |")
    shares = ", ".join(
        f"{name} {seconds * 1e3:.0f} ms ({seconds * rate['pretrain'] / masks['batch']:.1%})"
        for name, seconds in masks.items()
        if name != "batch"
    )
    return [
        *rows,
        "",
        f"An epoch end to end takes {rate['steps alone'] / rate['epoch']:.3f} times the time of its steps alone. "
        f"Sampling the masks of a batch of {masks['batch']} takes, beside its step: {shares}.",
        "",
        limits_sentence(part),
    ]


def scaling(part: dict[str, Any]) -> list[str]:
    rows = ["| batch | image | width | images/s | of the limit | peak memory |", "|---|---|---|---|---|---|"]
    for timing in racers(part):
        shape = timing["shape"]
        rows.append(
            f"| {shape['batch_size']} | {shape['image_size']} | {shape['width']} | {timing['median']:,.1f} "
            f"| {share(timing, part):.0%} | {timing['peak_bytes'] / 2**30:.2f} GiB |"
        )
    return [*rows, "", limits_sentence(part)]


def several(part: dict[str, Any]) -> list[str]:
    rows = [
        "| | one process of two threads, images/s | two processes of one thread | ratio | by blocks |",
        "|---|---|---|---|---|",
    ]
    raced = racers(part)
    for one, two in zip(raced[::2], raced[1::2], strict=True):
        task, ratio = TITLES[one["task"]].partition(" (")[0].lower(), two["median"] / one["median"]
        rows.append(f"| {task} | {one['median']:,.1f} | {two['median']:,.1f} | {ratio:.2f} | {block_by_block(two, one)} |")
    return [*rows, "", limits_sentence(part)]


@styled
def figure(content: dict[str, Any]) -> Figure:
    """One panel per task: a bar per contestant for the median, with its blocks as ticks."""
    tasks = [task for task in TITLES if task in content["parts"]]
    heights = [len(racers(content["parts"][task])) for task in tasks]
    drawn = new_figure(7, 0.9 + 0.27 * sum(heights))
    panels = drawn.subplots(len(tasks), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, task in zip(panels, tasks, strict=True):
        timings = sorted(racers(content["parts"][task]), key=lambda timing: timing["median"])
        places = range(len(timings))
        colours = [OURS if timing["name"] == "ours" else PEER for timing in timings]
        panel.barh(places, [timing["median"] for timing in timings], color=colours)
        for place, timing in zip(places, timings, strict=True):
            panel.plot(timing["rates"], [place] * len(timing["rates"]), "|", color=INK, markersize=5)
        panel.set_yticks(places, [timing["label"] for timing in timings])
        panel.set_title(TITLES[task], loc="left")
        panel.grid(visible=False, axis="y")
    panels[-1].set_xlabel("images a second (bar: median; ticks: blocks)")
    return drawn
