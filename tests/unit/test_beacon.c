/* Hints where a cluster is: packets, what is remembered of a flood of them, and real sockets. */
#include "test.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/proc.h"
#include "base/rand.h"
#include "net/beacon.h"

static const mxd_beacon sample = {
    .tag = {1, 2, 3, 4, 5, 6, 7, 8}, .port = 5000, .name = "mac-mini"};

TEST(beacon_round_trip) {
    uint8_t packet[MXD_BEACON_BYTES];
    mxd_beacon got, longest = {.port = 65535};
    CHECK(mxd_beacon_get(&got, packet, mxd_beacon_put(packet, &sample)));
    CHECK(memcmp(&got, &sample, sizeof got) == 0);
    memset(longest.name, 'n', sizeof longest.name - 1);
    size_t n = mxd_beacon_put(packet, &longest);
    CHECK(n <= sizeof packet && mxd_beacon_get(&got, packet, n));
    CHECK_STR(got.name, longest.name);
}

TEST(beacon_refuses_what_is_not_one) {
    uint8_t packet[MXD_BEACON_MAX_PACKET + 1] = {0};
    mxd_beacon got;
    size_t n = mxd_beacon_put(packet, &sample);
    for (size_t cut = 0; cut < n; cut++) { /* in a block of its size: a read behind it is seen */
        uint8_t *part = malloc(cut + 1);
        CHECK(part);
        memcpy(part + 1, packet, cut);
        CHECK(!mxd_beacon_get(&got, part + 1, cut));
        free(part);
    }
    CHECK(mxd_beacon_get(&got, packet, MXD_BEACON_MAX_PACKET)); /* of a later version, longer */
    CHECK(!mxd_beacon_get(&got, packet, MXD_BEACON_MAX_PACKET + 1));
    for (int i = 0; i < 6; i++) { /* magic, version, kind */
        packet[i] ^= 1;
        CHECK(!mxd_beacon_get(&got, packet, n));
        packet[i] ^= 1;
    }
    packet[6] = packet[7] = 0; /* port 0 */
    CHECK(!mxd_beacon_get(&got, packet, n));
    packet[7] = 1;
    packet[16] = MXD_MAX_NODE_NAME; /* a name that is too long, with all of its bytes there */
    CHECK(!mxd_beacon_get(&got, packet, 200));
    mxd_beacon odd = sample;
    memcpy(odd.name, "a\nb\"\x80 ", 7);
    CHECK(mxd_beacon_get(&got, packet, mxd_beacon_put(packet, &odd)));
    CHECK_STR(got.name, "a?b???"); /* it goes into a log */
}

static bool add(mxd_beacons *all, uint32_t host, int port, int64_t now_ms) {
    uint8_t packet[MXD_BEACON_BYTES];
    mxd_beacon b = sample;
    b.port = port;
    return mxd_beacons_add(all, packet, mxd_beacon_put(packet, &b), htonl(host), now_ms);
}

static bool knows(const mxd_beacons *all, const char *address) {
    for (int i = 0; i < all->n; i++)
        if (strcmp(all->peers[i].address, address) == 0) return true;
    return false;
}

TEST(beacon_flood_of_ten_thousand_pushes_nobody_out) {
    static mxd_beacons all = {.tag = {1, 2, 3, 4, 5, 6, 7, 8}};
    int64_t now = 1000000;
    CHECK(add(&all, 0x0a000001, 5000, now));
    uint64_t before = mxd_proc_rss_bytes();
    int taken = 0;
    for (int i = 0; i < 10000; i++) {
        now += 2;
        taken += add(&all, 0x0b000000u + (uint32_t)mxd_rand_u64(1, 2, (uint64_t)i) % 100000,
                     1 + i % 65535, now);
        if (i % 400 == 0) now += 1000, add(&all, 0x0a000001, 5000, now); /* goes on to be heard */
    }
    CHECK_EQ(all.n, MXD_BEACON_MAX_PEERS);
    CHECK(taken < 10000);
    CHECK(knows(&all, "10.0.0.1:5000"));
    uint64_t after = mxd_proc_rss_bytes();
    CHECK(after < before + (1 << 20));
    now += MXD_BEACON_LIFE_MS + 1; /* the flood is over */
    CHECK(add(&all, 0x0a000002, 5001, now));
    CHECK_EQ(all.n, 1);
    CHECK(knows(&all, "10.0.0.2:5001"));
}

TEST(beacon_limits_of_one_host_and_one_second) {
    static mxd_beacons all;
    const int most = MXD_BEACON_MAX_PER_HOST;
    memcpy(all.tag, sample.tag, sizeof all.tag);
    for (int i = 0; i < 10; i++) CHECK_EQ(add(&all, 0x0a000001, 1 + i, 5000), i < most);
    CHECK(add(&all, 0x0a000001, 2, 5000)); /* the same again */
    CHECK_EQ(all.n, most);
    for (int i = 0; i < 1000; i++) /* costs nothing of the rate */
        CHECK(!mxd_beacons_add(&all, "noise", 5, 1, 7000));
    all.tag[0]++;
    CHECK(!add(&all, 0x0a000002, 1, 7000)); /* another cluster's */
    CHECK_EQ(all.n_others, 1);
    all.tag[0]--;
    for (int i = 0; i < MXD_BEACON_MAX_RATE; i++) CHECK(add(&all, 0x0a000002, 1, 7000 + i));
    CHECK(!add(&all, 0x0a000002, 1, 7999));
    CHECK(add(&all, 0x0a000002, 1, 8000));
}

TEST(beacon_is_heard_on_this_machine) {
    static mxd_beacons all;
    mxd_err err = {0};
    mxd_speaker *s = NULL;
    int fd;
    mxd_beacon said = sample;
    CHECK_OK(mxd_rand_secret(said.tag, sizeof said.tag, &err), &err);
    memcpy(all.tag, said.tag, sizeof all.tag);
    if (mxd_beacon_open(&fd, &err)) SKIP(err.msg);
    CHECK_OK(mxd_speaker_open(&s, &mxd_alloc_libc, "127.0.0.1:5000", &said, &err), &err);
    bool heard = false;
    for (int64_t until = mxd_now_ms() + 5000; !heard && mxd_now_ms() < until;) {
        mxd_beacon_hear(fd, &all, 200);
        heard = all.n > 0;
    }
    bool right = knows(&all, "127.0.0.1:5000");
    mxd_speaker_close(s);
    mxd_beacon_close(fd);
    if (!heard) SKIP("multicast on loopback does not arrive here");
    CHECK(right);
    CHECK_EQ(mxd_speaker_open(&s, &mxd_alloc_libc, "no-port", &said, &err), MXD_E_INVAL);
}
