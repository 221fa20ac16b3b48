/* Weights over the network: what a folder holds, the store on disk, giving and fetching, and what
 * sources may do wrong. The model is models/demo: config.json and one file of 18 pieces. */
#include "test.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "cluster/fetch.h"
#include "cluster/giver.h"
#include "formats/safetensors.h"
#include "model/model.h"
#include "runtime/shard.h"

enum { LAYERS = 6, PIECES = 18, PIECE = MXD_WEIGHTS_PIECE };

static const mxd_alloc *const libc = &mxd_alloc_libc;

/* ---------------------------------------------------------------------------------------- folders
 */

static char demo[1024];

static void begin(void) {
    mxd_log_set_level((mxd_log_level)(MXD_LOG_ERROR + 1));
    test_path(demo, "../models/demo");
}

static void remove_all(const char *dir) {
    DIR *d = opendir(dir);
    if (!d) return;
    for (const struct dirent *e; (e = readdir(d));) {
        char path[1400];
        struct stat st;
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        if (lstat(path, &st) == 0 && S_ISDIR(st.st_mode))
            remove_all(path);
        else
            unlink(path);
    }
    closedir(d);
    rmdir(dir);
}

static void make_dir(char dir[64]) {
    snprintf(dir, 64, "/tmp/mxd-weights-XXXXXX");
    CHECK(mkdtemp(dir));
}

static void change(const char *dir, const char *name, long at, int add) {
    char path[1200];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    FILE *f = fopen(path, "r+b");
    CHECK(f && fseek(f, at, at < 0 ? SEEK_END : SEEK_SET) == 0);
    int c = fgetc(f);
    CHECK(c != EOF && fseek(f, -1, SEEK_CUR) == 0 && fputc(c + add, f) != EOF && fclose(f) == 0);
}

static void copy_demo(const char *dir) {
    static const char *const files[] = {"config.json", "model.safetensors"};
    for (int i = 0; i < 2; i++) {
        char path[1200], *text;
        size_t n;
        mxd_err err = {0};
        snprintf(path, sizeof path, "%s/%s", demo, files[i]);
        FILE *f = fopen(path, "rb");
        CHECK(f && fseek(f, 0, SEEK_END) == 0);
        n = (size_t)ftell(f);
        rewind(f);
        text = malloc(n);
        CHECK(text && fread(text, 1, n, f) == n && fclose(f) == 0);
        snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        f = fopen(path, "wb");
        CHECK(f && fwrite(text, 1, n, f) == n && fclose(f) == 0);
        free(text);
        (void)err;
    }
}

static void id_of(const char *folder, uint8_t id[32]) {
    mxd_err err = {0};
    CHECK_OK(mxd_weights_id(libc, folder, id, &err), &err);
}

TEST(weights_id_is_of_the_content) {
    char dir[64];
    uint8_t want[32], got[32];
    begin();
    make_dir(dir);
    copy_demo(dir);
    id_of(demo, want);
    id_of(dir, got);
    CHECK(memcmp(want, got, 32) == 0);
    mxd_err err = {0};
    mxd_st *st;
    CHECK_OK(mxd_st_open(&st, libc, demo, &err), &err);
    for (size_t i = 0; i < mxd_st_count(st); i += 17) { /* other numbers in some tensor */
        const mxd_st_tensor *t = mxd_st_at(st, i);
        long at = (long)(t->offset + t->bytes / 2);
        change(dir, "model.safetensors", at, 1);
        id_of(dir, got);
        CHECK(memcmp(want, got, 32) != 0);
        change(dir, "model.safetensors", at, -1);
    }
    mxd_st_close(st);
    id_of(dir, got);
    CHECK(memcmp(want, got, 32) == 0);
    change(dir, "config.json", -3, 1);
    id_of(dir, got);
    CHECK(memcmp(want, got, 32) != 0);
    remove_all(dir);
}

