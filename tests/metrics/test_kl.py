"""KL, agreement and loss against a plain computation."""

import numpy as np
import torch
from torch.nn.functional import cross_entropy, kl_div

from bitquilt.metrics.kl import compare, logits, relative


def test_figures_equal_torch(monkeypatch):
    monkeypatch.setattr("bitquilt.models.blockwise.LOGIT_TOKENS", 5)
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


def test_small_divergences_have_no_bias():
    """A millinat over a large vocabulary: rounding does not add up (1e-6 if it does; 2e-8 is the
    worst of the processors seen).
    """
    generator = torch.Generator().manual_seed(0)
    teacher = 3 * torch.randn(256, 16_384, generator=generator)
    d = 0.05 * torch.randn(256, 16_384, generator=generator)

    def kl(teacher, d):
        return relative(teacher.softmax(-1), teacher.log_softmax(-1), d)[1].mean()

    exact = kl(teacher.double(), d.double())
    assert 5e-4 < exact < 5e-3
    assert abs(kl(teacher, d.clone()) - exact) < 5e-8
