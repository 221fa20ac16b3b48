"""Text for the tokenizers: a corpus to train on and a list of awkward strings to encode."""

import random

SENTENCES = """
The quick brown fox jumps over the lazy dog, and nobody asked why. It's raining again; they're late, we've waited, I'd go, you'll see, I'm sure.
A coordinator keeps the list of tokens. Workers hold layers and send hidden states to the next stage. When one of them dies, the others go on.
What is the capital of France? The capital of France is Paris. How many machines are needed? Three machines of unequal size are enough.
Once upon a time there was a small computer that wanted to run a large model. It asked its neighbours for help, and together they did it.
Le garçon a mangé des crêpes à l'été, où était-il né ? Ça va très bien, merci. L'élève préfère l'œuvre naïve.
Die Straße ist schön, über Größe und Äpfel spricht man später. Übermäßig süße Öle heißen hier Ätherisches.
El niño pequeño comió piñas mañana. ¿Dónde está la canción? ¡Qué bien! Españoles y aragüeños.
Zażółć gęślą jaźń, a potem śpij. Příliš žluťoučký kůň úpěl ďábelské ódy. Đây là tiếng Việt có dấu.
Съешь же ещё этих мягких французских булок, да выпей чаю. Модель распределена между тремя машинами.
Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. Το μοντέλο τρέχει σε πολλά μηχανήματα.
世界你好,这是一个分布式推理系统。模型被分成几个部分,每台机器负责一些层。今天天气很好。
今日はとても良い天気です。カタカナとひらがなと漢字を混ぜて書きます。モデルを三台の機械に分けます。
안녕하세요. 이것은 분산 추론 시스템입니다. 모델을 여러 기계에 나누어 실행합니다.
مرحبا بالعالم، هذا نظام موزع للاستدلال. שלום עולם, זו מערכת מבוזרת.
यह एक वितरित प्रणाली है। नमस्ते दुनिया। สวัสดีชาวโลก นี่คือระบบกระจาย
🙂 😀 🚀 fire 🔥 and 👍🏽 with 👩‍💻 or 🇫🇷 flags, ❤️ and ✨ too.
""".strip().splitlines()

CODE = r'''
def add(first, second):
    """Return the sum."""
    return first + second

for i in range(10):
    if i % 2 == 0:
        print(f"value: {i}", end="\n")
int main(void) {
	size_t n_tokens = 0;
	while (n_tokens < 1024) { n_tokens += 1; }
	return (int)n_tokens;
}
{"name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius", "days": [1, 2, 3], "ok": true, "none": null}}
const answer = items.map((item) => item.value).filter(Boolean);
SELECT name, size FROM nodes WHERE state = 'serving' ORDER BY size DESC;
<div class="card"><p>Hello &amp; welcome</p></div>
curl -s http://127.0.0.1:8080/v1/chat/completions -H "Content-Type: application/json"
#include <stdio.h>
#define MAX(a, b) ((a) > (b) ? (a) : (b))
'''.strip("\n").split("\n")


def training_lines() -> list[str]:
    rng = random.Random(7)
    lines = []
    for _ in range(60):
        lines += SENTENCES + CODE
        lines.append(" ".join(str(rng.randrange(10 ** rng.randrange(1, 9))) for _ in range(8)))
        lines.append(f"{rng.random():.4f} + {rng.randrange(1000)} = ${rng.randrange(100)}.{rng.randrange(100):02d}")
        lines.append("  " * rng.randrange(1, 6) + "self.value = None\r\n\r\n")
    return lines


