"""What a compiled program costs: a walk over it, every loop as often as it runs."""

import dataclasses
import functools
import re
from collections import defaultdict
from collections.abc import Sequence

from jepa_jax.hlo.flops import flops_of
from jepa_jax.hlo.text import HloError, Instruction, constant, group_size, parse, slice_count, through_copies

_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# They move nothing: names for what is there already, or the end of what was counted at its start.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id", "copy-done", "async-done", "async-update", "all-gather-done", "all-reduce-done",
    "collective-permute-done", "add-dependency", "opt-barrier", "domain", "recv", "send-done", "recv-done",
}  # fmt: skip


@dataclasses.dataclass
class Cost:
    """Of one run on one chip.

    Attributes:
      flops: of matrix products and convolutions, two for a multiply-add.
      memory_bytes: read from and written to the chip's memory.
      collectives: by kind and bytes of the array: how often it runs, and the bytes a chip sends to others
        of its slice.
      transfers: the same of what goes by way of the hosts to other slices.
      instructions: how often one of a part of the program ("" of none) runs that does so many FLOPs and moves
        so many bytes; without collectives and the copies that are begun and go on beside others.
    """

    flops: float = 0.0
    memory_bytes: float = 0.0
    collectives: "Sends" = dataclasses.field(default_factory=dict)
    transfers: "Sends" = dataclasses.field(default_factory=dict)
    instructions: dict[tuple[str, float, float], float] = dataclasses.field(default_factory=dict)

    def add(self, other: "Cost", times: float = 1.0, part: str = "") -> None:
        """So many times another, of which all that is of no part is of this one."""
        self.flops += times * other.flops
        self.memory_bytes += times * other.memory_bytes
        for into, sends in ((self.collectives, other.collectives), (self.transfers, other.transfers)):
            for (kind, operands), (count, sent) in sends.items():
                _count(into, kind, operands, times * count, times * sent)
        for (its, *work), count in other.instructions.items():
            key = (its or part, *work)
            self.instructions[key] = self.instructions.get(key, 0.0) + times * count

    def run(self, flops: float, memory_bytes: float, part: str = "") -> None:
        """One instruction more."""
        self.add(Cost(flops, memory_bytes, instructions={(part, flops, memory_bytes): 1.0}))

    def seconds_in_turn(self, flops: float, bandwidth: float) -> dict[str, float]:
        """Of the `instructions` of each part one after the other, each as long as its work or its traffic
        takes.

        Args:
          flops: of the chip, FLOP/s. bandwidth: of its memory, bytes/s.
        """
        found: dict[str, float] = defaultdict(float)
        for (part, work, moved), count in self.instructions.items():
            found[part] += count * max(work / flops, moved / bandwidth)
        return dict(found)

    @property
    def network_bytes(self) -> float:
        return sum(sent for _, sent in self.collectives.values())

    @property
    def transfer_bytes(self) -> float:
        return sum(sent for _, sent in self.transfers.values())

    def by_kind(self) -> dict[str, float]:
        """Bytes a chip sends in each kind of collective."""
        found: dict[str, float] = defaultdict(float)
        for (kind, _), (_, sent) in self.collectives.items():
            found[kind] += sent
        return dict(found)


Sends = dict[tuple[str, str], tuple[float, float]]


def _count(sends: Sends, kind: str, operands: str, times: float, sent: float) -> None:
    before = sends.get((kind, operands), (0.0, 0.0))
    sends[kind, operands] = (before[0] + times, before[1] + sent)


