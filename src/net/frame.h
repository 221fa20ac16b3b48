/* frame.h - the messages of proto/node.proto by hand: Frame, EnrollRequest, EnrollReply.
 *
 * A tensor never passes a protobuf encoder: the few bytes before it are written here, the payload
 * follows by reference, and is received straight into its own blob. Field 15, the last number whose
 * key is one byte, is the payload's, so every encoder writes it last.
 *
 * Trust:   bytes come from peers: every length is checked against what is there and against the
 *          limits before memory is taken. Unknown fields are skipped by their wire type.
 * Threads: reentrant.
 */
#ifndef MXD_NET_FRAME_H
#define MXD_NET_FRAME_H

#include <stdint.h>
#include "base/blob.h"
#include "base/limits.h"

enum {
    MXD_FRAME_SLACK_BYTES = 1024, /* for our own fields, and for unknown ones of newer peers */
    MXD_ENROLL_MAX_BYTES = 16 << 10,
};

/* What stands before the payload. */
typedef struct mxd_frame_head {
    uint64_t seq; /* 1, 2, 3, ... in each direction of a link */
    uint32_t kind, crc;
    const void *head; /* [head_bytes] borrowed */
    size_t head_bytes, payload_bytes;
} mxd_frame_head;

size_t mxd_frame_head_size(const mxd_frame_head *f);

/* Writes mxd_frame_head_size(f) bytes; the payload's bytes must follow. */
void mxd_frame_put_head(uint8_t *out, const mxd_frame_head *f);

uint32_t mxd_frame_crc(const void *head, size_t head_bytes, const mxd_blob *payload);

/* Received bytes, in pieces cut anywhere. next: false at the end; a piece may be empty. */
typedef struct mxd_frame_source {
    bool (*next)(void *ctx, const uint8_t **p, size_t *n);
    void *ctx;
    size_t total_bytes; /* of all pieces */
} mxd_frame_source;

typedef struct mxd_frame {
    uint64_t seq;
    uint32_t kind;
    mxd_blob *head;    /* never NULL after success, maybe empty */
    mxd_blob *payload; /* NULL when the message has none, or an empty one */
} mxd_frame;
void mxd_frame_deinit(mxd_frame *f);

/* Reads one message whole. On error *out is empty. Errors: E_FORMAT it lies, or its CRC is wrong;
 * E_TOOBIG head + payload over MXD_MAX_FRAME_BYTES; E_NOMEM. */
mxd_rc mxd_frame_read(const mxd_alloc *al, const mxd_frame_source *src, mxd_frame *out,
                      mxd_err *err) MXD_MUST_USE;

/* EnrollRequest. The texts are NUL-terminated in one block owned by the caller. */
typedef struct mxd_enroll_request {
    char *node, *secret, *csr; /* "" when absent */
} mxd_enroll_request;
void mxd_enroll_request_deinit(const mxd_alloc *al, mxd_enroll_request *r);

/* Errors: E_FORMAT; E_TOOBIG over MXD_ENROLL_MAX_BYTES; E_NOMEM. */
mxd_rc mxd_enroll_request_read(const mxd_alloc *al, const mxd_frame_source *src,
                               mxd_enroll_request *out, mxd_err *err) MXD_MUST_USE;

/* The encoded request as one blob; NULL when memory is short. */
mxd_blob *mxd_enroll_request_write(const mxd_alloc *al, const char *node, const char *secret,
                                   const char *csr);

/* EnrollReply: the certificate chain. */
mxd_blob *mxd_enroll_reply_write(const mxd_alloc *al, const mxd_blob *chain);
mxd_rc mxd_enroll_reply_read(const mxd_alloc *al, const mxd_frame_source *src, char **chain,
                             mxd_err *err) MXD_MUST_USE;

#endif