def awkward_texts() -> list[str]:
    """Each once. Characters of Unicode 14 and older only: the libraries know different versions of it."""
    texts = [
        "", " ", "  ", "   ", "        ", "\t", "\t\t", " \t ", "\n", "\n\n", "\n\n\n", "\r\n", "\r\n\r\n", "\r", " \n", "\n ",
        "a\n", "a \n b", "a  b", "a   b", "  a", "a  ", "   a   ", "a\tb", "a\t\tb", "\ta", "a\r\nb", "a \r\n \r\n b", "x\n\n\ny",
        "\n  indented\n    more\n", "trailing   \n", " \n \n ", "a\u00a0b", "\u00a0\u00a0x", "a\u2003b", "a\u3000b", "\u2028x\u2029",
        "a\u200bb", "\u200b", "\u200c\u200d", "a\x0bb", "a\x0cb", "\x0b\x0c",
        "hello", "Hello", "HELLO", "hello world", " hello world", "Hello, world!", "hello  world", "helloWorld", "HelloWorld",
        "HTTPServer", "XMLHttpRequest2", "iPhone15ProMax", "camelCaseWord snake_case_word kebab-case-word SCREAMING_CASE",
        "it's", "it'S", "IT'S", "IT's", "they're", "They'RE", "we've we'VE", "I'd I'D", "I'm I'M", "you'll YOU'LL", "can't CAN'T",
        "'s", "'S", " 's", "'tis", "o'clock", "rock'n'roll", "'re're", "''s", "it\u2019s they\u2019re", "it'\u017f", "l'\u00e9t\u00e9",
        "'d'll've", "don'tdon't", "x's'y't",
        "0", "1", "12", "123", "1234", "12345", "123456789", "1234567890123456789012345678901234567890", "3.14159", "1,234,567.89",
        "-42", "1e-10", "0xDEADBEEF", "007", "2024-01-31T23:59:59Z", "192.168.0.1", "v1.2.3-rc4", "a1b2c3", "abc123def456", "$9.99",
        "50%", "1/2", "\u00bd", "x\u00b2 + y\u00b3", "\u2160\u2161\u2162", "\u0661\u0662\u0663\u0664", "\uff11\uff12\uff13\uff14",
        "\u0967\u0968\u0969", "\u4e00\u4e8c\u4e09", "\u2460\u2461", "10\u00b0C", "100km", "5\u20ac",
        "caf\u00e9", "cafe\u0301", "CAFE\u0301", "na\u00efve", "nai\u0308ve", "\u212b \u00c5 A\u030a", "e\u0301\u0302\u0303", "q\u0307\u0323 q\u0323\u0307",
        "\u1e69 s\u0323\u0307 s\u0307\u0323", "\u0301", "\u0301a", " \u0301", "a\u0301\u0301", "\u2126 \u03a9", "\ufb01 \ufb02", "\u0344", "\u0958", "\u0915\u093c",
        "\u00df \u1e9e STRASSE", "\u0130 \u0131 i I", "Z\u0351\u036b\u0343\u0332a\u0321\u0334l\u0337g\u031b\u0320o\u0336", "\u01c4 \u01c5 \u01c6", "\u02b0\u02b1 \u02bc",
        "\u4e16\u754c", "\u4f60\u597d\uff0c\u4e16\u754c\uff01", "\u4f60\u597d world \u4f60\u597d", "\u4eca\u65e5\u306f", "\u30ab\u30bf\u30ab\u30ca",
        "\u30ab\u30fc\u30c9", "\u304c \u304b\u3099", "\uff76\uff9e", "\u6f22\u5b57kanji\u6f22\u5b57", "\u3042A\u30a21\u4e00", "\u3005\u3007\u3024",
        "\u20000\U00020000\U0002a6d6", "\uac00", "\u1100\u1161", "\u1112\u1161\u11ab\u1100\u1173\u11af", "\uac01 \uac00\u11a8",
        "\uc548\ub155\ud558\uc138\uc694", "\u110b\u1161\u11ab \uc548", "\u3131\u314f",
        "\u0645\u0631\u062d\u0628\u0627", "\u0645\u064e\u0631\u0652\u062d\u064e\u0628\u064b\u0627", "\u05e9\u05dc\u05d5\u05dd", "\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd",
        "\u200f\u05e9\u200e abc", "\u202e\u202cabc", "\u0928\u092e\u0938\u094d\u0924\u0947", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\u0e33 \u0e4d\u0e32",
        "\u1019\u103c\u1014\u103a\u1019\u102c", "\u0f56\u0f7c\u0f51", "\u10d2\u10d0\u10db\u10d0\u10e0\u10ef\u10dd\u10d1\u10d0", "\u1f80 \u03b1\u0313\u0345",
        "\u041f\u0440\u0438\u0432\u0435\u0442", "\u0438\u0306 \u0439", "Mixed\u0421\u043c\u0435\u0441\u044cM\u03b9\u03be", "\u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2",
        "\U0001f600", "\U0001f600\U0001f600\U0001f600", "a\U0001f600b", " \U0001f600 ", "\U0001f44d\U0001f3fd", "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
        "\U0001f469\U0001f3ff\u200d\U0001f52c", "\u2764\ufe0f", "\U0001f1eb\U0001f1f7\U0001f1ef\U0001f1f5", "1\ufe0f\u20e3", "\U0001f3f4\U000e0067\U000e0062\U000e007f",
        "\U0001d400\U0001d401\U0001d402", "\U0001d7d8\U0001d7d9", "\U00010348", "\U0010ffff", "\ufffd", "\ue000", "\ud7ff\uf900", "\ufb1d \u05d9\u05b4", "\uffff",
        "\x00", "a\x00b", "\x01\x02\x03", "\x1b[31mred\x1b[0m", "\x7f", "\x80\x9f", "\x1c\x1d\x1e\x1f", "\u00ad", "soft\u00adhyphen",
        "!", "!!", "!!!", "?!", "...", "\u2026", "---", "\u2014", "a-b", "a--b", "(x)", "[x]", "{x}", "<x>", "\"x\"", "`x`", "a.b.c", "a,b", "a, b", "a ,b",
        "!a", " !a", "!!a", "#include", "@user", "#tag", "$var", "%d", "&amp;", "*bold*", "**bold**", "_it_", "~~no~~", "C:\\dir\\file", "\\n\\t",
        "!\n", "!\n\n", "?\r\n", "//\n", "a/\n", "///", "/\n/", "{\n}\n", "};\n\n", " .", " ,x", "\u00bf\u00a1", "\u00ab x \u00bb", "\u201cx\u201d", "\u3001\u3002\u300c",
        "+-*/=", "a+b=c", "x==y&&z||!w", "=>", "->", "::", "<|", "|>", "<||>", "\u20ac\u00a3\u00a5", "\u2211\u222b\u221a", "\u00a9\u00ae\u2122", "^_^", "\u00af\\_(\u30c4)_/\u00af",
        "https://example.org/a/b?x=1&y=2#frag", "user.name+tag@example.co.uk", "git@host:org/repo.git", "/usr/local/bin:/usr/bin", "file:///C:/a%20b.txt",
        "def f(x):\n    return x + 1\n", "\tif (a < b) {\n\t\treturn;\n\t}\n", "for (int i = 0; i < 10; i++) { sum += i; }", "print(f\"{a!r:>10}\")", "#define MAX(a, b) ((a) > (b))",
        "{\"a\": [1, 2.5, -3e4, true, null], \"b\": {\"c\": \"\\u00e9\\n\"}}", "<div class=\"x\">&nbsp;</div>", "SELECT * FROM t WHERE a='b';", "| a | b |\n|---|---|\n| 1 | 2 |\n",
        "- item\n  - sub\n\n1. one\n2. two\n", "```python\nprint('x')\n```", "$$\\frac{1}{2}$$", "a\\\nb", "x = y;// comment", "/* c */", "\"\"\"doc\"\"\"", "    return None",
        "a" * 200, "ab" * 100, "A" * 65, " " * 129, "\n" * 33, "\t" * 17, "9" * 50, "!" * 70, "\u00e9" * 40, "\u4e16" * 40, "\U0001f600" * 12, "aA" * 30, " a" * 40, "'s" * 20,
        "Donaudampfschifffahrtselektrizit\u00e4tenhauptbetriebswerkbauunterbeamtengesellschaft", "pneumonoultramicroscopicsilicovolcanoconiosis", "thethethethe the the",
        "The capital of France is Paris.", "The quick brown fox jumps over the lazy dog, and nobody asked why.", "unreachable", " unreachable", "unreachables",
        "\u2581", "\u2581a", "a\u2581b", "\u2581\u2581x", "<0x41>", "<0xE4>", "\u0120hello", "\u010a", "<unk>", "<s>", "</s>", "<pad>",
    ]
    texts += scripts() + contractions() + digits() + spaces() + forms() + controls() + cased() + borders() + random_texts()
    return list(dict.fromkeys(texts))