class Program:
    """An optimised HLO module, parsed.

    Args:
      chips_a_host: that share a host's way to other slices.
      parts: scopes whose instructions `Cost` tells apart.
    """

    def __init__(self, text: str, chips_a_host: int = 1, parts: Sequence[str] = ()):
        self.computations, self.entry = parse(text)
        self._chips_a_host = chips_a_host
        self._part = re.compile(rf"\b({'|'.join(parts)})\b" if parts else r"(?!)")

    def cost(self) -> Cost:
        """Of the whole program."""
        return self._cost(self.entry)

    @functools.cache  # noqa: B019 - lives as long as the program it belongs to
    def _cost(self, name: str) -> Cost:
        total = Cost()
        for instruction in self.computations[name].values():
            self._add(total, instruction, self.computations[name])
        return total

    def _add(self, total: Cost, i: Instruction, body: dict[str, Instruction]) -> None:
        if i.opcode in _FREE:
            return
        of = self._part.search(i.origin)
        part = of.group(1) if of else ""
        if i.opcode == "while":
            times = self._trips(i, body)
            total.add(self._cost(i.attribute("body")), times, part)
            total.add(self._cost(i.attribute("condition")), times, part)
            return
        if i.opcode == "conditional":
            branches = [self._cost(name) for name in i.called]
            total.add(max(branches, key=lambda c: (c.flops, c.memory_bytes)), part=part)
            return
        # A custom call that names computations: what a TPU7x hands to its SparseCores.
        if i.opcode in ("call", "async-start") or (i.opcode == "custom-call" and i.called):
            for name in i.called:
                total.add(self._cost(name), part=part)
            return
        kind = i.opcode.removesuffix("-start")
        if kind in _COLLECTIVES:
            self._add_collective(total, kind, i, body)
            return
        if i.opcode == "send":
            self._add_transfer(total, i, body)
            return
        if i.opcode == "copy-start":
            total.memory_bytes += sum(a.moved for a in i.arrays[:2])
            return
        total.run(self._flops(i, body), self._memory(i, body), part)
        if i.opcode == "fusion" and self._stage(i.attribute("calls")) in (None, "Start"):
            inner = self.computations[i.attribute("calls")]
            for j in inner.values():
                if j.opcode in _COLLECTIVES:
                    # The TPU writes a reduce-scatter as a fusion that keeps a share of an all-reduce.
                    kind = "reduce-scatter" if j.opcode == "all-reduce" else j.opcode
                    self._add_collective(total, kind, j, inner, in_fusion=True)

    def _add_collective(self, total, kind, i, body, in_fusion: bool = False) -> None:
        given = [a for name in i.operands for a in body[name].arrays]
        size = sum(a.bytes for a in given)
        devices = group_size(i.text)
        share = (devices - 1) / devices if devices else 1.0
        factor = {"all-gather": devices, "all-reduce": 2, "collective-permute": 1 / share if share else 0}
        sent = size * share * factor.get(kind, 1)
        label = ", ".join(sorted({f"{a.dtype}{list(a.dims)}" for a in given}))
        whole = label if len(label) < 100 else f"{len(given)} arrays, {size:.0f} bytes"
        _count(total.collectives, kind, whole, 1.0, sent)
        if not in_fusion:
            total.memory_bytes += sum(a.moved for a in given) + sum(a.moved for a in i.arrays)

    def _add_transfer(self, total: Cost, i: Instruction, body: dict[str, Instruction]) -> None:
        """Of several slices a collective's last part: a chip's share goes to the same chips of the others."""
        given = body[i.operands[0]].arrays[0]
        kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', i.text)
        if kind is None:
            raise HloError(f"cannot tell where {i.name} sends to")
        kind = kind.group(1).lower().replace("_", "-")
        if kind == "one-to-one":
            # Where the ring leaves a slice: one chip sends, with the way of all chips of its host.
            sent = given.bytes / self._chips_a_host
        else:
            slices = slice_count(i.text)
            factor = {"all-reduce": 2 / slices, "all-gather": 1.0, "reduce-scatter": 1 / slices}
            factor["all-to-all"] = factor["reduce-scatter"]
            if kind not in factor:
                raise HloError(f"cannot tell what {i.name}, {kind} between slices, sends")
            sent = given.bytes * factor[kind] * (slices - 1)
        _count(total.transfers, f"{kind} between slices", f"{given.dtype}{list(given.dims)}", 1.0, sent)

    def _trips(self, i: Instruction, body: dict[str, Instruction]) -> int:
        """How often a loop runs that counts up by one from a constant to a constant."""
        known = re.search(r'known_trip_count[":{]+n[":]+(\d+)', i.text)
        if known:
            return int(known.group(1))
        condition = self.computations[i.attribute("condition")]
        root = next(j for j in condition.values() if j.is_root)
        start = limit = None
        if root.opcode == "compare" and "direction=LT" in root.text:
            counter, bound = (condition[name] for name in root.operands)
            limit = constant(bound)
            index = re.search(r"index=(\d+)", counter.text)
            carried = body[i.operands[0]]
            if index and carried.opcode == "tuple":
                start = constant(through_copies(body[carried.operands[int(index.group(1))]], body))
        if start is None or limit is None:
            raise HloError(f"cannot tell how often the loop {i.name} runs")
        return max(limit - start, 0)

    def _memory(self, i: Instruction, body: dict[str, Instruction]) -> float:
        """Bytes read and written by one instruction that is run as it stands."""
        if i.opcode == "fusion":
            name = i.attribute("calls")
            stage = self._stage(name)
            if stage == "Start":
                return sum(a.moved for a in i.arrays[:2])  # the share and the whole
            if stage == "Done":
                return 0.0
            given = [(n, body[x].arrays[0].moved) for n, x in enumerate(i.operands) if body[x].arrays]
            read = sum(self._read(name, n, size) for n, size in given if size)
            return read + self._written(name, i)
        given = [body[x].arrays[0] for x in i.operands if body[x].arrays]
        if i.opcode in ("dynamic-slice", "slice", "gather"):
            return 2 * sum(a.moved for a in i.arrays)
        if i.opcode == "dynamic-update-slice":
            return 2 * given[1].moved
        return sum(a.moved for a in given) + sum(a.moved for a in i.arrays)

    @functools.cache  # noqa: B019
    def _stage(self, name: str) -> str | None:
        """Of a fusion of a collective that goes on beside products: the TPU's compiler writes it into the one
        that begins it, "Start", all that it runs beside, "Under way", and "Done". None of any other."""
        body = self.computations[name].values()
        if not any(i.opcode in _COLLECTIVES and "chain_id=" in i.text for i in body):
            return None
        ends = (re.search(r'"AsyncCollective(Start|Done)"', i.text) for i in body)
        return next((end.group(1) for end in ends if end), "Under way")

    @functools.cache  # noqa: B019
    def _users(self, name: str) -> dict[str, list[Instruction]]:
        users = defaultdict(list)
        for i in self.computations[name].values():
            for x in i.operands:
                users[x].append(i)
        return users

    def _read(self, name: str, index: int, size: float) -> float:
        """Bytes that a fused computation reads of its parameter: slices where it only takes slices."""
        body, users = self.computations[name], self._users(name)
        parameter = next(
            (i for i in body.values() if i.opcode == "parameter" and f"parameter({index})" in i.text), None
        )
        if parameter is None:
            return size
        total, frontier = 0.0, [parameter.name]
        while frontier:
            x = frontier.pop()
            for user in users[x]:
                if self._renames(user):
                    frontier.append(user.name)
                elif user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == x:
                    total += sum(a.bytes for a in user.arrays)
                elif user.opcode in ("dynamic-update-slice", "scatter") and user.operands[0] == x:
                    continue  # written in place
                elif user.opcode == "fusion":
                    total += self._read(user.attribute("calls"), user.operands.index(x), size)
                elif self._stage(name) and (user.opcode in _COLLECTIVES or user.is_root):
                    continue  # counted at its start, handed on
                else:
                    return size
        return min(total, size)

    def _renames(self, i: Instruction) -> bool:
        """Whether an instruction inside a fusion is what it is given under another shape or, as TPU7x has it,
        another tiling, in a fusion of its own that is in place."""
        if i.opcode == "bitcast":
            return True
        if i.opcode != "fusion" or "output_to_operand_aliasing" not in i.text:
            return False
        inner = self.computations[i.attribute("calls")].values()
        return all(j.opcode in ("parameter", "copy", "bitcast") for j in inner)

    def _written(self, name: str, i: Instruction) -> float:
        """Bytes that a fusion writes: of an update in place only the update."""
        body = self.computations[name]
        root = next(j for j in body.values() if j.is_root)
        roots = [body[x] for x in root.operands] if root.opcode == "tuple" else [root]
        total = 0.0
        for root, out in zip(roots, i.arrays, strict=False):
            j = root
            while self._renames(j):
                j = body[j.operands[0]]
            if self._stage(name) and j.opcode in ("parameter", *_COLLECTIVES):
                continue  # handed on
            if j.opcode == "dynamic-update-slice":
                total += min(out.moved, body[j.operands[1]].arrays[0].bytes)
            else:
                total += out.moved
        return total

    def _flops(self, i: Instruction, body: dict[str, Instruction]) -> float:
        if i.opcode == "fusion":
            inner = self.computations[i.attribute("calls")]
            return sum(self._flops(j, inner) for j in inner.values())
        return flops_of(i, body)
