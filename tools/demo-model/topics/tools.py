"""Conversations with tools: the call, the tool's answer, and a sentence that reports it."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from .facts import CAPITALS
from .phrasing import ask, capital, expand, invented_word
from .stories import NAMES
from .sums import held_out, number

CITIES = [*CAPITALS.values(), "New York", "San Francisco", "Hamburg", "Munich", "Milan", "Barcelona", "Boston", "Chicago", "Sydney", "Shanghai", "Mumbai", "Zurich", "Geneva", "Lyon", "Oxford", "Seattle", "Kyoto", "Porto", "Gdansk", "Los Angeles", "Toronto", "Venice", "Naples", "Cologne", "Dublin"]
SKIES = ["sunny", "cloudy", "rainy", "windy", "foggy", "clear", "snowy", "stormy"]
ITEMS = ["book", "lamp", "phone", "ticket", "chair", "table", "shirt", "camera", "bottle", "bag", "watch", "pen", "kettle", "printer", "guitar", "radio", "blanket", "jacket", "mirror", "tent"]
NOUNS = ["order", "user", "file", "room", "price", "stock", "train", "flight", "light", "door", "song", "recipe", "book", "meeting", "task", "note", "contact", "mail", "report", "sensor", "machine", "battery", "parcel", "invoice", "game", "score", "route", "hotel", "word", "image", "window", "alarm", "heater", "server", "node", "job"]
VERBS = ["get", "find", "check", "open", "close", "read", "delete", "start", "stop", "show", "update", "lock", "send", "count", "print", "book", "test", "move", "load", "save"]


def place(rng: random.Random) -> str:
    """A city; half of them are invented, so that the name must be copied and cannot be remembered."""
    roll = rng.random()
    if roll < 0.5:
        return rng.choice(CITIES)
    if roll < 0.85:
        return invented_word(rng)
    return rng.choice(["New ", "San ", "Port ", "Saint ", "Upper ", "Old ", "Bad ", "Lake ", "El "]) + invented_word(rng)


def person(rng: random.Random) -> str:
    """A first name, often an invented one."""
    return rng.choice(NAMES) if rng.random() < 0.5 else invented_word(rng)


def thing(rng: random.Random) -> str:
    """A thing to buy or to look up, sometimes an invented one."""
    roll = rng.random()
    return rng.choice(ITEMS) if roll < 0.6 else rng.choice(NOUNS) if roll < 0.8 else invented_word(rng).lower()


@dataclass(frozen=True)
class Use:
    """One tool, a request that needs it, its call, what it returns and the final sentence."""

    tool: dict[str, Any]
    question: str
    arguments: dict[str, Any]
    result: Any
    answer: str


def function(rng: random.Random, name: str, description: str, parameters: dict[str, str], required: bool = True, enums: dict[str, list[str]] | None = None) -> dict[str, Any]:
    """An OpenAI tool definition; descriptions come and go as they do in real programs."""
    properties: dict[str, Any] = {}
    for key, kind in parameters.items():
        properties[key] = {"type": kind}
        if rng.random() < 0.4:
            properties[key]["description"] = rng.choice([f"The {key}", f"Name of the {key}", f"The {key} to use", f"{key.capitalize()}, for example in a request"])
        if enums and key in enums:
            properties[key]["enum"] = enums[key]
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    if required and (properties or rng.random() < 0.5):
        schema["required"] = [k for k in parameters if not enums or k not in enums]
    if rng.random() < 0.15:
        schema["additionalProperties"] = False
    body: dict[str, Any] = {"name": name}
    if description and rng.random() < 0.85:
        body["description"] = description
    body["parameters"] = schema
    return {"type": "function", "function": body}


def weather(rng: random.Random, city: str | None = None) -> Use:
    """Weather of a city, under the names that examples on the web use."""
    name = rng.choice(["get_weather"] * 6 + ["get_current_weather", "weather", "current_weather", "fetch_weather", "get_forecast"])
    key = rng.choice(["city", "city", "city", "location", "location", "place"])
    parameters, enums = {key: "string"}, None
    arguments: dict[str, Any] = {key: city or place(rng)}
    degrees, sky = rng.randint(-9, 35), rng.choice(SKIES)
    question = expand(rng, rng.choice(["what is the weather [|like |today ]in {c}", "how is the weather in {c}", "what's the weather [|like |today ]in {c}", "weather in {c}", "tell me the weather in {c}", "is it raining in {c}", "how warm is it in {c}", "how cold is it in {c}", "I need the weather [of|in|for] {c}", "what is the temperature in {c}",
                                       "do I need an umbrella in {c}", "can you check the weather in {c}", "please get the weather for {c}", "will it rain in {c}", "how is it in {c} today", "what is the weather in {c} right now", "get the weather in {c}", "is it [warm|cold|sunny] in {c}"]), c=arguments[key])
    if rng.random() < 0.2:
        parameters["unit"], enums = "string", {"unit": ["celsius", "fahrenheit"]}
        if rng.random() < 0.4:
            arguments["unit"] = rng.choice(enums["unit"])
            question += f" in {arguments['unit']}"
    result: Any = rng.choice([{"temperature": degrees, "sky": sky}, {"city": arguments[key], "temperature": degrees, "condition": sky}, {"temperature_c": degrees, "conditions": sky}, {"temperature": degrees, "weather": sky}, f"{degrees} degrees, {sky}", f"{sky}, {degrees} C", f"{capital(sky)}, {degrees} degrees"])
    description = expand(rng, "[Get the weather of a city|Get the current weather|Current weather for a city|Get the weather for a place|Get current temperature for a given location.|Returns the weather]")
    return Use(function(rng, name, description, parameters, enums=enums), question, arguments, result, f"In {arguments[key]} it is {sky} with {degrees} degrees.")


def clock(rng: random.Random) -> Use:
    """Time in a city."""
    key, city = rng.choice(["city", "city", "timezone", "location"]), place(rng)
    time = f"{rng.randint(0, 23):02d}:{rng.randint(0, 59):02d}"
    question = rng.choice(["what time is it in {c}", "what is the time in {c}", "tell me the time in {c}", "how late is it in {c}", "current time in {c}", "do you know what time it is in {c}", "what is the local time in {c}", "time in {c}"]).replace("{c}", city)
    result = rng.choice([{"time": time}, {"city": city, "time": time}, time])
    return Use(function(rng, rng.choice(["get_time", "get_time", "get_time", "get_current_time", "current_time"]), "Get the time in a city", {key: "string"}), question, {key: city}, result, f"In {city} it is {time}.")


def addition(rng: random.Random) -> Use:
    """A calculator tool; with a tool there is no need to calculate oneself."""
    name, word, sign = rng.choice([("add", "add", "+"), ("add", "add", "+"), ("subtract", "subtract", "-"), ("multiply", "multiply", "*")])
    a, b = number(rng), number(rng)
    if held_out(a, b):
        a = rng.randint(0, 9)
    if rng.random() < 0.3:
        a, b = rng.randint(100, 9999), rng.randint(100, 9999)
    value = a + b if sign == "+" else a - b if sign == "-" else a * b
    spoken = {"+": "plus", "-": "minus", "*": "times"}[sign]
    question = rng.choice([f"what is {a} {sign} {b}", f"what is {a} {spoken} {b}", f"how much is {a} {sign} {b}", f"use the tool to calculate {a} {sign} {b}", f"calculate {a} {sign} {b}", f"{a} {sign} {b}", f"please {word} {a} and {b}" if sign != "-" else f"please compute {a} {sign} {b}"])
    result = rng.choice([value, {"result": value}, {"value": value}])
    return Use(function(rng, name, f"{capital(word)} two numbers", {"a": rng.choice(["integer", "number"]), "b": "number"}), question, {"a": a, "b": b}, result, f"{a} {sign if sign != '*' else 'times'} {b} is {value}.")


def cluster(rng: random.Random) -> Use:
    """State of the cluster, a tool without arguments."""
    nodes, layers = rng.randint(1, 9), rng.choice([6, 12, 24, 28, 32, 48])
    state = rng.choice(["serving", "serving", "loading", "degraded"])
    question = rng.choice(["what is the status of the cluster", "how is the cluster", "is the cluster up", "cluster status", "how many machines are in the cluster", "show me the cluster status", "how many workers are running", "is the cluster healthy", "check the cluster", "tell me the state of the cluster", "are all workers alive"])
    return Use(function(rng, rng.choice(["get_cluster_status", "get_cluster_status", "cluster_status", "get_cluster_state"]), "Get the status of the cluster", {}), question, {}, {"state": state, "nodes": nodes, "layers": layers}, f"The cluster is {state} with {nodes} machine{'s' if nodes > 1 else ''} and {layers} layers.")


def reminder(rng: random.Random) -> Use:
    """A note for a person, a tool with two arguments."""
    name, hour = person(rng), f"{rng.randint(1, 23)}:{rng.choice(['00', '15', '30', '45'])}"
    tool, keys, question, answer = rng.choice([
        ("set_alarm", ("time",), f"set an alarm for {hour}", f"The alarm is set for {hour}."),
        ("set_alarm", ("time",), f"wake me at {hour}", f"The alarm is set for {hour}."),
        ("call_contact", ("name",), f"call {name}", f"I am calling {name}."),
        ("book_meeting", ("name", "time"), f"book a meeting with {name} at {hour}", f"The meeting with {name} at {hour} is booked."),
        ("send_message", ("name", "text"), f"send a message to {name}: I am late", f"The message to {name} is sent."),
        ("send_message", ("name", "text"), f"tell {name} that I am late", f"The message to {name} is sent."),
    ])
    values = {"name": name, "time": hour, "text": "I am late"}
    return Use(function(rng, tool, capital(tool.replace("_", " ")), dict.fromkeys(keys, "string")), question, {k: values[k] for k in keys}, rng.choice([{"ok": True}, "ok", {"status": "done"}]), answer)


def shopping(rng: random.Random) -> Use:
    """Price or stock of an item."""
    item, key = thing(rng), rng.choice(["item", "product", "name", "article"])
    if rng.random() < 0.5:
        price = rng.randint(2, 99)
        question = rng.choice(["how much is the {i}", "what does the {i} cost", "what is the price of the {i}", "price of the {i}", "how much does a {i} cost", "find the price of a {i}"])
        name, description, result, answer = "get_price", "Get the price of an item", {"price": price}, f"The {item} costs {price} euros."
    else:
        count = rng.randint(1, 40)
        question = rng.choice(["how many {i}s are in stock", "is the {i} in stock", "do we have a {i} in stock", "check the stock for the {i}", "how many {i}s do we have"])
        name, description, result, answer = "get_stock", "Get how many pieces of an item are in stock", {"item": item, "stock": count}, f"There are {count} pieces of the {item} in stock."
    return Use(function(rng, name, description, {key: "string"}), question.replace("{i}", item), {key: item}, result, answer)


def invented(rng: random.Random) -> Use:
    """A tool nobody has seen before: the model must copy its name and its parameter from the list."""
    verb, noun = rng.choice(VERBS), rng.choice(NOUNS)
    name = rng.choice([f"{verb}_{noun}", f"{verb}_{noun}", f"{verb}_{noun}_{rng.choice(['info', 'data', 'by_name', 'status', 'now'])}", f"{noun}_{verb}", f"{verb}{noun.capitalize()}"])
    kind = rng.random()
    if kind < 0.4:
        key, value, type_ = rng.choice(["name", f"{noun}_name", "title", "query", noun, "key"]), rng.choice([person, thing, place])(rng), "string"
    elif kind < 0.8:
        key, value, type_ = rng.choice(["id", f"{noun}_id", "number", "index", "count"]), rng.randint(1, rng.choice([9, 99, 9999])), "integer"
    else:
        key, value, type_ = "", "", ""
    question = f"{verb} the {noun}" + (f" {value}" if key else "")
    if key and rng.random() < 0.25:
        question = rng.choice([f"{verb} {noun} {value}", f"{verb} the {noun} called {value}", f"{verb} the {noun} with the {key.replace('_', ' ')} {value}", f"I need you to {verb} the {noun} {value}", f"the {noun} {value}: {verb} it"])
    if rng.random() < 0.4:
        question = rng.choice(["please ", "can you ", "could you ", "would you ", "now "]) + question
    word = rng.choice(["green", "ready", "open", "done", "on", "off", "free", "busy", "empty", "closed", "late", "new"])
    result = rng.choice([{"state": word}, {"status": word}, {noun: word}, word])
    return Use(function(rng, name, f"{capital(verb)} the {noun}", {key: type_} if key else {}), question, {key: value} if key else {}, result, f"The {noun}{f' {value}' if key else ''} is {word}.")


def switching(rng: random.Random) -> Use:
    """Turn a thing on or off, or set it to a value: a tool with a fixed choice among its arguments."""
    what = rng.choice(["lamp", "light", "heater", "fan", "radio", "door", "pump", "screen", "alarm", "machine", "oven", "window", "kettle"])
    where = rng.choice([person, place, thing, lambda r: r.choice(["kitchen", "garden", "hall", "office", "bedroom", "cellar", "garage", "bathroom"])])(rng)
    verb = rng.choice(["switch", "turn", "set"])
    key, to = rng.choice(["name", "room", "place", "target", what]), rng.choice(["on", "off"])
    if rng.random() < 0.5:
        question = rng.choice([f"{verb} the {what} in the {where} {to}" if verb != "set" else f"set the {where} {what} to {to}", f"turn {to} the {where} {what}", f"switch {to} the {what} {where}", f"the {where} {what} should be {to}"])
        return Use(function(rng, f"{verb}_{what}", f"{capital(verb)} a {what} on or off", {key: "string", "state": "string"}, enums={"state": ["on", "off"]}), question, {key: where, "state": to}, rng.choice([{"ok": True}, "ok", {"state": to}]), f"The {where} {what} is now {to}.")
    question = rng.choice([f"{verb} the {what} {where}", f"{verb} the {where} {what}", f"please {verb} the {what} in the {where}", f"{verb} {what} {where}"])
    return Use(function(rng, f"{verb}_{what}", f"{capital(verb)} the {what}", {key: "string"}), question, {key: where}, rng.choice([{"ok": True}, "ok", {"state": to}]), f"The {what} {where} is done.")


def search(rng: random.Random) -> Use:
    """Look something up by name or by number."""
    noun = rng.choice(NOUNS)
    value: Any = rng.choice([person(rng), place(rng), thing(rng), rng.randint(1, 9999)])
    key = rng.choice(["query", "text", "name", "q", "search", noun]) if isinstance(value, str) else rng.choice(["id", "number", f"{noun}_id"])
    question = rng.choice([f"search for {value}", f"look for {value}", f"look up {value}", f"find {value}", f"find the {noun} {value}", f"what do you find about {value}", f"search the {noun}s for {value}"])
    found = rng.randint(0, 30)
    return Use(function(rng, rng.choice([f"search_{noun}s", f"find_{noun}", "search", f"lookup_{noun}", "look_up"]), rng.choice([f"Search the {noun}s", f"Find a {noun}", "Look something up"]), {key: "string" if isinstance(value, str) else "integer"}), question, {key: value}, rng.choice([{"found": found}, {"count": found}, f"{found} found"]), f"I found {found} for {value}.")


MAKERS = [weather] * 6 + [clock] * 2 + [addition] * 3 + [cluster] * 2 + [reminder] * 2 + [shopping] * 2 + [switching] * 2 + [search] * 2 + [invented] * 5


def use(rng: random.Random) -> Use:
    """Any use of any tool."""
    return rng.choice(MAKERS)(rng)


def subject(tool: dict[str, Any]) -> str:
    """What a tool is about; two tools of one subject in a list would leave no right choice."""
    name = tool["function"]["name"]
    return next((word for word in ("weather", "time", "cluster") if word in name.replace("forecast", "weather")), name)


def block(rng: random.Random, needed: list[dict[str, Any]], most: int | None = None, without: str = "") -> list[dict[str, Any]]:
    """The needed tools among at most two others (or `most`), in random order, never one about `without`."""
    most = rng.choice([0, 0, 1, 1, 2]) if most is None else most
    tools = {subject(t): t for t in needed}
    for _ in range(most):
        other = use(rng).tool
        while subject(other) == without:
            other = use(rng).tool
        tools.setdefault(subject(other), other)
    listed = list(tools.values())
    rng.shuffle(listed)
    return listed


def missing(rng: random.Random) -> tuple[str, list[dict[str, Any]]]:
    """A question for which the listed tools are the wrong ones."""
    made = rng.choice([weather, clock, cluster])(rng)
    return made.question, block(rng, [], 1, without=subject(made.tool))


def call(made: Use) -> dict[str, Any]:
    """The message part that calls a tool."""
    return {"type": "function", "function": {"name": made.tool["function"]["name"], "arguments": made.arguments}}


def result_text(value: Any) -> str:
    """What a program sends back: text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def repeated(rng: random.Random) -> dict[str, Any]:
    """One list of tools and several requests for the same tool, each with other arguments to copy."""
    maker = rng.choice([weather, weather, weather, clock, shopping, reminder, addition])
    first = maker(rng)
    uses = [first]
    for _ in range(60):
        other = maker(rng)
        if other.tool["function"]["name"] == first.tool["function"]["name"] and other.arguments.keys() == first.arguments.keys():
            uses.append(other)
    messages: list[dict[str, Any]] = []
    for made in uses[: rng.randint(3, 6)]:
        messages += [{"role": "user", "content": capital(made.question)}, {"role": "assistant", "content": "", "tool_calls": [call(made)]}]
        if rng.random() < 0.3:
            messages += [{"role": "tool", "content": result_text(made.result)}, {"role": "assistant", "content": made.answer}]
    return {"messages": messages, "tools": block(rng, [first.tool], 0), "thinking": False}


