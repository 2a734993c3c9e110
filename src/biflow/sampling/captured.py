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
KEPT = 4  # batch sizes and guidances that a flow is kept ready for

Outputs = tuple[Tensor, ...]
Function = Callable[..., Outputs]
Call = TypeVar("Call", bound=Callable[..., Any])


def capture(function: Function, *examples: Tensor) -> Function:
    """A function of tensors as one CUDA graph for inputs like these; itself without a GPU, or where memory is short.

    Its outputs are overwritten by the next call.
    """
    if not examples[0].is_cuda:
        return function
    inputs = [example.clone() for example in examples]
    graph = torch.cuda.CUDAGraph()
    try:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                function(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            outputs = function(*inputs)
    except torch.cuda.OutOfMemoryError:
        warnings.warn(
            f"Sampling {len(inputs[0])} images at a time without a CUDA graph, which does not fit in the GPU's memory. "
            "Lower batch_size to use one.",
            stacklevel=2,
        )
        return function

    def replay(*given: Tensor) -> Outputs:
        for held, new in zip(inputs, given, strict=True):
            held.copy_(new)
        graph.replay()
        return outputs

    return replay


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
        key = (len(z), guided)
        if key not in self.passes:

            def one_pass(z: Tensor, labels: Tensor, weights: Tensor) -> Outputs:
                found = ReverseModel.forward(self, z, labels, weights if guided else 0.0)
                return found.image, *found.hidden

            self.passes[key] = capture(one_pass, z, labels, weights)
        image, *hidden = self.passes[key](z, labels, weights)
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
        if key not in self.ready:
            if len(self.ready) >= KEPT:
                self.ready.pop(next(iter(self.ready)))  # the oldest, with the memory of its graphs
            self.ready[key] = CapturedGuidedFlow(self, labels.clone(), guidance)
        self.ready[key].relabel(labels)
        return self.ready[key]


class CapturedBlock(GuidedBlock):
    """A block whose calls for patches of one place and number are one graph."""

    def __init__(self, flow: ForwardFlow, level: int, labels: Tensor, guidance: Guidance) -> None:
        super().__init__(flow, level, labels, guidance)
        self.calls: dict[tuple[int, int | None], Function] = {}

    @plainly
    def predict(self, x: Tensor, caches: Sequence[KVCache] | None = None) -> Affine:
        """As `GuidedBlock.predict`."""
        start, count = caches[0].length if caches else None, x.shape[1]
        if (count, start) not in self.calls:

            def call(x: Tensor) -> Outputs:
                rewind(caches or (), start or 0)
                return super(CapturedBlock, self).predict(x, caches)

            self.calls[count, start] = capture(call, x)
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
        self.blocks = [CapturedBlock(flow, level, labels, guidance) for level in range(len(flow.blocks))]
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
            caches = [StaticKVCache(each.keys, each.values, place=self.place, span=span) for each in self.caches]
            guided = self.blocks[level]

            def step(place: Tensor) -> Outputs:
                self.place.copy_(place)
                following = place + 1
                affine = GuidedBlock.predict(guided, self.x.index_select(1, place), caches)
                self.x.index_copy_(1, following, restore(self.z.index_select(1, following), affine))
                return (following,)

            self.steps[level, span] = capture(step, torch.zeros_like(self.place))
        return self.steps[level, span]


def span_of(places: int) -> int:
    """The next power of two, from the shortest span on."""
    return max(SHORTEST_SPAN, 1 << (places - 1).bit_length())
