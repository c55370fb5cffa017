//! Wording of requests and answers. See [`grammar`](super::grammar) for the notation.

/// A kind of request and what may frame its answer.
pub(super) struct Request {
    /// The request's template.
    pub(super) asks: &'static str,
    /// First sentences that fit.
    pub(super) opens: &'static [&'static str],
    /// Last sentences that fit.
    pub(super) closes: &'static [&'static str],
    /// True if it asks what one thinks rather than what to do.
    pub(super) opinion: bool,
}

/// Times to come.
pub(super) const WHEN: &[&str] = &[
    "this weekend",
    "tomorrow",
    "next week",
    "next month",
    "this summer",
    "this spring",
    "this year",
    "before winter",
    "on my day off",
    "soon",
    "one day",
    "for the first time",
];

/// Times gone by.
pub(super) const PAST: &[&str] = &[
    "yesterday",
    "last week",
    "last weekend",
    "on Sunday",
    "on Monday",
    "a few days ago",
    "last month",
    "all week",
    "again",
    "in May",
];

const TO_A_QUESTION: &[&str] = &[
    "That is a [good|fair|fine|nice|great] question.",
    "Sure, I [can help with that|have a few ideas|am glad to help].",
    "There is no [secret|trick|magic] to it.",
    "It is [easier|simpler|less hard] than [it looks|most people think|you may fear].",
    "[Start|Begin] small and [be patient|take your time|keep it simple].",
    "With {doing}, [patience|practice|a calm start] matters most.",
];

const TO_A_PLAN: &[&str] = &[
    "That sounds like a [good|great|lovely|fine] plan.",
    "What a [nice|good|lovely|great] idea!",
    "You picked a [good|fine|great] time for it.",
    "I am [glad|happy] to hear that.",
    "[Good|Nice|Great] choice, {doing} is [worth the effort|a joy|good for the mood].",
];

const TO_TROUBLE: &[&str] = &[
    "That happens to [everyone|most people|the best of us|many of us].",
    "Do not worry, [that is normal|it gets easier|you are not alone|it can be fixed].",
    "I know [the feeling|that problem|how annoying that is].",
    "It is a [common|small|familiar] problem.",
    "That is [annoying|no fun|a pity], but there is a way out.",
];

const TO_TASTE: &[&str] = &[
    "Yes, [I like it|I enjoy it|it suits me] [a lot|very much|more every year|more than I expected].",
    "I think it is [wonderful|underrated|worth a try|great fun].",
    "It took me [a while|some time|a few weeks], but now I [like it|love it|miss it when I stop].",
    "[Honestly|To be honest|Frankly], I could talk about {doing} [all day|for hours|all night].",
];

const TO_A_TOOL: &[&str] = &[
    "[Not really|Not at first|For a start, no|I would not say so].",
    "It helps, but you can [do without it|wait with that|start without it].",
    "Yes, I [think so|would say so|would get one].",
    "That depends on [your budget|how serious you are|how often you do it].",
    "Sooner or later you will want {tool} as well.",
];

const TO_A_REASON: &[&str] = &[
    "[Mostly|Above all|Simply] because {benefit}.",
    "The [main|simple|short] reason is that {benefit}.",
    "If you skip it, {your_trouble} [sooner or later|before long|more often].",
    "Because it [saves time|saves trouble|makes a difference] in the end.",
];

const CHEERS: &[&str] = &[
    "Good luck!",
    "Have fun!",
    "Enjoy every [bit|minute] of it!",
    "Let me know how it [goes|went|turns out].",
    "You will [do fine|see the difference|get there].",
    "What have you [tried|done] so far?",
    "Just [give it a try|give it some time|keep going].",
];

const QUESTIONS_BACK: &[&str] = &[
    "What about you?",
    "Have you [ever tried it|tried it yet]?",
    "Do you like it, too?",
    "What do you [enjoy|like] most?",
    "Maybe you will [feel the same|like it as well|see it my way].",
];

