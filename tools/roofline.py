"""A roofline plot as SVG: what was measured, under what the machine could do in the same run.

    roofline.py bench/CPU.csv -o bench/CPU.svg                 # written by `xlstm bench --csv` (make bench)
    roofline.py bench/cuda_GPU_*.json -o bench/cuda_GPU.svg    # written by bench/cuda_bench.cu (tools/gpu_tests.sh)

Across: operations for a byte moved. Up: operations a second. A point below the slanted roof waits for memory, one below
a flat roof for its multiply-add instruction; how far below is what is left to gain. --peak NAME=FLOP/S adds a flat roof
that the files do not hold, --title replaces the first line. Needs nothing but Python.
"""

import argparse
import csv
import json
import math
import re
import statistics
from xml.sax.saxutils import escape

COLORS = {"bfloat16": "#0072b2", "q8_0": "#d55e00", "q4_k": "#009e73", "q6_k": "#cc79a7", "q4_0": "#b8860b",
          "q5_k": "#56b4e9", "float32": "#444444", "float16": "#7b4fa3"}
ORDER = list(COLORS)
INK, QUIET, GRID = "#1a1a1a", "#666666", "#e6e6e6"
WIDTH, HEIGHT = 1080, 640
LEFT, RIGHT, TOP, BOTTOM = 84, 300, 76, 62  # margins; the legend is in the right one


class Point:
    def __init__(self, weights, activations, state, test, number, intensity, rate):
        self.weights, self.activations, self.state, self.test = weights, activations, state, test
        self.number, self.intensity, self.rate = number, intensity, rate  # rate in operations a second

    def series(self):
        return self.weights, self.activations, self.state


class Plot:
    """Points, bandwidths (bytes a second, every measurement) and peaks (name -> operations a second, likewise)."""

    def __init__(self):
        self.points, self.bandwidths, self.peaks, self.title, self.notes = [], [], {}, "", []


def add_csv(plot, rows):
    for row in rows:
        number = int(row["batch"] if row["test"] == "decode" else row["length"])
        plot.points.append(Point(row["weights"], row["activations"], row["state"], row["test"], number,
                                 float(row["flop_per_byte"]), float(row["gflop_per_second"]) * 1e9))
        if float(row["read_gb_per_second"]) > 0:
            plot.bandwidths.append(float(row["read_gb_per_second"]) * 1e9)
        for kind in ("kernel", "best"):
            if float(row[kind + "_gflop_per_second"]) > 0:
                plot.peaks.setdefault(row[kind + "_peak"], []).append(float(row[kind + "_gflop_per_second"]) * 1e9)
    models = {re.sub(r"^preset:|:[a-z0-9_]+$", "", row["model"]) for row in rows}
    threads = sorted({int(row["threads"]) for row in rows})
    host = all(row["backend"].startswith("cpu") for row in rows)
    plot.title = f"{rows[0]['cpu'] if host else rows[0]['backend']}: xlstm, {' and '.join(sorted(models))}"
    if host:
        plot.notes.append("threads: " + ", ".join(map(str, threads)))


def add_json_lines(plot, lines):
    """One file of cuda_bench: the first line describes the run."""
    head = lines[0]
    D, NH, Q, V, F, vocabulary, chunk = 4096, 8, 2048, 4096, 10944, 50304, 64  # bench/cuda_bench.cu measures the 7B
    dq, dv = Q // NH, V // NH
    products = 2 * Q * D + 3 * V * D + 2 * NH * D + 3 * D * F
    token = head["blocks"] * (2 * products + NH * (4 * dq * dv + (chunk + 1) * (dq + dv)))
    last = 2 * vocabulary * D
    for line in lines[1:]:
        test = next((t for t in ("decode", "prefill") if t in line), None)
        if test is None:
            continue
        n = line[test]
        tokens, sequences = (n, n) if test == "decode" else (n, 1)
        operations = tokens * token + sequences * last
        moved = head["weight_bytes"] + 2 * sequences * head["state_bytes"]
        plot.points.append(Point(head["weights"], head["activations"], head["state"], test, n, operations / moved,
                                 operations / (line["ms"] * 1e-3)))
    plot.bandwidths.append(head["read_bytes_per_s"])
    if head.get("peak_flop_per_s"):
        plot.peaks.setdefault(head.get("peak", "matrix peak"), []).append(head["peak_flop_per_s"])
    device = re.search(r"\(\d+: ([^)]*)\)", head["device"])
    plot.title = f"{device[1] if device else head['device']}: xlstm, 7b"


