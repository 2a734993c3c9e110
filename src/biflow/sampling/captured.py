"""Networks whose calls are CUDA graphs: a sampler launches one graph instead of hundreds of kernels.

A graph has fixed shapes, so each is made once for a batch size and a guidance, and used again.  The objects here stand
in for a `ForwardFlow` and a `ReverseModel` and share their weights; graphs and the memory that they read and write
belong to them.  Where there is no GPU the same steps run without graphs.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from biflow.models.flow_block import Affine, at_least_float32, restore
from biflow.models.forward_flow import ForwardFlow
from biflow.models.reverse_model import ReverseModel, ReversePass
from biflow.nn.attention import KVCache, StaticKVCache
from biflow.sampling.guidance import Guidance, GuidedBlock, GuidedFlow, rewind

WARM_UP = 3  # calls before a capture, in which libraries allocate and choose what they will use
SHORTEST_SPAN = 32  # patches that a step of the sequential inverse looks back on at least
KEPT = 8  # batch sizes and guidances that a network is kept ready for
MOST_CALLS = 64  # of different groups of patches that are graphs, for a block

Outputs = tuple[Tensor, ...]
Function = Callable[..., Outputs]
Call = TypeVar("Call", bound=Callable[..., Any])
K = TypeVar("K")
V = TypeVar("V")


def capture(function: Function, *examples: Tensor, pool: Any = None) -> Function:
    """A function of tensors as one CUDA graph for inputs like these; itself without a GPU, or where memory is short.

    Its outputs are overwritten by the next call.  pool: memory that the graphs of one network share.
    """
    device = examples[0].device
    if device.type != "cuda":
        return function
    inputs = [example.clone() for example in examples]
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.device(device):  # not the current one, perhaps
            side = torch.cuda.Stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    function(*inputs)
            torch.cuda.current_stream(device).wait_stream(side)
            with torch.cuda.graph(graph, pool=pool, stream=side):
                outputs = function(*inputs)
    except torch.cuda.OutOfMemoryError:
        warnings.warn(
            "Sampling without a CUDA graph, which does not fit in the GPU's memory. Lower batch_size to use one.",
            stacklevel=2,
        )
        return function

    def replay(*given: Tensor) -> Outputs:
        with torch.cuda.device(device):
            for held, new in zip(inputs, given, strict=True):
                held.copy_(new)
            graph.replay()
        return outputs

    return replay


def new_pool(device: torch.device) -> Any:
    """Memory for the graphs of one network, which run one after another."""
    return torch.cuda.graph_pool_handle() if device.type == "cuda" else None


def keep_latest(found: dict[K, V], key: K, make: Callable[[], V]) -> V:
    """What stands under the key, made if it is not there; those used longest ago are dropped, with their memory."""
    found[key] = found.pop(key) if key in found else make()
    while len(found) > KEPT:
        found.pop(next(iter(found)))
    return found[key]


def plainly(call: Call) -> Call:
    """The same call without gradients, and outside inference mode, where what it keeps could not be used."""
    return torch.inference_mode(False)(torch.no_grad()(call))


class CapturedReverse(ReverseModel):
    """A reverse model, sharing its weights, whose one pass is a graph for each batch size."""

    def __init__(self, reverse: ReverseModel) -> None:
        nn.Module.__init__(self)
        self.__dict__ |= reverse.__dict__
        self.passes: dict[tuple[int, bool], Function] = {}

    @plainly
    def forward(self, z: Tensor, labels: Tensor, guidance: float | Tensor = 0.0) -> ReversePass:
        """As `ReverseModel.forward`."""
        guided = self.strengths is not None or isinstance(guidance, Tensor) or guidance > 0
        weights = guidance if isinstance(guidance, Tensor) else torch.full_like(z[:, 0, 0], guidance)

        def one_pass(z: Tensor, labels: Tensor, weights: Tensor) -> Outputs:
            found = ReverseModel.forward(self, z, labels, weights if guided else 0.0)
            return found.image, *found.hidden

        call = keep_latest(self.passes, (len(z), guided), lambda: capture(one_pass, z, labels, weights))
        image, *hidden = call(z, labels, weights)
        return ReversePass(image.clone(), hidden)


class CapturedFlow(ForwardFlow):
    """A flow, sharing its weights, whose blocks are inverted by graphs for each batch size and guidance."""

    def __init__(self, flow: ForwardFlow) -> None:
        nn.Module.__init__(self)
        self.__dict__ |= flow.__dict__
        self.ready: dict[tuple[int, Guidance], CapturedGuidedFlow] = {}

    @plainly
    def guide(self, labels: Tensor, guidance: Guidance) -> GuidedFlow:
        """The blocks for these labels (B,) and this guidance."""
        key = (len(labels), guidance)
        ready = keep_latest(self.ready, key, lambda: CapturedGuidedFlow(self, labels.clone(), guidance))
        ready.relabel(labels)
        return ready


class CapturedBlock(GuidedBlock):
    """A block whose calls for patches of one place and number are one graph, the first of them at least."""

    pool: Any = None  # memory for the graphs

    def __init__(self, flow: ForwardFlow, level: int, labels: Tensor, guidance: Guidance) -> None:
        super().__init__(flow, level, labels, guidance)
        self.calls: dict[tuple[int, int | None], Function] = {}

    @plainly
    def predict(self, x: Tensor, caches: Sequence[KVCache] | None = None) -> Affine:
        """As `GuidedBlock.predict`."""
        start, count = caches[0].length if caches else None, x.shape[1]
        if (count, start) not in self.calls:
            if len(self.calls) >= MOST_CALLS:
                return super().predict(x, caches)

            def call(x: Tensor) -> Outputs:
                rewind(caches or (), start or 0)
                return super(CapturedBlock, self).predict(x, caches)

            self.calls[count, start] = capture(call, x, pool=self.pool)
        found = Affine(*self.calls[count, start](x))
        rewind(caches or (), (start or 0) + count)  # a graph does not count
        return found


class CapturedGuidedFlow(GuidedFlow):
    """The blocks of a flow for one batch size and guidance; each step of the sequential inverse is one graph.

    A step reads from the device which patch it is for, and looks back on as many places as the next power of two, so
    that a few graphs serve all steps of a block.
    """

    def __init__(self, flow: ForwardFlow, labels: Tensor, guidance: Guidance) -> None:
        super().__init__(flow, labels, guidance)
        self.pool = new_pool(labels.device)
        captured = [CapturedBlock(flow, level, labels, guidance) for level in range(len(flow.blocks))]
        for block in captured:
            block.pool = self.pool
        self.blocks = [*captured]
        # in the reading order of the block that is undone: its output, and its input as far as it is known
        self.z = at_least_float32(flow.prior_variance).new_zeros(len(labels), *flow.prior_variance.shape)
        self.x = torch.zeros_like(self.z)
        self.place = torch.zeros(1, dtype=torch.int64, device=labels.device)  # of the last patch of x that is known
        self.steps: dict[tuple[int, int], Function] = {}

    def relabel(self, labels: Tensor) -> None:
        """Take other labels (B,), as many."""
        for block in self.blocks:
            block.relabel(labels)

    @plainly
    def invert_block(self, level: int, z: Tensor) -> Tensor:
        """As `GuidedFlow.invert_block`."""
        block, last = self.blocks[level].block, z.shape[1] - 1
        steps = [self._step(level, min(last, span_of(place + 1))) for place in range(last)]
        for cache in self.caches:  # places that are masked count nothing, unless they hold what is not finite
            cache.keys.zero_()
            cache.values.zero_()
        self.z.copy_(block.reading_order(z))
        self.x[:, :1] = self.z[:, :1]  # the first patch passes through unchanged
        place = torch.zeros_like(self.place)
        for step in steps:
            (place,) = step(place)
        return block.reading_order(self.x).clone()

    def _step(self, level: int, span: int) -> Function:
        """A function: the last place (1,) that is known, below `span` -> the next, of the patch that it restored."""
        if (level, span) not in self.steps:
            caches = [StaticKVCache(each.keys, each.values, position=self.place, span=span) for each in self.caches]
            guided = self.blocks[level]

            def step(place: Tensor) -> Outputs:
                self.place.copy_(place)
                following = place + 1
                affine = GuidedBlock.predict(guided, self.x.index_select(1, place), caches)
                self.x.index_copy_(1, following, restore(self.z.index_select(1, following), affine))
                return (following,)

            self.steps[level, span] = capture(step, torch.zeros_like(self.place), pool=self.pool)
        return self.steps[level, span]


def span_of(places: int) -> int:
    """The next power of two, from the shortest span on."""
    return max(SHORTEST_SPAN, 1 << (places - 1).bit_length())
