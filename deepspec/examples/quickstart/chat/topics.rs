//! Phrases by subject.

/// Phrases that fit one subject and go into the slots of sentences.
pub(super) struct Topic {
    /// Gerund: "baking bread".
    pub(super) doing: &'static str,
    /// Base form: "bake bread".
    pub(super) todo: &'static str,
    /// Things to do, base form.
    pub(super) advice: &'static [&'static str],
    /// Good outcomes, a clause each.
    pub(super) benefit: &'static [&'static str],
    /// Things that go wrong, a clause each.
    pub(super) trouble: &'static [&'static str],
    /// Useful things, singular with article.
    pub(super) tool: &'static [&'static str],
    /// Pleasures, singular noun phrases.
    pub(super) joy: &'static [&'static str],
}

macro_rules! topic {
    ($doing:literal, $todo:literal, advice $advice:tt, benefit $benefit:tt, trouble $trouble:tt, tool $tool:tt, joy $joy:tt) => {
        &Topic {
            doing: $doing,
            todo: $todo,
            advice: &$advice,
            benefit: &$benefit,
            trouble: &$trouble,
            tool: &$tool,
            joy: &$joy,
        }
    };
}

pub(super) const TOPICS: &[&Topic] = &[
    topic!(
        "baking bread", "bake bread",
        advice [
            "weigh the flour", "use warm water", "let the dough rest", "heat the oven early",
            "add a little more salt", "fold the dough twice", "wait before you cut it",
        ],
        benefit [
            "the crust gets crisp", "the crumb stays soft", "the whole house smells good",
            "the loaf keeps its shape", "breakfast gets better",
        ],
        trouble [
            "the dough is too sticky", "the loaf stays flat", "the crust gets too dark",
            "the bread is dry the next day",
        ],
        tool ["a heavy pot", "a kitchen scale", "a sharp knife", "a big bowl"],
        joy [
            "the smell of a fresh loaf", "the first warm slice", "the sound of the crust",
            "a quiet morning in the kitchen",
        ]
    ),
    topic!(
        "growing tomatoes", "grow tomatoes",
        advice [
            "water the roots in the morning", "choose a sunny place", "tie the plants to a stick",
            "remove the lower leaves", "use good soil", "plant them far apart", "check the leaves every day",
        ],
        benefit [
            "the fruit gets sweet", "the plants stay healthy", "the leaves dry quickly",
            "the harvest lasts until autumn", "you need fewer trips to the shop",
        ],
        trouble [
            "the leaves turn yellow", "the fruit stays green", "the snails come at night",
            "the plants fall over",
        ],
        tool ["a large pot", "a watering can", "a bag of soil", "a strong stick"],
        joy [
            "the taste of the first tomato", "a bowl full of red fruit", "the smell of the leaves",
            "an hour in the garden",
        ]
    ),
    topic!(
        "running", "run a few miles",
        advice [
            "start slowly", "warm up first", "run with a friend", "rest for a day", "drink enough water",
            "keep your steps short", "sign up for a race",
        ],
        benefit [
            "your heart gets stronger", "you sleep better at night", "your head gets clear",
            "the hills feel smaller", "your mood lifts",
        ],
        trouble ["my knees hurt", "I run out of breath", "it rains all week", "my legs feel heavy"],
        tool ["a good pair of shoes", "a light jacket", "a simple watch", "a flat path"],
        joy [
            "the calm after a long run", "the cool air at sunrise", "the last mile home",
            "a quiet road by the river",
        ]
    ),
    topic!(
        "sleeping well", "sleep better",
        advice [
            "go to bed at the same time", "keep the room dark", "put the phone away", "skip the late coffee",
            "open the window", "read a few pages", "write down your worries",
        ],
        benefit [
            "you wake up fresh", "the mind calms down", "the night feels longer", "mornings get easier",
            "small problems stay small",
        ],
        trouble [
            "I lie awake for hours", "the street is too loud", "I wake up too early",
            "my thoughts keep turning",
        ],
        tool ["a firm pillow", "a warm blanket", "a dark curtain", "a boring book"],
        joy [
            "the silence of a dark room", "a slow Sunday morning", "the first deep breath in bed",
            "a long dream",
        ]
    ),
    topic!(
        "reading novels", "read more novels",
        advice [
            "keep a book in your bag", "read before bed", "stop a book you do not like", "join a book club",
            "ask a friend for a title", "turn off the television", "try an old classic",
        ],
        benefit [
            "time flies", "you see other lives", "your words get richer", "the day ends calmly",
            "you have more to talk about",
        ],
        trouble [
            "I forget the names", "the plot is too slow", "I fall asleep after one page",
            "the book is too long",
        ],
        tool ["a library card", "a soft chair", "a warm lamp", "a list of titles"],
        joy [
            "a rainy day with a good story", "a perfect last page", "the smell of old paper",
            "a hero with doubts",
        ]
    ),
    topic!(
        "learning a language", "learn a new language",
        advice [
            "practice a little every day", "speak from the first week", "listen to songs",
            "write short letters", "label things at home", "watch films without subtitles",
            "laugh about your mistakes",
        ],
        benefit [
            "words stay in your memory", "travel gets more fun", "you make new friends",
            "the grammar starts to make sense", "your ear gets used to it",
        ],
        trouble [
            "I forget the new words", "people talk too fast", "the grammar confuses me",
            "I am afraid to speak",
        ],
        tool ["a small notebook", "a patient teacher", "a good dictionary", "a pen friend"],
        joy [
            "the first joke you understand", "a chat with a stranger", "a song you can suddenly follow",
            "a letter from abroad",
        ]
    ),
    topic!(
        "hiking in the hills", "hike in the hills",
        advice [
            "check the weather", "start early", "pack some food", "tell someone your route",
            "take more water than you think", "turn back in time", "walk at your own pace",
        ],
        benefit [
            "the view gets wider", "your legs grow strong", "worries stay in the valley",
            "dinner tastes twice as good", "you meet friendly people",
        ],
        trouble ["the path is steep", "clouds hide the top", "my feet get wet", "we lose the trail"],
        tool ["a paper map", "a light backpack", "a pair of solid boots", "a warm hat"],
        joy [
            "the view from the top", "a cold stream on a hot day", "the smell of the forest",
            "a sandwich on a rock",
        ]
    ),
    topic!(
        "cooking at home", "cook at home more often",
        advice [
            "plan the week", "cut everything first", "taste as you go", "keep the pan hot",
            "cook a double portion", "use fresh herbs", "clean up while you wait",
        ],
        benefit [
            "you save money", "the food tastes better", "guests feel welcome", "you know what you eat",
            "lunch for tomorrow is ready",
        ],
        trouble [
            "the rice sticks to the pot", "the soup tastes flat", "I have no time to shop",
            "the kitchen is a mess",
        ],
        tool ["a sharp knife", "a good pan", "a wooden spoon", "a simple recipe"],
        joy [
            "a pot of soup on a cold day", "the smell of garlic in butter", "a long table with friends",
            "a clean plate at the end",
        ]
    ),
    topic!(
        "playing the guitar", "play the guitar",
        advice [
            "tune it every day", "practice with slow songs", "play along with a record",
            "learn three chords well", "count the beat aloud", "take short breaks", "sing while you play",
        ],
        benefit [
            "your fingers remember the way", "the rhythm gets steady", "the sound becomes clean",
            "people start to sing", "long evenings get short",
        ],
        trouble [
            "my fingers hurt", "the strings buzz", "the chords change too fast", "the neighbors complain",
        ],
        tool ["a cheap tuner", "a set of new strings", "a songbook", "a comfortable strap"],
        joy [
            "the first whole song", "a tune around the fire", "the sound of a new chord",
            "a duet with a friend",
        ]
    ),
    topic!(
        "keeping a cat", "adopt a cat",
        advice [
            "give it time", "play with it in the evening", "visit the vet once a year",
            "put the bowl in a quiet corner", "let it come to you", "brush it gently",
            "keep the windows safe",
        ],
        benefit [
            "it trusts you sooner", "the fur stays soft", "it sleeps through the night", "the sofa survives",
            "the house feels alive",
        ],
        trouble [
            "it scratches the chair", "it wakes me at five", "it does not like the food",
            "it hides under the bed",
        ],
        tool ["a tall post", "a cardboard box", "a soft brush", "a small bell"],
        joy [
            "a warm cat on a cold evening", "the sound of purring", "a nap in the sun",
            "a greeting at the door",
        ]
    ),
    topic!(
        "taking photos", "take better photos",
        advice [
            "go out early", "move closer", "look for soft light", "wait for the right moment",
            "keep the horizon straight", "take fewer pictures", "print the best ones",
        ],
        benefit [
            "faces look natural", "colors come alive", "the picture tells a story", "you notice small things",
            "memories stay fresh",
        ],
        trouble [
            "the pictures are too dark", "everything looks flat", "people close their eyes",
            "the sky turns white",
        ],
        tool ["a small camera", "a steady stand", "a clean lens", "a free afternoon"],
        joy [
            "the golden light of evening", "a smile nobody planned", "an old street after rain",
            "an album full of friends",
        ]
    ),
    topic!(
        "saving money", "save some money",
        advice [
            "write down what you spend", "set a small goal", "wait a day before you buy",
            "cancel what you do not use", "cook for two days", "sell old things", "pay yourself first",
        ],
        benefit [
            "bills stop being scary", "small sums add up", "you sleep more calmly", "a trip becomes possible",
            "you learn what matters",
        ],
        trouble [
            "the rent goes up", "the month is longer than the money", "I buy things I do not need",
            "prices keep rising",
        ],
        tool ["a simple list", "a second account", "a glass jar", "a clear plan"],
        joy ["a full jar of coins", "the feeling of being prepared", "a holiday without debts", "a good deal"]
    ),
    topic!(
        "riding a bike to work", "ride my bike to work",
        advice [
            "wear bright colors", "pump up the tires", "choose the quiet streets",
            "leave ten minutes earlier", "lock it twice", "bring a dry shirt", "oil the chain",
        ],
        benefit [
            "you arrive wide awake", "traffic does not bother you", "you save on fuel",
            "your legs get stronger", "the city looks different",
        ],
        trouble [
            "it rains on the way", "the wind comes from the front", "a tire goes flat",
            "the hill is too long",
        ],
        tool ["a strong lock", "a rain jacket", "a bright lamp", "a good helmet"],
        joy [
            "the empty street at dawn", "a ride along the canal", "the wind on the way down",
            "a shortcut through the park",
        ]
    ),
    topic!(
        "working from home", "work from home",
        advice [
            "dress as usual", "take a real lunch break", "close the door", "plan three tasks",
            "go for a short walk", "turn off the news", "stop at a fixed hour",
        ],
        benefit [
            "you get more done", "the evening is really free", "your back stays healthy",
            "calls run smoothly", "the day has a shape",
        ],
        trouble [
            "the children are loud", "I miss my team", "the day never ends", "I look at my phone too often",
        ],
        tool ["a proper chair", "a second screen", "a quiet corner", "a good lamp"],
        joy [
            "a fresh coffee between two calls", "a lunch in the sun", "an hour without noise",
            "a finished list",
        ]
    ),
    topic!(
        "swimming", "swim twice a week",
        advice [
            "breathe out under water", "start with short lanes", "relax your neck", "use your hips",
            "count your strokes", "take a lesson", "go when the pool is empty",
        ],
        benefit [
            "your shoulders loosen", "you glide further", "your joints feel light", "you get less tired",
            "the whole body works",
        ],
        trouble ["I swallow water", "the water is cold", "the pool is crowded", "my goggles leak"],
        tool ["a pair of goggles", "a simple cap", "a soft towel", "a season ticket"],
        joy [
            "the silence under water", "a lake in July", "a hot shower afterwards",
            "the first jump of the year",
        ]
    ),
    topic!(
        "playing chess", "play chess",
        advice [
            "look at every check", "castle early", "study the endgame", "play slower games",
            "review your losses", "solve one puzzle a day", "keep your king safe",
        ],
        benefit [
            "you see more moves ahead", "fewer pieces get lost", "the plan becomes clear",
            "your patience grows", "even defeats teach you something",
        ],
        trouble ["I lose my queen", "my time runs out", "the opening goes wrong", "I miss simple threats"],
        tool ["a wooden board", "a chess clock", "a book of puzzles", "a friendly club"],
        joy ["a quiet sacrifice", "a long game with tea", "a clever escape", "the handshake after the game"]
    ),
    topic!(
        "moving to a new city", "move to a new city",
        advice [
            "walk around without a map", "say hello to the neighbors", "join a club", "find a favorite cafe",
            "throw away old things", "label every box", "ask people for tips",
        ],
        benefit [
            "the streets become familiar", "you find friends", "unpacking takes half the time",
            "you feel at home sooner", "every corner holds a surprise",
        ],
        trouble ["I feel lonely", "the flat is too small", "I get lost all the time", "the boxes never end"],
        tool ["a good map", "a roll of strong tape", "a bike", "a list of phone numbers"],
        joy [
            "the first evening with open windows", "a market on Saturday", "a walk through unknown streets",
            "a friendly baker",
        ]
    ),
    topic!(
        "drawing", "draw every day",
        advice [
            "fill a page a day", "look twice before each line", "start with simple shapes",
            "use a soft pencil", "copy the old masters", "draw your own hand", "throw nothing away",
        ],
        benefit [
            "your eye gets sharper", "the lines grow bolder", "shadows fall into place",
            "your head becomes quiet", "you see progress every month",
        ],
        trouble [
            "the faces look odd", "I erase too much", "the paper stays empty", "the proportions are wrong",
        ],
        tool ["a soft pencil", "a small sketchbook", "a good eraser", "a park bench"],
        joy [
            "the first line on white paper", "an hour in a museum", "a portrait that looks right",
            "a walk with a sketchbook",
        ]
    ),
    topic!(
        "making coffee", "make better coffee",
        advice [
            "grind the beans fresh", "rinse the filter", "use soft water", "weigh the coffee", "pour slowly",
            "clean the machine", "try a lighter roast",
        ],
        benefit [
            "the cup tastes sweeter", "the aroma fills the room", "it is never bitter",
            "the morning starts well", "guests ask for more",
        ],
        trouble ["it tastes sour", "it gets cold too fast", "it is too bitter", "the grinder is too loud"],
        tool ["a hand grinder", "a paper filter", "a steel kettle", "a thick cup"],
        joy ["the first sip", "the smell of fresh beans", "a break with a friend", "a slow cup by the window"]
    ),
    topic!(
        "traveling by train", "travel by train",
        advice [
            "book early", "pack light", "sit by the window", "bring something to read",
            "leave time between trains", "take the night train", "keep your ticket ready",
        ],
        benefit [
            "you see the country", "the trip becomes part of the holiday", "you arrive in the center",
            "you can sleep on the way", "you meet interesting people",
        ],
        trouble [
            "the train is late", "the seats are taken", "I miss the connection", "the bags are too heavy",
        ],
        tool ["a window seat", "a small suitcase", "a thick novel", "a rail pass"],
        joy [
            "the sound of the rails", "a coast seen from the window", "a picnic on board",
            "a station full of strangers",
        ]
    ),
];