def load(paths):
    plot = Plot()
    for path in paths:
        with open(path, newline="") as file:
            if path.endswith(".csv"):
                rows = list(csv.DictReader(file))
                if not rows:
                    raise SystemExit(f"{path}: no measurements")
                add_csv(plot, rows)
            else:
                add_json_lines(plot, [json.loads(line) for line in file if line.strip()])
    return plot


# ---- drawing ---------------------------------------------------------------------------------------------------------

def shade(series):
    """The colour of the weights; lighter for a narrow state."""
    color = COLORS.get(series[0], "#000000")
    if series[2] == "float32":
        return color
    return "#" + "".join(f"{(int(color[i:i + 2], 16) + 255) // 2:02x}" for i in (1, 3, 5))


def si(value, unit):
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= factor * 0.9995:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


class Svg:
    def __init__(self):
        self.parts = []

    def add(self, tag, text=None, **attributes):
        named = "".join(f' {k.replace("_", "-")}="{escape(str(v), {chr(34): "&quot;"})}"' for k, v in attributes.items())
        self.parts.append(f"<{tag}{named}/>" if text is None else f"<{tag}{named}>{escape(text)}</{tag}>")

    def line(self, x1, y1, x2, y2, **attributes):
        self.add("line", x1=f"{x1:.1f}", y1=f"{y1:.1f}", x2=f"{x2:.1f}", y2=f"{y2:.1f}", **attributes)

    def text(self, x, y, text, size=12, fill=INK, **attributes):
        self.add("text", text, x=f"{x:.1f}", y=f"{y:.1f}", font_size=size, fill=fill, **attributes)

    def marker(self, x, y, square, color, solid, size=5.0):
        style = {"fill": color if solid else "#ffffff", "stroke": color, "stroke_width": 1.8}
        if square:
            self.add("rect", x=f"{x - size * .9:.1f}", y=f"{y - size * .9:.1f}", width=f"{size * 1.8:.1f}",
                     height=f"{size * 1.8:.1f}", **style)
        else:
            self.add("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=f"{size:.1f}", **style)


class Boxes:
    """Places that are taken, so that labels find free ones."""

    def __init__(self):
        self.taken = []

    def take(self, x1, y1, x2, y2):
        self.taken.append((x1, y1, x2, y2))

    def clash(self, box):
        return sum(max(0, min(box[2], b[2]) - max(box[0], b[0])) * max(0, min(box[3], b[3]) - max(box[1], b[1]))
                   for b in self.taken)

    def place(self, x, y, text, size):
        w, h, gap = 0.62 * size * len(text), size, 8
        around = [(x - w / 2, y + gap), (x - w / 2, y - gap - h), (x + gap, y - h / 2), (x - gap - w, y - h / 2),
                  (x + gap - 2, y + gap - 3), (x - gap + 2 - w, y + gap - 3), (x + gap - 2, y - gap + 3 - h),
                  (x - gap + 2 - w, y - gap + 3 - h)]
        best = min(around, key=lambda p: self.clash((p[0], p[1], p[0] + w, p[1] + h)))
        self.take(best[0], best[1], best[0] + w, best[1] + h)
        return best[0], best[1] + 0.82 * h


def decades(low, high):
    return range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)


