"""A CUDA graph on a CPU: operations are recorded with the very tensors they had, and replayed without their Python."""

from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BOOLEAN = (torch.bool, torch.uint8)


class HostTouchedError(RuntimeError):
    """Something was done that no CUDA graph can repeat."""


def tensors_of(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def refuse_what_touches_the_host(operation, arguments, result):
    """Reading a number, a shape that depends on numbers, a copy between devices."""
    by_mask = operation is torch.ops.aten.index.Tensor and any(t.dtype in BOOLEAN for t in tensors_of(arguments)[1:])
    by_number = operation is torch.ops.aten.index.Tensor and not by_mask
    if torch.Tag.data_dependent_output in operation.tags:
        raise HostTouchedError(f"{operation} reads a number")
    if torch.Tag.dynamic_output_shape in operation.tags and not by_number:
        raise HostTouchedError(f"{operation} has a shape that depends on numbers")
    # A single number on the CPU is handed to a kernel as an argument.
    places = {t.device.type for t in (*tensors_of(arguments), *tensors_of(result)) if t.dim() > 0}
    if len(places) > 1:
        raise HostTouchedError(f"{operation} copies between {' and '.join(sorted(places))}")


class RefusePythonData(TorchFunctionMode):
    """A tensor made of numbers that Python holds is copied to the device, unless it is a single one for a kernel."""

    MAKERS = (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor)
    INDEXING = (torch.Tensor.__getitem__, torch.Tensor.__setitem__)

    def __torch_function__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        if function in self.MAKERS and not (result.dim() == 0 and result.is_cpu):
            raise HostTouchedError("a tensor is made of Python data")
        index = arguments[1] if function in self.INDEXING else ()
        if any(isinstance(part, list) for part in (index if isinstance(index, tuple) else (index,))):
            raise HostTouchedError("an index is made of Python data")
        return result


class Recorder(TorchDispatchMode):
    """Writes down every operation below autograd and autocast."""

    def __init__(self):
        super().__init__()
        self.entries = []

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        result = operation(*arguments, **(options or {}))
        refuse_what_touches_the_host(operation, (arguments, options), result)
        self.entries.append((operation, arguments, options or {}, result))
        return result


def recorded(work):
    """The operations of one run, with transformers in the belief that a stream is being captured."""
    recorder = Recorder()
    with patch.object(torch.cuda, "is_current_stream_capturing", lambda: True), RefusePythonData(), recorder:
        work()
    return recorder.entries


class Tape:
    """A `Capture`. As with CUDA graphs, results of a replay lie where the recorded lay."""

    def __init__(self):
        self.captures, self.replays = 0, 0

    def capture(self, work):
        entries = recorded(work)
        self.captures += 1
        return lambda: self._replay(entries)

    def _replay(self, entries):
        self.replays += 1
        for operation, arguments, options, result in entries:
            again = operation(*arguments, **options)
            if all(returned.alias_info is None for returned in operation._schema.returns):
                for place, value in zip(tensors_of(result), tensors_of(again), strict=True):
                    place.copy_(value)