TEST(weights_lists_from_others_name_no_paths) {
    static const char *const bad[] = {"",
                                      "model",
                                      ".safetensors",
                                      "model/../../x.safetensors",
                                      "/model.safetensors",
                                      "../model.safetensors",
                                      "model .safetensors",
                                      "model\n.safetensors",
                                      "mode.safetensors",
                                      "model.safetensors.have"};
    mxd_weights_file f[2] = {{"config.json", 10, 10}, {"model.safetensors", 100, 20}};
    mxd_err err = {0};
    CHECK_OK(mxd_weights_check_files(f, 2, &err), &err);
    for (size_t i = 0; i < MXD_COUNT(bad); i++) {
        snprintf(f[1].name, sizeof f[1].name, "%s", bad[i]);
        if (!mxd_weights_check_files(f, 2, &err)) fail_msg("'%s' was taken", bad[i]);
    }
    mxd_weights_file g[3] = {f[0], {"model-2.safetensors", 9, 9}, {"model-1.safetensors", 99, 20}};
    CHECK(mxd_weights_check_files(g, 3, &err)); /* not in order, a head too short */
    mxd_weights_file h[2] = {f[0], {"model.safetensors", UINT64_MAX, 20}};
    CHECK(mxd_weights_check_files(h, 2, &err));
    h[1].bytes = 19; /* less than its head */
    CHECK(mxd_weights_check_files(h, 2, &err));
    h[0].bytes = h[0].head = MXD_CONFIG_MAX_BYTES + 1u;
    h[1].bytes = 100;
    CHECK(mxd_weights_check_files(h, 2, &err));
    CHECK(mxd_weights_check_files(f, 1, &err));
}

/* ---------------------------------------------------------------------------------------- the
 * store
 */

static const uint8_t some_id[32] = {0xab, 1};

static mxd_store *open_some(const char *root, uint64_t bytes) {
    mxd_weights_file f[2] = {{"config.json", 10, 10}, {"model.safetensors", bytes, 20}};
    mxd_weights_list l = {f, 2};
    mxd_store *s;
    mxd_err err = {0};
    CHECK_OK(mxd_store_open(&s, libc, root, some_id, &l, &err), &err);
    return s;
}

static void put(mxd_store *s, uint64_t piece, char c) {
    char *bytes = malloc(PIECE);
    mxd_err err = {0};
    CHECK(bytes);
    memset(bytes, c, PIECE);
    CHECK_OK(mxd_store_put(s, 1, piece, bytes, mxd_store_piece_bytes(s, 1, piece), &err), &err);
    free(bytes);
}

TEST(weights_store_counts_only_what_was_made_durable) {
    char root[64];
    mxd_err err = {0};
    begin();
    make_dir(root);
    uint64_t bytes = 3 * (uint64_t)PIECE + 7;
    mxd_store *s = open_some(root, bytes);
    CHECK_EQ(mxd_store_piece_bytes(s, 1, 2), PIECE);
    CHECK_EQ(mxd_store_piece_bytes(s, 1, 3), 7);
    CHECK_EQ(mxd_store_piece_bytes(s, 1, 4), 0);
    CHECK_EQ(mxd_store_piece_bytes(s, 2, 0), 0);
    put(s, 1, 'a');
    put(s, 3, 'b');
    CHECK(mxd_store_has(s, 1, 1) && mxd_store_has(s, 1, 3) && !mxd_store_has(s, 1, 0));
    CHECK(!mxd_store_has(s, 1, 4) && !mxd_store_has(s, 2, 0));
    CHECK_OK(mxd_store_sync(s, &err), &err);
    put(s, 0, 'c'); /* written, but the node stops here */
    mxd_store_close(s);
    s = open_some(root, bytes);
    CHECK(mxd_store_has(s, 1, 1) && mxd_store_has(s, 1, 3));
    CHECK(!mxd_store_has(s, 1, 0) && !mxd_store_has(s, 1, 2));
    struct stat st;
    char path[1400];
    snprintf(path, sizeof path, "%s/model.safetensors", mxd_store_folder(s));
    CHECK(stat(path, &st) == 0 && (uint64_t)st.st_size == bytes && (st.st_mode & 077) == 0);
    mxd_store_close(s);
    /* a file of another length: nothing of it is believed */
    CHECK(truncate(path, 2 * PIECE) == 0);
    s = open_some(root, bytes);
    CHECK(!mxd_store_has(s, 1, 1) && !mxd_store_has(s, 1, 3));
    mxd_store_close(s);
    s = open_some(root, bytes); /* nor later */
    CHECK(!mxd_store_has(s, 1, 1));
    mxd_store_close(s);
    remove_all(root);
}

