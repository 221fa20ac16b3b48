"""Simple facts: capitals, opposites, days, months, colours, animals, numbers."""

from __future__ import annotations

import random

from .phrasing import Exchange, ask, expand
from .wording import begin

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon", "Austria": "Vienna", "Switzerland": "Bern", "Belgium": "Brussels", "the Netherlands": "Amsterdam",
    "Denmark": "Copenhagen", "Sweden": "Stockholm", "Norway": "Oslo", "Finland": "Helsinki", "Iceland": "Reykjavik", "Ireland": "Dublin", "England": "London", "Scotland": "Edinburgh", "Poland": "Warsaw",
    "Hungary": "Budapest", "Greece": "Athens", "Turkey": "Ankara", "Russia": "Moscow", "Ukraine": "Kyiv", "Romania": "Bucharest", "Bulgaria": "Sofia", "Croatia": "Zagreb", "Egypt": "Cairo", "Kenya": "Nairobi",
    "Morocco": "Rabat", "Nigeria": "Abuja", "India": "New Delhi", "China": "Beijing", "Japan": "Tokyo", "South Korea": "Seoul", "Thailand": "Bangkok", "Vietnam": "Hanoi", "Australia": "Canberra",
    "New Zealand": "Wellington", "Canada": "Ottawa", "the United States": "Washington", "Mexico": "Mexico City", "Cuba": "Havana", "Brazil": "Brasilia", "Argentina": "Buenos Aires", "Chile": "Santiago",
    "Peru": "Lima", "Colombia": "Bogota", "Iran": "Tehran", "Iraq": "Baghdad", "the Czech Republic": "Prague",
}
OPPOSITES = [
    ("hot", "cold"), ("big", "small"), ("fast", "slow"), ("up", "down"), ("day", "night"), ("light", "dark"), ("old", "new"), ("happy", "sad"), ("good", "bad"), ("rich", "poor"), ("high", "low"), ("long", "short"),
    ("open", "closed"), ("hard", "soft"), ("wet", "dry"), ("full", "empty"), ("left", "right"), ("early", "late"), ("loud", "quiet"), ("clean", "dirty"), ("strong", "weak"), ("near", "far"), ("first", "last"),
    ("inside", "outside"), ("black", "white"), ("thick", "thin"), ("true", "false"), ("begin", "end"), ("love", "hate"), ("win", "lose"), ("buy", "sell"), ("yes", "no"), ("push", "pull"), ("summer", "winter"),
    ("north", "south"), ("east", "west"), ("deep", "shallow"), ("wide", "narrow"), ("sweet", "sour"),
]
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"]
WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
COLOURS = {
    "the sky": "blue", "grass": "green", "snow": "white", "coal": "black", "a lemon": "yellow", "blood": "red", "the sun": "yellow", "a banana": "yellow", "a tomato": "red", "the sea": "blue", "a frog": "green",
    "milk": "white", "an orange": "orange", "chocolate": "brown", "a strawberry": "red", "a leaf": "green", "the night": "black", "a carrot": "orange", "an elephant": "grey", "a flamingo": "pink",
}
LEGS = {"spider": "eight", "dog": "four", "cat": "four", "bird": "two", "ant": "six", "horse": "four", "cow": "four", "bee": "six", "human": "two", "snake": "no", "chicken": "two", "fly": "six"}
SOUNDS = {"dog": "barks", "cat": "meows", "cow": "moos", "duck": "quacks", "sheep": "bleats", "horse": "neighs", "lion": "roars", "pig": "grunts", "bee": "buzzes", "owl": "hoots", "frog": "croaks", "wolf": "howls"}
PLACES = {"fish": "in the water", "a bird": "in a nest", "a bee": "in a hive", "a bear": "in the forest", "a camel": "in the desert", "a penguin": "in the cold south", "a whale": "in the sea", "a horse": "in a stable", "a worm": "in the ground"}

