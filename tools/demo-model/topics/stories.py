"""Short stories about whatever the user names, and longer ones to watch the stream."""

from __future__ import annotations

import random

from .phrasing import Exchange, ask, capital, expand, invented_word

#: Heroes a story may be about: (noun, what it is good at).
HEROES = [
    ("robot", "[counting|sorting screws|carrying boxes]"), ("cat", "[sleeping in the sun|climbing|catching mice]"), ("dog", "[running|finding lost things|guarding the door]"), ("lighthouse", "[shining at night|showing the way]"), ("dragon", "[flying|breathing small fires]"),
    ("bird", "[singing|flying]"), ("mouse", "[hiding|finding crumbs]"), ("boat", "[sailing|carrying fish]"), ("tree", "[standing still|giving shade]"), ("fox", "[being clever|running in the snow]"), ("owl", "[watching the night|listening]"), ("train", "[pulling wagons|being on time]"),
    ("child", "[asking questions|running]"), ("girl", "[drawing|climbing trees]"), ("boy", "[whistling|building things]"), ("king", "[giving orders|wearing a crown]"), ("queen", "[ruling wisely|riding]"), ("knight", "[riding|polishing a sword]"), ("wizard", "[reading old books|doing small magic]"),
    ("computer", "[adding numbers|waiting]"), ("snail", "[being slow|carrying a house]"), ("horse", "[running|pulling a cart]"), ("rabbit", "[hopping|eating carrots]"), ("bear", "[finding honey|sleeping in winter]"), ("whale", "[diving|singing in the deep]"), ("star", "[shining|looking down]"),
    ("moon", "[shining|being quiet]"), ("cloud", "[making rain|drifting]"), ("clock", "[ticking|knowing the time]"), ("baker", "[making bread|getting up early]"), ("sailor", "[tying knots|reading the stars]"), ("farmer", "[growing corn|watching the sky]"), ("teacher", "[explaining things|being patient]"),
    ("painter", "[mixing colours|painting doors]"), ("fish", "[swimming|hiding in weeds]"), ("frog", "[jumping|croaking]"), ("bee", "[making honey|finding flowers]"), ("ant", "[carrying crumbs|working hard]"), ("penguin", "[sliding on ice|swimming]"), ("elephant", "[remembering things|carrying logs]"),
    ("lion", "[roaring|sleeping]"), ("wolf", "[running at night|howling]"), ("turtle", "[being patient|swimming]"), ("duck", "[swimming|quacking]"), ("ghost", "[passing through walls|being quiet]"), ("giant", "[lifting stones|taking long steps]"), ("princess", "[riding|reading]"), ("pirate", "[sailing|telling tales]"),
    ("astronaut", "[floating|looking at stars]"), ("gardener", "[growing roses|pulling weeds]"), ("machine", "[humming|counting]"), ("worker", "[computing layers|passing numbers on]"), ("token", "[being next|travelling through layers]"), ("kitten", "[playing|sleeping]"), ("puppy", "[playing|chewing shoes]"),
    ("spider", "[making webs|waiting]"), ("kite", "[flying|dancing in the wind]"), ("bicycle", "[rolling|ringing its bell]"), ("teapot", "[keeping warm|pouring]"), ("snowman", "[standing still|wearing a hat]"), ("monkey", "[climbing|playing tricks]"), ("hedgehog", "[rolling up|finding apples]"),
]
#: Heroes of few words: only the question knows them.
OTHER_HEROES = ["pencil", "river", "mountain", "cook", "doctor", "nurse", "pilot", "stone", "flower", "apple", "goat", "cow", "pig", "sheep", "goose", "swan", "tiger", "zebra", "camel", "crab", "seal", "squirrel", "beetle", "butterfly", "crow", "parrot", "witch", "prince", "thief", "miller", "tailor", "shepherd", "hunter", "fisherman", "engineer",
                "scientist", "artist", "dancer", "drummer", "candle", "mirror", "bell", "book", "chair", "spoon", "balloon", "car", "bus", "ship", "rocket", "satellite", "island", "volcano", "snowflake", "raindrop", "leaf", "seed", "mushroom", "pumpkin", "sock", "shoe", "hat", "drum", "piano", "violin", "phone", "server", "cable", "network", "layer", "number", "letter",
                "unicorn", "mermaid", "dwarf", "elf", "monster", "dinosaur", "octopus", "dolphin", "shark", "kangaroo", "panda", "koala", "giraffe", "hippo", "crocodile", "snake", "lizard", "toad", "bat", "mole", "badger", "otter", "beaver", "deer", "donkey", "hen", "rooster"]
