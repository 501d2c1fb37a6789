"""The plain words a world is made of: what is true of them by nature is fixed here.

A seed decides the rest (who lives where, what an animal eats, which colour a food has), so that
nothing about a world can be known without having read about that world.
"""

ANIMALS: dict[str, tuple[str, ...]] = {
    "bird": tuple("owl wren lark heron crow robin swan goose finch dove eagle stork".split()),
    "fish": tuple("trout carp pike eel perch salmon cod herring bream tench".split()),
    "insect": tuple("bee ant moth beetle wasp cricket gnat locust hornet firefly".split()),
    "mammal": tuple("fox bear otter hare badger deer goat wolf mole stoat beaver squirrel".split()),
    "reptile": tuple("snake lizard turtle gecko viper tortoise".split()),
}
FOODS: dict[str, tuple[str, ...]] = {
    "fruit": tuple("apple pear plum cherry fig peach grape melon quince lemon".split()),
    "vegetable": tuple("carrot turnip leek onion cabbage beetroot bean radish parsnip pea".split()),
    "grain": tuple("rice barley oats rye wheat millet".split()),
    "drink": tuple("milk tea cider juice cocoa mead".split()),
    "sweet": tuple("honey cake jam toffee pudding tart biscuit fudge".split()),
}
OBJECTS: tuple[str, ...] = tuple(
    "lamp bowl chair drum ring clock mirror basket kettle ladder whistle candle blanket bell "
    "trunk spoon flute cup rope shield map key coin boot bottle statue pillow anchor lantern "
    "pipe hat belt fan vase plate cloak comb stool crown bucket".split()
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
HABITATS = tuple("forest marsh meadow lake cave garden desert moor".split())
DIETS = tuple("seeds worms leaves berries roots moss nuts shrimp".split())
COLOURS = tuple("red green yellow brown white purple orange black".split())
SEASONS = ("spring", "summer", "autumn", "winter")
MATERIALS = tuple("oak clay iron glass silver copper marble ivory".split())
ROOMS = tuple("kitchen attic barn cellar hall porch stable pantry".split())
FINISHES = tuple("golden tiny broken striped painted ancient round carved".split())

NAME_STARTS = tuple(
    "Ta Mi Ke Vo Sa Lu Be Dari No Fe Ga Hel Jo Ri Pe Zo Wil Or Em Cas Ny Bram Thi Ul Ada".split()
)
NAME_ENDS = tuple(
    "lo ren ka mas vi dun nel ra bek tia mor sin jen rik wen dal fa gus lin pet sha ton ya zel "
    "bo cia nor hild vane quin".split()
)
TOWN_STARTS = tuple(
    "Ash Bel Crom Dun East Fal Grim Holl Ives Kings Long Marl Nor Oak Pen Quar Red Stan Thorn "
    "Up Wex York Ald Brack Cold".split()
)
TOWN_ENDS = tuple(
    "ford wick mere bury ham gate dale port field stead haven cliff brook moor bridge well".split()
)
REGIONS = tuple("Northvale Sunmarch Westfen Highlock Seaward Greyhills".split())
RIVERS = tuple("Ilda Sorrow Tamble Vesk Arrin Quell Brindle Lossa Merrow Dace".split())
