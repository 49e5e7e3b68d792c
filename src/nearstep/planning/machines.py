"""What a machine does per second: by the data sheets of GPUs, or as `nearstep doctor --measure` found it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nearstep.common.errors import ConfigError

GIB = 2**30
GB = 1e9
TERA = 1e12


@dataclass(frozen=True)
class Machine:
    """Devices that are alike. Rates are of one device, per second.

    A data sheet's rates are peaks; the `attained` shares say how much of them a phase is reckoned to reach. Measured
    rates are of the same kind of work already, and their shares near 1.
    """

    name: str
    memory_bytes: int
    float32_flops: float
    bfloat16_flops: float
    memory_rate: float  # bytes read
    node_rate: float  # bytes sent to devices of the same node
    network_rate: float  # bytes sent to devices of other nodes
    call_seconds: float  # what one call of a kernel takes, however little it does
    devices: int = 1  # in a node
    is_gpu: bool = True
    reserved_bytes: int = 0  # of the device: the driver's, the communication library's
    attained_flops: float = 1.0
    attained_memory: float = 1.0
    attained_links: float = 1.0
    measured: bool = False
    host_rate: float = 16 * GB  # bytes to and from the host's memory
    link_rates: Mapping[str, float] = field(default_factory=dict)  # measured: bytes sent, by number of processes

    @property
    def usable_bytes(self) -> int:
        """What weights, activations and all the rest may take."""
        return self.memory_bytes - self.reserved_bytes

    def flops(self, bytes_each: int) -> float:
        """Operations per second that products of this type are reckoned to reach."""
        peak = self.bfloat16_flops if bytes_each == 2 else self.float32_flops
        return peak * self.attained_flops / (2 if bytes_each == 8 else 1)

    def link(self, devices: int) -> float:
        """Bytes that a device sends per second within a group of neighbours."""
        known = {int(count): rate for count, rate in self.link_rates.items()}
        if devices <= self.devices and known:
            return known[min(known, key=lambda count: (count < devices, abs(count - devices)))]
        return (self.node_rate if devices <= self.devices else self.network_rate) * self.attained_links


# Memory as torch reports it; dense products without sparsity, float32 without TF32 (torch's default); bytes of memory;
# bytes to neighbours in one direction (NVLink, Infinity Fabric, else PCIe 4.0). From the makers' data sheets.
_SHEETS: Mapping[str, tuple[float, float, float, float, float]] = {
    "h100": (79.1, 67, 989, 3350, 450),
    "h200": (139.8, 67, 989, 4800, 450),
    "a100": (79.1, 19.5, 312, 2039, 300),
    "a100_40gb": (39.4, 19.5, 312, 1555, 300),
    "b200": (178.3, 75, 2250, 7700, 900),
    "l40s": (44.4, 91.6, 362, 864, 32),
    "l4": (22.0, 30.3, 121, 300, 32),
    "rtx4090": (23.5, 82.6, 165, 1008, 32),
    "mi300x": (191.5, 163.4, 1307, 5300, 448),
}
PCIE_5, PCIE_4 = 64 * GB, 32 * GB  # 16 lanes, in one direction
ON_PCIE_5 = ("h100", "h200", "b200", "mi300x")
NETWORK_RATE = 50 * GB  # one adapter of 400 Gbit/s for each device
# Shares of the peaks that training and decoding of transformers reach on the whole; not measured here.
ATTAINED_FLOPS, ATTAINED_MEMORY, ATTAINED_LINKS = 0.4, 0.6, 0.7
CALL_SECONDS = 8e-6
RESERVED_SHARE, RESERVED_BYTES = 0.04, int(1.5 * GIB)  # pieces between blocks; CUDA's and NCCL's own


def named_machine(name: str, devices: int) -> Machine:
    """A GPU by its data sheet, so many in a node."""
    memory, float32, bfloat16, rate, link = _SHEETS[name]
    total = int(memory * GIB)
    return Machine(
        name=name, memory_bytes=total, float32_flops=float32 * TERA, bfloat16_flops=bfloat16 * TERA,
        memory_rate=rate * GB, node_rate=link * GB, network_rate=NETWORK_RATE, call_seconds=CALL_SECONDS,
        devices=devices, reserved_bytes=RESERVED_BYTES + int(RESERVED_SHARE * total), attained_flops=ATTAINED_FLOPS,
        attained_memory=ATTAINED_MEMORY, attained_links=ATTAINED_LINKS,
        host_rate=PCIE_5 if name in ON_PCIE_5 else PCIE_4,
    )  # fmt: skip


def write_machine(machine: Machine, file: Path) -> None:
    """Keep a machine for `nearstep plan --machine FILE`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(asdict(machine), indent=2) + "\n", encoding="utf-8")


def read_machine(file: Path) -> Machine:
    """A machine that was kept. Raises ConfigError for a file that holds none."""
    try:
        return Machine(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"machine = {file} holds no rates of a machine ({error}): nearstep doctor --measure FILE writes such a file"
        ) from error
