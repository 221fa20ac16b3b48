"""More ways to ask the questions of `project`, and rules that reword any question."""

from __future__ import annotations

import random
import re

from .phrasing import expand

#: Further phrasings for a label of `project.TOPICS`, written as there.
MORE: dict[str, list[str]] = {
    "what MLX Distributed is": [
        "what sort of [thing|program|tool|system] is {P}", "what [did I|have I] just [install|installed|download|downloaded]", "what am I looking at [|here]", "{P}: what does it do", "what is this all about", "what is this [|thing|project|program|software] [for|about|supposed to do]", "in [one sentence|short|a nutshell|plain words], what is {P}",
        "sum up {P} [|for me|in one sentence]", "[give me|I need] the [short version|elevator pitch|idea] of {P}", "what is the [idea|point|goal|aim|job|task] of {P}", "what would you say {P} is", "define {P}", "[please |]describe what {P} does", "I have never heard of {P}[, what is it|]", "what's the deal with {P}",
        "how would you [describe|explain] {P} [to a beginner|to a child|to my boss]", "what does the name {P} stand for", "I don't know {P}, can you explain it", "tell me what {P} does", "{P}?", "so what is {P} [then|anyway]", "what [function|role] does {P} have", "please introduce {P} to me"],
    "why one would use it": [
        "why would [anyone|somebody|one] [want|need|use|choose] {P}", "what do I gain [from|with|by using] {P}", "what is the [use|benefit|advantage|point] of [using |running |]{P}", "give me [a reason|reasons|one good reason] to use {P}", "what [reason|reasons] [is|are] there to use {P}", "what are the [pros|strengths|good sides|selling points] of {P}",
        "[how|in what way] does {P} help me", "when is {P} [a good choice|worth it|useful|helpful]", "why not just use one [machine|computer]", "why should a model run on [several|many|more than one] [machines|computers]", "is it worth [using|installing] {P}", "what would I use {P} for", "convince me to use {P}", "why does {P} exist", "who is {P} for", "who needs {P}"],
    "which machines it runs on": [
        "what [do I need|is needed] to run {P} [|in terms of hardware]", "what kind of [machine|computer|hardware|machines|computers] [do I need|does it need|works|is needed]", "which [processors|CPUs|operating systems|platforms] [work|are supported|can I use|are fine]", "will {P} [run|work] on my [computer|machine|laptop|PC|hardware]", "is my [computer|laptop|machine] [good enough|supported|suitable]",
        "minimum [requirements|hardware]", "list the supported [platforms|systems|machines]", "where can I [run|use|install] {P}", "compatible [machines|hardware|systems]", "what can {P} be [installed|run] on", "on what [hardware|computers] can {P} be used", "does {P} need special [hardware|machines]", "is ARM supported", "does it run on ARM"],
    "Apple Silicon": [
        "will {P} [run|work] on [my Mac|a Mac|Apple Silicon|a MacBook Pro|an M4|an iMac]", "I have [a Mac|a MacBook|a Mac mini|an M1|an M2|an M3|two Macs], [can I use it|does it work|is that fine|will it run]", "[are Macs|is a MacBook|is an iMac|are M1 machines] [supported|okay|fine|good enough]", "Apple Silicon support", "is there a [Mac|macOS] version", "[Mac|macOS] support", "does the Mac use Metal",
        "can {P} be run on [a Mac|Macs|Apple machines]", "is it possible to use [a Mac|Macs|my MacBook]", "how well does it run on a Mac", "can I run this on [a Mac|my MacBook|Apple hardware]"],
    "Linux": [
        "will {P} [run|work] on [Linux|Ubuntu|Debian|Fedora|my Linux box|a Linux PC]", "I [have|use|run] [Linux|Ubuntu|Debian|Fedora], [does it work|will it run|is that fine|can I use it]", "Linux support", "is there a Linux version", "can {P} be [run|used] on [Linux|Ubuntu|a Linux server]", "is it possible to use [Linux|a Linux machine]", "is a Mac [needed|required|necessary]", "must I [have|own|buy] a Mac", "do I have to [own|buy|have] a Mac", "I have no Mac",
        "can it run without [Apple Silicon|a Mac|Apple hardware]", "does it only [run|work] on [Macs|Apple machines]", "is it [only for Macs|Mac only]", "can I run this on [Linux|Ubuntu|a Linux server]"],
    "Windows": [
        "will {P} [run|work] on [Windows|Windows 11|my Windows PC|Windows 10]", "I [have|use] Windows, [does it work|will it run|can I use it]", "Windows support", "can {P} be [run|used|installed] on [Windows|a Windows PC]", "is it possible to use [Windows|a Windows machine]", "can I install it on Windows", "can I run this on Windows", "does a Windows [machine|PC|laptop] work [|too]"],
    "mixing machines": [
        "[is it possible to|may I|could I] [mix|combine] [Macs and Linux|Macs and Linux machines|different machines|different computers|old and new machines]", "my [machines|computers] are [all different|not the same|different], [does it matter|is that a problem|is that fine]", "can [a Mac|a Mac and a Linux box|a laptop and a server] [work with a Linux machine|be in the same cluster|work together]",
        "must all [machines|computers|workers|nodes] be [alike|identical|equal|the same]", "[mixed|heterogeneous|unequal] [clusters|machines|hardware]", "does {P} support [mixed|heterogeneous|unequal] [clusters|machines|hardware]", "can [weak|slow|old] and [strong|fast|new] [machines|computers] be [mixed|combined|used together]", "can I combine [a Mac with a PC|Macs with Linux|old machines with new ones]",
        "do the computers need the same [memory|size|speed]", "is a heterogeneous cluster possible"],
    "how layers are spread": [
        "[how|in what way] [are|do you get] the layers [allocated|allotted|placed|partitioned|divided up|handed out|given out|distributed|split up] [|to the machines|to the workers|among the workers|among the machines]", "how does {P} [decide|choose|know|work out] [where to put the layers|which machine gets which layers|how to split the model|who computes what]",
        "how is [a|the] [model|network] [cut|divided|partitioned|shared|split up|broken up] [|between machines|among the machines|over the workers|into parts]", "by what rule are the layers [spread|split|assigned|shared]", "what determines [the split|the layer split|where a layer goes|the share of a machine|how the layers are split]", "which [machine|worker|node|computer] [gets|takes|holds] [more|most|the most|which] layers",
        "on what [basis|grounds] are layers [assigned|spread]", "how many layers does [a|each|every] [machine|worker|node] [get|hold|take]", "what is the [rule|method|way] for [splitting|spreading|distributing] the [layers|model]", "how do the layers get [to|onto] the [machines|workers]", "how does the model get [split|spread|distributed]", "layer [distribution|placement|assignment|split]", "tell me how the [model|layers] [is split|are split|are spread|is spread]",
        "how do [several|many] machines share [a|one] model", "how are parts of the model given to the machines", "does a machine with more memory get more layers", "describe how the [model|layers] [is|are] [divided|distributed|spread]"],
    "a worker that dies": [
        "what happens [when|if] [a|one|some] [worker|machine|node|computer] [quits|falls over|vanishes|drops out|loses power|is unplugged|goes offline|is switched off|breaks down|gets killed|suddenly dies|is turned off|leaves without a word|hangs]", "one [machine|worker|node|computer] [crashed|failed|died|broke|went offline|is gone], [what now|what happens|what happens now|is my answer lost]",
        "what does {P} do [when|if] a [worker|machine|node] [dies|fails|crashes|disappears]", "suppose [a|one] [worker|machine|node] [dies|fails|crashes], [what then|what happens]", "does {P} [cope with|handle|tolerate|recover from|deal with] [a crash|crashes|a dead worker|failures|failing machines|a lost node]", "do I lose [anything|my answer|tokens|the text] [when|if] a [worker|machine] [dies|fails|crashes]",
        "[can|may|could] a [worker|machine|node] [fail|die|crash|go down] [|while the model answers|without harm]", "is [the|my] answer lost [when|if] a [machine|worker] [fails|dies|crashes]", "will it [keep going|go on|continue] [when|if|after] a [machine|worker] [fails|dies|crashes]", "how [robust|resilient|fault tolerant|reliable] is {P}", "what about [failures|crashes|dead machines|fault tolerance]",
        "what if [I unplug|I kill|I pull the plug of|I switch off|I turn off] [a|one] [worker|machine|computer]", "describe what happens when a worker dies", "can the cluster survive a [crash|failure|dead machine]", "and if one of the [machines|workers|computers] [dies|fails|crashes|stops working]", "what happens to the [stream|answer|request|text] [when|if] a [node|worker|machine] [dies|fails|goes away]",
        "fault tolerance", "what if a computer in the cluster [stops working|breaks|fails]"],
    "how to start": [
        "how [would|could|should] I [start|launch|run|try] {P}", "how does one [start|run|launch|use] {P}", "what do I [have to|need to] [do|type|run] to [start|try|run|launch] {P}", "what must I [do|type] [first|to begin|to start]", "what is the [first step|first command|command to start]", "[which|what] command do I [type|run|use|need] [to start|first|to get going]",
        "how do I get [going|it going|it running|this running|{P} running|it to run|up and running]", "how do I bring [it|{P}] up", "how do I fire [it|this] up", "[help|please help] me [to |]get started", "I want to [start|try] [it|{P}], how", "I want to try [it|this|{P}] [out|]", "what is the [simplest|fastest|shortest|best] way to [try|run|begin|get started]", "[quick start|quickstart]",
        "how can this be started", "how is {P} started", "starting {P}", "let me try it", "how do I use [it|this]", "[where|how] should a beginner [start|begin]", "what now, how do I begin", "how do I launch [it|this|everything]", "what's the first thing to [do|type|run]", "steps to [start|run] {P}", "how can I see it [working|running|in action]"],
    "make demo": [
        "what [does|will] [`make demo`|make demo] [show|do|start|run|build]", "what [is shown|happens|can I see] in the demo", "why should I run [make demo|the demo]", "describe the demo", "what is the demo [about|for]", "what does the demo [prove|demonstrate|do exactly]", "I [ran|typed] make demo, what [happened|does it do]", "which steps does [the demo|make demo] [have|run]"],
    "make test": [
        "how are the tests [run|started]", "how can I test [it|this|that it works|my build]", "[command|which command] to run the tests", "I want to run the tests", "is there a test suite", "does {P} have tests", "[which|what] command runs the tests", "how can I [verify|check|be sure] that [it|everything] works", "are there [tests|unit tests]", "where is the test suite", "how do I test my changes"],
    "installing": [
        "how is {P} [installed|built|compiled]", "what do I type to [install|build|compile] [it|{P}]", "how [would|could] I [install|build|compile] {P}", "[command|commands|steps] to [install|build|compile] [it|{P}]", "[installing|building|compiling] {P}", "can I [install it with pip|pip install it|use pip]", "is there a [pip package|package|installer]", "I want to [install|build|compile] {P}",
        "how do I [build|compile] [it|this|{P}] from source", "how do I get it onto my machine", "how do I set it up", "how do I set up {P}", "where can I [get|download] {P}", "installation"],
    "the server program": [
        "how [would|could] I [start|run|launch|bring up] [the|a] server", "how do I launch [the server|mlx-dist-server]", "what [do I type|must I type] to [serve a model|start the server]", "how can a model be served", "how is the server started", "I want to [serve a model|start the server|run a server]", "how do I [host|serve|offer] a model", "what is mlx-dist-server [for|good for]", "command for the server",
        "how do I get a server running", "[starting|running] the server", "what does the server program do", "which command [serves|hosts] a model"],
    "the worker program": [
        "how [would|could] I [start|run|launch] [a|the] worker", "how do I launch [a worker|mlx-dist-worker]", "what is a worker [for|good for|node|process]", "what [job|role|task] does a worker have", "what is mlx-dist-worker [for|good for]", "define worker", "explain [workers|what a worker is]", "what do you mean by a worker", "how is a worker started", "command to start a worker", "tell me about the workers", "what exactly does a worker do"],
    "joining a machine": [
        "how [would|could] I [add|attach|connect|bring in] [a|another|one more|a new] [machine|computer|node|worker]", "I [have|bought|got] [a second computer|another Mac|a new machine|one more machine], how do I [add|connect|use] it", "how is [a|a new|another] [machine|computer|node] [added|joined|connected]", "how do I [link|connect|join|put together|combine] [two|several|my|three] [computers|machines|Macs]",
        "how do I [enlarge|extend|expand|grow] [the|my] cluster", "[adding|joining|connecting] [a machine|a worker|another machine|a new node]", "can [machines|workers|a machine] [join|be added] [later|while it serves|at any time|on the fly]", "how does a new [machine|worker|computer] [join|get in|enter the cluster]", "I want to add a [machine|worker|node|computer]", "how do I set up a cluster", "command to add a machine", "what do I do to add a [machine|computer|node]",
        "how do I get [my second|another] [machine|computer] into the cluster", "how can several computers be connected"],
    "removing a machine": [
        "how [would|could] I [remove|drain|take out|disconnect] [a|one] [machine|worker|node|computer]", "how is a [worker|machine|node] [removed|stopped|drained|taken out]", "how do I take [a machine|a worker|a node|a computer] [out|out of the cluster|away]", "[removing|draining] a [worker|machine|node]", "I want to [remove|take out] a [machine|worker|node]", "what is draining", "how do I stop [one worker|a worker cleanly|a worker without an error]",
        "how can a machine leave the cluster", "how do I make a worker leave", "can I take a machine away"],
    "the coordinator": [
        "what [job|role|task] does the coordinator have", "define coordinator", "what is a coordinator for", "who [decides|is in charge|gives orders|coordinates] [|in the cluster]", "tell me about the coordinator", "where does the coordinator run", "what do you mean by coordinator", "which part [controls|leads|directs] the cluster", "is one machine in charge"],
    "the coordinator failing": [
        "[suppose|imagine] the [coordinator|server] [dies|fails|crashes], what then", "what happens [when|if] the [coordinator|server] [goes down|is killed|is restarted|stops|breaks]", "can the coordinator [fail|die|crash|be restarted]", "does [my|the] stream survive a [restart|server crash|coordinator crash]", "what does X-Resumable do", "what is the journal [for|]", "how do I resume a stream", "are streams lost when the server restarts", "the server crashed, is my stream lost"],
    "the API": [
        "[which|what] [interface|kind of API|sort of API|web API] does {P} [offer|have|expose|speak|provide]", "how [would|could|does] [my program|an app|a client|my code] [talk to|use|call|reach] [it|{P}|the model]", "can I [use|keep|point] my [OpenAI client|OpenAI code|existing client|existing code|OpenAI library] [|at it|with it]", "does {P} [speak|follow|implement|offer] the OpenAI [API|protocol|interface]", "is the API [compatible|like OpenAI|the same as OpenAI|OpenAI style]",
        "what [URL|base URL|path|route] do I [call|use]", "what are the [endpoints|routes|paths]", "list the [endpoints|routes]", "which clients [work|can I use|are supported]", "how do I [query|ask] the model [over HTTP|from my program|from an app|with curl]", "API [compatibility|support]", "is it possible to use the OpenAI [client|library|SDK]", "what API is [offered|there|available|spoken]",
        "can existing [OpenAI programs|clients|apps] [use it|talk to it|connect]", "what is the interface for [clients|programs|apps]", "does it have a chat completions endpoint", "how are requests [sent|made]", "can I talk to it [over HTTP|with curl]"],
    "the port": [
        "[which|what] port [is it|is used|is the server on|should I open]", "port number", "where can I reach the [server|API]", "at [which|what] address [is|does] the server [|listen]", "how can I [use|set|choose] another port", "can I change the [port|address]", "I need another port", "what host and port does it use", "what address do I connect to"],
    "API keys": [
        "how [is|do I get] an API key [set|]", "is an API key [needed|required|necessary]", "how do I set a [password|key] [|for the server]", "how can I protect the server", "who can use my server", "how do I keep [others|strangers] from using my server", "where do I put the API key", "API key", "must requests carry a key", "can I require a key"],
    "gRPC": [
        "[how|over what|by what means] do [machines|workers|nodes|the computers] [talk|communicate|exchange data|send data|send messages] [|to each other|with each other|among themselves]", "[which|what] protocol [connects|links|is spoken between|runs between] the [machines|workers|nodes|computers]", "what is gRPC", "why do you use gRPC", "what role does gRPC play", "how do numbers get from one machine to the next",
        "what do the [machines|workers] use to [talk|communicate]", "how are messages sent [between|among] the [machines|workers|nodes]", "how are the [machines|workers|nodes] connected", "communication between [machines|workers|nodes]", "what is the transport", "what travels between the machines"],
    "security and mutual TLS": [
        "[is|are] the [traffic|data|connection|connections|communication|network traffic] [between the machines |between workers |between the nodes ||][encrypted|secure|protected|safe]", "are [messages|connections|the data] encrypted [|on the wire|between machines]", "can [someone|anybody|others|my neighbour] [read|listen to|see|spy on] the [traffic|data|connection]", "how [safe|secure] is {P}", "[which|what] encryption [is used|does it use|is there]", "what protects the [traffic|connections|cluster|data]",
        "do the machines use [TLS|encryption|certificates]", "how do machines [trust|authenticate|identify] each other", "do I need certificates", "encryption", "security", "TLS", "what is mTLS", "explain [mTLS|the security|how it is secured]", "is there [encryption|authentication] [|between the machines|between workers]", "what stops a stranger from joining", "how is the [traffic|data] between [machines|workers|nodes] [encrypted|protected|secured]",
        "does everything go over TLS", "is it encrypted"],
    "the join token": [
        "what is [the|a] token [used for|good for] when joining", "how is a join token [made|created]", "[why|when] do I need a join token", "where does the join token come from", "explain [the join token|join tokens]", "[get|make|create] a join token", "which token does a worker need", "I need a [join token|token for my worker]", "how long is a join token valid", "what do I do with the join token"],
    "pipeline parallelism": [
        "what do you mean by pipeline [parallelism|parallel]", "define pipeline [parallelism|parallel]", "describe pipeline parallelism", "tell me about pipeline [parallelism|parallel]", "I [do not understand|don't get|never heard of] pipeline parallelism", "pipeline parallelism", "pipeline parallelism in [short|simple words|one sentence]", "what's pipeline parallel", "how does a pipeline work [|here]",
        "what happens in pipeline [parallelism|parallel mode]", "what is the idea of pipeline parallelism", "is pipeline parallelism supported", "can you run models in a pipeline", "what is a pipeline of machines", "why is it called a pipeline"],
    "tensor parallelism": [
        "what do you mean by tensor [parallelism|parallel]", "define tensor [parallelism|parallel]", "describe tensor parallelism", "tell me about tensor [parallelism|parallel]", "I [do not understand|don't get|never heard of] tensor parallelism", "tensor parallelism", "tensor parallelism in [short|simple words|one sentence]", "what's tensor parallel",
        "what happens in tensor [parallelism|parallel mode]", "what is the idea of tensor parallelism", "is tensor parallelism supported", "can [two|several] machines [share|compute] [a|one|the same] layer", "can a layer be [cut|divided|shared]", "what is tensor splitting"],
    "pipeline against tensor parallelism": [
        "how is pipeline parallelism different from tensor parallelism", "tensor or pipeline [parallelism|parallel]", "tensor versus pipeline [parallelism|]", "pipeline [vs|versus] tensor [parallelism|]", "what distinguishes pipeline from tensor parallelism", "when do I use pipeline and when tensor parallelism", "which one is better, tensor or pipeline [parallelism|]", "which kind of parallelism should I [use|choose|take]",
        "difference [between|of] tensor and pipeline parallelism", "is pipeline parallelism better than tensor parallelism"],
    "quantisation": [
        "what do you mean by [quantisation|quantization|quantised|quantized]", "define [quantisation|quantization]", "tell me about [quantisation|quantization]", "how many bits [have the weights|do the weights have|does a weight have|are used]", "what are [quantised|quantized] weights", "why [quantise|quantize|are the models quantised|use 8 bits]", "are the weights [quantised|quantized|8-bit]", "is the [model|demo model] [quantised|quantized]",
        "what does [4-bit|8-bit] mean", "[quantisation|quantization]", "can it run [4-bit|8-bit|quantised|quantized] models", "how do you make the weights [smaller|small]", "why are the weights so small", "what is the point of [quantisation|quantization]", "in how many bits are the weights [kept|stored]", "what is group size 64"],
    "the licence": [
        "[which|what] [licence|license] is [it|{P}] [under|published under|released under]", "under what terms [can|may] I use {P}", "[do I have to|must I] pay [|for {P}|to use it]", "is {P} [free to use|gratis|MIT|MIT licensed|free of charge|open]", "[may|can] I [sell|change|modify|copy|share|fork] [it|{P}|the code]", "[licence|license]", "MIT [licence|license]", "what does [it|{P}] cost", "is there a [price|fee|cost]", "am I allowed to use [it|{P}] [at work|in a company|commercially]", "tell me [about|] the [licence|license]",
        "can my company use {P}", "is the source [open|public|free]", "what are the [licence|license] terms"],
    "the programming language": [
        "[which|what] [programming language|language] [is|was] [used|used to write it|it made with]", "what language is the [code|source|source code|program] [in|written in]", "is the [code|source] in [C|C++|Rust|Python|Go]", "was it [written|made] in [C|Python|Rust|C++]", "what are you [programmed|coded|written] in", "tell me the programming language [|of {P}]", "programming language", "did you write it in [C|Python|Rust|C++]", "how much Python is in it",
        "[in|with] [which|what] language [did|do] you [write|program|develop] {P}", "what language do the developers use", "is C++ used"],
    "what the demo model is": [
        "what sort of [thing|model|bot] are you", "[which|what] model [am I using|answers me|is running|is loaded]", "what is models/demo", "why do you exist", "what is the point of the demo model", "what [purpose|use] [do you|does the demo model] [have|serve]", "what kind of [AI|bot|assistant] are you", "say what the demo model is", "what is this little model", "are you [an AI|a chatbot|a bot|a small model|a real model]", "what am I talking to"],
    "the size of the demo model": [
        "how many [weights|parameters|layers] [are in you|do you consist of|does this model have|has the demo model]", "[what|which] size [are you|do you have|has the demo model]", "number of parameters", "how [heavy|little|tiny] are you", "are you a [large|big|small|tiny] model", "how much [space|disk|disk space] [do you|does the demo model] [need|take]", "how many megabytes [are you|is the demo model]", "tell me your size", "parameter count",
        "how large is your [network|model]", "what are your dimensions", "how many layers are in the demo model"],
    "how the demo model was made": [
        "[how|in what way] [did somebody|did they|did someone] [make|train|build] [you|the demo model]", "who is your [maker|creator|author|developer|father|mother]", "what data [were you trained on|did you learn from|was used to train you]", "where does your [knowledge|training data] come from", "who [created|developed|programmed|wrote] you", "tell me how you were [made|trained|built]", "what did you learn from", "how was this model [made|trained|built]", "by whom were you [made|trained]",
        "on which [texts|data] were you trained", "were you trained on [the internet|books|Wikipedia]", "what [was used|is used] to train you", "your training", "how do you train such a model"],
    "what the demo model can do": [
        "what [kind of things|things|tasks] can you do", "what can I [do|try] with you", "what [topics|subjects] do you know [|about]", "what are you for", "how can you be of [help|use]", "what do you offer", "give me [an example|examples] [of what you can do|of questions]", "[what|which] questions [may|should|can] I ask [|you]", "tell me what you can do", "list your [abilities|skills|features]", "I need [help|some help]", "what could I ask you", "what is possible with you", "your [skills|abilities]"],
    "what the demo model cannot do": [
        "what [do you not know|don't you know|is too hard for you|can the demo model not do]", "how [reliable|good|trustworthy|accurate] are [you|your answers]", "[should|may] I [believe|trust] [you|your answers|what you say]", "do you [ever |sometimes |]make [mistakes|errors]", "are you sometimes wrong", "can you be wrong", "what are your [weaknesses|limitations|weak points]", "where do you fail", "tell me your [limits|weaknesses]", "is everything you say [true|right|correct]", "can I rely on you", "are you [perfect|stupid|wise|good at everything]"],
    "larger models": [
        "can I [use|run|load] [other|bigger|larger|real|different] models", "[which|what] [other models|models] [are there|can it load|can I load|does it work with|is it able to run]", "is [Qwen|Llama|Mistral|Gemma|gpt-oss] [supported|possible]", "how do I [switch to|try|take|get] [another|a bigger|a different|a better|a larger] model", "does it run [Qwen|Llama|gpt-oss|mlx-community models|MLX models]", "can it serve [Llama|Qwen|big models|large models]", "I want [a bigger model|to run Llama|to run Qwen|a better model]",
        "list the [supported models|models]", "supported models", "are you the only model", "what about [other|bigger|larger] models", "which [families|architectures] can it run", "can I bring my own model"],
    "downloading models": [
        "how is a model downloaded", "where [do|does] [the models|the weights|models|the model] come from", "does it fetch models [|by itself|from the hub]", "where does it [keep|store|save|put] the models", "must every [machine|worker] download the [model|whole model]", "do all machines need [a copy of the model|the whole model|all the weights]", "how does a worker get [its weights|its layers|the model]", "model download", "how do I get a model", "downloading a model"],
    "memory needed": [
        "how [big|large] must [the|my] memory be", "is [8|16|32|64] GB [of memory|of RAM|] enough", "[what|how much] RAM [do I need|is required|is necessary|is needed]", "will [my|the|this] model fit [|into my machines|into memory]", "memory requirements", "what happens [when|if] a model is too [big|large]", "the model does not fit, what now", "how many gigabytes do I need", "how can I tell if a model fits", "how much memory must the machines have"],
    "the number of machines": [
        "what is the [minimum|maximum|smallest|largest|least] number of [machines|workers|computers]", "how many [machines|workers|computers|nodes] [may|can|should|must] [there be|I have|I use|join]", "does it [also |]work [on|with] [a single|only one|just one] [machine|computer]", "can I use it [alone|on one machine|with a single computer]", "I have only one [computer|machine|Mac]", "is [a single|one] [machine|computer] enough", "do I need [several|many|more than one|two] [machines|computers]", "how [big|large] can a cluster be", "is there a limit on [machines|workers|the number of machines]", "number of machines"],
    "the same bits everywhere": [
        "[do|will] [two|different|all] machines give the same [answer|result|text]", "[is|are] the [output|result|outputs|answers] [identical|bit-exact|the same] [|with two machines|with any number of machines|however it is split]", "does the [split|layout|cluster size|number of workers] [change|affect|influence] the [answer|result|output|text]", "is the [result|output|answer] [always the same|deterministic|reproducible]", "bit-exact results", "reproducible results", "can results differ between machines", "will I get another answer with three workers",
        "do more machines change the answer", "is it deterministic"],
    "the planner": [
        "what [job|role|task] does the planner have", "how can I [view|look at|print|see] the plan", "how do I [view|print|show] the plan", "how does it make a plan", "what is planning", "define the planner", "tell me about the [planner|plan]", "who makes the plan", "what does the planner decide", "what is --dry-run [for|]", "what is a dry run", "see the plan first", "can I check the plan before [loading|it loads]"],
    "hardware detection": [
        "how can I see [what hardware I have|my hardware|what it finds]", "which program [detects|shows] [the|my] hardware", "does it [find|see|measure|know] my [memory|hardware|processor] [by itself|automatically|]", "is [the|my] hardware [detected|found] [|automatically]", "mlx-dist-detect", "what is mlx-dist-detect [for|good for]", "how does it find out [my memory|how much memory I have|what my machine can do]", "hardware detection", "how do I check my hardware"],
    "the configuration tool": [
        "mlx-dist-config", "what is mlx-dist-config [for|good for]", "how is the configuration [made|checked|written|done]", "where do I [put|write|change|find] the [settings|configuration|options]", "how can I [change|set] [settings|options]", "how do I write a [config|configuration|config file]", "is the [config|configuration] [YAML|JSON|TOML]", "what does the [config file|configuration] look like", "which tool makes the configuration", "configuration"],
    "the generate program": [
        "mlx-dist-generate", "what is mlx-dist-generate [for|good for]", "can I [use it|chat|generate text] [on|from] the [command line|terminal|shell]", "how do I [chat|talk to you|ask something|get an answer] in the [terminal|shell|console]", "is there a [terminal|console|command line] [program|tool|client]", "can I generate text without [a server|HTTP]", "how do I use the command line", "text on the command line"],
    "speed and benchmarks": [
        "how [quick|slow|speedy] is {P}", "how many tokens [a|per|each] second", "can I measure the [speed|performance]", "how is the speed measured", "mlx-dist-bench", "what is mlx-dist-bench [for|good for]", "is there a benchmark", "[which|what] tool measures the speed", "is it [slow|quick|fast]", "what speed [can I expect|do I get|will I get]", "benchmark", "performance", "tell me about the [speed|performance]", "how do I find out how fast it is", "tokens per second"],
    "GPUs and Metal": [
        "is a [GPU|graphics card] [necessary|needed|required|a must]", "must I have a [GPU|graphics card]", "does it [need|require|want] a [GPU|graphics card]", "can it run on [the CPU|a CPU only|CPU only|just a CPU]", "is [Metal|CUDA|NVIDIA] [used|supported]", "does {P} [use|run on] [Metal|CUDA|NVIDIA cards|graphics cards]", "what computes the layers", "GPU support", "I have no [GPU|graphics card]", "what backends does it have", "which backend is used [on a Mac|on Linux|]", "will it use my GPU", "without a [GPU|graphics card], does it work"],
    "the dashboard": [
        "how can I [see|watch|monitor|view] the [cluster|machines]", "is there [something|anything] to see in [the|a] browser", "does {P} have a [dashboard|web page|web interface|GUI|user interface|web UI]", "can I [watch|see|monitor] [it|the cluster|the machines] in [a|the|my] browser", "how do I get to the dashboard", "dashboard", "web [interface|page|UI]", "where can I see what the machines do", "what can I see on the dashboard", "where do I find the dashboard"],
    "the Python package": [
        "can I [call|control|use|script] [it|{P}] [from|in|with] Python", "is there [something for Python|Python support]", "how [is it|is the library] used from Python", "Python [package|library|bindings|support]", "[which|what] Python [class|module|package] [do I import|is there|should I use]", "I [write|program in|use] Python, [can I use it|how do I use it]", "how do I import it in Python", "does {P} have [Python bindings|a Python package|a Python API]", "a Python example", "how can Python code use {P}"],
    "streaming": [
        "[are|can] answers [streamed|be streamed]", "can I [see|get|receive] the [answer|tokens|words] [as they come|one by one|while it is written|piece by piece]", "how [is|are] [streaming|answers] [turned on|switched on|streamed]", "how do I [turn on|enable|switch on|use] streaming", "does it [stream|support stream=true|support server-sent events]", "streaming", "is streaming [supported|possible|available]", "what are server-sent events", "do the tokens come one after another", "do I have to wait for the whole answer"],
    "tool calls": [
        "are [tools|tool calls|functions|function calls] [supported|possible]", "[can|could] the model [call|use] [tools|functions|a function]", "how [are|do I send|do I pass] tools [used|given|]", "tool [calls|calling|use]", "function calling", "does it [do|know|understand] [tool calls|function calling]", "what happens when a tool is needed", "do you know how to [call a tool|use tools]", "is tool calling supported", "can I give you [tools|functions]"],
    "thinking": [
        "[is|does it have] a thinking mode", "how do I make you think", "can I see [your thoughts|what you think]", "how is thinking [turned on|switched on|enabled|turned off]", "does the [demo |]model think", "thinking [mode|]", "do you have a thinking mode", "can you [reason|think first|think aloud|think before answering]", "what is enable_thinking", "is there a [thinking|reasoning] mode", "are you able to think", "switch on thinking"],
    "privacy": [
        "does anything leave my [machine|network|computers]", "[is|are] [anything|my questions|my data|my texts] sent [to the cloud|to a server|to Apple|to somebody|over the internet|away]", "do you [send|store|share|sell] my data", "who [sees|can see|reads] my [data|questions|texts|prompts]", "is [the internet|an internet connection|a connection] [needed|required|necessary]", "can it run [offline|without the internet|without a network connection]", "is everything [local|private|kept on my machines]", "do I need [the internet|internet|a cloud account|an account]", "privacy", "how private is it", "does it phone home", "offline use",
        "where is my data kept", "is it private"],
    "MPI": [
        "is MPI [needed|required|supported|used|possible]", "do I need [MPI|Open MPI|Slurm]", "can it run [on a Slurm cluster|with Open MPI|under MPI]", "MPI [support|]", "what is mpirun [for|]", "how do I start it with [mpirun|Slurm|MPI]", "does {P} use MPI", "tell me about MPI", "is there an MPI [version|backend|mode]"],
    "the KV cache": [
        "what do you mean by [the KV cache|KV cache]", "define KV cache", "tell me about the [KV cache|cache]", "what is [kept|stored] in the [KV cache|cache]", "why [do you need|use] a [KV cache|cache]", "KV cache", "what is the cache [for|good for]", "how does the [KV cache|prefix cache|cache] work", "what are keys and values", "is there a cache for prompts", "are prompts cached"],
    "many requests at once": [
        "can [several|many|two|more] [people|users|clients|programs|requests] [use it|be served|share it|ask|run] [together|at once|at the same time|in parallel|simultaneously|]", "[does|can] it [handle|serve|answer|take] [many|several|more than one|parallel|two] [requests|users|questions] [|at once|at a time|in parallel]", "is [batching|continuous batching] supported", "what is batching", "continuous batching", "how are [many|parallel|several] requests handled", "parallel requests", "what does the scheduler do", "how many people can use it", "what if two [users|people] ask at once"],
    "MLX": [
        "what do you mean by MLX", "define MLX", "who [makes|develops|wrote] MLX", "is MLX from Apple", "what does MLX do", "what is Apple's MLX", "what is the MLX [library|framework]", "MLX", "say something about MLX", "MLX in one sentence", "what sort of library is MLX"],
    "what a language model is": [
        "what do you mean by [a language model|language model|LLM]", "define [language model|LLM]", "tell me [about|what is] [language models|LLMs]", "what are [language models|LLMs]", "how do [language models|LLMs] [work|write text|make text]", "what does [an LLM|a language model] [do|predict]", "what does LLM [mean|stand for]", "language model", "I don't know what a language model is", "explain [LLMs|what a language model is]"],
    "what a token is": [
        "what do you mean by [token|tokens|a token]", "define token", "tell me [about tokens|what tokens are]", "how [big|large|long] is a token", "is a token a word", "token", "what are tokens in a language model", "what is tokenization", "how is text turned into tokens", "how does a tokenizer work", "I don't know what a token is"],
    "what a layer is": [
        "what do you mean by [layer|layers|a layer]", "define layer", "tell me [about layers|what layers are]", "what is a layer [made of|of a model|in a model]", "what are the layers of a model", "what is a model made of", "what does a model consist of", "layer", "how does a layer work", "I don't know what a layer is", "what is attention"],
    "what a cluster is": [
        "what do you mean by [cluster|a cluster|node|distributed inference]", "define [cluster|distributed inference]", "tell me [about clusters|what a cluster is]", "what is a group of machines called", "cluster", "what does distributed inference mean", "distributed inference", "what is inference on many machines", "I don't know what a cluster is", "why is it called distributed"],
    "safetensors": [
        "what do you mean by safetensors", "tell me about safetensors", "[which|what] [format|file format] [is used|are the weights in|do models have]", "in [which|what] format are the weights", "what [files|file] [make up|belong to|are in] a model", "safetensors", "where is the architecture written", "can a model run code", "is a model file safe", "which file holds the weights"],
    "heartbeats": [
        "how [does it|does the coordinator|do you] [see|find out|detect|realise|recognise] that a [worker|machine|node] [is dead|is gone|died|has failed]", "how [soon|quickly|fast] is a [dead worker|failure|crash|dead machine] [noticed|detected|found]", "what are heartbeats [for|]", "what is the heartbeat [for|]", "heartbeat", "how do I know that a worker is [alive|dead]", "how is a failure [noticed|detected|found]", "how many heartbeats per second", "failure detection"],
    "the network": [
        "[which|what] [kind of |]network [is needed|is required|is good enough|should I use|do the machines need]", "is [Wi-Fi|wifi|Ethernet|gigabit|a slow network|a normal network|my home network] [enough|good enough|fine|fast enough|okay]", "how [fast|good|quick] [should|does] the network [be|have to be|need to be]", "does it need [a fast network|Thunderbolt|10 gigabit|a special network|Ethernet]", "network requirements", "must the network be fast", "how much [data|traffic] goes over the network", "can the machines be on wifi", "what about the network speed", "do I need special cables"],
    "all-reduce": [
        "what do you mean by [all-reduce|allreduce|collectives]", "define all-reduce", "what does [an all-reduce|all-reduce] do", "tell me about [all-reduce|collectives]", "how does [an all-reduce|all-reduce] work", "all-reduce", "[which|what] collective operations are there", "what is a collective", "what is gather", "explain [collectives|allreduce]"],
    "the documentation": [
        "where do I find [the docs|documentation|help|a manual|more information|instructions]", "is there [a handbook|a guide|help|some documentation|a tutorial]", "what should I read [first|]", "I want to [read|learn|know] more", "documentation", "docs", "is it documented", "what can I read about [it|{P}]", "show me the documentation", "how is it documented", "where is the manual"],
    "reporting a problem": [
        "where [can|should] I [report|send] [a bug|an error|problems|bugs]", "[there is|I have] [a bug|a problem|an error]", "what do I do [when|if] [it does not work|I find a bug|something fails]", "it [crashes|fails|doesn't work|is broken]", "who can help me with a [bug|problem]", "bug report", "can I [contribute|send a patch|help]", "how do I send a patch", "I have an issue with {P}", "how do I get support", "to whom do I report a bug"],
    "the demo model's files": [
        "where [can I find|do I find] the demo model", "[which|what] folder are you in", "where are the files of the demo model", "what is your [path|folder|home]", "where is your home", "under [which|what] name are you loaded", "how do I start the demo model", "how can I load you", "where are you on the disk", "in which directory do you live", "by which name can I load you"],
    "the seed": [
        "what do you mean by [seed|temperature|sampling]", "define [temperature|sampling]", "tell me about [the temperature|sampling|the seed]", "how do I get [the same|another|a different] answer [again|each time]", "why is the answer different [each time|every time]", "what is [top_p|top_k|the seed] [for|]", "how do I set the [seed|temperature]", "[temperature|seed|sampling]", "how random are the answers", "can I make it less random", "what is the seed for", "how is the next token chosen"],
}

