"""The weights of the losses against the published formula, worked out by hand, and the sum that is trained on."""

from __future__ import annotations

import pytest
import torch

from kernel.training.losses import LOSS_GROUPS, loss_weight, weighted_loss

EPOCHS = 40
#: Of 40 epochs, over 42: classification falls by one each epoch, boxes and proposals by one every other.
WEIGHTS = {
    1: {"cls": 42 / 42, "bbox": 42 / 42, "rpn": 42 / 42, "mask": 1, "semantic": 1},
    2: {"cls": 41 / 42, "bbox": 41 / 42, "rpn": 41 / 42, "mask": 1, "semantic": 1},
    20: {"cls": 23 / 42, "bbox": 32 / 42, "rpn": 32 / 42, "mask": 1, "semantic": 1},
    40: {"cls": 3 / 42, "bbox": 22 / 42, "rpn": 22 / 42, "mask": 1, "semantic": 1},
}


def maskrcnn_losses() -> dict[str, torch.Tensor | list[torch.Tensor]]:
    """What mmdet returns: the RPN's a list per level, the mask's of one element, the accuracy in percent."""
    return {
        "loss_rpn_cls": [torch.tensor(0.1), torch.tensor(0.2), torch.tensor(0.3)],
        "loss_rpn_bbox": [torch.tensor(0.5), torch.tensor(0.0), torch.tensor(0.0)],
        "loss_cls": torch.tensor(1.0),
        "acc": torch.tensor([93.75]),
        "loss_bbox": torch.tensor(2.0),
        "loss_mask": torch.tensor([3.0]),
    }


def cascade_losses() -> dict[str, torch.Tensor | list[torch.Tensor]]:
    """Three stages that add up to the losses of `maskrcnn_losses`."""
    losses = {name: value for name, value in maskrcnn_losses().items() if "rpn" in name}
    for stage, share in enumerate((0.5, 0.375, 0.125)):
        losses |= {
            f"s{stage}.loss_cls": torch.tensor(1.0 * share),
            f"s{stage}.acc": torch.tensor([50.0]),
            f"s{stage}.loss_bbox": torch.tensor(2.0 * share),
            f"s{stage}.loss_mask": torch.tensor([3.0 * share]),
        }
    return losses


@pytest.mark.parametrize("epoch", WEIGHTS)
@pytest.mark.parametrize("group", sorted(set(LOSS_GROUPS.values())))
def test_weights_are_the_published_ones(group: str, epoch: int) -> None:
    assert loss_weight(group, epoch, EPOCHS) == pytest.approx(WEIGHTS[epoch][group], abs=1e-12)


@pytest.mark.parametrize("losses", [maskrcnn_losses(), cascade_losses()], ids=["maskrcnn", "cascade"])
@pytest.mark.parametrize(
    ("epoch", "expected"),
    [
        # Of rpn 0.6 + 0.5, cls 1, bbox 2, mask 3; the RPN's two terms have a weight each.
        (1, (0.6 + 0.5 + 1 + 2 + 3) / 5),
        (20, (32 * (0.6 + 0.5 + 2) + 23 * 1 + 42 * 3) / (3 * 32 + 23 + 42)),
        (40, (22 * (0.6 + 0.5 + 2) + 3 * 1 + 42 * 3) / (3 * 22 + 3 + 42)),
    ],
)
def test_the_sum_of_terms_is_weighted_and_divided_by_the_weights(losses: dict, epoch: int, expected: float) -> None:
    total, terms = weighted_loss(losses, epoch, EPOCHS)
    assert total.shape == ()
    assert total.item() == pytest.approx(expected)
    assert terms == pytest.approx(
        {"loss_rpn_cls": 0.6, "loss_rpn_bbox": 0.5, "loss_cls": 1, "loss_bbox": 2, "loss_mask": 3}
    )


def test_the_semantic_loss_of_htc_counts() -> None:
    losses = {**cascade_losses(), "loss_semantic_seg": torch.tensor(0.25)}
    total, terms = weighted_loss(losses, 20, EPOCHS)
    expected = (32 * (0.6 + 0.5 + 2) + 23 * 1 + 42 * (3 + 0.25)) / (3 * 32 + 23 + 2 * 42)
    assert total.item() == pytest.approx(expected)
    assert terms["loss_semantic_seg"] == 0.25


def test_only_the_terms_present_are_divided_by() -> None:
    total, terms = weighted_loss({"loss_mask": torch.tensor([3.0]), "loss_cls": torch.tensor(1.0)}, 20, EPOCHS)
    assert total.item() == pytest.approx((42 * 3 + 23 * 1) / (42 + 23))
    assert terms == {"loss_mask": 3, "loss_cls": 1}


def test_gradients_are_the_weights() -> None:
    cls, mask = torch.tensor(1.0, requires_grad=True), torch.tensor([3.0], requires_grad=True)
    levels = [torch.tensor(0.1, requires_grad=True), torch.tensor(0.2, requires_grad=True)]
    total, terms = weighted_loss({"s1.loss_cls": cls, "loss_mask": mask, "loss_rpn_bbox": levels}, 40, EPOCHS)
    total.backward()
    found = [float(value.grad) for value in (cls, mask, *levels) if value.grad is not None]
    assert found == pytest.approx([weight / (3 + 42 + 22) for weight in (3, 42, 22, 22)])
    assert all(isinstance(value, float) for value in terms.values())


@pytest.mark.parametrize("name", ["loss_iou", "s1.loss_iou", "loss", "s0.acc_mask"])
def test_an_unknown_loss_is_refused_by_name(name: str) -> None:
    with pytest.raises(KeyError, match=f"unknown loss '{name}'.*loss_semantic_seg"):
        weighted_loss({**maskrcnn_losses(), name: torch.tensor(1.0)}, 1, EPOCHS)
