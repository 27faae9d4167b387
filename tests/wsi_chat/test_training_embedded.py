"""The recipe of the embedded checkpoint: tokenizer, batched passes, questions, and that a tiny model learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from wsi_chat.training.embedded import wording  # noqa: E402
from wsi_chat.training.embedded.architecture import (  # noqa: E402
    VISUAL_TOKENS,
    build_model,
    parameter_count,
    start_patch_filters,
)
from wsi_chat.training.embedded.batched import BatchedTower, run_language  # noqa: E402
from wsi_chat.training.embedded.evaluate import Speaker, parse_boxes  # noqa: E402
from wsi_chat.training.embedded.export import image_processor  # noqa: E402
from wsi_chat.training.embedded.fields import Bccd, Sample, turn  # noqa: E402
from wsi_chat.training.embedded.language import language_loss  # noqa: E402
from wsi_chat.training.embedded.optim import Optimisers, orthogonalise  # noqa: E402
from wsi_chat.training.embedded.packing import Packer  # noqa: E402
from wsi_chat.training.embedded.questions import ask, choice, ground, refer, screen  # noqa: E402
from wsi_chat.training.embedded.scores import auc, f1, matches, overlap  # noqa: E402
from wsi_chat.training.embedded.tokenizer import ORDINALS, build_tokenizer, token_id  # noqa: E402
from wsi_chat.training.embedded.warmup import (  # noqa: E402
    DenseHeads,
    anchor,
    dense_loss,
    dense_targets,
    see,
    soft_bins,
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer()


@pytest.fixture(scope="module")
def tiny(tokenizer: Any) -> Any:
    torch.manual_seed(0)
    return build_model(tokenizer, width=64, layers=3, depth=2, vision=64)


def field(*cells: tuple[str, float, float, float, float], domain: str = "cervix", seed: int = 0) -> Sample:
    """A grey field with a dark square per cell."""
    rng = np.random.default_rng(seed)
    image = rng.integers(200, 240, (256, 256, 3), dtype=np.uint8)
    for number, (_, x0, y0, x1, y1) in enumerate(cells):
        image[int(y0) : int(y1), int(x0) : int(x1)] = (60 + 40 * number, 90, 140)
    labels = tuple(cell[0] for cell in cells)
    boxes = np.array([cell[1:] for cell in cells], dtype=np.float32).reshape(-1, 4)
    return Sample(image, labels, boxes, any(name in wording.EPITHELIAL for name in labels), domain)


@pytest.mark.parametrize(
    "text",
    [
        "hsil 1 is located at <region>12 30 256 0</region>. hsil 2 is located at <region>1 2 3 4</region>.",
        "B.abnormal.",
        "héllo ✓ <region>88.97 117.96 176.63 286.95</region>",
        "Any text at all,\n\twith tabs; 1024 and 999.",
        "细胞 <|im_start|>",
    ],
)
def test_any_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_integers_classes_and_letters_are_single_tokens(tokenizer: Any) -> None:
    words = [str(n) for n in range(257)] + [f" {n}" for n in range(257)]
    for name in (*wording.CLASSES, wording.ABNORMAL):
        words += [name, f" {name}"]
    words += [*wording.LETTERS, "<region>", "</region>", wording.BOX_OPEN, wording.BOX_CLOSE, *ORDINALS]
    ids = [token_id(tokenizer, word) for word in words]
    assert len(set(ids)) == len(ids)


def test_a_text_of_two_tokens_has_no_single_id(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="expected 1"):
        token_id(tokenizer, "hsil 1")


def test_chat_template_puts_the_image_first_and_names_the_system(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "<image>Locate all hsil."}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tokenizer.encode(text.replace("<|image_pad|>", "<|image_pad|>" * VISUAL_TOKENS))
    assert ids == Packer(tokenizer).prompt("Locate all hsil.")


def test_processor_leaves_a_256_px_image_alone_and_patches_agree(tokenizer: Any, tiny: Any) -> None:
    sample = field(("hsil", 10, 20, 60, 70))
    stock = image_processor()(images=[sample.image], return_tensors="pt")
    assert stock["image_grid_thw"].tolist() == [[1, 16, 16]]
    assert torch.allclose(stock["pixel_values"], Speaker(tiny, tokenizer).pixels([sample.image]), atol=1e-5)


def test_batched_tower_and_packed_language_equal_the_stock_model(tokenizer: Any, tiny: Any) -> None:
    for merger in tiny.model.visual.deepstack_merger_list:
        torch.nn.init.normal_(merger.linear_fc2.weight, std=0.05)
    samples = [field(("hsil", 10, 20, 60, 70), ("lsil", 100, 100, 180, 190)), field(("scc", 30, 30, 99, 99), seed=1)]
    rng = np.random.default_rng(0)
    questions = [[ground(s, s.labels[0]), screen(s, rng), refer(s, 0, rng)] for s in samples]
    speaker = Speaker(tiny, tokenizer)
    with torch.no_grad():
        tokens, deepstack = see(BatchedTower(tiny.model.visual), samples)
        pack = speaker.packer.pack(questions)
        start = speaker.packer.visual_start
        embeds = tiny.model.language_model.embed_tokens(pack.ids)
        embeds = torch.cat([embeds[:, :start], tokens, embeds[:, start + VISUAL_TOKENS :]], dim=1)
        hidden, _, _ = run_language(
            tiny.model.language_model,
            embeds,
            pack.positions,
            pack.allowed,
            deepstack=deepstack,
            visual_start=start,
            watch=1,
        )
        # The second question of the second image, asked alone, must get the same logits.
        question = questions[1][1]
        answer = tokenizer.encode(question.answer)
        inputs = speaker.inputs([samples[1].image], [question.prompt])
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([answer])], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == tiny.config.image_token_id).long()
        expected = tiny(**inputs).logits[0, -1 - len(answer) :]
    first = len(tokenizer.encode(questions[1][0].answer)) + 1
    columns = pack.columns[pack.rows == 1][first : first + len(answer) + 1]
    found = hidden[1, columns] @ tiny.lm_head.weight.T
    assert torch.allclose(found, expected, atol=1e-4)


def test_answers_follow_the_grammar_in_reading_order(tokenizer: Any) -> None:
    cells = (("hsil", 200, 8, 230, 40), ("lsil", 5, 5, 50, 50), ("hsil", 20, 2, 60, 44), ("hsil", 9, 130, 40, 170))
    sample = field(*cells)
    question = ground(sample, "hsil")
    assert question.prompt == "Locate all hsil."
    assert question.answer == (
        "hsil 1 is located at <region>20 2 60 44</region>. hsil 2 is located at <region>200 8 230 40</region>. "
        "hsil 3 is located at <region>9 130 40 170</region>."
    )
    assert [piece.source for piece in question.pieces] == [anchor(sample.boxes[i]) for i in (2, 0, 3)]
    assert ground(sample, "scc").answer == "No scc is found."
    assert parse_boxes(ground(sample, "abnormal").answer)[0] == ("abnormal", [5.0, 5.0, 50.0, 50.0])
    ids = [token for piece in question.pieces for token in tokenizer.encode(piece.text)]
    assert ids == tokenizer.encode(question.answer)


def test_option_order_changes_and_the_letter_follows_the_truth() -> None:
    rng = np.random.default_rng(0)
    answers = {choice("Topic?", ("normal", "abnormal"), "abnormal", rng).answer for _ in range(20)}
    assert answers == {"A.abnormal.", "B.abnormal."}
    empty = field()
    assert screen(empty, rng, third=True).answer.endswith("no cells.")
    assert screen(empty, rng).answer.endswith(".normal.")


def test_coordinates_have_soft_targets_and_text_has_none(tokenizer: Any) -> None:
    pack = Packer(tokenizer).pack([[ground(field(("hsil", 20, 2, 60, 44)), "hsil")]])
    assert pack.value[pack.value >= 0].tolist() == [20, 2, 60, 44]
    assert pack.edge[pack.value >= 0].tolist() == [0, 1, 1, 1]
    bins = soft_bins(torch.tensor([20.0, 0.0]), 1.5)
    assert bins.argmax(-1).tolist() == [20, 0]
    assert torch.allclose(bins.sum(-1), torch.ones(2))


def test_dense_targets_mark_centres_and_covers() -> None:
    targets = dense_targets([field(("hsil", 0, 0, 64, 64), ("rbc", 130, 130, 160, 160)), field()])
    assert targets.centre[0].nonzero().flatten().tolist() == [9, 36]
    assert set(targets.cover[0].nonzero().flatten().tolist()) == {0, 1, 8, 9, 36}
    assert targets.boxes[0, 9].tolist() == [0, 0, 64, 64]
    assert not targets.centre[1].any()
    assert targets.abnormal.tolist() == [1.0, 0.0]
    assert targets.order[0, 9].tolist() == [1, 1]
    assert targets.order[0, 36].tolist() == [1, 0]


@pytest.mark.parametrize("which", range(8))
def test_turned_boxes_still_lie_on_their_cells(which: int) -> None:
    sample = field(("hsil", 10, 20, 60, 50))
    image, boxes = turn(sample.image, sample.boxes, which)
    x0, y0, x1, y1 = boxes[0].astype(int)
    assert (image[y0:y1, x0:x1] == (60, 90, 140)).all()
    assert (image == (60, 90, 140)).all(-1).sum() == (x1 - x0) * (y1 - y0)


def test_a_tiny_model_learns_one_field(tokenizer: Any) -> None:
    model = build_model(tokenizer, width=64, layers=3, depth=2, vision=64)
    samples = [field(("hsil", 20, 30, 90, 100), ("superficial", 150, 150, 220, 230))]
    patches = np.random.default_rng(0).normal(size=(300, 3, 16, 16)).astype(np.float32)
    start_patch_filters(model.model.visual, patches)
    heads, tower, packer = DenseHeads(model, tokenizer), BatchedTower(model.model.visual), Packer(tokenizer)
    optimisers = Optimisers([*model.named_parameters(), *heads.named_parameters()])
    questions = [ask(samples[0], np.random.default_rng(1))]
    losses = []
    for _ in range(6):
        tokens, deepstack = see(tower, samples)
        dense, _ = dense_loss(heads, tokens, dense_targets(samples), 1.5)
        pack = packer.pack(questions)
        order = dense_targets(samples).order
        result = language_loss(model, heads, pack, tokens, deepstack, packer.visual_start, order=order)
        loss = result.total + dense
        loss.backward()
        optimisers.step(1.0)
        losses.append(float(loss.detach()))
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.8 * losses[0]
    assert parameter_count(model) < 1_500_000


def test_orthogonalised_updates_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((2, 24, 60), (1, 60, 24)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert values.min() > 0.5
        assert values.max() < 1.5


def test_scores_of_known_cases() -> None:
    assert overlap((0, 0, 10, 10), (20, 20, 30, 30)) == 0.0
    assert overlap((0, 0, 10, 10), (0, 0, 10, 5)) == pytest.approx(0.5)
    truth = [("a", (0, 0, 10, 10)), ("b", (50, 50, 60, 60))]
    assert matches([("a", (0, 0, 10, 9)), ("a", (0, 0, 10, 10)), ("a", (50, 50, 60, 60))], truth) == 1
    assert f1(1, 3, 2) == pytest.approx(0.4)
    assert auc([0.1, 0.9, 0.5, 0.5], [False, True, True, False]) == pytest.approx(0.875)


def test_bccd_views_keep_boxes_on_cells(shared_data: Path) -> None:
    folder = shared_data / "bccd"
    if not folder.is_dir():
        pytest.skip(f"BCCD is not here: {folder} is absent")
    data = Bccd(folder, ("val",))
    assert len(data.images) == 87
    tiles = data.tiles()
    assert len(tiles) == 174
    rng = np.random.default_rng(0)
    for sample in [*tiles[:4], *(data.draw(rng) for _ in range(8))]:
        assert sample.image.shape == (256, 256, 3)
        assert set(sample.labels) <= set(wording.BLOOD)
        assert (sample.boxes >= 0).all()
        assert (sample.boxes <= 256).all()
    white = [(t, b) for t in tiles for name, b in zip(t.labels, t.boxes, strict=True) if name == "wbc"]
    inside = np.mean([t.image[int(b[1]) : int(b[3]), int(b[0]) : int(b[2])].mean() for t, b in white[:20]])
    assert inside < np.mean([t.image.mean() for t, _ in white[:20]]) - 10
