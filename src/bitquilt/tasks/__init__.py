"""Problems for models to solve: answers, programs, multiple choice, and lm-evaluation-harness.

In: model files and names of tasks. Out: shares of right answers with intervals, models paired.
"""
