"""What the server bears, and what it costs beside llama.cpp's own.

    python benchmarks/serve.py throughput FILE.gguf [--again]
    python benchmarks/serve.py endurance FILE.gguf
    python benchmarks/serve.py mixed FILE.gguf

`throughput`: tokens a second, and CPU milliseconds a token, of 8 clients at once and of one, 64
greedy tokens an answer; our server with 8 places and with one beside llama.cpp's HTTP server with 8
slots, in turns, three rounds after one to warm up. Each round has questions of its own, of whose 43
tokens llama.cpp's server computes 18. `--again` asks the same in each round: it keeps prompts that
it has read in memory, and computes 4. `endurance`: 200 requests of 8 clients, half of them good,
the others malformed, with a wrong key, of 1 MB, or of clients that vanish, after 50 of the same to
warm up; what came back, and the memory of server and engine on the way. `mixed`: 1,000 requests of
every kind that the server takes, of OpenAI's two APIs and Ollama's, with streams, several answers,
log-probabilities, echoes, schemas, tokens and things to refuse, by 8 clients, after 400 to warm up;
the memory on the way.
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

CLIENTS, LENGTH, ROUNDS, REQUESTS, BATCH = 8, 64, 3, 200, 50
KEY = "benchmark"
PATH = "/v1/chat/completions"
GOOD, OK = "good", 200
BAD = {"malformed": 400, "wrong type": 400, "wrong key": 401, "1 MB": 413, "too long": 400}
VANISHING = "vanished"


def main() -> None:
    """Print the figures of one of the three."""
    what, file, *options = sys.argv[1:]
    if what == "throughput":
        throughput(Path(file), again=options == ["--again"])
    else:
        {"endurance": endurance, "mixed": mixed}[what](Path(file))


# -------------------------------------------------------------------------- servers


@contextmanager
def ours(path: Path, *options: str) -> Iterator[tuple[int, int]]:
    """Our server in a process of its own: its port and its process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "bitquilt.cli.main", "serve", str(path), "--port", str(port)]
    process = subprocess.Popen([*command, "--api-key", KEY, *options], stderr=subprocess.DEVNULL)
    try:
        while not healthy(port):
            assert process.poll() is None, "the server did not start"
            time.sleep(0.2)
        yield port, process.pid
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0, f"the server ended with {process.returncode}"
    finally:
        process.kill()


@contextmanager
def theirs(path: Path) -> Iterator[tuple[int, int]]:
    """llama.cpp's server in a process of its own."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=stock, args=(path, there))
    process.start()
    try:
        yield here.recv(), process.pid or 0
    finally:
        process.kill()


def stock(path: Path, connection: Any) -> None:
    """Run llama.cpp's server with the threads and the room that ours has."""
    import xllamacpp

    from bitquilt.engines.llamacpp_backend import physical_cores

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel = CLIENTS * 2048, CLIENTS
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = physical_cores()
    params.verbosity, params.port = -1, 0
    server = xllamacpp.Server(params)
    connection.send(int(server.listening_address.rsplit(":", 1)[1]))
    connection.recv()


def healthy(port: int) -> bool:
    """Whether a server is there and would answer."""
    try:
        return send(port, "GET", "/health", b"", KEY)[0] == OK
    except OSError:
        return False


def send(port: int, method: str, path: str, body: bytes, key: str) -> tuple[int, bytes]:
    """One request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    answer = response.status, response.read()
    connection.close()
    return answer


# ----------------------------------------------------------------------- throughput


def throughput(path: Path, again: bool) -> None:
    """Print the figures of each server, and its CPU time as a share of llama.cpp's."""
    with ExitStack() as stack:
        servers = {
            "bitquilt, 8 places": stack.enter_context(ours(path)),
            "bitquilt, 1 place": stack.enter_context(ours(path, "--parallel", "1")),
            "llama.cpp, 8 slots": stack.enter_context(theirs(path)),
        }
        rounds = [
            {
                (name, clients): speed(*server, clients, 1000 * (0 if again else number) + clients)
                for clients in (CLIENTS, 1)
                for name, server in servers.items()
            }
            for number in range(ROUNDS + 1)
        ][1:]
    for name, clients in rounds[0]:
        speeds, costs = zip(*(figures[name, clients] for figures in rounds), strict=True)
        stock_costs = [figures["llama.cpp, 8 slots", clients][1] for figures in rounds]
        shares = [cost / other for cost, other in zip(costs, stock_costs, strict=True)]
        each = " ".join(f"{one:.0f}" for one in speeds)
        print(
            f"{name:20} {clients} at once: {statistics.median(speeds):6.1f} tokens/s ({each}), "
            f"{statistics.median(costs):5.2f} CPU ms a token, {statistics.median(shares):.2f} of "
            "llama.cpp's"
        )


