#include "net/beacon.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/cond.h"
#include "net/address.h"

enum { SPEAK_MS = 1000, HEAD = 16, AT_ONCE = 256 /* packets taken from the socket in one go */ };

static const char group[] = "239.255.77.88";
static const uint8_t magic[6] = {'m', 'x', 'd', 'b', 1, 0}; /* with version and kind */

/* --------------------------------------------------------------------------------------- packets
 */

/* magic 6, port 2 big-endian, tag 8, length of the name 1 (at HEAD), name. */
size_t mxd_beacon_put(uint8_t out[MXD_BEACON_BYTES], const mxd_beacon *b) {
    size_t n = strnlen(b->name, MXD_MAX_NODE_NAME - 1);
    memcpy(out, magic, sizeof magic);
    out[6] = (uint8_t)(b->port >> 8);
    out[7] = (uint8_t)b->port;
    memcpy(out + 8, b->tag, MXD_BEACON_TAG);
    out[HEAD] = (uint8_t)n;
    memcpy(out + HEAD + 1, b->name, n);
    return HEAD + 1 + n;
}

bool mxd_beacon_get(mxd_beacon *out, const void *packet, size_t n) {
    const uint8_t *p = packet;
    if (n < HEAD + 1 || n > MXD_BEACON_MAX_PACKET || memcmp(p, magic, sizeof magic) != 0)
        return false;
    size_t name = p[HEAD];
    *out = (mxd_beacon){.port = p[6] << 8 | p[7]};
    if (!out->port || name >= MXD_MAX_NODE_NAME || name > n - HEAD - 1) return false;
    memcpy(out->tag, p + 8, MXD_BEACON_TAG);
    for (size_t i = 0; i < name; i++) {
        char c = (char)p[HEAD + 1 + i];
        out->name[i] = c > ' ' && c < 0x7f && c != '"' ? c : '?'; /* it may be shown, and logged */
    }
    return true;
}

/* ----------------------------------------------------------------------------------------- memory
 */

static void forget_old(mxd_beacons *all, int64_t now_ms) {
    for (int i = 0; i < all->n;)
        if (now_ms - all->peers[i].heard_ms > MXD_BEACON_LIFE_MS)
            all->peers[i] = all->peers[--all->n];
        else
            i++;
}

/* Who floods us cannot push others out: what is there stays until it is not heard any more. */
static mxd_beacon_peer *place_for(mxd_beacons *all, uint32_t host, int port) {
    int same = 0;
    for (int i = 0; i < all->n; i++) {
        mxd_beacon_peer *p = &all->peers[i];
        if (p->host == host && p->said.port == port) return p;
        same += p->host == host;
    }
    if (all->n == MXD_BEACON_MAX_PEERS || same >= MXD_BEACON_MAX_PER_HOST) return NULL;
    return &all->peers[all->n++];
}

bool mxd_beacons_add(mxd_beacons *all, const void *packet, size_t n, uint32_t host,
                     int64_t now_ms) {
    mxd_beacon said;
    if (!mxd_beacon_get(&said, packet, n)) return false;
    if (memcmp(said.tag, all->tag, sizeof said.tag) != 0) {
        if (all->n_others < INT32_MAX) all->n_others++;
        return false;
    }
    if (now_ms / 1000 != all->second) all->taken = 0;
    all->second = now_ms / 1000;
    if (all->taken >= MXD_BEACON_MAX_RATE) return false;
    all->taken++;
    forget_old(all, now_ms);
    mxd_beacon_peer *p = place_for(all, host, said.port);
    if (!p) return false;
    char ip[INET_ADDRSTRLEN] = "";
    inet_ntop(AF_INET, &host, ip, sizeof ip);
    *p = (mxd_beacon_peer){.said = said, .host = host, .heard_ms = now_ms};
    snprintf(p->address, sizeof p->address, "%s:%d", ip, said.port);
    return true;
}

/* ------------------------------------------------------------------------------------- listening
 */

static bool prepare(int fd) {
    int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0 &&
           fcntl(fd, F_SETFD, FD_CLOEXEC) == 0;
}

/* Calls fn for the IPv4 address of each interface that is up and knows multicast, or is loopback.
 */
static int each_interface(bool (*fn)(void *ctx, struct in_addr at), void *ctx) {
    struct ifaddrs *list;
    int n = 0;
    if (getifaddrs(&list) != 0) return 0;
    for (const struct ifaddrs *i = list; i; i = i->ifa_next) {
        if (!i->ifa_addr || i->ifa_addr->sa_family != AF_INET || !(i->ifa_flags & IFF_UP)) continue;
        if (!(i->ifa_flags & (IFF_MULTICAST | IFF_LOOPBACK))) continue;
        n += fn(ctx, ((const struct sockaddr_in *)(const void *)i->ifa_addr)->sin_addr);
    }
    freeifaddrs(list);
    return n;
}

static bool join_on(void *ctx, struct in_addr at) {
    struct ip_mreq r = {.imr_interface = at};
    inet_pton(AF_INET, group, &r.imr_multiaddr);
    return setsockopt(*(int *)ctx, IPPROTO_IP, IP_ADD_MEMBERSHIP, &r, sizeof r) == 0;
}

mxd_rc mxd_beacon_open(int *out, mxd_err *err) {
    int one = 1, fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (fd < 0) return mxd_fail_sys(err, MXD_E_NET, "no socket to look for a server with");
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(MXD_BEACON_PORT)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one); /* several workers of one machine */
#ifdef SO_REUSEPORT
    setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one);
