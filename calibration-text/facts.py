"""Records, tables, tool calls and talk made of The World Factbook (public domain)."""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sources import unit_hash

Messages = list[dict[str, str]]
PROSE = {
    "Background": ("What is the background of {}?", "Tell me about the history of {}.",
                   "Can you summarize how {} came to be what it is?"),
    "Economy - overview": ("How would you describe the economy of {}?",
                           "What does {} live on?", "Give me an overview of the economy of {}."),
    "Climate": ("What is the climate of {} like?", "What weather should I expect in {}?"),
    "Terrain": ("What does the land look like in {}?", "Describe the terrain of {}."),
    "Natural resources": ("Which natural resources does {} have?",
                          "What can be mined or grown in {}?"),
    "Legal system": ("What kind of legal system does {} have?",),
    "Languages": ("Which languages are spoken in {}?", "What do people in {} speak?"),
    "Religions": ("Which religions are there in {}?",),
    "Ethnic groups": ("Which ethnic groups live in {}?",),
    "Environment - current issues": ("Which environmental problems does {} have?",),
    "Disputes - international": ("Does {} have disputes with other countries?",
                                 "Which borders of {} are disputed?"),
    "Agriculture - products": ("What do farmers in {} produce?",),
    "Industries": ("Which industries does {} have?", "What is made in {}?"),
}  # fmt: skip
NUMBERS = {
    "Area": "Area", "Population": "Population", "Population growth rate": "Growth",
    "Birth rate": "Births", "Death rate": "Deaths", "Infant mortality rate": "Infant mortality",
    "Total fertility rate": "Fertility", "Coastline": "Coastline", "Airports": "Airports",
    "Median age": "Median age", "Unemployment rate": "Unemployment", "Urbanization": "Urban",
    "Life expectancy at birth": "Life expectancy", "Literacy": "Literacy", "Capital": "Capital",
    "Internet users": "Internet users", "Roadways": "Roads", "Railways": "Railways",
}  # fmt: skip


@dataclass(frozen=True)
class Country:
    name: str
    path: str
    record: dict[str, Any]

    def text(self, field: str) -> str:
        """A field's own words, or those of its first part."""
        for section in self.record.values():
            value = section.get(field) if isinstance(section, dict) else None
            while isinstance(value, dict) and value:
                value = value.get("text", next(iter(value.values())))
            if isinstance(value, str):
                return " ".join(value.replace("++", "").split())
        return ""

    def number(self, field: str) -> str:
        """The beginning of a field, short enough for a cell."""
        found = re.split(r" \(|; |, (?!\d{3})|note: ", self.text(field))[0]
        return found if len(found) < 30 else ""


def countries(root: Path) -> list[Country]:
    found = []
    for path in sorted(root.rglob("??.json")):
        record = json.loads(path.read_text())
        name = Country("", "", record).text("Country name") or ""
        short = record.get("Government", {}).get("Country name", {})
        short = short.get("conventional short form", {}).get("text") or name
        short = re.split(r" \(|; ", short)[0]
        if short and short != "none" and len(short) < 40:
            found.append(Country(short, str(path.relative_to(root)), record))
    return found


def prose(country: Country) -> str:
    paragraphs = []
    for title in PROSE:
        text = country.text(title)
        if len(text) > 60:
            paragraphs.append(f"{title}\n{text[0].upper()}{text[1:]}")
    return f"{country.name}\n\n" + "\n\n".join(paragraphs)


def as_json(country: Country) -> Iterator[str]:
    """Sections of a record, as they are or in one line each."""
    for number, (section, value) in enumerate(country.record.items()):
        indent = (2, None, 4)[number % 3]
        yield json.dumps(
            {"country": country.name, section: value}, ensure_ascii=False, indent=indent
        )


def table(rng: random.Random, chosen: list[Country]) -> str:
    """A table of some countries and columns, in Markdown, CSV, TSV or aligned text."""
    fields = rng.sample(sorted(NUMBERS), rng.randint(3, 5))
    rows = [[c.name, *(c.number(f) or "-" for f in fields)] for c in chosen]
    rows = [row for row in rows if row.count("-") < 2] or rows
    heads = ["Country", *(NUMBERS[f] for f in fields)]
    kind = rng.randrange(4)
    if kind == 0:
        lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
    elif kind == 1:
        lines = [",".join(f'"{x}"' if "," in x else x for x in row) for row in [heads, *rows]]
    elif kind == 2:
        lines = ["\t".join(row) for row in [heads, *rows]]
    else:
        widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
        lines = [
            "  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip()
            for row in [heads, ["-" * w for w in widths], *rows]
        ]
    title = f"{', '.join(heads[1:])} of {len(rows)} countries"
    return f"{title}\n\n" + "\n".join(lines)


