//! Questions about the product with their answers: what a user of the service may well ask it first.

use super::talk::ask;
use super::teller::Teller;

const ENVIRONMENTS: &[&str] =
    &["development", "staging", "pilot", "scale-up", "enterprise", "multi-region", "air-gapped", "optimized"];

/// How something is done: what one wants to do, in several wordings, and what to run.
const HOW_TO: &[(&[&str], &[&str])] = &[
    (
        &[
            "start the service",
            "start textnlp-deploy",
            "bring the service up",
            "deploy the service",
            "set up the service",
            "start {env}",
        ],
        &[
            "Run `textnlp-deploy up --env {env}`.[| It plans, applies and verifies, and then it prints the address and where the key is.]",
        ],
    ),
    (
        &[
            "stop the service",
            "shut the service down",
            "stop {env}",
            "take the service down",
            "remove the service",
            "turn the service off",
        ],
        &["Run `textnlp-deploy down --env {env}`.[| It removes everything that holds no data.| Your data is kept.]"],
    ),
    (
        &["delete the data", "remove everything, also the data", "delete all data of {env}"],
        &["Run `textnlp-deploy down --env {env} --delete-data {env}`.[| This can not be undone.]"],
    ),
    (
        &[
            "see the status",
            "check if the service is running",
            "know if the service is ready",
            "look at the service",
            "see what is running",
        ],
        &["Run `textnlp-deploy status --env {env}`.[| It shows every resource and every drift.]"],
    ),
    (
        &["see the logs", "read the logs", "look at the log", "find out what went wrong"],
        &["Run `textnlp-deploy logs --env {env}`.[| `textnlp-deploy explain` tells more.]"],
    ),
    (
        &["see the plan", "see what would change", "make a plan", "preview the changes"],
        &[
            "Run `textnlp-deploy plan --env {env}`.[| It changes nothing.| It shows every step before anything happens.]",
        ],
    ),
    (
        &["apply the changes", "apply a plan", "change the service"],
        &[
            "Change the environment file and run `textnlp-deploy up --env {env}` again.[| Only what has changed is touched.]",
        ],
    ),
    (
        &["create an API key", "make a new key", "get a key", "add a key"],
        &["Run `textnlp-deploy key create --env {env}`.[| The key is shown only once.]"],
    ),
    (&["list the keys", "see all keys", "see which keys exist"], &["Run `textnlp-deploy key list --env {env}`."]),
    (
        &["revoke a key", "remove a key", "delete an API key", "block a key"],
        &["Run `textnlp-deploy key revoke` with the id of the key.[| It stops working at once.]"],
    ),
    (
        &["rotate a key", "change a key", "replace a key"],
        &["Run `textnlp-deploy key rotate` with the id of the key.[| You get a new key for the old one.]"],
    ),
    (
        &["check an environment file", "check my file", "find mistakes in an environment"],
        &[
            "Run `textnlp-deploy env check`.[| It reports all mistakes at once.| Every mistake is shown with file, line and column.]",
        ],
    ),
    (
        &["list the environments", "see all environments", "see which environments exist"],
        &["Run `textnlp-deploy env list`."],
    ),
    (
        &["make a new environment", "create an environment", "write my own environment"],
        &["Run `textnlp-deploy env new` and edit the file.[| Check it with `textnlp-deploy env check`.]"],
    ),
    (
        &["generate text", "try the model", "write some text", "ask the model"],
        &[
            "Run `textnlp-deploy generate` with your prompt.[| It talks to the running environment.]",
            "Send a POST request to `/v1/generate`.",
        ],
    ),
    (
        &["chat with the model", "start a chat", "talk to you"],
        &[
            "Run `textnlp-deploy chat --env {env}`.",
            "Run `textnlp-deploy chat`, or send your messages to `/v1/chat/completions`.",
        ],
    ),
    (
        &["stream the answer", "get the text as a stream", "receive tokens one by one"],
        &["Send a POST request to `/v1/stream`.[| The tokens come as events.]"],
    ),
    (
        &["make a bundle", "create a bundle", "pack everything into one file", "prepare an offline installation"],
        &["Run `textnlp-deploy bundle create --env {env}`.[| It writes one file with everything inside.]"],
    ),
    (
        &["verify a bundle", "check a bundle"],
        &["Run `textnlp-deploy bundle verify` with the file.[| Every file is checked by its digest.]"],
    ),
    (
        &[
            "install a bundle",
            "install the service offline",
            "install without internet",
            "install it in an air-gapped network",
        ],
        &["Run `textnlp-deploy bundle install` with the file.[| No network is needed.]"],
    ),
    (
        &["rehearse a failover", "run a drill", "test disaster recovery", "practise the loss of a region"],
        &[
            "Run `textnlp-deploy dr drill --env multi-region`.[| It measures the RPO and the RTO and leaves nothing behind.]",
        ],
    ),
    (
        &["go back to the old release", "roll back", "undo a release", "return to the last release"],
        &["Run `textnlp-deploy rollback --env {env}`.[| The earlier digests run again.]"],
    ),
    (
        &["see the metrics", "get the metrics", "monitor the service"],
        &["Read `/metrics` on port 9090.[| Prometheus understands it.]"],
    ),
    (
        &["check the health", "know if the server is healthy", "check the health of the server"],
        &["Ask `/health`.[| It answers without a key.]", "Run `textnlp-deploy health --env {env}`."],
    ),
    (
        &["make a backup", "back up the state", "save the state"],
        &["Run `textnlp-deploy backup --env {env}`.[| It covers the state, the keys and the certificates.]"],
    ),
    (
        &["run a load test", "test the speed", "measure the speed"],
        &["Run `textnlp-deploy load --env {env}`.[| `--find-limit` searches for the limit.]"],
    ),
    (
        &["pull a model", "download a model", "get another model"],
        &["Run `textnlp-deploy model pull` with the name of the model."],
    ),
    (
        &["list the models", "see all models", "see which models I can use"],
        &["Run `textnlp-deploy model list`.", "Ask `/v1/models`."],
    ),
    (
        &["find problems on my machine", "check my machine", "see if something is missing"],
        &["Run `textnlp-deploy doctor`.[| It tells what is missing.]"],
    ),
    (
        &["see the drift", "find changes made by hand", "see what has changed"],
        &["Run `textnlp-deploy drift --env {env}`.[| `up` mends what it finds.]"],
    ),
    (
        &["use the service from Python", "use the OpenAI client", "call the API"],
        &[
            "Use any OpenAI client with the address of the service as base URL and your key.",
            "Send your requests to `/v1/chat/completions` with your key.",
        ],
    ),
    (&["send my key", "sign in", "use my key"], &["Send it in the header `X-API-Key`, or as a Bearer token."]),
];