TEST(weights_store_believes_no_damaged_record) {
    char root[64], have[1400];
    mxd_err err = {0};
    begin();
    make_dir(root);
    uint64_t bytes = 12 * (uint64_t)PIECE;
    mxd_store *s = open_some(root, bytes);
    put(s, 9, 'a');
    CHECK_OK(mxd_store_sync(s, &err), &err);
    snprintf(have, sizeof have, "%s", mxd_store_folder(s));
    mxd_store_close(s);
    const long n = 8 + 8 + 2 + 4;
    for (long i = 0; i < n; i++) {
        change(have, "model.safetensors.have", i, 1);
        s = open_some(root, bytes);
        if (mxd_store_has(s, 1, 9)) fail_msg("byte %ld of the record may be wrong", i);
        mxd_store_close(s);
        change(have, "model.safetensors.have", i, -1);
    }
    s = open_some(root, bytes);
    CHECK(mxd_store_has(s, 1, 9));
    mxd_store_close(s);
    strcat(have, "/model.safetensors.have");
    CHECK(truncate(have, n - 1) == 0); /* torn */
    s = open_some(root, bytes);
    CHECK(!mxd_store_has(s, 1, 9));
    mxd_store_close(s);
    remove_all(root);
}

TEST(weights_store_says_how_many_bytes_do_not_fit) {
    char root[64];
    mxd_err err = {0};
    begin();
    make_dir(root);
    mxd_store *s = open_some(root, 5 * (uint64_t)PIECE);
    CHECK_OK(mxd_store_make_room(s, 1000, &err), &err);
    CHECK_EQ(mxd_store_make_room(s, (uint64_t)1 << 60, &err), MXD_E_NOFIT);
    CHECK(strstr(err.msg, "1152921504606846976 bytes"));
    mxd_store_close(s);
    /* a link in the place of a file leads nowhere */
    char path[1400];
    snprintf(path, sizeof path, "%s/ab01%060d/model.safetensors", root, 0);
    CHECK(unlink(path) == 0 && symlink("/etc/hostname", path) == 0);
    mxd_weights_file f[2] = {{"config.json", 10, 10}, {"model.safetensors", 5 * PIECE, 20}};
    CHECK_EQ(mxd_store_open(&s, libc, root, some_id, &(mxd_weights_list){f, 2}, &err), MXD_E_IO);
    remove_all(root);
}

static mxd_rc use_store(const mxd_alloc *a, const char *root, mxd_err *err) {
    mxd_weights_file f[2] = {{"config.json", 10, 10}, {"model.safetensors", 2 * PIECE, 20}};
    mxd_store *s;
    char piece[10] = "0123456789";
    MXD_TRY(mxd_store_open(&s, a, root, some_id, &(mxd_weights_list){f, 2}, err));
    mxd_rc rc = mxd_store_put(s, 0, 0, piece, sizeof piece, err);
    if (!rc) rc = mxd_store_sync(s, err);
    mxd_store_close(s);
    return rc;
}

TEST_OOM(weights_store_unwinds) {
    char root[64];
    begin();
    make_dir(root);
    mxd_rc rc = use_store(al, root, err);
    remove_all(root);
    return rc;
}