def talk(rng: random.Random, country: Country) -> Messages:
    """Questions about one country, answered in the factbook's words."""
    fields = [f for f in PROSE if len(country.text(f)) > 15]
    messages: Messages = []
    if rng.random() < 0.3:
        messages.append({"role": "system", "content": rng.choice(SYSTEMS)})
    for turn, field in enumerate(rng.sample(fields, min(len(fields), rng.randint(2, 6)))):
        name = country.name if turn == 0 or rng.random() < 0.4 else "it"
        question = rng.choice(PROSE[field]).format(name)
        answer = country.text(field)
        begin = rng.choice(("", "", "Sure. ", "Here is what I know: ", "In short: "))
        messages += [
            {"role": "user", "content": question},
            {"role": "assistant", "content": f"{begin}{answer[0].upper()}{answer[1:]}"},
        ]
    if rng.random() < 0.3:
        messages += [
            {"role": "user", "content": rng.choice(("Thanks!", "Thank you.", "Great."))},
            {"role": "assistant", "content": rng.choice((
                "You're welcome! Is there anything else you would like to know?",
                "Gladly. Ask me about another country whenever you like.", "My pleasure."))},
        ]  # fmt: skip
    return messages


SYSTEMS = (
    "You are a helpful assistant.", "You answer questions about countries.",
    "You are a geography teacher. Answer briefly.", "Answer in plain words, without lists.",
    "You are an assistant in a travel agency. Be friendly and exact.",
)  # fmt: skip

TOOLS = {
    "get_country_fact": ("Look up a fact of a country.", {"country": "string", "field": "string"}),
    "compare_countries": ("Compare a figure of several countries.",
                          {"countries": "array", "field": "string"}),
    "list_neighbours": ("List the countries that border on one.", {"country": "string"}),
    "convert_units": ("Convert a length or an area.",
                      {"value": "number", "from": "string", "to": "string"}),
    "get_weather": ("Get the weather at a place.", {"place": "string", "unit": "string"}),
    "search_documents": ("Search the user's documents.", {"query": "string", "limit": "integer"}),
    "create_event": ("Put an event into the calendar.",
                     {"title": "string", "start": "string", "minutes": "integer"}),
    "send_message": ("Send a message to somebody.", {"to": "string", "body": "string"}),
    "run_sql": ("Run a query on the sales database.", {"query": "string"}),
    "get_exchange_rate": ("Get the rate of two currencies.", {"base": "string", "quote": "string"}),
    "read_file": ("Read a file of the project.", {"path": "string"}),
    "set_timer": ("Start a timer.", {"seconds": "integer", "label": "string"}),
}  # fmt: skip


def _described(name: str, in_full: bool) -> str:
    """A tool as JSON schema, or in a line; lines are short, as the same tools are told often."""
    what, arguments = TOOLS[name]
    if not in_full:
        return f"- {name}({', '.join(arguments)}): {what}"
    properties = {key: {"type": kind} for key, kind in arguments.items()}
    schema = {"type": "object", "properties": properties, "required": list(arguments)}
    return json.dumps({"name": name, "description": what, "parameters": schema}, indent=2)


