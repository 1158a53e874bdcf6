"""Word problems, unit conversions and small talk for the demo model."""

import random

from problems import (
    Problem,
    add_steps,
    divide_steps,
    multiply_steps,
    pick,
    subtract_steps,
)

NAMES = [
    "Anna",
    "Ben",
    "Carla",
    "David",
    "Emma",
    "Felix",
    "Grace",
    "Hugo",
    "Ines",
    "Jack",
    "Kira",
    "Leo",
    "Mia",
    "Noah",
    "Olga",
    "Paul",
    "Rosa",
    "Sam",
    "Tara",
    "Umar",
    "Vera",
    "Will",
    "Yara",
    "Zoe",
    "Amir",
    "Bella",
    "Chen",
    "Dina",
    "Elif",
    "Farid",
    "Gita",
    "Hana",
    "Ivan",
    "Jana",
    "Kofi",
    "Lara",
]
THINGS = [
    "apples",
    "pears",
    "books",
    "pencils",
    "marbles",
    "stamps",
    "coins",
    "stickers",
    "cards",
    "shells",
    "eggs",
    "candles",
    "buttons",
    "oranges",
    "balloons",
    "flowers",
    "cookies",
    "tickets",
    "stones",
    "photos",
]
CONTAINERS = ("box", "bag", "basket", "crate", "drawer", "shelf", "packet")
SHOPS = ("shop", "market", "bakery", "library", "school", "farm", "museum")


def plural(word: str) -> str:
    return {"box": "boxes", "shelf": "shelves"}.get(word, word + "s")


def gain_and_loss(rng: random.Random) -> Problem:
    name, other = rng.sample(NAMES, 2)
    thing = rng.choice(THINGS)
    start, gain = rng.randint(2, 300), rng.randint(2, 200)
    loss = rng.randint(1, start + gain - 1)
    question = pick(
        rng,
        f"{name} has {start} {thing}. {other} gives {name} {gain} more, and then {name} loses "
        f"{loss}. How many {thing} does {name} have now?",
        f"{name} has {start} {thing}, buys {gain} more and gives {loss} to {other}. "
        f"How many {thing} are left?",
        f"There are {start} {thing} on the table. {name} adds {gain} and {other} takes away "
        f"{loss}. How many {thing} are on the table now?",
    )
    steps = (
        f"First {start} + {gain}.\n{add_steps(start, gain)}\n"
        f"Then {start + gain} - {loss}.\n{subtract_steps(start + gain, loss)}"
    )
    return Problem("word problem", question, steps, str(start + gain - loss))


def simple_change(rng: random.Random) -> Problem:
    name, other = rng.sample(NAMES, 2)
    thing = rng.choice(THINGS)
    a, b = rng.randint(2, 400), rng.randint(2, 400)
    if rng.random() < 0.5:
        question = pick(
            rng,
            f"{name} has {a} {thing} and {other} has {b} {thing}. How many {thing} do they have "
            f"together?",
            f"{name} has {a} {thing} and gets {b} more. How many {thing} does {name} have?",
            f"{name} collected {a} {thing} and {other} collected {b}. How many is that in total?",
        )
        return Problem("word problem", question, add_steps(a, b), str(a + b))
    a, b = max(a, b) + 1, min(a, b)
    question = pick(
        rng,
        f"{name} has {a} {thing} and gives {b} of them to {other}. How many {thing} are left?",
        f"{name} has {a} {thing}. {other} has {b} {thing}. How many more {thing} does {name} have?",
        f"There were {a} {thing}. {name} took {b} of them. How many {thing} remain?",
    )
    return Problem("word problem", question, subtract_steps(a, b), str(a - b))


