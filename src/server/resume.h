/* resume.h - streams that outlive their connection: X-Resumable, X-Stream-Id, GET /v1/streams/{id}.
 *
 *   made (POST) --ended or failed--> ENDED --resume_ms without a reader--> gone
 *        '--resume_ms without a reader--> cancelled --> ENDED
 *   also made at the start, from what the engine has kept of an earlier life
 *
 * A stream's job keeps all its events as the bytes that were sent, so every reader (there may be
 * several, or none) is a place in them. Whoever comes takes new events out of the engine: a reader
 * on its HTTP thread, the ticker while there are none.
 *
 * Bounds: MXD_HTTP_MAX_RESUMES streams of one key, MXD_HTTP_ALL_RESUMES and MXD_HTTP_RESUME_BYTES
 * of all; the oldest ended ones without a reader make room, then new ones are refused with 429.
 * Trust: an id is 128 secret bits and bound to the key of its request; a wrong one, another's and
 * one that is gone look alike (404).
 * Threads: any. Locks, in this order: server->resume_lock (the list), `lock` (the job), the
 * engine's own, `reader_lock`, req->lock. server->lock is not held when one of them is taken.
 */
#ifndef MXD_SERVER_RESUME_H
#define MXD_SERVER_RESUME_H

#include "server/http.h"

enum { MXD_STREAM_ID_BYTES = 16, MXD_STREAM_ID = 2 * MXD_STREAM_ID_BYTES + 1 };

typedef struct mxd_resume {
    struct mxd_resume *next; /* resume_lock; newest first */
    mxd_server *server;
    char id[MXD_STREAM_ID];
    unsigned char key[32];
    uint64_t request; /* the engine's, for mxd_engine_forget; 0: none */

    pthread_mutex_t lock;
    mxd_job *job;
    int64_t ended_ms; /* lock; 0: it runs */
    atomic_size_t bytes;
    atomic_bool ended;

    pthread_mutex_t reader_lock;
    mxd_req *readers; /* list by next_reader */
    int64_t alone_ms; /* reader_lock: since when there is none */
} mxd_resume;

/* ---- the request that makes it ---- */
bool mxd_resume_asked(mxd_req *r); /* by its header; what cannot be resumed sets the reply */
bool mxd_resume_new(mxd_req *r, mxd_job *j);   /* r->resume, not yet to be found; false: refused */
void mxd_resume_drop(mxd_req *r);              /* the engine refused */
void mxd_resume_begin(mxd_req *r, mxd_job *j); /* takes j; from here on it can be found */

/* ---- its readers ---- */
const char *mxd_resume_id(const mxd_req *r);
enum MHD_Result mxd_resume_wait(mxd_req *r); /* until there is something to answer */
void mxd_resume_leave(mxd_req *r);           /* no longer a reader; also when it was none */

/* ---- the server's ---- */
void mxd_resume_restore(mxd_server *s);
void mxd_resume_tick(mxd_server *s);
bool mxd_resume_cancel(mxd_server *s, const char *job_id);
void mxd_resume_stop(mxd_server *s);  /* nobody waits for those that run */
void mxd_resume_close(mxd_server *s); /* after all readers are gone */

#endif
