/* wire_private.h - private to cluster/wire*.c: what every reader and writer of messages does. */
#ifndef MXD_CLUSTER_WIRE_PRIVATE_H
#define MXD_CLUSTER_WIRE_PRIVATE_H

#include <protobuf-c/protobuf-c.h>
#include <string.h>

#include "cluster/wire.h"
#include "formats/utf8.h"

/* Generated names are long: PB(Hello) is the type, pb(hello) begins its functions. */
#define PB(type) MlxDistributed__V1__##type
#define pb(name) mlx_distributed__v1__##name

static inline void pack(mxd_buf *out, const ProtobufCMessage *m) {
    uint8_t *at = mxd_buf_grow(out, protobuf_c_message_get_packed_size(m));
    if (at) protobuf_c_message_pack(m, at);
}

/* protobuf-c's allocator over an arena: freeing does nothing, the caller resets the arena. */
static inline void *arena_alloc(void *a, size_t n) { return mxd_arena_take(a, n ? n : 1, 1); }
static inline void arena_free(void *a, void *p) { (void)a, (void)p; }

static inline mxd_rc unpack(const ProtobufCMessageDescriptor *d, mxd_arena *a, const void *p,
                            size_t n, ProtobufCMessage **out, mxd_err *err) {
    ProtobufCAllocator al = {arena_alloc, arena_free, a};
    *out = protobuf_c_message_unpack(d, &al, n, p);
    if (!*out)
        return mxd_fail(err, MXD_E_FORMAT, "%s of %zu bytes cannot be read", d->short_name, n);
    return MXD_OK;
}

#define UNPACK(var, Type, name)                                          \
    ProtobufCMessage *var##_base;                                        \
    MXD_TRY(unpack(&pb(name##__descriptor), a, p, n, &var##_base, err)); \
    const PB(Type) *var = (const PB(Type) *)var##_base

static inline mxd_rc put_text(char *dst, size_t cap, const char *src, const char *what,
                              mxd_err *err) {
    size_t n = strlen(src);
    if (n >= cap)
        return mxd_fail(err, MXD_E_FORMAT, "%s of %zu bytes: at most %zu", what, n, cap - 1);
    memcpy(dst, src, n + 1);
    for (char *at = dst; *at; at++) /* nor may it break a line of the log */
        if ((unsigned char)*at < 0x20 || *at == 0x7f) *at = '?';
    for (char *at = dst; !mxd_utf8_valid(at, strlen(at));) { /* it will be shown as JSON */
        bool bad;
        at += mxd_utf8_whole(at, strlen(at), &bad);
        *at++ = '?';
    }
    return MXD_OK;
}
#define TEXT(dst, src, what) MXD_TRY(put_text((dst), sizeof(dst), (src), (what), err))

static inline mxd_rc in_range(uint64_t v, uint64_t most, const char *what, mxd_err *err) {
    if (v <= most) return MXD_OK;
    return mxd_fail(err, MXD_E_FORMAT, "%s is %llu: at most %llu", what, (unsigned long long)v,
                    (unsigned long long)most);
}
#define RANGE(v, most, what) MXD_TRY(in_range((v), (most), (what), err))

#endif
