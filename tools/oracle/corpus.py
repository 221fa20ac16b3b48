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
    """No U+180E, U+0085 or U+FEFF: regular expression libraries disagree whether those are spaces."""
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
    rng = random.Random(11)
    alphabet = "aZ \n\t'sé9.!_\u4e16\u0301\U0001f600/-\u0645ǅ\r\u00a0"
    texts += ["".join(rng.choice(alphabet) for _ in range(rng.randrange(4, 40))) for _ in range(30)]
    seen = dict.fromkeys(texts)
    assert not any(c in t for t in seen for c in "\u180e\u0085\ufeff")
    return list(seen)
