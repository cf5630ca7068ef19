"""Scripts of a simulated host, generated from templates. They train the small writer (`m6-script`).

    python -m openm6.serve.simulated.scripts scripts.jsonl      # then: openm6 train script

The texts have slots such as [name] for the values of an item (`openm6.serve.slots`).
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from openm6.serve.slots import CATEGORIES, OTHER, SLOTS, source

OPENING = {
    "en": (
        "Look what I have here, everybody: [name]!",
        "Friends, stop scrolling, this is [name]!",
        "Next up on our stream: [name].",
        "You asked for it, and here it is: [name].",
        "Good evening, everyone! Tonight's favourite is [name].",
        "Come closer, I want to show you [name].",
        "Who has been waiting for [name]? Here we go!",
    ),
    "zh": (
        "家人们看过来，今天给大家带来的是[name]！",
        "直播间的朋友们，重头戏来了，[name]！",
        "大家晚上好，下一件好物就是[name]。",
        "等了好久的[name]，今天终于上架啦！",
        "先别划走，看看这款[name]！",
        "想要[name]的朋友在哪里？它来了！",
    ),
}
COLOUR = {
    "en": (
        "See that [colour]? The camera hardly does it justice.",
        "The [colour] is even prettier up close.",
        "And look at the [colour], is it not lovely?",
        "If [colour] is your colour, this one is for you.",
        "I could look at this [colour] all day.",
    ),
    "zh": (
        "你们看这个[colour]，镜头都拍不出它的美。",
        "这个[colour]真的太好看了！",
        "喜欢[colour]的朋友，千万别错过。",
        "[colour]的，怎么看都顺眼。",
    ),
}
PRAISE = {
    ("food & drink", "en"): (
        "I am getting hungry just talking about it.",
        "Put it on the table, and watch how fast it is gone.",
        "Share it with the family, or keep it all to yourself.",
        "One look, and my mouth is watering.",
        "Your weekend treat is settled.",
    ),
    ("food & drink", "zh"): (
        "光是说着，我都要流口水了。",
        "往桌上一放，一家人抢着吃。",
        "周末犒劳自己，就靠它了。",
        "嘴馋的时候，来一份刚刚好。",
    ),
    ("animals & nature", "en"): (
        "How can anyone say no to that?",
        "Children will love it, and so will you.",
        "It brings a bit of the wild into your home.",
        "Whoever loves nature will be happy with it.",
        "My heart melts whenever I look at it.",
    ),
    ("animals & nature", "zh"): (
        "这么可爱，谁能忍得住？",
        "小朋友喜欢，大人也喜欢。",
        "把大自然带回家，心情都会变好。",
        "看它一眼，心都要化了。",
    ),
    ("objects", "en"): (
        "Once you have it, you will wonder how you lived without it.",
        "It makes every day a little easier.",
        "Put it in its place, and the room looks better at once.",
        "It makes a good present, too.",
        "Simple, handy, always there when you need it.",
    ),
    ("objects", "zh"): (
        "有了它，每天都更方便一点。",
        "自己用，送朋友，都很合适。",
        "放在家里，顺手又好看。",
        "用过就再也离不开了。",
    ),
    ("activities", "en"): (
        "Call your friends, the weekend is planned.",
        "Off the sofa, it is time to have some fun!",
        "Beginner or champion, you will enjoy it.",
        "Good times begin right here.",
        "Bring it along, and nobody will be bored.",
    ),
    ("activities", "zh"): (
        "叫上朋友，周末就这么安排！",
        "新手老手，都能玩得开心。",
        "别宅着了，一起动起来！",
        "有了它，聚会再也不无聊。",
    ),
    (OTHER, "en"): (
        "I have looked at many, and this one I like best.",
        "Treat yourself, you have earned it.",
        "Whoever sees it wants it.",
        "It makes a good present, too.",
        "You will be glad that you stayed for this one.",
    ),
    (OTHER, "zh"): (
        "挑了这么多，我最喜欢的就是它。",
        "对自己好一点，你值得拥有。",
        "谁看了都想要。",
        "自己留着，送人也合适。",
    ),
}
PRICE = {
    "en": (
        "And the price? Just [price] yuan.",
        "Tonight it is yours for [price] yuan.",
        "[price] yuan, my friends, you heard me right.",
        "How much? No guessing: [price] yuan.",
        "All that for [price] yuan!",
    ),
    "zh": (
        "价格呢？只要[price]元！",
        "今晚直播间，[price]元带回家。",
        "没听错，就是[price]元！",
        "不用猜了，[price]元。",
    ),
}
CLOSING = {
    "en": (
        "Three, two, one, the link is up!",
        "Tap the link below, before it is gone.",
        "Leave me a comment, and get yours now.",
        "Ready? Then let us go!",
        "The basket is waiting for you.",
    ),
    "zh": (
        "三、二、一，上链接！",
        "喜欢的朋友，赶紧点下面的小黄车。",
        "想要的扣个一，马上开抢！",
        "手慢无，快去下单吧！",
    ),
}


def scripts(count: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """Records of the task `write`: `title` is the source, `text` the script with its slots."""
    rng = random.Random(seed)
    for _ in range(count):
        lang, category = rng.choice(("en", "zh")), rng.choice(CATEGORIES)
        slots = tuple(slot for slot in SLOTS if rng.random() < 0.7)
        middle = [rng.choice(PRAISE[category, lang])]
        if "colour" in slots:
            middle.insert(rng.randrange(2), rng.choice(COLOUR[lang]))
        if "price" in slots:
            middle.append(rng.choice(PRICE[lang]))
        said = (rng.choice(OPENING[lang]), *middle, rng.choice(CLOSING[lang]))
        yield {"title": source(lang, category, slots), "text": ("" if lang == "zh" else " ").join(said)}


def main(path: str = "scripts.jsonl", count: str = "20000") -> None:
    with Path(path).open("w", encoding="utf-8") as file:
        for record in scripts(int(count)):
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