def scripts() -> list[str]:
    """A word of each script in the places where the patterns decide."""
    words = ["\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "\u0928\u092e\u0938\u094d\u0924\u0947", "\u0ba8\u0ba9\u0bcd\u0bb1\u0bbf", "\u1019\u103c\u1014\u103a\u1019\u102c",
             "\u1797\u17b6\u179f\u17b6\u1781\u17d2\u1798\u17c2\u179a", "\u0f56\u0f7c\u0f51\u0f0b\u0f66\u0f90\u0f51", "\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd", "\u0645\u064f\u062d\u064e\u0645\u0651\u064e\u062f",
             "\u1112\u1161\u11ab\u1100\u1173\u11af", "\ud55c\uae00", "\u30ab\u3099\u30ac\u304b\u3099", "\u6f22\u5b57\u4eee\u540d", "\u03b1\u03b2\u03a3\u03c2", "\u0416\u0438\u0306\u0439",
             "\u10e5\u10d0\u10e0\u10d7", "\u12a0\u121b\u122d\u129b", "\u13e3\u13b3\u13a9", "\U0001d53b\U0001d560\U0001d566", "\uff26\uff55\uff4c\uff4c", "\u1e9e\u00df\u017f"]
    return [form.replace("w", w) for w in words for form in ("w", " w", "wa1w", "w's", "!w\n", "W-w w.")]


