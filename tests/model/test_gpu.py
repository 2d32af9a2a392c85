"""Tests that require a GPU: FlexAttention with a backward pass and compiled, bf16, a step without synchronisation."""

from itertools import product

import pytest
import torch
from single_shape import run

from lit_transfusion.diffusion import DDPM
from lit_transfusion.model import SIZES, Bidirectional, Causal, LinearPatcher, Transfusion, UNetPatcher
from lit_transfusion.model.attention import attention, fastest
from lit_transfusion.model.block_runner import block_runner
from lit_transfusion.training.losses import LossWeights, transfusion_loss
from lit_transfusion.training.objective import Compared, squared_error

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
    pytest.mark.filterwarnings("ignore"),
]

PATCHERS = {
    "linear": lambda: LinearPatcher(4, SIZES["nano"].dim, patch_size=1),
    "unet": lambda: UNetPatcher(4, SIZES["nano"].dim, patch_size=2, channels=32),
}


@pytest.fixture
def layouts(lay_out):
    """Three packings of two rows of 1,024."""
    pair = "t" * 20 + "A" * 64 + "t|" + "t" * 33 + "B" * 64 + "tt" + "C" * 64 + "t|"
    texts = ["t" * 500 + "|" + pair, pair * 4, "t|" * 9 + "D" * 256 + "|" + pair * 2]
    return [tuple(ids.cuda() for ids in lay_out(text, pair, length=1024)) for text in texts]


def new_net(backend, patcher="linear", **options):
    torch.manual_seed(0)
    net = Transfusion(100, SIZES["nano"], PATCHERS[patcher](), Bidirectional(), attention=backend).cuda()
    net.transformer.run_block = block_runner(**options)
    return net


def run_layers(net, ids, mask, backend):
    """Return the output of the blocks and all their gradients."""
    generator = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(*ids[0].shape, SIZES["nano"].dim, generator=generator, device="cuda").requires_grad_()
    attend = attention(backend, *mask.intervals(*ids), x.dtype)
    output = net.transformer(x, torch.arange(1024, device="cuda").expand(2, -1)[..., None], ids[1] >= 0, attend)
    return output, *torch.autograd.grad(output.square().mean(), [x, *net.transformer.parameters()])


def test_auto_chooses_flex():
    assert fastest("cuda", 1024, torch.float32) == "flex"


@pytest.mark.parametrize("mask", [Bidirectional(), Causal()])
@pytest.mark.parametrize("backend", ["dense", "flex"])
def test_backends_agree_in_outputs_and_gradients(layouts, backend, mask):
    net = new_net(backend)
    for ids in layouts:
        expected = run_layers(net, ids, mask, "eager")
        torch.testing.assert_close(run_layers(net, ids, mask, backend), expected, atol=2e-3, rtol=2e-2)


@pytest.mark.parametrize(
    ("compile", "activation_checkpointing"), list(product([False, True], ["none", "selective", "full"]))
)
def test_runners_agree_under_flex(layouts, compile, activation_checkpointing):
    net = new_net("flex")
    expected = [run_layers(net, ids, Bidirectional(), "eager") for ids in layouts]
    net.transformer.run_block = block_runner(compile, activation_checkpointing)
    for ids, result in zip(layouts, expected, strict=True):
        torch.testing.assert_close(run_layers(net, ids, Bidirectional(), "flex"), result, atol=2e-3, rtol=2e-2)


@pytest.mark.parametrize("compile", [False, True])
def test_another_packing_does_not_compile_again(layouts, compile):
    torch._dynamo.reset()
    net = new_net("flex", compile=compile)
    counts = []
    for ids in layouts:
        run_layers(net, ids, Bidirectional(), "flex")
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert counts == counts[:1] * len(layouts)


@pytest.mark.parametrize("compile", [False, True])
def test_documents_do_not_affect_each_other(layouts, compile):
    """The boundary is in the middle of a tile."""
    net = new_net("flex", compile=compile)
    ids = layouts[0]
    attend = attention("flex", *Bidirectional().intervals(*ids), torch.float32)
    positions = torch.arange(1024, device="cuda").expand(2, -1)
    x = torch.randn(2, 1024, SIZES["nano"].dim, device="cuda")
    before = net.transformer(x, positions[..., None], ids[1] >= 0, attend)
    x[0, :500] *= -30
    after = net.transformer(x, positions[..., None], ids[1] >= 0, attend)
    assert torch.equal(after[0, 500:], before[0, 500:]) and torch.equal(after[1], before[1])


def step_of(net, precision, device):
    """Return a function that makes one training step, always on the same batch with the same noise."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(100, (2, 128), generator=generator)
    image_ids = torch.full((2, 128), -1)
    image_ids[0, 10:26], image_ids[1, 90:106] = 0, 1
    images, noise = torch.randn(2, 2, 4, 4, 4, generator=generator)
    timesteps = torch.tensor([100, 700])
    inputs = [tokens, torch.arange(128).expand(2, -1), torch.zeros_like(tokens), image_ids]
    inputs += [DDPM().add_noise(images, noise, timesteps), timesteps, torch.arange(9)]
    inputs, noise, targets = [x.to(device) for x in inputs], noise.to(device), tokens.flatten()[1:10].to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)

    def step():
        with torch.autocast(device, precision, enabled=precision is not None):
            output = run(net, *inputs)
            errors = squared_error(output.image_prediction, noise)
            loss = transfusion_loss(Compared(output.logits, targets, errors), LossWeights(5.0)).total
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return step


@pytest.mark.parametrize("patcher", PATCHERS)
def test_a_step_never_waits_for_the_device(patcher):
    step = step_of(new_net("dense", patcher), torch.bfloat16, "cuda")
    step()  # the first step may synchronise
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = step()  # raises an error if it synchronises
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()


def test_loss_curves_of_bf16_and_of_float32_on_the_cpu_agree():
    cpu = step_of(new_net("dense").cpu(), None, "cpu")
    gpu = step_of(new_net("dense"), torch.bfloat16, "cuda")
    curves = torch.tensor([[float(cpu()), float(gpu())] for _ in range(200)])
    means = curves.unflatten(0, (10, 20)).mean(1)  # over 20 steps each
    torch.testing.assert_close(means[:, 0], means[:, 1], atol=0.02, rtol=0.05)
    assert means[-1, 0] < 0.5 * means[0, 0]
