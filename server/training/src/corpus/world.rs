//! What exists in the world: people, places and things, as tables.

/// A place and how one is in it.
#[derive(Debug)]
pub(crate) struct Place {
    /// With its article: `the harbour`.
    pub(crate) name: &'static str,
    /// `at`, `in`, `on`, `by`.
    pub(crate) prep: &'static str,
    /// Where a small thing may lie there.
    pub(crate) spots: &'static [&'static str],
    /// What one sees, hears or smells there.
    pub(crate) sight: &'static [&'static str],
}

macro_rules! places {
    ($($prep:literal $name:literal [$($spot:literal),*] [$($sight:literal),*];)*) => {
        &[$(Place { name: $name, prep: $prep, spots: &[$($spot),*], sight: &[$($sight),*] }),*]
    };
}

pub(crate) const PLACES: &[Place] = places! {
    "at" "the harbour" ["behind the barrels", "under a fishing net", "beside an old anchor"] ["the boats rocked on the water", "gulls cried above the masts", "the air smelled of salt"];
    "at" "the market" ["under a fruit stall", "behind a pile of baskets", "between two sacks of flour"] ["people called out their prices", "the stalls were full of apples", "it smelled of fresh bread"];
    "at" "the mill" ["behind a sack of grain", "next to the millstone", "under the wooden steps"] ["the great wheel turned slowly", "flour dust hung in the air", "water ran over the wheel"];
    "on" "the old bridge" ["between two loose stones", "under the railing", "on the last step"] ["the river ran far below", "moss grew on the stones", "the wind blew from the water"];
    "at" "the lighthouse" ["on the winding stairs", "behind the big lamp", "under the keeper's chair"] ["the lamp swept over the sea", "waves broke on the rocks", "the stairs went round and round"];
    "in" "the forest" ["under a fern", "inside a hollow tree", "beside a mossy stone"] ["the leaves whispered", "a cuckoo called far away", "the light was green and soft"];
    "in" "the meadow" ["in the tall grass", "under a clover leaf", "beside a molehill"] ["bees hummed over the flowers", "the grass was wet with dew", "butterflies danced in the sun"];
    "in" "the bakery" ["behind the flour bin", "under the counter", "on the top shelf"] ["warm loaves lay on the shelf", "the oven glowed", "it smelled of cinnamon"];
    "in" "the garden" ["under a rose bush", "behind the watering can", "among the beans"] ["the roses were in bloom", "a robin sang on the fence", "the soil was dark and wet"];
    "in" "the library" ["between two thick books", "under the reading desk", "behind the globe"] ["it was very quiet", "the shelves reached the ceiling", "dust danced in the light"];
    "at" "the school" ["under a bench", "inside a desk", "behind the blackboard"] ["the bell had just rung", "chalk dust lay on the floor", "children laughed in the yard"];
    "on" "the beach" ["under a heap of seaweed", "inside a bucket", "half buried in the sand"] ["the sand was warm", "small waves rolled in", "crabs ran over the stones"];
    "on" "the hill" ["beside a flat stone", "in a patch of heather", "under the lonely tree"] ["the wind was strong", "one could see the whole valley", "sheep grazed on the slope"];
    "in" "the village square" ["beside the fountain", "under the stone bench", "on the steps of the town hall"] ["the fountain splashed", "pigeons walked on the stones", "the clock struck the hour"];
    "in" "the orchard" ["under an apple tree", "inside an empty crate", "beside the ladder"] ["the branches were heavy with fruit", "wasps buzzed around the pears", "a ladder leaned on a tree"];
    "in" "the stable" ["in the straw", "under the saddle", "behind the feed box"] ["the horses snorted softly", "it smelled of hay", "a grey cat slept on a beam"];
    "in" "the barn" ["behind a bale of hay", "under the cart", "on a dusty beam"] ["swallows flew in and out", "light fell through the boards", "the hay was piled high"];
    "in" "the cave" ["on a ledge of rock", "beside a dark pool", "behind a tall stone"] ["water dripped from the roof", "every step made an echo", "it was cold and dark"];
    "on" "the island" ["under a palm leaf", "between the roots of a tree", "inside a broken boat"] ["the sea was blue on all sides", "seabirds nested on the cliff", "a path led to a spring"];
    "at" "the station" ["under the waiting bench", "behind the ticket window", "beside the tracks"] ["a train whistled far away", "steam rose from the engine", "people hurried with their bags"];
    "in" "the workshop" ["under a pile of shavings", "inside the toolbox", "behind the paint pots"] ["tools hung on the wall", "it smelled of wood and glue", "a half-made chair stood on the bench"];
    "by" "the pond" ["under a lily leaf", "in the mud", "beside a willow root"] ["frogs croaked in the reeds", "the water was still", "ducks swam in a row"];
    "by" "the well" ["inside the bucket", "behind the stone rim", "under the wooden lid"] ["the rope creaked", "the water was cold and clear", "ivy grew over the stones"];
    "at" "the inn" ["under the long table", "beside the fireplace", "behind the bar"] ["a fire crackled", "travellers told their tales", "soup bubbled in a pot"];
    "in" "the smithy" ["behind the anvil", "under the bellows", "in a box of nails"] ["sparks flew", "the hammer rang", "the fire was white and hot"];
    "at" "the ferry landing" ["under the jetty", "beside the mooring post", "inside a coil of rope"] ["the ferry bell rang", "the river was wide and brown", "the ferryman smoked his pipe"];
    "in" "the greenhouse" ["behind a flower pot", "under the tomato plants", "beside the watering can"] ["the air was warm and damp", "tomatoes shone red", "the glass was covered with drops"];
    "in" "the attic" ["inside an old trunk", "under a dusty sheet", "behind the chimney"] ["the floor creaked", "cobwebs hung in the corners", "a small window let in some light"];
    "by" "the waterfall" ["behind a wet rock", "under a fern", "beside the pool"] ["the water roared", "a rainbow stood in the spray", "the rocks were slippery"];
    "in" "the marsh" ["on a tuft of grass", "among the reeds", "beside a rotten log"] ["mist lay over the water", "a heron stood on one leg", "the ground was soft"];
    "on" "the pier" ["under a loose plank", "beside a lobster pot", "behind a stack of crates"] ["fishermen mended their nets", "the planks were wet", "a bell buoy rang"];
    "in" "the kitchen" ["inside the teapot", "under the sink", "behind the bread bin"] ["a kettle sang", "pots shone on the wall", "it was warm and bright"];
};