/// Requests that can open a conversation.
pub(super) const REQUESTS: &[&Request] = &[
    &Request {
        asks: "[How do I|How can I|What should I do to|What does it take to] [get better at|get started with|get into|enjoy] {doing}[| this year| without spending much| as a beginner| with little time]?",
        opens: TO_A_QUESTION,
        closes: CHEERS,
        opinion: false,
    },
    &Request {
        asks: "[Any|Do you have any|Can you give me some] [advice|tips|ideas] [for|about] {doing}?[| I am new to it.| I want to {my_advice}.| I only have {tool}.]",
        opens: TO_A_QUESTION,
        closes: CHEERS,
        opinion: false,
    },
    &Request {
        asks: "[I could use|I am looking for|Please give me] some [advice|help|tips] with {doing}[.|, because {trouble}.]",
        opens: TO_A_QUESTION,
        closes: CHEERS,
        opinion: false,
    },
    &Request {
        asks: "I [want|would like|plan|hope] to {todo} {when}. [Where should I start?|What should I know?|Any ideas?|What do I need?]",
        opens: TO_A_PLAN,
        closes: CHEERS,
        opinion: false,
    },
    &Request {
        asks: "[What can I do when|What should I do if|What do you do when|Is it normal that] {trouble}[| even if I {my_advice}| although I {my_advice}]?",
        opens: TO_TROUBLE,
        closes: CHEERS,
        opinion: false,
    },
    &Request {
        asks: "[Help me, please:|I have a problem:|Bad news:] {trouble}[.|, even if I {my_advice}.|, and I do not know why.|. It happens all the time.]",
        opens: TO_TROUBLE,
        closes: CHEERS,
        opinion: false,
    },
    &Request {
        asks: "[I tried {doing}|We tried {doing}|I was busy with {doing}] {past}, and [now|still|again] {trouble}. [What now?|What went wrong?|Any advice?]",
        opens: TO_TROUBLE,
        closes: CHEERS,
        opinion: false,
    },
    &Request {
        asks: "[Do you like|What do you think about|What do you like about|How do you feel about] {doing}[| in winter| in summer| on your own| these days]?",
        opens: TO_TASTE,
        closes: QUESTIONS_BACK,
        opinion: true,
    },
    &Request {
        asks: "My [friend|sister|brother|neighbor|boss|father|mother|cousin|teacher] [says|thinks|believes] that {doing} is [boring|hard|expensive|a waste of time|great|easy|relaxing]. [What do you think?|Is that true?|Do you agree?]",
        opens: TO_TASTE,
        closes: QUESTIONS_BACK,
        opinion: true,
    },
    &Request {
        asks: "[Do I need|Do I really need|Does it take|Would you recommend] {tool} for {doing}?",
        opens: TO_A_TOOL,
        closes: CHEERS,
        opinion: false,
    },
];

/// Requests that refer to what was said before.
pub(super) const FOLLOW_UPS: &[&Request] = &[
    &Request {
        asks: "[Thanks!|Thank you!|I see.|All right.] [And what if|But what if|What do I do when] {trouble}?",
        opens: TO_TROUBLE,
        closes: CHEERS,
        opinion: false,
    },
    &Request {
        asks: "[Thanks!|Thank you!|I see.|All right.] [Do I also need|And do I need|Would you recommend] {tool}?",
        opens: TO_A_TOOL,
        closes: CHEERS,
        opinion: false,
    },
    &Request {
        asks: "[Thanks!|Thank you!|I see.|All right.] [Why should I|Why is it good to|Does it help to] {my_advice}?",
        opens: TO_A_REASON,
        closes: CHEERS,
        opinion: false,
    },
];

/// Sentences that say what to do.
pub(super) const SENTENCES: &[&str] = &[
    "[First|To begin with|Above all|Most of all|As a first step], {advice}.",
    "You [could|might|should] {advice} and [then|also] {advice}.",
    "[Try to|Remember to|Do not forget to|Make sure to] {advice}[| if you can|, too| as well].",
    "It [helps|pays|is wise|is worth it] to {advice}, [because|since] {benefit}.",
    "[Once|As soon as] you {advice}, {benefit}.",
    "If {your_trouble}, {advice}.",
    "When {your_trouble}, it [often|usually|mostly|sometimes] helps to {advice}.",
    "You [only need|can start with|hardly need more than|will be fine with] {tool}.",
    "[Find|Look for|Try to find|Ask for] {tool} [before you start|when you can|first|and the rest will follow].",
    "[You can|You could|You may as well] {advice}, so that {benefit}.",
    "[Nothing beats|Think of|Look forward to|You will love] {joy}.",
    "{advice}, and [soon|after a while|before long|with some luck] {benefit}.",
    "[Sometimes|Now and then|At first] {your_trouble}, but [that passes|that is fine|do not give up].",
];

/// Sentences that say what one thinks.
pub(super) const OPINIONS: &[&str] = &[
    "[What I like most is|Nothing beats|I am very fond of|I never get tired of] {joy}.",
    "For me, {joy} is [the best part|the main thing|what counts|reason enough].",
    "I [like|love|enjoy] {joy}, and {benefit}.",
    "[Of course,|It is true that|Sometimes] {trouble}, but {benefit}.",
    "When {trouble}, I [simply|just|usually|always] {my_advice}.",
    "I [always|often|usually|like to] {my_advice}, [because|since] {benefit}.",
    "With {tool}, [it is even better|it gets easier|everything changes|I am happy].",
    "All I need is {tool} and [some time|a free hour|good company|a quiet day].",
    "{doing} is [good for the mood|a good habit|cheaper than it looks|more fun with others], [and|because] {benefit}.",
    "My [friend|sister|brother|neighbor|aunt|uncle] says that {benefit}, and I [agree|see it the same way|believe it].",
];