NAMES = ["Tim", "Mila", "Otto", "Nora", "Pip", "Luna", "Max", "Ada", "Bruno", "Ella", "Finn", "Ida", "Jon", "Kira", "Leo", "Mona", "Nils", "Olga", "Paul", "Rosa", "Sam", "Tilda", "Ugo", "Vera", "Will", "Zoe", "Ben", "Clara", "Dora", "Emil", "Frida", "Gus", "Hanna", "Ivo", "Julia", "Karl"]
PLACES = ["[a small|an old|a quiet] village by the sea", "a [green|wide|quiet] valley", "a [big|busy|noisy] city", "an [old|empty] house on a hill", "a [dark|deep|silent] forest", "a [warm|far] country beyond the sea", "a [small|busy] harbour", "a [red|small] house near the river", "a [cold|white] land in the north", "a garden behind the school"]
TIMES = ["Once upon a time", "One [morning|evening|winter|summer|autumn]", "Long ago", "Many years ago", "Not long ago", "In a [warm|cold|rainy] spring"]
LOST = ["[silver|golden|small] key", "[blue|red|old] hat", "[old|little] lamp", "[small|golden] bell", "[red|round] ball", "[old|secret] map", "[green|shiny] stone", "[little|silver] flute"]
FRIENDS = ["an old [owl|turtle|woman|man]", "a [small|friendly|shy] [mouse|bird|dog|child]", "a [kind|tired] [farmer|sailor|baker]", "a [little|clever] [fox|girl|boy]"]
WEATHER = ["a [great|wild|sudden] storm", "thick [fog|snow]", "[heavy|cold] rain", "a [long|dark] night"]
FEELINGS = ["[happy|glad]", "[proud|pleased]", "[calm|happy] again"]
ENDINGS = [
    "From that day on [they were good friends|nobody in that place was alone|the two were never apart].", "And that night {n} slept very well.", "Since then {n} has never been afraid of the dark.", "Everyone in that place still talks about {n}.",
    "The {h} smiled, and that was the end of a long day.", "[Even small ones can do great things|A friend is worth more than gold|Those who share have more], thought {n}.",
]

#: Each plot is a row of beats; a beat is a list of ways to tell it. {n} is the name, {h} the hero's noun.
PLOTS: list[list[list[str]]] = [
    [  # something lost is found
        ["{t}, a {h} named {n} lived in {p}.", "{t} there was a {h} named {n}. {n} lived in {p}."],
        ["{n} was very good at {g}.", "Nobody was better at {g} than {n}."],
        ["But one day {n} lost a {l}.", "One day the {l} of {n} was gone.", "Then something sad happened: {n} lost a {l}."],
        ["{n} looked [under every stone|in every corner|behind every door], but it was not there.", "{n} searched [all day|until night came] and found nothing."],
        ["Then the {h} met {f}.", "On the way {n} met {f}."],
        ["\"[Do not be sad|Do not worry|Come with me],\" said the new friend, \"I will help you [look|search].\""],
        ["Together they found the {l} [under a bridge|in the tall grass|in an old boat|on top of a wall].", "They looked together, and there it was, [under a leaf|near the well|behind a tree]."],
        ["{n} was {e}.", "How {e} the {h} was!"],
    ],
    [  # help in bad weather
        ["{t}, there was a {h} called {n} in {p}.", "{t}, a {h} called {n} lived in {p}."],
        ["Every day {n} dreamed of [helping somebody|doing something great|a real adventure].", "{n} liked {g} more than anything else."],
        ["One night {w} came.", "Then {w} came over the land."],
        ["Out there somebody [called for help|was lost and afraid]: it was {f}.", "{n} heard a small voice. It was {f}, lost and cold."],
        ["The {h} was afraid, but went out [at once|without waiting|anyway].", "\"I must help,\" thought {n}, and [did not wait|went out into the dark]."],
        ["With a [little light|long rope|loud bell] {n} showed the way home.", "{n} stayed close and showed the way, step by step."],
        ["In the morning [the sky was clear|the sun came back], and everyone was {e}."],
    ],
    [  # a journey
        ["{t}, a {h} named {n} wanted to see [the sea|the big city|the highest mountain|the end of the world].", "{t}, a {h} named {n} left {p} to see the world."],
        ["The way was long, and {n} had only [some bread|a small bag|a warm coat|an old map].", "{n} took [some bread|a small bag|an old map] and went [east|north|south|west]."],
        ["On the second day the {h} met {f}.", "Near a bridge {n} met {f}."],
        ["\"May I come with you?\" asked the stranger, and {n} said yes.", "\"Two see more than one,\" said {n}, and so they went on together."],
        ["Then {w} stopped them, and they hid [in a cave|under a big tree|in an empty barn].", "They crossed [a cold river|a dark wood|a field of stones]."],
        ["{n} was good at {g}, and that [saved the day|helped them both|made the time short].", ],
        ["At last they stood there and looked, and {n} was {e}.", "When they came to the end of the road, the sun was rising."],
    ],
    [  # building something
        ["{t}, a {h} named {n} lived alone in {p}.", "In {p} lived a {h} called {n}."],
        ["{n} wanted to build [a bridge|a boat|a tower|a music box|a flying machine|a warm nest].", "\"I will build [a boat|a tower|a bridge],\" said {n} one morning."],
        ["The first one [broke|fell down|did not work], and the second one too.", "It did not work at first, and {n} [was sad|sat down and thought]."],
        ["Then {f} came by and watched.", "{f} saw it and came closer."],
        ["\"[You need a friend|Two hands are not enough|Try it with me],\" said the visitor.", "\"Let us try it together,\" said the visitor."],
        ["They worked [for three days|all night|until the stars came out].", "One held and the other [tied|hammered|painted]."],
        ["In the end it was [strong and beautiful|ready|better than every other], and {n} was {e}."],
    ],
    [  # sharing
        ["{t}, in {p}, there lived a {h} named {n}.", "{t}, a {h} named {n} came to {p}."],
        ["{n} had a {l} and kept it [in a box|in a safe place|secret].", "{n} owned only one thing, a {l}."],
        ["One day {f} asked, \"May I [hold|see|use] it [for a while|only once]?\"", "Then {f} came and asked for it."],
        ["At first the {h} said no.", "{n} thought about it for a long time."],
        ["But then {n} saw [the sad eyes|the smile] of the other and gave it away.", "Then {n} said, \"Take it. It is yours for today.\""],
        ["The next day the friend came back with [a cake|a warm coat|flowers|a song].", "In the evening the friend came back and brought [soup|a lamp|flowers]."],
        ["They sat together [by the fire|under the stars|at the window], and {n} was {e}."],
    ],
]

