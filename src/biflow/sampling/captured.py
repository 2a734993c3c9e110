"""Networks captured as CUDA graphs: a sampler launches one graph instead of hundreds of kernels.

Graphs have fixed shapes, so there is one per batch size and guidance. The classes here replace `ForwardFlow` and
`ReverseModel`, share their weights, and own the graphs and their memory. Without a GPU the same steps run eagerly.
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

WARM_UP = 3  # calls before a capture, in which libraries allocate memory and select kernels
SHORTEST_SPAN = 32  # minimum cache length that a step of the sequential inverse attends to
CACHE_SIZE = 8  # (batch size, guidance) pairs cached per network
MAX_GRAPHS = 64  # per block, each for one group of patches

Outputs = tuple[Tensor, ...]
Function = Callable[..., Outputs]
Call = TypeVar("Call", bound=Callable[..., Any])
K = TypeVar("K")
V = TypeVar("V")


def capture(function: Function, *examples: Tensor, pool: Any = None) -> Function:
    """Capture a function of tensors as a CUDA graph for inputs of these shapes.

    Returns the function itself without a GPU, or if memory runs out. The next call overwrites the outputs. pool: graph
    memory pool shared by one network.
    """
    device = examples[0].device
    if device.type != "cuda":
        return function
    inputs = [example.clone() for example in examples]
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.device(device):  # may not be the current one
            side = torch.cuda.Stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    function(*inputs)
            torch.cuda.current_stream(device).wait_stream(side)
            with torch.cuda.graph(graph, pool=pool, stream=side):
                outputs = function(*inputs)
    except torch.cuda.OutOfMemoryError:
        warnings.warn("A CUDA graph does not fit into GPU memory. Lower batch_size to use one.", stacklevel=2)
        return function

    def replay(*arguments: Tensor) -> Outputs:
        with torch.cuda.device(device):
            for static, new in zip(inputs, arguments, strict=True):
                static.copy_(new)
            graph.replay()
        return outputs

    return replay


def get_or_make(cache: dict[K, V], key: K, make: Callable[[], V], *, size: int = CACHE_SIZE) -> V:
    """Get an entry of the cache, or make it and evict the least recently used ones."""
    cache[key] = cache.pop(key) if key in cache else make()
    while len(cache) > size:
        cache.pop(next(iter(cache)))
    return cache[key]


def without_autograd(call: Call) -> Call:
    """Disable gradients, and inference mode, whose tensors could not be reused outside of it."""
    return torch.inference_mode(False)(torch.no_grad()(call))


class CapturedReverse(ReverseModel):
    """A reverse model, sharing weights, whose forward pass is one graph per batch size."""

    def __init__(self, reverse: ReverseModel) -> None:
        nn.Module.__init__(self)
        self.__dict__ |= reverse.__dict__
        self.passes: dict[tuple[int, bool], Function] = {}

    @without_autograd
    def forward(
        self, z: Tensor, labels: Tensor, guidance: float | Tensor = 0.0, denoise: float | Tensor | None = None
    ) -> ReversePass:
        """See `ReverseModel.forward`."""
        given = (guidance, guidance if denoise is None else denoise)
        guided = self.strengths is not None or any(isinstance(each, Tensor) or each > 0 for each in given)
        weights = [each if isinstance(each, Tensor) else torch.full_like(z[:, 0, 0], each) for each in given]

        def one_pass(z: Tensor, labels: Tensor, *weights: Tensor) -> Outputs:
            output = ReverseModel.forward(self, z, labels, *(weights if guided else ()))
            return output.image, *output.hidden

        call = get_or_make(self.passes, (len(z), guided), lambda: capture(one_pass, z, labels, *weights))
        image, *hidden = call(z, labels, *weights)
        return ReversePass(image.clone(), hidden)


class CapturedFlow(ForwardFlow):
    """A flow, sharing weights, whose blocks are inverted by graphs, cached by batch size and guidance."""

    def __init__(self, flow: ForwardFlow) -> None:
        nn.Module.__init__(self)
        self.__dict__ |= flow.__dict__
        self.prepared: dict[tuple[int, Guidance], CapturedGuidedFlow] = {}

    @without_autograd
    def guide(self, labels: Tensor, guidance: Guidance) -> GuidedFlow:
        """The guided blocks for these labels (B,)."""
        key = (len(labels), guidance)
        prepared = get_or_make(self.prepared, key, lambda: CapturedGuidedFlow(self, labels.clone(), guidance))
        prepared.set_labels(labels)
        return prepared


class CapturedBlock(GuidedBlock):
    """A block with one graph per first position and number of patches, up to `MAX_GRAPHS`."""

    def __init__(self, flow: ForwardFlow, level: int, labels: Tensor, guidance: Guidance, *, pool: Any) -> None:
        super().__init__(flow, level, labels, guidance)
        self.pool = pool  # graph memory
        self.calls: dict[tuple[int, int | None], Function] = {}

    @without_autograd
    def predict(self, x: Tensor, caches: Sequence[KVCache] | None = None) -> Affine:
        """See `GuidedBlock.predict`."""
        start, count = caches[0].length if caches else None, x.shape[1]
        if (count, start) not in self.calls:
            if len(self.calls) >= MAX_GRAPHS:
                return super().predict(x, caches)

            def call(x: Tensor) -> Outputs:
                rewind(caches or (), start or 0)
                return super(CapturedBlock, self).predict(x, caches)

            self.calls[count, start] = capture(call, x, pool=self.pool)
        affine = Affine(*self.calls[count, start](x))
        rewind(caches or (), (start or 0) + count)  # a replay does not run Python
        return affine


class CapturedGuidedFlow(GuidedFlow):
    """The guided blocks of a flow for one batch size and guidance; each step of the sequential inverse is a graph.

    A step reads its position from the device and attends to a cache padded to the next power of two, so that a few
    graphs serve all steps of a block.
    """

    def __init__(self, flow: ForwardFlow, labels: Tensor, guidance: Guidance) -> None:
        super().__init__(flow, labels, guidance)
        self.pool: Any = torch.cuda.graph_pool_handle() if labels.is_cuda else None  # its graphs never run concurrently
        self.blocks = [CapturedBlock(flow, i, labels, guidance, pool=self.pool) for i in range(len(flow.blocks))]
        # output and partial input of the current block, in its reading order
        self.z = at_least_float32(flow.prior_variance).new_zeros(len(labels), *flow.prior_variance.shape)
        self.x = torch.zeros_like(self.z)
        self.position = torch.zeros(1, dtype=torch.int64, device=labels.device)  # of the last known patch of x
        self.steps: dict[tuple[int, int], Function] = {}

    def set_labels(self, labels: Tensor) -> None:
        """Replace the labels by as many others (B,)."""
        for block in self.blocks:
            block.set_labels(labels)

    @without_autograd
    def invert_block(self, level: int, z: Tensor) -> Tensor:
        """See `GuidedFlow.invert_block`."""
        block, last = self.blocks[level].block, z.shape[1] - 1
        steps = [self._step(level, min(last, padded_span(t + 1))) for t in range(last)]
        for cache in self.caches:  # NaN or Inf would leak even from masked positions
            cache.keys.zero_()
            cache.values.zero_()
        self.z.copy_(block.reading_order(z))
        self.x[:, :1] = self.z[:, :1]  # the first patch passes through unchanged
        position = torch.zeros_like(self.position)
        for step in steps:
            (position,) = step(position)
        return block.reading_order(self.x).clone()

    def _step(self, level: int, span: int) -> Function:
        """A function that restores the patch after a position (1,) below `span`, and returns the next position."""
        if (level, span) not in self.steps:
            caches = [StaticKVCache(each.keys, each.values, position=self.position, span=span) for each in self.caches]
            guided = self.blocks[level]

            def step(position: Tensor) -> Outputs:
                self.position.copy_(position)
                following = position + 1
                affine = GuidedBlock.predict(guided, self.x.index_select(1, position), caches)
                self.x.index_copy_(1, following, restore(self.z.index_select(1, following), affine))
                return (following,)

            self.steps[level, span] = capture(step, torch.zeros_like(self.position), pool=self.pool)
        return self.steps[level, span]


def padded_span(positions: int) -> int:
    """The next power of two, at least the shortest span."""
    return max(SHORTEST_SPAN, 1 << (positions - 1).bit_length())
