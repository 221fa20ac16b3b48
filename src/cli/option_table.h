/* option_table.h - every option of every program, once: parsing, environment, config file, --help,
 * man pages, completions and docs/cli.md are made from these rows.
 *
 *   X(ID, name, other spellings, programs, group, type, value's name, least, most, default,
 * choices, sentence)
 *
 * name       "--name" on the command line, MLXD_NAME in the environment, `name:` in a config file
 * spellings  further ones, separated by spaces
 * default    text parsed like a value; NULL: none, and then the sentence says what happens
 * least/most of INT, REAL, SIZE (bytes), TIME (ms)
 * A program lists an option only when it acts on it.
 */
#ifndef MXD_CLI_OPTION_TABLE_H
#define MXD_CLI_OPTION_TABLE_H

#include "base/limits.h"

#define MXD_ON_SERVE_ENGINE (ON(SERVER) | ON(GENERATE) | ON(BENCH))
#define MXD_ON_COMPUTE      (MXD_ON_SERVE_ENGINE | ON(WORKER))
#define MXD_ON_ALL          ((1u << MXD_PROG_COUNT) - 1)
#define MXD_ON_MODEL        (MXD_ON_SERVE_ENGINE | ON(PLAN))
#define MXD_BYTES_MAX       9007199254740992.0 /* 2^53: exact as a double, in JSON too */
#define MXD_TEN_DAYS_MS     864000000.0

/* clang-format off */
#define MXD_OPTION_MAP(X) \
X(MODEL, "model", "-m -hf --hf-repo", MXD_ON_MODEL, MODEL, TEXT, "MODEL", 0, 0, NULL, NULL, \
  "The model: a folder, org/name[@revision] in the hub cache, or demo. Also as first argument.") \
X(ALIAS, "alias", "-a --served-model-name", ON(SERVER), MODEL, LIST, "NAME", 0, 0, NULL, NULL, \
  "Public names of the model in the API, the first one listed first; without it the " \
  "folder's name.") \
X(MODELS_DIR, "models-dir", "", MXD_ON_MODEL | ON(WORKER), MODEL, PATH, "DIR", 0, 0, NULL, NULL, \
  "A folder of model folders that is searched before the hub cache.") \
X(WEIGHTS_DIR, "weights-dir", "", ON(WORKER), MODEL, PATH, "DIR", 0, 0, NULL, NULL, \
  "Where weights are kept that came over the network because no folder here has them; without it " \
  "$XDG_CACHE_HOME/mlx-distributed/weights.") \
X(CTX_SIZE, "ctx-size", "-c --max-model-len", MXD_ON_MODEL, MODEL, INT, "N", 0, \
  MXD_MAX_CONTEXT, "0", NULL, \
  "Tokens of one sequence, prompt and answer together; 0: what the model allows, at most 4096.") \
X(CHAT_TEMPLATE, "chat-template", "", ON(SERVER) | ON(GENERATE), MODEL, TEXT, "TEXT", 0, 0, \
  NULL, NULL, \
  "A Jinja chat template that replaces the model's own.") \
X(CHAT_TEMPLATE_FILE, "chat-template-file", "", ON(SERVER) | ON(GENERATE), MODEL, PATH, \
  "FILE", 0, 0, NULL, NULL, \
  "A file with the chat template that replaces the model's own.") \
\
X(PROMPT, "prompt", "-p", ON(GENERATE), PROMPT, TEXT, "TEXT", 0, 0, NULL, NULL, \
  "The text to go on from; with --chat the user's message. - reads standard input.") \
X(CHAT, "chat", "", ON(GENERATE), PROMPT, FLAG, NULL, 0, 0, NULL, NULL, \
  "Use the model's chat template; without --prompt, an interactive chat.") \
X(SYSTEM, "system", "-sys --system-prompt", ON(GENERATE), PROMPT, TEXT, "TEXT", 0, 0, NULL, NULL, \
  "The system message of a chat.") \
X(IGNORE_EOS, "ignore-eos", "", ON(GENERATE), PROMPT, FLAG, NULL, 0, 0, NULL, NULL, \
  "Go on behind an end-of-text token until --max-tokens.") \
\
X(N_PROMPT, "n-prompt", "-p", ON(BENCH), BENCH, INTS, "N,...", 0, MXD_MAX_CONTEXT, "512", NULL, \
  "Prompt tokens of the prefill test; 0: no such test.") \
X(N_GEN, "n-gen", "-n", ON(BENCH), BENCH, INTS, "N,...", 0, MXD_MAX_CONTEXT, "64", NULL, \
  "Tokens of the decode test; 0: no such test.") \
