"""Necks: shapes, receptive fields and the flow between levels."""

import pytest
import torch
from torch import Tensor

from model import NECKS, build_detector
from model.layers import BatchNorm
from model.names import NECK_VARIANTS
from model.necks import PUBLISHED_NECKS
from model.necks.pafpn import ContextFusion, PublishedContextFusion
from model.necks.rfb import ReceptiveFieldBlock

WIDTHS = (16, 24, 32)


def maps(size: int, batch: int = 2) -> list[Tensor]:
    """Return random maps at strides 8, 16, 32 of an image of this size."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(batch, width, size >> shift, size >> shift, generator=generator)
        for width, shift in zip(WIDTHS, (3, 4, 5), strict=True)
    ]


def reach(output: Tensor, *inputs: Tensor) -> list[Tensor]:
    """Return the mask (h, w) of inputs that affect the middle cell of the output."""
    h, w = output.shape[-2:]
    gradients = torch.autograd.grad(output[0, :, h // 2, w // 2].sum(), inputs, retain_graph=True)
    return [gradient[0].abs().sum(0) > 0 for gradient in gradients]


@pytest.mark.parametrize("name", sorted(NECKS))
@pytest.mark.parametrize(("size", "levels"), [(64, 4), (320, 4), (512, 5), (576, 5)])
@pytest.mark.parametrize("inputs", [2, 3])
def test_neck_gives_one_map_per_level(name: str, size: int, levels: int, inputs: int) -> None:
    neck = NECKS[name](WIDTHS[:inputs], 8, levels).eval()
    with torch.no_grad():
        got = neck(maps(size, 1)[:inputs])
    sides = [-(-size // (8 << level)) for level in range(levels)]
    assert [tuple(x.shape) for x in got] == [(1, 8, side, side) for side in sides]


@pytest.mark.parametrize("name", sorted(PUBLISHED_NECKS))
@pytest.mark.parametrize(("size", "levels"), [(64, 4), (512, 5)])
@pytest.mark.parametrize("inputs", [2, 3])
def test_published_neck_gives_one_map_of_its_widths_per_level(
    name: str, size: int, levels: int, inputs: int
) -> None:
    neck = PUBLISHED_NECKS[name](WIDTHS[:inputs], 8, levels).eval()
    with torch.no_grad():
        got = neck(maps(size, 1)[:inputs])
    widths = [16, 16, 16, 8, 8][:levels] if name == "rfb" else [8] * levels
    sides = [-(-size // (8 << level)) for level in range(levels)]
    assert [tuple(x.shape) for x in got] == [
        (1, width, side, side) for width, side in zip(widths, sides, strict=True)
    ]
    assert list(neck.widths) == widths


@pytest.mark.parametrize(
    ("name", "millions"), [("fssd", 3.22), ("retinanet", 5.84), ("pafpn", 9.52), ("rfb", 6.40)]
)
def test_published_necks_have_the_parameters_of_the_authors(name: str, millions: float) -> None:
    """Parameters on VGG-16 at 320 px, read off the authors' code."""
    with torch.device("meta"):
        detector = build_detector("vgg16", name, 20, 320, neck_variant="published")
    assert round(sum(p.numel() for p in detector.neck.parameters()) / 1e6, 2) == millions


def test_published_laterals_have_norm_and_activation() -> None:
    neck = PUBLISHED_NECKS["retinanet"](WIDTHS, 16, 4)
    for lateral in neck.laterals:
        assert [type(layer) for layer in lateral] == [torch.nn.Conv2d, BatchNorm, torch.nn.ReLU]


def test_bottom_up_path_of_the_published_pafpn_precedes_its_output_layers() -> None:
    neck = PUBLISHED_NECKS["pafpn"](WIDTHS, 16, 4).eval()
    with torch.no_grad():
        before = neck(maps(128))
        neck.outputs[0][0].weight.zero_()
        after = neck(maps(128))
        neck.down[0][0].weight.zero_()
        last = neck(maps(128))
    assert [torch.equal(*pair) for pair in zip(before, after, strict=True)] == [False] + 3 * [True]
    assert [torch.equal(*pair) for pair in zip(after, last, strict=True)] == [True] + 3 * [False]