static mxd_rc use_giver(const mxd_alloc *a, mxd_err *err) {
    uint8_t id[32];
    mxd_giver *g;
    MXD_TRY(mxd_weights_id(a, demo, id, err));
    MXD_TRY(mxd_giver_open(&g, a, NULL, err));
    mxd_rc rc = mxd_giver_offer(g, id, demo, NULL, err);
    mxd_giver_free(g);
    return rc;
}

TEST_OOM(weights_giver_unwinds) {
    begin();
    return use_giver(al, err);
}

/* ----------------------------------------------------------------------------------------- sources
 */

typedef enum manners { /* what a source does with requests for data */
                       GIVES,
                       REFUSES,
                       WRONG_BYTE,
                       TOO_SHORT,
                       TOO_LONG,
                       ELSEWHERE,
                       NOTHING_IN_IT,
                       TWICE,
                       NOISE,
                       ENDLESS,
                       GOES_AWAY, /* at the third request, for good */
                       SILENT,
                       N_MANNERS
} manners;

typedef struct giving { /* a node that has weights */
    mxd_giver *giver;
    mxd_inbox inbox;
    mxd_transport *net;
    char address[64];
    manners manners;
    atomic_int n_data; /* requests for data */
} giving;

static mxd_loopback_hub *hub;
static uint8_t demo_id[32], demo_tensors[32];

static void say(giving *g, mxd_link link, const mxd_wire_give *give, mxd_blob *payload) {
    mxd_err err = {0};
    mxd_buf head;
    mxd_buf_init(&head, libc, MXD_MAX_FRAME_BYTES);
    mxd_wire_put_give(&head, give);
    g->net->ops->send(g->net, link, MXD_WIRE_GIVE, mxd_buf_str(&head), head.len, payload, &err);
    mxd_buf_deinit(&head);
}

/* What should have been given. */
static mxd_blob *right_bytes(const mxd_wire_want *w, size_t n) {
    char path[1200];
    mxd_blob *b = mxd_blob_new(libc, n);
    CHECK(b);
    snprintf(path, sizeof path, "%s/%s", demo, w->file ? "model.safetensors" : "config.json");
    int fd = open(path, O_RDONLY);
    CHECK(fd >= 0 && pread(fd, b->bytes, n < w->length ? n : w->length, (off_t)w->offset) > 0);
    close(fd);
    return b;
}

static void misbehave(giving *g, mxd_link link, const mxd_wire_want *w) {
    mxd_wire_give a = {.what = w->what, .file = w->file, .offset = w->offset, .length = w->length};
    size_t n = w->length;
    switch (g->manners) {
    case REFUSES:
        a.rc = MXD_E_NOTFOUND;
        snprintf(a.text, sizeof a.text, "not here");
        say(g, link, &a, NULL);
        return;
    case NOTHING_IN_IT:
        say(g, link, &a, NULL);
        return;
    case NOISE: {
        mxd_err err = {0};
        g->net->ops->send(g->net, link, MXD_WIRE_GIVE, "\xff\xff\xff noise", 9, NULL, &err);
        return;
    }
    case GOES_AWAY:
        if (atomic_load(&g->n_data) < 3) break;
        g->net->ops->hangup(g->net, link);
        return;
    case SILENT:
        return;
    default:
        break;
    }
    if (g->manners == TOO_SHORT) n--;
    if (g->manners == TOO_LONG) n++;
    mxd_blob *b = right_bytes(w, n);
    if (g->manners == WRONG_BYTE) b->bytes[n / 2] ^= 4;
    if (g->manners == ELSEWHERE) a.offset += PIECE;
    int times = g->manners == TWICE ? 2 : g->manners == ENDLESS ? 500 : 1;
    for (int i = 0; i < times; i++) say(g, link, &a, b);
    mxd_blob_release(b);
}

