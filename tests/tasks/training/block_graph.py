"""Print how torch.compile takes one training step of a block on Triton's kernels into a graph, as JSON.

    python tests/tasks/training/block_graph.py [--autocast]

The graph is made as on a GPU, and not run, so no GPU is needed. Triton must not be interpreted: the compiler takes no
interpreted kernels. A test runs this in a process of its own, as other tests have Triton interpreted.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.utils._triton
from torch import Tensor
from torch.fx import GraphModule

import kernels.linear_attention
import kernels.mix_feed_forward
import kernels.modulation
from model.network import NetworkConfig, Sana
from tasks.training.compiled_blocks import compile_blocks
from tests.helpers.small_networks import small_batch


def capturing(graphs: list[GraphModule]) -> Callable[..., Any]:
    """A backend that keeps the graph and computes nothing: it gives zeros of the right shapes."""

    def backend(graph: GraphModule, _inputs: list[Tensor]) -> Callable[..., tuple[Tensor, ...]]:
        graphs.append(graph)
        (results,) = graph.graph.output_node().args
        examples = [result.meta["example_value"] for result in results]
        return lambda *_: tuple(torch.zeros(one.shape, dtype=one.dtype) for one in examples)

    return backend


def main(autocast: bool) -> None:
    """Take the block into a graph; print the breaks, the graphs, and the launches in each operation's two passes."""
    # torch looks for a GPU's driver before it takes kernels into a graph, first when its compiler is imported.
    torch.utils._triton.has_triton = lambda: True
    from torch._dynamo.utils import counters

    for module in (kernels.linear_attention, kernels.mix_feed_forward, kernels.modulation):
        module.use_triton = lambda *_: True
    network = Sana(NetworkConfig(3, 32, 1, 16, 2, 1.5, 1, 6, True, "diffusers"))
    graphs: list[GraphModule] = []
    compile_blocks(network, capturing(graphs))
    latents, _, text, mask = small_batch()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        keys_values = network.encode_text(text, mask).keys_values[0]
        x, _, time, size = network.embed(latents, torch.linspace(50, 950, len(latents)))
        network.blocks[0](x, time, keys_values, mask, size)
    launches = [
        [name, sum("triton_kernel_wrapper" in str(node.target) for node in body.graph.nodes)]
        for graph in graphs
        for name, body in graph.named_children()
    ]
    print(json.dumps({"breaks": dict(counters["graph_break"]), "graphs": len(graphs), "launches": launches}))


if __name__ == "__main__":
    main("--autocast" in sys.argv)