/// What is asked about the product itself.
const ABOUT: &[(&[&str], &[&str])] = &[
    (
        &[
            "What does textnlp-deploy do?",
            "What is textnlp-deploy?",
            "[Please e|E]xplain textnlp-deploy.",
            "What is this product?",
            "What is this service?",
            "Tell me about textnlp-deploy.",
        ],
        &[
            "textnlp-deploy runs a text generation service [in the cloud or on your own machines|on your own machines or in your cloud account].[| It plans before it acts.| It takes one environment file and makes it so.]",
            "It takes one environment file and makes a text generation service of it[|, in the cloud or on your own machines].",
        ],
    ),
    (
        &[
            "Do I need the internet?",
            "Does it work offline?",
            "Can I use it without internet?",
            "Does it work in an air-gapped network?",
        ],
        &[
            "No, a bundle holds everything. Install it with `textnlp-deploy bundle install`.",
            "It works offline. A bundle is one file with everything inside.",
        ],
    ),
    (
        &[
            "Do I need a cloud account?",
            "Must I have a cloud account?",
            "Do I need Docker?",
            "Do I need a database server?",
        ],
        &["No. On one machine it runs as local processes with SQLite[|, so you need no account]."],
    ),
    (
        &["Do I need a GPU?", "Does it run without a GPU?", "Can it run on a CPU?"],
        &["No, small models run on the CPU.", "A GPU is not needed for small models[|, but large models want one]."],
    ),
    (
        &["Which clouds [are supported|can I use]?", "Does it run in the cloud?", "Which providers are there?"],
        &["AWS, GCP, Azure and your own machines.", "It runs on AWS, GCP and Azure, and on your own machines."],
    ),
    (
        &["Which model do you use?", "Which model ships with it?", "What is textnlp-tiny?"],
        &[
            "textnlp-tiny is the small model that ships with textnlp-deploy.[| It was trained from scratch.| It tells little stories.]",
        ],
    ),
    (
        &["What is a gate?", "What does a gate do?", "Why is there a gate?"],
        &[
            "A gate proves that a stage is healthy before the next one begins.",
            "A gate measures the running service from outside. It is open, waiting or shut.",
        ],
    ),
    (
        &["What is an environment?", "What is an environment file?"],
        &[
            "An environment is a file in which you write what you want.",
            "It is one file that says what shall run, and where.",
        ],
    ),
    (
        &["What is a bundle?", "What is inside a bundle?"],
        &[
            "A bundle is one sealed file from which the service can be installed without a network.",
            "A bundle holds the program, the models and the settings in one file.",
        ],
    ),
    (
        &["What is a plan?", "What does the plan show?"],
        &[
            "A plan shows every step before anything is done.",
            "A plan is the list of steps from what is there to what is wanted.",
        ],
    ),
    (
        &["What is drift?", "What does drift mean?"],
        &[
            "Drift is what has changed behind our back.",
            "Drift is the difference between what was applied and what is there.",
        ],
    ),
    (
        &["What is the journal?", "Where is the state kept?"],
        &[
            "The journal records every operation before and after it happens.[| So a run that was killed can be finished.]",
        ],
    ),
    (
        &["What is a site?", "What does site mean?"],
        &["A site is one place where the service runs: a provider, an account and a region."],
    ),
    (
        &["What is a drill?", "What does the drill do?"],
        &["A drill rehearses the loss of a region and measures how long it takes."],
    ),
    (
        &["What happens if I run up twice?", "Can I run up again?", "Is it safe to run up twice?"],
        &["Nothing changes: the second run plans nothing.", "It is safe. If nothing has changed, nothing is done."],
    ),
    (
        &["What happens if the program is killed?", "What if my laptop dies?", "Is it safe to press Ctrl-C?"],
        &["Run `up` again: it finishes what was begun.", "The next `up` or `down` puts everything right."],
    ),
    (
        &["What happens if the server dies?", "What if the server crashes?"],
        &["The supervisor starts it again.", "It comes back by itself: the supervisor watches it."],
    ),
    (
        &["Where is my key?", "Where do I find the key?"],
        &["`up` prints where the key is.[| It is in the state folder.]"],
    ),
    (
        &["Which port does it use?", "On which port does it listen?", "What is the port?"],
        &["The gateway listens on port 8443[|, and the metrics are on port 9090]."],
    ),
    (
        &["Is the connection safe?", "Does it use HTTPS?", "Is it encrypted?"],
        &[
            "Yes, it uses HTTPS with a certificate of its own authority.",
            "Yes. The gateway speaks HTTPS, and every request needs a key.",
        ],
    ),
    (
        &["Are my prompts stored?", "Do you store my text?", "Is my data safe?"],
        &["Prompts are not stored unless the settings say so."],
    ),
    (
        &["What does exit code {code} mean?", "What is exit code {code}?", "It ended with exit code {code}."],
        &["Exit code {code} means: {meaning}."],
    ),
    (
        &["Which environments are there?", "Which environments exist?"],
        &["There are development, staging, pilot, scale-up, enterprise, multi-region, air-gapped and optimized."],
    ),
    (
        &["What does staging need?", "When is the gate of staging open?", "How fast must staging be?"],
        &["In staging, 95 of 100 answers must come within 500 milliseconds, with 100 users."],
    ),
    (
        &["Is it free?", "What is the license?", "Is it open source?"],
        &["It is open source under the Apache License 2.0."],
    ),
    (
        &["Why do I get 401?", "What does 401 mean?"],
        &["401 means that the key is missing or wrong.[| Send it in the header `X-API-Key`.]"],
    ),
    (&["Why do I get 429?", "What does 429 mean?"], &["429 means too many requests.[| Wait a little and try again.]"]),
    (&["Why do I get 503?", "What does 503 mean?"], &["503 means that the service is not ready yet.[| Ask `/ready`.]"]),
    (&["Why do I get 400?", "What does 400 mean?"], &["400 means that the request is wrong.[| The answer says why.]"]),
];