static void giving_sink(void *ctx, const mxd_net_event *ev) {
    giving *g = ctx;
    mxd_wire_want w;
    mxd_arena a;
    mxd_err err = {0};
    if (ev->kind == MXD_NET_UP && g->manners == GOES_AWAY && atomic_load(&g->n_data) >= 3) {
        g->net->ops->hangup(g->net, ev->link);
        return;
    }
    if (ev->kind == MXD_NET_MESSAGE && ev->message == MXD_WIRE_WANT) {
        CHECK_OK(mxd_arena_init(&a, libc, MXD_WIRE_SCRATCH, &err), &err);
        CHECK_OK(mxd_wire_get_want(&w, &a, ev->head->bytes, ev->head->len, &err), &err);
        mxd_arena_deinit(&a);
        if (w.what == MXD_WANT_DATA) atomic_fetch_add(&g->n_data, 1);
        if (w.what == MXD_WANT_DATA && g->manners != GIVES) {
            misbehave(g, ev->link, &w);
            return;
        }
    }
    mxd_giver_sink(g->giver, ev);
}

static void giving_open(giving *g, const char *name, manners how, const char *folder) {
    mxd_err err = {0};
    int port;
    *g = (giving){.manners = how};
    CHECK_OK(mxd_inbox_init(&g->inbox, libc, &err), &err);
    CHECK_OK(mxd_giver_open(&g->giver, libc, &g->inbox, &err), &err);
    mxd_transport_opts o = {.al = libc, .sink = giving_sink, .sink_ctx = g};
    CHECK_OK(mxd_loopback_open(&g->net, hub, &o, name, &err), &err);
    g->inbox.transport = g->net;
    CHECK_OK(mxd_giver_start(g->giver, g->net, &err), &err);
    if (folder) CHECK_OK(mxd_giver_offer(g->giver, demo_id, folder, NULL, &err), &err);
    CHECK_OK(g->net->ops->listen(g->net, "127.0.0.1:0", &port, &err), &err);
    snprintf(g->address, sizeof g->address, "127.0.0.1:%d", port);
}

static void giving_close(giving *g) {
    mxd_giver_stop(g->giver);
    g->net->ops->close(g->net);
    mxd_giver_free(g->giver);
    mxd_inbox_deinit(&g->inbox);
}

/* ---------------------------------------------------------------------------------------- fetching
 */

typedef struct fetching {
    char root[64];
    mxd_store *store;
    mxd_source sources[MXD_MAX_NODES];
    int n;
    bool hasty;                    /* a busy machine may look silent to it */
    uint64_t stop_at, done, total; /* stop_at: bytes; 0: not */
    int rank, n_ranks;
    double share[2];
} fetching;

static bool progress(void *ctx, uint64_t done, uint64_t total) {
    fetching *f = ctx;
    CHECK(done >= f->done && done <= total);
    f->done = done;
    f->total = total;
    return !f->stop_at || done < f->stop_at;
}

static void fetching_begin(fetching *f) {
    mxd_err err = {0};
    mxd_st *st;
    begin();
    *f = (fetching){0};
    make_dir(f->root);
    CHECK_OK(mxd_loopback_hub_open(&hub, libc, &err), &err);
    id_of(demo, demo_id);
    CHECK_OK(mxd_st_open(&st, libc, demo, &err), &err);
    memcpy(demo_tensors, mxd_st_hash(st), 32);
    mxd_st_close(st);
}

static void ask_of(fetching *f, const giving *g, const char *name) {
    mxd_source *s = &f->sources[f->n++];
    snprintf(s->node, sizeof s->node, "%s", name);
    snprintf(s->address, sizeof s->address, "%s", g->address);
}

static void fetching_end(fetching *f) {
    mxd_store_close(f->store);
    mxd_loopback_hub_close(hub);
    remove_all(f->root);
}

