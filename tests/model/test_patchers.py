"""Tests of both patchers: shapes, order of the patches, timesteps, gradients, and which pixels affect which."""

import pytest
import torch

from lit_transfusion.errors import InputError
from lit_transfusion.model.patchers import LinearPatcher, UNetPatcher
from lit_transfusion.model.patchers.unet import SelfAttention

PATCH_SIZES = [1, 2, 4, 8]
DIM = 32
PAPER = {"latent_channels": 8, "channels": 1024, "num_res_blocks": 4, "head_dim": 64}


def make(cls, patch_size, latent_channels=3, **options):
    torch.manual_seed(0)
    return cls(latent_channels=latent_channels, dim=DIM, patch_size=patch_size, **options)


def draw(patch_size, grid=(2, 3), n=2, channels=3):
    """Return noisy images of `grid` patches, and their embedded timesteps."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(n, channels, grid[0] * patch_size, grid[1] * patch_size, generator=generator)
    return images, torch.randn(n, DIM, generator=generator)


def round_trip(patcher, images, t_emb, grid=(2, 3)):
    """Patchify and unpatchify, without a Transformer in between."""
    patches, skips = patcher.patchify(images, t_emb)
    return patcher.unpatchify(patches, t_emb, skips, grid)


def disable_attention(patcher):
    """Disable attention, so that only convolutions remain. They reach 38 pixels at most (patch size 8)."""
    for module in patcher.modules():
        if isinstance(module, SelfAttention):
            torch.nn.init.zeros_(module.proj.weight)


both = pytest.mark.parametrize("cls", [LinearPatcher, UNetPatcher])
all_sizes = pytest.mark.parametrize("patch_size", PATCH_SIZES)


@both
@all_sizes
@pytest.mark.parametrize("grid", [(2, 2), (2, 3), (3, 1)])
def test_shapes_of_square_and_rectangular_images(cls, patch_size, grid):
    patcher = make(cls, patch_size, latent_channels=4)
    images, t_emb = draw(patch_size, grid, channels=4)
    patches, skips = patcher.patchify(images, t_emb)
    assert patches.shape == (2, grid[0] * grid[1], DIM)
    prediction = patcher.unpatchify(torch.randn_like(patches), t_emb, skips, grid)
    assert prediction.shape == images.shape
    assert prediction.isfinite().all()


@both
def test_arguments_are_attributes_of_the_same_name(cls):
    patcher = cls(latent_channels=4, dim=48, patch_size=4)
    assert (patcher.latent_channels, patcher.dim, patcher.patch_size, patcher.positions) == (4, 48, 4, 0)


@both
@all_sizes
def test_positions_add_a_vector_for_the_row_and_one_for_the_column(cls, patch_size):
    """They are added to the vectors that enter the Transformer, in raster order; nothing else changes."""
    patcher, plain = make(cls, patch_size, positions=5), make(cls, patch_size)
    plain.load_state_dict(patcher.state_dict(), strict=False)
    images, t_emb = draw(patch_size, grid=(2, 3))
    patches, skips = patcher.patchify(images, t_emb)
    expected, _ = plain.patchify(images, t_emb)
    rows, columns = patcher.row_positions.weight, patcher.column_positions.weight
    for place in range(6):
        added = rows[place // 3] + columns[place % 3]
        torch.testing.assert_close(patches[:, place], expected[:, place] + added)
    assert len({tuple(vector) for vector in [*rows.tolist(), *columns.tolist()]}) == 10  # all different from the start
    torch.testing.assert_close(
        patcher.unpatchify(patches, t_emb, skips, (2, 3)), plain.unpatchify(patches, t_emb, skips, (2, 3))
    )


@both
def test_without_positions_the_parameters_are_those_of_older_checkpoints(cls):
    names = [name for name, _ in make(cls, 4).named_parameters()]
    assert not any("positions" in name for name in names)
    # Optimisers identify parameters by their number, so the new ones must be the last.
    assert names == [name for name, _ in make(cls, 4, positions=6).named_parameters()][:-2]


@both
def test_negative_number_of_positions_is_an_error(cls):
    with pytest.raises(InputError, match="positions -1"):
        make(cls, 4, positions=-1)


@all_sizes
def test_linear_with_orthonormal_weights_is_an_exact_round_trip(patch_size):
    patcher = LinearPatcher(latent_channels=3, dim=3 * patch_size**2 + 5, patch_size=patch_size)
    with torch.no_grad():
        torch.nn.init.orthogonal_(patcher.proj_in.weight)
        patcher.proj_in.bias.zero_()
        patcher.proj_out.weight.copy_(patcher.proj_in.weight.T)
        patcher.proj_out.bias.zero_()
    images, _ = draw(patch_size)
    torch.testing.assert_close(round_trip(patcher, images, torch.zeros(2, patcher.dim)), images)


@both
@all_sizes
def test_patches_are_in_raster_order(cls, patch_size):
    """The changed patch is at the bottom left of 8 × 8, number 56. In column order it would be number 7."""
    patcher, grid = make(cls, patch_size), (8, 8)
    disable_attention(patcher)
    images, t_emb = draw(patch_size, grid, n=1)
    marked = images.clone()
    marked[:, :, -patch_size:, :patch_size] += 3
    patches, skips = patcher.patchify(images, t_emb)
    moved = (patcher.patchify(marked, t_emb)[0] - patches).abs().amax(-1)[0]  # (P,)
    assert moved[56] > 1e-3
    assert moved[7] < 1e-6

    hidden = patches.clone()
    hidden[:, 56] += torch.randn(DIM)
    moved = (patcher.unpatchify(hidden, t_emb, skips, grid) - patcher.unpatchify(patches, t_emb, skips, grid)).abs()
    assert moved[:, :, -patch_size:, :patch_size].max() > 1e-3
    assert moved[:, :, :patch_size, -patch_size:].max() < 1e-6


def test_linear_changes_no_other_patch():
    patcher = LinearPatcher(latent_channels=1, dim=DIM, patch_size=2)
    images = torch.zeros(1, 1, 4, 6)
    blank, _ = patcher.patchify(images, torch.zeros(1, DIM))
    images[:, :, 2:, :2] = 1
    patches, _ = patcher.patchify(images, torch.zeros(1, DIM))
    assert (patches != blank).any(-1)[0].tolist() == [False, False, False, True, False, False]


@both
@all_sizes
def test_time_changes_the_patches(cls, patch_size):
    patcher = make(cls, patch_size)
    images, t_emb = draw(patch_size)
    patches, _ = patcher.patchify(images, t_emb)
    later, _ = patcher.patchify(images, t_emb + torch.tensor([[1.0], [0.0]]))
    assert not torch.allclose(later[0], patches[0], atol=1e-3)
    torch.testing.assert_close(later[1], patches[1])  # its t is unchanged


@all_sizes
def test_time_enters_the_up_path_of_the_unet_too(patch_size):
    patcher = make(UNetPatcher, patch_size)
    images, t_emb = draw(patch_size)
    patches, skips = patcher.patchify(images, t_emb)
    early = patcher.unpatchify(patches, t_emb, skips, (2, 3))
    late = patcher.unpatchify(patches, t_emb + 1, skips, (2, 3))
    assert not torch.allclose(early, late, atol=1e-3)


@both
@all_sizes
@pytest.mark.parametrize("positions", [0, 3])
def test_every_parameter_has_a_gradient(cls, patch_size, positions):
    patcher = make(cls, patch_size, positions=positions)
    images, t_emb = draw(patch_size)
    t_emb.requires_grad_()
    patches, skips = patcher.patchify(images, t_emb)
    hidden = patches + torch.randn_like(patches)
    hidden.retain_grad()
    (patcher.unpatchify(hidden, t_emb, skips, (2, 3)) - torch.randn_like(images)).square().mean().backward()
    for name, parameter in patcher.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
    assert hidden.grad.any()  # the Transformer has a gradient in the first step
    assert t_emb.grad.any()


@both
@all_sizes
@pytest.mark.parametrize("positions", [0, 3])
def test_an_empty_batch_gives_every_parameter_a_gradient_of_zeros(cls, patch_size, positions):
    patcher = make(cls, patch_size, positions=positions)
    images, t_emb = draw(patch_size, n=0)
    prediction = round_trip(patcher, images, t_emb)
    assert prediction.shape == images.shape
    prediction.sum().backward()
    for name, parameter in patcher.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


@both
@all_sizes
def test_images_of_a_batch_do_not_see_each_other(cls, patch_size):
    patcher = make(cls, patch_size)
    images, t_emb = draw(patch_size, n=3)
    together = round_trip(patcher, images, t_emb)
    alone = round_trip(patcher, images[1:2], t_emb[1:2])
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


@both
@all_sizes
@pytest.mark.parametrize("n", [0, 2])
def test_bfloat16_autocast(cls, patch_size, n):
    patcher = make(cls, patch_size)
    images, t_emb = draw(patch_size, n=n)
    expected = round_trip(patcher, images, t_emb)
    with torch.autocast("cpu", torch.bfloat16):
        prediction = round_trip(patcher, images, t_emb)
    torch.testing.assert_close(prediction.float(), expected, rtol=0.05, atol=0.05)
    prediction.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in patcher.parameters())


@all_sizes
def test_attention_in_the_unet_is_bidirectional(patch_size):
    """In a row of 8 patches, the convolutions do not reach from one end to the other."""
    patcher, grid = make(UNetPatcher, patch_size), (1, 8)
    images, t_emb = draw(patch_size, grid, n=1)
    first, last = images.clone(), images.clone()
    first[..., :patch_size] += 1
    last[..., -patch_size:] += 1

    def changes():
        """Effect of a changed first patch on the last vector, and of a changed last patch on the first vector."""
        patches = patcher.patchify(images, t_emb)[0]
        to_last = (patcher.patchify(first, t_emb)[0] - patches)[0, -1]
        to_first = (patcher.patchify(last, t_emb)[0] - patches)[0, 0]
        return to_last.abs().max(), to_first.abs().max()

    assert min(changes()) > 1e-4
    disable_attention(patcher)
    assert max(changes()) < 1e-6  # so the effect came from attention


@all_sizes
def test_every_skip_of_the_unet_is_used(patch_size):
    """The last one is h_in, the long skip around the Transformer."""
    patcher = make(UNetPatcher, patch_size)
    images, t_emb = draw(patch_size)
    patches, skips = patcher.patchify(images, t_emb)
    assert len(skips) == {1: 1, 2: 2, 4: 3, 8: 4}[patch_size]
    assert skips[-1].shape == (2, patcher.channels, 2, 3)
    prediction = patcher.unpatchify(patches, t_emb, skips, (2, 3))
    for i in range(len(skips)):
        without = [torch.zeros_like(skip) if i == j else skip for j, skip in enumerate(skips)]
        assert not torch.allclose(patcher.unpatchify(patches, t_emb, without, (2, 3)), prediction, atol=1e-3)


@all_sizes
def test_feature_maps_stay_channels_last(patch_size):
    patcher = make(UNetPatcher, patch_size)
    images, t_emb = draw(patch_size)
    patches, skips = patcher.patchify(images, t_emb)
    prediction = patcher.unpatchify(patches, t_emb, skips, (2, 3))
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in [*skips, prediction])
    assert all(p.is_contiguous() for p in patcher.parameters())  # FSDP2 only shards contiguous weights


def count(**sizes):
    with torch.device("meta"):
        return sum(p.numel() for p in UNetPatcher(**sizes).parameters())


@pytest.mark.parametrize("dim", [768, 1024, 1536, 2048, 4096])
def test_the_unet_of_the_paper_has_027b_parameters_at_every_width(dim):
    assert count(**PAPER, dim=dim, patch_size=2) == pytest.approx(0.27e9, rel=0.05)  # Table 7


@pytest.mark.parametrize("patch_size", [4, 8])
def test_the_unet_of_the_paper_has_027b_parameters_at_every_patch_size(patch_size):
    assert count(**PAPER, dim=1536, patch_size=patch_size) == pytest.approx(0.27e9, rel=0.1)  # Table 6


@all_sizes
def test_the_default_unet_is_small(patch_size):
    assert count(patch_size=patch_size) < 0.5e6


@pytest.mark.parametrize(
    ("channels", "head_dim", "expected"),
    [(1024, 64, [64, 64, 64, 64]), (64, 32, [8, 16, 32, 32]), (96, 32, [4, 8, 16, 32])],
)
def test_head_dim_divides_every_level(channels, head_dim, expected):
    with torch.device("meta"):
        patcher = UNetPatcher(patch_size=8, channels=channels, head_dim=head_dim)
    assert [level.attentions[0].head_dim for level in patcher.down_levels] == expected


@both
@pytest.mark.parametrize(("height", "width"), [(15, 16), (16, 15), (15, 15)])
def test_image_that_is_no_multiple_of_the_patch_size_is_an_error(cls, height, width):
    patcher = make(cls, patch_size=4)
    with pytest.raises(InputError, match=f"image {height}x{width} is not divisible by patch_size 4"):
        patcher.patchify(torch.zeros(1, 3, height, width), torch.zeros(1, DIM))


@pytest.mark.parametrize("patch_size", [0, 3, 16, -2])
def test_unet_with_another_patch_size_is_an_error(patch_size):
    with pytest.raises(InputError, match=f"patch_size {patch_size} is not one of 1, 2, 4, 8"):
        UNetPatcher(patch_size=patch_size)


def test_unet_with_channels_that_cannot_be_halved_is_an_error():
    with pytest.raises(InputError, match="channels 100 is not divisible by patch_size 8"):
        UNetPatcher(patch_size=8, channels=100)
