"""The plain words a world is made of: what is true of them by nature is fixed here.

A seed decides the rest (who lives where, what an animal eats, which colour a food has), so that
nothing about a world can be known without having read about that world.
"""


def _each(words: str) -> tuple[str, ...]:
    return tuple(words.split())


ANIMALS: dict[str, tuple[str, ...]] = {
    "bird": _each("owl wren lark heron crow robin swan goose finch dove eagle stork"),
    "fish": _each("trout carp pike eel perch salmon cod herring bream tench"),
    "insect": _each("bee ant moth beetle wasp cricket gnat locust hornet firefly"),
    "mammal": _each("fox bear otter hare badger deer goat wolf mole stoat beaver squirrel"),
    "reptile": _each("snake lizard turtle gecko viper tortoise"),
}
FOODS: dict[str, tuple[str, ...]] = {
    "fruit": _each("apple pear plum cherry fig peach grape melon quince lemon"),
    "vegetable": _each("carrot turnip leek onion cabbage beetroot bean radish parsnip pea"),
    "grain": _each("rice barley oats rye wheat millet"),
    "drink": _each("milk tea cider juice cocoa mead"),
    "sweet": _each("honey cake jam toffee pudding tart biscuit fudge"),
}
OBJECTS: tuple[str, ...] = _each(
    "lamp bowl chair drum ring clock mirror basket kettle ladder whistle candle blanket bell "
    "trunk spoon flute cup rope shield map key coin boot bottle statue pillow anchor lantern "
    "pipe hat belt fan vase plate cloak comb stool crown bucket"
)
TRADES: dict[str, tuple[str, str]] = {  # trade: (tool, product)
    "baker": ("oven", "bread"),
    "weaver": ("loom", "cloth"),
    "potter": ("wheel", "pots"),
    "smith": ("hammer", "horseshoes"),
    "carpenter": ("saw", "tables"),
    "tailor": ("needle", "coats"),
    "farmer": ("plough", "crops"),
    "miller": ("millstone", "flour"),
    "fisher": ("net", "catches"),
    "painter": ("brush", "portraits"),
    "mason": ("chisel", "walls"),
    "brewer": ("barrel", "ale"),
    "cobbler": ("awl", "shoes"),
    "printer": ("press", "books"),
    "gardener": ("spade", "flowers"),
    "tanner": ("vat", "leather"),
    "cooper": ("mallet", "casks"),
    "glazier": ("furnace", "windows"),
    "roofer": ("trowel", "roofs"),
    "shepherd": ("crook", "wool"),
    "cheesemaker": ("churn", "cheese"),
    "scribe": ("quill", "letters"),
    "jeweller": ("tweezers", "necklaces"),
    "woodcutter": ("axe", "firewood"),
    "locksmith": ("file", "locks"),
    "miner": ("pickaxe", "ore"),
    "cook": ("pan", "stews"),
    "thatcher": ("rake", "thatch"),
}
HABITATS = _each("forest marsh meadow lake cave garden desert moor")
DIETS = _each("seeds worms leaves berries roots moss nuts shrimp")
COLOURS = _each("red green yellow brown white purple orange black")
SEASONS = ("spring", "summer", "autumn", "winter")
MATERIALS = _each("oak clay iron glass silver copper marble ivory")
ROOMS = _each("kitchen attic barn cellar hall porch stable pantry")
FINISHES = _each("golden tiny broken striped painted ancient round carved")

NAME_STARTS = _each("Ta Mi Ke Vo Sa Lu Be Dari No Fe Ga Hel Jo Ri Pe Zo Wil Or Em Cas Ny Bram Thi Ul Ada")
NAME_ENDS = _each(
    "lo ren ka mas vi dun nel ra bek tia mor sin jen rik wen dal fa gus lin pet sha ton ya zel "
    "bo cia nor hild vane quin"
)
TOWN_STARTS = _each(
    "Ash Bel Crom Dun East Fal Grim Holl Ives Kings Long Marl Nor Oak Pen Quar Red Stan Thorn "
    "Up Wex York Ald Brack Cold"
)
TOWN_ENDS = _each("ford wick mere bury ham gate dale port field stead haven cliff brook moor bridge well")
REGIONS = _each("Northvale Sunmarch Westfen Highlock Seaward Greyhills")
RIVERS = _each("Ilda Sorrow Tamble Vesk Arrin Quell Brindle Lossa Merrow Dace")