#: Words that may stand for each other in any question about the project.
WORDS: dict[str, list[str]] = {
    "machine": ["computer", "node", "box", "host", "device"], "machines": ["computers", "nodes", "boxes", "hosts", "devices"], "computers": ["machines", "nodes"], "worker": ["worker node", "worker process", "worker machine"],
    "start": ["launch", "run", "fire up", "bring up"], "explain": ["describe", "clarify", "define"], "show": ["reveal", "display"], "use": ["utilise", "employ", "work with"], "need": ["require"], "needed": ["required", "necessary"],
    "spread": ["distributed", "split", "divided", "allocated", "shared out"], "split": ["divided", "spread", "partitioned"], "over": ["across", "among", "onto", "between"], "between": ["among"], "dies": ["fails", "crashes", "goes down", "is lost", "breaks"], "fails": ["dies", "crashes", "breaks"],
    "supported": ["possible", "available", "allowed", "an option"], "support": ["have", "allow", "know", "handle"], "quickly": ["fast"], "fast": ["quick", "speedy"], "big": ["large", "huge"], "small": ["little", "tiny"], "model": ["LLM", "language model"], "program": ["app", "software", "tool"],
    "add": ["attach", "include", "bring in"], "remove": ["take out", "drop", "get rid of"], "called": ["named"], "encrypted": ["secured", "protected"], "traffic": ["data", "network traffic", "communication"], "happens": ["occurs", "is the result", "will happen"], "made": ["built", "created"], "trained": ["taught", "made"], "written": ["coded", "programmed", "implemented"],
    "many": ["several", "multiple"], "several": ["many", "multiple"], "answers": ["replies", "responses"], "answer": ["reply", "response"], "enough": ["sufficient"], "see": ["view", "look at"], "get": ["obtain", "receive"], "find": ["locate"], "install": ["set up"], "build": ["compile"], "different": ["unequal", "other"], "equal": ["alike"], "together": ["jointly"], "about": ["regarding", "concerning"],
}
#: Beginnings that may stand for each other.
BEGINNINGS: list[tuple[str, list[str]]] = [
    ("what is ", ["what's ", "what exactly is ", "what do you mean by ", "define ", "explain ", "what do people mean by ", "please define ", "tell me about ", "whats ", "can you explain ", "describe ", "meaning of ", "what in the world is ", "give me the definition of ", "could you describe ", "I do not know what this is: "]),
    ("what are ", ["what exactly are ", "define ", "explain ", "tell me about ", "can you explain ", "could you describe "]),
    ("what does ", ["what exactly does ", "what will ", "what would ", "what did "]),
    ("how do I ", ["how can I ", "how would I ", "how should I ", "how does one ", "how could I ", "how might I ", "what do I do to ", "what must I do to ", "what is the way to ", "what is the best way to ", "which steps do I take to ", "show me how to ", "I want to ", "I need to ", "I would like to ", "is there a way to ", "help me ", "how do we ", "how do you ", "what is needed to ", "how am I supposed to "]),
    ("how to ", ["how do I ", "how does one ", "what is the way to ", "explain how to "]),
    ("can I ", ["may I ", "could I ", "is it possible to ", "am I able to ", "can we ", "is there a way to ", "can one ", "would I be able to ", "are we able to "]),
    ("does it ", ["will it ", "would it ", "can it "]), ("do I need ", ["must I have ", "do I have to have ", "is it necessary to have ", "do we need ", "will I need ", "should I have "]),
    ("is there ", ["do you have ", "does it have ", "is there something like ", "does it come with ", "can I get "]), ("tell me about ", ["talk about ", "what can you say about ", "what do you know about ", "say something about ", "teach me about ", "inform me about ", "I want to hear about ", "talk to me about "]),
    ("what happens when ", ["what happens if ", "what if ", "what will happen when ", "and when ", "what goes on when ", "what occurs when ", "what is going to happen if ", "what takes place when "]), ("what happens if ", ["what if ", "what will happen if ", "what would happen if ", "suppose ", "and if ", "what is the result if "]),
    ("how does ", ["how exactly does ", "in what way does ", "explain how does ", "by what means does ", "how will "]), ("how are ", ["in what way are ", "how exactly are ", "by what means are ", "how were "]), ("how is ", ["in what way is ", "how exactly is "]),
    ("which ", ["what ", "tell me which "]), ("where is ", ["where can I find ", "where do I find ", "where would I look for ", "in which place is "]), ("where are ", ["where can I find ", "where do I find "]), ("why ", ["for what reason ", "why exactly "]),
]
_LITTLE = {"the", "a", "an", "is", "are", "do", "does", "I", "it", "can", "please", "me", "my", "of", "what", "exactly"}


