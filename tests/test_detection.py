"""Beyond segmentation: Dense adapters train OWLv2 to find objects by text, with a loss of matched boxes."""

import pytest
import torch
from models import FAMILIES
from peft import PeftModel, get_peft_model
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F

from peft_vlsm import DenseAdapterConfig

OWLV2 = next(family for family in FAMILIES if family.name == "owlv2")
# Two queries an image: for each of its objects the query that names it, and its box (centre, width and height).
OBJECTS = (
    (torch.tensor([0, 1]), torch.tensor([[0.25, 0.25, 0.4, 0.3], [0.75, 0.7, 0.3, 0.5]])),
    (torch.tensor([1]), torch.tensor([[0.6, 0.3, 0.5, 0.5]])),
)


def tiny_detector() -> torch.nn.Module:
    return OWLV2.build()


def match(logits: torch.Tensor, boxes: torch.Tensor, queries: torch.Tensor, true_boxes: torch.Tensor):
    """The predictions of an image that stand for its objects, one each, at the least total cost."""
    cost = torch.cdist(boxes, true_boxes, p=1) - logits.sigmoid()[:, queries]
    rows, columns = linear_sum_assignment(cost.detach().numpy())
    return torch.from_numpy(rows), torch.from_numpy(columns)


def detection_loss(output) -> torch.Tensor:
    """Cross-entropy of every prediction for every query, and the distance of the matched boxes."""
    losses = []
    for logits, boxes, (queries, true_boxes) in zip(output.logits, output.pred_boxes, OBJECTS, strict=True):
        rows, columns = match(logits, boxes, queries, true_boxes)
        named = torch.zeros_like(logits)
        named[rows, queries[columns]] = 1.0
        classes = F.binary_cross_entropy_with_logits(logits, named, reduction="sum") / len(rows)
        losses.append(classes + 5 * F.l1_loss(boxes[rows], true_boxes[columns]))
    return torch.stack(losses).mean()


def train(model: torch.nn.Module, steps: int) -> list[float]:
    inputs = OWLV2.inputs(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = detection_loss(model(**inputs))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def trained():
    """A model after training, its adapters' first weights, and the losses."""
    torch.manual_seed(0)
    model = get_peft_model(tiny_detector(), DenseAdapterConfig(variant="VLC", adapter_dim=16))
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    return model, before, train(model, steps=120)


def test_a_match_takes_each_object_once():
    boxes = torch.tensor([[0.7, 0.7, 0.2, 0.2], [0.2, 0.2, 0.2, 0.2], [0.68, 0.7, 0.2, 0.2]])
    rows, columns = match(torch.zeros(3, 2), boxes, torch.tensor([0, 1]), boxes[[1, 0]])
    assert rows.tolist() == [0, 1] and columns.tolist() == [1, 0]
    logits = torch.tensor([[-9.0, -9.0], [0.0, 0.0], [0.0, 9.0]])
    rows, _ = match(logits, boxes, torch.tensor([1]), boxes[:1])
    assert rows.tolist() == [2], "the surer prediction outweighs a slightly better box"


def test_the_detection_loss_falls(trained):
    _, _, losses = trained
    assert losses[-1] < 0.2 * losses[0]


def test_every_adapter_tensor_moves_and_no_other(trained):
    model, before, _ = trained
    assert {letter for letter, places in model.peft_config["default"].resolved_modules.items() if places} == set("VLC")
    parameters = dict(model.named_parameters())
    unmoved = [name for name, weight in before.items() if torch.equal(weight, parameters[name])]
    assert before and not unmoved

    base = dict(tiny_detector().named_parameters())
    frozen = {name: p for name, p in parameters.items() if name not in before}
    assert len(frozen) == len(base)
    for name, parameter in frozen.items():
        first = base[name.removeprefix("base_model.model.").replace(".base_layer", "")]
        assert torch.equal(parameter, first)


def test_afterwards_the_objects_are_found_and_nothing_else(trained):
    """Above one half are the objects' own predictions for their own queries; the frozen model fires elsewhere too."""

    def found(model):
        with torch.no_grad():
            output = model(**OWLV2.inputs(model))
        right, distances = [], []
        for logits, boxes, (queries, true_boxes) in zip(output.logits, output.pred_boxes, OBJECTS, strict=True):
            rows, columns = match(logits, boxes, queries, true_boxes)
            named = torch.zeros_like(logits, dtype=torch.bool)
            named[rows, queries[columns]] = True
            right.append(torch.equal(logits > 0, named))
            distances.append((boxes[rows] - true_boxes[columns]).abs().mean())
        return all(right), torch.stack(distances).mean()

    model, _, _ = trained
    right, distance = found(model)
    with model.disable_adapter():
        frozen_right, frozen_distance = found(model)
    assert right and not frozen_right
    assert distance < 0.8 * frozen_distance


def test_a_saved_detector_gives_the_same_boxes(trained, tmp_path):
    model, _, _ = trained
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(tiny_detector(), str(tmp_path)).eval()
    inputs = OWLV2.inputs(model)
    with torch.no_grad():
        first, second = model.eval()(**inputs), loaded(**inputs)
    for name in OWLV2.outputs:
        torch.testing.assert_close(second[name], first[name], atol=0, rtol=0)