const EXITS: &[&str] = &[
    "done",
    "failed",
    "wrong usage",
    "a gate is not open",
    "refused for safety",
    "stopped, and it can be resumed",
    "changes are planned",
];

/// What can be said of the product in any order.
const STATEMENTS: &[&str] = &[
    "textnlp-deploy runs a text generation service in the cloud or on your own machines.",
    "It takes one environment file and makes it so.",
    "It plans before it acts.",
    "It can be killed at any point and goes on where it was.",
    "A gate proves that a stage is healthy before the next one begins.",
    "It packs everything into a bundle that installs without a network.",
    "It rehearses the loss of a region and measures the RPO and the RTO.",
    "It needs no cloud account: on one machine it runs as local processes with SQLite.",
    "A small model, textnlp-tiny, ships with it.",
    "The service speaks HTTPS, and every request needs a key.",
    "The second `up` changes nothing.",
    "It runs on AWS, GCP and Azure, and on your own machines.",
    "The journal records every operation before and after it happens.",
    "The supervisor starts a server again when it dies.",
];

/// A short text about the product.
pub(crate) fn paragraph(t: &mut Teller) {
    t.say_one(&["textnlp-deploy [runs a text generation service|takes one environment file and makes a text generation service of it|is a tool that runs a text generation service].", "textnlp-deploy runs a text generation service in the cloud or on your own machines."]);
    let mut last = 0;
    for _ in 0..1 + t.choose(3) {
        let left = STATEMENTS.len() - last - 1;
        if left == 0 {
            break;
        }
        last += 1 + t.choose(left);
        t.say(STATEMENTS[last]);
    }
}