static mxd_rc fetch_some(fetching *f, int layer0, int layer1, uint64_t *bytes, mxd_err *err) {
    mxd_fetch_opts o = {.hub = hub,
                        .node = "me",
                        .root = f->root,
                        .id = demo_id,
                        .tensors_hash = demo_tensors,
                        .sources = f->sources,
                        .n_sources = f->n,
                        .layer0 = layer0,
                        .layer1 = layer1,
                        .rank = f->rank,
                        .n_ranks = f->n_ranks,
                        .share = f->share,
                        .patience_ms = f->hasty ? 3000 : 0,
                        .silence_ms = f->hasty ? 300 : 0,
                        .progress = progress,
                        .progress_ctx = f};
    f->done = f->total = 0;
    return mxd_fetch(&f->store, libc, &o, bytes, err);
}

static int pieces_there(mxd_store *s) {
    int n = 0;
    for (uint64_t i = 0; i < 100; i++) n += mxd_store_has(s, 1, i);
    return n;
}

static void step_of(const char *folder, int layer0, int layer1, float *hidden, float *logits) {
    mxd_err err = {0};
    mxd_shard *s;
    mxd_shard_opts o = {.folder = folder,
                        .layer0 = layer0,
                        .layer1 = layer1,
                        .n_slots = 1,
                        .ctx = 32,
                        .max_rows = 8,
                        .backend = "cpu",
                        .backend_opts = {.threads = 1, .spin_us = -1}};
    CHECK_OK(mxd_shard_open(&s, libc, &o, &err), &err);
    static float in[4 * 4096];
    for (size_t i = 0; i < MXD_COUNT(in); i++) in[i] = (float)(i % 13) - 6;
    CHECK(mxd_shard_hidden(s) <= 4096);
    const int32_t ids[4] = {5, 6, 7, 8};
    mxd_sampled token;
    const mxd_step_run r = {.n = 4, .sample = true};
    const mxd_step step = {1, 4, &r, ids, layer0 ? in : NULL};
    mxd_step_result result = {.hidden = hidden, .tokens = &token, .logits = logits};
    CHECK_OK(mxd_shard_step(s, &step, &result, &err), &err);
    mxd_shard_close(s);
}

/* What was fetched computes what the whole folder computes. */
static void check_same(const char *folder, int layer0, int layer1) {
    enum { HIDDEN = 4 * 4096, VOCAB = 1 << 16 };
    float *a = calloc(2 * (HIDDEN + VOCAB), sizeof(float)), *b = a + HIDDEN + VOCAB;
    CHECK(a);
    step_of(demo, layer0, layer1, a, a + HIDDEN);
    step_of(folder, layer0, layer1, b, b + HIDDEN);
    CHECK(memcmp(a, b, (HIDDEN + VOCAB) * sizeof(float)) == 0);
    free(a);
}

TEST(weights_fetched_once_and_only_what_the_layers_need) {
    fetching f;
    giving g;
    mxd_err err = {0};
    uint64_t bytes, more, again;
    fetching_begin(&f);
    giving_open(&g, "coordinator", GIVES, demo);
    ask_of(&f, &g, "coordinator");
    CHECK_OK(fetch_some(&f, 3, 4, &bytes, &err), &err);
    CHECK(bytes > 0 && f.done == bytes && f.total == bytes);
    int few = pieces_there(f.store);
    CHECK(few < PIECES);
    check_same(mxd_store_folder(f.store), 3, 4);
    CHECK_OK(fetch_some(&f, 0, LAYERS, &more, &err), &err);
    CHECK_EQ(pieces_there(f.store), PIECES);
    check_same(mxd_store_folder(f.store), 0, LAYERS);
    struct stat st;
    char path[1200];
    snprintf(path, sizeof path, "%s/model.safetensors", demo);
    CHECK(stat(path, &st) == 0);
    uint64_t all = (uint64_t)st.st_size;
    snprintf(path, sizeof path, "%s/config.json", demo);
    CHECK(stat(path, &st) == 0);
    CHECK_EQ(bytes + more, all + (uint64_t)st.st_size); /* nothing came twice */
    int asked = atomic_load(&g.n_data);
    mxd_store_close(f.store);
    f.store = NULL; /* a new process: only what is on disk */
    CHECK_OK(fetch_some(&f, 2, 5, &again, &err), &err);
    CHECK_EQ(again, 0);
    CHECK_EQ(atomic_load(&g.n_data), asked);
    giving_close(&g);
    fetching_end(&f);
}