X(STREAMS, "streams", "-b --batch", ON(BENCH), BENCH, INTS, "N,...", 1, MXD_MAX_SEQS, "1", NULL, \
  "Streams at the same time; speeds are of all of them together.") \
X(DEPTH, "depth", "-d --n-depth", ON(BENCH), BENCH, INTS, "N,...", 0, MXD_MAX_CONTEXT, "0", NULL, \
  "Tokens of the sequence that stand before those of the test.") \
X(THREAD_COUNTS, "thread-counts", "-t --threads", ON(BENCH), BENCH, INTS, "N,...", 0, MXD_MAX_THREADS, "0", NULL, \
  "Compute threads; 0: one per core. The model is loaded anew for each number.") \
X(RUNS, "runs", "-r --repetitions", ON(BENCH), BENCH, INT, "N", 1, 1000, "3", NULL, \
  "How often each test runs.") \
\
X(HOST, "host", "", ON(SERVER), HTTP, TEXT, "ADDRESS", 0, 0, "127.0.0.1", NULL, \
  "Address to listen on. Beyond loopback an API key or --insecure-lan is needed.") \
X(PORT, "port", "", ON(SERVER), HTTP, INT, "N", 0, 65535, "8080", NULL, \
  "Port to listen on; 0 takes a free one and prints it.") \
X(API_KEY, "api-key", "", ON(SERVER), HTTP, SECRETS, "KEY", 0, 0, NULL, NULL, \
  "A key that clients must send; may be given more than once.") \
X(API_KEY_FILE, "api-key-file", "", ON(SERVER), HTTP, PATH, "FILE", 0, 0, NULL, NULL, \
  "A file with one key per line; read again on SIGHUP.") \
X(INSECURE_LAN, "insecure-lan", "", ON(SERVER), HTTP, FLAG, NULL, 0, 0, NULL, NULL, \
  "Listen beyond loopback although no key is set: everybody on the network can use the server.") \
X(CORS_ORIGINS, "cors-origins", "--allowed-origins", ON(SERVER), HTTP, LIST, "ORIGIN,...", \
  0, 0, NULL, NULL, \
  "Origins whose pages may call the API: exact ones, localhost, or *.") \
X(ALLOWED_HOSTS, "allowed-hosts", "", ON(SERVER), HTTP, LIST, "NAME,...", 0, 0, NULL, NULL, \
  "More names that the Host header may carry, or *.") \
X(API_PREFIX, "api-prefix", "--root-path", ON(SERVER), HTTP, TEXT, "PATH", 0, 0, NULL, NULL, \
  "A path in front of every route, for example /llm.") \
X(TIMEOUT, "timeout", "", ON(SERVER), HTTP, TIME, "TIME", 1000, MXD_TEN_DAYS_MS, "600s", NULL, \
  "How long one request may take.") \
X(DRAIN_TIMEOUT, "drain-timeout", "", ON(SERVER) | ON(WORKER), HTTP, TIME, "TIME", 0, \
  MXD_TEN_DAYS_MS, "30s", NULL, \
  "How long running requests may go on after SIGTERM or SIGINT.") \
X(REASONING_FIELD, "reasoning-field", "", ON(SERVER), HTTP, CHOICE, NULL, 0, 0, \
  "reasoning_content", \
  "reasoning_content|reasoning|both|none", \
  "Where replies carry a model's reasoning; none leaves the tags in the content.") \
\
X(TEMP, "temp", "--temperature", ON(SERVER) | ON(GENERATE), SAMPLING, REAL, "X", 0, 2, NULL, NULL, \
  "Temperature where a request names none; without it the model's own default.") \
X(TOP_P, "top-p", "", ON(SERVER) | ON(GENERATE), SAMPLING, REAL, "X", 0, 1, NULL, NULL, \
  "Keep the likeliest tokens up to this share of probability.") \
X(TOP_K, "top-k", "", ON(SERVER) | ON(GENERATE), SAMPLING, INT, "N", 0, MXD_MAX_VOCAB, NULL, NULL, \
  "Keep the N likeliest tokens; 0: all.") \
X(MIN_P, "min-p", "", ON(SERVER) | ON(GENERATE), SAMPLING, REAL, "X", 0, 1, NULL, NULL, \
  "Drop tokens below this part of the likeliest one's probability.") \
X(MAX_TOKENS, "max-tokens", "-n --predict --n-predict", ON(SERVER) | ON(GENERATE), \
  SAMPLING, INT, "N", 0, \
  MXD_MAX_CONTEXT, "0", NULL, \
  "Longest answer where a request names none; 0: the rest of the context.") \
