/* coord_private.h - private to cluster/: the coordinator's driver, in five files:
 *   coordinator.c   life, the control thread, events in
 *   coord_act.c     what the core says, done
 *   coord_journal.c what outlives the process
 *   coord_ca.c      the cluster's CA, certificates, enrolment
 *   coord_weights.c what other nodes need for having weights
 *   coord_canary.c  the answer that every plan must give, over restarts
 *   coord_state.c   what people see: JSON, counters
 */
#ifndef MXD_CLUSTER_COORD_PRIVATE_H
#define MXD_CLUSTER_COORD_PRIVATE_H

#include <pthread.h>
#include "cluster/coordinator.h"
#include "cluster/core.h"
#include "cluster/fan.h"
#include "cluster/giver.h"
#include "cluster/inbox.h"
#include "cluster/kept.h"
#include "cluster/spawn.h"
#include "cluster/wire.h"
#include "cluster/worker.h"
#include "net/beacon.h"
#include "net/tls.h"

enum {
    MXD_COORD_TICK_MS = 25,
    MXD_COORD_READ_AHEAD = 1024, /* items that may be taken before the clock */
    MXD_COORD_DIAL_MS = 3000,
    MXD_COORD_HELD_STEPS = 16, /* steps that wait until the first stage is reached */
    MXD_COORD_HANGUPS = 64,    /* links whose last word is still on its way */
    MXD_COORD_LINGER_MS = 200,
    MXD_COORD_LATER = 4 * MXD_MAX_NODES, /* events that wait for the core */
};

enum {                      /* mxd_inbox_item.what */
       MXD_POSTED_CALL = 1, /* ptr: mxd_coord_call */
       MXD_POSTED_CANCEL,   /* ptr: uint64_t on the heap */
       MXD_POSTED_FORGET,   /* likewise */
};

/* A request as the driver keeps it until its end. Control thread, but for its making. */
typedef struct mxd_live_request {
    uint64_t id;
    mxd_request r; /* pointers below are ours */
    int32_t *prompt, *stop_ids;
    mxd_logit_bias *bias;
    mxd_core_submit submit;
    int32_t *accepted;     /* of an earlier life */
    bool restoring;        /* it outlives a refusal */
    int64_t restore_by_ms; /* and not that time */
    struct mxd_live_request *next;
} mxd_live_request;

/* What the core said to a request, for the thread that submits it. The request itself may have
 * ended, and be gone, by the time that thread looks. */
typedef struct mxd_submit_answer {
    mxd_live_request *request;
    mxd_err err; /* rc OK: accepted */
} mxd_submit_answer;

/* A call from another thread that the control thread carries out while the caller waits. */
typedef struct mxd_coord_call {
    void (*fn)(mxd_cluster *c, void *arg);
    void *arg;
    bool done;
    pthread_mutex_t lock;
    pthread_cond_t finished;
} mxd_coord_call;

struct mxd_cluster {
    const mxd_alloc *al;
    mxd_cluster_opts opts; /* strings point into text */
    char *text[MXD_MAX_NODES + 16];
    int n_text;

    /* read-only after open */
    mxd_welcome welcome;
    mxd_model_sizes *sizes;
    int n_vocab;
    bool recurrent;         /* the model */
    char canary_key[65];    /* the model and what its numbers depend on; "": not kept */
    mxd_core_canary canary; /* what an earlier run learned */
    mxd_pem ca, own;        /* PEM texts; cert and key */
    mxd_loopback_hub *hub;  /* in-process worker; NULL with processes or remote workers */
    mxd_worker *worker;     /* that worker */
    mxd_speaker *speaker;   /* NULL: nothing is said about us */
    int port;
    char join[MXD_CORE_ADDRESS];          /* the address local workers dial */
    char worker_listen[MXD_CORE_ADDRESS]; /* where they listen for the stage before them */
    char local_ids[MXD_MAX_NODES][24];
    const char *local_id_list[MXD_MAX_NODES];
    pthread_t thread;
    bool started;

    /* any thread, under lock: what waiters look at */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    mxd_cluster_state state;
    bool served; /* it has been READY */
    mxd_err why;
    bool drained;
    char determinism[16];
    uint64_t next_request;

    /* control thread */
    mxd_inbox inbox;
    mxd_giver *giver; /* of the model's weights, to workers that miss them */
    mxd_transport *net;
    mxd_coord *core;
    void *core_memory;
    bool draining;
    bool sized;     /* there has been a plan of the sizes that were asked for */
    int split_told; /* of so many nodes it was said that the layer split does not fit them */
    int64_t last_tick_ms, renew_at_ms;
    mxd_live_request *requests;   /* list */
    mxd_submit_answer *answering; /* while its request is being given to the core */
    mxd_child children[MXD_MAX_NODES];
    struct {
        int node;
        uint64_t spawn;
        bool running;
    } spawned[MXD_MAX_NODES]; /* by child */
    int n_failed_starts;      /* of local workers, since the last one that joined */
    char start_problem[MXD_CORE_TEXT];
    mxd_fan data;        /* to the ranks of the first stage */
    uint64_t data_epoch; /* of the plan that they are in */
    mxd_buf held[MXD_COORD_HELD_STEPS];
    int n_held;
    struct {
        mxd_link link;
        int64_t at_ms;
    } hangups[MXD_COORD_HANGUPS];
    int n_hangups;
    bool busy; /* the core's actions are being carried out */
    mxd_coord_event later[MXD_COORD_LATER];
    int n_later;
    mxd_arena scratch;
    mxd_buf head;