pub(crate) const WOMEN: &[&str] = &[
    "Mira", "Anna", "Ada", "Lena", "Nora", "Ella", "Rosa", "Ines", "Clara", "Tilda", "Greta", "Maya", "Lucy", "Ruth",
    "Sofia", "Hanna", "Ida", "Lily", "Emma", "Olga", "Zara", "Nina", "Vera", "Alma", "Edda", "Freya", "June", "Pearl",
    "Alice", "Sara", "Julia", "Marta", "Paula", "Elsa", "Irma", "Lotte", "Mina", "Rita", "Selma", "Tessa",
];

pub(crate) const MEN: &[&str] = &[
    "Tom", "Ben", "Otto", "Hugo", "Emil", "Jonas", "Karl", "Felix", "Leo", "Max", "Oscar", "Paul", "Sam", "Theo",
    "Victor", "Anton", "Bruno", "David", "Erik", "Finn", "Jack", "Luca", "Nico", "Peter", "Robin", "Simon", "Tim",
    "Walter", "Arthur", "Noah", "Albert", "Carl", "Daniel", "Frank", "Georg", "Henry", "Ivan", "Klaus", "Martin",
    "Rolf",
];

/// What the main character is.
pub(crate) const ROLES: &[&str] = &[
    "baker",
    "fisher",
    "gardener",
    "miller",
    "sailor",
    "painter",
    "shepherd",
    "carpenter",
    "farmer",
    "cook",
    "tailor",
    "weaver",
    "potter",
    "student",
    "doctor",
    "teacher",
    "postman",
    "musician",
    "clockmaker",
    "beekeeper",
    "knight",
    "merchant",
    "fox",
    "rabbit",
    "bear",
    "mouse",
    "cat",
    "dog",
    "owl",
    "hedgehog",
    "badger",
    "otter",
];