/// One question about the product and its answer.
pub(crate) fn exchange(t: &mut Teller) {
    // What everybody asks first is asked four times as often: starting, stopping, and what all this is.
    let often = |at: usize| at < 2 || at == HOW_TO.len();
    let weights: Vec<f64> = (0..HOW_TO.len() + ABOUT.len()).map(|at| if often(at) { 4.0 } else { 1.0 }).collect();
    let at = t.weighted(&weights);
    if let Some((wishes, answers)) = HOW_TO.get(at) {
        let wish = t.pick(wishes);
        // The question may name the environment; then the answer is about the same one.
        let names = wish.contains("{env}") || (answers[0].contains("{env}") && t.chance(0.35));
        let environment = if names { t.pick(ENVIRONMENTS) } else { "staging" };
        t.put("env", environment);
        let wish = t.expand(wish);
        t.put("wish", wish.clone());
        let tail = if names && !wish.contains(environment) { " in {env}" } else { "" };
        let questions: Vec<String> = [
            "How [do|can|must] I {wish}?",
            "How to {wish}?",
            "What is the command to {wish}?",
            "I want to {wish}.",
            "[Please t|T]ell me how to {wish}.",
            "Which command do I need to {wish}?",
            "How does one {wish}?",
        ]
        .iter()
        .map(|q| {
            let cut = q.len() - 1;
            format!("{}{tail}{}", &q[..cut], &q[cut..])
        })
        .collect();
        let questions: Vec<&str> = questions.iter().map(String::as_str).collect();
        ask(t, &questions, answers);
        return;
    }
    let (questions, answers) = ABOUT[at - HOW_TO.len()];
    if questions[0].contains("{code}") {
        let code = t.choose(EXITS.len());
        t.put("code", code.to_string());
        t.put("meaning", EXITS[code]);
    }
    ask(t, questions, answers);
}