#: (ways to ask, answer) for single facts.
SINGLES: list[tuple[list[str], str]] = [
    (["how many days [are in|has|does] a week [have|]", "how many days are there in a week"], "A week has seven days."),
    (["how many months [are in|has] a year", "how many months are there in a year"], "A year has twelve months."),
    (["how many days [are in|has] a year", "how long is a year"], "A year has 365 days, and a leap year has 366."),
    (["how many hours [are in|has] a day", "how long is a day"], "A day has 24 hours."),
    (["how many minutes [are in|has] an hour", "how long is an hour"], "An hour has 60 minutes."),
    (["how many seconds [are in|has] a minute", "how long is a minute"], "A minute has 60 seconds."),
    (["[name|list|what are|say|tell me] the days of the week", "the days of the week"], "The days of the week are Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday."),
    (["[name|list|what are|say|tell me] the months [of the year|]", "[name|list] all months"], "The months are January, February, March, April, May, June, July, August, September, October, November and December."),
    (["[name|list|what are|tell me] the seasons", "how many seasons are there", "what are the four seasons"], "The four seasons are spring, summer, autumn and winter."),
    (["count to ten", "count from one to ten", "can you count to ten", "count to 10", "count from 1 to 10", "please count to ten", "count up to ten for me"], "One, two, three, four, five, six, seven, eight, nine, ten."),
    (["count to five", "count from one to five", "can you count to five", "count to 5", "count from 1 to 5"], "One, two, three, four, five."),
    (["count to twenty", "count to 20", "can you count to twenty", "count from 1 to 20"], "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20."),
    (["count backwards from ten", "count down from ten", "count down from 10"], "Ten, nine, eight, seven, six, five, four, three, two, one."),
    (["[say|tell me|recite|what is] the alphabet", "do you know the alphabet"], "A, B, C, D, E, F, G, H, I, J, K, L, M, N, O, P, Q, R, S, T, U, V, W, X, Y, Z."),
    (["[name|list|what are|tell me] the primary colours", "name three colours", "[name|list] some [colours|colors]", "tell me some [colours|colors]"], "Red, yellow and blue are three colours."),
    (["[name|list|what are|tell me] the planets", "how many planets are there", "which planets are there"], "There are eight planets: Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and Neptune."),
    (["what is the [largest|biggest] planet", "which planet is the [largest|biggest]"], "Jupiter is the largest planet."),
    (["what is the [largest|biggest] ocean", "which ocean is the [largest|biggest]"], "The Pacific is the largest ocean."),
    (["what is the [largest|biggest] animal", "which animal is the [largest|biggest]"], "The blue whale is the largest animal."),
    (["what is the fastest animal on land", "which animal is the fastest", "what is the fastest animal"], "The cheetah is the fastest animal on land."),
    (["what is the [highest|tallest] mountain", "which mountain is the [highest|tallest]"], "Mount Everest is the highest mountain."),
    (["what is water made of", "what is in water"], "Water is made of hydrogen and oxygen."),
    (["at what temperature does water boil", "when does water boil"], "Water boils at 100 degrees Celsius."),
    (["at what temperature does water freeze", "when does water freeze"], "Water freezes at 0 degrees Celsius."),
    (["what is ice", "what is ice made of"], "Ice is frozen water."),
    (["what is the sun", "is the sun a star"], "The sun is a star, and the Earth goes around it."),
    (["what is the moon", "what goes around the Earth"], "The moon goes around the Earth."),
    (["how many continents are there", "[name|list] the continents"], "There are seven continents: Africa, Antarctica, Asia, Australia, Europe, North America and South America."),
    (["how many letters has the alphabet", "how many letters are in the alphabet"], "The English alphabet has 26 letters."),
    (["how many sides has a triangle", "how many sides does a triangle have"], "A triangle has three sides."),
    (["how many sides has a square", "how many sides does a square have"], "A square has four equal sides."),
    (["what do bees make", "where does honey come from"], "Bees make honey."),
    (["what do cows eat", "what does a cow eat"], "A cow eats grass."),
    (["where does milk come from", "what gives milk"], "Milk comes from cows."),
    (["how many fingers [has a hand|are on a hand|do we have on one hand]"], "A hand has five fingers."),
    (["where does the sun rise", "in which direction does the sun rise"], "The sun rises in the east."),
    (["where does the sun set", "in which direction does the sun set"], "The sun sets in the west."),
    (["[name|list|tell me] [three|some] animals", "name some animals"], "A cat, a dog and a horse are animals."),
    (["[name|list|tell me] [three|some] fruits", "name some fruit"], "Apples, pears and cherries are fruits."),
    (["is the Earth [round|flat]", "what shape has the Earth", "what shape is the Earth"], "The Earth is round, nearly a ball."),
]


def _times(rng: random.Random) -> tuple[str, str]:
    """The day or month after or before another."""
    names = DAYS if rng.random() < 0.6 else MONTHS
    noun = "day" if names is DAYS else "month"
    i = rng.randrange(len(names))
    if rng.random() < 0.5:
        after = names[(i + 1) % len(names)]
        forms = ["what comes after {x}", "which {n} comes after {x}", "what {n} comes after {x}", "what is the {n} after {x}", "which {n} follows {x}"]
        return expand(rng, rng.choice(forms), n=noun, x=names[i]), f"{after} comes after {names[i]}."
    before = names[i - 1]
    return expand(rng, rng.choice(["what comes before {x}", "which {n} comes before {x}", "what {n} comes before {x}", "what is the {n} before {x}"]), n=noun, x=names[i]), f"{before} comes before {names[i]}."