#: How the second and the third chapter of a long story begin.
CHAPTERS = [
    ["But that was not the end of the story.", "The next [morning|day] the {h} woke up early, and a new adventure began."],
    ["A year later something else happened to {n}.", "Then the winter came, and the {h} had one more adventure."],
]

#: Sentences that stretch a story, each usable anywhere in the middle.
FILLERS = [
    "The wind [sang in the leaves|was cold|came from the sea].", "A [small|white] cloud went over the sky.", "{n} [listened and waited|took a deep breath|thought of home].", "It was so quiet that {n} could hear [a clock|the sea|a drop of water].", "The [sun|moon] was [high|low] in the sky.",
    "{n} counted the steps: one, two, three, four, five.", "\"One more step,\" said {n}, \"and then one more.\"", "Somewhere a [dog barked|bell rang|bird sang].", "{n} was [tired|hungry], but did not stop.", "There was a smell of [bread|smoke|rain|flowers].", "Far away a light was shining.", "The way went [up and down|through a wood|along a river].",
    "\"Who are you?\" asked a voice. \"I am {n},\" said {n}.", "They shared [an apple|some bread|a cup of tea] and talked about [old times|the stars|their homes].", "For a moment [nothing moved|everything was still].", "Then {n} laughed, because [it was funny|life is good|the rain had stopped].", "Step by step the day went by.",
    "Nobody had ever seen a {h} like {n}.", "\"I am only a {h},\" said {n}, \"but I can try.\"", "A {h} does not give up, thought {n}.", "The {h} [looked up|turned around|stood still].", "\"Look, a {h}!\" [cried a child|said an old woman|called somebody].",
    "In the grass lay [a feather|a coin|a letter].", "An old [bridge|gate|wall] stood in the way, but {n} found a way around it.", "{n} slept for an hour under [a tree|the stars|a roof] and then went on.", "The water was [deep|cold|clear].", "{n} [sang a little song|hummed|whistled] to keep up hope.",
    "Then it began to [rain|snow|get dark].", "Nobody knew the way, and so {n} asked [a bird|the moon|a fisherman].", "\"How far is it?\" asked {n}. \"Not far,\" was the answer.", "The {h} [thought of the others|remembered the old days|smiled again].",
]

SHORT = ["tell me a [short |little |]story about {x}", "[write|tell] a [short |]story about {x}", "a [short |]story about {x}", "a story about {x}, please", "can you tell [me |]a [short |]story about {x}", "tell a story about {x}", "story about {x}", "please tell me a story about {x}", "I want [to hear |]a story about {x}", "write me a story about {x}",
         "do you know a story about {x}", "could you write a [short |]story about {x}", "tell me about {x} in a story", "make up a story about {x}", "I would like a story about {x}", "invent a story about {x}"]
