"""What talking costs, and what it saves: our loop beside llama.cpp's own.

    python benchmarks/talk.py overhead [FILE.gguf]
    python benchmarks/talk.py finite FILE.gguf

`overhead`: tokens a second of greedy decoding, 256 tokens, five runs of each in turn, through a
process of its own with the loop guard on, against llama.cpp's server in this process without
streaming. `finite`: the demo model's 200 held-out problems at temperature 0.6, top-p 0.95, seed 0,
once by llama.cpp's own sampler and once by ours with guard and thinking budget; the shares with
their 95 % intervals (Wilson).
"""

from __future__ import annotations

import re
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xllamacpp

from bitquilt import demo
from bitquilt.engines import Engine, Sampling, open_engine
from bitquilt.engines.llamacpp_backend import physical_cores
from bitquilt.talk.events import End
from bitquilt.talk.prompt import Prompt, compose
from bitquilt.talk.reasoning import boxed
from bitquilt.talk.sample import AnswerSettings
from bitquilt.talk.session import answer
from bitquilt.talk.votes import normalized

RUNS, LENGTH = 5, 256
MAX_TOKENS, THINK_BUDGET = 1024, 768
QUESTION = "Write a short story about the keeper of a lighthouse."


def main() -> None:
    """Print the figures of one of the two."""
    what, *files = sys.argv[1:]
    {"overhead": overhead, "finite": finite}[what](Path(files[0]))


def stock_server(path: Path) -> Any:
    """llama.cpp's server in this process, with the threads that ours has."""
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel = 2048, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = physical_cores()
    params.verbosity = -1
    return xllamacpp.Server(params)


def ask(server: Any, tokens: list[int], **settings: Any) -> dict[str, Any]:
    """One completion by llama.cpp itself."""
    fixed = {"prompt": tokens, "cache_prompt": True, "stream": False, "top_k": 0, "min_p": 0}
    reply: dict[str, Any] = server.handle_completions({**fixed, **settings})
    return reply


# ---------------------------------------------------------------------------- overhead


def overhead(path: Path) -> None:
    """Print tokens a second of both, and what ours loses."""
    server = stock_server(path)
    with open_engine(path) as engine:
        prompt = compose(engine, [{"role": "user", "content": QUESTION}])
        pairs = [(_theirs(server, prompt), _ours(engine, prompt)) for _ in range(RUNS + 1)][1:]
    for theirs, ours in pairs:
        print(f"llama.cpp {theirs:7.1f} tokens/s   bitquilt {ours:7.1f}   {1 - ours / theirs:+.1%}")
    median = statistics.median(1 - ours / theirs for theirs, ours in pairs)
    print(f"overhead, median of {RUNS}: {median:.1%}")


def _theirs(server: Any, prompt: Prompt) -> float:
    started = time.perf_counter()
    reply = ask(server, prompt.tokens, max_tokens=LENGTH, temperature=0, ignore_eos=True)
    assert reply["usage"]["completion_tokens"] == LENGTH, reply
    return LENGTH / (time.perf_counter() - started)


def _ours(engine: Engine, prompt: Prompt) -> float:
    started = time.perf_counter()
    *_, end = answer(engine, prompt, AnswerSettings(sampling=Sampling(), max_tokens=LENGTH))
    assert isinstance(end, End)
    assert (end.tokens, end.rollbacks) == (LENGTH, 0), f"{end}: ask for another text"
    return LENGTH / (time.perf_counter() - started)


# ------------------------------------------------------------------------------ finite


@dataclass(frozen=True)
class Outcome:
    """How one problem went."""

    answered: bool
    accurate: bool
    looping: bool
    truncated: bool


def finite(path: Path) -> None:
    """Print both columns of shares."""
    server = stock_server(path)
    found: dict[str, list[Outcome]] = {"llama.cpp": [], "bitquilt": []}
    with open_engine(path) as engine:
        for problem in demo.problems():
            prompt = compose(engine, [{"role": "user", "content": problem["question"]}])
            for name, (text, ended, cut) in {
                "llama.cpp": _bare(server, prompt),
                "bitquilt": _guarded(engine, prompt),
            }.items():
                found[name].append(judge(text, ended, cut, problem["answer"]))
    for share in ("answered", "accurate", "looping", "truncated"):
        columns = []
        for name, outcomes in found.items():
            count = sum(getattr(outcome, share) for outcome in outcomes)
            low, high = wilson(count, len(outcomes))
            columns.append(f"{name} {count / len(outcomes):6.1%} [{low:.1%}, {high:.1%}]")
        print(f"{share:10} {'   '.join(columns)}")


def wilson(hits: int, total: int) -> tuple[float, float]:
    """The 95 % score interval of a share."""
    z, share = statistics.NormalDist().inv_cdf(0.975), hits / total
    middle = share + z * z / (2 * total)
    half = z * (share * (1 - share) / total + z * z / (4 * total * total)) ** 0.5
    return (middle - half) / (1 + z * z / total), (middle + half) / (1 + z * z / total)


def _bare(server: Any, prompt: Prompt) -> tuple[str, bool, bool]:
    """What it said, whether it ended by itself, whether it was cut."""
    reply = ask(server, prompt.tokens, max_tokens=MAX_TOKENS, temperature=0.6, top_p=0.95, seed=0)
    choice = reply["choices"][0]
    cut = choice["finish_reason"] == "length"
    return choice["text"], not cut, cut


def _guarded(engine: Engine, prompt: Prompt) -> tuple[str, bool, bool]:
    sampling = replace(Sampling(), temperature=0.6, top_p=0.95)
    settings = AnswerSettings(sampling=sampling, max_tokens=MAX_TOKENS, think_budget=THINK_BUDGET)
    *_, end = answer(engine, prompt, settings)
    assert isinstance(end, End)
    ended = end.finish_reason == "stop" and end.closed is None
    return end.reasoning + end.answer, ended, end.finish_reason == "length"


def judge(text: str, ended: bool, cut: bool, truth: str) -> Outcome:
    """What a text amounts to; a loop by another rule than the guard's."""
    final = boxed(text)
    return Outcome(
        answered=bool(final),
        accurate=final is not None and normalized(final) == normalized(truth),
        looping=looping(text, ended),
        truncated=cut,
    )


def looping(text: str, ended: bool) -> bool:
    """Whether the end of a text is some passage at least three times over.

    Numbers aside, unless it ended by itself: long multiplications are three lines of one form.
    """
    end = (text if ended else re.sub(r"\d+", "#", text))[-600:]
    return any(len(match.group()) > 150 for match in re.finditer(r"(?s)(.{1,100}?)\1{2,}", end))


if __name__ == "__main__":
    main()
