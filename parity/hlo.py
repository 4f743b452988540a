"""Reads the text of a program that XLA has compiled: what it launches, and what that reads and writes.

The text lists computations of instructions, `%name = shape op(operands), attributes`. An instruction of the entry or
of a loop's body is a kernel, a library call or a collective, but for those that only name what is there.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
BYTES |= {"s64": 8, "u64": 8, "f64": 8}
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")

_FREE = {"parameter", "constant", "bitcast", "get-tuple-element", "tuple", "iota", "after-all", "partition-id"}
_FREE |= {"replica-id", "opt-barrier"}  # and what waits for another, `...-done`
_CUTS = {"slice", "dynamic-slice", "gather"}


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
      name: its own.
      shape: of its result, as the text has it.
      op: what it does, such as 'fusion'.
      arguments: what stands in its parentheses.
      attributes: the rest of the line.
      is_root: it is its computation's result.
    """

    name: str
    shape: str
    op: str
    arguments: str
    attributes: str
    is_root: bool

    @property
    def operands(self) -> list[str]:
        """The names of its operands."""
        return re.findall(r"%([\w.\-]+)", self.arguments)

    def attribute(self, pattern: str) -> str | None:
        """The first group of a regular expression in its attributes, or None."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else None


Computation = dict[str, Instruction]


class Program(NamedTuple):
    """A compiled program.

    Attributes:
      entry: name of the computation that runs.
      computations: by name; of each its instructions, by name and in order.
    """

    entry: str
    computations: dict[str, Computation]

    def fused(self, instruction: Instruction) -> Computation | None:
        """What a fusion computes, or None of another instruction."""
        name = instruction.attribute(r"calls=%?([\w.\-]+)") if instruction.op == "fusion" else None
        return self.computations[name] if name else None


class Launch(NamedTuple):
    """What is launched, once or in a loop.

    Attributes:
      instruction: the instruction.
      computation: where it stands.
      times: how often it runs.
    """

    instruction: Instruction
    computation: Computation
    times: int


def parse(text: str) -> Program:
    """Reads the text of a compiled program.

    Raises:
      ValueError: there is no entry in it.
    """
    computations, here, entry = {}, None, None
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) (\(.*-> .*)?\{$", line):
            here = computations[head[2]] = {}
            entry = head[2] if head[1] else entry
        elif here is not None and (found := re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*)", line)):
            here[found[2]] = _instruction(found[2], found[3], bool(found[1]))
    if entry is None:
        raise ValueError("the text has no ENTRY, and so is not that of a compiled program")
    return Program(entry, computations)


def _instruction(name, rest, is_root):
    shape, rest = _balanced(rest) if rest.startswith("(") else rest.split(" ", 1)
    op, rest = rest.strip().split("(", 1)
    arguments, attributes = _balanced("(" + rest)
    return Instruction(name, shape, op, arguments[1:-1], attributes, is_root)


def _balanced(text):
    """A text that begins with a parenthesis, cut after the one that closes it."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return text[: i + 1], text[i + 1 :]
    raise ValueError(f"a parenthesis stays open in {text[:60]!r}")


def launches(program: Program, computation: str | None = None, times: int = 1) -> Iterator[Launch]:
    """What a run of the program launches; a loop's body as often as it runs, or once where that is not known."""
    here = program.computations[computation or program.entry]
    for instruction in here.values():
        if instruction.op == "while":
            body = instruction.attribute(r"body=%?([\w.\-]+)")
            yield from launches(program, body, times * _trips(program, instruction))
        elif instruction.op == "call":
            yield from launches(program, instruction.attribute(r"to_apply=%?([\w.\-]+)"), times)
        elif instruction.op == "conditional":  # of its branches the longest
            names = [n for n in re.findall(r"%([\w.\-]+)", instruction.attributes) if n in program.computations]
            yield from max((list(launches(program, name, times)) for name in names), key=len)
        elif instruction.op not in _FREE and not instruction.op.endswith("-done"):
            yield Launch(instruction, here, times)


def _trips(program, loop):
    """As the compiler has found out, or by a condition `i < constant`: JAX counts from 0 by 1."""
    if known := loop.attribute(r'known_trip_count":\{"n":"(\d+)"'):
        return int(known)
    condition = program.computations[loop.attribute(r"condition=%?([\w.\-]+)")]
    (root,) = (i for i in condition.values() if i.is_root)
    limits = [condition[name].arguments for name in root.operands if condition[name].op == "constant"]
    return int(limits[0]) if root.op == "compare" and "direction=LT" in root.attributes and limits else 1


def size(shape: str) -> int:
    """Bytes of a shape, or of all shapes in a tuple's."""
    found = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shape)
    return sum(BYTES.get(kind, 0) * math.prod(map(int, filter(None, dims.split(",")))) for kind, dims in found)


