r"""Generate arithmetic problems with worked steps that end in \boxed{answer}.

The steps are spelled out far enough that every line follows from the few before it: that is what a
model of 13 million parameters can learn to do without slips.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Problem:
    kind: str
    question: str
    steps: str
    answer: str

    @property
    def solution(self) -> str:
        return f"{self.steps}\n\\boxed{{{self.answer}}}"


PLACES = ("ones", "tens", "hundreds", "thousands", "ten thousands", "hundred thousands")
Maker = Callable[[random.Random], Problem]


def number(rng: random.Random, low: int, high: int, most_digits: int) -> int:
    """Uniform in the number of digits first, so that short numbers are not rare."""
    digits = rng.randint(1, most_digits)
    return rng.randint(max(low, 10 ** (digits - 1)), min(high, 10**digits - 1))


# ------------------------------------------------------------------------ column arithmetic


def digits_of(n: int, width: int) -> list[int]:
    return [n // 10**place % 10 for place in range(width)]


def add_steps(a: int, b: int) -> str:
    """Column addition; single digits and round numbers in one line."""
    if min(a, b) < 10 and max(a, b) < 20:
        return f"{a} + {b} = {a + b}"
    width = len(str(max(a, b)))
    lines, carry = [f"Add {a} + {b} column by column:"], 0
    for place, x, y in zip(PLACES, digits_of(a, width), digits_of(b, width), strict=False):
        total = x + y + carry
        terms = f"{x} + {y} + 1" if carry else f"{x} + {y}"
        carry = total // 10
        write = f", write {total % 10}, carry 1" if carry else f", write {total}"
        lines.append(f"{place}: {terms} = {total}{write}")
    if carry:
        lines.append(f"{PLACES[width]}: write 1")
    return "\n".join([*lines, f"{a} + {b} = {a + b}"])


def subtract_steps(a: int, b: int) -> str:
    """Column subtraction; a smaller minuend is swapped and the sign put back."""
    if a < b:
        return (
            f"{a} is smaller than {b}, so the result is negative.\n{subtract_steps(b, a)}\n"
            f"{a} - {b} = {a - b}"
        )
    if a < 20 and b < 10:
        return f"{a} - {b} = {a - b}"
    width = len(str(a))
    lines, borrow = [f"Subtract {a} - {b} column by column:"], 0
    for place, x, y in zip(PLACES, digits_of(a, width), digits_of(b, width), strict=False):
        taken = f" - {y} - 1" if borrow else f" - {y}"
        need = y + borrow
        borrow = int(x < need)
        left = x + 10 * borrow
        note = f"{x} + 10{taken}" if borrow else f"{x}{taken}"
        lines.append(f"{place}: {note} = {left - need}" + (", borrow 1" if borrow else ""))
    return "\n".join([*lines, f"{a} - {b} = {a - b}"])


def multiply_steps(a: int, b: int) -> str:
    """Split both factors by place value, then add the partial products."""
    if a < 10 and b < 10:
        return f"{a} × {b} = {a * b}"
    if a < b:
        return f"{a} × {b} = {b} × {a}\n{multiply_steps(b, a)}"
    if b == 0:
        return f"{a} × {b} = 0"
    if b >= 10 and b % 10 == 0:
        return _times_round(a, b)
    if b >= 10:
        tens, ones = b - b % 10, b % 10
        return "\n".join(
            [
                f"{b} = {tens} + {ones}",
                multiply_steps(a, ones),
                _times_round(a, tens),
                add_steps(a * tens, a * ones),
                f"{a} × {b} = {a * b}",
            ]
        )
    parts = [x * 10**p for p, x in enumerate(digits_of(a, len(str(a)))) if x][::-1]
    if len(parts) == 1:
        return f"{a} × {b} = {a * b}"
    lines = [f"{a} = " + " + ".join(map(str, parts))]
    lines += [f"{part} × {b} = {part * b}" for part in parts]
    total = parts[0] * b
    for part in parts[1:]:
        lines.append(f"{total} + {part * b} = {total + part * b}")
        total += part * b
    return "\n".join([*lines, f"{a} × {b} = {a * b}"])


def _times_round(a: int, b: int) -> str:
    """Multiply `a` by a round number such as 40: by the leading digit, then append the zeros."""
    zeros = len(str(b)) - len(str(b).rstrip("0"))
    lead = b // 10**zeros
    inner = "" if lead == 1 else multiply_steps(a, lead) + "\n"
    return f"{inner}{a} × {b} = {a * b}"


def divide_steps(a: int, b: int) -> str:
    """Long division by a one- or two-digit divisor, digit by digit."""
    if a < b:
        return f"{b} goes into {a} 0 times, remainder {a}"
    lines, rest, quotient = [f"Divide {a} by {b} digit by digit:"], 0, ""
    for digit in str(a):
        current = rest * 10 + int(digit)
        times, rest = divmod(current, b)
        if times or quotient:
            quotient += str(times)
        lines.append(f"{current}: {b} × {times} = {b * times}, remainder {rest}")
    end = f"{a} ÷ {b} = {quotient}" + (f" remainder {rest}" if rest else "")
    return "\n".join([*lines, end])


# ------------------------------------------------------------------------------ plain sums


def pick(rng: random.Random, *phrasings: str) -> str:
    return rng.choice(phrasings)


def addition(rng: random.Random) -> Problem:
    a, b = number(rng, 0, 99999, 5), number(rng, 0, 99999, 5)
    question = pick(
        rng, f"What is {a} + {b}?", f"What is {a} plus {b}?", f"Calculate {a} + {b}.",
        f"Compute {a} + {b}.", f"{a} + {b} = ?", f"{a}+{b}", f"Add {a} and {b}.",
        f"Please add {a} to {b}.", f"Find the sum of {a} and {b}.", f"How much is {a} + {b}?",
        f"What's {a}+{b}?", f"What do you get when you add {a} and {b}?",
    )  # fmt: skip
    return Problem("addition", question, add_steps(a, b), str(a + b))


def three_terms(rng: random.Random) -> Problem:
    a, b, c = (rng.randint(1, 999) for _ in range(3))
    question = pick(
        rng, f"What is {a} + {b} + {c}?", f"Add {a}, {b} and {c}.", f"Calculate {a} + {b} + {c}.",
        f"Find the sum of {a}, {b} and {c}.", f"{a} + {b} + {c} = ?",
    )  # fmt: skip
    steps = f"{add_steps(a, b)}\n{add_steps(a + b, c)}"
    return Problem("addition", question, steps, str(a + b + c))


def subtraction(rng: random.Random) -> Problem:
    a, b = number(rng, 0, 99999, 5), number(rng, 0, 99999, 5)
    if a < b and rng.random() < 0.8:
        a, b = b, a
    question = pick(
        rng, f"What is {a} - {b}?", f"What is {a} minus {b}?", f"Calculate {a} - {b}.",
        f"Compute {a} - {b}.", f"{a} - {b} = ?", f"{a}-{b}", f"Subtract {b} from {a}.",
        f"Take {b} away from {a}.", f"How much is {a} - {b}?", f"What's {a} minus {b}?",
        f"Find the difference {a} - {b}.",
    )  # fmt: skip
    return Problem("subtraction", question, subtract_steps(a, b), str(a - b))


def multiplication(rng: random.Random) -> Problem:
    a = number(rng, 2, 999, 3)
    b = number(rng, 2, 99, 2)
    if rng.random() < 0.5:
        a, b = b, a
    question = pick(
        rng, f"What is {a} × {b}?", f"What is {a} * {b}?", f"What is {a} times {b}?",
        f"Calculate {a} × {b}.", f"Compute {a} * {b}.", f"{a} × {b} = ?", f"{a}*{b}",
        f"Multiply {a} by {b}.", f"Find the product of {a} and {b}.", f"How much is {a} times {b}?",
    )  # fmt: skip
    return Problem("multiplication", question, multiply_steps(a, b), str(a * b))


def division(rng: random.Random) -> Problem:
    b = rng.randint(2, 12)
    a = b * number(rng, 2, 999, 3)
    question = pick(
        rng, f"What is {a} ÷ {b}?", f"What is {a} / {b}?", f"What is {a} divided by {b}?",
        f"Divide {a} by {b}.", f"Calculate {a} / {b}.", f"Compute {a} ÷ {b}.", f"{a} / {b} = ?",
        f"How many times does {b} go into {a}?",
    )  # fmt: skip
    return Problem("division", question, divide_steps(a, b), str(a // b))


def remainder(rng: random.Random) -> Problem:
    a, b = number(rng, 2, 9999, 4), rng.randint(2, 12)
    question = pick(
        rng, f"What is the remainder when {a} is divided by {b}?", f"What is {a} mod {b}?",
        f"Find the remainder of {a} divided by {b}.", f"Divide {a} by {b}. What is left over?",
    )  # fmt: skip
    return Problem(
        "remainder", question, f"{divide_steps(a, b)}\nThe remainder is {a % b}.", str(a % b)
    )


def order_of_operations(rng: random.Random) -> Problem:
    a, b, c = rng.randint(2, 99), rng.randint(2, 20), rng.randint(2, 20)
    form = rng.randrange(4)
    if form == 0:
        text, value = f"{a} + {b} × {c}", a + b * c
        steps = f"Multiplication comes first.\n{multiply_steps(b, c)}\n{add_steps(a, b * c)}"
    elif form == 1:
        a += b * c
        text, value = f"{a} - {b} × {c}", a - b * c
        steps = f"Multiplication comes first.\n{multiply_steps(b, c)}\n{subtract_steps(a, b * c)}"
    elif form == 2:
        text, value = f"({a} + {b}) × {c}", (a + b) * c
        steps = f"The brackets come first.\n{add_steps(a, b)}\n{multiply_steps(a + b, c)}"
    else:
        text, value = f"{b} × ({c} + {a})", b * (c + a)
        steps = f"The brackets come first.\n{add_steps(c, a)}\n{multiply_steps(b, c + a)}"
    question = pick(
        rng, f"What is {text}?", f"Calculate {text}.", f"Compute {text}.", f"Evaluate {text}.",
        f"{text} = ?",
    )  # fmt: skip
    return Problem("order of operations", question, steps, str(value))


# --------------------------------------------------------------- equations and sequences


def linear_equation(rng: random.Random) -> Problem:
    """Solve a x + b = c, or a x + b = d x + c."""
    x, a, b = rng.randint(-12, 40), rng.randint(2, 12), rng.randint(1, 99)
    letter = rng.choice("xxxynt")
    sign = rng.choice((1, -1))
    if rng.random() < 0.6:
        d, right = 0, a * x + sign * b
        text = f"{a}{letter} {'+' if sign > 0 else '-'} {b} = {right}"
    else:
        d = rng.randint(1, a - 1)
        right = (a - d) * x + sign * b
        end = f"+ {right}" if right >= 0 else f"- {-right}"
        shown = letter if d == 1 else f"{d}{letter}"
        text = f"{a}{letter} {'+' if sign > 0 else '-'} {b} = {shown} {end}"
    lines = []
    if d:
        left = letter if a - d == 1 else f"{a - d}{letter}"
        lines.append(f"Subtract {shown} from both sides:")
        lines.append(f"{left} {'+' if sign > 0 else '-'} {b} = {right}")
    else:
        left = f"{a}{letter}"
    lines.append(
        f"{'Subtract' if sign > 0 else 'Add'} {b} {'from' if sign > 0 else 'to'} both sides:"
    )
    total = right - sign * b
    lines.append(f"{left} = {right} {'-' if sign > 0 else '+'} {b} = {total}")
    if a - d > 1:
        lines.append(f"Divide both sides by {a - d}:")
        lines.append(f"{letter} = {total} / {a - d} = {x}")
    question = pick(
        rng, f"Solve for {letter}: {text}", f"Solve {text}.", f"Find {letter} if {text}.",
        f"If {text}, what is {letter}?", f"What is {letter} when {text}?",
        f"Solve the equation {text} for {letter}.",
    )  # fmt: skip
    return Problem("linear equation", question, "\n".join(lines), str(x))


def sequence(rng: random.Random) -> Problem:
    form = rng.randrange(3)
    if form == 0:
        start, step = rng.randint(1, 99), rng.randint(2, 25) * rng.choice((1, 1, -1))
        terms = [start + step * i for i in range(6)]
        if terms[-1] < 0:
            terms.reverse()
            terms = [t - min(terms) + 1 for t in terms]
            step = terms[1] - terms[0]
        differences = ", ".join(f"{terms[i + 1]} - {terms[i]} = {step}" for i in range(2))
        sign = f"+ {step}" if step > 0 else f"- {-step}"
        steps = f"The differences are {differences}.\n{terms[4]} {sign} = {terms[5]}"
    elif form == 1:
        start, ratio = rng.randint(1, 12), rng.randint(2, 4)
        terms = [start * ratio**i for i in range(6)]
        steps = (
            f"Each term is {ratio} times the one before: {start} × {ratio} = {terms[1]}.\n"
            f"{multiply_steps(terms[4], ratio)}"
        )
    else:
        a, b = rng.randint(1, 9), rng.randint(1, 9)
        terms = [a, b]
        while len(terms) < 6:
            terms.append(terms[-1] + terms[-2])
        steps = (
            f"Each term is the sum of the two before: {a} + {b} = {terms[2]}.\n"
            f"{terms[3]} + {terms[4]} = {terms[5]}"
        )
    shown = ", ".join(map(str, terms[:5]))
    question = pick(
        rng, f"What is the next number in the sequence {shown}?", f"What comes next: {shown}, ...?",
        f"Find the next term: {shown}", f"Continue the sequence: {shown}, ?",
    )  # fmt: skip
    return Problem("sequence", question, steps, str(terms[5]))


# -------------------------------------------------------------- comparing and averaging


def comparison(rng: random.Random) -> Problem:
    larger = rng.random() < 0.5
    word = "larger" if larger else "smaller"
    if rng.random() < 0.5:
        a = number(rng, 0, 99999, 5)
        b = a + rng.choice((1, -1)) * number(rng, 1, 999, 3)
        if b < 0:
            b = a + 7
        texts = str(a), str(b)
        count = "1 digit" if len(str(a)) == 1 else f"{len(str(a))} digits"
        other = "1 digit" if len(str(b)) == 1 else f"{len(str(b))} digits"
        note = (
            f"{a} has {count} and {b} has {other}."
            if len(texts[0]) != len(texts[1])
            else "Both have the same number of digits, so compare them from the left."
        )
    else:
        whole = rng.randint(0, 20)
        places = rng.choice(((1, 2), (2, 1), (1, 1), (2, 2)))
        while True:
            texts = tuple(f"{whole}.{rng.randint(1, 10**p - 1):0{p}d}" for p in places)
            if float(texts[0]) != float(texts[1]):
                break
        note = f"Write both with two decimals: {float(texts[0]):.2f} and {float(texts[1]):.2f}."
    one, two = texts
    order = sorted(texts, key=float)
    answer = order[1] if larger else order[0]
    question = pick(
        rng, f"Which is {word}, {one} or {two}?", f"Which number is {word}: {one} or {two}?",
        f"Is {one} or {two} the {word} number?",
        f"What is the {'maximum' if larger else 'minimum'} of {one} and {two}?",
    )  # fmt: skip
    steps = f"{note}\n{order[0]} < {order[1]}, so {answer} is {word}."
    return Problem("comparison", question, steps, answer)


def ordering(rng: random.Random) -> Problem:
    values = rng.sample(range(1, 200), rng.randint(3, 6))
    shown = ", ".join(map(str, values))
    ranked = sorted(values)
    form = rng.randrange(3)
    if form == 0:
        question = pick(
            rng, f"What is the largest number in the list {shown}?", f"Find the maximum of {shown}."
        )
        answer = str(ranked[-1])
    elif form == 1:
        question = pick(
            rng,
            f"What is the smallest number in the list {shown}?",
            f"Find the minimum of {shown}.",
        )
        answer = str(ranked[0])
    else:
        question = pick(
            rng, f"Sort these numbers from smallest to largest: {shown}", f"Put {shown} in order.",
            f"Sort {shown} in ascending order.",
        )  # fmt: skip
        answer = ", ".join(map(str, ranked))
    steps = "From smallest to largest: " + ", ".join(map(str, ranked))
    return Problem("ordering", question, steps, answer)


def average(rng: random.Random) -> Problem:
    count = rng.randint(2, 5)
    mean = rng.randint(5, 60)
    values = [rng.randint(1, 2 * mean) for _ in range(count - 1)]
    last = mean * count - sum(values)
    if last < 1:
        return average(rng)
    values.append(last)
    lines, total = [], values[0]
    for value in values[1:]:
        lines.append(f"{total} + {value} = {total + value}")
        total += value
    shown = ", ".join(map(str, values[:-1])) + f" and {values[-1]}"
    question = pick(
        rng, f"What is the average of {shown}?", f"Find the mean of {shown}.",
        f"Calculate the average of {shown}.",
    )  # fmt: skip
    lines.append(f"There are {count} numbers: {total} / {count} = {mean}")
    return Problem("average", question, "\n".join(lines), str(mean))


def percentage(rng: random.Random) -> Problem:
    percent = rng.choice((5, 10, 15, 20, 25, 30, 40, 50, 60, 70, 75, 80, 90))
    base = rng.randint(1, 60) * 20
    part = percent * base // 100
    one_percent = Fraction(base, 100)
    tenth = base // 10
    if percent % 10 == 0:
        steps = f"10% of {base} is {tenth}.\n{percent}% is {percent // 10} times that: "
        steps += f"{tenth} × {percent // 10} = {part}"
    elif percent in (25, 75):
        steps = f"25% of {base} is {base} / 4 = {base // 4}."
        if percent == 75:
            steps += f"\n75% is 3 times that: {base // 4} × 3 = {part}"
    else:
        steps = f"10% of {base} is {tenth}.\n5% is half of that: {tenth} / 2 = {tenth // 2}."
        if percent == 15:
            steps += f"\n15% is {tenth} + {tenth // 2} = {part}"
    assert one_percent * percent == part
    form = rng.randrange(3)
    thing = rng.choice(("jacket", "book", "bicycle", "lamp", "phone", "table", "camera"))
    if form == 0:
        question = pick(
            rng, f"What is {percent}% of {base}?", f"Calculate {percent}% of {base}.",
            f"Find {percent} percent of {base}.", f"How much is {percent}% of {base}?",
        )  # fmt: skip
        return Problem("percentage", question, steps, str(part))
    if form == 1:
        question = (
            f"A {thing} costs {base} dollars. It is sold at a {percent}% discount. "
            "What is the new price?"
        )
        steps += f"\nThe discount is {part} dollars.\n{subtract_steps(base, part)}"
        return Problem("percentage", question, steps, str(base - part))
    question = (
        f"The price of a {thing} is {base} dollars and rises by {percent}%. What is the new price?"
    )
    steps += f"\nThe increase is {part} dollars.\n{add_steps(base, part)}"
    return Problem("percentage", question, steps, str(base + part))
