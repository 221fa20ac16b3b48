/* stream.h - private to api/: a request's tokens on their way to whoever reads the text.
 *
 * The cluster's thread puts tokens in (stream_token, stream_end), the reader takes events out
 * (mxd_stream_next), which is where tokens become text: detokenising and stop strings cost the
 * engine nothing.
 *
 * Two holders keep a stream alive: the cluster until stream_end, the reader until mxd_stream_free.
 */
#ifndef MXD_API_STREAM_H
#define MXD_API_STREAM_H

#include "api/engine.h"
#include "cluster/coordinator.h"
#include "cluster/core.h"

/* Everything copied from `gen`. Errors: E_NOMEM. */
mxd_rc mxd_stream_new(mxd_stream **out, const mxd_alloc *al, const mxd_engine *e,
                      mxd_cluster *cluster, const mxd_gen *gen, mxd_err *err) MXD_MUST_USE;

/* Callbacks for mxd_request. */
void mxd_stream_on_token(void *stream, const mxd_sampled *s, bool stop);
void mxd_stream_on_end(void *stream, const mxd_request_end *end);

/* The request is with the cluster under this id; or it never got there. */
void mxd_stream_submitted(mxd_stream *s, uint64_t id);
void mxd_stream_abandon(mxd_stream *s);

/* Of a kept request: what an earlier life accepted, and its end if it had one (then the cluster
 * never had this stream: mxd_stream_settled). Errors: E_NOMEM. */
mxd_rc mxd_stream_past(mxd_stream *s, const mxd_kept *k, mxd_err *err) MXD_MUST_USE;
void mxd_stream_settled(mxd_stream *s);

#endif