def draw(plot):
    bandwidth = statistics.median(plot.bandwidths) if plot.bandwidths else 0
    peaks = sorted(((name, statistics.median(values)) for name, values in plot.peaks.items()), key=lambda p: p[1])
    roof = max([p for _, p in peaks] + [p.rate for p in plot.points])
    xs, ys = [p.intensity for p in plot.points], [p.rate for p in plot.points]
    x_low, x_high = min(xs) / 1.6, max(max(xs), roof / bandwidth * 2 if bandwidth else 0) * 1.5
    y_low, y_high = min(ys) / 2, roof * 1.8
    inner_w, inner_h = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def px(x):
        return LEFT + inner_w * (math.log(x / x_low) / math.log(x_high / x_low))

    def py(y):
        return TOP + inner_h * (1 - math.log(y / y_low) / math.log(y_high / y_low))

    svg, boxes = Svg(), Boxes()
    # ---- axes
    for axis, low, high in (("x", x_low, x_high), ("y", y_low, y_high)):
        for d in decades(low, high):
            for k in range(1, 10):
                value = k * 10.0 ** d
                if not low < value < high:
                    continue
                color = "#cfcfcf" if k == 1 else GRID
                if axis == "x":
                    svg.line(px(value), TOP, px(value), TOP + inner_h, stroke=color, stroke_width=1)
                else:
                    svg.line(LEFT, py(value), LEFT + inner_w, py(value), stroke=color, stroke_width=1)
                few = math.log10(high / low) < 2.6
                if k == 1 or (few and k in (2, 5)):
                    if axis == "x":
                        svg.text(px(value), TOP + inner_h + 18, f"{value:g}", 12, QUIET, text_anchor="middle")
                    else:
                        svg.text(LEFT - 8, py(value) + 4, si(value, ""), 12, QUIET, text_anchor="end")
    svg.add("rect", x=LEFT, y=TOP, width=inner_w, height=inner_h, fill="none", stroke="#999999")
    svg.text(LEFT + inner_w / 2, HEIGHT - 20, "operations for each byte moved", 13, QUIET, text_anchor="middle")
    middle = TOP + inner_h / 2
    svg.text(22, middle, "operations a second", 13, QUIET, text_anchor="middle", transform=f"rotate(-90 22 {middle:.1f})")
    # ---- roofs
    if bandwidth:
        spread = min(plot.bandwidths), max(plot.bandwidths)
        if spread[1] > 1.03 * spread[0]:
            corners = []
            for b, order in ((spread[1], (0, 1)), (spread[0], (1, 0))):
                ends = [x_low, min(x_high, roof / b)]
                corners += [(px(ends[i]), py(max(y_low, ends[i] * b))) for i in order]
            svg.add("polygon", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in corners), fill=INK, fill_opacity="0.07",
                    clip_path="url(#inside)")
        start = max(x_low, y_low / bandwidth)
        end = min(x_high, roof / bandwidth)
        svg.line(px(start), py(start * bandwidth), px(end), py(end * bandwidth), stroke=INK, stroke_width=2)
        # its name, along the line
        x, angle = math.sqrt(start * end), math.degrees(math.atan2(py(start * bandwidth) - py(end * bandwidth),
                                                                    px(end) - px(start)))
        svg.text(px(x), py(x * bandwidth) - 8, f"read {si(bandwidth, 'B/s')}", 12, INK, text_anchor="middle",
                 transform=f"rotate({-angle:.2f} {px(x):.1f} {py(x * bandwidth) - 8:.1f})")
    label_y = []
    for name, peak in peaks:
        start = max(x_low, peak / bandwidth if bandwidth else x_low)
        svg.line(px(start), py(peak), LEFT + inner_w, py(peak), stroke=INK, stroke_width=2)
        y = py(peak)
        while any(abs(y - other) < 15 for other in label_y):
            y -= 1
        label_y.append(y)
        svg.text(LEFT + inner_w + 8, y + 4, f"{name}  {si(peak, 'FLOP/s')}", 12, INK)
        if abs(y - py(peak)) > 3:
            svg.line(LEFT + inner_w, py(peak), LEFT + inner_w + 6, y, stroke=QUIET, stroke_width=1)
    # ---- points
    order = sorted({p.series() for p in plot.points},
                   key=lambda s: (ORDER.index(s[0]) if s[0] in ORDER else 99, s[1] != "float32", s[2] != "float32"))
    for p in plot.points:
        x, y = px(p.intensity), py(p.rate)
        boxes.take(x - 6, y - 6, x + 6, y + 6)
    for series in order:
        color = shade(series)
        for test in ("decode", "prefill"):
            some = sorted((p for p in plot.points if p.series() == series and p.test == test), key=lambda p: p.number)
            if len(some) > 1:
                svg.add("polyline", points=" ".join(f"{px(p.intensity):.1f},{py(p.rate):.1f}" for p in some), fill="none",
                        stroke=color, stroke_width=1.2, stroke_opacity="0.55",
                        **({"stroke_dasharray": "5 3"} if series[2] != "float32" else {}))
    for series in order:
        color = shade(series)
        for p in plot.points:
            if p.series() == series:
                svg.marker(px(p.intensity), py(p.rate), p.test == "prefill", color, p.activations != "float32")
    for p in sorted(plot.points, key=lambda p: (-p.number, p.weights)):
        x, y = boxes.place(px(p.intensity), py(p.rate), str(p.number), 11)
        svg.text(x, y, str(p.number), 11, shade(p.series()), paint_order="stroke", stroke="#ffffff",
                 stroke_width="2.5", stroke_linejoin="round")
    # ---- title and legend
    svg.text(LEFT, 32, plot.title, 18, INK, font_weight="bold")
    svg.text(LEFT, 54, "; ".join(plot.notes), 12.5, QUIET)
    line = 19
    x, y = LEFT + inner_w + 22, TOP + inner_h - line * (len(order) + 5) - 8
    y = max(y, max(label_y, default=TOP) + 30)
    svg.text(x, y, "weights, activations", 12.5, INK, font_weight="bold")
    states = {s[2] for s in order}
    for series in order:
        y += line
        color = shade(series)
        svg.marker(x + 6, y - 4, False, color, series[1] != "float32")
        extra = f", {series[2]} state" if len(states) > 1 and series[2] != "float32" else ""
        svg.text(x + 20, y, f"{series[0]}, {series[1]}{extra}", 12.5)
    for square, text in ((False, "decode; number: sequences at once"), (True, "prefill; number: tokens of the prompt")):
        y += line + (10 if not square else 0)
        svg.marker(x + 6, y - 4, square, QUIET, True)
        svg.text(x + 20, y, text, 12.5)
    y += line
    svg.marker(x + 6, y - 4, False, QUIET, False)
    svg.text(x + 20, y, "hollow: float32 activations", 12.5)
    if bandwidth and max(plot.bandwidths) > 1.03 * min(plot.bandwidths):
        y += line
        svg.add("rect", x=f"{x:.1f}", y=f"{y - 10:.1f}", width=12, height=12, fill=INK, fill_opacity="0.07")
        svg.text(x + 20, y, "range of the read bandwidth", 12.5)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
            'font-family="DejaVu Sans, Verdana, Arial, sans-serif">\n'
            f'<title>{escape(plot.title)}</title>\n'
            f'<clipPath id="inside"><rect x="{LEFT}" y="{TOP}" width="{inner_w}" height="{inner_h}"/></clipPath>\n'
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>\n' + "\n".join(svg.parts) + "\n</svg>\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="one .csv of xlstm bench, or .json files of cuda_bench")
    parser.add_argument("-o", "--output", required=True)
    parser.add_argument("--peak", action="append", default=[], metavar="NAME=FLOP/S")
    parser.add_argument("--title")
    options = parser.parse_args()
    plot = load(options.files)
    plot.notes.insert(0, ("read bandwidth" if options.peak else "roofs") + " measured in the same run")
    for text in options.peak:
        name, _, value = text.rpartition("=")
        plot.peaks.setdefault(name, []).append(float(value))
    if options.title:
        plot.title = options.title
    if not plot.points:
        raise SystemExit("no measurements")
    with open(options.output, "w") as file:
        file.write(draw(plot))


if __name__ == "__main__":
    main()