def moved(program: Program, launch: Launch) -> int:
    """Bytes that one run reads and writes; of what a fusion only cuts from or puts into, no more than the part."""
    here, instruction = launch.computation, launch.instruction
    sizes = [size(here[name].shape) for name in instruction.operands if name in here]
    called = program.fused(instruction)
    if called is None:
        return size(instruction.shape) + sum(sizes)
    parameters = {int(i.arguments): i for i in called.values() if i.op == "parameter"}
    return sum(_read(called, parameters[n], whole) for n, whole in enumerate(sizes)) + _written(called)


def _read(called, parameter, whole):
    parts = 0
    for user in _users(called, parameter):
        first = user.operands[0] == parameter.name
        if user.op in _CUTS and first:
            parts += size(user.shape)
        elif not (user.op == "dynamic-update-slice" and first):  # which leaves the rest as it is
            return whole
    return min(parts, whole)


def _users(called, instruction):
    """What uses an instruction, by whatever names and shapes."""
    for user in called.values():
        if instruction.name in user.operands:
            yield from _users(called, user) if user.op == "bitcast" else (user,)


def _written(called):
    (root,) = (i for i in called.values() if i.is_root)
    results = [called[name] for name in root.operands] if root.op == "tuple" else [root]
    return sum(_of_result(called, result) for result in results)


def _of_result(called, result):
    while result.op == "bitcast":
        result = called[result.operands[0]]
    return size(called[result.operands[1]].shape if result.op == "dynamic-update-slice" else result.shape)


def received(launch: Launch) -> int:
    """Bytes of the operands of one run, such as a collective's."""
    here = launch.computation
    return sum(size(here[name].shape) for name in launch.instruction.operands if name in here)


def shuffles(program: Program, launch: Launch) -> bool:
    """Whether a launch copies, or brings entries into another order, by itself or along with what else it does."""
    instruction = launch.instruction
    if instruction.op in ("copy", "copy-start"):
        return True
    called = program.fused(instruction)
    if called is None:
        return instruction.op == "transpose" and _reorders(instruction, launch.computation)
    return any(i.op == "copy" or (i.op == "transpose" and _reorders(i, called)) for i in called.values())


def _reorders(transpose, here):
    """Whether axes longer than 1 come to lie in another order in memory."""
    (operand,) = (here[name] for name in transpose.operands)
    axes = [int(axis) for axis in transpose.attribute(r"dimensions=\{([\d,]*)\}").split(",")]
    lengths, before = _axes(operand.shape)
    _, after = _axes(transpose.shape)
    return [a for a in before if lengths[a] > 1] != [axes[a] for a in after if lengths[axes[a]] > 1]


def _axes(shape):
    """The lengths of a shape's axes, and the axes from the one with the smallest stride on."""
    dims, layout = re.match(r"\w+\[([\d,]*)\](?:\{([\d,]*))?", shape).groups()
    lengths = [int(n) for n in dims.split(",") if n]
    order = [int(n) for n in (layout or "").split(",") if n] or list(range(len(lengths)))[::-1]
    return lengths, order


class Call(NamedTuple):
    """A convolution.

    Attributes:
      kind: such as 'convForward' or 'convBackwardFilter' of cuDNN, or 'convolution', XLA's own.
      window: its sides, in pixels.
      groups: of channels.
    """

    kind: str
    window: tuple[int, ...]
    groups: int

    def __str__(self) -> str:
        sides = "x".join(map(str, self.window))
        return f"{self.kind} {sides}" + (f" in {self.groups} groups" if self.groups > 1 else "")

    @property
    def is_forward(self) -> bool:
        """Whether its window slides over images, against a sum over all places of an image."""
        return "Backward" not in self.kind


def convolution(instruction: Instruction) -> Call | None:
    """The convolution that an instruction is or, if it is none, None."""
    target = instruction.attribute(r'custom_call_target="([^"]+)"') or ""
    if instruction.op != "convolution" and not target.startswith("__cudnn$conv"):
        return None
    window = instruction.attribute(r"window=\{size=([\dx]+)") or "1"
    groups = int(instruction.attribute(r"feature_group_count=(\d+)") or 1)
    groups *= int(instruction.attribute(r"batch_group_count=(\d+)") or 1)
    return Call(target.removeprefix("__cudnn$") or "convolution", tuple(map(int, window.split("x"))), groups)


def convolutions(program: Program, launch: Launch) -> list[Call]:
    """The convolutions of a launch, of which a fusion may have some inside."""
    instructions = (program.fused(launch.instruction) or {launch.instruction.name: launch.instruction}).values()
    return [call for call in map(convolution, instructions) if call]