def test_further_levels_of_the_published_rfb_grow_from_stride_16() -> None:
    neck = PUBLISHED_NECKS["rfb"](WIDTHS, 16, 4).eval()
    fine, middle, coarse = maps(128)
    with torch.no_grad():
        before = neck([fine, middle, coarse])
        other = neck([fine + 1, middle, coarse + 1])
        moved = neck([fine, middle + 1, coarse])
    assert [torch.equal(*pair) for pair in zip(before, other, strict=True)] == [False] + 3 * [True]
    assert not any(torch.equal(*pair) for pair in zip(before, moved, strict=True))
    with pytest.raises(ValueError, match="grows from a second map"):
        PUBLISHED_NECKS["rfb"](WIDTHS[:1], 16, 4)


def test_necks_differ_in_parameters() -> None:
    parameters = {
        name: sum(p.numel() for p in neck(WIDTHS, 16, 4).parameters())
        for name, neck in NECKS.items()
    }
    assert len(set(parameters.values())) == len(NECKS)
    assert parameters["fssd"] < parameters["retinanet"] < parameters["pafpn"]


@pytest.mark.parametrize(
    ("name", "last", "reaches"),
    [
        ("fssd", "extra.2", False),
        ("rfb", "blocks.3", False),
        ("retinanet", "pyramid.extra.2", True),
        ("pafpn", "top_down.pyramid.extra.2", True),
    ],
)
def test_top_down_necks_pass_coarse_levels_to_fine_ones(
    name: str, last: str, reaches: bool
) -> None:
    """Change the layer that makes the last level and compare the first."""
    torch.manual_seed(0)
    neck = NECKS[name](WIDTHS, 16, 4).eval()
    with torch.no_grad():
        before = neck(maps(128))
        for parameter in neck.get_submodule(last).parameters():
            parameter.zero_()
        after = neck(maps(128))
    assert not torch.equal(before[-1], after[-1])
    assert torch.equal(before[0], after[0]) != reaches


def test_pafpn_passes_fine_levels_to_coarse_ones() -> None:
    neck = NECKS["pafpn"](WIDTHS, 16, 4).eval()
    with torch.no_grad():
        before = neck(maps(128))
        neck.down[0][0].weight.zero_()  # the first bottom-up step
        after = neck(maps(128))
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert same == [True, False, False, False]


@pytest.mark.parametrize("kind", [ContextFusion, PublishedContextFusion])
def test_context_fusion_sees_the_whole_image(kind: type[torch.nn.Module]) -> None:
    torch.manual_seed(0)
    fusion = kind(WIDTHS, 32).eval()
    inputs = [x.requires_grad_() for x in maps(256, 1)]
    assert reach(fusion(inputs), inputs[-1])[0].all()


def test_receptive_field_blocks_are_wide_and_sparse() -> None:
    torch.manual_seed(0)
    block = ReceptiveFieldBlock(32).eval()
    x = torch.randn(1, 32, 41, 41, requires_grad=True)
    field = reach(block(x), x)[0]
    rows, columns = field.nonzero(as_tuple=True)
    # Dilation 7 after kernels of 5: 7 + 2 cells from the centre each way.
    assert (20 - int(rows.min()), int(columns.max()) - 20) == (9, 9)
    assert int(field.sum()) < 19 * 19  # but not all of that square


@pytest.mark.parametrize("name", sorted(NECKS))
@pytest.mark.parametrize("variant", NECK_VARIANTS)
def test_one_image_of_the_smallest_size_trains(name: str, variant: str) -> None:
    """The last level has one value per channel, and thus no variance."""
    detector = build_detector("slim", name, 2, 64, neck_variant=variant).train()
    before = detector.neck.state_dict()
    running = {key: value.clone() for key, value in before.items() if "running" in key}
    pred = detector(torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8))
    assert pred.logits.isfinite().all()
    (pred.deltas.square().mean() + pred.logits.square().mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
    assert all(value.isfinite().all() for value in detector.state_dict().values())
    moved = {key for key, value in running.items() if not torch.equal(value, before[key])}
    assert moved and len(moved) < len(running)  # all but the norms of single values
