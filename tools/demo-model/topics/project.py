"""Questions and answers about MLX Distributed itself."""

from __future__ import annotations

import random

from .phrasing import Exchange, ask, expand
from .wording import more

#: Ways to name the project inside a question.
NAMES = ["MLX Distributed"] * 6 + ["mlx distributed", "this project", "this program", "this software", "the project", "MLX-Distributed", "this tool", "the software", "this system", "your software", "MLX distributed", "it"]

ABOUT = "MLX Distributed runs one language model on many machines. It spreads the layers over the machines by their memory and answers through an OpenAI-compatible API."
MYSELF = "I am the demo model of MLX Distributed. I am a very small language model that shows how the cluster works."

#: (what the question is about, ways to ask, the answer). `[a|b]` are alternatives and {P} is a name of the project.
TOPICS: list[tuple[str, list[str], str]] = [
    ("what MLX Distributed is", [
        "what [is|exactly is] {P}", "what's {P}", "what does {P} do", "[explain|describe] {P}", "tell me [about|something about|more about] {P}",
        "{P}, what is [it|that]", "what kind of [program|software|project] is {P}", "can you [explain|describe] {P}", "[I want|I would like] to know what {P} is",
        "what is the purpose of {P}", "give me [a summary|an overview|a short description] of {P}", "[describe|explain] {P} in [one sentence|two sentences|a few words]",
        "what [should|must] I know about {P}", "what is {P} [for|about]", "introduce {P}", "do you know {P}", "[have you heard of|do you know about] {P}"],
     ABOUT),
    ("why one would use it", [
        "why [should|would|do] [I|we|people|someone] use {P}", "what [is|are] the [advantage|advantages|benefit|benefits] of {P}", "what is {P} good for", "why is {P} useful",
        "what problem does {P} solve", "when [should|would] I use {P}", "what can I do with {P}", "why do I need {P}", "is {P} useful for me", "what makes {P} special",
        "why [run|split|spread] a model [on|over|across] [many|several|more than one] [machines|computers]", "what is special about {P}"],
     "A large model may not fit into one machine. With MLX Distributed several machines share it, and the answer goes on even when one of them fails."),
    ("which machines it runs on", [
        "[which|what] [machines|computers|hardware|platforms|systems|devices] does {P} [support|run on|work on|need]", "where does {P} run", "on [which|what] [machines|computers|systems] [does {P} run|can I run {P}]",
        "which operating systems [are supported|does {P} support]", "what [hardware|machine|computer] do I need", "what [hardware|machines] can I use [|for {P}]", "can I run {P} on my [computer|machine|laptop|pc]",
        "what are the [hardware |system |]requirements [|of {P}]", "supported [platforms|machines|systems|hardware]", "does {P} run on my [computer|machine|laptop]", "which computers can join a cluster"],
     "It runs on Macs with Apple Silicon and on Linux machines with x86-64 or ARM processors. The machines may be unequal and may be mixed in one cluster."),
    ("Apple Silicon", [
        "does {P} [run|work] on [a Mac|Macs|Apple Silicon|a MacBook|an M1|an M2|an M3|macOS|a Mac mini|a Mac Studio]", "can I use [a Mac|my Mac|my MacBook|Apple Silicon|a Mac mini]", "is [Apple Silicon|macOS|a Mac] supported",
        "[what about|how about] [Macs|Apple Silicon|macOS]", "does it [run|work] on [my Mac|macOS|Apple Silicon]", "can a Mac [be a worker|join the cluster]"],
     "Yes, Macs with Apple Silicon come first. There MLX itself does the computing with Metal."),
    ("Linux", [
        "does {P} [run|work] on [Linux|Debian|Ubuntu|a Linux machine|a Linux server|ARM Linux]", "can I use [Linux|Debian|Ubuntu|a Linux machine|a Linux box]", "is [Linux|Debian|Ubuntu] supported", "does it [run|work] on [Linux|Ubuntu|Debian]",
        "[what about|how about] Linux", "do I need a Mac", "does it work without a Mac", "can I use it without Apple hardware"],
     "Yes, it runs on Linux too. There it uses its own CPU kernels for AVX2, AVX-512 and NEON, and no Mac is needed."),
    ("Windows", [
        "does {P} [run|work] on Windows", "is Windows supported", "can I use [Windows|a Windows machine|a Windows PC]", "[what about|how about] Windows", "is there a Windows version [|of {P}]"],
     "No, Windows is not supported. MLX Distributed runs on macOS and Linux."),
    ("mixing machines", [
        "can I mix [Macs and Linux machines|Mac and Linux|different machines|a Mac and a Linux machine]", "can [different|unequal|mixed] [machines|computers] work together", "do [all |]the machines [have to|need to|must] be [equal|the same|identical]",
        "can [a fast and a slow|a big and a small] machine [work together|share a model]", "[what if|what happens if] [my|the] machines are [different|unequal|not equal]", "can {P} use [unequal|different] [machines|computers]"],
     "Yes, the machines may be unequal. Each one gets a share that fits its memory and its speed, and Macs and Linux machines can serve one model together."),
    ("how layers are spread", [
        "how are [the |]layers [spread|split|distributed|divided|assigned|shared]", "how does {P} [split|spread|distribute|divide|partition|shard] [a|the] [model|layers]", "how [is|are] the [model|layers] [split|spread|distributed] [over|across|between] [the |]machines",
        "who gets [which|how many] layers", "how does it decide [which layers go where|who gets which layers|where the layers go]", "how [is|does] the [splitting|distribution|layer split|sharding] work", "how do you [split|spread|distribute] the layers",
        "what decides how many layers a [machine|worker] gets", "which worker gets the most layers", "how does {P} [use|share] the memory of the machines", "explain how the layers are [spread|split|distributed]",
        "how does layer [placement|distribution|splitting] work", "how are the weights [spread|split|distributed]"],
     "The planner looks at the free memory and the speed of each machine and gives each one a run of layers that fits. A machine with more memory gets more layers."),
    ("a worker that dies", [
        "what happens [when|if] [a|one|any] [worker|machine|node|computer] [dies|fails|crashes|is killed|goes down|stops|is lost|goes away|breaks|disappears]", "what if [a|one] [worker|machine|node] [dies|fails|crashes|is killed|goes down|stops]",
        "[can|does] {P} survive [a crash|a dead worker|a failure|the loss of a worker|a lost machine]", "how does {P} handle [failures|a dead worker|crashes|a crash|a failing machine]", "is {P} fault tolerant",
        "what happens to my answer [when|if] [a|one] [worker|machine|node] [dies|fails|crashes|is killed]", "can I kill a worker [|while it answers]", "does the answer [break|stop|get lost] [when|if] a [worker|machine|node] [dies|fails|is killed]",
        "how does [recovery|fault tolerance|failover] work", "is it safe to [kill|stop|unplug] a [worker|machine]", "will I lose my [answer|stream] when a worker dies", "what happens after kill -9 on a worker", "a worker died, what now"],
     "When a worker dies, the answer pauses and then goes on with the same tokens. The layers are spread again over the machines that are left, and nothing is lost."),
    ("how to start", [
        "how [do|can] I [start|run|try|launch|use] {P}", "how to [start|run|try|use|launch] {P}", "how do I get started", "how [do|can|should] I begin", "where do I start", "what [command|commands] [starts|start|do I need for] {P}",
        "how [do|can] I try [it|this] [|out|quickly]", "getting started with {P}", "show me how to [start|run|use] {P}", "what is the [quickest|fastest|easiest] way to [start|try] {P}", "what should I [type|do] first", "[first|quick] steps with {P}",
        "how do I start [it|this]"],
     "Type `make demo` in the source folder. It installs what is missing, builds the programs, starts three workers and answers a first question."),
    ("make demo", [
        "what does [make demo|`make demo`|the demo] do", "what [is|happens with] [make demo|`make demo`]", "what happens when I [run|type] [make demo|`make demo`]", "explain [make demo|`make demo`|the demo]", "how does the demo work", "what will I see in the demo",
        "what does the demo show", "tell me about [the demo|make demo]"],
     "`make demo` builds everything, starts a coordinator and three workers, streams an answer, kills one worker in the middle and shows that the answer completes unchanged."),
    ("make test", [
        "how [do|can] I [run the tests|test it|test {P}]", "what does [make test|`make test`] do", "how to run the tests", "where are the tests", "is it tested", "how is {P} tested", "[which|what] tests are there", "how do I check that it works"],
     "Type `make test`. It builds everything and runs the unit, conformance, end-to-end and Python tests."),
    ("installing", [
        "how [do|can|should] I install {P}", "how to install {P}", "how [do|can] I [build|compile] {P}", "how to [build|compile] {P}", "[what are|give me] the [install|installation|build] [steps|instructions]", "how do I [install|build] it",
        "where do I get {P}", "what is the install command"],
     "Type `make` to build and `make install` to install. With Python, `pip install .` builds the same programs into a package."),
    ("the server program", [
        "how [do|can] I start [the server|a server|mlx-dist-server]", "what is [mlx-dist-server|the server]", "how to [start|run] [the|a] server", "what does [mlx-dist-server|the server] do", "how do I serve a model", "[which|what] program [serves|runs] the model",
        "how [do|can] I run mlx-dist-server", "what command starts the server", "explain mlx-dist-server", "how do I start serving"],
     "Run `mlx-dist-server` with the name of a model, for example `mlx-dist-server demo`. It plans, loads the model and then answers HTTP requests on port 8080."),
    ("the worker program", [
        "how [do|can] I start a worker", "what is [mlx-dist-worker|a worker]", "how to [start|run|add] a worker", "what does [mlx-dist-worker|a worker] do", "how do I run mlx-dist-worker", "[which|what] program is the worker",
        "explain mlx-dist-worker", "what command starts a worker", "what are workers", "what do the workers do"],
     "A worker is a machine that computes some of the layers. Start it with `mlx-dist-worker --join HOST:PORT --token TOKEN`, and it joins the cluster."),
    ("joining a machine", [
        "how [do|can] I add [a machine|another machine|a computer|a node|a second machine|more machines]", "how [does|can] a [machine|worker|node|computer] join [|the cluster]", "how to [add|join] [a machine|a node|another computer]", "how do I connect [two|my|the] [machines|computers]",
        "how do machines [find|reach] [each other|the server]", "how do I make a [cluster|bigger cluster]", "how do I build a cluster", "how do I use two [machines|computers|Macs]", "can I add a [worker|machine|node] [while it runs|later|at run time]",
        "how do I [scale|grow] the cluster"],
     "Make a token with `mlx-dist-config token`, then run `mlx-dist-worker --join HOST:PORT --token TOKEN` on the new machine. It can join while the cluster is serving."),
    ("removing a machine", [
        "how [do|can] I remove [a machine|a worker|a node]", "how to [remove|drain|stop] a worker", "can a worker leave [|the cluster]", "how does a [worker|machine] leave", "what does drain mean", "can I stop a worker [safely|cleanly]", "how do I shut down a [worker|machine]"],
     "Stop the worker with Ctrl-C or SIGTERM. It drains first: its layers move to the other machines, and then it leaves without an error."),
    ("the coordinator", [
        "what is [the|a] coordinator", "what does the coordinator do", "explain the coordinator", "who [controls|leads|manages] the cluster", "which machine is the [boss|leader|coordinator]", "is there a [leader|master|coordinator]"],
     "The coordinator makes the plan, keeps the list of tokens and talks to the workers. It runs inside `mlx-dist-server`."),
    ("the coordinator failing", [
        "what happens [when|if] the [coordinator|server] [dies|fails|crashes|restarts]", "what if the [coordinator|server] [dies|fails|crashes]", "does it survive a [coordinator|server] [crash|restart]", "can a stream [be resumed|go on] after a restart", "what is a resumable stream"],
     "The coordinator keeps a journal. After a restart, streams that were asked for with `X-Resumable: true` go on where they stopped."),
    ("the API", [
        "[which|what] API does {P} [have|offer|speak|use]", "does {P} have an API", "is there an API", "how [do|can] I [use|call] the API", "is {P} [OpenAI-compatible|compatible with OpenAI|OpenAI compatible]", "can I use the OpenAI [client|library|SDK|API]",
        "does it work with [OpenAI|the OpenAI client|OpenAI clients]", "how do [I|clients|programs] talk to {P}", "what is the OpenAI-compatible API", "how do I send a request", "[which|what] endpoints are there", "how do I call it from my [program|code|app]",
        "does {P} have [a REST|an HTTP|a web] API", "how [do|can] I connect my [app|program|client]"],
     "It speaks the OpenAI API over HTTP, with `/v1/chat/completions`, `/v1/completions` and `/v1/models`. Any OpenAI client works when you set its base URL."),
    ("the port", [
        "[which|what] port does [{P}|the server] [use|listen on]", "what is the [default |]port", "how do I change the port", "what is the [address|URL] of the [server|API]", "on which port does it [run|listen]", "where does the server listen"],
     "The server listens on 127.0.0.1, port 8080. Use `--host` and `--port` to change that."),
    ("API keys", [
        "[how do|can] I [set|use] an API key", "does it [need|have|use] an API key", "how do I [protect|secure] the API", "what is [--api-key|`--api-key`] for", "do I need a key", "can I open the server to my network"],
     "Start the server with `--api-key KEY`, and every request must carry that key. Beyond loopback a key is needed."),
    ("gRPC", [
        "[what is gRPC used for|what does gRPC do|why gRPC]", "does {P} use gRPC", "how do the [machines|workers|nodes] [talk|communicate|speak]", "how do the [machines|workers|nodes] [talk|speak] to each other", "[which|what] protocol [is used|do the workers use|does {P} use]",
        "how does the [communication|network part|networking] work", "what is used between the [machines|workers|nodes]", "how is data sent [between|from] [the |][machines|workers]", "what connects the machines", "explain gRPC"],
     "The machines talk to each other over gRPC. One stream carries the control messages, and direct streams between the workers carry the numbers."),
    ("security and mutual TLS", [
        "is {P} [secure|safe]", "how is {P} secured", "how [is|are] the [connection|connections|traffic|cluster] [secured|protected|encrypted]", "is the traffic encrypted", "what is mutual TLS", "does {P} use [TLS|mutual TLS|encryption|mTLS]", "how does [security|mutual TLS|encryption] work",
        "why mutual TLS", "can [a stranger|anyone|somebody else] join my cluster", "what about security", "how do [workers|machines] prove who they are", "tell me about [security|mutual TLS]", "what does mutual TLS do"],
     "All traffic between the machines uses mutual TLS: both sides show a certificate. A new machine gets its certificate with a join token."),
    ("the join token", [
        "what is [a|the] [join |]token for joining", "what is a join token", "how do I [get|make|create] a [join token|token for a worker]", "what is mlx-dist-config token", "why does a worker need a token", "where do I get the token", "how do I create a token"],
     "A join token lets a new machine into the cluster once. Make one with `mlx-dist-config token` on the coordinator."),
    ("pipeline parallelism", [
        "what is pipeline [parallel|parallelism]", "what does pipeline [parallel|parallelism] mean", "explain pipeline [parallel|parallelism]", "how does pipeline [parallel|parallelism] work", "does {P} [support|use|do] pipeline [parallel|parallelism]", "what is a pipeline [|stage]", "what are pipeline stages",
        "what does [--pipeline-parallel-size|`--pipeline-parallel-size`] do"],
     "In pipeline parallelism each machine holds some whole layers. The hidden state goes from machine to machine, like work on an assembly line."),
    ("tensor parallelism", [
        "what is tensor [parallel|parallelism]", "what does tensor [parallel|parallelism] mean", "explain tensor [parallel|parallelism]", "how does tensor [parallel|parallelism] work", "does {P} [support|use|do] tensor [parallel|parallelism]", "what does [--tensor-parallel-size|`--tensor-parallel-size`] do",
        "can one layer be split", "can a single layer be split over two machines"],
     "In tensor parallelism every layer is cut into shares, and the machines compute the same layer at the same time. The shares may be unequal."),
    ("pipeline against tensor parallelism", [
        "what is the difference between pipeline and tensor [parallel|parallelism]", "pipeline or tensor [parallel|parallelism]", "which is better, pipeline or tensor [parallel|parallelism]", "how do pipeline and tensor [parallel|parallelism] differ", "should I use pipeline or tensor [parallel|parallelism]",
        "compare pipeline and tensor parallelism"],
     "Pipeline parallelism gives whole layers to each machine and needs little network. Tensor parallelism cuts every layer and needs a fast network."),
    ("quantisation", [
        "what is [quantisation|quantization]", "what does [quantisation|quantization|8-bit|8-bit quantisation] mean", "what is 8-bit [quantisation|quantization]", "explain [quantisation|quantization|8-bit weights]", "why 8-bit", "[which|what] [quantisation|quantization] does [{P}|the demo model] use",
        "does {P} support [quantised|quantized|4-bit|8-bit] models", "how does [quantisation|quantization] work", "why are the weights quantised", "what are 8-bit weights", "how are the weights stored"],
     "Quantisation stores each weight in few bits to save memory. The demo model has 8-bit weights in groups of 64, and each group has its own scale."),
    ("the licence", [
        "[what|which] [licence|license] does {P} [have|use]", "what is the [licence|license] [|of {P}]", "is {P} [open source|free|free software]", "under [which|what] [licence|license] is {P}", "how is {P} [licensed|licenced]", "may I use {P} [at work|for free|in my product|commercially]",
        "can I use {P} [for free|commercially|at work]", "does {P} cost [money|anything]", "how much does {P} cost", "what about the [licence|license]", "is it open source", "is it free"],
     "MLX Distributed is open source under the MIT licence. You may use it freely."),
    ("the programming language", [
        "[what|which] [programming |]language is {P} written in", "is {P} written in [C|Python|Rust|Go|C++]", "what is {P} written in", "in [what|which] language is it [written|made]", "what language did you use", "is it [C|Python|Rust|C++] code", "how is {P} [written|programmed]",
        "what is the code written in", "why is it written in C", "does it need Python"],
     "MLX Distributed is written in C. Only the plugin for MLX is one file of C++, and there is a Python package around the library."),
    ("what the demo model is", [
        "what is the demo model", "what [is|are] this model", "tell me about the demo model", "what kind of model [are you|is this|is the demo model]", "which model [are you|is this|am I talking to]", "what model [are you|is this]", "[describe|explain] the demo model", "what is the demo model for",
        "why is there a demo model", "are you [the|a] demo model", "what are you", "are you a language model", "what sort of model are you"],
     MYSELF),
    ("the size of the demo model", [
        "how [small|big|large] [are you|is the demo model|is this model]", "how many parameters [do you have|does the demo model have|are there]", "what is [your size|the size of the demo model]", "are you [small|big|large]", "how many layers [do you have|does the demo model have]",
        "how big is your brain", "what are your [sizes|dimensions]", "how much memory [do you|does the demo model] need", "is the demo model [small|large|big]"],
     "I am very small: about four million parameters in six layers, stored in five megabytes."),
    ("how the demo model was made", [
        "how [were you|was the demo model] [made|trained|built|created]", "who [made|trained|built|created] [you|the demo model]", "where [do you|does the demo model] come from", "what [were you|was the demo model] trained on", "on what data [were you|was the demo model] trained",
        "who are your parents", "how did you learn", "what is your training data", "where did you learn [this|to talk]", "did you read the internet"],
     "I was trained from nothing by a script in the source tree, on a small corpus that the script writes itself. No other weights and no texts from the internet were used."),
    ("what the demo model can do", [
        "what can you do", "what can the demo model do", "what are you able to do", "how can you help [me|]", "what do you know", "what should I ask [you|]", "what can I ask [you|]", "what are your [skills|abilities]", "what questions can you answer", "can you help me", "help",
        "what are you good at", "give me some ideas what to ask", "show me what you can do"],
     "I can answer simple questions about MLX Distributed, do small sums, tell short stories and call a tool. I am small, so please be kind."),
    ("what the demo model cannot do", [
        "what can you not do", "what can't you do", "what are your limits", "are you [smart|clever|intelligent]", "can you make mistakes", "do you make mistakes", "can I trust you", "are your answers [right|correct|always right]", "are you always right", "do you know everything",
        "how [smart|clever] are you", "what are you bad at"],
     "I am small and know only a little. I can be wrong, so use a larger model for real work."),
    ("larger models", [
        "[which|what] models [does {P} support|can I run|can {P} run|are supported|work]", "can I [run|use] [larger models|a larger model|a big model|Qwen|Llama|another model|other models|my own model]", "how do I [run|use|load] [a larger model|another model|a real model|a bigger model|Qwen|Llama]",
        "does {P} support [Llama|Qwen|gpt-oss|Gemma|larger models|Mistral]", "[which|what] model families are supported", "how do I change the model", "where do the models come from", "can it run a really big model", "what models are there"],
     "It runs models in MLX format as they are, for example the mlx-community models of Qwen, Llama and gpt-oss. Give the name to `mlx-dist-server`."),
    ("downloading models", [
        "how [do|can] I download a model", "does it download [the model|models]", "where are the models [kept|stored|saved]", "how does the download work", "do I have to download the model on every machine", "does every worker need the whole model", "where does a worker get its weights"],
     "Models are downloaded from the hub into the usual cache. A worker needs only its own layers, and it can get them from another machine."),
    ("memory needed", [
        "how much memory [do I need|is needed|does {P} need|does it need]", "how much [RAM|memory] does a model need", "does [the|my] model fit", "what if the model does not fit", "what happens [when|if] [there is not enough memory|the model is too big|memory is too small|the model does not fit]",
        "how do I know [if|whether] the model fits", "is my memory enough"],
     "All the machines together must hold the weights and the cache. When a model does not fit, the planner says how many bytes are missing."),
    ("the number of machines", [
        "how many [machines|workers|computers|nodes] [can I use|do I need|are possible|are needed|does {P} support|can there be]", "can I use [one machine|only one machine|three machines|five machines|ten machines|just one computer]", "is one machine enough", "does it work with [one|two|three|four] [machines|computers]",
        "what is the [smallest|largest] cluster"],
     "One machine is enough, and any number can be used. A cluster of three unequal machines works well."),
    ("the same bits everywhere", [
        "[are|is] the [answers|answer|results|result] the same on every machine", "do I get the same answer [every time|with more machines|on every machine|on another machine]", "is {P} [deterministic|reproducible]", "what does [bit-exact|bit exact|same bits] mean", "does the number of machines change the answer",
        "are the results [reproducible|deterministic|bit-exact]", "will two workers give another answer than one", "does splitting change the [answer|result]"],
     "Yes, on the CPU backend the results are the same to the last bit, on one machine or many, however the model is split."),
    ("the planner", [
        "what is the planner", "what does the planner do", "what is [a|the] plan", "how does the planner work", "explain the [planner|plan]", "how [can|do] I see the plan", "what does --dry-run do", "can I see who holds what", "how do I see the plan before loading", "what does the plan say", "show me the plan"],
     "The planner decides which machine holds which layers and says why. Use `--dry-run` to see the plan before anything is loaded."),
    ("hardware detection", [
        "what is mlx-dist-detect", "what does mlx-dist-detect do", "how does it know my hardware", "how do I see my hardware", "how is the hardware [detected|found]", "does it detect my [hardware|memory|machine]", "how does [hardware|memory] detection work", "can it find out my memory"],
     "`mlx-dist-detect` shows what it finds on a machine: the processor, the memory, the speed and the network."),
    ("the configuration tool", [
        "what is mlx-dist-config", "what does mlx-dist-config do", "how [do|can] I configure {P}", "is there a [config file|configuration file]", "where is the [configuration|config file]", "how is {P} configured", "[which|what] format has the config file", "how do I [make|check] the configuration"],
     "`mlx-dist-config` makes, checks and shows the configuration, plans a cluster and makes join tokens. The configuration file is YAML."),
    ("the generate program", [
        "what is mlx-dist-generate", "what does mlx-dist-generate do", "how do I [generate|make] text on the command line", "can I use it without a server", "how do I ask a question on the command line", "is there a command line program", "can I chat in the terminal"],
     "`mlx-dist-generate` makes text on the command line, without a server. Try `mlx-dist-generate demo -p \"Hello\" --chat`."),
    ("speed and benchmarks", [
        "how fast is {P}", "is {P} fast", "how do I measure the speed", "what is mlx-dist-bench", "what does mlx-dist-bench do", "how many tokens per second [do I get|does it make|are possible]", "how can I benchmark it", "what [about|is] the [speed|performance]", "how do I run a benchmark"],
     "The speed depends on your machines and the model. Run `mlx-dist-bench` with a model to measure it in tokens per second."),
    ("GPUs and Metal", [
        "does {P} use the GPU", "do I need a GPU", "is a GPU [needed|required|supported]", "does it [support|use] [Metal|CUDA|the GPU]", "does it run on [a GPU|the GPU|CUDA|NVIDIA]", "can it use my graphics card", "[which|what] backends are there", "what is a backend", "does it work without a GPU"],
     "No GPU is needed. On a Mac the MLX backend uses Metal, and elsewhere the CPU backend does the work."),
    ("the dashboard", [
        "is there a [dashboard|web page|web interface|user interface|GUI]", "what is [the|on the] dashboard", "how do I open the dashboard", "where is the dashboard", "what does the dashboard show", "can I see the cluster in a browser", "can I chat in the browser", "how do I watch the cluster"],
     "Yes, open the address of the server in a browser. The dashboard shows the machines, the plan, the speed and a chat."),
    ("the Python package", [
        "[can|how do] I use {P} from Python", "is there a Python [package|library|API|binding]", "how do I use Python", "does it work with Python", "how do I call it from Python", "what is the Python API", "show me the Python package"],
     "Yes, import `DistributedMLXInference` from `mlx_distributed`. It starts local workers, and then you call `generate` or `stream`."),
    ("streaming", [
        "what is streaming", "does {P} support streaming", "can I stream [an answer|answers|the answer|tokens]", "how does streaming work", "how do I stream [an answer|tokens]", "does it send the tokens one by one", "how do I get the tokens while they are made"],
     "Yes, set `stream` to true in the request. Then the tokens come one by one as server-sent events while they are made."),
    ("tool calls", [
        "does {P} support [tools|tool calls|function calls|function calling]", "what is a tool call", "can you [call tools|use tools|call a tool|call functions]", "how do tool calls work", "how do I use tools", "what are tools", "how do I give you a tool", "what is function calling"],
     "Yes, send a list of tools with the request. When a tool is needed, the model answers with a tool call in JSON, and your program runs it."),
    ("thinking", [
        "can you think", "what is thinking mode", "how do I turn on thinking", "how do I [enable|switch on|use] thinking", "do you think [|before you answer]", "what does enable_thinking do", "can the demo model think", "is thinking on by default", "how do I turn off thinking"],
     "Yes, set `enable_thinking` to true, and I write a short thought before the answer. By default thinking is off."),
    ("privacy", [
        "does {P} send my data [anywhere|to the cloud|away|out]", "is my data [private|safe]", "does it need the internet", "does it work offline", "can I use it without internet", "is it a cloud service", "where does my data go", "do my questions leave my [machine|network]", "what about privacy"],
     "Your data stays on your own machines. After a model is downloaded, no internet is needed."),
    ("MPI", [
        "does {P} support [MPI|Open MPI|Slurm]", "can I use [MPI|mpirun|Open MPI|Slurm]", "what [about|is] MPI", "how do I use MPI", "does it run [under|with] [MPI|Slurm|mpirun]"],
     "MPI is optional. A cluster with Open MPI or Slurm can start the workers with `mpirun`, otherwise gRPC is used."),
    ("the KV cache", [
        "what is the [KV cache|kv cache|cache]", "what does the KV cache do", "explain the KV cache", "why is there a KV cache", "what is a prefix cache", "does {P} have a prefix cache"],
     "The KV cache keeps the keys and values of earlier tokens, so that they are not computed again. Requests with the same beginning share it."),
    ("many requests at once", [
        "can {P} serve [many|several] [users|requests|people] [at once|at the same time|]", "what is continuous batching", "does {P} support [batching|continuous batching]", "what happens with many requests", "how many [users|requests] can it serve", "can two people use it at the same time"],
     "Yes, many requests run at the same time. The scheduler puts their steps together in one batch."),
    ("MLX", [
        "what is MLX", "explain MLX", "what does MLX mean", "who made MLX", "what is the MLX format", "what is MLX [good for|used for]", "do you know MLX", "tell me about MLX"],
     "MLX is Apple's array library for machine learning on Apple Silicon. MLX Distributed runs models in its format."),
    ("what a language model is", [
        "what is a [language model|large language model|LLM]", "how does a language model work", "explain language models", "what does a language model do", "what is an LLM"],
     "A language model reads a text as tokens and predicts the next token, again and again. I am a very small one."),
    ("what a token is", [
        "what is a token", "what are tokens", "explain tokens", "what does token mean", "how long is a token", "what is a tokenizer", "what does a tokenizer do"],
     "A token is a piece of text, often a word or a part of a word. A model reads and writes tokens, and the tokenizer turns text into tokens."),
    ("what a layer is", [
        "what is a layer", "what are layers", "explain layers", "what does a layer do", "what is inside a layer", "what is a transformer [layer|]"],
     "A layer is one step of the model: attention and then a small network. A model has many layers, one after another, so they can sit on different machines."),
    ("what a cluster is", [
        "what is a cluster", "explain what a cluster is", "what does cluster mean", "what is a node", "what is a distributed system", "what does distributed mean", "what is distributed inference", "explain distributed inference"],
     "A cluster is a group of machines that work together. Here each machine computes a part of one model, and that is called distributed inference."),
    ("safetensors", [
        "what is [safetensors|a safetensors file]", "[which|what] file format do the weights have", "how are the weights saved", "what is in model.safetensors", "[which|what] files has a model", "what is config.json"],
     "The weights are in a file called `model.safetensors`, and `config.json` says how the model is built. No code from a model is ever run."),
    ("heartbeats", [
        "how does it notice a dead worker", "how is a dead [worker|machine|node] [noticed|found|detected]", "what is a heartbeat", "how often are heartbeats sent", "how does the coordinator know that a worker died", "how fast is a failure noticed"],
     "Every worker sends a heartbeat four times a second. When some are missing, the coordinator takes the worker as dead and makes a new plan."),
    ("the network", [
        "[which|what] network do I need", "does it work over [Wi-Fi|wifi|WLAN|Ethernet|Thunderbolt]", "is a fast network needed", "do I need a fast network", "how fast must the network be", "can I use Wi-Fi", "does the network matter"],
     "A normal network is enough for pipeline parallelism, because little data is sent per token. A faster network helps tensor parallelism."),
    ("all-reduce", [
        "what is [all-reduce|an all-reduce|allreduce]", "explain all-reduce", "what are collectives", "[which|what] collectives are there", "what is a barrier", "what is a broadcast"],
     "An all-reduce adds the numbers of all machines and gives everyone the sum. There are also send, receive, broadcast, gather and barrier."),
    ("the documentation", [
        "where [is|can I find] the documentation", "is there documentation", "where can I read more", "where are the docs", "how do I learn more", "where can I find more information", "is there a manual", "where is the README"],
     "Read the README first, and then the files in the `docs` folder. Every part of the source has a short README too."),
    ("reporting a problem", [
        "how do I report a [bug|problem]", "I found a bug", "where do I report bugs", "it does not work", "something is broken", "who do I ask for help", "how can I contribute", "can I help with {P}"],
     "Please open an issue in the repository and say what you did, what you saw and what you expected."),
    ("the demo model's files", [
        "where is the demo model", "where are you stored", "where do you live", "in which folder is the demo model", "where are your weights", "how do I load the demo model"],
     "I live in the folder `models/demo` of the source tree. The name `demo` loads me."),
    ("the seed", [
        "what is a seed", "what does the seed do", "how do I get the same text again", "what is the temperature", "what does temperature do", "how do I make the answers less random", "what is sampling", "what is top_p"],
     "The temperature says how random the choice of tokens is, and the seed fixes it. The same request with the same seed gives the same text."),
]


def exchange(rng: random.Random) -> Exchange:
    """One question about the project in a random phrasing, with its answer."""
    label, questions, answer = rng.choice(TOPICS)
    question = more(rng, label, questions, rng.choice(NAMES))
    thought = expand(rng, "[The user asks about|This is about|The question is about] {L}. [I know this.|I can answer that.|I will answer in short sentences.]", L=label)
    mark = "." if question.split()[0].lower() in {"explain", "describe", "tell", "give", "introduce", "show", "compare", "something", "it", "define", "list", "i", "please", "help", "teach", "talk", "say", "sum", "let", "there", "suppose", "imagine", "convince", "clarify"} else "?"
    return Exchange(ask(rng, question, mark), thought, answer)
