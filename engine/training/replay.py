"""Work of a few static shapes on a GPU: recorded once as a CUDA graph, then replayed."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch


class Replays:
    """One graph for each shape. Work of a shape that is new is done as it is, which warms it up; the second makes
    the graph. On a processor all of it is done as it is.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: str) -> None:
        self._on_gpu = device != "cpu"
        self._seen: set[Hashable] = set()
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}
        if self._on_gpu:
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream(device)

    def run(self, shape: Hashable, work: Callable[[], None]) -> None:
        """Do the work of one shape; it must ask nothing of the host."""
        if not self._on_gpu:
            work()
            return
        if shape in self._graphs:
            self._graphs[shape].replay()
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        if shape not in self._seen:
            with torch.cuda.stream(self._stream):
                work()
            self._seen.add(shape)
            torch.cuda.current_stream().wait_stream(self._stream)
            return
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            work()
        self._graphs[shape] = graph
        graph.replay()
