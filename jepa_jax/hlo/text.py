"""XLA's optimised text, parsed."""

import dataclasses
import math
import re

_BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s16": 2, "u16": 2,
    "f16": 2, "bf16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8,
}  # fmt: skip
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_HEAD = re.compile(r"^(?:ENTRY )?(%[\w.\-]+) \(.*\) -> .* \{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?(%[\w.\-]+) = (.*)$", re.S)
_OPCODE = re.compile(r" ([a-z][a-z0-9\-]*)\(")


class HloError(ValueError):
    """A program that this reader does not understand: better said than counted wrong."""


@dataclasses.dataclass(frozen=True)
class Array:
    dtype: str
    dims: tuple[int, ...]
    in_memory: bool  # False where it lives in the chip's own fast memory

    @property
    def bytes(self) -> float:
        return math.prod(self.dims) * _BYTES.get(self.dtype, 0)

    @property
    def moved(self) -> float:
        return self.bytes if self.in_memory else 0.0


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    text: str
    is_root: bool

    @property
    def origin(self) -> str:
        """The scopes and the operation of JAX that it is of; "" where the compiler says none."""
        found = re.search(r'op_name="([^"]*)"', self.text)
        return found.group(1) if found else ""

    def attribute(self, name: str) -> str | None:
        found = re.search(rf"[ ,]{name}=(%[\w.\-]+)", self.text)
        return found and found.group(1)

    @property
    def called(self) -> tuple[str, ...]:
        names = (self.attribute("calls"), self.attribute("to_apply"))
        listed = re.search(r"(?:branch|called)_computations=\{([^}]*)\}", self.text)
        return tuple(n for n in names if n) + tuple(listed.group(1).split(", ") if listed else ())


def _arrays(text: str) -> tuple[Array, ...]:
    found = []
    for dtype, dims, layout in _SHAPE.findall(text):
        in_memory = "S(" not in layout
        found.append(Array(dtype, tuple(int(d) for d in dims.split(",") if d), in_memory))
    return tuple(found)


def _operands(text: str) -> tuple[str, ...]:
    """The names between the brackets that open at the start of `text`."""
    depth = end = 0
    for end, character in enumerate(text):  # noqa: B007 - `end` is what is looked for
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            break
    return tuple(re.findall(r"%[\w.\-]+(?:#\d+)?", text[: end + 1]))


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """Computations by name, each its instructions by name, and the name of the entry."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, body, pending = "", None, []

    def finish():
        if not pending:
            return
        is_root, name, rest = _INSTRUCTION.match("\n".join(pending)).groups()
        opcode = _OPCODE.search(" " + rest)
        shape, tail = rest[: opcode.start()], rest[opcode.end() - 2 :]
        body[name] = Instruction(
            name, opcode.group(1), _arrays(shape), _operands(tail), rest[opcode.start() :], bool(is_root)
        )
        pending.clear()

    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            body = computations.setdefault(head.group(1), {})
            entry = head.group(1) if line.startswith("ENTRY") else entry
        elif re.match(r"\}(, execution_thread=.*)?$", line):  # not all of them are the main processor's
            finish()
        elif _INSTRUCTION.match(line) and body is not None:
            finish()
            pending.append(line)
        elif pending:
            pending.append(line)
    if not entry:
        raise HloError("the text holds no entry computation")
    for body in computations.values():
        _name_elements(body)
    return computations, entry


def _name_elements(body: dict[str, Instruction]) -> None:
    """From JAX 0.12 on the text has no get-tuple-element: `%x#1` among the operands is element 1 of %x."""
    for name in {x for i in body.values() for x in i.operands if "#" in x}:
        whole, index = name.split("#")
        text = f"get-tuple-element({whole}), index={index}"
        element = body[whole].arrays[int(index) : int(index) + 1]
        body[name] = Instruction(name, "get-tuple-element", element, (whole,), text, False)


def constant(i: Instruction) -> int | None:
    """The whole number that it is; None of any other."""
    found = re.match(r"constant\((-?\d+)\)", i.text)
    return int(found.group(1)) if found else None


def through_copies(i: Instruction, body: dict[str, Instruction]) -> Instruction:
    """The instruction that made what another only hands on."""
    while i.opcode in ("copy", "copy-done", "copy-start", "bitcast"):
        i = body[i.operands[0]]
    return i


def group_size(text: str) -> int:
    """Devices that take part together in a collective; 0 where each sends to one other."""
    pairs = re.search(r"source_target_pairs=", text)
    if pairs:
        return 0
    groups = re.search(r"replica_groups=\{\{([\d,]+)\}", text)
    if groups:
        return len(groups.group(1).split(","))
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]", text)
    if iota:
        return int(iota.group(2))
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(.*?\))? \{([^}]*)\}", text)
    if mesh:
        sizes = dict(pair.split("=") for pair in mesh.group(1).split(","))
        return math.prod(int(sizes[axis.strip()]) for axis in mesh.group(2).split(","))
    raise HloError(f"cannot tell which devices take part in {text[:80]}")


def slice_count(text: str) -> int:
    """Slices that take part together in a transfer: those of "{1,2}x{0:3}", slices by chips."""
    found = re.search(r'_xla_megascale_target="\{([\d,:]+)\}x', text)
    if not found:
        raise HloError(f"cannot tell which slices take part in {text[:80]}")
    ends = [[int(x) for x in part.split(":")] for part in found.group(1).split(",")]
    return sum(part[-1] - part[0] + 1 for part in ends)