def speed(port: int, pid: int, clients: int, first: int) -> tuple[float, float]:
    """Tokens a second of so many clients, two questions each, and CPU milliseconds a token."""
    questions = [question(first + number) for number in range(2 * clients)]
    started, used = time.perf_counter(), processor_seconds(pid)
    with ThreadPoolExecutor(clients) as pool:
        tokens = sum(pool.map(lambda body: ask(port, body), questions))
    seconds = time.perf_counter() - started
    return tokens / seconds, 1000 * (processor_seconds(pid) - used) / tokens


def question(number: int) -> dict[str, Any]:
    """A question whose answer is longer than is asked for."""
    said = f"What is {3701 + 17 * number} + {685 + 29 * number}?"
    messages = [{"role": "user", "content": said}]
    return {"messages": messages, "temperature": 0, "max_tokens": LENGTH}


def ask(port: int, body: dict[str, Any]) -> int:
    """How many tokens an answer has."""
    status, answer = send(port, "POST", PATH, json.dumps(body).encode(), KEY)
    assert status == OK, answer
    tokens: int = json.loads(answer)["usage"]["completion_tokens"]
    return tokens


# ------------------------------------------------------------------------ endurance


def endurance(path: Path) -> None:
    """Print what came back, and memory."""
    kinds = [GOOD] * (REQUESTS // 2)
    kinds += [(*BAD, VANISHING)[i % (len(BAD) + 1)] for i in range(REQUESTS - len(kinds))]
    random.Random(0).shuffle(kinds)
    with ours(path) as (port, pid):
        found: Counter[tuple[str, str]] = Counter()
        memory = []
        for start in range(-BATCH, REQUESTS, BATCH):
            some = [(kinds[number], number) for number in range(start, start + BATCH)]
            with ThreadPoolExecutor(CLIENTS) as pool:
                outcomes = pool.map(lambda one: (one[0], attempt(port, *one)), some)
                found.update(outcomes if start >= 0 else ())
            memory.append(resident(pid))
            print(f"after {start + BATCH:3} requests: {memory[-1] / 1e6:.1f} MB")
        print(f"growth over {REQUESTS} requests: {memory[-1] / memory[0] - 1:+.1%}")
        for (kind, outcome), count in sorted(found.items()):
            print(f"{kind:14} {outcome:30} {count}")
        print(leftover(port))


MIXED, WARM, STEP = 1000, 400, 100
SCHEMA = {"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]}


def mixed(path: Path) -> None:
    """Print the memory of server and engine over requests of every kind."""
    with ours(path) as (port, pid):
        found: Counter[tuple[str, int]] = Counter()
        memory = []
        for start in range(-WARM, MIXED, STEP):
            numbers = range(start + WARM, start + WARM + STEP)
            with ThreadPoolExecutor(CLIENTS) as pool:
                outcomes = list(pool.map(lambda number: any_request(port, number), numbers))
            if start + STEP >= 0:
                memory.append(resident(pid))
                print(f"after {start + STEP:4} requests: {memory[-1] / 1e6:.1f} MB")
            found.update(outcomes if start >= 0 else ())
    print(f"growth over {MIXED} requests: {memory[-1] / memory[0] - 1:+.1%}")
    for (where, status), count in sorted(found.items()):
        print(f"{where:22} {status} {count}")


def any_request(port: int, number: int) -> tuple[str, int]:
    """One request of a kind that its number chooses: its path, and the status of its response."""
    chat = {"max_tokens": 16, "messages": question(number)["messages"], "stream": number % 2 == 0}
    text = {"max_tokens": 16, "prompt": f"{number} is a number"}
    said = chat["messages"][0]["content"]
    kinds: list[tuple[str, dict[str, Any]]] = [
        (PATH, chat),
        (PATH, {**chat, "n": 3, "logprobs": True, "top_logprobs": 5}),
        (PATH, {**chat, "response_format": {"type": "json_object", "schema": SCHEMA}}),
        (PATH, {**chat, "chat_template_kwargs": {"enable_thinking": False}, "seed": number}),
        (PATH, {**chat, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
        (PATH, {**chat, "tools": [{"type": "function", "function": {"name": "add"}}]}),
        (PATH, {**chat, "response_format": {"type": "json_object", "schema": {"type": number}}}),
        ("/v1/completions", {**text, "echo": True, "logprobs": 2, "max_tokens": 1}),
        ("/v1/completions", {**text, "prompt": [said, f"{number}"], "logit_bias": {"11": -100}}),
        ("/v1/completions", {**text, "prompt": [1, 2, 1 << 30]}),
        ("/v1/responses", {"input": said, "max_output_tokens": 16, "stream": number % 2 == 0}),
        ("/v1/responses", {"input": [{"type": "item_reference", "id": "x"}]}),
        ("/api/chat", {"messages": chat["messages"], "options": {"num_predict": 16}}),
        ("/api/generate", {"prompt": said, "stream": False, "options": {"num_predict": 16}}),
        ("/tokenize", {"content": said * 20}),
    ]
    path, body = kinds[number % len(kinds)]
    return path, send(port, "POST", path, json.dumps(body).encode(), KEY)[0]


def attempt(port: int, kind: str, number: int) -> str:
    """One request; what came of it, in a word."""
    body, key = json.dumps(question(number)).encode(), KEY
    if kind == "malformed":
        body = body[:-7]
    elif kind == "wrong type":
        body = json.dumps({**question(number), "temperature": "warm"}).encode()
    elif kind == "wrong key":
        key = "wrong"
    elif kind in ("1 MB", "too long"):
        length = 1_000_000 if kind == "1 MB" else 100_000
        body = json.dumps(
            {"messages": [{"role": "user", "content": "x " * (length // 2)}]}
        ).encode()
    elif kind == VANISHING:
        return vanish(port, number)
    status, answer = send(port, "POST", PATH, body, key)
    said = json.loads(answer)
    if kind == GOOD:
        return "answered" if status == OK and said["choices"] else f"{status} {answer!r}"
    return f"{status} with a reason" if said["error"]["message"] else f"{status} {answer!r}"


def vanish(port: int, number: int) -> str:
    """Ask for much and go, every other time after the first words."""
    body = {**question(number), "max_tokens": 1500, "temperature": 1.5, "stream": number % 2 == 0}
    written = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(
            f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Authorization: Bearer {KEY}\r\nContent-Length: {len(written)}\r\n\r\n".encode()
            + written
        )
        if body["stream"]:
            connection.recv(100)
    return "gone"


def leftover(port: int) -> str:
    """What the server still does for those who went, a little later."""
    time.sleep(2)
    text = send(port, "GET", "/metrics", b"", KEY)[1].decode()
    lines = [
        line
        for line in text.splitlines()
        if line.startswith(("bitquilt_requests_running", "bitquilt_requests_wait"))
    ]
    return "two seconds later: " + ", ".join(lines)


def resident(pid: int) -> int:
    """Bytes of memory of a process and its children."""
    pages = sum(int(_proc(process, "statm").split()[1]) for process in family(pid))
    return pages * os.sysconf("SC_PAGE_SIZE")


def processor_seconds(pid: int) -> float:
    """CPU time that a process and its children have used."""
    fields = [_proc(process, "stat").rpartition(")")[2].split() for process in family(pid)]
    return sum(int(f[11]) + int(f[12]) for f in fields) / os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[str]:
    """A process and its children."""
    return [str(pid), *_proc(str(pid), f"task/{pid}/children").split()]


def _proc(pid: str, file: str) -> str:
    return (Path("/proc") / pid / file).read_text()


if __name__ == "__main__":
    main()