def contractions() -> list[str]:
    ends = ["s", "t", "re", "ve", "m", "ll", "d"]
    return [f"{before}'{cased}{behind}" for i, e in enumerate(ends) for cased in (e, e.upper(), e.title())
            for before, behind in ((("x", ""), ("9", " z"), (" ", "a"))[i % 3], ("\u4e16", "\u0301"), (".", "\n"))]


def digits() -> list[str]:
    texts = [zero * n for zero in "0\u0660\u0966\u0e50\uff10\U0001d7ce\u00bd\u2163" for n in (2, 3, 4, 7)]
    return texts + ["12\u06613", "1\u00b2\u00b3", "1a2b3c", "1 2  3", "1,2.3", "\u0661,\u0662", "1\u20e3\ufe0f2", "\u4e001\u4e8c2", "0x7f_1e-9", "1\u0301\u0302"]


def spaces() -> list[str]:
    """Every two kinds of space next to each other, between letters and at the ends of a line."""
    kinds = [" ", "\t", "\n", "\r", "\r\n", "\u00a0", "\u2003", "\u3000", "\u2028", "\u0085", "\u180e", "\ufeff", "\u200b", "\x0b"]
    return [f"a{x}{y}{end}" for i, x in enumerate(kinds) for k, y in enumerate(kinds) for end in ("b", "", " !")[(i + k) % 3: (i + k) % 3 + 1]]


def forms() -> list[str]:
    """Composed and not, marks in and out of order, compatibility characters."""
    texts = ["\u1e69", "s\u0323\u0307", "s\u0307\u0323", "\u01d5", "u\u0308\u0304", "u\u0304\u0308", "\u1eb7\u1ead", "a\u0323\u0306\u0302", "\u0390\u03b9\u0308\u0301", "\u0622\u0627\u0653",
             "\u09cb\u09c7\u09be", "\u0b94\u0b92\u0bd7", "\u304c\u304b\u3099", "\uac01\u1100\u1161\u11a8", "\u2000\u2001", "\u2329\u3008", "\u0340\u0341\u0343", "\u0374\u037e\u0387", "\ufa0e\uf907", "\U0001d15e",
             "\ufb2c\u05e9\u05bc\u05c1", "\u0f77\u0f76", "\u1f82", "\u03b1\u0345\u0301\u0313", "\u00c5\u212b\u0041\u030a", "\u2460\u32a3\u3300", "\ufdfa", "\u017f\u0307", "\u00aa\u00ba", "e" + "\u0301\u0316" * 40]
    return texts + [f"x{t}9 {t}" for t in texts]


