"""Puzzles with long worked reasoning that is right by construction, as conversations.

Every solution says what it tries, finds that some tries fail, and checks what it arrived at.
"""

import itertools
import random
from collections.abc import Callable

Made = tuple[str, str]
NAMES = [
    "Ada",
    "Bela",
    "Chidi",
    "Dara",
    "Emeka",
    "Farah",
    "Goran",
    "Hana",
    "Ivo",
    "Jaya",
    "Kofi",
    "Lena",
    "Mina",
    "Nils",
    "Oumar",
    "Priya",
    "Quinn",
    "Rosa",
    "Sami",
    "Tova",
    "Umar",
    "Vera",
    "Wen",
    "Ximena",
    "Yuki",
    "Zoe",
]


def listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def primality(rng: random.Random) -> Made:
    n = rng.choice(
        [
            rng.randint(101, 1999) | 1,
            rng.choice([7, 11, 13, 17, 19, 23]) * rng.choice([29, 31, 37, 41, 43, 47, 53]),
        ]
    )
    root = int(n**0.5)
    lines = [
        f"I have to decide whether {n} is prime.\nIf it has a divisor other than 1 and itself,"
        " then it has a prime\ndivisor of at most the square root.\n"
        f"{root}² = {root**2} and {root + 1}² = {(root + 1) ** 2}, so primes up to {root} are "
        "enough."
    ]
    for p in (p for p in range(2, root + 1) if all(p % q for q in range(2, int(p**0.5) + 1))):
        if n % p == 0:
            lines.append(f"{p}: {p} × {n // p} = {n}. It divides.")
            lines.append(f"So {n} = {p} × {n // p} is not prime.")
            return f"Is {n} a prime number? Show how you find out.", "\n".join(lines)
        lines.append(f"{p}: {p} × {n // p} = {n // p * p}, remainder {n % p}. No.")
    lines.append(f"No prime up to {root} divides {n}, so {n} is prime.")
    return f"Is {n} a prime number? Show how you find out.", "\n".join(lines)


def greatest_divisor(rng: random.Random) -> Made:
    g = rng.randint(1, 60)
    a, b = sorted((g * rng.randint(10, 200), g * rng.randint(10, 200)), reverse=True)
    x, y, lines = a, b, ["I use Euclid's algorithm: replace the larger by the remainder."]
    while y:
        lines.append(f"{x} = {x // y} × {y} + {x % y}")
        x, y = y, x % y
    lines += [
        f"The last remainder that is not zero is {x}.",
        f"Check: {a} / {x} = {a // x} and {b} / {x} = {b // x}, whole numbers both.",
        f"Then the least common multiple is {a} × {b} / {x} = {a * b // x}.",
    ]
    return (
        f"Find the greatest common divisor and the least common multiple of {a} and {b}.",
        "\n".join(lines),
    )


def seating(rng: random.Random) -> Made:
    """Who sits where: the orders are tried one after the other against the clues."""
    people = rng.sample(NAMES, 4)
    truth = rng.sample(people, 4)
    clues: list[tuple[str, Callable[[tuple[str, ...]], bool]]] = []
    for a, b in itertools.permutations(people, 2):
        if truth.index(a) < truth.index(b):
            clues.append(
                (
                    f"{a} sits somewhere to the left of {b}",
                    lambda o, a=a, b=b: o.index(a) < o.index(b),
                )
            )
        if abs(truth.index(a) - truth.index(b)) == 1:
            clues.append(
                (
                    f"{a} and {b} are neighbours",
                    lambda o, a=a, b=b: abs(o.index(a) - o.index(b)) == 1,
                )
            )
        else:
            clues.append(
                (
                    f"{a} does not sit beside {b}",
                    lambda o, a=a, b=b: abs(o.index(a) - o.index(b)) != 1,
                )
            )
    rng.shuffle(clues)
    orders, chosen = list(itertools.permutations(sorted(people))), []
    left = orders
    for clue in clues:
        fewer = [o for o in left if clue[1](o)]
        if len(fewer) < len(left):
            chosen.append(clue)
            left = fewer
        if len(left) == 1:
            break
    if len(left) != 1:
        return seating(rng)
    lines = [f"Four people have {len(orders)} orders. I take the clues one at a time."]
    left = orders
    for clue, holds in chosen:
        left = [o for o in left if holds(o)]
        shown = "; ".join(", ".join(o) for o in left[:8])
        more = f" and {len(left) - 8} more" if len(left) > 8 else ""
        lines.append(f'"{clue}" leaves {len(left)}: {shown}{more}.')
    lines.append("Let me check the one that is left against every clue again.")
    lines += [f"- {clue}: {', '.join(left[0])}. Yes." for clue, _ in chosen]
    lines.append(f"From left to right: {listed(list(left[0]))}.")
    question = (
        f"{listed(sorted(people))} sit in a row. "
        + ". ".join(clue for clue, _ in chosen)
        + ". In which order do they sit, from left to right?"
    )
    return question, "\n".join(lines)


