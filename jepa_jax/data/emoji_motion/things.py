"""The 120 things that appear in the clips: all drawn by two artists, most animated by one."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Thing:
    """One nameable thing.

    Attributes:
      name: one or two everyday words, lower case, countable; no name is a word of another name.
      codepoint: hexadecimal Unicode sequence joined by "-", the file stem in the source packages.
      category: animal, food, vehicle, object or plant.
    """

    name: str
    codepoint: str
    category: str


# Chosen to be told apart at 20 pixels and to be drawn alike by both artists: of look-alikes
# (squid and octopus, tram and bus, wolf and fox) only one is here. No people, faces, hands, flags or signs.
# The order is part of the format: the pack's arrays are indexed by it.
THINGS: tuple[Thing, ...] = (
    # animals
    Thing("cat", "1f408", "animal"),
    Thing("dog", "1f415", "animal"),
    Thing("horse", "1f40e", "animal"),
    Thing("cow", "1f404", "animal"),
    Thing("pig", "1f416", "animal"),
    Thing("sheep", "1f411", "animal"),
    Thing("rabbit", "1f407", "animal"),
    Thing("tiger", "1f405", "animal"),
    Thing("lion", "1f981", "animal"),
    Thing("bear", "1f43b", "animal"),
    Thing("panda", "1f43c", "animal"),
    Thing("koala", "1f428", "animal"),
    Thing("fox", "1f98a", "animal"),
    Thing("monkey", "1f412", "animal"),
    Thing("gorilla", "1f98d", "animal"),
    Thing("elephant", "1f418", "animal"),
    Thing("giraffe", "1f992", "animal"),
    Thing("zebra", "1f993", "animal"),
    Thing("kangaroo", "1f998", "animal"),
    Thing("hedgehog", "1f994", "animal"),
    Thing("camel", "1f42b", "animal"),
    Thing("unicorn", "1f984", "animal"),
    Thing("dinosaur", "1f996", "animal"),
    Thing("frog", "1f438", "animal"),
    Thing("turtle", "1f422", "animal"),
    Thing("crocodile", "1f40a", "animal"),
    Thing("snake", "1f40d", "animal"),
    Thing("whale", "1f433", "animal"),
    Thing("dolphin", "1f42c", "animal"),
    Thing("fish", "1f420", "animal"),
    Thing("shark", "1f988", "animal"),
    Thing("octopus", "1f419", "animal"),
    Thing("crab", "1f980", "animal"),
    Thing("lobster", "1f99e", "animal"),
    Thing("snail", "1f40c", "animal"),
    Thing("butterfly", "1f98b", "animal"),
    Thing("bee", "1f41d", "animal"),
    Thing("ladybug", "1f41e", "animal"),
    Thing("spider", "1f577-fe0f", "animal"),
    Thing("scorpion", "1f982", "animal"),
    Thing("penguin", "1f427", "animal"),
    Thing("owl", "1f989", "animal"),
    Thing("eagle", "1f985", "animal"),
    Thing("parrot", "1f99c", "animal"),
    Thing("flamingo", "1f9a9", "animal"),
    Thing("peacock", "1f99a", "animal"),
    Thing("swan", "1f9a2", "animal"),
    Thing("duck", "1f986", "animal"),
    Thing("rooster", "1f413", "animal"),
    Thing("chick", "1f425", "animal"),
    Thing("bat", "1f987", "animal"),
    # food
    Thing("apple", "1f34e", "food"),
    Thing("banana", "1f34c", "food"),
    Thing("orange", "1f34a", "food"),
    Thing("lemon", "1f34b", "food"),
    Thing("pineapple", "1f34d", "food"),
    Thing("watermelon", "1f349", "food"),
    Thing("strawberry", "1f353", "food"),
    Thing("carrot", "1f955", "food"),
    Thing("eggplant", "1f346", "food"),
    Thing("avocado", "1f951", "food"),
    Thing("mushroom", "1f344", "food"),
    Thing("pumpkin", "1f383", "food"),
    Thing("hamburger", "1f354", "food"),
    Thing("pizza", "1f355", "food"),
    Thing("doughnut", "1f369", "food"),
    Thing("lollipop", "1f36d", "food"),
    Thing("cake", "1f382", "food"),
    Thing("cocktail", "1f378", "food"),
    # vehicles
    Thing("car", "1f697", "vehicle"),
    Thing("taxi", "1f695", "vehicle"),
    Thing("bus", "1f68c", "vehicle"),
    Thing("truck", "1f69a", "vehicle"),
    Thing("firetruck", "1f692", "vehicle"),
    Thing("ambulance", "1f691", "vehicle"),
    Thing("tractor", "1f69c", "vehicle"),
    Thing("motorcycle", "1f3cd-fe0f", "vehicle"),
    Thing("bicycle", "1f6b2", "vehicle"),
    Thing("train", "1f682", "vehicle"),
    Thing("airplane", "2708-fe0f", "vehicle"),
    Thing("helicopter", "1f681", "vehicle"),
    Thing("rocket", "1f680", "vehicle"),
    Thing("flying saucer", "1f6f8", "vehicle"),
    Thing("parachute", "1fa82", "vehicle"),
    Thing("ship", "1f6a2", "vehicle"),
    Thing("sailboat", "26f5", "vehicle"),
    Thing("speedboat", "1f6a4", "vehicle"),
    Thing("canoe", "1f6f6", "vehicle"),
    # objects
    Thing("clock", "23f0", "object"),
    Thing("watch", "231a", "object"),
    Thing("hourglass", "23f3", "object"),
    Thing("compass", "1f9ed", "object"),
    Thing("umbrella", "2602-fe0f", "object"),
    Thing("cup", "2615", "object"),
    Thing("fountain", "26f2", "object"),
    Thing("snowman", "26c4", "object"),
    Thing("snowflake", "2744-fe0f", "object"),
    Thing("sun", "2600-fe0f", "object"),
    Thing("star", "2b50", "object"),
    Thing("planet", "1fa90", "object"),
    Thing("cloud", "2601-fe0f", "object"),
    Thing("rainbow", "1f308", "object"),
    Thing("key", "1f511", "object"),
    Thing("guitar", "1f3b8", "object"),
    Thing("drum", "1f941", "object"),
    Thing("camera", "1f4f7", "object"),
    Thing("telephone", "260e-fe0f", "object"),
    Thing("balloon", "1f388", "object"),
    Thing("gift", "1f381", "object"),
    Thing("crown", "1f451", "object"),
    Thing("diamond", "1f48e", "object"),
    Thing("magnet", "1f9f2", "object"),
    # plants
    Thing("cactus", "1f335", "plant"),
    Thing("palm", "1f334", "plant"),
    Thing("tree", "1f333", "plant"),
    Thing("rose", "1f339", "plant"),
    Thing("tulip", "1f337", "plant"),
    Thing("sunflower", "1f33b", "plant"),
    Thing("clover", "1f340", "plant"),
    Thing("leaf", "1f341", "plant"),
)


def with_article(name: str) -> str:
    """Returns the name behind its indefinite article: "a cat", "an owl"."""
    # Vowel sound and vowel letter part ways in one name only ("a unicorn").
    article = "an" if name[0] in "aeiou" and name != "unicorn" else "a"
    return f"{article} {name}"
