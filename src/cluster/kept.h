/* kept.h - requests in the journal: how they are written, and what recovery makes of the records.
 *
 *   OPEN   who computes it (a fingerprint of the model), the request, the owner's own bytes
 *   TOKEN  u32 index, i32 token, and log probabilities where the request wants them
 *   END    how it ended, u32 tokens, times; wall-clock time
 * Little endian. A TOKEN or END that does not follow what is there is ignored.
 *
 * Trust: records may be anything; what is decoded is within all limits of requests.
 * Threads: one owner. Errors: E_NOMEM only; a record that makes no sense is dropped with a log
 * line.
 */
#ifndef MXD_CLUSTER_KEPT_H
#define MXD_CLUSTER_KEPT_H

#include "cluster/coordinator.h"
#include "cluster/journal.h"

enum { MXD_KEPT_MODEL = 40 }; /* bytes of the fingerprint */

typedef struct mxd_kept_request mxd_kept_request;
struct mxd_kept_request {
    mxd_kept_request *next;
    unsigned char model[MXD_KEPT_MODEL];
    mxd_kept k;    /* its pointers lead to the fields below */
    mxd_request r; /* likewise; no callbacks */
    int32_t *prompt, *stop_ids;
    mxd_logit_bias *bias;
    char *app;
    mxd_sampled *tokens;
    int cap_tokens;
    char end_text[240];
    bool taken; /* by mxd_cluster_restore */
};

typedef struct mxd_kept_list {
    const mxd_alloc *al;
    mxd_kept_request *first; /* oldest first */
} mxd_kept_list;

/* An mxd_record_fn; ctx is the list. */
mxd_rc mxd_kept_take(void *list, const mxd_record *r, mxd_err *err) MXD_MUST_USE;
void mxd_kept_drop(mxd_kept_list *l, mxd_kept_request *q); /* unlinks and frees */
mxd_kept_request *mxd_kept_find(const mxd_kept_list *l, uint64_t request);

/* The bodies of records, appended. */
void mxd_kept_put_open(mxd_buf *b, const mxd_request *r, const unsigned char model[MXD_KEPT_MODEL]);
void mxd_kept_put_token(mxd_buf *b, uint32_t index, const mxd_sampled *s, bool logprobs);
void mxd_kept_put_end(mxd_buf *b, const mxd_request_end *end, int n_tokens, int64_t wall_ms);

#endif