X(SEED, "seed", "", ON(SERVER) | ON(GENERATE), SAMPLING, INT, "N", 0, MXD_BYTES_MAX, NULL, NULL, \
  "Seed where a request names none; without it every request takes a new one.") \
\
X(PARALLEL, "parallel", "-np --decode-concurrency", ON(SERVER) | ON(PLAN), COMPUTE, INT, \
  "N", 1, MXD_MAX_SEQS, "4", NULL, \
  "Sequences that are computed at the same time.") \
X(PREFILL_STEP_SIZE, "prefill-step-size", "", MXD_ON_SERVE_ENGINE, COMPUTE, INT, "N", 1, \
  MXD_MAX_STEP_TOKENS, "256", NULL, \
  "Prompt tokens of one micro-batch.") \
X(NO_PREFIX_CACHE, "no-prefix-cache", "--no-cache-prompt --no-enable-prefix-caching", \
  ON(SERVER) | ON(GENERATE), COMPUTE, FLAG, NULL, 0, 0, NULL, NULL, \
  "Compute every prompt from its first token, also where it begins as an earlier one did.") \
X(THREADS, "threads", "-t", MXD_ON_COMPUTE & ~ON(BENCH), COMPUTE, INT, "N", 0, MXD_MAX_THREADS, "0", NULL, \
  "Compute threads of each worker on this machine; 0: one per core, for stages take turns.") \
X(BACKEND, "backend", "", MXD_ON_COMPUTE, COMPUTE, CHOICE, NULL, 0, 0, "auto", "auto|cpu|mlx", \
  "Who computes; auto takes mlx on Apple Silicon when its plugin opens, else cpu.") \
X(ACTIVATIONS, "activations", "", MXD_ON_COMPUTE, COMPUTE, CHOICE, NULL, 0, 0, "8", "8|16|f32", \
  "Bits of activations that meet weights of 8 bits and less; f32 is the reference path.") \
X(CACHE_TYPE, "cache-type", "-ctk -ctv --cache-type-k --cache-type-v --kv-cache-dtype", \
  MXD_ON_MODEL, COMPUTE, CHOICE, NULL, 0, 0, "auto", "auto|f16|f32|q8|q8_0", \
  "How keys and values are kept, both alike and on every node: q8 (q8_0) takes about half of f16; " \
  "auto is f16, or f32 with --activations f32. The mlx backend has no q8.") \
X(KERNELS, "kernels", "", MXD_ON_COMPUTE, COMPUTE, CHOICE, NULL, 0, 0, "auto", \
  "auto|scalar|avx2|avx512|neon|neon-dot|neon-i8mm", \
  "Force one table of kernels; all of them give the same bits.") \
\
X(LOCAL_WORKERS, "local-workers", "", MXD_ON_SERVE_ENGINE, CLUSTER, INT, "N", 0, \
  MXD_MAX_NODES - 1, "0", NULL, \
  "Worker processes on this machine; 0: compute in this process.") \
X(CLUSTER_LISTEN, "cluster-listen", "", ON(SERVER), CLUSTER, TEXT, "HOST:PORT", 0, 0, NULL, NULL, \
  "Where workers of other machines join; without it only this machine's can.") \
X(NO_LOCAL, "no-local", "", ON(SERVER), CLUSTER, FLAG, NULL, 0, 0, NULL, NULL, \
  "Compute nothing on this machine: only workers that join at --cluster-listen do.") \
X(NO_DISCOVERY, "no-discovery", "", ON(SERVER), CLUSTER, FLAG, NULL, 0, 0, NULL, NULL, \
  "Do not tell the local network where --cluster-listen is: workers then need its address.") \
X(HOSTFILE, "hostfile", "--hosts", ON(SERVER), CLUSTER, PATH, "FILE", 0, 0, NULL, NULL, \
  "MLX's JSON list of hosts; the server waits for as many workers as it names.") \
X(TENSOR_PARALLEL_SIZE, "tensor-parallel-size", "-tp", MXD_ON_MODEL, CLUSTER, INT, "N", 0, \
  MXD_MAX_NODES, "0", NULL, \
  "Nodes that share each layer; 0: the planner decides.") \
X(PIPELINE_PARALLEL_SIZE, "pipeline-parallel-size", "-pp", MXD_ON_MODEL, CLUSTER, INT, "N", \
  0, MXD_MAX_NODES, "0", NULL, \
  "Stages that the layers are cut into; 0: the planner decides.") \