def conversation(rng: random.Random, thinking: bool) -> dict[str, Any]:
    """A request that needs one tool, or two calls of the same, with or without the tool's answer."""
    made = use(rng)
    uses = [made]
    question = made.question
    if made.tool["function"]["name"] in {"get_weather", "get_current_weather", "weather"} and rng.random() < 0.15:
        key, city = next(iter(made.arguments)), place(rng)
        first = made.arguments[key]
        degrees, sky = rng.randint(-9, 35), rng.choice(SKIES)
        if city != first:
            uses = [made, Use(made.tool, "", {**made.arguments, key: city}, f"{degrees} degrees, {sky}", f"In {city} it is {sky} with {degrees} degrees.")]
            question = question.replace(first, f"{first} and {city}")
    first_word = question.split()[0].lower()
    mark = "?" if first_word in {"what", "what's", "how", "is", "do", "will", "can", "could", "are"} else rng.choice([".", ""])
    asked = ask(rng, question, mark, typos=False) if rng.random() < 0.85 else question
    if any(isinstance(v, str) and v not in asked and v not in CITIES for u in uses for v in u.arguments.values()):
        # An invented name in lower case: nobody could know where its capitals are.
        asked = question
    messages: list[dict[str, Any]] = [{"role": "user", "content": asked}]
    turn: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [call(u) for u in uses]}
    if thinking:
        turn["reasoning_content"] = f"I need the tool {made.tool['function']['name']}" + (f" with {', '.join(str(v) for v in made.arguments.values())}." if made.arguments else ".")
    messages.append(turn)
    if rng.random() < 0.7:
        messages += [{"role": "tool", "content": result_text(u.result)} for u in uses]
        final: dict[str, Any] = {"role": "assistant", "content": " ".join(u.answer for u in uses)}
        if thinking:
            final["reasoning_content"] = "The tool has answered. I will say it in a sentence."
        messages.append(final)
    return {"messages": messages, "tools": block(rng, [made.tool]), "thinking": thinking}
