#!/usr/bin/env python3
"""Draws the pictures of the book: docs/pictures/NAME.txt becomes NAME.svg.

`--check` draws nothing: it fails if an SVG differs from the one that its source gives. A source has one statement a line:

    title TEXT                    read by screen readers
    time END                      the time axis runs from 0 to END
    lane LABEL | SECOND LINE      a thread; the statements below belong to it, until the next lane
      run FROM TO TEXT            it runs
      io FROM TO TEXT             it waits for I/O
      wait FROM TO TEXT           it waits for another thread
      hold FROM TO TEXT           a lock that the thread holds, drawn as a line under the bar
      free FROM TO TEXT           the same line, dotted: nothing is held
      on AT LANE                  an arrow at that time, to the lane that the thread waits for (counted from 1)
    cells LABEL | SECOND LINE     entries of a page table, in a separate row
      cell AT WIDTH TEXT          one entry; with `set` instead of `cell`, its bit is set
    note TEXT                     a line below the lanes

Colours are CSS variables. They follow the reader's light or dark mode, on the picture's own background.
"""
import sys
from html import escape
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "pictures"
LEFT, WIDTH, LANE, BAR, EDGE = 168, 820, 58, 22, 16
STYLE = """
svg{--ground:#ffffff;--ink:#1f2328;--dim:#59636e;--line:#d1d9e0;--run:#0969da;--on-run:#ffffff;--io:#eef1f4;--wait:#ffe2c7;--on-wait:#7a3300;--hold:#8250df;--arrow:#bc4c00}
@media (prefers-color-scheme:dark){svg{--ground:#161b22;--ink:#e6edf3;--dim:#9aa4af;--line:#3d444d;--run:#316dca;--on-run:#ffffff;--io:#262c36;--wait:#5a3413;--on-wait:#ffd5a8;--hold:#b78af7;--arrow:#f0883e}}
text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif;fill:var(--ink)}
.ground{fill:var(--ground)}.dim{fill:var(--dim)}.axis{stroke:var(--line)}
.run{fill:var(--run)}.io{fill:var(--io);stroke:var(--dim);stroke-dasharray:3 3}.wait{fill:var(--wait);stroke:var(--arrow)}
.in-run{fill:var(--on-run)}.in-io{fill:var(--dim)}.in-wait{fill:var(--on-wait)}
.hold{stroke:var(--hold);stroke-width:4}.of-hold{fill:var(--hold)}.free{stroke:var(--dim);stroke-width:2;stroke-dasharray:2 4}
.arrow{stroke:var(--arrow);stroke-width:1.5;fill:none}.head{fill:var(--arrow)}
.cell{fill:var(--io);stroke:var(--dim)}.set{fill:var(--wait);stroke:var(--arrow)}
"""


def wide(text):
    """Returns the approximate width of a text."""
    return 6.6 * len(text)