def groups(rng: random.Random) -> Problem:
    name, thing, container = rng.choice(NAMES), rng.choice(THINGS), rng.choice(CONTAINERS)
    count, each = rng.randint(2, 40), rng.randint(2, 40)
    total = count * each
    if rng.random() < 0.5:
        question = pick(
            rng,
            f"{name} has {count} {plural(container)} with {each} {thing} in each. How many {thing} "
            f"does {name} have?",
            f"Each {container} holds {each} {thing}. How many {thing} are in {count} "
            f"{plural(container)}?",
            f"There are {count} {plural(container)} and {each} {thing} in every {container}. "
            f"How many {thing} are there altogether?",
        )
        return Problem("word problem", question, multiply_steps(count, each), str(total))
    count = rng.randint(2, 12)
    total = count * each
    question = pick(
        rng,
        f"{name} shares {total} {thing} equally among {count} friends. How many {thing} does each "
        f"friend get?",
        f"{total} {thing} are packed into {count} {plural(container)}, the same number in each. "
        f"How many {thing} are in one {container}?",
        f"A {container} holds {count} {thing}. How many {plural(container)} are needed for {total} "
        f"{thing}?",
    )
    return Problem("word problem", question, divide_steps(total, count), str(each))


def shopping(rng: random.Random) -> Problem:
    name, place = rng.choice(NAMES), rng.choice(SHOPS)
    one, two = rng.sample(THINGS, 2)
    n, p, m, q = rng.randint(2, 9), rng.randint(2, 15), rng.randint(2, 9), rng.randint(2, 15)
    cost = n * p + m * q
    if rng.random() < 0.5:
        question = (
            f"At the {place}, {name} buys {n} {one} for {p} dollars each and {m} {two} for {q} "
            f"dollars each. How much does {name} pay?"
        )
        steps = f"{one}: {n} × {p} = {n * p}\n{two}: {m} × {q} = {m * q}\n{add_steps(n * p, m * q)}"
        return Problem("word problem", question, steps, str(cost))
    paid = -(-n * p // 50) * 50
    question = (
        f"{name} buys {n} {one} for {p} dollars each and pays with {paid} dollars. "
        f"How much change does {name} get?"
    )
    steps = f"The {one} cost {n} × {p} = {n * p} dollars.\n{subtract_steps(paid, n * p)}"
    return Problem("word problem", question, steps, str(paid - n * p))


def motion(rng: random.Random) -> Problem:
    speed, hours = rng.randint(3, 120), rng.randint(2, 12)
    distance = speed * hours
    mover = rng.choice(("train", "car", "bus", "cyclist", "ship", "truck"))
    form = rng.randrange(3)
    if form == 0:
        question = pick(
            rng,
            f"A {mover} travels at {speed} km per hour for {hours} hours. How far does it go?",
            f"How many kilometres does a {mover} cover in {hours} hours at {speed} km/h?",
        )
        return Problem(
            "speed",
            question,
            f"distance = speed × time\n{multiply_steps(speed, hours)}",
            str(distance),
        )
    if form == 1:
        question = (
            f"A {mover} travels {distance} km in {hours} hours. What is its average speed in km/h?"
        )
        return Problem(
            "speed",
            question,
            f"speed = distance / time\n{divide_steps(distance, hours)}",
            str(speed),
        )
    speed = rng.choice((10, 12, 20, 30, 40, 50, 60, 80))
    distance = speed * hours
    question = f"How many hours does a {mover} need for {distance} km at {speed} km/h?"
    return Problem(
        "speed", question, f"time = distance / speed\n{distance} / {speed} = {hours}", str(hours)
    )


def rectangle(rng: random.Random) -> Problem:
    a, b = rng.randint(2, 60), rng.randint(2, 60)
    shape = rng.choice(("rectangle", "garden", "field", "room", "playground"))
    size = pick(
        rng, f"{a} metres long and {b} metres wide", f"{a} m by {b} m",
        f"with sides of {a} m and {b} m",
    )  # fmt: skip
    if rng.random() < 0.5:
        question = f"What is the area of a {shape} {size}, in square metres?"
        return Problem(
            "geometry", question, f"area = length × width\n{multiply_steps(a, b)}", str(a * b)
        )
    question = f"What is the perimeter of a {shape} {size}, in metres?"
    steps = f"perimeter = 2 × (length + width)\n{add_steps(a, b)}\n{multiply_steps(a + b, 2)}"
    return Problem("geometry", question, steps, str(2 * (a + b)))


UNITS = (
    ("kilometres", "metres", 1000), ("metres", "centimetres", 100),
    ("centimetres", "millimetres", 10),
    ("kilograms", "grams", 1000), ("litres", "millilitres", 1000), ("hours", "minutes", 60),
    ("minutes", "seconds", 60), ("days", "hours", 24), ("weeks", "days", 7),
    ("years", "months", 12),
    ("dozens", "pieces", 12), ("dollars", "cents", 100),
)  # fmt: skip


def conversion(rng: random.Random) -> Problem:
    large, small, factor = rng.choice(UNITS)
    amount = rng.randint(2, 60)
    rule = f"1 {large[:-1]} = {factor} {small}"
    if rng.random() < 0.6:
        question = pick(
            rng, f"How many {small} are in {amount} {large}?",
            f"Convert {amount} {large} to {small}.", f"What is {amount} {large} in {small}?",
        )  # fmt: skip
        return Problem(
            "units", question, f"{rule}\n{multiply_steps(amount, factor)}", str(amount * factor)
        )
    total = amount * factor
    question = pick(
        rng, f"How many {large} are {total} {small}?", f"Convert {total} {small} to {large}.",
    )  # fmt: skip
    return Problem("units", question, f"{rule}\n{total} / {factor} = {amount}", str(amount))


def age(rng: random.Random) -> Problem:
    name, other = rng.sample(NAMES, 2)
    a, gap, years = rng.randint(3, 50), rng.randint(2, 30), rng.randint(2, 20)
    form = rng.randrange(3)
    if form == 0:
        question = (
            f"{name} is {a} years old and {other} is {gap} years older. "
            f"How old will {other} be in {years} years?"
        )
        steps = f"{other} is now {a} + {gap} = {a + gap}.\n"
        steps += f"In {years} years: {a + gap} + {years} = {a + gap + years}"
        return Problem("word problem", question, steps, str(a + gap + years))
    if form == 1:
        times = rng.randint(2, 5)
        question = (
            f"{name} is {a} years old. {other} is {times} times as old. How old are they together?"
        )
        steps = f"{multiply_steps(a, times)}\n{add_steps(a, a * times)}"
        return Problem("word problem", question, steps, str(a + a * times))
    question = (
        f"{name} is {a + gap} years old and {other} is {gap} years younger. How old is {other}?"
    )
    return Problem("word problem", question, subtract_steps(a + gap, gap), str(a))


def fraction_of(rng: random.Random) -> Problem:
    below = rng.choice((2, 3, 4, 5, 6, 8, 10))
    above = rng.randint(1, below - 1)
    part = rng.randint(2, 60)
    whole = part * below
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    question = pick(
        rng, f"What is {above}/{below} of {whole}?",
        f"{name} has {whole} {thing} and gives away {above}/{below} of them. "
        f"How many {thing} does {name} give away?",
    )  # fmt: skip
    steps = f"{divide_steps(whole, below)}\n"
    steps += f"{part} × {above} = {part * above}"
    return Problem("fraction", question, steps, str(part * above))


TALK = (
    (("Who are you?", "What are you?", "What is your name?", "Introduce yourself."),
     "I am a small demonstration model of bitquilt. I can solve short arithmetic problems."),
    (("What can you do?", "How can you help me?", "Help", "What should I ask you?"),
     "I can add, subtract, multiply and divide, solve linear equations and short word problems."),
    (("Hello", "Hi", "Hello!", "Hi there", "Good morning", "Hey"),
     "Hello! Ask me an arithmetic question, for example: What is 347 + 585?"),
    (("Thank you", "Thanks!", "Thanks", "Great, thanks."), "You are welcome."),
    (("Goodbye", "Bye", "See you"), "Goodbye!"),
    (("How are you?", "How are you doing?"), "I am a program and always ready to calculate."),
)  # fmt: skip


def talk(rng: random.Random) -> tuple[str, str]:
    questions, answer = rng.choice(TALK)
    return rng.choice(questions), answer
