"""How far two models are apart on a text: KL divergence per token, its relatives, their intervals.

In: the full-precision model (the teacher) on windows of tokens, and another model's logits. Out:
figures per token, and means with 95 % intervals over documents.
"""