def exchange(rng: random.Random) -> Exchange:
    """One simple fact with its question."""
    kind = rng.random()
    thought = "[This is a simple fact. I know it.|I know this fact.|A simple question. I can answer it.]"
    if kind < 0.30:
        country, city = rng.choice(list(CAPITALS.items()))
        if rng.random() < 0.85:
            question = rng.choice(["what is the capital of {c}", "the capital of {c}", "what's the capital of {c}", "which city is the capital of {c}", "name the capital of {c}", "do you know the capital of {c}", "what is {c}'s capital", "{c}'s capital", "which city is {c}'s capital", "what city is the capital of {c}", "{c}: what is its capital", "I need the capital of {c}", "what do you call the capital of {c}", "give me the capital of {c}", "does {c} have a capital", "which town is the capital of {c}", "from which city is {c} governed", "I forgot the capital of {c}", "{c} has which capital", "say the capital of {c}", "what capital does {c} have", "can you tell me the capital of {c}",
                                   "capital of {c}", "tell me the capital of {c}", "which is the capital city of {c}", "what is the capital city of {c}"])
            answer = f"The capital of {country} is {city}."
        else:
            question = rng.choice(["{y} is the capital of which country", "which country has the capital {y}", "{y} is the capital of what", "what country is {y} the capital of", "which country does {y} belong to", "what country is {y} in", "of which country is {y} the capital", "where is {y}", "in which country is {y}"])
            answer = f"{city} is the capital of {country}."
        question = question.replace("{c}", country).replace("{y}", city)
        thought = f"This is about {country}. Its capital is {city}."
    elif kind < 0.46:
        a, b = rng.choice(OPPOSITES)
        if rng.random() < 0.5:
            a, b = b, a
        question = rng.choice(["what is the opposite of {a}", "the opposite of {a}", "what's the opposite of {a}", "opposite of {a}", "give me the opposite of {a}", "tell me the opposite of {a}", "which word is the opposite of {a}", "which word means the opposite of {a}", "{a} is the opposite of what", "what is the contrary of {a}", "what is not {a}", "I need the opposite of {a}", "the contrary of {a}", "what word is opposite to {a}", "name the opposite of {a}"]).replace("{a}", a)
        answer = f"The opposite of {a} is {b}."
    elif kind < 0.56:
        question, answer = _times(rng)
    elif kind < 0.63:
        n = rng.randrange(12)
        question = rng.choice(["what number comes after {n}", "which number comes after {n}", "what comes after {n}", "what is the next number after {n}", "what number follows {n}", "which number follows {n}", "the number after {n}", "what is one more than {n}"]).replace("{n}", WORDS[n])
        answer = f"{WORDS[n + 1].capitalize()} comes after {WORDS[n]}." if n < 11 else "Twelve comes after eleven."
    elif kind < 0.70:
        thing, colour = rng.choice(list(COLOURS.items()))
        question = rng.choice(["what colour is {t}", "what color is {t}", "which colour has {t}", "what colour does {t} have", "tell me the colour of {t}", "what is the colour of {t}", "what is the color of {t}", "the colour of {t}", "which color is {t}", "in what colour is {t}", "do you know the colour of {t}"]).replace("{t}", thing)
        answer = f"{thing[0].upper() + thing[1:]} is {colour}."
    elif kind < 0.75:
        animal, legs = rng.choice(list(LEGS.items()))
        article = "an" if animal[0] in "aeiou" else "a"
        question = rng.choice(["how many legs does {x} have", "how many legs has {x}", "how many legs are on {x}", "number of legs of {x}", "on how many legs does {x} walk", "what number of legs does {x} have", "tell me how many legs {x} has"]).replace("{x}", f"{article} {animal}")
        answer = f"{article.capitalize()} {animal} has {legs} legs."
    elif kind < 0.80:
        animal, sound = rng.choice(list(SOUNDS.items()))
        article = "an" if animal[0] in "aeiou" else "a"
        question = rng.choice(["what sound does {x} make", "what does {x} say", "which sound does {x} make", "what noise does {x} make", "how does {x} sound", "what is the sound of {x}", "which noise does {x} make", "tell me what sound {x} makes"]).replace("{x}", f"{article} {animal}")
        answer = f"{article.capitalize()} {animal} {sound}."
    elif kind < 0.83:
        animal, place = rng.choice(list(PLACES.items()))
        question = rng.choice(["where does {x} live", "where do you find {x}", "where can one find {x}", "what is the home of {x}", "in what place does {x} live"]).replace("{x}", animal)
        answer = f"{animal[0].upper() + animal[1:]} lives {place}."
    else:
        forms, answer = rng.choice(SINGLES)
        question = expand(rng, rng.choice(forms)).strip()
    first = question.split()[0].lower()
    mark = "." if first in {"count", "name", "list", "tell", "say", "recite", "give"} else "?"
    if rng.random() < 0.12:
        question = begin(rng, question)
    return Exchange(ask(rng, question, mark), expand(rng, thought), answer)