X(LAYER_SPLIT, "layer-split", "", MXD_ON_MODEL, CLUSTER, INTS, "N,...", 0, \
  MXD_MAX_LAYERS, NULL, NULL, \
  "Layers of each node, in node order, for example 10,10,8; with --tensor-parallel-size, of each stage.") \
X(TENSOR_SPLIT, "tensor-split", "", MXD_ON_MODEL, CLUSTER, INTS, "N,...", 0, 1000000, NULL, NULL, \
  "Parts of each layer, in node order, for example 3,5; 0 leaves a node out.") \
X(JOIN, "join", "", ON(WORKER), CLUSTER, TEXT, "HOST:PORT", 0, 0, NULL, NULL, \
  "The server's cluster address; a name like mac-mini.local will do. auto looks for the server of " \
  "the token, or of this worker's certificate, on the local network.") \
X(TOKEN, "token", "", ON(WORKER), CLUSTER, SECRET, "TOKEN", 0, 0, NULL, NULL, \
  "A join token; needed once, afterwards the worker's certificate is enough.") \
X(TOKEN_FILE, "token-file", "", ON(WORKER), CLUSTER, PATH, "FILE", 0, 0, NULL, NULL, \
  "A file that holds the join token.") \
X(NAME, "name", "", ON(WORKER) | ON(INIT), CLUSTER, TEXT, "NAME", 0, 0, NULL, NULL, \
  "This node's name, or the new cluster's; without it the host's name.") \
X(MEMORY, "memory", "", ON(WORKER), CLUSTER, SIZE, "SIZE", 1 << 20, MXD_BYTES_MAX, NULL, NULL, \
  "Memory that this worker may use, for example 16GB; without it what is free.") \
X(DATA_LISTEN, "data-listen", "", ON(WORKER), CLUSTER, TEXT, "HOST:PORT", 0, 0, NULL, NULL, \
  "Where this worker listens for others; without it a free port.") \
X(ADVERTISE, "advertise", "--advertise-addr", ON(WORKER), CLUSTER, TEXT, "HOST:PORT", 0, 0, NULL, \
  NULL, \
  "The address by which others reach this worker: behind NAT or a proxy, or where it has several " \
  "interfaces. Port 0 is the one it listens on; without it the address it listens on.") \
X(STATE_DIR, "state-dir", "", ON(SERVER) | ON(WORKER) | ON(INIT) | ON(TOKEN), CLUSTER, \
  PATH, "DIR", 0, 0, NULL, NULL, \
  "Keys, tokens and the journal; without it $XDG_STATE_HOME/mlx-distributed.") \
X(NO_JOURNAL, "no-journal", "", ON(SERVER), CLUSTER, FLAG, NULL, 0, 0, NULL, NULL, \
  "Keep no journal: resumable streams (X-Resumable) survive their clients, but no restart.") \
\
X(NODES, "nodes", "", ON(PLAN), CLUSTER, PATH, "FILE", 0, 0, NULL, NULL, \
  "JSON file that describes the nodes and links; without it this machine alone.") \
X(OBJECTIVE, "objective", "", ON(SERVER) | ON(PLAN), CLUSTER, CHOICE, NULL, 0, 0, "latency", \
  "latency|throughput", \
  "What the plan should be best at: one stream, or all streams together.") \
X(USES, "uses", "", ON(TOKEN), CLUSTER, INT, "N", 1, 10000, "1", NULL, \
  "How many workers may join with the token.") \
X(TTL, "ttl", "", ON(TOKEN), CLUSTER, TIME, "TIME", 1000, MXD_TEN_DAYS_MS, "15m", NULL, \
  "How long the token is good for.") \
X(PROGRAM, "program", "", ON(SHOW), GENERAL, CHOICE, NULL, 0, 0, "server", \
  "server|worker|generate|bench|detect", \
  "Whose configuration is shown. Also as first argument.") \
X(EFFECTIVE, "effective", "", ON(SHOW), GENERAL, FLAG, NULL, 0, 0, NULL, NULL, \
  "Show every option; without it only those that differ from their default.") \
\
X(CONFIG, "config", "", MXD_ON_ALL & ~(ON(INIT) | ON(DETECT)), GENERAL, PATH, "FILE", 0, 0, \
  NULL, NULL, \
  "Config file (YAML); without it $XDG_CONFIG_HOME/mlx-distributed/config.yaml, then " \
  "/etc/mlx-distributed/config.yaml.") \
X(DRY_RUN, "dry-run", "", ON(SERVER), GENERAL, FLAG, NULL, 0, 0, NULL, NULL, \
  "Print the plan and stop.") \