def controls() -> list[str]:
    return [f"a{chr(c)}b{chr(c)}{chr(c)}" for c in [*range(32), *range(127, 160)] if chr(c) not in "\n\t "]


def cased() -> list[str]:
    return ["aB", "aBc", "ABc", "ABCd", "aBC dE", "\u01c5ab", "A\u01c5", "\u02b0A", "A\u02b0b", "\u00aaB", "\u4e16A\u754cb", "A\u0301B", "a\u0301B", "\u0301Ab", "\u216fA", "\u24b6b\u24d0",
            "\u0130i\u0131I", "\U00010400\U00010428", "HELLOworld's", "fooBARbaz'LL", "iOS/macOS\n/Linux", "A/b/\n/c", "x_Y-z.W", "\u00e9\u00c9\u00e9", "\u0178'\u00ff"]


def borders() -> list[str]:
    """Pieces no pair reaches, byte tokens spelled out, marks of other tokenizers, half of a special token."""
    return ["<0x0A>", "<0x0a>", "<0xG0>", "<0x>", "<0x4142>", "\u2581\u2581a\u2581", " \u2581 ", "\u2581\n", "\u0120a \u010a", "\u00c3\u00a9", "\u0100\u0143", "<|", "|>", "<|im_", "im_end|>", "<|im_end|", "<unk><s>", "</s", "[INST", "/INST]",
            "\uff5c<\uff5c", "\u2581of\u2581", "<think", "<\uff5cUser", "<start_of_turn>", "<bos>\n", "\n\n\n\n", "        ", "\t\t\t\t", "a" + " " * 31 + "b", " " * 16 + "\n" * 16,
            "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f3f3\ufe0f\u200d\U0001f308", "\U0001f1e9\U0001f1ea\U0001f1e9", "\u261d\U0001f3ff", "0\ufe0f\u20e3", "\U0001f600" * 3 + "a", "\u00ad\u200d\u200c\u2060", "\u202eabc\u202c", "\u2066\u05d0\u2069",
            "\ufffd\ufffe\uffff", "\U0001fffe\U000e0001", "\ud7a3\ue000\uf8ff", "\U000f0000\U0010fffd", "\u0378\u0530", "~!@#$%^&*()_+", "`-=[]\\;',./", "\u3010\u3011\u300a\u300b\u2018\u2019\u201c\u201d", "\u00d7\u00f7\u2260\u2264",
            "  def f(self, *a, **k):\r\n\t\treturn {**k}\r\n", "x=1;y=2;;\n\n//\n", "https://\u4f8b.jp/%E4%BE%8B?q=\u00e9#\u0301", "a@b.c,d@e.f;", "\u00a75 \u00b61 \u2020", "-1-2--3", "...\u2026..", "\u2014\u2014a\u2013b", "'\u2019'", "\"'\"'", "$1,000.00 \u20ac5 \u00a36"]


def random_texts() -> list[str]:
    rng = random.Random(11)
    alphabets = ["aZ \n\t's\u00e99.!_\u4e16\u0301\U0001f600/-\u0645\u01c5\r\u00a0", "ab \u0301\u0316\u0327\u0345e\u00e9", "0\u0661a. \u00bd", " \n\r\t\u2003x", "'sSlLrRxX \u017f", "\u2581 <0x41>s/"]
    return ["".join(rng.choice(a) for _ in range(rng.randrange(4, 40))) for a in alphabets for _ in range(30 if a is alphabets[0] else 10)]
