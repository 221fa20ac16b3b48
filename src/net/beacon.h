/* beacon.h - a hint where a cluster is: small UDP packets to a multicast group of the local
 * network.
 *
 * A speaker sends one packet a second on each interface on which its cluster port can be reached. A
 * listener gathers what it hears. The address is where the packet came from; the packet adds the
 * port and a tag, eight bytes of the fingerprint of the cluster's CA.
 *
 * Trust:   none. Anybody on the network can send anything. What is heard only says whom to ask; the
 *          TLS handshake there decides. A packet is looked at when it is at most
 *          MXD_BEACON_MAX_PACKET bytes. Of those with the wanted tag MXD_BEACON_MAX_RATE of a
 * second count, and MXD_BEACON_MAX_PEERS senders are remembered, few of them of one address. Scope:
 * IPv4, group 239.255.77.88, port MXD_BEACON_PORT, one hop. Threads: a speaker has one of its own;
 * the rest is the caller's.
 */
#ifndef MXD_NET_BEACON_H
#define MXD_NET_BEACON_H

#include <netinet/in.h>
#include <stdint.h>
#include "base/alloc.h"
#include "base/limits.h"

enum {
    MXD_BEACON_PORT = 52477,
    MXD_BEACON_TAG = 8,
    MXD_BEACON_MAX_PACKET = 1500,
    MXD_BEACON_MAX_PEERS = 100,
    MXD_BEACON_MAX_PER_HOST = 8,
    MXD_BEACON_MAX_RATE = 200,
    MXD_BEACON_LIFE_MS = 10000, /* so long a sender is remembered that is not heard again */
    MXD_BEACON_BYTES = 16 + MXD_MAX_NODE_NAME,
};

typedef struct mxd_beacon {
    uint8_t tag[MXD_BEACON_TAG];
    int port;                     /* 1 to 65535 */
    char name[MXD_MAX_NODE_NAME]; /* for people; printable ASCII */
} mxd_beacon;

/* Writes a packet; returns its bytes. */
size_t mxd_beacon_put(uint8_t out[MXD_BEACON_BYTES], const mxd_beacon *b);

/* False: not a packet of ours. Bytes behind what is known are for later versions. */
bool mxd_beacon_get(mxd_beacon *out, const void *packet, size_t n);

typedef struct mxd_beacon_peer {
    mxd_beacon said;
    uint32_t host; /* IPv4, network order */
    int64_t heard_ms;
    char address[32]; /* "ip:port" */
} mxd_beacon_peer;

typedef struct mxd_beacons {     /* all zero but the tag: empty */
    uint8_t tag[MXD_BEACON_TAG]; /* other clusters are not remembered */
    int n_others;                /* how many packets named one */
    mxd_beacon_peer peers[MXD_BEACON_MAX_PEERS];
    int n;
    int64_t second; /* of the rate */
    int taken;
} mxd_beacons;

/* A packet that came from `host`. False: not one, of another cluster, too many, or no room. */
bool mxd_beacons_add(mxd_beacons *all, const void *packet, size_t n, uint32_t host, int64_t now_ms);

/* A socket in the group, on every interface. Errors: E_NET; the text says what is not possible. */
mxd_rc mxd_beacon_open(int *fd, mxd_err *err) MXD_MUST_USE;
void mxd_beacon_close(int fd);

/* Waits up to timeout_ms and takes what has come meanwhile. */
void mxd_beacon_hear(int fd, mxd_beacons *all, int64_t timeout_ms);

typedef struct mxd_speaker mxd_speaker;

/* listen: the address of the cluster port, "0.0.0.0:5000" and the like: says on which interfaces it
 * can be reached. Errors: E_NET no socket; E_INVAL; E_NOMEM; E_IO no thread. */
mxd_rc mxd_speaker_open(mxd_speaker **out, const mxd_alloc *al, const char *listen,
                        const mxd_beacon *said, mxd_err *err) MXD_MUST_USE;
void mxd_speaker_close(mxd_speaker *s); /* NULL is fine */

#endif