ANY = ["tell me a [short |little |]story", "tell a story", "a story, please", "can you tell [me |]a story", "write a [short |]story", "do you know a story", "I want [to hear |]a story", "please tell me a story", "story time", "another story", "tell me another story", "read me a story", "tell me a bedtime story", "could you tell me a story"]
LONG = ["tell me a [longer|long] story about {x}", "write a [longer|long] story about {x}", "a [longer|long] story about {x}", "can you tell me a [long|longer] story about {x}", "please write a long story about {x}", "tell me a very long story about {x}", "I want a long story about {x}"]
LONG_ANY = ["tell me a [longer|long] story", "write a [longer|long] story", "a [longer|long] story, please", "can you tell me a [long|longer] story", "please tell me a longer story", "tell me a very long story", "a longer one, please", "I want a long story", "write a very long story"]


def tell(rng: random.Random, hero: str, gift: str, name: str, long: bool) -> str:
    """A story in four to eight sentences, or a long one of two to three hundred tokens."""
    slots = {key: expand(rng, rng.choice(values)) for key, values in {"t": TIMES, "p": PLACES, "l": LOST, "f": FRIENDS, "w": WEATHER, "e": FEELINGS}.items()}
    slots |= {"h": hero, "n": name, "g": expand(rng, gift)}
    beats = [expand(rng, rng.choice(beat), **slots) for beat in rng.choice(PLOTS)]
    if not long:
        # The second beat only describes: dropping it sometimes varies the length.
        if rng.random() < 0.4:
            del beats[1]
        if rng.random() < 0.6:
            beats.append(expand(rng, rng.choice(ENDINGS), **slots))
        return _joined(beats)
    # Chapters, each begun by its own words: sentences that may stand anywhere are never the likeliest next ones, and a
    # model that takes the likeliest would tell a short story after all.
    told = [beats]
    for start, plot in zip(CHAPTERS, rng.sample(PLOTS, len(CHAPTERS))):
        slots |= {key: expand(rng, rng.choice(values)) for key, values in {"l": LOST, "f": FRIENDS, "w": WEATHER, "e": FEELINGS}.items()}
        told.append([expand(rng, beat, **slots) for beat in [rng.choice(start), *(rng.choice(b) for b in plot[1:])]])
    for beats in told:
        beats.insert(rng.randint(1, len(beats) - 1), expand(rng, rng.choice(FILLERS), **slots))
    return _joined([*(sentence for beats in told for sentence in beats), expand(rng, rng.choice(ENDINGS), **slots)])


def _joined(sentences: list[str]) -> str:
    """Join sentences and repair the article before a vowel."""
    text = " ".join(capital(s) for s in sentences)
    for vowel in "aeiou":
        text = text.replace(f" a {vowel}", f" an {vowel}").replace(f" a {vowel.upper()}", f" an {vowel.upper()}")
    return text


def exchange(rng: random.Random, long: bool | None = None) -> Exchange:
    """One request for a story and the story."""
    if long is None:
        long = rng.random() < 0.22
    hero, gift = rng.choice(HEROES)
    if rng.random() < 0.25:
        # Any thing can be a hero: the word must come from the question.
        hero = rng.choice([rng.choice(OTHER_HEROES), invented_word(rng).lower()])
        gift = rng.choice(HEROES)[1]
    elif rng.random() < 0.25:
        # The well-known wishes come often, so that they are told best.
        hero, gift = HEROES[rng.choice([0, 0, 1, 2, 3, 3, 4])]
    name = rng.choice(NAMES) if rng.random() < 0.8 else invented_word(rng)
    asked = f"{'an' if hero[0] in 'aeiou' else 'a'} {hero}"
    roll = rng.random()
    if roll < 0.25:
        asked += rng.choice([" named ", " called ", " with the name "]) + name
    elif roll < 0.35:
        asked = expand(rng, "[a small|a little|a brave|a lonely|a happy|a tired|a friendly] ") + hero
    elif roll < 0.40:
        asked = hero + ("es" if hero.endswith(("x", "s")) else "s")
    if rng.random() < 0.8:
        question = expand(rng, rng.choice(LONG if long else SHORT), x=asked)
        thought = expand(rng, f"The user wants a {'long ' if long else ''}story about {asked}. [I will call the {hero} {name}.|The name will be {name}.]")
    else:
        question = expand(rng, rng.choice(LONG_ANY if long else ANY))
        thought = expand(rng, f"The user wants a {'long ' if long else ''}story. [I will tell one about a {hero}.|It can be about a {hero} named {name}.]")
    asks = question.split()[0] in {"can", "could", "do"}
    return Exchange(ask(rng, question, "?" if asks else rng.choice([".", ""]), typos=rng.random() < 0.4), thought, tell(rng, hero, gift, name, long))