    /* coord_journal.c; control thread once it runs */
    mxd_journal *journal; /* NULL: none */
    unsigned char fingerprint[MXD_KEPT_MODEL];
    char no_journal[480];        /* why there is none; "": nobody wants one. Read-only after open */
    mxd_kept_list kept;          /* lock */
    mxd_live_request *restoring; /* not yet given to the core */
    mxd_buf record;
};

/* Runs the core with one event (the time is filled in) and carries out its actions. */
void mxd_coord_give(mxd_cluster *c, mxd_coord_event *ev);
void mxd_coord_act(mxd_cluster *c, const mxd_coord_action *a);

/* Carries out fn on the control thread and waits. False: the cluster is closing. */
bool mxd_coord_sync(mxd_cluster *c, void (*fn)(mxd_cluster *c, void *arg), void *arg);

/* The links to the first stage are up; the one to `node` went down. */
void mxd_coord_data_up(mxd_cluster *c);
void mxd_coord_data_down(mxd_cluster *c, int node);

mxd_live_request *mxd_coord_request(mxd_cluster *c, uint64_t id);
void mxd_coord_request_free(mxd_cluster *c, mxd_live_request *r); /* unlinks it too */

mxd_live_request *mxd_coord_request_new(const mxd_alloc *al, const mxd_request *r);
mxd_request_end mxd_coord_end(const mxd_coord_action *done);
void mxd_coord_post_id(mxd_cluster *c, int what, uint64_t id); /* any thread */

/* coord_journal.c. The journal of opts.journal_dir, and what it holds; before the core. */
mxd_rc mxd_coord_journal_open(mxd_cluster *c, mxd_err *err) MXD_MUST_USE;
void mxd_coord_journal_close(mxd_cluster *c);
uint64_t mxd_coord_journal_epoch(const mxd_cluster *c);
/* What a step of the core wants written; before any of it is done. */
void mxd_coord_journal_step(mxd_cluster *c, const mxd_coord_actions *out);
mxd_rc mxd_coord_journal_check(mxd_cluster *c, const mxd_request *r, mxd_err *err) MXD_MUST_USE;
bool mxd_coord_journal_wants(const mxd_cluster *c, const mxd_request *r);
/* The core was given this request; a failure to keep it becomes the answer. */
void mxd_coord_journal_submitted(mxd_cluster *c, mxd_submit_answer *answer, uint64_t id);
void mxd_coord_journal_tick(mxd_cluster *c, int64_t now_ms);
bool mxd_coord_journal_cancel(mxd_cluster *c, uint64_t id); /* false: the core has it */
void mxd_coord_journal_forget(mxd_cluster *c, uint64_t id);

/* The CA of opts.state_dir (made when missing), or a new one; and our own certificate. */
mxd_rc mxd_coord_identity(mxd_cluster *c, mxd_err *err) MXD_MUST_USE;
mxd_rc mxd_coord_enroll(void *cluster, const char *node, const char *secret, const char *csr_pem,
                        mxd_blob **cert, mxd_err *err);
/* The answer to a node that asks for a new certificate: PEM, the caller's (mxd_free). */
mxd_rc mxd_coord_renew_node(mxd_cluster *c, const char *node, const char *csr_pem, char **cert,
                            mxd_err *err) MXD_MUST_USE;
/* Renews our own certificate when it is due; called often. Control thread. */
void mxd_coord_renew_own(mxd_cluster *c, int64_t now_ms);
/* The bootstrap text of a local worker: its certificate, key, CA and where to join, as JSON. */
mxd_rc mxd_coord_bootstrap(mxd_cluster *c, const char *node, mxd_buf *out,
                           mxd_err *err) MXD_MUST_USE;

/* What a worker's weights are compared with, and asked for. Only where workers of other machines
 * can join; without it (logged) every node needs the files on its disk. */
void mxd_coord_weights_open(mxd_cluster *c);
/* Tells node where else it may ask for weights: before an Install. */
void mxd_coord_weights_sources(mxd_cluster *c, int node, mxd_link link);
/* The canary's answer for this model, after mxd_coord_weights_open; and to keep a new one. */
void mxd_coord_canary_open(mxd_cluster *c);
void mxd_coord_canary_keep(mxd_cluster *c, const mxd_core_canary *answer);

/* A local worker ended, or could not be started; `how` says it for people. */
void mxd_coord_start_failed(mxd_cluster *c, const char *how);

/* Publishes state, why and determinism to the waiters. */
void mxd_coord_publish(mxd_cluster *c);

#endif
