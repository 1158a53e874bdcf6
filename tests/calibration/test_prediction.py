"""The predicted KL against sums written out, and against a measured one."""

import torch

from bitquilt.calibration.prediction import embedding_kl, matrix_kl


def test_matrix_kl_is_the_weighted_output_error():
    generator = torch.Generator().manual_seed(0)
    error = torch.randn(5, 8, generator=generator)
    x = torch.randn(40, 8, generator=generator)
    b = torch.rand(5, generator=generator)
    expected = 0.5 * ((x @ error.T).square().mean(0) * b).sum()
    torch.testing.assert_close(
        matrix_kl(error, x.T @ x / 40, b).sum(), expected.double(), rtol=1e-5, atol=0
    )


def test_head_kl_predicts_the_kl_of_a_small_error():
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(64, 16, generator=generator) * 0.3
    x = torch.randn(500, 16, generator=generator)
    error = 0.01 * torch.randn(64, 16, generator=generator)
    p = (x @ head.T).log_softmax(-1)
    q = (x @ (head + error).T).log_softmax(-1)
    measured = (p.exp() * (p - q)).sum(-1).mean()
    b = (p.exp() * (1 - p.exp())).mean(0)
    predicted = float(matrix_kl(error, x.T @ x / 500, b).sum())
    assert 0.8 < predicted / measured < 1.25


def test_a_diagonal_stands_for_a_hessian_without_the_rest():
    generator = torch.Generator().manual_seed(0)
    error, b = torch.randn(5, 8, generator=generator), torch.rand(5, generator=generator)
    own = torch.rand(8, generator=generator)
    torch.testing.assert_close(matrix_kl(error, own, b), matrix_kl(error, own.diag(), b))


def test_embedding_kl_counts_tokens_by_their_share():
    generator = torch.Generator().manual_seed(0)
    error = torch.randn(6, 4, generator=generator)
    shares = torch.tensor([0.5, 0.0, 0.25, 0.25, 0.0, 0.0])
    columns = torch.rand(4, generator=generator)
    expected = 0.5 * (shares[:, None] * error.square() * columns).sum()
    torch.testing.assert_close(
        embedding_kl(error, shares, columns).sum(), expected.double(), rtol=1e-5, atol=0
    )