static mxd_rc must_be_there(void *ctx, const mxd_st_tensor *t, uint64_t from, uint64_t n,
                            mxd_err *err) {
    mxd_store *s = ctx;
    (void)err;
    for (uint64_t at = t->offset + from; n && at < t->offset + from + n; at += PIECE)
        CHECK(mxd_store_has(s, 1, at / PIECE));
    CHECK(!n || mxd_store_has(s, 1, (t->offset + from + n - 1) / PIECE));
    return MXD_OK;
}

/* Two nodes that hold the layers together, one a small part: each gets what it loads. */
TEST(weights_of_a_share_of_the_layers) {
    fetching f;
    giving g;
    mxd_err err = {0};
    mxd_model *m;
    mxd_shares shares;
    fetching_begin(&f);
    giving_open(&g, "coordinator", GIVES, demo);
    ask_of(&f, &g, "coordinator");
    CHECK_OK(mxd_model_open(&m, libc, demo, &err), &err);
    uint64_t bytes[2];
    f.n_ranks = 2;
    f.share[0] = 1;
    f.share[1] = 7;
    CHECK_OK(mxd_model_share(m, 2, f.share, &shares, &err), &err);
    for (f.rank = 0; f.rank < 2; f.rank++) {
        CHECK_OK(fetch_some(&f, 2, 3, &bytes[f.rank], &err), &err);
        CHECK_OK(mxd_model_ranges(m, 2, 3, &shares, f.rank, must_be_there, f.store, &err), &err);
    }
    CHECK(bytes[0] > 0);
    mxd_model_close(m);
    giving_close(&g);
    fetching_end(&f);
}

TEST(weights_go_on_where_they_were_interrupted) {
    fetching f;
    giving g;
    mxd_err err = {0};
    uint64_t first, second;
    fetching_begin(&f);
    giving_open(&g, "coordinator", GIVES, demo);
    ask_of(&f, &g, "coordinator");
    f.stop_at = 2 * PIECE;
    CHECK_EQ(fetch_some(&f, 0, LAYERS, &first, &err), MXD_E_CANCELED);
    CHECK(first >= 2 * PIECE && first < PIECES * PIECE);
    mxd_store_close(f.store);
    f.store = NULL;
    f.stop_at = 0;
    CHECK_OK(fetch_some(&f, 0, LAYERS, &second, &err), &err);
    CHECK(second > 0 && second <= PIECES * PIECE - first);
    check_same(mxd_store_folder(f.store), 0, LAYERS);
    giving_close(&g);
    fetching_end(&f);
}

/* The coordinator gives the list and the sums, but no data; one peer misbehaves, another does not.
 */
static void check_manners(manners how) {
    fetching f;
    giving coordinator, odd, good;
    mxd_err err = {0};
    uint64_t bytes;
    fetching_begin(&f);
    f.hasty = how == SILENT;
    giving_open(&coordinator, "coordinator", REFUSES, demo);
    giving_open(&odd, "odd", how, demo);
    ask_of(&f, &coordinator, "coordinator");
    ask_of(&f, &odd, "odd");
    if (how != GIVES && how != GOES_AWAY) { /* alone it gets nobody anywhere */
        mxd_rc rc = fetch_some(&f, 0, LAYERS, &bytes, &err);
        if (rc != MXD_E_PEER && rc != MXD_E_TIMEOUT) fail_msg("manners %d: rc %d", how, rc);
        CHECK(f.store && strstr(err.msg, "--models-dir"));
        if (how != TWICE) CHECK_EQ(pieces_there(f.store), 0);
    }
    giving_open(&good, "good", GIVES, demo);
    ask_of(&f, &good, "good");
    mxd_rc rc = fetch_some(&f, 0, LAYERS, &bytes, &err);
    if (rc) fail_msg("manners %d: %s", how, err.msg);
    CHECK(atomic_load(&odd.n_data) > 0);
    if (how != GIVES) CHECK(atomic_load(&good.n_data) > 0);
    check_same(mxd_store_folder(f.store), 0, LAYERS);
    giving_close(&good);
    giving_close(&odd);
    giving_close(&coordinator);
    fetching_end(&f);
}