class Picture:
    def __init__(self, source):
        self.title, self.end, self.notes, self.lanes = "", 1.0, [], []
        for number, line in enumerate(source.read_text().splitlines(), 1):
            words = line.split()
            if words and not words[0].startswith("#"):
                try:
                    self.take(words[0], line.strip()[len(words[0]):].strip())
                except (ValueError, IndexError):
                    sys.exit(f"{source}:{number}: not understood: {line.strip()}")

    def take(self, verb, rest):
        if verb == "title":
            self.title = rest
        elif verb == "time":
            self.end = float(rest)
        elif verb in ("lane", "cells"):
            self.lanes.append((verb, [part.strip() for part in rest.split("|")], []))
        elif verb == "note":
            self.notes.append(rest)
        elif verb in ("run", "io", "wait", "hold", "free", "cell", "set"):
            start, end, *text = rest.split(maxsplit=2)
            self.lanes[-1][2].append((verb, float(start), float(end), text[0] if text else ""))
        elif verb == "on":
            at, lane = rest.split()
            self.lanes[-1][2].append((verb, float(at), int(lane), ""))
        else:
            raise ValueError(verb)

    def x(self, time):
        return LEFT + (WIDTH - LEFT - EDGE) * time / self.end

    def bar_top(self, lane):
        return EDGE + LANE * lane

    def svg(self):
        legend = self.bar_top(len(self.lanes)) + 4
        height = legend + 18 + 17 * len(self.notes) + EDGE // 2
        out = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(self.title)}">',
            f"<title>{escape(self.title)}</title><style>{STYLE}</style>",
            f'<rect class="ground" width="{WIDTH}" height="{height}" rx="6"/>',
        ]
        arrows = []
        for index, (kind, label, parts) in enumerate(self.lanes):
            top = self.bar_top(index)
            for row, text in enumerate(label):
                dim = ' class="dim"' if row else ""
                out.append(f'<text{dim} x="{EDGE}" y="{top + 15 + 15 * row}">{escape(text)}</text>')
            if kind == "lane":
                out.append(self.line("axis", 0, self.end, top + BAR / 2))
            for part in parts:
                drawn = arrows if part[0] == "on" else out
                drawn += self.part(index, top, *part)
        return "\n".join(out + arrows + self.legend(legend) + ["</svg>", ""])

    def line(self, style, start, end, y):
        return f'<line class="{style}" x1="{self.x(start):.0f}" x2="{self.x(end):.0f}" y1="{y:.0f}" y2="{y:.0f}"/>'

    def box(self, style, start, end, top, text):
        left, width = self.x(start), self.x(end) - self.x(start)
        yield f'<rect class="{style}" x="{left:.0f}" y="{top}" width="{width:.0f}" height="{BAR}" rx="3"/>'
        if text:
            if wide(text) > width:
                print(f"{self.title}: {text!r} is wider than its bar", file=sys.stderr)
            yield f'<text class="in-{style}" x="{left + width / 2:.0f}" y="{top + 15}" text-anchor="middle">{escape(text)}</text>'

    def part(self, index, top, verb, start, end, text):
        if verb in ("run", "io", "wait"):
            yield from self.box(verb, start, end, top, text)
        elif verb in ("cell", "set"):
            yield from self.box(verb, start, start + end, top, text)
        elif verb in ("hold", "free"):
            yield self.line(verb, start, end, top + BAR + 6)
            style = "of-hold" if verb == "hold" else "dim"
            yield f'<text class="{style}" x="{self.x(start):.0f}" y="{top + BAR + 21}">{escape(text)}</text>'
        else:
            # The arrow ends at the nearer edge of the other lane's bar.
            x, other = self.x(start), self.bar_top(end - 1)
            up = other < top
            tail, tip = (top, other + BAR + 1) if up else (top + BAR, other - 1)
            back = 6 if up else -6
            yield f'<line class="arrow" x1="{x:.0f}" x2="{x:.0f}" y1="{tail}" y2="{tip + back}"/>'
            yield f'<path class="head" d="M{x:.0f} {tip}l-4 {back}h8z"/>'

    def legend(self, top):
        used = {part[0] for lane in self.lanes for part in lane[2]}
        names = [("run", "runs"), ("io", "waits for I/O"), ("wait", "waits for a thread"),
                 ("hold", "holds a lock or a bit"), ("on", "whom it waits for"), ("set", "its bit is set")]
        out, x = [], EDGE
        for verb, text in names:
            if verb not in used:
                continue
            if verb in ("run", "io", "wait", "set"):
                out.append(f'<rect class="{verb}" x="{x}" y="{top + 3}" width="18" height="11" rx="2"/>')
            elif verb == "hold":
                out.append(f'<line class="hold" x1="{x}" x2="{x + 18}" y1="{top + 9}" y2="{top + 9}"/>')
            else:
                out.append(f'<line class="arrow" x1="{x}" x2="{x + 12}" y1="{top + 9}" y2="{top + 9}"/>')
                out.append(f'<path class="head" d="M{x + 18} {top + 9}l-6 -4v8z"/>')
            out.append(f'<text class="dim" x="{x + 24}" y="{top + 13}">{text}</text>')
            x += int(24 + wide(text) + 14)
        for row, note in enumerate(self.notes):
            out.append(f'<text class="dim" x="{EDGE}" y="{top + 31 + 17 * row}">{escape(note)}</text>')
        return out


def main():
    check = sys.argv[1:] == ["--check"]
    if sys.argv[1:] and not check:
        sys.exit(__doc__)
    stale = []
    for source in sorted(FOLDER.glob("*.txt")):
        picture, target = Picture(source).svg(), source.with_suffix(".svg")
        if check:
            if not target.exists() or target.read_text() != picture:
                stale.append(target.name)
        else:
            target.write_text(picture)
    if stale:
        sys.exit(f"run `just pictures`: {', '.join(stale)} are not what their sources give")


main()
