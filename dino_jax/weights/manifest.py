"""The account of a conversion: what became of every tensor. Nothing missing or unused goes unsaid."""

import collections
import dataclasses
import json
import re
from collections.abc import Iterable
from typing import Any

# What a row may say; the last three are errors.
KINDS = ("matched", "zero", "duplicate", "buffer", "kept", "skipped", "missing", "unused", "misshapen")
ERRORS = ("missing", "unused", "misshapen")


@dataclasses.dataclass(frozen=True)
class Row:
    """What became of tensors that belong together.

    Attributes:
      kind: one of `KINDS`.
      theirs, ours: names there and here.
      their_shapes, our_shapes: of the same.
      note: how they were converted, or why this is as it should be.
    """

    kind: str
    theirs: tuple[str, ...] = ()
    ours: tuple[str, ...] = ()
    their_shapes: tuple[tuple[int, ...], ...] = ()
    our_shapes: tuple[tuple[int, ...], ...] = ()
    note: str = ""


@dataclasses.dataclass
class Manifest:
    """The rows of one conversion, from or to a layout."""

    layout: str
    rows: list[Row] = dataclasses.field(default_factory=list)

    def add(self, kind: str, **columns: Any) -> None:
        """Appends a row."""
        self.rows.append(Row(kind, **columns))

    def counts(self) -> dict[str, int]:
        """Counts the tensors of each kind that occurs."""
        counted: collections.Counter[str] = collections.Counter()
        for row in self.rows:
            counted[row.kind] += max(len(row.theirs), 1)
        return {kind: counted[kind] for kind in KINDS if counted[kind]}

    def problem(self) -> str | None:
        """Says in a line what is wrong, or None."""
        bad = [row for row in self.rows if row.kind in ERRORS]
        parts = []
        for kind in ERRORS:
            names = collapse(_label(row) for row in bad if row.kind == kind)
            if names:
                count = sum(max(len(row.theirs), 1) for row in bad if row.kind == kind)
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                parts.append(f"{count} {kind}: {', '.join(names[:3])}{more}")
        return "; ".join(parts) or None

    def table(self) -> list[list[str]]:
        """Returns the rows for printing, blocks put together, the header first."""
        groups: dict[tuple, list[Row]] = {}
        for row in self.rows:
            key = (row.kind, tuple(map(_numberless, row.theirs)), row.ours, row.their_shapes, row.our_shapes, row.note)
            groups.setdefault(key, []).append(row)
        out = [["there", "shape", "here", "shape", "what"]]
        for rows in groups.values():
            first = rows[0]
            names = [" + ".join(collapse(row.theirs[i] for row in rows)) for i in range(len(first.theirs))]
            there, here = (in_braces(list(column)) for column in (names, first.ours))
            what = first.note if first.kind == "matched" else f"{first.kind}: {first.note}".removesuffix(": ")
            shapes = [_shapes(first.their_shapes), _shapes(first.our_shapes)]
            out.append([there, shapes[0], here, shapes[1], what])
        return out

    def to_json(self) -> str:
        """Returns everything, tensor by tensor."""
        rows = [dataclasses.asdict(row) for row in self.rows]
        return json.dumps({"layout": self.layout, "counts": self.counts(), "rows": rows}, indent=1) + "\n"


def collapse(names: Iterable[str]) -> list[str]:
    """Puts names together that differ in the number of the block: `blocks.{0..11}.norm1.weight`."""
    groups: dict[str, list[tuple[str, ...]]] = {}
    for name in names:
        groups.setdefault(_numberless(name), []).append(tuple(re.findall(r"(?<=\.)\d+(?=\.)", name)))
    out = []
    for pattern, numbers in groups.items():
        for column in zip(*numbers, strict=True):
            values = sorted(set(map(int, column)))
            text = str(values[0]) if len(values) == 1 else f"{{{values[0]}..{values[-1]}}}"
            pattern = pattern.replace(".#.", f".{text}.", 1)
        out.append(pattern)
    return out


def in_braces(names: list[str]) -> str:
    """Joins names, what they have in common written once: `layer.0.{q_proj, k_proj}.weight`."""
    if len(names) < 2:
        return "".join(names) or "-"
    parts = [re.split(r"([./])", name) for name in names]
    shortest = min(map(len, parts))
    same = [len({part[i] for part in parts}) == 1 for i in range(shortest)]
    first = next((i for i in range(shortest) if not same[i]), shortest)
    last = next((i for i in range(shortest) if len({part[-1 - i] for part in parts}) > 1), shortest)
    last = min(last, shortest - first)
    if not first and not last:
        return " + ".join(names)
    middles = ["".join(part[first : len(part) - last]) for part in parts]
    return "".join(parts[0][:first]) + "{" + ", ".join(middles) + "}" + "".join(parts[0][len(parts[0]) - last :])


def _numberless(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "#", name)


def _label(row: Row) -> str:
    name = " + ".join(row.theirs or row.ours)
    if row.kind == "misshapen":
        return f"{name} {_shapes(row.their_shapes)} instead of {_shapes(row.our_shapes)}"
    return name


def _shapes(shapes: tuple[tuple[int, ...], ...]) -> str:
    return " + ".join("x".join(map(str, shape)) or "scalar" for shape in dict.fromkeys(shapes))