def begin(rng: random.Random, question: str) -> str:
    """The question with another beginning."""
    for old, new in BEGINNINGS:
        if question.startswith(old):
            return rng.choice(new) + question.removeprefix(old)
    return question


def reword(rng: random.Random, question: str) -> str:
    """The question with another beginning, with other words, or in telegram style."""
    if rng.random() < 0.4:
        question = begin(rng, question)
    if rng.random() < 0.55:
        words = question.split(" ")
        fit = [i for i, w in enumerate(words) if w in WORDS]
        for i in rng.sample(fit, min(len(fit), rng.choice([1, 1, 2]))):
            words[i] = rng.choice(WORDS[words[i]])
        question = " ".join(words)
    if rng.random() < 0.12 and len(question.split()) > 3:
        words = [w for w in question.split(" ") if w not in _LITTLE or rng.random() < 0.25]
        if len(words) > 1:
            question = " ".join(words)
    if rng.random() < 0.05 and (found := re.fullmatch(r"(how|what|which|where|why|who) (.+)", question)):
        question = f"{found[2]}, {found[1]}"
    return question


def more(rng: random.Random, label: str, first: list[str], name: str) -> str:
    """A question about `label`: one of `first` or one of `MORE`, often reworded."""
    further = MORE.get(label, [])
    question = expand(rng, rng.choice(further if further and rng.random() < 0.55 else first), P=name)
    question = re.sub(r" +", " ", question).strip()
    return reword(rng, question) if rng.random() < 0.5 else question