#endif
    mxd_rc rc = MXD_OK;
    if (!prepare(fd) || bind(fd, (struct sockaddr *)&any, sizeof any) != 0)
        rc = mxd_fail_sys(err, MXD_E_NET, "cannot listen on UDP port %d to look for a server",
                          MXD_BEACON_PORT);
    else if (!each_interface(join_on, &fd))
        rc = mxd_fail(err, MXD_E_NET, "no network interface here knows multicast");
    if (rc)
        close(fd);
    else
        *out = fd;
    return rc;
}

void mxd_beacon_close(int fd) { close(fd); }

void mxd_beacon_hear(int fd, mxd_beacons *all, int64_t timeout_ms) {
    struct pollfd p = {.fd = fd, .events = POLLIN};
    if (poll(&p, 1, (int)timeout_ms) <= 0) return;
    for (int i = 0; i < AT_ONCE; i++) {
        uint8_t packet[MXD_BEACON_MAX_PACKET + 1]; /* one more: a longer one shows */
        struct sockaddr_in from;
        socklen_t len = sizeof from;
        ssize_t n = recvfrom(fd, packet, sizeof packet, 0, (struct sockaddr *)&from, &len);
        if (n < 0) return;
        mxd_beacons_add(all, packet, (size_t)n, from.sin_addr.s_addr, mxd_now_ms());
    }
}

/* -------------------------------------------------------------------------------------- speaking
 */

struct mxd_speaker {
    const mxd_alloc *al;
    int fd;
    uint8_t packet[MXD_BEACON_BYTES];
    size_t n;
    struct in_addr on; /* the only interface; INADDR_ANY: all */
    pthread_t thread;
    bool started;
    pthread_mutex_t lock;
    pthread_cond_t stopped;
    bool stop;
};

static bool speak_on(void *ctx, struct in_addr at) {
    const mxd_speaker *s = ctx;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(MXD_BEACON_PORT)};
    if (s->on.s_addr != htonl(INADDR_ANY) && s->on.s_addr != at.s_addr) return false;
    inet_pton(AF_INET, group, &to.sin_addr);
    if (setsockopt(s->fd, IPPROTO_IP, IP_MULTICAST_IF, &at, sizeof at) != 0) return false;
    return sendto(s->fd, s->packet, s->n, 0, (struct sockaddr *)&to, sizeof to) == (ssize_t)s->n;
}

static void *speaker_main(void *arg) {
    mxd_speaker *s = arg;
    pthread_mutex_lock(&s->lock);
    while (!s->stop) {
        pthread_mutex_unlock(&s->lock);
        each_interface(speak_on, s); /* interfaces come and go; a hint that is lost comes again */
        pthread_mutex_lock(&s->lock);
        int64_t until = mxd_now_ns() + (int64_t)SPEAK_MS * 1000000;
        for (int64_t left; !s->stop && (left = until - mxd_now_ns()) > 0;)
            mxd_cond_wait(&s->stopped, &s->lock, left);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* The address in `listen`, a name looked up. */
static mxd_rc find_interface(mxd_speaker *s, const char *listen, mxd_err *err) {
    char host[MXD_HOST_MAX];
    int port;
    struct addrinfo *list, hints = {.ai_family = AF_INET, .ai_socktype = SOCK_DGRAM};
    MXD_TRY(mxd_address_split(listen, host, &port, err));
    if (strcmp(host, "::") == 0) return MXD_OK;
    int e = getaddrinfo(host, NULL, &hints, &list);
    if (e) return mxd_fail(err, MXD_E_NET, "'%s' has no IPv4 address: %s", host, gai_strerror(e));
    s->on = ((const struct sockaddr_in *)(const void *)list->ai_addr)->sin_addr;
    freeaddrinfo(list);
    return MXD_OK;
}

static mxd_rc start(mxd_speaker *s, const char *listen, mxd_err *err) {
    MXD_TRY(find_interface(s, listen, err));
    s->fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (s->fd < 0 || !prepare(s->fd)) return mxd_fail_sys(err, MXD_E_NET, "no socket");
    unsigned char hops = 1;
    setsockopt(s->fd, IPPROTO_IP, IP_MULTICAST_TTL, &hops, sizeof hops);
    if (pthread_create(&s->thread, NULL, speaker_main, s) != 0)
        return mxd_fail(err, MXD_E_IO, "cannot start a thread");
    s->started = true;
    return MXD_OK;
}

mxd_rc mxd_speaker_open(mxd_speaker **out, const mxd_alloc *al, const char *listen,
                        const mxd_beacon *said, mxd_err *err) {
    mxd_speaker *s = MXD_NEW(al, 1, mxd_speaker);
    if (!s) return mxd_fail(err, MXD_E_NOMEM, "beacon");
    s->al = al;
    s->fd = -1;
    s->n = mxd_beacon_put(s->packet, said);
    pthread_mutex_init(&s->lock, NULL);
    mxd_cond_init(&s->stopped);
    mxd_rc rc = start(s, listen, err);
    if (rc)
        mxd_speaker_close(s);
    else
        *out = s;
    return rc;
}

void mxd_speaker_close(mxd_speaker *s) {
    if (!s) return;
    if (s->started) {
        pthread_mutex_lock(&s->lock);
        s->stop = true;
        pthread_cond_signal(&s->stopped);
        pthread_mutex_unlock(&s->lock);
        pthread_join(s->thread, NULL);
    }
    if (s->fd >= 0) close(s->fd);
    pthread_cond_destroy(&s->stopped);
    pthread_mutex_destroy(&s->lock);
    mxd_free(s->al, s);
}