def knights(rng: random.Random) -> Made:
    people = rng.sample(NAMES, 3)
    says = []
    for person in people:
        other = rng.choice([p for p in people if p != person])
        says.append((person, other, rng.random() < 0.5))
    worlds = [
        dict(zip(people, kinds, strict=True))
        for kinds in itertools.product((True, False), repeat=3)
    ]
    lines = ["Each of the three is a knight or a knave, which makes eight cases.\nI try them all."]
    good = []
    word = {True: "knight", False: "knave"}
    for world in worlds:
        wrong = next(((p, o, k) for p, o, k in says if world[p] != (world[o] == k)), None)
        case = ", ".join(f"{p} a {word[kind]}" for p, kind in world.items())
        if wrong is None:
            lines.append(f"{case}: every statement fits.")
            good.append(world)
        else:
            p, o, k = wrong
            verb = "would tell the truth" if world[o] == k else "would lie"
            lines.append(
                f"{case}: {p} says that {o} is a {word[k]} and so {verb}, but is a "
                f"{word[world[p]]}. Not possible."
            )
    if len(good) == 1:
        lines.append(
            "Only one case is left: "
            + ", ".join(f"{p} is a {word[kind]}" for p, kind in good[0].items())
            + "."
        )
    elif good:
        lines.append(f"{len(good)} cases fit, so the statements alone do not decide it.")
    else:
        lines.append("No case fits, so no such three people can exist.")
    question = (
        "Knights always tell the truth and knaves always lie. "
        + " ".join(f'{p} says: "{o} is a {word[k]}."' for p, o, k in says)
        + " Who is what?"
    )
    return question, "\n".join(lines)


def sorting(rng: random.Random) -> Made:
    numbers = rng.sample(range(1, 100), rng.randint(5, 8))
    work, lines = list(numbers), [f"I sort {numbers} by insertion."]
    for i in range(1, len(work)):
        value, j = work[i], i
        while j and work[j - 1] > value:
            j -= 1
        bigger = work[j:i]
        work.insert(j, work.pop(i))
        moved = f"it goes before {bigger}" if bigger else "it is already in its place"
        lines.append(f"Step {i}: take {value}; {moved}. Now {work}.")
    lines.append(f"Every number is at least the one before it, so {work} is the answer.")
    lines.append(
        f"The median is {work[len(work) // 2]}."
        if len(work) % 2
        else f"The median is ({work[len(work) // 2 - 1]} + {work[len(work) // 2]}) / 2 = "
        f"{(work[len(work) // 2 - 1] + work[len(work) // 2]) / 2:g}."
    )
    return f"Sort {numbers} step by step and give the median.", "\n".join(lines)


def _minus(x: int, y: int) -> str:
    return f"{x} - {y}" if y >= 0 else f"{x} + {-y}"


