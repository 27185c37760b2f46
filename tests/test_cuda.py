"""What only a GPU can show; skipped where there is none (studies/gpu.sh runs it)."""

import pytest
import torch

from tests.test_devices import build, forms

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@forms
def test_output_and_gradients_are_those_of_the_cpu(paper, fast, training):
    """In float64, where neither TF32 nor BatchNorm over small maps blurs them; dropout is off."""
    outputs, gradients = [], []
    for device in ("cpu", "cuda"):
        model = build(paper, fast).double().to(device).train(training)
        for module in model.modules():
            if "Drop" in type(module).__name__:
                module.eval()
        for name, parameter in model.named_parameters():
            if name.endswith("sampling_offsets.bias"):  # points on pixels, where gradients jump
                parameter.data.add_(0.3)
        images = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
        out = model(images.double().to(device))["out"]
        out.square().mean().backward()
        outputs.append(out.detach().cpu())
        gradients.append(torch.cat([p.grad.flatten().cpu() for p in model.parameters()
                                    if p.grad is not None]))
    for here, there in (outputs, gradients):
        assert (here - there).abs().max() <= 1e-6 * here.abs().max()


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # is a prototype
@forms
def test_a_forward_pass_does_not_wait(paper, fast, training):
    """PyTorch itself says so where the CPU would have to wait for the card."""
    if not fast and paper == "pysa":
        pytest.skip("its plain form, to be read, makes its matrices on the CPU")
    model = build(paper, fast).cuda().train(training)
    images = torch.randn(2, 3, 128, 128, device="cuda")
    model(images)
    try:
        torch.cuda.set_sync_debug_mode("error")
        model(images)
    finally:
        torch.cuda.set_sync_debug_mode("default")