TEST(weights_sources_that_misbehave_change_nothing) {
    for (int how = GIVES; how < N_MANNERS; how++) check_manners((manners)how);
}

TEST(weights_come_from_the_coordinator_when_a_peer_has_none) {
    fetching f;
    giving coordinator, empty;
    mxd_err err = {0};
    uint64_t bytes;
    fetching_begin(&f);
    giving_open(&coordinator, "coordinator", GIVES, demo);
    giving_open(&empty, "empty", GIVES, NULL);
    ask_of(&f, &coordinator, "coordinator");
    ask_of(&f, &empty, "empty");
    CHECK_OK(fetch_some(&f, 0, LAYERS, &bytes, &err), &err);
    check_same(mxd_store_folder(f.store), 0, LAYERS);
    giving_close(&empty);
    giving_close(&coordinator);
    fetching_end(&f);
}

/* A coordinator whose files were changed behind its back, or that has another model. */
TEST(weights_that_are_not_what_was_named_are_refused) {
    fetching f;
    giving g;
    char dir[64];
    mxd_err err = {0};
    uint64_t bytes;
    fetching_begin(&f);
    make_dir(dir);
    copy_demo(dir);
    giving_open(&g, "coordinator", GIVES, dir);
    ask_of(&f, &g, "coordinator");
    change(dir, "model.safetensors", 30, 1); /* in the header */
    mxd_rc rc = fetch_some(&f, 0, LAYERS, &bytes, &err);
    CHECK(rc == MXD_E_FORMAT);
    demo_id[0]++;
    mxd_store_close(f.store);
    f.store = NULL;
    CHECK_EQ(fetch_some(&f, 0, LAYERS, &bytes, &err), MXD_E_PEER);
    CHECK(strstr(err.msg, "another model"));
    giving_close(&g);
    remove_all(dir);
    fetching_end(&f);
}

/* What one node fetched it gives to the next, as far as it goes. */
TEST(weights_of_a_store_are_given_on) {
    fetching a, b;
    giving coordinator, middle;
    mxd_err err = {0};
    uint64_t bytes;
    fetching_begin(&a);
    b = a;
    make_dir(b.root);
    giving_open(&coordinator, "coordinator", GIVES, demo);
    ask_of(&a, &coordinator, "coordinator");
    CHECK_OK(fetch_some(&a, 3, 4, &bytes, &err), &err);
    int have = pieces_there(a.store);
    coordinator.manners = REFUSES;
    giving_open(&middle, "middle", GIVES, NULL);
    CHECK_OK(mxd_giver_offer(middle.giver, demo_id, NULL, a.store, &err), &err);
    ask_of(&b, &coordinator, "coordinator");
    ask_of(&b, &middle, "middle");
    CHECK_OK(fetch_some(&b, 3, 4, &bytes, &err), &err);
    CHECK_EQ(pieces_there(b.store), have);
    check_same(mxd_store_folder(b.store), 3, 4);
    CHECK_EQ(fetch_some(&b, 0, LAYERS, &bytes, &err), MXD_E_PEER); /* there is no more */
    mxd_store_close(b.store);
    remove_all(b.root);
    giving_close(&middle);
    giving_close(&coordinator);
    fetching_end(&a);
}