def _use(
    rng: random.Random, country: Country, others: list[Country]
) -> tuple[str, str, Any, Any, str]:
    """A request, the tool, its arguments, its result, and the answer to the user."""
    fields = [f for f in NUMBERS if country.number(f)] or ["Capital"]
    field, kind = rng.choice(fields), rng.randrange(7)
    value = country.number(field) or "unknown"
    label = field.lower()
    if kind == 0:
        given = [c for c in [country, *others] if c.number(field)][:4]
        result = {c.name: c.number(field) for c in given}
        said = "; ".join(f"{name}: {x}" for name, x in result.items())
        return (
            f"How does {country.name} compare with {', '.join(c.name for c in others)} in {label}?",
            "compare_countries",
            {"countries": [c.name for c in [country, *others]], "field": field},
            result,
            f"Here is the {label} of each: {said}.",
        )
    if kind == 1:
        names = re.findall(r"([A-Z][A-Za-z .'-]+?) ([\d,.]+) km", country.text("Land boundaries"))
        result = [{"name": n, "border_km": float(k.replace(",", "").strip("."))} for n, k in names]
        said = ", ".join(f"{n} ({k} km)" for n, k in names) or "none that I can find"
        return (
            f"Which countries does {country.name} border on?",
            "list_neighbours",
            {"country": country.name},
            {"neighbours": result},
            f"Its neighbours: {said}.",
        )
    if kind == 2:
        km = rng.randint(3, 9000)
        miles = round(km / 1.609344, 1)
        return (
            f"What are {km} km in miles?",
            "convert_units",
            {"value": km, "from": "km", "to": "mi"},
            {"value": miles},
            f"{km} km are {miles} miles.",
        )
    if kind == 3:
        place = country.number("Capital") or country.name
        degrees, sky = (
            rng.randint(-10, 38),
            rng.choice(("clear", "cloudy", "light rain", "windy", "fog")),
        )
        return (
            f"What's the weather in {place} right now?",
            "get_weather",
            {"place": place, "unit": "celsius"},
            {"temperature": degrees, "conditions": sky, "humidity": rng.randint(20, 98)},
            f"In {place} it is {degrees} °C, {sky}.",
        )
    if kind == 4:
        title = rng.choice(
            ("Dentist", "Call with " + country.name + " office", "Stand-up", "Review")
        )
        day, hour = rng.randint(1, 28), rng.randint(8, 18)
        start = f"2024-{rng.randint(1, 12):02}-{day:02}T{hour:02}:00"
        length = rng.choice((15, 30, 45, 60, 90))
        return (
            f'Put "{title}" in my calendar for {start.replace("T", " at ")}, {length} minutes.',
            "create_event",
            {"title": title, "start": start, "minutes": length},
            {"id": f"evt_{rng.randrange(16**6):06x}", "status": "confirmed"},
            f'Done: "{title}" is in your calendar for {start.replace("T", " at ")}.',
        )
    if kind == 5:
        n, total = rng.randint(3, 400), rng.randint(1000, 99999)
        query = f"SELECT COUNT(*), SUM(total) FROM orders WHERE country = '{country.name}'"
        return (
            f"How many orders came from {country.name}, and what were they worth?",
            "run_sql",
            {"query": query},
            {"rows": [[n, total]], "columns": ["count", "sum"]},
            f"There were {n} orders worth {total:,} in all, {total / n:.2f} each on average.",
        )
    return (
        f"What is the {label} of {country.name}?",
        "get_country_fact",
        {"country": country.name, "field": field},
        {"field": field, "value": value},
        f"The {label} of {country.name}: {value}.",
    )


def tool_calls(rng: random.Random, country: Country, everyone: list[Country]) -> Messages:
    """A conversation with calls in JSON; results come as the user's messages, which all take."""
    uses = [_use(rng, country, rng.sample(everyone, 2)) for _ in range(rng.randint(1, 4))]
    names = {name for _, name, *_ in uses} | set(rng.sample(sorted(TOOLS), 2))
    indent, in_full = rng.choice((None, 2)), rng.random() < 0.5
    order = rng.sample(sorted(names), len(names))
    system = (
        "You can use these tools. To use one, answer with a JSON object that has\n"
        '"name" and "arguments", and nothing else.\n'
        + "\n".join(_described(name, in_full) for name in order)
    )
    messages = [{"role": "system", "content": system}]
    for asked, name, arguments, result, answer in uses:
        call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False, indent=indent)
        outcome = json.dumps(result, ensure_ascii=False)
        messages += [
            {"role": "user", "content": asked}, {"role": "assistant", "content": call},
            {"role": "user", "content": f"Result of {name}: {outcome}"},
            {"role": "assistant", "content": answer},
        ]  # fmt: skip
    return messages


def share_of(countries_: list[Country], use: str, low: float, high: float) -> list[Country]:
    """Each use has its own countries, so that no text is told twice."""
    return [c for c in countries_ if low <= unit_hash(f"{use}:{c.path}") < high]