pub(crate) const TRAITS: &[&str] = &[
    "young", "old", "kind", "clever", "shy", "brave", "quiet", "cheerful", "curious", "careful", "stubborn", "patient",
    "lonely", "busy", "poor", "friendly",
];

/// Small things to own, lose, find, lend and give.
pub(crate) const THINGS: &[&str] = &[
    "key", "lantern", "map", "whistle", "ring", "book", "kite", "basket", "scarf", "spoon", "coin", "letter", "flute",
    "compass", "rope", "blanket", "hammer", "needle", "bell", "button", "hat", "drum", "jar", "brush", "candle",
    "ball", "boot", "mirror", "cup", "shell", "feather", "pearl", "watch", "glove", "umbrella", "box", "knife", "pen",
    "violin", "stone",
];

pub(crate) const LOOKS: &[&str] = &[
    "small",
    "old",
    "red",
    "blue",
    "green",
    "silver",
    "golden",
    "wooden",
    "brass",
    "white",
    "black",
    "yellow",
    "tiny",
    "heavy",
    "beautiful",
    "strange",
    "striped",
    "shiny",
    "plain",
    "broken",
];

pub(crate) const FOODS: &[&str] = &[
    "an apple",
    "a loaf of bread",
    "a piece of cheese",
    "a honey cake",
    "a bowl of soup",
    "some nuts",
    "a plum tart",
    "a basket of berries",
    "a warm bun",
    "a pear",
    "some roasted chestnuts",
    "a slice of pie",
];

/// What a person is doing when one meets them.
pub(crate) const DOINGS: &[&str] = &[
    "reading an old book",
    "mending a net",
    "peeling potatoes",
    "feeding the birds",
    "sweeping the floor",
    "painting a fence",
    "carrying a sack",
    "eating an apple",
    "looking for mushrooms",
    "washing a shirt",
    "singing a song",
    "sharpening a knife",
    "drinking tea",
    "counting coins",
    "writing a letter",
    "picking flowers",
    "carving a spoon",
    "knitting a scarf",
    "brushing a horse",
    "stacking wood",
    "resting in the shade",
    "playing the flute",
    "throwing stones into the water",
    "watching the clouds",
    "tying a knot",
    "polishing a lamp",
];

/// What people wear and carry.
pub(crate) const CLOTHES: &[&str] =
    &["hat", "coat", "scarf", "cap", "jacket", "apron", "shawl", "ribbon", "belt", "cloak", "bag", "basket"];
pub(crate) const COLOURS: &[&str] =
    &["red", "blue", "green", "yellow", "grey", "brown", "white", "black", "purple", "striped"];

/// What one sees on the way.
pub(crate) const SIGHTS: &[&str] = &[
    "an old man with a cart",
    "two crows on a fence",
    "a girl with a balloon",
    "a snail on a leaf",
    "three white geese",
    "a sleeping cat",
    "a boy with a fishing rod",
    "a flock of sheep",
    "a hare in the grass",
    "a woman with a big basket",
    "a stork on a roof",
    "a broken wagon",
    "a field of poppies",
    "a little red house",
    "a squirrel with a nut",
    "an empty bench",
    "a frog on a stone",
    "a dog with one ear",
    "a kite in the sky",
    "a row of ducklings",
    "smoke above the roofs",
    "a hedgehog under a leaf",
    "a soldier on a horse",
    "a beetle as green as glass",
];

pub(crate) const BEASTS: &[&str] = &[
    "kitten", "lamb", "puppy", "duckling", "foal", "squirrel", "goat", "hen", "sparrow", "seal", "donkey", "swan",
    "hare", "calf",
];

/// Syllables of names that nobody has: they teach copying rather than knowing.
pub(crate) const ONSETS: &[&str] = &[
    "b", "br", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "kr", "l", "m", "n", "p", "pl", "qu", "r", "s", "sk",
    "st", "t", "tr", "v", "w", "y", "z", "th", "sh", "ch",
];
pub(crate) const VOWELS: &[&str] = &["a", "e", "i", "o", "u", "ai", "ee", "oo", "ou", "ia", "y"];
pub(crate) const CODAS: &[&str] =
    &["", "", "n", "r", "l", "m", "s", "k", "th", "x", "nd", "rt", "b", "g", "mp", "sh", "lo", "ra", "vi"];
