/* net_kit.h - nodes for tests of transports: each records what its sink was told. */
#ifndef MXD_TEST_NET_KIT_H
#define MXD_TEST_NET_KIT_H

#include <pthread.h>
#include "net/tls.h"
#include "net/transport.h"

typedef enum net_kind { NET_LOOPBACK, NET_GRPC, NET_TLS } net_kind;

enum { KIT_EVENTS = 256, KIT_WAIT_MS = 10000, KIT_IDENTITIES = 16 };

typedef struct net_node net_node;

struct net_node {
    mxd_transport *t;
    int port;
    char address[64];
    pthread_mutex_t lock;
    pthread_cond_t changed;
    mxd_net_event events[KIT_EVENTS]; /* UP and DOWN only; head and payload NULL */
    int n_events;
    uint64_t n_messages, n_bytes, n_bad; /* bad: out of order or wrong bytes */
    mxd_blob *keep;                      /* the last payload, retained */
    size_t last_head_bytes;
    uint32_t last_message;
    int64_t last_at_ns;
    /* called for each message before it is recorded; may be NULL */
    void (*on_message)(net_node *n, const mxd_net_event *ev);
    void *ctx;
};

typedef struct net_world {
    net_kind kind;
    mxd_loopback_hub *hub;
    mxd_pem ca; /* TLS worlds */
    mxd_pem issued[KIT_IDENTITIES];
    int n_issued;
} net_world;

void kit_open(net_world *w, net_kind kind);
void kit_close(net_world *w);

/* opts: limits only; may be NULL. The node listens on 127.0.0.1, port in n->address. */
void kit_node(net_world *w, net_node *n, const char *name, const mxd_transport_opts *opts);
void kit_node_close(net_node *n);

/* A transport that does not listen; after kit_node_init. `o` is used as it is. */
void kit_raw(net_world *w, net_node *n, const char *name, const mxd_transport_opts *o);

/* Before kit_node when a test opens the transport itself. */
void kit_node_init(net_node *n);
void kit_sink(void *ctx, const mxd_net_event *ev);

/* Waits for the next UP of an accepted link or of `link`; fails the test after KIT_WAIT_MS. */
mxd_link kit_accepted(net_node *n, int nth);
void kit_up(net_node *n, mxd_link link);
mxd_rc kit_down(net_node *n, mxd_link link);
void kit_messages(net_node *n, uint64_t count);
bool kit_has(net_node *n, mxd_net_event_kind kind, mxd_link link, mxd_net_event *out);
int kit_count(net_node *n, mxd_net_event_kind kind, mxd_link link);

/* Dials b from a; both ends are up afterwards. */
void kit_join(net_node *a, net_node *b, mxd_lane lane, mxd_link *ab, mxd_link *ba);

/* Sets what is called for each message. */
void kit_on(net_node *n, void (*on_message)(net_node *, const mxd_net_event *), void *ctx);

/* What the last message was; its payload with a reference for the caller. */
mxd_blob *kit_last(net_node *n, uint32_t *message, size_t *head_bytes, uint64_t *n_bad);

mxd_blob *kit_blob(size_t bytes, unsigned seed);
bool kit_blob_is(const mxd_blob *b, size_t bytes, unsigned seed);

/* Identity of a node of the world's CA (TLS worlds), or all NULL. */
mxd_identity kit_identity(net_world *w, const char *name);

#endif