def two_unknowns(rng: random.Random) -> Made:
    x, y = rng.randint(-9, 12), rng.randint(-9, 12)
    a, b, c, d = (rng.choice([2, 3, 4, 5, 6, 7, 8, 9]) for _ in range(4))
    if a * d == b * c:
        return two_unknowns(rng)
    e, f = a * x + b * y, c * x + d * y
    det, num = a * d - b * c, e * d - b * f
    lines = [
        f"(1) {a}x + {b}y = {e}", f"(2) {c}x + {d}y = {f}",
        f"To lose y, I multiply (1) by {d} and (2) by {b}:",
        f"{a * d}x + {b * d}y = {e * d}", f"{b * c}x + {b * d}y = {b * f}",
        f"The difference of the two is {det}x = {num}, so x = {num} / {det} = {x}.",
        f"Into (1): {a} × {x} + {b}y = {e}, so {b}y = {_minus(e, a * x)} = {e - a * x} "
        f"and y = {y}.",
        f"Check in (2): {c} × {x} + {d} × {y} = {_minus(c * x, -d * y)} = {f}. Right.",
        f"x = {x}, y = {y}",
    ]  # fmt: skip
    return f"Solve {a}x + {b}y = {e} and {c}x + {d}y = {f} for x and y.", "\n".join(lines)


def base(rng: random.Random) -> Made:
    n, b = rng.randint(50, 5000), rng.choice([2, 3, 5, 7, 8, 16])
    digits, m, lines = [], n, [f"I divide by {b} again and again and keep the remainders."]
    while m:
        lines.append(f"{m} = {b} × {m // b} + {m % b}")
        digits.append("0123456789ABCDEF"[m % b])
        m //= b
    text = "".join(reversed(digits))
    terms = " + ".join(f"{int(d, 16)} × {b**i}" for i, d in reversed(list(enumerate(digits))))
    lines += [f"The remainders from the last to the first: {text}.", f"Check: {terms} = {n}."]
    return f"Write {n} in base {b}.", "\n".join(lines)


def river(rng: random.Random) -> Made:
    """Measuring with two jugs, by breadth-first search; the states are told as they are found."""
    a, b = sorted(rng.sample(range(3, 12), 2))
    goal = rng.randint(1, b - 1)
    seen: dict[tuple[int, int], tuple[tuple[int, int], str] | None] = {(0, 0): None}
    queue, end = [(0, 0)], None
    for state in queue:
        x, y = state
        if goal in state:
            end = state
            break
        pour_xy, pour_yx = min(x, b - y), min(y, a - x)
        for new, how in (
            ((a, y), f"fill the {a}-litre jug"), ((x, b), f"fill the {b}-litre jug"),
            ((0, y), f"empty the {a}-litre jug"), ((x, 0), f"empty the {b}-litre jug"),
            ((x - pour_xy, y + pour_xy), f"pour the {a}-litre jug into the other"),
            ((x + pour_yx, y - pour_yx), f"pour the {b}-litre jug into the other"),
        ):  # fmt: skip
            if new not in seen:
                seen[new] = (state, how)
                queue.append(new)
    question = (
        f"You have a {a}-litre and a {b}-litre jug and a tap.\nHow do you measure {goal} litres?"
    )
    if end is None:
        return river(rng)
    path, state = [], end
    while (step := seen[state]) is not None:
        path.append((step[1], state))
        state = step[0]
    lines = [
        f"I write (small, large) for what is in the jugs\nand begin with (0, 0). I look for {goal} "
        "in either,\nand I never go back to a state that I have seen."
    ]
    found = sorted(seen, key=list(seen).index)[1:9]
    lines.append("States within reach at first: " + ", ".join(map(str, found)) + ".")
    lines.append("The shortest way:")
    lines += [f"{i}. {how}: {s}" for i, (how, s) in enumerate(reversed(path), 1)]
    lines.append(f"One of the jugs now holds {goal} litres, after {len(path)} steps.")
    return question, "\n".join(lines)


MAKERS = (primality, greatest_divisor, seating, knights, sorting, two_unknowns, base, river)
OPENERS = (
    "Let me think about this step by step.", "Okay, let me work through it.",
    "First I want to be clear about what is asked.", "Let me go slowly here.",
    "I will reason it out and check the result.",
)  # fmt: skip


def conversation(rng: random.Random) -> list[dict[str, str]]:
    messages = []
    for _ in range(rng.randint(1, 3)):
        question, solution = rng.choice(MAKERS)(rng)
        answer = f"{rng.choice(OPENERS)}\n\n{solution}"
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer},
        ]
    return messages
