"""KL, agreement and loss against a plain computation; intervals against known spread."""

import numpy as np
import torch
from torch.nn.functional import cross_entropy, kl_div

from bitquilt.divergence import compare, estimate, logits


def test_figures_equal_torch(monkeypatch):
    monkeypatch.setattr("bitquilt.divergence.LOGIT_TOKENS", 5)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 50, (2, 12), generator=generator)
    teacher, student = torch.randn(2, 2, 12, 8, generator=generator)
    head = torch.randn(50, 8, generator=generator)
    found = compare(tokens, teacher, head, logits(student, head * 1.1))
    p, q = (teacher @ head.T).log_softmax(-1)[:, :-1], (student @ head.T * 1.1)[:, :-1]
    expected = kl_div(q.log_softmax(-1), p, reduction="none", log_target=True).sum(-1)
    np.testing.assert_allclose(found.kl, expected, rtol=1e-4)
    np.testing.assert_array_equal(found.agreement, p.argmax(-1) == q.argmax(-1))
    loss = cross_entropy(q.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    np.testing.assert_allclose(found.loss.flatten(), loss, rtol=1e-4)


def test_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        window_means = generator.gamma(2.0, 0.5, size=(32, 1))
        found = estimate((window_means * np.ones((32, 4))).astype(np.float32), seed)
        hits += found.low <= 1.0 <= found.high
    assert 0.88 <= hits / 200 <= 0.99