X(JSON, "json", "", \
  ON(SERVER) | ON(DETECT) | ON(PLAN) | ON(SHOW) | ON(TOKEN) | ON(GENERATE) | ON(BENCH), \
  GENERAL, FLAG, NULL, 0, 0, NULL, NULL, \
  "Output for programs; with the server, its --dry-run and its log.") \
X(NO_PROBE, "no-probe", "", ON(DETECT), GENERAL, FLAG, NULL, 0, 0, NULL, NULL, \
  "Do not measure its speed (0.35 s).") \
X(QUIET, "quiet", "-q", MXD_ON_ALL, GENERAL, FLAG, NULL, 0, 0, NULL, NULL, \
  "Only data and errors: no notes, no progress.") \
X(NO_COLOR, "no-color", "", MXD_ON_ALL, GENERAL, FLAG, NULL, 0, 0, NULL, NULL, \
  "No colours; also by NO_COLOR or TERM=dumb.") \
X(LOG_LEVEL, "log-level", "", MXD_ON_COMPUTE, GENERAL, CHOICE, NULL, 0, 0, "info", \
  "debug|info|warn|error", \
  "What is logged.") \
X(VERBOSE, "verbose", "-v", MXD_ON_COMPUTE, GENERAL, FLAG, NULL, 0, 0, NULL, NULL, \
  "The same as --log-level debug.") \
X(LOG_FILE, "log-file", "", ON(SERVER) | ON(WORKER), GENERAL, PATH, "FILE", 0, 0, NULL, NULL, \
  "Log to this file; opened again on SIGHUP.") \
X(HELP, "help", "-h", MXD_ON_ALL, GENERAL, FLAG, NULL, 0, 0, NULL, NULL, "This text.") \
X(VERSION, "version", "", MXD_ON_ALL, GENERAL, FLAG, NULL, 0, 0, NULL, NULL, "The version.") \
\
X(JINJA, "jinja", "", ON(SERVER), NO_EFFECT, FLAG, NULL, 0, 0, NULL, NULL, \
  "Chat templates are always used.") \
X(METRICS, "metrics", "", ON(SERVER), NO_EFFECT, FLAG, NULL, 0, 0, NULL, NULL, \
  "/metrics is always there.") \
X(ENABLE_AUTO_TOOL_CHOICE, "enable-auto-tool-choice", "", ON(SERVER), NO_EFFECT, FLAG, \
  NULL, 0, 0, NULL, NULL, \
  "Tools are always offered to the model.")

/* X(ID, program, command, argument, option that takes the argument, is it needed, \
  sentence, example) */
#define MXD_PROGRAM_MAP(X) \
X(SERVER, "mlx-dist-server", NULL, "MODEL", MODEL, true, \
  "Runs a model over this machine and its workers and answers through an OpenAI-compatible API.", \
  "mlx-dist-server demo --local-workers 3 --port 8080") \
X(WORKER, "mlx-dist-worker", NULL, NULL, COUNT, false, \
  "Runs its share of a model for a server.", \
  "mlx-dist-worker --join 192.168.1.10:5000 --token-file token.txt --memory 16GB") \
X(DETECT, "mlx-dist-detect", NULL, NULL, COUNT, false, \
  "Shows what this machine offers to a cluster.", "mlx-dist-detect --json") \
X(GENERATE, "mlx-dist-generate", NULL, "MODEL", MODEL, true, \
  "Continues a prompt or chats, with a model loaded here.", \
  "mlx-dist-generate demo --chat -p 'What is two plus two?'") \
X(BENCH, "mlx-dist-bench", NULL, "MODEL", MODEL, true, \
  "Measures how fast a model reads prompts and writes answers.", \
  "mlx-dist-bench demo -p 512 -n 64 --json") \
X(INIT, "mlx-dist-config", "init", NULL, COUNT, false, \
  "Makes the certificate authority of a new cluster.", "mlx-dist-config init --name home") \
X(PLAN, "mlx-dist-config", "plan", "MODEL", MODEL, true, \
  "Says which node would run which layers, why, and how fast, without touching a network.", \
  "mlx-dist-config plan demo --nodes nodes.json --json") \
X(CHECK, "mlx-dist-config", "check", "[FILE]", CONFIG, false, \
  "Checks a config file.", "mlx-dist-config check config.yaml") \
X(SHOW, "mlx-dist-config", "show", "[PROGRAM]", PROGRAM, false, \
  "Shows the configuration in effect and where each value comes from.", \
  "mlx-dist-config show server --effective") \
X(TOKEN, "mlx-dist-config", "token", NULL, COUNT, false, \
  "Makes a token with which a worker may join the cluster.", "mlx-dist-config token --ttl 15m")
/* clang-format on */

#endif
