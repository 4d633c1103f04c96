"""A tour of Lightwell in one test: text to a trained model, and back to text. Read it first."""

import torch

import lightwell

SETTINGS = ["train.batch_size=8", "checkpoint.every=15", "train.eval_every=15"]


def test_tour(tmp_path):
    text = tmp_path / "notes.txt"
    lines = [f"Note {n}: the well is {n % 7} metres deep and the water is cold.\n\n" for n in range(4000)]
    text.write_text("".join(lines), encoding="utf-8")

    # Train a small model for a few steps. A run is a folder; everything about it is in there.
    run = lightwell.pretrain(text, steps=30, preset="nano", out=tmp_path / "run", settings=SETTINGS)
    losses = [loss for _, loss in run.metrics["loss"]]
    assert losses[-1] < losses[0] / 1.5

    # Held-out text, in bits per byte: what nobody has seen in training.
    assert run.evaluate().bits_per_byte < 6

    # The model is a plain torch module: (B, T) token ids to (B, T, V) logits.
    ids = torch.tensor([run.tokenizer.encode("Note 5: the well")])
    logits = run.model(ids)
    assert logits.shape == (*ids.shape, run.tokenizer.vocab_size)

    # Text again, the same for the same seed.
    written = run.generate("Note 6: the", max_new_tokens=20, seed=1)
    assert written == lightwell.load(tmp_path / "run").generate("Note 6: the", max_new_tokens=20, seed=1)

    # The inside: one neuron's gradient, factor by factor.
    x, w = torch.tensor(1.1), torch.tensor(2.2, requires_grad=True)
    with lightwell.trace() as t:
        loss = torch.nn.functional.binary_cross_entropy(torch.sigmoid(w * x), torch.tensor(1.0))
        loss.backward()
    assert abs(t.explain(w).value - w.grad.item()) < 1e-6
    assert "scalar" in str(lightwell.card(x))
