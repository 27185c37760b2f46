"""What a GPU would have to wait for, checked without one: no network reads a number back or makes a
tensor on the CPU in a forward pass, and torch.compile takes each as one graph."""

import importlib
import itertools
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.test_every_paper import PAPERS, network

# Operations whose result the CPU must see before it can go on.
WAITING = (
    "_local_scalar_dense",
    "nonzero",
    "is_nonzero",
    "masked_select",
    "unique",
    "bincount",
    "equal",
    "repeat_interleave",
)
# What makes a tensor of Python's numbers on the CPU, or takes them out of one.
PYTHON = (
    "tensor",
    "new_tensor",
    "as_tensor",
    "from_numpy",
    "item",
    "tolist",
    "numpy",
    "cpu",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
)

forms = pytest.mark.parametrize(
    "paper, fast, training",
    [
        (paper, fast, training)
        for paper, fast, training in itertools.product(PAPERS, (True, False), (False, True))
        if fast or paper != "pan"
    ],
)  # PAN has one form


class Operations(TorchDispatchMode):
    """Records the names of operations, and of those that gave tensors elsewhere than on
    `device`."""

    def __init__(self, device):
        super().__init__()
        self.device, self.names, self.elsewhere = device, [], []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        name = function.overloadpacket.__name__
        self.names.append(name)
        for one in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(one, torch.Tensor) and one.device.type != self.device:
                self.elsewhere.append(name)
        return result


class Calls(TorchFunctionMode):
    """Records the names of the functions of PyTorch that Python calls."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_function__(self, function, types, arguments=(), options=None):
        self.names.append(getattr(function, "__name__", ""))
        return function(*arguments, **(options or {}))


def build(paper, fast, device="cpu"):
    """The tiny network on a device."""
    torch.manual_seed(0)
    options = {} if paper == "pan" else {"fast": fast}
    with torch.device(device):
        return importlib.import_module(f"papers.{paper}.model").build(5, **options)


@forms
def test_no_number_is_read_back(paper, fast, training):
    model, images = build(paper, fast).train(training), torch.randn(2, 3, 128, 128)
    with Operations("cpu") as operations, Calls() as calls:
        model(images)
    assert len(operations.names) > 50 and len(calls.names) > 50
    assert not {*WAITING} & {*operations.names}
    read = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"}
    assert not read & {*calls.names}


@forms
def test_all_runs_on_one_device(paper, fast, training):
    """On "meta", which tells it from the CPU: so does a GPU. From the second pass of a size on
    nothing is made of Python's numbers or on the CPU. The plain form of PySA makes
    its matrices in each pass."""
    model = build(paper, fast, "meta").train(training)
    images = torch.empty(2, 3, 128, 128, device="meta")
    model(images)
    with Operations("meta") as operations, Calls() as calls:
        outputs = model(images)
    assert all(output.device.type == "meta" for output in outputs.values())
    if fast or paper != "pysa":
        assert not operations.elsewhere and not {*PYTHON} & {*calls.names}


def test_what_waits_is_found():
    """So that the tests above cannot pass for want of names."""
    x = torch.ones(3)
    with Operations("meta") as operations, Calls() as calls:
        (
            x.sum().item(),
            x[x > 0],
            x.nonzero(),
            bool(x[0]),
            x.new_tensor([1.0]),
            torch.bincount(x.long()),
        )
    assert {"_local_scalar_dense", "nonzero", "bincount"} <= {*operations.names}
    assert {"item", "__bool__", "new_tensor"} <= {*calls.names} and operations.elsewhere


@forms
def test_compiled_as_one_graph(paper, fast, training):
    """Counted by torch.compile itself; the graph gives what the network gives."""
    model, images = build(paper, fast), torch.randn(2, 3, 128, 128)
    model.train(training)
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own, about itself
        torch.manual_seed(0)  # of dropout
        got = compiled(images)
    torch.manual_seed(0)
    wanted = model(images)
    assert len(graphs) == 1
    for name in wanted:
        assert torch.allclose(got[name], wanted[name], rtol=1e-4, atol=1e-5)


def test_large_maps_of_psanet_are_one_graph(monkeypatch):
    """fast.Stream with its own gradients, which the tiny network takes for larger maps only."""
    from papers.psanet import fast

    monkeypatch.setattr(fast, "LARGEST_DENSE", 0)
    test_compiled_as_one_graph("psanet", True, True)


def test_matrices_are_made_once():
    """Of one size and type: kept between passes, whatever the mode of the first one."""
    for paper in ("pysa", "lrformer", "psanet", "unept"):
        model, images = network(paper).eval(), torch.randn(1, 3, 96, 64)
        with torch.inference_mode():
            model(images)
        with Calls() as calls:
            model.train()(torch.randn(2, 3, 96, 64))["out"].sum().backward()
        with Calls() as again:
            model(torch.randn(2, 3, 96, 64))["out"].sum().backward()
        assert not {"eye", "zeros", *PYTHON} & {*again.names}, paper
        assert len(again.names) <= len(calls.names)


@pytest.mark.parametrize("paper", PAPERS)
def test_what_is_traced_is_not_kept(paper):
    """PyTorch's fake tensors, of which its tools count and trace, have no numbers: an ordinary pass
    of the same size after one with them still works."""
    model = network(paper).eval()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model(torch.empty(1, 3, 160, 224))
    assert model(torch.ones(1, 3, 160, 224))["out"].isfinite().all()
