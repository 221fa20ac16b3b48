/* limits.h - every limit of the program, in one place. Tests go to limit - 1, limit, limit + 1.
 * Sizes are bytes, times milliseconds, unless the name says otherwise. */
#ifndef MXD_BASE_LIMITS_H
#define MXD_BASE_LIMITS_H

enum {
    /* machine */
    MXD_MAX_THREADS = 256,

    /* JSON */
    MXD_JSON_MAX_DEPTH = 64,
    MXD_JSON_MAX_NODES = 1000000,

    /* safetensors: reference values of the format, and what no real model reaches */
    MXD_ST_MAX_HEADER_BYTES = 100000000,
    MXD_ST_MAX_TENSORS = 1000000,
    MXD_ST_MAX_RANK = 8,
    MXD_ST_MAX_SHARDS = 1024,
    MXD_ST_MAX_DIM = 2147483647,

    /* tokenizer and template */
    MXD_TOKENIZER_MAX_BYTES = 256 << 20,
    MXD_CONFIG_MAX_BYTES = 8 << 20,
    MXD_TEMPLATE_MAX_BYTES = 1 << 20,
    MXD_TEMPLATE_MAX_STEPS = 10000000,
    MXD_TEMPLATE_MAX_DEPTH = 64,
    MXD_TEMPLATE_MAX_OUTPUT = 8 << 20,
    MXD_TEMPLATE_MAX_RANGE = 100000,
    MXD_TOKEN_MAX_BYTES = 1024,

    /* model */
    MXD_MAX_VOCAB = 1 << 22,
    MXD_MAX_HIDDEN = 1 << 17,
    MXD_MAX_LAYERS = 1024,
    MXD_MAX_HEADS = 1024,
    MXD_MAX_HEAD_DIM = 1024,
    MXD_MAX_CONTEXT = 1 << 24,

    /* runtime */
    MXD_KV_PAGE_TOKENS = 32,
    MXD_MAX_SEQS = 256,        /* sequences with KV at one time */
    MXD_MAX_STEP_TOKENS = 512, /* rows of one micro-batch */
    MXD_MAX_STEP_RUNS = 64,    /* sequences in one micro-batch */
    MXD_MAX_TOP_LOGPROBS = 20,
    MXD_MAX_LOGIT_BIAS = 1024,
    MXD_MAX_STOP_STRINGS = 64,
    MXD_MAX_STOP_BYTES = 512,

    /* cluster */
    MXD_MAX_NODES = 64,
    MXD_MAX_RANKS = 16, /* nodes that hold layers together */
    MXD_MAX_NODE_NAME = 64,
    MXD_MAX_FRAME_BYTES = 4 << 20,
    MXD_MAX_HELLO_BYTES = 64 << 10,
    MXD_HEARTBEAT_MS = 250,
    MXD_DEAD_AFTER_MS = 1000,
    MXD_STEP_DEADLINE_MS = 2000,

    /* server */
    MXD_HTTP_MAX_BODY = 16 << 20,
    MXD_HTTP_MAX_HEADERS = 16 << 10,
    MXD_HTTP_MAX_CONNECTIONS = 1024,
    MXD_HTTP_MAX_PER_ADDRESS = 512,
    MXD_HTTP_MAX_RESUMES = 64,         /* resumable streams of one key, ended ones included */
    MXD_HTTP_ALL_RESUMES = 512,        /* of all keys */
    MXD_HTTP_RESUME_BYTES = 256 << 20, /* of all their events; new ones are refused above it */
    MXD_MAX_WAITING = 128,
    MXD_MAX_MESSAGES = 4096,
    MXD_MAX_CHOICES = 8,
    MXD_MAX_TOOLS = 128,
};

#endif
